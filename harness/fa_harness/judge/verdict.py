"""Status and measured errors of a case: what was computed against what should have been."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np

from fa_harness.arrays import F32, F64
from fa_harness.case import rolling
from fa_harness.case.case import Case
from fa_harness.case.inputs import Inputs
from fa_harness.case.rolling import CacheStep
from fa_harness.engine.fifo import Rolled
from fa_harness.engine.modes import Chain, Merged, Run, Step, path
from fa_harness.judge import bounds, oracle, rolling_oracle, trails
from fa_harness.judge.bounds import Expected
from fa_harness.judge.compare import (
    Comparison,
    Near,
    Region,
    all_within,
    exact,
    first_bad,
    is_small,
    why,
    within,
)
from fa_harness.judge.expectations import Expectations, chain_is_exact, may_go_on_in_f16
from fa_harness.judge.localise import F16_MAX, Check, Localisation, first_wrong, mode_of
from fa_harness.judge.mistrust import why_mistrusted
from fa_harness.judge.rolling_oracle import ExpectedSteps
from fa_harness.judge.shares import Shares, shares_of

STATUSES = ("pass", "fail", "crash", "timeout", "unsupported", "mistrusted")

_COMPARISONS = {
    "standard": {"standard_again", "standard_vs_oracle"},
    "full_state": {
        "full_state_again", "full_state_vs_standard", "full_state_vs_oracle",
        "full_state_state_vs_oracle",
    },
    "segmented": {
        "segmented_vs_standard", "segmented_vs_oracle", "prefix_vs_oracle", "state_vs_oracle",
        "one_graph_vs_segmented",
    },
    "merged": {
        "part_vs_oracle", "part_state_vs_oracle", "merged_vs_oracle", "merged_state_vs_oracle",
        "merged_vs_parts", "merged_in_any_order", "merged_swapped", "merged_result_vs_state",
        "merged_again", "merged_with_fresh", "fresh_merged", "parts_after_merge",
    },
    "resumed": {"resumed_vs_oracle", "resumed_prefix_vs_oracle", "resumed_state_vs_oracle"},
    "mixed": {
        "mixed_again", "mixed_vs_oracle", "mixed_prefix_vs_oracle", "mixed_state_vs_oracle",
        "one_graph_vs_mixed",
    },
    "fifo": {"fifo_again", "fifo_vs_oracle", "fifo_state_vs_oracle"},
}  # fmt: skip
"""What each mode is compared in where no other mode is computed."""


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
    shares: Shares | None = None
    """None where nothing was compared, or all that was has the same bits."""
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
    modes: tuple[str, ...] | None = None,
    expected: Expectations | None = None,
    with_outputs: bool = False,
) -> Verdict:
    """Compare a run of a case with the oracle and its modes with each other.

    Args:
        case: The case.
        inputs: Its inputs.
        run: What the library computed.
        features: The library's CPU features, as `Ggml.features` names them.
        modes: What was asked for; None for what the run says that it computed.
        expected: What they have to give, where it is known already.
        with_outputs: Keep the outputs' numbers, whatever their size.
    """
    if expected is None:
        expected = Expectations(case, inputs, features)
    judged = _Judge(case, inputs, run, expected, features, run.modes if modes is None else modes)
    status, reason = judged.status()
    return Verdict(
        case=case,
        status=status,
        path=path(case),
        modes=run.modes,
        reason=reason,
        localisation=judged.localisation() if status == "fail" else None,
        comparisons={name: c.without_rows() for name, c in judged.comparisons.items()},
        outputs=_outputs(run) if with_outputs or run.standard.size <= 64 else {},
        steps=judged.steps,
        shares=shares_of(judged.comparisons, judged.by_segment),
    )


def comparisons_of(mode: str, case: Case, modes: Collection[str]) -> set[str]:
    """Return the comparisons without which a verdict says nothing about a mode.

    Args:
        mode: One of `modes`.
        case: The case.
        modes: All that are computed of it.
    """
    uncut = "mixed" if case.segment_types else "segmented"
    if mode == "resumed" and uncut in modes:
        return {f"resumed_vs_{uncut}"}
    names = set(_COMPARISONS[mode])
    if mode == "segmented" and "full_state" in modes:
        names.add("segmented_vs_full_state")
        if chain_is_exact(case):
            names.add("state_vs_full_state")
    if mode == "merged" and uncut in modes:
        names.add("part_vs_chain")
    return names


class _Judge:
    def __init__(
        self,
        case: Case,
        inputs: Inputs,
        run: Run,
        expected: Expectations,
        features: tuple[str, ...],
        modes: tuple[str, ...],
    ) -> None:
        self._modes = ("standard", *modes)
        self._case = case
        self._inputs = inputs
        self._run = run
        self._features = features
        self._expect = expected
        self._outputs = self._expect.outputs
        self._chain_regions: list[Region] = []
        """Where the last output of each chain must lie."""
        self._known: dict[tuple[int, int], tuple[F32, Near | Comparison]] = {}
        self._asked: dict[str, list[Near | Comparison]] = {}
        """What each comparison is made of, small ones not made yet: in the end all together."""
        self._asked_by_segment: list[list[tuple[Near | Comparison, ...]]] = []
        """Of each chain what was compared after each segment."""
        self._expected_steps: ExpectedSteps | None = None
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
        self.comparisons: dict[str, Comparison] = {}
        self.by_segment: tuple[float, ...] = ()
        self._settle()

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
        for mode in self._modes:
            missing = comparisons_of(mode, self._case, self._modes) - self.comparisons.keys()
            if missing:
                return "mistrusted", (
                    f"mode {mode} was asked for, and not compared: {', '.join(sorted(missing))}"
                )
        if self._overflows:
            peak = float(self._expect.prefixes[-1].peak.max())
            return "unsupported", (
                f"upstream's F16 accumulator overflows: numerators reach {peak:.3g}, F16 ends at "
                f"{F16_MAX:.0f}; the comparisons that must be bit-identical are"
            )
        mistrusted = why_mistrusted(
            self._case,
            self._run,
            self._expect,
            chain_regions=self._chain_regions,
            steps=self._expected_steps,
        )
        return ("pass", "") if mistrusted is None else ("mistrusted", mistrusted)

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
            region = self._expect.region(self._expect.of_one)
            return trails.of_standard(
                self._expect.one_call(), run, self._expect.of_one, self._outputs[-1], region
            )
        if mode == "full_state" and run.full_state and run.full_state_again:
            region = self._expect.not_far_worse(
                self._expect.region(self._expect.of_one), [run.standard]
            )
            return trails.of_full_state(
                self._expect.one_call(), run, self._expect.of_one, self._outputs[-1], region
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
            region = self._expect.region(expected.after_both)
            return trails.of_fifo(self._case, run.fifo, run.fifo_again, expected, region)
        raise AssertionError(f"mode {mode} was compared, and is not in the run")

    def _compare_standard(self) -> None:
        run = self._run
        self._ask("standard_again", exact(run.standard_again, run.standard))
        region = self._expect.region(self._expect.of_one)
        self._ask("standard_vs_oracle", self._output(run.standard, self._outputs[-1], region))
        if self._inputs.model_output is not None:
            # another CPU, other threads or the cells behind the last token may round otherwise
            found = exact(run.standard, self._inputs.model_output)
            found = found.without_rows()._replace(required="none", ok=True)
            self._ask("standard_vs_model", found)

    def _compare_full_state(self, step: Step, again: Step) -> None:
        self._ask("full_state_again", *_exact_step(again, step))
        self._ask("full_state_vs_standard", exact(step.output, self._run.standard))
        region = self._expect.not_far_worse(
            self._expect.region(self._expect.of_one), [self._run.standard]
        )
        self._ask("full_state_vs_oracle", self._output(step.output, self._outputs[-1], region))
        self._ask("full_state_state_vs_oracle", self._state(step.state, self._expect.of_one))

    def _compare_segmented(self, chain: Chain) -> None:
        last, full = chain.steps[-1], self._run.full_state
        expected = self._expect.chain(chain.steps, own_types=False)
        of_one = self._run.standard
        self._ask("segmented_vs_standard", self._like_one_call(last.output, of_one, expected[-1]))
        if full is not None:
            of_one = full.output
            self._ask(
                "segmented_vs_full_state", self._like_one_call(last.output, of_one, expected[-1])
            )
            if self._expect.chain_is_exact:
                self._ask("state_vs_full_state", exact(last.state, full.state))
        region = self._expect.not_far_worse(
            self._expect.region(expected[-1]), self._standard_runs()
        )
        self._compare_chain_with_oracle("segmented", "", chain.steps, expected, region)
        self._ask("one_graph_vs_segmented", *_exact_one_graph(chain))

    def _compare_mixed(self, chain: Chain, again: Chain) -> None:
        expected = self._expect.chain(chain.steps, own_types=True)
        self._compare_chain_with_oracle(
            "mixed", "mixed_", chain.steps, expected, self._expect.region(expected[-1])
        )
        self._ask("mixed_again", *_exact_steps(again.steps, chain.steps))
        self._ask("one_graph_vs_mixed", *_exact_one_graph(chain), *_exact_one_graph(again))

    def _compare_resumed(self, steps: tuple[Step, ...]) -> None:
        """Compare with the chain that was not cut; where that was not computed, with the oracle."""
        own_types = bool(self._case.segment_types)
        uncut = self._run.mixed if own_types else self._run.segmented
        if uncut is not None:
            name = "resumed_vs_mixed" if own_types else "resumed_vs_segmented"
            self._ask(name, *_exact_steps(steps, uncut.steps))
            return
        expected = self._expect.chain(steps, own_types=own_types)
        self._compare_chain_with_oracle(
            "resumed", "resumed_", steps, expected, self._expect.region(expected[-1])
        )

    def _compare_merged(self, merged: Merged) -> None:
        case, parts = self._case, merged.parts
        uncut = self._run.mixed if case.segment_types else self._run.segmented
        if uncut is not None:
            self._ask("part_vs_chain", *_exact_step(parts[0], uncut.steps[0]))
        expected_parts = self._expect.parts()
        outputs = zip(parts, self._expect.outputs_alone, expected_parts, strict=True)
        states = zip(parts, expected_parts, strict=True)
        self._ask(
            "part_vs_oracle",
            *(self._output(part.output, y, self._expect.region(e)) for part, y, e in outputs),
        )
        self._ask("part_state_vs_oracle", *(self._state(part.state, e) for part, e in states))
        # often the same bits, of two parts nearly always
        reductions = _distinct(merged.in_turn, merged.swapped, merged.pairwise, merged.shuffled)
        expected = self._expect.merged
        region = self._expect.region(expected)
        if not case.segment_types:
            region = self._expect.not_far_worse(region, self._standard_runs())
        self._ask(
            "merged_vs_oracle",
            *(_near(step.output, self._outputs[-1], region) for step in reductions),
        )
        self._ask(
            "merged_state_vs_oracle", *(_near_state(step.state, expected) for step in reductions)
        )
        # The parts' own errors are in all reductions alike: between them, and against the exact
        # merge of the parts as they are, only the roundings of the merges remain.
        of_parts = [part.state for part in parts]
        rows, rounded = bounds.merged_rows(of_parts)
        region = Region(rows, rounded)
        self._ask("merged_vs_parts", *(_near(step.state, rows, region) for step in reductions))
        in_turn = merged.in_turn.state
        centre = in_turn.astype(np.float64)
        region = Region(centre, 2 * rounded)
        self._ask(
            "merged_in_any_order",
            *(
                _near(step.state, centre, region)
                for step in _distinct(merged.pairwise, merged.shuffled)
            ),
        )
        region = Region(centre, bounds.swap_bound(of_parts))
        self._ask("merged_swapped", _near(merged.swapped.state, centre, region))
        self._ask("merged_result_vs_state", *(_near_result(step) for step in reductions))
        self._ask("merged_again", *_exact_step(merged.in_turn_again, merged.in_turn))
        self._ask("merged_with_fresh", *(exact(state, in_turn) for state in merged.with_fresh))
        self._ask("fresh_merged", *_exact_step(merged.fresh, _fresh_step(case)))
        self._ask(
            "parts_after_merge",
            *(exact(a, b) for a, b in zip(merged.parts_after, of_parts, strict=True)),
        )

    def _compare_fifo(self, rolled: Rolled, again: Rolled) -> None:
        """Compare a rolling cache, whose steps are the rows of the arrays."""
        expected = rolling_oracle.expect(
            self._case, self._inputs, may_go_on_in_f16(rolled.cold_state), self._features
        )
        exact_output = oracle.finalise(expected.exact)
        region = self._expect.region(expected.after_both)
        self._expected_steps = expected
        self._ask(
            "fifo_again", exact(again.output, rolled.output), exact(again.state, rolled.state)
        )
        self._ask("fifo_vs_oracle", _near(rolled.output, exact_output, region))
        self._ask(
            "fifo_state_vs_oracle",
            _near_state(rolled.cold_state, expected.after_cold),
            _near_state(rolled.state, expected.after_both),
        )
        rows = [np.s_[:, :, step : step + 1] for step in range(len(rolled.held))]
        of_rows = all_within(
            [
                Near(
                    rolled.output[row],
                    exact_output[row],
                    Region(region.centre[row], region.bound[row]),
                )
                for row in rows
            ]
        )
        steps = []
        for step, (row, held, comparison) in enumerate(
            zip(rows, rolled.held, of_rows, strict=True)
        ):
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
        of_last = self._output(steps[-1].output, self._outputs[-1], last)
        outputs = [
            self._output(step.output, self._outputs[i], self._expect.region(expected[i]))
            for i, step in enumerate(steps)
        ]
        states = [self._state(step.state, expected[i]) for i, step in enumerate(steps)]
        self._ask(f"{mode}_vs_oracle", of_last)
        self._ask(f"{prefix}prefix_vs_oracle", *outputs)
        self._ask(f"{prefix}state_vs_oracle", *states)
        self._asked_by_segment.append(list(zip(outputs, states, strict=True)))

    def _like_one_call(self, output: F32, of_one: F32, expected: Expected) -> Near | Comparison:
        """Compare the chain's last output with that of one call."""
        if self._expect.chain_is_exact:
            return exact(output, of_one)
        return _near(output, of_one, self._expect.near_one_call(of_one, expected))

    def _output(self, output: F32, expected: F64, region: Region) -> Near | Comparison:
        """Compare an output with one of the oracle's, the same bits but once."""
        key = id(expected), id(region)
        return self._once(key, output, lambda: _near(output, expected, region))

    def _state(self, state: F32, expected: Expected) -> Near | Comparison:
        """Compare state rows with the oracle's, the same bits but once."""
        key = id(expected), id(expected)
        return self._once(key, state, lambda: _near_state(state, expected))

    def _once(
        self, key: tuple[int, int], got: F32, compare: Callable[[], Near | Comparison]
    ) -> Near | Comparison:
        """Return what was asked of the same bits before under this key, else compare.

        Keys are identities of what lives as long as the judge.
        """
        if key in self._known:
            before, asked = self._known[key]
            if got is before or got.tobytes() == before.tobytes():
                return asked
        asked = compare()
        self._known[key] = got, asked
        return asked

    def _ask(self, name: str, *asked: Near | Comparison) -> None:
        """Ask for a comparison that holds where all these do."""
        self._asked[name] = list(asked)

    def _settle(self) -> None:
        """Make the comparisons that were asked for, those of small arrays together."""
        near = {
            id(one): one for asked in self._asked.values() for one in asked if isinstance(one, Near)
        }
        made = dict(zip(near, all_within(list(near.values())), strict=True))

        def comparison(one: Near | Comparison) -> Comparison:
            return made[id(one)] if isinstance(one, Near) else one

        for name, asked in self._asked.items():
            self.comparisons[name] = first_bad(map(comparison, asked))
        for segments in self._asked_by_segment:
            shares = [max(comparison(one).of_bound for one in asked) for asked in segments]
            known = self.by_segment or (0.0,) * len(shares)
            self.by_segment = tuple(map(max, known, shares))

    def _trail_of_chain(self, steps: tuple[Step, ...], *, own_types: bool) -> Iterator[Check]:
        expected = self._expect.chain(steps, own_types=own_types)
        regions = [self._expect.region(of_call) for of_call in expected]
        if steps is not self._run.resumed and not own_types:
            regions[-1] = self._expect.not_far_worse(regions[-1], self._standard_runs())
        calls = self._expect.calls(own_types=own_types)
        for i, step in enumerate(steps):
            yield from trails.of_step(calls[i], step, expected[i], self._outputs[i], regions[i])

    def _trail_of_segmented(self, chain: Chain) -> Iterator[Check]:
        yield from self._trail_of_chain(chain.steps, own_types=False)
        calls, last = self._expect.calls(own_types=False), chain.steps[-1]
        expected = self._expect.chain(chain.steps, own_types=False)[-1]
        full, others = self._run.full_state, {"standard": self._run.standard}
        if full is not None:
            if self._expect.chain_is_exact:
                yield from trails.same(calls[-1], last, full, "full_state")
            others = {"full_state": full.output, **others}
        for other, output in others.items():
            near = (
                None
                if self._expect.chain_is_exact
                else self._expect.near_one_call(output, expected)
            )
            yield trails.same_result(calls[-1], last.output, output, other, near=near)
        yield from trails.of_one_graph(calls, chain)

    def _trail_of_mixed(self, chain: Chain, again: Chain) -> Iterator[Check]:
        calls = self._expect.calls(own_types=True)
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
            calls = self._expect.calls(own_types=own_types)
            yield from trails.same_steps(calls, steps, uncut.steps, "the chain that is not cut")

    def _trail_of_merged(self, merged: Merged) -> Iterator[Check]:
        own_types = bool(self._case.segment_types)
        calls = self._expect.calls(own_types=own_types, name="part")
        expected_parts = self._expect.parts()
        for call, part, expected, alone in zip(
            calls, merged.parts, expected_parts, self._expect.outputs_alone, strict=True
        ):
            region = self._expect.region(expected)
            yield from trails.of_step(call, part, expected, alone, region)
        uncut = self._run.mixed if own_types else self._run.segmented
        if uncut is not None:
            yield from trails.same(calls[0], merged.parts[0], uncut.steps[0], "the chain")
        expected = self._expect.merged
        region = self._expect.region(expected)
        if not own_types:
            region = self._expect.not_far_worse(region, self._standard_runs())
        yield from trails.of_merges(
            calls, merged, expected, self._outputs[-1], region, _fresh_step(self._case)
        )

    def _standard_runs(self) -> list[F32]:
        """Return the standard run, and where a chain takes another path that on the vec path."""
        return [run for run in (self._run.standard, self._run.reference) if run is not None]

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
        lost = self._expect.how.f16_numerators and not np.isfinite(run.standard).all()
        for output, own in lasts:
            in_f16 = any(how.f16_numerators for how in self._expect.how_of_calls(own_types=own))
            lost |= in_f16 and not np.isfinite(output).all()
        if run.fifo is not None and "f16" in (self._case.type_V, self._case.cold_type):
            lost |= not np.isfinite(run.fifo.output).all()
        return lost and bool(self._expect.prefixes[-1].peak.max() > F16_MAX)


