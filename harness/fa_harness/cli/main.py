"""The commands: parse, call, print. The modules that they call are imported when they run."""

from __future__ import annotations

import errno
import os
import random
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fa_harness import __version__
from fa_harness.cli.evidence_options import evidence, perplexity
from fa_harness.cli.series_options import series, upstream
from fa_harness.errors import FaHarnessError, SetupError, UsageError
from fa_harness.terminal import make_console, write_json

if TYPE_CHECKING:
    from fa_harness.report.results import Results
    from fa_harness.speed.gate import Gate


def main() -> None:
    """Run the command line; exits with the statuses that `fa-harness --help` lists."""
    # NumPy's BLAS must not keep threads spinning on the cores that ggml is measured on.
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cancelled job keeps its report
    try:
        cli.main(standalone_mode=False)
        if sys.stdout:  # it may be closed
            sys.stdout.flush()
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(UsageError.exit_status)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(FaHarnessError.exit_status)
    except FaHarnessError as error:
        click.echo(f"fa-harness: {error}", err=True)
        sys.exit(error.exit_status)
    except BrokenPipeError:
        _silence_stdout()
        sys.exit(FaHarnessError.exit_status)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO):
            raise
        _silence_stdout()
        click.echo(f"fa-harness: cannot write standard output ({error.strerror})", err=True)
        sys.exit(SetupError.exit_status)


def _silence_stdout() -> None:
    """Keep the interpreter from trying once more to write what cannot be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _List(click.ParamType[list[Any]]):
    """A comma list of values; the option may also be repeated."""

    name = "list"

    def __init__(self, read: Callable[[str], Any]) -> None:
        self._read = read

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[Any]:
        """Return the values between the commas."""
        try:
            return [self._read(item) for item in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r} is not a number or a list of numbers", param, ctx)


def _joined(
    ctx: click.Context, param: click.Parameter, values: tuple[list[Any], ...]
) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(item for value in values for item in value))


def _numbers(*names: str, help: str, metavar: str) -> Callable[[Any], Any]:  # noqa: A002
    return click.option(
        *names, type=_List(int), multiple=True, callback=_joined, metavar=metavar, help=help
    )


def _words(*names: str, help: str, metavar: str) -> Callable[[Any], Any]:  # noqa: A002
    return click.option(
        *names, type=_List(str), multiple=True, callback=_joined, metavar=metavar, help=help
    )


def _definitions(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    for value in values:
        if not value.partition("=")[0] or "=" not in value:
            raise click.BadParameter(f"{value!r} is not NAME=VALUE", ctx, param)
    return {name: text for name, _, text in (value.partition("=") for value in values)}


_PATH = click.Path(path_type=Path)
_SECONDS = click.FloatRange(min=0, min_open=True)

_library = click.option(
    "--library", default="patched", metavar="NAME", show_default=True, help="Which build."
)
_define = click.option(
    "-D",
    "--define",
    "options",
    multiple=True,
    callback=_definitions,
    metavar="NAME=VALUE",
    help="The library built with this CMake option, such as GGML_OPENMP=ON; may be repeated.",
)
_seed = click.option("--seed", type=int, metavar="S", help="Draw the inputs from this seed.")
_pattern = click.option("-k", "pattern", metavar="REGEX", help="Only cases whose string matches.")
_json = click.option(
    "--json", "json_path", metavar="FILE", help="Write the report; - is standard output."
)


def _reports(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each form of a run's report."""
    for kind, what in (
        ("html", "one page with tables and pictures"),
        ("markdown", "for the summary of a job"),
        ("junit", "XML that CI servers read"),
        ("json", "all numbers"),
    ):
        command = click.option(
            f"--{kind}", kind, metavar="FILE", help=f"Write a report, {what}; - is standard output."
        )(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="fa-harness")
def cli() -> None:
    """Carry, prove and guard ggml flash-attention patches.

    Exit status: 0 all passed; 1 a case failed, crashed, timed out or was mistrusted; 2 the call was
    wrong; 3 the environment is (no compiler, no library, no network for a first fetch, ...).
    """


