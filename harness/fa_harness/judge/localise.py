"""Where a failing case went wrong first: the call, the row, the element, and which part of a state.

A mode is a list of checks in the order of computing: after each call its state, then its result.
The first check that does not hold is where the fault shows first, whatever comparison reported it.
Of a state row `[M, S, VKQ]`, S and the numerators are judged relative to the row's own M, so one
that is wrong only because M is does not count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fa_harness.arrays import F32, F64, Bools
from fa_harness.judge.compare import Region

F16_MAX = 65504.0
ORACLE = "the oracle"
PARTS = ("M", "S", "numerators")
"""Of a state row, in the order in which they are looked at: each depends on those before it."""
_AXES = (("sequence", "sequences"), ("head", "heads"), ("row", "rows"), ("element", "elements"))


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
    """What a call left behind, and what it must be. Arrays are `[ne3, n_head, n_batch, n]`."""

    call: Call
    is_state: bool
    """Rows are `[M, S, VKQ]`; else results."""
    got: F32
    expected: F32 | F64
    region: Region | None = None
    """Where `got` must lie; None where it must have the bits of `expected`."""
    other: str = ORACLE
    """What `expected` is of."""
    numerators: F64 | None = None
    """What the numerators are, `[ne3, n_head, n_batch, hsv]`."""
    first_row: int = 0
    """Which row of the case the first of these is."""


@dataclass(frozen=True, kw_only=True)
class Localisation:
    """The first that is wrong in a failing case; all indices count from 0."""

    mode: str
    comparison: str
    """The comparison that failed, by its name in the verdict."""
    call: str
    """The call in words."""
    index: int | None
    """Of the segment or part, or the step of a rolling cache."""
    path: str
    """The call's path of the kernel; empty for a merge."""
    keys: tuple[int, int]
    """The call's first key, and the one after its last."""
    part: str
    """One of `PARTS`, or `result`."""
    right: tuple[str, ...]
    """The parts of this call's state that are right in every row."""
    batch: int
    """Sequence (ne3)."""
    head: int
    row: int
    """Query row (n_batch)."""
    element: int | None
    """Of the numerators or the result; None for M and S."""
    expected: float
    got: float
    bound: float
    """How far they may be apart; 0 where the bits must be the same."""
    other: str
    """What `expected` is of: the oracle, or another run."""
    wrong_rows: int
    """Rows in which this part is wrong after this call."""
    rows: int
    """Rows that there are."""
    pattern: str
    """Which they are, where that is simple; else empty."""
    largest_numerator: float | None
    """Largest |numerator| that the row has after the call, where the call accumulates in F16."""

    @property
    def of_f16_range(self) -> float | None:
        """The largest numerator as a share of the largest F16 number."""
        return None if self.largest_numerator is None else self.largest_numerator / F16_MAX

    @property
    def is_of_bits(self) -> bool:
        """Whether the bits have to be those of another run."""
        return self.bound == 0 and self.other != ORACLE

    def lines(self) -> list[str]:
        """Return it in words, three short lines."""
        start, stop = self.keys
        keys = f"keys {start} to {stop - 1}" if stop - start > 1 else f"key {start}"
        keys = keys if stop > start else "no key"
        of_path = f", {self.path} path" if self.path else ""
        part = f"{self.part} {'are' if self.part == 'numerators' else 'is'} wrong"
        if self.is_of_bits:
            part = f"the bits of {self.part} differ"
        right = f"; {_list(self.right)} are right" if len(self.right) > 1 else (
            "; M is right" if self.right else ""
        )  # fmt: skip
        where = f"batch {self.batch}, head {self.head}, row {self.row}"
        if self.element is not None:
            where += f", element {self.element}"
        other = "expected" if self.other == ORACLE else f"in {self.other}"
        numbers = f"got {self.got:.7g}, {other} {self.expected:.7g}, allowed error {self.bound:.2g}"
        if self.is_of_bits:
            numbers = f"got {self.got:.9g}, {other} {self.expected:.9g}"
        return [
            f"{self.mode}, {self.call}, {keys}{of_path}: {part}{right}",
            f"first at {where}: {numbers}",
            f"{'other bits' if self.is_of_bits else 'wrong'} in {self._extent()}{self._range()}",
        ]

    def _extent(self) -> str:
        if self.wrong_rows == self.rows:
            extent = f"all {self.rows} rows" if self.rows > 1 else "the only row"
        elif self.wrong_rows == 1:
            extent = f"this one of {self.rows} rows"
        else:
            extent = f"{self.wrong_rows} of {self.rows} rows"
        return f"{extent}: {self.pattern}" if self.pattern else extent

    def _range(self) -> str:
        if self.largest_numerator is None or self.of_f16_range is None:
            return ""
        size = f"{self.largest_numerator:.3g}"
        return f"; the row's F16 numerators reach {size}, {self.of_f16_range:.2g} of F16's largest"


