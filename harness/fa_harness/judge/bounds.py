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
   - scale, soft-cap and s - M: a few u times the largest numbers they meet;
   - slope * mask: the same with ALiBi, whose slopes are powers, and 2 u without. It is the largest
     of the keys near the maximum; each of the others adds its own, times its small weight;
   - M - sink, by which a sink above the scores scales the sums: u |sink| more, and as much again
     where a part of split-KV that holds the sink meets a larger maximum.
3. Accumulation. Each key rounds the partial sum VKQ_t once, and where the key is a new maximum the
   sum before it, rescaled, once more: an error of d_t VKQ_t, |d_t| <= u, at most
   u sum_t |VKQ_t| exp(n u) for n roundings.
   This sees cancellation: partial sums of a V with mean zero are small. Where V is symmetric about
   zero, the d_t have mean zero and do not add up: their sum is beyond lambda u sqrt(sum_t VKQ_t^2)
   with a probability below 2 exp(-lambda^2 / 2) (Hoeffding; Higham & Mary 2019), for lambda = 8
   about 2e-14. Without that an F16 sum over some thousand keys could be anything. Of a model's
   own V nothing is known: where it is captured the sum of all roundings counts.
   Where the CPU multiplies in FP16, the factors are F16 numbers, too: exp(s - M) of a key, one
   relative error of u, and exp(M - s) that rescales the sum before a new maximum, one rounding of
   that sum more. Scores are drawn from densities that are smooth at F16's resolution, so these
   errors have mean zero as well.
4. Below the normal range (2^-14 for F16, 2^-126 for F32) a rounding costs half the spacing t of the
   numbers there, 2^-24 or 2^-149, whatever the number. A factor there is off by t, which costs t
   times what it multiplies: |v| for a key; for the sum before a new maximum at most max |v| times
   the keys since the last drop of that kind, hence over all drops of a call no more than max |v|
   for each of its keys, and what the state had before; both once more where parts are added.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fa_harness.arrays import F32, F64, Bools
from fa_harness.case.case import Case
from fa_harness.case.inputs import Inputs
from fa_harness.case.quants import decode, encode
from fa_harness.case.regimes import CENTRED
from fa_harness.judge import oracle
from fa_harness.judge.cached import cached_property
from fa_harness.judge.compare import Region
from fa_harness.judge.oracle import Partial
from fa_harness.kernel import Arithmetic

U32 = 2.0**-24
U16 = 2.0**-11
_F16_SPACING = 2.0**-24
"""Of F16 numbers below the normal range."""
_F32_SPACING = 2.0**-149
_LAMBDA = 8.0

_Q8 = ("q8_0", "q8_1", "q8")


def rounded_q(q: F32, q_type: str) -> tuple[F32, F64]:
    """Return Q `[..., hsk]` as a dot product of `q_type` sees it, and how far off that may be.

    `q8` is Q8_0 with a step that is not rounded to F16.

    The doubt, `[..., hsk]`, is one step of Q8 where a value is so near to a tie that another order
    of operations rounds it the other way, else 0.
    """
    doubt = np.zeros(q.shape)
    if q_type not in _Q8:
        return decode(encode(q, q_type), q_type), doubt
    steps, step = _q8_steps(q)
    near_tie = np.abs(np.abs(steps - np.trunc(steps)) - 0.5) < 127 * 8 * U32
    rounded = np.rint(steps) * (step if q_type == "q8" else _as_f16(step))
    doubt = np.where(near_tie, step, 0.0).reshape(q.shape)
    return rounded.astype(np.float32).reshape(q.shape), doubt


