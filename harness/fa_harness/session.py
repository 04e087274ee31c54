"""What the commands do: choose cases, run them on a library, keep the report."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import itertools
import os
import platform
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from fa_harness import (
    __version__,
    baseline,
    bench,
    emit_c,
    gate,
    ggml,
    mutants,
    progress,
    speed,
)
from fa_harness.baseline import Baseline
from fa_harness.bench import Bench, Row
from fa_harness.bisect import Bisected, Prefix, run_on
from fa_harness.cases import OP, Case, without_colours
from fa_harness.errors import FaHarnessError, SetupError, UsageError
from fa_harness.fuzz import Found, Fuzz, Fuzzer
from fa_harness.gate import Gate, Ratio
from fa_harness.library import Library, held
from fa_harness.machine import cpu_model, usable_cores
from fa_harness.modes import MODES, missing_option
from fa_harness.mutants import Mutant, Outcome
from fa_harness.project import Project, find_project, locked, writing
from fa_harness.report import Results, defined, repro
from fa_harness.report import html as html_report
from fa_harness.report import json as json_report
from fa_harness.report import junit as junit_report
from fa_harness.report import markdown as markdown_report
from fa_harness.report.bench import Table as BenchTable
from fa_harness.report.bench import print_summary as print_bench_summary
from fa_harness.report.bisect import print_headings as print_bisect_headings
from fa_harness.report.bisect import print_row as print_bisect_row
from fa_harness.report.bisect import print_turns
from fa_harness.report.console import Table, print_changes, print_gate, print_summary
from fa_harness.report.fuzz import Ticker as FuzzTicker
from fa_harness.report.fuzz import print_found
from fa_harness.report.fuzz import print_summary as print_fuzz_summary
from fa_harness.report.mutants import Score
from fa_harness.report.mutants import Table as MutantTable
from fa_harness.report.mutants import print_summary as print_mutant_summary
from fa_harness.report.shrink import print_shrink_step, print_shrunk
from fa_harness.runner import Runner
from fa_harness.shrink import Failure, Shrunk, shrink
from fa_harness.speed import Row as SpeedRow
from fa_harness.suites import suite as cases_of_suite
from fa_harness.upstream import build
from fa_harness.upstream.series import MUTANTS, Series, library_names, load_series, title
from fa_harness.verdict import Verdict

_SIMPLER_SECONDS = 5.0
"""A case that is simpler than one that fails has this time; where that is not enough, it hangs."""


class EndedError(FaHarnessError):
    """Something ended a run before its last case.

    Attributes:
        cause: what.
        results: what ran until then.
    """

    exit_status = SetupError.exit_status

    def __init__(self, cause: Exception | SystemExit, results: Results) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.results = results


def select(
    *,
    suite: str | None = None,
    case_string: str | None = None,
    case_file: Path | None = None,
    segments: Sequence[int] = (),
    boundaries: str | None = None,
    regimes: Sequence[str] = (),
    threads: Sequence[int] = (),
    seed: int | None = None,
    segment_types: Sequence[str] = (),
    hot_window: int | None = None,
    group: int | None = None,
    cold_type: str | None = None,
    pattern: str | None = None,
) -> list[Case]:
    """Return the cases that a call asks for, each once.

    Args:
        suite: Name of a suite; `default` where no other source of cases is given.
        case_string: One case.
        case_file: A file with a case a line, also as `test-backend-ops` prints it. Empty lines, `#`
            comments and what that tool prints about other things are passed over.
        segments: Every case once with each of these.
        boundaries: Comma list of keys, or `random`, which goes with `segments`, too. A case that
            lists boundaries of its own keeps them, whatever is asked for.
        regimes: Every case once with each of these.
        threads: Every case once with each of these.
        seed: Instead of the cases' own.
        segment_types: Instead of the cases' own types.
        hot_window: Instead of the cases' own.
        group: Instead of the cases' own.
        cold_type: Instead of the cases' own.
        pattern: Regular expression that a case's string must match.

    Raises:
        UsageError: A name or a number is not one that can be, or nothing is selected.
    """
    given = [name for name in (suite, case_string, case_file) if name is not None]
    if len(given) > 1:
        raise UsageError("--suite, --case and --case-file exclude each other; give one")
    if boundaries not in (None, "random") and segments:
        raise UsageError("--segments and a list of --boundaries exclude each other; give one")
    if case_string is not None:
        cases = [Case.parse(case_string)]
    elif case_file is not None:
        cases = _read_cases(case_file)
    else:
        cases = cases_of_suite(suite or "default")

    given_once = {
        "seed": seed,
        "hot_window": hot_window,
        "group": group,
        "cold_type": cold_type,
    }
    changes: list[list[dict[str, Any]]] = [
        [{"regime": regime} for regime in regimes] or [{}],
        [{"threads": n} for n in threads] or [{}],
        [{key: value for key, value in given_once.items() if value is not None}],
    ]
    variants = [
        case.with_(**{key: value for change in combination for key, value in change.items()})
        for case in cases
        for combination in itertools.product(*changes)
    ]
    keys = _read_boundaries(boundaries)
    wanted = _regex(pattern or "").search
    selected: dict[Case, None] = {}
    for case, n in itertools.product(variants, segments or (None,)):
        try:
            cut = _cut(case, n, keys)
            if segment_types:  # the whole cache is then F32
                types = {"segment_types": tuple(segment_types), "type_K": "f32", "type_V": "f32"}
                cut = cut.with_(**types)
        except UsageError as error:
            if wanted(str(case)):
                raise UsageError(f"{case}: {error}") from error
            continue
        if wanted(str(cut)):
            selected[cut] = None
    if not selected:
        raise UsageError(
            f"no case is left of {len(variants)}: none matches -k {pattern!r}; --list shows them"
            if pattern
            else f"{case_file or 'the suite'} holds no case"
        )
    return list(selected)


def check_modes(names: Sequence[str], cases: Sequence[Case]) -> tuple[str, ...] | None:
    """Return the modes to compute, in their usual order; None where none is named.

    Raises:
        UsageError: There is no mode of that name, or it does not apply to a case.
    """
    for name in names:
        if name not in MODES:
            raise UsageError(f"mode {name!r} is unknown; there are {', '.join(MODES)}")
        for case in cases:
            option = missing_option(case, name)
            if option is not None:
                raise UsageError(f"--mode {name}: needs {option}, which {case} has not; give it")
    return tuple(mode for mode in MODES if mode in names) or None


def run(
    cases: Sequence[Case],
    *,
    library: str,
    options: Mapping[str, str] = {},
    modes: tuple[str, ...] | None,
    timeout: float | None,
    console: Console,
    verbose: bool,
) -> Results:
    """Run cases on a built library and print a line for each.

    Ctrl-C ends the run, not the report: what ran until then is returned.

    Raises:
        UsageError: There is no library of that name.
        SetupError: It is not built, not current, or does not load.
        EndedError: A disk is full, say, or nobody reads the table.
    """
    with _held_library(library, options) as found, Runner(found.module_path) as runner:
        return _run_on(
            runner,
            found,
            cases,
            options=options,
            modes=modes,
            timeout=timeout,
            console=console,
            verbose=verbose,
        )


def _run_on(
    runner: Runner,
    found: Library,
    cases: Sequence[Case],
    *,
    options: Mapping[str, str],
    modes: tuple[str, ...] | None,
    timeout: float | None,
    console: Console,
    verbose: bool,
) -> Results:
    """Run cases on a library and print a line for each, then the summary.

    Raises:
        EndedError: A disk is full, say, or nobody reads the table.
    """
    started, start = datetime.now(timezone.utc), time.perf_counter()
    verdicts: list[Verdict] = []

    def results(*, interrupted: bool) -> Results:
        return Results(
            tool_version=__version__,
            library=found.to_json(),
            features=runner.features,
            machine={"cpu": cpu_model(), "threads": usable_cores()},
            modes=modes or (),
            started=started,
            seconds=time.perf_counter() - start,
            verdicts=tuple(verdicts),
            selected=len(cases),
            interrupted=interrupted,
            options=options,
            upstream_dir=os.environ.get("UPSTREAM_DIR") or None,
        )

    interrupted = False
    ended: Exception | SystemExit | None = None
    so_far = results(interrupted=False)
    with Table(console, total=len(cases), verbose=verbose) as table:
        try:
            for verdict in runner.run(cases, modes=modes, timeout=timeout, with_outputs=verbose):
                verdicts.append(verdict)
                table.add(verdict, so_far.repro(verdict))
        except KeyboardInterrupt:
            interrupted = True
        except (Exception, SystemExit) as error:  # rich exits where a pipe is broken
            interrupted, ended = True, error
    final = results(interrupted=interrupted)
    if ended is None or isinstance(ended, FaHarnessError):
        print_summary(console, final)
    if ended is not None:
        raise EndedError(ended, final)
    return final


def run_gate(
    *,
    library: str,
    options: Mapping[str, str] = {},
    baseline_file: Path | None,
    update: bool,
    seed: int | None,
    threads: int | None,
    with_speed: bool,
    console: Console,
    verbose: bool,
) -> tuple[Results, Gate, tuple[Path, Baseline] | None]:
    """Run the gate's cases and speed rows, and compare them with a baseline.

    Args:
        library: Name of the library.
        options: CMake options that it was built with.
        baseline_file: Instead of the one of the upstream and the machine class.
        update: Make this run the baseline, if all of its cases pass.
        seed: Of all cases, instead of their own.
        threads: Of all cases, instead of their own.
        with_speed: Measure speed, too.
        console: What is printed on.
        verbose: Print repro lines of the cases that pass, too.

    Returns:
        The run, what the gate found in it, and with `update` the baseline to write and where, if
        all is well. Ctrl-C ends the run, not the report.

    Raises:
        UsageError: There is no library or baseline of that name, or it would become the usual
            baseline with unusual cases.
        SetupError: The library is not built, not current, or does not load; the baseline is broken
            or of a newer fa-harness.
    """
    if update and baseline_file is None and (seed is not None or threads is not None):
        raise UsageError(
            "--update-baseline: later runs without --seed and --threads compare with it; leave "
            "them out, or name another file with --baseline"
        )
    if baseline_file is not None and not update and not baseline_file.is_file():
        raise UsageError(
            f"--baseline {baseline_file}: there is no such file; --update-baseline makes it"
        )
    project = find_project()
    cases = select(suite="gate", seed=seed, threads=() if threads is None else (threads,))
    with _held_library(library, options) as found, Runner(found.module_path) as runner:
        class_ = baseline.machine_class(platform.machine(), runner.features)
        file = baseline_file or project.baselines / baseline.file_name(found.upstream, class_)
        before = _baseline(project, file)
        results = _run_on(
            runner,
            found,
            cases,
            options=options,
            modes=None,
            timeout=None,
            console=console,
            verbose=verbose,
        )
        made_with = _made_with(project, found, results, class_)
        sessions: list[list[SpeedRow]] = []
        ratios: list[Ratio] | str = "left out (--no-speed)"
        try:
            if not results.passed:
                ratios = "not measured, since not all cases pass"
            elif with_speed and update:
                sessions = [_measure_rows(found, seed=i) for i in range(baseline.SESSIONS)]
                ratios = "becomes the baseline"
            elif with_speed:
                ratios = _compare_speed(found, before)
        except KeyboardInterrupt:
            results = dataclasses.replace(results, interrupted=True)
            ratios = "interrupted"
    judged = gate.judge(
        results,
        made_with=made_with,
        seed=seed,
        threads=threads,
        baseline="becomes the baseline" if update else before,
        file=project.relative(file.resolve()),
        ratios=ratios,
    )
    print_gate(console, judged)
    new = None
    if update and judged.passed:
        cpu = results.machine["cpu"]
        new_speed = gate.speed_of(sessions, cpu=cpu) if sessions else None
        new = (
            file,
            gate.new_baseline(
                results, made_with=made_with, seed=seed, threads=threads, speed=new_speed
            ),
        )
    elif update:
        text = f"baseline {file}: is left as it was; mend what is wrong first"
        console.print(Text(text, style="bold red"), soft_wrap=True)
    return results, judged, new


def write_baseline(file: Path, new: Baseline, console: Console) -> None:
    """Replace a baseline and print what changed; without new speed the old one's stays.

    Raises:
        SetupError: It cannot be written; an older one is left as it was.
    """
    project = find_project()
    with locked(project):  # what changed is told against what is replaced, not what was read before
        old = _baseline(project, file)
        found = None if isinstance(old, str) else old
        if new.speed is None and found is not None:
            new = dataclasses.replace(new, speed=found.speed)
        with writing(file):
            file.parent.mkdir(exist_ok=True)
            _replace(file.resolve(), baseline.render(new))
    print_changes(console, project.relative(file.resolve()), gate.changes(found, new))


def _baseline(project: Project, file: Path) -> Baseline | str:
    """Return a baseline, or why there is none."""
    try:
        return baseline.load(file)
    except FileNotFoundError:
        return (
            f"there is no baseline {project.relative(file.resolve())}; "
            "fa-harness gate --update-baseline makes it"
        )


def _made_with(project: Project, library: Library, results: Results, class_: str) -> dict[str, Any]:
    """Return what a run was made with, as a baseline holds it."""
    series = load_series(project)
    digests = dict(zip(series.names, series.digests, strict=True))
    return {
        "tool": __version__,
        "library": library.name,
        "upstream": library.upstream,
        "ggml_version": library.ggml_version,
        "class": class_,
        "features": list(results.features),
        "cpu": results.machine["cpu"],
        "cores": results.machine["threads"],
        "series": {name: digests[name][:16] for name in library.series},
        "build": {
            **{key: library.build[key] for key in ("c_compiler", "cxx_compiler")},
            **library.build["flags"],
            **library.build["options"],
        },
    }


def _measure_rows(library: Library, *, seed: int) -> list[SpeedRow]:
    with progress.bar("measuring speed") as advance:
        rows = []
        for n, case in enumerate(speed.ROWS):
            advance(n, len(speed.ROWS))
            rows.append(speed.measure(library.module_path, case, seed=seed))
    return rows


def _compare_speed(library: Library, before: Baseline | str) -> list[Ratio] | str:
    """Measure the speed rows and compare them; those that look slower twice."""
    why_not = gate.speed_incomparable(before, cpu_model())
    if why_not is not None:
        return why_not
    assert isinstance(before, Baseline)
    assert before.speed is not None
    compared = []
    for row in _measure_rows(library, seed=0):
        history = before.speed.rows.get(str(row.case), {})
        ratios = gate.compare_speed(row, history, cores=usable_cores())
        if any(ratio.status == "regressed" for ratio in ratios):
            again = speed.measure(library.module_path, row.case, rounds=2 * speed.ROUNDS, seed=1)
            ratios = gate.confirmed(
                ratios, gate.compare_speed(again, history, cores=usable_cores())
            )
        compared += ratios
    return compared


@dataclass(frozen=True, kw_only=True)
class Smallest:
    """The smallest failing case that was found, and how it fails."""

    shrunk: Shrunk
    verdict: Verdict
    features: tuple[str, ...]
    """CPU features that the library uses here."""
    library: Library
    repro: str
    """The command that repeats it."""


def shrink_case(
    case: Case,
    *,
    library: str,
    options: Mapping[str, str] = {},
    modes: tuple[str, ...] | None,
    seconds: float,
    console: Console,
) -> Smallest:
    """Find the smallest case that fails on a library as a case does, and print each step to it.

    Ctrl-C ends the search; the smallest case so far is returned.

    Args:
        case: A case that fails, crashes or hangs.
        library: Name of the library.
        options: CMake options that it was built with.
        modes: What to compute; None for each case's own.
        seconds: After these, counted from the end of its own run, the smallest so far is returned.
        console: Where the steps go.

    Raises:
        UsageError: The case does not fail, or there is no library of that name.
        SetupError: It is not built, not current, or does not load.
    """
    found = current_library(library, options)
    with Runner(found.module_path) as runner:
        [verdict] = runner.run([case], modes=modes)
        verdicts = {case: verdict}
        end = time.monotonic() + seconds
        interrupted = False

        def fails(candidate: Case) -> Failure | None:
            nonlocal interrupted
            if any(missing_option(candidate, mode) for mode in modes or ()):
                return None
            if candidate not in verdicts:
                try:
                    [verdicts[candidate]] = runner.run(
                        [candidate], modes=modes, timeout=_SIMPLER_SECONDS
                    )
                except KeyboardInterrupt:
                    interrupted = True
                    return None
            return Failure.of(verdicts[candidate])

        shrunk = shrink(
            case,
            fails,
            out_of_time=lambda: interrupted or time.monotonic() > end,
            on_step=lambda step: print_shrink_step(console, step),
        )
        if shrunk is None:
            how = "passes" if verdict.status == "pass" else f"is {verdict.status}"
            reason = f" ({verdict.reason})" if verdict.reason else ""
            raise UsageError(f"{case} {how} on library {library!r}{reason}: nothing to shrink")
        print_shrunk(console, shrunk, verdicts[shrunk.case])
        return Smallest(
            shrunk=shrunk,
            verdict=verdicts[shrunk.case],
            features=runner.features,
            library=found,
            repro=repro(
                shrunk.case,
                library=library,
                options=options,
                modes=modes or (),
                upstream_dir=os.environ.get("UPSTREAM_DIR") or None,
            ),
        )


def c_program(smallest: Smallest) -> str:
    """Return a C program of the smallest case that needs ggml alone.

    Raises:
        UsageError: It cannot say how the case fails, or would be too large.
    """
    built = smallest.library
    return emit_c.program(
        smallest.verdict,
        library=f"library {built.name} of {built.upstream}, ggml {built.ggml_version}",
        features=smallest.features,
    )


def bisect_case(
    case: Case, *, may_build: bool, options: Mapping[str, str] = {}, console: Console
) -> Bisected:
    """Run a case on the library of each prefix of the series, and print each.

    Args:
        case: The case.
        may_build: Build the libraries that are missing or not current.
        options: CMake options that they are built with.
        console: Where the table goes.

    Raises:
        SetupError: One is missing and may not be built, does not build or does not load.
    """
    project = find_project()
    wanted = prefixes(load_series(project))
    if may_build:
        names = [prefix.library for prefix in wanted]
        libraries = build.build(project, names, options=options)
    else:
        libraries = [_built(prefix.library, options) for prefix in wanted]
    started, start = datetime.now(timezone.utc), time.perf_counter()
    rows = []
    print_bisect_headings(console)
    for prefix, library in zip(wanted, libraries, strict=True):
        with Runner(library.module_path) as runner:

            def run_modes(modes: tuple[str, ...] | None, runner: Runner = runner) -> Verdict:
                [verdict] = runner.run([case], modes=modes)
                return verdict

            rows.append(run_on(prefix, run_modes))
        print_bisect_row(console, rows[-1])
    bisected = Bisected(
        case=case,
        upstream=libraries[-1].upstream,
        started=started,
        seconds=time.perf_counter() - start,
        rows=tuple(rows),
    )
    print_turns(console, bisected)
    return bisected


def prefixes(series: Series) -> list[Prefix]:
    """Return the library of each prefix of a series; that of all patches is `patched`."""
    names = library_names(series)[1 : len(series.patches)]
    pristine = Prefix(library="pristine", patch="", title="upstream as it is")
    patches = zip([*names, "patched"], series.patches, strict=True)
    return [
        pristine,
        *(Prefix(library=name, patch=path.name, title=title(path)) for name, path in patches),
    ]


def _built(name: str, options: Mapping[str, str]) -> Library:
    try:
        return current_library(name, options)
    except SetupError as error:
        raise SetupError(f"{error}; or let `fa-harness bisect --build` do it") from error


def measure_speed(
    cases: Sequence[Case],
    *,
    library: str,
    baseline: str,
    options: Mapping[str, str] = {},
    rounds: int,
    console: Console,
) -> Bench:
    """Measure cases on two libraries in this process and print each.

    Ctrl-C ends the run, not the report: what was measured until then is returned.

    Raises:
        UsageError: There is no library of that name, or the one to measure has no state.
        SetupError: One is not built, not current, or does not load beside the other.
    """
    found, other = current_library(library, options), current_library(baseline, options)
    started, start = datetime.now(timezone.utc), time.perf_counter()
    loaded = ggml.load(found.module_path), ggml.load(other.module_path)
    rows: list[Row] = []
    interrupted = False
    with BenchTable(console, total=len(cases)) as table:
        try:
            for row in bench.run(*loaded, cases, rounds=rounds):
                rows.append(row)
                table.add(row)
        except KeyboardInterrupt:
            interrupted = True
    result = Bench(
        tool_version=__version__,
        library=found.to_json(),
        baseline=other.to_json(),
        machine={"cpu": cpu_model(), "threads": usable_cores()},
        started=started,
        seconds=time.perf_counter() - start,
        rounds=rounds,
        rows=tuple(rows),
        selected=len(cases),
        interrupted=interrupted,
    )
    print_bench_summary(console, result)
    return result


def find_failures(
    *,
    library: str,
    options: Mapping[str, str] = {},
    seconds: float,
    seed: int,
    max_cases: int | None,
    failures: Path | None,
    console: Console,
) -> Fuzz:
    """Run the failures of earlier runs and then cases drawn from a seed until the time is up.

    Ctrl-C ends the run, not the report.

    Args:
        library: Name of the library.
        options: CMake options that it was built with.
        seconds: When to stop.
        seed: What the cases are drawn from.
        max_cases: The most cases to draw.
        failures: The case file that has the earlier failures and gets the new ones; the project's
            own where it is None.
        console: Where progress and failures go.

    Raises:
        UsageError: There is no library of that name, or the file holds something else than cases.
        SetupError: The library is not built, not current, or does not load.
    """
    from fa_harness.strategies import draw_cases  # hypothesis takes its time to load

    project = find_project()
    found = current_library(library, options)
    upstream_dir = os.environ.get("UPSTREAM_DIR") or None
    if failures is None:
        failures = project.build / "fuzz" / "failures.txt"
    kept_in = project.relative(failures.resolve())
    started, start = datetime.now(timezone.utc), time.perf_counter()
    stored = _read_cases(failures) if failures.exists() else []
    with Runner(found.module_path) as runner, FuzzTicker(console) as ticker:

        def keep(failure: Found) -> None:
            with locked(project):
                _add_to_case_file(failures, failure.verdict)
            command = repro(
                failure.verdict.case,
                library=library,
                options=options,
                modes=(),
                upstream_dir=upstream_dir,
            )
            print_found(console, failure, command=command, kept_in=kept_in)

        fuzzer = Fuzzer(
            runner,
            seconds=seconds,
            on_verdict=lambda _: ticker.show(fuzzer.tally, len(fuzzer.found)),
            on_found=keep,
        )
        fuzzer.run(list(dict.fromkeys(stored)), itertools.islice(draw_cases(seed), max_cases))
    fuzz = Fuzz(
        tool_version=__version__,
        library=found.to_json(),
        machine={"cpu": cpu_model(), "threads": usable_cores()},
        seed=seed,
        started=started,
        seconds=time.perf_counter() - start,
        tally=fuzzer.tally,
        found=fuzzer.found,
        failures_file=kept_in,
        interrupted=fuzzer.interrupted,
        options=options,
        upstream_dir=upstream_dir,
    )
    print_fuzz_summary(console, fuzz)
    return fuzz


def _add_to_case_file(path: Path, verdict: Verdict) -> None:
    """Add a case, under a comment that says why it fails, unless the file has it."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        known = path.read_text(encoding="utf-8") if path.exists() else ""
    if verdict.case not in (_read_cases(path) if known else []):
        reason = " ".join(verdict.reason.split())
        end = "" if known.endswith("\n") or not known else "\n"
        write_report(path, f"{known}{end}# {verdict.status}: {reason}\n{verdict.case}\n")


