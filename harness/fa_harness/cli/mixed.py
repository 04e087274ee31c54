"""`mixed`: llama.cpp with a KV cache of two types, its quality, bytes and speed.

Its JSON has the schema `fa-harness.mixed/1`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from fa_harness import proc, terminal
from fa_harness.cli import options
from fa_harness.errors import FaHarnessError, SetupError, UsageError
from fa_harness.machine import usable_cores
from fa_harness.model.llama import BENCH, PERPLEXITY, build_llama, is_trapped, no_repack
from fa_harness.model.mixed import (
    BASE,
    DEFAULT,
    WITH_PEAK,
    Cache,
    Memory,
    Quality,
    parse_bench,
    parse_layers,
    parse_memory,
    parse_quality,
)
from fa_harness.model.models import find_model, text_path, window_of
from fa_harness.project import find_project, writing
from fa_harness.report.plot import quality_plot
from fa_harness.speed.bench import MIN_ROUNDS, Interval, median_interval
from fa_harness.terminal import make_console, say, write_json, write_text

SCHEMA = "fa-harness.mixed/1"

_GENERATED = 32
"""Tokens that a decode of `llama-bench` generates."""
_PROMPT = 512
_WITH_BUFFERS = "4"
"""Verbosity at which llama.cpp tells the size of its buffers."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was found of a cache; speeds are tokens per second over the base cache's."""

    cache: Cache
    bytes_per_element: float
    memory: Memory
    quality: Quality
    speed: Mapping[str, Interval]  # by test, as `decode 4096`; empty if it was not measured


@click.command("mixed")
@options.model(required=True)
@options.file("--text", text="Text to evaluate.  [default: a built-in text]")
@click.option(
    "--cache", "names", multiple=True, metavar="NAME",
    help="A cache beside f16: a type, or COLD+HOT:TOKENS, as q4_0+f16:512; repeatable.  "
    f"[default: {', '.join(DEFAULT[1:])}]",
)  # fmt: skip
@click.option("--context", type=int, default=2048, metavar="N", help="Tokens per chunk.")
@click.option("--ubatch", type=int, default=64, metavar="N", help="Tokens per batch.")
@click.option("--chunks", type=int, default=2, metavar="N", help="Number of chunks.")
@click.option(
    "--depths", default="0,4096,16384", metavar="N,...",
    help="Tokens before those whose speed is measured.",
)  # fmt: skip
@click.option(
    "--rounds", type=int, default=8, metavar="N", help="Rounds of llama-bench; 0 for no speeds."
)
@options.llama_threads
@click.option(
    "--plot",
    metavar="FILE",
    callback=options.writable,
    help="Draw divergence over bytes as SVG; - is standard output.",
)
@options.json_path
@options.verbose
def command(
    *,
    model: str,
    accept_terms: bool,
    text: Path | None,
    names: tuple[str, ...],
    context: int,
    ubatch: int,
    chunks: int,
    depths: str,
    rounds: int,
    threads: int | None,
    plot: str | None,
    json_path: str | None,
    verbose: bool,
) -> bool:
    """Compare a KV cache of two types with uniform ones: quality, bytes and speed.

    llama.cpp is built with the series `mixed`. Quality is the divergence from an F16 cache, of each
    chunk's second half. A hot cache also has the batch that is computed, so small batches are
    nearest to decoding.
    """
    caches = [Cache.parse(name) for name in dict.fromkeys((BASE, *(names or DEFAULT)))]
    for cache in caches:
        if cache.n_hot >= context:
            raise UsageError(
                f"cache {cache.name}: all {context} tokens of a chunk would be hot; take a longer "
                "--context"
            )
    if not 1 <= ubatch <= context or context % 256 or chunks < 1:
        raise UsageError(
            f"--context {context}, --ubatch {ubatch}, --chunks {chunks}: the context is a multiple "
            "of 256, a batch no longer than it, and there is a chunk"
        )
    if rounds and rounds < MIN_ROUNDS:
        raise UsageError(f"--rounds {rounds}: an interval needs {MIN_ROUNDS} at least; 0 is none")
    if text is not None and not text.is_file():
        raise UsageError(f"--text {text}: there is no such file")
    if json_path == plot == "-":
        raise UsageError("--json and --plot cannot both go to standard output")
    deep = _depths(depths)
    project, console = find_project(stack="mixed"), make_console(stderr="-" in (json_path, plot))
    found = find_model(project, model, accept_terms=accept_terms)
    built = build_llama(project, [BENCH, PERPLEXITY], verbose=verbose)
    logs = built.cmake.parent / "log"
    with writing(logs):
        logs.mkdir(exist_ok=True)
    n_threads = threads or usable_cores()
    is_killed = is_trapped(built, found, n_threads, logs)
    program: list[str | Path] = [
        *(built.program(PERPLEXITY), "-m", found, "-f", (text or text_path()).resolve()),
        *("-fa", "on", "-c", str(context), "-b", str(context), "-ub", str(ubatch)),
        *("-t", str(n_threads), "--chunks", str(chunks), "-lv", _WITH_BUFFERS),
        *(no_repack(PERPLEXITY) if is_killed else ()),
    ]
    window = window_of(found)
    commands: dict[str, str] = {}
    measured: list[Measured] = []
    with (
        tempfile.TemporaryDirectory(prefix="fa-harness-", dir=project.build) as folder,
        terminal.bar(f"running {PERPLEXITY}") as advance,
    ):
        base = ("--kl-divergence-base", Path(folder) / "logits")
        for n, asked in enumerate([None, *caches]):
            advance(n, len(caches) + 1)
            words = [*program, *(asked or caches[0]).arguments, *base]
            words += ["--kl-divergence"] if asked else []
            name = asked.name if asked else "base"
            commands[name] = proc.paste(words)
            log = logs / f"{PERPLEXITY}-{name.replace('+', '-').replace(':', '-')}.txt"
            try:
                output = proc.run([sys.executable, "-c", WITH_PEAK, *words], log=log)
            except proc.ProgramError as error:
                raise SetupError(f"{PERPLEXITY}, {name}: failed\n{error}") from error
            if asked is None:
                layers = parse_layers(output, window)
                continue
            measured.append(
                Measured(
                    cache=asked,
                    bytes_per_element=asked.bytes_per_element(context, layers),
                    memory=parse_memory(output),
                    quality=parse_quality(output),
                    speed={},
                )
            )
    say(console, f"{found.name}, context {context}, batches of {ubatch}, {chunks} chunks", "bold")
    _print_quality(console, measured)
    _print_memory(console, measured)
    if rounds:
        program = [
            *(built.program(BENCH), "-m", found, "-fa", "on", "-t", str(n_threads), "-r", "1"),
            *("-p", str(_PROMPT), "-n", str(_GENERATED), "-d", ",".join(map(str, deep))),
            *("-o", "json", *(no_repack(BENCH) if is_killed else ())),
        ]
        speeds = _speeds(program, caches, rounds, logs, commands)
        measured = [replace(each, speed=speeds[each.cache.name]) for each in measured]
        _print_speed(console, measured)
    if plot is not None:
        points = [(each.cache.name, each.bytes_per_element, each.quality) for each in measured]
        write_text(quality_plot(points), plot)
    setting = {
        "context": context, "ubatch": ubatch, "chunks": chunks, "threads": n_threads,
        "depths": deep, "rounds": rounds,
    }  # fmt: skip
    write_json(document(found.name, setting, measured, commands), json_path)
    return True


