"""Judge a run and its speed rows against a baseline. Pure functions, no I/O.

Five checks can stop a patch. A check that cannot be made is `skipped`, with a reason. It never
counts as `ok`, and the verdict says how many checks were made.

**error_grew.** The measure is the worst error of a case as a share of its bound. The same library,
machine class, seed and threads give the same bits, so the same share. A change that only reorders
operations draws the same roundings again. The largest of some hundred to a thousand errors of equal
size then differs by 10 to 20 %, and by half at most. A lost bit doubles it. So a share may be 1.5
times the baseline's plus a hundredth of the bound. The hundredth is for shares of nearly nothing.

**slower.** The measure is the ratio of a way's time to one call without a state, in the same
process and round. The rounds of one process share its places in memory, so they are one sample, not
many. Each process gives one number, the median of its rounds. A rank test (Mann-Whitney, one-sided)
compares the numbers of several processes with the baseline's: a busy neighbour can spoil a mean,
but not the ranks. A program on the core's other thread shifts all ratios of a measurement, and
standard compared with itself does not show that. So the test asks whether a ratio is above `EFFECT`
times the baseline's, times the noise: how far standard compared with itself reaches from 1 in
either measurement. A ratio above that is measured again with twice the processes, and counts only
if it is above again. Each test errs with a probability of at most `LEVEL`, beyond the drift that
`EFFECT` allows. `fa-harness bench`, whose limits are of one run, finds smaller losses. An interval
wider than `EFFECT` could hide such a loss, so its check is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fa_harness.engine.session import Results
from fa_harness.judge.verdict import Verdict
from fa_harness.report.results import explain
from fa_harness.speed.baseline import Baseline, CaseRecord, NoBaseline, Speed, record, share
from fa_harness.speed.bench import Interval, median_interval, reach
from fa_harness.speed.ranks import p_greater
from fa_harness.speed.rows import WAYS, SpeedRow

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

OF_BASELINE = ("nothing is gone", "bit-exactness", "errors")
"""The checks that compare cases with a baseline."""


@dataclass(frozen=True, kw_only=True)
class Regression:
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
class GateCheck:
    """One of the checks of a gate."""

    name: str
    status: str
    """`ok`, `regressed` or `skipped`."""
    reason: str
    not_checked: str
    """What of it was not checked, such as `2 of 10 ratios`; `all` where it is skipped."""


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
    """The file that was compared with, or looked for."""
    without_baseline: str
    """Why the run was compared with no baseline, and what to do; empty where it was compared."""
    checks: tuple[GateCheck, ...]
    findings: tuple[Regression, ...]
    """Worst first."""
    ratios: tuple[Ratio, ...]
    notes: tuple[str, ...]
    """In what the run differs from what the baseline was made with."""
    strict: bool
    """Whether a check that was not made fails the gate."""
    passed: bool

    @property
    def n_made(self) -> int:
        """How many checks were made, at least in part."""
        return sum(check.status != "skipped" for check in self.checks)

    @property
    def not_checked(self) -> tuple[str, ...]:
        """The checks that were not made, and the parts that are missing of the others."""
        return tuple(
            check.name if check.status == "skipped" else f"{check.name} ({check.not_checked})"
            for check in self.checks
            if check.not_checked
        )

    @property
    def is_mostly_unchecked(self) -> bool:
        """Whether most checks were not made: such a gate that passes says little."""
        return 2 * self.n_made < len(self.checks)

    @property
    def coverage(self) -> str:
        """How much was checked: `4 of 5 checks made; not checked: speed`."""
        missing = f"; not checked: {', '.join(self.not_checked)}" if self.not_checked else ""
        return f"{self.n_made} of {len(self.checks)} checks made{missing}"

    @property
    def verdict(self) -> str:
        """The verdict in a line: `pass, 4 of 5 checks made; not checked: speed`."""
        n = len(self.findings)
        words = "pass" if self.passed else "fail"
        if n:
            words += f", {n} finding{'s' * (n != 1)}"
        elif self.strict and self.not_checked:
            words += " (--strict)"
        return f"{words}, {self.coverage}"


_Checked = tuple[GateCheck, Sequence[Regression]]
"""A check, and what it found."""


def judge(
    results: Results,
    *,
    made_with: Mapping[str, Any],
    seed: int | None,
    threads: int | None,
    baseline: Baseline | NoBaseline,
    file: str,
    ratios: Sequence[Ratio] | str,
    strict: bool = False,
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
        strict: Fail where something was not checked.
    """
    failed = list(_failed(results))
    if isinstance(baseline, Baseline):
        nothing = incomparable(baseline, made_with, seed=seed, threads=threads)
    else:
        nothing = baseline
    notes: tuple[str, ...] = ()
    if isinstance(baseline, Baseline) and nothing is None:
        notes = tuple(_notes(baseline.made_with, made_with))
        of_baseline = [
            _check_gone(results, baseline),
            _check_bits(results, baseline, made_with),
            _check_errors(results, baseline),
        ]
    else:
        assert nothing is not None
        of_baseline = [_skipped(name, nothing.reason) for name in OF_BASELINE]
    slower = [
        Regression(
            kind="failed" if ratio.way == ALL else "slower",
            case=ratio.case,
            text=f"speed, {ratio.way.replace('_', ' ')}: {ratio.reason}",
            repro=results.command("gate"),
        )
        for ratio in ([] if isinstance(ratios, str) else ratios)
        if ratio.status == "regressed"
    ]
    checks = (
        _check_cases(results, failed),
        *(check for check, _ in of_baseline),
        _check_speed(ratios, slower),
    )
    findings = (*failed, *(found for _, some in of_baseline for found in some), *slower)
    is_complete = not any(check.not_checked for check in checks)
    return Gate(
        baseline=file,
        without_baseline="" if nothing is None else nothing.text,
        checks=checks,
        findings=findings,
        ratios=() if isinstance(ratios, str) else tuple(ratios),
        notes=notes,
        strict=strict,
        passed=(
            results.passed
            and not results.interrupted
            and not findings
            and (is_complete or not strict)
        ),
    )


