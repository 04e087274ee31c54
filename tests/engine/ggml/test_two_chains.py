"""Two layers, each with a state of its own, whose calls alternate in one graph."""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from fa_harness.arrays import F32
from fa_harness.case.case import Case
from fa_harness.case.inputs import make_inputs
from fa_harness.engine.ggml import Ggml, Tensor
from fa_harness.engine.layout import CaseTensors, clear, make_fresh, rows_of

VEC = Case(
    hsk=64, hsv=64, n_head_kv=2, n_group=2, ne3=2, n_kv=96, n_batch=3, segments=3, regime="rising",
    threads=2
)  # fmt: skip
CASES = {
    "vec": VEC,
    "vec, quantised": VEC.with_(type_K="q8_0", type_V="q4_0", threads=1),
    "tiled": VEC.with_(n_batch=64, mask_kind="causal"),
    "split-kv": VEC.with_(n_batch=1, n_group=4, ne3=1, n_kv=1600),
}

Order = Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]
ORDERS: dict[str, Order] = {
    "in turn": lambda a, b: [call for pair in zip(a, b, strict=True) for call in pair],
    "the other first": lambda a, b: [call for pair in zip(b, a, strict=True) for call in pair],
    "one ahead": lambda a, b: [a[0], a[1], b[0], a[2], b[1], b[2]],
    "whole chains": lambda a, b: [a[-1], b[-1]],
}


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A call for each segment on one state, linked as a graph needs it."""

    calls: list[Tensor]
    state: Tensor

    def bytes(self) -> list[bytes]:
        """Return the output of each call and the state."""
        return [*(rows_of(call).tobytes() for call in self.calls), self.state.read().tobytes()]


def layers(case: Case) -> tuple[Case, Case]:
    """Return a case and another of its shape: other numbers, another cut."""
    return case, case.with_(seed=7, boundaries=(10, case.n_kv // 2))


def chain(tensors: CaseTensors, case: Case, state: Tensor) -> Chain:
    cache, now, calls = tensors.cache(), state, []
    for start, stop in itertools.pairwise(case.segment_bounds()):
        keys = tensors.segment_of(cache, (start, stop))
        calls.append(tensors.call(keys, (start, stop), sinks=stop == case.n_kv, state=now))
        now = tensors.ctx.state_after(calls[-1])
    return Chain(calls=calls, state=state)


def computed(
    library: Ggml, cases: Sequence[Case], order: Order | None, *, n_state: int = 2
) -> list[list[bytes]]:
    """Compute the chains of some cases in one graph, on a state each or on one for all."""
    with contextlib.ExitStack() as stack:
        contexts = [stack.enter_context(library.context()) for _ in cases]
        backend = stack.enter_context(library.backend(cases[0].threads))
        tensors = [
            CaseTensors(ctx, case, make_inputs(case))
            for ctx, case in zip(contexts, cases, strict=True)
        ]
        states = [layer.state() for layer in tensors[:n_state]]
        chains = [
            chain(layer, case, states[min(i, n_state - 1)])
            for i, (layer, case) in enumerate(zip(tensors, cases, strict=True))
        ]
        calls = [one.calls for one in chains]
        graph = contexts[0].graph(order(*calls) if order else calls[0][-1:])
        for layer in tensors:
            layer.allocate(backend)
        for state in states:
            make_fresh(state)
        for call in [call for one in calls for call in one]:
            clear(call)
        backend.compute(graph)
        return [one.bytes() for one in chains]


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_each_of_two_chains_in_one_graph_is_its_own_chain_alone_bit_for_bit(
    library: Ggml, case: Case, order: Order
) -> None:
    alone = [computed(library, [layer], None, n_state=1)[0] for layer in layers(case)]
    assert computed(library, layers(case), order) == alone


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_two_chains_on_one_state_are_neither_of_them(library: Ggml, case: Case) -> None:
    alone = [computed(library, [layer], None, n_state=1)[0] for layer in layers(case)]
    shared = computed(library, layers(case), ORDERS["in turn"], n_state=1)
    for layer, right in zip(shared, alone, strict=True):
        assert layer[-2] != right[-2]
        assert layer[-1] != right[-1]


def test_the_chains_of_two_layers_differ(library: Ggml) -> None:
    first, second = (computed(library, [layer], None, n_state=1)[0] for layer in layers(VEC))
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert all(np.isfinite(as_numbers(output)).all() for output in [*first, *second])


def as_numbers(output: bytes) -> F32:
    return np.frombuffer(output, np.float32)
