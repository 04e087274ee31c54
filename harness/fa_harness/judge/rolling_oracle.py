"""What the steps of a rolling cache should give: the oracle on exactly the values held at each.

A step is a chain of two calls, over the cold tokens and over the hot ones. Each has its own types,
hence rounds Q and accumulates in its own way; `bounds.Expected` follows them call by call. All
steps are rows of one computation: row t of `n_batch` is step t, and sees that step's tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fa_harness.arrays import Bools, Ints
from fa_harness.case import rolling
from fa_harness.case.case import Case
from fa_harness.case.inputs import Inputs
from fa_harness.case.quants import decode, encode
from fa_harness.judge import bounds, oracle
from fa_harness.judge.bounds import Expected
from fa_harness.judge.oracle import Partial
from fa_harness.kernel import Arithmetic, arithmetic, path

Limits = Callable[[Ints], tuple[Ints, Ints]]
"""Of steps, the first token that each sees, and the one after the last."""

_STEPS = 32
"""Steps that are computed at once: few enough for `oracle.attend` to look at each partial sum."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ExpectedSteps:
    """The right results of all steps."""

    cold: Partial
    """The state of the cold tokens alone, for Q itself."""
    hot: Partial
    """The state of the hot tokens alone, with the sinks, for Q itself."""
    exact: Partial
    """Of both."""
    after_cold: Expected
    """The state after the call over the cold tokens."""
    after_both: Expected
    """The state after the call over the hot tokens, too."""


def expect(
    case: Case, inputs: Inputs, goes_on_in_f16: Bools, features: tuple[str, ...]
) -> ExpectedSteps:
    """Return what the steps of a rolling cache should give.

    A call with an F16 V continues the rows `goes_on_in_f16`, `[ne3, n_head, n_batch]`, of the state
    after the call over the cold tokens in F16.
    """
    of_cold, of_hot = one_row(case, cold=True), one_row(case, cold=False)
    k, v = (decode(encode(x, case.cold_type), case.cold_type) for x in (inputs.k, inputs.v))
    cold_inputs = replace(inputs, k=k, v=v)
    as_they_are = Arithmetic(q_type="f32", f16_numerators=False)
    cold, hot = _cold(case, cold_inputs, as_they_are), _hot(case, inputs, as_they_are)

    paths = np.array([path(of_cold, int(n), features) for n in rolling.n_cold(case)])
    name, *others = sorted(set(paths))

    def after(name: str) -> Expected:
        how = arithmetic(of_cold, name, features)
        return bounds.nothing(case, inputs).then(_cold(case, cold_inputs, how), how)

    after_cold = after(name)
    for other in others:  # both round Q to one type
        after_cold = _of_steps(paths == other, after(other), after_cold)

    how = arithmetic(of_hot, path(of_hot, case.hot_window, features), features)
    # partials of split-KV start from nothing, whatever the state
    in_f16 = None if how.n_partials else goes_on_in_f16
    return ExpectedSteps(
        cold=cold,
        hot=hot,
        exact=oracle.merge(cold, hot),
        after_cold=after_cold,
        after_both=after_cold.then(_hot(case, inputs, how), how, in_f16=in_f16),
    )


def one_row(case: Case, *, cold: bool) -> Case:
    """Return the case of a call of one step; both stores have rows of one size, padded or not."""
    types = (case.cold_type,) * 2 if cold else (case.type_K, case.type_V)
    sizes = {"hsk": case.hsk_padded, "hsv": case.hsv_padded}
    shape: dict[str, Any] = {**sizes, "hot_window": 0, "group": 1, "n_batch": 1}
    if case.captured:  # of its data nothing matters here
        shape |= {"captured": "", "regime": "uniform", "mask_kind": "causal"}
    return case.with_(type_K=types[0], type_V=types[1], **shape)


def _of_steps(steps: Bools, these: Expected, others: Expected) -> Expected:
    """Return `these` at some steps and `others` at the rest; they differ in roundings alone."""
    chosen = {}
    for name in ("n_u", "other_s", "walk", "walk_norm", "other_vkq"):
        of_these, of_others = getattr(these, name), getattr(others, name)
        at = steps if of_these.ndim == 3 else steps[:, None]  # rows, or elements of rows
        chosen[name] = np.where(at, of_these, of_others)
    return replace(others, **chosen)


def _cold(case: Case, inputs: Inputs, how: Arithmetic) -> Partial:
    """Return the state of each step's cold tokens."""
    n_cold = rolling.n_cold(case)
    return _attend(case, inputs, how, lambda step: (np.zeros_like(step), n_cold[step]))


def _hot(case: Case, inputs: Inputs, how: Arithmetic) -> Partial:
    """Return the state of each step's hot tokens and the sinks, in the order of their slots.

    The ring's first slots hold the newest tokens, those of its last lap.
    """
    n_cold, window = rolling.n_cold(case), case.hot_window

    def first_of_lap(step: Ints) -> Ints:
        return np.maximum(n_cold[step], step // window * window)

    last_lap = _attend(case, inputs, how, lambda step: (first_of_lap(step), step + 1))
    lap_before = _attend(case, inputs, how, lambda step: (n_cold[step], first_of_lap(step)))
    hot = oracle.merge(last_lap, lap_before)
    return hot if inputs.sinks is None else oracle.add_sinks(hot, inputs.sinks)


def _attend(case: Case, inputs: Inputs, how: Arithmetic, limits: Limits) -> Partial:
    """Return the state of the tokens that each step sees by `limits`."""
    assert inputs.mask is not None
    q, _ = bounds.rounded_q(inputs.q, how.q_type)
    parts = []
    for first in range(0, case.n_kv, _STEPS):
        steps = np.arange(first, min(first + _STEPS, case.n_kv))
        start, stop = limits(steps)
        token = np.arange(case.n_kv)
        is_other = (token < start[:, None]) | (token >= stop[:, None])
        mask = np.where(is_other, np.float16(-np.inf), inputs.mask[:, :, steps])
        few = replace(inputs, q=q[:, :, steps], mask=mask)
        of_few = case.with_(hot_window=0, group=1, n_batch=len(steps))
        keys = int(start.min()), int(stop.max())
        parts.append(oracle.attend(of_few, few, *keys, rescale_roundings=how.rescale_roundings))
    return oracle.joined(parts, axis=2)
