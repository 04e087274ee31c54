"""A program: a chain of three segments in one graph, computed in another way than by one backend.

    python chain_elsewhere.py MODULE HOW [ENDPOINT]

writes the chain's last output, then its state, to standard output as float32. `HOW`:

    plain            one CPU backend
    allocated        graph allocator; the state is an input and an output of the graph
    overwritten      the same, read after the allocator was used for another graph
    two-cpu          scheduler over two CPU backends, the calls given to the two in turn
    rpc              RPC backend alone, without a scheduler
    rpc-kv           scheduler over RPC and CPU: K, V there, the state here
    rpc-state        scheduler over RPC and CPU: the state there, too
    rpc-fresh        scheduler over RPC and CPU: the state is made fresh by the graph itself
    kept             scheduler over RPC and CPU: a graph for each segment, others in between
    kept-parallel    the same, and the scheduler copies the inputs of a graph
    supports         what the RPC backend says: without a state, with one (two numbers)
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from fa_harness.case.case import Case
from fa_harness.case.inputs import make_inputs
from fa_harness.engine import ggml
from fa_harness.engine.ggml import Backend, Context, Ggml, Graph, Tensor
from fa_harness.engine.ggml.remote import Remote, Scheduler

CASE = Case(
    hsk=64,
    hsv=64,
    n_head_kv=2,
    n_group=2,
    ne3=1,
    n_batch=3,
    n_kv=120,
    segments=3,
    regime="rising",
    mask=False,
)


class Chain:
    """The calls of `CASE`, each of which depends on the one before."""

    def __init__(self, library: Ggml, stack: ExitStack) -> None:
        self._library = library
        self._inputs = make_inputs(CASE)
        self.caches, self.states, self.graphs = (
            stack.enter_context(library.context()) for _ in range(3)
        )
        heads = (CASE.n_head_kv, CASE.ne3)
        self._q = self.caches.tensor("f32", (CASE.hsk, CASE.n_batch, CASE.n_head, CASE.ne3))
        self._k = self.caches.tensor("f16", (CASE.hsk, CASE.n_kv, *heads))
        self._v = self.caches.tensor("f16", (CASE.hsv, CASE.n_kv, *heads))
        self.state_ne = (2 + CASE.hsv, CASE.n_batch, CASE.n_head, CASE.ne3)

    def build(self, state: Tensor, segments: slice = slice(None)) -> Graph:
        """Make the calls of some segments; the graph is asked for the last one alone."""
        self.calls: list[Tensor] = []
        for start, stop in list(itertools.pairwise(CASE.segment_bounds()))[segments]:
            call = self.graphs.flash_attn_ext(
                self._q,
                self._segment(self._k, start, stop),
                self._segment(self._v, start, stop),
                None,
                scale=CASE.scale,
                state=state,
            )
            state = self.graphs.state_after(call)
            self.calls.append(call)
        self._last_state = state
        return self.graphs.graph([self.calls[-1], state])

    def fill(self) -> None:
        self._q.write(self._inputs.q)
        self._k.write(self._inputs.k_raw)
        self._v.write(self._inputs.v_raw)

    def make_fresh(self, state: Tensor) -> None:
        rows = np.full(state.ne[::-1], np.nan, np.float32)
        rows[..., 0] = -np.inf
        state.write(rows)

    def results(self) -> bytes:
        return bytes(self.calls[-1].read_bytes()) + bytes(self._last_state.read_bytes())

    def _segment(self, cache: Tensor, start: int, stop: int) -> Tensor:
        ne0, _, ne2, ne3 = cache.ne
        return self.graphs.view(cache, (ne0, stop - start, ne2, ne3), offset=start * cache.nb[1])


def allocate(backend: Backend, *contexts: Context) -> None:
    for context in contexts:
        backend.allocate(context)


def plain(library: Ggml, chain: Chain, backend: Backend) -> bytes:
    state = chain.states.tensor("f32", chain.state_ne)
    graph = chain.build(state)
    allocate(backend, chain.caches, chain.states, chain.graphs)
    chain.fill()
    chain.make_fresh(state)
    backend.compute(graph)
    return chain.results()


def allocated(library: Ggml, chain: Chain, backend: Backend, *, another: bool = False) -> bytes:
    lib = library._lib
    state = chain.graphs.tensor("f32", chain.state_ne)
    lib.ggml_set_input(state._p)
    lib.ggml_set_output(state._p)
    graph = chain.build(state)
    allocate(backend, chain.caches)
    allocator = lib.ggml_gallocr_new(lib.ggml_backend_get_default_buffer_type(backend._p))
    assert lib.ggml_gallocr_alloc_graph(allocator, graph._p)
    chain.fill()
    chain.make_fresh(state)
    backend.compute(graph)
    if another:
        between = chain.states  # a context without tensors
        ones = lib.ggml_fill(between._p, between.tensor("f32", chain.state_ne)._p, 1.0)
        other = between.graph([Tensor(library, ones, "f32")])
        assert lib.ggml_gallocr_alloc_graph(allocator, other._p)
        backend.compute(other)
    return chain.results()  # the allocator's memory goes with the process


def scheduled(
    library: Ggml,
    chain: Chain,
    backends: Sequence[Backend],
    state: Tensor,
    *,
    calls_in_turn: bool = False,
) -> bytes:
    with Scheduler(library, backends) as scheduler:
        graph = chain.build(state)
        if calls_in_turn:
            for call, backend in zip(chain.calls, itertools.cycle(backends)):
                scheduler.compute_on(call, backend)
        scheduler.compute(graph, [*chain.calls, state], before=chain.fill)
        return chain.results()


def kept(
    library: Ggml, chain: Chain, backends: Sequence[Backend], state: Tensor, *, parallel: bool
) -> bytes:
    """Compute each segment in a graph of its own, and between them a graph that needs much memory.

    Each has a context of its own, as in llama.cpp.
    """
    last = CASE.segments - 1

    def before_the_first() -> None:
        chain.fill()
        chain.make_fresh(state)

    with Scheduler(library, backends, parallel=parallel) as scheduler, ExitStack() as stack:
        for i in range(CASE.segments):
            chain.graphs = stack.enter_context(library.context())
            graph = chain.build(state, slice(i, i + 1))
            outputs = [*chain.calls, *([state] if i == last else [])]
            first = {"before": before_the_first} if i == 0 else {}
            scheduler.compute(graph, outputs, **first)
            if i == last:
                return chain.results()
            between = stack.enter_context(library.context())
            one = between.tensor("f32", (1 << 20, 1, 1, 1))
            library._lib.ggml_set_input(one._p)
            ones = Tensor(library, library._lib.ggml_fill(between._p, one._p, 1.0), "f32")
            scheduler.compute(between.graph([ones]), [ones])
    raise AssertionError("the last segment returns")


def run(library: Ggml, how: str, endpoint: str) -> bytes:
    lib = library._lib
    with ExitStack() as stack:
        enter = stack.enter_context
        chain = Chain(library, stack)
        cpu = enter(library.backend(2))
        if how == "plain":
            return plain(library, chain, cpu)
        if how in ("allocated", "overwritten"):
            return allocated(library, chain, cpu, another=how == "overwritten")
        if how == "two-cpu":
            state = chain.states.tensor("f32", chain.state_ne)
            allocate(cpu, chain.caches, chain.states)
            chain.make_fresh(state)
            backends = [enter(library.backend(1)), cpu]
            return scheduled(library, chain, backends, state, calls_in_turn=True)
        remote = enter(Remote(library, endpoint))
        if how == "rpc":
            return plain(library, chain, remote)
        if how == "supports":
            without = chain.graphs.flash_attn_ext(chain._q, chain._k, chain._v, None, scale=1.0)
            chain.build(chain.states.tensor("f32", chain.state_ne))
            calls = (without, chain.calls[0])
            says = [lib.ggml_backend_supports_op(remote._p, call._p) for call in calls]
            return np.array(says, np.float32).tobytes()
        allocate(remote, chain.caches)
        if how == "rpc-fresh":
            empty = chain.graphs.tensor("f32", chain.state_ne)
            fresh = lib.ggml_fill(chain.graphs._p, empty._p, float("-inf"))
            return scheduled(library, chain, [remote, cpu], Tensor(library, fresh, "f32"))
        state = chain.states.tensor("f32", chain.state_ne)
        allocate(remote if how == "rpc-state" else cpu, chain.states)
        if how.startswith("kept"):
            parallel = how == "kept-parallel"
            return kept(library, chain, [remote, cpu], state, parallel=parallel)
        chain.make_fresh(state)
        return scheduled(library, chain, [remote, cpu], state)


def main() -> None:
    module, how, *endpoint = sys.argv[1:]
    library = ggml.load(Path(module))
    sys.stdout.buffer.write(run(library, how, *endpoint or [""]))


if __name__ == "__main__":
    main()
