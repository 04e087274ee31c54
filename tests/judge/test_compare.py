"""Comparisons against what is said of them, element by element in Python."""

import dataclasses
import math
from itertools import product

import numpy as np
import pytest

from fa_harness.arrays import F32
from fa_harness.judge import compare as comparator
from fa_harness.judge.compare import Call, Check, Comparison, Region, compare, wrong

SHAPE = (2, 2, 3, 5)
PLACES = list(product(*map(range, SHAPE)))
ODD = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3e38)
CALL = Call(name="the only call", keys=(0, 9))


def drawn(seed: int, *, odd: int = 0) -> Check:
    """Return results near a region; of got, expected, centre and bound some are odd numbers."""
    rng = np.random.default_rng(seed)
    expected = rng.normal(size=SHAPE)
    got = (expected + 1e-3 * rng.normal(size=SHAPE)).astype(np.float32)
    centre = expected + 1e-4 * rng.normal(size=SHAPE)
    bound = np.abs(1e-3 * rng.normal(size=SHAPE))
    for array in (got, expected, centre):
        for _ in range(odd):
            array[PLACES[rng.integers(len(PLACES))]] = rng.choice(ODD)
    for _ in range(odd):
        bound[PLACES[rng.integers(len(PLACES))]] = rng.choice([0.0, np.inf, 1e-300])
    for _ in range(odd):  # often it is the same that is odd
        place = PLACES[rng.integers(len(PLACES))]
        got[place] = expected[place] = centre[place] = rng.choice(ODD)
    return Check(
        name="segmented_vs_oracle",
        mode="segmented",
        call=CALL,
        is_state=False,
        got=got,
        expected=expected,
        region=Region(centre, bound),
    )


def of_bits(got: F32, expected: F32) -> Check:
    return dataclasses.replace(drawn(0), got=got, expected=expected, region=None)


def made(check: Check) -> Comparison:
    [found] = compare([check])
    return found.comparison


def same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def error_of(a: float, b: float) -> float:
    return 0.0 if same(a, b) else abs(a - b)


def share_of(check: Check, place: tuple[int, ...]) -> float:
    assert check.region is not None
    off = error_of(float(check.got[place]), float(check.region.centre[place]))
    bound = float(check.region.bound[place])
    if off == 0 or math.isinf(bound):  # anything goes
        return 0.0
    if math.isnan(off) or bound == 0:
        return math.inf
    return off / bound


@pytest.mark.parametrize("odd", [0, 1, 4])
@pytest.mark.parametrize("seed", range(20))
def test_of_each_element_its_share_of_the_bound_counts(seed: int, odd: int) -> None:
    check = drawn(seed, odd=odd)
    assert check.region is not None
    found = made(check)
    shares = {place: share_of(check, place) for place in PLACES}
    errors = {
        p: 0.0
        if math.isinf(check.region.bound[p])
        else error_of(float(check.got[p]), float(check.expected[p]))
        for p in PLACES
    }
    most = max(shares.values())
    assert found.of_bound == pytest.approx(most, rel=1e-12)
    assert found.ok == (most <= 1)
    is_nan = any(map(math.isnan, errors.values()))
    assert same(found.max_abs, math.nan if is_nan else max(errors.values()))
    assert found.by_row is not None
    with np.errstate(over="ignore"):
        by_row = np.array(list(shares.values()), np.float32).reshape(SHAPE).max(axis=-1)
    np.testing.assert_allclose(found.by_row, by_row, rtol=1e-6)
    assert found.worst is not None
    at = (found.worst.batch, found.worst.head, found.worst.row, found.worst.dim)
    assert shares[at] == most
    assert found.bound == float(check.region.bound[at])
    centre = float(check.region.centre[at])
    assert same(found.worst.error, error_of(float(check.got[at]), centre))


@pytest.mark.parametrize("odd", [0, 1, 4])
@pytest.mark.parametrize("seed", range(20))
def test_the_elements_that_are_wrong_are_those_that_the_comparison_judges_wrong(
    seed: int, odd: int
) -> None:
    check = drawn(seed, odd=odd)
    found = wrong(check)
    assert [bool(found[place]) for place in PLACES] == [share_of(check, p) > 1 for p in PLACES]
    assert made(check).ok == (not found.any())


@pytest.mark.parametrize("odd", [0, 2])
def test_an_error_and_its_bound_are_of_one_element_and_one_centre(odd: int) -> None:
    for seed in range(20):
        found = made(drawn(seed, odd=odd))
        assert found.worst is not None
        if math.isfinite(found.of_bound):
            assert found.of_bound == pytest.approx(found.worst.error / found.bound)
        if not found.ok:
            assert not found.worst.error <= found.bound


@pytest.mark.parametrize(
    ("places", "dim"),
    [([(0, 0, 0, 4), (1, 0, 0, 1), (1, 1, 1, 0)], 0), ([(0, 0, 0, 4), (1, 0, 0, 1)], 1),
     ([(0, 0, 0, 4)], 4)],
)  # fmt: skip
def test_of_a_state_the_worst_is_of_the_first_part_that_is_wrong(
    places: list[tuple[int, ...]], dim: int
) -> None:
    ones = np.ones(SHAPE)
    got = ones.astype(np.float32)
    for place in places:
        got[place] += np.float32(1 + 10 * place[-1])  # later parts are further off
    region = Region(ones, np.full(SHAPE, 0.5))
    check = dataclasses.replace(drawn(0), got=got, expected=ones, region=region, is_state=True)
    bits = dataclasses.replace(check, expected=ones.astype(np.float32), region=None)
    for each in (check, bits):
        worst = made(each).worst
        assert worst is not None
        assert worst.dim == dim


