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

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fa_harness.arrays import F32, F64
from fa_harness.case.case import Case
from fa_harness.case.inputs import Inputs

_LOWEST = np.finfo(np.float64).min
_SCORES = 1 << 18
"""Scores that are held at once: their arrays stay in the cache."""
_STEPS = 128
_STEP_KEYS = 64
_STEP_SUMS = 1 << 20
"""The partial sums are looked at after steps of some keys: of at most `_STEP_KEYS`, and of as few
as make no more than `_STEPS` steps and `_STEP_SUMS` sums."""
_FEW_TERMS = 1 << 17
"""So many terms of sums are added at once; of more, a step's at a time."""


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
    """How often VKQ is rounded: once for a key, once or twice more where it is a new maximum."""
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
    sink_max: F64
    """|sink|, 0 where none was added."""
    peak: F64
    """Upper bound on |VKQ| on the way, relative to the maximum at the end of what is merged."""


def fresh(case: Case) -> Partial:
    """Return the state of rows that have seen no key."""
    rows = (case.ne3, case.n_head, case.n_batch)
    return _filled(0.0, m=np.full(rows, -np.inf), vkq=np.zeros((*rows, case.hsv_padded)))


def attend(
    case: Case,
    inputs: Inputs,
    start: int,
    stop: int,
    *,
    for_bounds: bool = True,
    rescale_roundings: int = 1,
) -> Partial:
    """Return the state of the keys `start <= j < stop`, without sinks.

    `for_bounds` sums up all that `bounds.py` needs; else only M, S, VKQ and the sums of |VKQ| are
    numbers and the rest is NaN, which takes half of the time. The sum before a new maximum is
    rounded there `rescale_roundings` times.
    """
    if start == stop:
        return fresh(case)
    n_row = case.n_group * case.n_batch  # query rows of one KV head lie side by side
    n_head = min(max(1, _SCORES // (n_row * (stop - start))), case.n_head_kv)
    n_row = min(max(16, _SCORES // (stop - start)), n_row)
    rows = _slices(case.n_group * case.n_batch, n_row)
    parts = []
    for i3, heads in itertools.product(range(case.ne3), _slices(case.n_head_kv, n_head)):
        keys = _Keys(inputs, i3, heads, slice(start, stop))
        of_rows = [
            _attend_rows(case, inputs, keys, some, for_bounds, rescale_roundings) for some in rows
        ]
        parts.append(joined(of_rows, axis=1))
    shape, whole = (case.ne3, case.n_head, case.n_batch), vars(joined(parts, axis=0))
    return Partial(
        **{name: array.reshape(*shape, *array.shape[2:]) for name, array in whole.items()}
    )


def reach(
    case: Case,
    inputs: Inputs,
    start: int,
    stop: int,
    *,
    before: Partial | None,
    n_parts: int,
    u: float,
) -> F64:
    """Return the largest |VKQ| that an accumulator may hold on the way, `[ne3, n_head, n_batch]`.

    It is relative to the maximum at that time, as the accumulator is. The keys `start <= j < stop`
    are added in their order to the sums `before`, or to none; each of `n_parts` parts of them
    begins anew. Each factor, product and sum is rounded by `u` times its size; `off` adds up how
    far the accumulator may be from the exact sums. The scores are exact.
    """
    most = np.zeros((case.ne3, case.n_head, case.n_batch))
    if start == stop:
        return most
    n_row, size = case.n_group * case.n_batch, -(-(stop - start) // n_parts)
    shape = (case.n_head_kv, n_row)
    for i3 in range(case.ne3):
        keys = _Keys(inputs, i3, slice(0, case.n_head_kv), slice(start, stop))
        scores, _ = _scores(case, inputs, keys, slice(0, n_row))
        v = keys.v[:, None, :, : case.hsv_padded]
        at = most[i3].reshape(shape)
        for i in range(stop - start):
            if i == 0 and before is not None:
                m, sums = before.m[i3].reshape(shape), before.vkq[i3].reshape(*shape, -1)
                off = u * np.abs(sums)
            elif i % size == 0:
                m, sums = np.full(shape, -np.inf), np.zeros((*shape, v.shape[-1]))
                off = np.zeros_like(sums)
            m_new = np.maximum(m, scores[..., i])
            scale, weight_of_key = (weight(x, m_new)[..., None] for x in (m, scores[..., i]))
            key = weight_of_key * v[:, :, i]
            off = scale * off + 2 * u * (scale * (np.abs(sums) + off) + np.abs(key))
            m, sums = m_new, scale * sums + key
            off += u * (np.abs(sums) + off)
            np.maximum(at, (np.abs(sums) + off).max(axis=-1), out=at)
    return most


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
        sink_max=np.maximum(a.sink_max, b.sink_max),
        peak=np.maximum(np.maximum(a.peak, b.peak), (size_a + b.abs_vkq * vb).max(axis=-1)),
    )


def add_sinks(partial: Partial, sinks: F32) -> Partial:
    """Return the state with one more score for each head, whose V is 0; sinks are `[n_head]`."""
    sink = np.broadcast_to(sinks.astype(np.float64)[:, None], partial.m.shape)
    one, zeros = np.ones_like(partial.s), np.zeros_like(partial.vkq)
    known = {"s": one, "n_roundings": one, "s_walk": one, "sink_max": np.abs(sink)}
    return merge(partial, _filled(0.0, m=sink, vkq=zeros, **known))


def finalise(partial: Partial) -> F64:
    """Return the attention `[ne3, n_head, n_batch, hsv]`: VKQ / S, and 0 where S is 0."""
    s = partial.s[..., None]
    return np.divide(partial.vkq, s, out=np.zeros(partial.vkq.shape), where=s != 0)


def slopes(case: Case) -> F64:
    """Return the ALiBi slope of each head, `[n_head]` (Press et al. 2021, as ggml extends it)."""
    if case.max_bias <= 0:
        return np.ones(case.n_head)
    n_head_log2 = 1 << int(math.log2(case.n_head))
    h = np.arange(case.n_head)
    below = 2.0 ** (-case.max_bias / n_head_log2 * (h + 1))
    above = 2.0 ** (-case.max_bias / 2 / n_head_log2 * (2 * (h - n_head_log2) + 1))
    return np.where(h < n_head_log2, below, above)


class _Keys:
    """Some keys of some KV heads of one sequence, as float64."""

    def __init__(self, inputs: Inputs, i3: int, heads: slice, keys: slice) -> None:
        self.i3 = i3
        self.heads = heads
        self.keys = keys
        self.k = inputs.k[i3, heads, keys].astype(np.float64)
        """`[heads, keys, hsk]`."""
        self.norms = np.sqrt(np.einsum("hki,hki->hk", self.k, self.k))[:, None]
        """`[heads, 1, keys]`."""
        v = inputs.v[i3, heads, keys].astype(np.float64)
        self.v = np.concatenate([v, np.abs(v)], axis=-1)
        """V and |V|, `[heads, keys, 2 * hsv]`."""


def joined(parts: Sequence[Partial], *, axis: int) -> Partial:
    """Return the rows of several states side by side."""
    if len(parts) == 1:
        return parts[0]
    fields = zip(*(vars(part).items() for part in parts), strict=True)
    return Partial(
        **{each[0][0]: np.concatenate([array for _, array in each], axis) for each in fields}
    )


def _slices(n: int, step: int) -> list[slice]:
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]


def _attend_rows(
    case: Case, inputs: Inputs, keys: _Keys, rows: slice, for_bounds: bool, rescale_roundings: int
) -> Partial:
    """Return a state of some of the query rows of each KV head.

    Arrays are `[heads, rows, ...]`; of a KV head's rows, `rows` are counted head by head.
    """
    scores, bias = _scores(case, inputs, keys, rows)
    m = scores.max(axis=-1)
    if for_bounds:
        is_seen = scores > -np.inf
        before = np.maximum.accumulate(scores, axis=-1)
        is_maximum = is_seen.copy()
        np.greater(scores[..., 1:], before[..., :-1], out=is_maximum[..., 1:])
    scores -= np.where(np.isinf(m), 0.0, m)[..., None]
    weights = np.exp(scores, out=scores)
    s = weights.sum(axis=-1)

    if not for_bounds:
        vkq, abs_vkq = np.split(weights @ keys.v, 2, axis=-1)
        known = {"s": s, "abs_vkq": abs_vkq, "peak": abs_vkq.max(axis=-1)}
        return _filled(np.nan, m=m, vkq=vkq, **known)
    starts = range(0, scores.shape[-1], _step_keys(case, scores.shape[-1]))
    of_maximum = np.int8(rescale_roundings) * is_maximum
    counts = is_seen + of_maximum
    n_roundings = counts.sum(axis=-1, dtype=float)
    if starts.step == 1:
        # a new maximum rounds the sum before it; of a step of some keys, that is one on its way
        counts = is_seen.astype(np.int8)
        counts[..., :-1] += of_maximum[..., 1:]
        roundings = counts.astype(float)
    else:
        roundings = np.add.reduceat(counts, starts, axis=-1, dtype=float)
    vkq, abs_vkq, walk, walk_norm = _walk(weights, keys.v, roundings, starts)
    weights *= keys.norms
    bias_max = np.zeros_like(m)
    if bias is not None:
        bias_max = np.abs(np.where(is_seen, bias, 0.0)).max(axis=-1)
    return Partial(
        m=m,
        s=s,
        vkq=vkq,
        n_roundings=n_roundings,
        abs_vkq=abs_vkq,
        k_s=weights.sum(axis=-1),
        k_abs_vkq=weights @ keys.v[..., vkq.shape[-1] :],
        walk=walk,
        walk_norm=walk_norm,
        s_walk=n_roundings * s,
        k_max=np.where(is_seen, keys.norms, 0.0).max(axis=-1),
        bias_max=bias_max,
        sink_max=np.zeros_like(m),
        peak=abs_vkq.max(axis=-1),
    )


def _scores(case: Case, inputs: Inputs, keys: _Keys, rows: slice) -> tuple[F64, F64 | None]:
    """Return the scores of some rows, `[heads, rows, keys]`, and what was added to them."""
    group = case.n_group
    q = inputs.q[keys.i3].reshape(case.n_head_kv, group * case.n_batch, -1)[keys.heads, rows]
    scores = q.astype(np.float64) @ keys.k.swapaxes(-1, -2)
    scores *= case.scale
    if case.logit_softcap:
        scores /= case.logit_softcap
        np.tanh(scores, out=scores)
        scores *= case.logit_softcap
    bias = _bias(case, inputs, keys, rows)
    if bias is not None:
        scores += bias
    return scores, bias


def _bias(case: Case, inputs: Inputs, keys: _Keys, rows: slice) -> F64 | None:
    """Return what is added to the scores of some rows, `[heads, rows, keys]`."""
    if inputs.mask is None:
        return None
    head_kv = np.arange(case.n_head_kv)[keys.heads, None]
    row = np.arange(case.n_group * case.n_batch)[rows]
    head = head_kv * case.n_group + row // case.n_batch
    mask = inputs.mask[keys.i3, ..., keys.keys][head % inputs.mask.shape[1], row % case.n_batch]
    bias: F64 = mask.astype(np.float64)
    if case.max_bias:
        bias *= slopes(case)[head][..., None]
    return bias


def _step_keys(case: Case, n_kv: int) -> int:
    """Return how many keys are taken between one look at the partial sums and the next."""
    n_sum = case.ne3 * case.n_head * case.n_batch * case.hsv_padded * n_kv
    return min(_STEP_KEYS, max(-(-n_kv // _STEPS), -(-n_sum // _STEP_SUMS)))


def _walk(weights: F64, v: F64, roundings: F64, starts: range) -> tuple[F64, F64, F64, F64]:
    """Return VKQ, the sum of absolute values, `walk` and `walk_norm`.

    Of the partial sums, those after each step of keys are known. On the way from x to y, by terms
    whose absolute values add up to a, none is larger than (|x| + |y| + a) / 2, since from any of
    them to x and to y it is a together, at most. `weights` are `[heads, rows, keys]`, `v` is V and
    |V|, `[heads, keys, 2 * hsv]`, `roundings` are those of each step, `[heads, rows, steps]`.
    """
    hsv = v.shape[-1] // 2
    if starts.step == 1 and weights.size * v.shape[-1] <= _FEW_TERMS:
        every = np.cumsum(weights[..., None] * v[:, None, :, :hsv], axis=-2)
        size = np.abs(every)
        counts = roundings[..., None, :]
        walk, walk_2 = ((counts @ power)[..., 0, :] for power in (size, size * size))
        return every[..., -1, :], weights @ v[..., hsv:], walk, np.sqrt(walk_2)
    shape = (*weights.shape[:-1], hsv)
    sums = np.zeros((*shape[:-1], 2 * hsv))
    terms, size, twice, squares = (np.empty_like(x) for x in (sums, *[sums[..., :hsv]] * 3))
    before, walk, walk_2 = (np.zeros(shape) for _ in range(3))
    for i, start in enumerate(starts):
        stop = start + starts.step
        np.matmul(weights[..., start:stop], v[:, start:stop], out=terms)
        sums += terms
        np.abs(sums[..., :hsv], out=size)
        if starts.step == 1:
            np.add(size, size, out=twice)
        else:
            np.add(before, size, out=twice)
            twice += terms[..., hsv:]
        np.multiply(twice, roundings[..., i, None], out=squares)
        walk += squares
        squares *= twice
        walk_2 += squares
        before, size = size, before
    return sums[..., :hsv], sums[..., hsv:], walk / 2, np.sqrt(walk_2) / 2


def _filled(value: float, *, m: F64, vkq: F64, **known: F64) -> Partial:
    """Return a state whose fields hold `value` but for those that are known."""
    of_rows = ("s", "n_roundings", "k_s", "s_walk", "k_max", "bias_max", "sink_max", "peak")
    of_elements = ("abs_vkq", "k_abs_vkq", "walk", "walk_norm")
    fields = dict.fromkeys(of_rows, np.full(m.shape, value))
    fields |= dict.fromkeys(of_elements, np.full(vkq.shape, value))
    return Partial(m=m, vkq=vkq, **{**fields, **known})


def weight(m: F64, m_new: F64) -> F64:
    """Return exp(m - m_new), 0 for a state that has seen nothing."""
    factor: F64 = np.exp(m - np.maximum(m_new, _LOWEST))
    return factor
