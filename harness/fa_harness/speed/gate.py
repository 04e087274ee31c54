"""Judge a run and its speed rows against a baseline. Pure functions, no I/O.

Eight checks can stop a patch. A check that cannot be made is `skipped`, with a reason. It never
counts as `ok`, and the verdict says how many checks were made.

**error_grew.** The measure is the worst error of a case as a share of its bound. The same library,
machine class, seed and threads give the same bits, so the same share. A change that only reorders
operations draws the same roundings again. The largest of some hundred to a thousand errors of equal
size then differs by 10 to 20 %, and by half at most. A lost bit doubles it. So a share may be 1.5
times the baseline's plus a hundredth of the bound. The hundredth is for shares of nearly nothing.

**bits of one call.** Where a call without a state had the bits of a library without the patch, it
has to have them still. A bound leaves room for what a patch must not change: an accumulator of
another type, or other roundings that happen to be smaller.

**slower** is in `ratios.py`, and `instructions.py` says how far instructions may grow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fa_harness.case import design
from fa_harness.case.case import Case
from fa_harness.case.label import label
from fa_harness.engine.session import Results, is_good
from fa_harness.judge.compare import Comparison
from fa_harness.judge.verdict import STATUSES, Verdict
from fa_harness.judge.words import explain
from fa_harness.speed.baseline import Baseline, CaseRecord, NoBaseline, share
from fa_harness.speed.instructions import Count
from fa_harness.speed.ratios import ALL, Ratio
from fa_harness.terminal import number_of

GROWTH = 1.5
FLOOR = 0.01

KINDS = {
    "failed": "failed",
    "gone": "gone",
    "bits_lost": "bit-exactness lost",
    "error_grew": "error grew",
    "slower": "slower",
    "more_instructions": "more instructions",
}
"""What stops a patch, worst first, in words."""


@dataclass(frozen=True, kw_only=True)
class Regression:
    """One thing that stops a patch."""

    kind: str  # one of `KINDS`
    case: str  # case string
    text: str  # what is wrong
    repro: str  # the command that shows it again


@dataclass(frozen=True, kw_only=True)
class GateCheck:
    """One of the checks of a gate."""

    name: str
    status: str  # `ok`, `regressed` or `skipped`
    reason: str
    not_checked: str  # the part that was not, such as `2 of 10 ratios`; `all` if skipped


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured beside the cases; a text says why there is nothing."""

    speed: Sequence[Ratio] | str  # of the ways with a state, to the baseline
    one_call: Sequence[Ratio] | str  # to another library
    instructions: Sequence[Count] | str

    @classmethod
    def nothing(cls, reason: str) -> Measured:
        """Return that nothing was measured."""
        return cls(speed=reason, one_call=reason, instructions=reason)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """All that a gate found."""

    baseline: str  # the baseline's file, which need not exist
    without_baseline: str  # why there was none, and what to do; else empty
    checks: tuple[GateCheck, ...]
    findings: tuple[Regression, ...]  # worst first
    ratios: tuple[Ratio, ...]
    counts: tuple[Count, ...]
    notes: tuple[str, ...]  # how the run's setting differs from the baseline's
    unsupported: tuple[str, ...]  # why cases were not computed, a line a reason
    selected: int  # how many cases were to run
    part: str  # which of the gate's cases were chosen, as options; empty for all
    statuses: Mapping[str, tuple[int, int | None]]
    """By status, how many of the cases have it, and had it in the baseline: None without one."""
    strict: bool  # whether a check that was not made fails the gate
    passed: bool

    @property
    def n_made(self) -> int:
        """How many checks were made, at least in part."""
        return sum(check.status != "skipped" for check in self.checks)

    @property
    def not_checked(self) -> tuple[str, ...]:
        """The checks that were not made, and the missing parts of the others."""
        return tuple(
            check.name if check.status == "skipped" else f"{check.name} ({check.not_checked})"
            for check in self.checks
            if check.not_checked
        )

    @property
    def is_mostly_unchecked(self) -> bool:
        """Whether most checks were not made: if such a gate passes, that says little."""
        return 2 * self.n_made < len(self.checks)

    @property
    def verdict(self) -> str:
        """The verdict in a line.

        Such as `pass, 169 cases: 168 pass, 1 unsupported; 4 of 5 checks made; not checked: speed`.
        """
        n = len(self.findings)
        words = "pass" if self.passed else "fail"
        if n:
            words += f", {n} finding{'s' * (n != 1)}"
        elif self.strict and self.not_checked:
            words += " (--strict)"
        counts = {status: now for status, (now, _) in self.statuses.items() if now}
        ran = sum(counts.values())
        cases = number_of(self.selected, "case")
        words += f", {cases}" if ran == self.selected else f", {ran} of {cases}"
        words += f" of {self.part}" if self.part else ""
        words += f": {', '.join(f'{n} {status}' for status, n in counts.items()) or 'none ran'}"
        words += f"; {self.n_made} of {len(self.checks)} checks made"
        return words + (f"; not checked: {', '.join(self.not_checked)}" if self.not_checked else "")


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
    bits: Mapping[Case, bytes] | str,
    measured: Measured,
    strict: bool = False,
    part: str = "",
    update: bool = False,
) -> Gate:
    """Compare a run with a baseline, or say why there is nothing to compare with.

    `seed` and `threads` are those of all cases; None where each had its own. `file` is the
    baseline's, as messages show it. `bits` are the digests of another library's calls, as
    `Verdict.standard` has ours, or why there are none. If `strict`, what was not checked fails the
    gate. `part` says which cases were chosen, if not all; the baseline has then no others, either
    (`part_of`). With `update` the run becomes the baseline.
    """
    bad = failing(results, baseline, update=update)
    checked = [_check_cases(results, bad)]
    notes: tuple[str, ...] = ()
    nothing = _incomparable(baseline, made_with, seed=seed, threads=threads)
    if nothing is None:
        assert isinstance(baseline, Baseline)
        checked.append(_check_gone(results, baseline))
        checked.append(_check_bits(results, baseline, made_with))
        checked.append(_check_bits_of_one_call(results, baseline, made_with, bits))
        checked.append(
            _check_each(
                "errors",
                "error_grew",
                lambda v, was: _grown_error(v.comparisons, was),
                results,
                baseline,
            )
        )
        notes = tuple(differences(baseline.made_with, made_with))
    else:
        names = ("nothing is gone", "bit-exactness", "bits of one call", "errors")
        checked += [_skipped(name, nothing.reason) for name in names]
    checked.append(_check_measured("speed", measured.speed, results))
    checked.append(_check_measured("speed of one call", measured.one_call, results))
    checked.append(_check_measured("instructions", measured.instructions, results))
    checks = tuple(check for check, _ in checked)
    findings = tuple(finding for _, found in checked for finding in found)
    is_complete = not any(check.not_checked for check in checks)
    is_well = _is_whole(results, bad) and not results.stopped and not findings
    return Gate(
        baseline=file,
        without_baseline="" if nothing is None else nothing.text,
        checks=checks,
        findings=findings,
        ratios=tuple(
            ratio
            for ratios in (measured.speed, measured.one_call)
            if not isinstance(ratios, str)
            for ratio in ratios
        ),
        counts=(() if isinstance(measured.instructions, str) else tuple(measured.instructions)),
        notes=notes,
        unsupported=tuple(_unsupported(results, baseline)),
        selected=results.selected,
        part=part,
        statuses=_statuses(results, None if nothing else baseline),
        strict=strict,
        passed=is_well and (is_complete or not strict),
    )


