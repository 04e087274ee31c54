"""The table that a person reads: a line a case, what went wrong below it, a summary line."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from fa_harness.case.case import CAPTURED, Case
from fa_harness.case.rolling import CacheStep
from fa_harness.engine.modes import MODES
from fa_harness.judge.verdict import STATUSES, Verdict
from fa_harness.report.results import Results, explain
from fa_harness.terminal import counter

STATUS_STYLE = {
    "pass": "green",
    "fail": "bold red",
    "crash": "bold red",
    "timeout": "bold red",
    "unsupported": "yellow",
    "mistrusted": "bold magenta",
}

_CASE_WIDTHS = (20, 62)  # least and most columns for the case, by what the others leave of the line
_COLUMNS = (  # of the others: heading, width, to the right
    ("path", 8, False),
    ("segments", 8, True),
    ("std vs full", 11, True),
    ("std vs segm", 11, True),
    ("vs oracle", 9, True),
    ("of bound", 8, True),
    ("status", 11, False),
)


_STEP_COLUMNS = (
    "step", "hot", "cold", "bytes", "% of f16", "error", "of bound", "vs unquantised"
)  # fmt: skip
_MOST_STEPS = 12


class Table:
    """Lines as the cases end, with a progress bar below them on a terminal."""

    def __init__(self, console: Console, *, total: int, verbose: bool) -> None:
        self._console = console
        self._verbose = verbose
        self._shows_steps = verbose or total == 1
        self._progress = counter(console)
        self._task = self._progress.add_task("cases", total=total)
        least, most = _CASE_WIDTHS
        others = sum(width + 2 for _, width, _ in _COLUMNS)
        self._case_width = min(max(console.width - others, least), most)

    def __enter__(self) -> Table:
        headings = [heading for heading, _, _ in _COLUMNS]
        self._console.print(self._line("case", headings, "bold"), soft_wrap=True)
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def add(self, verdict: Verdict, repro: str) -> None:
        """Print a case's line, and what a person needs to go on where it did not pass."""
        cells = [
            verdict.path,
            str(verdict.case.segments),
            _difference(verdict, "full_state_vs_standard"),
            _difference(verdict, "segmented_vs_standard"),
            *_oracle(verdict),
        ]
        line = self._line(label(verdict.case), [*cells, verdict.status], "")
        line.stylize(STATUS_STYLE[verdict.status], len(line.plain) - len(verdict.status))
        self._console.print(line, soft_wrap=True)
        if verdict.status != "pass":
            for i, words in enumerate(explain(verdict)):
                style = STATUS_STYLE[verdict.status] if i == 0 else ""
                self._console.print(Text(f"    {words}", style=style), soft_wrap=True)
        if verdict.status != "pass" or self._verbose:
            self._console.print(Text(f"    {repro}", style="dim"), soft_wrap=True)
        if self._shows_steps and verdict.steps:
            self._print_steps(verdict.steps)
        self._progress.advance(self._task)

    def _print_steps(self, steps: Sequence[CacheStep]) -> None:
        """Print some steps of a rolling cache."""
        rows = [_STEP_COLUMNS, *(_step_cells(step) for step in _some(steps))]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = [f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)]
            self._console.print(Text(f"    {'  '.join(cells)}"), soft_wrap=True)

    def _line(self, case: str, cells: list[str], style: str) -> Text:
        width = self._case_width
        if len(case) > width:
            case = f"{case[: width - 2]}.."
        padded = [
            f"{cell:>{width}}" if right else f"{cell:<{width}}"
            for cell, (_, width, right) in zip(cells, _COLUMNS, strict=True)
        ]
        return Text("  ".join([f"{case:<{width}}", *padded]).rstrip(), style=style)


def print_summary(console: Console, results: Results) -> None:
    """Print the last line: how many cases, how they ended, on what, how long.

    Of captured cases the line before says how the model's own results compare.
    """
    own = [found for v in results.verdicts if (found := v.comparisons.get("standard_vs_model"))]
    if own:
        same = sum(comparison.bitwise for comparison in own)
        words = f"the model's own result has the bits of standard in {same} of {len(own)} cases"
        if same < len(own):
            most = max(comparison.max_rel_row for comparison in own)
            words += f", elsewhere it is off by up to {most:.1e} of a row's largest element"
        console.print(Text(words), soft_wrap=True)
    ran = len(results.verdicts)
    parts = [f"{results.count(status)} {status}" for status in STATUSES if results.count(status)]
    cases = f"{ran} of {results.selected} cases (interrupted)" if results.interrupted else (
        f"{ran} case{'s' * (ran != 1)}"
    )  # fmt: skip
    library = results.library
    text = Text(f"{cases}: {', '.join(parts) or 'none ran'}", style="bold")
    text.stylize("green" if results.passed else "red")
    text.append(
        f" | library {library['name']} of {library['upstream']}, ggml {library['ggml_version']}"
        f" | {results.seconds:.1f} s",
        style="not bold default",
    )
    console.print(text, soft_wrap=True)


