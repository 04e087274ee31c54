"""Runs that differ from a real one in some results."""

import dataclasses
from typing import Any, cast

from fa_harness.case.modes import ByMode, Run
from fa_harness.judge.verdict import Verdict

_PLACES = {
    "standard": ("standard", "output"),
    "standard_again": ("standard", "again"),
    "reference": ("standard", "reference"),
    "full_state": ("full_state", "first"),
    "full_state_again": ("full_state", "again"),
    "mixed": ("mixed", "first"),
    "mixed_again": ("mixed", "again"),
    "fifo": ("fifo", "first"),
    "fifo_again": ("fifo", "again"),
}


def changed(run: Run, **changes: Any) -> Run:
    """Return a run with other results; a mode that is None is left out.

    Names are those of modes, of their repeats (`full_state_again`) and of fields of `Run`.
    """
    results: dict[str, Any] = dict(run.results)
    fields: dict[str, Any] = {}
    for name, value in changes.items():
        mode, field = _PLACES.get(name, (name, ""))
        if mode in ("inputs_written", "work_size", "seconds"):
            fields[name] = value
        elif value is None and field != "reference":
            results.pop(mode, None)
        elif field:
            results[mode] = dataclasses.replace(results[mode], **{field: value})
        else:
            results[mode] = value
    return dataclasses.replace(run, results=cast(ByMode, results), **fields)


def does_not_hold(verdict: Verdict, what: str) -> bool:
    """Tell whether a comparison, in words, does not hold; `: bits` where it must be of bits."""
    name, _, how = what.partition(":")
    comparison = verdict.comparisons[name.replace(" ", "_")]
    is_of_bits = "bit" in how
    return not comparison.ok and comparison.required == ("bits" if is_of_bits else "bound")
