import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fa_harness.arrays import F64
from fa_harness.case.case import REGIMES, Case
from fa_harness.case.inputs import Inputs, make_inputs
from fa_harness.judge import oracle
from fa_harness.judge.oracle import (
    Partial,
    add_sinks,
    attend,
    finalise,
    fresh,
    merge,
    slopes,
)

SMALL = Case(hsk=32, hsv=32, n_head_kv=2, n_group=3, ne3=2, n_kv=48, n_batch=5, regime="normal")
CASES = {
    "plain": SMALL.with_(mask=False, mask_kind="none"),
    "mask": SMALL,
    "mask per head": SMALL.with_(mask_heads=6),
    "mask per group of heads": SMALL.with_(mask_heads=2),
    "causal": SMALL.with_(mask_kind="causal"),
    "rows without keys": SMALL.with_(mask_kind="leading", mask_heads=3),
    "alibi": SMALL.with_(max_bias=8.0),
    "soft-cap": SMALL.with_(logit_softcap=2.0),
    "sinks": SMALL.with_(sinks=True),
    "head sizes": SMALL.with_(hsk=64, hsv=32),
    "v is a view of k": SMALL.with_(hsk=64, hsv=32, v_is_view_of_k=True),
    "quantised": SMALL.with_(type_K="q8_0", type_V="q4_1"),
    "all at once": SMALL.with_(
        hsk=64, mask_heads=6, max_bias=4.0, logit_softcap=3.0, sinks=True, n_kv=131
    ),
    "large scores": SMALL.with_(regime="huge"),
    "spiky": SMALL.with_(regime="spiky"),
}
any_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def attention(case: Case, inputs: Inputs) -> F64:
    """The oracle's answer in one piece."""
    state = attend(case, inputs, 0, case.n_kv)
    return finalise(state if inputs.sinks is None else add_sinks(state, inputs.sinks))


def naive_row(case: Case, inputs: Inputs, i3: int, h: int, i1: int) -> tuple[float, float, F64]:
    """(M, S, VKQ) of one row by two passes over its keys, one number at a time."""
    h_kv = h // (case.n_head // case.n_head_kv)
    slope = 1.0
    if case.max_bias > 0:
        n = 2 ** math.floor(math.log2(case.n_head))
        base, power = (case.max_bias, h + 1) if h < n else (case.max_bias / 2, 2 * (h - n) + 1)
        slope = 2.0 ** (-base * power / n)
    scores = []
    for j in range(case.n_kv):
        score = case.scale * math.fsum(
            float(a) * float(b)
            for a, b in zip(inputs.q[i3, h, i1], inputs.k[i3, h_kv, j], strict=True)
        )
        if case.logit_softcap:
            score = case.logit_softcap * math.tanh(score / case.logit_softcap)
        if inputs.mask is not None:
            score += slope * float(inputs.mask[i3, h % inputs.mask.shape[1], i1, j])
        scores.append(score)
    sinks = [] if inputs.sinks is None else [float(inputs.sinks[h])]
    m = max(scores + sinks)
    if m == -math.inf:
        return m, 0.0, np.zeros(case.hsv)
    weights = [math.exp(score - m) for score in scores]
    vkq = np.array(
        [
            math.fsum(w * float(x) for w, x in zip(weights, inputs.v[i3, h_kv, :, d], strict=True))
            for d in range(case.hsv)
        ]
    )
    return m, math.fsum(weights) + sum(math.exp(sink - m) for sink in sinks), vkq


