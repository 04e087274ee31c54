"""The series `partial`: the numbers of `state`, and the mode that it has in place of merges."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from fa_harness.build.library import Library
from fa_harness.case.case import Case
from fa_harness.case.inputs import make_inputs
from fa_harness.case.modes import Reduced, Run
from fa_harness.case.suites import suite
from fa_harness.engine import ggml
from fa_harness.engine.compute import lacking, run_case
from fa_harness.engine.ggml import Ggml
from fa_harness.engine.runner import Runner
from fa_harness.judge.verdict import judge

PARTS = Case(
    hsk=64, hsv=40, n_head_kv=2, n_group=3, ne3=2, n_kv=100, n_batch=3, sinks=True,
    segments=4, boundaries=(10, 10, 60), regime="normal",
)  # fmt: skip
HERE = (1, 2, 1, 5)


@pytest.fixture(scope="module")
def returning(partial: Library) -> Ggml:
    """The library whose calls return the state, loaded beside the one that updates it."""
    return ggml.load(partial.module_path)


def test_a_library_says_which_form_it_has(library: Ggml, returning: Ggml) -> None:
    assert (library.has_partial, returning.has_partial) == (False, True)
    assert set(lacking(library)) == {"reduced"}
    assert set(lacking(returning)) == {"merged"}


@pytest.mark.parametrize("case", suite("smoke"), ids=str)
def test_states_and_results_are_the_same_bit_for_bit_in_both_forms(
    library: Ggml, returning: Ggml, case: Case
) -> None:
    modes = ("standard", "full_state", "segmented")
    runs = [run_case(each, case, make_inputs(case), modes) for each in (library, returning)]
    lefts = [[run.results["full_state"].first, *run.results["segmented"].calls] for run in runs]
    for ours, theirs in zip(*lefts, strict=True):
        assert ours.state.tobytes() == theirs.state.tobytes()
        assert ours.output.tobytes() == theirs.output.tobytes()


def test_every_mode_passes_with_calls_that_return_the_state(partial: Library) -> None:
    cases = [*suite("smoke"), *suite("fifo")[:4]]
    with Runner(partial.module_path) as runner:
        verdicts = list(runner.run(cases))
    assert {verdict.status for verdict in verdicts} == {"pass"}
    modes = {mode for verdict in verdicts for mode in verdict.modes}
    assert modes == {
        "standard", "full_state", "segmented", "reduced", "resumed", "scheduled", "mixed", "fifo",
        "preset",
    }  # fmt: skip


def _output(name: str) -> Callable[[Reduced], Reduced]:
    """Return a fault: an element of a result is off by more than rounding explains."""

    def fault(reduced: Reduced) -> Reduced:
        output = getattr(reduced, name).copy()
        output[HERE] *= np.float32(1 + 1e-5)
        return dataclasses.replace(reduced, **{name: output})

    return fault


def _one_bit_with_fresh(reduced: Reduced) -> Reduced:
    output = reduced.with_fresh[1].copy()
    output[HERE] = np.nextafter(output[HERE], np.float32(9))
    return dataclasses.replace(reduced, with_fresh=(reduced.with_fresh[0], output))


def _nan_of_top(reduced: Reduced) -> Reduced:
    output = reduced.with_top[0].copy()
    output[HERE] = np.nan
    return dataclasses.replace(reduced, with_top=(output, reduced.with_top[1]))


def _nan_of_fresh(reduced: Reduced) -> Reduced:
    return dataclasses.replace(reduced, fresh=np.full_like(reduced.fresh, np.nan))


def _part_written(reduced: Reduced) -> Reduced:
    state = reduced.parts_after[2].copy()
    state[HERE] += 1
    after = (*reduced.parts_after[:2], state, *reduced.parts_after[3:])
    return dataclasses.replace(reduced, parts_after=after)


def _wrong_part(reduced: Reduced) -> Reduced:
    state = reduced.parts[2].state.copy()
    state[..., 1] *= 1.01
    part = dataclasses.replace(reduced.parts[2], state=state)
    return dataclasses.replace(reduced, parts=(*reduced.parts[:2], part, *reduced.parts[3:]))


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        (_output("in_turn"), "reduced_vs_parts"),
        (_output("reversed"), "reduced_vs_parts"),
        (_output("shuffled"), "reduced_vs_parts"),
        (_output("again"), "reduced_again"),
        (_one_bit_with_fresh, "reduced_with_fresh"),
        (_nan_of_top, "reduced_with_top"),
        (_nan_of_fresh, "fresh_reduced"),
        (_part_written, "parts_after_merge"),
        (_wrong_part, "part_state_vs_oracle"),
    ],
)
def test_a_reduction_that_breaks_a_promise_fails(
    returning: Ggml, fault: Callable[[Reduced], Reduced], name: str
) -> None:
    inputs, features = make_inputs(PARTS), returning.features()
    run = run_case(returning, PARTS, inputs, ("standard", "reduced"))
    assert judge(PARTS, inputs, run, features=features).status == "pass"
    verdict = judge(PARTS, inputs, _with(run, fault(run.results["reduced"])), features=features)
    assert verdict.status == "fail"
    assert not verdict.comparisons[name].ok


def _with(run: Run, reduced: Reduced) -> Run:
    results = {**run.results, "reduced": reduced}
    return dataclasses.replace(run, results=results)  # type: ignore[arg-type]
