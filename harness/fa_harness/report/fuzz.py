"""A run of the fuzzer as a person sees it and as JSON, schema `fa-harness.fuzz/1`."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from fa_harness.hunt.fuzz import Found, Fuzz, Tally
from fa_harness.judge.verdict import STATUSES
from fa_harness.report.console import label
from fa_harness.report.results import explain, repro

SCHEMA = "fa-harness.fuzz/1"

_LINE_SECONDS = 10.0


class Ticker:
    """How far the run is: a line that changes on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._start = self._last = time.monotonic()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[progress.description]{task.description}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("0 cases", total=None)

    def __enter__(self) -> Ticker:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def show(self, tally: Tally, n_found: int) -> None:
        """Show what is counted so far."""
        now = time.monotonic()
        words = (
            f"{tally.cases} cases, {tally.cases / max(now - self._start, 1e-9):.0f} a second, "
            f"{_plural(n_found, 'failure')}"
        )
        self._progress.update(self._task, description=words)
        if not self._console.is_terminal and now - self._last >= _LINE_SECONDS:
            self._last = now
            self._console.print(f"{now - self._start:5.0f} s  {words}", soft_wrap=True)


def print_found(console: Console, found: Found, *, command: str, kept_in: str) -> None:
    """Print a failure: the smallest case, why it fails, the command that repeats it."""
    verdict = found.verdict
    head = Text(f"{verdict.status}: {label(verdict.case)}", style="bold red")
    if verdict.case != found.drawn:
        head.append(f", shrunk from {label(found.drawn)}", style="not bold default")
    console.print(head, soft_wrap=True)
    for line in explain(verdict):
        console.print(Text(f"    {line}"), soft_wrap=True)
    console.print(Text(f"    {command}", style="dim"), soft_wrap=True)
    console.print(Text(f"    kept in {kept_in}", style="dim"), soft_wrap=True)


def print_summary(console: Console, fuzz: Fuzz) -> None:
    """Print what ran, and how it ended."""
    tally = fuzz.tally
    for name, counts in (
        ("paths", tally.paths),
        ("modes", tally.modes),
        ("types", tally.types),
        ("regimes", tally.regimes),
    ):
        listed = ", ".join(f"{what} {n}" for what, n in counts.most_common())
        console.print(Text(f"{name:8} {listed or 'none'}"), soft_wrap=True)
    parts = [f"{tally.statuses[s]} {s}" for s in STATUSES if tally.statuses[s]]
    ended = " (interrupted)" if fuzz.interrupted else ""
    text = Text(f"{_plural(tally.cases, 'case')}{ended}: {', '.join(parts) or 'none ran'}")
    if fuzz.found:
        text.append(f", {_plural(len(fuzz.found), 'kind')} of failure")
    text.stylize("bold green" if fuzz.passed else "bold red")
    library = fuzz.library
    text.append(
        f" | library {library['name']} of {library['upstream']}, ggml {library['ggml_version']}"
        f" | seed {fuzz.seed} | {fuzz.seconds:.1f} s",
        style="not bold default",
    )
    console.print(text, soft_wrap=True)


def render(fuzz: Fuzz) -> str:
    """Return the JSON document, ending in a newline."""
    return json.dumps(document(fuzz), indent=1, allow_nan=False) + "\n"


def document(fuzz: Fuzz) -> dict[str, Any]:
    """Return the document as plain data."""
    tally = fuzz.tally
    return {
        "schema": SCHEMA,
        "tool": {"version": fuzz.tool_version},
        "library": dict(fuzz.library),
        "machine": dict(fuzz.machine),
        "started": fuzz.started.isoformat(timespec="seconds"),
        "seconds": round(fuzz.seconds, 3),
        "interrupted": fuzz.interrupted,
        "seed": fuzz.seed,
        "summary": {
            "cases": tally.cases,
            **{status: tally.statuses[status] for status in STATUSES},
            "failures": len(fuzz.found),
        },
        "coverage": {
            "paths": _sorted(tally.paths),
            "modes": _sorted(tally.modes),
            "types": _sorted(tally.types),
            "regimes": _sorted(tally.regimes),
        },
        "failures_file": fuzz.failures_file,
        "failures": [_failure(fuzz, found) for found in fuzz.found],
    }


def _failure(fuzz: Fuzz, found: Found) -> dict[str, Any]:
    return {
        "case": str(found.verdict.case),
        "drawn": str(found.drawn),
        "status": found.verdict.status,
        "path": found.verdict.path,
        "reason": found.verdict.reason,
        "explanation": explain(found.verdict),
        "cases": found.count,
        "repro": repro(
            found.verdict.case,
            library=str(fuzz.library["name"]),
            options=fuzz.options,
            modes=(),
            environment=fuzz.environment,
        ),
    }


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def _plural(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"
