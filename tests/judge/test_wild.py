"""What is not finite, in inputs and in states: where it must show, and where it must not."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fa_harness.arrays import F32, Bools
from fa_harness.build.library import Library
from fa_harness.case import preset
from fa_harness.case.case import Case
from fa_harness.case.inputs import make_inputs
from fa_harness.case.modes import Left, Run
from fa_harness.engine import ggml
from fa_harness.engine.compute import run_case
from fa_harness.engine.ggml import Ggml
from fa_harness.judge import oracle
from fa_harness.judge.verdict import Verdict, judge

# heads by turns: a NaN in K, in a row of Q, in V, in a row of Q, an infinity in K
VEC = Case(
    hsk=64, hsv=40, n_head_kv=5, n_group=2, n_kv=70, n_batch=3, regime="nan", mask=False, seed=0
)  # fmt: skip
TILED = VEC.with_(n_batch=70)
SPLIT_KV = VEC.with_(n_batch=1, n_kv=600, threads=2)
CASES = {"vec": VEC, "tiled": TILED, "split-kv": SPLIT_KV}
CHAINS = {name: case.with_(segments=3) for name, case in CASES.items()}

Change = Callable[[Case, Left], None]


def judged(
    library: Ggml, case: Case, mode: str = "standard", change: Change | None = None
) -> Verdict:
    """Judge a case of which what a mode left, or the last call of its chain, is changed."""
    inputs = make_inputs(case)
    run = run_case(library, case, inputs)
    if change is not None:
        run = _changed(case, run, mode, change)
    return judge(case, inputs, run, features=library.features())


def _changed(case: Case, run: Run, mode: str, change: Change) -> Run:
    results: Any = dict(run.results)
    if mode == "standard":
        standard = run.results["standard"]
        left = _copy(Left(output=standard.output, state=np.zeros(0, np.float32)))
        change(case, left)
        results[mode] = dataclasses.replace(standard, output=left.output, again=left.output)
    elif mode == "full_state":
        negated = _copy(run.results["full_state"].negated)
        change(case, negated)
        results[mode] = dataclasses.replace(run.results["full_state"], negated=negated)
    elif mode == "preset":
        left = _copy(run.results["preset"])
        change(case, left)
        results[mode] = dataclasses.replace(
            run.results["preset"], output=left.output, state=left.state
        )
    else:
        chain = run.results["segmented"]
        left = _copy(chain.calls[-1])
        change(case, left)
        results[mode] = dataclasses.replace(chain, calls=(*chain.calls[:-1], left))
    return dataclasses.replace(run, results=results)


def _copy(left: Left) -> Left:
    return Left(output=left.output.copy(), state=left.state.copy())


def right(case: Case) -> F32:
    """The oracle's result, which is NaN where IEEE 754 says so."""
    with np.errstate(invalid="ignore"):
        whole = oracle.attend(case, make_inputs(case), 0, case.n_kv)
        return oracle.finalise(whole).astype(np.float32)


@pytest.mark.parametrize("case", [*CASES.values(), *CHAINS.values()], ids=str)
@pytest.mark.parametrize("type_", ["f16", "f32"])
@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_not_finite_goes_where_it_belongs(
    library: Ggml, case: Case, type_: str, seed: int
) -> None:
    verdict = judged(library, case.with_(type_K=type_, type_V=type_, seed=seed))
    assert verdict.status == "pass", verdict.reason


def nan_is_lost(case: Case, left: Left) -> None:
    output = left.output
    output[np.isnan(output)] = 0


def nan_spreads_to_the_next_element(case: Case, left: Left) -> None:
    # of a row in which one element is NaN
    is_one = np.isnan(left.output).sum(axis=-1) == 1
    left.output[is_one, (np.isnan(left.output[is_one]).argmax(axis=-1) + 1) % case.hsv] = np.nan


def nan_spreads_to_another_row(case: Case, left: Left) -> None:
    finite = np.argwhere(np.isfinite(left.output).all(axis=-1))
    left.output[tuple(finite[0])] = np.nan


@pytest.mark.parametrize(
    ("case", "change"),
    [
        (VEC, nan_is_lost),
        (SPLIT_KV, nan_is_lost),
        (VEC, nan_spreads_to_the_next_element),
        (VEC, nan_spreads_to_another_row),
        (TILED, nan_spreads_to_another_row),
        (CHAINS["vec"], nan_is_lost),
    ],
)
def test_a_nan_that_is_lost_or_spreads_fails(library: Ggml, case: Case, change: Change) -> None:
    mode = "standard" if case.segments == 1 else "segmented"
    verdict = judged(library, case, mode, change)
    assert verdict.status == "fail"
    assert verdict.localisation is not None
    assert verdict.localisation.mode == mode


def test_the_row_of_a_nan_is_nan_in_every_path_of_a_single_row(library: Ggml) -> None:
    for case in (VEC, SPLIT_KV):
        expected = np.isnan(right(case))
        assert 0 < expected.mean() < 1
        got = run_case(library, case, make_inputs(case), ("standard",)).results["standard"].output
        in_k = np.s_[:, -2:]  # a score of +inf: any result will do
        expected[in_k] = np.isnan(got)[in_k]
        np.testing.assert_array_equal(np.isnan(got), expected)