def incomparable(
    baseline: Baseline, made_with: Mapping[str, Any], *, seed: int | None, threads: int | None
) -> NoBaseline | None:
    """Return why a run's cases cannot be compared with a baseline, or None."""
    for key, what in (("upstream", "upstream"), ("class", "machine class")):
        theirs, ours = baseline.made_with[key], made_with[key]
        if theirs != ours:
            reason = f"the baseline is of {what} {theirs}, this run of {ours}"
            return NoBaseline(reason=reason, text=f"{reason}; name another file with --baseline")
    for name, theirs, ours in (
        ("seed", baseline.seed, seed),
        ("threads", baseline.threads, threads),
    ):
        if theirs != ours:
            reason = (
                f"the baseline is of {name} {_own(theirs)}, this run of {name} {_own(ours)}: other "
                "numbers, so other errors"
            )
            advice = f"leave --{name} out" if theirs is None else f"give --{name} {theirs}"
            return NoBaseline(reason=reason, text=f"{reason}; {advice}")
    return None


def _own(value: int | None) -> str:
    return "of each case's own" if value is None else str(value)


def _failed(results: Results) -> Iterator[Regression]:
    for verdict in results.verdicts:
        if verdict.status not in ("pass", "unsupported"):
            text = f"{verdict.status}: {explain(verdict)[0]}"
            yield _regression("failed", results, verdict, text)


def _check_gone(results: Results, baseline: Baseline) -> _Checked:
    """Find what was compared for the baseline and now is not: cases, and comparisons of one."""
    name = "nothing is gone"
    if results.interrupted:
        return _skipped(name, "interrupted: which cases are gone is not known")
    verdicts = {str(verdict.case): verdict for verdict in results.verdicts}
    found = []
    for case, before in baseline.cases.items():
        verdict = verdicts.get(case)
        if verdict is None:
            text = "the case of the baseline is not among those that ran"
            found.append(
                Regression(kind="gone", case=case, text=text, repro=results.command("gate"))
            )
        elif verdict.status == "unsupported" and before.status == "pass":
            found.append(_regression("gone", results, verdict, f"unsupported: {verdict.reason}"))
        elif verdict.status == "pass":
            missing = [name for name in before.comparisons if name not in verdict.comparisons]
            if missing:
                words = ", ".join(name.replace("_", " ") for name in missing)
                found.append(_regression("gone", results, verdict, f"no longer compared: {words}"))
    n_known = len(baseline.cases) - sum(
        verdicts[case].status not in ("pass", before.status)
        for case, before in baseline.cases.items()
        if case in verdicts
    )
    return _check(name, found, of=(n_known, len(baseline.cases)))


def _check_bits(results: Results, baseline: Baseline, made_with: Mapping[str, Any]) -> _Checked:
    name = "bit-exactness"
    other_build = _other_build(baseline.made_with, made_with)
    if other_build is not None:
        return _skipped(name, other_build)
    found, n_compared = [], 0
    for verdict, before in _passing(results, baseline):
        known = [each for each in before.bits if each in verdict.comparisons]
        n_compared += bool(known)
        lost = [each for each in known if not verdict.comparisons[each].bitwise]
        if lost:
            worst = max(lost, key=lambda each: verdict.comparisons[each].max_abs)
            text = (
                f"{', '.join(each.replace('_', ' ') for each in lost)}: had the same bits, now "
                f"differ by up to {verdict.comparisons[worst].max_abs:.2e}"
            )
            found.append(_regression("bits_lost", results, verdict, text))
    return _check(name, found, of=(n_compared, results.selected))


