"""The report as one HTML file that needs nothing beside itself: what broke first, pictures, tables.

No script: the filter of the table is a check box that CSS reads. Pictures are SVG.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from markupsafe import Markup

from fa_harness.arrays import F32
from fa_harness.case.case import Case
from fa_harness.case.label import label, speed_label
from fa_harness.judge.shares import in_words
from fa_harness.report.results import Results, worst
from fa_harness.report.troubles import headline, in_short, origin, state, troubles, unchecked
from fa_harness.speed.bench import Interval
from fa_harness.speed.gate import Gate, Ratio

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
        ranges=_ranges_of(gate.ratios if gate else ()),
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
        "speed_label": lambda case: speed_label(Case.parse(case)),
        "of_bound": lambda verdict: worst(verdict)[1],
    }
    return environment.get_template("report.html.j2")


def _shown(value: object) -> object:
    """Return a text without the characters that HTML cannot hold: these in hexadecimal."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in value)


def _heat_map(by_row: F32, case: Case) -> Markup:
    """Return shares `[heads, rows]` as a picture: one path a colour."""
    n_head, n_row = by_row.shape
    levels = [[_level(float(share)) for share in row] for row in by_row]
    paths: dict[int, list[str]] = {}
    for y, row in enumerate(levels):
        x = 0
        for level, run in groupby(row):
            n = len(list(run))
            paths.setdefault(level, []).append(f"M{x} {y}h{n}v1h-{n}z")
            x += n
    shapes = "".join(f'<path class="l{level}" d="{"".join(d)}"/>' for level, d in paths.items())
    cell = max(4, min(22, 520 // max(n_row, n_head)))
    of = "" if by_row.shape == (case.ne3 * case.n_head, case.n_batch) else ", largest of neighbours"
    n_head_all = case.ne3 * case.n_head
    rows = f"{case.n_batch} row{'s' * (case.n_batch != 1)}"
    described = f"{n_head_all} head{'s' * (n_head_all != 1)}, {rows}{of}"
    beyond = int((by_row > 1).sum())
    summary = f"beyond the bound: {beyond} of {by_row.size}"
    if math.isfinite(by_row.max()):
        summary += f", worst {in_words(float(by_row.max()))}"
    return Markup(
        f'<svg class="heat" role="img" aria-label="share of the bound by head and row" '
        f'viewBox="0 0 {n_row} {n_head}" preserveAspectRatio="none" '
        f'style="width:{n_row * cell}px;aspect-ratio:{n_row}/{n_head}">'
        f"<title>{described}</title>{shapes}</svg>"
        f'<p class="small">{described}; {summary}</p>'
    )


def _bars(by_segment: Sequence[float], case: Case) -> Markup:
    """Return shares by segment as bars, their lengths logarithmic from a thousandth on."""
    limits = case.segment_bounds()
    top = max([1.0, *(share for share in by_segment if math.isfinite(share))])
    rows = []
    for i, share in enumerate(by_segment):
        length = 1.0 if not math.isfinite(share) else _logarithmic(share, top)
        rows.append(
            f"<tr><th>{i}</th><td>keys {limits[i]} to {limits[i + 1]}</td>"
            f'<td class="bar"><i class="l{_level(share)}" style="width:{length:.0%}"></i></td>'
            f"<td>{in_words(share)}</td></tr>"
        )
    bound = _logarithmic(1.0, top)
    note = f'<p class="small">logarithmic; the bound is at {bound:.0%} of the width</p>'
    return Markup(f'<table class="bars">{"".join(rows)}</table>{note}')


def _logarithmic(share: float, top: float) -> float:
    least = 1e-3
    return max(0.0, math.log(max(share, least) / least) / math.log(top / least))


def _ranges_of(ratios: Sequence[Ratio]) -> Callable[[Ratio], Markup]:
    """Return what draws the intervals of a ratio on the scale of all."""
    known = [each for ratio in ratios for each in (ratio.now, ratio.before) if each]
    told = [each for each in known if each.width < _TOLD] or known
    low = min((each.low for each in told), default=1.0)
    high = max((each.high for each in told), default=1.0)
    return lambda ratio: _range((ratio.before, ratio.now), low, high)


def _range(intervals: Iterable[Interval | None], low: float, high: float) -> Markup:
    width = (high - low) or 1.0
    bars = []
    for n, each in enumerate(intervals):
        if each:
            left, right = (
                min(max((end - low) / width * 100, 0.0), 100.0) for end in (each.low, each.high)
            )
            size = f'width="{max(1.0, right - left):.1f}" height="5"'
            bars.append(f'<rect class="r{n}" x="{left:.1f}" y="{2 + 6 * n}" {size}/>')
    return Markup(f'<svg class="range" viewBox="0 0 102 14">{"".join(bars)}</svg>')


def _level(share: float) -> int:
    """Return the number of the colour that a share has."""
    return next((n for n, limit in enumerate(_LEVELS) if share <= limit), len(_LEVELS) - 1)
