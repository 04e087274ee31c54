"""The commands of `fa-harness series`: parse, call, print."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fa_harness.errors import UsageError
from fa_harness.terminal import make_console, write_json

if TYPE_CHECKING:
    from fa_harness.project import Project
    from fa_harness.report.series import CheckedUpstream
    from fa_harness.series.rework import Changes
    from fa_harness.upstream.source import Source

_MAIL = click.Path(path_type=Path)
_Change = Callable[["Project", "Source"], "Changes"]

_go_on = click.option("--continue", "go_on", is_flag=True, help="Go on; conflicts are resolved.")
_abort = click.option("--abort", is_flag=True, help="Give up: the patches are as they were.")


@click.group()
def series() -> None:
    """Change the patch series: patches are commits while you work on them.

    A change that conflicts stops, says what to do, and loses nothing; --continue goes on with it
    and --abort gives it up. A patch whose content did not change keeps every byte, line numbers
    among them, until `refresh --line-numbers`.
    """


@series.command()
@click.option("--suite", metavar="NAME", help="Run this suite on each prefix of the series, too.")
@click.option("--json", "json_path", metavar="FILE", help="Write the report; - is standard output.")
def status(*, suite: str | None, json_path: str | None) -> None:
    """Show each patch: its files, its size, and whether upstream has it.

    With --suite also which cases it turns from red to green. Red is every case that does not pass,
    also one whose op the library does not have yet.
    """
    from fa_harness.cli.series import colours
    from fa_harness.report.series import print_status, render_status
    from fa_harness.series.status import status as status_of

    project, source = _here()
    patches = status_of(project, source)
    of_suite = colours(project, suite) if suite else []
    print_status(make_console(stderr=json_path == "-"), patches, of_suite, suite=suite)
    write_json(render_status(patches, of_suite, suite=suite, upstream=source.label), json_path)


@series.command()
def apply() -> None:
    """Make the tree of upstream and the series, as `fa-harness vendor` does."""
    from fa_harness.build.builder import vendor

    project, _ = _here()
    click.echo(project.relative(vendor(project).path))


@series.command()
@click.argument("patch", required=False)
@_go_on
@_abort
def edit(*, patch: str | None, go_on: bool, abort: bool) -> None:
    """Stop at PATCH, a number or a file name, in a worktree of its own.

    Commit there as usual: git commit --amend changes the patch, a new commit is a patch after it.
    fa-harness series refresh then puts the later patches on top and writes them all.
    """
    from fa_harness.project import locked
    from fa_harness.series import rework

    if go_on or abort:
        _end(go_on=go_on, arguments=(patch,) if patch else ())
        return
    if patch is None:
        raise UsageError("name the patch to edit; fa-harness series status shows them")
    project, source = _here()
    with locked(project):
        place = rework.edit(project, source, patch)
    click.echo(
        f"1. cd {project.relative(place)}\n"
        "2. edit, and git commit --amend (or git commit for a patch of its own)\n"
        "3. fa-harness series refresh (or fa-harness series edit --abort)"
    )


@series.command()
@click.option("--line-numbers", is_flag=True, help="Write patches of which only these moved, too.")
@_go_on
@_abort
def refresh(*, line_numbers: bool, go_on: bool, abort: bool) -> None:
    """Write commits to patches/: of an edit, or else of the branch `series` in the tree."""
    from fa_harness.series import rework

    _change(
        lambda project, source: rework.refresh(project, source, line_numbers=line_numbers),
        arguments=("--line-numbers",) if line_numbers else None,
        go_on=go_on,
        abort=abort,
    )


@series.command()
@click.argument("mails", nargs=-1, type=_MAIL, metavar="FILE...")
@click.option("--after", metavar="PATCH", help="After this patch, instead of at the end.")
@_go_on
@_abort
def add(*, mails: tuple[Path, ...], after: str | None, go_on: bool, abort: bool) -> None:
    """Put patches that git format-patch made into the series."""
    from fa_harness.series import rework

    _change(
        lambda project, source: rework.add(project, source, mails, after),
        arguments=mails,
        go_on=go_on,
        abort=abort,
    )


@series.command()
@click.argument("patches", nargs=-1, metavar="PATCH...")
@_go_on
@_abort
def drop(*, patches: tuple[str, ...], go_on: bool, abort: bool) -> None:
    """Take patches out of the series."""
    from fa_harness.series import rework

    _change(
        lambda project, source: rework.drop(project, source, patches),
        arguments=patches,
        go_on=go_on,
        abort=abort,
    )


@series.command()
@click.argument("patches", nargs=-1, metavar="PATCH...")
@_go_on
@_abort
def reorder(*, patches: tuple[str, ...], go_on: bool, abort: bool) -> None:
    """Bring patches to the front, in this order; the others stay behind them as they were."""
    from fa_harness.series import rework

    _change(
        lambda project, source: rework.reorder(project, source, patches),
        arguments=patches,
        go_on=go_on,
        abort=abort,
    )


@series.command()
@click.option("--onto", metavar="NAME|DIR", help="A pin, or a checkout of your own.")
@click.option("--suite", "suites", multiple=True, metavar="NAME", default=("seed", "smoke"),
              show_default="seed, smoke", help="Run this suite then; may be repeated.")  # fmt: skip
@click.option("--no-suites", is_flag=True, help="Run none.")
@_go_on
@_abort
def rebase(
    *, onto: str | None, suites: tuple[str, ...], no_suites: bool, go_on: bool, abort: bool
) -> None:
    """Move the series to another upstream, three-way, show what changed in it, and run suites.

    What upstream has taken is dropped. A pin becomes the default one. Exit status 1: the series
    does not build there, or gets wrong what upstream gets right; the patches are moved. fa-harness
    series check tells how it does on the other upstreams.
    """
    from fa_harness.project import find_project
    from fa_harness.series import rework
    from fa_harness.upstream.source import find_source

    if not (go_on or abort) and onto is None:
        raise UsageError("name where to: --onto NAME, a pin, or --onto DIR, a checkout")
    changes = _change(
        lambda project, source: rework.rebase(project, source, find_source(project, onto)),
        arguments=(onto,) if onto else None,
        go_on=go_on,
        abort=abort,
    )
    if changes and changes.onto and not no_suites:
        checked = _check(find_project(), (changes.onto,), suites, stderr=False)
        _exit_unless_all(checked)


@series.command()
@click.option(
    "--suite", metavar="NAME", help="Each patch must turn a case of this suite green, too."
)
@click.option("--json", "json_path", metavar="FILE", help="Write the report; - is standard output.")
def lint(*, suite: str | None, json_path: str | None) -> None:
    """Check the patches against upstream's own rules.

    ASCII, white space, indentation, the subject's form, upstream's .clang-format on the lines that
    are added, new files, size, cases in test-backend-ops. Exit status 1: a rule is broken that
    upstream insists on (must); what a reviewer would ask about (should) is shown only.
    """
    from fa_harness.cli.series import colours, without_effect
    from fa_harness.report.series import print_lint, render_lint
    from fa_harness.series.lint import lint as lint_of

    project, source = _here()
    findings, missing = lint_of(project, source)
    if suite:
        findings += without_effect(project, colours(project, suite), suite)
    print_lint(make_console(stderr=json_path == "-"), findings, missing)
    write_json(render_lint(findings, missing, upstream=source.label), json_path)
    if any(finding.level == "must" for finding in findings):
        raise click.exceptions.Exit(1)


@series.command()
@click.option("--upstream", "names", multiple=True, required=True, metavar="NAME|DIR|all",
              help="A pin, or a checkout of your own; may be repeated.")  # fmt: skip
@click.option("--suite", "suites", multiple=True, metavar="NAME", default=("seed", "smoke"),
              show_default="seed, smoke", help="Run this suite; may be repeated.")  # fmt: skip
@click.option("--markdown", metavar="FILE", help="Write the matrix; - is standard output.")
@click.option("--json", "json_path", metavar="FILE", help="Write the report; - is standard output.")
def check(
    *, names: tuple[str, ...], suites: tuple[str, ...], markdown: str | None, json_path: str | None
) -> None:
    """Apply, build and try the series on other upstreams.

    A case that pristine upstream gets wrong in the same way is upstream's own, and is shown. Exit
    status 1: the series does not apply or build somewhere, or gets something else wrong.
    """
    from fa_harness.project import find_project
    from fa_harness.report.series import markdown_check, render_check
    from fa_harness.upstream.pins import load_pins

    project = find_project()
    pins = load_pins(project.pins_file)
    wanted = tuple(pins.upstreams) if "all" in names else tuple(dict.fromkeys(names))
    checked = _check(project, wanted, suites, stderr="-" in (markdown, json_path))
    write_json(markdown_check(checked, suites), markdown)
    write_json(render_check(checked), json_path)
    _exit_unless_all(checked)


def _check(
    project: Project, upstreams: tuple[str, ...], suites: tuple[str, ...], *, stderr: bool
) -> list[CheckedUpstream]:
    """Check the series on upstreams and print each when it is done."""
    from fa_harness.cli.series import check as check_of
    from fa_harness.report.series import print_check

    console = make_console(stderr=stderr)
    checked = []
    for each in check_of(project, upstreams, suites):
        print_check(console, each)
        checked.append(each)
    return checked


def _exit_unless_all(checked: list[CheckedUpstream]) -> None:
    if not all(each.passed for each in checked):
        raise click.exceptions.Exit(1)


@click.group()
def upstream() -> None:
    """Pin other versions of upstream."""


@upstream.command("add")
@click.argument("spec", metavar="PACKAGE==VERSION|DIR|GIT-URL@REF")
@click.option("--name", metavar="NAME", help="What the pin is called.")
def add_upstream(*, spec: str, name: str | None) -> None:
    """Pin an upstream: fetch it, look into it, record its checksum.

    An sdist of the package index, the commit that is checked out in DIR, or a branch, tag or whole
    commit id of a git repository. Of a branch the pin is today's commit. A pin of DIR holds on this
    machine.
    """
    from fa_harness.project import find_project, locked
    from fa_harness.upstream.newer import add as add_pin

    project = find_project()
    with locked(project):
        pin = add_pin(project, spec, name)
    origin = f"{pin.git} {pin.commit}" if pin.git else f"{pin.package} {pin.version}"
    click.echo(f"{pin.name}: {origin}, ggml {pin.ggml_version or 'unknown'}")


@upstream.command("update")
@click.option("--add", "adding", is_flag=True, help="Pin what is newer.")
def update_upstreams(*, adding: bool) -> None:
    """Look on the package index for versions that are newer than those that are pinned."""
    from fa_harness.project import find_project, locked
    from fa_harness.upstream.newer import add as add_pin
    from fa_harness.upstream.newer import newest

    project = find_project()
    for each in newest(project):
        if not each.is_newer:
            click.echo(f"{each.package} {each.pinned}: the newest")
            continue
        spec = f"{each.package}=={each.version}"
        if not adding:
            click.echo(f"{each.package} {each.pinned}: fa-harness upstream add {spec}")
            continue
        with locked(project):
            pin = add_pin(project, spec)
        click.echo(f"{pin.name}: {spec}, ggml {pin.ggml_version or 'unknown'}")


def _change(
    change: _Change, *, arguments: tuple[object, ...] | None = None, go_on: bool, abort: bool
) -> Changes | None:
    """Make a change, or end the one that has begun; None if that was given up."""
    from fa_harness.project import locked
    from fa_harness.report.series import print_changes

    if go_on or abort:
        return _end(go_on=go_on, arguments=arguments or ())
    if arguments == ():
        raise UsageError("name one patch at least; fa-harness series status shows them")
    project, source = _here()
    with locked(project):
        changes = change(project, source)
    print_changes(make_console(stderr=False), changes)
    return changes


def _end(*, go_on: bool, arguments: tuple[object, ...]) -> Changes | None:
    from fa_harness.project import locked
    from fa_harness.report.series import print_changes
    from fa_harness.series import rework

    project, source = _here()
    if arguments:
        raise UsageError("--continue and --abort take nothing else: they are of what has begun")
    source = _begun(project, source)
    with locked(project):
        if not go_on:
            rework.abort(project, source)
            return None
        changes = rework.go_on(project, source)
    print_changes(make_console(stderr=False), changes)
    return changes


def _begun(project: Project, source: Source) -> Source:
    """Return the upstream whose change is meant: the one that was named, or the only one."""
    from fa_harness.series import rework
    from fa_harness.upstream.pins import load_pins
    from fa_harness.upstream.source import chosen, find_source

    if rework.begun(project, source) or chosen():
        return source
    pins = [find_source(project, name) for name in load_pins(project.pins_file).upstreams]
    found = [pin for pin in pins if rework.begun(project, pin)]
    if len(found) > 1:
        names = ", ".join(pin.name for pin in found)
        raise UsageError(f"changes have begun on {names}; say which with UPSTREAM=NAME")
    return found[0] if found else source


def _here() -> tuple[Project, Source]:
    from fa_harness.project import find_project
    from fa_harness.upstream.source import find_source

    project = find_project()
    return project, find_source(project)
