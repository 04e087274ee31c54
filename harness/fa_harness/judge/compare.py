"""Two results of a case, element by element: bit for bit, or within a region."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fa_harness.arrays import F32, F64

_TOGETHER = 1 << 14
"""Elements that are compared at once: their arrays stay in the cache."""


class Worst(NamedTuple):
    """Where a comparison is worst: the indices of the contract's row order, and the element."""

    batch: int
    """Sequence (ne3)."""
    head: int
    row: int
    """Query row (n_batch)."""
    dim: int
    """Element of the row; of a state row `[M, S, VKQ]`, 0 is M and 1 is S."""
    error: float
    """|a - b| there."""


class Comparison(NamedTuple):
    """Two results of a case, element by element."""

    max_abs: float
    """Largest |a - b|; NaN where one is NaN or infinite and the other is not the same."""
    max_rel_row: float
    """Largest over the rows of max|a - b| / max|b|."""
    nmse: float
    """Sum of squared errors over the sum of squares of b."""
    bitwise: bool
    """Both have the same bits."""
    worst: Worst | None
    """The element furthest beyond, or nearest to, its bound; None where all agree exactly."""
    bound: float
    """What |a - b| may be at `worst`; 0 where the bits have to be the same."""
    of_bound: float
    """How much of its bound an element takes at most; above 1 where a bound is broken."""
    required: str
    """`bits` where both must be the same bit for bit, `bound` where they must be near, `none` where
    the difference is only reported."""
    ok: bool
    """What is required holds for every element."""
    by_row: F32 | None = None
    """The largest share of its bound that an element of each row takes, `[ne3, n_head, n_batch]`;
    infinite where the bits have to be the same and are not. None where all have the same bits."""

    def without_rows(self) -> Comparison:
        """Return the comparison without what only a picture of it takes."""
        return self if self.by_row is None else self._replace(by_row=None)


_SAME = Comparison(
    max_abs=0.0, max_rel_row=0.0, nmse=0.0, bitwise=True, worst=None, bound=0.0, of_bound=0.0,
    required="bits", ok=True,
)  # fmt: skip


@dataclass(frozen=True)
class Region:
    """Where numbers must lie: |number - centre| <= bound, element by element."""

    centre: F64
    bound: F64


class Near(NamedTuple):
    """Results `[ne3, n_head, n_batch, n]` that are to be compared; `got` must lie in the region."""

    got: F32
    expected: F32 | F64
    region: Region


def exact(got: F32, expected: F32) -> Comparison:
    """Compare arrays that must be the same bit for bit."""
    if got is expected or got.tobytes() == expected.tobytes():
        return _SAME
    b = expected.astype(np.float64)
    comparison = within(got, b, Region(b, np.zeros(b.shape)))
    return comparison._replace(of_bound=0.0, required="bits", ok=comparison.bitwise)


def within(got: F32, expected: F32 | F64, region: Region) -> Comparison:
    """Compare arrays `[ne3, n_head, n_batch, n]`; what is got must lie in the region."""
    [comparison] = all_within([Near(got, expected, region)])
    return comparison


def is_small(array: F32) -> bool:
    """Tell whether an array is so small that NumPy's calls take longer than their numbers."""
    return array.size <= _TOGETHER


