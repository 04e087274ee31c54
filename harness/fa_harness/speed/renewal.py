"""A new baseline from a run, and how it differs from the old one. Pure functions, no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fa_harness.case.case import Case
from fa_harness.engine.session import Results
from fa_harness.speed.baseline import Baseline, CaseRecord, Speed, record
from fa_harness.speed.bench import median_interval
from fa_harness.speed.gate import as_other, differences
from fa_harness.speed.rows import NOISE, WAYS, SpeedRow


def new_baseline(
    results: Results,
    *,
    made_with: Mapping[str, Any],
    seed: int | None,
    threads: int | None,
    speed: Speed | None,
    bits: Mapping[Case, bytes] | str,
) -> Baseline:
    """Return the baseline of a run; `bits` as in `judge`."""
    return Baseline(
        made_with=made_with,
        seed=seed,
        threads=threads,
        cases={
            str(verdict.case): record(verdict, as_other=as_other(verdict, bits))
            for verdict in results.verdicts
        },
        speed=speed,
    )


def speed_of(rows: Sequence[SpeedRow], *, cpu: str) -> Speed:
    """Return the speed of a baseline, without the rows that could not be measured."""
    whole = [row for row in rows if not row.fault and row.ratios.keys() >= {*NOISE, *WAYS}]
    ways = (*NOISE, *WAYS)
    return Speed(
        cpu=cpu, rows={str(row.case): {way: row.ratios[way] for way in ways} for row in whole}
    )


def changes(old: Baseline | None, new: Baseline) -> list[str]:
    """Return the differences between a new baseline and the old, one per line."""
    if old is None:
        return [f"new: {len(new.cases)} cases"]
    lines = list(differences(old.made_with, new.made_with))
    lines += [f"gone: {case}" for case in old.cases if case not in new.cases]
    for case, now in new.cases.items():
        was = old.cases.get(case)
        changed = ["added"] if was is None else _case_changes(was, now)
        lines += [f"{change}: {case}" for change in changed]
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
    if was.as_other != now.as_other and None not in (was.as_other, now.as_other):
        yield f"one call, bits of the other library {'gained' if now.as_other else 'lost'}"
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
            before = f"{median_interval(was).median:.3f}" if was else "nothing"
            if before != (after := f"{median_interval(ways[way]).median:.3f}"):
                lines.append(f"speed of {way} {before} -> {after}: {case}")
    return lines
