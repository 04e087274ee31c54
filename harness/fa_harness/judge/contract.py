"""What a case has to hold: one stream of checks, in the order of computing.

After a call comes its state, then its result, each against the oracle, and the result against the
state that the call wrote; then what has to be the same as in another run. (A call that has to leave
the bits of one that was compared so is not compared with its own state, too.) Comparisons are these
checks by name; where a case went wrong is the first that does not hold; what was promised and not
checked is `promised` less the names that were yielded.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import numpy as np

from fa_harness.arrays import F32, F64
from fa_harness.case import preset, rolling
from fa_harness.case.case import Case
from fa_harness.case.modes import (
    ByMode,
    Chain,
    Left,
    Merged,
    Reduced,
    Rolled,
    fresh_rows,
    top_rows,
)
from fa_harness.judge import bounds, oracle, rolling_oracle
from fa_harness.judge.bounds import Expected
from fa_harness.judge.compare import Call, Check, LateRegion, Region
from fa_harness.judge.expectations import Expectations
from fa_harness.kernel import goes_on_in_f16

IN_TURN = "merges in turn"
"""The name of the call that stands for the states merged one after another."""

_PROMISED = {
    "standard": {"standard_again", "standard_vs_oracle"},
    "full_state": {
        "full_state_again", "full_state_vs_standard", "full_state_vs_oracle",
        "full_state_state_vs_oracle", "full_state_result_vs_state", "full_state_negated",
    },
    "segmented": {
        "segmented_vs_standard", "segmented_vs_oracle", "prefix_vs_oracle", "state_vs_oracle",
        "result_vs_state", "one_graph_vs_segmented",
    },
    "merged": {
        "part_vs_oracle", "part_state_vs_oracle", "part_result_vs_state", "merged_vs_oracle",
        "merged_state_vs_oracle", "merged_vs_parts", "merged_in_any_order", "merged_swapped",
        "merged_result_vs_state", "merged_again", "merged_with_fresh", "fresh_merged",
        "parts_after_merge",
    },
    "reduced": {
        "part_vs_oracle", "part_state_vs_oracle", "part_result_vs_state", "reduced_vs_parts",
        "reduced_vs_oracle", "reduced_again", "reduced_with_fresh", "reduced_with_top",
        "fresh_reduced", "parts_after_merge",
    },
    "resumed": {
        "resumed_vs_oracle", "resumed_prefix_vs_oracle", "resumed_state_vs_oracle",
        "resumed_result_vs_state",
    },
    "scheduled": {
        "scheduled_vs_standard", "scheduled_vs_oracle", "scheduled_state_vs_oracle",
    },
    "mixed": {
        "mixed_again", "mixed_vs_oracle", "mixed_prefix_vs_oracle", "mixed_state_vs_oracle",
        "mixed_result_vs_state", "one_graph_vs_mixed",
    },
    "fifo": {"fifo_again", "fifo_vs_oracle", "fifo_state_vs_oracle", "fifo_result_vs_state"},
    "preset": {"preset_vs_oracle", "preset_state_vs_oracle", "preset_result_vs_state"},
}  # fmt: skip
"""What each mode is compared in where no other mode is computed."""

AFTER_SEGMENT = frozenset(
    f"{prefix}{what}_vs_oracle"
    for prefix in ("", "mixed_", "resumed_")
    for what in ("prefix", "state")
)
"""Names of the checks of a chain after each segment."""


def promised(mode: str, case: Case, modes: Collection[str], *, is_exact: bool) -> set[str]:
    """Return the comparisons of a mode without which a verdict says nothing about it.

    They depend on which `modes` are computed of the case, and on whether its chain `is_exact`.
    """
    uncut = _uncut(case)
    if mode == "resumed" and uncut in modes:
        return {f"resumed_vs_{uncut}"}
    if mode == "scheduled" and "segmented" in modes:
        return {"scheduled_vs_standard", "scheduled_vs_segmented"}
    names = set(_PROMISED[mode])
    if mode == "segmented" and "full_state" in modes:
        names.add("segmented_vs_full_state")
        if is_exact:
            names.add("state_vs_full_state")
    if mode in ("merged", "reduced") and uncut in modes:
        names.add("part_vs_chain")
    return names


def checks(expect: Expectations, results: ByMode) -> Iterator[Check]:
    """Yield what has to hold of a case's results, in the order of computing."""
    of_modes = {
        "standard": _standard,
        "full_state": _full_state,
        "segmented": _segmented,
        "mixed": _mixed,  # before those that are compared with it
        "merged": _merged,
        "reduced": _reduced,
        "resumed": _resumed,
        "scheduled": _scheduled,
        "fifo": _fifo,
        "preset": _preset,
    }
    for mode, of_mode in of_modes.items():
        if mode in results:
            for check in of_mode(expect, results):
                yield replace(check, mode=mode)


