import dataclasses
import functools
import itertools
import re
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fa_harness.arrays import F32
from fa_harness.case.case import Case
from fa_harness.case.inputs import Inputs, make_inputs
from fa_harness.case.modes import Chain, Left, Merged, Run
from fa_harness.engine import state_file as state
from fa_harness.engine.compute import run_case
from fa_harness.engine.ggml import Ggml
from fa_harness.engine.layout import CaseTensors, rows_of
from fa_harness.judge import bounds, contract, oracle
from fa_harness.judge.compare import Check
from fa_harness.judge.contract import promised
from fa_harness.judge.verdict import Verdict, judge
from fa_harness.kernel import chain_is_exact
from runs import changed, does_not_hold

Fault = Callable[[Case, Inputs, Run], Run]

VEC = Case(
    hsk=64, hsv=32, n_head_kv=2, n_group=2, ne3=2, n_kv=90, n_batch=3, segments=3, regime="rising",
    type_K="f32", type_V="f32",
)  # fmt: skip
LEADING = VEC.with_(mask_kind="leading", regime="normal")
SPLIT_KV = VEC.with_(n_group=2, ne3=1, n_kv=600, n_batch=1, threads=2)
TILED = VEC.with_(n_group=2, ne3=1, n_batch=64)


@pytest.fixture(scope="session")
def compute(library: Ggml) -> Callable[[Case], Run]:
    """Compute a case on the patched library, once."""
    return functools.cache(lambda case: run_case(library, case, make_inputs(case)))


Compute = Callable[[Case], Run]


def judged(case: Case, run: Run) -> Verdict:
    return judge(case, make_inputs(case), run, features=())


def chain_of(run: Run) -> Chain:
    return run.results["segmented"]


def with_steps(run: Run, *steps: Left) -> Run:
    """Return the run with another chain, its graph a call at a time."""
    chain = dataclasses.replace(chain_of(run), calls=steps)
    return changed(run, segmented=chain)


def with_one_graph(run: Run, outputs: tuple[F32, ...], state: F32) -> Run:
    """Return the run with another chain in one graph."""
    chain = dataclasses.replace(chain_of(run), one_graph=(outputs, state))
    return changed(run, segmented=chain)


def with_last(run: Run, *, output: F32 | None = None, state: F32 | None = None) -> Run:
    """Return the run with another last step of the chain, in both ways of computing it."""
    chain = chain_of(run)
    last = chain.calls[-1]
    last = Left(
        output=last.output if output is None else output,
        state=last.state if state is None else state,
    )
    changed = with_steps(run, *chain.calls[:-1], last)
    return with_one_graph(changed, (*chain.one_graph[0][:-1], last.output), last.state)


def last_step(run: Run) -> Left:
    return chain_of(run).calls[-1]


def segment_alone(case: Case, inputs: Inputs, i: int) -> oracle.Partial:
    return oracle.attend(case, inputs, *list(itertools.pairwise(case.segment_bounds()))[i])


def reset_numerators(case: Case, inputs: Inputs, run: Run) -> Run:
    whole = oracle.attend(case, inputs, 0, case.n_kv)
    last = segment_alone(case, inputs, -1)
    share = oracle.weight(last.m, whole.m)[..., None]
    return with_last(run, output=(share * last.vkq / whole.s[..., None]).astype(np.float32))


def last_segment_only(case: Case, inputs: Inputs, run: Run) -> Run:
    output = oracle.finalise(segment_alone(case, inputs, -1)).astype(np.float32)
    return with_last(run, output=output)


def first_segment_dropped(case: Case, inputs: Inputs, run: Run) -> Run:
    start = case.segment_bounds()[1]
    rest = oracle.attend(case, inputs, start, case.n_kv)
    return with_last(run, output=oracle.finalise(rest).astype(np.float32))


def numerators_not_rescaled(case: Case, inputs: Inputs, run: Run) -> Run:
    parts = [segment_alone(case, inputs, i) for i in range(case.segments)]
    whole = oracle.attend(case, inputs, 0, case.n_kv)
    vkq = np.sum([part.vkq for part in parts], axis=0)
    return with_last(run, output=(vkq / whole.s[..., None]).astype(np.float32))


def s_not_rescaled(case: Case, inputs: Inputs, run: Run) -> Run:
    parts = [segment_alone(case, inputs, i) for i in range(case.segments)]
    whole = oracle.attend(case, inputs, 0, case.n_kv)
    s = np.sum([part.s for part in parts], axis=0)
    return with_last(run, output=(whole.vkq / s[..., None]).astype(np.float32))


def normalised_twice(case: Case, inputs: Inputs, run: Run) -> Run:
    step = last_step(run)
    return with_last(run, output=step.output / step.state[..., 1:2])


def never_normalised(case: Case, inputs: Inputs, run: Run) -> Run:
    return with_last(run, output=last_step(run).state[..., 2:].copy())


def rows_swapped(case: Case, inputs: Inputs, run: Run) -> Run:
    return with_last(run, output=last_step(run).output[:, :, [1, 0, 2]])


def heads_swapped(case: Case, inputs: Inputs, run: Run) -> Run:
    return with_last(run, output=last_step(run).output[:, [1, 0, 2, 3]])


def sequences_swapped(case: Case, inputs: Inputs, run: Run) -> Run:
    return with_last(run, output=last_step(run).output[::-1])


def output_of_zero(case: Case, inputs: Inputs, run: Run) -> Run:
    return with_last(run, output=np.zeros_like(last_step(run).output))


def row_not_computed(case: Case, inputs: Inputs, run: Run) -> Run:
    output = last_step(run).output.copy()
    output[1, 2, 1] = np.nan
    return with_last(run, output=output)


def one_nan(case: Case, inputs: Inputs, run: Run) -> Run:
    output = last_step(run).output.copy()
    output[1, 3, 2, 17] = np.nan
    return with_last(run, output=output)


def one_infinity(case: Case, inputs: Inputs, run: Run) -> Run:
    output = last_step(run).output.copy()
    output[1, 3, 2, 17] = np.inf
    return with_last(run, output=output)


@pytest.mark.parametrize("case", [VEC, SPLIT_KV, TILED, LEADING], ids=lambda case: case.mask_kind)
def test_a_correct_run_passes(compute: Compute, case: Case) -> None:
    verdict = judged(case, compute(case))
    assert (verdict.status, verdict.reason) == ("pass", "")


@pytest.mark.parametrize(
    "fault",
    [
        reset_numerators,
        last_segment_only,
        first_segment_dropped,
        numerators_not_rescaled,
        s_not_rescaled,
        normalised_twice,
        never_normalised,
        rows_swapped,
        heads_swapped,
        sequences_swapped,
        output_of_zero,
        row_not_computed,
        one_nan,
        one_infinity,
    ],
)
def test_a_wrong_chain_fails(compute: Compute, fault: Fault) -> None:
    broken = fault(VEC, make_inputs(VEC), compute(VEC))
    verdict = judged(VEC, broken)
    assert verdict.status == "fail"
    assert does_not_hold(verdict, "segmented vs standard: must be bit-identical, differs by ")
    oracle_only = changed(broken, full_state=None)
    assert not judged(VEC, oracle_only).comparisons["segmented_vs_oracle"].ok


