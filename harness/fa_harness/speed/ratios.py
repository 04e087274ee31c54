"""Whether a library is slower than it was, or than another: ratios of times, and a rank test.

The measure is the ratio of a way's time to one call without a state, in the same process and round.
The rounds of one process share its places in memory, so they are one sample, not many. Each process
gives one number, the median of its rounds. A rank test (Mann-Whitney, one-sided) compares the
numbers of several processes with the baseline's: a busy neighbour can spoil a mean, but not the
ranks. A program on the core's other thread shifts all ratios of a measurement, and standard
compared with itself does not show that. So the test asks whether a ratio is above `EFFECT` times
the baseline's, times the noise: how far standard compared with itself reaches from 1 in either
measurement. A chain has other noise than one call. It waits at more barriers, and where a neighbour
holds one of two cores, each wait costs a slice of the system's scheduler. The same calls without a
state, of the library without the patch where there is one, wait as often. Of a chain the noise is
also how far these are from what they took for the baseline; if that is more than `EFFECT`, a loss
can be neither seen nor excluded, and the check is skipped.

A ratio above all that is measured again with twice the processes, and counts only if it is above
again. Each test errs with a probability of at most `LEVEL`, beyond the drift that
`EFFECT` allows. `fa-harness bench`, whose limits are of one run, finds smaller losses. An interval
wider than `EFFECT` could hide such a loss, so its check is skipped.

A change that slows down each call alike leaves these ratios as they are. So one call without a
state is compared with that of a library without the patch, in the same process and rounds, with no
need of a baseline. What it is tested against is one call compared with itself there, times
`ONE_CALL`. Without a loss the two have one distribution, whatever the noise, since the three calls
differ in nothing else; the same code in another place takes up to 1 % more or less, and `ONE_CALL`
is half-way to the loss that has to be found, `ONE_CALL_LOSS`. Only a ratio whose interval ends
below that is ok; one that may be above is skipped. If twice as many processes can tell, they are
asked, and a loss that only they see counts if it has the probability of one seen twice.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fa_harness.speed.baseline import Baseline, NoBaseline
from fa_harness.speed.bench import Interval, median_interval, reach
from fa_harness.speed.rows import NOISE, OTHER, WAYS, SpeedRow

LEVEL = 0.001
EFFECT = 1.06
ONE_CALL = 1.025
ONE_CALL_LOSS = 1.05
MIN_HISTORY = 12
"""A baseline needs so many ratios; with fewer, a test could hardly reach `LEVEL`."""

ALL = "all ways"
"""The way of a row without ratios: the process that had to measure it ended early."""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A way's time to one call without a state, now and in the baseline.

    Or the time of one call to that of another library, whose baseline is one call compared with
    itself in the same processes.
    """

    case: str
    way: str
    to: str = "standard"  # or the name of another library
    status: str  # `ok`, `regressed` or `skipped`
    reason: str
    now: Interval | None = None
    before: Interval | None = None
    allowed: float | None = None  # `now` may be at most so many times `before`
    p: float | None = None  # of the rank test


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
    """Compare a speed row with the baseline's ratios of it, which may be none."""
    case = str(row.case)
    if row.fault:
        return [Ratio(case=case, way=ALL, status="regressed", reason=f"ended: {row.fault}")]
    if row.case.threads > cores:
        reason = f"takes {row.case.threads} threads, there are {cores} cores"
        return [Ratio(case=case, way=way, status="skipped", reason=reason) for way in WAYS]
    if not row.ratios.keys() >= {*NOISE, *WAYS}:
        reason = "the library has no flash attention with a state"
        return [Ratio(case=case, way=way, status="skipped", reason=reason) for way in WAYS]
    history = {way: before.get(way, ()) for way in (*NOISE, *WAYS)}
    return [_compare_way(case, way, row.ratios, history) for way in WAYS]


def compare_one_call(row: SpeedRow, other: str, *, cores: int) -> Ratio:
    """Compare one call of a row with that of the library `other`, which was timed beside it."""
    found = functools.partial(Ratio, case=str(row.case), way="standard", to=other)
    if row.fault:
        return replace(found(status="regressed", reason=f"ended: {row.fault}"), way=ALL)
    if row.case.threads > cores:
        reason = f"takes {row.case.threads} threads, there are {cores} cores"
        return found(status="skipped", reason=reason)
    interval, own = median_interval(row.ratios[OTHER]), median_interval(row.ratios["again"])
    p = p_greater(row.ratios[OTHER], [ratio * ONE_CALL for ratio in row.ratios["again"]])
    change = f"{interval.median - 1:+.1%}, allowed {ONE_CALL - 1:+.1%}"
    found = functools.partial(found, now=interval, before=own, allowed=ONE_CALL, p=p)
    if p < LEVEL:
        reason = f"takes {interval.median:.3f} of {other}'s time: {change} (p = {p:.1g})"
        return found(status="regressed", reason=reason)
    if interval.high > ONE_CALL_LOSS:
        reason = (
            f"too noisy: the ratio may be {interval.high:.3f}, it is known to {interval.width:.0%} "
            "only; the machine does something else, too"
        )
        return found(status="skipped", reason=reason)
    return found(status="ok", reason=change)


