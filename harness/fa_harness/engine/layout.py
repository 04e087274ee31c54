"""A case's inputs as tensors of a context, and the calls that use them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from fa_harness.arrays import F16, F32, U8, Array
from fa_harness.case import quants
from fa_harness.case.case import Case
from fa_harness.case.inputs import Inputs
from fa_harness.engine.ggml import Backend, Context, Tensor

_NAN = 0xFF  # bytes that are NaN as F32, F16 or the scale of a block
_UNUSED = _NAN  # bytes of a cache outside the view
_UNUSED_COLUMNS = 8  # a mask may be wider than the keys of a call
_KEPT_BYTES = 1 << 20  # the layout of an input up to this size is kept; making it again costs more


class Keys(NamedTuple):
    """The K and V of a call, `[hsk or hsv, keys, n_head_kv, ne3]`."""

    k: Tensor
    v: Tensor


class CaseTensors:
    """The tensors of a case in one context; `allocate` comes after the last of them.

    Segments are pairs `(start, stop)` of keys.
    """

    def __init__(
        self,
        ctx: Context,
        case: Case,
        inputs: Inputs,
        layouts: dict[str, U8] | None = None,
        *,
        in_place: bool = False,
    ) -> None:
        """Place Q and the sinks.

        Contexts of the case share `layouts`, by name the inputs as they lie in memory. With
        `in_place` the inputs live there, so that contexts of several libraries read the same
        memory. Otherwise each context has a copy.
        """
        self.ctx = ctx
        self.of_calls = ctx
        """The context in which calls are made."""
        self._in_place = in_place
        self._layouts = {} if layouts is None else layouts
        self._case = case
        self._source = inputs
        self._inputs: dict[str, tuple[Tensor, U8]] = {}
        self._seen: dict[str, tuple[int, int]] = {}
        self._q = self._place("q", "f32", case.hsk_padded, as_bytes(inputs.q), cache=False)
        self._sinks = None
        if inputs.sinks is not None:
            self._sinks = ctx.tensor("f32", (case.n_head, 1, 1, 1))
            self._input("sinks", self._sinks, functools.partial(as_bytes, inputs.sinks))

    def cache(self) -> Keys:
        """Return the whole cache."""
        return self._keys("", self._case, self._source.k_raw, self._source.v_raw)

    def segment_of(self, cache: Keys, segment: tuple[int, int]) -> Keys:
        """Return a segment of the whole cache as views with its strides."""
        return Keys(self._view(cache.k, segment), self._view(cache.v, segment))

    def own_segment(self, i: int) -> Keys:
        """Return segment `i` as a cache of its own, in its own types."""
        start, stop = self._case.segment_bounds()[i : i + 2]
        rows = np.s_[:, :, start:stop]
        k_raw, v_raw = self._source.k_raw[rows], self._source.v_raw[rows]
        if self._source.segments:
            k_raw, v_raw = self._source.segments[i]
        return self._keys(f"[{start}:{stop}]", self._case.of_segment(i), k_raw, v_raw)

    def state(self, ctx: Context | None = None, *, is_made: bool = False) -> Tensor:
        """Return a state of the case, not filled, in a context, or in that of the inputs.

        If it `is_made`, the graph fills it, and it is fresh.

        With one row per head it is made from `[2 + hsv, n_head, 1, ne3]`. It is still contiguous,
        but the stride of the dimension with one element is not that of a row.
        """
        case = self._case
        row, n_batch, n_head, ne3 = 2 + case.hsv_padded, case.n_batch, case.n_head, case.ne3
        rows = (n_batch, n_head) if n_batch > 1 else (n_head, 1)
        ctx = self.ctx if ctx is None else ctx
        state = ctx.tensor("f32", (row, *rows, ne3), "the state")
        if is_made:
            state = ctx.filled(state, -np.inf)
        return state if n_batch > 1 else ctx.permute(state, (0, 2, 1, 3))

    def call(
        self,
        keys: Keys,
        segment: tuple[int, int],
        *,
        sinks: bool,
        state: Tensor | None = None,
        hidden: bool = False,
        starts: bool = False,
    ) -> Tensor:
        """Return the attention over the keys of a segment, continuing from and into a state.

        If it `starts` a chain, the state need not be fresh in a library whose calls return it.
        If `hidden`, a mask of the same shape hides every key, instead of the case's own.
        """
        if hidden:
            columns = np.full((1, 1, self._case.n_batch, segment[1] - segment[0]), -np.inf)
            mask: Tensor | None = self._mask(f"hidden{segment}", columns.astype(np.float16))
        else:
            mask = self._mask_columns(segment)
        out = attention(
            self.of_calls, self._case, self._q, keys, mask, state, self._sinks, starts=starts
        )
        if self._sinks is not None and not sinks:  # the function for them also takes them away
            self.of_calls.take_sinks(out)
        out.name = f"dst[{segment[0]}:{segment[1]}]"
        return out

    def place_masks(self, segments: Iterable[tuple[int, int]]) -> None:
        """Place the masks of segments now, for calls that are made once there is memory."""
        for segment in segments:
            self._mask_columns(segment)

    def allocate(self, backend: Backend) -> None:
        """Give memory to the tensors of `ctx`, and fill the inputs."""
        backend.allocate(self.ctx)
        if not self._in_place:
            for tensor, data in self._inputs.values():
                tensor.write(data)

    @contextmanager
    def negated(self) -> Iterator[None]:
        """Turn the signs of Q, K and V for a while, where they lie."""
        turned = [pair for name, pair in self._inputs.items() if name[0] in "qkv"]
        for tensor, data in turned:
            tensor.write(quants.negated(data, tensor.type))
        yield
        for tensor, data in turned:
            tensor.write(data)

    def inputs_written(self) -> tuple[str, ...]:
        """Return in words which inputs have changed, and where first and last."""
        return tuple(
            self._change_of(name, tensor, data)
            for name, (tensor, data) in self._inputs.items()
            if not tensor.holds(data)
        )

    def _change_of(self, name: str, tensor: Tensor, data: U8) -> str:
        changed = np.flatnonzero(tensor.read_bytes() != data.reshape(-1))
        first, last = int(changed[0]), int(changed[-1])
        found = tensor.written("in", first, last)
        row, column = divmod(first, tensor.nb[1])
        row_bytes, n_rows = self._seen[name]
        is_outside = column >= row_bytes or row % tensor.ne[1] >= n_rows
        return f"{found}, outside the view" if is_outside else found

    def _keys(self, part: str, case: Case, k_raw: U8, v_raw: U8) -> Keys:
        k = self._place(f"k{part}", case.type_K, case.hsk_padded, k_raw, cache=case.kv_view)
        if case.v_is_view_of_k:
            return Keys(k, self.ctx.view(k, (case.hsv_padded, *k.ne[1:])))
        return Keys(
            k, self._place(f"v{part}", case.type_V, case.hsv_padded, v_raw, cache=case.kv_view)
        )

    def _view(self, cache: Tensor, segment: tuple[int, int]) -> Tensor:
        start, stop = segment
        if segment == (0, self._case.n_kv):
            return cache
        ne0, _, ne2, ne3 = cache.ne
        return self.ctx.view(cache, (ne0, stop - start, ne2, ne3), offset=start * cache.nb[1])

    def _mask_columns(self, segment: tuple[int, int]) -> Tensor | None:
        """Return a segment's columns of the mask, None where there is none."""
        if self._source.mask is None:
            return None
        start, stop = segment
        return self._mask(f"mask[{start}:{stop}]", self._source.mask[..., start:stop])

    def _mask(self, name: str, columns: F16) -> Tensor:
        """Return a copy of columns of a mask, since the op wants it contiguous.

        If the cache is a view, the mask is wider than the segment.
        """
        if name in self._inputs:
            return self._inputs[name][0]

        *planes, rows, width = columns.shape
        n_unused = _UNUSED_COLUMNS if self._case.kv_view else 0
        shape = (*planes, rows + -rows % self.ctx.ggml.mask_pad, width + n_unused)

        def lay_out() -> U8:
            whole = np.full(shape, np.nan, np.float16)
            whole[..., :rows, :width] = columns
            return as_bytes(whole)

        tensor = self.ctx.tensor("f16", shape[::-1])
        return self._input(name, tensor, lay_out, seen=(2 * width, rows))

    def _place(self, name: str, type_: str, ne0: int, rows: U8, *, cache: bool) -> Tensor:
        """Return Q, K or V, rows `[ne3, ne2, ne1, row_bytes]`, as the case lays it out."""
        ne = (ne0, *rows.shape[2::-1])
        whole, seen = in_memory(self.ctx, self._case, type_, ne, cache=cache)

        def lay_out() -> U8:
            data = rows.transpose([3 - self._case.permute.index(i) for i in (3, 2, 1, 0)])
            if not cache:
                return np.ascontiguousarray(data)
            twice = np.full((*data.shape[:2], 2 * data.shape[2], data.shape[3]), _UNUSED, np.uint8)
            twice[:, :, : data.shape[2]] = data
            return twice

        n_rows = whole.ne[1] // (1 + cache)
        self._input(name, whole, lay_out, seen=(whole.nb[1], n_rows))
        return seen

    def _input(
        self,
        name: str,
        tensor: Tensor,
        lay_out: Callable[[], U8],
        *,
        seen: tuple[int, int] | None = None,
    ) -> Tensor:
        """Fill a tensor with an input; a small one is laid out once for all contexts.

        Of its rows, calls are to use the bytes and the number of rows `seen`, or all.
        """
        tensor.name = name
        self._seen[name] = seen or (tensor.nb[1], tensor.ne[1])
        data = self._layouts.get(name)
        if data is None:
            data = aligned(lay_out()) if self._in_place else lay_out()
            if self._in_place or data.nbytes <= _KEPT_BYTES:
                self._layouts[name] = data
        if self._in_place:
            self.ctx.place(tensor, data)
        self._inputs[name] = (tensor, data)
        return tensor


