"""`mutants`: faults in the kernel, and the cases that notice them.

Its JSON has the schema `fa-harness.mutants/1`.
"""

from __future__ import annotations

import contextlib
import itertools
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from fa_harness.build.builder import build_test_backend_ops
from fa_harness.build.named import held_library
from fa_harness.build.names import GENERATED, MUTANTS, Name
from fa_harness.case.label import label, regex
from fa_harness.case.suites import suite as cases_of_suite
from fa_harness.cli import options
from fa_harness.engine.session import Clock, Session
from fa_harness.errors import UsageError
from fa_harness.hunt import generate as generated
from fa_harness.hunt import mutants, upstream_test
from fa_harness.hunt.equivalent import ObjectCode
from fa_harness.hunt.mutants import (
    STATUSES,
    SUITES,
    Mutant,
    Outcome,
    load_killers,
    renewed,
    save_killers,
)
from fa_harness.series.outcomes import keep_of_mutants
from fa_harness.terminal import counted, make_console, number_of, say, say_summary, write_json
from fa_harness.upstream.source import find_source

SCHEMA = "fa-harness.mutants/1"

_STYLE = {"killed": "green", "survived": "bold red", "invalid": "bold red", "equivalent": "yellow"}


@click.command("mutants")
@click.option("--suite", metavar="NAME", help="Use only the cases of this suite.")
@click.option(
    "--killers", is_flag=True, help="Run only the case that is recorded as the mutant's killer."
)
@click.option("--record", is_flag=True, help="Record the cases that kill, for --killers.")
@click.option(
    "--generate",
    is_flag=True,
    help="Use mutants that are made by rule from every line of attention.",
)
@options.count("--sample", "Try N of the generated mutants.", default=400)
@options.count(
    "--seed", "Seed of the sample and of --fuzz.  [default: today's date]", least=0, metavar="S"
)
@options.count("--fuzz", "Also try N random cases, after the suites.", least=0, default=0)
@options.count(
    "--upstream", "Also run upstream's own test on N of the generated mutants.", least=0, default=0
)
@click.option("-k", "pattern", metavar="REGEX", help="Select mutants by id.")
@click.option("--list", "list_only", is_flag=True, help="Print the selected mutants and exit.")
@options.series
@options.json_path
@click.option(
    "-v", "--verbose", is_flag=True, help="Print what each mutant does and what found it."
)
def command(
    *,
    suite: str | None,
    killers: bool,
    record: bool,
    generate: bool,
    sample: int,
    seed: int | None,
    fuzz: int,
    upstream: int,
    pattern: str | None,
    list_only: bool,
    series: str | None,
    json_path: str | None,
    verbose: bool,
) -> bool:
    """Put faults into the kernel and check that the cases find them.

    Each mutant runs the cases of suite smoke, then those of larger suites, until one fails. An
    impostor, which computes nothing, must fail every case. Exit code 1: a mutant survived or was
    never executed.

    --killers takes seconds: it runs the cases in mutants/killers.toml of the series only.

    --generate changes one operator, constant, condition, index, variable, argument, type or
    statement at a time, and tries a sample of these changes. It says how many the suites kill, and
    with --fuzz how many random cases kill beyond that. A change that leaves the object code as it
    is, or has a reason in mutants/equivalent.toml of the series, is equivalent. --upstream takes
    mutants at equal distances and leaves out those that are equivalent; one that upstream's test
    does not see takes minutes.
    """
    if killers and (suite or record):
        raise UsageError("--killers tries recorded cases; leave out --suite and --record")
    if generate and (killers or record):
        raise UsageError("--generate has no recorded killers; leave out --killers and --record")
    if upstream and not generate:
        raise UsageError("--upstream tries generated mutants; add --generate")
    project = options.project_of(series)
    folder = project.mutants
    seed = int(f"{date.today():%Y%m%d}") if seed is None else seed
    if generate:
        every = generated.load(project)
        drawn = generated.sample(every, sample, seed)
    else:
        every = drawn = mutants.load(folder / "mutants.toml")
        if any(mutant.kind == "cache" for mutant in every):
            raise UsageError(
                f"the mutants of '{series}' are in llama.cpp; run fa-harness schedules --mutants"
            )
    every, drawn = (
        tuple(replace(mutant, series=series or "") for mutant in some) for some in (every, drawn)
    )
    selected = [
        mutant for mutant in (every if pattern else drawn) if regex(pattern).search(mutant.id)
    ]
    if not selected:
        raise UsageError(f"none of {len(every)} mutants matches -k {pattern!r}; --list shows them")
    if list_only:
        for mutant in selected:
            click.echo(f"{mutant.id:30}  {mutant.kind:8}  {mutant.does}")
        return True
    console = make_console(stderr=json_path == "-")
    suites = () if killers else (suite,) if suite else SUITES
    cases = {name: cases_of_suite(name) for name in suites}
    if fuzz:
        from fa_harness.case.strategies import draw_cases  # hypothesis takes its time to load

        cases["fuzz"] = list(itertools.islice(draw_cases(seed), fuzz))
    recorded = load_killers(folder / "killers.toml", every) if killers else {}
    outcomes: dict[str, Outcome] = {}
    name = str(Name(project=project, part=GENERATED if generate else MUTANTS))
    program = build_test_backend_ops(project, name, options={}) if upstream else None
    by_upstream = {mutant.id for mutant in _spread(selected, upstream)}
    lines: dict[str, str] = {}
    with held_library(name, {}) as found:
        clock = Clock(found)
        code = ObjectCode(found)
        if killers:
            trials = mutants.run_killers(found, selected, recorded)
        else:
            trials = mutants.run(found, selected, cases, why_equivalent=code.why_equivalent)
        print_headings(console)
        with (
            contextlib.suppress(KeyboardInterrupt),  # the report has fewer outcomes than mutants
            counted(console, "mutants", len(selected)) as advance,
        ):
            for outcome in trials:
                id_ = outcome.mutant.id
                outcomes[id_] = outcome
                print_outcome(console, outcome, verbose=verbose)
                if program and id_ in by_upstream and outcome.status in ("killed", "survived"):
                    lines[id_] = upstream_test.sees(program, id_)
                    by = lines[id_] or "nothing"
                    say(console, f"    upstream's test fails at: {by}", "dim")
                advance()
    score = Score(
        **clock.fields(interrupted=len(outcomes) < len(selected)),
        suites=tuple(cases),
        selected=tuple(selected),
        outcomes=tuple(outcomes[m.id] for m in selected if m.id in outcomes),
        upstream=lines,
    )
    print_summary(console, score)
    write_json(document(score), json_path)
    if not (generate or pattern or suite or score.interrupted):
        counts = Counter(outcome.status for outcome in score.outcomes)
        keep_of_mutants(project, find_source(project), counts)
    if record:
        file = folder / "killers.toml"
        with held_library(name, {}) as library:
            killed = mutants.on_one_thread(library, score.outcomes)
        save_killers(file, renewed(load_killers(file, every), killed), every)
    return score.passed