def select_mutants(pattern: str | None) -> list[Mutant]:
    """Return the mutants that a call asks for.

    Args:
        pattern: Regular expression that a mutant's id must match.

    Raises:
        UsageError: None does, or it is no regular expression.
        SetupError: The list of mutants cannot be read.
    """
    every = mutants.load(find_project().mutants / "mutants.toml")
    selected = [mutant for mutant in every if _regex(pattern or "").search(mutant.id)]
    if not selected:
        raise UsageError(f"none of {len(every)} mutants matches -k {pattern!r}; --list shows them")
    return selected


def try_mutants(
    selected: Sequence[Mutant],
    suites: Sequence[str],
    *,
    console: Console,
    verbose: bool,
) -> Score:
    """Try mutants and print a line for each.

    Ctrl-C ends the run, not the report: what was found until then is returned.

    Args:
        selected: The mutants.
        suites: Suites whose cases are tried, one after the other.
        console: Where to print.
        verbose: Print of the killed ones, too, what they do and what the verdict said.

    Raises:
        UsageError: There is no suite of that name.
        SetupError: The library `mutants` is not built, not current, or does not load.
    """
    cases = {suite: cases_of_suite(suite) for suite in suites}
    found = current_library(MUTANTS, {})
    started, start = datetime.now(timezone.utc), time.perf_counter()
    outcomes: dict[str, Outcome] = {}
    with MutantTable(console, total=len(selected), verbose=verbose) as table:
        try:
            for outcome in mutants.run(found.module_path, selected, cases):
                outcomes[outcome.mutant.id] = outcome
                table.add(outcome)
        except KeyboardInterrupt:
            pass  # the report has fewer outcomes than mutants
    score = Score(
        tool_version=__version__,
        library=found.to_json(),
        machine={"cpu": cpu_model(), "threads": usable_cores()},
        started=started,
        seconds=time.perf_counter() - start,
        suites=tuple(suites),
        selected=tuple(selected),
        outcomes=tuple(outcomes[m.id] for m in selected if m.id in outcomes),
    )
    print_mutant_summary(console, score)
    return score


