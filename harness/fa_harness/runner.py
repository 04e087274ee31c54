"""Cases x modes on a library -> verdicts, in order, as many cases at once as there are cores."""

from __future__ import annotations

import functools
import itertools
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from fa_harness.cases import Case
from fa_harness.expectations import Expectations
from fa_harness.inputs import make_inputs
from fa_harness.machine import usable_cores
from fa_harness.modes import modes_of, path
from fa_harness.quants import TYPES
from fa_harness.verdict import Verdict, judge
from fa_harness.worker import Lost, Worker

_WORTH_A_WORKER = 16
"""Cases for each worker at least: to start one takes the time of some."""
_AHEAD = 32
"""Verdicts for each worker that may wait for one before them."""


class Runner:
    """A library under test, in workers of its own; use it in a `with` block.

    Args:
        module_path: The library's module.
        mutant: Which of the library's mutants it computes with.
    """

    def __init__(self, module_path: Path, *, mutant: str | None = None) -> None:
        self._module_path = module_path
        self._mutant = mutant
        self._worker = Worker(module_path, mutant=mutant)
        self._others: list[Worker] = []

    def __enter__(self) -> Runner:
        self._worker.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in (self._worker, *self._others):
            worker.__exit__(*exception)

    @property
    def features(self) -> tuple[str, ...]:
        """The CPU features that the library uses."""
        return self._worker.features

    @property
    def mutants(self) -> tuple[str, ...]:
        """The mutants that the library has."""
        return self._worker.mutants

    @property
    def mutant_reached(self) -> bool:
        """Whether the last result of a worker was computed with the mutant."""
        return any(worker.mutant_reached for worker in (self._worker, *self._others))

    def run(
        self,
        cases: Sequence[Case],
        *,
        modes: tuple[str, ...] | None = None,
        timeout: float | None = None,
        with_outputs: bool = False,
    ) -> Iterator[Verdict]:
        """Yield the verdict of each case, in order.

        Cases of one thread run side by side, one on each core; so do cases of more, with a core for
        each thread and one for the verdict, since ggml's barrier spins while a thread waits for a
        core.

        Args:
            cases: What to run.
            modes: Some of `modes.MODES` that apply to the cases; `standard` is always computed.
                None for each case's own, less those that need what the library lacks beside the
                state itself.
            timeout: Seconds for a case; None for an estimate with much room.
            with_outputs: Keep the numbers of large outputs, too.

        Raises:
            SetupError: The environment does not let it go on: the library was replaced, a disk is
                full.
        """
        run_case = functools.partial(
            self._run_case, modes=modes, timeout=timeout, with_outputs=with_outputs
        )
        for n_threads, group in itertools.groupby(cases, key=lambda case: case.threads):
            some = list(group)
            n_core = n_threads + (n_threads > 1)
            n_worker = min(usable_cores() // n_core, len(some) // _WORTH_A_WORKER)
            if n_worker < 2:
                # the oracle's share is done meanwhile, where there is a core for it
                is_meanwhile = n_threads < usable_cores()
                yield from (
                    run_case(self._worker, case, is_meanwhile=is_meanwhile) for case in some
                )
            else:
                yield from self._side_by_side(some, n_worker, run_case)

    def _side_by_side(
        self, cases: Sequence[Case], n_worker: int, run_case: Callable[[Worker, Case], Verdict]
    ) -> Iterator[Verdict]:
        """Yield the verdicts of cases that run in `n_worker` workers at once, in order."""
        while len(self._others) < n_worker - 1:
            # it starts with its first case
            self._others.append(
                Worker(self._module_path, digest=self._worker.digest, mutant=self._mutant)
            )
        workers = [self._worker, *self._others][:n_worker]
        idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in workers:
            idle.put(worker)

        def run_in_idle(case: Case) -> Verdict:
            worker = idle.get()
            try:
                return run_case(worker, case)
            finally:
                idle.put(worker)

        waiting: deque[Future[Verdict]] = deque()
        pool = ThreadPoolExecutor(n_worker)
        try:
            for case in cases:
                waiting.append(pool.submit(run_in_idle, case))
                while waiting and (waiting[0].done() or len(waiting) > _AHEAD * n_worker):
                    yield waiting[0].result()
                    waiting.popleft()
            while waiting:
                yield waiting[0].result()
                waiting.popleft()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            if waiting:  # no more is wanted, or it failed
                for worker in workers:
                    worker.interrupt()
            pool.shutdown()
            if waiting:
                for worker in workers:
                    worker.__exit__()  # it starts anew with the next case

    def _run_case(
        self,
        worker: Worker,
        case: Case,
        *,
        is_meanwhile: bool = False,
        modes: tuple[str, ...] | None,
        timeout: float | None,
        with_outputs: bool,
    ) -> Verdict:
        start = time.perf_counter()
        asked = self._asked(case) if modes is None else modes
        reason = self._unsupported(case, asked)
        if reason is not None:
            return _without_comparisons(case, "unsupported", reason, start)
        worker.submit(case, asked, timeout or _ample_seconds(case))
        inputs = make_inputs(case)  # the worker makes its own meanwhile
        expected = None
        if is_meanwhile:
            expected = Expectations(case, inputs, self.features)
            expected.prepare(asked)
        run = worker.result()
        if isinstance(run, Lost):
            return _without_comparisons(case, run.status, run.reason, start)
        verdict = judge(
            case,
            inputs,
            run,
            features=self.features,
            modes=asked,
            expected=expected,
            with_outputs=with_outputs,
        )
        return verdict.took(time.perf_counter() - start)

    def _asked(self, case: Case) -> tuple[str, ...]:
        """Return a case's own modes, less those that need more than a state."""
        lacks = self._worker.lacks
        if "full_state" in lacks:
            return modes_of(case)
        return tuple(mode for mode in modes_of(case) if mode not in lacks)

    def _unsupported(self, case: Case, modes: tuple[str, ...]) -> str | None:
        """Return why the harness or the library cannot compute a case, or None."""
        for field, type_name in (("type_K", case.type_K), ("type_V", case.type_V)):
            if type_name not in TYPES:
                known = ", ".join(TYPES)
                return f"{field}={type_name}: the harness cannot encode it; it can {known}"
            if type_name not in self._worker.types:
                return f"{field}={type_name}: the library's ggml does not have it"
        lacks = self._worker.lacks
        if case.sinks and "sinks" in lacks:
            return f"the library has no {lacks['sinks']}; take a case without sinks"
        impossible = next((mode for mode in modes if mode in lacks), None)
        if impossible is None:
            return None
        no_state = "full_state" in lacks
        instead = "use --mode standard" if no_state else f"leave mode {impossible} out"
        return f"the library has no {lacks[impossible]}; {instead}"


def _ample_seconds(case: Case) -> float:
    """Return a time that a case cannot need: a minute, and a thousandth of the usual speed."""
    products = case.n_head * case.nb * case.ne3 * case.kv * (case.hsk_padded + case.hsv_padded)
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