@pytest.mark.parametrize("n_together", [1, 2, 7, 1000])
@pytest.mark.parametrize("odd", [0, 1, 4])
def test_together_they_are_what_each_is_alone(
    odd: int, n_together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparator, "_TOGETHER", n_together * math.prod(SHAPE))
    several = [drawn(seed, odd=odd if seed % 3 == 0 else 0) for seed in range(30)]
    several += [of_bits(one.got, several[0].got) for one in several[:3]]
    for one in several[:5]:  # of another shape
        assert one.region is not None
        region = Region(one.region.centre[:, :1], one.region.bound[:, :1])
        small = dataclasses.replace(
            one, got=one.got[:, :1], expected=one.expected[:, :1], region=region
        )
        several.append(small)
    equal = drawn(99)
    assert equal.region is not None
    exactly = equal.got.astype(np.float64)
    region = Region(exactly, equal.region.bound)
    several.insert(7, dataclasses.replace(equal, expected=exactly, region=region))
    together = compare(several)
    for check, found in zip(several, together, strict=True):
        alone = made(check)
        assert found.check.call is check.call
        if alone.by_row is not None:
            np.testing.assert_array_equal(found.comparison.by_row, alone.by_row)
        # of a sum the order of the terms may differ
        assert found.comparison.nmse == pytest.approx(alone.nmse, rel=1e-12, nan_ok=True)
        pair = (each._replace(nmse=0.0, by_row=None) for each in (found.comparison, alone))
        assert len(set(map(repr, pair))) == 1  # NaN, too


def test_a_comparison_of_bits_does_not_take_minus_0_for_0() -> None:
    zero = np.zeros((1, 1, 1, 4), np.float32)
    negative = zero.copy()
    negative[..., 2] = -0.0
    found = made(of_bits(negative, zero))
    assert (found.ok, found.bitwise, found.max_abs) == (False, False, 0.0)
    assert found.worst is not None
    assert (found.worst.dim, found.worst.error) == (2, 0.0)
    assert made(of_bits(zero, zero.copy())).ok


def test_arrays_are_kept_only_of_what_does_not_hold_or_is_decisive() -> None:
    zero = np.zeros(SHAPE, np.float32)
    holds, fails = of_bits(zero, zero), of_bits(zero + 1, zero)
    decisive = dataclasses.replace(holds, is_decisive=True)
    without, *kept = [each.check for each in compare([holds, fails, decisive])]
    assert without.got.size == without.expected.size == 0
    assert kept == [fails, decisive]


# checks of one name together


def named(check: Check, call: str, first_row: int = 0) -> Check:
    return dataclasses.replace(
        check, call=dataclasses.replace(CALL, name=call), first_row=first_row
    )


def off_by(error: float, bound: float, *, is_state: bool = False) -> Check:
    """Return a check of zeros of which one number is off."""
    got, zero = np.zeros(SHAPE, np.float32), np.zeros(SHAPE)
    got[1, 0, 2, 3] = error
    region = Region(zero, np.full(SHAPE, bound))
    return dataclasses.replace(drawn(0), got=got, expected=zero, region=region, is_state=is_state)


def test_of_checks_that_hold_the_place_is_that_of_the_largest_share() -> None:
    checks = (named(off_by(2, 100), "a"), named(off_by(1, 2, is_state=True), "b"))
    found = comparator.grouped(compare(checks))["segmented_vs_oracle"]
    assert (found.max_abs, found.of_bound, found.bound) == (2, 0.5, 2)
    assert found.worst is not None
    assert found.worst.error == 1
    assert found.place == "b, batch 1, head 0, row 2, element 1"


def test_of_checks_of_single_rows_the_place_has_the_row_of_the_case() -> None:
    rows = [named(off_by(i, 10), f"step {i}", first_row=i) for i in (0, 5, 3)]
    found = comparator.grouped(compare(rows))["segmented_vs_oracle"]
    assert found.worst is not None
    assert (found.worst.row, found.place) == (7, "step 5, batch 1, head 0, row 7, element 3")


def test_a_check_that_does_not_hold_is_told_about_the_region_that_it_leaves() -> None:
    both = off_by(3, 5)
    assert both.region is not None
    ratio = Region(both.region.centre + 1, np.full(SHAPE, 1.5))
    region = comparator.Narrowed(
        both.region.centre + 1, ratio.bound, rounding=both.region, ratio=ratio
    )
    for got, limit, error, bound in ((3, "ratio", 2, 1.5), (7, "rounding", 7, 5)):
        check = dataclasses.replace(off_by(got, 5), region=region)
        found = comparator.restated(compare([check])[0])
        assert found.check.limit == limit
        assert found.comparison.worst is not None
        assert (found.comparison.worst.error, found.comparison.bound) == (error, bound)
        assert found.comparison.of_bound == error / bound


def test_a_region_without_what_is_lost_is_still_of_both() -> None:
    ones = np.ones(SHAPE)
    one = Region(ones, ones)
    lost = np.zeros(SHAPE, bool)
    lost[0, 0, 0, 0] = True
    found = comparator.Narrowed(ones, ones, rounding=one, ratio=one).without(lost)
    for region in (found, found.rounding, found.ratio):
        assert (region.centre[0, 0, 0, 0], region.centre[0, 0, 0, 1]) == (0, 1)
