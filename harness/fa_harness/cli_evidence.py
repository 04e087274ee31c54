"""The commands around a real model and a developer's own checkout: parse, call, print."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from fa_harness.terminal import make_console

_PATH = click.Path(path_type=Path)


@click.command()
@click.option(
    "--onto", required=True, type=_PATH, metavar="DIR", help="Your checkout of llama.cpp."
)
@click.option("--branch", default="flash-attn-state", show_default=True, metavar="NAME",
              help="The branch that it gets.")  # fmt: skip
@click.option("-o", "--out", type=_PATH, metavar="FOLDER",
              help="Where the evidence goes [default: evidence-BRANCH].")  # fmt: skip
@click.option("--model", metavar="GGUF|NAME", help="Measure with it; gemma-3-270m is fetched.")
@click.option("--accept-terms", is_flag=True, help="The terms of a model that is fetched.")
@click.option("--text", type=_PATH, metavar="FILE", help="For perplexity [default: one of ours].")
@click.option("--part", "parts", multiple=True, metavar="NAME",
              help="Only this part: ops, proof, suite, mutants, bench, perplexity, size; may be "
              "repeated.")  # fmt: skip
@click.option("--skip", multiple=True, metavar="NAME", help="Not this part; may be repeated.")
@click.option("--suite", default="default", show_default=True, metavar="NAME",
              help="What fa-harness run runs.")  # fmt: skip
@click.option("--ops-filter", metavar="REGEX", help="Only these cases of test-backend-ops.")
@click.option("--rounds", type=click.IntRange(1), default=12, show_default=True, metavar="N",
              help="Processes of llama-bench, before and after each.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Of llama.cpp's programs.")
@click.option("-D", "--define", "defines", multiple=True, metavar="NAME=VALUE",
              help="A CMake option of llama.cpp; may be repeated.")  # fmt: skip
@click.option("-v", "--verbose", is_flag=True, help="Print the commands of builds.")
def evidence(
    *,
    onto: Path,
    branch: str,
    out: Path | None,
    model: str | None,
    accept_terms: bool,
    text: Path | None,
    parts: tuple[str, ...],
    skip: tuple[str, ...],
    suite: str,
    ops_filter: str | None,
    rounds: int,
    threads: int | None,
    defines: tuple[str, ...],
    verbose: bool,
) -> None:
    """Put the series on your checkout as a branch, and gather what a maintainer asks for.

    Your checkout gets one new branch, with you as the author, and is not touched otherwise. Its
    programs are built in build/, before and after. The folder gets tables with the commands that
    repeat each number, and a checklist; the words and the push are yours. Exit status 1: a part
    speaks against the patches.
    """
    from fa_harness.commands.evidence import Request, gather
    from fa_harness.evidence import PARTS
    from fa_harness.machine import usable_cores
    from fa_harness.models import find_model, text_path
    from fa_harness.project import find_project

    for name in defines:
        if not name.partition("=")[0] or "=" not in name:
            raise click.BadParameter(f"{name!r} is not NAME=VALUE", param_hint="-D")
    for name in skip:
        if name not in PARTS:
            raise click.BadParameter(
                f"{name!r} is unknown; there are {', '.join(PARTS)}", param_hint="--skip"
            )
    found = find_model(find_project(), model, accept_terms=accept_terms) if model else None
    request = Request(
        onto=onto,
        branch=branch,
        folder=(out or Path(f"evidence-{branch.replace('/', '-')}")).resolve(),
        parts=tuple(part for part in (parts or PARTS) if part not in skip),
        model=found,
        text=(text or text_path()).resolve(),
        threads=threads or usable_cores(),
        rounds=rounds,
        ops_filter=ops_filter,
        suite=suite,
        options={k: v for k, _, v in (each.partition("=") for each in defines)},
    )
    result = gather(request, console=make_console(stderr=False), verbose=verbose)
    click.echo(str(request.folder / "evidence.md"))
    if not result.passed:
        sys.exit(1)
