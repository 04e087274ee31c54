"""`series check`: what becomes of the series on other upstreams.

Its JSON has the schema `fa-harness.series-check/1`.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from fa_harness.build.named import built_libraries
from fa_harness.build.names import PATCHED, PRISTINE
from fa_harness.case.case import Case
from fa_harness.case.suites import suite as cases_of_suite
from fa_harness.cli import options
from fa_harness.engine.runner import Runner
from fa_harness.engine.session import offered_modes
from fa_harness.errors import SetupError
from fa_harness.project import Project
from fa_harness.series.outcomes import keep_of_pin
from fa_harness.series.series import load_series, series_for
from fa_harness.series.status import drift
from fa_harness.series.tree import note, prepare_tree
from fa_harness.stacks import EVERY_PIN
from fa_harness.terminal import make_console, say, write_json, write_text
from fa_harness.upstream.pins import load_pins
from fa_harness.upstream.source import find_source

SCHEMA = "fa-harness.series-check/1"


@click.command("check")
@click.option(
    "--upstream",
    "names",
    multiple=True,
    metavar="NAME|DIR|all",
    help="A pin, your checkout, or all pins; repeatable.  [default: the pins in series.toml]",
)
@options.suites("Suite to run; repeatable.")
@options.series
@options.markdown
@options.json_path
def command(
    *,
    names: tuple[str, ...],
    suites: tuple[str, ...],
    series: str | None,
    markdown: str | None,
    json_path: str | None,
) -> bool:
    """Apply, build and test a series on the upstreams on which it must hold.

    A case that pristine upstream gets wrong in the same way counts as upstream's own failure. Exit
    code 1: the series does not apply or build somewhere, or another case fails.
    """
    project = options.project_of(series)
    pins = load_pins(project.pins_file)
    about = project.about()
    suites = suites or about.suites
    wanted = tuple(dict.fromkeys(names)) or about.pins_of(tuple(pins.upstreams))
    if EVERY_PIN in wanted:
        wanted = tuple(pins.upstreams)
    console = make_console(stderr="-" in (markdown, json_path))
    checked = check(project, wanted, suites, console)
    if markdown is not None:
        write_text(markdown_check(checked, suites), markdown)
    write_json(document(checked, project.series), json_path)
    return all(each.passed for each in checked)


@dataclass(frozen=True, kw_only=True)
class WrongCase:
    """A case that does not pass on an upstream."""

    case: str
    status: str
    reason: str
    is_upstreams: bool
    """Pristine upstream gets it wrong in the same way, without a state."""


@dataclass(frozen=True, kw_only=True)
class SuiteOutcome:
    """How a suite came out on an upstream."""

    cases: int
    wrong: tuple[WrongCase, ...]

    def __str__(self) -> str:
        """Return it in a few words."""
        own = sum(case.is_upstreams for case in self.wrong)
        ours = len(self.wrong) - own
        words = [f"{self.cases - len(self.wrong)} of {self.cases}"]
        words += [f"{ours} not"] if ours else []
        words += [f"{own} not upstream either"] if own else []
        return ", ".join(words)


@dataclass(kw_only=True)
class CheckedUpstream:
    """What became of the series on one upstream."""

    upstream: str
    library: str = PATCHED
    ggml_version: str = ""
    patches: int = 0
    """Of the whole series."""
    applied: int = 0
    drift: int = 0
    """Lines by which the hunk that moved most is off."""
    variants: int = 0
    """Patches that have something else there."""
    problem: str = ""
    """Why it does not apply or does not build."""
    suites: Mapping[str, SuiteOutcome] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether it applies, builds, and gets nothing wrong that upstream gets right."""
        wrong = [case for outcome in self.suites.values() for case in outcome.wrong]
        return not self.problem and all(case.is_upstreams for case in wrong)


def print_check(console: Console, checked: CheckedUpstream) -> None:
    """Print a line for an upstream, and what is wrong there below it."""
    style = "green" if checked.passed else "bold red"
    _, *cells = _cells(checked).items()
    words = "  ".join(f"{name} {cell}" for name, cell in cells)
    line = Text(f"{checked.upstream:18}  {words}")
    for suite, outcome in checked.suites.items():
        line.append(f"  {suite}: {outcome}", style=style)
    if checked.problem:
        line.append("  does not apply, build or load", style=style)
    say(console, line)
    for text in checked.problem.splitlines():
        say(console, f"    {text}")
    for outcome in checked.suites.values():
        for case in outcome.wrong:
            whose = ", upstream's own" if case.is_upstreams else ""
            run = ["fa-harness", "run", "--library", checked.library, "--case", case.case]
            repeat = f"UPSTREAM={shlex.quote(checked.upstream)} {shlex.join(run)}"
            say(console, f"    {case.status}{whose}: {case.reason}")
            say(console, f"      {repeat}", "dim")


