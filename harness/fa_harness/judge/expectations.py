"""What a correct library gives for a case, in each mode: states, and where results must lie."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from fa_harness.arrays import F32, F64, Bools
from fa_harness.case.case import Case
from fa_harness.case.inputs import Inputs
from fa_harness.engine.modes import Step, chain_paths, path
from fa_harness.judge import bounds, oracle
from fa_harness.judge.bounds import Arithmetic, Expected, Shared
from fa_harness.judge.compare import Region
from fa_harness.judge.localise import Call
from fa_harness.judge.oracle import Partial

_RATIO = 8.0
"""A mode's row may be this many times worse than the standard run's row. Both errors are sums of as
many roundings of the same sizes in another order; the largest of a row's elements then differs by a
factor of 2 or 3 from run to run, seldom of more."""

_KV_TILE = 64
"""Keys in a tile of the tiled path, `GGML_FA_TILE_KV` in ggml-cpu's common.h."""


class _Truth:
    """The oracle's states of a case, for Q itself or rounded to a type, each computed once."""

    def __init__(
        self, case: Case, inputs: Inputs, shared: Shared, *, calls: list[Arithmetic]
    ) -> None:
        """Prepare for bounds around the oracle's states for Q as the calls round it."""
        self._case = case
        self._inputs = inputs
        self._shared = shared
        self._bounded = {how.q_type for how in calls}
        self._rescale_roundings = max(how.rescale_roundings for how in calls)
        self._segments = list(itertools.pairwise(case.segment_bounds()))
        self._rounded: dict[str, Inputs] = {}
        self._known: dict[tuple[int, str], Partial] = {}

    def segment(self, i: int, q_type: str = "f32") -> Partial:
        """Return the state of a segment alone, the sinks in the last."""
        if (i, q_type) not in self._known:
            partial = oracle.attend(
                self._case,
                self._rounded_inputs(q_type),
                *self._segments[i],
                for_bounds=q_type in self._bounded,
                rescale_roundings=self._rescale_roundings,
            )
            if i == len(self._segments) - 1 and self._inputs.sinks is not None:
                partial = oracle.add_sinks(partial, self._inputs.sinks)
            self._known[i, q_type] = partial
        return self._known[i, q_type]

    def segments(self, q_type: str = "f32") -> list[Partial]:
        """Return the state of each segment alone."""
        return [self.segment(i, q_type) for i in range(len(self._segments))]

    def prefixes(self, q_type: str = "f32") -> list[Partial]:
        """Return the state after each segment."""
        return list(itertools.accumulate(self.segments(q_type), self._shared.merge))

    def _rounded_inputs(self, q_type: str) -> Inputs:
        if q_type not in self._rounded:
            q, _ = bounds.rounded_q(self._inputs.q, q_type)
            self._rounded[q_type] = replace(self._inputs, q=q)
        return self._rounded[q_type]


