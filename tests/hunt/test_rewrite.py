"""Mutants made from a small source: what each changes, and that nothing else does."""

import subprocess
from pathlib import Path

import clang.cindex as clang
import pytest

import fa_harness
from fa_harness.build.toolchain import find_cxx_compiler
from fa_harness.hunt.rewrite import Change, Rewriter

NATIVE = Path(fa_harness.__file__).parent / "native"
SOURCE = """\
#define TWICE(x) (2*(x))
template <int N> static int times(int x) { return N*x; }
static float table[3] = {1.0f, 2.0f, 4.0f};
static int other(int k) { return k + 1; }

static int attention(int ia, int ib, const float * p, float * out) {
    static constexpr int SIZE = 4;
    const int n = ia < ib ? ia + ib : ia*ib;
    const float first = p[0];
    const float scale = p[ia]*1.5f;
    int sum = 0;
    for (int i = 0; i < n; ++i) {
        if (i % 2 == 1) {
            continue;
        }
        sum += TWICE(i) + times<3>(i);
    }
    if (sum > SIZE && !(p == nullptr)) {
        *out = -scale;
    } else {
        *out = first;
    }
    switch (ib) {
        case 1: sum = sum - 1; break;
        default: other(ia);
    }
    return sum;
}

struct reader {
    static constexpr int next(int k) { return k + 3; }
    static int after(int k) { return k + 2; }
};

template <class T, int N> static int spread(T x, int k) {
    static_assert(N + 1 > 3, "");
    int total = 0;
    T values[N] = {};
    if constexpr (N - 1 == 2) {
        total += 7*k;
    }
    const auto add = [&](int y) {
        total += y*N;
    };
    add(k - 1);
    return total + reader::after(k) + times<N + 1>(k) + int(*(values + 1) + x + x);
}
"""
MAIN = """
#include <cstdio>
#include <cstdlib>
int ggml_fa_generated_first = 0;
int ggml_fa_generated_count = 1;
bool ggml_fa_generated_reach(int) { return true; }
float    ggml_fp16_to_fp32(ggml_fp16_t x) { return 64.0f + x; }
ggml_fp16_t ggml_fp32_to_fp16(float) { return 0; }
int main(int, char ** argv) {
    ggml_fa_generated_first = atoi(argv[1]);
    float values[4] = {3.0f, 5.0f, 7.0f, 9.0f}, out = 0.0f;
    for (int a = 0; a < 3; ++a) {
        for (int b = 0; b < 3; ++b) {
            const int sum = attention(a, b, values + 0, &out) + spread<float, 3>(values[b], a);
            printf("%d %g ", sum, (double) out);
        }
    }
}
"""
GGML = """
#pragma once
#include <cstdint>
#define GGML_API extern
typedef uint16_t ggml_fp16_t;
extern "C" {
float    ggml_fp16_to_fp32(ggml_fp16_t x);
ggml_fp16_t ggml_fp32_to_fp16(float x);
}
"""


def rewritten(folder: Path, source: str, lines: range = range(1000)) -> tuple[str, list[Change]]:
    path = folder / "source.cpp"
    path.write_text(source)
    record = clang.TranslationUnit.PARSE_DETAILED_PROCESSING_RECORD
    unit = clang.Index.create().parse(str(path), args=["-xc++", "-std=c++17"], options=record)
    rewriter = Rewriter(unit, path, shown="source.cpp", wanted=lines.__contains__, first=1)
    return rewriter.text(), rewriter.changes


@pytest.fixture(scope="module")
def attention(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, list[Change]]:
    """A program that computes with the mutant of a number, its text, and the changes."""
    folder = tmp_path_factory.mktemp("rewritten")
    text, changes = rewritten(folder, SOURCE, range(7, 60))
    (folder / "ggml.h").write_text(GGML)
    (folder / "main.cpp").write_text(f'#include "ggml-fa-generated.h"\n{text}{MAIN}')
    compiler = [*find_cxx_compiler().command, "-std=c++17", "-O1", "-w", f"-I{folder}"]
    program = folder / "program"
    command = [*compiler, f"-I{NATIVE}", str(folder / "main.cpp"), "-o", str(program)]
    subprocess.run(command, check=True)
    return program, text, changes


