"""A case on two libraries in one process: the seconds of each way to compute it, round by round.

All ways read the same bytes at the same addresses, so that neither the place of an array nor what
lies in the caches favours one of them. A round times each of them once, in an order drawn anew:
what drifts during a run moves all of them alike, and ratios are taken within a round.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import math
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np

from fa_harness.arrays import F32, F64, U8
from fa_harness.case.case import Case
from fa_harness.case.inputs import Inputs, make_inputs
from fa_harness.engine.ggml import Backend, Context, Ggml, Graph, Tensor
from fa_harness.engine.layout import CaseTensors, Keys, aligned
from fa_harness.kernel import Q_TILE, SPLIT_KV, path

Seconds = F64

SEGMENTS = (2, 8, 32)
"""The chains that are timed."""

_GRAPH = 16 * SEGMENTS[-1]  # nodes and leaves of the longest chain
_EMPTY_CALLS = 32  # in one graph, so that what a graph costs does not count
_WARM_UP = 1e-3  # seconds at least, and one computation
_LONG = 20e-3  # seconds of a computation to which the start of threads adds too little to matter
_TIMED = 6e-3  # seconds at least; the clock ticks in tens of nanoseconds
_MOST = 0.1  # seconds after which nothing is repeated: a busy core costs a tick at each barrier
_POLL = 50  # upstream's own default; from one computation to the next no thread sleeps
_MMAP_BYTES = 64 << 10  # less than the work memory of any case
_COPIED_BYTES = 64 << 20  # more than caches hold


@dataclass(frozen=True, kw_only=True)
class Timings:
    """What was measured of a case."""

    seconds: Mapping[str, Seconds]
    """Seconds of one computation, `[rounds]`, by the way to compute it:

    `baseline`      one call without a state, of the baseline library
    `standard`      the same of the library under test; the others are of this library, too
    `again`         the same with an output and a graph of its own
    `standard_vec`  the same on the vec path, where a chain takes that and `standard` does not
    `full_state`    one call with a fresh state
    `segmented_N`   N calls with one state that is fresh at first, in one graph
    `parts_N`       N calls of the baseline library without a state, in one graph; 8 of a long
                    decode, others where they are asked for
    `baseline_vec`  `standard_vec` of the baseline library, where parts take that path
    `empty_PATH`    a call of the baseline library, in a graph of many, with no key to see
    `mixed`         the chain of a case whose segments have types of their own
    `mixed_parts`   calls of the baseline library without a state on the same segments
    `byte`          reading or writing a byte of memory, with as many threads
    `stored_byte`   writing a byte of the state's rows from a cache to memory, one row at a time,
                    with as many threads: each line of memory is read to be written, which half a
                    copy does not count, and which the C library avoids where it copies many rows
    """
    repetitions: int
    """Computations that one timing is the median of."""
    work_size: Mapping[str, int]
    """Bytes of work memory planned for a graph."""
    allocations: Mapping[str, int]
    """How often the library asks for memory while it computes a graph; empty if that is unknown."""


def measure(
    library: Ggml,
    baseline: Ggml,
    case: Case,
    *,
    rounds: int,
    seed: int = 0,
    parts: Collection[int] = (),
) -> Timings:
    """Time a case on two libraries in this process, of which the first has the state.

    The case's segments do not matter, unless they have types of their own: of such a case only
    `mixed`, and `mixed_parts` twice, as `standard` and `again`, are timed. `seed` draws the order
    in each round. `parts` are those of `SEGMENTS` whose calls without a state are timed, too.
    """
    parts = {*parts, 8} if is_long_decode(case) else {*parts}
    allocate_work_at_pages()
    inputs = make_inputs(case)
    layouts: dict[str, U8] = {}
    with ExitStack() as stack:
        ours, theirs = (
            _Graphs(ggml, stack.enter_context(ggml.context()), case, inputs, layouts)
            for ggml in (library, baseline)
        )
        if case.segment_types:
            calls = {"standard": theirs.mixed_parts(), "again": theirs.mixed_parts()}
            calls |= {"mixed": ours.mixed()}
            ours.allocate()
            theirs.allocate()
            return _timings(calls, calls, rounds, seed)
        calls = {
            "baseline": theirs.standard(),
            "standard": ours.standard(),
            "again": ours.standard(),
            "full_state": ours.chain(1),
            **{f"segmented_{n}": ours.chain(n) for n in SEGMENTS},
            **{f"parts_{n}": theirs.parts(n) for n in parts},
        }
        if baseline.has_reference and any(chain_path(case, n) != path(case) for n in parts):
            calls["baseline_vec"] = theirs.standard(reference=True)
        empty = {}
        for each in {chain_path(case, n) for n in SEGMENTS}:
            empty[f"empty_{each}"] = theirs.empty(SPLIT_KV if each == "split-kv" else 1)
            if each == "split-kv":
                empty["empty_split-kv_twice"] = theirs.empty(2 * SPLIT_KV)
            if each != path(case) and library.has_reference:
                calls["standard_vec"] = ours.standard(reference=True)
        ours.allocate()
        theirs.allocate()
        copies = {
            "byte": stack.enter_context(_copy(case.threads)),
            "stored_byte": stack.enter_context(_store_rows(case.threads, 2 + case.hsv)),
        }
        return _timings(calls, {**calls, **empty, **copies}, rounds, seed)


def _timings(
    calls: Mapping[str, _Way], ways: Mapping[str, _Way | _Parts], rounds: int, seed: int
) -> Timings:
    """Time `ways`; of the calls among them, tell the memory that they take, too."""
    seconds, repetitions = _rounds(ways, rounds, seed)
    counts = {name: way.count_allocations() for name, way in calls.items()}
    return Timings(
        seconds=_units(seconds),
        repetitions=repetitions,
        work_size={name: way.graph.work_size(way.n_threads) for name, way in calls.items()},
        allocations={name: count for name, count in counts.items() if count is not None},
    )


def measure_state(
    library: Ggml, case: Case, *, rounds: int, seed: int = 0, other: Ggml | None = None
) -> dict[str, Seconds]:
    """Time a case on one library: without a state, with one, and as a chain of its segments.

    The segments are equal, the seed draws the order in each round. Return the seconds of one
    computation, `[rounds]`, by the way to compute it: `standard`, `again` and `full_state` as in
    `Timings`, `segmented`, `parts`, a call without a state for each segment, and `other`, one call
    without a state of another library. `parts` is of that library, too, if there is one: what a
    patch does moves none of its calls. A library without a state has only ways that take none.
    """
    allocate_work_at_pages()
    inputs = make_inputs(case)
    layouts: dict[str, U8] = {}
    with ExitStack() as stack:

        def graphs_of(ggml: Ggml) -> _Graphs:
            return _Graphs(ggml, stack.enter_context(ggml.context()), case, inputs, layouts)

        ours = graphs_of(library)
        ways = {"standard": ours.standard(), "again": ours.standard()}
        if library.has_state:
            ways |= {"full_state": ours.chain(1), "segmented": ours.chain(case.segments)}
        theirs = ours if other is None else graphs_of(other)
        ways["parts"] = theirs.parts(case.segments)
        if other is not None:
            ways["other"] = theirs.standard()
            theirs.allocate()
        ours.allocate()
        seconds, _ = _rounds(ways, rounds, seed)
        return seconds


def compute_ways(library: Ggml, case: Case, *, times: int) -> tuple[str, ...]:
    """Compute each way to compute a case some times in turn; return their names, in that order.

    The ways are `standard` and `parts`, a call without a state for each segment, then `full_state`
    and `segmented` where the library has the state.
    """
    with library.context() as ctx:
        graphs = _Graphs(library, ctx, case, make_inputs(case), {})
        ways = {"standard": graphs.standard(), "parts": graphs.parts(case.segments)}
        if library.has_state:
            ways |= {"full_state": graphs.chain(1), "segmented": graphs.chain(case.segments)}
        graphs.allocate()
        for way in ways.values():
            way.compute(times)
        return tuple(ways)


def chain_path(case: Case, n_segments: int) -> str:
    """Return the path that each call of a chain of equal segments takes."""
    return path(case, case.n_kv // n_segments)


def is_long_decode(case: Case) -> bool:
    """Tell whether a case decodes so many keys that they cannot stay in a cache."""
    return case.n_batch == 1 and case.n_kv >= 8192


def allocate_work_at_pages() -> None:
    """Let glibc take every work memory from the system, so that all begin 16 bytes into a page.

    There a program's first large one lies. Later ones would come from the heap, at any multiple of
    16 bytes, which makes the tiled path 20 % and more faster or slower.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library: nothing to set
        m_mmap_threshold = -3
        ctypes.CDLL(None).mallopt(m_mmap_threshold, _MMAP_BYTES)


