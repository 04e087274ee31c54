"""`perplexity`: a real model with its attention in segments.

Its JSON has the schema `fa-harness.perplexity/2`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from fa_harness import proc, terminal
from fa_harness.cli import options
from fa_harness.errors import SetupError, UsageError
from fa_harness.machine import usable_cores
from fa_harness.model.llama import BENCH, PERPLEXITY, build_llama, is_trapped, measure, no_repack
from fa_harness.model.models import find_model, text_path, window_of
from fa_harness.model.perplexity import (
    Judgement,
    Perplexity,
    ProgramRun,
    Setting,
    judge,
    plan_segments,
)
from fa_harness.project import find_project, writing
from fa_harness.terminal import make_console, say, write_json

SCHEMA = "fa-harness.perplexity/2"


@click.command("perplexity")
@options.model(required=True)
@options.file("--text", text="Text to evaluate.  [default: a built-in text]")
@click.option(
    "--segments", default="1,2,8", metavar="N,...", help="Numbers of segments to compare."
)
@click.option("--context", type=int, default=512, metavar="N", help="Tokens per chunk.")
@click.option(
    "--ubatch", type=int, metavar="N", help="Tokens per batch; 1 is decoding.  [default: 512]"
)
@click.option("--chunks", type=int, default=4, metavar="N", help="Number of chunks.")
@options.llama_threads
@options.json_path
@options.verbose
def command(
    *,
    model: str,
    accept_terms: bool,
    text: Path | None,
    segments: str,
    context: int,
    ubatch: int | None,
    chunks: int,
    threads: int | None,
    json_path: str | None,
    verbose: bool,
) -> bool:
    """Compare the perplexities of a real model with and without segments.

    llama.cpp is built with patches/state/experimental/, which reads the number of segments from the
    environment. All printed digits must agree where the contract promises identical bits, and to
    1e-4 elsewhere. Exit code 1: they do not.
    """
    try:
        numbers = [int(word) for word in segments.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise UsageError(f"--segments {segments}: give numbers of at least 1, as in 1,2,8")
    if text is not None and not text.is_file():
        raise UsageError(f"--text {text}: there is no such file")
    project, console = find_project(), make_console(stderr=json_path == "-")
    found = find_model(project, model, accept_terms=accept_terms)
    text = (text or text_path()).resolve()
    setting = Setting(
        n_ctx=context,
        n_ubatch=min(512, context) if ubatch is None else ubatch,
        threads=threads or usable_cores(),
        chunks=chunks,
        n_swa=window_of(found),
    )
    built = build_llama(project, [BENCH, PERPLEXITY], experimental=True, verbose=verbose)
    logs = built.cmake.parent / "log"
    with writing(logs):
        logs.mkdir(exist_ok=True)
    more = no_repack(PERPLEXITY) if is_trapped(built, found, setting.threads, logs) else []
    program: list[str | Path] = [built.program(PERPLEXITY), "-m", found, "-f", text]
    commands: dict[str, str] = {}

    def run_all(runs: Sequence[ProgramRun]) -> dict[str, Perplexity]:
        results = {}
        with terminal.bar(f"running {PERPLEXITY}") as advance:
            for n, run in enumerate(runs):
                advance(n, len(runs))
                words = [*program, *run.arguments, *more]
                settings = [f"{name}={shlex.quote(v)}" for name, v in run.environment.items()]
                commands[run.name] = " ".join([*settings, proc.paste(words)])
                log = logs / f"{PERPLEXITY}-{run.name.replace('/', '-')}.txt"
                try:
                    results[run.name] = measure(words, run.environment, log)[0]
                except proc.ProgramError as error:
                    raise SetupError(f"{PERPLEXITY}, {run.name}: failed\n{error}") from error
        return results

    runs = plan_segments(setting, numbers)
    results = run_all(runs)
    judgements = judge(setting, runs, results)
    print_segments(console, setting, judgements, results, commands)
    write_json(document(found.name, setting, judgements, results, commands), json_path)
    return all(each.ok for each in judgements)


def print_segments(
    console: Console,
    setting: Setting,
    judgements: Sequence[Judgement],
    results: Mapping[str, Perplexity],
    commands: Mapping[str, str],
) -> None:
    """Print a line for each run with segments, and how to repeat those that are off."""
    window = f", window {setting.n_swa}" if setting.n_swa else ""
    say(
        console,
        f"perplexity, context {setting.n_ctx}, {setting.n_ubatch} rows a graph, "
        f"{setting.chunks} chunks, {setting.threads} threads{window}",
        "bold",
    )
    judged = {each.name for each in judgements}
    for name, found in results.items():
        if name not in judged:
            say(console, f"  {name:12}  {_value(found)}")
    for each in judgements:
        line = Text(f"  {each.name:12}  {_value(results[each.name])}  ")
        line.append(each.message, style="green" if each.ok else "bold red")
        say(console, line)
        if not each.ok:
            say(console, f"    {commands[each.name]}", "dim")


def document(
    model: str,
    setting: Setting,
    judgements: Sequence[Judgement],
    results: Mapping[str, Perplexity],
    commands: Mapping[str, str],
) -> dict[str, Any]:
    """Return the JSON document; it passed if each run is as near to the standard one as it must."""
    return {
        "schema": SCHEMA,
        "passed": all(each.ok for each in judgements),
        "model": model,
        "setting": asdict(setting),
        "runs": {name: asdict(found) for name, found in results.items()},
        "judgements": [asdict(each) for each in judgements],
        "commands": dict(commands),
    }


def _value(found: Perplexity) -> str:
    return f"{found.estimate:.4f} +/- {found.error:.5f}"
