"""How far a correct kernel may be from the oracle: a-priori bounds, element by element.

Notation: u is the unit roundoff (2^-24 for F32, 2^-11 for F16), p_j the softmax weights; sums run
over the keys j of a row. Three things make a correct kernel differ from exact arithmetic:

1. Q. The vec path rounds Q to the type that K's dot product takes. That rounding is known, so its
   cost is computed, not estimated: a run is near the oracle for the rounded Q. What remains in
   doubt, values of Q8_0 next to a tie and the block sums of Q8_1, goes into the scores' error.
2. Scores. Let D_j bound the error of score j. To first order the result changes by
   sum p_j D_j |v_j - out|, at most sum p_j D_j |v_j| + |out| sum p_j D_j; the rest of the series is
   covered by exp(2 max D). D_j = alpha |k_j| + beta, |k_j| the Euclidean norm, with
   - the dot product, a sum of hsk products: alpha = scale |q| hsk u by Cauchy-Schwarz;
   - scale, soft-cap, slope * mask and s - M: a few u times the largest numbers they meet.
3. Accumulation. Each key rounds the partial sum VKQ_t once, and once more where the key is a new
   maximum: an error of d_t VKQ_t, |d_t| <= u, at most u sum_t |VKQ_t| exp(n u) for n roundings.
   This sees cancellation: partial sums of a V with mean zero are small. Where V is symmetric about
   zero, the d_t have mean zero and do not add up: their sum is beyond lambda u sqrt(sum_t VKQ_t^2)
   with a probability below 2 exp(-lambda^2 / 2) (Hoeffding; Higham & Mary 2019), for lambda = 8
   about 2e-14. Without that an F16 sum over some thousand keys could be anything.
   Below F16's normal range an error is 2^-25, not relative.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fa_harness.cases import Case
from fa_harness.oracle import Partial, finalise
from fa_harness.quants import decode, encode

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

U32 = 2.0**-24
U16 = 2.0**-11
_F16_TINY = 2.0**-25
_LAMBDA = 8.0
_SYMMETRIC_V = ("uniform", "normal", "spiky", "rising", "falling", "ties", "outlier")

_Q_TYPE = {  # the type that Q is converted to for K's dot product on the vec path
    "f32": "f32", "f16": "f16", "bf16": "bf16", "q8_0": "q8_0", "q4_0": "q8_0", "q5_0": "q8_0",
    "iq4_nl": "q8_0", "q2_0": "q8_0", "q1_0": "q8_0", "q4_1": "q8_1", "q5_1": "q8_1",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """What a run computes in."""

    q_type: str
    """The type that Q is rounded to."""
    f16_numerators: bool
    """VKQ is accumulated in F16."""
    f16_dot: bool = False
    """Dot products add in F16 registers."""
    n_partials: int = 1
    """Parts that are accumulated apart and then added."""


def arithmetic(case: Case, path: str, features: tuple[str, ...]) -> Arithmetic:
    """Return what a path (`vec`, `tiled`, `split-kv`) computes a case in."""
    if path == "tiled":
        return Arithmetic(q_type="f32", f16_numerators=False)
    return Arithmetic(
        q_type=_Q_TYPE[case.type_K],
        f16_numerators=case.type_V == "f16",
        f16_dot=case.type_K == "f16" and "FP16_ARITHMETIC" in features,
        n_partials=case.threads if path == "split-kv" else 1,
    )


def rounded_q(q: F32, q_type: str) -> tuple[F32, F64]:
    """Return Q as a dot product of `q_type` sees it, and how far off that may be.

    Args:
        q: float32 `[..., hsk]`.
        q_type: `f32`, `f16`, `bf16`, `q8_0` or `q8_1`.

    Returns:
        float32 `[..., hsk]`, and float64 `[..., hsk]`: one step of Q8 where a value is so near to a
        tie that another order of operations rounds it the other way, else 0.
    """
    doubt = np.zeros(q.shape)
    if q_type not in ("q8_0", "q8_1"):
        return decode(encode(q, q_type), q_type), doubt
    steps, step = _q8_steps(q)
    near_tie = np.abs(np.abs(steps - np.trunc(steps)) - 0.5) < 127 * 8 * U32
    rounded = np.rint(steps) * _as_f16(step)
    doubt = np.where(near_tie, step, 0.0).reshape(q.shape)
    return rounded.astype(np.float32).reshape(q.shape), doubt


def output_bound(case: Case, q: F32, rounded: Partial, how: Arithmetic) -> F64:
    """Return the bound on an output's distance from the oracle's for the rounded Q.

    Args:
        case: The case.
        q: Its Q, `[ne3, n_head, n_batch, hsk]`.
        rounded: The oracle's state for Q rounded to `how.q_type`.
        how: What the run computes in.

    Returns:
        `[ne3, n_head, n_batch, hsv]`.
    """
    out = np.abs(finalise(rounded))
    _, ds, dvkq = _sums_bound(case, q, rounded, how)
    s = rounded.s[..., None]
    dout = np.divide(dvkq + out * ds[..., None], s, out=np.zeros_like(dvkq), where=s != 0)
    bound: F64 = dout + 4 * U32 * out
    return bound


def state_bound(case: Case, q: F32, rounded: Partial, how: Arithmetic) -> F64:
    """Return the bound on a state row's distance from the oracle's for the rounded Q.

    Returns:
        `[ne3, n_head, n_batch, 2 + hsv]`; S and VKQ are meant relative to the oracle's M.
    """
    dm, ds, dvkq = _sums_bound(case, q, rounded, how)
    bound: F64 = np.concatenate([dm[..., None], ds[..., None], dvkq], axis=-1)
    return bound


def _sums_bound(case: Case, q: F32, rounded: Partial, how: Arithmetic) -> tuple[F64, F64, F64]:
    """Return the bounds on M, on S and on VKQ."""
    q_norm = np.sqrt((q.astype(np.float64) ** 2).sum(axis=-1))
    u_dot = (case.hsk_padded / 32 + 8) * U16 if how.f16_dot else (case.hsk_padded + 8) * U32
    alpha = case.scale * (q_norm * u_dot + _q_doubt(q, how.q_type))
    largest = case.scale * q_norm * rounded.k_max
    if case.logit_softcap:
        largest = largest + 16 * case.logit_softcap
    beta = 2 * U32 * ((case.n_head + 8) * rounded.bias_max + 4 * largest + 4)

    dm = alpha * rounded.k_max + beta
    growth = np.exp(np.minimum(2 * dm, 700.0))
    ds = (alpha * rounded.k_s + beta * rounded.s) * growth
    ds = ds + 2 * U32 * (rounded.s_walk + how.n_partials * rounded.s)
    dvkq = alpha[..., None] * rounded.k_abs_vkq + beta[..., None] * rounded.abs_vkq
    dvkq = dvkq * growth[..., None]
    u = U16 if how.f16_numerators else U32
    n = rounded.n_roundings[..., None]
    walk = rounded.walk * np.exp(np.minimum(n * u, 700.0))
    if case.regime in _SYMMETRIC_V and not case.v_is_view_of_k:
        walk = np.minimum(walk, _LAMBDA * rounded.walk_norm)
    # a part's partial sums are differences of two of the whole's: at most twice as large
    dvkq = dvkq + u * walk * (2 if how.n_partials > 1 else 1)
    dvkq = dvkq + 2 * U32 * how.n_partials * rounded.abs_vkq
    if how.f16_numerators:
        dvkq = dvkq + _F16_TINY * n
        if how.f16_dot:  # the weights are rounded to F16, too
            dvkq = dvkq + 2 * U16 * rounded.abs_vkq
    return dm, ds, dvkq


def _q_doubt(q: F32, q_type: str) -> F64:
    """Return the norm of what is in doubt of the rounded Q, for each row.

    Q8_1 keeps the sum of a block, too: the step times the sum of the steps, rounded to F16, whereas
    the step itself is rounded on its own. That sum multiplies the minimum in K's block, which is a
    value of K, hence at most K's norm.
    """
    doubt: F64 = np.sqrt((rounded_q(q, q_type)[1] ** 2).sum(axis=-1))
    if q_type == "q8_1":
        steps, step = _q8_steps(q)
        n_steps = np.abs(np.rint(steps).sum(axis=-1))
        step = step[..., 0]
        of_sum = n_steps * (np.abs(step - _as_f16(step)) + U16 * step) + _F16_TINY
        doubt = doubt + of_sum.sum(axis=-1)
    return doubt


def _q8_steps(q: F32) -> tuple[F64, F64]:
    """Return Q in blocks of 32 as multiples of the block's step, not rounded, and the steps."""
    blocks = q.astype(np.float64).reshape(*q.shape[:-1], -1, 32)
    step = np.abs(blocks).max(axis=-1, keepdims=True) / 127
    return np.divide(blocks, step, out=np.zeros_like(blocks), where=step != 0), step


def _as_f16(x: F64) -> F64:
    return x.astype(np.float32).astype(np.float16).astype(np.float64)
