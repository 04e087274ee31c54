"""Cases x modes on a library -> verdicts, one after another."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from fa_harness.cases import Case
from fa_harness.inputs import make_inputs
from fa_harness.modes import modes_of, path
from fa_harness.verdict import Verdict, judge
from fa_harness.worker import Lost, Worker


class Runner:
    """A library under test, in a worker of its own; use it in a `with` block."""

    def __init__(self, module_path: Path) -> None:
        self._worker = Worker(module_path)

    def __enter__(self) -> Runner:
        self._worker.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._worker.__exit__(*exception)

    @property
    def features(self) -> tuple[str, ...]:
        """The CPU features that the library uses."""
        return self._worker.features

    def run(
        self,
        cases: Sequence[Case],
        *,
        modes: tuple[str, ...] | None = None,
        timeout: float | None = None,
        with_outputs: bool = False,
    ) -> Iterator[Verdict]:
        """Yield the verdict of each case, in order.

        Args:
            cases: What to run.
            modes: Some of `modes.MODES` that apply to the cases; `standard` is always computed.
                None for each case's own, less those that need what the library lacks beside the
                state itself.
            timeout: Seconds for a case; None for an estimate with much room.
            with_outputs: Keep the numbers of large outputs, too.
        """
        for case in cases:
            start = time.perf_counter()
            lacks = self._worker.lacks
            asked = modes_of(case) if modes is None else modes
            if modes is None and "full_state" not in lacks:
                asked = tuple(mode for mode in asked if mode not in lacks)
            impossible = next((mode for mode in asked if mode in lacks), None)
            if impossible is not None:
                reason = (
                    "use --mode standard"
                    if "full_state" in lacks
                    else f"leave mode {impossible} out"
                )
                yield _without_comparisons(
                    case, "unsupported", f"the library has no {lacks[impossible]}; {reason}", start
                )
                continue
            self._worker.submit(case, asked, timeout or _ample_seconds(case))
            inputs = make_inputs(case)  # the worker makes its own meanwhile
            run = self._worker.result()
            if isinstance(run, Lost):
                yield _without_comparisons(case, run.status, run.reason, start)
                continue
            verdict = judge(case, inputs, run, features=self.features, with_outputs=with_outputs)
            yield verdict.took(time.perf_counter() - start)


def _ample_seconds(case: Case) -> float:
    """Return a time that a case cannot need: a minute, and a thousandth of the usual speed."""
    products = case.n_head * case.nb * case.ne3 * case.kv * (case.hsk + case.hsv)
    return 60 + products * (9 + case.segments) / 1e7


def _without_comparisons(case: Case, status: str, reason: str, start: float) -> Verdict:
    return Verdict(
        case=case,
        status=status,
        path=path(case),
        modes=(),
        reason=reason,
        comparisons={},
        outputs={},
        seconds=time.perf_counter() - start,
    )
