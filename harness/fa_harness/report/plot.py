"""Plots as SVG: ratios of speed over n_kv, and the quality of KV caches over their bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from xml.sax.saxutils import escape

from fa_harness.model.mixed import Quality
from fa_harness.speed.compare import ComparedRow, Comparison

_COLOURS = {
    "f32": "#555",
    "f16": "#1f77b4",
    "bf16": "#2ca02c",
    "q8_0": "#ff7f0e",
    "q4_0": "#d62728",
}
_OTHER_COLOUR = "#9467bd"
_WIDTH, _HEIGHT = 420, 300  # of a panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 34, 40
_BYTES = (0.25, 0.375, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
"""Marks on the axis of bytes per element."""
_STYLE = "font-family='sans-serif' font-size='12'"


def plot(result: Comparison) -> str:
    """Return an SVG document; both axes are logarithmic, and a bar is a ratio's interval.

    A line joins rows of a type that differ in n_kv alone.
    """
    panels = [name for name in result.others if any(name in row.ratios for row in result.rows)]
    width = max(1, len(panels)) * _WIDTH
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {_HEIGHT}' {_STYLE}>",
        f"<rect width='{width}' height='{_HEIGHT}' fill='white'/>",
    ]
    for i, name in enumerate(panels):
        rows = [row for row in result.rows if name in row.ratios]
        parts.append(f"<g transform='translate({i * _WIDTH} 0)'>")
        parts += _panel(rows, name, str(result.library["name"]))
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def quality_plot(points: Sequence[tuple[str, float, Quality]]) -> str:
    """Return an SVG of the mean divergence over bytes per element, both axes logarithmic.

    A point is a cache's name, its bytes and its quality. Caches without a divergence are left out.
    """
    shown = [point for point in points if point[2].mean > 0]
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {_HEIGHT}' {_STYLE}>",
        f"<rect width='{_WIDTH}' height='{_HEIGHT}' fill='white'/>",
        _text(_LEFT, 18, "mean divergence from an F16 cache", "font-weight='bold'"),
    ]
    if shown:
        sizes = [size for _, size, _ in shown]
        found = [quality.mean for _, _, quality in shown]
        x = _Axis(min(sizes) / 1.1, max(sizes) * 1.6, _LEFT, _WIDTH - _RIGHT)  # names are there
        y = _Axis(min(found) / 2, max(found) * 2, _HEIGHT - _BOTTOM, _TOP)
        for tick in y.powers_of_ten():
            parts.append(_line(_LEFT, y(tick), _WIDTH - _RIGHT, y(tick), "#ccc"))
            parts.append(_text(_LEFT - 6, y(tick) + 4, f"{tick:g}", "text-anchor='end'"))
        for tick in (each for each in _BYTES if x.has(each)):
            at = x(tick)
            parts.append(_text(at, _HEIGHT - _BOTTOM + 16, f"{tick:g}", "text-anchor='middle'"))
        for name, size, quality in shown:
            colour = _COLOURS.get(name.partition("+")[0], _OTHER_COLOUR)
            at, height = x(size), y(quality.mean)
            fill = "white" if "+" in name else colour
            parts.append(
                f"<circle cx='{at:.1f}' cy='{height:.1f}' r='4' fill='{fill}' stroke='{colour}'/>"
            )
            parts.append(_text(at + 7, height + 4, name, f"fill='{colour}'"))
    middle = (_LEFT + _WIDTH) / 2
    parts.append(_text(middle, _HEIGHT - 6, "bytes per element", "text-anchor='middle'"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(rows: Sequence[ComparedRow], name: str, library: str) -> Iterator[str]:
    n_kv = [row.case.n_kv for row in rows]
    ends = [end for row in rows for end in (row.ratios[name].low, row.ratios[name].high)]
    x = _Axis(min(n_kv) / 1.5, max(n_kv) * 1.5, _LEFT, _WIDTH - _RIGHT)
    y = _Axis(min(0.5, *ends), max(2.0, *ends) * 1.1, _HEIGHT - _BOTTOM, _TOP)
    yield _text(_LEFT, 18, f"{name}: time / {library}'s time", "font-weight='bold'")
    for tick in y.powers_of_two():
        dark = "#000" if tick == 1 else "#ccc"
        yield _line(_LEFT, y(tick), _WIDTH - _RIGHT, y(tick), dark)
        yield _text(_LEFT - 6, y(tick) + 4, f"{tick:g}", "text-anchor='end'")
    for tick in sorted(set(n_kv)):
        yield _text(x(tick), _HEIGHT - _BOTTOM + 16, f"{tick:,}", "text-anchor='middle'")
    yield _text((_LEFT + _WIDTH) / 2, _HEIGHT - 6, "n_kv", "text-anchor='middle'")
    ordered = sorted(rows, key=lambda row: (str(_line_of(row)), row.case.n_kv))
    for _, group in groupby(ordered, key=_line_of):
        yield from _series(list(group), name, x, y)
    types = dict.fromkeys(row.case.type_K for row in rows)
    for i, type_ in enumerate(types):
        colour = f"fill='{_COLOURS.get(type_, _OTHER_COLOUR)}' text-anchor='end'"
        yield _text(_WIDTH - _RIGHT - 44 * (len(types) - 1 - i), _TOP - 4, type_, colour)


def _line_of(row: ComparedRow) -> object:
    """Return what the rows of a line have in common."""
    return row.case.with_(n_kv=1)


def _series(rows: Sequence[ComparedRow], name: str, x: _Axis, y: _Axis) -> Iterator[str]:
    colour = _COLOURS.get(rows[0].case.type_K, _OTHER_COLOUR)
    points = [(x(row.case.n_kv), row.ratios[name]) for row in rows]
    path = " ".join(f"{at:.1f},{y(ratio.median):.1f}" for at, ratio in points)
    yield f"<polyline points='{path}' fill='none' stroke='{colour}'/>"
    for row, (at, ratio) in zip(rows, points, strict=True):
        yield _line(at, y(ratio.low), at, y(ratio.high), colour)
        yield (
            f"<circle cx='{at:.1f}' cy='{y(ratio.median):.1f}' r='3' fill='{colour}'>"
            f"<title>{escape(str(row.case))}</title></circle>"
        )


class _Axis:
    """A logarithmic axis: where a number lies."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low, self._high, self._start, self._end = low, high, start, end

    def __call__(self, number: float) -> float:
        share = math.log(number / self._low) / math.log(self._high / self._low)
        return self._start + share * (self._end - self._start)

    def has(self, number: float) -> bool:
        return self._low <= number <= self._high

    def powers_of_ten(self) -> list[float]:
        first, last = math.ceil(math.log10(self._low)), math.floor(math.log10(self._high))
        return [10.0**exponent for exponent in range(first, last + 1)]

    def powers_of_two(self) -> list[float]:
        first, last = math.ceil(math.log2(self._low)), math.floor(math.log2(self._high))
        return [2.0**exponent for exponent in range(first, last + 1)]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    ends = f"x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}'"
    return f"<line {ends} stroke='{colour}'/>"


def _text(x: float, y: float, text: str, more: str) -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' {more}>{escape(text)}</text>"