@any_case
def test_the_state_is_that_of_a_loop_over_rows_and_keys(case: Case) -> None:
    inputs = make_inputs(case)
    state = attend(case, inputs, 0, case.n_kv)
    if inputs.sinks is not None:
        state = add_sinks(state, inputs.sinks)
    for index in itertools.product(range(case.ne3), range(case.n_head), (0, 1, case.n_batch - 1)):
        m, s, vkq = naive_row(case, inputs, *index)
        size = state.abs_vkq[index].max()
        np.testing.assert_allclose(state.m[index], m, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(state.s[index], s, rtol=1e-12)
        np.testing.assert_allclose(state.vkq[index], vkq, rtol=1e-12, atol=1e-12 * size)
        out = vkq / s if s else vkq
        np.testing.assert_allclose(
            finalise(state)[index], out, rtol=1e-12, atol=1e-12 * (size / s if s else 0)
        )


def test_one_key_gives_its_v() -> None:
    case = SMALL.with_(n_kv=1, mask=False, mask_kind="none")
    inputs = make_inputs(case)
    np.testing.assert_array_equal(
        attention(case, inputs), np.repeat(inputs.v.astype(np.float64), 3, axis=1).repeat(5, axis=2)
    )


def test_q_of_zero_gives_the_mean_of_v_over_the_unmasked_keys() -> None:
    case = SMALL.with_(mask_kind="causal")
    inputs = make_inputs(case)
    inputs = dataclasses.replace(inputs, q=np.zeros_like(inputs.q))
    out = attention(case, inputs)
    for row in range(case.n_batch):
        n_seen = case.n_kv - case.n_batch + row + 1
        mean = inputs.v[:, :, :n_seen].astype(np.float64).mean(axis=2).repeat(3, axis=1)
        np.testing.assert_allclose(out[:, :, row], mean, rtol=1e-13, atol=1e-14)


def test_rows_without_keys_are_fresh_and_give_0() -> None:
    case = SMALL.with_(mask_kind="leading", n_batch=9)
    state = attend(case, make_inputs(case), 0, case.n_kv)
    assert np.isneginf(state.m[:, :, :3]).all()
    assert np.isfinite(state.m[:, :, 3:]).all()
    assert not state.s[:, :, :3].any()
    assert not finalise(state)[:, :, :3].any()


@pytest.mark.parametrize("regime", [regime for regime in REGIMES if regime not in ("seed", "nan")])
def test_no_regime_overflows(regime: str) -> None:
    case = SMALL.with_(regime=regime)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        state = attend(case, make_inputs(case), 0, case.n_kv)
    for name, value in vars(state).items():
        assert np.isfinite(value).all(), name


@pytest.mark.parametrize("sign", [1, -1])
def test_scores_beyond_the_range_of_exp_do_not_overflow(sign: int) -> None:
    case = SMALL.with_(mask=False, mask_kind="none")
    inputs = make_inputs(case)
    inputs = dataclasses.replace(inputs, q=inputs.q * np.float32(sign * 1e4))
    with np.errstate(over="raise", invalid="raise"):
        out = attention(case, inputs)
    assert (np.abs(out) <= np.abs(inputs.v).max()).all()
    assert out.any()


def assert_close(a: Partial, b: Partial) -> None:
    """Assert that M, S and VKQ agree to rounding."""
    np.testing.assert_array_equal(a.m, b.m)
    np.testing.assert_allclose(a.s, b.s, rtol=1e-12)
    scale = np.maximum(a.abs_vkq, b.abs_vkq)
    assert (np.abs(a.vkq - b.vkq) <= 1e-12 * scale).all()
    np.testing.assert_allclose(a.abs_vkq, b.abs_vkq, rtol=1e-12)


def assert_same(a: Partial, b: Partial) -> None:
    """Assert that both are the same number for number."""
    for name, value in vars(a).items():
        np.testing.assert_array_equal(value, getattr(b, name), err_msg=name)


MERGED = Case(
    hsk=32,
    hsv=32,
    n_head_kv=1,
    n_group=2,
    ne3=2,
    n_kv=40,
    n_batch=6,
    mask_kind="leading",
    regime="spiky",
    seed=3,
)
MERGED_INPUTS = make_inputs(MERGED)
WHOLE = attend(MERGED, MERGED_INPUTS, 0, MERGED.n_kv)
splits = st.lists(st.integers(0, MERGED.n_kv), max_size=6).map(
    lambda inner: [0, *sorted(inner), MERGED.n_kv]
)


def parts(bounds: list[int]) -> list[Partial]:
    return [attend(MERGED, MERGED_INPUTS, *pair) for pair in itertools.pairwise(bounds)]


@given(bounds=splits, data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_parts_of_any_split_merge_in_any_order_to_the_whole(
    bounds: list[int], data: st.DataObject
) -> None:
    merged = fresh(MERGED)
    for part in data.draw(st.permutations(parts(bounds))):
        merged = merge(merged, part)
    assert_close(merged, WHOLE)


@given(bounds=st.lists(st.integers(0, MERGED.n_kv), min_size=4, max_size=4).map(sorted))
@settings(max_examples=40, deadline=None)
def test_merge_is_associative_and_commutative(bounds: list[int]) -> None:
    a, b, c = parts(bounds)
    assert_close(merge(merge(a, b), c), merge(a, merge(b, c)))
    assert_close(merge(a, b), merge(b, a))


def test_a_fresh_state_changes_nothing() -> None:
    assert_same(merge(WHOLE, fresh(MERGED)), WHOLE)
    assert_same(merge(fresh(MERGED), WHOLE), WHOLE)


def test_two_fresh_states_give_a_fresh_one() -> None:
    with np.errstate(invalid="raise"):
        assert_same(merge(fresh(MERGED), fresh(MERGED)), fresh(MERGED))


def test_an_empty_segment_is_fresh() -> None:
    assert_same(attend(MERGED, MERGED_INPUTS, 17, 17), fresh(MERGED))


def test_a_sink_is_one_more_key_whose_v_is_0() -> None:
    case = SMALL.with_(mask=False, mask_kind="none", n_group=1, ne3=1, n_head_kv=2)
    inputs = make_inputs(case)
    # a key along q of one row, so that its score is the sink's
    sinks = np.array([0.5, -3.0], np.float32)
    q = inputs.q.copy()
    q[..., 0] = 1
    k = np.zeros((1, 2, case.n_kv + 1, case.hsk), np.float32)
    k[:, :, :-1] = inputs.k
    k[:, :, -1, 0] = sinks / case.scale
    v = np.concatenate([inputs.v, np.zeros_like(inputs.v[:, :, :1])], axis=2)
    longer = dataclasses.replace(inputs, q=q, k=k, v=v)
    with_key = attend(case.with_(n_kv=case.n_kv + 1), longer, 0, case.n_kv + 1)
    with_sink = add_sinks(attend(case, longer, 0, case.n_kv), sinks)
    np.testing.assert_allclose(with_sink.m, with_key.m, atol=1e-6)
    np.testing.assert_allclose(finalise(with_sink), finalise(with_key), rtol=1e-6, atol=1e-7)


def test_a_sink_alone_gives_0() -> None:
    sunk = add_sinks(fresh(SMALL), np.full(SMALL.n_head, 2.0, np.float32))
    np.testing.assert_array_equal(sunk.m, 2.0)
    np.testing.assert_array_equal(sunk.s, 1.0)
    assert not finalise(sunk).any()


def test_finalise_divides_by_s_and_gives_0_where_s_is_0() -> None:
    state = dataclasses.replace(
        fresh(SMALL),
        s=np.where(np.arange(SMALL.n_batch) % 2, 4.0, 0.0) + np.zeros_like(fresh(SMALL).s),
        vkq=np.full_like(fresh(SMALL).vkq, 6.0),
    )
    out = finalise(state)
    np.testing.assert_array_equal(out[:, :, 1::2], 1.5)
    np.testing.assert_array_equal(out[:, :, ::2], 0.0)


def test_eight_heads_have_the_slopes_of_the_paper() -> None:
    case = SMALL.with_(n_head_kv=8, n_group=1, ne3=1, max_bias=8.0)
    np.testing.assert_allclose(slopes(case), [2.0**-i for i in range(1, 9)], rtol=1e-15)


def test_six_heads_have_the_slopes_of_ggml() -> None:
    # n_head_log2 = 4: m0 = 2^(-8/4), then m1 = 2^(-4/4) to the powers 1 and 3
    case = SMALL.with_(n_head_kv=6, n_group=1, ne3=1, max_bias=8.0)
    expected = [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8]
    np.testing.assert_allclose(slopes(case), expected, rtol=1e-15)


def test_without_alibi_every_slope_is_1() -> None:
    np.testing.assert_array_equal(slopes(SMALL), np.ones(SMALL.n_head))


def weight_at_end(state: Partial) -> F64:
    with np.errstate(invalid="ignore"):
        factor: F64 = np.where(np.isfinite(state.m), np.exp(state.m - WHOLE.m), 0.0)[..., None]
    return factor


def one_by_one() -> Partial:
    """The sums over the roundings as they are, key by key."""
    state = fresh(MERGED)
    walk, squares, s_walk, n = (np.zeros_like(state.walk) for _ in range(4))
    peak = np.zeros_like(state.s)
    for j in range(MERGED.n_kv):
        key = attend(MERGED, MERGED_INPUTS, j, j + 1)
        is_seen = np.isfinite(key.m)[..., None]
        is_new_m = (key.m > state.m)[..., None]
        before, state = state, merge(state, key)
        roundings = 1.0 * is_seen + is_new_m
        to_end, to_end_before = weight_at_end(state), weight_at_end(before)
        # of a new maximum the sum before it is rounded when it is rescaled
        for partial, factor, is_rounded in (
            (before, to_end_before, is_new_m),
            (state, to_end, is_seen),
        ):
            walk += is_rounded * factor * np.abs(partial.vkq)
            squares += is_rounded * (factor * partial.vkq) ** 2
            s_walk += is_rounded * factor * partial.s[..., None]
        n += roundings
        peak = np.maximum(peak, (to_end * np.abs(state.vkq)).max(axis=-1))
    return dataclasses.replace(
        WHOLE,
        walk=walk,
        walk_norm=np.sqrt(squares),
        s_walk=s_walk[..., 0],
        n_roundings=n[..., 0],
        peak=peak,
    )


ONE_BY_ONE = one_by_one()


@pytest.mark.parametrize("n_step", [1, 3, 7, 40])
def test_walks_that_are_looked_at_in_steps_bound_the_walk_of_one_pass(
    n_step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oracle, "_STEPS", n_step)
    stepped = attend(MERGED, MERGED_INPUTS, 0, MERGED.n_kv)
    for name, n in (("walk", WHOLE.n_roundings), ("walk_norm", np.sqrt(WHOLE.n_roundings))):
        of_steps, of_whole = getattr(stepped, name), getattr(ONE_BY_ONE, name)
        assert (of_steps * (1 + 1e-9) >= of_whole).all(), name
        assert (of_steps <= n[..., None] * WHOLE.abs_vkq * (1 + 1e-9)).all(), name
    if n_step == 40:
        np.testing.assert_allclose(stepped.walk, ONE_BY_ONE.walk, rtol=1e-12)
    assert_close(stepped, WHOLE)


@any_case
def test_rows_and_heads_taken_by_parts_give_the_same_state(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case.with_(n_batch=23)
    inputs = make_inputs(case)
    whole = attend(case, inputs, 0, case.n_kv)
    monkeypatch.setattr(oracle, "_SCORES", 1)
    parts = attend(case, inputs, 0, case.n_kv)
    for name, value in vars(whole).items():
        np.testing.assert_allclose(getattr(parts, name), value, rtol=1e-11, atol=1e-13)


@any_case
def test_without_what_only_bounds_need_the_state_is_the_same(case: Case) -> None:
    inputs = make_inputs(case)
    state = attend(case, inputs, 0, case.n_kv, for_bounds=False)
    whole = attend(case, inputs, 0, case.n_kv)
    for name in ("m", "s", "vkq", "abs_vkq", "peak"):
        np.testing.assert_allclose(
            getattr(state, name), getattr(whole, name), rtol=1e-12, atol=1e-13, err_msg=name
        )
    for name in ("n_roundings", "k_s", "k_abs_vkq", "walk", "walk_norm", "s_walk", "k_max"):
        assert np.isnan(getattr(state, name)).all(), name


@given(bounds=splits)
@settings(max_examples=40, deadline=None)
def test_the_walks_of_parts_bound_the_walk_of_one_pass(bounds: list[int]) -> None:
    merged = fresh(MERGED)
    for part in parts(bounds):
        merged = merge(merged, part)
    for name in ("walk", "walk_norm", "s_walk", "peak", "n_roundings"):
        of_parts, of_whole = getattr(merged, name), getattr(ONE_BY_ONE, name)
        assert (of_parts * (1 + 1e-9) >= of_whole).all(), name
