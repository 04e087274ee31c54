"""Status and measured errors of a case: what was computed against what should have been."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fa_harness import bounds, oracle, rolling, rolling_oracle, trails
from fa_harness.bounds import Arithmetic, Expected
from fa_harness.cases import Case
from fa_harness.comparison import Comparison, Region, exact, first_bad, why, within
from fa_harness.fifo import Rolled
from fa_harness.inputs import Inputs
from fa_harness.localise import F16_MAX, Call, Check, Localisation, first_wrong, mode_of
from fa_harness.modes import Chain, Merged, Run, Step, chain_paths, path
from fa_harness.oracle import F64, Partial
from fa_harness.rolling import CacheStep
from fa_harness.rolling_oracle import ExpectedSteps

F32 = npt.NDArray[np.float32]

STATUSES = ("pass", "fail", "crash", "timeout", "unsupported", "mistrusted")

_RATIO = 8.0
"""A mode's row may be this many times worse than the standard run's row. Both errors are sums of as
many roundings of the same sizes in another order; the largest of a row's elements then differs by a
factor of 2 or 3 from run to run, seldom of more."""

_KV_TILE = 64
"""Keys in a tile of the tiled path, `GGML_FA_TILE_KV` in ggml-cpu's common.h."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came out of a case."""

    case: Case
    status: str
    """One of `STATUSES`."""
    path: str
    """The path that upstream takes for one call over the whole case."""
    modes: tuple[str, ...]
    """The modes that were computed; none where the library did not finish."""
    reason: str = ""
    """Why the status is not `pass`."""
    localisation: Localisation | None = None
    """Where a case that fails went wrong first; None also where no number is wrong: a token in
    another's place, an input that was written, another work size."""
    comparisons: dict[str, Comparison]
    outputs: dict[str, F32 | list[F32]]
    """Outputs of the modes, and `after_segment`, a list of them; empty where they are not kept."""
    steps: tuple[CacheStep, ...] = ()
    """The steps of a rolling cache."""
    seconds: float = 0.0
    """From the case's start to its verdict."""

    def took(self, seconds: float) -> Verdict:
        """Return the verdict with its time."""
        return replace(self, seconds=seconds)


def judge(
    case: Case,
    inputs: Inputs,
    run: Run,
    *,
    features: tuple[str, ...],
    with_outputs: bool = False,
) -> Verdict:
    """Compare a run of a case with the oracle and its modes with each other.

    Args:
        case: The case.
        inputs: Its inputs.
        run: What the library computed.
        features: The library's CPU features, as `Ggml.features` names them.
        with_outputs: Keep the outputs' numbers, whatever their size.
    """
    judged = _Judge(case, inputs, run, features)
    status, reason = judged.status()
    return Verdict(
        case=case,
        status=status,
        path=path(case),
        modes=run.modes,
        reason=reason,
        localisation=judged.localisation() if status == "fail" else None,
        comparisons=judged.comparisons,
        outputs=_outputs(run) if with_outputs or run.standard.size <= 64 else {},
        steps=judged.steps,
    )


