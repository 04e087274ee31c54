import io
from collections.abc import Sequence

import pytest
from rich.console import Console

from fa_harness.case.case import Case
from fa_harness.case.suites import suite
from fa_harness.judge.compare import Comparison
from fa_harness.judge.verdict import Verdict
from fa_harness.report.console import Table


def comparison(max_abs: float, *, of_bound: float = 0.5) -> Comparison:
    return Comparison(
        max_abs=max_abs,
        max_rel_row=max_abs,
        nmse=max_abs,
        bitwise=max_abs == 0,
        worst=None,
        bound=1.0,
        of_bound=of_bound,
        required="bound",
        ok=True,
    )


def verdict(
    status: str = "pass",
    *,
    case: Case | None = None,
    reason: str = "",
    path: str = "vec",
    comparisons: dict[str, Comparison] | None = None,
) -> Verdict:
    return Verdict(
        case=case or Case(),
        status=status,
        path=path,
        modes=(),
        reason=reason,
        comparisons=comparisons or {},
        outputs={},
    )


def printed(verdicts: Sequence[Verdict], *, verbose: bool = False, width: int = 150) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    table = Table(console, [one.case for one in verdicts], verbose=verbose)
    for one in verdicts:
        table.add(one, "fa-harness run --case '...'")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_case_that_passed_takes_one_line_below_the_headings() -> None:
    headings, line = printed([verdict()])
    assert headings.split()[:3] == ["case", "path", "segments"]
    assert line.startswith("hs128 h32 kv96 b8 f16 uniform t1 ")
    assert line.endswith(" pass")


@pytest.mark.parametrize("status", ["fail", "crash", "timeout", "unsupported", "mistrusted"])
def test_a_case_that_did_not_pass_says_why_and_how_to_repeat_it(status: str) -> None:
    _, line, reason, repro = printed([verdict(status, reason="state: off by one")])
    assert line.endswith(f" {status}")
    assert (reason, repro) == ("    state: off by one", "    fa-harness run --case '...'")


def test_verbose_shows_how_to_repeat_a_case_that_passed() -> None:
    assert printed([verdict()], verbose=True)[2] == "    fa-harness run --case '...'"


def test_a_mode_that_was_not_computed_is_a_dash() -> None:
    _, line = printed([verdict(comparisons={"standard_vs_oracle": comparison(2e-3)})])
    assert line.split()[-6:] == ["1", "-", "-", "2.00e-03", "50%", "pass"]


def test_the_error_is_the_worst_result_of_a_mode_and_the_share_that_of_any_bound() -> None:
    comparisons = {
        "standard_vs_oracle": comparison(4e-3, of_bound=0.25),
        "full_state_vs_standard": comparison(0.0),
        "full_state_vs_oracle": comparison(2e-3),
        "segmented_vs_standard": comparison(3e-3, of_bound=0.9),
        "segmented_vs_oracle": comparison(1e-3, of_bound=0.125),
        "part_vs_oracle": comparison(5e-3, of_bound=0.75),
        "state_vs_oracle": comparison(6e-3),
    }
    _, line = printed([verdict(comparisons=comparisons)])
    assert line.split()[-6:] == ["1", "0.00e+00", "3.00e-03", "4.00e-03", "75%", "pass"]


def test_an_error_that_is_no_number_is_the_worst() -> None:
    comparisons = {
        "standard_vs_oracle": comparison(4e-3),
        "mixed_vs_oracle": comparison(float("nan"), of_bound=float("inf")),
        "segmented_vs_oracle": comparison(5e-3),
    }
    _, line = printed([verdict(comparisons=comparisons)])
    assert line.split()[-4:] == ["nan", "inf", "x", "pass"]


def test_columns_stay_in_line_whatever_the_numbers() -> None:
    of_standard = {"standard_vs_oracle": comparison(float("nan"), of_bound=float("inf"))}
    none, some, odd = (
        printed([verdict(comparisons=comparisons)])[1]
        for comparisons in ({}, {"standard_vs_oracle": comparison(1e-3)}, of_standard)
    )
    assert len(none) == len(some) == len(odd)


@pytest.mark.parametrize("width", [80, 100, 150])
@pytest.mark.parametrize("name", ["default", "fifo", "reduction"])
def test_a_row_fits_in_a_line_of_the_terminal(name: str, width: int) -> None:
    worst = comparison(2.5e-3, of_bound=9.0)
    names = ("standard_vs_oracle", "full_state_vs_standard", "segmented_vs_standard")
    verdicts = [
        verdict("unsupported", case=case, path="split-kv", comparisons=dict.fromkeys(names, worst))
        for case in suite(name)
    ]
    for line in printed(verdicts, width=width):
        assert len(line) <= width or line.startswith("    fa-harness run")


def test_at_80_columns_no_two_cases_have_the_same_row() -> None:
    rows = printed([verdict(case=case) for case in suite("default")], width=80)[1:]
    assert len(set(rows)) == len(rows) == len(suite("default"))
