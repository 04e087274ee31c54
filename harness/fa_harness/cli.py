"""The commands: parse, call, print. The modules that they call are imported when they run."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fa_harness import __version__
from fa_harness.errors import FaHarnessError, SetupError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH = 150
"""Columns of a table that goes to a pipe; on a terminal it is the terminal's."""


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


_define = click.option(
    "-D",
    "--define",
    "options",
    multiple=True,
    callback=_definitions,
    metavar="NAME=VALUE",
    help="The library built with this CMake option, such as GGML_OPENMP=ON; may be repeated.",
)


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
    help="Cases to run: seed, smoke, default, paths, reduction, mixed or fifo [default].",
)
@click.option(
    "--case", "case_string", metavar="STRING", help="Run one case, as a report prints it."
)
@click.option(
    "--case-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Run a case a line, or upstream's tool's output.",
)
@_words(
    "--mode",
    metavar="M",
    help="standard, full_state, segmented, merged, resumed, mixed; all that apply by default.",
)
@_words("--regime", metavar="R", help="Draw the inputs in this data regime.")
@_numbers("--threads", metavar="T", help="Compute with T threads.")
@click.option(
    "--library", default="patched", metavar="NAME", show_default=True, help="Which build."
)
@_define
@click.option("--seed", type=int, metavar="S", help="Draw the inputs from this seed.")
@_words(
    "--segment-types", metavar="T", help="Types of the segments' K/V for mode mixed: q4_0,q8_0/f16."
)
@click.option("--hot-window", type=int, metavar="N", help="Tokens in the hot window of mode fifo.")
@click.option("--group", type=int, metavar="N", help="Tokens that leave it together.")
@click.option("--cold-type", metavar="T", help="Type in which they are stored then.")
@click.option("--list", "list_only", is_flag=True, help="Print the selected cases, run none.")
@click.option("-k", "pattern", metavar="REGEX", help="Only cases whose string matches.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
              help="Give up on a case after this time.")  # fmt: skip