class Shared:
    """What the rows of Q cost in dot products, computed once for all expectations of a case."""

    def __init__(self, case: Case, q: F32) -> None:
        """Take a case and its Q."""
        self.case = case
        self._q = q
        self._dot_errors: dict[Arithmetic, F64] = {}

    @cached_property
    def norm(self) -> F64:
        """The rows' norms, `[ne3, n_head, n_batch]`; 0 where Q is not finite, as scores tell."""
        norm: F64 = np.sqrt((self._q.astype(np.float64) ** 2).sum(axis=-1))
        return np.where(np.isfinite(norm), norm, 0.0)

    def dot_error(self, how: Arithmetic) -> F64:
        """Return the error of a dot product, scaled, in units of the key's norm."""
        if how not in self._dot_errors:
            n = self.case.hsk_padded
            u_dot = (n / 32 + 8) * U16 if how.f16_dot else (n + 8) * U32
            is_in_doubt = how.q_type in _Q8 and not how.is_q_known
            doubt = _q_doubt(self._q, how.q_type) if is_in_doubt else 0.0
            self._dot_errors[how] = self.case.scale * (self.norm * u_dot + doubt)
        return self._dot_errors[how]


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the state after some calls has to be: the oracle's, and how far off it may be.

    Grows call by call, since calls may differ in what they compute in, and merges as states do.
    Arrays are float64, rows `[ne3, n_head, n_batch]`, and relative to the oracle's M as the sums of
    `truth` are.
    """

    is_nothing: bool = False
    """No call was made: all rows are fresh."""
    shared: Shared
    v_max: float
    """Largest |V|."""
    truth: Partial
    """The oracle's state, each call's for Q as that call rounds it."""
    dot_m: F64
    """Largest error of a dot product."""
    dot_s: F64
    """What the errors of the dot products change in S, to first order."""
    dot_vkq: F64
    """The same for VKQ, `[..., hsv]`."""
    walk: F64
    """Sum of u |VKQ then| over the roundings, `[..., hsv]`."""
    walk_norm: F64
    """The root of the sum of their squares, `[..., hsv]`."""
    n_u: F64
    """Sum of u over the roundings of VKQ."""
    other_s: F64
    """What else is rounded in S."""
    other_vkq: F64
    """What else is rounded in VKQ, `[..., hsv]`."""
    is_loose: Bools
    """Rows that may be anything: see `Partial.loose`."""
    is_merged: bool
    """It is of a merge, which may leave any M where a row is NaN."""

    def then(
        self,
        own: Partial,
        how: Arithmetic,
        *,
        whole: Partial | None = None,
        in_f16: Bools | None = None,
    ) -> Expected:
        """Return what is expected after one call more, which computes in `how`.

        `own` is the oracle's state of the call's keys alone, for Q rounded to `how.q_type`; `whole`
        is that of all keys, where it is known already. The rows `in_f16`, or all, accumulate in F16
        if `how` says so: one that continues numerators which are no F16 numbers goes on in F32.
        """
        before = self.truth
        if self.is_nothing:  # merged with a fresh state, a state is what it was
            truth, (wa, wb) = own, np.array([[0.0], [1.0]])
        else:
            truth = oracle.merge(before, own) if whole is None else whole
            wa, wb = oracle.weight(before.m, truth.m), oracle.weight(own.m, truth.m)
        va, vb = wa[..., None], wb[..., None]
        rows = np.array(how.f16_numerators) & (True if in_f16 is None else in_f16)
        u = np.where(rows, U16, U32)
        alpha = self.shared.dot_error(how)

        n = own.n_roundings[..., None]
        walk, walk_norm = own.walk * vb, own.walk_norm * vb
        if how.n_partials:
            # a part's partial sums are differences of two of the whole's: at most twice as large
            twice = 2 if how.n_partials > 1 else 1
            walk, walk_norm = twice * walk, twice * walk_norm
        elif not self.is_nothing:  # the call's keys are added to the state's sums
            size = np.abs(before.vkq) * va
            walk, walk_norm = walk + n * size, np.hypot(walk_norm, np.sqrt(n) * size)
        n_additions = 2 * U32 * max(how.n_partials, 1)
        n_merges = max(how.n_partials, 1)
        # a hundredth more for a V that is stored in another type, and for drops after a drop
        by_factors = 1.01 * (2 * n * self.v_max + before.abs_vkq)
        other_vkq = self.other_vkq * va + n_additions * truth.abs_vkq
        floor = _F32_SPACING * (n + 2 * n_merges + 2 * by_factors)
        other_vkq = other_vkq + floor * (n > 0)
        of_f16 = _F16_SPACING / 2 * n
        if how.f16_factors:
            of_f16 = of_f16 + U16 * own.abs_vkq * vb + _F16_SPACING * by_factors
        other_vkq = other_vkq + rows[..., None] * of_f16
        return replace(
            self,
            is_nothing=False,
            truth=truth,
            dot_m=np.maximum(self.dot_m, alpha * own.k_max),
            dot_s=self.dot_s * wa + alpha * own.k_s * wb,
            dot_vkq=self.dot_vkq * va + alpha[..., None] * own.k_abs_vkq * vb,
            walk=self.walk * va + u[..., None] * walk,
            walk_norm=np.hypot(self.walk_norm * va, u[..., None] * walk_norm),
            n_u=self.n_u + u * own.n_roundings,
            is_loose=self.is_loose | (truth.loose >= how.loose_from),
            other_s=self.other_s * wa + n_additions * truth.s,
            other_vkq=other_vkq,
        )

    @cached_property
    def output(self) -> F64:
        """The oracle's result, `[ne3, n_head, n_batch, hsv]`, 0 in loose rows."""
        return self._centre(oracle.finalise(self.truth))

    @cached_property
    def region(self) -> Region:
        """Where a correct output lies: around the oracle's for the rounded Q."""
        return Region(self.output, self.output_bound())

    def output_bound(self) -> F64:
        """Return how far an output may be from `output`: `[ne3, n_head, n_batch, hsv]`."""
        out = np.abs(self.output)
        _, ds, dvkq = self._sums_bound
        s = self.truth.s[..., None]
        seen = s != 0
        dout = np.divide(dvkq + out * ds[..., None], s, out=np.zeros(dvkq.shape), where=seen)
        return self._bound(dout + 4 * U32 * out + _F32_SPACING * seen, self.output)

    def state_bound(self) -> F64:
        """Return how far a state row may be from `truth`: `[ne3, n_head, n_batch, 2 + hsv]`."""
        dm, ds, dvkq = self._sums_bound
        return np.concatenate([dm[..., None], ds[..., None], dvkq], axis=-1)

    def state_region(self, state: F32) -> Region:
        """Return where state rows `[ne3, n_head, n_batch, 2 + hsv]` lie that have these maxima."""
        truth, bound = self.truth, self.state_bound()
        rows = np.concatenate([truth.m[..., None], truth.s[..., None], truth.vkq], axis=-1)
        with np.errstate(invalid="ignore", over="ignore"):
            rescale = np.exp(truth.m - state[..., 0])
            scale = np.where(np.isinf(truth.m), 1.0, rescale)[..., None]
            rows[..., 1:] *= scale
            bound[..., 1:] *= scale
        rows = self._centre(rows)
        bound = self._bound(bound, rows)
        if self.is_merged:
            bound[..., 0][np.isnan(truth.m)] = np.inf
        return Region(rows, bound)

    def _centre(self, numbers: F64) -> F64:
        """Return what numbers of each row should be, where a loose row has none."""
        if self.is_loose.any():
            numbers[self.is_loose] = 0.0
        return numbers

    def _bound(self, bound: F64, centre: F64) -> F64:
        """Return how far numbers may be from the centre: what is not finite has to be that."""
        if not np.isfinite(bound.sum()):
            bound[~np.isfinite(centre)] = 0.0
        if self.is_loose.any():
            bound[self.is_loose] = np.inf
        return bound

    @cached_property
    def _sums_bound(self) -> tuple[F64, F64, F64]:
        """Return the bounds on M, on S and on VKQ."""
        case, truth = self.shared.case, self.truth
        largest = case.scale * self.shared.norm * truth.k_max
        if case.logit_softcap:
            largest = largest + 16 * case.logit_softcap
        u_bias = 2 * U32 * (case.n_head + 8 if case.max_bias else 2)
        beta = u_bias * truth.bias_max + 2 * U32 * (4 * largest + truth.sink_max + 4)

        dm = self.dot_m + beta
        growth = np.exp(np.minimum(2 * dm, 700.0))
        of_far = u_bias * truth.far_bias
        ds = (self.dot_s + beta * truth.s + of_far) * growth
        ds = ds + 2 * U32 * truth.s_walk + self.other_s
        walk = self.walk * np.exp(np.minimum(self.n_u, 700.0))[..., None]
        if case.regime in CENTRED and not case.v_is_view_of_k:
            walk = np.minimum(walk, _LAMBDA * self.walk_norm)
        dvkq = self.dot_vkq + beta[..., None] * truth.abs_vkq + (of_far * self.v_max)[..., None]
        dvkq = dvkq * growth[..., None]
        return dm, ds, dvkq + walk + self.other_vkq


