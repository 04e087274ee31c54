"""A case on a loaded library, in one mode after another -> outputs and states.

All arrays of rows are `[ne3, n_head, n_batch, ...]`, the order of the state contract; ggml's own
output, `[hsv, n_head, n_batch, ne3]`, is brought into it on reading.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from fa_harness.arrays import F32
from fa_harness.case.case import Case
from fa_harness.case.inputs import Inputs
from fa_harness.engine import state_file
from fa_harness.engine.fifo import Rolled, roll
from fa_harness.engine.ggml import Backend, Context, Ggml, Graph, Tensor
from fa_harness.engine.layout import CaseTensors, Keys, Layout, clear, make_fresh, rows_of

T = TypeVar("T")

MODES = ("standard", "full_state", "segmented", "merged", "resumed", "mixed", "fifo")
"""In the order in which they are computed; `standard` always is."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a call with state leaves behind."""

    output: F32
    """`[ne3, n_head, n_batch, hsv]`."""
    state: F32
    """`[ne3, n_head, n_batch, 2 + hsv]`, rows `[M, S, VKQ]`."""


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A call for each segment, in turn, on one state."""

    steps: tuple[Step, ...]
    """A graph for each call."""
    one_graph: tuple[tuple[F32, ...], F32]
    """The same chain once more, as one graph: the output of each call, and the last state."""


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A call for each segment, each on a state of its own, and the states merged to one.

    `Step`s of a reduction hold its last state, and the result from it.
    """

    order: tuple[int, ...]
    """The segments in the order in which their calls were computed."""
    parts: tuple[Step, ...]
    """Each segment alone, in the order of the segments."""
    parts_after: tuple[F32, ...]
    """The states of the parts after all merges."""
    in_turn: Step
    """((0 + 1) + 2) + ..."""
    in_turn_again: Step
    """Parts, merges and result in one graph."""
    swapped: Step
    """... + (2 + (1 + 0))"""
    pairwise: Step
    """((0 + 1) + (2 + 3)) + ..."""
    shuffled: Step
    """In turn, in the order `order`."""
    with_fresh: tuple[F32, F32]
    """The state of `in_turn` merged with a fresh state, and a fresh state with it."""
    fresh: Step
    """Two fresh states."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """All that was computed of a case; a field is None where its mode was not asked for."""

    modes: tuple[str, ...]
    """The modes that were computed."""
    standard: F32
    """One `ggml_flash_attn_ext`."""
    standard_again: F32
    """The same graph computed once more."""
    reference: F32 | None
    """One `ggml_flash_attn_ext` on the vec path, where the chain takes another than `standard`."""
    full_state: Step | None
    """One call with a state."""
    full_state_again: Step | None
    """The same graph computed once more, on a fresh state."""
    segmented: Chain | None
    """A call for each segment of the whole cache."""
    merged: Merged | None
    resumed: tuple[Step, ...] | None
    """The chain with each call in a context and on a backend of its own, its state in a file in
    between; of segments in their own types where the case names them."""
    mixed: Chain | None
    """A call for each segment, a cache of its own in its own types."""
    mixed_again: Chain | None
    """The same anew, in another context."""
    fifo: Rolled | None
    """A rolling cache, a graph for each of a step's two calls."""
    fifo_again: Rolled | None
    """The same anew, a graph for each step."""
    inputs_written: tuple[str, ...]
    """The inputs whose bytes were not the same after all modes."""
    work_size: dict[str, int]
    """Bytes of work memory planned for one call, by mode (`standard`, `full_state`)."""
    seconds: dict[str, float]
    """Seconds of computing, by mode, all repeats included."""


def modes_of(case: Case) -> tuple[str, ...]:
    """Return the modes that a case is computed in where nothing else is asked for."""
    if case.hot_window:
        return ("standard", "fifo")
    several = ("merged", "resumed") if case.segments > 1 else ()
    mixed = ("mixed",) if case.segment_types else ()
    return ("standard", "full_state", "segmented", *several, *mixed)


def lacking(ggml: Ggml) -> dict[str, str]:
    """Return the modes, and `sinks`, that a library cannot compute, with the function it lacks."""
    sinks = {} if ggml.has_sinks else {"sinks": "ggml_flash_attn_ext_add_sinks"}
    if not ggml.has_state:
        return sinks | dict.fromkeys(MODES[1:], "ggml_flash_attn_ext_with_state")
    return sinks if ggml.has_merge else sinks | {"merged": "ggml_flash_attn_ext_merge_states"}