@cli.command()
@_numbers("--segments", metavar="N", help="Cut the KV cache into N segments.")
@click.option("--boundaries", metavar="B1,B2,...|random", help="Cut it at these keys instead.")
@click.option(
    "--suite",
    metavar="NAME",
    help="Cases to run: seed, smoke, default, paths, reduction, mixed, fifo or gate [default].",
)
@click.option(
    "--case", "case_string", metavar="STRING", help="Run one case, as a report prints it."
)
@click.option(
    "--case-file",
    type=_PATH,
    metavar="FILE",
    help="Run a case a line, or upstream's tool's output.",
)
@click.option(
    "--captured",
    type=_PATH,
    metavar="FILE",
    help="Run a model's own attention, which `fa-harness capture` has stored.",
)
@_words(
    "--mode",
    metavar="M",
    help="standard, full_state, segmented, merged, resumed, mixed; all that apply by default.",
)
@_words("--regime", metavar="R", help="Draw the inputs in this data regime.")
@_numbers("--threads", metavar="T", help="Compute with T threads.")
@_library
@_define
@_seed
@_words(
    "--segment-types", metavar="T", help="Types of the segments' K/V for mode mixed: q4_0,q8_0/f16."
)
@click.option("--hot-window", type=int, metavar="N", help="Tokens in the hot window of mode fifo.")
@click.option("--group", type=int, metavar="N", help="Tokens that leave it together.")
@click.option("--cold-type", metavar="T", help="Type in which they are stored then.")
@click.option("--list", "list_only", is_flag=True, help="Print the selected cases, run none.")
@_pattern
@click.option("--timeout", type=_SECONDS, metavar="SECONDS",
              help="Give up on a case after this time.")  # fmt: skip
@_reports
@click.option(
    "-v", "--verbose", is_flag=True, help="Print repro lines and steps; keep all outputs in JSON."
)
def run(
    *,
    segments: tuple[int, ...],
    boundaries: str | None,
    suite: str | None,
    case_string: str | None,
    case_file: Path | None,
    captured: Path | None,
    mode: tuple[str, ...],
    regime: tuple[str, ...],
    threads: tuple[int, ...],
    library: str,
    options: dict[str, str],
    seed: int | None,
    segment_types: tuple[str, ...],
    hot_window: int | None,
    group: int | None,
    cold_type: str | None,
    list_only: bool,
    pattern: str | None,
    timeout: float | None,
    verbose: bool,
    **reports: str | None,
) -> None:
    """Compare attention, in one call and over segments, with the oracle.

    A case is computed with one call (standard; full_state: with a state), with a call for each
    segment (segmented; resumed: each on a backend of its own, the state in a file in between;
    mixed: segments of different types) and with states of their own that are merged (merged).

    Options that may be repeated also take a comma list: --segments 1,2,7 runs every case three
    times. Cases that list boundaries of their own keep them.
    """
    from fa_harness.case.selection import check_modes, select
    from fa_harness.cli.run import EndedError, run_cases

    cases = select(
        suite=suite,
        case_string=case_string,
        case_file=case_file,
        captured=captured,
        modes=mode,
        segments=segments,
        boundaries=boundaries,
        regimes=regime,
        threads=threads,
        seed=seed,
        segment_types=segment_types,
        hot_window=hot_window,
        group=group,
        cold_type=cold_type,
        pattern=pattern,
    )
    if list_only:
        for case in cases:
            click.echo(str(case))
        return
    modes = check_modes(mode, cases)
    _check_writable(reports)
    console = make_console(stderr="-" in reports.values())
    try:
        results = run_cases(
            cases,
            library=library,
            options=options,
            modes=modes,
            timeout=timeout,
            console=console,
            verbose=verbose,
        )
    except EndedError as end:
        _write_reports(reports, end.results)
        raise end.cause from None
    _write_reports(reports, results)
    if not results.passed:
        sys.exit(1)