def nothing(case: Case, inputs: Inputs) -> Expected:
    """Return what is expected before the first call: fresh rows."""
    truth = oracle.fresh(case)
    of_rows = dict.fromkeys(("dot_m", "dot_s", "n_u", "other_s"), truth.s)
    of_elements = dict.fromkeys(("dot_vkq", "walk", "walk_norm", "other_vkq"), truth.vkq)
    return Expected(
        is_nothing=True,
        is_merged=False,
        shared=Shared(case, inputs.q),
        v_max=float(np.abs(inputs.v).max(initial=0.0, where=np.isfinite(inputs.v))),
        truth=truth,
        is_loose=np.zeros(truth.s.shape, np.bool_),
        **of_rows,
        **of_elements,
    )


def given(case: Case, inputs: Inputs, rows: F32) -> Expected:
    """Return what is expected before a call that finds state rows which nobody computed."""
    fresh, m = np.isneginf(rows[..., 0]), rows[..., 0].astype(np.float64)
    sums = np.where(fresh[..., None], 0.0, rows[..., 1:].astype(np.float64))
    s, vkq = sums[..., 0], sums[..., 1:]
    truth = replace(
        oracle.fresh(case),
        m=np.where(np.isnan(s), np.nan, m),  # a row of NaN has an M of NaN
        s=s,
        vkq=vkq,
        abs_vkq=np.abs(np.where(np.isfinite(vkq), vkq, 0.0)),
        # scores are compared with it; a larger one leaves them no weight, or all
        sink_max=np.where(np.abs(m) < 2.0**10, np.abs(m), 0.0),
    )
    before = replace(nothing(case, inputs), is_nothing=False, truth=truth)
    return replace(before, is_loose=np.isposinf(m))


