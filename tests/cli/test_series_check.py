"""What `series check` shows of upstreams."""

import io

from rich.console import Console

import schemas
from fa_harness.cli.series_check import (
    CheckedUpstream,
    SuiteOutcome,
    WrongCase,
    document,
    markdown_check,
    print_check,
)

OWN = WrongCase(case="C1", status="fail", reason="padding gets weight", is_upstreams=True)
OURS = WrongCase(case="C2", status="fail", reason="state lost", is_upstreams=False)


def checked(*wrong: WrongCase, problem: str = "") -> CheckedUpstream:
    return CheckedUpstream(
        upstream="llama.cpp-1", ggml_version="0.9.8", patches=9, applied=9, drift=12, variants=4,
        problem=problem, suites={"smoke": SuiteOutcome(cases=24, wrong=wrong)},
    )  # fmt: skip


def printed(each: CheckedUpstream) -> str:
    out = io.StringIO()
    print_check(Console(file=out, width=150), each)
    return out.getvalue()


def test_what_upstream_gets_wrong_itself_is_shown_and_does_not_count() -> None:
    assert checked(OWN).passed
    text = printed(checked(OWN))
    assert "smoke: 23 of 24, 1 not upstream either" in text
    assert "fail, upstream's own: padding gets weight\n" in text
    assert "UPSTREAM=llama.cpp-1 fa-harness run --library patched --case C1" in text


def test_what_only_the_patched_library_gets_wrong_counts() -> None:
    assert not checked(OWN, OURS).passed
    assert "smoke: 22 of 24, 1 not, 1 not upstream either" in printed(checked(OWN, OURS))


def test_a_series_that_does_not_apply_says_where() -> None:
    each = checked(problem="patch '0001' does not apply\n  ops.cpp: hunk 1")
    assert not each.passed
    assert "does not apply, build or load" in printed(each)
    assert "    ops.cpp: hunk 1" in printed(each)


def test_the_matrix_has_a_row_an_upstream_and_a_column_a_suite() -> None:
    lines = markdown_check([checked(), checked(problem="no")], ["smoke", "paths"]).splitlines()
    assert lines[0] == "| upstream | ggml | patches | variants | drift | smoke | paths |"
    assert lines[2] == "| llama.cpp-1 | 0.9.8 | 9 of 9 | 4 | 12 | 24 of 24 | - |"
    assert lines[3].startswith("| llama.cpp-1 | 0.9.8 | - |")


def test_json_has_every_wrong_case_and_the_verdict() -> None:
    report = schemas.checked(document([checked(OWN), checked(OURS)], "state"))
    assert report["schema"] == "fa-harness.series-check/1"
    assert not report["passed"]
    assert [each["passed"] for each in report["upstreams"]] == [True, False]
    assert report["upstreams"][1]["suites"]["smoke"]["wrong"][0]["case"] == "C2"
