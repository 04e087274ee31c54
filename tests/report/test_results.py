"""What the results say as a whole: the counts, the exit status, the line that repeats a case."""

import dataclasses
import json
import shlex
from datetime import datetime, timezone

import numpy as np
import pytest

import schemas
from fa_harness.case.case import Case
from fa_harness.engine.session import Results
from fa_harness.judge.compare import Comparison, Worst
from fa_harness.judge.verdict import STATUSES, Verdict
from fa_harness.report.json import render

CASE = Case(n_kv=64, segments=3, regime="spiky", boundaries=(1, 9))


def verdict(status: str) -> Verdict:
    return Verdict(case=CASE, status=status, path="vec", modes=(), comparisons={}, outputs={})


def results(*statuses: str, selected: int | None = None) -> Results:
    return Results(
        tool_version="1.2",
        library={"name": "patched"},
        features=("AVX2",),
        machine={"cpu": "some", "threads": 2},
        modes=(),
        started=datetime(2020, 1, 2, tzinfo=timezone.utc),
        seconds=1.5,
        verdicts=tuple(verdict(status) for status in statuses),
        selected=len(statuses) if selected is None else selected,
        interrupted=selected is not None,
    )


def test_a_run_passes_where_every_case_passed() -> None:
    assert results("pass", "pass").passed


@pytest.mark.parametrize("status", ["fail", "crash", "timeout", "mistrusted", "oversized"])
def test_one_bad_case_fails_a_run(status: str) -> None:
    assert not results("pass", status, "pass").passed


def test_unsupported_cases_do_not_fail_a_run_in_which_others_passed() -> None:
    assert results("pass", "unsupported").passed


def test_a_run_of_unsupported_cases_alone_does_not_pass() -> None:
    assert not results("unsupported", "unsupported").passed


def test_an_interrupted_run_does_not_pass() -> None:
    assert not results("pass", selected=2).passed


def test_a_run_of_nothing_does_not_pass() -> None:
    assert not results().passed


def test_the_summary_counts_every_status() -> None:
    summary = schemas.checked(json.loads(render(results(*STATUSES, "pass"))))["summary"]
    assert summary == {"cases": 8, "pass": 2} | dict.fromkeys(STATUSES[1:], 1)


def test_the_repro_line_is_the_case_for_a_shell() -> None:
    words = shlex.split(results("pass").repro(verdict("pass").case))
    assert words == ["fa-harness", "run", "--library", "patched", "--case", str(CASE)]


def test_the_repro_line_names_the_modes_where_some_were_left_out() -> None:
    of_one_mode = dataclasses.replace(results("pass"), modes=("standard",))
    assert "--mode standard" in of_one_mode.repro(verdict("pass").case)


def test_the_repro_line_names_the_cmake_options_and_the_checkout_of_the_library() -> None:
    other = dataclasses.replace(
        results("pass"),
        options={"GGML_OPENMP": "ON"},
        environment={"UPSTREAM_DIR": "/my llama.cpp"},
    )
    line = other.repro(verdict("pass").case)
    assert line.startswith("UPSTREAM_DIR='/my llama.cpp' fa-harness run --library patched ")
    assert " -D GGML_OPENMP=ON --case " in line


def test_the_report_of_an_interrupted_run_says_so() -> None:
    report = schemas.checked(json.loads(render(results("pass", selected=2))))
    assert (report["interrupted"], report["summary"]["cases"]) == (True, 1)


def test_numbers_that_json_lacks_are_strings() -> None:
    nan, inf = float("nan"), float("inf")
    comparison = Comparison(
        max_abs=nan,
        max_rel_row=inf,
        nmse=nan,
        bitwise=False,
        worst=Worst(batch=0, head=1, row=2, dim=3, error=nan),
        bound=inf,
        of_bound=nan,
        required="bound",
        ok=False,
    )
    failed = dataclasses.replace(verdict("fail"), comparisons={"standard_vs_oracle": comparison})
    text = render(dataclasses.replace(results("fail"), verdicts=(failed,)))
    [result] = schemas.checked(json.loads(text, parse_constant=pytest.fail))["results"]
    got = result["comparisons"]["standard_vs_oracle"]
    assert (got["max_abs"], got["max_rel_row"], got["bound"]) == ("nan", "inf", "inf")
    assert got["worst"] == {"batch": 0, "head": 1, "row": 2, "dim": 3, "error": "nan"}


def test_outputs_that_json_lacks_are_strings() -> None:
    output = np.array([[1.0, -np.inf]], dtype=np.float32)
    overflown = dataclasses.replace(
        verdict("fail"), outputs={"standard": output, "after_segment": [output, output]}
    )
    text = render(dataclasses.replace(results("fail"), verdicts=(overflown,)))
    [result] = schemas.checked(json.loads(text, parse_constant=pytest.fail))["results"]
    assert result["outputs"]["standard"] == [[1.0, "-inf"]]
    assert result["outputs"]["after_segment"] == [[[1.0, "-inf"]]] * 2