def merged(parts: Sequence[Expected], wholes: Sequence[Partial] | None = None) -> Expected:
    """Return what is expected of the states of calls with keys of their own, merged in any order.

    `wholes` are the oracle's states of all keys up to those of each part, where they are known.
    """
    whole = parts[0]
    for i, part in enumerate(parts[1:], start=1):
        truth = oracle.merge(whole.truth, part.truth) if wholes is None else wholes[i]
        whole = _beside(whole, part, truth)
    costs = [_merge_cost(part.truth.m, whole.truth.m, len(parts)) for part in parts]
    pairs = list(zip(costs, parts, strict=True))
    other_vkq: F64 = np.sum([cost[..., None] * np.abs(p.truth.vkq) for cost, p in pairs], axis=0)
    sizes: F64 = np.sum([np.abs(part.truth.vkq) for part in parts], axis=0)
    return replace(
        whole,
        other_s=whole.other_s + sum(cost * part.truth.s for cost, part in pairs),
        other_vkq=whole.other_vkq + other_vkq + _merge_floor(sizes, len(parts)),
        is_merged=True,
    )


def merged_rows(states: Sequence[F32]) -> tuple[F64, F64, F64]:
    """Return state rows merged in float64, and two bounds; all are `[ne3, n_head, n_batch, 2+hsv]`.

    The first is how far F32 may be off that merges in any order. The second is how far merges in
    turn may be apart that differ in which state comes first in each: both multiply by the same
    factors; they may round one product more or the other (FMA), and the sum. M is exact, but of a
    row of NaN anything; and so is a row where an M is infinite: see `Partial.loose`.
    """
    n, right_m = len(states), functools.reduce(np.maximum, [state[..., :1] for state in states])
    each = [state[..., 0].astype(np.float64) for state in states]
    for m in each:
        m[np.isinf(m)] = -np.inf  # inf, a fault, is taken for no key seen
    largest = functools.reduce(np.maximum, each)
    sums, in_any_order, swapped, sizes = np.zeros((4, *largest.shape, states[0].shape[-1] - 1))
    for m, state in zip(each, states, strict=True):
        part, weight = state[..., 1:].astype(np.float64), oracle.weight(m, largest)[..., None]
        part[np.isinf(m)] = 0.0  # it is not read
        size = np.abs(part)
        sums += weight * part
        in_any_order += _merge_cost(m, largest, n)[..., None] * size
        swapped += 4 * U32 * (n - 1) * weight * size
        sizes += size
    in_any_order += _merge_floor(sizes, n)
    swapped += 3 * _F32_SPACING * (n - 1)  # products and the sum; equal factors
    of_m = np.where(np.isnan(right_m), np.inf, 0.0)
    rows, in_any_order, swapped = (
        np.concatenate(pair, axis=-1)
        for pair in ((right_m, sums), (of_m, in_any_order), (of_m, swapped))
    )
    is_loose = np.isposinf(right_m[..., 0])
    rows[is_loose], in_any_order[is_loose], swapped[is_loose] = 0.0, np.inf, np.inf
    for bound in (in_any_order, swapped):  # what is not finite has to be that
        bound[..., 1:][~np.isfinite(rows[..., 1:])] = 0.0
    return rows, in_any_order, swapped


