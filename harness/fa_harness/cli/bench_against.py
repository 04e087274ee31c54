"""`bench --against` and `bench --peer`: how fast flash attention is, and how fast it could be.

Its JSON has the schema `fa-harness.compare/1`.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from fa_harness.build.named import held_library
from fa_harness.case.case import Case
from fa_harness.case.label import speed_label, speed_pattern
from fa_harness.cli.options import How
from fa_harness.engine import ggml
from fa_harness.engine.session import Clock
from fa_harness.errors import UsageError
from fa_harness.machine import usable_cores
from fa_harness.project import find_project
from fa_harness.report.plot import plot as drawn
from fa_harness.speed import compare as speed
from fa_harness.speed.bench import kv_bytes, suite
from fa_harness.speed.cold import cold_bytes
from fa_harness.speed.compare import ComparedRow, Comparison
from fa_harness.speed.limits import Limits, build_limits
from fa_harness.speed.peers.by_name import open_peer
from fa_harness.terminal import (
    counted,
    make_console,
    number_of,
    say,
    say_summary,
    write_json,
    write_text,
)

SCHEMA = "fa-harness.compare/1"
DEFAULT_ROUNDS = 7

_STYLE = {"measured": "green", "noisy": "bold magenta"}
_CASE_WIDTH = 35
_COLUMNS = {"ms": 8, "rate": 9, "of limit": 10}
_RATIO_WIDTH = 18
_FEW_ROWS = 8


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is measured, and beside what."""

    pattern: str | None
    threads: tuple[int, ...]
    rounds: int
    against: str | None
    peers: tuple[str, ...]


def compare(
    choice: Choice, how: How, *, plot: str | None, list_only: bool, json_path: str | None
) -> bool:
    """Measure, print and write; return whether anything was measured."""
    cases = suite(choice.threads or (usable_cores(),), choice.pattern, speed.ROWS)
    if list_only:
        click.echo("\n".join(map(str, cases)))
        return True
    if json_path == plot == "-":
        raise UsageError("only one report can go to standard output; name files for the others")
    console = make_console(stderr="-" in (json_path, plot))
    rows: list[ComparedRow] = []
    interrupted = False
    with contextlib.ExitStack() as stack:
        found = stack.enter_context(held_library(how.library, how.options))
        other = None
        if choice.against:
            other = stack.enter_context(held_library(choice.against, how.options))
            if other.name == found.name:
                raise UsageError(f"--against {choice.against}: is the library itself; name another")
        clock = Clock(found, how.options)
        libraries = {each.name: ggml.load(each.module_path) for each in (found, other) if each}
        project = find_project()
        peers = [open_peer(project, name) for name in choice.peers]
        limits = Limits(build_limits(project), cold_bytes())
        others = [*([other.name] if other else []), *choice.peers]
        print_headings(console, others)
        with counted(console, "rows", len(cases)) as advance:
            try:
                for row in speed.run(libraries, peers, limits, cases, rounds=choice.rounds):
                    rows.append(row)
                    print_row(console, row, others)
                    advance()
            except KeyboardInterrupt:  # ends the run, not the report
                interrupted = True
        result = Comparison(
            **clock.fields(interrupted=interrupted),
            against=other.to_json() if other else None,
            peers={peer.name: peer.version for peer in peers},
            rounds=choice.rounds,
            rows=tuple(rows),
            selected=len(cases),
        )
    print_summary(console, result)
    write_json(document(result), json_path)
    if plot is not None:
        write_text(drawn(result), plot)
    return result.passed


def print_headings(console: Console, others: Sequence[str]) -> None:
    """Print the names of the columns."""
    say(console, _line("case", list(_COLUMNS), others, "status"), "bold")


def print_row(console: Console, row: ComparedRow, others: Sequence[str]) -> None:
    """Print two lines: the library's time and the ratios, then the others' times."""
    ratios = [_ratio(row, name) for name in others]
    cells = [f"{row.seconds[row.library] * 1e3:.3f}", *_of_limit(row)]
    line = Text(_line(speed_label(row.case), cells, ratios, row.status))
    line.stylize(_STYLE[row.status], len(line.plain) - len(row.status))
    say(console, line)
    times = [f"{row.seconds[name] * 1e3:.3f} ms" if name in row.seconds else "" for name in others]
    say(console, _line("", [""] * len(cells), times, "").rstrip(), "dim")


