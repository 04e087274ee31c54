"""What is wrong, worst first, as every report for a person or a CI server lists it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fa_harness.case.case import Case
from fa_harness.case.label import label
from fa_harness.engine.session import Results
from fa_harness.judge.verdict import Verdict
from fa_harness.judge.words import explain
from fa_harness.speed.gate import KINDS, Gate
from fa_harness.speed.instructions import Count
from fa_harness.speed.ratios import Ratio

_WORST_FIRST = ("crash", "timeout", "fail", "mistrusted", "oversized")


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """One thing that is wrong."""

    kind: str  # a case's status, or what else stops a gate, in words
    case: str  # case string
    lines: tuple[str, ...]  # the first line says what is wrong, the others where
    repro: str  # the command that shows it again
    verdict: Verdict | None  # the case's, where it ran

    @property
    def title(self) -> str:
        """The kind and the case in a few words."""
        return f"{self.kind}: {label(Case.parse(self.case))}"


def troubles(results: Results, gate: Gate | None = None) -> list[Trouble]:
    """Return what is wrong with a run, and what a gate found in it beyond that."""
    found = [
        Trouble(
            kind=verdict.status,
            case=str(verdict.case),
            lines=tuple(explain(verdict)),
            repro=results.repro(verdict.case),
            verdict=verdict,
        )
        for status in _WORST_FIRST
        for verdict in results.verdicts
        if verdict.status == status
    ]
    verdicts = {str(verdict.case): verdict for verdict in results.verdicts}
    for finding in gate.findings if gate else ():
        of_case = verdicts.get(finding.case)
        if finding.kind == "failed" and of_case is not None:
            continue  # is there already
        found.append(
            Trouble(
                kind=KINDS[finding.kind],
                case=finding.case,
                lines=tuple(finding.text.splitlines()),
                repro=finding.repro,
                verdict=of_case,
            )
        )
    return found


def in_short(found: Sequence[Trouble]) -> list[str]:
    """Return what is wrong and how often, most first.

    Such as `14 x fail, segmented vs standard, numerators wrong first (vec)`.
    """
    paths: dict[str, list[str]] = {}
    for each in found:
        about, _, _ = each.lines[0].partition(":")
        if each.verdict and each.verdict.localisation:
            about += f", {each.verdict.localisation.part} wrong first"
        path = each.verdict.path if each.verdict else "not run"
        paths.setdefault(f"{each.kind}, {about}", []).append(path)
    most_first = sorted(paths.items(), key=lambda item: -len(item[1]))
    return [f"{len(of)} x {what} ({', '.join(sorted(set(of)))})" for what, of in most_first]


def measured_in_words(measured: Ratio | Count) -> str:
    """Return what was measured: a way, and another library if it is compared with one."""
    way = measured.way.replace("_", " ")
    return way if measured.to in ("standard", "parts") else f"{way} to {measured.to}"


def passed(results: Results, gate: Gate | None) -> bool:
    """Tell whether a run passed, or the gate that it was run for."""
    return results.passed if gate is None else gate.passed


def state(results: Results, gate: Gate | None) -> str:
    """Return `good` or `bad`; `unchecked` for a gate that passed with most checks not made."""
    if not passed(results, gate):
        return "bad"
    return "unchecked" if gate and gate.is_mostly_unchecked else "good"


def headline(results: Results, gate: Gate | None) -> str:
    """Return the verdict in a line."""
    what = "gate" if gate else "run"
    made = f", {gate.n_made} of {len(gate.checks)} checks made" if gate else ""
    n = len(troubles(results, gate))
    if passed(results, gate):
        return f"{what} passed{made}: {_counts(results)}"
    if n:
        why = f"{n} finding{'s' * (n != 1)}"
    elif results.interrupted:
        why = "interrupted"
    else:
        why = "not all was checked (--strict)" if results.passed else "no case passed"
    return f"{what} failed{made}: {why}, {_counts(results)}"


def unchecked(gate: Gate | None) -> list[str]:
    """Return why a gate did not make some checks, and which, a line each."""
    if gate is None:
        return []
    missing = [gate.without_baseline] if gate.without_baseline else []
    if gate.not_checked:
        missing.append(f"not checked: {', '.join(gate.not_checked)}")
    return missing


def _counts(results: Results) -> str:
    statuses = ("pass", *_WORST_FIRST, "unsupported")
    counts = [f"{results.count(s)} {s}" for s in statuses if results.count(s)]
    ran = len(results.verdicts)
    of = f"{ran} of {results.selected}" if ran != results.selected else f"{ran}"
    return f"{of} cases ({', '.join(counts) or 'none ran'})"


def origin(results: Results) -> str:
    """Return in a line what ran, on what, how long."""
    of_run = f"{results.seconds:.0f} s, fa-harness {results.tool_version}"
    return f"{results.what_ran}, on {results.machine['cpu']}, {of_run}"