def _incomparable(
    baseline: Baseline | NoBaseline,
    made_with: Mapping[str, Any],
    *,
    seed: int | None,
    threads: int | None,
) -> NoBaseline | None:
    """Return why a run's cases cannot be compared with a baseline, or None."""
    if isinstance(baseline, NoBaseline):
        return baseline
    for key, what in (("upstream", "upstream"), ("class", "machine class")):
        theirs, ours = baseline.made_with[key], made_with[key]
        if theirs != ours:
            reason = f"the baseline is of {what} {theirs}, this run of {ours}"
            return NoBaseline(reason=reason, text=f"{reason}; name another file with --baseline")
    for name, was, now in (("seed", baseline.seed, seed), ("threads", baseline.threads, threads)):
        if was != now:
            theirs, ours = ("of each case's own" if n is None else n for n in (was, now))
            reason = (
                f"the baseline is of {name} {theirs}, this run of {name} {ours}: other numbers, so "
                "other errors"
            )
            advice = f"leave --{name} out" if was is None else f"give --{name} {was}"
            return NoBaseline(reason=reason, text=f"{reason}; {advice}")
    return None


def _check_gone(results: Results, baseline: Baseline) -> _Checked:
    """Find cases and comparisons that the baseline has and the run has not."""
    name = "nothing is gone"
    if results.stopped:
        return _skipped(name, f"{results.stopped}: which cases are gone is not known")
    verdicts = {str(verdict.case): verdict for verdict in results.verdicts}
    found, n_known = [], 0
    for case, before in baseline.cases.items():
        verdict, text, repro = verdicts.get(case), "", results.command("gate")
        n_known += verdict is None or verdict.status in ("pass", before.status)
        if verdict is None:
            text = "the case of the baseline is not among those that ran"
        else:
            repro = results.repro(verdict.case)
            missing = [name for name in before.comparisons if name not in verdict.comparisons]
            if verdict.status == "unsupported" and before.status != "unsupported":
                text = f"unsupported: {verdict.reason}"
            elif verdict.status == "pass" and missing:
                text = f"no longer compared: {_in_words(missing)}"
        if text:
            found.append(Regression(kind="gone", case=case, text=text, repro=repro))
    return _check(name, found, n_known, len(baseline.cases))


