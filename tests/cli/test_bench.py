import dataclasses
import io
from collections.abc import Sequence
from datetime import datetime, timezone

import pytest
from rich.console import Console

import schemas
from fa_harness.case.case import Case
from fa_harness.case.label import speed_label
from fa_harness.cli.bench import document, explain, print_headings, print_row, print_summary
from fa_harness.speed import bench
from fa_harness.speed.bench import Bench, BenchRow, Interval, LimitedRatio, Model

CASE = bench.SHAPES[2]
MODEL = Model(state=0.01, nodes=0.02, padding=0.0)


def comparison(median: float, limit: float | None, *, width: float = 0.002) -> LimitedRatio:
    ratio = Interval(median=median, low=median - width / 2, high=median + width / 2)
    return LimitedRatio(of="full_state", to="standard", ratio=ratio, limit=limit)


def row(case: Case = CASE, *, full_state: float = 1.0, width: float = 0.002) -> BenchRow:
    chain = LimitedRatio(
        of="segmented_8",
        to="standard",
        ratio=Interval(median=0.8, low=0.79, high=0.81),
        limit=MODEL.ratio * bench.CHAIN,
        model=MODEL,
    )
    return BenchRow(
        case=case,
        seconds={"standard": 8.1234e-3},
        comparisons={
            "again": comparison(1.0, None),
            "full_state": comparison(full_state, 1.01, width=width),
            "segmented_8": chain,
        },
        unavailable={},
        outliers=3,
        rounds=25,
        repetitions=1,
        attempts=1,
        kv_bytes=10_000_000,
        work_size={"baseline": 1},
        allocations={"baseline": 2},
    )


def result(rows: Sequence[BenchRow], *, selected: int | None = None) -> Bench:
    return Bench(
        tool_version="1",
        library={"name": "patched", "ggml_version": "0.25.3"},
        baseline={"name": "pristine"},
        machine={"cpu": "a CPU", "threads": 2},
        started=datetime(2026, 1, 1, tzinfo=timezone.utc),
        seconds=1.5,
        rounds=25,
        rows=tuple(rows),
        selected=len(rows) if selected is None else selected,
        interrupted=selected is not None,
    )


def printed(rows: Sequence[BenchRow]) -> list[str]:
    console = Console(file=io.StringIO(), width=150, highlight=False)
    print_headings(console)
    for one in rows:
        print_row(console, one)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_row_is_medians_with_limits_above_their_intervals() -> None:
    headings, medians, intervals = printed([row()])
    assert headings.split()[:4] == ["case", "ms", "ns/B", "no"]
    assert medians.startswith("b1 kv8192 hs128 h32/8 f16 t1 ")
    assert medians.split()[6:] == [
        *("8.123", "0.812", "-", "1.000", "(1.010)", "-", "0.800", "(1.030)", "-", "pass")
    ]
    assert intervals.split() == ["split-kv,", "3", "outliers", "0.999-1.001", "0.790-0.810"]


@pytest.mark.parametrize(
    ("median", "width", "status", "why"),
    [
        (1.02, 0.002, "over", "full_state / standard: 1.020 (1.019-1.021), at most 1.010"),
        (
            *(1.00, 0.1, "noisy"),
            "full_state / standard: 1.000 (0.950-1.050), at most 1.010; "
            "too noisy: the interval is 11% wide",
        ),
    ],
)
def test_a_row_that_does_not_pass_says_why_and_how_to_measure_it_again(
    median: float, width: float, status: str, why: str
) -> None:
    _, line, _, reason, repro = printed([row(full_state=median, width=width)])
    assert line.endswith(f" {status}")
    assert reason == f"    {why}"
    assert repro.startswith("    fa-harness bench --threads 1 -k ")


def test_an_unsteady_row_says_so() -> None:
    unsteady = row()
    comparisons = {**unsteady.comparisons, "again": comparison(1.0, None, width=0.1)}
    *_, reason, _ = printed([dataclasses.replace(unsteady, comparisons=comparisons)])
    assert reason == (
        "    full_state / standard: 1.000 (0.950-1.050): the machine does something else, too"
    )


def test_no_line_of_the_suite_is_wider_than_a_wide_terminal() -> None:
    lines = printed([row(case) for case in bench.suite()])
    assert max(map(len, lines)) <= 140
    assert len({line.rindex("pass") for line in lines if line.endswith("pass")}) == 1


def test_labels_tell_the_rows_apart() -> None:
    labels = {speed_label(case) for case in bench.suite()}
    assert len(labels) == len(bench.suite())


def test_a_noisy_row_decides_nothing() -> None:
    noisy = row(width=0.1)
    assert noisy.status == "noisy"
    assert result([row(), noisy]).passed
    assert not result([noisy]).passed


@pytest.mark.parametrize(
    ("rows", "selected", "text"),
    [
        ([row(), row(full_state=1.02)], None, "2 rows: 1 pass, 1 over | library patched against"),
        ([row()], 3, "1 of 3 rows (interrupted): 1 pass | library patched against pristine"),
    ],
)
def test_the_summary_counts(rows: list[BenchRow], selected: int | None, text: str) -> None:
    console = Console(file=io.StringIO(), width=150, highlight=False)
    found = result(rows, selected=selected)
    print_summary(console, found)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().startswith(text)
    assert not found.passed


def test_a_limit_that_was_measured_says_how_far_it_may_be_off() -> None:
    limit = MODEL.ratio * bench.CHAIN
    told = dataclasses.replace(comparison(1.1, limit), model=MODEL, limit_high=limit)
    assert "by its own interval" not in explain(told)
    open_ = dataclasses.replace(told, limit_high=1.2)
    assert explain(open_).endswith(
        "(up to 1.200 by its own interval); too noisy: the interval is 13% wide"
    )


def test_the_document_has_every_ratio_with_its_limit() -> None:
    found = document(result([row()]))
    assert schemas.checked(document(result([row()]))) == found
    assert found["summary"] == {"rows": 1, "pass": 1, "over": 0, "noisy": 0}
    ratios = found["rows"][0]["ratios"]
    assert ratios["full_state"] == {
        "of": "full_state",
        "to": "standard",
        "median": 1.0,
        "low": 0.999,
        "high": 1.001,
        "limit": 1.01,
        "limit_high": None,
        "model": None,
        "status": "pass",
        "ok": True,
    }
    assert ratios["segmented_8"]["model"] == {
        "state": 0.01, "nodes": 0.02, "padding": 0.0, "parts": 0.0, "ratio": 1.03
    }  # fmt: skip