def printed(program: Path, number: int) -> str:
    """What it prints; a mutant that has not ended in a second may loop for ever."""
    seconds = 1 if number else 60
    try:
        done = subprocess.run(
            [program, str(number)], capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return "timeout"
    return done.stdout if done.returncode == 0 else f"status {done.returncode}"


def test_without_a_mutant_the_results_are_those_of_the_source(
    attention: tuple[Path, str, list[Change]], tmp_path: Path
) -> None:
    program, _, _ = attention
    (tmp_path / "ggml.h").write_text(GGML)
    (tmp_path / "main.cpp").write_text(f'#include "ggml-fa-generated.h"\n{SOURCE}{MAIN}')
    compiler = [*find_cxx_compiler().command, "-std=c++17", "-w", f"-I{tmp_path}", f"-I{NATIVE}"]
    plain = tmp_path / "plain"
    subprocess.run([*compiler, str(tmp_path / "main.cpp"), "-o", str(plain)], check=True)
    assert printed(program, 0) == printed(plain, 0)


def test_mutants_change_what_is_computed_and_each_kind_is_there(
    attention: tuple[Path, str, list[Change]],
) -> None:
    program, _, changes = attention
    assert [change.number for change in changes] == list(range(1, len(changes) + 1))
    right = printed(program, 0)
    equal = [change for change in changes if printed(program, change.number) == right]
    # a call without an effect, and what no input here tells apart
    told = {change.kind for change in changes if change not in equal}
    assert told >= {
        "operator", "comparison", "condition", "constant", "index", "variable", "type", "statement",
    }  # fmt: skip
    assert len(equal) < len(changes) / 4, equal


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        ("comparison", "ia < ib", "<="),
        ("comparison", "ia < ib", ">"),
        ("operator", "ia + ib", "-"),
        ("constant", "1.5f", "0"),
        ("index", "p[ia]", "the next element"),
        ("variable", "ia", "ib"),
        ("type", "const float scale = p[ia]*1.5f", "rounded to F16"),
        ("condition", "sum > SIZE && !(p == nullptr)", "true"),
        ("condition", "!(p == nullptr)", "without the !"),
        ("operator", "-scale", "without the sign"),
        ("statement", "continue", "deleted"),
        ("statement", "other(ia)", "deleted"),
        ("operator", "sum += TWICE(i) + times<3>(i)", "="),
        ("operator", "k + 2", "-"),
        ("operator", "total += 7*k", "-="),
        ("operator", "y*N", "/"),
        ("index", "values + 1", "-"),
        ("statement", "add(k - 1)", "deleted"),
    ],
)
def test_a_change_says_what_it_changes(
    attention: tuple[Path, str, list[Change]], kind: str, before: str, after: str
) -> None:
    _, _, changes = attention
    assert (kind, before, after) in {(each.kind, each.before, each.after) for each in changes}


def test_what_must_be_constant_and_other_lines_stay(
    attention: tuple[Path, str, list[Change]],
) -> None:
    _, text, _ = attention
    for line in (
        "    static constexpr int SIZE = 4;",
        "static float table[3] = {1.0f, 2.0f, 4.0f};",
        "static int other(int k) { return k + 1; }",
        "    static constexpr int next(int k) { return k + 3; }",
        '    static_assert(N + 1 > 3, "");',
        "    if constexpr (N - 1 == 2) {",
    ):
        assert line in text.splitlines()
    assert "times<3>(" in text
    assert "times<N + 1>(" in text
    assert " + x + x)" in text  # of a type that the template does not know
    assert "case 1:" in text
    assert "TWICE(i)" in text
