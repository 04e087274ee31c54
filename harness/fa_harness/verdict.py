"""Status and measured errors of a case: what was computed against what should have been."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fa_harness import bounds, oracle
from fa_harness.bounds import Arithmetic
from fa_harness.cases import Case
from fa_harness.inputs import Inputs
from fa_harness.modes import Run, Step, chain_paths, path
from fa_harness.oracle import F64, Partial

F32 = npt.NDArray[np.float32]

STATUSES = ("pass", "fail", "crash", "timeout", "unsupported", "mistrusted")

_RATIO = 8.0
"""A mode's row may be this many times worse than the standard run's row. Both errors are sums of as
many roundings of the same sizes in another order; the largest of a row's elements then differs by a
factor of 2 or 3 from run to run, seldom of more."""

_F16_MAX = 65504.0
_KV_TILE = 64
"""Keys in a tile of the tiled path, `GGML_FA_TILE_KV` in ggml-cpu's common.h."""


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
    """`bits` where both must be the same bit for bit, `bound` where they must be near."""
    ok: bool
    """What is required holds for every element."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came out of a case."""

    case: Case
    status: str
    """One of `STATUSES`."""
    path: str
    """The path that upstream takes for one call over the whole case."""
    reason: str = ""
    """Why the status is not `pass`."""
    comparisons: dict[str, Comparison]
    outputs: dict[str, F32 | list[F32]]
    """Outputs of the modes, and `after_segment`, a list of them; empty where they are not kept."""
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
        reason=reason,
        comparisons=judged.comparisons,
        outputs=_outputs(run) if with_outputs or run.standard.size <= 64 else {},
    )


class _Truth:
    """The oracle's states of a case after each segment, for Q itself or rounded to a type."""

    def __init__(self, case: Case, inputs: Inputs) -> None:
        self._case = case
        self._inputs = inputs
        self._of_q_type: dict[str, tuple[list[Partial], list[Partial]]] = {}

    def prefixes(self, q_type: str = "f32") -> list[Partial]:
        """Return the state after each segment, the sinks in the last."""
        return self._states(q_type)[0]

    def segments(self) -> list[Partial]:
        """Return the state of each segment alone, without sinks."""
        return self._states("f32")[1]

    def _states(self, q_type: str) -> tuple[list[Partial], list[Partial]]:
        if q_type not in self._of_q_type:
            q, _ = bounds.rounded_q(self._inputs.q, q_type)
            inputs = replace(self._inputs, q=q)
            segments = [
                oracle.attend(self._case, inputs, start, stop)
                for start, stop in itertools.pairwise(self._case.segment_bounds())
            ]
            prefixes = [segments[0]]
            for segment in segments[1:]:
                prefixes.append(oracle.merge(prefixes[-1], segment))
            if inputs.sinks is not None:
                prefixes[-1] = oracle.add_sinks(prefixes[-1], inputs.sinks)
            self._of_q_type[q_type] = prefixes, segments
        return self._of_q_type[q_type]


