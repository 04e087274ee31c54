"""What a gate stops: a run and its speed rows against a baseline. Pure functions, no I/O.

Five kinds of findings stop a patch. What cannot be told is `skipped` with a reason, never `ok`.

**error_grew.** The measure is the share of its bound that the worst of a case's elements takes. The
same library, machine class, seed and threads give the same bits, hence the same share. A change
that only orders operations anew draws the same roundings once more: the largest of some hundred to
thousand errors of equal size then differs by a tenth or two, as the extremes of such draws do, and
by half at the most. A lost bit doubles it. So a share may be 1.5 times the baseline's and a
hundredth of the bound more, the latter for shares of nearly nothing.

**slower.** The measure is the ratio of a way's time to one call without a state, in the same
process and round. Rounds of one process share its places in memory: as samples they would count one
draw many times. So each process gives one number, the median of its rounds, and those of several
processes are compared with those of the baseline by a rank test (Mann-Whitney, one-sided): not one
mean, which a neighbour on the machine can spoil. What runs on the core's other thread shifts all
ratios of a measurement, unseen by standard compared with itself. So the test is not whether a ratio
is above the baseline's but whether it is above `EFFECT` times those, times the noise: how far
standard compared with itself reaches from 1 in either measurement. What is above is measured again
with twice the processes, and counts if it is above in that measurement, too. Each test errs with a
probability of at most `LEVEL` beside what `EFFECT` leaves for drifts; a smaller loss is for
`fa-harness bench`, whose limits are of one run. Where an interval is wider than `EFFECT`, such a
loss could not be seen, and nothing is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fa_harness.judge.verdict import Verdict
from fa_harness.report.results import Results, explain
from fa_harness.speed.baseline import Baseline, Expected, Speed, expected, share
from fa_harness.speed.bench import Interval, median_interval, reach
from fa_harness.speed.ranks import p_greater
from fa_harness.speed.rows import WAYS, Row

GROWTH = 1.5
FLOOR = 0.01
LEVEL = 0.001
EFFECT = 1.06
MIN_HISTORY = 12
"""Ratios of a baseline at least; with fewer a test could not reach `LEVEL` with any certainty."""

ALL = "all ways"
"""Where a speed row has no ratios, since the process ended that had to measure them."""

KINDS = {
    "failed": "failed",
    "gone": "gone",
    "bits_lost": "bit-exactness lost",
    "error_grew": "error grew",
    "slower": "slower",
}
"""What stops a patch, worst first, in words."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that stops a patch."""

    kind: str
    """One of `KINDS`."""
    case: str
    """Case string."""
    text: str
    """What is wrong."""
    repro: str
    """The command that shows it again."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One part of a gate."""

    name: str
    status: str
    """`ok`, `regressed`, or `skipped`: not told."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A way's time to one call without a state, now and in the baseline."""

    case: str
    way: str
    status: str
    """`ok`, `regressed`, or `skipped`: not told."""
    reason: str
    now: Interval | None = None
    before: Interval | None = None
    allowed: float | None = None
    """What `now` may be at most of `before`."""
    p: float | None = None
    """Of the rank test."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """All that a gate found."""

    baseline: str
    """The file that was compared with."""
    checks: tuple[Check, ...]
    findings: tuple[Finding, ...]
    """Worst first."""
    ratios: tuple[Ratio, ...]
    notes: tuple[str, ...]
    """In what the run differs from what the baseline was made with."""
    passed: bool


def judge(
    results: Results,
    *,
    made_with: Mapping[str, Any],
    seed: int | None,
    threads: int | None,
    baseline: Baseline | str,
    file: str,
    ratios: Sequence[Ratio] | str,
) -> Gate:
    """Compare a run with a baseline.

    Args:
        results: The run.
        made_with: What it was made with, as a baseline holds it.
        seed: The seed of all cases; None where each had its own.
        threads: The threads of all cases; None where each had its own.
        baseline: What to compare with, or why there is nothing.
        file: The baseline's file, as messages show it.
        ratios: The speed rows, compared with the baseline, or why there are none.
    """
    failed = list(_failed(results))
    why_not = incomparable(baseline, made_with, seed=seed, threads=threads)
    gone: list[Finding] = []
    grown: list[Finding] = []
    lost: list[Finding] = []
    notes: tuple[str, ...] = ()
    bits_why_not = why_not
    if isinstance(baseline, Baseline) and why_not is None:
        notes = tuple(_notes(baseline.made_with, made_with))
        bits_why_not = _other_build(baseline.made_with, made_with)
        if not results.interrupted:
            gone = list(_gone(results, baseline))
        grown = list(_grown(results, baseline))
        lost = [] if bits_why_not else list(_bits_lost(results, baseline))
    slower = [
        Finding(
            kind="failed" if ratio.way == ALL else "slower",
            case=ratio.case,
            text=f"speed, {ratio.way.replace('_', ' ')}: {ratio.reason}",
            repro=results.repro_of_gate,
        )
        for ratio in ([] if isinstance(ratios, str) else ratios)
        if ratio.status == "regressed"
    ]
    findings = (*failed, *gone, *lost, *grown, *slower)
    return Gate(
        baseline=file,
        checks=(
            _check_cases(results, failed),
            _check("nothing is gone", gone, why_not),
            _check("bit-exactness", lost, bits_why_not),
            _check("errors", grown, why_not),
            _check_speed(ratios, slower),
        ),
        findings=findings,
        ratios=() if isinstance(ratios, str) else tuple(ratios),
        notes=notes,
        passed=results.passed and not results.interrupted and not findings,
    )


def incomparable(
    baseline: Baseline | str, made_with: Mapping[str, Any], *, seed: int | None, threads: int | None
) -> str | None:
    """Return why a run's cases cannot be compared with a baseline, or None."""
    if isinstance(baseline, str):
        return baseline
    for key, what in (("upstream", "upstream"), ("class", "machine class")):
        if baseline.made_with[key] != made_with[key]:
            return (
                f"the baseline is of {what} {baseline.made_with[key]}, this run of {made_with[key]}"
            )
    for name, theirs, ours in (
        ("seed", baseline.seed, seed),
        ("threads", baseline.threads, threads),
    ):
        if theirs != ours:
            return (
                f"the baseline is of {name} {_own(theirs)}, this run of {name} {_own(ours)}: other "
                "numbers, hence other errors"
            )
    return None


