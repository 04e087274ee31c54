"""Status and measured errors of a case: what was computed against what should have been."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fa_harness import bounds, oracle
from fa_harness.bounds import Arithmetic
from fa_harness.cases import Case
from fa_harness.inputs import Inputs
from fa_harness.modes import Run, Step, path, state_path
from fa_harness.oracle import F64, Partial

F32 = npt.NDArray[np.float32]

STATUSES = ("pass", "fail", "crash", "timeout", "unsupported", "mistrusted")

_RATIO = 8.0
"""A mode's row may be this many times worse than the standard run's row. Both errors are sums of as
many roundings of the same sizes in another order; the largest of a row's elements then differs by a
factor of 2 or 3 from run to run, seldom of more."""

_F16_MAX = 65504.0


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
    """What is allowed at `worst`; 0 where the bits have to be the same."""
    of_bound: float
    """Largest |a - b| / bound of an element: above 1 where a bound is broken, 0 without a bound."""
    required: str
    """`bits` where both must be the same bit for bit, `bound` where they must be near."""
    ok: bool
    """What is required holds for every element."""

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as the JSON report has it; NaN and infinity as strings."""
        return {
            "max_abs": _number(self.max_abs),
            "max_rel_row": _number(self.max_rel_row),
            "nmse": _number(self.nmse),
            "bitwise": self.bitwise,
            "worst": vars(self.worst) if self.worst else None,
            "bound": _number(self.bound),
            "required": self.required,
            "ok": self.ok,
        }


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
    outputs: dict[str, Any]
    """Numbers of `standard`, `segmented`, `after_segment`, as nested lists; may be empty."""
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
        self._how_state = bounds.arithmetic(case, state_path(case), features)
        self.comparisons: dict[str, Comparison] = {}

        self._compare_standard()
        if run.full_state is not None and run.full_state_again is not None:
            self._compare_full_state(run.full_state, run.full_state_again)
        if run.segmented is not None and run.one_graph is not None:
            self._compare_segmented(run.segmented, *run.one_graph)

    def status(self) -> tuple[str, str]:
        """Return the status and its reason."""
        for name, comparison in self.comparisons.items():
            if not comparison.ok and not self._upstream_overflows(name):
                return "fail", _why(name, comparison)
        if self._run.inputs_written:
            return "fail", f"the op wrote to its inputs: {', '.join(self._run.inputs_written)}"
        sizes = self._run.work_size
        if sizes.get("full_state", sizes["standard"]) != sizes["standard"]:
            return "fail", (
                f"the work size is {sizes['full_state']} bytes with a state, "
                f"{sizes['standard']} without"
            )
        if not np.isfinite(self._run.standard).all():
            peak = float(self._truth.prefixes()[-1].peak.max())
            return "unsupported", (
                f"upstream's F16 accumulator overflows: numerators reach {peak:.3g}, F16 ends at "
                f"{_F16_MAX:.0f}; what has to be bit-identical is"
            )
        return self._mistrust()

    def _compare_standard(self) -> None:
        run = self._run
        self._exactly("standard_again", run.standard_again, run.standard)
        self._within(
            "standard_vs_oracle", run.standard, self._exact, self._output_bound(-1, self._how)
        )

    def _compare_full_state(self, step: Step, again: Step) -> None:
        run = self._run
        self._exactly("full_state_again", again.output, step.output)
        if path(self._case) == state_path(self._case):
            self._exactly("full_state_vs_standard", step.output, run.standard)
        else:
            self._within(
                "full_state_vs_standard",
                step.output,
                run.standard,
                self._output_bound(-1, self._how) + self._output_bound(-1, self._how_state),
            )
        if run.reference is not None:
            self._exactly("full_state_vs_reference", step.output, run.reference)
        self._within(
            "full_state_vs_oracle", step.output, self._exact, self._mode_bound(self._how_state)
        )
        self._state("full_state_state_vs_oracle", -1, step.state)

    def _compare_segmented(
        self, steps: tuple[Step, ...], one_graph: tuple[F32, ...], one_graph_state: F32
    ) -> None:
        run, last = self._run, steps[-1]
        if path(self._case) == state_path(self._case):
            self._exactly("segmented_vs_standard", last.output, run.standard)
        else:
            self._within(
                "segmented_vs_standard",
                last.output,
                run.standard,
                self._output_bound(-1, self._how) + self._output_bound(-1, self._how_state),
            )
        if run.full_state is not None:
            self._exactly("segmented_vs_full_state", last.output, run.full_state.output)
            self._exactly("state_vs_full_state", last.state, run.full_state.state)
        self._within(
            "segmented_vs_oracle", last.output, self._exact, self._mode_bound(self._how_state)
        )
        self._worst_of(
            "prefix_vs_oracle",
            [
                self._bounded(
                    step.output,
                    oracle.finalise(self._truth.prefixes()[i]),
                    self._output_bound(i, self._how_state),
                )
                for i, step in enumerate(steps)
            ],
        )
        self._worst_of(
            "state_vs_oracle", [self._bounded_state(i, step.state) for i, step in enumerate(steps)]
        )
        self._worst_of(
            "one_graph_vs_segmented",
            [
                *(_exact(a, b.output) for a, b in zip(one_graph, steps, strict=True)),
                _exact(one_graph_state, last.state),
            ],
        )

    def _exactly(self, name: str, got: F32, expected: F32) -> None:
        self.comparisons[name] = _exact(got, expected)

    def _within(self, name: str, got: F32, expected: F32 | F64, bound: F64) -> None:
        self.comparisons[name] = self._bounded(got, expected, bound)

    def _state(self, name: str, segment: int, state: F32) -> None:
        self.comparisons[name] = self._bounded_state(segment, state)

    def _worst_of(self, name: str, comparisons: list[Comparison]) -> None:
        """Keep, of a comparison after each segment, the first that is not ok, or the worst."""
        failed = [c for c in comparisons if not c.ok]
        self.comparisons[name] = (failed or sorted(comparisons, key=lambda c: -c.max_abs))[0]

    def _bounded(self, got: F32, expected: F32 | F64, bound: F64) -> Comparison:
        return _compare(got.astype(np.float64), expected.astype(np.float64), bound)

    def _bounded_state(self, segment: int, state: F32) -> Comparison:
        """Compare state rows with the oracle's, brought to the rows' own maximum."""
        truth = self._truth.prefixes(self._how_state.q_type)[segment]
        m = state[..., 0].astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            rescale = np.where(np.isinf(truth.m), 1.0, np.exp(truth.m - m))
        sums = np.concatenate([truth.s[..., None], truth.vkq], axis=-1) * rescale[..., None]
        expected = np.concatenate([truth.m[..., None], sums], axis=-1)
        bound = bounds.state_bound(self._case, self._inputs.q, truth, self._how_state)
        bound[..., 1:] *= rescale[..., None]
        return _compare(state.astype(np.float64), expected, bound)

    def _output_bound(self, segment: int, how: Arithmetic) -> F64:
        exact = self._truth.prefixes()[segment]
        rounded = self._truth.prefixes(how.q_type)[segment]
        return bounds.output_bound(self._case, self._inputs.q, exact, rounded, how)

    def _mode_bound(self, how: Arithmetic) -> F64:
        """Return the lesser of the a-priori bound and what the standard run's error allows."""
        same_path = path(self._case) == state_path(self._case)
        baseline = self._run.standard if same_path else self._run.reference
        bound = self._output_bound(-1, how)
        if baseline is None or not np.isfinite(baseline).all():
            return bound
        partial = self._truth.prefixes()[-1]
        error = np.abs(baseline - self._exact).max(axis=-1)
        s = np.where(partial.s == 0, 1.0, partial.s)
        size = partial.abs_vkq.max(axis=-1) / s  # the row's scale: sum of p |v|
        relative = np.divide(error, size, out=np.zeros_like(error), where=size != 0)
        typical = np.sqrt((relative**2).mean()) * size
        allowed = _RATIO * np.maximum(error, typical) + 4 * bounds.U32 * size
        lesser: F64 = np.minimum(bound, allowed[..., None])
        return lesser

    def _upstream_overflows(self, name: str) -> bool:
        """Tell whether a bounded comparison fails since upstream's F16 accumulator overflows."""
        how = self._how if name == "standard_vs_oracle" else self._how_state
        peak = self._truth.prefixes()[-1].peak.max()
        exact = self.comparisons[name].required == "bits"
        return how.f16_numerators and bool(peak > _F16_MAX) and not exact

    def _mistrust(self) -> tuple[str, str]:
        """Return `mistrusted` where no fault could have shown, else `pass`."""
        if not self._exact.any() or not self._run.standard.any():
            return "mistrusted", "every output is 0: nothing could differ"
        if not (np.abs(self._exact) > self._output_bound(-1, self._how)).any():
            return "mistrusted", "the bound is above every output: an output of 0 would pass"
        if self._run.segmented is None or self._case.segments == 1:
            return "pass", ""
        segments, whole = self._truth.segments(), self._truth.prefixes()[-1]
        weights = [oracle.weight(segment.m, whole.m) * segment.s for segment in segments]
        if max(sum(weight > 0 for weight in rows) for rows in _rows_of(weights)) < 2:
            return "mistrusted", (
                f"{self._case.segments} segments were asked for, and no row has keys in two"
            )
        bound = self._mode_bound(self._how_state)
        last = segments[-1]
        share = oracle.weight(last.m, whole.m)[..., None]
        faults: dict[str, Callable[[], F64]] = {
            "reset numerators": lambda: share * last.vkq / np.where(whole.s, whole.s, 1)[..., None],
            "a lost state": lambda: oracle.finalise(last),
        }
        for fault, output in faults.items():
            if not (np.abs(output() - self._exact) > bound).any():
                return "mistrusted", f"{fault} would stay within the bound in every row"
        return "pass", ""


