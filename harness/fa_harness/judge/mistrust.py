"""Whether a fault could have shown in a case that passes: where none could, it is mistrusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fa_harness.arrays import F64
from fa_harness.case import rolling
from fa_harness.case.case import Case
from fa_harness.engine.fifo import Rolled
from fa_harness.engine.modes import Run
from fa_harness.judge import bounds, oracle
from fa_harness.judge.compare import Region
from fa_harness.judge.expectations import Expectations
from fa_harness.judge.oracle import Partial
from fa_harness.judge.rolling_oracle import ExpectedSteps


def why_mistrusted(
    case: Case,
    run: Run,
    expectations: Expectations,
    *,
    chain_regions: Sequence[Region],
    steps: ExpectedSteps | None,
) -> str | None:
    """Return why no fault could have shown in a case, or None where one could.

    Args:
        case: The case.
        run: What the library computed, and nothing is wrong with.
        expectations: What it is compared with.
        chain_regions: Where the last output of each chain must lie.
        steps: What is expected of a rolling cache, if there is one.
    """
    region = expectations.region(expectations.of_one)
    if not expectations.outputs[-1].any() or not run.standard.any():
        return "every output is 0: nothing could differ"
    if not (np.abs(region.centre) > region.bound).any():
        return "the bound is above every output: an output of 0 would pass"
    if run.fifo is not None and steps is not None:
        return _why_rolled_is(case, run.fifo, steps)
    chains = (run.segmented, run.merged, run.resumed, run.mixed)
    if all(chain is None for chain in chains) or case.segments == 1:
        return None
    return _why_chains_are(case, expectations, chain_regions)


def _why_chains_are(
    case: Case, expectations: Expectations, regions: Sequence[Region]
) -> str | None:
    segments, whole = expectations.segments(), expectations.prefixes[-1]
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
        if expectations.chain_is_exact:
            # more than any accumulator rounds away
            visible = bounds.U16 * np.abs(region.centre)
        for fault, output in faults.items():
            # both for Q itself: what rounding Q changes is not the fault
            if not (np.abs(output() - expectations.outputs[-1]) > visible).any():
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