def in_memory(
    ctx: Context, case: Case, type_: str, ne: Sequence[int], *, cache: bool
) -> tuple[Tensor, Tensor]:
    """Return Q, K or V of shape `ne` as the case lays it out: the whole, and what a call sees.

    Of a `cache` that is the first half of a tensor that is twice as large in dimension 1, like the
    KV caches of upstream's tests.
    """
    dim_of = [case.permute.index(i) for i in range(4)]  # which of ne is dimension i in memory
    shape = [ne[dim] for dim in dim_of]
    whole = ctx.tensor(type_, [shape[0], shape[1] * (1 + cache), *shape[2:]])
    seen = ctx.view(whole, shape) if cache else whole
    return whole, seen if case.permute == (0, 1, 2, 3) else ctx.permute(seen, dim_of)


def attention(
    ctx: Context,
    case: Case,
    q: Tensor,
    keys: Keys,
    mask: Tensor | None,
    state: Tensor | None,
    sinks: Tensor | None,
    *,
    starts: bool = False,
) -> Tensor:
    """Return the attention of `q` over keys, with the options of a case."""
    return ctx.flash_attn_ext(
        q,
        *keys,
        mask,
        scale=case.scale,
        max_bias=case.max_bias,
        logit_softcap=case.logit_softcap,
        state=state,
        sinks=sinks,
        prec=case.prec,
        n_kv_max=case.n_kv_max,
        starts=starts,
    )


