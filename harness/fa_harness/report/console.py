"""The table that a person reads: a line a case, what went wrong below it, a summary line."""

from __future__ import annotations

import math

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from fa_harness.cases import Case
from fa_harness.modes import MODES
from fa_harness.report import Results
from fa_harness.verdict import STATUSES, Verdict

_STYLE = {
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


class Table:
    """Lines as the cases end, with a progress bar below them on a terminal."""

    def __init__(self, console: Console, *, total: int, verbose: bool) -> None:
        self._console = console
        self._verbose = verbose
        self._progress = Progress(
            TextColumn("[progress.description]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
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
        line.stylize(_STYLE[verdict.status], len(line.plain) - len(verdict.status))
        self._console.print(line, soft_wrap=True)
        if verdict.status != "pass":
            reason = Text(f"    {verdict.reason}", style=_STYLE[verdict.status])
            self._console.print(reason, soft_wrap=True)
        if verdict.status != "pass" or self._verbose:
            self._console.print(Text(f"    {repro}", style="dim"), soft_wrap=True)
        self._progress.advance(self._task)

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
    """Print the last line: how many cases, how they ended, on what, how long."""
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
    default = Case(hsk=case.hsk, hsv=case.hsv)
    heads = f"{case.n_head}" if case.n_head == case.nh else f"{case.n_head}/{case.nh}"
    size = f"{case.hsk}" if case.hsk == case.hsv else f"{case.hsk}/{case.hsv}"
    types = case.type_K if case.type_K == case.type_V else f"{case.type_K}/{case.type_V}"
    types = "+".join(case.segment_types) or types
    words = [f"hs{size}", f"h{heads}", f"kv{case.kv}", f"b{case.nb}", types, case.regime]
    options: list[tuple[bool, str]] = [
        (case.ne3 != 1, f"ne3={case.ne3}"),
        (case.mask_kind != "random", case.mask_kind if case.mask else "no mask"),
        (case.mask_heads != 1, f"mask/{case.mask_heads}"),
        (case.sinks, "sinks"),
        (case.max_bias != 0, "alibi"),
        (case.logit_softcap != 0, "softcap"),
        (case.permute != default.permute, "permuted:" + "".join(map(str, case.permute))),
        (not case.kv_view, "no view"),
        (case.v_is_view_of_k, "V in K"),
        (case.boundaries == "random", "cut:random"),
        (isinstance(case.boundaries, tuple), "cut:" + _cuts(case)),
        (case.seed != 0, f"seed={case.seed}"),
    ]
    return " ".join([*words, *(word for shown, word in options if shown), f"t{case.threads}"])


def _cuts(case: Case) -> str:
    return ",".join(str(i) for i in case.segment_bounds()[1:-1])


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
    times = max(shares)
    return f"{worst:.2e}", f"{times:.0%}" if times < 10 else f"{times:.0f} x"