@pytest.mark.parametrize(
    "fault",
    [
        reset_numerators,
        last_segment_only,
        first_segment_dropped,
        numerators_not_rescaled,
        s_not_rescaled,
        never_normalised,
        heads_swapped,
        output_of_zero,
    ],
)
@pytest.mark.parametrize("case", [SPLIT_KV, TILED], ids=["split-kv", "tiled"])
def test_a_wrong_chain_fails_where_the_paths_differ(
    compute: Compute, fault: Fault, case: Case
) -> None:
    verdict = judged(case, fault(case, make_inputs(case), compute(case)))
    assert verdict.status == "fail"
    assert not verdict.comparisons["segmented_vs_standard"].ok
    assert not verdict.comparisons["segmented_vs_oracle"].ok


def test_the_reason_names_the_place_of_the_largest_difference(compute: Compute) -> None:
    run = compute(VEC)
    output = last_step(run).output.copy()
    output[0, 1, 2, 3] += np.float32(0.25)
    output[1, 3, 2, 17] += np.float32(4)
    verdict = judged(VEC, with_last(run, output=output))
    assert re.fullmatch(
        r"prefix vs oracle: 4\.00e\+00, allowed \S+ at batch 1, head 3, row 2, element 17",
        verdict.reason,
    )


def test_the_reason_gives_the_difference_and_what_is_allowed_at_the_same_place(
    compute: Compute,
) -> None:
    run = compute(VEC)
    standard = run.results["standard"].output.copy()
    standard[0, 1, 2, 3] += np.float32(0.25)
    verdict = judged(VEC, changed(run, standard=standard, standard_again=standard))
    assert verdict.status == "fail"
    comparison = verdict.comparisons["standard_vs_oracle"]
    assert verdict.reason == (
        "standard vs oracle: 2.50e-01, "
        f"allowed {comparison.bound:.2e} at batch 0, head 1, row 2, element 3"
    )
    assert comparison.bound < 1e-3


def change(array: F32, index: tuple[int, ...], factor: float) -> F32:
    changed: F32 = array.copy()
    changed[index] *= np.float32(factor)
    return changed


STATE_FAULTS: dict[str, Callable[[F32, F32], F32]] = {
    "M not stored": lambda state, before: np.concatenate(
        [before[..., :1], state[..., 1:]], axis=-1
    ),
    "S not stored": lambda state, before: np.concatenate(
        [state[..., :1], before[..., 1:2], state[..., 2:]], axis=-1
    ),
    "VKQ not stored": lambda state, before: np.concatenate(
        [state[..., :2], before[..., 2:]], axis=-1
    ),
    "nothing stored": lambda state, before: before,
    "VKQ normalised": lambda state, before: np.concatenate(
        [state[..., :2], state[..., 2:] / state[..., 1:2]], axis=-1
    ),
    "M in base 2": lambda state, before: np.concatenate(
        [state[..., :1] * np.float32(np.log2(np.e)), state[..., 1:]], axis=-1
    ),
    "S of another row": lambda state, before: np.concatenate(
        [state[..., :1], state[:, :, ::-1, 1:2], state[..., 2:]], axis=-1
    ),
    "rows swapped": lambda state, before: state[:, :, [1, 0, 2]],
    "heads and rows swapped": lambda state, before: np.ascontiguousarray(
        state.swapaxes(1, 2)
    ).reshape(state.shape),
    "one numerator": lambda state, before: change(state, (1, 2, 0, 9), 1.01),
    "one S": lambda state, before: change(state, (1, 2, 0, 1), 1.001),
    "a row marked as fresh": lambda state, before: change(state, (0, 0, 0, 0), -np.inf),
}


@pytest.mark.parametrize("fault", STATE_FAULTS.values(), ids=STATE_FAULTS)
@pytest.mark.parametrize("segment", [0, 1])
def test_a_wrong_state_within_a_chain_fails(
    compute: Compute, fault: Callable[[F32, F32], F32], segment: int
) -> None:
    run = compute(VEC)
    steps = list(chain_of(run).calls)
    fresh = np.full_like(steps[0].state, np.nan)
    fresh[..., 0] = -np.inf
    before = fresh if segment == 0 else steps[segment - 1].state
    steps[segment] = Left(output=steps[segment].output, state=fault(steps[segment].state, before))
    verdict = judged(VEC, with_steps(run, *steps))
    assert verdict.status == "fail"
    assert does_not_hold(verdict, "state vs oracle: ")


def test_a_wrong_state_of_the_full_call_fails(compute: Compute) -> None:
    run = compute(VEC)
    wrong = Left(
        output=run.results["full_state"].first.output,
        state=change(run.results["full_state"].first.state, (1, 0, 2, 1), 1.01),
    )
    broken = changed(run, full_state=wrong, full_state_again=wrong, segmented=None)
    verdict = judged(VEC, broken)
    assert verdict.status == "fail"
    assert does_not_hold(verdict, "full state state vs oracle: ")
    assert verdict.reason.endswith("at batch 1, head 0, row 2, S")


def test_a_wrong_result_of_a_prefix_fails(compute: Compute) -> None:
    run = compute(VEC)
    first, *rest = chain_of(run).calls
    wrong = Left(output=change(first.output, (1, 0, 2, 5), 1.5), state=first.state)
    verdict = judged(VEC, with_steps(run, wrong, *rest))
    assert verdict.status == "fail"
    assert does_not_hold(verdict, "prefix vs oracle: ")
    assert verdict.reason.endswith("at batch 1, head 0, row 2, element 5")


def one_bit(array: F32, index: tuple[int, ...]) -> F32:
    changed: F32 = array.copy()
    changed[index] = np.nextafter(changed[index], np.float32(np.inf))
    return changed


HERE = (1, 3, 2, 4)


def _repeat_of_standard(run: Run) -> Run:
    return changed(run, standard_again=one_bit(run.results["standard"].output, HERE))


def _repeat_of_full_state(run: Run) -> Run:
    again = Left(
        output=one_bit(run.results["full_state"].first.output, HERE),
        state=run.results["full_state"].first.state,
    )
    return changed(run, full_state_again=again)


def _repeated_state(run: Run) -> Run:
    again = Left(
        output=run.results["full_state"].first.output,
        state=one_bit(run.results["full_state"].first.state, HERE),
    )
    return changed(run, full_state_again=again)


def _full_state(run: Run) -> Run:
    step = Left(
        output=one_bit(run.results["full_state"].first.output, HERE),
        state=run.results["full_state"].first.state,
    )
    return changed(run, full_state=step, full_state_again=step)


def _segmented(run: Run) -> Run:
    return with_last(run, output=one_bit(last_step(run).output, HERE))


def _segmented_state(run: Run) -> Run:
    return with_last(run, state=one_bit(last_step(run).state, HERE))


