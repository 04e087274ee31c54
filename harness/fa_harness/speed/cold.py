"""A case on several libraries and peers in one process, cold: seconds by way, round by round.

There are so many copies of K and V that together they are larger than the caches, and each
computation takes the next one. So it finds K and V in memory, as a decode finds those of the next
layer, and Q and the mask in a cache. All ways read the same copies at the same addresses. A round
times each way once, in an order drawn anew.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from fa_harness.arrays import F16, F32, U8
from fa_harness.case.case import Case
from fa_harness.case.inputs import Inputs, make_inputs
from fa_harness.engine.ggml import Ggml, Graph, Tensor
from fa_harness.engine.layout import CaseTensors, aligned, as_bytes
from fa_harness.machine import last_level_cache
from fa_harness.speed.bench import kv_bytes
from fa_harness.speed.limits import Limits
from fa_harness.speed.timing import Seconds, allocate_work_at_pages

MEMORY, FMA = "memory", "fma"
"""The ways that time the machine: per byte that is read, and per F32 operation."""

MAX_NMSE = 5e-4
"""How far a result may be from the library's: what upstream's own test allows."""

_MOST_COLD = 512 << 20  # bytes of the copies, where the cache is huge: it has other users, too
_MOST_COPIES = 256  # a context has room for the graphs of so many; no row needs more
_USUAL_CACHE = 32 << 20
_TIMED = 20e-3  # seconds of a timing at least, unless that takes more calls than
_MOST_REPETITIONS = 8
_LONG = 20e-3  # seconds of a computation to which the start of threads adds too little to matter
_NODES = 8  # of a graph with one call
_POLL = 50  # upstream's own default; from one computation to the next no thread sleeps


@dataclass(frozen=True, kw_only=True)
class Cold:
    """A case's inputs as they lie in memory, token by token."""

    case: Case
    inputs: Inputs
    q: F32
    """`[n_batch, n_head, hsk]`."""
    mask: F16 | None
    """`[n_batch, n_kv]`; None where the case has none."""
    copies: tuple[tuple[U8, U8 | None], ...]
    """K and V, `[n_kv, n_head_kv, bytes of a row]`; where V is None, it is a view of K."""


class Way(Protocol):
    """Something that computes a case on the copy that it is told."""

    def ready(self) -> AbstractContextManager[Callable[[int], object]]:
        """Give the function that computes; threads that it needs run meanwhile."""

    def result(self) -> F32:
        """Return what was computed last, `[n_batch, n_head, hsv]`."""


class Peer(Protocol):
    """Another implementation of flash attention."""

    name: str
    version: str

    def why_not(self, case: Case) -> str | None:
        """Return why it does not compute a case, or None."""

    def way(self, cold: Cold) -> AbstractContextManager[Way]:
        """Give its way to compute a case that it computes."""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """What was measured of a case."""

    seconds: Mapping[str, Seconds]
    """By the name of a library or peer, `[rounds]`; of `MEMORY` a byte, of `FMA` an operation."""
    unavailable: Mapping[str, str]
    """By name, why a library or a peer was not timed."""


def cold_bytes() -> int:
    """Return how many bytes of K and V are read before a copy of them is read again, at least."""
    return min(2 * (last_level_cache() or _USUAL_CACHE), _MOST_COLD)


def measure(
    case: Case,
    libraries: Mapping[str, Ggml],
    peers: Sequence[Peer],
    limits: Limits,
    *,
    rounds: int,
    seed: int = 0,
) -> Timed:
    """Time a case; results must be that of the first library. `seed` draws the orders."""
    allocate_work_at_pages()
    cold = make_cold(case, n_copies=_n_copies(case))
    unavailable = {peer.name: why for peer in peers if (why := peer.why_not(case))}
    with ExitStack() as stack:
        ways: dict[str, Way] = {
            name: stack.enter_context(_own_way(ggml, cold)) for name, ggml in libraries.items()
        }
        for peer in peers:
            if peer.name not in unavailable:
                ways[peer.name] = stack.enter_context(peer.way(cold))
        unavailable |= _wrong(ways)
        turns = itertools.cycle(range(len(cold.copies)))
        timers: dict[str, Callable[[], float]] = {
            name: _timer(way, turns) for name, way in ways.items() if name not in unavailable
        }
        timers[MEMORY] = partial(_time_unit, partial(limits.reading, case.threads))
        timers[FMA] = partial(_time_unit, partial(limits.multiplying, case.threads))
        return Timed(seconds=_rounds(timers, rounds, seed), unavailable=unavailable)