def label(case: Case) -> str:
    """Return a case in a few words: shape, then what is not usual about it."""
    usual = (0, 2, 1, 3) if case.captured else (0, 1, 2, 3)  # a model's cache is permuted
    heads = f"{case.n_head}" if case.n_head == case.n_head_kv else f"{case.n_head}/{case.n_head_kv}"
    size = f"{case.hsk}" if case.hsk == case.hsv else f"{case.hsk}/{case.hsv}"
    types = case.type_K if case.type_K == case.type_V else f"{case.type_K}/{case.type_V}"
    types = "+".join(case.segment_types) or types
    words = [f"hs{size}", f"h{heads}", f"kv{case.n_kv}"]
    data = case.captured.rpartition("/")[2] or case.regime
    if case.hot_window:  # b is kv, and the mask causal
        words += [f"{types}>{case.cold_type}", data, f"w{case.hot_window}/{case.group}"]
    else:
        words += [f"b{case.n_batch}", types, data]
    options: list[tuple[bool, str]] = [
        (case.ne3 != 1, f"ne3={case.ne3}"),
        (not case.mask, "no mask"),
        (
            case.mask and not case.hot_window and case.mask_kind not in ("random", CAPTURED),
            case.mask_kind,
        ),
        (case.mask_heads != 1, f"mask/{case.mask_heads}"),
        (case.sinks, "sinks"),
        (case.max_bias != 0, "alibi"),
        (case.logit_softcap != 0, "softcap"),
        (case.kq_scale != 0 and not case.captured, f"scale:{case.kq_scale:g}"),
        (case.permute != usual, "permuted:" + "".join(map(str, case.permute))),
        (not case.kv_view, "no view"),
        (case.v_is_view_of_k, "V in K"),
        (case.boundaries == "random", "cut:random"),
        (isinstance(case.boundaries, tuple), "cut:" + _cuts(case)),
        (case.seed != 0, f"seed={case.seed}"),
    ]
    return " ".join([*words, *(word for shown, word in options if shown), f"t{case.threads}"])


def speed_label(case: Case) -> str:
    """Return a case whose speed is measured in a few words."""
    size = f"{case.hsk}" if case.hsk == case.hsv else f"{case.hsk}/{case.hsv}"
    heads = f"h{case.n_head}/{case.n_head_kv}"
    return f"b{case.n_batch} kv{case.n_kv} hs{size} {heads} {case.type_K} t{case.threads}"


def _cuts(case: Case) -> str:
    return ",".join(str(i) for i in case.segment_bounds()[1:-1])


def _some(steps: Sequence[CacheStep]) -> list[CacheStep]:
    """Return the first step, the last, the worst, and those in which tokens got cold, thinned."""
    evicting = [
        step.step
        for before, step in itertools.pairwise(steps)
        if step.tokens_cold > before.tokens_cold
    ]
    thinned = evicting[:: -(-len(evicting) // _MOST_STEPS) or 1]
    worst = max(steps, key=lambda step: step.of_bound).step
    return [steps[i] for i in sorted({0, worst, len(steps) - 1, *thinned})]


def _step_cells(step: CacheStep) -> tuple[str, ...]:
    return (
        f"{step.step}",
        f"{step.tokens_hot}",
        f"{step.tokens_cold}",
        f"{step.cache_bytes}",
        f"{step.cache_bytes / step.f16_bytes:.0%}",
        f"{step.error:.2e}",
        f"{step.of_bound:.1%}" if step.of_bound < 1 else _times(step.of_bound),
        f"{step.quantisation_error:.2e}",
    )


def _difference(verdict: Verdict, name: str) -> str:
    comparison = verdict.comparisons.get(name)
    return f"{comparison.max_abs:.2e}" if comparison else "-"


def _oracle(verdict: Verdict) -> tuple[str, str]:
    """Return the largest error of a mode's result, and the largest share of a bound.

    The share is of all comparisons with the oracle, prefixes, parts and states among them.
    """
    shares = [c.of_bound for name, c in verdict.comparisons.items() if name.endswith("_vs_oracle")]
    if not shares:
        return "-", "-"
    results = (verdict.comparisons.get(f"{mode}_vs_oracle") for mode in MODES)
    errors = [result.max_abs for result in results if result]
    # one that is not finite is the worst
    worst = max(errors, key=lambda error: error if math.isfinite(error) else math.inf)
    return f"{worst:.2e}", _times(max(shares))


def _times(of_bound: float) -> str:
    return f"{of_bound:.0%}" if of_bound < 10 else f"{of_bound:.0f} x"