def _one_graph(run: Run) -> Run:
    outputs, state = chain_of(run).one_graph
    changed = (outputs[0], one_bit(outputs[1], HERE), *outputs[2:])
    return with_one_graph(run, changed, state)


def _one_graph_state(run: Run) -> Run:
    outputs, state = chain_of(run).one_graph
    return with_one_graph(run, outputs, one_bit(state, HERE))


@pytest.mark.parametrize(
    ("fault", "comparison"),
    [
        (_repeat_of_standard, "standard again"),
        (_repeat_of_full_state, "full state again"),
        (_repeated_state, "full state again"),
        (_full_state, "full state vs standard"),
        (_segmented, "segmented vs standard"),
        (_segmented_state, "state vs full state"),
        (_one_graph, "one graph vs segmented"),
        (_one_graph_state, "one graph vs segmented"),
    ],
)
def test_the_last_bit_matters_where_bits_are_promised(
    compute: Compute, fault: Callable[[Run], Run], comparison: str
) -> None:
    verdict = judged(VEC, fault(compute(VEC)))
    assert verdict.status == "fail"
    assert does_not_hold(verdict, f"{comparison}: must be bit-identical, differs by ")
    # of a state it is the number before: M and S come first
    assert verdict.reason.endswith(
        ("at batch 1, head 3, row 2, element 4", "at batch 1, head 3, row 2, element 2")
    )


@pytest.mark.parametrize("case", [TILED, SPLIT_KV], ids=["tiled", "split-kv"])
def test_the_last_bit_of_the_full_call_matters_on_every_path(compute: Compute, case: Case) -> None:
    run = compute(case)
    output = one_bit(run.results["full_state"].first.output, (0, 3, 0, 4))
    step = dataclasses.replace(run.results["full_state"].first, output=output)
    verdict = judged(case, changed(run, full_state=step, full_state_again=step))
    assert verdict.status == "fail"
    assert does_not_hold(verdict, "full state vs standard: must be bit-identical")


def test_a_tiled_chain_is_compared_bit_for_bit_only_where_it_is_cut_at_tiles(
    compute: Compute,
) -> None:
    def required(*boundaries: int) -> str:
        case = TILED.with_(boundaries=boundaries, segments=len(boundaries) + 1)
        return judged(case, compute(case)).comparisons["segmented_vs_full_state"].required

    assert required(64) == "bits"
    assert required(64, 90) == "bits"
    assert required(30, 64) == "bound"


def test_a_chain_on_other_paths_than_the_full_call_is_compared_within_a_bound(
    compute: Compute,
) -> None:
    verdict = judged(SPLIT_KV, compute(SPLIT_KV))
    assert verdict.status == "pass"
    assert verdict.comparisons["segmented_vs_full_state"].required == "bound"
    assert verdict.comparisons["full_state_vs_standard"].bitwise


def test_a_zero_of_the_other_sign_is_not_the_same_bits(compute: Compute) -> None:
    run = compute(LEADING)
    output = run.results["full_state"].first.output.copy()
    assert not output[:, :, 0].any()
    output[1, 0, 0, 5] = -0.0
    step = Left(output=output, state=run.results["full_state"].first.state)
    verdict = judged(LEADING, changed(run, full_state=step))
    assert verdict.status == "fail"
    assert "0 and -0 differ" in verdict.reason


def test_a_fully_masked_row_that_is_not_0_fails(compute: Compute) -> None:
    run = compute(LEADING)
    standard = run.results["standard"].output.copy()
    standard[0, 0, 0, 0] = 1e-30
    verdict = judged(LEADING, changed(run, standard=standard, standard_again=standard))
    assert verdict.status == "fail"
    assert verdict.reason.startswith("standard vs oracle: 1.00e-30, allowed 0.00e+00 at batch 0")


def test_a_fully_masked_row_marked_as_continued_fails(compute: Compute) -> None:
    run = compute(LEADING)
    first, *rest = chain_of(run).calls
    state = first.state.copy()
    assert np.isneginf(state[0, 0, 0, 0])
    state[0, 0, 0, 0] = 0
    first = Left(output=first.output, state=state)
    verdict = judged(LEADING, with_steps(run, first, *rest))
    assert verdict.status == "fail"
    assert verdict.reason.startswith("state vs oracle: inf")


def test_inputs_that_were_written_fail(compute: Compute) -> None:
    run = dataclasses.replace(compute(VEC), inputs_written=("k", "mask[0:30]"))
    verdict = judged(VEC, run)
    assert (verdict.status, verdict.reason) == (
        "fail",
        "the op wrote to its inputs: k, and 1 more",
    )


def test_what_was_written_outside_is_the_reason_before_numbers_that_are_wrong(
    compute: Compute,
) -> None:
    run = output_of_zero(VEC, make_inputs(VEC), compute(VEC))
    found = ("segmented: 4 bytes behind dst", "mixed: 4 bytes behind k", "fifo: 4 bytes behind q")
    for n, more in ((1, ""), (2, ", and 1 more"), (3, ", and 2 more")):
        written = dataclasses.replace(run, outside_written=found[:n], inputs_written=("k",))
        verdict = judged(VEC, written)
        assert (verdict.status, verdict.reason) == (
            "fail",
            f"the op wrote outside its tensors: segmented: 4 bytes behind dst{more}",
        )
        assert verdict.localisation == judged(VEC, run).localisation is not None


def test_another_work_size_with_a_state_fails(compute: Compute) -> None:
    run = dataclasses.replace(compute(VEC), work_size={"standard": 1024, "full_state": 2048})
    verdict = judged(VEC, run)
    assert (verdict.status, verdict.reason) == (
        "fail",
        "the work size is 2048 bytes with a state, 1024 without",
    )


def test_a_mode_that_is_much_worse_than_the_standard_run_fails(compute: Compute) -> None:
    run = compute(TILED)
    verdict = judged(TILED, run)
    typical = verdict.comparisons["full_state_vs_oracle"].max_abs
    worse = run.results["full_state"].first.output + np.float32(30 * typical)
    step = Left(output=worse, state=run.results["full_state"].first.state)
    verdict = judged(TILED, changed(run, full_state=step, full_state_again=step))
    assert not verdict.comparisons["full_state_vs_oracle"].ok


# a result against the state of its own call


def another(left: Any, name: str = "output") -> Any:
    """Return what a call left with results that are off by some roundings, and no more."""
    return dataclasses.replace(left, **{name: getattr(left, name) * np.float32(1 + 2**-21)})


TYPED = VEC.with_(segment_types=("f16", "q8_0", "f32"))
ROLLING = Case(
    hsk=64, hsv=64, n_head_kv=2, n_group=2, n_kv=12, n_batch=12, mask_kind="causal",
    regime="normal", hot_window=4, group=2, cold_type="q8_0",
)  # fmt: skip


def of_full_state(run: Run) -> Run:
    left = another(run.results["full_state"].first)
    return changed(run, full_state=left, full_state_again=left)


def of_the_second_segment(run: Run) -> Run:
    first, second, last = chain_of(run).calls
    return with_steps(run, first, another(second), last)