def of_model(expect: Expectations, results: ByMode, output: F32) -> Check:
    """Return what the model's own result would have to hold if this library had computed it.

    It is not among `checks`: another library may have, on another CPU. Of segments in types of
    their own the mode `mixed` is among the results.
    """
    expected = expect.of_one
    if expect.own_types:
        expected = expect.chain([left.state for left in results["mixed"].first.calls])[-1]
    call = Call(name="the model's own call", keys=(0, expect.case.n_kv))
    return _result("model_vs_oracle", call, output, expected, expect.outputs[-1])


def _standard(expect: Expectations, results: ByMode) -> Iterator[Check]:
    call, standard = expect.one_call, results["standard"]
    yield _result("standard_vs_oracle", call, standard.output, expect.of_one, expect.outputs[-1])
    yield _same("standard_again", call, standard.again, standard.output, "the first run")


def _full_state(expect: Expectations, results: ByMode) -> Iterator[Check]:
    call, of_one, full = expect.one_call, expect.of_one, results["full_state"]
    first, standard = full.first, results["standard"].output
    region = expect.not_far_worse(of_one.region, [standard])
    yield _state("full_state_state_vs_oracle", call, first.state, of_one)
    yield _result("full_state_vs_oracle", call, first.output, of_one, expect.outputs[-1], region)
    # of a row without keys whose numerators are NaN, one form's result is NaN, the other's 0
    loose = of_one.is_loose & np.isneginf(first.state[..., 0])
    output = np.where(loose[..., None] & (first.output == 0), standard, first.output)
    yield _same("full_state_vs_standard", call, output, standard, "standard")
    yield _result_of_state("full_state_result_vs_state", call, first)
    yield from _same_left("full_state_again", call, full.again, first, "the first run")
    # with the signs of Q and K the scores stay, and with that of V each rounding is the same
    turned = first.state * np.where(np.arange(first.state.shape[-1]) < 2, 1, -1).astype(np.float32)
    name, other = "full_state_negated", "the first run, with the signs of V turned"
    for is_state, got, expected in (
        (True, full.negated.state, turned),
        (False, full.negated.output, -first.output),
    ):
        # 0 and -0 are the same: a sum that begins with 0 is never -0
        equal = Region(expected.astype(np.float64), np.zeros(expected.shape))
        check = _same(name, call, got, expected, other, equal)
        yield replace(check, is_state=is_state)


def _segmented(expect: Expectations, results: ByMode) -> Iterator[Check]:
    chain, standard = results["segmented"], results["standard"]
    expected = expect.chain([left.state for left in chain.calls], own_types=False)
    end = expected[-1].region
    last = expect.not_far_worse(end, standard.runs)
    calls = expect.calls(own_types=False)
    yield from _chain(expect, "segmented", calls, chain.calls, expected, last)

    call, left = calls[-1], chain.calls[-1]
    others = {"standard": standard.output}
    if "full_state" in results:
        full = results["full_state"].first
        others = {"full_state": full.output, **others}
        if expect.chain_is_exact:
            yield _same_state("state_vs_full_state", call, left.state, full.state, "full_state")
    for other, output in others.items():
        near = None
        if not expect.chain_is_exact:
            one = expect.of_one.region
            of_both = one.bound + end.bound + np.abs(end.centre - one.centre)
            near = Region(output.astype(np.float64), of_both)
        yield _same(f"segmented_vs_{other}", call, left.output, output, other, near)
    # after the state's bits: of a result and a state that differ, it is not told which is wrong
    yield from _results_of_states("result_vs_state", calls, chain.calls)
    yield from _one_graph("segmented", calls, chain)


def _mixed(expect: Expectations, results: ByMode) -> Iterator[Check]:
    chain, again, calls = results["mixed"].first, results["mixed"].again, expect.calls()
    expected = expect.chain([left.state for left in chain.calls])
    yield from _chain(expect, "mixed", calls, chain.calls, expected)
    yield from _results_of_states("mixed_result_vs_state", calls, chain.calls)
    for call, left, first in zip(calls, again.calls, chain.calls, strict=True):
        yield from _same_left("mixed_again", call, left, first, "the first run")
    for each in (chain, again):
        yield from _one_graph("mixed", calls, each)


