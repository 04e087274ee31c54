"""`bench`: what the state costs, on two libraries in this process.

Its JSON has the schema `fa-harness.bench/1`.
"""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from fa_harness import __version__
from fa_harness.build.named import held_library
from fa_harness.case.case import Case
from fa_harness.case.label import speed_label
from fa_harness.cli import options
from fa_harness.cli.options import How, Reports
from fa_harness.engine import ggml
from fa_harness.kernel import path
from fa_harness.machine import cpu_model, usable_cores
from fa_harness.speed import bench
from fa_harness.speed.bench import Bench, BenchRow, Interval, LimitedRatio
from fa_harness.speed.timing import SEGMENTS
from fa_harness.terminal import counter, make_console, say, write_json

SCHEMA = "fa-harness.bench/1"

_STYLE = {"pass": "green", "over": "bold red", "noisy": "bold magenta"}
_CASE_WIDTH = 37
_RATIOS = {  # by comparison: the column's heading
    "standard": "no state",
    "full_state": "full state",
    **{f"segmented_{n}": f"{n} segments" for n in SEGMENTS},
}
_COLUMNS = (  # after the case: heading, width
    ("ms", 8),
    ("ns/B", 6),
    *((heading, 13) for heading in _RATIOS.values()),
    ("status", 6),
)


@click.command("bench")
@options.pattern
@options.numbers("--threads", metavar="T", help="Number of threads.  [default: 1,2]")
@click.option(
    "--rounds",
    type=click.IntRange(min=8),
    default=25,
    metavar="N",
    show_default=True,
    help="Number of measurements per case and mode.",
)
@options.library_of
@click.option(
    "--baseline-library",
    "baseline",
    default="pristine",
    metavar="NAME",
    show_default=True,
    help="Library without the patches.",
)
@click.option("--list", "list_only", is_flag=True, help="Print the selected cases and exit.")
@options.json_path
def command(
    *,
    pattern: str | None,
    threads: tuple[int, ...],
    rounds: int,
    how: How,
    baseline: str,
    list_only: bool,
    json_path: str | None,
) -> None:
    """Measure the cost of the state, as ratios of times taken in one process.

    Run it on an idle machine: other work adds noise. Exit code 1: a ratio exceeds its limit, or
    every row is too noisy to judge.
    """
    cases = bench.suite(threads or (1, 2), pattern)
    if list_only:
        for case in cases:
            click.echo(str(case))
        return
    Reports(json=json_path).check()
    console = make_console(stderr=json_path == "-")
    result = measure_speed(cases, how, baseline=baseline, rounds=rounds, console=console)
    write_json(document(result), json_path)
    if not result.passed:
        sys.exit(1)


def measure_speed(
    cases: Sequence[Case], how: How, *, baseline: str, rounds: int, console: Console
) -> Bench:
    """Measure cases on two libraries in this process and print each.

    Ctrl-C ends the run, not the report: what was measured until then is returned.

    Raises:
        UsageError: There is no library of that name, or the one to measure has no state.
        SetupError: One does not build, or does not load beside the other.
    """
    with (
        held_library(how.library, how.options) as found,
        held_library(baseline, how.options) as other,
    ):
        started, start = datetime.now(timezone.utc), time.perf_counter()
        loaded = ggml.load(found.module_path), ggml.load(other.module_path)
        rows: list[BenchRow] = []
        interrupted = False
        with Table(console, total=len(cases)) as table:
            try:
                for row in bench.run(*loaded, cases, rounds=rounds):
                    rows.append(row)
                    table.add(row)
            except KeyboardInterrupt:
                interrupted = True
        result = Bench(
            tool_version=__version__,
            library=found.to_json(),
            baseline=other.to_json(),
            machine={"cpu": cpu_model(), "threads": usable_cores()},
            started=started,
            seconds=time.perf_counter() - start,
            rounds=rounds,
            rows=tuple(rows),
            selected=len(cases),
            interrupted=interrupted,
        )
    print_summary(console, result)
    return result


class Table:
    """Two lines a row as it is measured: medians and limits, then intervals."""

    def __init__(self, console: Console, *, total: int) -> None:
        self._console = console
        self._progress = counter(console)
        self._task = self._progress.add_task("rows", total=total)

    def __enter__(self) -> Table:
        headings = _line("case", [heading for heading, _ in _COLUMNS])
        say(self._console, headings, "bold")
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def add(self, row: BenchRow) -> None:
        """Print a row, and each limit that it does not keep."""
        shown = [row.comparisons.get(name) for name in _RATIOS]
        seconds = row.seconds["standard"]
        cells = [f"{seconds * 1e3:.3f}", f"{seconds / row.kv_bytes * 1e9:.3f}"]
        line = Text(_line(speed_label(row.case), [*cells, *map(_median, shown), row.status]))
        line.stylize(_STYLE[row.status], len(line.plain) - len(row.status))
        say(self._console, line)
        second = f"  {path(row.case)}, {row.outliers} outliers"
        intervals = ["", "", *(_range(each.ratio) if each else "" for each in shown), ""]
        say(self._console, _line(second, intervals).rstrip(), "dim")
        if row.is_unsteady:
            again = row.comparisons["again"]
            self._note(f"{explain(again)}: the machine does something else, too", "noisy")
        for comparison in row.comparisons.values():
            if comparison.status != "pass":
                self._note(explain(comparison), comparison.status)
        for fault in row.faults:
            self._note(fault, "over")
        for name, reason in row.unavailable.items():
            self._note(f"{name}: not compared: {reason}", "noisy")
        if row.status != "pass":
            say(self._console, f"    {repro(row.case)}", "dim")
        self._progress.advance(self._task)

    def _note(self, text: str, status: str) -> None:
        say(self._console, f"    {text}", _STYLE[status])


