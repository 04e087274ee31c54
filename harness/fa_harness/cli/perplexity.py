"""`perplexity`: a real model with its attention in segments, and with a cache of two types.

Its JSON has the schema `fa-harness.perplexity/1`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
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
from fa_harness.model.models import find_model, text_path
from fa_harness.model.perplexity import (
    CacheRun,
    Judgement,
    Perplexity,
    ProgramRun,
    Setting,
    judge,
    plan_mixed,
    plan_segments,
)
from fa_harness.project import find_project, writing
from fa_harness.terminal import make_console, say, write_json

SCHEMA = "fa-harness.perplexity/1"

NOT_ROTATED = {"LLAMA_ATTN_ROT_DISABLE": "1"}
"""llama.cpp rotates K and V of a quantised cache, which helps it, and does not of an F16 one."""


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
@click.option(
    "--mixed", is_flag=True, help="Also compare mixed-type caches with uniform ones of that size."
)
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
    mixed: bool,
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
    window = window_of(found)
    setting = Setting(
        n_ctx=context,
        n_ubatch=min(512, context) if ubatch is None else ubatch,
        threads=threads or usable_cores(),
        chunks=chunks,
        n_swa=window,
        swa_full=mixed and window > 0,
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
    caches: list[tuple[CacheRun, Perplexity]] = []
    if mixed:
        planned = _with_unrotated(plan_mixed(setting))
        of_caches = run_all([each.run for each in planned])
        caches = [(each, of_caches[each.run.name]) for each in planned]
        print_caches(console, setting, caches)
    write_json(document(found.name, setting, judgements, results, caches, commands), json_path)
    return all(each.ok for each in judgements)


def _with_unrotated(planned: Sequence[CacheRun]) -> list[CacheRun]:
    """Add each uniform cache of blocks as it is without the rotation, which mixed ones lack."""
    rows = []
    for each in planned:
        rows.append(each)
        name = each.run.name
        if each.hot is None and name != "f16":
            run = replace(each.run, name=f"{name}, not rotated", environment=NOT_ROTATED)
            rows.append(replace(each, run=run))
    return rows


def window_of(model: Path) -> int:
    """Return the window of a GGUF model's local layers, 0 if it has none."""
    import gguf

    try:
        fields = gguf.GGUFReader(model).fields
        architecture = fields["general.architecture"].contents()
        window = fields.get(f"{architecture}.attention.sliding_window")
        return int(window.contents()) if window is not None else 0
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise SetupError(f"model {model}: its metadata cannot be read ({error})") from error


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


def print_caches(
    console: Console, setting: Setting, caches: Sequence[tuple[CacheRun, Perplexity]]
) -> None:
    """Print a line for each cache, those of one size together."""
    say(console, f"KV caches at {setting.n_ctx} tokens", "bold")
    say(console, f"  {'bytes per element':>17}  {'cache':24}  perplexity")
    for cache, found in sorted(caches, key=lambda each: -each[0].bytes_per_element):
        size = f"{cache.bytes_per_element:17.4f}"
        say(console, f"  {size}  {cache.run.name:24}  {_value(found)}")


def document(
    model: str,
    setting: Setting,
    judgements: Sequence[Judgement],
    results: Mapping[str, Perplexity],
    caches: Sequence[tuple[CacheRun, Perplexity]],
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
        "caches": [
            {
                "name": cache.run.name,
                "bytes_per_element": cache.bytes_per_element,
                "hot_window": cache.hot,
                **asdict(found),
            }
            for cache, found in caches
        ],
        "commands": dict(commands),
    }


def _value(found: Perplexity) -> str:
    return f"{found.estimate:.4f} +/- {found.error:.5f}"