def _resumed(expect: Expectations, results: ByMode) -> Iterator[Check]:
    """Compare with the chain that was not cut; where that was not computed, with the oracle."""
    calls, lefts, uncut = expect.calls(), results["resumed"], _uncut_calls(expect.case, results)
    if uncut is None:
        expected = expect.chain([left.state for left in lefts])
        yield from _chain(expect, "resumed", calls, lefts, expected)
        yield from _results_of_states("resumed_result_vs_state", calls, lefts)
        return
    name = f"resumed_vs_{_uncut(expect.case)}"
    for call, left, whole in zip(calls, lefts, uncut, strict=True):
        yield from _same_left(name, call, left, whole, "the chain that is not cut")


def _scheduled(expect: Expectations, results: ByMode) -> Iterator[Check]:
    """Compare with the chain on one backend; where that was not computed, with the oracle."""
    calls = expect.calls(own_types=False)
    scheduled = results["scheduled"]
    alone = Call(name="one call under the scheduler", keys=(0, expect.case.n_kv))
    other = "one call on one backend"
    standard = results["standard"].output
    yield _same("scheduled_vs_standard", alone, scheduled.standard, standard, other)
    for one_graph, how in zip(scheduled.chains, ("", " on a state of the graph"), strict=True):
        named = [replace(call, name=f"{call.name}{how}") for call in calls]
        if "segmented" in results:
            chain = replace(results["segmented"], one_graph=one_graph)
            what = "the chain on one backend"
            yield from _one_graph("segmented", named, chain, "scheduled", what)
            continue
        expected = expect.chain(None, own_types=False)
        for call, output, after, right in zip(
            named, one_graph[0], expected, expect.outputs, strict=True
        ):
            yield _result("scheduled_vs_oracle", call, output, after, right)
        yield _state("scheduled_state_vs_oracle", named[-1], one_graph[1], expected[-1])


def _merged(expect: Expectations, results: ByMode) -> Iterator[Check]:
    case, merged, calls = expect.case, results["merged"], expect.calls("part")
    yield from _parts(expect, results, merged.parts)
    region = expect.merged.region
    if not expect.own_types:
        region = expect.not_far_worse(region, results["standard"].runs)
    yield from _reductions(expect, merged, region)

    keys, in_turn = (0, case.n_kv), merged.in_turn
    again = Call(name="parts and merges in one graph", keys=keys)
    yield from _same_left("merged_again", again, merged.in_turn_again, in_turn, IN_TURN)
    names = ("merge with a fresh state", "merge of a fresh state with it")
    for name, state in zip(names, merged.with_fresh, strict=True):
        call = Call(name=name, keys=keys)
        yield _same_state("merged_with_fresh", call, state, in_turn.state, IN_TURN)
    two_fresh = Call(name="merge of two fresh states", keys=(0, 0))
    fresh = fresh_rows(case)
    yield from _same_left("fresh_merged", two_fresh, merged.fresh, fresh, "a fresh state")
    yield from _parts_after(calls, merged)


def _reduced(expect: Expectations, results: ByMode) -> Iterator[Check]:
    """Compare each order with the parts as they are, and with the oracle."""
    reduced, calls = results["reduced"], expect.calls("part")
    yield from _parts(expect, results, reduced.parts)
    region = expect.merged.region
    if not expect.own_types:
        region = expect.not_far_worse(region, results["standard"].runs)
    keys = (0, expect.case.n_kv)
    of_parts = reduced_region([part.state for part in reduced.parts])
    in_turn = "reduction in turn"
    shuffled = f"reduction in the order {','.join(map(str, reduced.order))}"
    for name, output in (
        (in_turn, reduced.in_turn),
        ("reduction from the last part on", reduced.reversed),
        (shuffled, reduced.shuffled),
    ):
        call = Call(name=name, keys=keys)
        yield _same("reduced_vs_parts", call, output, of_parts.centre, "the parts", of_parts)
        yield _result("reduced_vs_oracle", call, output, expect.merged, expect.outputs[-1], region)
    again = Call(name="parts and a reduction in one graph", keys=keys)
    yield _same("reduced_again", again, reduced.again, reduced.in_turn, in_turn)
    names = ("reduction of fresh states and the parts", "reduction of the parts and fresh states")
    for name, output in zip(names, reduced.with_fresh, strict=True):
        call = Call(name=name, keys=keys)
        yield _same("reduced_with_fresh", call, output, reduced.in_turn, in_turn)
    # a part that has such a maximum, too, or NaN, makes the row NaN
    states, top = np.stack([part.state for part in reduced.parts]), top_rows(expect.case).output
    is_below = np.isfinite(states).all(axis=-1, keepdims=True) | np.isneginf(states[..., :1])
    names = (
        "reduction of a maximum of +INFINITY and the parts",
        "reduction of the parts and a maximum of +INFINITY",
    )
    for name, output in zip(names, reduced.with_top, strict=True):
        right = np.where(is_below.all(axis=0), top, output)
        call = Call(name=name, keys=keys)
        yield _same("reduced_with_top", call, output, right, "the part with this maximum")
    call, zeros = Call(name="reduction of a fresh state", keys=(0, 0)), fresh_rows(expect.case)
    yield _same("fresh_reduced", call, reduced.fresh, zeros.output, "zeros")
    yield from _parts_after(calls, reduced)