def _compare_way(
    case: str, way: str, now: Mapping[str, Sequence[float]], before: Mapping[str, Sequence[float]]
) -> Ratio:
    interval = median_interval(now[way])
    found = functools.partial(Ratio, case=case, way=way, now=interval)
    is_chain = way == "segmented"
    noise = NOISE if is_chain else NOISE[:1]
    n = min(len(before[each]) for each in (way, *noise))
    if n < MIN_HISTORY:
        reason = f"too little history: {n} processes in the baseline, {MIN_HISTORY} are needed"
        return found(status="skipped", reason=reason)
    then, own, own_before = map(median_interval, (before[way], now["again"], before["again"]))
    intervals = {
        "one call compared with itself": own,
        "one call compared with itself, when the baseline was made,": own_before,
        "the ratio": interval,
        "the baseline's ratio": then,
    }
    drift = 1.0
    if is_chain:
        parts, parts_before = median_interval(now["parts"]), median_interval(before["parts"])
        drift = max(parts.median / parts_before.median, parts_before.median / parts.median)
        calls = "as many calls without a state"
        intervals |= {calls: parts, f"{calls}, when the baseline was made,": parts_before}
    noisiest = max(intervals, key=lambda where: intervals[where].width)
    width = intervals[noisiest].width
    allowed = EFFECT * max(reach(own), reach(own_before), drift)
    p = p_greater(now[way], [ratio * allowed for ratio in before[way]])
    change = f"{interval.median / then.median - 1:+.1%}, allowed {allowed - 1:+.1%}"
    if p < LEVEL:
        status = "regressed"
        reason = (
            f"takes {interval.median:.3f} of one call without a state, was {then.median:.3f}: "
            f"{change} (p = {p:.1g})"
        )
    elif drift > EFFECT:
        status = "skipped"
        reason = (
            f"too noisy: {calls} take {parts.median:.3f} of one call, were "
            f"{parts_before.median:.3f}; the machine does something else, too"
        )
    elif width > EFFECT - 1:
        status = "skipped"
        reason = (
            f"too noisy: {noisiest} is known to {width:.0%} only; the machine does something "
            "else, too"
        )
    else:
        status, reason = "ok", change
    return found(status=status, reason=reason, before=then, allowed=allowed, p=p)


def p_greater(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the p of Mann and Whitney's U test, one-sided and exact, that `a` is larger than `b`.

    It is the probability of so many pairs with a > b if both samples were of one distribution. The
    numbers of each are independent, and there is at least one. A pair of equal numbers counts as
    not greater, so that with ties the result is too large rather than too small.
    """
    ordered = sorted(b)
    u = sum(bisect_left(ordered, x) for x in a)
    orders = _orders(len(a), len(b))
    return sum(orders[u:]) / math.comb(len(a) + len(b), len(a))


@functools.cache
def _orders(n: int, m: int) -> tuple[int, ...]:
    """Return, for each u, in how many orders of n and m numbers u pairs have the first larger.

    They are the coefficients of the Gaussian binomial: the product over i = 1..n of
    (1 - q^(m + i)) / (1 - q^i).
    """
    size = n * m + 1
    count = [1] + [0] * (size - 1)
    for i in range(1, n + 1):
        for u in range(size - 1, m + i - 1, -1):
            count[u] -= count[u - m - i]
        for u in range(i, size):
            count[u] += count[u - i]
    return tuple(count)


def is_open(ratio: Ratio) -> bool:
    """Tell whether a ratio is to be measured again: it is slower, or more processes may tell."""
    if ratio.to == "standard" or ratio.status != "skipped":
        return ratio.status == "regressed"
    # an interval around 1 that ends below the loss is no wider than this
    return ratio.now is not None and ratio.now.width < 2 * (ONE_CALL_LOSS - 1)


def confirmed(first: Sequence[Ratio], again: Sequence[Ratio]) -> list[Ratio]:
    """Return what two measurements of a row tell: a ratio is slower if it is slower in both."""
    # a process that died in either is no noise
    died = [ratio for ratio in (*first, *again) if ratio.way == ALL]
    if died:
        return died[:1]
    return [_confirmed(*pair) for pair in zip(first, again, strict=True)]


def _confirmed(first: Ratio, again: Ratio) -> Ratio:
    if not is_open(first):
        return first
    seen_once = first.status != "regressed" and again.status == "regressed"
    if seen_once and again.p is not None and again.p >= LEVEL**2:
        return first
    return again
