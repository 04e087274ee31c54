"""The report as one HTML file that needs nothing beside itself: what broke first, pictures, tables.

No script: the filter of the table is a check box that CSS reads. Pictures are SVG.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from itertools import groupby

from fa_harness.arrays import F32
from fa_harness.case.case import Case
from fa_harness.judge.shares import Shares
from fa_harness.judge.verdict import Verdict
from fa_harness.report.console import label, speed_label
from fa_harness.report.results import Results
from fa_harness.report.troubles import (
    Trouble,
    headline,
    in_short,
    origin,
    passed,
    troubles,
    unchecked,
)
from fa_harness.speed.bench import Interval
from fa_harness.speed.gate import Gate, Ratio

_LEVELS = (0.1, 0.5, 1.0, 10.0, 1000.0, math.inf)
"""Upper limits of the shares that a colour stands for; what is above the last is not finite."""
_LEGEND = ("under 10 %", "to 50 %", "to the bound", "to 10 x", "to 1000 x", "more, or other bits")
_IN_SHORT = 6
_TOLD = 0.1
"""Width of an interval that tells something; wider ones do not set the scale."""
_PICTURES = 40
"""Troubles with pictures; more make a file that nobody reads."""


def render(results: Results, gate: Gate | None = None) -> str:
    """Return the document, ending in a newline.

    Args:
        results: The run.
        gate: What a gate found in it.
    """
    return "\n".join(_document(results, gate)) + "\n"


def _document(results: Results, gate: Gate | None) -> Iterator[str]:
    found = troubles(results, gate)
    state = "good" if passed(results, gate) else "bad"
    if state == "good" and gate and gate.is_mostly_unchecked:
        state = "unchecked"
    title = _text(headline(results, gate))
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{title}</title>\n<style>\n{_css()}</style>\n</head>\n<body>"
    yield f'<header class="{state}"><h1>{title}</h1>'
    for line in unchecked(gate) if gate else ():
        yield f'<p class="not-checked">{_text(line)}</p>'
    yield f"<p>{_text(origin(results))}, {results.started:%Y-%m-%d %H:%M}</p></header>\n<main>"
    if gate:
        yield from _checks(gate)
    if found:
        yield from _broken(found)
        yield from _details(found)
    if gate and gate.ratios:
        yield from _speed(gate.ratios)
    yield from _all_cases(results, found)
    yield "</main>\n</body>\n</html>"


def _css() -> str:
    return files("fa_harness.report").joinpath("report.css").read_text(encoding="utf-8")


def _checks(gate: Gate) -> Iterator[str]:
    yield '<section><ul class="checks">'
    for check in gate.checks:
        yield (
            f'<li class="{check.status}"><b>{_text(check.name)}</b> <i>{check.status}</i> '
            f"<span>{_text(check.reason)}</span></li>"
        )
    yield "</ul>"
    if not gate.without_baseline:
        yield f"<p>Compared with {_text(gate.baseline)}.</p>"
    if gate.notes:
        notes = "".join(f"<li>{_text(note)}</li>" for note in gate.notes)
        yield f'<ul class="notes">{notes}</ul>'
    yield "</section>"


def _broken(found: Sequence[Trouble]) -> Iterator[str]:
    """Yield the list of all that is wrong: the first thing that a person reads."""
    yield f"<section><h2>What broke ({len(found)})</h2>"
    if len(found) > 1:
        short = "".join(f"<li>{_text(each)}</li>" for each in in_short(found)[:_IN_SHORT])
        yield f'<ul class="short">{short}</ul>'
    yield '<div class="wide"><table><thead><tr><th>what</th><th>case</th><th>why</th></tr></thead>'
    yield "<tbody>"
    for n, each in enumerate(found):
        name = _text(label(Case.parse(each.case)))
        target = f'<a href="#t{n}">{name}</a>'
        yield (
            f'<tr><td class="kind">{_text(each.kind)}</td><td class="case">{target}</td>'
            f"<td>{_text(each.lines[0])}</td></tr>"
        )
    yield "</tbody></table></div></section>"


def _details(found: Sequence[Trouble]) -> Iterator[str]:
    yield "<section><h2>Where and why</h2>"
    for n, each in enumerate(found):
        yield f'<article id="t{n}"><h3><b>{_text(each.kind)}</b> '
        yield f"{_text(label(Case.parse(each.case)))}</h3>"
        yield f'<pre class="why">{_text(chr(10).join(each.lines))}</pre>'
        yield f'<pre class="repro">{_text(each.repro)}</pre>'
        if each.verdict and each.verdict.shares and n < _PICTURES:
            yield from _pictures(each.verdict, each.verdict.shares)
        yield "</article>"
    yield "</section>"


def _pictures(verdict: Verdict, shares: Shares) -> Iterator[str]:
    words = _text(shares.comparison.replace("_", " "))
    yield '<div class="pictures">'
    yield f"<figure><figcaption>{words}: heads down, query rows across</figcaption>"
    yield _heat_map(shares.by_row, verdict.case)
    yield f"{_legend()}</figure>"
    if shares.by_segment:
        yield "<figure><figcaption>share of the bound after each segment</figcaption>"
        yield f"{_bars(shares.by_segment, verdict.case)}</figure>"
    yield "</div>"


def _heat_map(by_row: F32, case: Case) -> str:
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
    worst = f"beyond the bound: {beyond} of {by_row.size}"
    if math.isfinite(by_row.max()):
        worst += f", worst {_share(float(by_row.max()))}"
    return (
        f'<svg class="heat" role="img" aria-label="share of the bound by head and row" '
        f'viewBox="0 0 {n_row} {n_head}" preserveAspectRatio="none" '
        f'style="width:{n_row * cell}px;aspect-ratio:{n_row}/{n_head}">'
        f"<title>{described}</title>{shapes}</svg>"
        f'<p class="small">{described}; {worst}</p>'
    )


def _bars(by_segment: Sequence[float], case: Case) -> str:
    """Return shares by segment as bars, their lengths logarithmic from a thousandth on."""
    limits = case.segment_bounds()
    top = max([1.0, *(share for share in by_segment if math.isfinite(share))])
    rows = []
    for i, share in enumerate(by_segment):
        length = 1.0 if not math.isfinite(share) else _logarithmic(share, top)
        rows.append(
            f"<tr><th>{i}</th><td>keys {limits[i]} to {limits[i + 1]}</td>"
            f'<td class="bar"><i class="l{_level(share)}" style="width:{length:.0%}"></i></td>'
            f"<td>{_share(share)}</td></tr>"
        )
    bound = _logarithmic(1.0, top)
    note = f'<p class="small">logarithmic; the bound is at {bound:.0%} of the width</p>'
    return f'<table class="bars">{"".join(rows)}</table>{note}'


def _logarithmic(share: float, top: float) -> float:
    least = 1e-3
    return max(0.0, math.log(max(share, least) / least) / math.log(top / least))


def _legend() -> str:
    items = "".join(
        f'<span><i class="l{level}"></i>{words}</span>' for level, words in enumerate(_LEGEND)
    )
    return f'<p class="legend">{items}</p>'


def _speed(ratios: Sequence[Ratio]) -> Iterator[str]:
    yield "<section><h2>Speed</h2>"
    yield "<p>Time to that of one call without a state, in the same process and round: median and "
    yield "99 % interval. The dark bar is this run, the pale one the baseline.</p>"
    yield '<div class="wide"><table><thead><tr><th>case</th><th>way</th><th>now</th><th>was</th>'
    yield "<th></th><th></th></tr></thead><tbody>"
    known = [each for ratio in ratios for each in (ratio.now, ratio.before) if each]
    told = [each for each in known if each.width < _TOLD] or known
    low = min((each.low for each in told), default=1.0)
    high = max((each.high for each in told), default=1.0)
    for ratio in ratios:
        cells = [_text(speed_label(Case.parse(ratio.case))), _text(ratio.way.replace("_", " "))]
        cells += [_interval(ratio.now), _interval(ratio.before)]
        cells += [_range((ratio.before, ratio.now), low, high)]
        cells += [f"<b>{ratio.status}</b> {_text(ratio.reason)}"]
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        yield f'<tr class="{ratio.status}">{row}</tr>'
    yield "</tbody></table></div></section>"


def _range(intervals: Iterable[Interval | None], low: float, high: float) -> str:
    width = (high - low) or 1.0
    bars = []
    for n, each in enumerate(intervals):
        if each:
            left, right = (
                min(max((end - low) / width * 100, 0.0), 100.0) for end in (each.low, each.high)
            )
            size = f'width="{max(1.0, right - left):.1f}" height="5"'
            bars.append(f'<rect class="r{n}" x="{left:.1f}" y="{2 + 6 * n}" {size}/>')
    return f'<svg class="range" viewBox="0 0 102 14">{"".join(bars)}</svg>'


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    return f"{interval.median:.3f} <small>{interval.low:.3f} to {interval.high:.3f}</small>"


def _all_cases(results: Results, found: Sequence[Trouble]) -> Iterator[str]:
    wrong = {each.case: n for n, each in reversed(list(enumerate(found)))}
    yield f"<section><h2>All cases ({len(results.verdicts)})</h2>"
    if found:
        yield '<input type="checkbox" id="only"><label for="only">only what is wrong</label>'
    yield '<div class="wide"><table class="cases"><thead><tr><th>case</th><th>path</th>'
    yield "<th>segments</th><th>of bound</th><th>status</th><th>seconds</th></tr></thead><tbody>"
    for verdict in results.verdicts:
        case = str(verdict.case)
        name = _text(label(verdict.case))
        if case in wrong:
            name = f'<a href="#t{wrong[case]}">{name}</a>'
        shares = [c.of_bound for n, c in verdict.comparisons.items() if n.endswith("_vs_oracle")]
        state = "wrong" if case in wrong else "right"
        yield (
            f'<tr class="{state}" title="{_text(case)}"><td class="case">{name}</td>'
            f"<td>{verdict.path}</td><td>{verdict.case.segments}</td>"
            f"<td>{_share(max(shares)) if shares else '-'}</td>"
            f'<td class="{verdict.status}">{verdict.status}</td>'
            f"<td>{verdict.seconds:.2f}</td></tr>"
        )
    yield "</tbody></table></div></section>"


def _level(share: float) -> int:
    """Return the number of the colour that a share has."""
    return next((n for n, limit in enumerate(_LEVELS) if share <= limit), len(_LEVELS) - 1)


def _share(share: float) -> str:
    if not math.isfinite(share):
        return "not finite"
    return f"{share:.1%}" if share < 10 else f"{share:.0f} x"


def _text(text: str) -> str:
    """Return a text as HTML shows it as it is; characters that HTML cannot hold in hexadecimal."""
    shown = "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
    return html.escape(shown)
