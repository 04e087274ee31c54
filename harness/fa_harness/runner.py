"""Cases x modes on a library -> verdicts, one after another."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from fa_harness.cases import Case
from fa_harness.inputs import make_inputs
from fa_harness.modes import MODES, path
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
        modes: tuple[str, ...] = MODES,
        timeout: float | None = None,
        with_outputs: bool = False,
    ) -> Iterator[Verdict]:
        """Yield the verdict of each case, in order.

        Args:
            cases: What to run.
            modes: Some of `modes.MODES`; `standard` is always computed.
            timeout: Seconds for a case; None for an estimate with much room.
            with_outputs: Keep the numbers of large outputs, too.
        """
        for case in cases:
            start = time.perf_counter()
            if not self._worker.has_state and set(modes) != {"standard"}:
                yield _without_comparisons(
                    case,
                    "unsupported",
                    "the library has no ggml_flash_attn_ext_with_state; use --mode standard",
                    start,
                )
                continue
            self._worker.submit(case, modes, timeout or _ample_seconds(case))
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
    return 60 + products * (3 + case.segments) / 1e7


def _without_comparisons(case: Case, status: str, reason: str, start: float) -> Verdict:
    return Verdict(
        case=case,
        status=status,
        path=path(case),
        reason=reason,
        comparisons={},
        outputs={},
        seconds=time.perf_counter() - start,
    )
