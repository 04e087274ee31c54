"""What a person sees of shrinking a case: the steps, and how the smallest one fails."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from fa_harness.hunt.shrink import Shrunk, Step
from fa_harness.judge.verdict import Verdict
from fa_harness.report.results import explain


def print_shrink_step(console: Console, step: Step) -> None:
    """Print what is simpler in a case that still fails, and what shows that it does."""
    line = Text(f"  {step.what}")
    line.append(f"  {_words(step.failure.name)}", style="dim")
    console.print(line, soft_wrap=True)


def print_shrunk(console: Console, shrunk: Shrunk, verdict: Verdict) -> None:
    """Print how far it went, and why the smallest case fails."""
    n = len(shrunk.steps)
    end = "nothing simpler fails" if shrunk.finished else "stopped before all was tried"
    console.print(
        Text(f"{n} step{'s' * (n != 1)}, {shrunk.tried} cases run: {end}", style="bold"),
        soft_wrap=True,
    )
    for line in explain(verdict):
        console.print(Text(f"    {line}"), soft_wrap=True)


def _words(name: str) -> str:
    return name.replace("_", " ")
