"""Status and measured errors of a case: what was computed against what should have been."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from fa_harness.arrays import F32
from fa_harness.case import rolling
from fa_harness.case.case import Case
from fa_harness.case.inputs import Inputs
from fa_harness.case.modes import ByMode, Run
from fa_harness.case.rolling import CacheStep
from fa_harness.judge import contract, overflow
from fa_harness.judge.compare import (
    Comparison,
    Judged,
    compare,
    difference,
    grouped,
    restated,
)
from fa_harness.judge.expectations import NAN_IS_MEANT, Expectations
from fa_harness.judge.explain import Localisation, localise
from fa_harness.judge.mistrust import why_mistrusted
from fa_harness.judge.shares import Shares, shares_of
from fa_harness.kernel import F16_MAX, path, why_work_size

STATUSES = ("pass", "fail", "crash", "timeout", "unsupported", "mistrusted", "oversized")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came out of a case."""

    case: Case
    status: str
    """One of `STATUSES`."""
    path: str
    """The path that upstream takes for one call over the whole case."""
    modes: tuple[str, ...] = ()
    """The modes that were computed; none where the library did not finish."""
    reason: str = ""
    """Why the status is not `pass`."""
    localisation: Localisation | None = None
    """Where the numbers of a case that fails went wrong first; None also where none is wrong, or a
    token is in another's place. The reason may be another one, which explains them: something was
    written that is not the op's."""
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    outputs: dict[str, F32 | list[F32]] = field(default_factory=dict)
    """Outputs of the modes, and `after_segment`, a list of them; empty where they are not kept."""
    steps: tuple[CacheStep, ...] = ()
    """The steps of a rolling cache."""
    shares: Shares | None = None
    """None where nothing was compared, or all that was has the same bits."""
    standard: bytes = b""
    """A digest of the bits that one call without a state gave, of which all NaN count as one; empty
    where the library did not finish. Two libraries with equal digests gave the same bits."""
    seconds: float = 0.0
    """From the case's start to its verdict."""


@NAN_IS_MEANT
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

    `features` are the library's CPU features, as `Ggml.features` names them, `modes` those that
    were asked for, else what the run says that it computed, and `expected` is what they have to
    give, where it is known already. `with_outputs` keeps the outputs' numbers, whatever their size.
    """
    expect = Expectations(case, inputs, features) if expected is None else expected
    judged = compare(contract.checks(expect, run.results))
    judged, overflows = overflow.excused(judged, expect, run.results)
    judged = [restated(each) for each in judged]
    comparisons = grouped(judged)
    standard = run.results["standard"].output
    misplaced = _misplaced(case, run.results)
    first = next((each for each in judged if not each.comparison.ok), None)
    localisation = None
    if first is not None and not misplaced:
        mode = first.check.mode
        of_mode = {name: left for name, left in run.results.items() if name in ("standard", mode)}
        in_f32 = contract.checks(expect.in_f32(), cast(ByMode, of_mode))
        localisation = localise(judged, first, in_f32)
    reasons = (misplaced, _written(run), None if localisation is None else localisation.reason)
    status, reason = "fail", next(filter(None, reasons), "")
    if not reason:
        asked = ("standard", *(run.modes if modes is None else modes))
        status, reason = _status(case, run, expect, judged, asked, overflows=overflows)
    return Verdict(
        case=case,
        status=status,
        path=path(case, features=features),
        modes=run.modes,
        reason=reason,
        localisation=localisation,
        comparisons={
            name: c._replace(by_row=None)
            for name, c in {**comparisons, **_of_model(expect, run.results, inputs)}.items()
        },
        outputs=_outputs(run.results) if with_outputs or standard.size <= 64 else {},
        steps=_steps(case, run.results, judged, expect),
        shares=shares_of(comparisons, _by_segment(judged)),
    )


def _of_model(expect: Expectations, results: ByMode, inputs: Inputs) -> dict[str, Comparison]:
    """Compare what the model's own call gave with the same call here, and with the oracle.

    Nothing is required: another CPU, other threads or the cells behind the last token may round
    otherwise.
    """
    output = inputs.model_output
    if output is None:
        return {}
    if not expect.own_types:
        found = {"standard_vs_model": difference(results["standard"].output, output)}
    elif "mixed" in results:
        here = results["mixed"].first.calls[-1].output
        found = {"mixed_vs_model": difference(here, output)}
    else:
        return {}
    of_oracle = grouped(compare([contract.of_model(expect, results, output)]))
    return found | {name: c._replace(required="none", ok=True) for name, c in of_oracle.items()}


def _status(
    case: Case,
    run: Run,
    expect: Expectations,
    judged: Sequence[Judged],
    modes: Collection[str],
    *,
    overflows: bool,
) -> tuple[str, str]:
    """Return the status of a case whose checks hold, and its reason."""
    wrong_size = why_work_size(run.work_size)
    if wrong_size is not None:
        return "fail", wrong_size
    made = {each.check.name for each in judged}
    for mode in modes:
        missing = contract.promised(mode, case, modes, is_exact=expect.chain_is_exact) - made
        if missing:
            names = ", ".join(sorted(missing))
            return "mistrusted", f"mode {mode} was asked for, and not compared: {names}"
    if overflows:
        peak = float(expect.prefixes[-1].peak.max())
        return "unsupported", (
            f"upstream's F16 accumulator overflows: numerators reach {peak:.3g}, F16 ends at "
            f"{F16_MAX:.0f}; every other number is right"
        )
    ends = [each.check.region for each in judged if each.check.is_decisive]
    mistrusted = why_mistrusted(case, run.results, expect, ends)
    return ("pass", "") if mistrusted is None else ("mistrusted", mistrusted)


def _written(run: Run) -> str | None:
    """Return what was written that is not the op's, or None: it may be why numbers are wrong."""
    for what, found in (
        ("outside its tensors", run.outside_written),
        ("to its inputs", run.inputs_written),
    ):
        if found:
            more = f", and {len(found) - 1} more" if len(found) > 1 else ""
            return f"the op wrote {what}: {found[0]}{more}"
    return None


