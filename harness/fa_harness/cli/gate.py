"""`gate`: a run and speed rows against a baseline, and a new baseline."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from fa_harness import terminal
from fa_harness.build.library import Library
from fa_harness.build.named import held_library
from fa_harness.case.case import Case
from fa_harness.case.label import label
from fa_harness.case.selection import Selection, select
from fa_harness.cli import options
from fa_harness.cli.coverage import run_covered
from fa_harness.cli.options import How, Reports
from fa_harness.cli.run import run_with
from fa_harness.engine.runner import Runner
from fa_harness.engine.session import Results
from fa_harness.errors import UsageError
from fa_harness.files import replace_file
from fa_harness.machine import cpu_model, usable_cores
from fa_harness.project import Project, find_project, locked, writing
from fa_harness.report.annotations import render as annotate
from fa_harness.series.series import series_for
from fa_harness.speed import baseline, gate
from fa_harness.speed import rows as speed
from fa_harness.speed.baseline import Baseline, NoBaseline
from fa_harness.speed.gate import KINDS, Gate, Ratio
from fa_harness.speed.rows import SpeedRow
from fa_harness.terminal import make_console, number_of, say
from fa_harness.upstream.source import find_source

_STYLE = {"ok": "green", "regressed": "bold red", "skipped": "yellow"}
"""Of a check, by its status."""
_BECOMES_THE_BASELINE = NoBaseline(
    reason="becomes the baseline", text="this run becomes the baseline, so it is compared with none"
)

_how = options.as_record(
    How,
    "how",
    options.library,
    options.define,
    options.no_series,
    click.option("-v", "--verbose", is_flag=True, help="Print the repro line of each case."),
)


@click.command("gate")
@_how
@options.file(
    "--baseline", "baseline_file", text="Baseline file.  [default: baselines/UPSTREAM.CLASS.json]"
)
@click.option("--update-baseline", "update", is_flag=True, help="Make this run the new baseline.")
@options.seed
@click.option("--threads", type=int, metavar="T", help="Number of threads.")
@options.coverage
@click.option("--no-speed", is_flag=True, help="Skip the speed rows.")
@click.option("--strict", is_flag=True, help="Exit 1 if anything could not be checked.")
@options.reports
def command(
    *,
    how: How,
    baseline_file: Path | None,
    update: bool,
    seed: int | None,
    threads: int | None,
    with_coverage: bool,
    no_speed: bool,
    strict: bool,
    reports: Reports,
) -> bool:
    """Reject a patch that is wrong, less accurate or slower than the baseline.

    The gate runs the suite gate and a few speed rows, and compares them with the baseline of this
    upstream and machine class. Checks that cannot be made are skipped, with a reason, and the
    verdict counts them. In a GitHub Actions job it also writes annotations and a job summary.

    --coverage runs the cases on a library that counts its branches, and names those of the kernel
    that no case takes. It compares nothing with the baseline and measures no time.

    \b
    Exit code 1 means that
      a case does not pass,
      a case or a comparison in the baseline is missing,
      an error grew by more than its margin,
      results that were bit-identical no longer are,
      a ratio of times got worse, or
      with --strict, something was not checked, or not reached (--coverage).
    """
    reports.check()
    if with_coverage:
        _check_coverage(baseline_file, update=update)
        of_gate = Selection(suite="gate", seed=seed, threads=() if threads is None else (threads,))
        return run_covered(select(of_gate), how, None, reports, strict=strict)
    has_own_inputs = seed is not None or threads is not None
    _check_call(baseline_file, update=update, has_own_inputs=has_own_inputs, strict=strict)
    project = find_project()
    if update:
        where = baseline_file.absolute() if baseline_file is not None else project.baselines
        project.refuse_to_change_shipped(where, "gate --update-baseline")
    console = make_console(stderr=reports.to_stdout)
    of_threads = () if threads is None else (threads,)
    cases = select(Selection(suite="gate", seed=seed, threads=of_threads))
    measured: list[SpeedRow] = []
    ratios: list[Ratio] | str = "left out (--no-speed)"
    with held_library(how.library, how.options) as found, Runner(found.module_path) as runner:
        class_ = baseline.machine_class(platform.machine(), runner.features)
        file = baseline_file or project.baselines / baseline.file_name(found.upstream, class_)
        shown = project.relative(file.resolve())
        before = _baseline(file) or baseline.missing(shown, upstream=found.upstream, class_=class_)
        if isinstance(before, NoBaseline) and not update:
            say(console, before.text, "bold yellow")
        results = run_with(runner, found, cases, how, None, console, write=reports.write)
        made_with = what_made(project, found, results, class_)
        try:
            if not results.passed:
                ratios = "not measured, since not all cases pass"
            elif not no_speed and update:
                measured = _measure_speed(found, speed.ROWS, processes=2 * speed.PROCESSES)
                ratios = "becomes the baseline"
            elif not no_speed:
                ratios = _compare_speed(found, before)
        except KeyboardInterrupt:
            results = dataclasses.replace(results, interrupted=True)
            ratios = "interrupted"
    setting: dict[str, Any] = {"made_with": made_with, "seed": seed, "threads": threads}
    judged = gate.judge(
        results,
        **setting,
        baseline=_BECOMES_THE_BASELINE if update else before,
        file=shown,
        ratios=ratios,
        strict=strict,
    )
    _print(console, judged)
    if update and not judged.passed:
        text = f"baseline {file}: is left as it was; mend what is wrong first"
        say(console, text, "bold red")
    if os.environ.get("GITHUB_ACTIONS") == "true":
        click.echo(annotate(results, judged), nl=False, err=reports.to_stdout)
        summary = os.environ.get("GITHUB_STEP_SUMMARY") or None
        reports = dataclasses.replace(reports, summary=summary)
    reports.write(results, judged)
    if update and judged.passed:
        new_speed = gate.speed_of(measured, cpu=results.machine["cpu"]) if measured else None
        new = gate.new_baseline(results, **setting, speed=new_speed)
        _write_baseline(project, file, new, console)
    return judged.passed


def _check_coverage(baseline_file: Path | None, *, update: bool) -> None:
    if baseline_file is not None or update:
        name = "--update-baseline" if update else "--baseline"
        raise UsageError(
            f"--coverage compares with no baseline, and makes none; leave it or {name} out"
        )


def _check_call(
    baseline_file: Path | None, *, update: bool, has_own_inputs: bool, strict: bool
) -> None:
    if update and baseline_file is None and has_own_inputs:
        raise UsageError(
            "--update-baseline: later runs without --seed and --threads compare with it; leave "
            "them out, or name another file with --baseline"
        )
    if update and strict:
        raise UsageError(
            "--strict: a run that becomes the baseline is compared with none; leave "
            "--update-baseline or --strict out"
        )
    if baseline_file is not None and not update and not os.path.isfile(baseline_file):
        raise UsageError(
            f"--baseline {baseline_file}: there is no such file; --update-baseline makes it"
        )


def _write_baseline(project: Project, file: Path, new: Baseline, console: Console) -> None:
    """Replace a baseline and print what changed; without new speed the old one's stays."""
    # what changed is told against what is replaced, not what was read before
    with locked(project, file.name):
        found = _baseline(file)
        if new.speed is None and found is not None:
            new = dataclasses.replace(new, speed=found.speed)
        with writing(file):
            file.parent.mkdir(exist_ok=True)
            replace_file(file.resolve(), baseline.render(new))
    changes = gate.changes(found, new)
    for change in changes:
        say(console, f"  {change}")
    what = number_of(len(changes), "change") if changes else "nothing changed"
    say(console, f"baseline {project.relative(file.resolve())}: written, {what}", "bold")


