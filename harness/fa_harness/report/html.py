"""The report as one HTML file that needs nothing beside itself: what broke first, pictures, tables.

No script: the filter of the table is a check box that CSS reads. Pictures are SVG.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from fa_harness.arrays import F32
from fa_harness.case.case import Case
from fa_harness.case.label import label, speed_label
from fa_harness.engine.session import Results
from fa_harness.judge.shares import in_words
from fa_harness.judge.words import worst
from fa_harness.report.troubles import (
    headline,
    in_short,
    measured_in_words,
    origin,
    state,
    troubles,
    unchecked,
)
from fa_harness.speed.bench import Interval
from fa_harness.speed.gate import Gate
from fa_harness.speed.ratios import Ratio
from fa_harness.terminal import number_of

if TYPE_CHECKING:
    from jinja2 import Template

_LEVELS = (0.1, 0.5, 1.0, 10.0, 1000.0, math.inf)
"""Upper limits of the shares that a colour stands for; what is above the last is not finite."""
_LEGEND = ("under 10 %", "to 50 %", "to the bound", "to 10 x", "to 1000 x", "more, or other bits")
_IN_SHORT = 6
_TOLD = 0.1
"""Width of an interval that tells something; wider ones do not set the scale."""
_PICTURES = 40
"""Troubles with pictures; more make a file that nobody reads."""


def render(results: Results, gate: Gate | None = None) -> str:
    """Return the document, ending in a newline."""
    found = troubles(results, gate)
    return _template().render(
        results=results,
        gate=gate,
        state=state(results, gate),
        title=headline(results, gate),
        not_checked=unchecked(gate),
        origin=origin(results),
        found=found,
        short=in_short(found)[:_IN_SHORT],
        wrong={each.case: n for n, each in reversed(list(enumerate(found)))},
        most_pictures=_PICTURES,
        legend=_LEGEND,
        heat_map=_heat_map,
        bars=_bars,
        place=_scale_of(gate.ratios if gate else ()),
    )


@functools.cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fa_harness.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "label": lambda case: label(Case.parse(case)),
        "measured": measured_in_words,
        "speed_label": lambda case: speed_label(Case.parse(case)),
        "of_bound": lambda verdict: worst(verdict)[1],
    }
    return environment.get_template("report.html.j2")


def _shown(value: object) -> object:
    """Return a text without the characters that HTML cannot hold: these in hexadecimal."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in value)


def _heat_map(by_row: F32, case: Case) -> dict[str, Any]:
    """Return what a picture of shares `[heads, rows]` shows: one path a colour, and words."""
    n_head, n_row = by_row.shape
    paths: dict[int, list[str]] = {}
    for y, row in enumerate(by_row.tolist()):
        x = 0
        for level, run in groupby(map(_level, row)):
            n = len(list(run))
            paths.setdefault(level, []).append(f"M{x} {y}h{n}v1h-{n}z")
            x += n
    n_head_all = case.ne3 * case.n_head
    described = f"{number_of(n_head_all, 'head')}, {number_of(case.n_batch, 'row')}"
    if by_row.shape != (n_head_all, case.n_batch):
        described += ", largest of neighbours"
    summary = f"beyond the bound: {int((by_row > 1).sum())} of {by_row.size}"
    if math.isfinite(by_row.max()):
        summary += f", worst {in_words(float(by_row.max()))}"
    return {
        "n_head": n_head,
        "n_row": n_row,
        "paths": paths,
        "width": n_row * max(4, min(22, 520 // max(n_row, n_head))),
        "described": described,
        "summary": summary,
    }


def _bars(by_segment: Sequence[float]) -> list[tuple[int, float, str]]:
    """Return for each segment its share as a colour, a length and words, and the same of the bound.

    Lengths are logarithmic, from a thousandth of the bound to the largest share.
    """
    least = 1e-3
    top = max([1.0, *(share for share in by_segment if math.isfinite(share))])

    def length(share: float) -> float:
        reached = share if math.isfinite(share) else top
        return max(0.0, math.log(max(reached, least) / least) / math.log(top / least))

    return [(_level(share), length(share), in_words(share)) for share in (*by_segment, 1.0)]


def _scale_of(ratios: Sequence[Ratio]) -> Callable[[Interval], tuple[float, float]]:
    """Return what tells where an interval begins and how wide it is, in per cent of all."""
    known = [each for ratio in ratios for each in (ratio.now, ratio.before) if each]
    told = [each for each in known if each.width < _TOLD] or known
    low = min((each.low for each in told), default=1.0)
    high = max((each.high for each in told), default=1.0)
    width = (high - low) or 1.0

    def place(interval: Interval) -> tuple[float, float]:
        left, right = (
            min(max((end - low) / width * 100, 0.0), 100.0) for end in (interval.low, interval.high)
        )
        return left, max(1.0, right - left)

    return place


def _level(share: float) -> int:
    """Return the number of the colour that a share has."""
    return next((n for n, limit in enumerate(_LEVELS) if share <= limit), len(_LEVELS) - 1)