@dataclass(frozen=True, kw_only=True)
class Score(Session):
    """What became of all mutants, and what they were tried with."""

    suites: tuple[str, ...]
    """Those that were tried, in their order; none where recorded killers were."""
    selected: tuple[Mutant, ...]
    outcomes: tuple[Outcome, ...]
    """In the order of `selected`; fewer where the run was interrupted."""
    upstream: Mapping[str, str] = field(default_factory=dict)
    """By id, of those that upstream's own test was run on: the line that fails, or an empty one."""

    def count(self, status: str) -> int:
        """Return how many mutants have a status."""
        return sum(outcome.status == status for outcome in self.outcomes)

    @property
    def faults(self) -> list[Outcome]:
        """Those of mutants of the kernel and the API that can show."""
        return [
            outcome
            for outcome in self.outcomes
            if outcome.mutant.kind != "impostor" and outcome.status != "equivalent"
        ]

    @property
    def by_suite(self) -> dict[str, int]:
        """How many of the faults each suite kills, with those before it."""
        counts = Counter(fault.suite for fault in self.faults)
        return dict(
            zip(self.suites, itertools.accumulate(counts[s] for s in self.suites), strict=True)
        )

    @property
    def killed_beside_upstream(self) -> int:
        """How many of those that upstream's own test was run on the suites kill."""
        return sum(o.status == "killed" and o.mutant.id in self.upstream for o in self.outcomes)

    @property
    def passed(self) -> bool:
        """Whether every mutant was killed or has a reason why it cannot be."""
        good = self.count("killed") + self.count("equivalent")
        return good == len(self.selected) and self.count("killed") > 0


def print_headings(console: Console) -> None:
    """Print the names of the columns."""
    say(console, f"{'mutant':30}  {'status':10}  {'by':28}  case", "bold")


