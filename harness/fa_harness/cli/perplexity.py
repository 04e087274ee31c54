"""`perplexity`: a real model with its attention in segments, and with a cache of two types."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from fa_harness import proc, progress
from fa_harness.errors import FaHarnessError, SetupError
from fa_harness.model.llama import BENCH, PERPLEXITY, build_llama, is_trapped, no_repack
from fa_harness.model.perplexity import (
    CacheRun,
    Perplexity,
    Run,
    Setting,
    judge,
    parse,
    plan_mixed,
    plan_segments,
)
from fa_harness.project import find_project, writing
from fa_harness.report.perplexity import EndToEnd, print_caches, print_segments

NOT_ROTATED = {"LLAMA_ATTN_ROT_DISABLE": "1"}
"""llama.cpp rotates K and V of a quantised cache, which helps it, and does not of an F16 one."""


@dataclass(frozen=True, kw_only=True)
class _Programs:
    """What runs a model, and how."""

    program: Path
    model: Path
    text: Path
    options: tuple[str, ...]
    logs: Path

    def run(self, run: Run) -> Perplexity:
        """Run it once; of a text and a setting it gives the same each time."""
        log = self.logs / f"{PERPLEXITY}-{run.name.replace('/', '-')}.txt"
        return measure(self._command(run), run.environment, log)[0]

    def shown(self, run: Run) -> str:
        """Return its command, to be pasted into a shell."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in run.environment.items()]
        return " ".join([*settings, proc.paste(self._command(run))])

    def _command(self, run: Run) -> list[str | Path]:
        return [self.program, "-m", self.model, "-f", self.text, *run.arguments, *self.options]


def measure(
    command: Sequence[str | Path], environment: Mapping[str, str], log: Path
) -> tuple[Perplexity, float]:
    """Run `llama-perplexity`; returns what it printed, and how many seconds it took.

    Its log is written by a thread, whose last lines may be lost when the process ends: one that
    ended well without an estimate is run once more.

    Raises:
        ProgramError: It failed.
        FaHarnessError: It printed no estimate.
    """
    # settings of the caller's own would change what is compared
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("LLAMA_")}
    for is_last in (False, True):
        start = time.perf_counter()
        output = proc.run(command, env={**inherited, **environment}, log=log)
        seconds = time.perf_counter() - start
        try:
            return parse(output), seconds
        except FaHarnessError:
            if is_last:
                raise
    raise AssertionError("unreachable")


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

    Args:
        model: A GGUF.
        text: What its perplexity is taken of.
        setting: How the text goes through the model; its window of local layers is the model's.
        segments: Numbers of segments.
        mixed: Compare caches of two types with uniform ones of the same size, too.
        console: Where the tables go.
        verbose: Print every command.

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
    options = no_repack(PERPLEXITY) if is_trapped(built, model, setting.threads, logs) else []
    programs = _Programs(
        program=built.program(PERPLEXITY),
        model=model,
        text=text,
        options=tuple(options),
        logs=logs,
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
            run = Run(
                name=f"{each.run.name}, not rotated",
                environment=NOT_ROTATED,
                arguments=each.run.arguments,
            )
            rows.append(CacheRun(run=run, bytes_per_element=each.bytes_per_element))
    return rows


def _run_all(programs: _Programs, runs: Sequence[Run]) -> Iterator[tuple[str, Perplexity]]:
    with progress.bar(f"running {PERPLEXITY}") as advance:
        for n, run in enumerate(runs):
            advance(n, len(runs))
            try:
                yield run.name, programs.run(run)
            except proc.ProgramError as error:
                raise SetupError(f"{PERPLEXITY}, {run.name}: failed\n{error}") from error


def window_of(model: Path) -> int:
    """Return the window of a model's local layers, 0 if it has none.

    Args:
        model: A GGUF.

    Raises:
        SetupError: Its metadata cannot be read.
    """
    import gguf

    try:
        fields = gguf.GGUFReader(model).fields
        architecture = fields["general.architecture"].contents()
        window = fields.get(f"{architecture}.attention.sliding_window")
        return int(window.contents()) if window is not None else 0
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise SetupError(f"model {model}: its metadata cannot be read ({error})") from error
