"""Whether the cases would notice a fault: each mutant of the kernel runs until one of them fails.

The library `mutants` is the patched one with deliberate faults compiled in. A process computes with
one of them. `mutants/mutants.toml` of the series says what each of them is. Impostors are mutants
that answer without computing; they have to fail in every single case.

`mutants/killers.toml` keeps which case killed a mutant. To see whether it still does takes
seconds.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fa_harness.build.library import Library
from fa_harness.case.case import Case
from fa_harness.engine.ggml import EVERY_MUTANT
from fa_harness.engine.runner import Passed, Runner
from fa_harness.errors import SetupError, UsageError
from fa_harness.files import read_toml, replace_file
from fa_harness.judge.verdict import Verdict
from fa_harness.kernel import GROUPED
from fa_harness.machine import usable_cores
from fa_harness.project import writing

SUITES = ("smoke", "gate")
"""The suites whose cases are tried, one after the other."""
WITH_BITS = "gate"
"""Where a suite of this name lets a mutant pass, the bits of one call are compared, as a gate does.

A gate compares them with those of `pristine`, which are the library's own without a mutant. Of a
kernel with other bits, one that groups heads, it compares none.
"""
KINDS = ("kernel", "api", "impostor", "cache")
"""Those of a KV cache are in llama.cpp, and `fa-harness schedules --mutants` tries them."""
STATUSES = ("killed", "survived", "invalid", "equivalent")

BITS = "bits of one call"
"""What kills where no comparison of a case does."""
_CASE_SECONDS = 20.0
"""A mutant may loop for ever; a case takes milliseconds."""
_ALONE = 12
"""Cases that killed a mutant lately come first, and one of them mostly kills the next, too."""
_WORTH_A_NOTE = 4
"""Least generated mutants for which it pays to note first which cases reach them."""
_KILLING = ("fail", "crash", "timeout")
_KILLERS_HEAD = """\
# By a fault the case that kills it. `fa-harness {of} --record` renews this file,
# `fa-harness {of} --killers` tries each fault against its case here.

"""
_KEYS = ("class", "kind", "patch", "does", "shown_by")
"""Of a mutant's table in `mutants.toml`."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One deliberate fault."""

    id: str
    """What the library calls it."""
    class_: str
    """Which fault it is; several places of the code have one of the same class."""
    kind: str
    """One of `KINDS`."""
    patch: str
    """The patch that it is in."""
    does: str
    shown_by: str
    """Which inputs show it."""
    equivalent: str = ""
    """Why it cannot show."""
    if_unreached: str = ""
    """Why it cannot show where no case reaches it; on another processor some may."""
    if_survived: str = ""
    """Why only time shows it, if no case fails with it; it is tried, since it may crash or hang."""
    file: str = ""
    """Of a generated mutant, where it is."""
    line: int = 0
    of: str = "mutants"
    """The command that tries it, by which its table and the folder of its patches are called."""
    series: str = ""
    """The series that it belongs to; empty for the default one."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a mutant."""

    mutant: Mutant
    status: str
    """One of `STATUSES`."""
    reason: str
    """The reason of the killing verdict, or why the mutant was not killed."""
    case: Case | None = None
    """The case that killed it, the first one of an impostor; or which an impostor survived."""
    suite: str = ""
    """The killing case's suite."""
    comparison: str = ""
    """The first comparison that was not ok; empty where something else failed."""
    n_case: int = 0
    """Cases that ran."""
    seconds: float = 0.0


def load(path: Path) -> tuple[Mutant, ...]:
    """Read `mutants.toml`: a table for each mutant.

    Raises:
        SetupError: The file is missing, or says something that cannot be.
    """
    tables = read_toml(path)
    return tuple(_mutant(f"{path}: mutant '{id_}'", id_, table) for id_, table in tables.items())