def _parts(expect: Expectations, results: ByMode, lefts: Sequence[Left]) -> Iterator[Check]:
    calls = expect.calls("part")
    parts = zip(calls, lefts, expect.parts, expect.outputs_alone, strict=True)
    for call, part, of_part, right in parts:
        yield _state("part_state_vs_oracle", call, part.state, of_part)
        yield _result("part_vs_oracle", call, part.output, of_part, right)
        yield _result_of_state("part_result_vs_state", call, part)
    uncut = _uncut_calls(expect.case, results)
    if uncut is not None:
        yield from _same_left("part_vs_chain", calls[0], lefts[0], uncut[0], "the chain")


def _parts_after(calls: Sequence[Call], results: Merged | Reduced) -> Iterator[Check]:
    for call, after, part in zip(calls, results.parts_after, results.parts, strict=True):
        call = replace(call, name=f"{call.name} after the merges")
        yield _same_state("parts_after_merge", call, after, part.state, "the part before")


def _reductions(expect: Expectations, merged: Merged, region: Region) -> Iterator[Check]:
    """Yield the checks of each order of merging.

    The parts' own errors are in all of them alike: between them, and against the exact merge of the
    parts as they are, only the roundings of the merges remain.
    """
    states = [part.state for part in merged.parts]
    rows, rounded, swap_bound = bounds.merged_rows(states)
    of_parts = Region(rows, rounded)
    centre = merged.in_turn.state.astype(np.float64)
    in_any_order = Region(centre, 2 * rounded)
    swapped = Region(centre, swap_bound)
    shuffled = f"merges in the order {','.join(map(str, merged.order))}"
    seen: set[tuple[bytes, bytes]] = set()
    for name, left, comparison, near_in_turn in (
        (IN_TURN, merged.in_turn, "", None),
        (f"{IN_TURN}, swapped", merged.swapped, "merged_swapped", swapped),
        ("merges in pairs", merged.pairwise, "merged_in_any_order", in_any_order),
        (shuffled, merged.shuffled, "merged_in_any_order", in_any_order),
    ):
        call = Call(name=name, keys=(0, expect.case.n_kv))
        bits = (left.output.tobytes(), left.state.tobytes())
        if bits not in seen:  # of two parts they nearly always are the same
            yield _same_state("merged_vs_parts", call, left.state, rows, "the parts", of_parts)
            yield _state("merged_state_vs_oracle", call, left.state, expect.merged)
            yield _result(
                "merged_vs_oracle", call, left.output, expect.merged, expect.outputs[-1], region
            )
            yield _result_of_state("merged_result_vs_state", call, left)
        seen.add(bits)
        if near_in_turn is not None:
            yield _same_state(comparison, call, left.state, centre, IN_TURN, near_in_turn)


def _preset(expect: Expectations, results: ByMode) -> Iterator[Check]:
    left, expected = results["preset"], expect.preset
    call = replace(expect.one_call, name="the only call, on a state set by hand")
    yield _state("preset_state_vs_oracle", call, left.state, expected)
    yield _result("preset_vs_oracle", call, left.output, expected, oracle.finalise(expected.truth))
    yield _result_of_state("preset_result_vs_state", call, left)
    if left.alone is not None:
        call = Call(name="the result of a state set by hand", keys=(0, 0))
        # whatever else a fresh row holds: here it is NaN
        fresh = preset.are_of("fresh", expect.case)[..., None]
        got, zeros = np.where(fresh, left.alone, np.float32(0)), np.zeros_like(left.alone)
        zero = Region(zeros.astype(np.float64), zeros.astype(np.float64))
        yield _same("preset_fresh_alone", call, got, zeros, "0", zero)