def _misplaced(case: Case, results: ByMode) -> str | None:
    """Return the first token of a rolling cache that is not where it belongs, or None."""
    if "fifo" not in results:
        return None
    runs = (results["fifo"].first, results["fifo"].again)
    found = (rolling.misplaced(case, rolled.held) for rolled in runs if rolled.can_be_told_apart)
    return next(filter(None, found), None)


def _by_segment(judged: Sequence[Judged]) -> tuple[float, ...]:
    """Return the largest share of a bound after each segment, of all chains."""
    shares: dict[int, float] = {}
    for each in judged:
        i = each.check.call.index
        if each.check.name in contract.AFTER_SEGMENT and i is not None:
            shares[i] = max(shares.get(i, 0.0), each.comparison.of_bound)
    return tuple(shares[i] for i in sorted(shares))


def _steps(
    case: Case, results: ByMode, judged: Sequence[Judged], expect: Expectations
) -> tuple[CacheStep, ...]:
    """Return what each step of a rolling cache costs."""
    of_steps = [each.comparison for each in judged if each.check.name == "fifo_vs_oracle"]
    if not of_steps:
        return ()
    rolled = results["fifo"].first
    f16_bytes = rolling.token_bytes(case.with_(type_K="f16", type_V="f16"), cold=False)
    unquantised = np.abs(rolled.output - expect.outputs[-1]).max(axis=(0, 1, 3)).tolist()
    return tuple(
        CacheStep(
            step=step,
            tokens_hot=int((held.hot != rolling.HIDDEN).sum()),
            tokens_cold=int((held.cold != rolling.HIDDEN).sum()),
            cache_bytes=held.cache_bytes,
            f16_bytes=f16_bytes * (step + 1),
            error=comparison.max_abs,
            of_bound=comparison.of_bound,
            quantisation_error=unquantised[step],
        )
        for step, (held, comparison) in enumerate(zip(rolled.held, of_steps, strict=True))
    )


def _outputs(results: ByMode) -> dict[str, F32 | list[F32]]:
    """Return the last output of each mode, and all of the chain."""
    of_modes: dict[str, Callable[[], F32 | list[F32]]] = {
        "standard": lambda: results["standard"].output,
        "full_state": lambda: results["full_state"].first.output,
        "segmented": lambda: results["segmented"].calls[-1].output,
        "after_segment": lambda: [left.output for left in results["segmented"].calls],
        "merged": lambda: results["merged"].in_turn.output,
        "reduced": lambda: results["reduced"].in_turn,
        "resumed": lambda: results["resumed"][-1].output,
        "mixed": lambda: results["mixed"].first.calls[-1].output,
        "fifo": lambda: results["fifo"].first.output,
    }
    is_there = {*results, "after_segment"} if "segmented" in results else {*results}
    return {name: output() for name, output in of_modes.items() if name in is_there}
