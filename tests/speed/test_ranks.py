"""The rank test against what is known of it: tables, and all orders counted one by one."""

import itertools
import math
from fractions import Fraction

import pytest

from fa_harness.speed.ratios import p_greater


def of_u(n: int, m: int, u: int) -> tuple[list[float], list[float]]:
    """Two samples without ties of which `u` pairs have the first larger."""
    a: list[float] = []
    for left in range(n, 0, -1):
        pairs = min(m, u)
        a.append(pairs + 0.5 + left / 1000)
        u -= pairs
    return a, [float(i + 1) for i in range(m)]


@pytest.mark.parametrize(
    ("n", "level", "critical"),
    [  # Mann and Whitney's U at most, one-sided (Siegel 1956, table K)
        (5, 0.05, 4),
        (5, 0.01, 1),
        (9, 0.05, 21),
        (9, 0.01, 14),
        (9, 0.001, 7),
        (10, 0.01, 19),
        (20, 0.05, 138),
        (20, 0.01, 114),
        (20, 0.001, 88),
    ],
)
def test_the_critical_values_are_those_of_the_tables(n: int, level: float, critical: int) -> None:
    assert p_greater(*of_u(n, n, n * n - critical)) <= level
    assert p_greater(*of_u(n, n, n * n - critical - 1)) > level


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 3), (4, 3), (5, 5)])
def test_the_probability_is_the_share_of_all_orders(n: int, m: int) -> None:
    def pairs(places: tuple[int, ...]) -> int:
        others = [i for i in range(n + m) if i not in places]
        return sum(place > other for place in places for other in others)

    counts = [pairs(places) for places in itertools.combinations(range(n + m), n)]
    for u in range(n * m + 1):
        share = Fraction(sum(count >= u for count in counts), math.comb(n + m, n))
        assert p_greater(*of_u(n, m, u)) == pytest.approx(float(share), rel=1e-12)


def test_ties_do_not_count_as_larger() -> None:
    assert p_greater([1.0] * 10, [1.0] * 10) == 1.0


def test_one_time_far_out_counts_no_more_than_any_that_is_larger() -> None:
    ratios = [1 + i / 1000 for i in range(20)]
    assert p_greater([*ratios[:-1], 50.0], ratios) == p_greater([*ratios[:-1], 1.1], ratios)
