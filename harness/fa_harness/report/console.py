"""The table that a person reads: a line a case, what went wrong below it, a summary line."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.text import Text

from fa_harness.case.case import Case
from fa_harness.case.label import short_labels
from fa_harness.case.rolling import CacheStep
from fa_harness.engine.session import Results
from fa_harness.judge.compare import Comparison
from fa_harness.judge.shares import in_words
from fa_harness.judge.verdict import STATUSES, Verdict
from fa_harness.judge.words import explain, worst
from fa_harness.terminal import number_of, say, say_summary

STATUS_STYLE = {
    "pass": "green",
    **dict.fromkeys(("fail", "crash", "timeout", "oversized"), "bold red"),
    "unsupported": "yellow",
    "mistrusted": "bold magenta",
}

_CASE_WIDTHS = (20, 62)
"""Least and most columns of the case, by what the others leave of the line."""
_COLUMNS = {  # of the others: heading, width, to the right
    "path": ("path", 8, False),
    "segments": ("segments", 8, True),
    "full_state": ("std vs full", 11, True),
    "segmented": ("std vs segm", 11, True),
    "oracle": ("vs oracle", 9, True),
    "of_bound": ("of bound", 8, True),
    "status": ("status", 11, False),
}
_NARROW = {  # if the line has less than `_WIDE` columns
    name: {"segments": ("segm", 4, True), "oracle": ("error", 8, True)}.get(name, column)
    for name, column in _COLUMNS.items()
    if name not in ("full_state", "segmented")
}
_WIDE = 120

_STEP_COLUMNS = (
    "step", "hot", "cold", "bytes", "% of f16", "error", "of bound", "vs unquantised"
)  # fmt: skip
_MOST_STEPS = 12


class Table:
    """Lines as the cases end."""

    def __init__(self, console: Console, cases: Sequence[Case], *, verbose: bool) -> None:
        self._console = console
        self._verbose = verbose
        self._shows_steps = verbose or len(cases) == 1
        least, most = _CASE_WIDTHS
        self._columns = _COLUMNS if console.width >= _WIDE else _NARROW
        others = sum(width + 2 for _, width, _ in self._columns.values())
        self._case_width = min(max(console.width - others, least), most)
        self._labels = short_labels(cases, self._case_width)
        headings = {name: heading for name, (heading, _, _) in self._columns.items()}
        say(console, self._line("case", headings, "bold"))

    def add(self, verdict: Verdict, repro: str) -> None:
        """Print a case's line, and what a person needs to go on where it did not pass."""
        error, of_bound = worst(verdict)
        cells = {
            "path": verdict.path,
            "segments": str(verdict.case.segments),
            "full_state": _difference(verdict, "full_state_vs_standard"),
            "segmented": _difference(verdict, "segmented_vs_standard"),
            "oracle": error,
            "of_bound": of_bound,
            "status": verdict.status,
        }
        if verdict.case not in self._labels:  # it was drawn again
            self._labels |= short_labels([verdict.case], self._case_width)
        line = self._line(self._labels[verdict.case], cells, "")
        line.stylize(STATUS_STYLE[verdict.status], len(line.plain) - len(verdict.status))
        say(self._console, line)
        if verdict.status != "pass":
            for i, words in enumerate(explain(verdict)):
                style = STATUS_STYLE[verdict.status] if i == 0 else ""
                say(self._console, f"    {words}", style)
        if verdict.status != "pass" or self._verbose:
            say(self._console, f"    {repro}", "dim")
        if not self._shows_steps or not verdict.steps:
            return
        rows = [_STEP_COLUMNS, *map(_step_cells, _some(verdict.steps))]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            padded = [f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)]
            say(self._console, f"    {'  '.join(padded)}")

    def _line(self, case: str, cells: Mapping[str, str], style: str) -> Text:
        padded = [
            f"{cells[name]:>{width}}" if right else f"{cells[name]:<{width}}"
            for name, (_, width, right) in self._columns.items()
        ]
        return Text("  ".join([f"{case:<{self._case_width}}", *padded]).rstrip(), style=style)


def print_summary(console: Console, results: Results) -> None:
    """Print how many cases ran, how they ended, on what and how long.

    Of captured cases a line before says how the model's own results compare.
    """
    for mode in ("standard", "mixed"):
        _say_of_model(console, mode, [verdict.comparisons for verdict in results.verdicts])
    ran = len(results.verdicts)
    parts = [f"{results.count(status)} {status}" for status in STATUSES if results.count(status)]
    cases = number_of(ran, "case")
    if results.stopped:
        cases = f"{ran} of {results.selected} cases ({results.stopped})"
    head = f"{cases}: {', '.join(parts) or 'none ran'}"
    rest = f"{results.what_ran} | {results.seconds:.1f} s"
    say_summary(console, head, rest, passed=results.passed)


def _say_of_model(
    console: Console, mode: str, comparisons: Sequence[Mapping[str, Comparison]]
) -> None:
    of_mode = [each for each in comparisons if f"{mode}_vs_model" in each]
    if not of_mode:
        return
    own = [each[f"{mode}_vs_model"] for each in of_mode]
    same = sum(comparison.bitwise for comparison in own)
    words = f"the model's own result has the bits of {mode} in {same} of {len(own)} cases"
    if same < len(own):
        most = max(comparison.max_rel_row for comparison in own)
        words += f", elsewhere it is off by up to {most:.1e} of a row's largest element"
    say(console, words)
    largest = max(each["model_vs_oracle"].of_bound for each in of_mode)
    say(console, f"its error is up to {in_words(largest)} of this library's bound")


def _some(steps: Sequence[CacheStep]) -> list[CacheStep]:
    """Return the first step, the last, the worst, and some of those in which tokens got cold."""
    evicting = [
        step.step
        for before, step in itertools.pairwise(steps)
        if step.tokens_cold > before.tokens_cold
    ]
    thinned = evicting[:: -(-len(evicting) // _MOST_STEPS) or 1]
    nearest = max(steps, key=lambda step: step.of_bound).step
    return [steps[i] for i in sorted({0, nearest, len(steps) - 1, *thinned})]


def _step_cells(step: CacheStep) -> tuple[str, ...]:
    counts = (step.step, step.tokens_hot, step.tokens_cold, step.cache_bytes)
    share = f"{step.cache_bytes / step.f16_bytes:.0%}"
    error, of_bound = f"{step.error:.2e}", in_words(step.of_bound)
    return (*map(str, counts), share, error, of_bound, f"{step.quantisation_error:.2e}")


def _difference(verdict: Verdict, name: str) -> str:
    comparison = verdict.comparisons.get(name)
    return f"{comparison.max_abs:.2e}" if comparison else "-"
