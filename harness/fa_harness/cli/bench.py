"""`bench`: what the state costs, on two libraries in this process.

Its JSON has the schema `fa-harness.bench/1`. With `--against` or `--peer`, `bench_against.py` takes
over.
"""

from __future__ import annotations

import shlex
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from fa_harness.build.named import held_library
from fa_harness.case.case import Case
from fa_harness.case.label import speed_label, speed_pattern
from fa_harness.cli import options
from fa_harness.cli.bench_against import DEFAULT_ROUNDS, Choice, compare
from fa_harness.cli.options import How
from fa_harness.engine import ggml
from fa_harness.engine.session import Clock
from fa_harness.errors import UsageError
from fa_harness.kernel import chain_paths, path
from fa_harness.speed import bench
from fa_harness.speed.bench import Bench, BenchRow, Interval, LimitedRatio
from fa_harness.speed.compare import MIN_ROUNDS
from fa_harness.speed.peers.by_name import NAMES
from fa_harness.speed.timing import SEGMENTS
from fa_harness.terminal import counted, make_console, number_of, say, say_summary, write_json

SCHEMA = "fa-harness.bench/1"

_STYLE = {"pass": "green", "over": "bold red", "noisy": "bold magenta"}
_CASE_WIDTH = 37
_ROUNDS = 25
_RATIOS = {  # by comparison: the column's heading
    "standard": "no state",
    "full_state": "full state",
    **{f"segmented_{n}": f"{n} segments" for n in SEGMENTS},
}
_COLUMNS = {  # after the case: heading, width
    "ms": 8,
    "ns/B": 6,
    **dict.fromkeys(_RATIOS.values(), 13),
    "status": 6,
}
_AS_THEY_ARE = ("outliers", "rounds", "repetitions", "attempts", "work_size", "allocations")
"""Fields of a row that go into the report."""


@click.command("bench")
@options.pattern
@options.numbers(
    "--threads",
    metavar="T",
    help="Number of threads.  [default: 1,2; usable cores with --against or --peer]",
)
@options.count(
    "--rounds",
    "Number of measurements per case and mode.  [default: 25; 7 with --against or --peer]",
    least=MIN_ROUNDS,
)
@options.library_of
@click.option(
    "--baseline-library",
    "baseline",
    metavar="NAME",
    help="Library without the patches.  [default: pristine]",
)
@click.option(
    "--against",
    metavar="NAME",
    help="Measure speed instead: times, beside this library and the machine's limits.",
)
@click.option(
    "--peer",
    "peers",
    type=click.Choice(NAMES),
    multiple=True,
    help="Measure speed instead, beside another implementation; repeatable.",
)
@click.option(
    "--plot",
    metavar="FILE",
    callback=options.writable,
    help="With --against or --peer, draw the ratios over n_kv as SVG; - is standard output.",
)
@options.list_only
@options.json_path
def command(
    *,
    pattern: str | None,
    threads: tuple[int, ...],
    rounds: int | None,
    how: How,
    baseline: str | None,
    against: str | None,
    peers: tuple[str, ...],
    plot: str | None,
    list_only: bool,
    json_path: str | None,
) -> bool:
    """Measure the cost of the state, as ratios of times taken in one process.

    Run it on an idle machine: other work adds noise. Exit code 1: a ratio exceeds its limit, or
    every row is too noisy to judge. With --against or --peer no ratio has a limit.
    """
    if against or peers:
        if baseline:
            raise UsageError("--baseline-library: is of the state's cost; use --against NAME alone")
        return compare(
            Choice(
                pattern=pattern,
                threads=threads,
                rounds=rounds or DEFAULT_ROUNDS,
                against=against,
                peers=tuple(dict.fromkeys(peers)),
            ),
            how,
            plot=plot,
            list_only=list_only,
            json_path=json_path,
        )
    if plot:
        raise UsageError("--plot: draws what --against or --peer measures; add one of them")
    rounds = _ROUNDS if rounds is None else rounds
    bench.order_rank(rounds)  # refuses too few
    baseline = baseline or "pristine"
    cases = bench.suite(threads or (1, 2), pattern)
    if list_only:
        click.echo("\n".join(map(str, cases)))
        return True
    console = make_console(stderr=json_path == "-")
    rows: list[BenchRow] = []
    interrupted = False
    with (
        held_library(how.library, how.options) as found,
        held_library(baseline, how.options) as other,
    ):
        clock = Clock(found, how.options)
        loaded = ggml.load(found.module_path), ggml.load(other.module_path)
        print_headings(console)
        with counted(console, "rows", len(cases)) as advance:
            try:
                for row in bench.run(*loaded, cases, rounds=rounds):
                    rows.append(row)
                    print_row(console, row)
                    advance()
            except KeyboardInterrupt:  # ends the run, not the report
                interrupted = True
        result = Bench(
            **clock.fields(interrupted=interrupted),
            baseline=other.to_json(),
            rounds=rounds,
            rows=tuple(rows),
            selected=len(cases),
        )
    print_summary(console, result)
    write_json(document(result), json_path)
    return result.passed