def print_summary(console: Console, result: Bench) -> None:
    """Print how the rows ended, and how to read them."""
    counts = ", ".join(f"{result.count(s)} {s}" for s in _STYLE if result.count(s)) or "none"
    rows = f"{len(result.rows)} row{'s' * (len(result.rows) != 1)}"
    if result.interrupted:
        rows = f"{len(result.rows)} of {result.selected} rows (interrupted)"
    text = Text(f"{rows}: {counts}", style="bold")
    text.stylize("green" if result.passed else "red")
    text.append(
        f" | library {result.library['name']} against {result.baseline['name']}, "
        f"ggml {result.library['ggml_version']} | {result.rounds} rounds | {result.seconds:.1f} s",
        style="not bold default",
    )
    say(console, text)
    say(
        console,
        f"ratios are medians (limit or model) with {bench.LEVEL:.0%} intervals: no state, to "
        f"{result.baseline['name']}; full state and segments, to no state.\n"
        "A lower end is over the limit of no state (the noise of the library against itself), "
        f"of full state, {bench.CHAIN} x the model\n"
        f"of segments, or {bench.LONG_DECODE:.2f} (or what upstream's calls on the parts take) "
        "where 8 segments decode 8192 keys or more.",
        "dim",
    )


def explain(comparison: LimitedRatio) -> str:
    """Return a ratio, its interval and its limit in words."""
    text = (
        f"{comparison.of} / {comparison.to}: {comparison.ratio.median:.3f}"
        f" ({_range(comparison.ratio)})"
    )
    if comparison.limit is not None:
        text += f", at most {comparison.limit:.3f}"
    if comparison.model:
        terms = vars(comparison.model).items()
        sum_ = " + ".join(["1", *(f"{value:.3f} {name}" for name, value in terms)])
        text += f" = {bench.CHAIN} x ({sum_})"
    if comparison.limit_high != comparison.limit and comparison.limit_high is not None:
        text += f" (up to {comparison.limit_high:.3f} by its own interval)"
    if comparison.status == "noisy":
        text += f"; too noisy: the interval is {comparison.width:.0%} wide"
    return text


def document(result: Bench) -> dict[str, Any]:
    """Return the JSON document as plain data."""
    return {
        "schema": SCHEMA,
        "tool": {"version": result.tool_version},
        "library": result.library,
        "baseline": result.baseline,
        "machine": result.machine,
        "started": result.started.isoformat(timespec="seconds"),
        "seconds": round(result.seconds, 3),
        "interrupted": result.interrupted,
        "rounds": result.rounds,
        "level": bench.LEVEL,
        "summary": {
            "rows": len(result.rows),
            **{status: result.count(status) for status in _STYLE},
        },
        "rows": [_row(row) for row in result.rows],
    }


def _row(row: BenchRow) -> dict[str, Any]:
    return {
        "case": str(row.case),
        "status": row.status,
        "ok": row.status == "pass",
        "path": path(row.case),
        "seconds": dict(row.seconds),
        "kv_bytes": row.kv_bytes,
        "ns_per_kv_byte": row.seconds["standard"] / row.kv_bytes * 1e9,
        "ratios": {name: _ratio(each) for name, each in row.comparisons.items()},
        "unavailable": dict(row.unavailable),
        "faults": list(row.faults),
        "outliers": row.outliers,
        "rounds": row.rounds,
        "repetitions": row.repetitions,
        "attempts": row.attempts,
        "work_size": dict(row.work_size),
        "allocations": dict(row.allocations),
        "repro": repro(row.case),
    }


def _ratio(comparison: LimitedRatio) -> dict[str, Any]:
    model = comparison.model
    terms: Mapping[str, float] | None = {**vars(model), "ratio": model.ratio} if model else None
    return {
        "of": comparison.of,
        "to": comparison.to,
        **vars(comparison.ratio),
        "limit": comparison.limit,
        "limit_high": comparison.limit_high,
        "model": terms,
        "status": comparison.status,
        "ok": comparison.status == "pass",
    }


def repro(case: Case) -> str:
    """Return the command that measures a case of the suite again."""
    fields = str(case).partition("(")[2].split(",mask=")[0]  # the sizes
    pattern = re.sub(r"[][]", ".", f"{fields},.*type_K={case.type_K},")
    return shlex.join(["fa-harness", "bench", "--threads", str(case.threads), "-k", pattern])


def _median(comparison: LimitedRatio | None) -> str:
    if comparison is None:
        return "-"
    bound = comparison.model.ratio if comparison.model else comparison.limit
    return f"{comparison.ratio.median:.3f} ({bound:.3f})"


def _range(interval: Interval) -> str:
    return f"{interval.low:.3f}-{interval.high:.3f}"


def _line(case: str, cells: list[str]) -> str:
    padded = [f"{cell:>{width}}" for cell, (_, width) in zip(cells, _COLUMNS, strict=True)]
    return "  ".join([f"{case:<{_CASE_WIDTH}}", *padded])
