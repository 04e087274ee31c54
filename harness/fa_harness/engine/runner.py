"""Run cases on a library and yield their verdicts in order, with all cores at work."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import pickle
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fa_harness.case import captures
from fa_harness.case.case import Case
from fa_harness.case.inputs import Inputs, make_inputs
from fa_harness.case.modes import Run, modes_of, offered
from fa_harness.case.quants import TYPES
from fa_harness.case.variations import Variation
from fa_harness.engine import memory
from fa_harness.engine.ggml import CPU, Device
from fa_harness.engine.worker import Lost, Worker
from fa_harness.errors import SetupError
from fa_harness.judge.expectations import Expectations
from fa_harness.judge.verdict import Verdict, judge
from fa_harness.kernel import path
from fa_harness.machine import usable_cores

_WORTH_A_WORKER = 16
"""Least cases per worker: to start a worker takes as long as some cases."""
_WORTH_A_THREAD = 2 << 20
"""Least products per case, times workers. Threads that hold the interpreter at once hinder each
other, and the oracle of small cases holds it nearly always."""
_AHEAD = 32
"""Verdicts per worker that may wait for an earlier one."""
_LONGEST = 1e6
"""Seconds; more than 24 days do not fit in the milliseconds of `poll`."""


Passed = dict[Case, set[bytes]]
"""By case, the digests of results that passed. A verdict depends on case and results alone."""


class Runner:
    """A library, or one of its mutants, in workers of its own; use it in a `with` block.

    Results that are in `passed` are not judged again, which saves most of the time where a library
    computes the same cases with one mutant after another. Of such a case only the status is told.
    `modes` are those of cases that are run without naming any. `device` is what computes them, as
    the library's registry names it.
    """

    def __init__(
        self,
        module_path: Path,
        *,
        device: str = CPU,
        mutant: str | None = None,
        passed: Passed | None = None,
        modes: tuple[str, ...] = (),
    ) -> None:
        self._module_path = module_path
        self._mutant = mutant
        self._passed = passed
        self._modes = modes or None
        self._device = device
        self._worker = Worker(module_path, device=device, mutant=mutant)
        self._others: list[Worker] = []
        self.reached: dict[Case, frozenset[str]] = {}
        """By case, the mutants that its last result was computed with; a lost case has none."""

    def __enter__(self) -> Runner:
        self._worker.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in (self._worker, *self._others):
            worker.__exit__(*exception)

    def compute_with(self, mutant: str | None, *, restart: bool = False) -> None:
        """Compute the next cases with another mutant, or with none.

        `restart` computes them in a new process, which no earlier mutant has spoiled.
        """
        self._mutant = mutant
        for worker in (self._worker, *self._others):
            worker.mutant = mutant
            if restart:
                worker.__exit__()  # it starts anew with its next case

    @property
    def features(self) -> tuple[str, ...]:
        """The CPU features that the library uses."""
        return self._worker.features

    @property
    def has_state(self) -> bool:
        """Whether the library's flash attention takes a state."""
        return "full_state" not in self._worker.lacks

    @property
    def mutants(self) -> tuple[str, ...]:
        """The mutants that the library has."""
        return self._worker.mutants

    @property
    def devices(self) -> tuple[Device, ...]:
        """The devices that the library can compute on."""
        return self._worker.devices

    def run(
        self,
        cases: Sequence[Case],
        *,
        modes: tuple[str, ...] | None = None,
        timeout: float | None = None,
        with_outputs: bool = False,
    ) -> Iterator[Verdict]:
        """Yield the verdict of each case, in order.

        Large cases of one thread run side by side, one per core. So do cases of several threads,
        with a core for each thread and one for the verdict: ggml's barrier spins while a thread
        waits for a core. Other cases are computed one at a time; the next one is computed while the
        last is judged if a core is free for it.

        `modes` are some of `modes.MODES` that apply to the cases; `standard` is always computed.
        Without them it is the runner's, or else each case's own modes, less those for which a
        library that has the state lacks another function. `timeout` is in seconds for a case, by
        default a generous estimate. `with_outputs` also keeps the numbers of large outputs.
        """
        modes = modes or self._modes
        submit = functools.partial(
            _Computing,
            self._worker,
            modes=modes,
            timeout=timeout,
            with_outputs=with_outputs,
            passed=self._passed,
            reached=self.reached,
        )
        for n_threads, group in itertools.groupby(cases, key=lambda case: case.threads):
            some = list(group)
            n_core = n_threads + (n_threads > 1)
            n_worker = min(usable_cores() // n_core, len(some) // _WORTH_A_WORKER)
            mean = sum(map(_products, some)) / len(some)
            needed = max(memory.needed_bytes(case, modes or modes_of(case)) for case in some)
            if (
                n_worker > 1
                and mean * n_worker >= _WORTH_A_THREAD
                and memory.is_available(n_worker * needed)
            ):
                yield from self._side_by_side(some, n_worker, submit)
            else:
                yield from self._in_turn(some, submit, is_ahead=n_threads < usable_cores())

    def compute(
        self, case: Case, variation: Variation | None = None, *, timeout: float | None = None
    ) -> Run | Lost:
        """Return what one call over a case, or a variation of it, leaves behind, or why not."""
        captures.checked(case)
        modes = ("standard",)
        if reason := _unsupported(case, modes, self._worker):
            return Lost(status="unsupported", reason=reason)
        if reason := memory.too_large(case, modes):
            return Lost(status="oversized", reason=reason)
        limit = timeout or _ample_seconds(case)
        self._worker.submit(case, modes, limit, variation, is_patient=timeout is None)
        return self._worker.result()

    def _in_turn(
        self, cases: Sequence[Case], submit: Callable[[Worker, Case], _Computing], *, is_ahead: bool
    ) -> Iterator[Verdict]:
        """Yield the verdicts of cases that one worker computes.

        If `is_ahead`, a case is judged, and the oracle of the next one computed, while the worker
        computes the next.
        """
        computing: _Computing | None = None
        waiting: _Computing | None = None
        try:
            for case in cases:
                try:
                    computing = submit(self._worker, case)
                except SetupError:
                    if waiting is not None:
                        yield waiting.verdict()  # this result is there already
                    raise
                if waiting is not None:
                    yield waiting.verdict()
                    waiting = None  # it may be large
                    if computing.is_oversized:  # perhaps it fits now
                        computing = submit(self._worker, case)
                computing.prepare(with_oracle=is_ahead)
                computing.wait()
                waiting, computing = computing, None
                if not is_ahead:
                    yield waiting.verdict()
                    waiting = None
            if waiting is not None:
                yield waiting.verdict()
        finally:
            if computing is not None:  # no more is wanted, or it failed
                self._worker.__exit__()  # it starts anew with the next case

    def _side_by_side(
        self, cases: Sequence[Case], n_worker: int, submit: Callable[[Worker, Case], _Computing]
    ) -> Iterator[Verdict]:
        """Yield the verdicts of cases that run in `n_worker` workers at once, in order."""
        while len(self._others) < n_worker - 1:
            self._others.append(  # it starts with its first case
                Worker(
                    self._module_path,
                    device=self._device,
                    digest=self._worker.digest,
                    mutant=self._mutant,
                )
            )
        workers = [self._worker, *self._others][:n_worker]
        idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in workers:
            idle.put(worker)

        def run_in_idle(case: Case) -> Verdict:
            worker = idle.get()
            try:
                computing = submit(worker, case)
                computing.prepare(with_oracle=False)
                computing.wait()
                return computing.verdict()
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
            busy = workers if waiting else []  # no more is wanted, or it failed
            for worker in busy:
                worker.interrupt()
            pool.shutdown()
            for worker in busy:
                worker.__exit__()  # it starts anew with the next case


class _Computing:
    """A case that a worker computes, up to its verdict. Time spent in here is the case's time."""

    def __init__(
        self,
        started: Worker,
        worker: Worker,
        case: Case,
        *,
        modes: tuple[str, ...] | None,
        timeout: float | None,
        with_outputs: bool,
        passed: Passed | None,
        reached: dict[Case, frozenset[str]],
    ) -> None:
        """Let the worker start, unless the case cannot be computed.

        `started` is a worker that knows the library already.
        """
        captures.checked(case)
        self._is_asked = modes is not None
        if modes is None:
            lacks = started.lacks
            modes = modes_of(case) if "full_state" in lacks else offered(case, lacks)
        self._worker = worker
        self._case = case
        self._modes = modes
        self._features = started.features
        self._with_outputs = with_outputs
        self._passed = passed
        self._reached = reached
        self._inputs: Inputs | None = None
        self._result: Run | Lost | None = None
        self._expected: Expectations | None = None
        self._seconds = 0.0
        if reason := _unsupported(case, modes, started):
            self._result = Lost(status="unsupported", reason=reason)
        elif reason := memory.too_large(case, modes):
            self._result = Lost(status="oversized", reason=reason)
        else:
            with self._timed():
                limit = timeout or _ample_seconds(case)
                worker.submit(case, modes, limit, is_patient=timeout is None)

    @property
    def is_oversized(self) -> bool:
        """Whether there was too little memory for the case."""
        return isinstance(self._result, Lost) and self._result.status == "oversized"

    def prepare(self, *, with_oracle: bool) -> None:
        """Compute what the verdict needs beside the result, while the worker computes that."""
        if self._result is not None or (self._passed is not None and self._case in self._passed):
            return
        try:
            with self._timed():
                self._inputs = make_inputs(self._case)
                if with_oracle:
                    self._expected = Expectations(self._case, self._inputs, self._features)
                    self._expected.prepare(self._modes)
        except (MemoryError, OverflowError) as error:
            self._worker.stop()
            self._result = Lost.of_memory("the oracle", error)

    def wait(self) -> None:
        """Wait for the worker, which can then take another case."""
        if self._result is None:
            with self._timed():
                self._result = self._worker.result()
            self._reached[self._case] = self._worker.mutants_reached

    def verdict(self) -> Verdict:
        """Judge the worker's result."""
        assert self._result is not None
        if isinstance(self._result, Lost):
            return self._without_comparisons(self._result.status, self._result.reason)
        refused = [mode for mode in self._modes if mode in self._result.refused]
        if refused and self._is_asked:
            why = self._result.refused[refused[0]]
            return self._without_comparisons("unsupported", f"mode {refused[0]}: {why}")
        self._modes = tuple(mode for mode in self._modes if mode not in refused)
        verdict = self._judged(self._result)
        return dataclasses.replace(verdict, standard=digest_of(self._result))

    def _judged(self, run: Run) -> Verdict:
        digest = b""
        if self._passed is not None:
            digest = _digest(run)
            if digest in self._passed.get(self._case, ()):
                return self._without_comparisons("pass", "")
        try:
            with self._timed():
                if self._inputs is None:
                    self._inputs = make_inputs(self._case)
                verdict = judge(
                    self._case,
                    self._inputs,
                    run,
                    features=self._features,
                    modes=self._modes,
                    expected=self._expected,
                    with_outputs=self._with_outputs,
                )
        except MemoryError as error:
            lost = Lost.of_memory("the comparison", error)
            return self._without_comparisons(lost.status, lost.reason)
        if self._passed is not None and verdict.status == "pass":
            self._passed.setdefault(self._case, set()).add(digest)
        return dataclasses.replace(verdict, seconds=self._seconds)

    def _without_comparisons(self, status: str, reason: str) -> Verdict:
        return Verdict(
            case=self._case,
            status=status,
            path=path(self._case, features=self._features),
            reason=reason,
            seconds=self._seconds,
        )

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - start


def digest_of(run: Run) -> bytes:
    """Return the digest of the bits of one call without a state, as `Verdict.standard` has it."""
    output = run.results["standard"].output
    one_nan = np.where(np.isnan(output), np.float32(np.nan), output)
    return hashlib.sha256(one_nan.tobytes()).digest()


def _digest(run: Run) -> bytes:
    """Return a digest of all that a verdict looks at: everything but the time that it took."""
    return hashlib.sha256(pickle.dumps(dataclasses.replace(run, seconds={}), protocol=5)).digest()


def _unsupported(case: Case, modes: tuple[str, ...], worker: Worker) -> str | None:
    """Return why the harness or the worker's library cannot compute a case, or None."""
    for field, type_name in (("type_K", case.type_K), ("type_V", case.type_V)):
        if type_name not in TYPES:
            known = ", ".join(TYPES)
            return f"{field}={type_name}: the harness cannot encode it; it can {known}"
        if type_name not in worker.types:
            return f"{field}={type_name}: the library's ggml does not have it"
    lacks = worker.lacks
    if case.sinks and "sinks" in lacks:
        return f"the library has no {lacks['sinks']}; take a case without sinks"
    for mode in modes:
        if mode in lacks:
            instead = f"leave mode {mode} out"
            instead = "use --mode standard" if "full_state" in lacks else instead
            return f"the library has no {lacks[mode]}; {instead}"
    return None


def _products(case: Case) -> int:
    """Return how many products of numbers one call computes."""
    return case.n_head * case.n_batch * case.ne3 * case.n_kv * (case.hsk_padded + case.hsv_padded)


def _ample_seconds(case: Case) -> float:
    """Return seconds that a case cannot need: a minute, and a thousandth of the usual speed."""
    return min(60 + _products(case) * (9 + case.segments) / 1e7, _LONGEST)