def markdown_check(checked: Sequence[CheckedUpstream], suites: Sequence[str]) -> str:
    """Return the matrix as a Markdown table."""
    rows = [
        _cells(each) | {suite: str(each.suites.get(suite, "-")) for suite in suites}
        for each in checked
    ]
    lines = [rows[0], ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def document(checked: Sequence[CheckedUpstream], series: str) -> dict[str, Any]:
    """Return the JSON document."""
    return {
        "schema": SCHEMA,
        "series": series,
        "passed": all(each.passed for each in checked),
        "upstreams": [{**_row(each), "passed": each.passed} for each in checked],
    }


def _row(checked: CheckedUpstream) -> dict[str, Any]:
    row = asdict(checked)
    del row["library"]
    return row


def _cells(checked: CheckedUpstream) -> dict[str, str]:
    return {
        "upstream": checked.upstream,
        "ggml": checked.ggml_version or "-",
        "patches": f"{checked.applied} of {checked.patches}" if not checked.problem else "-",
        "variants": str(checked.variants),
        "drift": str(checked.drift),
    }


def check(
    project: Project, upstreams: Sequence[str], suites: Sequence[str], console: Console
) -> list[CheckedUpstream]:
    """Check the series on upstreams, a pin's name or a checkout's folder, and print each at once.

    A case that pristine upstream gets wrong without a state, too, is upstream's own.
    """
    cases = {suite: cases_of_suite(suite) for suite in suites}
    for name in upstreams:
        find_source(project, name)
    checked = []
    for name in upstreams:
        checked.append(CheckedUpstream(upstream=name, library=project.stack_name))
        try:
            _check(project, cases, checked[-1])
        except SetupError as error:
            checked[-1].problem = str(error)
        if {*suites} >= {*project.about().suites}:
            with contextlib.suppress(SetupError):  # patches that cannot be read
                keep_of_pin(project, find_source(project, name), passed=checked[-1].passed)
        print_check(console, checked[-1])
    return checked


def _check(project: Project, suites: Mapping[str, Sequence[Case]], found: CheckedUpstream) -> None:
    """Fill in what becomes of the series on an upstream."""
    source = find_source(project, found.upstream)
    series = series_for(project, source)
    tree = prepare_tree(project, source, series)
    whole, own = load_series(project), series.own
    found.ggml_version, found.patches = tree.ggml_version, len(whole.patches)
    if tree.applied.conflict:
        found.problem = note(source, series, tree.applied)
        return
    found.applied = len(own.patches)
    found.drift = max(drift(tree, series), default=0) if tree.applied.is_exact else 0
    found.variants = sum(a != b for a, b in zip(own.digests, whole.digests, strict=False))
    with (
        built_libraries(
            project, [project.stack_name, PRISTINE], upstream=found.upstream
        ) as libraries,
        Runner(libraries[0].module_path) as patched,
        Runner(libraries[1].module_path) as pristine,
    ):
        modes = offered_modes(patched, libraries[0])
        found.suites = {
            name: _outcome(patched, pristine, cases, modes) for name, cases in suites.items()
        }


def _outcome(
    patched: Runner, pristine: Runner, cases: Sequence[Case], modes: tuple[str, ...] | None
) -> SuiteOutcome:
    wrong = []
    for verdict in patched.run(cases, modes=modes):
        if verdict.status in ("pass", "unsupported"):
            continue
        [without] = pristine.run([verdict.case], modes=())
        wrong.append(
            WrongCase(
                case=str(verdict.case),
                status=verdict.status,
                reason=verdict.reason,
                # the same numbers in its reason, too: nothing else is wrong beside that
                is_upstreams=(without.status, without.reason) == (verdict.status, verdict.reason),
            )
        )
    return SuiteOutcome(cases=len(cases), wrong=tuple(wrong))