def _check_errors(results: Results, baseline: Baseline) -> _Checked:
    found, n_compared = [], 0
    for verdict, before in _passing(results, baseline):
        shares = {
            name: share(verdict.comparisons[name])
            for name in before.of_bound
            if name in verdict.comparisons
        }
        n_compared += bool(shares)
        allowed = {name: allowed_share(before.of_bound[name]) for name in shares}
        grown = [name for name in shares if shares[name] > allowed[name]]
        if grown:
            name = max(grown, key=lambda name: shares[name] / allowed[name])
            more = f"; so did {len(grown) - 1} other errors" if len(grown) > 1 else ""
            text = (
                f"{name.replace('_', ' ')}: takes {shares[name]:.1%} of its bound, was "
                f"{before.of_bound[name]:.1%}, may be {allowed[name]:.1%}{more}"
            )
            found.append(_regression("error_grew", results, verdict, text))
    return _check("errors", found, of=(n_compared, results.selected))


def allowed_share(before: float) -> float:
    """Return the share of its bound that an error may take which took `before`."""
    return GROWTH * before + FLOOR


def _passing(results: Results, baseline: Baseline) -> Iterator[tuple[Verdict, CaseRecord]]:
    """Yield the cases that pass and are in the baseline: what fails is a finding already."""
    for verdict in results.verdicts:
        before = baseline.cases.get(str(verdict.case))
        if verdict.status == "pass" and before is not None:
            yield verdict, before


def _regression(kind: str, results: Results, verdict: Verdict, text: str) -> Regression:
    return Regression(kind=kind, case=str(verdict.case), text=text, repro=results.repro_of(verdict))


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


def _check_cases(results: Results, failed: Sequence[Regression]) -> GateCheck:
    n_pass, unsupported = results.count("pass"), results.count("unsupported")
    n_unknown = results.selected - len(results.verdicts) + unsupported
    if failed:
        status, reason = "regressed", f"{len(failed)} do not pass"
    elif results.interrupted or not results.passed:
        status = "regressed"
        reason = f"{'interrupted' if results.interrupted else 'none passed'}: {n_pass} passed"
    else:
        status = "ok"
        reason = f"{n_pass} pass" + (f", {unsupported} unsupported" if unsupported else "")
    return GateCheck(
        name="cases",
        status=status,
        reason=reason,
        not_checked=f"{n_unknown} of {results.selected} cases" if n_unknown else "",
    )


def _check(name: str, found: Sequence[Regression], *, of: tuple[int, int]) -> _Checked:
    """Return a check of `of[0]` of `of[1]` cases and what it found."""
    n_compared, n_case = of
    if found:
        status, reason = "regressed", f"{len(found)} cases"
    elif n_compared:
        status, reason = "ok", f"as in the baseline, {n_compared} of {n_case} cases"
    else:
        return _skipped(name, "no case that passed has such a comparison in the baseline")
    left = n_case - n_compared
    not_checked = f"{left} of {n_case} cases" if left > 0 else ""
    return GateCheck(name=name, status=status, reason=reason, not_checked=not_checked), found


def _skipped(name: str, reason: str) -> _Checked:
    return GateCheck(name=name, status="skipped", reason=reason, not_checked="all"), ()


def _check_speed(ratios: Sequence[Ratio] | str, slower: Sequence[Regression]) -> GateCheck:
    if isinstance(ratios, str):
        return _skipped("speed", ratios)[0]
    counts = {s: sum(ratio.status == s for ratio in ratios) for s in ("ok", "regressed", "skipped")}
    if not slower and counts["ok"] == 0:
        reasons = dict.fromkeys(ratio.reason for ratio in ratios)
        return _skipped("speed", "; ".join(reasons))[0]
    words = ", ".join(f"{n} {status}" for status, n in counts.items() if n)
    return GateCheck(
        name="speed",
        status="regressed" if slower else "ok",
        reason=f"{words} of {len(ratios)} ratios",
        not_checked=f"{counts['skipped']} of {len(ratios)} ratios" if counts["skipped"] else "",
    )


# speed


def speed_incomparable(baseline: Baseline | NoBaseline, cpu: str) -> str | None:
    """Return why no speed row can be compared with a baseline, or None."""
    if isinstance(baseline, NoBaseline):
        return baseline.reason
    if baseline.speed is None:
        return "the baseline has no speed"
    if baseline.speed.cpu != cpu:
        return f"the baseline's speed is of another CPU, {baseline.speed.cpu}; this is {cpu}"
    return None


def compare_speed(
    row: SpeedRow, before: Mapping[str, Sequence[float]], *, cores: int
) -> list[Ratio]:
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
        cases={str(verdict.case): record(verdict) for verdict in results.verdicts},
        speed=speed,
    )


def speed_of(rows: Sequence[SpeedRow], *, cpu: str) -> Speed:
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


def _case_changes(was: CaseRecord, now: CaseRecord) -> Iterator[str]:
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
