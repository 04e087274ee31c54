"""Shrinking as a search: what it takes, what it leaves, and that it ends."""

import itertools
from collections.abc import Callable

import pytest

from fa_harness.case.case import MASK_KINDS, Case
from fa_harness.hunt.shrink import SIMPLE_MASKS, Failure, Shrunk, shrink

LARGE = Case(
    hsk=192, hsv=128, n_head_kv=4, n_group=4, ne3=3, n_kv=700, n_batch=96, sinks=True, max_bias=8.0,
    logit_softcap=5.0, prec="def", type_K="q8_0", type_V="q4_0", permute=(0, 2, 1, 3), segments=7,
    boundaries="random", mask_heads=2, regime="outlier", seed=5, threads=8,
)  # fmt: skip
SMALLEST = Case(
    hsk=1, hsv=1, n_head_kv=1, n_kv=1, n_batch=1, mask=False, type_K="f32", type_V="f32",
    kv_view=False,
    regime="few",
)  # fmt: skip


def failing(is_bad: Callable[[Case], bool]) -> Callable[[Case], Failure | None]:
    failure = Failure(status="fail", name="segmented_vs_oracle", kind="bound")
    return lambda case: failure if is_bad(case) else None


def shrunk(case: Case, is_bad: Callable[[Case], bool]) -> Shrunk:
    found = shrink(case, failing(is_bad))
    assert found is not None
    assert is_bad(found.case)
    assert found.finished
    assert Case.parse(str(found.case)) == found.case
    return found


def test_a_case_that_always_fails_shrinks_to_the_smallest_there_is() -> None:
    assert shrunk(LARGE, lambda case: True).case == SMALLEST


def test_a_case_that_does_not_fail_is_not_shrunk() -> None:
    assert shrink(LARGE, lambda case: None) is None


@pytest.mark.parametrize(
    ("is_bad", "left"),
    [
        (lambda case: case.n_kv >= 65, {"n_kv": 65}),
        (lambda case: case.n_batch >= 64, {"n_batch": 64}),
        (lambda case: case.segments >= 3, {"segments": 3, "n_kv": 3}),
        (lambda case: case.threads > 3, {"threads": 4}),
        (lambda case: case.n_group == 4, {"n_group": 4, "ne3": 1}),
        (
            lambda case: case.ne3 > 1 and case.n_head_kv > 1,
            {"n_group": 1, "ne3": 2, "n_head_kv": 2},
        ),
        (lambda case: case.sinks, {"sinks": True}),
        (lambda case: case.logit_softcap > 0, {"logit_softcap": 5.0}),
        (lambda case: case.mask, {"mask": True, "mask_kind": "zeros"}),
        (lambda case: case.max_bias > 0, {"max_bias": 8.0, "mask": True, "mask_kind": "zeros"}),
        (lambda case: case.type_K == "q8_0", {"type_K": "q8_0", "hsk": 32}),
        (lambda case: case.type_V != "f32", {"type_V": "f16"}),
        (lambda case: case.permute != (0, 1, 2, 3), {"permute": (0, 2, 1, 3)}),
        (lambda case: case.prec == "def", {"prec": "def"}),
        (lambda case: case.regime == "outlier", {"regime": "outlier"}),
        (lambda case: case.seed == 5, {"seed": 5}),
        (lambda case: case.hsk >= 100, {"hsk": 100}),
    ],
)
def test_what_the_failure_needs_stays_and_all_else_goes(
    is_bad: Callable[[Case], bool], left: dict[str, object]
) -> None:
    assert shrunk(LARGE, is_bad).case == SMALLEST.with_(**left)


def test_explicit_boundaries_lose_the_cuts_that_do_not_matter() -> None:
    case = LARGE.with_(boundaries=(0, 100, 100, 350, 600), segments=6)

    def has_empty_segment(case: Case) -> bool:
        cuts = case.segment_bounds()
        return any(a == b for a, b in itertools.pairwise(cuts))

    found = shrunk(case, has_empty_segment).case
    assert (found.boundaries, found.segments) == ((0,), 2)