@cli.command()
@click.option("--model", required=True, metavar="GGUF|NAME",
              help="The model; gemma-3-270m is fetched.")  # fmt: skip
@click.option("--accept-terms", is_flag=True, help="The terms of a model that is fetched.")
@click.option("--text", type=_PATH, metavar="FILE", help="What it reads [default: one of ours].")
@_numbers("--layers", metavar="N", help="Which [default: the first of each kind of mask].")
@click.option("--tokens", type=click.IntRange(min=1), default=640, metavar="N", show_default=True,
              help="It reads the first N tokens.")  # fmt: skip
@click.option("--ubatch", type=click.IntRange(min=1), metavar="N",
              help="N at a time; of the last ones the calls are kept [default: all].")  # fmt: skip
@click.option("--decode", type=click.IntRange(min=0), default=4, metavar="N", show_default=True,
              help="It goes on for N tokens; of the last the calls are kept, too.")  # fmt: skip
@click.option("--type-k", default="f16", metavar="T", show_default=True, help="Type of K's cache.")
@click.option("--type-v", default="f16", metavar="T", show_default=True, help="Type of V's cache.")
@click.option("--threads", type=click.IntRange(min=1), metavar="T", help="Compute with T threads.")
@click.option("--no-repack", is_flag=True, help="Leave the weights as they are; AMX is not used.")
@click.option("-o", "--out", type=_PATH, required=True, metavar="FILE", help="The capture, .npz.")
@click.option("-v", "--verbose", is_flag=True, help="Print every command that is run.")
def capture(
    *,
    model: str,
    accept_terms: bool,
    text: Path | None,
    layers: tuple[int, ...],
    tokens: int,
    ubatch: int | None,
    decode: int,
    type_k: str,
    type_v: str,
    threads: int | None,
    no_repack: bool,
    out: Path,
    verbose: bool,
) -> None:
    """Store a model's own attention, for `fa-harness run --captured`.

    The model reads a text through llama.cpp on the CPU. Of some layers the file gets Q, K, V, mask,
    sinks and the result: of the last batch of the prompt, and of a step after it.
    """
    from fa_harness.cli.capture import Request, capture_model
    from fa_harness.files import check_writable
    from fa_harness.machine import usable_cores
    from fa_harness.model.models import find_model, text_path
    from fa_harness.project import find_project

    check_writable(out)
    project = find_project()
    request = Request(
        model=find_model(project, model, accept_terms=accept_terms),
        text=text or text_path(),
        layers=layers,
        tokens=tokens,
        ubatch=ubatch or tokens,
        decode=decode,
        types=(type_k, type_v),
        threads=threads or usable_cores(),
        repack=not no_repack,
    )
    capture_model(project, request, out, console=make_console(stderr=False), verbose=verbose)


@cli.command()
@_library
@_define
@click.option("--baseline", "baseline_file", type=_PATH, metavar="FILE",
              help="Compare with this one [default: baselines/UPSTREAM.CLASS.json].")  # fmt: skip
