"""What the numbers of the evidence say."""

import json
from collections.abc import Sequence

import numpy as np
import pytest

from fa_harness.arrays import F64
from fa_harness.errors import SetupError
from fa_harness.model import evidence
from fa_harness.model.evidence import Evidence, Pass, Section
from fa_harness.model.perplexity import Perplexity
from fa_harness.report.dossier import CHECKLIST, markdown, render

OPS = """Testing 2 devices

Backend 1/1: CPU
  Device description: Some CPU
  FLASH_ATTN_EXT(hsk=40,hsv=40,type_K=f32): \x1b[1;32mOK\x1b[0m
  FLASH_ATTN_EXT(hsk=40,hsv=40,type_K=f16): \x1b[1;31mFAIL\x1b[0m
[FLASH_ATTN_EXT_STATE] ERR = 0.0123 > 0.0005   FLASH_ATTN_EXT_STATE(kv=64): \x1b[1;31mFAIL\x1b[0m
[FLASH_ATTN_EXT] NaN at index 3 (CPU=nan REF=1.0)   FLASH_ATTN_EXT(kv=65): \x1b[1;31mFAIL\x1b[0m
  FLASH_ATTN_EXT(hsk=40,hsv=40,type_K=q4_1): not supported [CPU]
  MUL_MAT(m=1): \x1b[1;32mOK\x1b[0m
  2/3 tests passed
"""


def test_the_cases_of_upstreams_test_are_read_without_colours() -> None:
    assert evidence.parse_ops(OPS) == {
        "FLASH_ATTN_EXT(hsk=40,hsv=40,type_K=f32)": "OK",
        "FLASH_ATTN_EXT(hsk=40,hsv=40,type_K=f16)": "FAIL",
        "FLASH_ATTN_EXT_STATE(kv=64)": "FAIL",
        "FLASH_ATTN_EXT(kv=65)": "FAIL",
        "FLASH_ATTN_EXT(hsk=40,hsv=40,type_K=q4_1)": "not supported",
    }


def test_a_test_that_tested_nothing_is_no_evidence() -> None:
    with pytest.raises(SetupError, match="printed no case"):
        evidence.parse_ops("Backend 1/1: CPU\n  0/0 tests passed\n")


@pytest.mark.parametrize(
    ("after", "passed", "note"),
    [
        ({"FLASH_ATTN_EXT(a)": "OK", "FLASH_ATTN_EXT_STATE(b)": "OK"}, True, "1 cases are new"),
        ({"FLASH_ATTN_EXT(a)": "FAIL"}, False, "OK before, FAIL after: FLASH_ATTN_EXT(a)"),
        (
            {"FLASH_ATTN_EXT(a)": "not supported"},
            False,
            "OK before, not supported after: FLASH_ATTN_EXT(a)",
        ),
        ({"FLASH_ATTN_EXT_STATE(b)": "OK"}, False, "gone: FLASH_ATTN_EXT(a)"),
        (
            {"FLASH_ATTN_EXT(a)": "OK", "FLASH_ATTN_EXT_STATE(b)": "FAIL"},
            False,
            "fails: FLASH_ATTN_EXT_STATE(b)",
        ),
    ],
)
def test_a_case_that_is_lost_or_fails_speaks_against_the_patches(
    after: dict[str, str], passed: bool, note: str
) -> None:
    section = evidence.ops_section({"FLASH_ATTN_EXT(a)": "OK"}, after)
    assert section.passed is passed
    assert note in section.notes


@pytest.mark.parametrize(
    ("ended", "passed"), [((0, 0), True), ((0, 1), False), ((1, 0), False), ((1, 1), False)]
)
def test_a_failure_that_no_case_shows_is_said(ended: tuple[int, int], passed: bool) -> None:
    found = {"FLASH_ATTN_EXT(a)": "OK"}
    section = evidence.ops_section(found, found, ended=ended)
    assert section.passed is passed
    said = [note for note in section.notes if "the program ends with status 1, and no" in note]
    assert len(said) == sum(ended)


def test_a_case_that_fails_as_before_explains_the_exit_status() -> None:
    before = {"FLASH_ATTN_EXT(a)": "FAIL"}
    section = evidence.ops_section(before, {"FLASH_ATTN_EXT(a)": "OK"}, ended=(1, 0))
    assert not [note for note in section.notes if "status" in note]


def test_the_speeds_of_llama_bench_are_read_out_of_what_it_prints() -> None:
    output = (
        "load_backend: loaded CPU\n"
        '[\n {"n_prompt": 512, "n_gen": 0, "n_depth": 0, "avg_ts": 718.3},\n'
        ' {"n_prompt": 0, "n_gen": 32, "n_depth": 2048, "avg_ts": 46.6}\n]\nbye\n'
    )
    assert evidence.parse_bench(output) == {"pp512": 718.3, "tg32 @ d2048": 46.6}


def bench_row(n_prompt: int, n_gen: int, **more: object) -> dict[str, object]:
    return {"n_prompt": n_prompt, "n_gen": n_gen, "n_depth": 0, "samples_ns": [1], **more}


