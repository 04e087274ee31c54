"""`perplexity`: a real model with its attention in segments, and with a cache of two types.

Its JSON has the schema `fa-harness.perplexity/1`.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
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
) -> None:
    """Compare the perplexities of a real model with and without segments.

    llama.cpp is built with patches/experimental/, which reads the number of segments from the
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
    write_json(document(result), json_path)
    if not result.passed:
        sys.exit(1)


@dataclass(frozen=True, kw_only=True)
class EndToEnd:
    """What came of all runs.

    Attributes:
        judgements: Of the runs with segments.
        results: Of these and the standard run, by name.
        caches: Uniform caches and mixed ones; empty where they were not asked for.
        commands: Of each run, by name.
    """

    model: str
    setting: Setting
    judgements: tuple[Judgement, ...]
    results: Mapping[str, Perplexity]
    caches: tuple[tuple[CacheRun, Perplexity], ...]
    commands: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether each run is as near to the standard one as it must be."""
        return all(each.ok for each in self.judgements)


@dataclass(frozen=True, kw_only=True)
class _Programs:
    """What runs a model, and how."""

    program: Path
    model: Path
    text: Path
    options: tuple[str, ...]
    logs: Path

    def run(self, run: ProgramRun) -> Perplexity:
        """Run it once; of a text and a setting it gives the same each time."""
        log = self.logs / f"{PERPLEXITY}-{run.name.replace('/', '-')}.txt"
        return measure(self._command(run), run.environment, log)[0]

    def shown(self, run: ProgramRun) -> str:
        """Return its command, to be pasted into a shell."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in run.environment.items()]
        return " ".join([*settings, proc.paste(self._command(run))])

    def _command(self, run: ProgramRun) -> list[str | Path]:
        return [self.program, "-m", self.model, "-f", self.text, *run.arguments, *self.options]


def compare(
    *,
    model: Path,
    text: Path,
    setting: Setting,
    segments: Sequence[int],
    mixed: bool,
    console: Console,
    verbose: bool,
) -> EndToEnd:
    """Take perplexities of a model with its attention in segments, and print each comparison.

    With `mixed`, also compare caches of two types with uniform ones of the same size.

    Raises:
        UsageError: The setting cannot be.
        SetupError: llama.cpp does not build, or does not run the model.
    """
    project = find_project()
    targets = [BENCH, PERPLEXITY]
    built = build_llama(project, targets, experimental=True, verbose=verbose)
    logs = built.cmake.parent / "log"
    with writing(logs):
        logs.mkdir(exist_ok=True)
    extra = no_repack(PERPLEXITY) if is_trapped(built, model, setting.threads, logs) else []
    programs = _Programs(
        program=built.program(PERPLEXITY), model=model, text=text, options=tuple(extra), logs=logs
    )
    runs = plan_segments(setting, segments)
    results = dict(_run_all(programs, runs))
    judgements = judge(setting, runs, results)
    commands = {run.name: programs.shown(run) for run in runs}
    print_segments(console, setting, judgements, results, commands)
    caches: dict[str, tuple[CacheRun, Perplexity]] = {}
    if mixed:
        planned = _with_unrotated(plan_mixed(setting))
        of_caches = dict(_run_all(programs, [each.run for each in planned]))
        caches = {each.run.name: (each, of_caches[each.run.name]) for each in planned}
        commands |= {each.run.name: programs.shown(each.run) for each in planned}
        print_caches(console, setting, caches.values())
    return EndToEnd(
        model=model.name,
        setting=setting,
        judgements=judgements,
        results=results,
        caches=tuple(caches.values()),
        commands=commands,
    )


def _with_unrotated(planned: Sequence[CacheRun]) -> list[CacheRun]:
    """Add each uniform cache of blocks as it is without the rotation, which mixed ones lack."""
    rows = []
    for each in planned:
        rows.append(each)
        if each.hot is None and each.run.name != "f16":
            run = ProgramRun(
                name=f"{each.run.name}, not rotated",
                environment=NOT_ROTATED,
                arguments=each.run.arguments,
            )
            rows.append(CacheRun(run=run, bytes_per_element=each.bytes_per_element))
    return rows


def _run_all(programs: _Programs, runs: Sequence[ProgramRun]) -> Iterator[tuple[str, Perplexity]]:
    with terminal.bar(f"running {PERPLEXITY}") as advance:
        for n, run in enumerate(runs):
            advance(n, len(runs))
            try:
                yield run.name, programs.run(run)
            except proc.ProgramError as error:
                raise SetupError(f"{PERPLEXITY}, {run.name}: failed\n{error}") from error


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
    say(console, _title(setting), "bold")
    names = [name for name in results if name not in {each.name for each in judgements}]
    for name in names:
        say(console, f"  {name:12}  {_value(results[name])}")
    for each in judgements:
        line = Text(f"  {each.name:12}  {_value(results[each.name])}  ")
        line.append(each.message, style="green" if each.ok else "bold red")
        say(console, line)
        if not each.ok:
            say(console, f"    {commands[each.name]}", "dim")


def print_caches(
    console: Console, setting: Setting, caches: Collection[tuple[CacheRun, Perplexity]]
) -> None:
    """Print a line for each cache, those of one size together."""
    say(console, f"KV caches at {setting.n_ctx} tokens", "bold")
    say(console, f"  {'bytes per element':>17}  {'cache':24}  perplexity")
    for cache, found in sorted(caches, key=lambda each: -each[0].bytes_per_element):
        size = f"{cache.bytes_per_element:17.4f}"
        say(console, f"  {size}  {cache.run.name:24}  {_value(found)}")


def document(result: EndToEnd) -> dict[str, Any]:
    """Return the JSON document."""
    return {
        "schema": SCHEMA,
        "passed": result.passed,
        "model": result.model,
        "setting": asdict(result.setting),
        "runs": {name: asdict(found) for name, found in result.results.items()},
        "judgements": [asdict(each) for each in result.judgements],
        "caches": [
            {
                "name": cache.run.name,
                "bytes_per_element": cache.bytes_per_element,
                "hot_window": cache.hot,
                **asdict(found),
            }
            for cache, found in result.caches
        ],
        "commands": dict(result.commands),
    }


def _title(setting: Setting) -> str:
    words = [f"perplexity, context {setting.n_ctx}, {setting.n_ubatch} rows a graph"]
    words.append(f"{setting.chunks} chunks, {setting.threads} threads")
    words += [f"window {setting.n_swa}"] if setting.n_swa else []
    return ", ".join(words)


def _value(found: Perplexity) -> str:
    return f"{found.estimate:.4f} +/- {found.error:.5f}"