def _baseline(file: Path) -> Baseline | None:
    """Return a baseline, or None where there is no such file."""
    try:
        return baseline.load(file)
    except FileNotFoundError:
        return None


def what_made(project: Project, library: Library, results: Results, class_: str) -> dict[str, Any]:
    """Return what a run was made with, as a baseline holds it."""
    # a library of the same patches under older names is current, too
    series = series_for(project, find_source(project)).first(len(library.series))
    return {
        "tool": results.tool_version,
        "library": library.name,
        "upstream": library.upstream,
        "ggml_version": library.ggml_version,
        "class": class_,
        "features": list(results.features),
        "cpu": results.machine["cpu"],
        "cores": results.machine["threads"],
        "series": {
            name: digest[:16] for name, digest in zip(series.names, series.digests, strict=True)
        },
        "build": {
            **{key: library.build[key] for key in ("c_compiler", "cxx_compiler")},
            **library.build["flags"],
            **library.build["options"],
        },
    }


def _measure_speed(
    library: Library, cases: Sequence[Case], *, processes: int = speed.PROCESSES, seed: int = 0
) -> list[SpeedRow]:
    with terminal.bar("measuring speed") as advance:
        return speed.measure(
            library.module_path, cases, processes=processes, seed=seed, advance=advance
        )


def _compare_speed(library: Library, before: Baseline | NoBaseline) -> list[Ratio] | str:
    """Measure the speed rows and compare them; those that look slower twice."""
    why_not = gate.speed_incomparable(before, cpu_model())
    if why_not is not None:
        return why_not
    assert isinstance(before, Baseline)
    assert before.speed is not None
    history = before.speed.rows

    def compare(row: SpeedRow) -> list[Ratio]:
        return gate.compare_speed(row, history.get(str(row.case), {}), cores=usable_cores())

    compared = {row.case: compare(row) for row in _measure_speed(library, speed.ROWS)}
    slower = [
        case for case, found in compared.items() if any(r.status == "regressed" for r in found)
    ]
    if slower:
        more = {"processes": 2 * speed.PROCESSES, "seed": speed.PROCESSES}
        for row in _measure_speed(library, slower, **more):
            compared[row.case] = gate.confirmed(compared[row.case], compare(row))
    return [ratio for ratios in compared.values() for ratio in ratios]


def _print(console: Console, gate: Gate) -> None:
    """Print what stops the patch, then each check, then the verdict."""
    if gate.without_baseline:
        say(console, gate.without_baseline, "bold yellow")
    for finding in gate.findings:
        if finding.kind != "failed":  # those have their lines above
            kind, name = KINDS[finding.kind], label(Case.parse(finding.case))
            say(console, f"{kind}: {name}", "bold red")
            say(console, f"    {finding.text}", "red")
            say(console, f"    {finding.repro}", "dim")
    for check in gate.checks:
        line = Text(f"  {check.status:9}  {check.name:15}  {check.reason}")
        line.stylize(_STYLE[check.status], 2, 11)
        say(console, line)
    for note in gate.notes:
        say(console, f"  note       {note}", "dim")
    style = "red" if not gate.passed else "yellow" if gate.is_mostly_unchecked else "green"
    text = Text(f"gate: {gate.verdict}", style=f"bold {style}")
    of_baseline = "no baseline" if gate.without_baseline else f"baseline {gate.baseline}"
    text.append(f" | {of_baseline}", style="not bold default")
    say(console, text)
