"""Whether a fault could have shown in a case that passes: where none could, it is mistrusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fa_harness.arrays import F64
from fa_harness.case import rolling
from fa_harness.case.case import Case
from fa_harness.case.modes import ByMode, Rolled
from fa_harness.judge import bounds, oracle
from fa_harness.judge.compare import Check, Region
from fa_harness.judge.expectations import Expectations
from fa_harness.judge.oracle import Partial
from fa_harness.judge.rolling_oracle import ExpectedSteps
from fa_harness.kernel import goes_on_in_f16


def why_mistrusted(
    case: Case, results: ByMode, expect: Expectations, ends: Sequence[Check]
) -> str | None:
    """Return why no fault could have shown in a case, or None where one could.

    Args:
        case: The case.
        results: What the library gave, and nothing is wrong with.
        expect: What it is compared with.
        ends: The decisive check of each chain.
    """
    region = expect.of_one.region
    if not expect.outputs[-1].any() or not results["standard"].output.any():
        return "every output is 0: nothing could differ"
    if not (np.abs(region.centre) > region.bound).any():
        return "the bound is above every output: an output of 0 would pass"
    if "fifo" in results:
        rolled = results["fifo"].first
        return _why_rolled_is(case, rolled, expect.fifo(goes_on_in_f16(rolled.cold_state)))
    if not results.keys() & {"segmented", "merged", "resumed", "mixed"} or case.segments == 1:
        return None
    return _why_chains_are(case, expect, [end.region for end in ends if end.region is not None])


def _why_chains_are(case: Case, expect: Expectations, regions: Sequence[Region]) -> str | None:
    segments, whole = expect.segments, expect.prefixes[-1]
    weights = [oracle.weight(segment.m, whole.m) * segment.s for segment in segments]
    if np.max(sum(weight > 0 for weight in weights)) < 2:
        return f"{case.segments} segments were asked for, and no row has keys in two"
    # of merges a lost part shows: S is compared with that of the parts to a few roundings
    last = segments[-1]
    faults: dict[str, Callable[[], F64]] = {
        "reset numerators": lambda: _reset_numerators(last, whole),
        "a lost state": lambda: oracle.finalise(last),
    }
    for region in regions:
        visible = region.bound
        if expect.chain_is_exact:
            # more than any accumulator rounds away
            visible = bounds.U16 * np.abs(region.centre)
        for fault, output in faults.items():
            # both for Q itself: what rounding Q changes is not the fault
            if not (np.abs(output() - expect.outputs[-1]) > visible).any():
                return f"{fault} would stay within the bound in every row"
    return None


def _why_rolled_is(case: Case, rolled: Rolled, expected: ExpectedSteps) -> str | None:
    if not rolled.can_be_told_apart:
        return "two tokens have the same bytes: one in the other's place would pass"
    if not rolling.n_cold(case).any():
        return f"no token ever gets cold: hot_window={case.hot_window} holds the kv={case.n_kv}"
    hot, whole = expected.hot, expected.exact
    faults = {
        "reset numerators": _reset_numerators(hot, whole),
        "a lost state": oracle.finalise(hot),
        "lost hot tokens": oracle.finalise(expected.cold),
    }
    right, bound = oracle.finalise(whole), expected.after_both.output_bound()
    for fault, output in faults.items():
        if not (np.abs(output - right) > bound).any():
            return f"{fault} would stay within the bound at every step"
    return None


def _reset_numerators(last: Partial, whole: Partial) -> F64:
    """Return the results of numerators that start anew with the last keys, under the whole sum."""
    share = oracle.weight(last.m, whole.m)[..., None]
    return share * last.vkq / np.where(whole.s, whole.s, 1)[..., None]
