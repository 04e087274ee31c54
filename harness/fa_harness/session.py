"""What the commands do: choose cases, run them on a library, keep the report."""

from __future__ import annotations

import difflib
import itertools
import os
import re
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console

from fa_harness import __version__, bench, ggml, mutants
from fa_harness.bench import Bench, Row
from fa_harness.cases import OP, Case, without_colours
from fa_harness.errors import SetupError, UsageError
from fa_harness.library import Library
from fa_harness.machine import cpu_model, usable_cores
from fa_harness.modes import MODES, missing_option
from fa_harness.mutants import Mutant, Outcome
from fa_harness.project import find_project
from fa_harness.report import Results, defined
from fa_harness.report.bench import Table as BenchTable
from fa_harness.report.bench import print_summary as print_bench_summary
from fa_harness.report.console import Table, print_summary
from fa_harness.report.mutants import Score
from fa_harness.report.mutants import Table as MutantTable
from fa_harness.report.mutants import print_summary as print_mutant_summary
from fa_harness.runner import Runner
from fa_harness.suites import suite as cases_of_suite
from fa_harness.upstream import build
from fa_harness.upstream.series import MUTANTS
from fa_harness.verdict import Verdict


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
    """
    found = current_library(library, options)
    started, start = datetime.now(timezone.utc), time.perf_counter()
    verdicts: list[Verdict] = []

    def results(*, interrupted: bool, features: tuple[str, ...]) -> Results:
        return Results(
            tool_version=__version__,
            library=found.to_json(),
            features=features,
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
    with Runner(found.module_path) as runner:
        features = runner.features
        so_far = results(interrupted=False, features=features)
        with Table(console, total=len(cases), verbose=verbose) as table:
            try:
                for verdict in runner.run(
                    cases, modes=modes, timeout=timeout, with_outputs=verbose
                ):
                    verdicts.append(verdict)
                    table.add(verdict, so_far.repro(verdict))
            except KeyboardInterrupt:
                interrupted = True
    final = results(interrupted=interrupted, features=features)
    print_summary(console, final)
    return final


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


def write_report(path: Path, text: str) -> None:
    """Write a report, into a file whole or not at all.

    Raises:
        SetupError: It cannot be written; an older one is left as it was.
    """
    try:
        if _is_device(path):
            path.write_text(text, encoding="utf-8")
        else:
            _replace(path.resolve(), text)  # the file that a link leads to, not the link
    except OSError as error:
        raise SetupError(
            f"report {path}: cannot be written ({error.strerror}); make room or name another file"
        ) from error


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError:
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
    stale = build.is_stale(project, library, options=options)
    if stale:
        again = shlex.join(["fa-harness", "build", name, *defined(options)])
        raise SetupError(f"library {name!r} is not current: {stale}; run `{again}`")
    return library


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