def of_the_last_segment(run: Run) -> Run:
    last = another(last_step(run))
    return with_last(run, output=last.output)


def of_a_part(run: Run) -> Run:
    merged = run.results["merged"]
    parts = (*merged.parts[:1], another(merged.parts[1]), *merged.parts[2:])
    return changed(run, merged=dataclasses.replace(merged, parts=parts))


def of_a_resumed_chain(run: Run) -> Run:
    first, *rest = run.results["resumed"]
    return changed(run, resumed=(another(first), *rest), segmented=None)


def of_a_mixed_chain(run: Run) -> Run:
    chain = run.results["mixed"].first
    chain = dataclasses.replace(chain, calls=(*chain.calls[:-1], another(chain.calls[-1])))
    return changed(run, mixed=chain, mixed_again=chain)


def of_hot_tokens(run: Run) -> Run:
    rolled = another(run.results["fifo"].first)
    return changed(run, fifo=rolled, fifo_again=rolled)


def of_cold_tokens(run: Run) -> Run:
    rolled = another(run.results["fifo"].first, "cold_output")
    return changed(run, fifo=rolled, fifo_again=rolled)


@pytest.mark.parametrize(
    ("case", "change", "name", "seen_by_the_oracle"),
    [
        *(
            (case, change, name, oracle_name)
            for case in (VEC, TILED, SPLIT_KV)
            for change, name, oracle_name in (
                (of_full_state, "full_state_result_vs_state", "full_state_vs_oracle"),
                (of_the_second_segment, "result_vs_state", "prefix_vs_oracle"),
                (of_the_last_segment, "result_vs_state", "segmented_vs_oracle"),
                (of_a_part, "part_result_vs_state", "part_vs_oracle"),
                (of_a_resumed_chain, "resumed_result_vs_state", "resumed_prefix_vs_oracle"),
            )
        ),
        (TYPED, of_a_mixed_chain, "mixed_result_vs_state", "mixed_vs_oracle"),
        (ROLLING, of_hot_tokens, "fifo_result_vs_state", "fifo_vs_oracle"),
        (ROLLING, of_cold_tokens, "fifo_result_vs_state", "fifo_vs_oracle"),
    ],
)
def test_a_result_that_is_near_the_oracle_s_and_not_its_state_s_fails(
    compute: Compute, case: Case, change: Callable[[Run], Run], name: str, seen_by_the_oracle: str
) -> None:
    run = compute(case)
    assert judged(case, run).status == "pass"
    verdict = judged(case, change(run))
    assert verdict.status == "fail"
    assert not verdict.comparisons[name].ok
    assert verdict.comparisons[name].required == "bound"
    assert verdict.comparisons[seen_by_the_oracle].ok


@pytest.mark.parametrize("case", [VEC, TILED, LEADING], ids=lambda case: case.mask_kind)
def test_a_result_that_is_divided_by_s_is_its_state_s_too(compute: Compute, case: Case) -> None:
    left = compute(case).results["full_state"].first
    s = left.state[..., 1:2]
    divided = (left.state[..., 2:] / np.where(s == 0, 1, s)).astype(np.float32)
    assert divided.tobytes() != left.output.tobytes()
    left = Left(output=divided, state=left.state)
    verdict = judged(case, changed(compute(case), full_state=left, full_state_again=left))
    assert verdict.comparisons["full_state_result_vs_state"].ok
    assert not verdict.comparisons["full_state_vs_standard"].ok


def test_a_row_that_saw_no_key_has_no_result_but_0(compute: Compute) -> None:
    left = compute(LEADING).results["full_state"].first
    assert left.state[0, 0, 0, 1] == 0
    output = left.output.copy()
    output[0, 0, 0, 3] = 2.0**-149
    left = Left(output=output, state=left.state)
    verdict = judged(LEADING, changed(compute(LEADING), full_state=left, full_state_again=left))
    found = verdict.comparisons["full_state_result_vs_state"]
    assert (found.ok, found.bound) == (False, 0.0)


def test_where_1_over_s_is_beyond_f32_anything_may_follow_and_only_there() -> None:
    state = np.array([[[[0, 2.0**-140, 2.0**-140, 1], [0, 2, 2.0**-140, 1]]]], np.float32)
    region = contract.result_region(Left(output=state[..., 2:], state=state))
    assert np.isposinf(region.bound[0, 0, 0]).all()
    assert (region.bound[0, 0, 1] < 1e-6).all()


# independent states, merged

MERGE = VEC.with_(segments=5, mask_kind="leading", regime="normal", sinks=True)


def with_reductions(run: Run, state: F32, output: F32 | None = None) -> Run:
    """Return the run with another state, and the result from it, of every reduction."""
    if output is None:
        output = np.divide(state[..., 2:], state[..., 1:2], out=np.zeros_like(state[..., 2:]),
                           where=state[..., 1:2] != 0)  # fmt: skip
    step = Left(output=output, state=state)
    merged = dataclasses.replace(
        run.results["merged"], in_turn=step, in_turn_again=step, swapped=step, pairwise=step,
        shuffled=step,
        with_fresh=(state, state),
    )  # fmt: skip
    return changed(run, merged=merged)


def merged_of(run: Run) -> Merged:
    return run.results["merged"]


def merge_states(states: Sequence[F32], *, by_s: bool = False) -> F32:
    """Merge states in float64, with each part's numerators times its S if asked to."""
    rows = [state.astype(np.float64) for state in states]
    m = functools.reduce(np.maximum, [row[..., 0] for row in rows])
    sums = np.zeros_like(rows[0])
    for row in rows:
        weight = oracle.weight(row[..., 0], m)[..., None]
        sums[..., 1:2] += weight * row[..., 1:2]
        sums[..., 2:] += weight * row[..., 2:] * (row[..., 1:2] if by_s else 1)
    sums[..., 0] = m
    merged: F32 = sums.astype(np.float32)
    return merged


def weighted_by_s_again(run: Run) -> Run:
    states = [part.state for part in merged_of(run).parts]
    return with_reductions(run, merge_states(states, by_s=True))


def last_part_wins(run: Run) -> Run:
    return with_reductions(run, merged_of(run).parts[-1].state)


def a_part_dropped(run: Run) -> Run:
    first, _, *rest = (part.state for part in merged_of(run).parts)
    return with_reductions(run, merge_states([first, *rest]))


def m_of_the_first(run: Run) -> Run:
    state = merged_of(run).in_turn.state.copy()
    state[..., 0] = merged_of(run).parts[0].state[..., 0]
    return with_reductions(run, state)


def not_rescaled(run: Run) -> Run:
    state = merged_of(run).in_turn.state.copy()
    state[..., 2:] = np.sum([part.state[..., 2:] for part in merged_of(run).parts], axis=0)
    return with_reductions(run, state)


def nan_in_rows_without_keys(run: Run) -> Run:
    state = merged_of(run).parts[0].state
    nan = np.where(np.isneginf(state[..., :1]), np.float32(np.nan), merged_of(run).in_turn.state)
    return with_reductions(run, nan)