def _wrong(ways: Mapping[str, Way]) -> dict[str, str]:
    """Compute each way once; return which differ from the first, and how far."""
    results: dict[str, F32] = {}
    for name, way in ways.items():
        with way.ready() as compute:
            compute(0)
        results[name] = np.array(way.result())
    first, *others = results
    expected, found = results[first], {}
    for name in others:
        nmse = float(np.sum((results[name] - expected) ** 2) / np.sum(expected**2))
        if not nmse <= MAX_NMSE:  # NaN, too
            found[name] = f"its result is not that of {first}: NMSE {nmse:.2g} > {MAX_NMSE:g}"
    return found


def _rounds(
    timers: Mapping[str, Callable[[], float]], rounds: int, seed: int
) -> dict[str, Seconds]:
    """Time each once a round."""
    order = random.Random(seed)
    seconds = {name: np.empty(rounds) for name in timers}
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            for name in order.sample(sorted(timers), len(timers)):
                seconds[name][i] = timers[name]()
    finally:
        gc.enable()
    return seconds


def _timer(way: Way, turns: Iterator[int]) -> Callable[[], float]:
    """Return what times a way; each computation is on the next copy, whoever had the last one."""
    once = _time(way, turns, 1, warm_up=False)
    repetitions = min(_MOST_REPETITIONS, max(1, math.ceil(_TIMED / once)))
    return partial(_time, way, turns, repetitions, warm_up=once < _LONG)


def _time(way: Way, turns: Iterator[int], repetitions: int, *, warm_up: bool) -> float:
    """Return the median seconds of a computation."""
    taken = []
    with way.ready() as compute:
        if warm_up:
            compute(next(turns))
        for _ in range(repetitions):
            copy = next(turns)
            start = time.perf_counter_ns()
            compute(copy)
            taken.append(time.perf_counter_ns() - start)
    return float(np.median(taken)) * 1e-9


def _time_unit(ready: Callable[[], AbstractContextManager[Callable[[], int]]]) -> float:
    """Return the seconds of one of the units that a function does."""
    with ready() as do:
        start = time.perf_counter_ns()
        n_units = do()
        return (time.perf_counter_ns() - start) * 1e-9 / n_units


def _n_copies(case: Case) -> int:
    """Return how many copies there are so that none is in a cache when its turn comes again."""
    return min(math.ceil(cold_bytes() / kv_bytes(case)) + 1, _MOST_COPIES)


def make_cold(case: Case, *, n_copies: int) -> Cold:
    """Lay out a case's inputs, with so many copies of K and V."""
    inputs = make_inputs(case)
    q = aligned(np.ascontiguousarray(inputs.q[0].swapaxes(0, 1)))
    k = inputs.k_raw[0].swapaxes(0, 1)
    v = None if case.v_is_view_of_k else inputs.v_raw[0].swapaxes(0, 1)
    return Cold(
        case=case,
        inputs=inputs,
        q=q,
        mask=None if inputs.mask is None else inputs.mask[0, 0],
        copies=tuple((aligned(k), None if v is None else aligned(v)) for _ in range(n_copies)),
    )


@contextlib.contextmanager
def _own_way(ggml: Ggml, cold: Cold) -> Iterator[_OwnWay]:
    """Give the way of one of our libraries: a graph for each copy, and one output."""
    shared: dict[str, U8] = {"q": as_bytes(cold.q)[None]}
    with ggml.context() as ctx:
        calls = []
        for k, v in cold.copies:
            layouts = {**shared, "k": k[None], **({} if v is None else {"v": v[None]})}
            tensors = CaseTensors(ctx, cold.case, cold.inputs, layouts, in_place=True)
            calls.append(tensors.call(tensors.cache(), (0, cold.case.n_kv), sinks=False))
            shared = {name: array for name, array in layouts.items() if name not in ("k", "v")}
        graphs = [ctx.graph([call], kept=False, size=_NODES) for call in calls]
        with ggml.backend(1) as backend:
            backend.allocate(ctx)
        yield _OwnWay(ggml=ggml, graphs=graphs, outputs=calls, n_threads=cold.case.threads)


@dataclass(kw_only=True)
class _OwnWay:
    ggml: Ggml
    graphs: Sequence[Graph]
    outputs: Sequence[Tensor]
    n_threads: int
    _last: int = 0

    @contextlib.contextmanager
    def ready(self) -> Iterator[Callable[[int], None]]:
        """Give the function that computes, on a backend of its own: none of another spins."""
        with self.ggml.backend(self.n_threads, poll=_POLL) as backend:

            def compute(copy: int) -> None:
                self._last = copy
                backend.compute(self.graphs[copy])

            yield compute

    def result(self) -> F32:
        found: F32 = self.outputs[self._last].read()[0]
        return found