def _fifo(expect: Expectations, results: ByMode) -> Iterator[Check]:
    """Yield the checks of a rolling cache, whose steps are the rows of the arrays."""
    case, rolled, again = expect.case, results["fifo"].first, results["fifo"].again
    expected = expect.fifo(goes_on_in_f16(rolled.cold_state))
    every = Call(name="every step", keys=(0, case.n_kv))
    both, right = expected.after_both, oracle.finalise(expected.exact)
    left_by_cold = Left(output=rolled.cold_output, state=rolled.cold_state)
    of_all = (
        _state("fifo_state_vs_oracle", every, rolled.cold_state, expected.after_cold),
        _result_of_state("fifo_result_vs_state", every, left_by_cold),
        _state("fifo_state_vs_oracle", every, rolled.state, both),
        _result("fifo_vs_oracle", every, rolled.output, both, right),
        _result_of_state("fifo_result_vs_state", every, rolled),
        *_same_left("fifo_again", every, again, rolled, "a graph for each call"),
    )
    rows = {name: rolling_oracle.one_row(case, cold=name == "cold") for name in ("cold", "hot")}
    for step, n_cold in enumerate(rolling.n_cold(case).tolist()):
        cold, hot = (
            Call(
                name=f"{name} call of step {step}",
                keys=keys,
                path=(path_ := expect.path(rows[name], n_kv)),
                index=step,
                f16_numerators=expect.arithmetic(rows[name], path_).f16_numerators,
            )
            for name, n_kv, keys in (
                ("cold", n_cold, (0, n_cold)),
                ("hot", case.hot_window, (n_cold, step + 1)),
            )
        )
        in_graph = replace(hot, name=f"{hot.name} in one graph")
        calls = (*[cold] * 2, *[hot] * 3, *[in_graph] * 2)
        for of_step, check in zip(calls, of_all, strict=True):
            yield _of_row(check, step, of_step)


def _chain(
    expect: Expectations,
    mode: str,
    calls: Sequence[Call],
    lefts: Sequence[Left],
    expected: Sequence[Expected],
    last: Region | None = None,
) -> Iterator[Check]:
    """Yield the checks of a chain against the oracle; its last result must lie in `last`, too."""
    prefix = "" if mode == "segmented" else f"{mode}_"
    for call, left, after, right in zip(calls, lefts, expected, expect.outputs, strict=True):
        yield _state(f"{prefix}state_vs_oracle", call, left.state, after)
        yield _result(f"{prefix}prefix_vs_oracle", call, left.output, after, right)
    end = _result(
        f"{mode}_vs_oracle", calls[-1], lefts[-1].output, expected[-1], expect.outputs[-1], last
    )
    yield replace(end, is_decisive=True)


def _one_graph(
    mode: str,
    calls: Sequence[Call],
    chain: Chain,
    what: str = "one_graph",
    other: str = "the chain in a graph for each call",
) -> Iterator[Check]:
    """Yield the checks of a chain in one graph, of which only the last state is known."""
    outputs, state = chain.one_graph
    name = f"{what}_vs_{mode}"
    for i, (call, output, left) in enumerate(zip(calls, outputs, chain.calls, strict=True)):
        in_graph = replace(call, name=f"{call.name} in one graph")
        if i == len(outputs) - 1:
            yield _same_state(name, in_graph, state, left.state, other)
        yield _same(name, in_graph, output, left.output, other)


def result_region(left: Left | Rolled) -> Region:
    """Return where the result of a state's rows lies: VKQ / S, and 0 of a row that saw no key.

    Every path ends in the same way. It stores the F32 numbers M, S and VKQ of a row, the sinks of
    the last call among them, takes 1 / S of that S, and multiplies that VKQ by it. (The vec path
    turns F16 numerators into F32 before either; split-KV joins its partials and the state first.)
    So there are two roundings, each of u = 2^-24 relative: at most 2 u + u^2 in all. S is at least
    about 1, since the key at the maximum adds exp(0), and at most the number of keys, so 1 / S is a
    normal number; a product below F32's normal range is off by half the spacing there, 2^-150. Only
    a state that was set by hand has a smaller S: where 1 / S is beyond F32, anything may follow.
    """
    rows = left.state.astype(np.float64)
    s = rows[..., 1:2]
    seen = s != 0
    result = np.divide(rows[..., 2:], s, out=np.zeros_like(rows[..., 2:]), where=seen)
    bound = 2.1 * bounds.U32 * np.abs(result) + 2.0**-149 * seen
    bound = np.where(np.isfinite(result), bound, 0.0)
    with np.errstate(all="ignore"):
        is_lost = np.isinf(np.float32(1) / left.state[..., 1:2]) & seen
    return Region(result, np.where(is_lost, np.inf, bound))


