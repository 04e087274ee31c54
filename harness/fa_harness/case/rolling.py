"""A rolling cache: which token lies where at which step, and what it weighs. No C, no tensors.

At step t token t enters the hot window. Where the window then holds more than `hot_window` tokens,
the oldest `group` of them move to the cold store, quantised from their hot values. The hot window
is a ring: token j lies in slot `j % hot_window`. The cold store keeps the tokens in their order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fa_harness.arrays import F16, U8, Ints
from fa_harness.case.case import Case
from fa_harness.case.inputs import Inputs
from fa_harness.case.quants import encode, row_bytes

HIDDEN, OF_NO_TOKEN, OF_OTHER_MASK = -1, -2, -3
"""What a slot holds instead of a token: hidden by the mask; visible, but with bytes of no token;
`OF_OTHER_MASK - token`: a token's bytes under a mask column that is not the token's."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Held:
    """What the calls of one step are given, read from the memory that their arguments name."""

    cold: Ints
    """`[n_kv of the cold call]`: the token in each slot, or one of `HIDDEN`, ..."""
    hot: Ints
    """`[n_kv of the hot call]`."""
    cache_bytes: int
    """Bytes of the rows of K and V in the slots that are visible."""


@dataclass(frozen=True, kw_only=True)
class CacheStep:
    """What a step of a rolling cache costs, in bytes and in exactness."""

    step: int
    tokens_hot: int
    tokens_cold: int
    cache_bytes: int
    """Bytes of K and V of the tokens held, all heads and sequences."""
    f16_bytes: int
    """Bytes of a cache that keeps all tokens in F16."""
    error: float
    """Largest |output - oracle| on exactly the values held."""
    of_bound: float
    """How much of its bound an element of the output takes at most."""
    quantisation_error: float
    """Largest |output - oracle| on the tokens as they were before any got cold."""


def n_cold(case: Case) -> Ints:
    """Return how many tokens, the oldest, are cold at each step, `[kv]`."""
    too_many = np.arange(case.n_kv) + 1 - case.hot_window
    groups: Ints = -(-np.maximum(too_many, 0) // case.group)
    return groups * case.group


def token_bytes(case: Case, *, cold: bool) -> int:
    """Return the bytes that a token's K and V take, all heads and sequences together."""
    type_k, type_v = (case.cold_type,) * 2 if cold else (case.type_K, case.type_V)
    of_head = row_bytes(type_k, case.hsk_padded) + row_bytes(type_v, case.hsv_padded)
    return of_head * case.n_head_kv * case.ne3


class Tokens:
    """The bytes that each token must have, hot and cold, so that bytes in memory tell the token."""

    def __init__(self, case: Case, inputs: Inputs) -> None:
        assert inputs.mask is not None, "a rolling cache has a causal mask"
        self._mask = inputs.mask
        cold = (encode(inputs.k, case.cold_type), encode(inputs.v, case.cold_type))
        self._token_of = {
            store: {row.tobytes(): token for token, row in enumerate(_by_token(*rows))}
            for store, rows in (("hot", (inputs.k_raw, inputs.v_raw)), ("cold", cold))
        }
        self.can_be_told_apart = all(len(found) == case.n_kv for found in self._token_of.values())
        """No two tokens have the same bytes."""

    def identify(self, store: str, step: int, k: U8, v: U8, mask: F16) -> Ints:
        """Return the token in each slot that a call attends over, or why it is none, `[n_kv]`.

        K and V have the bytes that a token must have in the store, `hot` or `cold`, and are
        `[ne3, n_head_kv, n_kv, bytes of a row]`; the mask is `[ne3, mask_heads, n_kv]`.
        """
        held = np.full(k.shape[2], HIDDEN, np.int64)
        visible = np.flatnonzero(~np.isneginf(mask).all(axis=(0, 1)))
        rows = _by_token(k[:, :, visible], v[:, :, visible])
        token_of = self._token_of[store]
        tokens = np.array([token_of.get(row.tobytes(), OF_NO_TOKEN) for row in rows], np.int64)
        columns = self._mask[:, :, step, tokens]  # of any token where it is none
        is_other = (mask[:, :, visible] != columns).any(axis=(0, 1)) & (tokens != OF_NO_TOKEN)
        held[visible] = np.where(is_other, OF_OTHER_MASK - tokens, tokens)
        return held


def misplaced(case: Case, steps: tuple[Held, ...]) -> str | None:
    """Return the first token that is lost, held twice or not where it belongs, None where none is.

    What the calls are given at step t must be each of the tokens 0..t once.
    """
    for step, (held, of_cold) in enumerate(zip(steps, n_cold(case), strict=True)):
        problem = _misplaced(case, held, step, int(of_cold))
        if problem:
            return f"rolling cache at step {step}: {problem}"
    return None


def _misplaced(case: Case, held: Held, step: int, of_cold: int) -> str | None:
    place: dict[int, str] = {}
    for store, slots in (("cold", held.cold), ("hot", held.hot)):
        type_ = case.cold_type if store == "cold" else f"{case.type_K}/{case.type_V}"
        for slot, token in enumerate(slots.tolist()):
            here = f"{store} slot {slot}"
            if token == OF_NO_TOKEN:
                return f"{here} is visible and holds no token's bytes in {type_}"
            if token <= OF_OTHER_MASK:
                return f"token {OF_OTHER_MASK - token} is in {here} with another's mask column"
            if token in place:
                return f"token {token} is counted twice, in {place[token]} and {here}"
            if token != HIDDEN:
                place[token] = here
    for token in range(step + 1):
        store = "cold" if token < of_cold else "hot"
        if token not in place:
            return f"token {token} is lost; it belongs to the {store} tokens"
        if not place[token].startswith(store):
            return f"token {token} is in {place[token]}; it belongs to the {store} tokens"
    future = max(place)
    if future > step:
        return f"token {future} is in {place[future]} before its time"
    of_types = (step + 1 - of_cold) * token_bytes(case, cold=False)
    of_types += of_cold * token_bytes(case, cold=True)
    if held.cache_bytes != of_types:
        return f"its tokens take {held.cache_bytes} bytes; by their types it is {of_types}"
    return None


def _by_token(k: U8, v: U8) -> U8:
    """Return `[ne3, n_head_kv, n, bytes]` of K and of V as `[n, bytes of K and V together]`."""
    both = np.concatenate([k, v], axis=3)
    ne3, n_head_kv, n, n_bytes = both.shape
    return np.moveaxis(both, 2, 0).reshape(n, ne3 * n_head_kv * n_bytes)