def test_a_row_that_sees_an_infinite_score_may_be_anything(library: Ggml) -> None:
    case = VEC

    def change(case: Case, left: Left) -> None:
        left.output[:, -2:] = 17  # the fifth KV head

    # the bits of the mode that is compared with it are another matter
    verdict = judged(library, case, "standard", change)
    assert verdict.localisation is not None
    assert verdict.localisation.comparison == "full_state_vs_standard"


PRESET = Case(
    hsk=64, hsv=40, n_head_kv=11, n_kv=70, n_batch=2, regime="normal", mask=False, threads=2
)  # fmt: skip
PRESETS = {
    "vec": PRESET,
    "vec f32": PRESET.with_(type_K="f32", type_V="f32"),
    "quantised": PRESET.with_(hsv=64, type_K="q8_0", type_V="q4_0"),
    "tiled": PRESET.with_(n_head_kv=1, n_batch=70),
    "split-kv": PRESET.with_(n_batch=1, n_kv=600),
    "hidden rows": PRESET.with_(mask=True, mask_kind="leading", mask_heads=11),
    "lowest": PRESET.with_(mask=True, mask_kind="lowest", sinks=True),
}


@pytest.mark.parametrize("case", PRESETS.values(), ids=PRESETS)
def test_a_call_goes_on_from_any_state(library: Ggml, case: Case) -> None:
    verdict = judged(library, case)
    assert verdict.status == "pass", verdict.reason
    assert "preset_state_vs_oracle" in verdict.comparisons


@pytest.mark.parametrize("kind", preset.KINDS)
@pytest.mark.parametrize("part", ["m", "s", "numerators", "result"])
def test_each_kind_of_row_is_looked_at(library: Ggml, kind: str, part: str) -> None:
    def change(case: Case, left: Left) -> None:
        some: Bools = preset.are_of(kind, case)
        of_part = {"m": np.s_[:1], "s": np.s_[1:2], "numerators": np.s_[4:]}
        if part == "result":
            left.output[some] = 17
        else:
            left.state[some, of_part[part]] = 17

    verdict = judged(library, PRESET, "preset", change)
    if kind == "infinite maximum":  # only the result and its own state must agree
        assert verdict.status == ("pass" if part == "m" else "fail")
        assert part == "m" or verdict.reason.startswith("preset result vs state")
    else:
        assert verdict.status == "fail"
        assert verdict.reason.startswith("preset")


def test_a_fresh_row_gives_0_whatever_else_it_holds(library: Ggml, partial: Library) -> None:
    for each in (library, ggml.load(partial.module_path)):
        inputs = make_inputs(PRESET)
        run = run_case(each, PRESET, inputs)
        left = run.results["preset"]
        assert left.alone is not None
        for kind, of_kind in (("fresh", "fail"), ("f16", "pass")):
            alone = left.alone.copy()
            alone[preset.are_of(kind, PRESET)] = 17
            results: Any = {**run.results, "preset": dataclasses.replace(left, alone=alone)}
            changed = dataclasses.replace(run, results=results)
            verdict = judge(PRESET, inputs, changed, features=each.features())
            assert verdict.status == of_kind
            assert kind != "fresh" or verdict.reason.startswith("preset fresh alone")


@pytest.mark.parametrize("column", [0, 1, 2, 41])
def test_signs_that_are_turned_change_nothing_but_the_sign_of_v(library: Ggml, column: int) -> None:
    case = VEC.with_(regime="normal")

    def change(case: Case, left: Left) -> None:
        left.state[0, 1, 2, column] *= 1 + 2.0**-22

    assert judged(library, case).status == "pass"
    verdict = judged(library, case, "full_state", change)
    assert verdict.reason.startswith("full state negated: must be equal, differs by ")


SCHEDULED = Case(hsk=32, hsv=32, n_head_kv=2, n_group=2, n_kv=90, n_batch=3, segments=3, seed=5)


@pytest.mark.parametrize("modes", [("segmented", "scheduled"), ("scheduled",)], ids="-".join)
@pytest.mark.parametrize("kind", ["output", "state"])
@pytest.mark.parametrize("which", [0, 1], ids=["allocated", "made by the graph"])
def test_a_chain_whose_keys_lie_with_another_backend_is_compared(
    library: Ggml, modes: tuple[str, ...], kind: str, which: int
) -> None:
    inputs, features = make_inputs(SCHEDULED), library.features()
    run = run_case(library, SCHEDULED, inputs, modes)
    assert judge(SCHEDULED, inputs, run, features=features).status == "pass"
    chains = list(run.results["scheduled"].chains)
    outputs, state = chains[which]
    changed = [array.copy() for array in (*outputs, state)]
    changed[1 if kind == "output" else -1][0, 1, 2, 3] += 1
    chains[which] = (tuple(changed[:-1]), changed[-1])
    scheduled = dataclasses.replace(run.results["scheduled"], chains=(chains[0], chains[1]))
    results: Any = {**run.results, "scheduled": scheduled}
    verdict = judge(SCHEDULED, inputs, dataclasses.replace(run, results=results), features=features)
    other = "vs segmented" if "segmented" in modes else "vs oracle"
    name = "scheduled state" if kind == "state" and len(modes) == 1 else "scheduled"
    assert verdict.reason.startswith(f"{name} {other}")
    assert verdict.localisation is not None
    assert verdict.localisation.index == (1 if kind == "output" else 2)
