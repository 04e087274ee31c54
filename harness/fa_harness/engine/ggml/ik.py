"""The flash attention of ik_llama.cpp, whose ggml left upstream's in 2024: its own ABI, in `ik.h`.

It is loaded as it is built, without a module of ours, so nothing checks the declarations: they
belong to the version that is pinned in `vendor/upstreams.toml`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cffi
import numpy as np

from fa_harness.arrays import F16, F32, U8, Array
from fa_harness.case import quants
from fa_harness.case.case import Case
from fa_harness.errors import SetupError

_MASK_PAD = 16
"""What the rows of a mask have to be a multiple of."""
_NODES = 8
_BYTES = 16 << 10  # of a context, for the headers of one call and its graph


@functools.cache
def _ffi() -> Any:
    ffi = cffi.FFI()
    ffi.cdef(Path(__file__).with_name("ik.h").read_text("utf-8"))
    return ffi


class Ik:
    """The loaded library."""

    def __init__(self, path: Path) -> None:
        try:
            self._lib = _ffi().dlopen(str(path))
        except OSError as error:
            raise SetupError(f"{path}: cannot be loaded ({error}); delete it and run again") from (
                error
            )

    def calls(
        self, case: Case, q: F32, mask: F16 | None, copies: Sequence[tuple[U8, U8 | None]]
    ) -> IkCalls:
        """Return a case's call on each copy of K and V; arguments as in `IkCalls`."""
        return IkCalls(self._lib, case, q, mask, copies)


class IkCalls:
    """A case's call on each of several copies of K and V; released on leaving the `with` block.

    Q is `[n_batch, n_head, hsk]`, the mask `[n_batch, n_kv]`. K and V lie token by token, as bytes
    `[n_kv, n_head_kv, bytes of a row]`; where V is None, it is a view of K. They are read in place.
    """

    def __init__(
        self,
        lib: Any,
        case: Case,
        q: F32,
        mask: F16 | None,
        copies: Sequence[tuple[U8, U8 | None]],
    ) -> None:
        self._lib, self._case = lib, case
        self._buffers: list[Any] = []
        self._kept: list[Any] = []  # memory that tensors live in
        size = _BYTES * (len(copies) + 1)
        params = {"mem_size": size, "mem_buffer": self._memory(size), "no_alloc": True}
        self._ctx = lib.ggml_init(params)
        shape = (case.n_batch, case.n_head, case.hsv)
        self.out = _aligned(4 * math.prod(shape)).view(np.float32).reshape(shape)
        """What was computed last, `[n_batch, n_head, hsv]`."""
        q_ = self._rows("f32", case.hsk, q.view(np.uint8))
        mask_ = None if mask is None else self._mask(mask)
        self._graphs = [self._graph(q_, mask_, *copy) for copy in copies]
        plans = [lib.ggml_graph_plan(graph, case.threads) for graph in self._graphs]
        work = self._memory(max(plan.work_size for plan in plans))
        for plan in plans:
            plan.work_data = work
        self._plans = [_ffi().new("struct ggml_cplan *", plan) for plan in plans]

    def __enter__(self) -> IkCalls:
        return self

    def __exit__(self, *exception: object) -> None:
        for buffer in self._buffers:
            self._lib.ggml_backend_buffer_free(buffer)
        self._lib.ggml_free(self._ctx)
        self._buffers, self._kept, self._graphs, self._plans = [], [], [], []

    def compute(self, copy: int) -> None:
        """Compute the call on a copy."""
        status = self._lib.ggml_graph_compute(self._graphs[copy], self._plans[copy])
        if status != 0:
            raise SetupError(f"ik_llama.cpp: computing a graph ended with status {status}")

    def _graph(self, q: Any, mask: Any, k: U8, v: U8 | None) -> Any:
        lib, ctx, case = self._lib, self._ctx, self._case
        k_ = self._rows(case.type_K, case.hsk, k)
        if v is None:
            row_bytes = k.shape[-1]
            token_bytes = case.n_head_kv * row_bytes
            shape = (case.hsv, case.n_kv, case.n_head_kv, 1)
            strides = (token_bytes, row_bytes, case.n_kv * token_bytes)
            v_ = lib.ggml_view_4d(ctx, k_, *shape, *strides, 0)
        else:
            v_ = self._rows(case.type_V, case.hsv, v)
        mask = _ffi().NULL if mask is None else mask
        out = lib.ggml_flash_attn_ext(
            ctx, q, k_, v_, mask, case.scale, case.max_bias, case.logit_softcap
        )
        self._place(out, self.out)
        graph = lib.ggml_new_graph_custom(ctx, _NODES, False)
        lib.ggml_build_forward_expand(graph, out)
        return graph

    def _rows(self, type_: str, ne0: int, rows: U8) -> Any:
        """Return rows `[tokens, heads, bytes of a row]` as a tensor `[ne0, tokens, heads, 1]`."""
        tokens, heads, _ = rows.shape
        tensor = self._tensor(type_, (ne0, heads, tokens, 1), rows)
        return self._lib.ggml_permute(self._ctx, tensor, 0, 2, 1, 3)

    def _mask(self, mask: F16) -> Any:
        rows, n_kv = mask.shape
        n_rows = rows + -rows % _MASK_PAD
        padded = _aligned(2 * n_rows * n_kv).view(np.float16).reshape(n_rows, n_kv)
        padded[:rows], padded[rows:] = mask, -np.inf
        return self._tensor("f16", (n_kv, len(padded), 1, 1), padded)

    def _tensor(self, type_: str, ne: Sequence[int], array: Array) -> Any:
        number = quants.TYPES[type_].ggml_type
        tensor = self._lib.ggml_new_tensor_4d(self._ctx, number, *ne)
        self._place(tensor, array)
        return tensor

    def _memory(self, size: int) -> Any:
        self._kept.append(pointer := _ffi().from_buffer("uint8_t[]", _aligned(size)))
        return pointer

    def _place(self, tensor: Any, array: Array) -> None:
        """Let a tensor live in an array's memory."""
        pointer = _ffi().from_buffer(array)
        buffer = self._lib.ggml_backend_cpu_buffer_from_ptr(pointer, array.nbytes)
        self._lib.ggml_backend_tensor_alloc(buffer, tensor, pointer)
        self._buffers.append(buffer)
        self._kept.append(pointer)


def _aligned(n_bytes: int) -> U8:
    """Return memory that begins at a multiple of 64 bytes."""
    memory = np.empty(n_bytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + n_bytes]