def _exact(got: F32, expected: F32) -> Comparison:
    a, b = got.astype(np.float64), expected.astype(np.float64)
    comparison = _compare(a, b, np.zeros(a.shape))
    return replace(comparison, of_bound=0.0, required="bits", ok=comparison.bitwise)


def _compare(got: F64, expected: F64, bound: F64) -> Comparison:
    """Compare arrays `[ne3, n_head, n_batch, n]` of rows."""
    with np.errstate(invalid="ignore"):
        error = np.abs(got - expected)
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    error[same] = 0.0
    bad = ~(error <= bound)
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = np.where(same, 0.0, np.where(np.isnan(error), np.inf, error / bound))
    worst = None
    allowed = 0.0
    if not same.all():
        index = np.unravel_index(int(excess.argmax()), excess.shape)
        batch, head, row, dim = (int(i) for i in index)
        worst = Worst(batch=batch, head=head, row=row, dim=dim)
        allowed = float(bound[index])
    finite = np.isfinite(expected)
    squares = float((expected[finite] ** 2).sum())
    row_error = error.max(axis=-1)
    row_size = np.abs(np.where(finite, expected, 0.0)).max(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        row_relative = np.where(row_error == 0, 0.0, row_error / row_size)
    total = float((error**2).sum())
    signs = (np.signbit(got) == np.signbit(expected)) | np.isnan(got)
    return Comparison(
        max_abs=float(error.max()),
        max_rel_row=float(row_relative.max()),
        nmse=total / squares if squares else (0.0 if total == 0 else float("inf")),
        bitwise=bool((same & signs).all()),
        worst=worst,
        bound=allowed,
        of_bound=float(excess.max()),
        required="bound",
        ok=not bad.any(),
    )


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
        return f"{words}: must be bit-identical, differs by {comparison.max_abs:.2e} at {where}"
    return f"{words}: {comparison.max_abs:.2e}, allowed {comparison.bound:.2e} at {where}"


def _outputs(run: Run) -> dict[str, Any]:
    outputs: dict[str, Any] = {"standard": run.standard.tolist()}
    if run.full_state is not None:
        outputs["full_state"] = run.full_state.output.tolist()
    if run.segmented is not None:
        outputs["segmented"] = run.segmented[-1].output.tolist()
        outputs["after_segment"] = [step.output.tolist() for step in run.segmented]
    return outputs


def _number(value: float) -> float | str:
    """Return a number that JSON can hold; NaN and infinity as `nan`, `inf`, `-inf`."""
    return value if np.isfinite(value) else str(value)
