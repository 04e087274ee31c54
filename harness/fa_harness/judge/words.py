"""What a verdict says in words, the same in every form of a report."""

from __future__ import annotations

import math

from fa_harness.case.modes import MODES
from fa_harness.judge.shares import beyond, in_words
from fa_harness.judge.verdict import Verdict


def explain(verdict: Verdict) -> list[str]:
    """Return why a case did not pass and where it went wrong first, line by line.

    The reason comes first. After a crash it may hold lines that the library printed.
    """
    found = verdict.localisation
    return [*(verdict.reason.splitlines() or [""]), *(found.lines() if found else [])]


def worst(verdict: Verdict) -> tuple[str, str]:
    """Return an error and its share of a bound in words, `-` where there is none.

    If the case fails, both are of the element that its explanation names. Else they are the largest
    error of a mode's result, and the largest share of all comparisons with the oracle.
    """
    found = verdict.localisation
    if found is not None:
        text, _ = beyond(found.error, found.bound)
        return text, "bits" if found.is_of_bits else in_words(found.share)
    shares = [c.of_bound for name, c in verdict.comparisons.items() if name.endswith("_vs_oracle")]
    if not shares:
        return "-", "-"
    results = (verdict.comparisons.get(f"{mode}_vs_oracle") for mode in MODES)
    # one that is not finite is the worst
    error = max(
        (result.max_abs for result in results if result),
        key=lambda error: error if math.isfinite(error) else math.inf,
    )
    return f"{error:.2e}", in_words(max(shares))