def _check_bits(results: Results, baseline: Baseline, made_with: Mapping[str, Any]) -> _Checked:
    """Find bits that were the same and no longer are.

    Only the same build can tell. Some comparisons need not be bit for bit; the compiler decides
    whether they are, since it may fuse a product and a sum in one of the two and not in the other.
    """
    name = "bit-exactness"
    if other_build := _other_build(baseline, made_with):
        return _skipped(name, other_build)
    return _check_each(
        name,
        "bits_lost",
        lambda verdict, was: _lost_bits(verdict.comparisons, was),
        results,
        baseline,
    )


def _other_build(baseline: Baseline, made_with: Mapping[str, Any]) -> str:
    """Return how the baseline's build differs; empty if it is the same."""
    theirs, ours = baseline.made_with["build"], made_with["build"]
    changed = _changed(theirs, ours)
    words = ", ".join(f"{key} {theirs.get(key)} (here {ours.get(key)})" for key in changed)
    return f"the baseline is of another build: {words}" if changed else ""


def _check_bits_of_one_call(
    results: Results,
    baseline: Baseline,
    made_with: Mapping[str, Any],
    bits: Mapping[Case, bytes] | str,
) -> _Checked:
    """Find calls without a state that gave another library's bits and no longer do.

    A bound allows for any order of the sums. A call that has always had the bits of a library
    without the patch, and has others now, was changed, however small its error is.
    """
    name = "bits of one call"
    theirs, ours = baseline.made_with.get("against"), made_with["against"]
    if isinstance(bits, str):
        return _skipped(name, bits)
    if theirs != ours:
        return _skipped(name, f"the baseline has those of {theirs or 'no library'}, not of {ours}")
    if other_build := _other_build(baseline, made_with):
        return _skipped(name, other_build)

    def look(verdict: Verdict, before: CaseRecord) -> str | None:
        now = as_other(verdict, bits)
        if not before.as_other or now is None:
            return None
        return "" if now else f"one call: had the bits of {ours}, now has others"

    return _check_each(name, "bits_lost", look, results, baseline)


def as_other(verdict: Verdict, bits: Mapping[Case, bytes] | str) -> bool | None:
    """Tell whether one call gave the bits of another library; None if that is not known."""
    theirs = b"" if isinstance(bits, str) else bits.get(verdict.case, b"")
    return verdict.standard == theirs if verdict.standard and theirs else None


