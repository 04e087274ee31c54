"""Run a case on the library of each prefix of the series: which patch turned it red, or green?"""

from __future__ import annotations

from dataclasses import dataclass

from fa_harness.case.case import Case
from fa_harness.engine.runner import Runner
from fa_harness.engine.session import Session
from fa_harness.judge.verdict import Verdict

_RED = ("fail", "crash", "timeout", "mistrusted")


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """The library of the first patches of a series."""

    library: str
    patch: str
    """File name of the last patch in it; empty for upstream as it is."""
    title: str
    """The patch's own."""


@dataclass(frozen=True, kw_only=True)
class PrefixVerdict:
    """A case on one of the libraries."""

    prefix: Prefix
    verdict: Verdict
    lacks: str = ""
    """Why some modes of the case were not computed; empty where all were."""

    @property
    def is_red(self) -> bool | None:
        """Whether the case fails; None where the library cannot compute it."""
        status = self.verdict.status
        return None if status in ("unsupported", "oversized") else status in _RED


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A change of colour, against the last library before that can compute the case."""

    row: PrefixVerdict
    to_red: bool


@dataclass(frozen=True, kw_only=True)
class Bisected(Session):
    """A case on all libraries of a series, in its order; `library` is the last one."""

    case: Case
    rows: tuple[PrefixVerdict, ...]

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Where the case turns red or green; red on the first library is a turn, too."""
        turns = []
        was_red = False
        for row in self.rows:
            if row.is_red is not None and row.is_red != was_red:
                turns.append(Turn(row=row, to_red=row.is_red))
                was_red = row.is_red
        return tuple(turns)

    @property
    def passed(self) -> bool:
        """Whether the case does not fail on the last library."""
        return not self.rows[-1].is_red


def run_on(prefix: Prefix, runner: Runner, case: Case) -> PrefixVerdict:
    """Return a case's row on a library, in all modes that the library offers."""
    [verdict] = runner.run([case])
    if verdict.status != "unsupported":
        return PrefixVerdict(prefix=prefix, verdict=verdict)
    # a library without a state has the one mode that needs none
    [standard] = runner.run([case], modes=("standard",))
    if standard.status == "unsupported":
        return PrefixVerdict(prefix=prefix, verdict=verdict)
    return PrefixVerdict(prefix=prefix, verdict=standard, lacks=verdict.reason)
