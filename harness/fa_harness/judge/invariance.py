"""Whether a variation of a case gives what the case gives: the same bits, or within rounding."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fa_harness.arrays import F32, F64, Bools
from fa_harness.case.case import Case
from fa_harness.case.inputs import Inputs
from fa_harness.case.variations import Variation, as_it_is, as_seen, vary
from fa_harness.judge import overflow
from fa_harness.judge.cached import cached_property
from fa_harness.judge.compare import Call, Check, Comparison, Region, compare
from fa_harness.judge.expectations import Expectations
from fa_harness.kernel import keeps_bits, path

SAME, ROUNDED, DIFFERS = OUTCOMES = ("same bits", "within rounding", "differs")
"""From the best to the worst."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came out of one call."""

    variation: Variation
    path: str
    """The path that it took."""
    required: str
    """`bits` or `bound`."""
    outcome: str
    """One of `OUTCOMES`."""
    comparison: Comparison
    """With the case's own call, or the oracle. Also where bits are required it says how much of the
    bound the difference takes, if there is one."""
    overflowed: int = 0
    """Rows that are not compared: the F16 accumulator of a call overflows in them."""


class Invariance:
    """The call of a case, with which its variations are compared."""

    def __init__(self, case: Case, inputs: Inputs, output: F32, features: tuple[str, ...]) -> None:
        """Take a case, its own inputs, what one call gave, and the library's CPU features."""
        self._case, self._inputs = case, inputs
        self._output = output
        self._features = features

    @cached_property
    def _expected(self) -> Expectations:
        return self._expectations(as_it_is(self._case))

    def _expectations(self, variation: Variation) -> Expectations:
        return Expectations(*vary(self._case, self._inputs, variation), self._features)

    def against_oracle(self) -> Outcome:
        """Return whether the call itself lies where it must."""
        expect = self._expected
        lost = _overflows(expect, self._output)
        region = expect.of_one.region
        comparison = _compare(self._output, expect.outputs[-1], region, lost)
        return Outcome(
            variation=as_it_is(self._case),
            path=path(self._case, features=self._features),
            required="bound",
            outcome=_in_words(comparison, "bound"),
            comparison=comparison,
            overflowed=int(lost.sum()),
        )

    def judge(self, variation: Variation, got: F32) -> Outcome:
        """Compare the output of a variation with the case's own.

        Bits are required where `kernel.keeps_bits` says so. Else both may be off by their bounds,
        each around its own centre.
        """
        varied, _ = vary(self._case, self._inputs, variation)
        expected = as_seen(self._case, variation, self._output)
        exact = keeps_bits(self._case, varied, variation.kind, self._features)
        lost = np.zeros(got.shape[:3], bool)
        name = path(varied, features=self._features)
        if exact and name not in ("vec", "split-kv"):  # the sign of zeros is not promised
            got, expected = got + np.float32(0), expected + np.float32(0)
        comparison = _compare(got, expected, None, lost)
        if not comparison.bitwise:
            own, other = self._expected, self._expectations(variation)
            here = other.of_one.region
            one = Region(
                *(as_seen(self._case, variation, x) for x in vars(own.of_one.region).values())
            )
            near = Region(
                expected.astype(np.float64),
                one.bound + here.bound + np.abs(here.centre - one.centre),
            )
            if not exact:
                lost = _overflows(other, got) | as_seen(
                    self._case, variation, _overflows(own, self._output)
                )
            comparison = _compare(got, expected, near, lost)
        required = "bits" if exact else "bound"
        return Outcome(
            variation=variation,
            path=name,
            required=required,
            outcome=_in_words(comparison, required),
            comparison=comparison,
            overflowed=int(lost.sum()),
        )


def _compare(got: F32, expected: F32 | F64, region: Region | None, lost: Bools) -> Comparison:
    """Compare rows, but for those that are `lost`."""
    if lost.any():
        got = np.where(lost[..., None], expected.astype(np.float32), got)
        if region is not None:
            centre = np.where(lost[..., None], got, region.centre)
            region = replace(region, centre=centre)
    check = Check(
        name="", call=Call(name="", keys=(0, 0)), is_state=False, got=got, expected=expected,
        region=region,
    )  # fmt: skip
    [judged] = compare([check])
    return judged.comparison


def _in_words(comparison: Comparison, required: str) -> str:
    if comparison.bitwise:
        return SAME
    return ROUNDED if required == "bound" and comparison.ok else DIFFERS


def _overflows(expect: Expectations, output: F32) -> Bools:
    """Tell of each row whether it is not finite since its own F16 accumulator ended."""
    lost: Bools = np.asarray(np.logical_not(np.isfinite(output)).any(axis=-1))
    return lost & overflow.in_one_call(expect) if lost.any() else lost
