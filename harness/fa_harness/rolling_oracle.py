"""What the steps of a rolling cache should give, and how far a correct kernel may be off.

A step is a chain of two calls, over the cold tokens and over the hot ones. Each has its own types,
hence rounds Q in its own way: the expected state is the merge of the two calls' states, each for
its own rounding of Q. The bound is the sum of

- what the first call's state is off by, brought to the common maximum like the state itself;
- what the second call adds: its keys' scores, as if it were alone, and its roundings of a sum that
  starts from the first call's. Each key rounds that sum once, so the walk of `bounds.py` grows by
  |VKQ of the first call| for each rounding. On the split-KV path the sums start from nothing, and
  the state joins them once, in F32.

The second call may round to F16 only where upstream's patched kernel goes on in F16: V is F16, and
the row is fresh or its numerators are F16 numbers as they are. What the state held is known from
the run, bit for bit, so that a row that must be in F32 is held to the bound for F32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fa_harness import bounds, oracle, rolling
from fa_harness.bounds import U32, Arithmetic
from fa_harness.cases import Case
from fa_harness.inputs import Inputs
from fa_harness.modes import path
from fa_harness.oracle import F64, Partial
from fa_harness.quants import decode, encode

F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

_STEPS = 32
"""Steps that are computed at once: few enough for `oracle.attend` to look at each partial sum."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Expected:
    """The right results of all steps; row t of `n_batch` is step t."""

    exact: Partial
    """The state of each step's tokens, of exactly the values held then, for Q itself."""
    cold: Partial
    """Of the cold tokens alone."""
    hot: Partial
    """Of the hot tokens alone, with the sinks."""
    rounded_cold: Partial
    """The state after the call over the cold tokens, Q rounded as it does."""
    rounded: Partial
    """The state after both calls, Q rounded as each does."""
    cold_bound: F64
    """How far the state after the first call may be off `rounded_cold`: `[..., 2 + hsv]`."""
    bound: F64
    """How far the state after both may be off `rounded`: `[..., 2 + hsv]`."""

    @property
    def output_bound(self) -> F64:
        """How far an output may be off that of `rounded`: `[..., hsv]`."""
        out = np.abs(oracle.finalise(self.rounded))
        s = self.rounded.s[..., None]
        off = self.bound[..., 2:] + out * self.bound[..., 1:2]
        bound: F64 = np.divide(off, s, out=np.zeros_like(off), where=s != 0) + 4 * U32 * out
        return bound


def expect(case: Case, inputs: Inputs, cold_state: F32, features: tuple[str, ...]) -> Expected:
    """Return what the steps of a rolling cache should give.

    Args:
        case: A case with a `hot_window`.
        inputs: Its inputs.
        cold_state: The run's states after the calls over the cold tokens,
            `[ne3, n_head, n_batch, 2 + hsv]`.
        features: The library's CPU features.
    """
    of_cold, of_hot = _one_row(case, cold=True), _one_row(case, cold=False)
    hot_path = path(of_hot, case.hot_window)
    in_cold = bounds.arithmetic(of_cold, "vec", features)
    in_hot = bounds.arithmetic(of_hot, hot_path, features)
    cold_inputs = replace(
        inputs,
        k=decode(encode(inputs.k, case.cold_type), case.cold_type),
        v=decode(encode(inputs.v, case.cold_type), case.cold_type),
    )

    cold, hot = _cold(case, cold_inputs, "f32"), _hot(case, inputs, "f32")
    rounded_cold = _cold(case, cold_inputs, in_cold.q_type)
    rounded_hot = _hot(case, inputs, in_hot.q_type)
    rounded = oracle.merge(rounded_cold, rounded_hot)

    n_partials = bounds.arithmetic(of_cold, "split-kv", features).n_partials
    splits = np.array([path(of_cold, int(n)) == "split-kv" for n in rolling.n_cold(case)])
    carried = _before(rounded_cold, rounded)

    def of_cold_call(partial: Partial) -> F64:
        return np.where(
            splits[:, None],
            bounds.state_bound(case, inputs.q, partial, replace(in_cold, n_partials=n_partials)),
            bounds.state_bound(case, inputs.q, partial, in_cold),
        )

    def of_hot_call(how: Arithmetic) -> F64:
        added = _added(rounded_cold, rounded_hot, rounded, from_state=hot_path == "vec")
        return bounds.state_bound(case, inputs.q, added, how)

    in_f16 = np.array(in_hot.f16_numerators) & (
        _goes_on_in_f16(cold_state) | np.array(hot_path == "split-kv")
    )
    hot_bound = np.where(
        in_f16[..., None],
        of_hot_call(in_hot),
        of_hot_call(replace(in_hot, f16_numerators=False)),
    )
    joined = np.concatenate(  # M is the larger of two, no sum
        [np.zeros_like(rounded.m)[..., None], rounded.s[..., None], rounded.abs_vkq], axis=-1
    )
    bound = of_cold_call(carried) + hot_bound + 4 * U32 * joined
    bound[..., 0] = np.maximum(of_cold_call(carried)[..., 0], hot_bound[..., 0])
    return Expected(
        exact=oracle.merge(cold, hot),
        cold=cold,
        hot=hot,
        rounded_cold=rounded_cold,
        rounded=rounded,
        cold_bound=of_cold_call(rounded_cold),
        bound=bound,
    )