class _Truth:
    """The oracle's states of a case, for Q itself or rounded to a type, each computed once."""

    def __init__(self, case: Case, inputs: Inputs, *, calls: list[Arithmetic]) -> None:
        """Prepare for bounds around the oracle's states for Q as the calls round it."""
        self._case = case
        self._inputs = inputs
        self._bounded = {how.q_type for how in calls}
        self._rescale_roundings = max(how.rescale_roundings for how in calls)
        self._segments = list(itertools.pairwise(case.segment_bounds()))
        self._known: dict[tuple[int, str], Partial] = {}

    def segment(self, i: int, q_type: str = "f32") -> Partial:
        """Return the state of a segment alone, the sinks in the last."""
        if (i, q_type) not in self._known:
            q, _ = bounds.rounded_q(self._inputs.q, q_type)
            partial = oracle.attend(
                self._case,
                replace(self._inputs, q=q),
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
        return list(itertools.accumulate(self.segments(q_type), oracle.merge))


class _Judge:
    def __init__(self, case: Case, inputs: Inputs, run: Run, features: tuple[str, ...]) -> None:
        self._case = case
        self._inputs = inputs
        self._run = run
        self._features = features
        self._how = bounds.arithmetic(case, path(case), features)
        how_of_calls = [*self._how_of_calls(own_types=False), *self._how_of_calls(own_types=True)]
        self._truth = _Truth(case, inputs, calls=[self._how, *how_of_calls])
        self._prefixes = self._truth.prefixes()
        self._outputs = [oracle.finalise(prefix) for prefix in self._prefixes]
        self._of_one = self._nothing().then(self._truth.prefixes(self._how.q_type)[-1], self._how)
        self._chain_is_exact = _chain_is_exact(case)
        self._chain_regions: list[Region] = []
        """Where the last output of each chain must lie."""
        self._regions: dict[int, tuple[Expected, Region]] = {}
        self._near_regions: dict[tuple[int, ...], tuple[Region, Region]] = {}
        self._compared: dict[tuple[int, int], tuple[F32, Comparison]] = {}
        self._expected_steps: ExpectedSteps | None = None
        self.comparisons: dict[str, Comparison] = {}
        self.steps: tuple[CacheStep, ...] = ()

        self._compare_standard()
        if run.full_state is not None and run.full_state_again is not None:
            self._compare_full_state(run.full_state, run.full_state_again)
        if run.segmented is not None:
            self._compare_segmented(run.segmented)
        if run.merged is not None:
            self._compare_merged(run.merged)
        if run.resumed is not None:
            self._compare_resumed(run.resumed)
        if run.mixed is not None and run.mixed_again is not None:
            self._compare_mixed(run.mixed, run.mixed_again)
        if run.fifo is not None and run.fifo_again is not None:
            self._compare_fifo(run.fifo, run.fifo_again)

    def status(self) -> tuple[str, str]:
        """Return the status and its reason."""
        misplaced, broken = self._misplaced(), self._broken()
        if misplaced is not None:
            return "fail", misplaced
        if broken is not None:
            return "fail", why(broken, self.comparisons[broken])
        if self._run.inputs_written:
            return (
                "fail",
                f"the op wrote to its inputs: {', '.join(self._run.inputs_written)}",
            )
        sizes = self._run.work_size
        if sizes.get("full_state", sizes["standard"]) != sizes["standard"]:
            return "fail", (
                f"the work size is {sizes['full_state']} bytes with a state, "
                f"{sizes['standard']} without"
            )
        if self._overflows:
            peak = float(self._prefixes[-1].peak.max())
            return "unsupported", (
                f"upstream's F16 accumulator overflows: numerators reach {peak:.3g}, F16 ends at "
                f"{F16_MAX:.0f}; the comparisons that must be bit-identical are"
            )
        return self._mistrust()

    def localisation(self) -> Localisation | None:
        """Return where the comparison that does not hold went wrong first, if one is why it fails.

        Where upstream's F16 accumulator overflows, only what must be bit-identical is looked at.
        """
        broken = self._broken()
        if broken is None or self._misplaced() is not None:
            return None
        trail = self._trail(mode_of(broken))
        return first_wrong(
            broken, (check for check in trail if check.region is None or not self._overflows)
        )

    def _misplaced(self) -> str | None:
        """Return the first token of a rolling cache that is not where it belongs, or None."""
        for rolled in (self._run.fifo, self._run.fifo_again):
            if rolled is not None and rolled.can_be_told_apart:
                misplaced = rolling.misplaced(self._case, rolled.held)
                if misplaced is not None:
                    return misplaced
        return None

    def _broken(self) -> str | None:
        """Return the first comparison that does not hold and is to count, or None."""
        for name, comparison in self.comparisons.items():
            if not comparison.ok and not (self._overflows and comparison.required == "bound"):
                return name
        return None

    def _trail(self, mode: str) -> Iterator[Check]:
        """Return what a mode left behind and what it must be, in the order of computing.

        Other runs, whose bits it must have, come after the oracle: where that tells that something
        is wrong, it tells where it began.
        """
        run = self._run
        if mode == "standard":
            region = self._region(self._of_one)
            return trails.of_standard(
                self._one_call(), run, self._of_one, self._outputs[-1], region
            )
        if mode == "full_state" and run.full_state and run.full_state_again:
            region = self._not_far_worse(self._region(self._of_one), [run.standard])
            return trails.of_full_state(
                self._one_call(), run, self._of_one, self._outputs[-1], region
            )
        if mode == "segmented" and run.segmented:
            return self._trail_of_segmented(run.segmented)
        if mode == "mixed" and run.mixed and run.mixed_again:
            return self._trail_of_mixed(run.mixed, run.mixed_again)
        if mode == "resumed" and run.resumed:
            return self._trail_of_resumed(run.resumed)
        if mode == "merged" and run.merged:
            return self._trail_of_merged(run.merged)
        if mode == "fifo" and run.fifo and run.fifo_again and self._expected_steps:
            expected = self._expected_steps
            region = self._region(expected.after_both)
            return trails.of_fifo(self._case, run.fifo, run.fifo_again, expected, region)
        raise AssertionError(f"mode {mode} was compared, and is not in the run")

    def _compare_standard(self) -> None:
        run = self._run
        self.comparisons["standard_again"] = exact(run.standard_again, run.standard)
        self.comparisons["standard_vs_oracle"] = self._within(
            run.standard, self._outputs[-1], self._region(self._of_one)
        )

    def _compare_full_state(self, step: Step, again: Step) -> None:
        self.comparisons["full_state_again"] = first_bad(_exact_step(again, step))
        self.comparisons["full_state_vs_standard"] = exact(step.output, self._run.standard)
        region = self._not_far_worse(self._region(self._of_one), [self._run.standard])
        self.comparisons["full_state_vs_oracle"] = self._within(
            step.output, self._outputs[-1], region
        )
        self.comparisons["full_state_state_vs_oracle"] = self._compare_state(
            step.state, self._of_one
        )

    def _compare_segmented(self, chain: Chain) -> None:
        last, full = chain.steps[-1], self._run.full_state
        expected = self._expected_chain(chain.steps, own_types=False)
        self.comparisons["segmented_vs_standard"] = self._compare_with_one_call(
            last.output, self._run.standard, expected[-1]
        )
        if full is not None:
            self.comparisons["segmented_vs_full_state"] = self._compare_with_one_call(
                last.output, full.output, expected[-1]
            )
            if self._chain_is_exact:
                self.comparisons["state_vs_full_state"] = exact(last.state, full.state)
        region = self._not_far_worse(self._region(expected[-1]), self._standard_runs())
        self._compare_chain_with_oracle("segmented", "", chain.steps, expected, region)
        self.comparisons["one_graph_vs_segmented"] = _compare_one_graph(chain)

    def _compare_mixed(self, chain: Chain, again: Chain) -> None:
        expected = self._expected_chain(chain.steps, own_types=True)
        self._compare_chain_with_oracle(
            "mixed", "mixed_", chain.steps, expected, self._region(expected[-1])
        )
        self.comparisons["mixed_again"] = _exact_steps(again.steps, chain.steps)
        self.comparisons["one_graph_vs_mixed"] = first_bad(
            [_compare_one_graph(chain), _compare_one_graph(again)]
        )

    def _compare_resumed(self, steps: tuple[Step, ...]) -> None:
        """Compare with the chain that was not cut; where that was not computed, with the oracle."""
        own_types = bool(self._case.segment_types)
        uncut = self._run.mixed if own_types else self._run.segmented
        if uncut is not None:
            name = "resumed_vs_mixed" if own_types else "resumed_vs_segmented"
            self.comparisons[name] = _exact_steps(steps, uncut.steps)
            return
        expected = self._expected_chain(steps, own_types=own_types)
        self._compare_chain_with_oracle(
            "resumed", "resumed_", steps, expected, self._region(expected[-1])
        )

    def _compare_merged(self, merged: Merged) -> None:
        case, parts = self._case, merged.parts
        uncut = self._run.mixed if case.segment_types else self._run.segmented
        if uncut is not None:
            self.comparisons["part_vs_chain"] = first_bad(_exact_step(parts[0], uncut.steps[0]))
        expected_parts = self._expected_parts()
        self.comparisons["part_vs_oracle"] = first_bad(
            within(part.output, oracle.finalise(self._truth.segment(i)), self._region(expected))
            for i, (part, expected) in enumerate(zip(parts, expected_parts, strict=True))
        )
        self.comparisons["part_state_vs_oracle"] = first_bad(
            _compare_state(part.state, expected)
            for part, expected in zip(parts, expected_parts, strict=True)
        )
        reductions = [merged.in_turn, merged.swapped, merged.pairwise, merged.shuffled]
        expected = bounds.merged(expected_parts)
        region = self._region(expected)
        if not case.segment_types:
            region = self._not_far_worse(region, self._standard_runs())
        self.comparisons["merged_vs_oracle"] = first_bad(
            within(step.output, self._outputs[-1], region) for step in reductions
        )
        self.comparisons["merged_state_vs_oracle"] = first_bad(
            _compare_state(step.state, expected) for step in reductions
        )
        # The parts' own errors are in all reductions alike: between them, and against the exact
        # merge of the parts as they are, only the roundings of the merges remain.
        states = [part.state for part in parts]
        rows, rounded = bounds.merged_rows(states)
        self.comparisons["merged_vs_parts"] = first_bad(
            within(step.state, rows, Region(rows, rounded)) for step in reductions
        )
        in_turn = merged.in_turn.state
        centre = in_turn.astype(np.float64)
        self.comparisons["merged_in_any_order"] = first_bad(
            within(step.state, in_turn, Region(centre, 2 * rounded))
            for step in (merged.pairwise, merged.shuffled)
        )
        self.comparisons["merged_swapped"] = within(
            merged.swapped.state, in_turn, Region(centre, bounds.swap_bound(states))
        )
        self.comparisons["merged_result_vs_state"] = first_bad(
            _compare_result(step) for step in reductions
        )
        self.comparisons["merged_again"] = first_bad(
            _exact_step(merged.in_turn_again, merged.in_turn)
        )
        self.comparisons["merged_with_fresh"] = first_bad(
            exact(state, in_turn) for state in merged.with_fresh
        )
        self.comparisons["fresh_merged"] = first_bad(_exact_step(merged.fresh, _fresh_step(case)))
        self.comparisons["parts_after_merge"] = first_bad(
            exact(after, part.state) for after, part in zip(merged.parts_after, parts, strict=True)
        )

    def _compare_fifo(self, rolled: Rolled, again: Rolled) -> None:
        """Compare a rolling cache, whose steps are the rows of the arrays."""
        expected = rolling_oracle.expect(
            self._case, self._inputs, _may_go_on_in_f16(rolled.cold_state), self._features
        )
        exact_output, region = oracle.finalise(expected.exact), self._region(expected.after_both)
        self._expected_steps = expected
        self.comparisons["fifo_again"] = first_bad(
            [exact(again.output, rolled.output), exact(again.state, rolled.state)]
        )
        self.comparisons["fifo_vs_oracle"] = within(rolled.output, exact_output, region)
        self.comparisons["fifo_state_vs_oracle"] = first_bad(
            [
                _compare_state(rolled.cold_state, expected.after_cold),
                _compare_state(rolled.state, expected.after_both),
            ]
        )
        steps = []
        for step, held in enumerate(rolled.held):
            row = np.s_[:, :, step : step + 1]
            of_row = Region(region.centre[row], region.bound[row])
            comparison = within(rolled.output[row], exact_output[row], of_row)
            unquantised = np.abs(rolled.output[row] - self._outputs[-1][row]).max()
            steps.append(
                CacheStep(
                    step=step,
                    tokens_hot=held.tokens_hot,
                    tokens_cold=held.tokens_cold,
                    cache_bytes=held.cache_bytes,
                    f16_bytes=rolling.f16_bytes(self._case, step + 1),
                    error=comparison.max_abs,
                    of_bound=comparison.of_bound,
                    quantisation_error=float(unquantised),
                )
            )
        self.steps = tuple(steps)

    def _compare_chain_with_oracle(
        self,
        mode: str,
        prefix: str,
        steps: tuple[Step, ...],
        expected: list[Expected],
        last: Region,
    ) -> None:
        """Compare a chain's last output, each output on the way and each state with the oracle.

        Args:
            mode: Name of the mode.
            prefix: Of the other comparisons' names.
            steps: The chain.
            expected: What is expected after each step.
            last: Where the last output must lie.
        """
        self._chain_regions.append(last)
        self.comparisons[f"{mode}_vs_oracle"] = self._within(
            steps[-1].output, self._outputs[-1], last
        )
        self.comparisons[f"{prefix}prefix_vs_oracle"] = first_bad(
            self._within(step.output, self._outputs[i], self._region(expected[i]))
            for i, step in enumerate(steps)
        )
        self.comparisons[f"{prefix}state_vs_oracle"] = first_bad(
            self._compare_state(step.state, expected[i]) for i, step in enumerate(steps)
        )

    def _compare_with_one_call(self, output: F32, of_one: F32, expected: Expected) -> Comparison:
        """Compare the chain's last output with that of one call."""
        if self._chain_is_exact:
            return exact(output, of_one)
        return within(output, of_one, self._near_one_call(of_one, expected))

    def _near_one_call(self, of_one: F32, expected: Expected) -> Region:
        one, chain = self._region(self._of_one), self._region(expected)
        bound = one.bound + chain.bound + np.abs(chain.centre - one.centre)
        return Region(of_one.astype(np.float64), bound)

    def _nothing(self) -> Expected:
        return bounds.nothing(self._case, self._inputs)

    def _how_of_calls(self, *, own_types: bool) -> list[Arithmetic]:
        """Return what each call of a chain computes in."""
        case = self._case
        return [
            bounds.arithmetic(case.of_segment(i) if own_types else case, path_, self._features)
            for i, path_ in enumerate(chain_paths(case, own_types=own_types))
        ]

    def _expected_chain(self, steps: tuple[Step, ...], *, own_types: bool) -> list[Expected]:
        """Return what is expected after each step.

        Which rows go on in F16 is told by the state that a call found: those that were fresh or
        held F16 numbers only. Partials of split-KV start from nothing in any case.
        """
        if self._case.segments == 1 and not own_types:
            return [self._of_one]
        chain = [self._nothing()]
        for i, how in enumerate(self._how_of_calls(own_types=own_types)):
            in_f16 = None
            if how.f16_numerators and not how.n_partials and i > 0:
                in_f16 = _may_go_on_in_f16(steps[i - 1].state)
            chain.append(chain[-1].then(self._truth.segment(i, how.q_type), how, in_f16))
        return chain[1:]

    def _region(self, expected: Expected) -> Region:
        if id(expected) not in self._regions:
            self._regions[id(expected)] = expected, _region(expected)
        return self._regions[id(expected)][1]

    def _within(self, output: F32, expected: F64, region: Region) -> Comparison:
        """Compare an output with one of the oracle's, the same bits but once."""
        key = id(expected), id(region)
        return self._once(key, output, lambda: within(output, expected, region))

    def _compare_state(self, state: F32, expected: Expected) -> Comparison:
        key = id(expected), id(expected)
        return self._once(key, state, lambda: _compare_state(state, expected))

    def _once(
        self, key: tuple[int, int], got: F32, compare: Callable[[], Comparison]
    ) -> Comparison:
        """Return what the same bits gave before under this key, else compare.

        Keys are identities of what lives as long as the judge.
        """
        if key in self._compared:
            before, comparison = self._compared[key]
            if got is before or got.tobytes() == before.tobytes():
                return comparison
        comparison = compare()
        self._compared[key] = got, comparison
        return comparison

    def _one_call(self) -> Call:
        return Call(
            name="the only call",
            keys=(0, self._case.kv),
            path=path(self._case),
            f16_numerators=self._how.f16_numerators,
        )

    def _calls(self, *, own_types: bool, name: str = "segment") -> list[Call]:
        case = self._case
        limits = itertools.pairwise(case.segment_bounds())
        paths = chain_paths(case, own_types=own_types)
        hows = self._how_of_calls(own_types=own_types)
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

    def _trail_of_chain(self, steps: tuple[Step, ...], *, own_types: bool) -> Iterator[Check]:
        expected = self._expected_chain(steps, own_types=own_types)
        regions = [self._region(of_call) for of_call in expected]
        if steps is not self._run.resumed and not own_types:
            regions[-1] = self._not_far_worse(regions[-1], self._standard_runs())
        calls = self._calls(own_types=own_types)
        for i, step in enumerate(steps):
            yield from trails.of_step(calls[i], step, expected[i], self._outputs[i], regions[i])

    def _trail_of_segmented(self, chain: Chain) -> Iterator[Check]:
        yield from self._trail_of_chain(chain.steps, own_types=False)
        calls, last = self._calls(own_types=False), chain.steps[-1]
        expected = self._expected_chain(chain.steps, own_types=False)[-1]
        full, others = self._run.full_state, {"standard": self._run.standard}
        if full is not None:
            if self._chain_is_exact:
                yield from trails.same(calls[-1], last, full, "full_state")
            others = {"full_state": full.output, **others}
        for other, output in others.items():
            near = None if self._chain_is_exact else self._near_one_call(output, expected)
            yield trails.same_result(calls[-1], last.output, output, other, near=near)
        yield from trails.of_one_graph(calls, chain)

    def _trail_of_mixed(self, chain: Chain, again: Chain) -> Iterator[Check]:
        calls = self._calls(own_types=True)
        yield from self._trail_of_chain(chain.steps, own_types=True)
        yield from trails.same_steps(calls, again.steps, chain.steps, "the first run")
        for one in (chain, again):
            yield from trails.of_one_graph(calls, one)

    def _trail_of_resumed(self, steps: tuple[Step, ...]) -> Iterator[Check]:
        own_types = bool(self._case.segment_types)
        uncut = self._run.mixed if own_types else self._run.segmented
        if uncut is None:
            yield from self._trail_of_chain(steps, own_types=own_types)
        else:
            calls = self._calls(own_types=own_types)
            yield from trails.same_steps(calls, steps, uncut.steps, "the chain that is not cut")

    def _trail_of_merged(self, merged: Merged) -> Iterator[Check]:
        own_types = bool(self._case.segment_types)
        calls = self._calls(own_types=own_types, name="part")
        for i, expected in enumerate(self._expected_parts()):
            alone = oracle.finalise(self._truth.segment(i))
            region = self._region(expected)
            yield from trails.of_step(calls[i], merged.parts[i], expected, alone, region)
        uncut = self._run.mixed if own_types else self._run.segmented
        if uncut is not None:
            yield from trails.same(calls[0], merged.parts[0], uncut.steps[0], "the chain")
        expected = bounds.merged(self._expected_parts())
        region = self._region(expected)
        if not own_types:
            region = self._not_far_worse(region, self._standard_runs())
        yield from trails.of_merges(
            calls, merged, expected, self._outputs[-1], region, _fresh_step(self._case)
        )

    def _expected_parts(self) -> list[Expected]:
        own_types = bool(self._case.segment_types)
        return [
            self._nothing().then(self._truth.segment(i, how.q_type), how)
            for i, how in enumerate(self._how_of_calls(own_types=own_types))
        ]

    def _standard_runs(self) -> list[F32]:
        """Return the standard run, and where a chain takes another path that on the vec path."""
        return [run for run in (self._run.standard, self._run.reference) if run is not None]

    def _not_far_worse(self, region: Region, runs: list[F32]) -> Region:
        """Return the part of a region of last outputs that is not far worse than other runs.

        That is `_RATIO` times their error, in the row itself or typical of the rows in relation to
        their size, and some roundings of a number of that size.
        """
        key = (id(region), *map(id, runs))
        if key not in self._near_regions:
            self._near_regions[key] = region, self._near_region(region, runs)
        return self._near_regions[key][1]

    def _near_region(self, region: Region, runs: list[F32]) -> Region:
        if not all(np.isfinite(run).all() for run in runs):
            return region
        partial, exact_output = self._prefixes[-1], self._outputs[-1]
        error = np.max([np.abs(run - exact_output).max(axis=-1) for run in runs], axis=0)
        s = np.where(partial.s == 0, 1.0, partial.s)
        size = partial.abs_vkq.max(axis=-1) / s  # the row's scale: sum of p |v|
        relative = np.divide(error, size, out=np.zeros_like(error), where=size != 0)
        typical = np.sqrt((relative**2).mean()) * size
        allowed = (_RATIO * np.maximum(error, typical) + 4 * bounds.U32 * size)[..., None]
        low = np.maximum(region.centre - region.bound, exact_output - allowed)
        high = np.minimum(region.centre + region.bound, exact_output + allowed)
        return Region((low + high) / 2, np.maximum((high - low) / 2, 0.0))

    @functools.cached_property
    def _overflows(self) -> bool:
        """Tell whether upstream's F16 accumulator overflows, so that no bound can hold."""
        run = self._run
        own_types = bool(self._case.segment_types)
        chains = [(run.segmented, False), (run.mixed, True)]
        lasts = [(chain.steps[-1].output, own) for chain, own in chains if chain is not None]
        if run.merged is not None:
            lasts.append((run.merged.in_turn.output, own_types))
        if run.resumed is not None:
            lasts.append((run.resumed[-1].output, own_types))
        lost = self._how.f16_numerators and not np.isfinite(run.standard).all()
        for output, own in lasts:
            in_f16 = any(how.f16_numerators for how in self._how_of_calls(own_types=own))
            lost |= in_f16 and not np.isfinite(output).all()
        if run.fifo is not None and "f16" in (self._case.type_V, self._case.cold_type):
            lost |= not np.isfinite(run.fifo.output).all()
        return lost and bool(self._prefixes[-1].peak.max() > F16_MAX)

    def _mistrust(self) -> tuple[str, str]:
        """Return `mistrusted` where no fault could have shown, else `pass`."""
        run, region = self._run, self._region(self._of_one)
        if not self._outputs[-1].any() or not run.standard.any():
            return "mistrusted", "every output is 0: nothing could differ"
        if not (np.abs(region.centre) > region.bound).any():
            return (
                "mistrusted",
                "the bound is above every output: an output of 0 would pass",
            )
        if run.fifo is not None and self._expected_steps is not None:
            return _mistrust_fifo(self._case, run.fifo, self._expected_steps)
        chains = (run.segmented, run.merged, run.resumed, run.mixed)
        if all(chain is None for chain in chains) or self._case.segments == 1:
            return "pass", ""
        segments, whole = self._truth.segments(), self._prefixes[-1]
        weights = [oracle.weight(segment.m, whole.m) * segment.s for segment in segments]
        if max(sum(weight > 0 for weight in rows) for rows in _rows_of(weights)) < 2:
            return "mistrusted", (
                f"{self._case.segments} segments were asked for, and no row has keys in two"
            )
        # of merges a lost part shows: S is compared with that of the parts to a few roundings
        last = segments[-1]
        share = oracle.weight(last.m, whole.m)[..., None]
        faults: dict[str, Callable[[], F64]] = {
            "reset numerators": lambda: share * last.vkq / np.where(whole.s, whole.s, 1)[..., None],
            "a lost state": lambda: oracle.finalise(last),
        }
        for region in self._chain_regions:
            visible = region.bound
            if self._chain_is_exact:
                # more than any accumulator rounds away
                visible = bounds.U16 * np.abs(region.centre)
            for fault, output in faults.items():
                if not (np.abs(output() - region.centre) > visible).any():
                    return "mistrusted", f"{fault} would stay within the bound in every row"
        return "pass", ""


def _mistrust_fifo(case: Case, rolled: Rolled, expected: ExpectedSteps) -> tuple[str, str]:
    """Return `mistrusted` where no fault of a rolling cache could have shown, else `pass`."""
    if not rolled.can_be_told_apart:
        return "mistrusted", "two tokens have the same bytes: one in the other's place would pass"
    if not rolling.n_cold(case).any():
        return "mistrusted", (
            f"no token ever gets cold: hot_window={case.hot_window} holds the kv={case.kv}"
        )
    hot, whole = expected.hot, expected.exact
    share = oracle.weight(hot.m, whole.m)[..., None]
    faults = {
        "reset numerators": share * hot.vkq / np.where(whole.s, whole.s, 1)[..., None],
        "a lost state": oracle.finalise(hot),
        "lost hot tokens": oracle.finalise(expected.cold),
    }
    region = _region(expected.after_both)
    for fault, output in faults.items():
        if not (np.abs(output - region.centre) > region.bound).any():
            return "mistrusted", f"{fault} would stay within the bound at every step"
    return "pass", ""


def _region(expected: Expected) -> Region:
    """Return where a correct output lies: around the oracle's for the rounded Q."""
    return Region(oracle.finalise(expected.truth), expected.output_bound())


def _compare_state(state: F32, expected: Expected) -> Comparison:
    """Compare state rows with the oracle's, brought to the rows' own maximum."""
    region = trails.state_region(state, expected)
    return within(state, region.centre, region)


def _compare_result(step: Step) -> Comparison:
    """Compare a result with VKQ / S of its state."""
    region = trails.result_region(step)
    return within(step.output, region.centre, region)


def _compare_one_graph(chain: Chain) -> Comparison:
    outputs, state = chain.one_graph
    pairs = [(output, step.output) for output, step in zip(outputs, chain.steps, strict=True)]
    return first_bad(exact(a, b) for a, b in [*pairs, (state, chain.steps[-1].state)])


def _exact_steps(got: tuple[Step, ...], expected: tuple[Step, ...]) -> Comparison:
    pairs = zip(got, expected, strict=True)
    return first_bad(comparison for a, b in pairs for comparison in _exact_step(a, b))


def _exact_step(got: Step, expected: Step) -> list[Comparison]:
    return [exact(got.output, expected.output), exact(got.state, expected.state)]


def _fresh_step(case: Case) -> Step:
    """Return what two fresh states merge to: fresh rows, and zeros."""
    rows = (case.ne3, case.n_head, case.nb)
    state = np.zeros((*rows, 2 + case.hsv_padded), np.float32)
    state[..., 0] = -np.inf
    return Step(output=np.zeros((*rows, case.hsv_padded), np.float32), state=state)


def _may_go_on_in_f16(state: F32) -> npt.NDArray[np.bool_]:
    """Tell of each row of a state whether a call with an F16 V continues it in F16."""
    vkq = state[..., 2:]
    with np.errstate(over="ignore"):
        is_f16 = vkq.astype(np.float16).astype(np.float32) == vkq
    fresh_or_f16: npt.NDArray[np.bool_] = np.isneginf(state[..., 0]) | is_f16.all(axis=-1)
    return fresh_or_f16


def _chain_is_exact(case: Case) -> bool:
    """Tell whether the chain has to give the bits of one call.

    The vec path takes the keys one at a time, so it does not see where a call ends. The tiled path
    takes them by tiles, counted from the start of a call. Split-KV sums parts of a call apart.
    """
    paths = {path(case), *chain_paths(case)}
    if paths == {"tiled"}:
        inner = case.segment_bounds()[1:-1]
        return all(limit % _KV_TILE == 0 or limit == case.kv for limit in inner)
    return paths == {"vec"}


def _rows_of(weights: list[F64]) -> npt.NDArray[np.float64]:
    """Return weights by segment as `[rows, segments]`."""
    return np.stack([weight.reshape(-1) for weight in weights], axis=-1)


def _outputs(run: Run) -> dict[str, F32 | list[F32]]:
    outputs: dict[str, F32 | list[F32]] = {"standard": run.standard}
    if run.full_state is not None:
        outputs["full_state"] = run.full_state.output
    if run.segmented is not None:
        outputs["segmented"] = run.segmented.steps[-1].output
        outputs["after_segment"] = [step.output for step in run.segmented.steps]
    if run.merged is not None:
        outputs["merged"] = run.merged.in_turn.output
    if run.resumed is not None:
        outputs["resumed"] = run.resumed[-1].output
    if run.mixed is not None:
        outputs["mixed"] = run.mixed.steps[-1].output
    if run.fifo is not None:
        outputs["fifo"] = run.fifo.output
    return outputs
