"""A rank test: do the numbers of one sample tend to be larger than those of another?

Mann and Whitney's U test, one-sided and exact. Only the order of the numbers counts, so neither
their distribution nor a single time that a neighbour on the machine spoilt matters.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_left
from collections.abc import Sequence


def p_greater(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the probability of so many pairs with a > b if both samples were of one distribution.

    The numbers of each are independent, and there is at least one. A pair of equal numbers counts
    as not greater: where there are ties, the result is too large rather than too small.
    """
    ordered = sorted(b)
    u = sum(bisect_left(ordered, x) for x in a)
    orders = _orders(len(a), len(b))
    return sum(orders[u:]) / math.comb(len(a) + len(b), len(a))


@functools.cache
def _orders(n: int, m: int) -> tuple[int, ...]:
    """Return, for each u, in how many orders of n and m numbers u pairs have the first larger.

    They are the coefficients of the Gaussian binomial: the product over i = 1..n of
    (1 - q^(m + i)) / (1 - q^i).
    """
    size = n * m + 1
    count = [1] + [0] * (size - 1)
    for i in range(1, n + 1):
        for u in range(size - 1, m + i - 1, -1):
            count[u] -= count[u - m - i]
        for u in range(i, size):
            count[u] += count[u - i]
    return tuple(count)
