"""`series`: the group, and the commands that change the series."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from fa_harness.build.builder import vendor
from fa_harness.cli import options
from fa_harness.cli.lazy import LazyGroup
from fa_harness.errors import UsageError
from fa_harness.project import Project, find_project
from fa_harness.series import rework
from fa_harness.series.export import Changes
from fa_harness.stacks import names_in
from fa_harness.terminal import make_console, say
from fa_harness.upstream.pins import load_pins
from fa_harness.upstream.source import Source, chosen, find_source

_LAZY = {
    "list": "List the series: what each stands on, its patches, and where it holds",
    "status": "Show each patch of a series: its files, its size, and whether upstream has it",
    "lint": "Check the patches of a series against upstream's coding rules",
    "check": "Apply, build and test a series on the upstreams on which it must hold",
    "test": "Run a command on the tree of each patch",
    "compare": "Compare a series with how it was before",
}


def _resumable(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --continue and --abort."""
    text = "Resume after the conflicts are resolved."
    resume = click.option("--continue", "go_on", is_flag=True, help=text)
    abort = click.option("--abort", is_flag=True, help="Undo the change that was begun.")
    return resume(abort(command))


@click.group(cls=LazyGroup, lazy=_LAZY, package="fa_harness.cli.series_")
def command() -> None:
    """Edit series of patches; each patch is a commit while you work on it.

    --series NAME says which one, where it is not the project's default. A change that conflicts
    stops, says what to do, and loses nothing: --continue resumes it and --abort undoes it. A
    conflict that was resolved before is resolved in the same way. A patch whose content did not
    change is not rewritten, even if its line numbers moved; `refresh --line-numbers` updates them.
    """


@command.command()
@options.series
def apply(*, series: str | None) -> None:
    """Apply the series to the upstream sources, as `fa-harness vendor` does."""
    project, _ = _here(series)
    click.echo(project.relative(vendor(project).path))


@command.command()
@click.argument("patch", required=False)
@options.series
@_resumable
def edit(*, patch: str | None, series: str | None, go_on: bool, abort: bool) -> None:
    """Check out PATCH, a number or a file name, in a worktree for editing.

    Commit there as usual: `git commit --amend` changes the patch, a new commit becomes the next
    patch. `fa-harness series refresh` then rebases the later patches and writes them all.
    """
    if go_on or abort:
        _end(series, go_on=go_on, arguments=(patch,) if patch else ())
        return
    if patch is None:
        raise UsageError("name the patch to edit; fa-harness series status shows them")
    project, source = _here(series)
    place = rework.edit(project, source, patch)
    click.echo(
        f"1. cd {project.relative(place)}\n"
        "2. edit, and git commit --amend (or git commit for a patch of its own)\n"
        f"3. {rework.command_of(project, 'refresh')} "
        f"(or {rework.command_of(project, 'edit')} --abort)"
    )


@command.command()
@click.option(
    "--line-numbers", is_flag=True, help="Also write patches whose line numbers alone changed."
)
@options.series
@_resumable
def refresh(*, line_numbers: bool, series: str | None, go_on: bool, abort: bool) -> None:
    """Write commits back to the patches: from an edit, or from branch `series` of the tree."""
    named = ("--line-numbers",) if line_numbers else None
    _change(series, named, go_on, abort, partial(rework.refresh, line_numbers=line_numbers))


@command.command()
@click.argument("mails", nargs=-1, type=options.PATH, metavar="FILE...")
@click.option("--after", metavar="PATCH", help="Insert after this patch.  [default: at the end]")
@options.series
@_resumable
def add(
    *, mails: tuple[Path, ...], after: str | None, series: str | None, go_on: bool, abort: bool
) -> None:
    """Add patches made by git format-patch."""
    _change(series, mails, go_on, abort, rework.add, mails, after)


@command.command()
@click.argument("patches", nargs=-1, metavar="PATCH...")
@options.series
@_resumable
def drop(*, patches: tuple[str, ...], series: str | None, go_on: bool, abort: bool) -> None:
    """Remove patches from the series."""
    _change(series, patches, go_on, abort, rework.drop, patches)


@command.command()
@click.argument("patches", nargs=-1, metavar="PATCH...")
@options.series
@_resumable
def reorder(*, patches: tuple[str, ...], series: str | None, go_on: bool, abort: bool) -> None:
    """Move patches to the front, in this order; the others keep theirs."""
    _change(series, patches, go_on, abort, rework.reorder, patches)