def mode_of(comparison: str) -> str:
    """Return the mode whose run a comparison judges."""
    if comparison.startswith(("part", "fresh_merged")):
        return "merged"
    if comparison.startswith("one_graph_vs_"):
        return comparison.removeprefix("one_graph_vs_")
    if comparison.startswith(("state_vs", "prefix_vs")):
        return "segmented"
    modes = ("standard", "full_state", "segmented", "merged", "resumed", "mixed", "fifo")
    return next(mode for mode in modes if comparison.startswith(f"{mode}_"))


def first_wrong(comparison: str, checks: Iterable[Check]) -> Localisation | None:
    """Return the first of a mode's checks that does not hold, as it shows in the first such row.

    Args:
        comparison: The comparison that failed.
        checks: In the order of computing.
    """
    right: Call | None = None
    """The call whose state is right."""
    for check in checks:
        wrong = _wrong(check)
        if wrong.any():
            return _localisation(comparison, check, wrong, state_is_right=check.call is right)
        right = check.call if check.is_state else right
    return None


def _wrong(check: Check) -> Bools:
    """Tell of each element whether it is not what it must be."""
    if check.region is None:
        got, expected = (np.ascontiguousarray(x, np.float32) for x in (check.got, check.expected))
        different: Bools = got.view(np.uint32) != expected.view(np.uint32)
        return different
    a, centre = check.got.astype(np.float64), check.region.centre
    with np.errstate(invalid="ignore"):
        near = np.abs(a - centre) <= check.region.bound
    same = (a == centre) | (np.isnan(a) & np.isnan(centre))
    outside: Bools = ~(near | same)
    return outside


def _localisation(
    comparison: str, check: Check, wrong: Bools, *, state_is_right: bool
) -> Localisation:
    call, part, first = check.call, "result", 0
    right: tuple[str, ...] = PARTS if state_is_right else ()
    if check.is_state:
        of_parts = dict(zip(PARTS, (wrong[..., :1], wrong[..., 1:2], wrong[..., 2:]), strict=True))
        part = next(name for name in PARTS if of_parts[name].any())
        if part != "M":  # by a wrong M nothing else can be judged
            right = tuple(name for name in PARTS if not of_parts[name].any())
        wrong, first = of_parts[part], PARTS.index(part)
    batch, head, row, element = (int(i) for i in np.argwhere(wrong)[0])
    at = (batch, head, row, first + element)
    bound = 0.0
    if check.region is not None:
        apart = abs(float(check.region.centre[at]) - float(check.expected[at]))
        bound = float(check.region.bound[at]) + (apart if math.isfinite(apart) else 0.0)
    largest = None
    if call.f16_numerators and check.numerators is not None:
        largest = float(np.abs(check.numerators[batch, head, row]).max())
    return Localisation(
        mode=mode_of(comparison),
        comparison=comparison,
        call=call.name,
        index=call.index,
        path=call.path,
        keys=call.keys,
        part=part,
        right=right,
        batch=batch,
        head=head,
        row=check.first_row + row,
        element=element if part in ("numerators", "result") else None,
        expected=float(check.expected[at]),
        got=float(check.got[at]),
        bound=bound,
        other=check.other,
        wrong_rows=int(wrong.any(axis=-1).sum()),
        rows=math.prod(wrong.shape[:-1]),
        pattern=_pattern(wrong, check.first_row),
        largest_numerator=largest,
    )


def _pattern(wrong: Bools, first_row: int) -> str:
    """Return which sequences, heads, rows and elements are wrong, where each is a simple set.

    They have to be wrong together: all combinations of them, and no other.
    """
    in_rows: Bools = np.logical_or.reduce(wrong, axis=-1, keepdims=True)
    only_row = in_rows.sum() == 1
    for shown in (wrong, in_rows):
        flags = [_along(axis, shown) for axis in range(4)]
        if np.array_equal(shown, np.einsum("a,b,c,d->abcd", *flags, dtype=bool)):
            words = [
                _some(of_axis, *names, first_row if names[0] == "row" else 0)
                for of_axis, names in zip(flags, _AXES, strict=True)
            ]
            if None not in words:
                # of one row the caller says which it is
                return ", ".join(word for word in words[3 if only_row else 0 :] if word)
    return ""


def _along(axis: int, shown: Bools) -> Bools:
    """Tell of each index of an axis whether anything is set there."""
    others = tuple(other for other in range(4) if other != axis)
    along: Bools = np.logical_or.reduce(shown, axis=others)
    return along


def _some(flags: Bools, one: str, several: str, offset: int) -> str | None:
    """Return some indices of an axis in words: empty for all, None where no words are short."""
    chosen = np.flatnonzero(flags)
    if len(chosen) == len(flags):
        return ""
    first, last = int(chosen[0]) + offset, int(chosen[-1]) + offset
    if first == last:
        return f"{one} {first} only"
    if last - first + 1 != len(chosen):
        step = int(chosen[1] - chosen[0])
        is_even = np.array_equal(chosen, np.arange(chosen[0], len(flags), step))
        return f"{several} {first}, {first + step}, ..." if is_even and len(chosen) > 2 else None
    if chosen[-1] == len(flags) - 1:
        return f"{several} from {first} on"
    return f"{several} {first} to {last}"


def _list(words: tuple[str, ...]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