def test_segments_of_their_own_types_stay_in_order() -> None:
    case = Case(
        n_kv=96, segments=4, segment_types=("q4_0", "q8_0/f16", "f16", "bf16"), type_K="f32",
        type_V="f32",
    )  # fmt: skip

    def f16_after_quantised(case: Case) -> bool:
        types = [case.types_of_segment(i)[1] for i in range(case.segments)]
        return "q4_0" in types and "f16" in types[types.index("q4_0") :]

    found = shrunk(case, f16_after_quantised).case
    assert found.segments == 2
    assert [found.types_of_segment(i)[1] for i in range(2)] == ["q4_0", "f16"]


def test_a_rolling_cache_keeps_a_step_for_each_token() -> None:
    case = Case(
        n_kv=96, n_batch=96, mask_kind="causal", hot_window=32, group=8, cold_type="q4_0", threads=2
    )
    found = shrunk(case, lambda case: case.hot_window > 0 and case.n_kv > case.hot_window).case
    assert (found.n_kv, found.n_batch, found.hot_window, found.group) == (2, 2, 1, 1)


def test_a_rolling_cache_goes_where_the_failure_does_not_need_it() -> None:
    case = Case(n_kv=96, n_batch=96, mask_kind="causal", hot_window=32, group=8, cold_type="q4_0")
    assert shrunk(case, lambda case: True).case == SMALLEST


def test_each_case_is_run_once() -> None:
    seen: list[Case] = []

    def fails(case: Case) -> Failure | None:
        seen.append(case)
        return failing(lambda case: case.n_kv >= 17)(case)

    found = shrink(LARGE, fails)
    assert found is not None
    assert len(seen) == len(set(seen)) == found.tried


def test_the_same_answers_give_the_same_steps() -> None:
    first, again = (shrunk(LARGE, lambda case: case.n_kv * case.n_batch > 300) for _ in range(2))
    assert first == again


def test_each_step_is_told_with_what_is_simpler() -> None:
    told: list[str] = []
    shrink(
        SMALLEST.with_(n_kv=2, seed=3),
        failing(lambda case: True),
        on_step=lambda step: told.append(step.what),
    )
    assert told == ["kv 2 -> 1", "seed 3 -> 0"]


def test_another_way_to_fail_is_not_followed() -> None:
    """Of fewer keys the library crashes, on fewer rows other bits are wrong."""

    def fails(case: Case) -> Failure | None:
        if case.n_kv < 10:
            return Failure(status="crash", name="segmented: SIGSEGV", kind="crash")
        if case.n_batch < 5:
            return Failure(status="fail", name="segmented_vs_standard", kind="bits")
        return Failure(status="fail", name="segmented_vs_oracle", kind="bound")

    found = shrink(LARGE, fails)
    assert found is not None
    assert (found.case.n_kv, found.case.n_batch) == (10, 5)


def test_the_same_comparison_is_followed_before_another_of_its_kind() -> None:
    """A step to another comparison is taken only where none is left to the same."""

    def fails(case: Case) -> Failure:
        name = "segmented_vs_oracle" if case.threads > 1 else "standard_vs_oracle"
        return Failure(status="fail", name=name, kind="bound")

    found = shrink(LARGE, fails)
    assert found is not None
    assert found.case == SMALLEST
    others = [step.failure.name == "standard_vs_oracle" for step in found.steps]
    assert others == [False] * (len(others) - 1) + [True]


def test_every_kind_of_mask_has_its_place() -> None:
    assert sorted(SIMPLE_MASKS) == sorted(MASK_KINDS)


def test_where_time_is_out_the_smallest_case_so_far_is_kept() -> None:
    answers = iter([False] * 3)
    found = shrink(LARGE, failing(lambda case: True), out_of_time=lambda: next(answers, True))
    assert found is not None
    assert not found.finished
    assert (found.tried, len(found.steps)) == (4, 3)


@pytest.mark.parametrize("status", ["crash", "timeout"])
def test_crashes_and_hangs_shrink(status: str) -> None:
    failure = Failure(status=status, name=f"{status} here", kind=status)
    found = shrink(LARGE, lambda case: failure if case.threads > 1 else None)
    assert found is not None
    assert found.case == SMALLEST.with_(threads=2)
