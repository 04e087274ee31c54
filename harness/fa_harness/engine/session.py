"""What a command ran on: a library, a machine, a time; and what a run of cases gave."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from fa_harness import __version__
from fa_harness.build.library import Library
from fa_harness.build.names import defined
from fa_harness.case.case import Case
from fa_harness.engine.ggml import CPU
from fa_harness.engine.runner import Runner
from fa_harness.judge.verdict import Verdict
from fa_harness.machine import cpu_model, usable_cores
from fa_harness.terminal import stage_once
from fa_harness.upstream.source import chosen


@dataclass(frozen=True, kw_only=True)
class Session:
    """What a command ran on, when, and how long it took.

    Attributes:
        library: The library's record.
        options: CMake options that the library was asked for with.
        backend: The device that computed, as `--backend` names it.
        modes: The modes that were asked for; empty for each case's own.
        environment: The variables that chose the upstream, as `chosen` returns them.
        machine: `cpu` and `threads` (usable cores).
        interrupted: Ctrl-C, or something else, ended it early.
    """

    library: Mapping[str, Any]
    options: Mapping[str, str] = field(default_factory=dict)
    backend: str = CPU
    modes: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, Any]
    tool_version: str
    started: datetime
    seconds: float
    interrupted: bool = False

    def header(self, schema: str) -> dict[str, Any]:
        """Return how its JSON document begins."""
        return {
            "schema": schema,
            "tool": {"version": self.tool_version},
            "library": dict(self.library),
            **({} if self.backend == CPU else {"backend": self.backend}),
            "machine": dict(self.machine),
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 3),
            "interrupted": self.interrupted,
        }

    @property
    def what_ran(self) -> str:
        """The library in words."""
        library = self.library
        what = f"library {library['name']} of {library['upstream']}, ggml {library['ggml_version']}"
        return what if self.backend == CPU else f"{what}, on {self.backend}"

    def repro(self, case: Case) -> str:
        """Return the command that repeats a case."""
        of_modes = ["--mode", ",".join(self.modes)] if self.modes else []
        return self.command("run", *of_modes, "--case", str(case))

    def command(self, name: str, *arguments: str) -> str:
        """Return a command line on the library."""
        library = ["--library", self.library["name"], *defined(self.options)]
        if self.backend != CPU:
            library += ["--backend", self.backend]
        variables = [f"{key}={shlex.quote(value)}" for key, value in self.environment.items()]
        return " ".join([*variables, shlex.join(["fa-harness", name, *library, *arguments])])


class Clock:
    """Measures a session, from when it is made."""

    def __init__(
        self,
        library: Library,
        options: Mapping[str, str] = {},
        modes: tuple[str, ...] | None = None,
        *,
        backend: str = CPU,
    ) -> None:
        self._library, self._options, self._modes = library, options, modes or ()
        self._backend = backend
        self._started, self._start = datetime.now(timezone.utc), time.perf_counter()

    def session(self) -> Session:
        """Return the session up to now."""
        return Session(**self.fields())

    def fields(self, *, interrupted: bool = False) -> dict[str, Any]:
        """Return the fields of a `Session` up to now, for a record that extends it."""
        return {
            "library": self._library.to_json(),
            "options": self._options,
            "backend": self._backend,
            "modes": self._modes,
            "environment": chosen(),
            "machine": {"cpu": cpu_model(), "threads": usable_cores()},
            "tool_version": __version__,
            "started": self._started,
            "seconds": time.perf_counter() - self._start,
            "interrupted": interrupted,
        }


def offered_modes(runner: Runner, library: Library) -> tuple[str, ...] | None:
    """Return the modes that a library's series names, else None: each case has its own.

    A checkout that did not take the series has one.
    """
    if library.modes and not runner.has_state:
        return library.modes
    if not library.series_note or runner.has_state:
        return None
    stage_once(f"{library.upstream} has no flash attention with a state: only mode standard runs")
    return ("standard",)


@dataclass(frozen=True, kw_only=True)
class Results(Session):
    """All that a run of cases found.

    Attributes:
        features: CPU features that the library uses here.
        selected: Cases that were to run; more than ran where the run was interrupted.
        coverage: What `--coverage` found of the kernel's branches, as the JSON report has it.
    """

    features: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    selected: int
    coverage: Mapping[str, Any] | None = None

    def count(self, status: str) -> int:
        """Return how many cases have a status."""
        return sum(verdict.status == status for verdict in self.verdicts)

    @property
    def passed(self) -> bool:
        """Whether every selected case ran and none failed, crashed, hung or was mistrusted."""
        good = sum(is_good(verdict.status) for verdict in self.verdicts)
        return good == self.selected and self.count("pass") > 0

    @property
    def stopped(self) -> str:
        """Why cases that were to run did not; empty where all ran."""
        if self.interrupted:
            return "interrupted"
        return "stopped at the first that fails (-x)" if len(self.verdicts) < self.selected else ""


def is_good(status: str) -> bool:
    """Tell whether a case with a status does not fail a run."""
    return status in ("pass", "unsupported")