def try_library(library: Library) -> str | None:
    """Run a few small cases on a library; return why it died, or None."""
    try:
        with Runner(library.module_path) as runner:
            for verdict in runner.run(cases_of_suite("smoke")[:8], modes=("standard",)):
                if verdict.status in ("crash", "timeout"):
                    return f"{verdict.status} in {verdict.case}: {verdict.reason}"
    except SetupError as error:
        return str(error)
    return None


def check_writable(path: Path) -> None:
    """Find out before a run whether its report can be written.

    Raises:
        UsageError: It cannot.
    """
    if path.is_dir():
        raise UsageError(f"report {path}: is a folder; name a file")
    if _is_device(path):
        if not os.access(path, os.W_OK):
            raise UsageError(f"report {path}: cannot be written (no permission); name another file")
        return
    path = path.resolve()
    if not path.parent.is_dir():
        raise UsageError(f"report {path}: there is no folder {path.parent}; make it first")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UsageError(
            f"report {path}: cannot be written ({error.strerror}); name another file"
        ) from error


def report(kind: str, results: Results, judged: Gate | None = None) -> str:
    """Return a report: `json`, `junit`, `markdown`, `html`, or a job's `summary`."""
    return _REPORTS[kind](results, judged)


def write_report(path: Path, text: str, *, append: bool = False) -> None:
    """Write a report, into a file whole or not at all.

    Args:
        path: Where to; a device or a pipe stays one.
        text: The report.
        append: Add it to what is there.

    Raises:
        SetupError: It cannot be written; an older one is left as it was.
    """
    try:
        if append or _is_device(path):
            with path.open("a" if append else "w", encoding="utf-8") as file:
                file.write(text)
        else:
            _replace(path.resolve(), text)  # the file that a link leads to, not the link
    except OSError as error:
        raise SetupError(
            f"report {path}: cannot be written ({error.strerror}); make room or name another file"
        ) from error


