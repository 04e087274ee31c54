"""Attention in NumPy float64, as partial states that merge: the independent word on what is right.

A partial state of some keys, for each query row (Milakov & Gimelshein 2018; Dao et al. 2022):

    M   = max_j s_j             s_j = softcap(scale * q . k_j) + slope * mask_j
    S   = sum_j exp(s_j - M)
    VKQ = sum_j exp(s_j - M) * v_j

and of two states, with M = max(M_a, M_b):

    S   = exp(M_a - M) * S_a   + exp(M_b - M) * S_b
    VKQ = exp(M_a - M) * VKQ_a + exp(M_b - M) * VKQ_b

Attention is VKQ / S. Beside these three a state carries sums of absolute values, weighted alike, from
which `verdict.py` makes its bounds. Inputs are the exact values that the kernel is given (K and V
dequantised, Q as F32).
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


@dataclass(frozen=True, kw_only=True)
class Partial:
    """The state of each row after some keys; arrays are float64, rows `[ne3, n_head, n_batch]`."""

    m: F64
    """Largest score, -inf where no key was seen."""
    s: F64
    """Sum of the weights `exp(s_j - m)`."""
    vkq: F64
    """Weighted sum of V, `[..., hsv]`."""
    n_keys: F64
    """Keys that were not masked."""
    abs_vkq: F64
    """Weighted sum of |V|, `[..., hsv]`."""
    k_s: F64
    """Weighted sum of the keys' Euclidean norms."""
    k_abs_vkq: F64
    """Weighted sum of the keys' norms times |V|, `[..., hsv]`."""
    walk: F64
    """Upper bound on the sum, over the keys in order, of |VKQ after that key|, `[..., hsv]`.

    Each key costs a rounding error in proportion to the partial sum then, not to the sum of |V|.
    """
    s_walk: F64
    """The same for S."""
    k_max: F64
    """Largest norm of a key that was not masked."""
    bias_max: F64
    """Largest |slope * mask| that was not -inf."""
    peak: F64
    """Largest |VKQ| on the way, at the ends of blocks of keys, relative to the maximum then."""


def fresh(case: Case) -> Partial:
    """Return the state of rows that have seen no key."""
    rows = (case.ne3, case.n_head, case.nb)
    zero, zeros = np.zeros(rows), np.zeros((*rows, case.hsv))
    return Partial(
        m=np.full(rows, -np.inf), s=zero, vkq=zeros, n_keys=zero, abs_vkq=zeros, k_s=zero,
        k_abs_vkq=zeros, walk=zeros, s_walk=zero, k_max=zero, bias_max=zero, peak=zero,
    )  # fmt: skip


def attend(case: Case, inputs: Inputs, start: int, stop: int) -> Partial:
    """Return the state of the keys `start <= j < stop`, without sinks."""
    # short blocks make `walk` a sharp bound, long ones cost less where rows are many
    step = 64 if case.nb < 64 else 256
    blocks = (_block(case, inputs, i, min(i + step, stop)) for i in range(start, stop, step))
    return functools.reduce(merge, blocks, fresh(case))


def merge(a: Partial, b: Partial) -> Partial:
    """Return the state of a's keys followed by b's."""
    m = np.maximum(a.m, b.m)
    wa, wb = _weight(a.m, m), _weight(b.m, m)
    va, vb = wa[..., None], wb[..., None]
    vkq_a = a.vkq * va
    vkq = vkq_a + b.vkq * vb
    return Partial(
        m=m,
        s=a.s * wa + b.s * wb,
        vkq=vkq,
        n_keys=a.n_keys + b.n_keys,
        abs_vkq=a.abs_vkq * va + b.abs_vkq * vb,
        k_s=a.k_s * wa + b.k_s * wb,
        k_abs_vkq=a.k_abs_vkq * va + b.k_abs_vkq * vb,
        walk=a.walk * va + b.walk * vb + b.n_keys[..., None] * np.abs(vkq_a),
        s_walk=a.s_walk * wa + b.s_walk * wb + b.n_keys * (a.s * wa),
        k_max=np.maximum(a.k_max, b.k_max),
        bias_max=np.maximum(a.bias_max, b.bias_max),
        peak=np.maximum(np.maximum(a.peak, b.peak), np.abs(vkq).max(axis=-1, initial=0.0)),
    )


def add_sinks(partial: Partial, sinks: npt.NDArray[np.float32]) -> Partial:
    """Return the state with one more score for each head, whose V is 0.

    Args:
        partial: The state.
        sinks: float32 `[n_head]`.
    """
    sink = np.broadcast_to(sinks.astype(np.float64)[:, None], partial.m.shape)
    zero, zeros = np.zeros_like(partial.s), np.zeros_like(partial.vkq)
    one = np.ones_like(partial.s)
    return merge(
        partial,
        Partial(
            m=sink,
            s=one,
            vkq=zeros,
            n_keys=one,
            abs_vkq=zeros,
            k_s=zero,
            k_abs_vkq=zeros,
            walk=zeros,
            s_walk=one,
            k_max=zero,
            bias_max=zero,
            peak=zero,
        ),  # fmt: skip
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
    return np.where(h < n_head_log2, below, above)


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
    n_keys = seen.sum(axis=-1).astype(np.float64)
    norms = np.sqrt((k * k).sum(axis=-1))
    norm_of_row = np.repeat(norms, group, axis=1)[:, :, None, :]

    def weighted(values: F64) -> F64:
        return (weights.reshape(*heads, -1) @ values).reshape(*rows, -1)

    vkq, abs_vkq = weighted(v), weighted(np.abs(v))
    return Partial(
        m=m,
        s=s,
        vkq=vkq,
        n_keys=n_keys,
        abs_vkq=abs_vkq,
        k_s=weighted(norms[..., None])[..., 0],
        k_abs_vkq=weighted(norms[..., None] * np.abs(v)),
        walk=n_keys[..., None] * abs_vkq,
        s_walk=n_keys * s,
        k_max=np.where(seen, norm_of_row, 0.0).max(axis=-1),
        bias_max=np.where(seen, np.abs(bias), 0.0).max(axis=-1),
        peak=np.abs(vkq).max(axis=-1, initial=0.0),
    )


def _weight(m: F64, m_new: F64) -> F64:
    """Return exp(m - m_new), 0 for a state that has seen nothing."""
    return np.where(np.isinf(m), 0.0, np.exp(m - np.where(np.isinf(m_new), 0.0, m_new)))