class Expectations:
    """What a correct library gives for a case: the oracle's states, and the regions around them.

    Attributes:
        how: What one call over the whole case computes in.
        prefixes: The oracle's states after each segment, for Q itself.
        outputs: Their results.
        outputs_alone: The result of each segment alone, for Q itself.
        of_one: What is expected of one call.
        chain_is_exact: Whether the chain has to give the bits of one call.
    """

    def __init__(self, case: Case, inputs: Inputs, features: tuple[str, ...]) -> None:
        """Compute the oracle's states for Q itself, and as one call rounds it.

        Args:
            case: The case.
            inputs: Its inputs.
            features: The library's CPU features, as `Ggml.features` names them.
        """
        self._case = case
        self._inputs = inputs
        self._features = features
        self.how = bounds.arithmetic(case, path(case), features)
        hows = self._how_of_calls(own_types=False)
        of_own = self._how_of_calls(own_types=True) if case.segment_types else hows
        self._hows = {False: hows, True: of_own}
        calls = [self.how, *self._hows[False], *self._hows[True]]
        self._nothing = bounds.nothing(case, inputs)
        self._truth = _Truth(case, inputs, self._nothing.shared, calls=calls)
        self.prefixes = self._truth.prefixes()
        self.outputs = [oracle.finalise(prefix) for prefix in self.prefixes]
        others = map(oracle.finalise, self.segments()[1:])
        self.outputs_alone = [self.outputs[0], *others]  # the first prefix is the first segment
        self._alone: dict[tuple[int, Arithmetic], Expected] = {}
        self.of_one = self._nothing.then(self._truth.prefixes(self.how.q_type)[-1], self.how)
        self.chain_is_exact = chain_is_exact(case)
        self._regions: dict[int, tuple[Expected, Region]] = {}
        self._near_regions: dict[tuple[int, ...], tuple[Region, Region]] = {}
        self._allowed: dict[tuple[int, ...], F64 | None] = {}

    def prepare(self, modes: Collection[str]) -> None:
        """Compute now what would be computed later, and needs no run."""
        known = [self.of_one, *([*self.parts(), self.merged] if "merged" in modes else [])]
        for expected in known:
            self.region(expected)

    def segments(self) -> list[Partial]:
        """Return the oracle's state of each segment alone, for Q itself."""
        return self._truth.segments()

    def one_call(self) -> Call:
        """Return the one call over the whole case."""
        return Call(
            name="the only call",
            keys=(0, self._case.n_kv),
            path=path(self._case),
            f16_numerators=self.how.f16_numerators,
        )

    def calls(self, *, own_types: bool, name: str = "segment") -> list[Call]:
        """Return the calls of a chain, or of the parts of a merge."""
        case = self._case
        limits = itertools.pairwise(case.segment_bounds())
        paths = chain_paths(case, own_types=own_types)
        hows = self.how_of_calls(own_types=own_types)
        return [
            Call(
                name=f"{name} {i} (of 0 to {case.segments - 1})",
                keys=keys,
                path=path_,
                index=i,
                f16_numerators=how.f16_numerators,
            )
            for i, (keys, path_, how) in enumerate(zip(limits, paths, hows, strict=True))
        ]

    def how_of_calls(self, *, own_types: bool) -> list[Arithmetic]:
        """Return what each call of a chain computes in."""
        return self._hows[own_types]

    def chain(self, steps: tuple[Step, ...], *, own_types: bool) -> list[Expected]:
        """Return what is expected after each step.

        Which rows go on in F16 is told by the state that a call found: those that were fresh or
        held F16 numbers only. Partials of split-KV start from nothing in any case.
        """
        if self._case.segments == 1 and not own_types:
            return [self.of_one]
        first, *others = self.how_of_calls(own_types=own_types)
        chain = [self._of_segment(0, first)]
        for i, how in enumerate(others, start=1):
            in_f16 = None
            if how.f16_numerators and not how.n_partials:
                in_f16 = may_go_on_in_f16(steps[i - 1].state)
            chain.append(chain[-1].then(self._truth.segment(i, how.q_type), how, in_f16))
        return chain

    def parts(self) -> list[Expected]:
        """Return what is expected of each segment alone."""
        own_types = bool(self._case.segment_types)
        hows = self.how_of_calls(own_types=own_types)
        return [self._of_segment(i, how) for i, how in enumerate(hows)]

    @functools.cached_property
    def merged(self) -> Expected:
        """What is expected of the merged states of all segments."""
        return bounds.merged(self.parts())

    def region(self, expected: Expected) -> Region:
        """Return where a correct output lies: around the oracle's for the rounded Q."""
        if id(expected) not in self._regions:
            region = Region(expected.output, expected.output_bound())
            self._regions[id(expected)] = expected, region
        return self._regions[id(expected)][1]

    def near_one_call(self, of_one: F32, expected: Expected) -> Region:
        """Return where the last output of a chain lies, seen from that of one call."""
        one, chain = self.region(self.of_one), self.region(expected)
        bound = one.bound + chain.bound + np.abs(chain.centre - one.centre)
        return Region(of_one.astype(np.float64), bound)

    def not_far_worse(self, region: Region, runs: list[F32]) -> Region:
        """Return the part of a region of last outputs that is not far worse than other runs.

        That is `_RATIO` times their error, in the row itself or typical of the rows in relation to
        their size, and some roundings of a number of that size.
        """
        of_runs = tuple(map(id, runs))
        key = (id(region), *of_runs)
        if key not in self._near_regions:
            if of_runs not in self._allowed:
                self._allowed[of_runs] = self._allowed_near(runs)
            self._near_regions[key] = region, self._near_region(region, self._allowed[of_runs])
        return self._near_regions[key][1]

    def _how_of_calls(self, *, own_types: bool) -> list[Arithmetic]:
        case = self._case
        return [
            bounds.arithmetic(case.of_segment(i) if own_types else case, path_, self._features)
            for i, path_ in enumerate(chain_paths(case, own_types=own_types))
        ]

    def _of_segment(self, i: int, how: Arithmetic) -> Expected:
        """Return what is expected of a call that begins anew: a chain's first, or a part."""
        key = i, how
        if key not in self._alone:
            self._alone[key] = self._nothing.then(self._truth.segment(i, how.q_type), how)
        return self._alone[key]

    def _near_region(self, region: Region, allowed: F64 | None) -> Region:
        if allowed is None:
            return region
        exact_output = self.outputs[-1]
        low = np.maximum(region.centre - region.bound, exact_output - allowed)
        high = np.minimum(region.centre + region.bound, exact_output + allowed)
        return Region((low + high) / 2, np.maximum((high - low) / 2, 0.0))

    def _allowed_near(self, runs: list[F32]) -> F64 | None:
        """Return the error that is not far worse than that of runs; None where it is not finite."""
        if not all(np.isfinite(run).all() for run in runs):
            return None
        partial, exact_output = self.prefixes[-1], self.outputs[-1]
        errors = [np.abs(run - exact_output).max(axis=-1) for run in runs]
        error = functools.reduce(np.maximum, errors)
        s = np.where(partial.s == 0, 1.0, partial.s)
        size = partial.abs_vkq.max(axis=-1) / s  # the row's scale: sum of p |v|
        relative = np.divide(error, size, out=np.zeros_like(error), where=size != 0)
        typical = np.sqrt((relative**2).mean()) * size
        allowed: F64 = (_RATIO * np.maximum(error, typical) + 4 * bounds.U32 * size)[..., None]
        return allowed


def chain_is_exact(case: Case) -> bool:
    """Tell whether the chain has to give the bits of one call.

    The vec path takes the keys one at a time, so it does not see where a call ends. The tiled path
    takes them by tiles, counted from the start of a call. Split-KV sums parts of a call apart.
    """
    paths = {path(case), *chain_paths(case)}
    if paths == {"tiled"}:
        inner = case.segment_bounds()[1:-1]
        return all(limit % _KV_TILE == 0 or limit == case.n_kv for limit in inner)
    return paths == {"vec"}


def may_go_on_in_f16(state: F32) -> Bools:
    """Tell of each row of a state whether a call with an F16 V continues it in F16."""
    vkq = state[..., 2:]
    with np.errstate(over="ignore"):
        is_f16 = vkq.astype(np.float16).astype(np.float32) == vkq
    fresh_or_f16: Bools = np.isneginf(state[..., 0]) | is_f16.all(axis=-1)
    return fresh_or_f16
