"""Mode `fifo`: a rolling cache in real tensors, token by token, on a loaded library.

The hot window is a ring of `hot_window` slots. A step attends over the whole ring, and a mask hides
the slots without a token, as llama.cpp does with the cells of its cache. So the call has the same
shape at every step, and attention does not depend on the order of the keys. With a view on either
side of the place where the ring closes, it would be two calls.

The cold store has room for every token. A call sees its used part through a view with the strides
of the whole. Room is made before a token is written, so the ring needs no spare slot.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fa_harness.arrays import F16, U8
from fa_harness.case import rolling
from fa_harness.case.case import Case
from fa_harness.case.inputs import Inputs
from fa_harness.case.modes import Rolled
from fa_harness.case.quants import decode, encode
from fa_harness.case.rolling import Held
from fa_harness.engine.ggml import Backend, Context, Ggml, Tensor
from fa_harness.engine.layout import Keys, attention, clear, in_memory, make_fresh, rows_of

_UNUSED = 0xFF  # bytes of unused slots: NaN as F32, F16 or the scale of a block


def roll(
    ggml: Ggml, case: Case, inputs: Inputs, backend: Backend, *, one_graph: bool = False
) -> Rolled:
    """Simulate the rolling cache of a case with a `hot_window`, on a library with a state.

    With `one_graph`, both calls of a step are computed in one graph. The state after the first is
    not seen then, so `cold_output` and `cold_state` are NaN.
    """
    assert inputs.mask is not None
    tokens = rolling.Tokens(case, inputs)
    rows = (case.ne3, case.n_head, case.n_batch)
    output, cold_output, state_rows, cold_state = (
        np.full((*rows, n), np.nan, np.float32)
        for n in (*[case.hsv_padded] * 2, *[2 + case.hsv_padded] * 2)
    )
    held = []
    with ggml.context(backend.outside) as ctx:
        cache = _Cache(ctx, case)
        state = ctx.tensor("f32", (2 + case.hsv_padded, 1, case.n_head, case.ne3), "the state")
        sinks = None
        if inputs.sinks is not None:
            sinks = ctx.tensor("f32", (case.n_head, 1, 1, 1), "sinks")
        backend.allocate(ctx)
        for store in (cache.hot, cache.cold):
            store.clear()
        if sinks is not None and inputs.sinks is not None:
            sinks.write(inputs.sinks)
        for t in range(case.n_kv):
            row = np.s_[:, :, t : t + 1]
            cache.push(inputs.k_raw[row], inputs.v_raw[row])
            # a program, too, makes views, inputs and graphs anew for each token
            with ggml.context(backend.outside) as step:
                q = step.tensor("f32", (case.hsk_padded, 1, case.n_head, case.ne3), "q")
                cold = _call(step, case, q, cache.cold, cache.n_cold, state)
                is_linked = one_graph and ggml.has_state_after
                carried = step.state_after(cold.out) if is_linked else state
                hot = _call(step, case, q, cache.hot, case.hot_window, carried, sinks)
                backend.allocate(step)
                q.write(inputs.q[row])
                cold.mask.write(inputs.mask[row][..., : cache.n_cold])
                hot.mask.write(cache.hot_columns(inputs.mask[row]))
                make_fresh(state)
                for call in (cold, hot):
                    clear(call.out)
                if one_graph:
                    backend.compute(step.graph([hot.out] if is_linked else [cold.out, hot.out]))
                else:
                    backend.compute(step.graph([cold.out]))
                    cold_output[row], cold_state[row] = rows_of(cold.out), state.read()
                    backend.compute(step.graph([hot.out]))
                # read afterwards, so that a call that writes to the cache shows, too
                held.append(_held(tokens, t, cache, cold, hot))
                output[row] = rows_of(hot.out)
            state_rows[row] = state.read()
    return Rolled(
        output=output,
        cold_output=cold_output,
        cold_state=cold_state,
        state=state_rows,
        held=tuple(held),
        can_be_told_apart=tokens.can_be_told_apart,
    )


class _Call(NamedTuple):
    """A call over the slots of a store, and its arguments."""

    keys: Keys
    mask: Tensor
    out: Tensor


def _call(
    ctx: Context,
    case: Case,
    q: Tensor,
    store: _Store,
    n_slots: int,
    state: Tensor,
    sinks: Tensor | None = None,
) -> _Call:
    """Return the call over the first `n_slots` slots of a store, perhaps none."""
    keys = Keys(*store.views(ctx, n_slots))
    mask = ctx.tensor("f16", (n_slots, 1, case.mask_heads, case.ne3), f"mask of {store.name}")
    out = attention(ctx, case, q, keys, mask, state, sinks)
    out.name = f"dst of {store.name}"
    return _Call(keys, mask, out)


def _held(tokens: rolling.Tokens, step: int, cache: _Cache, cold: _Call, hot: _Call) -> Held:
    """Return what the calls of a step attend over, read through their own arguments."""
    in_cold, in_hot = (
        tokens.identify(
            store,
            step,
            call.keys.k.read_rows(),
            call.keys.v.read_rows(),
            call.mask.read_rows()[:, :, 0].view(np.float16),
        )
        for store, call in (("cold", cold), ("hot", hot))
    )
    n_cold, n_hot = (int((slots != rolling.HIDDEN).sum()) for slots in (in_cold, in_hot))
    bytes_ = n_cold * cache.cold.bytes_of_slot + n_hot * cache.hot.bytes_of_slot
    return Held(cold=in_cold, hot=in_hot, cache_bytes=bytes_)


class _Store:
    """K and V of some tokens in slots."""

    def __init__(
        self, ctx: Context, case: Case, types: tuple[str, str], n_slots: int, name: str
    ) -> None:
        self.name = name
        (whole_k, self.k), (whole_v, self.v) = (
            in_memory(
                ctx, case, type_, (ne0, n_slots, case.n_head_kv, case.ne3), cache=case.kv_view
            )
            for type_, ne0 in zip(types, (case.hsk_padded, case.hsv_padded), strict=True)
        )
        whole_k.name, whole_v.name = f"k of {name}", f"v of {name}"
        self._whole = (whole_k, whole_v)
        """K and V with all of their memory, to be cleared."""

    @property
    def bytes_of_slot(self) -> int:
        """Bytes of a slot's rows of K and V, as ggml counts them."""
        return sum(
            whole.nbytes // (whole.ne[1] * whole.ne[2] * whole.ne[3]) * tensor.ne[2] * tensor.ne[3]
            for whole, tensor in zip(self._whole, (self.k, self.v), strict=True)
        )

    def clear(self) -> None:
        for whole in self._whole:
            whole.write(np.full(whole.nbytes, _UNUSED, np.uint8))

    def read(self, slot: int) -> tuple[U8, U8]:
        return self.k.read_rows(slot, 1), self.v.read_rows(slot, 1)

    def write(self, slot: int, k: U8, v: U8) -> None:
        self.k.write_rows(slot, k)
        self.v.write_rows(slot, v)

    def views(self, ctx: Context, n_used: int) -> tuple[Tensor, Tensor]:
        """Return the first `n_used` slots of K and V, with the strides of all."""
        k, v = (ctx.view(x, (x.ne[0], n_used, *x.ne[2:])) for x in (self.k, self.v))
        return k, v


