"""Attention in NumPy float64, as partial states that merge: the independent word on what is right.

A partial state of some keys, for each query row (Milakov & Gimelshein 2018; Dao et al. 2022):

    M   = max_j s_j             s_j = softcap(scale * q . k_j) + slope * mask_j
    S   = sum_j exp(s_j - M)
    VKQ = sum_j exp(s_j - M) * v_j

and of two states, with M = max(M_a, M_b):

    S   = exp(M_a - M) * S_a   + exp(M_b - M) * S_b
    VKQ = exp(M_a - M) * VKQ_a + exp(M_b - M) * VKQ_b

Attention is VKQ / S. Beside these three a state carries sums of absolute values, weighted alike,
from which `bounds.py` makes its bounds. Inputs are the exact values that the kernel is given (K and
V dequantised, Q as F32).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fa_harness.cases import Case
from fa_harness.inputs import Inputs

F64 = npt.NDArray[np.float64]

_BLOCK = 64
"""Keys that are taken at once, at least."""
_LARGEST = 1 << 22
"""Numbers in an array; up to it a block's partial sums are looked at one by one."""


@dataclass(frozen=True, kw_only=True)
class Partial:
    """The state of each row after some keys; arrays are float64, rows `[ne3, n_head, n_batch]`."""

    m: F64
    """Largest score, -inf where no key was seen."""
    s: F64
    """Sum of the weights `exp(s_j - m)`."""
    vkq: F64
    """Weighted sum of V, `[..., hsv]`."""
    n_roundings: F64
    """How often VKQ is rounded: once for a key, once more where the key is a new maximum."""
    abs_vkq: F64
    """Weighted sum of |V|, `[..., hsv]`."""
    k_s: F64
    """Weighted sum of the keys' Euclidean norms."""
    k_abs_vkq: F64
    """Weighted sum of the keys' norms times |V|, `[..., hsv]`."""
    walk: F64
    """Upper bound on the sum, over the roundings in order, of |VKQ then|, `[..., hsv]`.

    A rounding costs in proportion to the partial sum then, not to the sum of |V|.
    """
    walk_norm: F64
    """The same with the root of the sum of squares."""
    s_walk: F64
    """`walk` for S."""
    k_max: F64
    """Largest norm of a key that was not masked."""
    bias_max: F64
    """Largest |slope * mask| that was not -inf."""
    peak: F64
    """Upper bound on |VKQ| on the way, relative to the maximum at the ends of blocks of keys."""


def fresh(case: Case) -> Partial:
    """Return the state of rows that have seen no key."""
    rows = (case.ne3, case.n_head, case.nb)
    zero, zeros = np.zeros(rows), np.zeros((*rows, case.hsv))
    return _without_v(m=np.full(rows, -np.inf), s=zero, n_roundings=zero, zeros=zeros)