def test_tests_of_llama_bench_that_do_the_same_are_told_apart_by_what_differs() -> None:
    rows = [
        bench_row(512, 0, type_k="f16", n_batch=64, avg_ts=100.0, test_time="a"),
        bench_row(512, 0, type_k="q8_0", n_batch=64, avg_ts=50.0, test_time="b"),
        bench_row(512, 128, type_k="f16", n_batch=64, avg_ts=80.0, test_time="c"),
    ]
    assert evidence.parse_bench(json.dumps(rows)) == {
        "pp512, type_k=f16": 100.0,
        "pp512, type_k=q8_0": 50.0,
        "pp512+tg128": 80.0,
    }


def test_a_test_of_llama_bench_that_runs_twice_is_refused() -> None:
    rows = [bench_row(512, 0, avg_ts=100.0), bench_row(512, 0, avg_ts=101.0)]
    with pytest.raises(SetupError, match="the same test twice; ask for each once"):
        evidence.parse_bench(json.dumps(rows))


@pytest.mark.parametrize("output", ["", "error: failed", '[{"n_prompt": 1}]', "[1]"])
def test_other_output_of_llama_bench_is_an_error(output: str) -> None:
    with pytest.raises(SetupError, match="llama-bench printed no result"):
        evidence.parse_bench(output)


def around(centre: float, spread: float) -> list[float]:
    return [centre + spread * (i - 5.5) / 5.5 for i in range(12)]


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        (around(1.0, 0.005), "no change"),
        (around(1.02, 0.005), "better"),
        (around(0.98, 0.005), "worse"),
        (around(0.995, 0.01), "no change"),
        (around(1.0, 0.2), "cannot be told"),
        (around(0.96, 0.1), "cannot be told"),
    ],
)
def test_a_verdict_needs_the_whole_interval(ratios: Sequence[float], verdict: str) -> None:
    assert evidence.judge_ratio(ratios)[1] == verdict


def test_one_slower_test_speaks_against_the_patches() -> None:
    before = [{"pp512": 100.0 + i, "tg32": 50.0} for i in range(12)]
    same = evidence.bench_section(before, before)
    assert same.passed
    assert [row[-1] for row in same.rows] == ["no change", "no change"]
    after = [{**row, "tg32": 48.0} for row in before]
    slower = evidence.bench_section(before, after)
    assert slower.passed is False
    assert slower.rows[1] == ("tg32", "50.00", "48.00", "0.960 (0.960 to 0.960)", "worse")


def test_what_cannot_be_told_is_said_with_the_rounds_that_it_takes() -> None:
    before = [{"pp512": 100.0} for _ in range(12)]
    after = [{"pp512": 100 * ratio} for ratio in around(1.0, 0.2)[:12]]
    section = evidence.bench_section(before, after, notes=["in turn"])
    assert section.rows[0][-1] == "cannot be told"
    assert section.notes == ("in turn", "an interval half as wide takes --rounds 48")
    assert evidence.bench_section(before, before, notes=["in turn"]).notes == ("in turn",)


def perplexity_of(chunks: F64) -> Perplexity:
    """Return what is printed of chunks with these logarithms, in their order."""
    running = np.exp(np.cumsum(chunks) / np.arange(1, len(chunks) + 1))
    printed = tuple(float(f"{value:.4f}") for value in running)
    return Perplexity(estimate=printed[-1], error=0.7, chunks=printed)


@pytest.mark.parametrize(
    ("shift", "noise", "verdict"),
    [
        (0.0, 0.0, "no change"),
        (4e-5, 0.0, "no change"),
        (4e-4, 1e-4, "worse"),
        (-4e-4, 1e-4, "better"),
        (4e-4, 3e-3, "no change"),
        (4e-4, 3e-2, "cannot be told"),
    ],
)
def test_perplexity_is_judged_by_what_changes_in_each_chunk(
    shift: float, noise: float, verdict: str
) -> None:
    random = np.random.default_rng(1)
    of_text = random.normal(3, 0.5, 24)
    changes = random.normal(0, 1, 24)
    changes = shift + noise * (changes - changes.mean()) / changes.std()
    before, after = perplexity_of(of_text), perplexity_of(of_text + changes)
    interval, found = evidence.judge_perplexity(before, after)
    assert found == verdict
    assert interval.low <= np.exp(shift) * (1 + 1e-5)
    assert interval.high >= np.exp(shift) * (1 - 1e-5)


def test_of_one_chunk_only_an_equal_perplexity_is_told() -> None:
    of_text = np.full(1, 3.0)
    before, after = perplexity_of(of_text), perplexity_of(of_text + 1e-3)
    assert evidence.judge_perplexity(before, before)[1] == "no change"
    assert evidence.judge_perplexity(before, after)[1] == "cannot be told"
    section = evidence.perplexity_section(
        *([Pass(perplexity=p, seconds=1.0)] for p in (before, after))
    )
    assert section.notes[0] == "after / before 1.0010 (an interval takes 2 chunks): cannot be told"