def _rounds(
    ways: Mapping[str, _Way | _Parts], rounds: int, seed: int
) -> tuple[dict[str, Seconds], int]:
    """Time each way once a round; return the seconds and the computations in each timing."""
    once = ways["standard"].time(1)
    repetitions = max(1, math.ceil(_TIMED / once))
    order = random.Random(seed)
    seconds = {name: np.empty(rounds) for name in ways}
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            for name in order.sample(sorted(ways), len(ways)):
                seconds[name][i] = ways[name].time(repetitions, warm_up=once < _LONG)
    finally:
        gc.enable()
    return seconds, repetitions


def _units(seconds: Mapping[str, Seconds]) -> dict[str, Seconds]:
    """Return the times of one empty call and of one byte, instead of those that were measured.

    On the split-KV path an empty call passes over its keys. What it takes without them follows from
    a call with twice as many.
    """
    found = dict(seconds)
    if "empty_split-kv_twice" in found:
        found["empty_split-kv"] = 2 * found["empty_split-kv"] - found.pop("empty_split-kv_twice")
    parts = {"empty_vec": _EMPTY_CALLS, "empty_tiled": _EMPTY_CALLS, "empty_split-kv": _EMPTY_CALLS}
    parts["byte"] = 2 * _COPIED_BYTES  # one is read, one is written
    parts["stored_byte"] = _COPIED_BYTES
    return {name: each / parts.get(name, 1) for name, each in found.items()}