def _check_each(
    name: str,
    kind: str,
    look: Callable[[Verdict, CaseRecord], str | None],
    results: Results,
    baseline: Baseline,
) -> _Checked:
    """Compare each case that passes with the baseline: what fails is a finding already.

    `look` returns what is wrong, nothing if all is well, and None if there is nothing to compare.
    """
    found, n_compared = [], 0
    for verdict in results.verdicts:
        before = baseline.cases.get(str(verdict.case))
        if verdict.status != "pass" or before is None:
            continue
        text = look(verdict, before)
        n_compared += text is not None
        if text:
            found.append(_regression(kind, results, verdict, text))
    return _check(name, found, n_compared, results.selected)


def _lost_bits(now: Mapping[str, Comparison], before: CaseRecord) -> str | None:
    known = [name for name in before.bits if name in now]
    lost = [name for name in known if not now[name].bitwise]
    if not lost:
        return "" if known else None
    worst = max(now[name].max_abs for name in lost)
    return f"{_in_words(lost)}: had the same bits, now differ by up to {worst:.2e}"


def _grown_error(now: Mapping[str, Comparison], before: CaseRecord) -> str | None:
    shares = {name: share(now[name]) for name in before.of_bound if name in now}
    allowed = {name: GROWTH * before.of_bound[name] + FLOOR for name in shares}
    grown = [name for name in shares if shares[name] > allowed[name]]
    if not grown:
        return "" if shares else None
    name = max(grown, key=lambda name: shares[name] / allowed[name])
    more = f"; so did {len(grown) - 1} other errors" if len(grown) > 1 else ""
    return (
        f"{_in_words([name])}: takes {shares[name]:.1%} of its bound, was "
        f"{before.of_bound[name]:.1%}, may be {allowed[name]:.1%}; worst in {now[name].place}{more}"
    )


def _in_words(names: Sequence[str]) -> str:
    return ", ".join(names).replace("_", " ")


