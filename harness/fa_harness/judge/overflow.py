"""The one excuse for a number that is not finite: upstream's F16 accumulator ended on the way.

With an F16 V the vec path and split-KV accumulate in F16, whose numbers end at 65504. What is not
finite is excused where the row's own accumulator reached that in a call of the mode, by the
oracle's account of it key by key. Every other number of the case has to hold as always.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fa_harness.arrays import F32, F64, Bools
from fa_harness.case.case import Case
from fa_harness.case.modes import ByMode
from fa_harness.judge.bounds import U16
from fa_harness.judge.compare import Check, Judged, compare
from fa_harness.judge.expectations import Expectations
from fa_harness.kernel import F16_MAX, Arithmetic, goes_on_in_f16


def excused(
    judged: Sequence[Judged], expect: Expectations, results: ByMode
) -> tuple[list[Judged], bool]:
    """Return the checks without what is excused, and whether something is."""
    after = [_excused(each, expect, results) for each in judged]
    return after, any(a is not b for a, b in zip(after, judged, strict=True))


def _excused(judged: Judged, expect: Expectations, results: ByMode) -> Judged:
    check, region = judged.check, judged.check.region
    if judged.comparison.ok or region is None:
        return judged
    is_lost = ~(np.isfinite(check.got) & np.isfinite(region.centre))
    if not is_lost.any():
        return judged
    rows = _may_overflow(check, expect, results)
    if check.got.shape[2] != rows.shape[2]:  # a step of a rolling cache
        rows = rows[:, :, check.first_row : check.first_row + 1]
    is_lost &= rows[..., None]
    if not is_lost.any():
        return judged
    zero = np.float32(0)
    [after] = compare([
        replace(
            check,
            got=np.where(is_lost, zero, check.got),
            expected=np.where(is_lost, 0, check.expected),
            region=region.without(is_lost),
        )
    ])  # fmt: skip
    return after


def in_one_call(expect: Expectations) -> Bools:
    """Tell of each row whether its F16 accumulator may end in one call over the whole case."""
    return _ends_in(expect, 0, expect.case.n_kv, expect.how)


def _may_overflow(check: Check, expect: Expectations, results: ByMode) -> Bools:
    """Tell of each row whether its F16 accumulator may end in a call that the check looks at."""
    case, mode = expect.case, check.mode
    if mode == "fifo":
        return _ends_in_some_order(expect)
    if mode in ("standard", "full_state", "preset"):
        return in_one_call(expect)
    own_types = mode == "mixed" or (expect.own_types and mode != "segmented")
    states = _states(mode, results)
    last = case.segments - 1 if check.call.index is None else check.call.index
    limits = case.segment_bounds()
    # the result of the chain is compared with that of one call, too
    rows = in_one_call(expect) if mode == "segmented" else _no_row(case)
    for i, how in enumerate(expect.hows[own_types][: last + 1]):
        goes_on = i > 0 and bool(states) and not how.n_partials
        ends = _ends_in(expect, limits[i], limits[i + 1], how, after=i - 1 if goes_on else None)
        rows = rows | (ends & goes_on_in_f16(states[i - 1]) if goes_on else ends)
    return rows


def _states(mode: str, results: ByMode) -> list[F32]:
    """Return the states that the calls of a chain left; none where parts begin anew."""
    chains = {
        "segmented": lambda: results["segmented"].calls,
        "mixed": lambda: results["mixed"].first.calls,
        "resumed": lambda: results["resumed"],
    }
    return [left.state for left in chains[mode]()] if mode in chains else []


def _no_row(case: Case) -> Bools:
    return np.zeros((case.ne3, case.n_head, case.n_batch), np.bool_)


def _ends_in(
    expect: Expectations, start: int, stop: int, how: Arithmetic, *, after: int | None = None
) -> Bools:
    """Tell of each row whether its accumulator may end in a call: see `Expectations.reach`."""
    if not how.f16_numerators:
        return _no_row(expect.case)
    may_end: Bools = expect.reach(start, stop, how, after=after) > F16_MAX
    return may_end


def _ends_in_some_order(expect: Expectations) -> Bools:
    """Tell of each step of a rolling cache whether its tokens could overflow in any order.

    No weight is above 1, and no stored value above the largest of its row by more than a quarter,
    not even in IQ4_NL, whose steps are the widest: so no sum is above A, 1.25 times the sum of the
    rows' largest |V| up to the step. A key rounds five times, each by at most u times what A has
    grown to, so A grows by a factor of at most exp(5 n u) over n keys.
    """
    case = expect.case
    if "f16" not in (case.type_V, case.cold_type):
        return _no_row(case)
    growth = 1.25 * np.exp(5 * U16 * np.arange(1, case.n_kv + 1))
    most: F64 = np.repeat(expect.sum_of_v() * growth, case.n_group, axis=1)
    may_end: Bools = most > F16_MAX
    return may_end
