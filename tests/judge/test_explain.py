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
from fa_harness.judge.compare import Call, Check, Narrowed, Region, compare
from fa_harness.judge.expectations import NAN_IS_MEANT, Expectations
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
    first = next(each for each in judged if not each.comparison.ok)
    return localise(judged, first, checks)


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


# an error that is much larger than the standard run's


RATIO = VEC.with_(regime="normal", n_kv=300)


def worse(output: F32, by: float, index: Index = HERE) -> F32:
    """Return an output of which an element is off by so much more."""
    changed: F32 = output.copy()
    changed[index] += np.float32(by)
    return changed


def allowed_beside_standard(compute: Compute, case: Case, index: Index) -> tuple[float, float]:
    """Return the exact result of an element, and the error that standard's run allows there."""
    expect = Expectations(case, make_inputs(case), ())
    standard = compute(case).results["standard"].runs
    region = expect.not_far_worse(expect.of_one.region, standard)
    assert isinstance(region, Narrowed)
    assert region.ratio.bound[index] < region.rounding.bound[index] / 2
    return float(region.ratio.centre[index]), float(region.ratio.bound[index])


def full_state_off(run: Run, by: float) -> Run:
    full = run.results["full_state"].first
    left = dataclasses.replace(full, output=worse(full.output, by))
    return changed(run, full_state=left, full_state_again=left)


def chain_off(run: Run, by: float) -> Run:
    chain = run.results["segmented"]
    output = worse(chain.calls[-1].output, by)
    calls = with_step(chain.calls, len(chain.calls) - 1, output=output)
    return changed(run, segmented=dataclasses.replace(chain, calls=calls))


def merge_off(run: Run, by: float) -> Run:
    merged = run.results["merged"]
    left = dataclasses.replace(merged.in_turn, output=worse(merged.in_turn.output, by))
    return changed(run, merged=dataclasses.replace(merged, in_turn=left))


@pytest.mark.parametrize(
    ("fault", "mode", "call"),
    [
        (full_state_off, "full_state", "the only call, keys 0 to 299, vec path"),
        (chain_off, "segmented", "segment 2 (of 0 to 2), keys 200 to 299, vec path"),
        (merge_off, "merged", "merges in turn, keys 0 to 299"),
    ],
)
def test_an_error_that_grew_beside_the_standard_run_s_is_localised(
    compute: Compute, fault: Callable[[Run, float], Run], mode: str, call: str
) -> None:
    exact, allowed = allowed_beside_standard(compute, RATIO, HERE)
    verdict = judged(RATIO, fault(compute(RATIO), 1.5 * allowed))
    found = verdict.localisation
    assert found is not None
    assert (found.mode, found.comparison, found.limit) == (mode, f"{mode}_vs_oracle", "ratio")
    assert where(found)[2:] == ("result", HERE, "the oracle")
    assert (found.expected, found.bound) == (exact, allowed)
    assert verdict.reason == (
        f"{mode.replace('_', ' ')} vs oracle: {found.error:.2e}, the standard run's error allows "
        f"{allowed:.2e} at batch 1, head 3, row 2, element 4"
    )
    first, second, _ = found.lines()
    assert first == (
        f"{mode}, {call}: the error of the result grew; M, S and numerators are within bounds"
    )
    assert second.endswith(" x what the standard run's error allows; within the rounding bound")
    comparison = verdict.comparisons[found.comparison]
    assert (comparison.bound, comparison.of_bound) == (allowed, found.share)


def test_an_error_beyond_rounding_is_told_before_one_that_grew(compute: Compute) -> None:
    _, allowed = allowed_beside_standard(compute, RATIO, HERE)
    run = full_state_off(compute(RATIO), 1.5 * allowed)
    output = worse(run.results["full_state"].first.output, 1, (0, 0, 1, 2))
    left = dataclasses.replace(run.results["full_state"].first, output=output)
    found = broken(RATIO, changed(run, full_state=left, full_state_again=left))
    assert (found.limit, where(found)[3], found.wrong_rows) == ("rounding", (0, 0, 1, 2), 1)


