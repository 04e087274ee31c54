"""Bug or rounding: a case's one call, varied in ways that must not change its result.

Each variation is computed on the library and compared with the case's own call: see
`case/variations.py` for what is varied and `kernel.keeps_bits` for what must keep its bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fa_harness.case.case import Case
from fa_harness.case.inputs import make_inputs
from fa_harness.case.variations import Varied, as_it_is, variations_of
from fa_harness.engine.runner import Runner
from fa_harness.engine.session import Session
from fa_harness.engine.worker import Lost
from fa_harness.judge.invariance import OUTCOMES, Invariance, Outcome
from fa_harness.kernel import path

AS_IT_IS = "as it is"
NOT_VARIED = "not varied"


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came out of variations that belong together."""

    name: str
    calls: int
    paths: tuple[str, ...]
    """The paths that they took."""
    required: str
    """`bits`, or `bound` where one of the calls may differ by roundings; empty without calls."""
    outcome: str
    """The worst of the calls': one of `OUTCOMES`; `crash`, `timeout`, ... where one was lost; or
    `NOT_VARIED`."""
    worst: Outcome | None = None
    """The call whose outcome is the worst, and of those the one nearest to its bound."""
    reason: str = ""
    """Why a call was lost, or why there are none."""

    @property
    def passed(self) -> bool:
        """Whether no call differs and none was lost."""
        return self.outcome in (*OUTCOMES[:2], NOT_VARIED)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came out of a case."""

    case: Case
    path: str
    rows: tuple[Row, ...]
    unsupported: str = ""
    """Why the case was not computed at all; it has no rows then."""

    @property
    def passed(self) -> bool:
        """Whether all rows passed."""
        return all(row.passed for row in self.rows)


@dataclass(frozen=True, kw_only=True)
class Found(Session):
    """All that was varied, and what it ran on."""

    verdicts: tuple[Verdict, ...]
    selected: int
    """Cases that were to be varied."""

    @property
    def passed(self) -> bool:
        """Whether every case was varied or cannot be computed here, some were, and none differs."""
        all_passed = all(verdict.passed for verdict in self.verdicts)
        some = any(verdict.rows for verdict in self.verdicts)
        return all_passed and some and len(self.verdicts) == self.selected


def vary_all(
    runner: Runner,
    case: Case,
    *,
    timeout: float | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
) -> Verdict:
    """Compute a case's one call and its variations; `on_row` is told of each row.

    Of a case in segments it is one call over all keys.
    """
    first = runner.compute(case, as_it_is(case), timeout=timeout)
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row)
        on_row(row)

    name = path(case, features=runner.features)
    if isinstance(first, Lost):
        if first.status == "unsupported":
            return Verdict(case=case, path=name, rows=(), unsupported=first.reason)
        add(_lost(AS_IT_IS, 1, first))
    else:
        inputs = make_inputs(case)
        judge = Invariance(case, inputs, first.results["standard"].output, runner.features)
        add(_row(AS_IT_IS, [judge.against_oracle()]))
        for varied in variations_of(case, inputs):
            add(_of(runner, case, varied, judge, timeout))
    return Verdict(case=case, path=name, rows=tuple(rows))


def _of(
    runner: Runner, case: Case, varied: Varied, judge: Invariance, timeout: float | None
) -> Row:
    if not varied.calls:
        return Row(
            name=varied.name, calls=0, paths=(), required="", outcome=NOT_VARIED,
            reason=varied.why_not,
        )  # fmt: skip
    outcomes = []
    for variation in varied.calls:
        run = runner.compute(case, variation, timeout=timeout)
        if isinstance(run, Lost):
            return _lost(varied.name, len(varied.calls), run)
        outcomes.append(judge.judge(variation, run.results["standard"].output))
    return _row(varied.name, outcomes)


def _row(name: str, outcomes: Sequence[Outcome]) -> Row:
    worst = max(
        outcomes, key=lambda found: (OUTCOMES.index(found.outcome), found.comparison.of_bound)
    )
    return Row(
        name=name,
        calls=len(outcomes),
        paths=tuple(dict.fromkeys(found.path for found in outcomes)),
        required="bits" if all(found.required == "bits" for found in outcomes) else "bound",
        outcome=worst.outcome,
        worst=worst,
    )


def _lost(name: str, calls: int, lost: Lost) -> Row:
    return Row(
        name=name, calls=calls, paths=(), required="", outcome=lost.status, reason=lost.reason
    )
