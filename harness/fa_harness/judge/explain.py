"""Where a failing case went wrong first: the call, the row, the element, and which part of a state.

The contract yields its checks in the order of computing. The first that does not hold is where the
fault shows first. Of a state row `[M, S, VKQ]`, S and the numerators are judged relative to the
row's own M, so one that is wrong only because M is does not count.

All numbers of a localisation are about one reference: `error` is |got - expected|, `bound` is what
that error may be, and `share` is above 1. They are printed with so many digits that a reader who
calculates with what is printed finds the same.

**What is called right.** "M and S are within bounds" tells a reader where not to look, so it has to
be worth something. The bounds of a call that accumulates in F16, or whose dot products do, are up
to 8,192 times as wide as those of F32: a lost key may hide in them. So a part is called right only
if it lies within what a kernel may be off that rounds to F32 throughout (`Expectations.in_f32`), in
every row, whatever the call computes in. Errors of calls before it count, too. Rows that may be
anything are not judged, and a part with such a row is not called right. What is compared with
another state or with merged parts, not with the oracle, has such a reference already. Of bits only
those are told that were compared with the same other run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np

from fa_harness.arrays import Bools
from fa_harness.judge.compare import ORACLE, PARTS, Check, Judged, Worst, parts_of, wrong
from fa_harness.judge.compare import place as place_of
from fa_harness.judge.shares import beyond, in_words
from fa_harness.kernel import F16_MAX

_AXES = (("sequence", "sequences"), ("head", "heads"), ("row", "rows"), ("element", "elements"))


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
    """The parts of this call's state that are within the bounds of F32, or the same bits, in every
    row: see above."""
    batch: int
    """Sequence (ne3)."""
    head: int
    row: int
    """Query row (n_batch)."""
    element: int | None
    """Of the numerators or the result; None for M and S."""
    expected: float
    """What is right there: the oracle's for Q as the call rounds it, the oracle's for Q itself if
    the limit is `ratio`, or another run's number."""
    got: float
    error: float
    """|got - expected|."""
    bound: float
    """What the error may be; 0 where the bits or the numbers must be the same."""
    limit: str
    """What does not hold: `bits`, `equality` (where 0 and -0 are equal), `rounding`, or `ratio`:
    within rounding, but much further off than the standard run."""
    other: str
    """Whose `expected` is: the oracle's, or another run's."""
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
        return self.limit == "bits"

    @property
    def place(self) -> str:
        """The indices of the worst element in words."""
        is_state = self.part != "result"
        dim = PARTS.index(self.part) if is_state else 0
        worst = Worst(self.batch, self.head, self.row, dim + (self.element or 0), self.error)
        return place_of(worst, is_state=is_state)

    @property
    def reason(self) -> str:
        """The comparison that fails, and its worst element."""
        words = self.comparison.replace("_", " ")
        if self._must_be_same:
            how = f"differs by {self.error:.2e}" if self.error else "0 and -0 differ"
            what = "bit-identical" if self.is_of_bits else "equal"
            return f"{words}: must be {what}, {how} at {self.place}"
        error, bound = beyond(self.error, self.bound)
        allowed = f"allowed {bound}"
        if self.limit == "ratio":
            allowed = f"the standard run's error allows {bound}"
        return f"{words}: {error}, {allowed} at {self.place}"

    @property
    def _must_be_same(self) -> bool:
        return self.limit in ("bits", "equality")

    def lines(self) -> list[str]:
        """Return it in words, three short lines."""
        start, stop = self.keys
        keys = f"keys {start} to {stop - 1}" if stop - start > 1 else f"key {start}"
        keys = keys if stop > start else "no key"
        of_path = f", {self.path} path" if self.path else ""
        verb = "are" if self.part == "numerators" else "is"
        part = f"{self.part} {verb} wrong"
        is_or_are = "is" if self.right == ("M",) else "are"
        right = f"; {_list(self.right)} {is_or_are} within bounds" if self.right else ""
        other = "expected" if self.other == ORACLE else f"in {self.other}"
        size = f", allowed error {self.bound:.2e}"
        if math.isfinite(self.share):
            size = f", {in_words(self.share)} the bound"
        if self.limit == "ratio":
            part = f"the error of the {self.part} grew"
            size = f", {in_words(self.share)} what the standard run's error allows"
            size += "; within the rounding bound"
        elif self.is_of_bits:
            part, size = f"the bits of {self.part} differ", ""
            right = f"; those of {_list(self.right)} do not" if self.right else ""
        elif self._must_be_same:
            part, size = f"{self.part} {'differ' if self.part == 'numerators' else 'differs'}", ""
            do_not = "does not" if self.right == ("M",) else "do not"
            right = f"; {_list(self.right)} {do_not}" if self.right else ""
        got, expected = self._numbers()
        return [
            f"{self.mode}, {self.call}, {keys}{of_path}: {part}{right}",
            f"worst at {self.place}: got {got}, {other} {expected}{size}",
            f"{'other bits' if self.is_of_bits else 'wrong'} in {self._extent()}",
        ]

    def _numbers(self) -> tuple[str, str]:
        """Return what was got and what is expected with the digits in which the error shows."""
        allowed = -1.0 if self._must_be_same else float(beyond(self.error, self.bound)[1])
        for digits in range(9 if self._must_be_same else 7, 18):
            got, expected = (f"{number:.{digits}g}" for number in (self.got, self.expected))
            error = abs(float(got) - float(expected))
            is_near = abs(error - self.error) <= 2e-3 * self.error
            if (is_near and error > allowed) or not math.isfinite(self.error):
                break
        return got, expected

    @property
    def share(self) -> float:
        """The error as a share of its bound, above 1.

        Infinite where nothing is allowed, and where what was got or is expected is no number.
        """
        return self.error / self.bound if self.bound and not math.isnan(self.error) else math.inf

    def _extent(self) -> str:
        extent = f"{self.wrong_rows} of {self.rows} rows"
        if self.wrong_rows == self.rows:
            extent = f"all {self.rows} rows" if self.rows > 1 else "the only row"
        elif self.wrong_rows == 1:
            extent = f"this one of {self.rows} rows"
        extent += f": {self.pattern}" if self.pattern else ""
        if self.of_f16_range is not None:
            reach = f"{self.largest_numerator:.3g}, {self.of_f16_range:.2g} of F16's largest"
            extent += f"; the row's F16 numerators reach {reach}"
        return extent