def _depths(text: str) -> list[int]:
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        found = [-1]
    if min(found) < 0:
        raise UsageError(f"--depths {text}: give numbers of tokens, as in 0,4096")
    return found


def _speeds(
    program: Sequence[str | Path],
    caches: Sequence[Cache],
    rounds: int,
    logs: Path,
    commands: dict[str, str],
) -> dict[str, dict[str, Interval]]:
    """Return, by cache and test, its tokens per second over the base's of the same round.

    The caches take turns, each in a process of its own, from another one on in each round.
    """
    ratios: dict[str, dict[str, list[float]]] = {cache.name: {} for cache in caches}
    with terminal.bar(f"running {BENCH}") as advance:
        for n in range(rounds):
            found = {}
            first = n % len(caches)
            for i, cache in enumerate([*caches[first:], *caches[:first]]):
                advance(n * len(caches) + i, rounds * len(caches))
                words = [*program, *cache.arguments]
                commands[f"{BENCH} {cache.name}"] = proc.paste(words)
                log = logs / f"{BENCH}-{cache.name.replace('+', '-').replace(':', '-')}.txt"
                try:
                    found[cache.name] = parse_bench(proc.run(words, log=log))
                except (proc.ProgramError, FaHarnessError) as error:
                    raise SetupError(f"{BENCH}, {cache.name}: failed\n{error}") from error
            for name, tests in found.items():
                for test, (speed,) in tests.items():
                    n_prompt, _, depth = test
                    word = f"{'prompt' if n_prompt else 'decode'} {depth}"
                    [of_base] = found[BASE][test]
                    ratios[name].setdefault(word, []).append(speed / of_base)
    return {
        name: {test: median_interval(values) for test, values in of_cache.items()}
        for name, of_cache in ratios.items()
    }


def _print_quality(console: Console, measured: Sequence[Measured]) -> None:
    header = f"{'bytes':>6}  {'mean KLD':>18} {'median':>8} {'99.9 %':>7} {'top':>6}"
    say(console, f"  {'cache':14} {header} {'PPL':>8}", "bold")
    for each in measured:
        found = each.quality
        say(
            console,
            f"  {each.cache.name:14} {each.bytes_per_element:6.3f}  "
            f"{abs(found.mean):8.6f} ± {found.mean_error:.5f} {abs(found.median):8.6f} "
            f"{found.p999:7.4f} {found.same_top:6.2f} {found.perplexity:8.4f}",
        )


def _print_memory(console: Console, measured: Sequence[Measured]) -> None:
    say(console, "memory in MiB; the process's is the most that it held, with the model", "bold")
    say(console, f"  {'cache':14} {'KV buffers':>10} {'compute':>8} {'process':>8}", "bold")
    for each in measured:
        kv, compute, process = (part / 2**20 for part in astuple(each.memory))
        say(console, f"  {each.cache.name:14} {kv:10.1f} {compute:8.1f} {process:8.1f}")


def _print_speed(console: Console, measured: Sequence[Measured]) -> None:
    tests = list(measured[0].speed)
    say(console, f"tokens per second over those with {BASE}, median and interval", "bold")
    for test in tests:
        say(console, f"  {test}", "bold")
        for each in measured[1:]:
            found = each.speed[test]
            say(console, f"    {each.cache.name:14} {found.median:5.2f}  {_interval(found)}")


def _interval(found: Interval) -> str:
    return f"({found.low:.2f} to {found.high:.2f})"


def document(
    model: str,
    setting: Mapping[str, Any],
    measured: Sequence[Measured],
    commands: Mapping[str, str],
) -> dict[str, Any]:
    """Return the JSON document."""
    return {
        "schema": SCHEMA,
        "model": model,
        "setting": dict(setting),
        "caches": [
            {
                "name": each.cache.name,
                "bytes_per_element": each.bytes_per_element,
                "memory": asdict(each.memory),
                "quality": asdict(each.quality),
                "speed": {test: asdict(found) for test, found in each.speed.items()},
            }
            for each in measured
        ],
        "commands": dict(commands),
    }