def missing_option(case: Case, mode: str) -> str | None:
    """Return the option without which a mode does not apply to a case, or None."""
    if mode == "mixed" and not case.segment_types:
        return "--segment-types"
    if mode == "fifo" and not case.hot_window:
        return "--hot-window"
    return None


def run_case(
    ggml: Ggml,
    case: Case,
    inputs: Inputs,
    modes: tuple[str, ...] | None = None,
    *,
    on_mode: Callable[[str], None] = lambda mode: None,
) -> Run:
    """Compute a case in the given modes; `standard` is always among them.

    Args:
        ggml: The loaded library.
        case: What to compute.
        inputs: The case's inputs.
        modes: Some of `MODES` that apply to the case and that the library can do; None for those
            of `modes_of` that it can.
        on_mode: Told of each mode before it starts, so that a crash can be laid to it.
    """
    if modes is None:
        modes = tuple(mode for mode in modes_of(case) if mode not in lacking(ggml))
    asked = {"standard", *modes}
    seconds: dict[str, float] = {}

    def computed(mode: str, compute: Callable[[], T]) -> T | None:
        if mode not in asked:
            return None
        on_mode(mode)
        start = time.perf_counter()
        result = compute()
        seconds[mode] = time.perf_counter() - start
        return result

    with ggml.backend(case.threads) as backend:
        computation = _Computation(ggml, case, inputs, backend)
        standard = computed("standard", computation.standard)
        assert standard is not None
        nothing = (None, None)
        full_state, full_state_again = computed("full_state", computation.full_state) or nothing
        segmented: Chain | None
        if case.segments == 1 and full_state is not None and full_state_again is not None:
            # a chain of one call is the call that was made just now, twice
            one_graph = ((full_state_again.output,), full_state_again.state)
            segmented = computed(
                "segmented", lambda: Chain(steps=(full_state,), one_graph=one_graph)
            )
        else:
            segmented = computed("segmented", computation.segmented)
        merged = computed("merged", computation.merged)
        resumed = computed("resumed", computation.resumed)
        mixed, mixed_again = computed("mixed", computation.mixed) or nothing
        fifo, fifo_again = computed("fifo", computation.fifo) or nothing
        return Run(
            modes=tuple(mode for mode in MODES if mode in asked),
            standard=standard[0],
            standard_again=standard[1],
            reference=standard[2],
            full_state=full_state,
            full_state_again=full_state_again,
            segmented=segmented,
            merged=merged,
            resumed=resumed,
            mixed=mixed,
            mixed_again=mixed_again,
            fifo=fifo,
            fifo_again=fifo_again,
            inputs_written=tuple(computation.inputs_written),
            work_size=computation.work_size,
            seconds=seconds,
        )


def path(case: Case, n_kv: int | None = None) -> str:
    """Return the path that the CPU op takes for one call, with a state or without.

    `vec`, `tiled` or `split-kv`; the conditions are those of
    `ggml_compute_forward_flash_attn_ext_f16` in `ops.cpp`.

    Args:
        case: The case.
        n_kv: Keys of the call; all of the case's where it is None.
    """
    n_kv = case.n_kv if n_kv is None else n_kv
    same_float_type = case.type_K == case.type_V and case.type_K in ("f32", "f16")
    if same_float_type and case.n_batch == 1 and case.ne3 == 1 and n_kv >= 512:
        return "split-kv"
    if same_float_type and case.n_batch >= 64:
        return "tiled"
    return "vec"


def chain_paths(case: Case, *, own_types: bool = False) -> tuple[str, ...]:
    """Return the path of each call of the chain.

    Args:
        case: The case.
        own_types: Each segment is a cache of its own types, as in mode `mixed`.
    """
    limits = itertools.pairwise(case.segment_bounds())
    return tuple(
        path(case.of_segment(i) if own_types else case, stop - start)
        for i, (start, stop) in enumerate(limits)
    )


def order_of_parts(case: Case) -> tuple[int, ...]:
    """Return the segments in the order in which mode `merged` computes them, from the seed."""
    rank = np.random.Philox(key=case.seed).random_raw(case.segments)
    return tuple(int(i) for i in np.argsort(rank, kind="stable"))