@click.option("--json", "json_path", metavar="FILE", help="Write the report; - is standard output.")
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
    json_path: str | None,
    verbose: bool,
) -> None:
    """Compare attention, in one call and over segments, with the oracle.

    A case is computed with one call (standard; full_state: with a state), with a call for each
    segment (segmented; resumed: each on a backend of its own, the state in a file in between;
    mixed: segments of different types) and with states of their own that are merged (merged).

    Options that may be repeated also take a comma list: --segments 1,2,7 runs every case three
    times. Cases that list boundaries of their own keep them.
    """
    from fa_harness import session
    from fa_harness.report import json as report

    cases = session.select(
        suite=suite,
        case_string=case_string,
        case_file=case_file,
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
    modes = session.check_modes(mode, cases)
    if json_path not in (None, "-"):
        session.check_writable(Path(json_path))
    console = _console(stderr=json_path == "-")
    results = session.run(
        cases,
        library=library,
        options=options,
        modes=modes,
        timeout=timeout,
        console=console,
        verbose=verbose,
    )
    _write_report(report.render(results), json_path)
    if not results.passed:
        sys.exit(1)


def _write_report(text: str, json_path: str | None) -> None:
    from fa_harness import session

    if json_path == "-":
        click.echo(text, nl=False)
    elif json_path is not None:
        session.write_report(Path(json_path), text)


@cli.command()
@click.option("-k", "pattern", metavar="REGEX", help="Only cases whose string matches.")
@_numbers("--threads", metavar="T", help="Compute with T threads [default: 1,2].")
@click.option("--rounds", type=click.IntRange(min=8), default=25, metavar="N", show_default=True,
              help="Time each way to compute a case N times.")  # fmt: skip
@click.option(
    "--library", default="patched", metavar="NAME", show_default=True, help="Which build."
)
@click.option("--baseline-library", "baseline", default="pristine", metavar="NAME",
              show_default=True, help="The build without the patches.")  # fmt: skip
@_define
@click.option("--list", "list_only", is_flag=True, help="Print the selected cases, measure none.")
@click.option("--json", "json_path", metavar="FILE", help="Write the report; - is standard output.")
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
    from fa_harness import session
    from fa_harness.bench import suite
    from fa_harness.report import bench as report

    cases = suite(threads or (1, 2), pattern)
    if list_only:
        for case in cases:
            click.echo(str(case))
        return
    if json_path not in (None, "-"):
        session.check_writable(Path(json_path))
    result = session.measure_speed(
        cases,
        library=library,
        baseline=baseline,
        options=options,
        rounds=rounds,
        console=_console(stderr=json_path == "-"),
    )
    _write_report(report.render(result), json_path)
    if not result.passed:
        sys.exit(1)


@cli.command()
@click.option("--suite", metavar="NAME", help="Try the cases of this suite only.")
@click.option("-k", "pattern", metavar="REGEX", help="Only mutants whose id matches.")
@click.option("--list", "list_only", is_flag=True, help="Print the selected mutants, try none.")
@click.option("--json", "json_path", metavar="FILE", help="Write the report; - is standard output.")
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
    from fa_harness import session
    from fa_harness.mutants import SUITES
    from fa_harness.report import mutants as report

    selected = session.select_mutants(pattern)
    if list_only:
        for mutant in selected:
            click.echo(f"{mutant.id:30}  {mutant.kind:8}  {mutant.does}")
        return
    if json_path not in (None, "-"):
        session.check_writable(Path(json_path))
    score = session.try_mutants(
        selected,
        (suite,) if suite else SUITES,
        console=_console(stderr=json_path == "-"),
        verbose=verbose,
    )
    _write_report(report.render(score), json_path)
    if not score.passed:
        sys.exit(1)


@cli.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@_define
@click.option("-v", "--verbose", is_flag=True, help="Print every command that is run.")
def build(*, names: tuple[str, ...], options: dict[str, str], verbose: bool) -> None:
    """Build libraries by name: pristine, 0001, ..., patched, mutants [default: patched].

    A library that is current is left alone. UPSTREAM_DIR=/path builds a checkout of your own
    instead of the pinned upstream.
    """
    from fa_harness.project import find_project
    from fa_harness.upstream.build import build as build_libraries

    project = find_project()
    names = names or ("patched",)
    for library in build_libraries(project, names, options=options, verbose=verbose):
        click.echo(f"{library.name}: {project.relative(library.path)}", err=True)


@cli.command()
@click.option("-v", "--verbose", is_flag=True, help="Print every command that is run.")
def vendor(*, verbose: bool) -> None:
    """Fetch the upstream sources and apply the patch series."""
    from fa_harness.project import find_project
    from fa_harness.upstream.build import vendor as fetch_and_apply

    project = find_project()
    tree = fetch_and_apply(project, verbose=verbose)
    click.echo(project.relative(tree.path), err=True)


@cli.command("test-backend-ops", context_settings={"ignore_unknown_options": True})
@click.option(
    "--library", default="patched", metavar="NAME", show_default=True, help="Which build."
)
@_define
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENTS]...")
def test_backend_ops(*, library: str, options: dict[str, str], arguments: tuple[str, ...]) -> None:
    """Build upstream's test-backend-ops from a library's sources and run it.

    The arguments are its own; without any it tests the flash-attention operators on the CPU:
    test -b CPU -o 'FLASH_ATTN_EXT.*'.
    """
    from fa_harness.project import find_project
    from fa_harness.upstream.build import build_test_backend_ops

    program = build_test_backend_ops(find_project(), library, options=options)
    arguments = arguments or ("test", "-b", "CPU", "-o", "FLASH_ATTN_EXT.*")
    sys.stdout.flush()
    os.execv(program, [str(program), *arguments])


@cli.command()
def doctor() -> None:
    """Show what a run would use on this machine, and what is wrong with it."""
    from fa_harness import doctor as doctor_module
    from fa_harness.project import find_project
    from fa_harness.session import try_library

    report = doctor_module.check(find_project(), try_library=try_library)
    styles = {"ok": "green", "note": "yellow", "problem": "red"}
    for finding in report.findings:
        mark = click.style(f"{finding.status:7}", fg=styles[finding.status])
        click.echo(f"{mark}  {finding.name:16}  {finding.value}")
    if report.problems:
        raise click.exceptions.Exit(3)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=stderr, highlight=False, width=_WIDTH)
    return console


if __name__ == "__main__":
    main()