def test_an_error_that_grew_is_told_though_other_rows_overflow(library: Ggml) -> None:
    case = VEC.with_(type_V="f16", mask=False, mask_kind="none", regime="spiky", n_kv=600)
    inputs = make_inputs(case)
    v = inputs.v.copy()
    v[0] = 60000
    raw = v.astype(np.float16).view(np.uint8)
    inputs = dataclasses.replace(inputs, v=raw.view(np.float16).astype(np.float32), v_raw=raw)
    run = run_case(library, case, inputs)
    assert judge(case, inputs, run, features=()).status == "unsupported"
    expect = Expectations(case, inputs, ())
    region = expect.not_far_worse(expect.of_one.region, run.results["standard"].runs)
    assert isinstance(region, Narrowed)
    wrong = full_state_off(run, 1.5 * float(region.ratio.bound[HERE]))
    verdict = judge(case, inputs, wrong, features=())
    assert verdict.localisation is not None
    assert (verdict.localisation.limit, where(verdict.localisation)[3]) == ("ratio", HERE)


# what is called right


def result_off(run: Run, mode: str = "segmented", i: int = 1) -> Run:
    """Return a run with another result of a call whose state stays as it is."""
    if mode == "mixed":
        chain = run.results["mixed"].first
        calls = with_step(chain.calls, i, output=scaled(chain.calls[i].output))
        return changed(run, mixed=dataclasses.replace(chain, calls=calls))
    chain = run.results["segmented"]
    calls = with_step(chain.calls, i, output=scaled(chain.calls[i].output))
    return changed(run, segmented=dataclasses.replace(chain, calls=calls))


F16 = VEC.with_(type_V="f16", regime="normal")


@pytest.mark.parametrize("case", [VEC, RATIO, VEC.with_(ne3=2, n_batch=64, n_kv=130)])
def test_all_parts_of_a_state_in_f32_are_called_right(compute: Compute, case: Case) -> None:
    assert broken(case, result_off(compute(case))).right == ("M", "S", "numerators")


def test_numerators_that_f16_rounded_are_not_called_right(compute: Compute) -> None:
    found = broken(F16, result_off(compute(F16)))
    assert (found.part, found.right) == ("result", ("M", "S"))
    assert "result is wrong; M and S are within bounds" in found.lines()[0]


def test_a_fault_that_the_bound_of_f16_hides_is_not_called_right(library: Ggml) -> None:
    # sums of small whole numbers are the same in F16 and in F32
    case = F16.with_(mask=False, mask_kind="none")
    inputs = make_inputs(case)
    v = np.abs(np.rint(inputs.v)).astype(np.float16)
    inputs = dataclasses.replace(
        inputs, q=np.zeros_like(inputs.q), v=v.astype(np.float32), v_raw=v.view(np.uint8)
    )
    run = changed(run_case(library, case, inputs), merged=None, resumed=None)
    chain = run.results["segmented"]
    state = chain.calls[1].state.copy()
    state[1, 2, 0, 7] += np.float32(2e-3)
    calls = with_step(chain.calls, 1, state=state)
    wrong = changed(run, segmented=dataclasses.replace(chain, calls=calls))
    assert judge(case, inputs, wrong, features=()).comparisons["state_vs_oracle"].ok
    for each, right in ((run, ("M", "S", "numerators")), (wrong, ("M", "S"))):
        found = judge(case, inputs, result_off(each), features=()).localisation
        assert found is not None
        assert (found.comparison, found.right) == ("prefix_vs_oracle", right)


def test_numerators_that_an_earlier_call_rounded_to_f16_are_not_called_right(
    compute: Compute,
) -> None:
    case = MIXED.with_(segment_types=("f16", "f32", "f32"))
    run = compute(case)
    for i in (0, 1, 2):
        found = broken(case, result_off(run, "mixed", i))
        assert (found.mode, found.index, found.part) == ("mixed", i, "result")
        assert (found.largest_numerator is not None) == (i == 0)
        assert "numerators" not in found.right


