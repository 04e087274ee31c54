"""Checks, and the one comparator: what was got must have the bits expected, or lie in a region."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from fa_harness.arrays import F32, F64, Bools
from fa_harness.judge.cached import cached_property

ORACLE = "the oracle"
PARTS = ("M", "S", "numerators")
"""Of a state row, in the order in which they are looked at: each depends on those before it."""

_TOGETHER = 1 << 14
"""Elements that are compared at once: their arrays stay in the cache."""


@dataclass(frozen=True)
class Region:
    """Where numbers must lie: |number - centre| <= bound, element by element.

    A centre that is not finite has to be met exactly; where the bound is infinite anything goes.
    """

    centre: F64
    bound: F64

    def without(self, lost: Bools) -> Region:
        """Return it with a 0 that may be off by 1 in the place of each number that is lost."""
        return Region(np.where(lost, 0.0, self.centre), np.where(lost, 1.0, self.bound))


@dataclass(frozen=True)
class Narrowed(Region):
    """What a region and another have in common: its centre need not be that of either."""

    rounding: Region
    """Where rounding alone may lead."""
    ratio: Region
    """Around exact attention, as far as the standard run's error allows."""

    def without(self, lost: Bools) -> Narrowed:
        """Return it without some numbers, as `Region.without` does."""
        both = super().without(lost)
        rounding, ratio = self.rounding.without(lost), self.ratio.without(lost)
        return Narrowed(both.centre, both.bound, rounding, ratio)


class LateRegion(Region):
    """A region that is computed when it is first asked for."""

    def __init__(self, make: Callable[[], Region]) -> None:
        """Take what computes it."""
        vars(self)["_make"] = make  # the fields of a frozen record cannot be set

    @cached_property
    def _made(self) -> Region:
        made: Region = vars(self)["_make"]()
        return made

    @property
    def centre(self) -> F64:
        """The centre."""
        return self._made.centre

    @property
    def bound(self) -> F64:
        """The bound."""
        return self._made.bound


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call of a mode, or a merge."""

    name: str
    """What it is in words: `segment 1 of 4`, `hot call of step 7`."""
    keys: tuple[int, int]
    """Its first key, and the one after its last."""
    path: str = ""
    """`vec`, `tiled` or `split-kv`; empty for a merge."""
    index: int | None = None
    """Of a segment or part, from 0; of a rolling cache the step."""
    f16_numerators: bool = False
    """The path accumulates in F16."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Check:
    """One thing that a case has to hold. Arrays are `[ne3, n_head, n_batch, n]`."""

    name: str
    """The comparison that it belongs to, such as `state_vs_oracle`."""
    mode: str = ""
    """One of `MODES`, which `contract.checks` fills in."""
    call: Call
    is_state: bool
    """Rows are `[M, S, VKQ]`; else results."""
    got: F32
    expected: F32 | F64
    """What the error is measured against. If it is float32 it lies in the region: it is enough to
    have its bits."""
    region: Region | None = None
    """Where `got` must lie; None where it must have the bits of `expected`."""
    limit: str = "rounding"
    """What sets the region's bound; `ratio` where it is the standard run's error."""
    other: str = ORACLE
    """Whose `expected` is."""
    numerators: F64 | None = None
    """What the numerators are, `[ne3, n_head, n_batch, hsv]`."""
    first_row: int = 0
    """Which row of the case the first of these is."""
    is_decisive: bool = False
    """The last result of a chain, in which a fault of any call has to show."""


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
    """How far it is from what is right there: the region's centre, or the number expected."""


class Comparison(NamedTuple):
    """What a check found, or several of one name."""

    max_abs: float
    """Largest |got - expected|; NaN where one is NaN or infinite and the other is not the same."""
    max_rel_row: float
    """Largest over the rows of max|got - expected| / max|expected|."""
    nmse: float
    """Sum of squared errors over the sum of squares of what is expected."""
    bitwise: bool
    """Both have the same bits, but those of a NaN."""
    worst: Worst | None
    """The element furthest beyond, or nearest to, its bound; None where all agree exactly. Of a
    state that is wrong, an element of the first of `PARTS` that is."""
    bound: float
    """What the error may be at `worst`; 0 where the bits have to be the same."""
    of_bound: float
    """The error at `worst` as a share of its bound; above 1 where it is wrong."""
    required: str
    """`bits` where both must be the same bit for bit, `bound` where they must be near, `none` where
    the difference is only reported."""
    ok: bool
    """What is required holds for every element."""
    place: str = ""
    """The call of `worst`, and its place, in words. Empty where all agree exactly."""
    by_row: F32 | None = None
    """The largest share of its bound that an element of each row takes, `[ne3, n_head, n_batch]`;
    infinite where the bits have to be the same and are not. None where all have the same bits."""


