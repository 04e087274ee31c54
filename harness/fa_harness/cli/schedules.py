"""`schedules`: the memory of a KV cache of two types after random steps, and faults put into it."""

from __future__ import annotations

import time

import click
from rich.console import Console
from rich.text import Text

from fa_harness.case.label import regex
from fa_harness.cli import options
from fa_harness.engine.ggml.llama import Llama
from fa_harness.errors import SetupError, UsageError
from fa_harness.hunt.mutants import Mutant, load
from fa_harness.model.cache_mutants import Outcome, try_mutant
from fa_harness.model.llama import BINDINGS, TEST_KV_CACHE_MIXED, build_llama
from fa_harness.project import Project, find_project, writing
from fa_harness.terminal import counted, make_console, number_of, say, say_summary

_STYLE = {"killed": "green", "survived": "bold red", "invalid": "bold red", "equivalent": "yellow"}
_OF_A_MUTANT = 60
"""Schedules that a mutant runs."""


@click.command("schedules")
@options.count("--count", f"Run N schedules.  [default: 1000; {_OF_A_MUTANT} of a mutant]")
@options.count("--seed", "Seed of the schedules.", least=0, default=1, metavar="S")
@click.option("--mutants", is_flag=True, help="Put faults into the cache, one after the other.")
@click.option("-k", "pattern", metavar="REGEX", help="Select mutants by id.")
@click.option("--list", "list_only", is_flag=True, help="Print the selected mutants and exit.")
@click.option(
    "-v", "--verbose", is_flag=True, help="Print commands, and what each mutant does and breaks."
)
def command(
    *,
    count: int | None,
    seed: int,
    mutants: bool,
    pattern: str | None,
    list_only: bool,
    verbose: bool,
) -> bool:
    """Compare the memory of a KV cache of two types with its rule, step by step.

    A schedule is a series of batches, aborted batches, removals, copies, shifts, saving and loading
    on a small model. After each step every token of each sequence has to be in one part, once, with
    its bytes. llama.cpp is built with the series `mixed`.

    With --mutants the schedules, and llama.cpp's own test of the cache, run on each deliberate
    fault. Exit code 1: a token is not where it should be; or a mutant survived, or was never
    reached.
    """
    if (pattern or list_only) and not mutants:
        raise UsageError("-k and --list select mutants; add --mutants")
    project, console = find_project(stack="mixed"), make_console(stderr=False)
    if mutants:
        n = count or _OF_A_MUTANT
        return _try_mutants(project, console, n, seed, pattern, list_only, verbose)
    return _run(project, console, count or 1000, seed, verbose)


def _run(project: Project, console: Console, n: int, seed: int, verbose: bool) -> bool:
    from fa_harness.model.schedules import (  # hypothesis takes its time to load
        Runner,
        Schedule,
        run_schedules,
    )

    built = build_llama(project, (), own=[BINDINGS], verbose=verbose)
    last = built.cmake.parent / "schedule.txt"
    runner = Runner(Llama(built.program(BINDINGS)))
    start = time.perf_counter()
    with counted(console, "schedules", n) as advance:

        def note(schedule: Schedule) -> None:
            advance()
            with writing(last):  # llama.cpp may end the process
                last.write_text(f"{schedule}\n", encoding="utf-8")

        found = run_schedules(runner, n, seed, note=note)
    tally = runner.tally
    if found:
        say(console, found)
    say_summary(
        console,
        f"{tally.schedules} schedules: {'a fault' if found else 'all as the rule says'}",
        f"{tally.steps} steps, {tally.tokens} tokens; {tally.moved} moved, {tally.unseen} of them "
        f"in the batch that they came with; {tally.turned} K turned, {tally.loaded} tokens loaded; "
        f"{tally.aborted} aborted and {tally.full} without room; "
        f"{time.perf_counter() - start:.0f} s",
        passed=not found,
    )
    return not found


def _try_mutants(
    project: Project,
    console: Console,
    n: int,
    seed: int,
    pattern: str | None,
    list_only: bool,
    verbose: bool,
) -> bool:
    every = load(project.mutants / "mutants.toml")
    selected = [mutant for mutant in every if regex(pattern).search(mutant.id)]
    if not selected:
        raise UsageError(f"none of {len(every)} mutants matches -k {pattern!r}; --list shows them")
    if list_only:
        for mutant in selected:
            click.echo(f"{mutant.id:26}  {mutant.does}")
        return True
    targets, own = [TEST_KV_CACHE_MIXED], [BINDINGS]
    built = build_llama(project, targets, mutants=True, own=own, verbose=verbose)
    without = try_mutant(None, built, n, seed)
    if without.status != "survived":
        said = without.by_schedules or without.by_test
        raise SetupError(f"without a mutant there is a fault, too: {said}")
    say(console, f"{'mutant':26}  {'status':10}  {'schedules':9}  {TEST_KV_CACHE_MIXED}", "bold")
    counts = dict.fromkeys(_STYLE, 0)
    with counted(console, "mutants", len(selected)) as advance:
        for mutant in selected:
            outcome = try_mutant(mutant, built, n, seed)
            is_known = mutant.equivalent and outcome.status == "survived"
            status = "equivalent" if is_known else outcome.status
            counts[status] += 1
            say(console, _row(mutant, status, outcome))
            for line in (mutant.does, outcome.by_schedules, outcome.by_test) if verbose else ():
                if line:
                    say(console, f"    {line}", "dim")
            advance()
    passed = not counts["survived"] and not counts["invalid"]
    shown = ", ".join(f"{number} {status}" for status, number in counts.items() if number)
    head = f"{number_of(len(selected), 'mutant')}: {shown}"
    say_summary(console, head, f"{n} schedules of seed {seed}", passed=passed)
    return passed


def _row(mutant: Mutant, status: str, outcome: Outcome) -> Text:
    text = Text(f"{mutant.id:26}  ")
    text.append(f"{status:10}", style=_STYLE[status])
    by = ("x" if words else "" for words in (outcome.by_schedules, outcome.by_test))
    text.append("  {:9}  {}".format(*by))
    text.rstrip()
    return text
