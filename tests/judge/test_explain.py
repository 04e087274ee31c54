"""Where a failing case went wrong first, of runs that are broken in one place."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fa_harness.arrays import F32
from fa_harness.build.library import Library
from fa_harness.case.case import Case
from fa_harness.case.inputs import make_inputs
from fa_harness.case.modes import Chain, Left, Rolled, Run
from fa_harness.engine.compute import run_case
from fa_harness.engine.ggml import Ggml
from fa_harness.engine.runner import Runner
from fa_harness.judge.compare import Call, Check, Region, compare
from fa_harness.judge.explain import Localisation, localise
from fa_harness.judge.verdict import Verdict, judge
from fa_harness.judge.words import explain
from runs import changed

Index = tuple[int, ...]

# the first wrong of some checks

CALL = Call(name="segment 1 (of 0 to 2)", keys=(30, 60), path="vec", index=1, f16_numerators=True)
SHAPE = (2, 4, 3, 6)


def check(*wrong: Index, is_state: bool = False, call: Call = CALL, by: float = 1.0) -> Check:
    """Return a check of ones that are wrong at some places."""
    got = np.ones(SHAPE, np.float32)
    for index in wrong:
        got[index] += np.float32(by)
    centre = np.ones(SHAPE)
    region = Region(centre, np.full(SHAPE, 0.5))
    return Check(
        name="segmented_vs_oracle",
        mode="segmented",
        call=call,
        is_state=is_state,
        got=got,
        expected=centre,
        region=region,
    )


def localised(*checks: Check) -> Localisation:
    judged = compare(checks)
    return localise(judged, next(each for each in judged if not each.comparison.ok))


def test_where_nothing_is_wrong_there_is_no_place() -> None:
    assert all(one.comparison.ok for one in compare([check(), check((0, 0, 0, 0), by=0.4)]))


def test_the_first_call_that_is_wrong_counts_not_the_largest_error() -> None:
    later = dataclasses.replace(CALL, name="segment 2 (of 0 to 2)", index=2)
    found = localised(check((1, 0, 0, 0)), check((0, 0, 0, 0), call=later, by=1e6))
    assert (found.index, found.batch) == (1, 1)


def test_the_first_row_in_the_order_of_the_contract_is_named() -> None:
    found = localised(check((1, 0, 0, 0), (0, 3, 2, 5), (0, 3, 2, 4)))
    assert (found.batch, found.head, found.row, found.element) == (0, 3, 2, 4)


@pytest.mark.parametrize(
    ("wrong", "part", "right", "element"),
    [
        ([(0, 0, 0, 5), (1, 0, 0, 1), (1, 1, 1, 0)], "M", (), None),
        ([(0, 0, 0, 5), (1, 0, 0, 1)], "S", ("M",), None),
        ([(0, 0, 0, 5)], "numerators", ("M", "S"), 3),
        ([(1, 0, 0, 1)], "S", ("M", "numerators"), None),
    ],
)
def test_of_a_state_m_comes_before_s_and_s_before_the_numerators(
    wrong: list[Index], part: str, right: tuple[str, ...], element: int | None
) -> None:
    found = localised(check(*wrong, is_state=True))
    assert (found.part, found.right, found.element) == (part, right, element)


def test_a_result_that_is_wrong_after_a_right_state_says_that_the_state_is_right() -> None:
    found = localised(check(is_state=True), check((0, 1, 2, 3)))
    assert (found.part, found.right) == ("result", ("M", "S", "numerators"))
    other = dataclasses.replace(CALL, index=0)
    assert localised(check(is_state=True, call=other), check((0, 1, 2, 3))).right == ()


def at(batch: Any, head: Any, row: Any, element: Any) -> Check:
    wrong = np.zeros(SHAPE, bool)
    wrong[batch, head, row, element] = True
    return check(*map(tuple, np.argwhere(wrong).tolist()))


ALL = slice(None)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (at(ALL, ALL, ALL, ALL), ""),
        (at(ALL, 2, ALL, ALL), "head 2 only"),
        (at(ALL, slice(2, None), ALL, ALL), "heads from 2 on"),
        (at(ALL, ALL, slice(0, 2), ALL), "rows 0 to 1"),
        (at(1, ALL, ALL, slice(3, None)), "sequence 1 only, elements from 3 on"),
        (at(ALL, ALL, ALL, slice(1, None, 2)), "elements 1, 3, ..."),
        (at(0, 1, 2, 3), "element 3 only"),
        (at(0, 1, 2, slice(4, None)), "elements from 4 on"),
        (check((0, 0, 0, 0), (1, 1, 1, 1)), ""),
        (check((0, 0, 0, 1), (0, 0, 1, 2), (0, 0, 2, 4)), "sequence 0 only, head 0 only"),
    ],
)
def test_a_simple_set_of_wrong_elements_is_told(wrong: Check, words: str) -> None:
    assert localised(wrong).pattern == words


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_wrong(number: float) -> None:
    one = check()
    one.got[1, 2, 0, 4] = number
    found = localised(one)
    assert (found.batch, found.head, found.row, found.element) == (1, 2, 0, 4)


def test_infinities_that_are_expected_are_right() -> None:
    one = check()
    one.got[0, 0, 0, 0] = one.expected[0, 0, 0, 0] = -np.inf
    assert compare([one])[0].comparison.ok


def test_bits_differ_where_numbers_do_not() -> None:
    zeros = np.zeros(SHAPE, np.float32)
    negative = zeros.copy()
    negative[0, 1, 1, 2] = -0.0
    one = dataclasses.replace(check(), got=negative, expected=zeros, region=None, other="standard")
    found = localised(one)
    assert (found.head, found.row, found.element, found.bound) == (1, 1, 2, 0.0)
    assert found.lines()[1] == "worst at batch 0, head 1, row 1, element 2: got -0, in standard 0"


def test_the_numerators_of_the_row_are_given_as_a_share_of_f16_s_range() -> None:
    numerators = np.ones((*SHAPE[:3], 4))
    numerators[0, 1, 2] = [1, -32752, 3, 4]
    one = dataclasses.replace(check((0, 1, 2, 3)), numerators=numerators)
    found = localised(one)
    assert (found.largest_numerator, found.of_f16_range) == (32752, 0.5)
    in_f32 = dataclasses.replace(one, call=dataclasses.replace(CALL, f16_numerators=False))
    assert localised(in_f32).largest_numerator is None


def test_it_is_three_lines_for_a_person() -> None:
    numerators = np.full((*SHAPE[:3], 4), 655.04)
    one = dataclasses.replace(
        check((0, 1, 0, 2), (0, 1, 1, 2), (0, 1, 2, 2), is_state=True), numerators=numerators
    )
    assert localised(one).lines() == [
        "segmented, segment 1 (of 0 to 2), keys 30 to 59, vec path: "
        "numerators are wrong; M and S are within bounds",
        "worst at batch 0, head 1, row 0, element 0: got 2, expected 1, 2 x the bound",
        "wrong in 3 of 24 rows: sequence 0 only, head 1 only, element 0 only; "
        "the row's F16 numerators reach 655, 0.01 of F16's largest",
    ]


# a real library with a bug


@pytest.fixture(scope="session")
def on_bug(bug: Library) -> Callable[[Case], Verdict]:
    """Run a case on the library whose accumulator starts from zero in every call."""

    def run(case: Case) -> Verdict:
        with Runner(bug.module_path) as runner:
            [verdict] = runner.run([case], modes=("full_state", "segmented"))
            return verdict

    return functools.cache(run)


VEC = Case(
    hsk=64, hsv=32, n_head_kv=2, n_group=2, ne3=2, n_kv=90, n_batch=3, segments=3, regime="rising",
    type_K="f32", type_V="f32",
)  # fmt: skip


def place(found: Localisation | None) -> tuple[str, int | None, str]:
    assert found is not None
    return found.mode, found.index, found.part


def test_the_reset_accumulator_shows_in_the_numerators_of_the_second_segment(
    on_bug: Callable[[Case], Verdict],
) -> None:
    verdict = on_bug(VEC.with_(segments=4))
    found = verdict.localisation
    assert found is not None
    assert place(found) == ("segmented", 1, "numerators")
    assert (found.right, found.path, found.keys) == (("M", "S"), "vec", (22, 45))
    assert found.wrong_rows == found.rows == 24
    assert abs(found.got - found.expected) > 100 * found.bound
    assert explain(verdict) == [verdict.reason, *found.lines()]


def test_an_empty_segment_may_be_where_the_bug_shows(on_bug: Callable[[Case], Verdict]) -> None:
    found = on_bug(VEC.with_(boundaries=(0, 30, 30), segments=4)).localisation
    assert place(found) == ("segmented", 2, "numerators")
    assert found is not None
    assert "segment 2 (of 0 to 3), no key, vec path" in found.lines()[0]


def test_f16_numerators_come_with_their_range(on_bug: Callable[[Case], Verdict]) -> None:
    found = on_bug(VEC.with_(type_V="f16", regime="huge")).localisation
    assert found is not None
    assert found.of_f16_range is not None
    assert 0.1 < found.of_f16_range < 1
    assert f"{found.of_f16_range:.2g} of F16's largest" in found.lines()[2]


def test_a_library_without_the_bug_has_nothing_to_localise(compute: "Compute") -> None:
    assert judged(VEC, compute(VEC)).localisation is None


# runs that are broken in one place

Compute = Callable[[Case], Run]


@pytest.fixture(scope="session")
def compute(library: Ggml) -> Compute:
    """Compute a case on the patched library, once."""
    return functools.cache(lambda case: run_case(library, case, make_inputs(case)))


def judged(case: Case, run: Run) -> Verdict:
    return judge(case, make_inputs(case), run, features=())


def broken(case: Case, run: Run) -> Localisation:
    verdict = judged(case, run)
    assert verdict.status == "fail"
    assert verdict.localisation is not None
    assert not verdict.comparisons[verdict.localisation.comparison].ok
    return verdict.localisation


HERE = (1, 3, 2, 4)


def one_bit(array: F32, index: Index = HERE) -> F32:
    changed: F32 = array.copy()
    changed[index] = np.nextafter(changed[index], np.float32(np.inf))
    return changed


def scaled(array: F32, index: Index = HERE, by: float = 1.5) -> F32:
    changed: F32 = array.copy()
    changed[index] *= np.float32(by)
    return changed


def with_step(steps: tuple[Left, ...], i: int, **changes: F32) -> tuple[Left, ...]:
    return (*steps[:i], dataclasses.replace(steps[i], **changes), *steps[i + 1 :])


def where(found: Localisation) -> tuple[str, int | None, str, Index, str]:
    at: Index = (found.batch, found.head, found.row)
    at += () if found.element is None else (found.element,)
    return found.mode, found.index, found.part, at, found.other


def test_a_state_on_the_way_is_localised_before_the_result_that_it_spoils(
    compute: Compute,
) -> None:
    run = compute(VEC)
    steps = with_step(
        run.results["segmented"].calls, 1, state=scaled(run.results["segmented"].calls[1].state)
    )
    steps = with_step(steps, 2, output=scaled(steps[2].output, (0, 0, 0, 0)))
    wrong = changed(run, segmented=dataclasses.replace(run.results["segmented"], calls=steps))
    found = broken(VEC, wrong)
    assert found.comparison == "state_vs_oracle"
    assert where(found) == ("segmented", 1, "numerators", (1, 3, 2, 2), "the oracle")


def test_the_first_run_of_standard_is_what_a_repeat_is_compared_with(compute: Compute) -> None:
    run = compute(VEC)
    wrong = changed(run, standard_again=one_bit(run.results["standard"].output))
    found = broken(VEC, wrong)
    assert where(found) == ("standard", None, "result", HERE, "the first run")
    assert np.nextafter(np.float32(found.expected), np.float32(np.inf)) == np.float32(found.got)


def test_a_bit_of_the_full_call_is_compared_with_standard(compute: Compute) -> None:
    run = compute(VEC)
    step = dataclasses.replace(
        run.results["full_state"].first, output=one_bit(run.results["full_state"].first.output)
    )
    wrong = changed(run, full_state=step, full_state_again=step)
    assert where(broken(VEC, wrong)) == ("full_state", None, "result", HERE, "standard")


def test_a_bit_of_the_chain_s_state_is_compared_with_the_full_call(compute: Compute) -> None:
    run = compute(VEC)
    steps = with_step(
        run.results["segmented"].calls, 2, state=one_bit(run.results["segmented"].calls[2].state)
    )
    chain = Chain(calls=steps, one_graph=(run.results["segmented"].one_graph[0], steps[2].state))
    found = broken(VEC, changed(run, segmented=chain, merged=None, resumed=None))
    assert where(found) == ("segmented", 2, "numerators", (1, 3, 2, 2), "full_state")


def test_a_chain_in_one_graph_is_compared_call_by_call(compute: Compute) -> None:
    run = compute(VEC)
    (first, second, last), state = run.results["segmented"].one_graph
    graph = ((first, one_bit(second), last), one_bit(state))
    chain = dataclasses.replace(run.results["segmented"], one_graph=graph)
    found = broken(VEC, changed(run, segmented=chain))
    assert where(found)[:4] == ("segmented", 1, "result", HERE)
    assert found.call == "segment 1 (of 0 to 2) in one graph"


def test_a_resumed_chain_is_compared_with_the_one_that_is_not_cut(compute: Compute) -> None:
    run = compute(VEC)
    steps = with_step(
        run.results["resumed"], 1, state=one_bit(run.results["resumed"][1].state, (1, 0, 2, 1))
    )
    found = broken(VEC, changed(run, resumed=steps))
    assert where(found) == ("resumed", 1, "S", (1, 0, 2), "the chain that is not cut")


MERGE = VEC.with_(segments=5, mask_kind="leading", regime="normal", sinks=True)


def test_a_wrong_part_is_localised_before_the_merges(compute: Compute) -> None:
    run = compute(MERGE)
    parts = with_step(
        run.results["merged"].parts, 2, output=scaled(run.results["merged"].parts[2].output)
    )
    wrong = changed(run, merged=dataclasses.replace(run.results["merged"], parts=parts))
    found = broken(MERGE, wrong)
    assert where(found) == ("merged", 2, "result", HERE, "the oracle")
    assert found.call == "part 2 (of 0 to 4)"


def test_a_wrong_merge_is_localised_in_the_first_reduction_that_has_it(compute: Compute) -> None:
    run = compute(MERGE)
    step = dataclasses.replace(
        run.results["merged"].pairwise, state=scaled(run.results["merged"].pairwise.state)
    )
    wrong = changed(run, merged=dataclasses.replace(run.results["merged"], pairwise=step))
    found = broken(MERGE, wrong)
    assert where(found) == ("merged", None, "numerators", (1, 3, 2, 2), "the parts")
    assert (found.call, found.path) == ("merges in pairs", "")


def test_two_fresh_states_that_merge_to_nan_are_localised(compute: Compute) -> None:
    run = compute(MERGE)
    nan = dataclasses.replace(
        run.results["merged"].fresh, state=np.full_like(run.results["merged"].fresh.state, np.nan)
    )
    wrong = changed(run, merged=dataclasses.replace(run.results["merged"], fresh=nan))
    found = broken(MERGE, wrong)
    assert where(found) == ("merged", None, "M", (0, 0, 0), "a fresh state")


MIXED = VEC.with_(segment_types=("q4_0", "q8_0", "f32/f16"), regime="normal")


def test_a_typed_chain_names_the_segment_of_its_own_type(compute: Compute) -> None:
    run = compute(MIXED)
    steps = with_step(
        run.results["mixed"].first.calls, 2, state=scaled(run.results["mixed"].first.calls[2].state)
    )
    chain = dataclasses.replace(run.results["mixed"].first, calls=steps)
    found = broken(MIXED, changed(run, mixed=chain, mixed_again=chain, resumed=steps))
    assert where(found) == ("mixed", 2, "numerators", (1, 3, 2, 2), "the oracle")
    assert found.largest_numerator is not None


FIFO = Case(
    hsk=32, hsv=32, n_head_kv=1, n_group=2, n_kv=40, n_batch=40, mask_kind="causal", hot_window=16,
    group=4,
    cold_type="q8_0", regime="normal",
)  # fmt: skip


def rolled_of(run: Run) -> Rolled:
    return run.results["fifo"].first


def test_a_rolling_cache_names_the_step_and_the_store(compute: Compute) -> None:
    run = compute(FIFO)
    rolled = rolled_of(run)
    wrong = dataclasses.replace(
        rolled,
        cold_state=scaled(rolled.cold_state, (0, 0, 30, 5)),
        output=scaled(rolled.output, (0, 1, 31, 5)),
    )
    found = broken(FIFO, changed(run, fifo=wrong, fifo_again=wrong))
    assert where(found) == ("fifo", 30, "numerators", (0, 0, 30, 3), "the oracle")
    assert (found.call, found.keys) == ("cold call of step 30", (0, 16))


def test_the_earliest_step_of_a_rolling_cache_is_named_though_its_hot_call_failed(
    compute: Compute,
) -> None:
    run = compute(FIFO)
    rolled = rolled_of(run)
    wrong = dataclasses.replace(
        rolled,
        cold_state=scaled(rolled.cold_state, (0, 0, 30, 5)),
        state=scaled(rolled.state, (0, 1, 20, 5)),
    )
    found = broken(FIFO, changed(run, fifo=wrong, fifo_again=wrong))
    assert where(found) == ("fifo", 20, "numerators", (0, 1, 20, 3), "the oracle")
    assert found.call == "hot call of step 20"


def test_where_no_number_is_wrong_there_is_no_place_to_name(compute: Compute) -> None:
    written = judged(VEC, dataclasses.replace(compute(VEC), inputs_written=("k",)))
    assert (written.status, written.localisation) == ("fail", None)
    run = compute(FIFO)
    rolled = rolled_of(run)
    held = dataclasses.replace(rolled.held[20], hot=rolled.held[19].hot)
    misplaced = dataclasses.replace(rolled, held=(*rolled.held[:20], held, *rolled.held[21:]))
    verdict = judged(FIFO, changed(run, fifo=misplaced))
    assert (verdict.status, verdict.localisation) == ("fail", None)
    assert explain(verdict) == [verdict.reason]


def test_where_upstream_overflows_only_bits_are_localised(library: Ggml) -> None:
    case = VEC.with_(type_V="f16", mask=False, mask_kind="none", regime="normal")
    inputs = make_inputs(case)
    v = np.full_like(inputs.v, 60000)
    raw = v.astype(np.float16).view(np.uint8)
    inputs = dataclasses.replace(
        inputs, q=np.zeros_like(inputs.q), v=raw.view(np.float16).astype(np.float32), v_raw=raw
    )
    run = run_case(library, case, inputs)
    output = run.results["segmented"].calls[2].output.copy()
    output[1, 2, 1, 3] = 60000
    steps = with_step(run.results["segmented"].calls, 2, output=output)
    run = changed(run, segmented=dataclasses.replace(run.results["segmented"], calls=steps))
    found = judge(case, inputs, run, features=()).localisation
    assert found is not None
    assert where(found) == ("segmented", 2, "result", (1, 2, 1, 3), "full_state")