def aligned(array: Array) -> Array:
    """Return a contiguous copy that begins at a multiple of 64 bytes."""
    memory = np.empty(array.nbytes + 63, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def make_fresh(state: Tensor) -> None:
    """Mark every row of a state as fresh. S and VKQ must not matter, so they hold NaN."""
    state.write(_fresh_rows(state.ne))


@functools.lru_cache(maxsize=1)
def _fresh_rows(ne: tuple[int, ...]) -> F32:
    rows = np.full(ne[::-1], np.nan, np.float32)
    rows[..., 0] = -np.inf
    return rows


def clear(out: Tensor) -> None:
    """Fill an output with NaN, so that a row that is not computed shows."""
    out.fill(_NAN)
    if out.part is not None:
        out.part.fill(_NAN)


def rows_of(out: Tensor) -> F32:
    """Return an output `[hsv, n_head, n_batch, ne3]` as `[ne3, n_head, n_batch, hsv]`."""
    return np.ascontiguousarray(out.read().swapaxes(1, 2))


def as_bytes(array: Array) -> U8:
    """Return `[..., n]` of any type as bytes, `[..., n * itemsize]`."""
    array = np.ascontiguousarray(array)
    return array.view(np.uint8).reshape(*array.shape[:-1], array.shape[-1] * array.itemsize)