def strings_of(
    where: str, id_: str, table: Any, keys: Sequence[str], *, optional: Sequence[str] = ()
) -> dict[str, str]:
    """Return the table of the fault `id_`, of which every value is a string.

    Raises:
        SetupError: It is no table, or has another key, or lacks one of `keys`.
    """
    if not isinstance(table, dict):
        raise SetupError(f"{where}: must be a table [{id_}]")
    for key, value in table.items():
        if key not in (*keys, *optional):
            known = ", ".join((*keys, *optional))
            raise SetupError(f"{where}: unknown key '{key}'; known: {known}")
        if not isinstance(value, str):
            raise SetupError(f"{where}: {key} must be a string, not {value!r}")
    for key in keys:
        if not table.get(key):
            raise SetupError(f"{where}: {key} is missing")
    if table["kind"] not in KINDS:
        raise SetupError(f"{where}: kind is '{table['kind']}'; there are {', '.join(KINDS)}")
    return table


def load_killers(path: Path, mutants: Sequence[Mutant]) -> dict[str, Case]:
    """Read `killers.toml`: by mutant the case that kills it; none where there is no file yet.

    Raises:
        SetupError: The file is not TOML, or names a mutant or a case that there is not.
    """
    if not path.exists():
        return {}
    texts = read_toml(path)
    unknown = sorted(texts.keys() - {mutant.id for mutant in mutants})
    if unknown:
        raise SetupError(
            f"{path}: {_of(mutants)}.toml has no '{unknown[0]}'; delete its line, or correct the id"
        )
    return {id_: _case(f"{path}: {id_}", text, _command(mutants)) for id_, text in texts.items()}


def renewed(killers: Mapping[str, Case], outcomes: Iterable[Outcome]) -> dict[str, Case]:
    """Return the killers after a search; those of mutants that were not tried stay as they are."""
    after = dict(killers)
    for outcome in outcomes:
        after.pop(outcome.mutant.id, None)
        if outcome.status == "killed" and outcome.case:
            after[outcome.mutant.id] = outcome.case
    return after