def print_summary(console: Console, result: Comparison) -> None:
    """Print what was measured beside what, what was not, and how to read it."""
    counts = ", ".join(f"{result.count(s)} {s}" for s in _STYLE if result.count(s)) or "none"
    rows = number_of(len(result.rows), "row")
    if result.interrupted:
        rows = f"{len(result.rows)} of {result.selected} rows (interrupted)"
    versions = {name: f"{name} {version}" for name, version in result.peers.items()}
    others = ", ".join(versions.get(name, name) for name in result.others)
    say_summary(
        console,
        f"{rows}: {counts}",
        f"library {result.library['name']} against {others}, ggml "
        f"{result.library['ggml_version']} | {result.rounds} rounds | {result.seconds:.1f} s",
        passed=result.passed,
    )
    missing = Counter(
        f"{name} was not measured: {reason}"
        for row in result.rows
        for name, reason in row.unavailable.items()
    )
    for text, n in missing.items():
        say(console, f"{text} ({number_of(n, 'row')})", _STYLE["noisy"])
    for n_threads in dict.fromkeys(row.case.threads for row in result.rows):
        limits = [row for row in result.rows if row.case.threads == n_threads]
        say(
            console,
            f"{number_of(n_threads, 'thread')}: reads {_range([r.bandwidth for r in limits])} GB/s,"
            f" computes {_range([r.peak for r in limits])} GF/s of F32 multiply-adds",
            "dim",
        )
    say(
        console,
        f"ratios: how many times as long as {result.library['name']} another takes, with "
        f"intervals; noisy: an interval is wider than {speed.NOISY:.0%}.\n"
        f"of limit: up to {_FEW_ROWS} rows, reading K and V, of the bandwidth (mem); else "
        "operations, of the F32 peak (fma).",
        "dim",
    )


def document(result: Comparison) -> dict[str, Any]:
    """Return the JSON document as plain data."""
    return {
        **result.header(SCHEMA),
        "against": result.against,
        "peers": dict(result.peers),
        "rounds": result.rounds,
        "level": speed.LEVEL,
        "summary": {"rows": len(result.rows), **{each: result.count(each) for each in _STYLE}},
        "rows": [_row(row, result) for row in result.rows],
    }


def _row(row: ComparedRow, result: Comparison) -> dict[str, Any]:
    return {
        "case": str(row.case),
        "status": row.status,
        "seconds": dict(row.seconds),
        "ratios": {name: vars(ratio) for name, ratio in row.ratios.items()},
        "unavailable": dict(row.unavailable),
        "kv_bytes": kv_bytes(row.case),
        "operations": speed.operations(row.case),
        "bandwidth": row.bandwidth,
        "of_bandwidth": row.of_bandwidth,
        "peak": row.peak,
        "of_peak": row.of_peak,
        "rounds": row.rounds,
        "repro": repro(row.case, result),
    }


def repro(case: Case, result: Comparison) -> str:
    """Return the command that measures a row again."""
    against = ["--against", result.against["name"]] if result.against else []
    peers = [word for name in result.peers for word in ("--peer", name)]
    rows = ["--threads", str(case.threads), "-k", speed_pattern(case)]
    return result.command("bench", *against, *peers, *rows)


def _of_limit(row: ComparedRow) -> tuple[str, str]:
    """Return the rate and its share of the limit: of bandwidth where rows are few."""
    if row.case.n_batch <= _FEW_ROWS:
        return f"{row.bytes_per_second / 1e9:.1f} GB/s", f"{row.of_bandwidth:.0%} mem"
    return f"{row.operations_per_second / 1e9:.0f} GF/s", f"{row.of_peak:.0%} fma"


def _ratio(row: ComparedRow, name: str) -> str:
    ratio = row.ratios.get(name)
    if ratio is None:
        return "-"
    return f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"


def _range(values: Sequence[float]) -> str:
    low, high = (f"{each / 1e9:.0f}" for each in (min(values), max(values)))
    return low if low == high else f"{low}-{high}"


def _line(case: str, cells: Sequence[str], ratios: Sequence[str], status: str) -> str:
    padded = [f"{cell:>{width}}" for cell, width in zip(cells, _COLUMNS.values(), strict=True)]
    others = [f"{ratio:>{_RATIO_WIDTH}}" for ratio in ratios]
    return "  ".join([f"{case:<{_CASE_WIDTH}}", *padded, *others, f"{status:>8}"])