def _own(value: int | None) -> str:
    return "of each case's own" if value is None else str(value)


def _failed(results: Results) -> Iterator[Finding]:
    for verdict in results.verdicts:
        if verdict.status not in ("pass", "unsupported"):
            text = f"{verdict.status}: {explain(verdict)[0]}"
            yield _finding("failed", results, verdict, text)


def _gone(results: Results, baseline: Baseline) -> Iterator[Finding]:
    """Find what was compared for the baseline and now is not: cases, and comparisons of one."""
    verdicts = {str(verdict.case): verdict for verdict in results.verdicts}
    for case, before in baseline.cases.items():
        verdict = verdicts.get(case)
        if verdict is None:
            text = "the case of the baseline is not among those that ran"
            yield Finding(kind="gone", case=case, text=text, repro=results.repro_of_gate)
        elif verdict.status == "unsupported" and before.status == "pass":
            yield _finding("gone", results, verdict, f"unsupported now: {verdict.reason}")
        elif verdict.status == "pass":
            missing = [name for name in before.comparisons if name not in verdict.comparisons]
            if missing:
                words = ", ".join(name.replace("_", " ") for name in missing)
                yield _finding("gone", results, verdict, f"no longer compared: {words}")


def _bits_lost(results: Results, baseline: Baseline) -> Iterator[Finding]:
    for verdict, before in _passing(results, baseline):
        lost = [
            name
            for name in before.bits
            if name in verdict.comparisons and not verdict.comparisons[name].bitwise
        ]
        if lost:
            worst = max(lost, key=lambda name: verdict.comparisons[name].max_abs)
            text = (
                f"{', '.join(name.replace('_', ' ') for name in lost)}: had the same bits, now "
                f"differ by up to {verdict.comparisons[worst].max_abs:.2e}"
            )
            yield _finding("bits_lost", results, verdict, text)


def _grown(results: Results, baseline: Baseline) -> Iterator[Finding]:
    for verdict, before in _passing(results, baseline):
        grown = {
            name: share(verdict.comparisons[name])
            for name, was in before.of_bound.items()
            if name in verdict.comparisons and share(verdict.comparisons[name]) > allowed_share(was)
        }
        if grown:
            name = max(grown, key=lambda name: grown[name] / allowed_share(before.of_bound[name]))
            more = f"; so did {len(grown) - 1} other errors" if len(grown) > 1 else ""
            text = (
                f"{name.replace('_', ' ')}: takes {grown[name]:.1%} of its bound, was "
                f"{before.of_bound[name]:.1%}, may be {allowed_share(before.of_bound[name]):.1%}"
                f"{more}"
            )
            yield _finding("error_grew", results, verdict, text)


def allowed_share(before: float) -> float:
    """Return the share of its bound that an error may take which took `before`."""
    return GROWTH * before + FLOOR


def _passing(results: Results, baseline: Baseline) -> Iterator[tuple[Verdict, Expected]]:
    """Yield the cases that pass and are in the baseline: what fails is a finding already."""
    for verdict in results.verdicts:
        before = baseline.cases.get(str(verdict.case))
        if verdict.status == "pass" and before is not None:
            yield verdict, before


