"""Compute a case on a loaded library, in one mode after another."""

from __future__ import annotations

import functools
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from fa_harness.arrays import F32, U8
from fa_harness.case import preset
from fa_harness.case.case import Case
from fa_harness.case.inputs import Inputs
from fa_harness.case.modes import (
    MODES,
    MOST_PARTS,
    ByMode,
    Chain,
    Fifo,
    FullState,
    Left,
    Merged,
    Mixed,
    Preset,
    Reduced,
    Run,
    Scheduled,
    Standard,
    offered,
    order_of_parts,
    top_rows,
)
from fa_harness.engine import state_file
from fa_harness.engine.fifo import roll
from fa_harness.engine.ggml import Backend, Context, Ggml, Graph, RefusedError, Tensor
from fa_harness.engine.ggml.remote import Scheduler
from fa_harness.engine.layout import CaseTensors, Keys, clear, make_fresh, rows_of
from fa_harness.kernel import chain_paths, path


def lacking(ggml: Ggml) -> dict[str, str]:
    """Return the modes, and `sinks`, that a library cannot compute, with the function it lacks."""
    lacks = {} if ggml.has_sinks else {"sinks": "ggml_flash_attn_ext_add_sinks"}
    if not ggml.has_state:
        return lacks | dict.fromkeys(MODES[1:], "ggml_flash_attn_ext_with_state")
    if not ggml.has_merge:
        lacks["merged"] = "ggml_flash_attn_ext_merge_states"
    if not ggml.has_partial:
        lacks["reduced"] = "ggml_flash_attn_ext_reduce"
    if not ggml.has_state_after:
        lacks["scheduled"] = "ggml_flash_attn_ext_get_state"
    elif not ggml.has_remote:
        lacks["scheduled"] = "ggml_backend_rpc_add_server"
    return lacks


def run_case(
    ggml: Ggml,
    case: Case,
    inputs: Inputs,
    modes: tuple[str, ...] | None = None,
    *,
    on_mode: Callable[[str], None] = lambda mode: None,
) -> Run:
    """Compute a case in the given modes; `standard` is always among them.

    The library must be able to do these modes; None stands for those of `modes_of` that it can.
    `on_mode` gets each mode before it starts, so that a crash can be assigned to it.

    Raises:
        RefusedError: The device does not support one call without a state.
    """
    if modes is None:
        modes = offered(case, lacking(ggml))
    results: dict[str, object] = {}
    seconds: dict[str, float] = {}
    written: list[str] = []
    outside: dict[str, None] = {}
    refused: dict[str, str] = {}
    with ggml.computing(case.threads, outside=outside) as backend:
        computation = _Computation(ggml, case, inputs, backend)
        for mode in MODES:
            if mode == "standard" or mode in modes:
                on_mode(mode)
                start = time.perf_counter()
                try:
                    results[mode] = getattr(computation, mode)()
                except RefusedError as error:
                    if mode == "standard":
                        raise
                    refused[mode] = str(error)
                    continue
                seconds[mode] = time.perf_counter() - start
                written += [f"{mode}: {found}" for found in outside]
                outside.clear()
    return Run(
        results=cast(ByMode, results),
        inputs_written=tuple(computation.inputs_written),
        outside_written=tuple(written),
        work_size=computation.work_size,
        seconds=seconds,
        refused=refused,
    )