class _Computation:
    """A case on a library: each mode in a context of its own."""

    def __init__(self, ggml: Ggml, case: Case, inputs: Inputs, backend: Backend) -> None:
        self._ggml = ggml
        self._case = case
        self._inputs = inputs
        self._backend = backend
        self._segments = list(itertools.pairwise(case.segment_bounds()))
        self._layouts: dict[str, Layout] = {}
        self.inputs_written: dict[str, None] = {}
        self.work_size: dict[str, int] = {}

    def standard(self) -> tuple[F32, F32, F32 | None]:
        case = self._case
        with self._tensors() as tensors:
            call = tensors.call(tensors.cache(), (0, case.n_kv), sinks=True)
            graph = tensors.ctx.graph([call])
            tensors.allocate(self._backend)

            def compute(backend: Backend) -> F32:
                clear(call)
                backend.compute(graph)
                return rows_of(call)

            self.work_size["standard"] = graph.work_size(case.threads)
            first, again = compute(self._backend), compute(self._backend)
            reference = None
            if self._ggml.has_reference and {path(case)} != set(chain_paths(case)):
                with self._ggml.backend(case.threads, reference=True) as vec_backend:
                    reference = compute(vec_backend)
        return first, again, reference

    def full_state(self) -> tuple[Step, Step]:
        with self._tensors() as tensors:
            state = tensors.state()
            call = tensors.call(tensors.cache(), (0, self._case.n_kv), sinks=True, state=state)
            graph = tensors.ctx.graph([call])
            tensors.allocate(self._backend)
            self.work_size["full_state"] = graph.work_size(self._case.threads)
            [first] = self._compute([call], [graph], state)
            [again] = self._compute([call], [graph], state)
        return first, again

    def segmented(self) -> Chain:
        with self._tensors() as tensors:
            return self._chain(tensors, self._views(tensors))

    def mixed(self) -> tuple[Chain, Chain]:
        def chain() -> Chain:
            with self._tensors() as tensors:
                return self._chain(tensors, self._own_segments(tensors))

        return chain(), chain()

    def fifo(self) -> tuple[Rolled, Rolled]:
        simulation = (self._ggml, self._case, self._inputs, self._backend)
        return roll(*simulation), roll(*simulation, one_graph=True)

    def resumed(self) -> tuple[Step, ...]:
        steps: list[Step] = []
        with tempfile.NamedTemporaryFile(prefix="fa-harness-", suffix="-state.npy") as in_between:
            file = Path(in_between.name)
            for i in range(len(self._segments)):
                with self._tensors() as tensors, self._ggml.backend(self._case.threads) as backend:
                    state = tensors.state()
                    call = self._call(tensors, i, tensors.own_segment(i), state)
                    graph = tensors.ctx.graph([call])
                    tensors.allocate(backend)
                    if i == 0:
                        make_fresh(state)
                    else:
                        state_file.save(file, steps[-1].state)
                        state.write(state_file.load(file, self._case))
                    clear(call)
                    backend.compute(graph)
                    steps.append(Step(output=rows_of(call), state=state.read()))
        return tuple(steps)

    def merged(self) -> Merged:
        """Compute the parts, then all reductions as one graph, then parts and one reduction."""
        order, n = order_of_parts(self._case), len(self._segments)
        with self._tensors() as tensors:
            ctx = tensors.ctx
            keys = (self._own_segments if self._inputs.segments else self._views)(tensors)
            states, fresh = [tensors.state() for _ in range(n)], tensors.state()
            calls = [self._call(tensors, i, keys[i], states[i]) for i in range(n)]
            graphs = [ctx.graph([call]) for call in calls]

            reductions = _reductions(ctx, states, fresh, order)
            results = {name: ctx.from_state(state) for name, state in reductions.items()}
            in_turn = reductions["in_turn"]
            with_fresh = [ctx.merge_states(in_turn, fresh), ctx.merge_states(fresh, in_turn)]
            merges = ctx.graph([*results.values(), *with_fresh], size=16 * (n + 4))

            calls_again = [self._call(tensors, i, keys[i], states[i]) for i in range(n)]
            again = functools.reduce(ctx.merge_states, map(ctx.state_after, calls_again))
            result_again = ctx.from_state(again)
            all_again = ctx.graph([result_again], size=16 * (n + 1))

            tensors.allocate(self._backend)
            make_fresh(fresh)
            parts = {i: self._compute([calls[i]], [graphs[i]], states[i])[0] for i in order}
            for tensor in [*reductions.values(), *results.values(), *with_fresh, result_again]:
                if tensor not in states:  # of one part there is nothing to merge
                    clear(tensor)
            self._backend.compute(merges)
            merged = {
                name: Step(output=rows_of(results[name]), state=state.read())
                for name, state in reductions.items()
            }
            after = tuple(state.read() for state in states)
            for state in states:
                make_fresh(state)
            self._backend.compute(all_again)
            return Merged(
                order=order,
                parts=tuple(parts[i] for i in range(n)),
                parts_after=after,
                in_turn_again=Step(output=rows_of(result_again), state=again.read()),
                with_fresh=(with_fresh[0].read(), with_fresh[1].read()),
                **merged,
            )

    @contextmanager
    def _tensors(self) -> Iterator[CaseTensors]:
        """Give the case's tensors in a new context, and note in the end which inputs changed."""
        with self._ggml.context() as ctx:
            tensors = CaseTensors(ctx, self._case, self._inputs, self._layouts)
            yield tensors
            self.inputs_written |= dict.fromkeys(tensors.inputs_written())

    def _views(self, tensors: CaseTensors) -> list[Keys]:
        cache = tensors.cache()
        return [tensors.segment_of(cache, segment) for segment in self._segments]

    def _own_segments(self, tensors: CaseTensors) -> list[Keys]:
        return [tensors.own_segment(i) for i in range(len(self._segments))]

    def _call(self, tensors: CaseTensors, i: int, keys: Keys, state: Tensor) -> Tensor:
        # a sink belongs to one call of a chain, the last (see the comment in ggml.h)
        sinks = i == len(self._segments) - 1
        return tensors.call(keys, self._segments[i], sinks=sinks, state=state)

    def _chain(self, tensors: CaseTensors, keys: Sequence[Keys]) -> Chain:
        ctx, n = tensors.ctx, len(keys)
        state = tensors.state()
        calls = [self._call(tensors, i, keys[i], state) for i in range(n)]
        graphs = [ctx.graph([call]) for call in calls]
        if self._ggml.has_state_after:  # the last call brings in the others, in their order
            linked, state_now = [], state
            for i in range(n):
                linked.append(self._call(tensors, i, keys[i], state_now))
                state_now = ctx.state_after(linked[-1])
            one_graph = ctx.graph(linked[-1:], size=16 * (n + 1))
        else:
            linked, one_graph = calls, ctx.graph(calls)
        tensors.allocate(self._backend)
        steps = self._compute(calls, graphs, state)
        make_fresh(state)
        for call in linked:
            clear(call)
        self._backend.compute(one_graph)
        outputs = tuple(rows_of(call) for call in linked)
        return Chain(steps=steps, one_graph=(outputs, state.read()))

    def _compute(
        self, calls: Sequence[Tensor], graphs: Sequence[Graph], state: Tensor
    ) -> tuple[Step, ...]:
        """Compute calls one after another from a fresh state on."""
        make_fresh(state)
        steps = []
        for call, graph in zip(calls, graphs, strict=True):
            clear(call)
            self._backend.compute(graph)
            steps.append(Step(output=rows_of(call), state=state.read()))
        return tuple(steps)


def _reductions(
    ctx: Context, states: Sequence[Tensor], fresh: Tensor, order: Sequence[int]
) -> dict[str, Tensor]:
    """Return the last state of each reduction, by the field of `Merged` that it is for."""
    return {
        "in_turn": functools.reduce(ctx.merge_states, states),
        "swapped": functools.reduce(lambda a, b: ctx.merge_states(b, a), states),
        "pairwise": _pairwise(ctx, states),
        "shuffled": functools.reduce(ctx.merge_states, [states[i] for i in order]),
        "fresh": ctx.merge_states(fresh, fresh),
    }


def _pairwise(ctx: Context, states: Sequence[Tensor]) -> Tensor:
    """Merge neighbours, then their results, until one is left."""
    while len(states) > 1:
        pairs = [states[i : i + 2] for i in range(0, len(states), 2)]
        states = [ctx.merge_states(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return states[0]
