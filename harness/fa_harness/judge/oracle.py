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

What is not finite in the inputs goes where IEEE 754 takes it: a row with a score of NaN is NaN, and
a V that is NaN or infinite shows in its element of the rows that see it. A key that is masked
counts for nothing. Where kernels may differ in that, a row is `loose`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fa_harness.arrays import F32, F64, Bools
from fa_harness.case.case import Case
from fa_harness.case.inputs import Inputs
from fa_harness.kernel import SEES_HIDDEN, SEES_NAN, SEES_SOME, SEES_VISIBLE

_LOWEST = np.finfo(np.float64).min
_SCORES = 1 << 18
"""Scores that are held at once: their arrays stay in the cache."""
_STEPS = 128
_STEP_KEYS = 64
_STEP_SUMS = 1 << 20
"""The partial sums are looked at after steps of some keys: of at most `_STEP_KEYS`, and of as few
as make no more than `_STEPS` steps and `_STEP_SUMS` sums."""
_FAR = 16.0
"""By how much a score is far below the maximum, at least."""
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
    """Largest |slope * mask| of the keys that are not far below the maximum: see `_is_far`."""
    sink_max: F64
    """|sink|, 0 where none was added."""
    peak: F64
    """Upper bound on |VKQ| on the way, relative to the maximum at the end of what is merged."""
    far_bias: F64
    """Weighted sum of the |slope * mask| that `bias_max` leaves out."""
    loose: F64
    """One of `kernel.SEES_...` where a path may give other numbers, else 0: see `_hide_wild`."""


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
    m, loose = np.maximum(a.m, b.m), np.maximum(a.loose, b.loose)
    for part in (a, b):
        if not math.isfinite(part.vkq.sum()):
            loose[(part.m < m - _FAR) & ~np.isfinite(part.vkq).all(axis=-1)] = SEES_VISIBLE
    loose[(loose == SEES_HIDDEN) & ~np.isneginf(m)] = SEES_SOME
    wa, wb = weight(a.m, m), weight(b.m, m)
    va, vb = wa[..., None], wb[..., None]
    vkq_a = a.vkq * va
    size_a, n_b = np.abs(vkq_a), b.n_roundings[..., None]
    (bias_a, far_a), (bias_b, far_b) = (_bias_from(x, m, a.bias_max + b.bias_max) for x in (a, b))
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
        bias_max=np.maximum(bias_a, bias_b),
        far_bias=far_a * wa + far_b * wb,
        loose=loose,
        sink_max=np.maximum(a.sink_max, b.sink_max),
        peak=np.maximum(np.maximum(a.peak, b.peak), (size_a + b.abs_vkq * vb).max(axis=-1)),
    )


def _bias_from(part: Partial, m: F64, bias: F64) -> tuple[F64, F64]:
    """Return `bias_max` and `far_bias` of a part whose keys may be far below the maximum `m`."""
    if not (part.bias_max > _FAR).any():
        return part.bias_max, part.far_bias
    is_far = _is_far(part.m, m, bias)
    far = part.far_bias + np.where(is_far, part.bias_max * part.s, 0.0)
    return np.where(is_far, 0.0, part.bias_max), far


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
        self.wild_v: list[tuple[int, int, int, float]] = []
        """Where V is not finite, and what it is: `(head, key, element, value)`. It is 0 in `v`."""
        if not math.isfinite(v.sum()):
            places = np.argwhere(~np.isfinite(v)).tolist()
            self.wild_v = [(h, j, d, float(v[h, j, d])) for h, j, d in places]
            v[~np.isfinite(v)] = 0.0
        self.v = np.concatenate([v, np.abs(v)], axis=-1)
        """V and |V|, `[heads, keys, 2 * hsv]`."""
        self.has_wild_k = not math.isfinite(self.norms.sum())
        if self.has_wild_k:  # its scores show it
            self.norms[~np.isfinite(self.norms)] = 0.0


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
    loose = _hide_wild(scores, bias, keys)
    m = scores.max(axis=-1)
    far_bias, bias_max = _biases(scores, m, bias)
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
        _add_wild(vkq, weights, keys)
        known = {"s": s, "abs_vkq": abs_vkq, "peak": abs_vkq.max(axis=-1), "loose": loose}
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
    _add_wild(vkq, weights, keys)
    far_bias = (weights * far_bias).sum(axis=-1) if far_bias is not None else np.zeros_like(m)
    weights *= keys.norms
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
        far_bias=far_bias,
        loose=loose,
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