_REPORTS: Mapping[str, Callable[[Results, Gate | None], str]] = {
    "json": json_report.render,
    "junit": junit_report.render,
    "markdown": markdown_report.render,
    "html": html_report.render,
    "summary": markdown_report.render,
}


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except BaseException:  # Ctrl-C, too
        temporary.unlink(missing_ok=True)
        raise


def _is_device(path: Path) -> bool:
    """Tell whether a path is a device or a pipe: something to write to, not to replace."""
    return path.exists() and not path.is_file()


def current_library(name: str, options: Mapping[str, str]) -> Library:
    """Return a library as it was built.

    Raises:
        UsageError: There is no library of that name.
        SetupError: It is not built, or not current.
    """
    project = find_project()
    library = build.find(project, name, options=options)
    _check_current(project, library, options)
    return library


@contextlib.contextmanager
def _held_library(name: str, options: Mapping[str, str]) -> Iterator[Library]:
    """Give a library whose files stay what they are while it runs, built anew or not.

    Raises:
        UsageError: There is no library of that name.
        SetupError: It is not built, or not current.
    """
    project = find_project()
    with held(build.find(project, name, options=options)) as library:
        _check_current(project, library, options)
        yield library


def _check_current(project: Project, library: Library, options: Mapping[str, str]) -> None:
    stale = build.is_stale(project, library, options=options)
    if stale:
        again = shlex.join(["fa-harness", "build", library.name, *defined(options)])
        raise SetupError(f"library {library.name!r} is not current: {stale}; run `{again}`")


