"""What a run found, in words, and the commands that repeat it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from fa_harness.build.names import defined
from fa_harness.case.case import Case
from fa_harness.case.modes import MODES
from fa_harness.judge.shares import in_words
from fa_harness.judge.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class Results:
    """All that a run found, and what it ran on."""

    tool_version: str
    library: dict[str, Any]
    """What the library is, as its record says."""
    features: tuple[str, ...]
    """CPU features that the library uses here."""
    machine: dict[str, Any]
    """`cpu`, `threads` (usable cores)."""
    modes: tuple[str, ...]
    """The modes that were asked for; empty for each case's own."""
    started: datetime
    seconds: float
    verdicts: tuple[Verdict, ...]
    selected: int
    """Cases that were to run; more than ran where the run was interrupted."""
    interrupted: bool
    options: Mapping[str, str] = field(default_factory=dict)
    """CMake options that the library was asked for with."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """The variables of the environment that chose the upstream, as `chosen` returns them."""

    def count(self, status: str) -> int:
        """Return how many cases have a status."""
        return sum(verdict.status == status for verdict in self.verdicts)

    @property
    def passed(self) -> bool:
        """Whether every selected case ran and none failed, crashed, hung or was mistrusted."""
        good = self.count("pass") + self.count("unsupported")
        return good == self.selected and self.count("pass") > 0

    def repro(self, verdict: Verdict) -> str:
        """Return the command that repeats a case."""
        return repro(verdict.case, modes=self.modes, **self._of_library())

    @property
    def repro_of_gate(self) -> str:
        """The command that repeats a gate."""
        return command("gate", **self._of_library())

    def _of_library(self) -> dict[str, Any]:
        return {
            "library": str(self.library["name"]),
            "options": self.options,
            "environment": self.environment,
        }


def repro(
    case: Case,
    *,
    library: str,
    options: Mapping[str, str],
    modes: Sequence[str],
    environment: Mapping[str, str],
) -> str:
    """Return the command that runs one case on a library, in some modes or in its own."""
    of_modes = ["--mode", ",".join(modes)] if modes else []
    return command(
        "run", *of_modes, "--case", str(case),
        library=library, options=options, environment=environment,
    )  # fmt: skip


def command(
    name: str,
    *arguments: str,
    library: str,
    options: Mapping[str, str],
    environment: Mapping[str, str],
) -> str:
    """Return a command line on a library."""
    words = ["fa-harness", name, "--library", library, *defined(options), *arguments]
    chosen = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    return " ".join([*chosen, shlex.join(words)])


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
        return f"{found.error:.2e}", "bits" if found.is_of_bits else in_words(found.share)
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
