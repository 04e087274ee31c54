"""What gcov says of a run becomes branches; the real library counts what its cases take."""

import dataclasses
import os
from typing import Any

import pytest

import schemas
from fa_harness.build.builder import build
from fa_harness.build.library import Library
from fa_harness.case.suites import suite
from fa_harness.engine.runner import Runner
from fa_harness.files import read_toml
from fa_harness.hunt import gcov
from fa_harness.hunt.attention import case_lines
from fa_harness.hunt.coverage import Branch, Coverage, Unentered, branches_of, counted, measure
from fa_harness.project import find_project
from fa_harness.report import json as run_report
from gates import compared, results

SOURCE = """\
template <int N> static void scale(float * x, float s) {
    for (int i = 0; i < N; i++) {
        if (s != 1.0f) x[i] *= s;
    }
    GGML_ASSERT(N > 0 || s > 0);
    use(MAX(N, 2));
}
"""


def ways(*counts: int, throw: int | None = None) -> list[dict[str, Any]]:
    """Arcs as gcov tells of them; one may be that of an exception."""
    return [
        {"count": count, "throw": i == throw, "fallthrough": i % 2 == 0}
        for i, count in enumerate(counts)
    ]


def document(name: str, file: str, n_call: int, *lines: tuple[int, Any]) -> dict[str, Any]:
    """What gcov says of an object in which one instance of the function is."""
    function = {
        "name": name, "demangled_name": f"void {name}(float*, float)", "start_line": 1,
        "end_line": 7, "execution_count": n_call, "blocks": 9, "blocks_executed": 5,
    }  # fmt: skip
    counted = [
        {"line_number": n, "function_name": name, "count": 1, "branches": arcs} for n, arcs in lines
    ]
    return {"files": [{"file": file, "functions": [function], "lines": counted}]}


def test_instances_of_a_function_count_together_without_what_throws() -> None:
    first = document("scale<2>", "a.h", 3, (2, ways(6, 3)), (3, ways(6, 0, 6, 0, throw=1)))
    second = document("ns::scale<4>", "a.h", 0, (2, ways(0, 0)), (3, ways(0, 0)))
    elsewhere = document("other", "/usr/include/vector", 1, (2, ways(1, 1)))
    found = gcov.merged([first, second, elsewhere])
    assert set(found) == {"a.h"}
    assert found["a.h"].functions == (gcov.Function(name="scale", lines=range(1, 8), entered=3),)
    assert found["a.h"].lines == {
        2: gcov.Line(function="scale", arcs=(6, 3)),
        3: gcov.Line(function="scale", arcs=(6, 0)),
    }


@pytest.mark.parametrize(
    ("demangled", "name"),
    [
        ("ggml_graph_plan", "ggml_graph_plan"),
        ("void simd_gemm_ukernel<4, 1>(float*, float const*, int)", "simd_gemm_ukernel"),
        ("(anonymous namespace)::tile<block<int> >::load(void const*) const", "load"),
    ],
)
def test_a_function_is_called_by_its_plain_name(demangled: str, name: str) -> None:
    assert gcov.plain_name(demangled) == name


def test_only_what_the_source_decides_is_a_branch() -> None:
    lines = [(2, ways(6, 3)), (3, ways(0, 6)), (5, ways(0, 3)), (6, ways(3, 0))]
    [file] = gcov.merged([document("scale", "a.h", 3, *lines)]).values()
    found = list(branches_of("a.h", SOURCE, file, set(range(1, 8))))
    assert [(each.line, each.name, each.taken) for each in found] == [
        (2, "scale: i < N is true", 6),
        (2, "scale: i < N is false", 3),
        (3, "scale: s != 1.0f is true", 0),
        (3, "scale: s != 1.0f is false", 6),
    ]
    assert list(branches_of("a.h", SOURCE, file, {3})) == found[2:]


def test_a_statement_whose_arcs_are_not_those_of_its_conditions_is_told_as_it_is() -> None:
    [file] = gcov.merged([document("scale", "a.h", 3, (3, ways(1, 2, 3, 4)))]).values()
    found = list(branches_of("a.h", SOURCE, file, {3}))
    assert [each.direction for each in found] == [f"way {i} of 4" for i in range(1, 5)]
    assert {each.text for each in found} == {"if (s != 1.0f) x[i] *= s"}