def _beside(a: Expected, b: Expected, truth: Partial) -> Expected:
    wa, wb = oracle.weight(a.truth.m, truth.m), oracle.weight(b.truth.m, truth.m)
    va, vb = wa[..., None], wb[..., None]
    return replace(
        a,
        truth=truth,
        dot_m=np.maximum(a.dot_m, b.dot_m),
        dot_s=a.dot_s * wa + b.dot_s * wb,
        dot_vkq=a.dot_vkq * va + b.dot_vkq * vb,
        walk=a.walk * va + b.walk * vb,
        walk_norm=np.hypot(a.walk_norm * va, b.walk_norm * vb),
        n_u=np.maximum(a.n_u, b.n_u),
        is_loose=a.is_loose | b.is_loose | (truth.loose >= 2),
        other_s=a.other_s * wa + b.other_s * wb,
        other_vkq=a.other_vkq * va + b.other_vkq * vb,
    )


def _merge_cost(m: F64, m_new: F64, n_parts: int) -> F64:
    """Return what merging costs a part's sum that comes with the maximum `m`, in units of the sum.

    On its way a part takes part in at most `n_parts - 1` merges. Each multiplies its sum by
    exp(M_before - M_after): the arguments, rounded, add up to m_new - m; `expf`, the product and
    the addition round a few times more.
    """
    if n_parts == 1:
        return np.zeros_like(m)
    distance = np.where(np.isinf(m), 0.0, m_new - np.where(np.isinf(m), 0.0, m))
    return 2 * U32 * (distance + 4 * (n_parts - 1)) * oracle.weight(m, m_new)


def _merge_floor(sizes: F64, n_parts: int) -> F64:
    """Return what merging costs below F32's normal range.

    In each merge two products and a sum are rounded, and the factors may be off by the spacing.
    `sizes` is the sum of the parts' |sums|, each relative to its own maximum.
    """
    return _F32_SPACING * (n_parts - 1) * (2 + sizes)


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
        of_sum = n_steps * (np.abs(step - _as_f16(step)) + U16 * step) + _F16_SPACING / 2
        doubt = doubt + of_sum.sum(axis=-1)
    return doubt


def _q8_steps(q: F32) -> tuple[F64, F64]:
    """Return Q in blocks of 32 as multiples of the block's step, not rounded, and the steps."""
    blocks = q.astype(np.float64).reshape(*q.shape[:-1], -1, 32)
    step = np.abs(blocks).max(axis=-1, keepdims=True) / 127
    return np.divide(blocks, step, out=np.zeros_like(blocks), where=step != 0), step


def _as_f16(x: F64) -> F64:
    return x.astype(np.float32).astype(np.float16).astype(np.float64)
