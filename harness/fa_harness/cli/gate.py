"""`gate`: a run and speed rows against a baseline, and a new baseline."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from fa_harness.build.library import Library
from fa_harness.build.named import held_library
from fa_harness.build.names import find_name
from fa_harness.case.case import Case
from fa_harness.case.label import label
from fa_harness.case.selection import Selection, chosen, select
from fa_harness.cli import options
from fa_harness.cli.coverage import run_covered
from fa_harness.cli.options import How, Reports
from fa_harness.cli.run import run_with
from fa_harness.engine.runner import Runner
from fa_harness.engine.session import Results
from fa_harness.errors import SetupError, UsageError
from fa_harness.files import replace_file
from fa_harness.project import Project, find_project, locked, writing
from fa_harness.report.annotations import render as annotate
from fa_harness.series.series import series_for
from fa_harness.speed import baseline, gate, instructions, renewal
from fa_harness.speed.against import Sides
from fa_harness.speed.baseline import Baseline, NoBaseline
from fa_harness.speed.gate import KINDS, Gate, Measured
from fa_harness.speed.rows import SpeedRow
from fa_harness.stacks import Accepted, accepted_by
from fa_harness.terminal import make_console, number_of, say
from fa_harness.upstream.source import find_source

_STYLE = {"ok": "green", "regressed": "bold red", "skipped": "yellow"}
"""Of a check, by its status."""
_REDRAWS = 10
"""With --seed, further seeds for a case whose numbers could show no fault, at most."""
_NOT_ALL_PASS = "not measured, since not all cases pass"
_BECOMES_THE_BASELINE = NoBaseline(
    reason="becomes the baseline", text="this run becomes the baseline, so it is compared with none"
)

_how = options.as_record(
    How,
    "how",
    options.library,
    options.define,
    options.no_series,
    options.exit_first,
    click.option("-v", "--verbose", is_flag=True, help="Print the repro line of each case."),
)


def _shard(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"([1-9][0-9]*)/([1-9][0-9]*)", text)
    if found is None or int(found[1]) > int(found[2]):
        raise click.BadParameter(f"{text!r} is not I/N, a part and the number of parts, as 1/4")
    return int(found[1]), int(found[2])


@click.command("gate")
@_how
@options.file(
    "--baseline",
    "baseline_file",
    text="Baseline file.  [default: baselines/STACK/UPSTREAM.CLASS.json]",
)
@click.option("--update-baseline", "update", is_flag=True, help="Make this run the new baseline.")
@options.seed
@click.option("--threads", type=int, metavar="T", help="Number of threads.")
@options.coverage
@options.pattern
@click.option(
    "--shard", metavar="I/N", callback=_shard, help="Check only part I of N, counted from 1."
)
@click.option(
    "--against",
    default="pristine",
    metavar="NAME",
    help="Library that one call is compared with.  [default: pristine]",
)
@click.option("--no-speed", is_flag=True, help="Skip the speed rows and the instruction counts.")
@click.option("--strict", is_flag=True, help="Exit 1 if anything could not be checked.")
@options.reports
def command(
    *,
    how: How,
    baseline_file: Path | None,
    update: bool,
    seed: int | None,
    threads: int | None,
    pattern: str | None,
    shard: tuple[int, int] | None,
    against: str,
    with_coverage: bool,
    no_speed: bool,
    strict: bool,
    reports: Reports,
) -> bool:
    """Reject a patch that is wrong, less accurate or slower than the baseline.

    The gate runs the suite gate and a few speed rows, and compares them with the baseline of this
    upstream and machine class. One call without a state is compared with the library pristine: its
    bits, its time, and its instructions under valgrind. Checks that cannot be made are skipped,
    with a reason, and the verdict counts them. In a GitHub Actions job it also writes annotations
    and a job summary.

    --coverage runs the cases on a library that counts its branches, and names those of the kernel
    that no case takes. It compares nothing with the baseline and measures no time.

    \b
    Exit code 1 means that
      a case does not pass,
      a case or a comparison in the baseline is missing,
      an error grew by more than its margin,
      results that were bit-identical no longer are,
      one call no longer has the bits of the library pristine,
      a ratio of times got worse,
      one call is slower than without the patch,
      a call executes more instructions, or
      with --strict, something was not checked, or not reached (--coverage).
    """
    reports.check()
    of_threads = () if threads is None else (threads,)
    what = Selection(suite="gate", seed=seed, threads=of_threads, pattern=pattern, shard=shard)
    if with_coverage:
        _check_coverage(baseline_file, update=update)
        return run_covered(select(what), how, None, reports, strict=strict)
    has_own_inputs = seed is not None or threads is not None
    is_partial = how.exit_first or pattern is not None or shard is not None
    _check_call(
        baseline_file,
        update=update,
        has_own_inputs=has_own_inputs,
        is_partial=is_partial,
        strict=strict,
    )
    project = find_name(find_project(), how.library).project
    if update:
        where = baseline_file.absolute() if baseline_file is not None else project.baselines
        project.refuse_to_change_shipped(where, "gate --update-baseline")
    find_name(project, against)  # is there such a library?
    accepted = _accepted(project)
    console = make_console(stderr=reports.to_stdout)
    cases = select(what)
    measured, speed_rows = Measured.nothing("left out (--no-speed)"), list[SpeedRow]()
    bits: Mapping[Case, bytes] | str = _NOT_ALL_PASS
    with held_library(how.library, how.options) as found, Runner(found.module_path) as runner:
        class_ = baseline.machine_class(platform.machine(), runner.features)
        file = baseline_file or project.baselines / baseline.file_name(found.upstream, class_)
        shown = project.relative(file.resolve())
        before = _baseline(file) or baseline.missing(shown, upstream=found.upstream, class_=class_)
        before = gate.part_of(before, chosen(what))
        if isinstance(before, NoBaseline) and not update:
            say(console, before.text, "bold yellow")
        redraws = 0 if seed is None else _REDRAWS  # whose numbers nobody chose
        results = run_with(
            runner, found, cases, how, None, console, write=reports.write, redraws=redraws
        )
        made_with = {**what_made(project, found, results, class_), "against": against}
        sides = Sides(
            library=found,
            options=how.options,
            against=against,
            is_chosen=chosen(what),
            accepted=accepted,
        )
        is_well = not (results.stopped or gate.failing(results, before, update=update))
        try:
            if is_well and (update or isinstance(before, Baseline)):
                bits = sides.bits(cases)
            if not is_well:
                measured = Measured.nothing(_NOT_ALL_PASS)
            elif not no_speed:
                measured, speed_rows = sides.measure(before, update=update)
        except KeyboardInterrupt:
            results = dataclasses.replace(results, interrupted=True)
            measured = Measured.nothing("interrupted")
            bits = "interrupted" if isinstance(bits, str) else bits
    setting: dict[str, Any] = {"made_with": made_with, "seed": seed, "threads": threads}
    judged = gate.judge(
        results,
        **setting,
        baseline=_BECOMES_THE_BASELINE if update else before,
        file=shown,
        bits=bits,
        measured=measured,
        strict=strict,
        part=_in_words(what),
        update=update,
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
        new_speed = renewal.speed_of(speed_rows, cpu=results.machine["cpu"]) if speed_rows else None
        new = renewal.new_baseline(results, **setting, speed=new_speed, bits=bits)
        _write_baseline(project, file, new, console)
    return judged.passed


def _check_coverage(baseline_file: Path | None, *, update: bool) -> None:
    if baseline_file is not None or update:
        name = "--update-baseline" if update else "--baseline"
        raise UsageError(
            f"--coverage compares with no baseline, and makes none; leave it or {name} out"
        )


def _check_call(
    baseline_file: Path | None,
    *,
    update: bool,
    has_own_inputs: bool,
    is_partial: bool,
    strict: bool,
) -> None:
    if update and baseline_file is None and has_own_inputs:
        raise UsageError(
            "--update-baseline: later runs without --seed and --threads compare with it; leave "
            "them out, or name another file with --baseline"
        )
    if update and is_partial:
        raise UsageError(
            "--update-baseline: a baseline is of all cases; leave -x, -k and --shard out"
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


def _accepted(project: Project) -> dict[str, Accepted]:
    """Return what the series accept, all of rows that are counted."""
    found = accepted_by(project.series_folders, project.stack)
    rows = [str(case) for case in instructions.ROWS]
    for case in found:
        if case not in rows:
            raise SetupError(
                f"[[accepted]] in a series.toml of '{project.stack_name}': the gate counts no "
                f"instructions of case {case}; it counts those of\n  " + "\n  ".join(rows)
            )
    return found


def _in_words(what: Selection) -> str:
    """Return which of the suite's cases are chosen, as options; empty for all."""
    shard = f"--shard {what.shard[0]}/{what.shard[1]}" if what.shard else ""
    pattern = shlex.join(["-k", what.pattern]) if what.pattern else ""
    return " ".join(filter(None, (pattern, shard)))


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
    changes = renewal.changes(found, new)
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
        line = Text(f"  {check.status:9}  {check.name:17}  {check.reason}")
        line.stylize(_STYLE[check.status], 2, 11)
        say(console, line)
    for count in gate.counts:
        if count.status == "accepted":
            say(console, f"  accepted   {label(Case.parse(count.case))}", "yellow")
            say(console, f"      {count.reason}", "yellow")
    for line_of_reason in gate.unsupported:
        say(console, f"  {line_of_reason}", "yellow")
    for note in gate.notes:
        say(console, f"  note       {note}", "dim")
    style = "red" if not gate.passed else "yellow" if gate.is_mostly_unchecked else "green"
    text = Text(f"gate: {gate.verdict}", style=f"bold {style}")
    of_baseline = "no baseline" if gate.without_baseline else f"baseline {gate.baseline}"
    text.append(f" | {of_baseline}", style="not bold default")
    say(console, text)