@command.command()
@click.option("--onto", metavar="NAME|DIR", help="Target upstream: a pin or your checkout.")
@options.suites("Suite to run afterwards; repeatable.")
@click.option("--no-suites", is_flag=True, help="Run no suites.")
@options.series
@_resumable
def rebase(
    *,
    onto: str | None,
    suites: tuple[str, ...],
    no_suites: bool,
    series: str | None,
    go_on: bool,
    abort: bool,
) -> bool:
    """Rebase a series onto another upstream, three-way, and run suites.

    Without --onto, a series that stands on others moves to what those are now. Changes that
    upstream already has are dropped, and the other changes are shown. A pin becomes the default.
    Exit code 1: the series does not build there, or fails a case that upstream passes; the patches
    are rebased in any case. Use `fa-harness series check` for the other upstreams.
    """

    def change(project: Project, source: Source) -> Changes:
        if onto is None:
            if len(project.stack) == 1:
                raise UsageError("name where to: --onto NAME, a pin, or --onto DIR, a checkout")
            return rework.rebase(project, source, source)
        target = find_source(project, onto)
        if source.root and source.root == target.root:  # UPSTREAM_DIR is where it is to go
            source = find_source(project, load_pins(project.pins_file).default)
        return rework.rebase(project, source, target)

    before = load_pins(find_project().pins_file).default
    changes = _change(series, (onto,) if onto else None, go_on, abort, change)
    if no_suites or not (changes and changes.onto):
        return True
    from fa_harness.cli.series_check import check  # NumPy takes its time to load

    console = make_console(stderr=False)
    project = options.project_of(series)
    if load_pins(project.pins_file).default != before:
        for other in names_in(project.series_folders):
            if other != project.series:
                command = f"series rebase --series {other} --onto {changes.onto}"
                say(console, f"next: UPSTREAM={before} fa-harness {command}")
    [checked] = check(project, (changes.onto,), suites or project.about().suites, console)
    return checked.passed


@command.command()
@options.series
def undo(*, series: str | None) -> None:
    """Undo the last change of the series; called again, the one before it.

    It undoes what a command of this group wrote. It refuses where the patches were changed by
    other means since.
    """
    project, source = _here(series)
    print_changes(make_console(stderr=False), rework.undo(project, source))


def _change(
    series: str | None,
    arguments: tuple[object, ...] | None,
    go_on: bool,
    abort: bool,
    change: Callable[..., Changes],
    *more: Any,
) -> Changes | None:
    """Make a change, or end the one that has begun; None if that was given up."""
    if go_on or abort:
        return _end(series, go_on=go_on, arguments=arguments or ())
    if arguments == ():
        raise UsageError("name one patch at least; fa-harness series status shows them")
    project, source = _here(series)
    changes = change(project, source, *more)
    print_changes(make_console(stderr=False), changes)
    return changes


def _end(series: str | None, *, go_on: bool, arguments: tuple[object, ...]) -> Changes | None:
    project, source = _here(series)
    if arguments:
        raise UsageError("--continue and --abort take nothing else: they are of what has begun")
    source = _begun(project, source)
    if not go_on:
        rework.abort(project, source)
        return None
    changes = rework.go_on(project, source)
    print_changes(make_console(stderr=False), changes)
    return changes


def _begun(project: Project, source: Source) -> Source:
    """Return the upstream whose change is meant: the one that was named, or the only one."""
    if rework.begun(project, source) or {"UPSTREAM", "UPSTREAM_DIR"} & set(chosen()):
        return source
    pins = [find_source(project, name) for name in load_pins(project.pins_file).upstreams]
    found = [pin for pin in pins if rework.begun(project, pin)]
    if len(found) > 1:
        names = ", ".join(pin.name for pin in found)
        raise UsageError(f"changes have begun on {names}; say which with UPSTREAM=NAME")
    return found[0] if found else source


def _here(series: str | None) -> tuple[Project, Source]:
    project = options.project_of(series)
    return project, replace(find_source(project), takes_series=True)


def print_changes(console: Console, changes: Changes) -> None:
    """Print what a change of a series did to its files."""
    if changes.undone:
        say(console, f"undone: {changes.undone}")
    for name in changes.written:
        say(console, f"written: {name}")
    for before, after in changes.renamed:
        say(console, f"renamed: {before} -> {after}")
    for name in changes.removed:
        say(console, f"removed: {name}")
    for title in changes.dropped:
        say(console, f"dropped: {title}: nothing of it is left, upstream has it", "yellow")
    for title in changes.remembered:
        say(console, f"resolved as before: {title}", "yellow")
    if changes.range_diff:
        say(console, changes.range_diff)
    if not (changes.written or changes.renamed or changes.removed or changes.dropped):
        say(console, "nothing changed")