def localise(judged: Sequence[Judged], first: Judged, in_f32: Iterable[Check]) -> Localisation:
    """Return where a case went wrong first, as it shows in the worst element there.

    `judged` are all checks of the case, in the order of computing, and `first` is the first of them
    that does not hold. `in_f32` are the checks of its mode for a kernel that rounds to F32
    throughout; they are made only where they are needed.
    """
    check, worst, call = first.check, first.comparison.worst, first.check.call
    assert worst is not None
    is_wrong, part, offset = wrong(check), "result", 0
    limit = "bits" if check.region is None else check.limit
    if check.region is not None and first.comparison.bound == 0 and check.other != ORACLE:
        limit = "equality"
    before = [
        each
        for each in takewhile(lambda each: each is not first, judged)
        if each.check.is_state and (each.check.mode, each.check.call) == (check.mode, call)
    ]
    held: tuple[str, ...] = PARTS
    if check.is_state:
        part = PARTS[min(worst.dim, 2)]
        of_parts = parts_of(is_wrong)
        # by a wrong M nothing else can be judged
        held = () if part == "M" else tuple(p for p in PARTS if not of_parts[p].any())
        is_wrong, offset = of_parts[part], PARTS.index(part)
    if limit in ("bits", "equality"):
        is_compared = check.is_state or any(each.check.other == check.other for each in before)
        right = held if is_compared else ()
    else:
        right = _right(check, held, in_f32) if held else ()
    at = (worst.batch, worst.head, worst.row, worst.dim)
    centre = check.expected if check.region is None else check.region.centre
    largest = None
    if call.f16_numerators and check.numerators is not None:
        largest = float(np.abs(check.numerators[at[:3]]).max())
    return Localisation(
        mode=check.mode,
        comparison=check.name,
        call=call.name,
        index=call.index,
        path=call.path,
        keys=call.keys,
        part=part,
        right=right,
        batch=worst.batch,
        head=worst.head,
        row=check.first_row + worst.row,
        element=worst.dim - offset if part in ("numerators", "result") else None,
        expected=float(centre[at]),
        got=float(check.got[at]),
        error=worst.error,
        bound=first.comparison.bound,
        limit=limit,
        other=check.other,
        wrong_rows=int(is_wrong.any(axis=-1).sum()),
        rows=math.prod(is_wrong.shape[:-1]),
        pattern=_pattern(is_wrong, check.first_row),
        largest_numerator=largest,
    )


def _right(check: Check, held: tuple[str, ...], in_f32: Iterable[Check]) -> tuple[str, ...]:
    """Return those parts of a call's state that hold, and do so within the bounds of F32."""
    call = replace(check.call, f16_numerators=False)
    of_call = [
        each
        for each in in_f32
        if (each.mode, replace(each.call, f16_numerators=False)) == (check.mode, call)
        and each.is_state
        and each.other == ORACLE
    ]
    if not of_call:
        # of a merge that leaves the bits of another, and is compared with that
        return held if check.is_state and check.other != ORACLE else ()
    for each in of_call:
        assert each.region is not None
        of_parts = parts_of(wrong(each) | np.isposinf(each.region.bound))
        held = tuple(part for part in held if not of_parts[part].any())
    return held


def _pattern(wrong: Bools, first_row: int) -> str:
    """Return which sequences, heads, rows and elements are wrong, where each is a simple set.

    They have to be wrong together: all combinations of them, and no other.
    """
    in_rows: Bools = np.logical_or.reduce(wrong, axis=-1, keepdims=True)
    only_row = in_rows.sum() == 1
    for shown in (wrong, in_rows):
        others = ((1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2))
        flags = [np.logical_or.reduce(shown, axis=axes) for axes in others]
        if np.array_equal(shown, np.einsum("a,b,c,d->abcd", *flags, dtype=bool)):
            words = [
                _some(of_axis, *names, first_row if names[0] == "row" else 0)
                for of_axis, names in zip(flags, _AXES, strict=True)
            ]
            if None not in words:
                # of one row the caller says which it is
                return ", ".join(word for word in words[3 if only_row else 0 :] if word)
    return ""


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
