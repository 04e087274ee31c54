"""Comparisons against what is said of them, element by element in Python."""

import math
from itertools import product

import numpy as np
import pytest

from fa_harness.judge import compare as comparison
from fa_harness.judge.compare import Near, Region, all_within, exact, is_small, within

SHAPE = (2, 2, 3, 5)
PLACES = list(product(*map(range, SHAPE)))
ODD = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3e38)


def drawn(seed: int, *, odd: int = 0) -> Near:
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
    return Near(got, expected, Region(centre, bound))


def same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def error_of(a: float, b: float) -> float:
    return 0.0 if same(a, b) else abs(a - b)


def excess_of(near: Near, place: tuple[int, ...]) -> float:
    got, centre = float(near.got[place]), float(near.region.centre[place])
    bound = float(near.region.bound[place])
    as_expected = same(got, float(near.expected[place])) and not math.isfinite(got)
    off = 0.0 if got == centre or as_expected else abs(got - centre)
    if off == 0:
        return 0.0
    if math.isnan(off) or (math.isinf(off) and math.isinf(bound)) or bound == 0:
        return math.inf
    return off / bound


@pytest.mark.parametrize("odd", [0, 1, 4])
@pytest.mark.parametrize("seed", range(20))
def test_of_each_element_its_share_of_the_bound_counts(seed: int, odd: int) -> None:
    near = drawn(seed, odd=odd)
    found = within(*near)
    excess = {place: excess_of(near, place) for place in PLACES}
    errors = {p: error_of(float(near.got[p]), float(near.expected[p])) for p in PLACES}
    most = max(excess.values())
    assert found.of_bound == pytest.approx(most, rel=1e-12)
    assert found.ok == (most <= 1)
    is_nan = any(map(math.isnan, errors.values()))
    assert same(found.max_abs, math.nan if is_nan else max(errors.values()))
    assert found.by_row is not None
    with np.errstate(over="ignore"):
        by_row = np.array(list(excess.values()), np.float32).reshape(SHAPE).max(axis=-1)
    np.testing.assert_allclose(found.by_row, by_row, rtol=1e-6)
    assert found.worst is not None
    at = (found.worst.batch, found.worst.head, found.worst.row, found.worst.dim)
    assert excess[at] == most
    apart = error_of(float(near.region.centre[at]), float(near.expected[at]))
    assert same(found.bound, float(near.region.bound[at]) + apart)
    assert same(found.worst.error, errors[at])
    if not is_nan:
        assert found.worst.error == max(errors[p] for p in PLACES if excess[p] == most)


@pytest.mark.parametrize("n_together", [1, 2, 7, 1000])
@pytest.mark.parametrize("odd", [0, 1, 4])
def test_together_they_are_what_each_is_alone(
    odd: int, n_together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "_TOGETHER", n_together * math.prod(SHAPE))
    several = [drawn(seed, odd=odd if seed % 3 == 0 else 0) for seed in range(30)]
    equal = drawn(99)
    exactly = equal.got.astype(np.float64)
    several += [  # of another shape
        Near(got[:, :1], expected[:, :1], Region(region.centre[:, :1], region.bound[:, :1]))
        for got, expected, region in several[:5]
    ]
    several.insert(7, Near(equal.got, exactly, Region(exactly, equal.region.bound)))
    together = all_within(several)
    for near, found in zip(several, together, strict=True):
        alone = within(*near)
        np.testing.assert_array_equal(found.by_row, alone.by_row)
        # of a sum the order of the terms may differ
        assert found.nmse == pytest.approx(alone.nmse, rel=1e-12, nan_ok=True)
        pair = (each._replace(nmse=0.0, by_row=None) for each in (found, alone))
        assert len(set(map(repr, pair))) == 1  # NaN, too


def test_only_small_results_are_compared_together() -> None:
    """Of large ones the arrays would not stay in the cache, and all regions in memory at once."""
    assert is_small(np.zeros((1, 32, 4, 128), np.float32))
    assert not is_small(np.zeros((1, 32, 8, 128), np.float32))


def test_a_comparison_of_bits_does_not_take_minus_0_for_0() -> None:
    zero = np.zeros((1, 1, 1, 4), np.float32)
    found = exact(-zero, zero)
    assert (found.ok, found.bitwise, found.max_abs, found.worst) == (False, False, 0.0, None)
    assert exact(zero, zero.copy()).ok
