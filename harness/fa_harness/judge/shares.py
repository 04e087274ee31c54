"""How near to its bound a case is in each of its places: what a picture of it shows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fa_harness.arrays import F32
from fa_harness.judge.compare import Comparison

_PICTURE = 64
"""Heads and rows of a picture at most."""


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What a picture of a case shows."""

    comparison: str
    """One with a bound rather than of bits: the first that is not ok, else the nearest to it."""
    by_row: F32
    """The largest share of the bound, `[ne3 * n_head, n_batch]`, at most `_PICTURE` of each: larger
    ones are the largest of several."""
    by_segment: tuple[float, ...]
    """The largest share that an output or a state after each segment takes, of all chains."""


def shares_of(
    comparisons: Mapping[str, Comparison], by_segment: tuple[float, ...]
) -> Shares | None:
    """Return what a picture shows of the comparison that tells most, of all of a case."""
    pictured = {name: c for name, c in comparisons.items() if c.by_row is not None}
    if not pictured:
        return None
    bad = [name for name, c in pictured.items() if not c.ok]
    if bad:
        name = min(bad, key=lambda name: pictured[name].required != "bound")
    else:
        name = max(pictured, key=lambda name: pictured[name].of_bound)
    rows = pictured[name].by_row
    assert rows is not None
    by_row = _pooled(rows.reshape(-1, rows.shape[-1]))
    return Shares(comparison=name, by_row=by_row, by_segment=by_segment)


def in_words(share: float) -> str:
    """Return a share of a bound: `11%` where it is kept, `2391 x` where it is not."""
    if not math.isfinite(share):
        return "inf x"
    if share <= 1:
        return f"{share:.0%}"
    if 999.5 <= share < 1e6:
        return f"{share:.0f} x"
    texts = (f"{share:.{digits}g}" for digits in range(3, 18))
    return f"{next(text for text in texts if float(text) > 1)} x"


def beyond(error: float, bound: float) -> tuple[str, str]:
    """Return an error and the bound that it is beyond, with the digits that show that it is."""
    texts = [(f"{error:.{digits}e}", f"{bound:.{digits}e}") for digits in range(2, 17)]
    are_apart = (pair for pair in texts if not float(pair[0]) <= float(pair[1]))
    return next(are_apart, texts[-1])


def _pooled(array: F32) -> F32:
    """Return an array with at most `_PICTURE` rows and columns, each the largest of neighbours."""
    for axis, size in enumerate(array.shape):
        if size > _PICTURE:
            starts = np.arange(_PICTURE) * size // _PICTURE
            array = np.maximum.reduceat(array, starts, axis=axis)
    return array
