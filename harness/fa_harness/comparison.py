"""Two results of a case, element by element: bit for bit, or within a region."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Worst:
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


@dataclass(frozen=True, kw_only=True)
class Comparison:
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
    by_row: F32 | None = field(default=None, compare=False, repr=False)
    """The largest share of its bound that an element of each row takes, `[ne3, n_head, n_batch]`;
    infinite where the bits have to be the same and are not. None where all have the same bits."""

    def without_rows(self) -> Comparison:
        """Return the comparison without what only a picture of it takes."""
        return self if self.by_row is None else replace(self, by_row=None)


_SAME = Comparison(
    max_abs=0.0, max_rel_row=0.0, nmse=0.0, bitwise=True, worst=None, bound=0.0, of_bound=0.0,
    required="bits", ok=True,
)  # fmt: skip


@dataclass(frozen=True)
class Region:
    """Where numbers must lie: |number - centre| <= bound, element by element."""

    centre: F64
    bound: F64


def exact(got: F32, expected: F32) -> Comparison:
    """Compare arrays that must be the same bit for bit."""
    if got.tobytes() == expected.tobytes():
        return _SAME
    b = expected.astype(np.float64)
    comparison = within(got, b, Region(b, np.zeros(b.shape)))
    return replace(comparison, of_bound=0.0, required="bits", ok=comparison.bitwise)


def within(got: F32, expected: F32 | F64, region: Region) -> Comparison:
    """Compare arrays `[ne3, n_head, n_batch, n]`; what is got must lie in the region."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        a, b = got.astype(np.float64), np.asarray(expected, np.float64)
        error = np.abs(a - b)
        off = error if region.centre is expected else np.abs(a - region.centre)
        size, known = error, b
        row_error = error.max(axis=-1)
        max_abs = float(row_error.max())  # NaN where any element is
        if not (math.isfinite(max_abs) and (off is error or math.isfinite(off.max()))):
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            error = np.where(same, 0.0, error)
            off = np.where((a == region.centre) | (same & ~np.isfinite(a)), 0.0, off)
            size = np.where(np.isnan(error), np.inf, error)
            known = np.where(np.isfinite(b), b, 0.0)
            row_error = error.max(axis=-1)
            max_abs = float(row_error.max())
        excess = np.divide(off, region.bound, out=np.zeros(off.shape), where=off != 0)
        by_row = excess.max(axis=-1)
        most = float(by_row.max())
        if math.isnan(most):
            excess[np.isnan(excess)] = np.inf
            by_row, most = excess.max(axis=-1), math.inf
        if max_abs == 0:
            equal_signs = (np.signbit(a) == np.signbit(b)) | np.isnan(a)
            return replace(
                _SAME, bitwise=bool(equal_signs.all()), of_bound=most, required="bound",
                ok=most <= 1, by_row=by_row.astype(np.float32),
            )  # fmt: skip
        row_size = np.abs(known).max(axis=-1)
        row_relative = np.where(row_error == 0, 0.0, row_error / row_size)
        nmse = np.divide((error**2).sum(), (known**2).sum())
    # of those furthest beyond their bounds the largest error
    furthest = np.where(excess == most, size, -1.0)
    index = np.unravel_index(int(furthest.argmax()), furthest.shape)
    batch, head, row, dim = map(int, index)
    apart = 0.0 if region.centre[index] == b[index] else abs(region.centre[index] - b[index])
    return Comparison(
        max_abs=max_abs,
        max_rel_row=float(row_relative.max()),
        nmse=float(nmse),
        bitwise=False,
        worst=Worst(batch=batch, head=head, row=row, dim=dim, error=float(error[index])),
        bound=float(region.bound[index] + apart),
        of_bound=most,
        required="bound",
        ok=most <= 1,
        by_row=by_row.astype(np.float32),
    )


def first_bad(comparisons: Iterable[Comparison]) -> Comparison:
    """Return, of several comparisons, the first that is not ok, else the one of the largest error.

    That one then has the largest share of a bound that any of them takes.
    """
    every = list(comparisons)
    bad = next((c for c in every if not c.ok), None)
    if bad is not None:
        return bad
    worst, of_bound = max(every, key=lambda c: c.max_abs), max(c.of_bound for c in every)
    return worst if worst.of_bound == of_bound else replace(worst, of_bound=of_bound)


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