def all_within(asked: Sequence[Near]) -> list[Comparison]:
    """Compare small results of one shape together, others one by one, whatever their order."""
    together: dict[tuple[int, ...], list[int]] = {}
    for i, near in enumerate(asked):
        together.setdefault(near.got.shape, []).append(i)
    made: dict[int, Comparison] = {}
    for shape, members in together.items():
        n = max(1, _TOGETHER // max(1, math.prod(shape)))
        for some in (members[i : i + n] for i in range(0, len(members), n)):
            made.update(zip(some, _compared([asked[i] for i in some]), strict=True))
    return [made[i] for i in range(len(asked))]


@np.errstate(divide="ignore", invalid="ignore", over="ignore")
def _compared(asked: Sequence[Near]) -> list[Comparison]:
    """Compare results of one shape; arrays are `[n_asked, ne3, n_head, n_batch, n]`."""
    a, b = _stacked([one.got for one in asked]), _stacked([one.expected for one in asked])
    bound = _stacked([one.region.bound for one in asked])
    centre = b
    if any(one.region.centre is not one.expected for one in asked):
        centre = _stacked([one.region.centre for one in asked])
    error = np.abs(a - b)
    off = error if centre is b else np.abs(a - centre)
    size, known = error, b
    excess = off / bound
    (row_error, max_abs), (by_row, most) = _largest(error), _largest(excess)
    if not (np.isfinite(max_abs).all() and np.isfinite(most).all()):
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        error = np.where(same, 0.0, error)
        off = np.where((a == centre) | (same & ~np.isfinite(a)), 0.0, off)
        size = np.where(np.isnan(error), np.inf, error)
        known = np.where(np.isfinite(b), b, 0.0)
        excess = np.divide(off, bound, out=np.zeros(off.shape), where=off != 0)
        excess[np.isnan(excess)] = np.inf
        (row_error, max_abs), (by_row, most) = _largest(error), _largest(excess)
    each = len(asked), -1
    relative = np.where(row_error == 0, 0.0, row_error / np.abs(known).max(axis=-1))
    nmse = _sums_of_squares(error) / _sums_of_squares(known)
    # of those furthest beyond their bounds the largest error
    furthest = np.where(excess.reshape(each) == most[:, None], size.reshape(each), -1.0)
    at = np.arange(len(asked)), furthest.argmax(axis=-1)
    places = np.transpose(np.unravel_index(at[1], error.shape[1:])).tolist()
    errors, bounds, nearest, right = (x.reshape(each)[at] for x in (error, bound, centre, b))
    bounds = bounds + np.where(nearest == right, 0.0, np.abs(nearest - right))
    rows = by_row.astype(np.float32)
    numbers = zip(
        max_abs.tolist(), most.tolist(), relative.reshape(each).max(axis=-1).tolist(),
        nmse.tolist(), errors.tolist(), bounds.tolist(), strict=True,
    )  # fmt: skip
    comparisons = []
    for i, (largest, of_bound, of_row, of_squares, worst_error, worst_bound) in enumerate(numbers):
        if largest == 0:
            equal_signs = (np.signbit(a[i]) == np.signbit(b[i])) | np.isnan(a[i])
            comparison = _SAME._replace(
                bitwise=bool(equal_signs.all()), of_bound=of_bound, required="bound",
                ok=of_bound <= 1, by_row=rows[i],
            )  # fmt: skip
        else:
            batch, head, row, dim = places[i]
            comparison = Comparison(
                max_abs=largest,
                max_rel_row=of_row,
                nmse=of_squares,
                bitwise=False,
                worst=Worst(batch=batch, head=head, row=row, dim=dim, error=worst_error),
                bound=worst_bound,
                of_bound=of_bound,
                required="bound",
                ok=of_bound <= 1,
                by_row=rows[i],
            )
        comparisons.append(comparison)
    return comparisons


def _stacked(arrays: Sequence[F32 | F64]) -> F64:
    """Return arrays of one shape as one of float64, `[len(arrays), ...]`; one alone as it is."""
    if len(arrays) == 1:
        return arrays[0].astype(np.float64, copy=False)[None]
    whole: F64 = np.concatenate(arrays, dtype=np.float64).reshape(len(arrays), *arrays[0].shape)
    return whole


def _largest(array: F64) -> tuple[F64, F64]:
    """Return the largest of each row, and of each array `[n]` of `[n, ...]`; NaN where one is."""
    of_row = array.max(axis=-1)
    return of_row, of_row.reshape(len(array), -1).max(axis=-1)


def _sums_of_squares(array: F64) -> F64:
    """Return the sum of each array's squares, `[n]` of `[n, ...]`."""
    flat = array.reshape(len(array), -1)
    sums: F64 = np.einsum("ij,ij->i", flat, flat)
    return sums


def first_bad(comparisons: Iterable[Comparison]) -> Comparison:
    """Return, of several comparisons, the first that is not ok, else the one of the largest error.

    That one then has the largest share of a bound that any of them takes.
    """
    every = list(comparisons)
    if len(every) == 1:
        return every[0]
    bad = next((c for c in every if not c.ok), None)
    if bad is not None:
        return bad
    worst, of_bound = max(every, key=lambda c: c.max_abs), max(c.of_bound for c in every)
    return worst if worst.of_bound == of_bound else worst._replace(of_bound=of_bound)


def why(name: str, comparison: Comparison) -> str:
    """Return in words what is wrong with a comparison that is not ok, and where."""
    words = name.replace("_", " ")
    worst = comparison.worst
    if worst is None:
        return f"{words}: 0 and -0 differ"
    where = f"batch {worst.batch}, head {worst.head}, row {worst.row}, dim {worst.dim}"
    if comparison.required == "bits":
        return f"{words}: must be bit-identical, differs by {worst.error:.2e} at {where}"
    return f"{words}: {worst.error:.2e}, allowed {comparison.bound:.2e} at {where}"