class _Parts(ThreadPoolExecutor):
    """Something to do in as many parts as there are threads."""

    def __init__(self, parts: Sequence[Callable[[], object]]) -> None:
        super().__init__(len(parts))
        self._parts = parts

    def time(self, repetitions: int, *, warm_up: bool = True) -> float:
        """Return the seconds of doing it once."""
        start = time.perf_counter_ns()
        list(self.map(lambda part: part(), self._parts))
        return (time.perf_counter_ns() - start) * 1e-9


def _copy(n_threads: int) -> _Parts:
    """Copy more memory than caches hold."""
    source, target = (
        np.array_split(np.full(_COPIED_BYTES, value, np.uint8), n_threads) for value in (1, 0)
    )
    return _Parts([partial(np.copyto, *each) for each in zip(target, source, strict=True)])


def _store_rows(n_threads: int, size: int) -> _Parts:
    """Store more rows of `size` floats than caches hold, one by one, from a tile in a cache."""
    tile = np.ones((Q_TILE, size), np.float32)
    rows = np.zeros((_COPIED_BYTES // tile[0].nbytes, size), np.float32)
    return _Parts(
        [
            partial(np.take, tile, np.arange(len(part)) % Q_TILE, 0, part, mode="clip")
            for part in np.array_split(rows, n_threads)
        ]
    )


@dataclass(frozen=True, kw_only=True)
class _Way:
    """A graph, what computes it, and the state that has to be fresh when it starts."""

    ggml: Ggml
    graph: Graph
    n_threads: int
    state: F32 | None
    reference: bool

    def time(self, repetitions: int, *, warm_up: bool = True) -> float:
        """Return the median seconds of computing the graph.

        Each timing has a backend of its own: no thread of another one spins beside it, and the
        work memory lies elsewhere each time, so that its place is part of what the rounds sample.
        """
        with self.ggml.backend(self.n_threads, reference=self.reference, poll=_POLL) as backend:
            end = time.perf_counter() + _WARM_UP
            while warm_up:
                self._compute(backend)
                warm_up = time.perf_counter() < end
            end = time.perf_counter() + _MOST
            taken = [self._compute(backend)]
            while len(taken) < repetitions and time.perf_counter() < end:
                taken.append(self._compute(backend))
            return float(np.median(taken)) * 1e-9

    def compute(self, times: int) -> None:
        """Compute the graph some times on one backend, whose work memory then stays."""
        with self.ggml.backend(self.n_threads, reference=self.reference) as backend:
            for _ in range(times):
                self._compute(backend)

    def count_allocations(self) -> int | None:
        """Return how often computing the graph asks for memory, once there is work memory."""
        with self.ggml.backend(self.n_threads, reference=self.reference) as backend:
            self._compute(backend)
            return backend.count_allocations(self.graph)

    def _compute(self, backend: Backend) -> int:
        """Return the nanoseconds of computing the graph once.

        Making the state fresh is not timed: each row's owner writes one number, whatever the op
        does.
        """
        if self.state is not None:
            self.state[..., 0] = -np.inf
        start = time.perf_counter_ns()
        backend.compute(self.graph)
        return time.perf_counter_ns() - start


class _Graphs:
    """The ways to compute a case on one library, from inputs that all libraries read in place."""

    def __init__(
        self, ggml: Ggml, ctx: Context, case: Case, inputs: Inputs, layouts: dict[str, U8]
    ) -> None:
        self._ggml, self._case = ggml, case
        self._tensors = CaseTensors(ctx, case, inputs, layouts, in_place=True)
        self._cache = self._tensors.cache()

    def allocate(self) -> None:
        """Give memory to the outputs."""
        with self._ggml.backend(1) as backend:
            self._tensors.allocate(backend)

    def standard(self, *, reference: bool = False) -> _Way:
        """One call without a state."""
        return self._way(self._calls(1), reference=reference)

    def chain(self, n_segments: int) -> _Way:
        """A call for each segment, with one state."""
        state, array = self._state()
        return self._way(self._calls(n_segments, state=state), state=array)

    def mixed(self) -> _Way:
        """A call for each segment in its own types, with one state."""
        state, array = self._state()
        return self._way(self._mixed_calls(state), state=array)

    def mixed_parts(self) -> _Way:
        """A call without a state for each segment in its own types."""
        return self._way(self._mixed_calls(None))

    def parts(self, n_segments: int) -> _Way:
        """A call without a state for each segment."""
        return self._way(self._calls(n_segments))

    def empty(self, n_kv: int) -> _Way:
        """Many calls without a state, each on the first keys, of which the mask shows none."""
        keys = self._tensors.segment_of(self._cache, (0, n_kv))
        call = partial(self._tensors.call, keys, (0, n_kv), sinks=False, hidden=True)
        return self._way([call() for _ in range(_EMPTY_CALLS)])

    def _state(self) -> tuple[Tensor, F32]:
        case = self._case
        shape = (case.ne3, case.n_head, case.n_batch, 2 + case.hsv_padded)
        array = aligned(np.zeros(shape, np.float32))
        state = self._tensors.ctx.tensor("f32", shape[::-1])
        self._tensors.ctx.place(state, array)
        return state, array

    def _mixed_calls(self, state: Tensor | None) -> list[Tensor]:
        limits = itertools.pairwise(self._case.segment_bounds())
        keys = [(self._tensors.own_segment(i), each) for i, each in enumerate(limits)]
        return self._linked(keys, state, sinks=False)

    def _calls(self, n_segments: int, state: Tensor | None = None) -> list[Tensor]:
        limits = list(itertools.pairwise(self._case.with_(segments=n_segments).segment_bounds()))
        keys = [(self._tensors.segment_of(self._cache, each), each) for each in limits]
        return self._linked(keys, state, sinks=True)

    def _linked(
        self, keys: Sequence[tuple[Keys, tuple[int, int]]], state: Tensor | None, *, sinks: bool
    ) -> list[Tensor]:
        """Return calls whose graph computes one after another, the last with the sinks."""
        calls: list[Tensor] = []
        for i, (part, limits) in enumerate(keys):
            is_last = i == len(keys) - 1
            call = self._tensors.call(part, limits, sinks=sinks and is_last, state=state)
            calls.append(call)
            if call.part is not None:
                state = call.part
        return calls[-1:] if state is not None and self._ggml.has_partial else calls

    def _way(
        self, calls: list[Tensor], *, state: F32 | None = None, reference: bool = False
    ) -> _Way:
        return _Way(
            ggml=self._ggml,
            graph=self._tensors.ctx.graph(calls, kept=False, size=_GRAPH),
            n_threads=self._case.threads,
            state=state,
            reference=reference,
        )