@pytest.mark.parametrize(
    "fault",
    [
        weighted_by_s_again,
        last_part_wins,
        a_part_dropped,
        m_of_the_first,
        not_rescaled,
        nan_in_rows_without_keys,
    ],
)
def test_states_that_are_merged_wrongly_fail(compute: Compute, fault: Callable[[Run], Run]) -> None:
    assert judged(MERGE, compute(MERGE)).status == "pass"
    verdict = judged(MERGE, fault(compute(MERGE)))
    assert verdict.status == "fail"
    assert not verdict.comparisons["merged_vs_parts"].ok
    assert not verdict.comparisons["merged_state_vs_oracle"].ok


@pytest.mark.parametrize("m", [np.inf, -np.inf, np.nan, 3e38, -3e38])
def test_an_m_that_no_kernel_should_leave_fails_as_any_other(compute: Compute, m: float) -> None:
    """And warns of nothing, whatever is reckoned with it."""
    merged = merged_of(compute(MERGE))
    *others, last = merged.parts
    state = last.state.copy()
    seen = np.argwhere(np.isfinite(state[..., 0]))[-1]
    state[tuple(seen)][0] = m
    parts = (*others, dataclasses.replace(last, state=state))
    run = changed(compute(MERGE), merged=dataclasses.replace(merged, parts=parts))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verdict = judged(MERGE, run)
    assert verdict.status == "fail"
    assert not verdict.comparisons["part_state_vs_oracle"].ok
    # what is far below the largest weighs nothing, and beside an infinite one nothing is promised
    if -1e38 < m < np.inf or np.isnan(m):
        assert not verdict.comparisons["merged_vs_parts"].ok


def one_s_off(state: F32, factor: float) -> F32:
    changed: F32 = state.copy()
    changed[1, 2, 2, 1] *= np.float32(factor)
    return changed


def _shuffled(merged: Merged) -> Merged:
    state = one_s_off(merged.shuffled.state, 1 + 2e-5)
    return dataclasses.replace(merged, shuffled=dataclasses.replace(merged.shuffled, state=state))


def _swapped(merged: Merged) -> Merged:
    state = one_s_off(merged.swapped.state, 1 + 1.5e-6)
    return dataclasses.replace(merged, swapped=dataclasses.replace(merged.swapped, state=state))


def _parts_written(merged: Merged) -> Merged:
    first, *rest = merged.parts_after
    return dataclasses.replace(merged, parts_after=(one_bit(first, HERE), *rest))


def _changed_by_a_fresh_state(merged: Merged) -> Merged:
    with_fresh = (merged.with_fresh[0], one_bit(merged.with_fresh[1], HERE))
    return dataclasses.replace(merged, with_fresh=with_fresh)


def _nan_of_two_fresh_states(merged: Merged) -> Merged:
    nan = Left(
        output=np.full_like(merged.fresh.output, np.nan),
        state=np.full_like(merged.fresh.state, np.nan),
    )
    return dataclasses.replace(merged, fresh=nan)


def _s_of_two_fresh_states(merged: Merged) -> Merged:
    state = merged.fresh.state.copy()
    state[1, 3, 2, 1] = 1
    return dataclasses.replace(merged, fresh=dataclasses.replace(merged.fresh, state=state))


def _repeat(merged: Merged) -> Merged:
    again = dataclasses.replace(
        merged.in_turn_again, output=one_bit(merged.in_turn_again.output, HERE)
    )
    return dataclasses.replace(merged, in_turn_again=again)


def _result(merged: Merged) -> Merged:
    output = change(merged.pairwise.output, HERE, 1 + 4e-7)
    return dataclasses.replace(merged, pairwise=dataclasses.replace(merged.pairwise, output=output))


def _first_part(merged: Merged) -> Merged:
    first = dataclasses.replace(merged.parts[0], output=one_bit(merged.parts[0].output, HERE))
    return dataclasses.replace(merged, parts=(first, *merged.parts[1:]))


def _wrong_part(merged: Merged) -> Merged:
    part = dataclasses.replace(merged.parts[2], output=change(merged.parts[2].output, HERE, 1.01))
    return dataclasses.replace(merged, parts=(*merged.parts[:2], part, *merged.parts[3:]))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (_shuffled, "merged vs parts: "),
        (_swapped, "merged swapped: "),
        (_parts_written, "parts after merge: must be bit-identical"),
        (_changed_by_a_fresh_state, "merged with fresh: must be bit-identical"),
        (_nan_of_two_fresh_states, "fresh merged: must be bit-identical"),
        (_s_of_two_fresh_states, "fresh merged: must be bit-identical"),
        (_repeat, "merged again: must be bit-identical"),
        (_result, "merged result vs state: "),
        (_first_part, "part vs chain: must be bit-identical"),
        (_wrong_part, "part vs oracle: "),
    ],
)
def test_a_merge_that_breaks_a_promise_fails(
    compute: Compute, fault: Callable[[Merged], Merged], reason: str
) -> None:
    run = compute(MERGE)
    verdict = judged(MERGE, changed(run, merged=fault(merged_of(run))))
    assert verdict.status == "fail"
    assert does_not_hold(verdict, reason)


def test_an_order_that_matters_beyond_rounding_shows_in_what_compares_the_orders(
    compute: Compute,
) -> None:
    run = compute(MERGE)
    merged = _shuffled(merged_of(run))
    verdict = judged(MERGE, changed(run, merged=merged))
    assert not verdict.comparisons["merged_in_any_order"].ok


# a chain that is cut


def test_the_last_bit_of_a_resumed_chain_matters(compute: Compute) -> None:
    run = compute(VEC)
    first, second, last = run.results["resumed"]
    second = dataclasses.replace(second, state=one_bit(second.state, HERE))
    verdict = judged(VEC, changed(run, resumed=(first, second, last)))
    assert verdict.status == "fail"
    assert does_not_hold(verdict, "resumed vs segmented: must be bit-identical, differs by ")