def _one_row(case: Case, *, cold: bool) -> Case:
    """Return the case of a call of one step."""
    types = (case.cold_type,) * 2 if cold else (case.type_K, case.type_V)
    return case.with_(hot_window=0, group=1, nb=1, type_K=types[0], type_V=types[1])


def _goes_on_in_f16(state: F32) -> Bools:
    """Tell which rows are fresh, or have numerators that are all F16 numbers."""
    numerators = state[..., 2:]
    with np.errstate(over="ignore"):
        as_f16 = numerators.astype(np.float16).astype(np.float32)
    same: Bools = (as_f16.view(np.uint32) == numerators.view(np.uint32)).all(axis=-1)
    return same | np.isneginf(state[..., 0])


def _cold(case: Case, inputs: Inputs, q_type: str) -> Partial:
    """Return the state of each step's cold tokens."""
    n_cold = rolling.n_cold(case)
    return _attend(case, inputs, q_type, lambda step: (0, n_cold[step]))


def _hot(case: Case, inputs: Inputs, q_type: str) -> Partial:
    """Return the state of each step's hot tokens and the sinks, in the order of their slots.

    The ring's first slots hold the newest tokens, those of its last lap.
    """
    n_cold, window = rolling.n_cold(case), case.hot_window

    def last_lap(step: npt.NDArray[np.int64]) -> tuple[Limit, Limit]:
        return np.maximum(n_cold[step], step // window * window), step + 1

    def lap_before(step: npt.NDArray[np.int64]) -> tuple[Limit, Limit]:
        return n_cold[step], np.maximum(n_cold[step], step // window * window)

    hot = oracle.merge(
        _attend(case, inputs, q_type, last_lap), _attend(case, inputs, q_type, lap_before)
    )
    return hot if inputs.sinks is None else oracle.add_sinks(hot, inputs.sinks)


Limit = npt.NDArray[np.int64] | int


def _attend(
    case: Case,
    inputs: Inputs,
    q_type: str,
    limits: Callable[[npt.NDArray[np.int64]], tuple[Limit, Limit]],
) -> Partial:
    """Return the state of the tokens from `start` to before `stop`, the `limits` of each step."""
    assert inputs.mask is not None
    q, _ = bounds.rounded_q(inputs.q, q_type)
    parts = []
    for first in range(0, case.kv, _STEPS):
        steps = np.arange(first, min(first + _STEPS, case.kv))
        start, stop = (np.broadcast_to(limit, steps.shape)[:, None] for limit in limits(steps))
        token = np.arange(case.kv)
        is_other = (token < start) | (token >= stop)
        few = replace(
            inputs,
            q=q[:, :, steps],
            mask=np.where(is_other, np.float16(-np.inf), inputs.mask[:, :, steps]),
        )
        of_few = case.with_(hot_window=0, group=1, nb=len(steps))
        parts.append(oracle.attend(of_few, few, int(start.min()), int(stop.max())))
    return Partial(
        **{
            field.name: np.concatenate([getattr(part, field.name) for part in parts], axis=2)
            for field in dataclasses.fields(Partial)
        }
    )


def _before(first: Partial, both: Partial) -> Partial:
    """Return the state of the first of two calls relative to the maximum of both.

    The norms and biases are those of both: the rescaling meets the largest of either.
    """
    w = oracle.weight(first.m, both.m)
    v = w[..., None]
    return replace(
        first,
        m=both.m,
        s=first.s * w,
        vkq=first.vkq * v,
        abs_vkq=first.abs_vkq * v,
        k_s=first.k_s * w,
        k_abs_vkq=first.k_abs_vkq * v,
        walk=first.walk * v,
        walk_norm=first.walk_norm * v,
        s_walk=first.s_walk * w,
        k_max=both.k_max,
        bias_max=both.bias_max,
    )


def _added(first: Partial, second: Partial, both: Partial, *, from_state: bool) -> Partial:
    """Return the state that a second call adds, with the roundings that it makes.

    Args:
        first: The state before.
        second: The state of the call's own keys.
        both: Their merge.
        from_state: The call's sums start from the state, not from nothing.
    """
    alone = _before(second, both)
    if not from_state:
        return alone
    size = np.abs(_before(first, both).vkq)
    n = second.n_roundings[..., None]
    return replace(
        alone,
        walk=alone.walk + n * size,
        walk_norm=alone.walk_norm + np.sqrt(n) * size,
        s_walk=alone.s_walk + second.n_roundings * _before(first, both).s,
    )