def _biases(scores: F64, m: F64, bias: F64 | None) -> tuple[F64 | None, F64]:
    """Return |bias| of the far keys, where there are any, and the largest of the others.

    Arrays are `[heads, rows, keys]`, the largest is `[heads, rows]`.
    """
    if bias is None:
        return None, np.zeros_like(m)
    size = np.abs(np.where(scores > -np.inf, bias, 0.0))
    largest = size.max(axis=-1)
    if not (largest > _FAR).any():  # the smallest distance that counts as far
        return None, largest
    is_far = _is_far(scores, m[..., None], size + largest[..., None])
    return np.where(is_far, size, 0.0), np.where(is_far, 0.0, size).max(axis=-1)


def _is_far(score: F64, m: F64, bias: F64) -> Bools:
    """Tell whether scores are so far below the maximum that none of them is one after rounding.

    What a bias costs a score is below 2^-10 of it (`bounds.py`, for less than 8,000 heads). Where
    everything else that is rounded in two scores comes to 16, the bounds are far above all results
    anyway. A far key's weight is below e^-16.
    """
    far: Bools = score < m - _FAR - 2.0**-10 * bias
    return far


def _hide_wild(scores: F64, bias: F64 | None, keys: _Keys) -> F64:
    """Make masked scores -inf that are NaN, and return `Partial.loose` of each row.

    A path that takes the largest score of a tile may leave a NaN out, and adds keys with a weight
    of 0 that are masked, or of an earlier tile: 0 times what is not finite is NaN. So it is where
    the weight of a far key is rounded to 0. A score of +inf makes a weight of exp(inf - inf), or 1
    where the maximum is not subtracted again; one of -inf that is the first, exp(-inf - -inf).
    """
    loose = np.zeros(scores.shape[:2])
    if not (keys.wild_v or keys.has_wild_k or np.isnan(scores.sum())):
        return loose
    is_masked = np.zeros(scores.shape, np.bool_) if bias is None else np.isneginf(bias)
    is_nan, is_lost = np.isnan(scores), np.isinf(scores) & ~is_masked
    scores[is_masked] = -np.inf
    loose[is_nan.any(axis=-1)] = SEES_NAN
    loose[(is_nan & is_masked).any(axis=-1)] = SEES_SOME
    m = scores.max(axis=-1)
    for h, j, _, value in keys.wild_v:
        loose[h, is_masked[h, :, j] | math.isinf(value)] = SEES_SOME
        is_lost[h, :, j] |= ~is_masked[h, :, j] & (scores[h, :, j] < m[h] - _FAR)
    loose[(loose > 0) & is_masked.all(axis=-1)] = SEES_HIDDEN
    loose[is_lost.any(axis=-1)] = SEES_VISIBLE
    return loose


def _add_wild(vkq: F64, weights: F64, keys: _Keys) -> None:
    """Add the V that is not finite to the sums of the rows that see it."""
    for h, j, d, value in keys.wild_v:
        vkq[h, weights[h, :, j] > 0, d] += value


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
    of_rows = (
        "s", "n_roundings", "k_s", "s_walk", "k_max", "bias_max", "sink_max", "peak", "far_bias",
        "loose",
    )  # fmt: skip
    of_elements = ("abs_vkq", "k_abs_vkq", "walk", "walk_norm")
    fields = dict.fromkeys(of_rows, np.full(m.shape, value))
    fields |= dict.fromkeys(of_elements, np.full(vkq.shape, value))
    return Partial(m=m, vkq=vkq, **{**fields, **known})


def weight(m: F64, m_new: F64) -> F64:
    """Return exp(m - m_new), 0 for a state that has seen nothing."""
    factor: F64 = np.exp(m - np.maximum(m_new, _LOWEST))
    return factor