class Judged(NamedTuple):
    """A check that was made, without its arrays where it holds and is not decisive."""

    check: Check
    comparison: Comparison


_SAME = Comparison(
    max_abs=0.0, max_rel_row=0.0, nmse=0.0, bitwise=True, worst=None, bound=0.0, of_bound=0.0,
    required="bits", ok=True,
)  # fmt: skip


def compare(checks: Iterable[Check]) -> list[Judged]:
    """Make checks; small ones of one shape together, large ones as they come.

    NumPy's calls take longer than the numbers of small arrays, and the regions of large ones need
    not be kept.
    """
    made: dict[int, Judged] = {}
    small: dict[tuple[int, ...], list[tuple[int, Check]]] = {}
    for i, check in enumerate(checks):
        is_of_bits = check.region is None
        may_have_bits = is_of_bits or check.expected.dtype == np.float32
        if may_have_bits and _has_bits(check.got, check.expected):
            same = _SAME if is_of_bits else _SAME._replace(required="bound")
            made[i] = _judged(check, same)
        elif check.got.size > _TOGETHER:
            made[i] = _judged(check, *_compared([check]))
        else:
            small.setdefault(check.got.shape, []).append((i, check))
    for shape, members in small.items():
        n = max(1, _TOGETHER // max(1, math.prod(shape)))
        for some in (members[first : first + n] for first in range(0, len(members), n)):
            found = _compared([check for _, check in some])
            for (i, check), comparison in zip(some, found, strict=True):
                made[i] = _judged(check, comparison)
    return [made[i] for i in range(len(made))]


def difference(got: F32, other: F32) -> Comparison:
    """Return how far results are apart of which nothing is required."""
    if _has_bits(got, other):
        return _SAME._replace(required="none")
    no_call = Call(name="", keys=(0, 0))
    check = Check(name="", call=no_call, is_state=False, got=got, expected=other)
    [comparison] = _compared([check])
    return comparison._replace(required="none", ok=True, by_row=None)


def wrong(check: Check) -> Bools:
    """Tell of each element whether it is not what it must be."""
    if check.region is None:
        got, expected = (np.ascontiguousarray(x, np.float32) for x in (check.got, check.expected))
        different: Bools = got.view(np.uint32) != expected.view(np.uint32)
        return different & ~(np.isnan(got) & np.isnan(expected))
    shares = _shares(check.got.astype(np.float64), check.region.centre, check.region.bound)
    return shares > 1


def parts_of(array: Bools) -> dict[str, Bools]:
    """Return the parts of state rows."""
    cut = (array[..., :1], array[..., 1:2], array[..., 2:])
    return dict(zip(PARTS, cut, strict=True))


def grouped(judged: Sequence[Judged]) -> dict[str, Comparison]:
    """Return the comparisons: by name, the checks that were made under it as one.

    That is the first that does not hold, else the one that takes the largest share of its bound,
    with the largest errors of all.
    """
    by_name: dict[str, list[Judged]] = {}
    for each in judged:
        by_name.setdefault(each.check.name, []).append(each)
    return {name: _as_one(of_name) for name, of_name in by_name.items()}


def _as_one(judged: Sequence[Judged]) -> Comparison:
    chosen = next((each for each in judged if not each.comparison.ok), None)
    if chosen is None:
        chosen = max(judged, key=lambda each: (each.comparison.of_bound, each.comparison.max_abs))
        largest = max((each.comparison for each in judged), key=lambda c: c.max_abs)
        errors = {name: getattr(largest, name) for name in ("max_abs", "max_rel_row", "nmse")}
        found = chosen.comparison._replace(**errors, bitwise=largest.bitwise)
    else:
        found = chosen.comparison
    if found.worst is not None:
        check, worst = (
            chosen.check,
            found.worst._replace(row=chosen.check.first_row + found.worst.row),
        )
        found = found._replace(
            worst=worst, place=f"{check.call.name}, {place(worst, is_state=check.is_state)}"
        )
    if judged[-1].check.first_row != judged[0].check.first_row:
        return found._replace(by_row=_joined_rows(judged))
    return found


def place(worst: Worst, *, is_state: bool) -> str:
    """Return the place of an element in words."""
    element = f"element {worst.dim}"
    if is_state:
        element = PARTS[worst.dim] if worst.dim < 2 else f"element {worst.dim - 2}"
    return f"batch {worst.batch}, head {worst.head}, row {worst.row}, {element}"


def restated(judged: Judged) -> Judged:
    """Return a check that does not hold with all of its numbers about one centre and one bound.

    Of two regions it is about the first that does not hold: what they have in common has a centre
    that is nobody's result. And the error is measured from the centre that the bound is about:
    not from exact attention for Q itself, where that is another.
    """
    check, region = judged.check, judged.check.region
    if judged.comparison.ok or region is None:
        return judged
    limits = {"rounding": region}
    if isinstance(region, Narrowed):
        limits = {"rounding": region.rounding, "ratio": region.ratio}
    for limit, one in limits.items():
        [judged] = compare([replace(check, expected=one.centre, region=one, limit=limit)])
        if not judged.comparison.ok:
            break
    return judged


def _joined_rows(judged: Sequence[Judged]) -> F32 | None:
    """Return the shares of checks of single rows as one array, the largest of each row."""
    rows: F32 | None = None
    for check, comparison in judged:
        if comparison.by_row is not None:
            if rows is None:
                n_row = max(each.check.first_row for each in judged) + 1
                rows = np.zeros((*comparison.by_row.shape[:2], n_row), np.float32)
            at = rows[:, :, check.first_row]
            np.maximum(at, comparison.by_row[:, :, 0], out=at)
    return rows


def _judged(check: Check, comparison: Comparison) -> Judged:
    if comparison.ok and not check.is_decisive:
        none = np.empty(0, np.float32)
        check = replace(check, got=none, expected=none, region=None, numerators=None)
    return Judged(check, comparison)


def _has_bits(got: F32, expected: F32 | F64) -> bool:
    return got is expected or (got.dtype == expected.dtype and got.tobytes() == expected.tobytes())


@np.errstate(divide="ignore", invalid="ignore")
def _shares(got: F64, centre: F64, bound: F64, off: F64 | None = None) -> F64:
    """Return how far each number is from the centre (`off`), as a share of the bound.

    Infinite where the bound is 0 and they differ, or where one of them is no number; 0 where both
    are the same, NaN and infinities too, and where the bound is infinite.
    """
    off = np.abs(got - centre) if off is None else off
    shares: F64 = off / bound
    if not np.isfinite(shares.max(initial=0.0)):
        same = (got == centre) | (np.isnan(got) & np.isnan(centre))
        shares = np.where(same | (off == 0) | np.isposinf(bound), 0.0, shares)
        shares[np.isnan(shares)] = np.inf
    return shares


@np.errstate(divide="ignore", invalid="ignore", over="ignore")
def _compared(checks: Sequence[Check]) -> list[Comparison]:
    """Compare results of one shape; arrays are `[len(checks), ne3, n_head, n_batch, n]`."""
    a, b = _stacked([one.got for one in checks]), _stacked([one.expected for one in checks])
    zero = np.zeros(b.shape[1:])
    bound = _stacked([zero if one.region is None else one.region.bound for one in checks])
    centre = b
    if any(one.region is not None and one.region.centre is not one.expected for one in checks):
        centre = _stacked(
            [one.expected if one.region is None else one.region.centre for one in checks]
        )
    error = np.abs(a - b)
    off = error if centre is b else np.abs(a - centre)
    known = b
    row_error, max_abs = _largest(error)
    are_finite = np.isfinite(max_abs).all() and (off is error or np.isfinite(off).all())
    if not are_finite:
        is_free = np.isposinf(bound)
        error = np.where(is_free | (a == b) | (np.isnan(a) & np.isnan(b)), 0.0, error)
        off = np.where(is_free | (a == centre) | (np.isnan(a) & np.isnan(centre)), 0.0, off)
        known = np.where(np.isfinite(b), b, 0.0)
        row_error, max_abs = _largest(error)
    shares = _shares(a, centre, bound, off)
    by_row, most = _largest(shares)
    each = len(checks), -1
    of_largest = np.maximum(known.max(axis=-1), -known.min(axis=-1))
    relative = np.where(row_error == 0, 0.0, row_error / of_largest)
    nmse = _sums_of_squares(error) / _sums_of_squares(known)
    # of those furthest beyond their bounds the largest error
    size = off if are_finite else np.where(np.isnan(off), np.inf, off)
    furthest = np.where(shares.reshape(each) == most[:, None], size.reshape(each), -1.0)
    at = np.arange(len(checks)), furthest.argmax(axis=-1)
    places = np.transpose(np.unravel_index(at[1], error.shape[1:])).tolist()
    errors, bounds = (x.reshape(each)[at].tolist() for x in (off, bound))
    rows = by_row.astype(np.float32)
    largest, of_bounds, of_rows, squares = (
        x.tolist() for x in (max_abs, most, relative.reshape(each).max(axis=-1), nmse)
    )
    comparisons = []
    for i, check in enumerate(checks):
        of_bits, is_equal = check.region is None, largest[i] == 0
        bitwise = False
        if is_equal:
            equal_signs = (np.signbit(a[i]) == np.signbit(b[i])) | np.isnan(a[i])
            bitwise = bool(equal_signs.all())
        is_right = is_equal and of_bounds[i] == 0
        batch, head, row, dim = places[i]
        comparison = Comparison(
            max_abs=largest[i],
            max_rel_row=0.0 if is_equal else of_rows[i],
            nmse=0.0 if is_equal else squares[i],
            bitwise=bitwise,
            worst=None if is_right else Worst(batch, head, row, dim, errors[i]),
            bound=0.0 if is_right or of_bits else bounds[i],
            of_bound=0.0 if of_bits else of_bounds[i],
            required="bits" if of_bits else "bound",
            ok=bitwise if of_bits else of_bounds[i] <= 1,
            by_row=rows[i],
        )
        if not comparison.ok:
            comparison = _with_worst(check, comparison, shares[i], off[i], bound[i])
        comparisons.append(comparison)
    return comparisons


def _with_worst(
    check: Check, comparison: Comparison, shares: F64, off: F64, bound: F64
) -> Comparison:
    """Return a comparison that does not hold with the worst of its wrong elements.

    Of a state it is one of the first part that is wrong: by a wrong M nothing else of the row can
    be judged, and the numerators go with S.
    """
    candidates = wrong(check)
    if check.is_state:
        parts = parts_of(candidates)
        first = next(name for name, of_part in parts.items() if of_part.any())
        for name, of_part in parts.items():
            of_part &= name == first
    shares = np.where(candidates, shares, -1.0)
    size = np.where(np.isnan(off), np.inf, off)
    furthest = np.where(candidates & (shares == shares.max()), size, -1.0)
    batch, head, row, dim = (int(i) for i in np.unravel_index(furthest.argmax(), furthest.shape))
    at = (batch, head, row, dim)
    return comparison._replace(
        worst=Worst(*at, float(off[at])),
        bound=float(bound[at]),
        of_bound=0.0 if comparison.required == "bits" else float(shares[at]),
    )


def _stacked(arrays: Sequence[F32 | F64]) -> F64:
    """Return arrays of one shape as one of float64, `[len(arrays), ...]`; one alone as it is."""
    if len(arrays) == 1:
        return arrays[0].astype(np.float64, copy=False)[None]
    return np.concatenate(arrays, dtype=np.float64).reshape(len(arrays), *arrays[0].shape)


def _largest(array: F64) -> tuple[F64, F64]:
    """Return the largest of each row, and of each array `[n]` of `[n, ...]`; NaN where one is."""
    of_row = array.max(axis=-1)
    return of_row, of_row.reshape(len(array), -1).max(axis=-1)


def _sums_of_squares(array: F64) -> F64:
    """Return the sum of each array's squares, `[n]` of `[n, ...]`."""
    flat = array.reshape(len(array), -1)
    sums: F64 = np.einsum("ij,ij->i", flat, flat)
    return sums