def print_headings(console: Console) -> None:
    """Print the names of the columns."""
    say(console, _line("case", list(_COLUMNS)), "bold")


def print_row(console: Console, row: BenchRow) -> None:
    """Print two lines, medians with limits and intervals, and each limit that is not kept."""

    def note(text: str, status: str) -> None:
        say(console, f"    {text}", _STYLE[status])

    shown = [row.comparisons.get(name) for name in _RATIOS]
    seconds = row.seconds["standard"]
    cells = [f"{seconds * 1e3:.3f}", f"{seconds / row.kv_bytes * 1e9:.3f}"]
    line = Text(_line(speed_label(row.case), [*cells, *map(_median, shown), row.status]))
    line.stylize(_STYLE[row.status], len(line.plain) - len(row.status))
    say(console, line)
    second = f"  {_paths(row.case)}, {row.outliers} outliers"
    intervals = ["", "", *(_range(each.ratio) if each else "" for each in shown), ""]
    say(console, _line(second, intervals).rstrip(), "dim")
    if row.is_unsteady:
        again = row.comparisons["again"]
        note(f"{explain(again)}: the machine does something else, too", "noisy")
    for comparison in row.comparisons.values():
        if comparison.status != "pass":
            note(explain(comparison), comparison.status)
    for fault in row.faults:
        note(fault, "over")
    for name, reason in row.unavailable.items():
        note(f"{name}: not compared: {reason}", "noisy")
    if row.status != "pass":
        say(console, f"    {repro(row.case)}", "dim")


def print_summary(console: Console, result: Bench) -> None:
    """Print how the rows ended, and how to read them."""
    counts = ", ".join(f"{result.count(s)} {s}" for s in _STYLE if result.count(s)) or "none"
    rows = number_of(len(result.rows), "row")
    if result.interrupted:
        rows = f"{len(result.rows)} of {result.selected} rows (interrupted)"
    say_summary(
        console,
        f"{rows}: {counts}",
        f"library {result.library['name']} against {result.baseline['name']}, "
        f"ggml {result.library['ggml_version']} | {result.rounds} rounds | {result.seconds:.1f} s",
        passed=result.passed,
    )
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
    ratio = comparison.ratio
    text = f"{comparison.of} / {comparison.to}: {ratio.median:.3f} ({_range(ratio)})"
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
        **result.header(SCHEMA),
        "baseline": result.baseline,
        "rounds": result.rounds,
        "level": bench.LEVEL,
        "summary": {"rows": len(result.rows), **{each: result.count(each) for each in _STYLE}},
        "rows": [_row(row) for row in result.rows],
    }


def _row(row: BenchRow) -> dict[str, Any]:
    return {
        "case": str(row.case),
        "status": row.status,
        "ok": row.status == "pass",
        "path": _paths(row.case),
        "seconds": dict(row.seconds),
        "kv_bytes": row.kv_bytes,
        "ns_per_kv_byte": row.seconds["standard"] / row.kv_bytes * 1e9,
        "ratios": {name: _ratio(each) for name, each in row.comparisons.items()},
        "unavailable": dict(row.unavailable),
        "faults": list(row.faults),
        **{name: getattr(row, name) for name in _AS_THEY_ARE},
        "repro": repro(row.case),
    }


def _ratio(comparison: LimitedRatio) -> dict[str, Any]:
    model = comparison.model
    return {
        "of": comparison.of,
        "to": comparison.to,
        **vars(comparison.ratio),
        "limit": comparison.limit,
        "limit_high": comparison.limit_high,
        "model": {**vars(model), "ratio": model.ratio} if model else None,
        "status": comparison.status,
        "ok": comparison.status == "pass",
    }


def repro(case: Case) -> str:
    """Return the command that measures a case of the suite again."""
    words = ["--threads", str(case.threads), "-k", speed_pattern(case)]
    return shlex.join(["fa-harness", "bench", *words])


def _paths(case: Case) -> str:
    """Return the paths of a case's calls."""
    if not case.segment_types:
        return path(case)
    return "+".join(dict.fromkeys(chain_paths(case, own_types=True)))


def _median(comparison: LimitedRatio | None) -> str:
    if comparison is None:
        return "-"
    bound = comparison.model.ratio if comparison.model else comparison.limit
    return f"{comparison.ratio.median:.3f} ({bound:.3f})"


def _range(interval: Interval) -> str:
    return f"{interval.low:.3f}-{interval.high:.3f}"


def _line(case: str, cells: list[str]) -> str:
    padded = [f"{cell:>{width}}" for cell, width in zip(cells, _COLUMNS.values(), strict=True)]
    return "  ".join([f"{case:<{_CASE_WIDTH}}", *padded])