def _cut(case: Case, segments: int | None, boundaries: tuple[int, ...] | str | None) -> Case:
    if isinstance(case.boundaries, tuple):
        return case
    if isinstance(boundaries, tuple):
        return case.with_(boundaries=boundaries, segments=len(boundaries) + 1)
    return case.with_(
        segments=case.segments if segments is None else segments,
        boundaries=case.boundaries if boundaries is None else "random",
    )


def _read_boundaries(text: str | None) -> tuple[int, ...] | str | None:
    if text in (None, "random"):
        return text
    try:
        return tuple(int(key) for key in str(text).split(","))
    except ValueError:
        raise UsageError(
            f"--boundaries {text!r} is neither a comma list of keys nor 'random'"
        ) from None


def _read_cases(path: Path) -> list[Case]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"case file {path}: cannot be read ({error})") from error
    cases = []
    for number, line in enumerate(lines, start=1):
        if not _is_beside_cases(line):
            try:
                cases.append(Case.parse(line))
            except UsageError as error:
                raise UsageError(f"{path}:{number}: {error}") from error
    return cases


_OF_UPSTREAMS_TOOL = re.compile(
    r"Testing \d+ devices|Backend \d+/\d+: .*|Device (description|memory): .*|Failing tests:"
    r"|Skipping .*|\d+/\d+ (tests|backends) passed|Backend [^ ]+: (OK|FAIL)|OK|FAIL"
)
"""Lines of `test-backend-ops` that are about no case."""
_CASE_OF_AN_OP = re.compile(r"(?:\[.*\] .*)?\b([A-Z][A-Z0-9_]*)\(.*\)(: .*)?")


def _is_beside_cases(line: str) -> bool:
    """Tell whether a line is empty, a comment, or the upstream tool's about something else.

    An op whose name is nearly that of flash attention is taken for a slip of the pen.
    """
    line = without_colours(line).strip()
    if not line or line.startswith("#") or _OF_UPSTREAMS_TOOL.fullmatch(line):
        return True
    op = _CASE_OF_AN_OP.fullmatch(line)
    return op is not None and not difflib.get_close_matches(op[1], [OP], cutoff=0.8)


def _regex(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(f"-k {pattern!r} is not a regular expression: {error}") from error