class _Computation:
    """A case on a library. The method of each mode computes it in contexts of its own."""

    def __init__(self, ggml: Ggml, case: Case, inputs: Inputs, backend: Backend) -> None:
        self._ggml = ggml
        self._case = case
        self._inputs = inputs
        self._backend = backend
        self._segments = list(itertools.pairwise(case.segment_bounds()))
        self._layouts: dict[str, U8] = {}
        self._one_call: FullState | None = None
        self.inputs_written: dict[str, None] = {}
        self.work_size: dict[str, int] = {}

    def standard(self) -> Standard:
        case = self._case
        with self._tensors() as tensors:
            call = tensors.call(tensors.cache(), (0, case.n_kv), sinks=True)
            graph = tensors.ctx.graph([call])
            tensors.allocate(self._backend)

            def compute(backend: Backend) -> F32:
                clear(call)
                backend.compute(graph)
                return rows_of(call)

            self._note_work_size("standard", graph)
            first, again = compute(self._backend), compute(self._backend)
            reference = None
            has_reference = self._ggml.has_reference and self._ggml.is_on_cpu
            if has_reference and {path(case)} != set(chain_paths(case)):
                with self._ggml.backend(case.threads, reference=True) as vec_backend:
                    reference = compute(vec_backend)
        return Standard(output=first, again=again, reference=reference)

    def full_state(self) -> FullState:
        with self._tensors() as tensors:
            state = tensors.state()
            call = tensors.call(tensors.cache(), (0, self._case.n_kv), sinks=True, state=state)
            graph = tensors.ctx.graph([call])
            tensors.allocate(self._backend)
            self._note_work_size("full_state", graph)
            [first] = self._compute([call], [graph], state)
            [again] = self._compute([call], [graph], state)
            self._note_written(tensors)  # before the inputs are written anew
            with tensors.negated():
                [negated] = self._compute([call], [graph], state)
        self._one_call = FullState(first=first, again=again, negated=negated)
        return self._one_call

    def preset(self) -> Preset:
        with self._tensors() as tensors:
            ctx, state = tensors.ctx, tensors.state()
            call = tensors.call(tensors.cache(), (0, self._case.n_kv), sinks=True, state=state)
            graph = ctx.graph([call])
            result = None
            if self._ggml.has_merge or self._ggml.has_partial:
                result = ctx.from_state(state) if self._ggml.has_merge else ctx.reduce([state])
            of_result = ctx.graph([] if result is None else [result])
            tensors.allocate(self._backend)
            state.write(preset.rows(self._case))
            if result is not None:
                clear(result)
                self._backend.compute(of_result)
            clear(call)
            self._backend.compute(graph)
            alone = None if result is None else rows_of(result)
            return Preset(output=rows_of(call), state=state.read(), alone=alone)

    def segmented(self) -> Chain:
        call = self._one_call
        if self._case.segments == 1 and call is not None:  # this chain was computed twice already
            return Chain(calls=(call.first,), one_graph=((call.again.output,), call.again.state))
        with self._tensors() as tensors:
            return self._chain(tensors, self._views(tensors))

    def mixed(self) -> Mixed:
        def chain() -> Chain:
            with self._tensors() as tensors:
                return self._chain(tensors, self._own_segments(tensors))

        return Mixed(first=chain(), again=chain())

    def fifo(self) -> Fifo:
        simulation = (self._ggml, self._case, self._inputs, self._backend)
        return Fifo(first=roll(*simulation), again=roll(*simulation, one_graph=True))

    def resumed(self) -> tuple[Left, ...]:
        steps: list[Left] = []
        with tempfile.NamedTemporaryFile(prefix="fa-harness-", suffix="-state.npy") as in_between:
            file = Path(in_between.name)
            for i in range(len(self._segments)):
                with self._tensors() as tensors, self._new_backend() as backend:
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
                    steps.append(Left(output=rows_of(call), state=state.read()))
        return tuple(steps)

    def scheduled(self) -> Scheduled:
        """Compute the chain on the CPU from Q, K and V in the memory of another backend.

        Once more it continues a state that the graph makes, which may be done on either backend.
        """
        if not self._ggml.is_on_cpu:
            raise RefusedError("mode scheduled computes on the CPU, beside a backend of its own")
        with (
            self._ggml.context() as ctx,
            self._ggml.context() as of_state,
            self._ggml.remote() as remote,
            self._ggml.backend(self._case.threads) as cpu,
            Scheduler(self._ggml, [remote, cpu]) as scheduler,
        ):
            tensors = CaseTensors(ctx, self._case, self._inputs, self._layouts)
            state, cache, whole = tensors.state(of_state), tensors.cache(), (0, self._case.n_kv)
            views = [tensors.segment_of(cache, segment) for segment in self._segments]
            tensors.place_masks([*self._segments, whole])
            tensors.allocate(remote)
            cpu.allocate(of_state)
            make_fresh(state)

            def chain(*, has_state: bool) -> tuple[tuple[tuple[F32, ...], F32], list[F32]]:
                """Compute the chain in one graph, and beside it a call without a state.

                If it does not have the state that is allocated, the graph makes a fresh one, and
                there is no other call.
                """
                with self._ggml.context() as of_calls:
                    tensors.of_calls = of_calls
                    first = state if has_state else tensors.state(of_calls, is_made=True)
                    linked, after = self._linked(tensors, views, first)
                    asked = [*self._asked(linked), after]
                    alone = [tensors.call(cache, whole, sinks=True)] if has_state else []
                    asked += alone
                    for call in alone:
                        scheduler.compute_on(call, cpu)
                    graph = of_calls.graph(asked, size=16 * (len(linked) + 2))
                    for call in linked:  # another backend may be able to compute parts, too
                        if call.part is not None:
                            scheduler.compute_on(call.part, cpu)

                    def clear_all() -> None:
                        for call in (*linked, *alone):
                            clear(call)

                    scheduler.compute(graph, [*linked, *alone, first], before=clear_all)
                    outputs = tuple(rows_of(call) for call in linked)
                    return (outputs, first.read()), [rows_of(call) for call in alone]

            allocated, [standard] = chain(has_state=True)
            made, _ = chain(has_state=False)
        if self._case.regime == "seed" and not self._ggml.has_partial:  # once is enough
            self._ggml.check_refusal()
        return Scheduled(chains=(allocated, made), standard=standard)

    def merged(self) -> Merged:
        """Compute the parts, all reductions in one graph, then parts and a reduction in one."""
        order, n = order_of_parts(self._case), len(self._segments)
        with self._tensors() as tensors:
            ctx = tensors.ctx
            keys, states, calls = self._alone(tensors)
            graphs, fresh = [ctx.graph([call]) for call in calls], tensors.state()

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
                if tensor not in states:  # one part alone is its own reduction
                    clear(tensor)
            self._backend.compute(merges)
            merged = {
                name: Left(output=rows_of(results[name]), state=state.read())
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
                in_turn_again=Left(output=rows_of(result_again), state=again.read()),
                with_fresh=(with_fresh[0].read(), with_fresh[1].read()),
                **merged,
            )

    def reduced(self) -> Reduced:
        """Compute the parts, all reductions in one graph, then parts and a reduction in one."""
        order, n = order_of_parts(self._case), len(self._segments)
        with self._tensors() as tensors:
            ctx = tensors.ctx
            keys, states, calls = self._alone(tensors)
            graphs, fresh = [ctx.graph([call]) for call in calls], tensors.state()
            top = tensors.state()
            results = {
                "in_turn": ctx.reduce(states),
                "reversed": ctx.reduce(states[::-1]),
                "shuffled": ctx.reduce([states[i] for i in order]),
                "fresh": ctx.reduce([fresh]),
            }
            filled_up = [fresh] * (MOST_PARTS + 1 - n)  # as many as a reduction takes
            with_fresh = [ctx.reduce([*filled_up, *states]), ctx.reduce([*states, *filled_up])]
            with_top = [ctx.reduce([top, *states]), ctx.reduce([*states, top])]
            reductions = ctx.graph([*results.values(), *with_fresh, *with_top])
            calls_again = [
                self._call(tensors, i, keys[i], fresh, starts=i % 2 == 1) for i in range(n)
            ]
            again = ctx.reduce([ctx.state_after(call) for call in calls_again])
            all_again = ctx.graph([again], size=16 * (n + 1))

            tensors.allocate(self._backend)
            make_fresh(fresh)
            top.write(top_rows(self._case).state)
            parts = {i: self._compute([calls[i]], [graphs[i]], states[i])[0] for i in order}
            for tensor in [*results.values(), *with_fresh, *with_top, *calls_again, again]:
                clear(tensor)
            self._backend.compute(reductions)
            after = tuple(state.read() for state in states)
            self._backend.compute(all_again)
            return Reduced(
                order=order,
                parts=tuple(parts[i] for i in range(n)),
                parts_after=after,
                again=rows_of(again),
                with_fresh=(rows_of(with_fresh[0]), rows_of(with_fresh[1])),
                with_top=(rows_of(with_top[0]), rows_of(with_top[1])),
                **{name: rows_of(result) for name, result in results.items()},
            )

    @contextmanager
    def _tensors(self) -> Iterator[CaseTensors]:
        """Give the case's tensors in a new context, and note which inputs were written to."""
        with self._ggml.context(self._backend.outside) as ctx:
            tensors = CaseTensors(ctx, self._case, self._inputs, self._layouts)
            yield tensors
            self._note_written(tensors)

    def _note_written(self, tensors: CaseTensors) -> None:
        self.inputs_written |= dict.fromkeys(tensors.inputs_written())

    def _note_work_size(self, mode: str, graph: Graph) -> None:
        if self._ggml.is_on_cpu:
            self.work_size[mode] = graph.work_size(self._case.threads)

    def _new_backend(self) -> Backend:
        return self._ggml.computing(self._case.threads, outside=self._backend.outside)

    def _views(self, tensors: CaseTensors) -> list[Keys]:
        cache = tensors.cache()
        return [tensors.segment_of(cache, segment) for segment in self._segments]

    def _own_segments(self, tensors: CaseTensors) -> list[Keys]:
        return [tensors.own_segment(i) for i in range(len(self._segments))]

    def _call(
        self, tensors: CaseTensors, i: int, keys: Keys, state: Tensor, *, starts: bool = False
    ) -> Tensor:
        # a sink belongs to one call of a chain, the last (see the comment in ggml.h)
        sinks = i == len(self._segments) - 1
        return tensors.call(keys, self._segments[i], sinks=sinks, state=state, starts=starts)

    def _alone(self, tensors: CaseTensors) -> tuple[list[Keys], list[Tensor], list[Tensor]]:
        """Return the keys of each segment, a state for each, and the calls over them."""
        keys = (self._own_segments if self._inputs.segments else self._views)(tensors)
        states = [tensors.state() for _ in keys]
        calls = [
            self._call(tensors, i, *each) for i, each in enumerate(zip(keys, states, strict=True))
        ]
        return keys, states, calls

    def _chain(self, tensors: CaseTensors, keys: Sequence[Keys]) -> Chain:
        ctx, n = tensors.ctx, len(keys)
        state = tensors.state()
        calls = [self._call(tensors, i, keys[i], state) for i in range(n)]
        graphs = [ctx.graph([call]) for call in calls]
        if self._ggml.has_state_after:  # the last call brings in the others, in their order
            linked, _ = self._linked(tensors, keys, state)
            one_graph = ctx.graph(self._asked(linked), size=16 * (n + 1))
        else:
            linked, one_graph = calls, ctx.graph(calls)
        tensors.allocate(self._backend)
        left = self._compute(calls, graphs, state)
        make_fresh(state)
        for call in linked:
            clear(call)
        self._backend.compute(one_graph)
        outputs = tuple(rows_of(call) for call in linked)
        return Chain(calls=left, one_graph=(outputs, state.read()))

    def _linked(
        self, tensors: CaseTensors, keys: Sequence[Keys], state: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Return the calls of a chain, each of which depends on the one before, and its state."""
        calls: list[Tensor] = []
        for i in range(len(keys)):
            calls.append(self._call(tensors, i, keys[i], state))
            state = tensors.of_calls.state_after(calls[-1])
        return calls, state

    def _asked(self, linked: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the calls that bring in all of a chain, the last unless each has a reduction.

        The last comes first and brings in the parts of the others, whose reductions come after the
        calls that continued them.
        """
        return linked[::-1] if self._ggml.has_partial else linked[-1:]

    def _compute(
        self, calls: Sequence[Tensor], graphs: Sequence[Graph], state: Tensor
    ) -> tuple[Left, ...]:
        """Compute calls one after another from a fresh state on."""
        make_fresh(state)
        steps = []
        for call, graph in zip(calls, graphs, strict=True):
            clear(call)
            self._backend.compute(graph)
            steps.append(Left(output=rows_of(call), state=state.read()))
        return tuple(steps)


def _reductions(
    ctx: Context, states: Sequence[Tensor], fresh: Tensor, order: Sequence[int]
) -> dict[str, Tensor]:
    """Return the last state of each reduction, by its field in `Merged`."""
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