@click.option("--update-baseline", "update", is_flag=True, help="Make this run the baseline.")
@_seed
@click.option("--threads", type=int, metavar="T", help="Compute the cases with T threads.")
@click.option("--no-speed", is_flag=True, help="Leave the speed rows out.")
@_reports
@click.option("-v", "--verbose", is_flag=True, help="Print every case's repro line.")
def gate(
    *,
    library: str,
    options: dict[str, str],
    baseline_file: Path | None,
    update: bool,
    seed: int | None,
    threads: int | None,
    no_speed: bool,
    verbose: bool,
    **reports: str | None,
) -> None:
    """Stop a patch that is wrong, less exact or slower than the baseline.

    Runs the suite gate and some speed rows, and compares them with the baseline of the same
    upstream and machine class. What cannot be compared is skipped, with a reason. Exit status 1: a
    case does not pass; a case or a comparison of the baseline is gone; an error grew by more than
    its margin; bits that were the same no longer are; a ratio of times got worse.

    In a job of GitHub Actions what is wrong is annotated, too, and the summary written.
    """
    from fa_harness.cli.gate import run_gate, write_baseline
    from fa_harness.cli.run import EndedError

    _check_writable(reports)
    to_stderr = "-" in reports.values()
    console = make_console(stderr=to_stderr)
    try:
        results, judged, new_baseline = run_gate(
            library=library,
            options=options,
            baseline_file=baseline_file,
            update=update,
            seed=seed,
            threads=threads,
            with_speed=not no_speed,
            console=console,
            verbose=verbose,
        )
    except EndedError as end:
        _write_reports(reports, end.results)
        raise end.cause from None
    if os.environ.get("GITHUB_ACTIONS") == "true":
        from fa_harness.report.annotations import render

        click.echo(render(results, judged), nl=False, err=to_stderr)
        reports["summary"] = os.environ.get("GITHUB_STEP_SUMMARY") or None
    _write_reports(reports, results, judged)
    if new_baseline is not None:
        write_baseline(*new_baseline, console)
    if not judged.passed:
        sys.exit(1)


def _check_writable(reports: Mapping[str, str | None]) -> None:
    """Find out before a run whether its reports can be written."""
    from fa_harness.files import check_writable

    if list(reports.values()).count("-") > 1:
        raise UsageError("only one report can go to standard output; name files for the others")
    if "-" in reports.values() and sys.stdout is None:
        raise UsageError("report -: standard output is closed; name a file")
    for path in reports.values():
        if path not in (None, "-"):
            check_writable(Path(path))


def _write_reports(
    reports: Mapping[str, str | None], results: Results, gate: Gate | None = None
) -> None:
    """Write each report that was asked for; one that cannot be written keeps no other back."""
    from fa_harness.files import write_report
    from fa_harness.report.forms import render

    failures = []
    for kind, path in reports.items():
        if path is None:
            continue
        text = render(kind, results, gate)
        try:
            if path == "-":
                click.echo(text, nl=False)
            else:
                write_report(Path(path), text, append=kind == "summary")
        except SetupError as error:
            failures.append(error)
    if failures:
        raise failures[0]


@cli.command()
@click.option("--case", "case_string", required=True, metavar="STRING",
              help="A failing case, as a report prints it.")  # fmt: skip
@_words("--mode", metavar="M", help="Compute it in these modes only.")
@_library
@_define
@click.option("--seconds", type=_SECONDS, default=60.0,
              metavar="S", show_default=True, help="Stop after this time.")  # fmt: skip
@click.option("--emit-c", "c_file", type=_PATH, metavar="FILE",
              help="Write a C program of it that needs ggml alone.")  # fmt: skip
def shrink(
    *,
    case_string: str,
    mode: tuple[str, ...],
    library: str,
    options: dict[str, str],
    seconds: float,
    c_file: Path | None,
) -> None:
    """Find the smallest case that fails as a case does, and print it.

    Exit status 1: it was found; 2: the case does not fail.
    """
    from fa_harness.case.case import Case
    from fa_harness.case.selection import check_modes
    from fa_harness.cli.shrink import c_program, shrink_case
    from fa_harness.files import check_writable, write_report

    case = Case.parse(case_string)
    modes = check_modes(mode, [case])
    if c_file is not None:
        check_writable(c_file)
    smallest = shrink_case(
        case,
        library=library,
        options=options,
        modes=modes,
        seconds=seconds,
        console=make_console(stderr=True),
    )
    click.echo(str(smallest.shrunk.case))
    click.echo(smallest.repro)
    if c_file is not None:
        write_report(c_file, c_program(smallest))
    sys.exit(1)


@cli.command()
@click.option("--case", "case_string", required=True, metavar="STRING",
              help="A case, as a report prints it.")  # fmt: skip
