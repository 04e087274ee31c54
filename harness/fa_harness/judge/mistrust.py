"""Whether a fault could have shown in a case that passes: where none could, it is mistrusted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fa_harness.arrays import F64
from fa_harness.case import rolling
from fa_harness.case.case import Case
from fa_harness.case.modes import ByMode, Rolled
from fa_harness.judge import bounds, oracle
from fa_harness.judge.compare import Region
from fa_harness.judge.expectations import Expectations
from fa_harness.judge.oracle import Partial
from fa_harness.judge.rolling_oracle import ExpectedSteps
from fa_harness.kernel import goes_on_in_f16


def why_mistrusted(
    case: Case, results: ByMode, expect: Expectations, ends: Sequence[Region | None]
) -> str | None:
    """Return why no fault could have shown in a case that passes, or None where one could.

    `ends` are where the last result of each chain has to lie.
    """
    region = expect.of_one.region
    if not expect.outputs[-1].any() or not results["standard"].output.any():
        return "every output is 0: nothing could differ"
    if not (np.abs(region.centre) > region.bound).any():
        return "the bound is above every output: an output of 0 would pass"
    if "fifo" in results:
        rolled = results["fifo"].first
        return _why_rolled_is(case, rolled, expect.fifo(goes_on_in_f16(rolled.cold_state)))
    if (
        not results.keys() & {"segmented", "merged", "reduced", "resumed", "mixed"}
        or case.segments == 1
    ):
        return None
    return _why_chains_are(case, expect, [end for end in ends if end is not None])


def _why_chains_are(case: Case, expect: Expectations, regions: Sequence[Region]) -> str | None:
    segments, whole = expect.segments, expect.prefixes[-1]
    weights = [oracle.weight(segment.m, whole.m) * segment.s for segment in segments]
    if np.max(sum(weight > 0 for weight in weights)) < 2:
        return f"{case.segments} segments were asked for, and no row has keys in two"
    # of merges a lost part shows: S is compared with that of the parts to a few roundings
    faults = _faults(segments[-1], whole)
    for region in regions:
        # of a chain that must be exact, more than any accumulator rounds away
        visible = bounds.U16 * np.abs(region.centre) if expect.chain_is_exact else region.bound
        # both for Q itself: what rounding Q changes is not the fault
        hidden = _hidden(faults, expect.outputs[-1], visible)
        if hidden is not None:
            return f"{hidden} would stay within the bound in every row"
    return None


def _why_rolled_is(case: Case, rolled: Rolled, expected: ExpectedSteps) -> str | None:
    if not rolled.can_be_told_apart:
        return "two tokens have the same bytes: one in the other's place would pass"
    if not rolling.n_cold(case).any():
        return f"no token ever gets cold: hot_window={case.hot_window} holds the kv={case.n_kv}"
    faults = _faults(expected.hot, expected.exact)
    faults["lost hot tokens"] = oracle.finalise(expected.cold)
    right = oracle.finalise(expected.exact)
    hidden = _hidden(faults, right, expected.after_both.output_bound())
    return None if hidden is None else f"{hidden} would stay within the bound at every step"


def _faults(last: Partial, whole: Partial) -> dict[str, F64]:
    """Return the results of faults in which the last keys do not continue what was before."""
    share = oracle.weight(last.m, whole.m)[..., None]
    return {
        "reset numerators": share * last.vkq / np.where(whole.s, whole.s, 1)[..., None],
        "a lost state": oracle.finalise(last),
    }


def _hidden(faults: dict[str, F64], right: F64, visible: F64) -> str | None:
    """Return the first fault that differs nowhere by more than what is visible."""
    for fault, output in faults.items():
        if not (np.abs(output - right) > visible).any():
            return fault
    return None