def test_a_resumed_chain_alone_is_compared_with_the_oracle(
    library: Ggml, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = make_inputs(VEC)
    alone = judged(VEC, run_case(library, VEC, inputs, ("resumed",)))
    assert alone.status == "pass"
    assert alone.modes == ("standard", "resumed")

    def lost(path: Path, case: Case) -> F32:
        fresh: F32 = state.load(path, case)
        fresh[..., 0] = -np.inf
        return fresh

    monkeypatch.setattr("fa_harness.engine.compute.state_file", types.SimpleNamespace(
        load=lost, save=state.save))  # fmt: skip
    verdict = judged(VEC, run_case(library, VEC, inputs, ("resumed",)))
    assert verdict.status == "fail"
    assert does_not_hold(verdict, "resumed vs oracle: ")


# segments of different types

MIXED = VEC.with_(segment_types=("q4_0", "q8_0", "f32/f16"), regime="normal")


def with_last_of_mixed(run: Run, last: Left) -> Run:
    """Return the run with another last step of the typed chain wherever it was computed."""
    steps = (*run.results["mixed"].first.calls[:-1], last)
    outputs, _ = run.results["mixed"].first.one_graph
    chain = Chain(calls=steps, one_graph=((*outputs[:-1], last.output), last.state))
    return changed(run, mixed=chain, mixed_again=chain, resumed=steps)


def continued_from(library: Ggml, case: Case, before: F32) -> Left:
    """Return the last step of a typed chain, computed on the state that is given."""
    segment = case.segment_bounds()[-2:]
    with library.context() as ctx, library.backend(case.threads) as backend:
        tensors = CaseTensors(ctx, case, make_inputs(case))
        rows = tensors.state()
        keys = tensors.own_segment(case.segments - 1)
        call = tensors.call(keys, (segment[0], segment[1]), sinks=True, state=rows)
        graph = ctx.graph([call])
        tensors.allocate(backend)
        rows.write(before)
        backend.compute(graph)
        return Left(output=rows_of(call), state=rows.read())


def _before_last(run: Run) -> F32:
    before: F32 = run.results["mixed"].first.calls[-2].state.copy()
    return before


@pytest.mark.parametrize("regime", ["normal", "rising", "falling", "ties", "outlier"])
@pytest.mark.parametrize(
    "case",
    [
        MIXED,
        MIXED.with_(segment_types=("q8_0", "f16"), segments=2),
        MIXED.with_(segment_types=("f32", "f16"), segments=2),
        MIXED.with_(segment_types=("bf16", "q8_0/f16"), segments=2),
    ],
    ids=lambda case: "+".join(case.segment_types),
)
def test_numerators_that_are_rounded_to_f16_before_an_f16_segment_fail(
    library: Ggml, compute: Compute, case: Case, regime: str
) -> None:
    case = case.with_(regime=regime)
    run = compute(case)
    assert judged(case, run).status == "pass"
    before = _before_last(run)
    assert judged(case, with_last_of_mixed(run, continued_from(library, case, before))).status == (
        "pass"
    )
    before[..., 2:] = before[..., 2:].astype(np.float16)
    verdict = judged(case, with_last_of_mixed(run, continued_from(library, case, before)))
    assert verdict.status == "fail"
    assert not verdict.comparisons["mixed_state_vs_oracle"].ok


def _reset(before: F32) -> F32:
    before[..., 2:] = 0
    return before


def _last_only(before: F32) -> F32:
    before[..., 0] = -np.inf
    return before


def _m_only(before: F32) -> F32:
    before[..., 1] = 0
    return before


@pytest.mark.parametrize("fault", [_reset, _last_only, _m_only])
def test_a_typed_chain_that_loses_some_of_its_state_fails(
    library: Ggml, compute: Compute, fault: Callable[[F32], F32]
) -> None:
    run = compute(MIXED)
    last = continued_from(library, MIXED, fault(_before_last(run)))
    verdict = judged(MIXED, with_last_of_mixed(run, last))
    assert verdict.status == "fail"
    assert does_not_hold(verdict, "mixed vs oracle: ")


def test_a_typed_chain_over_the_values_of_another_type_fails(
    library: Ggml, compute: Compute
) -> None:
    other = MIXED.with_(segment_types=("q4_1", "q8_0", "f32/f16"))
    run = changed(compute(MIXED), mixed=compute(other).results["mixed"].first)
    verdict = judged(MIXED, run)
    assert verdict.status == "fail"
    assert not verdict.comparisons["mixed_prefix_vs_oracle"].ok


@pytest.mark.parametrize(
    ("q_types", "is_right"),
    [
        (("q8_0", "q8_0", "f32"), True),
        (("q8_0", "q8_0", "q8_0"), False),  # the type of the first segment for all
        (("f32", "f32", "f32"), False),
        (("q8_0", "f16", "f32"), False),
    ],
)
def test_a_q_that_is_rounded_for_another_segment_s_type_fails(
    compute: Compute, q_types: tuple[str, ...], is_right: bool
) -> None:
    inputs = make_inputs(MIXED)
    limits = itertools.pairwise(MIXED.segment_bounds())
    whole = functools.reduce(
        oracle.merge,
        [
            oracle.attend(
                MIXED, dataclasses.replace(inputs, q=bounds.rounded_q(inputs.q, q_type)[0]), *pair
            )
            for pair, q_type in zip(limits, q_types, strict=True)
        ],
    )
    state = np.concatenate([whole.m[..., None], whole.s[..., None], whole.vkq], axis=-1)
    rows = state.astype(np.float32)
    last = Left(output=rows[..., 2:] / rows[..., 1:2], state=rows)
    verdict = judged(MIXED, with_last_of_mixed(compute(MIXED), last))
    assert verdict.comparisons["mixed_vs_oracle"].ok == is_right
    assert verdict.status == ("pass" if is_right else "fail")


@pytest.mark.parametrize("again", ["mixed_again", "one_graph", "resumed"])
def test_the_last_bit_of_a_typed_chain_matters(compute: Compute, again: str) -> None:
    run = compute(MIXED)
    *steps, last = run.results["mixed"].first.calls
    last = dataclasses.replace(last, state=one_bit(last.state, HERE))
    changes: dict[str, dict[str, Any]] = {
        "mixed_again": {
            "mixed_again": dataclasses.replace(run.results["mixed"].first, calls=(*steps, last)),
        },
        "one_graph": {
            "mixed": dataclasses.replace(
                run.results["mixed"].first,
                one_graph=(run.results["mixed"].first.one_graph[0], last.state),
            ),
        },
        "resumed": {"resumed": (*steps, last)},
    }
    verdict = judged(MIXED, changed(run, **changes[again]))
    name = {"one_graph": "one graph vs mixed", "resumed": "resumed vs mixed"}.get(again)
    assert verdict.status == "fail"
    assert does_not_hold(verdict, f"{name or 'mixed again'}: must be bit-identical")


def test_a_typed_chain_whose_keys_all_lie_in_one_segment_is_mistrusted(compute: Compute) -> None:
    case = MIXED.with_(boundaries=(0, 90))
    verdict = judged(case, compute(case))
    assert (verdict.status, verdict.reason) == (
        "mistrusted",
        "3 segments were asked for, and no row has keys in two",
    )


# mistrusted


@pytest.mark.parametrize("case", [VEC, SPLIT_KV, MIXED], ids=["vec", "split-kv", "mixed"])
def test_the_comparisons_that_modes_need_are_those_that_are_made(
    compute: Compute, case: Case
) -> None:
    run = compute(case)
    others = run.modes[1:]
    for asked in (
        some for n in range(len(others) + 1) for some in itertools.combinations(others, n)
    ):
        modes = ("standard", *asked)
        gone = [mode for mode in others if mode not in asked]
        verdict = judged(case, changed(run, **dict.fromkeys(gone)))
        exact = chain_is_exact(case)
        needed = [promised(mode, case, modes, is_exact=exact) for mode in modes]
        assert set(verdict.comparisons) == set().union(*needed)


def test_a_mode_that_was_asked_for_and_not_computed_is_mistrusted(compute: Compute) -> None:
    run = changed(compute(VEC), segmented=None, merged=None, resumed=None)
    assert judged(VEC, run).status == "pass"
    asked = ("full_state", "segmented")
    verdict = judge(VEC, make_inputs(VEC), run, features=(), modes=asked)
    assert verdict.status == "mistrusted"
    assert verdict.reason.startswith("mode segmented was asked for, and not compared: one_graph")


def test_no_comparison_can_disappear(compute: Compute, monkeypatch: pytest.MonkeyPatch) -> None:
    run, checks = compute(MIXED), contract.checks
    for name in judged(MIXED, run).comparisons:

        def forgets(*of: Any, name: str = name) -> Iterator[Check]:
            return (check for check in checks(*of) if check.name != name)

        with monkeypatch.context() as patch:
            patch.setattr(contract, "checks", forgets)
            verdict = judged(MIXED, run)
        assert verdict.status == "mistrusted"
        assert verdict.reason.endswith(f" was asked for, and not compared: {name}")


def test_outputs_that_are_all_0_are_mistrusted(library: Ggml) -> None:
    case = VEC.with_(n_batch=1, mask=True, mask_kind="zeros")
    inputs = make_inputs(case)
    assert inputs.mask is not None
    inputs = dataclasses.replace(inputs, mask=np.full_like(inputs.mask, -np.inf))
    verdict = judge(case, inputs, run_case(library, case, inputs), features=())
    assert (verdict.status, verdict.reason) == (
        "mistrusted",
        "every output is 0: nothing could differ",
    )


def test_a_chain_whose_keys_all_lie_in_one_segment_is_mistrusted(compute: Compute) -> None:
    case = VEC.with_(segments=3, boundaries=(0, 90))
    verdict = judged(case, compute(case))
    assert (verdict.status, verdict.reason) == (
        "mistrusted",
        "3 segments were asked for, and no row has keys in two",
    )


def test_a_chain_to_which_the_earlier_segments_add_nothing_is_mistrusted(
    library: Ggml,
) -> None:
    case = VEC.with_(segments=2, mask_kind="zeros")
    inputs = make_inputs(case)
    assert inputs.mask is not None
    mask = inputs.mask.copy()
    mask[..., :45] = -60000
    inputs = dataclasses.replace(inputs, mask=mask)
    verdict = judge(case, inputs, run_case(library, case, inputs), features=())
    assert verdict.status == "mistrusted"


def test_v_that_is_the_same_for_all_keys_is_mistrusted_where_a_lost_state_shows_nothing(
    library: Ggml,
) -> None:
    inputs = make_inputs(VEC)
    ones = np.ones_like(inputs.v)
    inputs = dataclasses.replace(inputs, v=ones, v_raw=ones.view(np.uint8))
    verdict = judge(VEC, inputs, run_case(library, VEC, inputs), features=())
    assert (verdict.status, verdict.reason) == (
        "mistrusted",
        "a lost state would stay within the bound in every row",
    )


def test_outputs_that_a_bound_exceeds_everywhere_are_mistrusted(library: Ggml) -> None:
    """F16 numerators near 10 that cancel to nothing: the output is noise."""
    case = VEC.with_(
        type_K="f16", type_V="f16", n_kv=4, n_batch=1, mask=False, mask_kind="none", segments=1,
        regime="constructed",
    )  # fmt: skip
    inputs = make_inputs(case)
    q = np.zeros_like(inputs.q)
    v = np.full_like(inputs.v, 1000)
    v[:, :, 2:] = -1000
    v[:, :, 3] = -1000.5
    raw = v.astype(np.float16).view(np.uint8)
    inputs = dataclasses.replace(inputs, q=q, v=v, v_raw=raw)
    verdict = judge(case, inputs, run_case(library, case, inputs), features=())
    assert (verdict.status, verdict.reason) == (
        "mistrusted",
        "the bound is above every output: an output of 0 would pass",
    )


# upstream's F16 accumulator


@pytest.fixture
def overflow(library: Ggml) -> tuple[Case, Inputs, Run]:
    """V of 60000 and flat scores: F16 numerators end at 65504."""
    case = VEC.with_(type_V="f16", mask=False, mask_kind="none", regime="normal")
    inputs = make_inputs(case)
    v = np.full_like(inputs.v, 60000)
    raw = v.astype(np.float16).view(np.uint8)
    inputs = dataclasses.replace(
        inputs, q=np.zeros_like(inputs.q), v=raw.view(np.float16).astype(np.float32), v_raw=raw
    )
    return case, inputs, run_case(library, case, inputs)


def test_an_overflow_of_upstream_s_f16_accumulator_is_unsupported(
    overflow: tuple[Case, Inputs, Run],
) -> None:
    case, inputs, run = overflow
    verdict = judge(case, inputs, run, features=())
    assert verdict.status == "unsupported"
    assert verdict.reason.startswith(
        "upstream's F16 accumulator overflows: numerators reach 5.4e+06"
    )


def test_bits_are_compared_where_upstream_overflows(
    overflow: tuple[Case, Inputs, Run],
) -> None:
    case, inputs, run = overflow
    output = last_step(run).output.copy()
    output[1, 2, 1, 3] = 60000
    verdict = judge(case, inputs, with_last(run, output=output), features=())
    assert verdict.status == "fail"
    assert does_not_hold(verdict, "segmented vs standard: must be bit-identical")


def test_an_overflow_excuses_no_other_row(library: Ggml) -> None:
    case = VEC.with_(type_V="f16", mask=False, mask_kind="none", regime="normal")
    inputs = make_inputs(case)
    v = inputs.v.copy()
    v[:, 0] = 60000
    raw = v.astype(np.float16).view(np.uint8)
    q = np.zeros_like(inputs.q)
    inputs = dataclasses.replace(inputs, q=q, v=raw.view(np.float16).astype(np.float32), v_raw=raw)
    run = run_case(library, case, inputs)
    assert judge(case, inputs, run, features=()).status == "unsupported"

    def with_standard(head: int, value: float) -> Run:
        wrong = run.results["standard"].output.copy()
        wrong[0, head, 0, 0] = value
        every = dict.fromkeys(("full_state", "segmented", "merged", "resumed"))
        return changed(run, standard=wrong, standard_again=wrong, **every)

    assert judge(case, inputs, with_standard(0, np.inf), features=()).status == "unsupported"
    for head, value in ((case.n_head - 1, np.inf), (0, 50000)):
        verdict = judge(case, inputs, with_standard(head, value), features=())
        assert (verdict.status, verdict.reason[:19]) == ("fail", "standard vs oracle:")


def test_large_keys_excuse_nothing_where_their_sums_stay_below_the_end_of_f16(
    compute: Compute,
) -> None:
    # the two keys of a pair cancel: the sum of |V| is above 65504, no sum on the way is
    case = VEC.with_(type_V="f16", regime="huge", mask=False, mask_kind="none", segments=1)
    run = compute(case)
    assert judged(case, run).status == "pass"
    wrong = run.results["standard"].output.copy()
    wrong[0, 0, 0, 0] = np.inf
    verdict = judged(case, changed(run, standard=wrong, standard_again=wrong))
    assert (verdict.status, verdict.reason[:19]) == ("fail", "standard vs oracle:")


def test_large_numerators_excuse_nothing_where_no_output_overflows(
    overflow: tuple[Case, Inputs, Run],
) -> None:
    case, inputs, run = overflow
    wrong = np.full_like(
        run.results["standard"].output, 50000
    )  # the oracle says 60000, beyond any rounding of it
    run = changed(
        run,
        standard=wrong,
        standard_again=wrong,
        full_state=None,
        segmented=None,
        merged=None,
        resumed=None,
    )
    verdict = judge(case, inputs, run, features=())
    assert (verdict.status, verdict.comparisons["standard_vs_oracle"].ok) == ("fail", False)


def test_an_infinity_is_no_overflow_of_upstream_where_numerators_are_f32(
    compute: Compute,
) -> None:
    case = VEC.with_(regime="huge")
    run = compute(case)
    assert judged(case, run).status == "pass"
    standard = np.full_like(run.results["standard"].output, np.inf)
    verdict = judged(case, changed(run, standard=standard, standard_again=standard))
    assert verdict.status == "fail"
    assert verdict.reason.startswith("standard vs oracle: ")


# false alarms that were met


@pytest.mark.parametrize("type_k", ["q4_1", "q5_1"])
def test_a_q_whose_q8_1_steps_are_subnormal_in_f16_is_no_failure(
    compute: Compute, type_k: str
) -> None:
    case = VEC.with_(
        type_K=type_k, type_V="q8_0", regime="huge", mask=False, mask_kind="none", segments=2
    )
    for seed in range(4):
        seeded = case.with_(seed=seed)
        verdict = judged(seeded, compute(seeded))
        assert (verdict.status, verdict.reason) == ("pass", "")


# the record


def test_numbers_are_kept_for_small_outputs_only(compute: Compute) -> None:
    assert judged(VEC, compute(VEC)).outputs == {}
    small = VEC.with_(n_group=1, ne3=1, n_head_kv=1, n_batch=1)
    run = compute(small)
    outputs = judged(small, run).outputs
    np.testing.assert_array_equal(outputs["standard"], run.results["standard"].output)
    np.testing.assert_array_equal(outputs["full_state"], run.results["full_state"].first.output)
    np.testing.assert_array_equal(outputs["segmented"], last_step(run).output)
    assert len(outputs["after_segment"]) == 3
    np.testing.assert_array_equal(outputs["after_segment"][-1], last_step(run).output)


def test_numbers_of_large_outputs_are_kept_where_they_are_asked_for(compute: Compute) -> None:
    run = compute(VEC)
    verdict = judge(VEC, make_inputs(VEC), run, features=(), with_outputs=True)
    np.testing.assert_array_equal(verdict.outputs["standard"], run.results["standard"].output)


@pytest.mark.parametrize(("fault", "difference"), [(one_nan, "nan"), (one_infinity, "inf")])
def test_the_place_of_a_number_that_is_none_is_named(
    compute: Compute, fault: Fault, difference: str
) -> None:
    verdict = judged(VEC, fault(VEC, make_inputs(VEC), compute(VEC)))
    assert verdict.reason.startswith(f"prefix vs oracle: {difference}, allowed ")
    assert verdict.reason.endswith(" at batch 1, head 3, row 2, element 17")
    assert does_not_hold(verdict, "segmented vs standard: must be bit-identical")


def test_errors_are_measured_as_they_are_defined(compute: Compute) -> None:
    run = compute(VEC)
    output = run.results["standard"].output.copy()
    output[0, 1, 2, 3] += np.float32(0.5)
    comparison = judged(VEC, with_last(run, output=output)).comparisons["segmented_vs_standard"]
    error = np.abs(output.astype(np.float64) - run.results["standard"].output)
    assert comparison.max_abs == error.max()
    row_max = np.abs(run.results["standard"].output[0, 1, 2].astype(np.float64)).max()
    assert comparison.max_rel_row == pytest.approx(error.max() / row_max, rel=1e-12)
    squares = (run.results["standard"].output.astype(np.float64) ** 2).sum()
    assert comparison.nmse == pytest.approx((error**2).sum() / squares, rel=1e-12)
    assert not comparison.bitwise


def test_agreement_has_no_worst_place(compute: Compute) -> None:
    comparison = judged(VEC, compute(VEC)).comparisons["full_state_vs_standard"]
    assert comparison.worst is None
    assert comparison.bitwise
    assert comparison.max_abs == comparison.nmse == comparison.max_rel_row == 0


# what a picture shows


def test_the_picture_of_a_fault_has_it_in_its_head_and_row_and_after_its_segment(
    compute: Compute,
) -> None:
    run = compute(VEC)
    first, second, third = chain_of(run).calls
    output = third.output.copy()
    output[1, 2, 1, 5] += 1
    shares = judged(
        VEC, with_steps(run, first, second, Left(output=output, state=third.state))
    ).shares
    assert shares is not None
    assert shares.comparison == "prefix_vs_oracle"
    assert shares.by_row.shape == (VEC.ne3 * VEC.n_head, VEC.n_batch)
    assert np.argwhere(shares.by_row > 1).tolist() == [[VEC.n_head + 2, 1]]
    assert [share > 1 for share in shares.by_segment] == [False, False, True]


def test_the_picture_of_bits_that_differ_within_the_bound_is_of_the_bits(compute: Compute) -> None:
    run = compute(VEC)
    *before, last = chain_of(run).calls
    output = last.output.copy()
    output[0, 1, 2, 0] = np.nextafter(output[0, 1, 2, 0], np.float32(9))
    shares = judged(VEC, with_steps(run, *before, Left(output=output, state=last.state))).shares
    assert shares is not None
    assert shares.comparison == "segmented_vs_full_state"
    assert np.argwhere(np.isinf(shares.by_row)).tolist() == [[1, 2]]


def test_a_picture_has_at_most_64_rows_each_the_largest_of_neighbours(compute: Compute) -> None:
    case = VEC.with_(n_batch=100, segments=1)
    run = compute(case)
    standard = run.results["standard"].output.copy()
    standard[0, 0, 99, 0] += 1
    broken = changed(run, standard=standard)
    shares = judged(case, broken).shares
    assert shares is not None
    assert shares.by_row.shape == (case.ne3 * case.n_head, 64)
    assert np.argwhere(shares.by_row > 1).tolist() == [[0, 63]]


def test_a_case_that_passes_has_the_picture_of_what_is_nearest_to_its_bound(
    compute: Compute,
) -> None:
    found = judged(VEC, compute(VEC))
    assert found.shares is not None
    nearest = max(found.comparisons, key=lambda name: found.comparisons[name].of_bound)
    assert found.shares.comparison == nearest
    assert all(comparison.by_row is None for comparison in found.comparisons.values())