@click.option("--build", "may_build", is_flag=True, help="Build the libraries that are missing.")
@_define
@_json
def bisect(
    *, case_string: str, may_build: bool, options: dict[str, str], json_path: str | None
) -> None:
    """Show which patch of the series turned a case red or green.

    It runs on the library of each prefix: pristine, 0001, 0002, ..., patched, in the modes that
    each has. Exit status 1: it fails on the last.
    """
    from fa_harness.case.case import Case
    from fa_harness.cli.bisect import bisect_case
    from fa_harness.report.bisect import render

    case = Case.parse(case_string)
    _check_writable({"json": json_path})
    bisected = bisect_case(
        case, may_build=may_build, options=options, console=make_console(stderr=json_path == "-")
    )
    write_json(render(bisected), json_path)
    if not bisected.passed:
        sys.exit(1)


@cli.command()
@_pattern
@_numbers("--threads", metavar="T", help="Compute with T threads [default: 1,2].")
@click.option("--rounds", type=click.IntRange(min=8), default=25, metavar="N", show_default=True,
              help="Time each way to compute a case N times.")  # fmt: skip
@_library
@click.option("--baseline-library", "baseline", default="pristine", metavar="NAME",
              show_default=True, help="The build without the patches.")  # fmt: skip
@_define
@click.option("--list", "list_only", is_flag=True, help="Print the selected cases, measure none.")
@_json
def bench(
    *,
    pattern: str | None,
    threads: tuple[int, ...],
    rounds: int,
    library: str,
    baseline: str,
    options: dict[str, str],
    list_only: bool,
    json_path: str | None,
) -> None:
    """Measure what the state costs, as ratios of times taken in one process.

    Exit status 1: a ratio is over its limit, or every row is too noisy to tell. A machine that does
    something else meanwhile makes noise.
    """
    from fa_harness.cli.bench import measure_speed
    from fa_harness.report.bench import render
    from fa_harness.speed.bench import suite

    cases = suite(threads or (1, 2), pattern)
    if list_only:
        for case in cases:
            click.echo(str(case))
        return
    _check_writable({"json": json_path})
    result = measure_speed(
        cases,
        library=library,
        baseline=baseline,
        options=options,
        rounds=rounds,
        console=make_console(stderr=json_path == "-"),
    )
    write_json(render(result), json_path)
    if not result.passed:
        sys.exit(1)


@cli.command()
@click.option("--seconds", type=_SECONDS, default=60.0,
              metavar="S", show_default=True, help="Draw cases for this time.")  # fmt: skip
@click.option("--max-cases", type=click.IntRange(min=1), metavar="N",
              help="Draw N cases at most.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), metavar="S",
              help="Draw the same cases as another run [default: new ones each time].")  # fmt: skip
@_library
@_define
@click.option("--failures", type=_PATH, metavar="FILE",
              help="Keep failures there, and run them first [default: build/fuzz/failures.txt]."
              )  # fmt: skip
@_json
def fuzz(
    *,
    seconds: float,
    max_cases: int | None,
    seed: int | None,
    library: str,
    options: dict[str, str],
    failures: Path | None,
    json_path: str | None,
) -> None:
    """Run cases of all kinds at random; shrink and keep those that fail.

    Failures that were kept run first. They are an ordinary case file: one that is named by
    --failures may be committed, and `fa-harness run --case-file` takes it.
    """
    from fa_harness.cli.fuzz import find_failures
    from fa_harness.files import check_writable
    from fa_harness.report.fuzz import render

    for path in (failures, None if json_path in (None, "-") else Path(str(json_path))):
        if path is not None:
            check_writable(path)
    result = find_failures(
        library=library,
        options=options,
        seconds=seconds,
        seed=random.randrange(2**32) if seed is None else seed,
        max_cases=max_cases,
        failures=failures,
        console=make_console(stderr=json_path == "-"),
    )
    write_json(render(result), json_path)
    if not result.passed:
        sys.exit(1)