def test_numerators_that_go_on_in_f32_are_called_right(compute: Compute) -> None:
    # what the F32 call left are no F16 numbers: upstream goes on in F32 though V is F16
    case = MIXED.with_(segment_types=("f32", "f16", "f32"))
    found = broken(case, result_off(compute(case), "mixed", 1))
    assert found.right == ("M", "S", "numerators")


def test_of_a_wrong_state_only_parts_that_f32_would_call_right_are(compute: Compute) -> None:
    chain = compute(F16).results["segmented"]
    calls = with_step(chain.calls, 1, state=scaled(chain.calls[1].state, (1, 2, 0, 1)))
    wrong = changed(compute(F16), segmented=dataclasses.replace(chain, calls=calls))
    found = broken(F16, wrong)
    assert (found.part, found.right) == ("S", ("M",))


def test_of_q8_1_the_doubt_about_q_is_not_within_the_bounds_of_f32(compute: Compute) -> None:
    case = VEC.with_(type_K="q4_1", type_V="q8_0", regime="normal")
    expect = Expectations(case, make_inputs(case), ())
    tight = expect.in_f32().of_one.state_bound()
    assert (10 * tight[..., 0] < expect.of_one.state_bound()[..., 0]).all()


def test_of_a_standard_run_no_state_is_called_right(compute: Compute) -> None:
    standard = scaled(compute(VEC).results["standard"].output)
    wrong = changed(compute(VEC), standard=standard, standard_again=standard)
    found = broken(VEC, wrong)
    assert (found.mode, found.part, found.right) == ("standard", "result", ())


def test_bits_are_called_the_same_only_where_they_were_compared(compute: Compute) -> None:
    full = compute(VEC).results["full_state"].first
    left = dataclasses.replace(full, output=one_bit(full.output))
    # a standard run has no state
    found = broken(VEC, changed(compute(VEC), full_state=left, full_state_again=left))
    assert (found.comparison, found.right) == ("full_state_vs_standard", ())
    assert found.lines()[0].endswith("vec path: the bits of result differ")
    found = broken(VEC, changed(compute(VEC), full_state_again=left))
    assert (found.comparison, found.right) == ("full_state_again", ("M", "S", "numerators"))
    assert found.lines()[0].endswith("; those of M, S and numerators do not")


def test_a_row_that_may_be_anything_is_not_called_right(compute: Compute) -> None:
    case = Case(
        hsk=64, hsv=40, n_head_kv=5, n_kv=70, n_batch=3, segments=3, regime="nan", mask=False,
        type_K="f32", type_V="f32",
    )  # fmt: skip
    run = compute(case)
    with NAN_IS_MEANT:
        assert Expectations(case, make_inputs(case), ()).chain(None)[2].is_loose.any()
    chain = run.results["segmented"]
    output = chain.calls[2].output.copy()
    output[0, 0, 0] = 17
    calls = with_step(chain.calls, 2, output=output)
    found = broken(case, changed(run, segmented=dataclasses.replace(chain, calls=calls)))
    assert (found.comparison, found.right) == ("prefix_vs_oracle", ())


def test_what_must_be_equal_says_so_and_of_which_parts_it_is(compute: Compute) -> None:
    full = compute(VEC).results["full_state"]
    negated = dataclasses.replace(full.negated, state=scaled(full.negated.state, HERE))
    results: Any = {
        **compute(VEC).results,
        "full_state": dataclasses.replace(full, negated=negated),
    }
    verdict = judged(VEC, dataclasses.replace(compute(VEC), results=results))
    found = verdict.localisation
    assert found is not None
    assert (found.comparison, found.limit) == ("full_state_negated", "equality")
    assert verdict.reason.startswith("full state negated: must be equal, differs by ")
    assert found.lines()[0].endswith("vec path: numerators differ; M and S do not")


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
