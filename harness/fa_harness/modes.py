"""A case on a loaded library, in one mode after another -> outputs and states.

All arrays of rows are `[ne3, n_head, n_batch, ...]`, the order of the state contract; ggml's own
output, `[hsv, n_head, n_batch, ne3]`, is brought into it on reading.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fa_harness.cases import Case
from fa_harness.ggml import Backend, Context, Ggml, Tensor
from fa_harness.inputs import Inputs

Array = npt.NDArray[np.float32]

MODES = ("standard", "full_state", "segmented")

_UNUSED = 0xFF  # bytes of a cache outside the view: NaN as F32, F16 or the scale of a block


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a call with state leaves behind."""

    output: Array
    """`[ne3, n_head, n_batch, hsv]`."""
    state: Array
    """`[ne3, n_head, n_batch, 2 + hsv]`, rows `[M, S, VKQ]`."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """All that was computed of a case; a field is None where its mode was not asked for."""

    standard: Array
    """One `ggml_flash_attn_ext`."""
    standard_again: Array
    """The same graph computed once more."""
    reference: Array | None
    """One `ggml_flash_attn_ext` on the vec path, where the chain takes another than `standard`."""
    full_state: Step | None
    """One call with a state."""
    full_state_again: Step | None
    """The same graph computed once more, on a fresh state."""
    segmented: tuple[Step, ...] | None
    """A call for each KV segment, a graph for each call."""
    one_graph: tuple[tuple[Array, ...], Array] | None
    """The same chain as one graph: the output of each call, and the state after the last."""
    inputs_written: tuple[str, ...]
    """The inputs whose bytes were not the same after all modes."""
    work_size: dict[str, int]
    """Bytes of work memory planned for one call, by mode (`standard`, `full_state`)."""
    seconds: dict[str, float]
    """Seconds of computing, by mode, all repeats included."""


def run_case(
    ggml: Ggml,
    case: Case,
    inputs: Inputs,
    modes: tuple[str, ...] = MODES,
    *,
    on_mode: Callable[[str], None] = lambda mode: None,
) -> Run:
    """Compute a case in the given modes; `standard` is always among them.

    Args:
        ggml: The loaded library.
        case: What to compute.
        inputs: The case's inputs.
        modes: Some of `MODES`.
        on_mode: Told of each mode before it starts, so that a crash can be laid to it.
    """
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(mode: str) -> Iterator[None]:
        on_mode(mode)
        start = time.perf_counter()
        yield
        seconds[mode] = time.perf_counter() - start

    with ggml.context() as ctx, ggml.backend(case.threads) as backend:
        chain = _Chain(ctx, case, inputs, backend, with_state=ggml.has_state)
        with timed("standard"):
            standard, standard_again = chain.standard(backend), chain.standard(backend)
            reference = None
            if ggml.has_reference and {path(case)} != set(chain_paths(case)):
                with ggml.backend(case.threads, reference=True) as vec_backend:
                    reference = chain.standard(vec_backend)
        full_state = full_state_again = None
        segmented: tuple[Step, ...] | None = None
        one_graph: tuple[tuple[Array, ...], Array] | None = None
        if "full_state" in modes:
            with timed("full_state"):
                full_state, full_state_again = (
                    chain.full_state(backend),
                    chain.full_state(backend),
                )
        if "segmented" in modes:
            with timed("segmented"):
                if case.segments == 1 and full_state is not None and full_state_again is not None:
                    # a chain of one call is the call that was made just now, twice
                    segmented = (full_state,)
                    one_graph = (full_state_again.output,), full_state_again.state
                else:
                    segmented, one_graph = chain.segmented(backend), chain.one_graph(backend)
        return Run(
            standard=standard,
            standard_again=standard_again,
            reference=reference,
            full_state=full_state,
            full_state_again=full_state_again,
            segmented=segmented,
            one_graph=one_graph,
            inputs_written=chain.inputs_written(),
            work_size=chain.work_size(),
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
    n_kv = case.kv if n_kv is None else n_kv
    same_float_type = case.type_K == case.type_V and case.type_K in ("f32", "f16")
    if same_float_type and case.nb == 1 and case.ne3 == 1 and n_kv >= 512:
        return "split-kv"
    if same_float_type and case.nb >= 64:
        return "tiled"
    return "vec"


def chain_paths(case: Case) -> tuple[str, ...]:
    """Return the path of each call of the chain."""
    limits = itertools.pairwise(case.segment_bounds())
    return tuple(path(case, stop - start) for start, stop in limits)


class _Chain:
    """The tensors of a case, and the calls and graphs of each mode."""

    def __init__(
        self,
        ctx: Context,
        case: Case,
        inputs: Inputs,
        backend: Backend,
        *,
        with_state: bool,
    ) -> None:
        self._ctx = ctx
        self._case = case
        self._inputs: dict[str, tuple[Tensor, npt.NDArray[np.uint8]]] = {}

        self._q = self._place("q", "f32", case.hsk_padded, _as_bytes(inputs.q), cache=False)
        self._k = self._place("k", case.type_K, case.hsk_padded, inputs.k_raw, cache=case.kv_view)
        if case.v_is_view_of_k:
            self._v = ctx.view(self._k, (case.hsv_padded, *self._k.ne[1:]))
        else:
            self._v = self._place(
                "v", case.type_V, case.hsv_padded, inputs.v_raw, cache=case.kv_view
            )
        self._mask = inputs.mask
        self._sinks = None
        if inputs.sinks is not None:
            ne = (case.n_head, 1, 1, 1)
            self._sinks = self._input("sinks", "f32", ne, _as_bytes(inputs.sinks))

        whole = (0, case.kv)
        self._standard = self._call(whole, sinks=True)
        self._graphs = {"standard": ctx.graph([self._standard])}
        if with_state:
            ne = (2 + case.hsv_padded, case.nb, case.n_head, case.ne3)
            self._state = ctx.tensor("f32", ne)
            self._full_state = self._call(whole, sinks=True, state=self._state)
            self._graphs["full_state"] = ctx.graph([self._full_state])
            segments = list(itertools.pairwise(case.segment_bounds()))
            self._calls = [
                # a sink belongs to one call of a chain, the last (see the comment in ggml.h)
                self._call(segment, sinks=i == len(segments) - 1, state=self._state)
                for i, segment in enumerate(segments)
            ]
            self._call_graphs = [ctx.graph([call]) for call in self._calls]
            self._chain_graph = ctx.graph(self._calls)

        backend.allocate(ctx)
        for tensor, data in self._inputs.values():
            tensor.write(data)

    def standard(self, backend: Backend) -> Array:
        self._clear(self._standard)
        backend.compute(self._graphs["standard"])
        return _rows(self._standard)

    def full_state(self, backend: Backend) -> Step:
        self._make_fresh()
        self._clear(self._full_state)
        backend.compute(self._graphs["full_state"])
        return Step(output=_rows(self._full_state), state=self._state.read())

    def segmented(self, backend: Backend) -> tuple[Step, ...]:
        self._make_fresh()
        steps = []
        for call, graph in zip(self._calls, self._call_graphs, strict=True):
            self._clear(call)
            backend.compute(graph)
            steps.append(Step(output=_rows(call), state=self._state.read()))
        return tuple(steps)

    def one_graph(self, backend: Backend) -> tuple[tuple[Array, ...], Array]:
        self._make_fresh()
        for call in self._calls:
            self._clear(call)
        backend.compute(self._chain_graph)
        return tuple(_rows(call) for call in self._calls), self._state.read()

    def inputs_written(self) -> tuple[str, ...]:
        """Return the names of the inputs that are no longer what they were."""
        return tuple(
            name
            for name, (tensor, data) in self._inputs.items()
            if not np.array_equal(tensor.read_bytes(), data.reshape(-1))
        )

    def work_size(self) -> dict[str, int]:
        """Return the work memory planned for one call, in bytes, by mode."""
        return {name: g.work_size(self._case.threads) for name, g in self._graphs.items()}

    def _make_fresh(self) -> None:
        """Mark every row as fresh. What S and VKQ hold must not matter, so they hold NaN."""
        state = np.full(self._state.ne[::-1], np.nan, np.float32)
        state[..., 0] = -np.inf
        self._state.write(state)

    def _clear(self, out: Tensor) -> None:
        """Fill an output with NaN, so that a row that is not computed shows."""
        out.write(np.full(out.ne[::-1], np.nan, np.float32))

    def _call(
        self, segment: tuple[int, int], *, sinks: bool, state: Tensor | None = None
    ) -> Tensor:
        """Return the attention over the keys of a segment (start, stop)."""
        case = self._case
        return self._ctx.flash_attn_ext(
            self._q,
            self._keys(self._k, segment),
            self._keys(self._v, segment),
            self._mask_columns(segment),
            scale=case.scale,
            max_bias=case.max_bias,
            logit_softcap=case.logit_softcap,
            state=state,
            sinks=self._sinks if sinks else None,
            prec=case.prec,
            n_kv_max=case.n_kv_max,
        )

    def _keys(self, cache: Tensor, segment: tuple[int, int]) -> Tensor:
        """Return a segment of the cache as a view with the cache's strides."""
        start, stop = segment
        if segment == (0, self._case.kv):
            return cache
        ne0, _, ne2, ne3 = cache.ne
        return self._ctx.view(cache, (ne0, stop - start, ne2, ne3), offset=start * cache.nb[1])

    def _mask_columns(self, segment: tuple[int, int]) -> Tensor | None:
        """Return a segment's columns of the mask: a copy, since the op wants it contiguous."""
        if self._mask is None:
            return None
        start, stop = segment
        name = f"mask[{start}:{stop}]"
        if name in self._inputs:
            return self._inputs[name][0]
        columns = np.ascontiguousarray(self._mask[..., start:stop])
        return self._input(name, "f16", columns.shape[::-1], _as_bytes(columns))

    def _place(
        self,
        name: str,
        type_: str,
        ne0: int,
        rows: npt.NDArray[np.uint8],
        *,
        cache: bool,
    ) -> Tensor:
        """Return Q, K or V as the case lays it out in memory.

        Args:
            name: For reports.
            type_: The tensor's type.
            ne0: Elements in a row.
            rows: `[ne3, ne2, ne1, row_bytes]`.
            cache: A view of the first half of a tensor that is twice as large in dimension 1, as
                upstream's tests make their KV caches.
        """
        permute = self._case.permute
        dim_of = [permute.index(i) for i in range(4)]  # which of rows' dimensions is i in memory
        ne = (ne0, *rows.shape[2::-1])
        base_ne = [ne[dim] for dim in dim_of]
        data = rows.transpose([3 - dim for dim in reversed(dim_of)])
        if cache:
            shape = list(data.shape)
            shape[2] *= 2
            whole = np.full(shape, _UNUSED, np.uint8)
            whole[:, :, : data.shape[2]] = data
            data = whole
        whole_ne = [base_ne[0], base_ne[1] * (2 if cache else 1), *base_ne[2:]]
        tensor = self._input(name, type_, whole_ne, data)
        if cache:
            tensor = self._ctx.view(tensor, base_ne)
        if permute != (0, 1, 2, 3):
            tensor = self._ctx.permute(tensor, dim_of)
        return tensor

    def _input(
        self, name: str, type_: str, ne: Sequence[int], data: npt.NDArray[np.uint8]
    ) -> Tensor:
        tensor = self._ctx.tensor(type_, ne)
        self._inputs[name] = (tensor, np.ascontiguousarray(data))
        return tensor


def _rows(out: Tensor) -> Array:
    """Return an output `[hsv, n_head, n_batch, ne3]` as `[ne3, n_head, n_batch, hsv]`."""
    return np.ascontiguousarray(out.read().swapaxes(1, 2))


def _as_bytes(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return `[..., n]` of any type as bytes, `[..., n * itemsize]`."""
    array = np.ascontiguousarray(array)
    return array.view(np.uint8).reshape(*array.shape[:-1], array.shape[-1] * array.itemsize)
