"""The decisions of a source, by its text, are those whose arcs gcov counts."""

import re
import subprocess
from pathlib import Path

import pytest

from fa_harness.build.toolchain import find_cxx_compiler, find_gcov
from fa_harness.hunt.conditions import Decision, statements
from fa_harness.hunt.coverage import branches_of
from fa_harness.hunt.gcov import documents_of, merged

PROGRAM = """\
#include <cstdio>
#include <cstdlib>
static bool is_set(int i) { return i > 0; }
// each comment says how often which operand of the line is true and false
static int decide(int a, int b, int c, float s, const float * p) {
    int r = 0;
    if (a) { r++; }                            // 5 2
    if (a && b) { r++; } else { r--; }         // 5 2, 2 3
    if (a || b) { r++; }                       // 5 2, 1 1
    if ((a && b) || c) { r++; }                // 5 2, 2 3, 4 1
    if (a && (b || c)) { r++; }                // 5 2, 2 3, 2 1
    if (!(a && b) && c) { r++; }               // 5 2, 2 3, 4 1
    if (!(a || b)) r++;                        // 5 2, 1 1
    if (!is_set(a)) { r++; }                   // 2 5
    if (is_set(a) && b == 1) { r++; }          // 5 2, 2 3
    const bool both = !is_set(a) && (b == 1 || // 2 5, 1 1
        c == 1);                               // 1 0
    r += both ? 0 : c + r;                     // 2 5
    r += a ? b : c;                            // 5 2
    r += a ? b : c + r;                        // 5 2
    r += s == 0.0f ? 0.0f : 1.0f/s;            // 1 6
    r += s > 1.0f ? a < b ? s : s*s : 1.0f;    // 6 1, 0 6
    r += is_set(a) ? 0 : *p;                   // 5 2
    const float * q = a && !b ? p + 1 : NULL;  // 5 2, 3 2
    r += q ? q[0] : 0;                         // 3 4
    for (int i = 0; a && i < 2; i++) { r++; }  // 15 2, 10 5
    while (a > 0) { a--; }                     // 7 7
    do { r--; b--; } while (b > 0);            // 0 7
    return r;
}
int main() {
    const float p[2] = {1, 2};
    int r = 0;
    for (int k = 0; k < 3; k++) { r += decide(1, 0, 2 - k, 1.5f, p); } // 3 1
    r += decide(0, 1, 1, 0.0f, p) + decide(3, 1, 1, 2.0f, p) + decide(1, 1, 3, 2.0f, p);
    r += decide(0, 0, 1, 2.0f, p);
    std::printf("%d", r);
    switch (r & 1) {
        case 0:
        case 1:
            r = 0; break;
        case 2: r--; break;
        default: std::abort();
    }
    return r;
}
"""


def decisions(text: str) -> list[tuple[str, tuple[str, ...]]]:
    return [
        (found.text, found.ways) for statement in statements(text) for found in statement.decisions
    ]


def test_the_arcs_of_a_program_are_those_of_its_conditions_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "a.cpp").write_text(PROGRAM)
    compiler = find_cxx_compiler().command
    subprocess.run([*compiler, "-O0", "--coverage", "a.cpp", "-o", "a"], cwd=tmp_path, check=True)
    subprocess.run(["./a"], cwd=tmp_path, check=True, stdout=subprocess.PIPE)
    [notes] = tmp_path.glob("*.gcno")
    file = merged(documents_of(find_gcov(), [notes.name], tmp_path))["a.cpp"]
    lines = PROGRAM.splitlines()
    expected = {
        number: [tuple(map(int, pair.split())) for pair in found[1].split(",")]
        for number, line in enumerate(lines, start=1)
        if (found := re.search(r"// ([\d ,]+)$", line))
    }
    expected[16] += expected.pop(17)  # a statement
    counts: dict[int, dict[str, list[int]]] = {}
    for branch in branches_of("a.cpp", PROGRAM, file, set(range(1, len(lines) + 1))):
        counts.setdefault(branch.line, {}).setdefault(branch.direction, []).append(branch.taken)
    switch = next(n for n, line in enumerate(lines, start=1) if "switch" in line)
    assert counts.pop(switch) == {"case 0, case 1": [1], "case 2": [0], "default": [0]}
    pairs = {n: list(zip(ways["true"], ways["false"], strict=True)) for n, ways in counts.items()}
    assert pairs == expected


def test_what_is_evaluated_next_has_the_first_arc() -> None:
    assert decisions("if (a && (b || !c)) {") == [
        ("a", ("true", "false")), ("b", ("false", "true")), ("!c", ("true", "false")),
    ]  # fmt: skip


def test_a_negated_group_keeps_the_signs_of_its_operands() -> None:
    assert decisions("if (!(a == 1 && b)) {") == [
        ("a == 1", ("true", "false")), ("b", ("false", "true")),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "GGML_ASSERT(a && b);", "if constexpr (a) {", "x = 1;", "while (true) {",
        "f(a, b);", '"a && b" "c ? d : e";', "// if (a) {", "#if A && B",
    ],
)  # fmt: skip
def test_what_decides_nothing_has_no_decision(text: str) -> None:
    assert decisions(text) == []


def test_a_comment_and_the_lines_of_a_condition_are_not_told() -> None:
    text = "if (a && // first\n    b /* second */ < 2)\n{"
    [statement] = statements(text)
    assert statement.lines == range(1, 3)
    assert [found.text for found in statement.decisions] == ["a", "b < 2"]


def test_the_arm_of_a_switch_that_only_aborts_has_no_name() -> None:
    text = 'switch (type) { case A: case B: { f(); } break; default: { GGML_ABORT("no"); } }'
    [first, *_] = statements(text)
    assert first.decisions == (
        Decision(text="switch (type)", ways=("case A, case B", ""), is_switch=True),
    )


def test_without_a_default_no_case_is_a_way_out_of_a_switch() -> None:
    [first, *_] = statements("switch (type) { case A: f(); }")
    assert first.decisions[0].ways == ("case A", "no case")
