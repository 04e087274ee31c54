"""What each mode leaves behind and what it must be, in the order of computing: for `localise`.

After a call comes its state, then its result, each against the oracle; then what has to be the same
as in another run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from fa_harness.arrays import F32, F64
from fa_harness.case import rolling
from fa_harness.case.case import Case
from fa_harness.engine.fifo import Rolled
from fa_harness.engine.modes import Chain, Merged, Run, Step, path
from fa_harness.judge import bounds, oracle, rolling_oracle
from fa_harness.judge.bounds import Expected
from fa_harness.judge.compare import Region
from fa_harness.judge.localise import Call, Check
from fa_harness.judge.rolling_oracle import ExpectedSteps

IN_TURN = "merges in turn"
"""The name of the call that stands for the states merged one after another."""


def state_region(state: F32, expected: Expected) -> Region:
    """Return where correct state rows lie that have the maxima of these."""
    truth, scale = expected.truth, np.ones(state.shape)
    rows = np.concatenate([truth.m[..., None], truth.s[..., None], truth.vkq], axis=-1)
    with np.errstate(invalid="ignore", over="ignore"):
        rescale = np.exp(truth.m - state[..., 0])
        scale[..., 1:] = np.where(np.isinf(truth.m), 1.0, rescale)[..., None]
        return Region(rows * scale, expected.state_bound() * scale)


def result_region(step: Step) -> Region:
    """Return where the result of a state lies: 1 / S and the product with VKQ are rounded."""
    rows = step.state.astype(np.float64)
    s = rows[..., 1:2]
    result = np.divide(rows[..., 2:], s, out=np.zeros_like(rows[..., 2:]), where=s != 0)
    bound = 2.1 * bounds.U32 * np.abs(result) + 2.0**-149  # below F32's normal range not relative
    return Region(result, bound)


def of_step(
    call: Call, step: Step, expected: Expected, right: F64, region: Region
) -> Iterator[Check]:
    """Yield the checks of a call against the oracle.

    Args:
        call: The call.
        step: What it left behind.
        expected: What is expected of its state.
        right: The oracle's result.
        region: Where the result must lie.
    """
    yield _state(call, step.state, expected)
    yield _result(call, step.output, expected, right, region)


def of_standard(
    call: Call, run: Run, expected: Expected, right: F64, region: Region
) -> Iterator[Check]:
    """Yield the checks of one call without a state; arguments as of `of_step`."""
    yield _result(call, run.standard, expected, right, region)
    yield same_result(call, run.standard_again, run.standard, "the first run")


def of_full_state(
    call: Call, run: Run, expected: Expected, right: F64, region: Region
) -> Iterator[Check]:
    """Yield the checks of one call with a state; arguments as of `of_step`."""
    assert run.full_state is not None
    assert run.full_state_again is not None
    yield from of_step(call, run.full_state, expected, right, region)
    yield same_result(call, run.full_state.output, run.standard, "standard")
    yield from same(call, run.full_state_again, run.full_state, "the first run")


def of_one_graph(calls: Sequence[Call], chain: Chain) -> Iterator[Check]:
    """Yield the checks of a chain in one graph, of which only the last state is known."""
    outputs, state = chain.one_graph
    other = "the chain in a graph for each call"
    for i, call in enumerate(calls):
        in_graph = replace(call, name=f"{call.name} in one graph")
        if i == len(outputs) - 1:
            yield _same_state(in_graph, state, chain.steps[-1].state, other)
        yield same_result(in_graph, outputs[i], chain.steps[i].output, other)


def of_merges(
    parts: Sequence[Call],
    merged: Merged,
    expected: Expected,
    right: F64,
    region: Region,
    fresh: Step,
) -> Iterator[Check]:
    """Yield the checks of what follows the parts.

    Args:
        parts: The calls of the parts.
        merged: What was computed.
        expected: What is expected of a merged state.
        right: The oracle's result.
        region: Where a merged result must lie.
        fresh: What two fresh states merge to.
    """
    keys = (parts[0].keys[0], parts[-1].keys[1])
    states = [part.state for part in merged.parts]
    rows, rounded = bounds.merged_rows(states)
    in_turn = merged.in_turn.state
    centre = in_turn.astype(np.float64)
    in_any_order = Region(centre, 2 * rounded)
    shuffled = f"merges in the order {','.join(map(str, merged.order))}"
    reductions = {  # what it is, its last step, how near to that in turn
        IN_TURN: (merged.in_turn, None),
        f"{IN_TURN}, swapped": (
            merged.swapped,
            Region(centre, bounds.swap_bound(states)),
        ),
        "merges in pairs": (merged.pairwise, in_any_order),
        shuffled: (merged.shuffled, in_any_order),
    }
    for name, (step, near_in_turn) in reductions.items():
        call, result = Call(name=name, keys=keys), result_region(step)
        exact_merge = Check(
            call=call,
            is_state=True,
            got=step.state,
            expected=rows,
            region=Region(rows, rounded),
            other="the parts",
        )
        yield exact_merge
        yield from of_step(call, step, expected, right, region)
        yield same_result(call, step.output, result.centre, "its state", near=result)
        if near_in_turn is not None:
            yield replace(exact_merge, expected=in_turn, region=near_in_turn, other=IN_TURN)
    again = Call(name="parts and merges in one graph", keys=keys)
    yield from same(again, merged.in_turn_again, merged.in_turn, IN_TURN)
    for name, state in zip(
        ("merge with a fresh state", "merge of a fresh state with it"),
        merged.with_fresh,
        strict=True,
    ):
        yield _same_state(Call(name=name, keys=keys), state, in_turn, IN_TURN)
    two_fresh = Call(name="merge of two fresh states", keys=(0, 0))
    yield from same(two_fresh, merged.fresh, fresh, "a fresh state")
    for part, after, before in zip(parts, merged.parts_after, states, strict=True):
        call = replace(part, name=f"{part.name} after the merges")
        yield _same_state(call, after, before, "the part before")


def of_fifo(
    case: Case, rolled: Rolled, again: Rolled, expected: ExpectedSteps, region: Region
) -> Iterator[Check]:
    """Yield the checks of a rolling cache, whose steps are the rows of the arrays.

    Args:
        case: The case.
        rolled: Computed with a graph for each call.
        again: Computed with a graph for each step.
        expected: What the steps should give.
        region: Where the results must lie.
    """
    every = Call(name="every step", keys=(0, case.n_kv))
    one, two = (Step(output=run.output, state=run.state) for run in (rolled, again))
    of_all_steps = [
        _state(every, rolled.cold_state, expected.after_cold),
        *of_step(every, one, expected.after_both, oracle.finalise(expected.exact), region),
        *same(every, two, one, "a graph for each call"),
    ]
    of_cold, of_hot = (rolling_oracle.one_row(case, cold=cold) for cold in (True, False))
    for step, n_cold in enumerate(rolling.n_cold(case).tolist()):
        cold = Call(
            name=f"cold call of step {step}",
            keys=(0, n_cold),
            path=path(of_cold, n_cold),
            index=step,
            f16_numerators=of_cold.type_V == "f16",
        )
        hot = Call(
            name=f"hot call of step {step}",
            keys=(n_cold, step + 1),
            path=path(of_hot, case.hot_window),
            index=step,
            f16_numerators=of_hot.type_V == "f16",
        )
        in_graph = replace(hot, name=f"{hot.name} in one graph")
        calls = (cold, hot, hot, in_graph, in_graph)
        for call, check in zip(calls, of_all_steps, strict=True):
            yield _of_row(check, step, call)


def same_steps(
    calls: Sequence[Call], got: Sequence[Step], expected: Sequence[Step], other: str
) -> Iterator[Check]:
    """Yield the checks of calls that have to leave the bits that others have left."""
    for call, one, another in zip(calls, got, expected, strict=True):
        yield from same(call, one, another, other)


def same(call: Call, got: Step, expected: Step, other: str) -> Iterator[Check]:
    """Yield the checks of a call that has to leave the bits that another has left."""
    yield _same_state(call, got.state, expected.state, other)
    yield same_result(call, got.output, expected.output, other)


def same_result(
    call: Call, got: F32, expected: F32 | F64, other: str, *, near: Region | None = None
) -> Check:
    """Return the check of a result that has to be another's, bit for bit or within a region."""
    return Check(call=call, is_state=False, got=got, expected=expected, region=near, other=other)


def _same_state(call: Call, got: F32, expected: F32, other: str) -> Check:
    return Check(call=call, is_state=True, got=got, expected=expected, other=other)


def _state(call: Call, state: F32, expected: Expected) -> Check:
    region = state_region(state, expected)
    return Check(
        call=call,
        is_state=True,
        got=state,
        expected=region.centre,
        region=region,
        numerators=expected.truth.vkq,
    )


def _result(call: Call, output: F32, expected: Expected, right: F64, region: Region) -> Check:
    return Check(
        call=call,
        is_state=False,
        got=output,
        expected=right,
        region=region,
        numerators=expected.truth.vkq,
    )


def _of_row(check: Check, row: int, call: Call) -> Check:
    """Return a check of one query row alone, which is a call of its own."""
    at = np.s_[:, :, row : row + 1]
    region, numerators = check.region, check.numerators
    return replace(
        check,
        call=call,
        got=check.got[at],
        expected=check.expected[at],
        region=None if region is None else Region(region.centre[at], region.bound[at]),
        numerators=None if numerators is None else numerators[at],
        first_row=row,
    )