@cli.command()
@click.option("--suite", metavar="NAME", help="Try the cases of this suite only.")
@click.option("-k", "pattern", metavar="REGEX", help="Only mutants whose id matches.")
@click.option("--list", "list_only", is_flag=True, help="Print the selected mutants, try none.")
@_json
@click.option("-v", "--verbose", is_flag=True, help="Print what each mutant does and what told.")
def mutants(
    *,
    suite: str | None,
    pattern: str | None,
    list_only: bool,
    json_path: str | None,
    verbose: bool,
) -> None:
    """Put faults into the kernel and see whether the cases notice.

    Each mutant of the library `mutants` runs the cases of suite smoke, then more, until one fails;
    an impostor, which computes nothing, has to fail in all of them. Exit status 1: a mutant
    survived, or was never computed with.
    """
    from fa_harness.cli.mutants import select_mutants, try_mutants
    from fa_harness.files import check_writable
    from fa_harness.hunt.mutants import SUITES
    from fa_harness.report.mutants import render

    selected = select_mutants(pattern)
    if list_only:
        for mutant in selected:
            click.echo(f"{mutant.id:30}  {mutant.kind:8}  {mutant.does}")
        return
    if json_path not in (None, "-"):
        check_writable(Path(json_path))
    score = try_mutants(
        selected,
        (suite,) if suite else SUITES,
        console=make_console(stderr=json_path == "-"),
        verbose=verbose,
    )
    write_json(render(score), json_path)
    if not score.passed:
        sys.exit(1)


@cli.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@_define
@click.option("-v", "--verbose", is_flag=True, help="Print every command that is run.")
def build(*, names: tuple[str, ...], options: dict[str, str], verbose: bool) -> None:
    """Build libraries by name [default: patched].

    pristine, 0001, 0002, ..., patched; mutants; asan, ubsan, tsan.

    A library that is current is left alone. UPSTREAM_DIR=/path builds a checkout of your own
    instead of the pinned upstream, UPSTREAM=NAME another pin.
    """
    from fa_harness.build.builder import build as build_libraries
    from fa_harness.project import find_project

    project = find_project()
    names = names or ("patched",)
    for library in build_libraries(project, names, options=options, verbose=verbose):
        click.echo(f"{library.name}: {project.relative(library.path)}", err=True)


@cli.command()
@click.option("-v", "--verbose", is_flag=True, help="Print every command that is run.")
def vendor(*, verbose: bool) -> None:
    """Fetch the upstream sources and apply the patch series."""
    from fa_harness.build.builder import vendor as fetch_and_apply
    from fa_harness.project import find_project

    project = find_project()
    tree = fetch_and_apply(project, verbose=verbose)
    click.echo(project.relative(tree.path), err=True)


@cli.command("test-backend-ops", context_settings={"ignore_unknown_options": True})
@_library
@_define
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENTS]...")
def test_backend_ops(*, library: str, options: dict[str, str], arguments: tuple[str, ...]) -> None:
    """Build upstream's test-backend-ops from a library's sources and run it.

    The arguments are its own; without any it tests the flash-attention operators on the CPU:
    test -b CPU -o 'FLASH_ATTN_EXT.*'.
    """
    from fa_harness.build.builder import build_test_backend_ops
    from fa_harness.project import find_project

    program = build_test_backend_ops(find_project(), library, options=options)
    arguments = arguments or ("test", "-b", "CPU", "-o", "FLASH_ATTN_EXT.*")
    sys.stdout.flush()
    os.execv(program, [str(program), *arguments])


@cli.command()
def doctor() -> None:
    """Show what a run would use on this machine, and what is wrong with it."""
    from fa_harness.cli.doctor import try_library
    from fa_harness.doctor import check
    from fa_harness.project import find_project

    report = check(find_project(), try_library=try_library)
    styles = {"ok": "green", "note": "yellow", "problem": "red"}
    for finding in report.findings:
        mark = click.style(f"{finding.status:7}", fg=styles[finding.status])
        click.echo(f"{mark}  {finding.name:16}  {finding.value}")
    if report.problems:
        raise click.exceptions.Exit(3)


cli.add_command(evidence)
cli.add_command(perplexity)
cli.add_command(series)
cli.add_command(upstream)


if __name__ == "__main__":
    main()