def reduced_region(states: Sequence[F32]) -> Region:
    """Return where the result of states lies that are reduced in any order.

    Sums of numerators and S are off by at most what `bounds.merged_rows` says. So a quotient of the
    two is at most that of the largest numerator and the smallest S; then it is rounded as in
    `result_region`.
    """
    rows, bound, _ = bounds.merged_rows(states)
    s, vkq = rows[..., 1:2], rows[..., 2:]
    with np.errstate(all="ignore"):
        result = np.divide(vkq, s, out=np.zeros_like(vkq), where=s != 0)
        smallest = s - bound[..., 1:2]
        largest = np.where(smallest > 0, (np.abs(vkq) + bound[..., 2:]) / smallest, np.inf)
        off = largest - np.abs(result) + 2.1 * bounds.U32 * largest + 2.0**-149
    off = np.where((s != 0) & np.isfinite(result), off, 0.0)
    return Region(result, np.where(np.isposinf(bound[..., 2:]), np.inf, off))


def _state(name: str, call: Call, state: F32, expected: Expected) -> Check:
    """Return the check of a state against the oracle's, brought to the rows' own maximum."""
    region, numerators = expected.state_region(state), expected.truth.vkq
    return Check(
        name=name, call=call, is_state=True, got=state, expected=region.centre, region=region,
        numerators=numerators,
    )  # fmt: skip


def _result(
    name: str, call: Call, output: F32, expected: Expected, right: F64, region: Region | None = None
) -> Check:
    """Return the check of a result against the oracle's, `right`."""
    return Check(
        name=name, call=call, is_state=False, got=output, expected=right,
        region=region or expected.region, numerators=expected.truth.vkq,
    )  # fmt: skip


def _results_of_states(name: str, calls: Sequence[Call], lefts: Sequence[Left]) -> Iterator[Check]:
    for call, left in zip(calls, lefts, strict=True):
        yield _result_of_state(name, call, left)


def _result_of_state(name: str, call: Call, left: Left | Rolled) -> Check:
    """Return the check of a result against the state that the same call wrote.

    Expected is what F32 makes of it, which a correct library as a rule has bit for bit.
    """
    s = left.state[..., 1:2]
    with np.errstate(all="ignore"):
        expected = left.state[..., 2:] * np.where(s == 0, np.float32(0), np.float32(1) / s)
    region = LateRegion(functools.partial(result_region, left))
    return _same(name, call, left.output, expected, "its state", region)


def _same_left(
    name: str, call: Call, got: Left | Rolled, expected: Left | Rolled, other: str
) -> Iterator[Check]:
    """Yield the checks of a call that has to leave the bits that another has left."""
    yield _same_state(name, call, got.state, expected.state, other)
    yield _same(name, call, got.output, expected.output, other)


def _same_state(
    name: str, call: Call, got: F32, expected: F32 | F64, other: str, near: Region | None = None
) -> Check:
    """Return the check of a state that has to be another's: see `_same`."""
    return replace(_same(name, call, got, expected, other, near), is_state=True)


def _same(
    name: str, call: Call, got: F32, expected: F32 | F64, other: str, near: Region | None = None
) -> Check:
    """Return the check of what has to be another's, bit for bit or within a region."""
    return Check(
        name=name, call=call, is_state=False, got=got, expected=expected, region=near, other=other
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
        region=region and Region(region.centre[at], region.bound[at]),
        numerators=None if numerators is None else numerators[at],
        first_row=row,
    )


def _uncut(case: Case) -> str:
    """Return the mode whose chain a chain that is cut, or a first part, must agree with."""
    return "mixed" if case.segment_types else "segmented"


def _uncut_calls(case: Case, results: ByMode) -> tuple[Left, ...] | None:
    if case.segment_types:
        return results["mixed"].first.calls if "mixed" in results else None
    return results["segmented"].calls if "segmented" in results else None
