"""`evidence`: the series as a branch of a developer's checkout, and what speaks for it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

import click
from rich.console import Console

from fa_harness.cli import options
from fa_harness.cli.options import project_of
from fa_harness.errors import UsageError
from fa_harness.machine import usable_cores
from fa_harness.model.checkout import open_checkout
from fa_harness.model.evidence import PARTS, Section
from fa_harness.model.gather import EvidenceRequest, gather
from fa_harness.model.models import find_model, text_path
from fa_harness.project import writing
from fa_harness.report.dossier import markdown, render
from fa_harness.terminal import make_console, say


@click.command("evidence")
@options.file("--onto", text="Your checkout of llama.cpp.", metavar="DIR", required=True)
@options.series
@click.option(
    "--branch", metavar="NAME", help="Name of the new branch.  [default: flash-attn-SERIES]"
)
@options.file("-o", "--out", text="Output folder.  [default: evidence-BRANCH]", metavar="FOLDER")
@options.model(required=False)
@options.file("--text", text="Text for perplexity.  [default: a built-in text]")
@click.option(
    "--part",
    "parts",
    multiple=True,
    metavar="NAME",
    help="Gather only this part: ops, proof, suite, mutants, bench, perplexity or size; "
    "repeatable.",
)
@click.option("--skip", multiple=True, metavar="NAME", help="Skip this part; repeatable.")
@click.option("--suite", default="default", metavar="NAME", help="Suite for `fa-harness run`.")
@click.option("--ops-filter", metavar="REGEX", help="Run only these cases of test-backend-ops.")
@options.count("--rounds", "Runs of llama-bench, each before and after.", default=12)
@click.option(
    "--bench",
    "tests",
    default="-p 512 -n 32 -d 0,2048",
    metavar="ARGUMENTS",
    help="Arguments of llama-bench.",
)
@options.llama_threads
@options.define
@options.verbose
def command(
    *,
    onto: Path,
    series: str | None,
    branch: str | None,
    out: Path | None,
    model: str | None,
    accept_terms: bool,
    text: Path | None,
    parts: tuple[str, ...],
    skip: tuple[str, ...],
    suite: str,
    ops_filter: str | None,
    rounds: int,
    tests: str,
    threads: int | None,
    options: Mapping[str, str],
    verbose: bool,
) -> bool:
    """Commit the series to a branch of your checkout and gather evidence for it.

    The checkout gets one new branch, with you as the author, and is not changed otherwise. Both
    versions, before and after, are built in build/. The output folder gets tables, the commands
    that reproduce each number, and a checklist. Writing the text and pushing is up to you. Exit
    code 1: a part speaks against the patches.
    """
    for name in skip:
        if name not in PARTS:
            raise click.BadParameter(
                f"{name!r} is unknown; there are {', '.join(PARTS)}", param_hint="--skip"
            )
    wanted = tuple(part for part in (parts or PARTS) if part not in skip)
    if not wanted:
        raise UsageError("--skip leaves no part; name one at least with --part")
    project = project_of(series)
    branch = branch or f"flash-attn-{project.series}"
    open_checkout(project, onto, branch)  # a model may be a large download, in vain
    found = find_model(project, model, accept_terms=accept_terms) if model else None
    request = EvidenceRequest(
        series=series,
        onto=onto,
        branch=branch,
        folder=(out or Path(f"evidence-{branch.replace('/', '-')}")).resolve(),
        parts=wanted,
        model=found,
        text=(text or text_path()).resolve(),
        threads=threads or usable_cores(),
        rounds=rounds,
        tests=tuple(shlex.split(tests)),
        ops_filter=ops_filter,
        suite=suite,
        options=options,
    )
    console = make_console(stderr=False)
    passed = True
    for evidence in gather(request, verbose=verbose):
        _print_section(console, evidence.sections[-1])
        _write(request.folder / "evidence.md", markdown(evidence))
        _write(request.folder / "evidence.json", render(evidence))
        passed = evidence.passed
    click.echo(str(request.folder / "evidence.md"))
    return passed


def _write(path: Path, text: str) -> None:
    with writing(path):
        path.write_text(text, encoding="utf-8")


def _print_section(console: Console, section: Section) -> None:
    """Print a part when it is done."""
    style = {True: "green", False: "bold red", None: "yellow"}[section.passed]
    say(console, section.title, style)
    widths = [max(map(len, column)) for column in zip(section.head, *section.rows, strict=True)]
    for row in (section.head, *section.rows) if section.rows else ():
        cells = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        say(console, f"  {cells}".rstrip())
    for note in section.notes:
        say(console, f"  {note}", "dim")