def attend(case: Case, inputs: Inputs, start: int, stop: int) -> Partial:
    """Return the state of the keys `start <= j < stop`, without sinks."""
    if start == stop:
        return fresh(case)
    per_key = case.ne3 * case.n_head * case.nb * case.hsv
    step = max(_BLOCK, _LARGEST // per_key)
    blocks = (_block(case, inputs, i, min(i + step, stop)) for i in range(start, stop, step))
    return functools.reduce(merge, blocks)


def merge(a: Partial, b: Partial) -> Partial:
    """Return the state of a's keys followed by b's."""
    m = np.maximum(a.m, b.m)
    wa, wb = weight(a.m, m), weight(b.m, m)
    va, vb = wa[..., None], wb[..., None]
    vkq_a = a.vkq * va
    size_a, n_b = np.abs(vkq_a), b.n_roundings[..., None]
    return Partial(
        m=m,
        s=a.s * wa + b.s * wb,
        vkq=vkq_a + b.vkq * vb,
        n_roundings=a.n_roundings + b.n_roundings,
        abs_vkq=a.abs_vkq * va + b.abs_vkq * vb,
        k_s=a.k_s * wa + b.k_s * wb,
        k_abs_vkq=a.k_abs_vkq * va + b.k_abs_vkq * vb,
        walk=a.walk * va + b.walk * vb + n_b * size_a,
        walk_norm=np.hypot(a.walk_norm * va, b.walk_norm * vb + np.sqrt(n_b) * size_a),
        s_walk=a.s_walk * wa + b.s_walk * wb + b.n_roundings * (a.s * wa),
        k_max=np.maximum(a.k_max, b.k_max),
        bias_max=np.maximum(a.bias_max, b.bias_max),
        peak=np.maximum(np.maximum(a.peak, b.peak), (size_a + b.abs_vkq * vb).max(axis=-1)),
    )


def add_sinks(partial: Partial, sinks: npt.NDArray[np.float32]) -> Partial:
    """Return the state with one more score for each head, whose V is 0.

    Args:
        partial: The state.
        sinks: float32 `[n_head]`.
    """
    sink = np.broadcast_to(sinks.astype(np.float64)[:, None], partial.m.shape)
    one = np.ones_like(partial.s)
    return merge(
        partial, _without_v(m=sink, s=one, n_roundings=one, zeros=np.zeros_like(partial.vkq))
    )


def finalise(partial: Partial) -> F64:
    """Return the attention `[ne3, n_head, n_batch, hsv]`: VKQ / S, and 0 where S is 0."""
    s = partial.s[..., None]
    return np.divide(partial.vkq, s, out=np.zeros_like(partial.vkq), where=s != 0)


def slopes(case: Case) -> F64:
    """Return the ALiBi slope of each head, `[n_head]` (Press et al. 2021, as ggml extends it)."""
    if case.max_bias <= 0:
        return np.ones(case.n_head)
    n_head_log2 = 1 << int(math.log2(case.n_head))
    h = np.arange(case.n_head)
    below = 2.0 ** (-case.max_bias / n_head_log2 * (h + 1))
    above = 2.0 ** (-case.max_bias / 2 / n_head_log2 * (2 * (h - n_head_log2) + 1))
    slope: F64 = np.where(h < n_head_log2, below, above)
    return slope


def _block(case: Case, inputs: Inputs, start: int, stop: int) -> Partial:
    group, ne3 = case.nr23
    heads = (ne3, case.n_head_kv, group * case.nb)  # query rows of one KV head side by side
    rows = (ne3, case.n_head, case.nb)

    k = inputs.k[:, :, start:stop].astype(np.float64)
    v = inputs.v[:, :, start:stop].astype(np.float64)
    q = inputs.q.astype(np.float64).reshape(*heads, case.hsk)
    scores = (q @ k.swapaxes(-1, -2)).reshape(*rows, stop - start) * case.scale
    if case.logit_softcap:
        scores = case.logit_softcap * np.tanh(scores / case.logit_softcap)
    bias = np.zeros((1, 1, 1, 1))
    if inputs.mask is not None:
        of_head = np.arange(case.n_head) % inputs.mask.shape[1]
        mask = inputs.mask[:, of_head, :, start:stop].astype(np.float64)
        bias = slopes(case)[:, None, None] * mask
    scores = scores + bias
    seen = scores > -np.inf

    m = scores.max(axis=-1)
    weights = np.exp(scores - np.where(np.isinf(m), 0.0, m)[..., None])
    s = weights.sum(axis=-1)
    norms = np.sqrt((k * k).sum(axis=-1))
    norm_of_row = np.repeat(norms, group, axis=1)[:, :, None, :]

    def weighted(values: F64) -> F64:
        product: F64 = weights.reshape(*heads, -1) @ values
        return product.reshape(*rows, -1)

    vkq, abs_vkq = weighted(v), weighted(np.abs(v))
    before = np.concatenate([np.full((*rows, 1), -np.inf), scores[..., :-1]], axis=-1)
    roundings = seen * (1.0 + (scores > np.maximum.accumulate(before, axis=-1)))
    n_roundings = roundings.sum(axis=-1)
    if weights.size * case.hsv <= _LARGEST:
        terms = weights[..., None] * np.repeat(v, group, axis=1)[:, :, None]
        sizes = np.abs(np.cumsum(terms, axis=-2))
        walk = (roundings[..., None, :] @ sizes)[..., 0, :]
        walk_norm = np.sqrt(roundings[..., None, :] @ sizes**2)[..., 0, :]
    else:
        walk = n_roundings[..., None] * abs_vkq
        walk_norm = np.sqrt(n_roundings)[..., None] * abs_vkq
    return Partial(
        m=m,
        s=s,
        vkq=vkq,
        n_roundings=n_roundings,
        abs_vkq=abs_vkq,
        k_s=weighted(norms[..., None])[..., 0],
        k_abs_vkq=weighted(norms[..., None] * np.abs(v)),
        walk=walk,
        walk_norm=walk_norm,
        s_walk=n_roundings * s,
        k_max=np.where(seen, norm_of_row, 0.0).max(axis=-1),
        bias_max=np.where(seen, np.abs(bias), 0.0).max(axis=-1),
        peak=abs_vkq.max(axis=-1),
    )


def _without_v(*, m: F64, s: F64, n_roundings: F64, zeros: F64) -> Partial:
    """Return a state whose V is 0, and the norm of its keys, too."""
    zero = np.zeros_like(s)
    return Partial(
        m=m,
        s=s,
        vkq=zeros,
        n_roundings=n_roundings,
        abs_vkq=zeros,
        k_s=zero,
        k_abs_vkq=zeros,
        walk=zeros,
        walk_norm=zeros,
        s_walk=s * n_roundings,
        k_max=zero,
        bias_max=zero,
        peak=zero,
    )


def weight(m: F64, m_new: F64) -> F64:
    """Return exp(m - m_new), 0 for a state that has seen nothing."""
    factor: F64 = np.where(np.isinf(m), 0.0, np.exp(m - np.where(np.isinf(m_new), 0.0, m_new)))
    return factor
