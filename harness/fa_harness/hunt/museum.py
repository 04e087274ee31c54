"""Faults that flash-attention kernels really had, put back one at a time: do the tests see them?

The library `museum` is the patched one with the faults compiled in; a process computes with one of
them, as with a mutant. `museum/museum.toml` of the series says what each was, where it was reported
and when it was mended.

`museum/upstream.toml` keeps what upstream's own test said of each, since a whole run takes many
minutes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fa_harness.case.case import Case
from fa_harness.engine.runner import Runner
from fa_harness.errors import SetupError
from fa_harness.files import read_toml, replace_file
from fa_harness.hunt.mutants import Mutant, Outcome, strings_of
from fa_harness.hunt.shrink import Failure, shrink
from fa_harness.project import writing

SUITES = ("gate",)
"""The suites whose cases are tried."""
ALONE = ("standard",)
"""The mode without a state: what fails in it is a line that upstream's test could have, too."""

_KEYS = ("title", "backend", "kind", "patch", "what", "shown_by", "reported", "mended")
_BUG_SECONDS = 15.0
"""For the smallest case of a bug; what is not tried then stays as it is."""
_CASE_SECONDS = 5.0
_UPSTREAM_HEAD = """\
# By a bug a line of upstream's own test that fails with it; empty: the whole test passes.
# `fa-harness museum --upstream --record` renews this file.

"""


@dataclass(frozen=True, kw_only=True)
class Bug:
    """A fault that a kernel had."""

    mutant: Mutant
    """Its switch in the library; `does` says what the fault is."""
    title: str
    backend: str
    """Whose kernel had it; `caller`: the program that built the graph."""
    reported: str
    """The issue, or the pull request that tells of it."""
    mended: str
    """The date, and the pull request; or up to when it was not."""


def load(path: Path) -> tuple[Bug, ...]:
    """Read `museum.toml`: a table for each bug.

    Raises:
        SetupError: The file is missing, or says something that cannot be.
    """
    return tuple(
        _bug(id_, strings_of(f"{path}: bug '{id_}'", id_, table, _KEYS))
        for id_, table in read_toml(path).items()
    )


def load_upstream(path: Path, bugs: Sequence[Bug]) -> dict[str, str]:
    """Read `upstream.toml`: by bug the line of upstream's test that sees it, or an empty one.

    Raises:
        SetupError: The file is not TOML, or names a bug that there is not.
    """
    lines = {id_: str(line) for id_, line in read_toml(path).items()} if path.exists() else {}
    unknown = sorted(lines.keys() - {bug.mutant.id for bug in bugs})
    if unknown:
        raise SetupError(f"{path}: museum.toml has no '{unknown[0]}'; delete its line")
    return lines


def save_upstream(path: Path, lines: Mapping[str, str], bugs: Sequence[Bug]) -> None:
    """Write `upstream.toml`, in the order of the bugs."""
    ids = [bug.mutant.id for bug in bugs if bug.mutant.id in lines]
    text = "".join(f"{id_} = '{lines[id_]}'\n" for id_ in ids)
    with writing(path):
        replace_file(path, _UPSTREAM_HEAD + text)


def smallest(module_path: Path, outcome: Outcome) -> Outcome:
    """Return the outcome with a smaller case that fails with the bug and passes without it.

    The case fails in the mode without a state if the one that killed does.
    """
    case, mutant = outcome.case, outcome.mutant
    if outcome.status != "killed" or case is None:
        return outcome
    end = time.monotonic() + _BUG_SECONDS
    with Runner(module_path, mutant=mutant.id) as runner, Runner(module_path) as control:
        for modes in (ALONE, None):

            def fails(candidate: Case, modes: tuple[str, ...] | None = modes) -> Failure | None:
                [verdict] = runner.run([candidate], modes=modes, timeout=_CASE_SECONDS)
                failure = Failure.of(verdict)
                if failure is None:
                    return None
                [without] = control.run([candidate])
                return failure if without.status == "pass" else None

            shrunk = shrink(case, fails, out_of_time=lambda: time.monotonic() > end)
            if shrunk is not None:
                return replace(outcome, case=shrunk.case)
    return outcome


def needs_state(outcome: Outcome) -> bool:
    """Tell whether a bug showed only in a call with a state, which upstream's test has not."""
    return not (outcome.comparison or outcome.reason).startswith(ALONE)


def _bug(id_: str, table: Mapping[str, str]) -> Bug:
    mutant = Mutant(
        id=id_,
        class_=table["title"],
        kind=table["kind"],
        patch=table["patch"],
        does=table["what"],
        shown_by=table["shown_by"],
        of="museum",
    )
    shown = {key: table[key] for key in ("title", "backend", "reported", "mended")}
    return Bug(mutant=mutant, **shown)