def test_a_perplexity_that_is_lost_is_worse() -> None:
    before = perplexity_of(np.full(24, 3.0))
    lost = Perplexity(estimate=float("nan"), error=0.1, chunks=(float("nan"),) * 24)
    assert evidence.judge_perplexity(before, lost)[1] == "worse"


def test_a_build_that_gives_two_perplexities_speaks_against_the_patches() -> None:
    one, other = (
        Pass(perplexity=Perplexity(estimate=ppl, error=0.1, chunks=(ppl,)), seconds=1.0)
        for ppl in (2.0, 2.1)
    )
    assert evidence.perplexity_section([one, one], [one, one]).passed
    unsteady = evidence.perplexity_section([one, one], [one, other])
    assert unsteady.passed is False
    assert "the same build gave different values in different rounds" in unsteady.notes


def status(*patches: tuple[str, list[str], list[str]]) -> dict[str, object]:
    keys = ("title", "turned_green", "turned_red")
    return {
        "libraries": ["state", *(f"state+fast@{n + 1:04}" for n in range(len(patches)))],
        "patches": [dict(zip(keys, patch, strict=True)) for patch in patches],
    }


def test_the_proof_names_a_command_for_red_and_one_for_green() -> None:
    documents = {"seed": status(("one", [], []), ("two", ["F(long)", "F(a)"], []))}
    section = evidence.proof_section(documents, "$DIR")
    assert section.passed
    assert section.rows[1] == ("two", "seed", "2", "0")
    assert section.notes == (
        "patch 2, red: UPSTREAM_DIR=$DIR fa-harness run --library state+fast@0001 --case 'F(a)'",
        "patch 2, green: UPSTREAM_DIR=$DIR fa-harness run --library state+fast@0002 --case 'F(a)'",
    )
    turned = evidence.proof_section({"seed": status(("one", [], ["F(a)"]))}, "$DIR")
    assert turned.passed is False


@pytest.mark.parametrize(
    ("summary", "passed"),
    [
        ({"cases": 3, "pass": 2, "unsupported": 1}, True),
        ({"cases": 3, "pass": 2, "fail": 1}, False),
        ({"cases": 1, "pass": 0, "unsupported": 1}, False),
    ],
)
def test_a_suite_must_pass(summary: dict[str, int], passed: bool) -> None:
    document = {"summary": summary, "interrupted": False}
    assert evidence.suite_section(document, "default").passed is passed


def test_a_suite_that_was_ended_early_is_no_evidence() -> None:
    document = {"summary": {"cases": 3, "pass": 3}, "interrupted": True}
    section = evidence.suite_section(document, "default")
    assert section.passed is False
    assert section.notes == ("the run was ended before all cases had run",)


def test_a_mutant_that_survives_is_named() -> None:
    results = [
        {"mutant": "a", "status": "killed"},
        {"mutant": "b", "status": "survived"},
        {"mutant": "c", "status": "equivalent"},
    ]
    section = evidence.mutants_section({"results": results, "interrupted": False})
    assert section.passed is False
    assert section.notes == ("not killed: b",)
    assert evidence.mutants_section({"results": results[:1], "interrupted": True}).passed is False
    assert evidence.mutants_section({"results": results[:1], "interrupted": False}).passed


def test_sizes_are_compared_library_by_library() -> None:
    section = evidence.size_section({"libggml-cpu.so": 100}, {"libggml-cpu.so": 90, "other": 1})
    assert section.rows == (("libggml-cpu.so", "100", "90", "-10"),)


def evidence_of(*sections: Section) -> Evidence:
    return Evidence(
        tool_version="1",
        branch="state",
        base="b" * 40,
        tip="t" * 40,
        subjects=("ggml : add | and keep",),
        machine={"CPU": "Some | CPU"},
        variables={"DIR": "/my/llama.cpp"},
        build=("cmake -S $DIR-before",),
        sections=sections,
    )


def test_the_document_is_tables_commands_and_a_checklist() -> None:
    section = Section(
        part="size", title="Binary size", commands=("ls $BEFORE",), head=("a", "b"),
        rows=(("1", "2"),), notes=("F(x|y)",),
    )  # fmt: skip
    lines = markdown(evidence_of(section)).splitlines()
    assert "| CPU | Some \\| CPU |" in lines
    assert "| 1 | ggml : add \\| and keep |" in lines
    assert "DIR=/my/llama.cpp" in lines
    assert "| 1 | 2 |" in lines
    assert "ls $BEFORE" in lines
    assert "F(x|y)" in lines  # in a block of text, where nothing is escaped
    assert lines[-len(CHECKLIST) :] == [f"- [ ] {item}" for item in CHECKLIST]
    assert lines.count("```") == lines.count("```sh") + 2  # each block is closed, notes open one


def test_what_was_not_measured_speaks_neither_way() -> None:
    skipped = evidence.skipped_section("bench", "no --model")
    assert evidence_of(skipped).passed
    assert "not measured: no --model" in markdown(evidence_of(skipped))
    assert '"passed": null' in render(evidence_of(skipped))
    assert not evidence_of(skipped, Section(part="ops", title="x", passed=False)).passed