def test_equal_conditions_of_a_function_have_names_of_their_own() -> None:
    text = "if (a) { f(); }\nif (a) { g(); }\n"
    lines = {n: gcov.Line(function="f", arcs=(1, 1)) for n in (1, 2)}
    names = [each.name for each in branches_of("a.c", text, gcov.File(lines=lines), {1, 2})]
    assert names == ["f: a is true", "f: a is false", "f: a (2) is true", "f: a (2) is false"]


def test_the_cases_of_attention_have_their_lines() -> None:
    text = (
        "switch (op) {\n    case GGML_OP_FLASH_ATTN_EXT:\n    case GGML_OP_NONE:\n        {\n"
        "            if (a) { b; }\n        } break;\n    case GGML_OP_ADD: c; break;\n"
        "    case GGML_OP_FLASH_ATTN_EXT_MERGE_STATES:\n        d;\n        break;\n}\n"
    )
    assert list(case_lines(text)) == [2, 3, 4, 5, 6, 8, 9]


def branch(taken: int, reason: str = "", direction: str = "true") -> Branch:
    return Branch(
        file="a.c", line=3, function="f", text="a", direction=direction, source="if (a)",
        taken=taken, reason=reason,
    )  # fmt: skip


def test_a_branch_is_taken_or_accepted_or_missed_and_the_report_says_which() -> None:
    coverage = Coverage(
        scope="attention",
        note="",
        branches=(branch(2), branch(0, "no"), branch(0), branch(1, "no", direction="false")),
        functions=(Unentered(file="a.c", line=1, function="g"),),
    )
    assert (len(coverage.taken), len(coverage.accepted), len(coverage.missed)) == (2, 1, 1)
    assert coverage.contradicted == ["f: a is false"]
    run = dataclasses.replace(results(compared()), coverage=coverage.to_json())
    report = schemas.checked(run_report.document(run))
    assert report["coverage"]["missed"] == [
        {
            "file": "a.c", "line": 3, "function": "f", "text": "a", "direction": "true",
            "source": "if (a)",
        }
    ]  # fmt: skip


def test_what_is_counted_is_below_a_folder_of_the_block_alone() -> None:
    before = os.environ.get("GCOV_PREFIX")
    with counted() as folder:
        assert os.environ["GCOV_PREFIX"] == str(folder)
        assert folder.is_dir()
    assert not folder.exists()
    assert os.environ.get("GCOV_PREFIX") == before


# the real library


@pytest.fixture(scope="module")
def library() -> Library:
    [found] = build(find_project(), ["coverage"])
    return found


def covered(library: Library, name: str, *, end: bool = False) -> Coverage:
    """What a suite takes; `end` ends each worker as soon as it has replied."""
    with counted() as counts, Runner(library.module_path) as runner:
        for case in suite(name):
            [verdict] = runner.run([case])
            assert verdict.status == "pass"
            if end:
                os.kill(runner._worker.pid, 9)
        return measure(find_project(), library, counts)


def not_taken(coverage: Coverage) -> set[str]:
    return {each.name for each in coverage.branches if not each.taken}


@pytest.mark.full
def test_smoke_takes_the_soft_cap_and_seed_does_not(library: Library) -> None:
    soft_cap = "ggml_compute_forward_flash_attn_ext_f16_one_chunk: logit_softcap != 0 is true"
    seed, smoke = covered(library, "seed"), covered(library, "smoke")
    assert soft_cap in not_taken(seed)
    assert soft_cap not in not_taken(smoke)
    assert not_taken(smoke) < not_taken(seed)
    assert "ggml_compute_forward_flash_attn_ext_tiled" in {each.function for each in seed.functions}
    assert "ggml_compute_forward_flash_attn_ext_tiled" not in {e.function for e in smoke.functions}


@pytest.mark.full
def test_a_worker_that_is_killed_between_cases_loses_nothing(library: Library) -> None:
    assert not_taken(covered(library, "seed", end=True)) == not_taken(covered(library, "seed"))


@pytest.mark.full
def test_each_reason_is_of_a_branch_that_is_there(library: Library) -> None:
    project = find_project()
    with counted() as counts:
        names = {each.name for each in measure(project, library, counts).branches}
    assert set(read_toml(project.patches / "coverage.toml")) <= names