def _near(output: F32, expected: F32 | F64, region: Region) -> Near | Comparison:
    """Compare large arrays now, so that their region need not be kept, and small ones later."""
    return Near(output, expected, region) if is_small(output) else within(output, expected, region)


def _near_state(state: F32, expected: Expected) -> Near | Comparison:
    """Compare state rows with the oracle's, brought to the rows' own maximum."""
    region = trails.state_region(state, expected)
    return _near(state, region.centre, region)


def _near_result(step: Step) -> Near | Comparison:
    """Compare a result with VKQ / S of its state."""
    region = trails.result_region(step)
    return _near(step.output, region.centre, region)


def _distinct(*steps: Step) -> list[Step]:
    """Return the steps without those of the same bits as an earlier one."""
    found: dict[tuple[bytes, bytes], Step] = {}
    for step in steps:
        found.setdefault((step.output.tobytes(), step.state.tobytes()), step)
    return list(found.values())


def _exact_one_graph(chain: Chain) -> list[Comparison]:
    outputs, state = chain.one_graph
    pairs = [(output, step.output) for output, step in zip(outputs, chain.steps, strict=True)]
    return [exact(a, b) for a, b in [*pairs, (state, chain.steps[-1].state)]]


def _exact_steps(got: tuple[Step, ...], expected: tuple[Step, ...]) -> list[Comparison]:
    pairs = zip(got, expected, strict=True)
    return [comparison for a, b in pairs for comparison in _exact_step(a, b)]


def _exact_step(got: Step, expected: Step) -> list[Comparison]:
    return [exact(got.output, expected.output), exact(got.state, expected.state)]


def _fresh_step(case: Case) -> Step:
    """Return what two fresh states merge to: fresh rows, and zeros."""
    rows = (case.ne3, case.n_head, case.n_batch)
    state = np.zeros((*rows, 2 + case.hsv_padded), np.float32)
    state[..., 0] = -np.inf
    return Step(output=np.zeros((*rows, case.hsv_padded), np.float32), state=state)


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