class _Judge:
    def __init__(self, case: Case, inputs: Inputs, run: Run, features: tuple[str, ...]) -> None:
        self._case = case
        self._inputs = inputs
        self._run = run
        self._truth = _Truth(case, inputs)
        self._exact = oracle.finalise(self._truth.prefixes()[-1])
        self._how = bounds.arithmetic(case, path(case), features)
        # a call on another path than its neighbours is a vec call among split ones
        of_chain = "split-kv" if "split-kv" in chain_paths(case) else chain_paths(case)[0]
        self._how_chain = bounds.arithmetic(case, of_chain, features)
        self._chain_is_exact = _chain_is_exact(case)
        self._regions: dict[tuple[int, Arithmetic], _Region] = {}
        self.comparisons: dict[str, Comparison] = {}

        self._compare_standard()
        if run.full_state is not None and run.full_state_again is not None:
            self._compare_full_state(run.full_state, run.full_state_again)
        if run.segmented is not None and run.one_graph is not None:
            self._compare_segmented(run.segmented, *run.one_graph)

    def status(self) -> tuple[str, str]:
        """Return the status and its reason."""
        overflows = self._upstream_overflows()
        for name, comparison in self.comparisons.items():
            if not comparison.ok and not (overflows and comparison.required == "bound"):
                return "fail", _why(name, comparison)
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
        if overflows:
            peak = float(self._truth.prefixes()[-1].peak.max())
            return "unsupported", (
                f"upstream's F16 accumulator overflows: numerators reach {peak:.3g}, F16 ends at "
                f"{_F16_MAX:.0f}; the comparisons that must be bit-identical are"
            )
        return self._mistrust()

    def _compare_standard(self) -> None:
        run = self._run
        self.comparisons["standard_again"] = _exact(run.standard_again, run.standard)
        self.comparisons["standard_vs_oracle"] = _within(
            run.standard, self._exact, self._region(-1, self._how)
        )

    def _compare_full_state(self, step: Step, again: Step) -> None:
        self.comparisons["full_state_again"] = _first_bad(
            [_exact(again.output, step.output), _exact(again.state, step.state)]
        )
        self.comparisons["full_state_vs_standard"] = _exact(step.output, self._run.standard)
        self.comparisons["full_state_vs_oracle"] = _within(
            step.output, self._exact, self._mode_region(self._how)
        )
        self.comparisons["full_state_state_vs_oracle"] = self._compare_state(
            -1, step.state, self._how
        )

    def _compare_segmented(
        self, steps: tuple[Step, ...], one_graph: tuple[F32, ...], one_graph_state: F32
    ) -> None:
        last, full = steps[-1], self._run.full_state
        self.comparisons["segmented_vs_standard"] = self._compare_chain(
            last.output, self._run.standard
        )
        if full is not None:
            self.comparisons["segmented_vs_full_state"] = self._compare_chain(
                last.output, full.output
            )
            if self._chain_is_exact:
                self.comparisons["state_vs_full_state"] = _exact(last.state, full.state)
        self.comparisons["segmented_vs_oracle"] = _within(
            last.output, self._exact, self._mode_region(self._how_chain)
        )
        self.comparisons["prefix_vs_oracle"] = _first_bad(
            _within(
                step.output,
                oracle.finalise(self._truth.prefixes()[i]),
                self._region(i, self._how_chain),
            )
            for i, step in enumerate(steps)
        )
        self.comparisons["state_vs_oracle"] = _first_bad(
            self._compare_state(i, step.state, self._how_chain) for i, step in enumerate(steps)
        )
        self.comparisons["one_graph_vs_segmented"] = _first_bad(
            _exact(a, b)
            for a, b in [
                *((output, step.output) for output, step in zip(one_graph, steps, strict=True)),
                (one_graph_state, last.state),
            ]
        )

    def _compare_chain(self, output: F32, expected: F32) -> Comparison:
        """Compare the chain's last output with that of one call."""
        if self._chain_is_exact:
            return _exact(output, expected)
        of_one, of_chain = (
            self._region(-1, self._how),
            self._region(-1, self._how_chain),
        )
        apart = np.abs(of_chain.centre - of_one.centre)
        bound = of_one.bound + of_chain.bound + apart
        return _within(output, expected, _Region(expected.astype(np.float64), bound))

    def _compare_state(self, segment: int, state: F32, how: Arithmetic) -> Comparison:
        """Compare state rows with the oracle's, brought to the rows' own maximum."""
        truth = self._truth.prefixes(how.q_type)[segment]
        m = state[..., 0].astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            rescale = np.where(np.isinf(truth.m), 1.0, np.exp(truth.m - m))
        sums = np.concatenate([truth.s[..., None], truth.vkq], axis=-1) * rescale[..., None]
        expected = np.concatenate([truth.m[..., None], sums], axis=-1)
        bound = bounds.state_bound(self._case, self._inputs.q, truth, how)
        bound[..., 1:] *= rescale[..., None]
        return _within(state, expected, _Region(expected, bound))

    def _region(self, segment: int, how: Arithmetic) -> _Region:
        """Return where a correct output lies after a segment: around the oracle's for rounded Q."""
        key = segment % self._case.segments, how
        if key not in self._regions:
            rounded = self._truth.prefixes(how.q_type)[segment]
            bound = bounds.output_bound(self._case, self._inputs.q, rounded, how)
            self._regions[key] = _Region(oracle.finalise(rounded), bound)
        return self._regions[key]

    def _mode_region(self, how: Arithmetic) -> _Region:
        """Return where a mode's last output must lie: the region, and not far worse than standard.

        That is `_RATIO` times the standard run's error, in the row itself or typical of the rows in
        relation to their size, and some roundings of a number of that size. Where the chain takes
        another path, the standard run on that path counts, too.
        """
        region = self._region(-1, how)
        runs = [self._run.standard]
        if how != self._how and self._run.reference is not None:
            runs.append(self._run.reference)
        if not all(np.isfinite(run).all() for run in runs):
            return region
        partial = self._truth.prefixes()[-1]
        error = np.max([np.abs(run - self._exact).max(axis=-1) for run in runs], axis=0)
        s = np.where(partial.s == 0, 1.0, partial.s)
        size = partial.abs_vkq.max(axis=-1) / s  # the row's scale: sum of p |v|
        relative = np.divide(error, size, out=np.zeros_like(error), where=size != 0)
        typical = np.sqrt((relative**2).mean()) * size
        allowed = (_RATIO * np.maximum(error, typical) + 4 * bounds.U32 * size)[..., None]
        low = np.maximum(region.centre - region.bound, self._exact - allowed)
        high = np.minimum(region.centre + region.bound, self._exact + allowed)
        return _Region((low + high) / 2, np.maximum((high - low) / 2, 0.0))

    def _upstream_overflows(self) -> bool:
        """Tell whether upstream's F16 accumulator overflows, so that no bound can hold."""
        run = self._run
        outputs = [run.standard]
        if run.segmented is not None:
            outputs.append(run.segmented[-1].output)
        lost = not all(np.isfinite(output).all() for output in outputs)
        peak = self._truth.prefixes()[-1].peak.max()
        return lost and self._how.f16_numerators and bool(peak > _F16_MAX)

    def _mistrust(self) -> tuple[str, str]:
        """Return `mistrusted` where no fault could have shown, else `pass`."""
        if not self._exact.any() or not self._run.standard.any():
            return "mistrusted", "every output is 0: nothing could differ"
        region = self._region(-1, self._how)
        if not (np.abs(region.centre) > region.bound).any():
            return (
                "mistrusted",
                "the bound is above every output: an output of 0 would pass",
            )
        if self._run.segmented is None or self._case.segments == 1:
            return "pass", ""
        segments, whole = self._truth.segments(), self._truth.prefixes()[-1]
        weights = [oracle.weight(segment.m, whole.m) * segment.s for segment in segments]
        if max(sum(weight > 0 for weight in rows) for rows in _rows_of(weights)) < 2:
            return "mistrusted", (
                f"{self._case.segments} segments were asked for, and no row has keys in two"
            )
        region, last = self._mode_region(self._how_chain), segments[-1]
        visible = region.bound
        if self._chain_is_exact:
            visible = bounds.U16 * np.abs(region.centre)  # more than any accumulator rounds away
        share = oracle.weight(last.m, whole.m)[..., None]
        faults: dict[str, Callable[[], F64]] = {
            "reset numerators": lambda: share * last.vkq / np.where(whole.s, whole.s, 1)[..., None],
            "a lost state": lambda: oracle.finalise(last),
        }
        for fault, output in faults.items():
            if not (np.abs(output() - region.centre) > visible).any():
                return "mistrusted", f"{fault} would stay within the bound in every row"
        return "pass", ""


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


