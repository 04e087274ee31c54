"""A program: a chain of three segments in one graph, computed in another way than by one backend.

    python chain_elsewhere.py MODULE HOW [ENDPOINT]

writes the chain's last output, then its state, to standard output as float32. `HOW`:

    plain            one CPU backend
    allocated        graph allocator; the state is an input and an output of the graph
    two-cpu          scheduler over two CPU backends, the calls given to the two in turn
    rpc              RPC backend alone, without a scheduler
    rpc-kv           scheduler over RPC and CPU: K, V there, the state here
    rpc-state        scheduler over RPC and CPU: the state there, too
    rpc-fresh        scheduler over RPC and CPU: the state is made fresh by the graph itself
    supports         what the RPC backend says: without a state, with one (two numbers)
    serve            no chain, but the server for the others
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from fa_harness.case.case import Case
from fa_harness.case.inputs import make_inputs
from fa_harness.engine import ggml
from fa_harness.engine.ggml import Backend, Context, Ggml, Graph, Tensor

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


def rpc_function(library: Ggml, name: str, type_: str) -> Any:
    lib, ffi = library._lib, library._ffi
    registry = lib.ggml_backend_reg_by_name(b"RPC")
    return ffi.cast(type_, lib.ggml_backend_reg_get_proc_address(registry, name.encode()))


def serve(library: Ggml, endpoint: str) -> None:
    lib, ffi = library._lib, library._ffi
    start = rpc_function(
        library,
        "ggml_backend_rpc_start_server",
        "void (*)(const char *, const char *, size_t, size_t, ggml_backend_dev_t *)",
    )
    device = lib.ggml_backend_reg_dev_get(lib.ggml_backend_reg_by_name(b"CPU"), 0)
    start(endpoint.encode(), ffi.NULL, 1, 1, ffi.new("ggml_backend_dev_t[]", [device]))


class Remote(Backend):
    """The RPC backend of a server."""

    def __init__(self, library: Ggml, endpoint: str) -> None:
        super().__init__(library, 1, reference=False, poll=0)
        self._endpoint = endpoint

    def __enter__(self) -> Remote:
        lib = self._ggml._lib
        type_ = "ggml_backend_reg_t (*)(const char *)"
        add_server = rpc_function(self._ggml, "ggml_backend_rpc_add_server", type_)
        registry = add_server(self._endpoint.encode())
        self._p = lib.ggml_backend_dev_init(
            lib.ggml_backend_reg_dev_get(registry, 0), self._ggml._ffi.NULL
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self._ggml._lib.ggml_backend_free(self._p)


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

    def build(self, state: Tensor) -> Graph:
        """Make the calls; the graph is asked for the last one alone."""
        self.calls: list[Tensor] = []
        for start, stop in itertools.pairwise(CASE.segment_bounds()):
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


def allocated(library: Ggml, chain: Chain, backend: Backend) -> bytes:
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
    return chain.results()  # the allocator's memory goes with the process


def scheduled(
    library: Ggml,
    chain: Chain,
    backends: Sequence[Backend],
    state: Tensor,
    *,
    calls_in_turn: bool = False,
) -> bytes:
    lib, ffi = library._lib, library._ffi
    pointers = ffi.new("ggml_backend_t[]", [backend._p for backend in backends])
    n = len(backends)
    scheduler = lib.ggml_backend_sched_new(pointers, ffi.NULL, n, 2048, False, False)
    graph = chain.build(state)
    for call in chain.calls:
        lib.ggml_set_output(call._p)
    lib.ggml_set_output(state._p)
    if calls_in_turn:
        for call, backend in zip(chain.calls, itertools.cycle(backends)):
            lib.ggml_backend_sched_set_tensor_backend(scheduler, call._p, backend._p)
    assert lib.ggml_backend_sched_alloc_graph(scheduler, graph._p)
    chain.fill()
    assert lib.ggml_backend_sched_graph_compute(scheduler, graph._p) == 0
    return chain.results()  # the scheduler's memory goes with the process


def run(library: Ggml, how: str, endpoint: str) -> bytes:
    lib = library._lib
    with ExitStack() as stack:
        enter = stack.enter_context
        chain = Chain(library, stack)
        cpu = enter(library.backend(2))
        if how == "plain":
            return plain(library, chain, cpu)
        if how == "allocated":
            return allocated(library, chain, cpu)
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
        allocate({"rpc-kv": cpu, "rpc-state": remote}[how], chain.states)
        chain.make_fresh(state)
        return scheduled(library, chain, [remote, cpu], state)


def main() -> None:
    module, how, *endpoint = sys.argv[1:]
    library = ggml.load(Path(module))
    if how == "serve":
        serve(library, *endpoint)
    else:
        sys.stdout.buffer.write(run(library, how, *endpoint or [""]))


if __name__ == "__main__":
    main()