def _finding(kind: str, results: Results, verdict: Verdict, text: str) -> Finding:
    return Finding(kind=kind, case=str(verdict.case), text=text, repro=results.repro(verdict))


def _other_build(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return why the bits of two builds cannot be compared, or None.

    Whether two ways to compute a case that need not have the same bits have them nevertheless is
    up to the compiler: it may fuse a product and a sum in one and not in the other.
    """
    theirs, ours = before["build"], now["build"]
    if theirs == ours:
        return None
    changed = [key for key in sorted({*theirs, *ours}) if theirs.get(key) != ours.get(key)]
    return f"the baseline is of another build: {_changes(theirs, ours, changed)}"


def _notes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key in ("library", "ggml_version", "cpu"):
        if before.get(key) != now.get(key):
            yield f"{key.replace('_', ' ')}: of the baseline {before.get(key)}, here {now[key]}"
    theirs, ours = before.get("series", {}), now["series"]
    changed = [name for name in sorted({*theirs, *ours}) if theirs.get(name) != ours.get(name)]
    if changed:
        yield f"patches that differ from the baseline's: {', '.join(changed)}"


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], keys: Sequence[str]) -> str:
    return ", ".join(f"{key} {before.get(key)} (here {now.get(key)})" for key in keys)


def _check_cases(results: Results, failed: Sequence[Finding]) -> Check:
    n_pass, unsupported = results.count("pass"), results.count("unsupported")
    if failed:
        return Check(name="cases", status="regressed", reason=f"{len(failed)} do not pass")
    if results.interrupted or not results.passed:
        reason = "interrupted" if results.interrupted else "none passed"
        return Check(name="cases", status="regressed", reason=f"{reason}: {n_pass} passed")
    more = f", {unsupported} unsupported" if unsupported else ""
    return Check(name="cases", status="ok", reason=f"{n_pass} pass{more}")


def _check(name: str, findings: Sequence[Finding], why_not: str | None) -> Check:
    if why_not is not None:
        return Check(name=name, status="skipped", reason=why_not)
    if findings:
        return Check(name=name, status="regressed", reason=f"{len(findings)} cases")
    return Check(name=name, status="ok", reason="as in the baseline")


def _check_speed(ratios: Sequence[Ratio] | str, slower: Sequence[Finding]) -> Check:
    if isinstance(ratios, str):
        return Check(name="speed", status="skipped", reason=ratios)
    counts = {s: sum(ratio.status == s for ratio in ratios) for s in ("ok", "regressed", "skipped")}
    words = ", ".join(f"{n} {status}" for status, n in counts.items() if n)
    if slower:
        return Check(name="speed", status="regressed", reason=f"{words} of {len(ratios)} ratios")
    if counts["ok"] == 0:
        reasons = dict.fromkeys(ratio.reason for ratio in ratios)
        return Check(name="speed", status="skipped", reason="; ".join(reasons))
    return Check(name="speed", status="ok", reason=f"{words} of {len(ratios)} ratios")


# speed


def speed_incomparable(baseline: Baseline | str, cpu: str) -> str | None:
    """Return why no speed row can be compared with a baseline, or None."""
    if isinstance(baseline, str):
        return baseline
    if baseline.speed is None:
        return "the baseline has no speed"
    if baseline.speed.cpu != cpu:
        return f"the baseline's speed is of another CPU, {baseline.speed.cpu}; this is {cpu}"
    return None


def compare_speed(row: Row, before: Mapping[str, Sequence[float]], *, cores: int) -> list[Ratio]:
    """Compare a speed row with a baseline's.

    Args:
        row: What was measured.
        before: The baseline's ratios of this row; empty where it has none.
        cores: Usable cores.
    """
    case = str(row.case)
    if row.fault:
        return [Ratio(case=case, way=ALL, status="regressed", reason=f"ended: {row.fault}")]
    if row.case.threads > cores:
        reason = f"takes {row.case.threads} threads, there are {cores} cores"
        return [Ratio(case=case, way=way, status="skipped", reason=reason) for way in WAYS]
    history = {way: before.get(way, ()) for way in ("again", *WAYS)}
    return [_compare_way(case, way, row.ratios, history) for way in WAYS]


def _compare_way(
    case: str, way: str, now: Mapping[str, Sequence[float]], before: Mapping[str, Sequence[float]]
) -> Ratio:
    interval = _interval(now[way])
    n = min(len(before[way]), len(before["again"]))
    if n < MIN_HISTORY:
        reason = f"too little history: {n} processes in the baseline, {MIN_HISTORY} are needed"
        return Ratio(case=case, way=way, status="skipped", reason=reason, now=interval)
    own, own_before = _interval(now["again"]), _interval(before["again"])
    allowed = EFFECT * max(reach(own), reach(own_before))
    p = p_greater(now[way], [ratio * allowed for ratio in before[way]])
    then = _interval(before[way])
    change = interval.median / then.median
    noisiest = max((own, own_before, interval, then), key=lambda each: each.width)
    if p < LEVEL:
        status = "regressed"
        reason = (
            f"takes {interval.median:.3f} of one call without a state, was {then.median:.3f}: "
            f"{change - 1:+.1%}, allowed {allowed - 1:+.1%} (p = {p:.1g})"
        )
    elif noisiest.width > EFFECT - 1:
        where = {
            id(own): "one call compared with itself",
            id(own_before): "one call compared with itself, when the baseline was made,",
            id(interval): "the ratio",
            id(then): "the baseline's ratio",
        }[id(noisiest)]
        status = "skipped"
        reason = (
            f"too noisy: {where} is known to {noisiest.width:.0%} only; the machine does something "
            "else, too"
        )
    else:
        status, reason = "ok", f"{change - 1:+.1%}, allowed {allowed - 1:+.1%}"
    return Ratio(
        case=case, way=way, status=status, reason=reason, now=interval, before=then,
        allowed=allowed, p=p,
    )  # fmt: skip


def _interval(ratios: Sequence[float]) -> Interval:
    return median_interval(np.asarray(ratios))


def confirmed(first: Sequence[Ratio], again: Sequence[Ratio]) -> list[Ratio]:
    """Return what two measurements of a row tell: slower is what is slower in both.

    A process that died in either of them is no noise.
    """
    died = [ratio for ratio in (*first, *again) if ratio.way == ALL]
    if died:
        return died[:1]
    return [b if a.status == "regressed" else a for a, b in zip(first, again, strict=True)]


# a new baseline


def new_baseline(
    results: Results,
    *,
    made_with: Mapping[str, Any],
    seed: int | None,
    threads: int | None,
    speed: Speed | None,
) -> Baseline:
    """Return the baseline of a run."""
    return Baseline(
        made_with=made_with,
        seed=seed,
        threads=threads,
        cases={str(verdict.case): expected(verdict) for verdict in results.verdicts},
        speed=speed,
    )


def speed_of(rows: Sequence[Row], *, cpu: str) -> Speed:
    """Return the speed of a baseline.

    Args:
        rows: All rows; one that could not be measured is left out.
        cpu: The processor.
    """
    measured = {str(row.case): row.ratios for row in rows if not row.fault}
    return Speed(
        cpu=cpu,
        rows={case: {way: of[way] for way in ("again", *WAYS)} for case, of in measured.items()},
    )


def changes(old: Baseline | None, new: Baseline) -> list[str]:
    """Return in words what a new baseline has otherwise than the old, a line each."""
    if old is None:
        return [f"new: {len(new.cases)} cases"]
    lines = list(_notes(old.made_with, new.made_with))
    lines += [f"gone: {case}" for case in old.cases if case not in new.cases]
    for case, now in new.cases.items():
        was = old.cases.get(case)
        if was is None:
            lines.append(f"added: {case}")
        elif was != now:
            lines += [f"{change}: {case}" for change in _case_changes(was, now)]
    return lines + _speed_changes(old.speed, new.speed)


def _case_changes(was: Expected, now: Expected) -> Iterator[str]:
    if was.status != now.status:
        yield f"{was.status} -> {now.status}"
    for what, names in (
        ("compared no longer", set(was.comparisons) - set(now.comparisons)),
        ("compared now", set(now.comparisons) - set(was.comparisons)),
        ("bit-exactness lost", set(was.bits) & set(now.bound)),
        ("bit-exactness gained", set(was.bound) & set(now.bits)),
    ):
        if names:
            yield f"{what}, {', '.join(sorted(names))}"
    for name, share_now in now.of_bound.items():
        share_was = was.of_bound.get(name, share_now)
        if share_was != share_now:
            yield f"{name} {share_was:.3g} -> {share_now:.3g} of its bound"


def _speed_changes(old: Speed | None, new: Speed | None) -> list[str]:
    if new is None or new is old:
        return []
    if old is None or old.cpu != new.cpu:
        return [f"speed: of {new.cpu}" + (f", was of {old.cpu}" if old else "")]
    lines = []
    for case, ways in new.rows.items():
        for way in WAYS:
            was = old.rows.get(case, {}).get(way, ())
            before = f"{_interval(was).median:.3f}" if was else "nothing"
            if before != (after := f"{_interval(ways[way]).median:.3f}"):
                lines.append(f"speed of {way} {before} -> {after}: {case}")
    return lines