def print_outcome(console: Console, outcome: Outcome, *, verbose: bool = False) -> None:
    """Print a mutant's line, and what a person needs to go on where it was not killed."""
    mutant, status = outcome.mutant, outcome.status
    case = label(outcome.case) if outcome.case else ""
    line = Text(f"{mutant.id:30}  ")
    line.append(status, _STYLE[status])
    line.append(f"{'':{10 - len(status)}}  {told_by(outcome):28}  {case}")
    say(console, line)
    if status != "killed" or verbose:
        say(console, f"    {mutant.patch}: {mutant.does}")
        say(console, f"    shown by: {mutant.shown_by}")
        say(console, f"    {outcome.reason}", _STYLE[status])
        say(console, f"    {_repro(mutant)}", "dim")


def print_summary(console: Console, score: Score) -> None:
    """Print the last line: how many mutants, what became of them, on what, how long."""
    parts = [f"{score.count(status)} {status}" for status in STATUSES if score.count(status)]
    n, total = len(score.outcomes), len(score.selected)
    mutants = f"{n} of {total} mutants (interrupted)"
    if not score.interrupted:
        mutants = number_of(n, "mutant")
    by = "each against its recorded killer"
    if score.suites:
        n_fault = len(score.faults)
        first, *others = score.by_suite.items()
        by = f"suite {first[0]} alone kills {_share(first[1], n_fault)}"
        # those that add something
        by += "".join(
            f", with {suite} {_share(n, n_fault)}"
            for (_, before), (suite, n) in itertools.pairwise([first, *others])
            if n > before
        )
    if score.upstream:
        seen = sum(map(bool, score.upstream.values()))
        by += f"; upstream's test sees {seen} of {len(score.upstream)}"
        by += f", the suites {score.killed_beside_upstream} of these"
    head = f"{mutants}: {', '.join(parts) or 'none ran'}"
    rest = f"{by} | ggml {score.library['ggml_version']} | {score.seconds:.1f} s"
    say_summary(console, head, rest, passed=score.passed)


def _share(n: int, n_fault: int) -> str:
    return f"{n} of {n_fault} faults" + (f" ({n / n_fault:.0%})" if n_fault else "")


def document(score: Score) -> dict[str, Any]:
    """Return the JSON document as plain data."""
    return {
        **score.header(SCHEMA),
        "suites": list(score.suites),
        "summary": {
            "mutants": len(score.outcomes),
            **{status: score.count(status) for status in STATUSES},
            "faults": len(score.faults),
            "killed_by_first_suite": next(iter(score.by_suite.values()), 0),
            "killed_by_suites": score.by_suite,
            "tried_by_upstream": len(score.upstream),
            "killed_by_upstream": sum(map(bool, score.upstream.values())),
            "killed_beside_upstream": score.killed_beside_upstream,
        },
        "results": [
            {**_result(outcome), "upstream": score.upstream.get(outcome.mutant.id)}
            for outcome in score.outcomes
        ],
    }


def _spread(mutants: Sequence[Mutant], n: int) -> Sequence[Mutant]:
    """Return some of the mutants, at most `n`, at equal distances."""
    return mutants[:: -(-len(mutants) // n)] if n else ()


def _repro(mutant: Mutant) -> str:
    """Return the command that tries a mutant again."""
    generate = ["--generate"] if mutant.file else []
    of_series = ["--series", mutant.series] if mutant.series else []
    return shlex.join(
        ["fa-harness", "mutants", *of_series, *generate, "-v", "-k", f"^{mutant.id}$"]
    )


def _result(outcome: Outcome) -> dict[str, Any]:
    mutant = outcome.mutant
    return {
        "mutant": mutant.id,
        "class": mutant.class_,
        "kind": mutant.kind,
        "patch": mutant.patch,
        "file": mutant.file or None,
        "line": mutant.line or None,
        "does": mutant.does,
        "shown_by": mutant.shown_by,
        "status": outcome.status,
        "suite": outcome.suite or None,
        "case": str(outcome.case) if outcome.case else None,
        "comparison": outcome.comparison or None,
        "reason": outcome.reason,
        "cases": outcome.n_case,
        "seconds": round(outcome.seconds, 4),
        "repro": _repro(mutant),
    }


def told_by(outcome: Outcome) -> str:
    """Return what told: the comparison, or in short the reason."""
    if outcome.status != "killed":
        return ""
    if outcome.mutant.kind == "impostor" and outcome.suite:
        return f"each of {outcome.n_case} cases"
    return outcome.comparison or outcome.reason.partition("\n")[0].partition(":")[0]