def on_one_thread(library: Library, outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Return the outcomes, with the killing case on one thread where that kills, too.

    Such a case costs less, and does not wait for a second core.
    """
    found = list(outcomes)
    alone = {
        outcome.mutant.id: outcome.case.with_(threads=1)
        for outcome in found
        if outcome.status == "killed" and outcome.case
    }
    tried = [outcome.mutant for outcome in found if outcome.mutant.id in alone]
    killed = {o.mutant.id for o in run_killers(library, tried, alone) if o.status == "killed"}
    return [
        replace(outcome, case=alone[outcome.mutant.id]) if outcome.mutant.id in killed else outcome
        for outcome in found
    ]


def save_killers(path: Path, killers: Mapping[str, Case], mutants: Sequence[Mutant]) -> None:
    """Write `killers.toml`, in the order of the mutants."""
    lines = [f'{mutant.id} = "{killers[mutant.id]}"' for mutant in mutants if mutant.id in killers]
    with writing(path):
        head = _KILLERS_HEAD.format(of=_command(mutants))
        replace_file(path, head + "\n".join(lines) + "\n")


def run_killers(
    library: Library, mutants: Sequence[Mutant], killers: Mapping[str, Case]
) -> Iterator[Outcome]:
    """Yield whether each mutant is still killed by the case that is recorded as its killer.

    One process computes with one mutant after another. A failure counts if the same case passes in
    that process right after, without the mutant. Otherwise, and after a crash, a new process tells.
    """
    with _runner(library) as runner:
        for mutant in mutants:
            start = time.perf_counter()
            outcome = _unfit(mutant, library, runner.mutants)
            if outcome is None and mutant.id not in killers:
                reason = f"no case is recorded that kills it; {_record(mutant)} looks for one"
                outcome = Outcome(mutant=mutant, status="invalid", reason=reason)
            if outcome is None:
                outcome = _still_killed(mutant, killers[mutant.id], runner)
            yield replace(outcome, seconds=time.perf_counter() - start)


def run(
    library: Library,
    mutants: Sequence[Mutant],
    suites: Mapping[str, Sequence[Case]],
    *,
    why_equivalent: Callable[[Mutant], str] = lambda mutant: "",
) -> Iterator[Outcome]:
    """Yield what becomes of each mutant, as soon as it is known.

    One at a time: most cases compute with two threads, and ggml's barrier spins while a thread
    waits for a core. Each in a process of its own, whose memory it may spoil.

    A case kills a mutant if its verdict is `fail`, `crash` or `timeout`, and `pass` without the
    mutant, and in the suite `gate` also if one call has other bits than without the mutant. An
    impostor has to be killed by every case that passes without it.

    Args:
        library: The library `mutants`.
        mutants: Some of its mutants.
        suites: The cases to try, by the name of their suite. Within a suite those come first that
            killed a mutant of the same patch before; a later suite is only tried if no case of an
            earlier one kills.
        why_equivalent: Tells why a mutant cannot show, if that is so. It is asked of what the first
            suite does not kill, since it may take as long as many cases.
    """
    passed: Passed = {}  # most mutants leave the numbers of most cases as they are
    reach = _Reach(library, mutants, passed)
    with _runner(library) as control:

        @functools.cache
        def passes(case: Case) -> bool:
            """Tell whether a case passes without a mutant; otherwise it tells nothing."""
            [verdict] = control.run([case])
            return verdict.status == "pass"

        for neighbours in _neighbours(mutants):
            in_order = {suite: list(cases) for suite, cases in suites.items()}
            for mutant in neighbours:
                start = time.perf_counter()
                outcome = _unfit(mutant, library, control.mutants)
                if outcome is None:
                    with _runner(library, mutant.id, passed) as runner:
                        if mutant.kind == "impostor":
                            outcome = _unmask(mutant, in_order, runner, passes)
                        else:
                            outcome = _kill(mutant, in_order, runner, passes, reach, why_equivalent)
                    outcome = replace(outcome, seconds=time.perf_counter() - start)
                yield outcome


class _Reach:
    """What cases give without a mutant, and which of them compute with which generated mutant.

    The others cannot tell that mutant, and are left out. Up to where it is reached first, a mutant
    changes nothing. So a run without one tells it of all.
    """

    def __init__(self, library: Library, mutants: Sequence[Mutant], passed: Passed) -> None:
        self._library = library
        self._passed = passed
        self._ids = {mutant.id for mutant in mutants if mutant.file}
        self._reached: dict[Case, frozenset[str] | None] = {}
        """None for a case that could not be computed."""
        self._standard: dict[Case, bytes] = {}

    def cases(self, mutant: Mutant, cases: Sequence[Case]) -> list[Case]:
        """Return those that compute with a mutant, or may."""
        if mutant.id not in self._ids or len(self._ids) < _WORTH_A_NOTE:
            return list(cases)
        self.note(cases)
        reached = self._reached
        return [case for case in cases if (ids := reached[case]) is None or mutant.id in ids]

    def standard(self, case: Case) -> bytes:
        """Return the digest of a noted case's call; empty if it could not be computed."""
        return self._standard[case]

    def note(self, cases: Sequence[Case]) -> None:
        """Compute cases without a mutant, side by side, if that was not done yet."""
        cases = [case for case in cases if case not in self._reached]
        if not cases:
            return
        mutant = EVERY_MUTANT if self._ids else None  # only a library of generated ones can note
        with _runner(self._library, mutant, self._passed) as runner:
            for verdict in runner.run(_by_threads(cases), timeout=_CASE_SECONDS):
                ids = runner.reached.pop(verdict.case, frozenset())
                self._reached[verdict.case] = (ids & self._ids) if ids else None
                self._standard[verdict.case] = verdict.standard


def _runner(library: Library, mutant: str | None = None, passed: Passed | None = None) -> Runner:
    """Return a runner of the modes that the library's series name."""
    return Runner(library.module_path, mutant=mutant, passed=passed, modes=library.modes)


def _still_killed(mutant: Mutant, case: Case, runner: Runner) -> Outcome:
    verdict, reached = _with_mutant(mutant, case, runner)
    control, _ = _with_mutant(None, case, runner)
    if not (verdict.status == "fail" and control.status == "pass"):
        control, _ = _with_mutant(None, case, runner, restart=True)
        verdict, reached = _with_mutant(mutant, case, runner)
        runner.compute_with(None, restart=True)
    if control.status != "pass":
        why = f"the recorded case does not pass without it: {control.status}, {control.reason}"
    elif not reached and mutant.if_unreached:
        return Outcome(mutant=mutant, status="equivalent", reason=mutant.if_unreached, n_case=1)
    elif not reached:
        why = "the recorded case does not reach it"
    elif verdict.status not in _KILLING:
        why = f"the recorded case does not fail with it: {verdict.status}"
    else:
        return _killed(mutant, "", verdict, 1)
    reason = f"{why}; {_record(mutant)} looks for another case"
    status = "survived" if reached else "invalid"
    return Outcome(mutant=mutant, status=status, reason=reason, case=case, n_case=1)


def _with_mutant(
    mutant: Mutant | None, case: Case, runner: Runner, *, restart: bool = False
) -> tuple[Verdict, bool]:
    """Return the verdict, and whether the mutant was reached."""
    runner.compute_with(mutant.id if mutant else None, restart=restart)
    [verdict] = runner.run([case])
    return verdict, _is_reached(runner, verdict)


def _is_reached(runner: Runner, verdict: Verdict) -> bool:
    """Tell whether the mutant was reached; a process that is lost cannot tell."""
    return bool(runner.reached.get(verdict.case)) or verdict.status in ("crash", "timeout")


def _record(mutant: Mutant) -> str:
    of_series = f" --series {mutant.series}" if mutant.series else ""
    return f"`fa-harness {mutant.of}{of_series} --record -k '^{mutant.id}$'`"


def _of(mutants: Sequence[Mutant]) -> str:
    return mutants[0].of if mutants else "mutants"


def _command(mutants: Sequence[Mutant]) -> str:
    """Return the command that tries mutants of one series."""
    series = mutants[0].series if mutants else ""
    return _of(mutants) + (f" --series {series}" if series else "")


def _unfit(mutant: Mutant, library: Library, known: Sequence[str]) -> Outcome | None:
    """Return the outcome of a mutant that need not or cannot be tried."""
    if mutant.equivalent:
        return Outcome(mutant=mutant, status="equivalent", reason=mutant.equivalent)
    # its name may be in the table all the same; a generated mutant has no patch of its own
    is_left_out = mutant.patch.endswith(".patch") and mutant.patch not in library.series
    if mutant.id in known and not is_left_out:
        return None
    why = f"{mutant.patch} does not apply, bring it up to date"
    if mutant.patch in library.series:
        why = f"correct {mutant.of}.toml or {mutant.patch}"
    reason = f"the library does not have it; {why}"
    return Outcome(mutant=mutant, status="invalid", reason=reason)


def _kill(
    mutant: Mutant,
    suites: Mapping[str, list[Case]],
    runner: Runner,
    passes: Callable[[Case], bool],
    reach: _Reach,
    why_equivalent: Callable[[Mutant], str],
) -> Outcome:
    """Run cases until one kills the mutant; that one comes first from then on."""
    tried: set[Case] = set()
    bits: dict[Case, bytes] = {}
    reached = False
    for i, (suite, cases) in enumerate(suites.items()):
        while left := [case for case in reach.cases(mutant, cases) if case not in tried]:
            suspect = None
            with contextlib.closing(_in_order(mutant, runner, left)) as verdicts:
                for verdict in verdicts:
                    tried.add(verdict.case)
                    bits[verdict.case] = verdict.standard
                    reached |= _is_reached(runner, verdict)
                    if verdict.status in _KILLING:
                        suspect = verdict.case
                        break
            if suspect is None:
                break
            [verdict] = runner.run([suspect], timeout=_CASE_SECONDS)
            did_reach = _is_reached(runner, verdict)
            if did_reach and verdict.status in _KILLING and passes(suspect):
                if suspect.threads <= usable_cores():  # with more it takes long
                    cases.remove(suspect)
                    cases.insert(0, suspect)
                return _killed(mutant, suite, verdict, len(tried))
        has_bits = suite == WITH_BITS and GROUPED not in runner.features
        if has_bits and (found := _with_other_bits(cases, bits, reach, runner)):
            reason = "one call has other bits than that of the library without the patch"
            return replace(
                _killed(mutant, suite, found, len(tried)), comparison=BITS, reason=reason
            )
        if i == 0 and (reason := why_equivalent(mutant)):
            return Outcome(mutant=mutant, status="equivalent", reason=reason, n_case=len(tried))
    n_case = len(tried)
    if not reached and mutant.if_unreached:
        return Outcome(
            mutant=mutant, status="equivalent", reason=mutant.if_unreached, n_case=n_case
        )
    if mutant.if_survived:
        return Outcome(mutant=mutant, status="equivalent", reason=mutant.if_survived, n_case=n_case)
    # a written mutant that nothing reaches is put in wrongly; else it shows a gap
    status = "survived" if reached or mutant.file or mutant.of != "mutants" else "invalid"
    reason = f"none of {n_case} cases {'fails with' if reached else 'reaches'} it"
    return Outcome(mutant=mutant, status=status, reason=reason, n_case=n_case)


def _with_other_bits(
    cases: Sequence[Case], bits: Mapping[Case, bytes], reach: _Reach, runner: Runner
) -> Verdict | None:
    """Return the verdict of the first case whose call has other bits than without the mutant."""
    computed = [case for case in cases if bits.get(case)]
    reach.note(computed)
    for case in computed:
        if bits[case] == reach.standard(case) or not reach.standard(case):
            continue
        [verdict] = runner.run([case], timeout=_CASE_SECONDS)
        # what changes from one run to the next is not for this check to say
        if verdict.standard == bits[case] and _is_reached(runner, verdict):
            return verdict
    return None


def _in_order(
    mutant: Mutant, runner: Runner, cases: Sequence[Case]
) -> Generator[Verdict, None, None]:
    """Yield the verdicts of cases, one at a time.

    Of a generated mutant, which need not be reached, those are computed side by side that have
    killed none lately.
    """
    n_alone = _ALONE if mutant.file else len(cases)
    for case in cases[:n_alone]:
        yield from runner.run([case], timeout=_CASE_SECONDS)
    yield from runner.run(_by_threads(cases[n_alone:]), timeout=_CASE_SECONDS)


def _by_threads(cases: Sequence[Case]) -> list[Case]:
    """Return cases in an order in which they run side by side."""
    return sorted(cases, key=lambda case: case.threads)


def _unmask(
    mutant: Mutant,
    suites: Mapping[str, list[Case]],
    runner: Runner,
    passes: Callable[[Case], bool],
) -> Outcome:
    """Run all cases; none may pass the impostor."""
    killed: Outcome | None = None
    n_case = 0
    for suite, cases in suites.items():
        for verdict in runner.run(cases):
            n_case += 1
            if verdict.status in _KILLING:
                killed = killed or _killed(mutant, suite, verdict, 1)
            elif passes(verdict.case):
                return Outcome(
                    mutant=mutant,
                    status="survived",
                    reason=f"a case is not red: {verdict.status}",
                    case=verdict.case,
                    n_case=n_case,
                )
    untold = Outcome(mutant=mutant, status="survived", reason="no case tells")
    return replace(killed or untold, n_case=n_case)


def _killed(mutant: Mutant, suite: str, verdict: Verdict, n_case: int) -> Outcome:
    bad = (name for name, comparison in verdict.comparisons.items() if not comparison.ok)
    return Outcome(
        mutant=mutant,
        status="killed",
        reason=verdict.reason,
        suite=suite,
        case=verdict.case,
        comparison=next(bad, ""),
        n_case=n_case,
    )


def _neighbours(mutants: Sequence[Mutant]) -> list[list[Mutant]]:
    """Return the mutants of each patch, whose killers are often the same; each impostor alone."""
    groups: dict[str, list[Mutant]] = {}
    for mutant in mutants:
        key = mutant.id if mutant.kind == "impostor" else mutant.patch
        groups.setdefault(key, []).append(mutant)
    return list(groups.values())


def _case(where: str, text: Any, of: str) -> Case:
    try:
        return Case.parse(str(text))
    except UsageError as error:
        renew = f"`fa-harness {of} --record` renews it"
        raise SetupError(f"{where}: {error}; {renew}") from error


def _mutant(where: str, id_: str, table: Any) -> Mutant:
    table = strings_of(where, id_, table, _KEYS, optional=("equivalent", "if_unreached"))
    return Mutant(id=id_, class_=table.pop("class"), **table)