@dataclass(frozen=True)
class _Region:
    """Where numbers must lie: |number - centre| <= bound, element by element."""

    centre: F64
    bound: F64


_IDENTICAL = Comparison(
    max_abs=0.0,
    max_rel_row=0.0,
    nmse=0.0,
    bitwise=True,
    worst=None,
    bound=0.0,
    of_bound=0.0,
    required="bits",
    ok=True,
)


def _exact(got: F32, expected: F32) -> Comparison:
    """Compare arrays that must be the same bit for bit."""
    if got.tobytes() == expected.tobytes():  # what nearly all are; they cost nothing more
        return _IDENTICAL
    b = expected.astype(np.float64)
    comparison = _within(got, b, _Region(b, np.zeros(b.shape)))
    return replace(comparison, of_bound=0.0, required="bits", ok=comparison.bitwise)


def _within(got: F32, expected: F32 | F64, region: _Region) -> Comparison:
    """Compare arrays `[ne3, n_head, n_batch, n]`; what is got must lie in the region."""
    a, b = got.astype(np.float64), expected.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        error = np.where(same, 0.0, np.abs(a - b))
        off = np.where((a == region.centre) | (same & ~np.isfinite(a)), 0.0, a - region.centre)
        excess = np.where(off == 0, 0.0, np.abs(off) / region.bound)
        excess[np.isnan(excess)] = np.inf
    worst, allowed = None, 0.0
    if not same.all():
        # of those furthest beyond their bounds the largest error
        size = np.where(np.isnan(error), np.inf, error)
        furthest = np.where(excess == excess.max(), size, -1.0)
        index = np.unravel_index(int(furthest.argmax()), furthest.shape)
        batch, head, row, dim = (int(i) for i in index)
        worst = Worst(batch=batch, head=head, row=row, dim=dim, error=float(error[index]))
        apart = 0.0 if region.centre[index] == b[index] else abs(region.centre[index] - b[index])
        allowed = float(region.bound[index] + apart)
    finite = np.isfinite(b)
    row_size = np.abs(np.where(finite, b, 0.0)).max(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        row_relative = np.where(error.max(axis=-1) == 0, 0.0, error.max(axis=-1) / row_size)
        nmse = np.divide((error**2).sum(), (b[finite] ** 2).sum()) if error.any() else 0.0
    signs = (np.signbit(a) == np.signbit(b)) | np.isnan(a)
    return Comparison(
        max_abs=float(error.max()),
        max_rel_row=float(row_relative.max()),
        nmse=float(nmse),
        bitwise=bool((same & signs).all()),
        worst=worst,
        bound=allowed,
        of_bound=float(excess.max()),
        required="bound",
        ok=bool((excess <= 1).all()),
    )


def _first_bad(comparisons: Iterable[Comparison]) -> Comparison:
    """Return, of a comparison after each segment, the first that is not ok, else the worst."""
    every = list(comparisons)
    return next((c for c in every if not c.ok), max(every, key=lambda c: c.max_abs))


def _rows_of(weights: list[F64]) -> npt.NDArray[np.float64]:
    """Return weights by segment as `[rows, segments]`."""
    return np.stack([weight.reshape(-1) for weight in weights], axis=-1)


def _why(name: str, comparison: Comparison) -> str:
    words = name.replace("_", " ")
    worst = comparison.worst
    if worst is None:
        return f"{words}: 0 and -0 differ"
    where = f"batch {worst.batch}, head {worst.head}, row {worst.row}, dim {worst.dim}"
    if comparison.required == "bits":
        return f"{words}: must be bit-identical, differs by {worst.error:.2e} at {where}"
    return f"{words}: {worst.error:.2e}, allowed {comparison.bound:.2e} at {where}"


def _outputs(run: Run) -> dict[str, F32 | list[F32]]:
    outputs: dict[str, F32 | list[F32]] = {"standard": run.standard}
    if run.full_state is not None:
        outputs["full_state"] = run.full_state.output
    if run.segmented is not None:
        outputs["segmented"] = run.segmented[-1].output
        outputs["after_segment"] = [step.output for step in run.segmented]
    return outputs