class _Cache:
    """The hot window and the cold store.

    Tokens are numbered from the first: `oldest_hot` is in the hot window, `n_token` comes next.
    `n_cold` slots of the cold store are used.
    """

    def __init__(self, ctx: Context, case: Case) -> None:
        self._case = case
        self.hot = _Store(ctx, case, (case.type_K, case.type_V), case.hot_window, "hot tokens")
        cold_types = (case.cold_type, case.cold_type)
        self.cold = _Store(ctx, case, cold_types, case.n_kv, "cold tokens")
        self.n_token = self.oldest_hot = self.n_cold = 0

    def push(self, k: U8, v: U8) -> None:
        """Take in the next token's rows, `[ne3, n_head_kv, 1, row_bytes]`."""
        if self.n_token - self.oldest_hot == self._case.hot_window:
            self._evict()
        self.hot.write(self.slot(self.n_token), k, v)
        self.n_token += 1

    def slot(self, token: int) -> int:
        """Return a hot token's slot."""
        return token % self._case.hot_window

    def hot_columns(self, mask: F16) -> F16:
        """Return a mask `[..., kv]` in the order of the hot slots; slots without a token hide."""
        columns = np.full((*mask.shape[:-1], self._case.hot_window), -np.inf, np.float16)
        slots = [self.slot(token) for token in range(self.oldest_hot, self.n_token)]
        columns[..., slots] = mask[..., self.oldest_hot : self.n_token]
        return columns

    def _evict(self) -> None:
        """Move the oldest group to the cold store."""
        case = self._case
        for token in range(self.oldest_hot, self.oldest_hot + case.group):
            hot = zip(self.hot.read(self.slot(token)), (case.type_K, case.type_V), strict=True)
            k, v = (encode(decode(row, type_), case.cold_type) for row, type_ in hot)
            self.cold.write(self.n_cold, k, v)
            self.n_cold += 1
        self.oldest_hot += case.group