def _regression(kind: str, results: Results, verdict: Verdict, text: str) -> Regression:
    return Regression(
        kind=kind, case=str(verdict.case), text=text, repro=results.repro(verdict.case)
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield how the setting of one run differs from that of an earlier one, a line each."""
    for key in ("library", "ggml_version", "cpu"):
        if before.get(key) != now.get(key):
            yield f"{key.replace('_', ' ')}: of the baseline {before.get(key)}, here {now[key]}"
    changed = _changed(before.get("series", {}), now["series"])
    if changed:
        yield f"patches that differ from the baseline's: {', '.join(changed)}"


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]


def part_of(
    baseline: Baseline | NoBaseline, is_chosen: Callable[[Case], bool]
) -> Baseline | NoBaseline:
    """Return a baseline without the cases that are not chosen."""
    if isinstance(baseline, NoBaseline):
        return baseline
    cases = {case: kept for case, kept in baseline.cases.items() if is_chosen(Case.parse(case))}
    return replace(baseline, cases=cases)


def _statuses(
    results: Results, baseline: Baseline | NoBaseline | None
) -> dict[str, tuple[int, int | None]]:
    before = None
    if isinstance(baseline, Baseline):
        before = Counter(record.status for record in baseline.cases.values())
    return {
        status: (results.count(status), None if before is None else before[status])
        for status in STATUSES
    }


def _unsupported(results: Results, baseline: Baseline | NoBaseline) -> Iterator[str]:
    """Yield each reason for which cases are unsupported: they must not drop out unseen.

    Those that the baseline has as something else are findings.
    """
    before = baseline.cases if isinstance(baseline, Baseline) else {}
    by_reason: dict[str, list[Verdict]] = {}
    for verdict in results.verdicts:
        if verdict.status == "unsupported":
            by_reason.setdefault(verdict.reason, []).append(verdict)
    for reason, verdicts in by_reason.items():
        known = sum(str(verdict.case) in before for verdict in verdicts)
        since = f", {known} of them in the baseline" if known else ""
        yield (f"{len(verdicts)} unsupported{since}: {reason}; such as {label(verdicts[0].case)}")


def failing(
    results: Results, baseline: Baseline | NoBaseline, *, update: bool = False
) -> list[Verdict]:
    """Return the verdicts that fail a gate.

    A case that says nothing of a library is mistrusted. Where the baseline has it so, too, or is to
    have it, it is counted and fails nothing: with another path of the kernel it may say something.
    """
    before = baseline.cases if isinstance(baseline, Baseline) else {}

    def is_known(verdict: Verdict) -> bool:
        record = before.get(str(verdict.case))
        return update or (record is not None and record.status == "mistrusted")

    return [
        verdict
        for verdict in results.verdicts
        if not is_good(verdict.status)
        and not (verdict.status == "mistrusted" and is_known(verdict))
    ]


def _is_whole(results: Results, bad: Sequence[Verdict]) -> bool:
    """Tell whether all cases ran, none failed and one passed."""
    return len(results.verdicts) == results.selected and not bad and results.count("pass") > 0


def _check_cases(results: Results, bad: Sequence[Verdict]) -> _Checked:
    found = [
        _regression("failed", results, verdict, f"{verdict.status}: {explain(verdict)[0]}")
        for verdict in bad
    ]
    n_pass, unsupported = results.count("pass"), results.count("unsupported")
    mistrusted = results.count("mistrusted") - sum(v.status == "mistrusted" for v in bad)
    n_unknown = results.selected - len(results.verdicts) + unsupported + mistrusted
    if found:
        status, reason = "regressed", f"{len(found)} do not pass"
        reason += f"; {results.stopped}" if results.stopped else ""
    elif results.stopped or not _is_whole(results, bad):
        status, reason = "regressed", f"{results.stopped or 'none passed'}: {n_pass} passed"
    else:
        status = "ok"
        reason = f"{n_pass} pass" + (f", {unsupported} unsupported" if unsupported else "")
        reason += f", {mistrusted} mistrusted" if mistrusted else ""
        reason += _covered(results)
    not_checked = f"{n_unknown} of {results.selected} cases" if n_unknown else ""
    return GateCheck(name="cases", status=status, reason=reason, not_checked=not_checked), found


def _covered(results: Results) -> str:
    """Return how much of the design the cases that pass cover, if they are of it."""
    found = design.covered(v.case for v in results.verdicts if v.status == "pass")
    if not found.pairs:
        return ""
    if (found.pairs, found.triples) == (found.of_pairs, found.of_triples):
        return f"; all {found.pairs:,} pairs, {found.triples:,} triples meet"
    return f"; {found.pairs:,} of {found.of_pairs:,} pairs of values meet"


def _check(name: str, found: Sequence[Regression], n_compared: int, n_case: int) -> _Checked:
    """Return a check that compared some of the cases, and what it found."""
    if found:
        status, reason = "regressed", f"{len(found)} cases"
    elif n_compared:
        status, reason = "ok", f"as in the baseline, {n_compared} of {n_case} cases"
    else:
        return _skipped(name, "no case that passed has such a comparison in the baseline")
    not_checked = f"{n_case - n_compared} of {n_case} cases" if n_compared < n_case else ""
    return GateCheck(name=name, status=status, reason=reason, not_checked=not_checked), found


def _skipped(name: str, reason: str) -> _Checked:
    return GateCheck(name=name, status="skipped", reason=reason, not_checked="all"), ()


def _check_measured(
    name: str, measured: Sequence[Ratio] | Sequence[Count] | str, results: Results
) -> _Checked:
    if isinstance(measured, str):
        return _skipped(name, measured)
    if not measured:
        return _skipped(name, "no row could be measured")
    found = [
        Regression(
            kind=_kind(each),
            case=each.case,
            text=f"{name}, {_in_words([each.way])}: {each.reason}",
            repro=results.command("gate"),
        )
        for each in measured
        if each.status == "regressed"
    ]
    n = Counter(each.status for each in measured)
    if not found and not n["ok"] + n["accepted"]:
        return _skipped(name, "; ".join(dict.fromkeys(each.reason for each in measured)))
    words = ", ".join(
        f"{n[each]} {each}" for each in ("ok", "accepted", "regressed", "skipped") if n[each]
    )
    reason, status = f"{words} of {len(measured)} ratios", "regressed" if found else "ok"
    not_checked = f"{n['skipped']} of {len(measured)} ratios" if n["skipped"] else ""
    return GateCheck(name=name, status=status, reason=reason, not_checked=not_checked), found


def _kind(measured: Ratio | Count) -> str:
    if isinstance(measured, Count):
        return "more_instructions"
    return "failed" if measured.way == ALL else "slower"
