"""What a gate measures of a library beside its cases, with another library at its side.

The other one has the same build options and lacks the patch: `pristine`, or what `--against` names.
It is built if it is missing. Where it cannot be had, what needs it is skipped with the reason, and
the rest is measured all the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fa_harness import terminal
from fa_harness.build.library import Library
from fa_harness.build.named import held_library
from fa_harness.case.case import Case
from fa_harness.case.modes import Run
from fa_harness.engine.runner import Runner, digest_of
from fa_harness.errors import SetupError
from fa_harness.machine import cpu_model, usable_cores
from fa_harness.speed import instructions, ratios, rows
from fa_harness.speed.baseline import Baseline, NoBaseline
from fa_harness.speed.gate import Measured
from fa_harness.speed.instructions import CannotCountError, Count
from fa_harness.speed.ratios import Ratio
from fa_harness.speed.rows import PROCESSES, SpeedRow
from fa_harness.stacks import Accepted

_NONE_CHOSEN = "none of its rows is chosen"


@dataclass(frozen=True, kw_only=True)
class Sides:
    """A library, held, and what its one call is compared with."""

    library: Library
    options: Mapping[str, str]  # CMake options that both are asked for with
    against: str  # the name of the other library
    is_chosen: Callable[[Case], bool]  # which rows are measured
    accepted: Mapping[str, Accepted] = field(default_factory=dict)  # by case, of instructions

    def measure(
        self, before: Baseline | NoBaseline, *, update: bool
    ) -> tuple[Measured, list[SpeedRow]]:
        """Measure the speed rows and count instructions; return the rows, too.

        Rows that look slower are measured twice. With `update` they become the baseline, and only
        one call and the instructions are compared.
        """
        if self.library.preload:
            return Measured.nothing(f"library '{self.library.name}' is not built for speed"), []
        with self._other(self.options, together=True) as other:
            speed, one_call, measured = self._speed(before, other, update=update)
        counts = self._instructions()
        return Measured(speed=speed, one_call=one_call, instructions=counts), measured

    def bits(self, cases: Sequence[Case]) -> Mapping[Case, bytes] | str:
        """Return the other library's digest of each case's call, as `Verdict.standard` has ours."""
        with self._other(self.options, together=False) as other:
            if isinstance(other, str):
                return other
            with Runner(other.module_path) as runner, terminal.bar("comparing bits") as advance:
                found: dict[Case, bytes] = {}
                for i, case in enumerate(cases):
                    advance(i, len(cases))
                    run = runner.compute(case)
                    if isinstance(run, Run):
                        found[case] = digest_of(run)
                return found

    def _speed(
        self, before: Baseline | NoBaseline, other: Library | str, *, update: bool
    ) -> tuple[list[Ratio] | str, list[Ratio] | str, list[SpeedRow]]:
        chosen = [case for case in rows.ROWS if self.is_chosen(case)]
        if not chosen:
            return _NONE_CHOSEN, _NONE_CHOSEN, []
        why_not = (
            "becomes the baseline" if update else ratios.speed_incomparable(before, cpu_model())
        )
        history: Mapping[str, Mapping[str, Sequence[float]]] = {}
        if why_not is None:
            assert isinstance(before, Baseline)
            assert before.speed is not None
            history = before.speed.rows
        elif isinstance(other, str) and not update:
            return why_not, other, []

        def compare(row: SpeedRow) -> list[Ratio]:
            cores, found = usable_cores(), []
            if why_not is None:
                found += ratios.compare_speed(row, history.get(str(row.case), {}), cores=cores)
            if isinstance(other, Library):
                found.append(ratios.compare_one_call(row, other.name, cores=cores))
            return found

        measured = self._rows(chosen, other, processes=PROCESSES * (2 if update else 1))
        compared = {row.case: compare(row) for row in measured}
        unsettled = [case for case, found in compared.items() if any(map(ratios.is_open, found))]
        for row in self._rows(unsettled, other, processes=2 * PROCESSES, seed=PROCESSES):
            compared[row.case] = ratios.confirmed(compared[row.case], compare(row))
        told = [ratio for found in compared.values() for ratio in found]
        speed = [ratio for ratio in told if ratio.to == "standard"]
        one_call = [ratio for ratio in told if ratio.to != "standard"]
        return why_not or speed, other if isinstance(other, str) else one_call, measured

    def _rows(
        self, cases: Sequence[Case], other: Library | str, *, processes: int, seed: int = 0
    ) -> list[SpeedRow]:
        if not cases:
            return []
        with terminal.bar("measuring speed") as advance:
            return rows.measure(
                self.library.module_path,
                cases,
                processes=processes,
                seed=seed,
                other=None if isinstance(other, str) else other.module_path,
                advance=advance,
            )

    def _instructions(self) -> list[Count] | str:
        why_not = instructions.why_not()
        if why_not is not None:
            return why_not
        cases = [case for case in instructions.ROWS if self.is_chosen(case)]
        if not cases:
            return _NONE_CHOSEN
        options = {**self.options, **instructions.PORTABLE}
        try:
            with (
                held_library(self.library.name, options) as ours,
                self._other(options, together=False) as other,
            ):
                terminal.stage("counting instructions")
                libraries = [ours] if isinstance(other, str) else [ours, other]
                found = instructions.count([each.module_path for each in libraries], cases)
        except (SetupError, CannotCountError) as error:
            return str(error)
        theirs = other if isinstance(other, str) else found[1]
        return instructions.compare(found[0], theirs, self.against, self.accepted)

    @contextlib.contextmanager
    def _other(self, options: Mapping[str, str], *, together: bool) -> Iterator[Library | str]:
        """Give the other library, held, or say why there is none; `together` in one process."""
        with contextlib.ExitStack() as stack:
            other: Library | str
            try:
                other = stack.enter_context(held_library(self.against, options))
            except SetupError as error:
                other = f"library '{self.against}' cannot be had: {error}"
            else:
                other = self._why_not(other, together=together) or other
            yield other

    def _why_not(self, other: Library, *, together: bool) -> str | None:
        """Return why one call cannot be compared with that of another library, or None."""
        ours = self.library
        if all(ours.inputs[key] == other.inputs[key] for key in ("upstream", "patches")):
            return f"library '{other.name}' has the same sources as '{ours.name}'"
        if together and _shared_objects(ours) & _shared_objects(other):
            return (
                f"libraries '{ours.name}' and '{other.name}' have no patch of a header between "
                "them, so they cannot be loaded together"
            )
        return None


def _shared_objects(library: Library) -> set[str]:
    return {path.name for path in library.module_path.parent.glob("libggml*")}
