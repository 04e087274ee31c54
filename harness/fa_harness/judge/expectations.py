"""What a correct library gives for a case, in each mode: states, and where results must lie."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from fa_harness.arrays import F32, F64, Bools
from fa_harness.case import preset
from fa_harness.case.case import Case
from fa_harness.case.inputs import Inputs
from fa_harness.judge import bounds, oracle, rolling_oracle
from fa_harness.judge.bounds import Expected
from fa_harness.judge.cached import cached_property
from fa_harness.judge.compare import Call, Narrowed, Region
from fa_harness.judge.oracle import Partial
from fa_harness.judge.rolling_oracle import ExpectedSteps
from fa_harness.kernel import (
    IN_F32,
    Arithmetic,
    arithmetic,
    chain_is_exact,
    chain_paths,
    goes_on_in_f16,
    path,
)

_RATIO = 8.0
"""A mode's row may be this many times worse than the standard run's row. Both errors are sums of as
many roundings of the same sizes in another order; the largest of a row's elements then differs by a
factor of 2 or 3 from run to run, seldom of more."""

NAN_IS_MEANT = np.errstate(invalid="ignore", over="ignore")
"""Inputs and results may hold NaN and infinities, and so may what is made of them."""


class Expectations:
    """What a correct library gives for a case: the oracle's states, and the regions around them.

    Everything is computed when it is first asked for, and once.
    """

    def __init__(self, case: Case, inputs: Inputs, features: tuple[str, ...]) -> None:
        """Take a case, and the library's CPU features, as `Ggml.features` names them."""
        self.case = case
        self._inputs = inputs
        self._features = features
        self.how = arithmetic(case, path(case, features=features), features)
        """What one call over the whole case computes in."""
        self.chain_is_exact = chain_is_exact(case, features)
        """Whether the chain has to give the bits of one call."""
        self.own_types = bool(case.segment_types)
        """Whether parts, and chains that are cut, are of segments in types of their own."""
        self._limits = list(itertools.pairwise(case.segment_bounds()))
        self._rounded: dict[str, Inputs] = {}
        self._segments: dict[tuple[int, str], Partial] = {}
        self._prefixes: dict[tuple[str, ...], Partial] = {}
        self._of_segments: dict[tuple[int, Arithmetic], Expected] = {}
        self._of_fifo: dict[bytes, ExpectedSteps] = {}
        self._reaches: dict[tuple[int, int, Arithmetic, int | None], F64] = {}

    def path(self, case: Case, n_kv: int | None = None) -> str:
        """Return the path that the library takes for a call, as `kernel.path` does."""
        return path(case, n_kv, self._features)

    def arithmetic(self, case: Case, path: str) -> Arithmetic:
        """Return what the library computes a call in."""
        return arithmetic(case, path, self._features)

    def in_f32(self) -> Expectations:
        """Return the same of a kernel that rounds to F32 throughout, but for Q."""
        same = Expectations(self.case, self._inputs, (*self._features, IN_F32))
        same._rounded, same._segments, same._prefixes = (
            self._rounded, self._segments, self._prefixes
        )  # fmt: skip
        return same

    @NAN_IS_MEANT
    def prepare(self, modes: Collection[str]) -> None:
        """Compute now what would be computed later, and needs no run."""
        known = [
            self.of_one,
            *([*self.parts, self.merged] if {"merged", "reduced"} & set(modes) else []),
        ]
        for expected in known:
            _ = expected.region
        _ = self.outputs_alone

    @cached_property
    def prefixes(self) -> list[Partial]:
        """The oracle's states after each segment, for Q itself."""
        return [self._prefix(("f32",) * (i + 1)) for i in range(self.case.segments)]

    @cached_property
    def outputs(self) -> list[F64]:
        """Their results."""
        return [oracle.finalise(prefix) for prefix in self.prefixes]

    @cached_property
    def outputs_alone(self) -> list[F64]:
        """The result of each segment alone, for Q itself; the first prefix is the first segment."""
        return [self.outputs[0], *map(oracle.finalise, self.segments[1:])]

    @cached_property
    def segments(self) -> list[Partial]:
        """The oracle's state of each segment alone, for Q itself."""
        return [self._segment(i) for i in range(self.case.segments)]

    @cached_property
    def of_one(self) -> Expected:
        """What is expected of one call."""
        whole = self._prefix((self.how.q_type,) * self.case.segments)
        return self._nothing.then(whole, self.how)

    @cached_property
    def one_call(self) -> Call:
        """The one call over the whole case."""
        return Call(
            name="the only call",
            keys=(0, self.case.n_kv),
            path=path(self.case, features=self._features),
            f16_numerators=self.how.f16_numerators,
        )

    def calls(self, name: str = "segment", *, own_types: bool | None = None) -> list[Call]:
        """Return the calls of a chain, or of the parts of a merge."""
        own_types = self.own_types if own_types is None else own_types
        paths = chain_paths(self.case, self._features, own_types=own_types)
        return [
            Call(
                name=f"{name} {i} (of 0 to {self.case.segments - 1})",
                keys=keys,
                path=path_,
                index=i,
                f16_numerators=how.f16_numerators,
            )
            for i, (keys, path_, how) in enumerate(
                zip(self._limits, paths, self.hows[own_types], strict=True)
            )
        ]

    def chain(
        self, states: Sequence[F32] | None, *, own_types: bool | None = None
    ) -> list[Expected]:
        """Return what is expected after each call of a chain that left `states`.

        Which rows go on in F16 is told by the state that a call found: those that were fresh or
        held F16 numbers only. Without `states`, F16 is allowed for in every row. Partials of
        split-KV start from nothing in any case. With `own_types` each segment is a cache of its own
        types, as in mode `mixed`; where it is None, if they have any.
        """
        own_types = self.own_types if own_types is None else own_types
        if self.case.segments == 1 and not own_types:
            return [self.of_one]
        hows = self.hows[own_types]
        chain = [self._of_segment(0, hows[0])]
        for i, how in enumerate(hows[1:], start=1):
            in_f16: Bools | None = None
            if states is not None and how.f16_numerators and not how.n_partials:
                in_f16 = goes_on_in_f16(states[i - 1])
            whole = self._prefix(tuple(how.q_type for how in hows[: i + 1]))
            own = self._segment(i, how.q_type)
            chain.append(chain[-1].then(own, how, whole=whole, in_f16=in_f16))
        return chain

    @cached_property
    def parts(self) -> list[Expected]:
        """What is expected of each segment alone."""
        return [self._of_segment(i, how) for i, how in enumerate(self.hows[self.own_types])]

    @cached_property
    def merged(self) -> Expected:
        """What is expected of the merged states of all segments."""
        q_types = tuple(how.q_type for how in self.hows[self.own_types])
        wholes = [self._prefix(q_types[: i + 1]) for i in range(len(q_types))]
        return bounds.merged(self.parts, wholes)

    @cached_property
    def preset(self) -> Expected:
        """What is expected of one call on the state `preset.rows`."""
        given, how = preset.rows(self.case), self.how
        whole = self._prefix((how.q_type,) * self.case.segments)
        before = bounds.given(self.case, self._inputs, given)
        in_f16 = None if how.n_partials else goes_on_in_f16(given)
        after = before.then(whole, how, in_f16=in_f16)
        s = after.truth.s
        may_overflow = (s > 0) & (s < 2.0**-126)  # 1 / S does
        return replace(after, is_loose=after.is_loose | may_overflow)

    def fifo(self, goes_on: Bools) -> ExpectedSteps:
        """Return what is expected of the steps of a rolling cache.

        A call with an F16 V continues the rows `goes_on` of the state after the cold call in F16.
        """
        key = goes_on.tobytes()
        if key not in self._of_fifo:
            self._of_fifo[key] = rolling_oracle.expect(
                self.case, self._inputs, goes_on, self._features
            )
        return self._of_fifo[key]

    def reach(self, start: int, stop: int, how: Arithmetic, *, after: int | None = None) -> F64:
        """Return the largest |VKQ| that a call's F16 accumulator may hold: see `oracle.reach`.

        It goes on from the state after the segment `after`, or begins anew.
        """
        key = (start, stop, how, after)
        if key not in self._reaches:
            self._reaches[key] = oracle.reach(
                self.case,
                self._rounded_inputs(how.q_type),
                start,
                stop,
                before=None if after is None else self.prefixes[after],
                n_parts=max(1, how.n_partials),
                u=bounds.U16,
            )
        return self._reaches[key]

    def sum_of_v(self) -> F64:
        """Return the sum of the keys' largest |V| up to each key, `[ne3, n_head_kv, n_kv]`."""
        sums: F64 = np.abs(self._inputs.v.astype(np.float64)).max(axis=-1).cumsum(axis=-1)
        return sums

    def not_far_worse(self, region: Region, runs: Sequence[F32]) -> Region:
        """Return the part of a region of last outputs whose error is not far worse than of runs.

        That is `_RATIO` times their error, in the row itself or typical of the rows in relation to
        their size, and some roundings of a number of that size. In rows where a run is not finite,
        or may be anything, it is the whole region.
        """
        partial, exact_output = self.prefixes[-1], self.outputs[-1]
        errors = [np.abs(run - exact_output).max(axis=-1) for run in runs]
        error = functools.reduce(np.maximum, errors)
        is_finite = np.isfinite(error) & ~np.isposinf(region.bound).any(axis=-1)
        if not is_finite.any():
            return region
        s = np.where(partial.s == 0, 1.0, partial.s)
        size = partial.abs_vkq.max(axis=-1) / s  # the row's scale: sum of p |v|
        relative = np.divide(error, size, out=np.zeros_like(error), where=size != 0)
        typical = np.sqrt((relative[is_finite] ** 2).mean()) * size
        allowed = _RATIO * np.maximum(error, typical) + 4 * bounds.U32 * size
        allowed = np.where(is_finite, allowed, np.inf)[..., None]
        low, high = region.centre - region.bound, region.centre + region.bound
        np.maximum(low, exact_output - allowed, out=low)
        np.minimum(high, exact_output + allowed, out=high)
        centre = (low + high) / 2
        bound = np.subtract(high, low, out=high)
        bound /= 2
        np.maximum(bound, 0.0, out=bound)
        if not np.isfinite(bound.sum()):  # of what is NaN, infinite, or may be anything
            is_kept = ~np.isfinite(bound)
            centre[is_kept], bound[is_kept] = region.centre[is_kept], region.bound[is_kept]
        ratio = Region(exact_output, np.broadcast_to(allowed, exact_output.shape))
        return Narrowed(centre, bound, rounding=region, ratio=ratio)

    @cached_property
    def hows(self) -> dict[bool, list[Arithmetic]]:
        """What each call of a chain computes in, by whether its segments have their own types."""
        case = self.case
        return {
            own_types: [
                arithmetic(case.of_segment(i) if own_types else case, path_, self._features)
                for i, path_ in enumerate(chain_paths(case, self._features, own_types=own_types))
            ]
            for own_types in (False, True)
        }

    @cached_property
    def _nothing(self) -> Expected:
        return bounds.nothing(self.case, self._inputs)

    def _of_segment(self, i: int, how: Arithmetic) -> Expected:
        """Return what is expected of a call that begins anew: a chain's first, or a part."""
        if (i, how) not in self._of_segments:
            own = self._segment(i, how.q_type)
            self._of_segments[i, how] = self._nothing.then(own, how)
        return self._of_segments[i, how]

    def _segment(self, i: int, q_type: str = "f32") -> Partial:
        """Return the oracle's state of a segment alone, for Q rounded to a type.

        The sinks are in the last. Bounds are made around the states for Q as the calls round it.
        """
        if (i, q_type) not in self._segments:
            calls = [self.how, *self.hows[False], *self.hows[True]]
            partial = oracle.attend(
                self.case,
                self._rounded_inputs(q_type),
                *self._limits[i],
                for_bounds=any(how.q_type == q_type for how in calls),
                rescale_roundings=max(how.rescale_roundings for how in calls),
            )
            if i == len(self._limits) - 1 and self._inputs.sinks is not None:
                partial = oracle.add_sinks(partial, self._inputs.sinks)
            self._segments[i, q_type] = partial
        return self._segments[i, q_type]

    def _prefix(self, q_types: tuple[str, ...]) -> Partial:
        """Return the oracle's state after the first segments, each for Q rounded to its type."""
        if q_types not in self._prefixes:
            *before, last = q_types
            own = self._segment(len(before), last)
            self._prefixes[q_types] = (
                oracle.merge(self._prefix(tuple(before)), own) if before else own
            )
        return self._prefixes[q_types]

    def _rounded_inputs(self, q_type: str) -> Inputs:
        if q_type not in self._rounded:
            q, _ = bounds.rounded_q(self._inputs.q, q_type)
            self._rounded[q_type] = replace(self._inputs, q=q)
        return self._rounded[q_type]
