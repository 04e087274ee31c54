"""Results, baselines and ratios made by hand, for tests of what is made of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from fa_harness.case.case import Case
from fa_harness.engine.session import Results
from fa_harness.judge.compare import Comparison, Worst
from fa_harness.judge.verdict import Verdict
from fa_harness.speed import gate, instructions, renewal
from fa_harness.speed.baseline import Baseline, NoBaseline, Speed
from fa_harness.speed.gate import Gate, Measured
from fa_harness.speed.instructions import Count
from fa_harness.speed.ratios import Ratio
from fa_harness.stacks import Accepted

CASE = Case(n_kv=64, segments=3, regime="normal")
OTHER = Case(n_kv=65, segments=3, regime="normal")
NONE = NoBaseline(reason="there is none", text="no baseline: x.json does not exist; make it")
MADE_WITH: dict[str, Any] = {
    "tool": "1.2",
    "library": "patched",
    "upstream": "llama.cpp-1",
    "ggml_version": "0.1",
    "class": "x86_64-avx2",
    "features": ["AVX2"],
    "cpu": "some",
    "cores": 2,
    "series": {"0001-a.patch": "12ab"},
    "against": "pristine",
    "build": {"c_compiler": "gcc 1"},
}


def comparison(**fields: Any) -> Comparison:
    """A comparison that is ok unless it is said otherwise."""
    usual: dict[str, Any] = {
        "max_abs": 1e-3,
        "max_rel_row": 1e-3,
        "nmse": 1e-6,
        "bitwise": False,
        "worst": Worst(batch=0, head=1, row=2, dim=3, error=1e-3),
        "bound": 1e-2,
        "of_bound": 0.1,
        "required": "bound",
        "ok": True,
        "place": "segment 1 (of 0 to 2), batch 0, head 1, row 2, element 3",
    }
    return Comparison(**{**usual, **fields})


BITS = bytes(32)
"""The digest of what one call gave, here and in the other library."""


class _EachCase(dict[Case, bytes]):
    def get(self, case: Case, default: object = None) -> bytes:
        return BITS


AS_OTHER = _EachCase()
"""The other library's bits, whatever the case: those that `verdict` has."""


def verdict(
    case: Case = CASE, status: str = "pass", reason: str = "", **comparisons: Comparison
) -> Verdict:
    return Verdict(
        case=case,
        status=status,
        path="vec",
        modes=("standard", "segmented"),
        reason=reason,
        comparisons=comparisons,
        outputs={},
        standard=BITS,
        seconds=0.25,
    )


def compared(case: Case = CASE, *, of_bound: float = 0.1) -> Verdict:
    """A case that passes, with bits and an error that a gate can compare."""
    return verdict(
        case,
        standard_again=comparison(bitwise=True, required="bits", of_bound=0.0),
        standard_vs_oracle=comparison(of_bound=of_bound),
    )


def count_of(
    now: int,
    before: int,
    *,
    way: str = "standard",
    case: Case = CASE,
    accepted: Sequence[Accepted] = (),
) -> Count:
    """The instructions of one call, beside those of another library."""
    [found, *_] = instructions.compare(
        {str(case): {way: now}},
        {str(case): {way: before}},
        "pristine",
        {each.case: each for each in accepted},
    )
    return found


def results(
    *verdicts: Verdict, selected: int | None = None, interrupted: bool | None = None
) -> Results:
    return Results(
        tool_version="1.2",
        library={"name": "patched", "upstream": "llama.cpp-1", "ggml_version": "0.1"},
        features=("AVX2",),
        machine={"cpu": "some", "threads": 2},
        modes=(),
        started=datetime(2020, 1, 2, tzinfo=timezone.utc),
        seconds=1.5,
        verdicts=verdicts,
        selected=len(verdicts) if selected is None else selected,
        interrupted=selected is not None if interrupted is None else interrupted,
    )


def baseline_of(
    run: Results,
    speed: Speed | None = None,
    bits: Mapping[Case, bytes] | str = AS_OTHER,
    **made_with: Any,
) -> Baseline:
    return renewal.new_baseline(
        run, made_with={**MADE_WITH, **made_with}, seed=None, threads=None, speed=speed, bits=bits
    )


def judged(
    run: Results,
    before: Baseline | NoBaseline,
    *,
    bits: Mapping[Case, bytes] | str = AS_OTHER,
    ratios: Sequence[Ratio] | str = "left out",
    one_call: Sequence[Ratio] | str = "left out",
    counts: Sequence[Count] | str = "left out",
    seed: int | None = None,
    made_with: Mapping[str, Any] = MADE_WITH,
    strict: bool = False,
    part: str = "",
) -> Gate:
    return gate.judge(
        run,
        made_with=made_with,
        seed=seed,
        threads=None,
        baseline=before,
        file="baselines/x.json",
        bits=bits,
        measured=Measured(speed=ratios, one_call=one_call, instructions=counts),
        strict=strict,
        part=part,
    )


def failing(text: str, *, status: str = "fail", n: int = 1) -> Results:
    """A run of which `n` cases fail for a reason."""
    cases = [dataclasses.replace(CASE, seed=i) for i in range(n)]
    return results(*(verdict(case, status, text) for case in cases))
