import dataclasses
import functools
import itertools
from collections.abc import Callable

import gguf
import numpy as np
import pytest

from fa_harness.arrays import F32, F64
from fa_harness.case.case import REGIMES, Case
from fa_harness.case.inputs import Inputs, make_inputs
from fa_harness.case.quants import TYPES
from fa_harness.judge import oracle
from fa_harness.judge.bounds import (
    U16,
    U32,
    Expected,
    merged,
    merged_rows,
    nothing,
    rounded_q,
)
from fa_harness.judge.expectations import Expectations
from fa_harness.judge.oracle import Partial
from fa_harness.kernel import SEES_HIDDEN, Arithmetic, arithmetic

SMALL = Case(hsk=64, hsv=32, n_head_kv=1, n_group=2, n_kv=150, n_batch=3, regime="normal")
GENERAL_REGIMES = [regime for regime in REGIMES if regime not in ("seed", "nan")]


def emulate(case: Case, inputs: Inputs, how: Arithmetic, start: int, stop: int) -> F32:
    """Return the state that the vec path leaves: one key after another, in float32.

    float32 `[ne3, n_head, n_batch, 2 + hsv]`. The numerators are added in F16, and their factors
    rounded to it, where `how` says so.
    """
    q = rounded_q(inputs.q, how.q_type)[0]
    group = case.n_head // case.n_head_kv
    k, v = (np.repeat(x, group, axis=1) for x in (inputs.k, inputs.v))
    slope = oracle.slopes(case).astype(np.float32)[:, None]
    rows = q.shape[:3]
    accumulator = np.float16 if how.f16_numerators else np.float32
    m = np.full(rows, -np.inf, np.float32)
    s = np.zeros(rows, np.float32)
    vkq = np.zeros((*rows, case.hsv_padded), accumulator)
    scale, softcap = np.float32(case.scale), np.float32(case.logit_softcap)
    for j in range(start, stop):
        products = q * k[:, :, None, j]
        score = scale * np.cumsum(products, axis=-1, dtype=np.float32)[..., -1]
        if case.logit_softcap:
            score = softcap * np.tanh(score / softcap, dtype=np.float32)
        if inputs.mask is not None:
            of_head = np.arange(case.n_head) % inputs.mask.shape[1]
            score = score + slope * inputs.mask[:, of_head][..., j].astype(np.float32)
        is_seen = score > -np.inf
        new = np.maximum(m, score)
        base = np.where(is_seen, new, np.float32(0))
        ms = np.where(is_seen, np.exp(m - base, dtype=np.float32), np.float32(1))
        vs = np.where(is_seen, np.exp(score - base, dtype=np.float32), np.float32(0))
        old, new_key = (x.astype(np.float16).astype(np.float64) if how.f16_factors else x
                        for x in (ms, vs))  # fmt: skip
        vkq = (vkq * old[..., None]).astype(accumulator)
        term = v[:, :, None, j] * new_key[..., None]
        vkq = (vkq.astype(term.dtype) + term).astype(accumulator)
        s = s * ms + vs
        m = new
    return np.concatenate([m[..., None], s[..., None], vkq.astype(np.float32)], axis=-1)


def normalised(state: F32) -> F64:
    """Return the result of state rows."""
    s = state[..., 1:2].astype(np.float64)
    vkq = state[..., 2:].astype(np.float64)
    return np.divide(vkq, s, out=np.zeros_like(vkq), where=s != 0).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Checked:
    """A case, its inputs, and what it is computed in."""

    case: Case
    inputs: Inputs
    how: Arithmetic
    rounded: Partial
    """The oracle's state for the rounded Q."""

    @property
    def expected(self) -> Expected:
        return nothing(self.case, self.inputs).then(self.rounded, self.how)

    @property
    def bound(self) -> F64:
        return self.expected.output_bound()

    def error(self, output: F32 | F64) -> F64:
        return np.abs(output - oracle.finalise(self.rounded))


def check(case: Case, features: tuple[str, ...] = ()) -> Checked:
    inputs = make_inputs(case)
    how = arithmetic(case, "vec", features)
    rounded = dataclasses.replace(inputs, q=rounded_q(inputs.q, how.q_type)[0])
    whole = oracle.attend(case, rounded, 0, case.n_kv, rescale_roundings=how.rescale_roundings)
    return Checked(case, inputs, how, whole)


@pytest.mark.parametrize(
    ("q_type", "through"), [("f16", np.float16), ("f32", np.float32)], ids=["f16", "f32"]
)
def test_q_is_rounded_to_a_float_type_as_numpy_rounds(q_type: str, through: type) -> None:
    q = make_inputs(SMALL).q
    rounded, doubt = rounded_q(q, q_type)
    np.testing.assert_array_equal(rounded, q.astype(through).astype(np.float32))
    assert not doubt.any()


@pytest.mark.parametrize("regime", GENERAL_REGIMES)
@pytest.mark.parametrize("q_type", ["bf16", "q8_0"])
def test_q_is_rounded_as_gguf_rounds(q_type: str, regime: str) -> None:
    q = make_inputs(SMALL.with_(regime=regime)).q
    ggml_type = gguf.GGMLQuantizationType[q_type.upper()]
    expected = gguf.quants.dequantize(gguf.quants.quantize(q, ggml_type), ggml_type)
    rounded, doubt = rounded_q(q, q_type)
    assert (np.abs(rounded - expected) <= doubt * (1 + U16)).all()
    assert (doubt > 0).mean() < 0.02
    np.testing.assert_array_equal(rounded[doubt == 0], expected[doubt == 0])


def test_q8_doubts_values_next_to_a_tie_by_one_step() -> None:
    q = np.zeros((1, 32), np.float32)
    q[0, :4] = [127, 2.5, 2.49, np.nextafter(np.float32(-7.5), np.float32(0))]
    _, doubt = rounded_q(q, "q8_0")
    np.testing.assert_array_equal(doubt[0, :5], [0, 1, 0, 1, 0])


TYPE_PAIRS = [
    *((name, name) for name in TYPES),
    ("q8_0", "f16"),
    ("f16", "q4_0"),
    ("f32", "f16"),
    ("bf16", "f32"),
]


@pytest.mark.parametrize("regime", GENERAL_REGIMES)
@pytest.mark.parametrize("types", TYPE_PAIRS, ids="-".join)
def test_a_correct_kernel_stays_within_the_bounds(types: tuple[str, str], regime: str) -> None:
    for seed in range(2):
        checked = check(
            SMALL.with_(type_K=types[0], type_V=types[1], regime=regime, seed=seed, n_kv=70)
        )
        state = emulate(checked.case, checked.inputs, checked.how, 0, checked.case.n_kv)
        if np.isfinite(state[..., 2:]).all():
            assert (checked.error(normalised(state)) <= checked.bound).all()
            assert_state_within_bound(checked, state)
        else:  # F16 ends at 65504
            assert checked.how.f16_numerators
            assert checked.rounded.peak.max() > 65504


IN_FP16 = ("FP16_MAD_32",)


@pytest.mark.parametrize("regime", GENERAL_REGIMES)
def test_a_kernel_that_multiplies_in_fp16_stays_within_its_bounds(regime: str) -> None:
    for seed in range(4):
        checked = check(SMALL.with_(regime=regime, seed=seed, n_kv=70), IN_FP16)
        assert checked.how.f16_factors
        state = emulate(checked.case, checked.inputs, checked.how, 0, checked.case.n_kv)
        assert (checked.error(normalised(state)) <= checked.bound).all()
        assert_state_within_bound(checked, state)


def test_a_kernel_that_multiplies_in_fp16_needs_bounds_of_its_own() -> None:
    case = SMALL.with_(regime="uniform", seed=5, hsv=256, n_kv=2, mask=False, mask_kind="none")
    in_fp16, in_f32 = check(case, IN_FP16), check(case)
    error = in_fp16.error(normalised(emulate(case, in_fp16.inputs, in_fp16.how, 0, case.n_kv)))
    assert (error > in_f32.bound).any()
    assert (in_fp16.bound < 3 * in_f32.bound).all()


def assert_state_within_bound(checked: Checked, state: F32) -> None:
    truth = checked.rounded
    assert (np.isneginf(state[..., 0]) == np.isneginf(truth.m)).all()
    m = np.where(np.isneginf(truth.m), 0.0, state[..., 0].astype(np.float64))
    to_oracle = np.exp(m - np.where(np.isneginf(truth.m), 0.0, truth.m))[..., None]
    bound = checked.expected.state_bound()
    assert (np.abs(m - np.where(np.isneginf(truth.m), 0.0, truth.m)) <= bound[..., 0]).all()
    sums = state[..., 1:] * to_oracle
    expected = np.concatenate([truth.s[..., None], truth.vkq], axis=-1)
    assert (np.abs(sums - expected) <= bound[..., 1:]).all()


OPTIONS = {
    "soft-cap": SMALL.with_(logit_softcap=5.0, regime="spiky"),
    "alibi": SMALL.with_(max_bias=8.0),
    "alibi and soft-cap": SMALL.with_(max_bias=8.0, logit_softcap=2.0, mask_heads=2),
    "rows without keys": SMALL.with_(mask_kind="leading", n_batch=6),
    "alibi over far keys": SMALL.with_(max_bias=1.0, mask_kind="causal", n_kv=500),
    "lowest mask": SMALL.with_(mask_kind="lowest", n_batch=6),
    "lowest mask and alibi": SMALL.with_(mask_kind="lowest", n_batch=6, max_bias=8.0),
    "no mask": SMALL.with_(mask=False, mask_kind="none"),
    "many keys": SMALL.with_(n_kv=3000, n_batch=1, mask=False, mask_kind="none"),
    "many keys, offset": SMALL.with_(
        n_kv=2000, n_batch=1, mask=False, mask_kind="none", regime="offset"
    ),
    "large heads": SMALL.with_(hsk=576, hsv=512, n_kv=60, v_is_view_of_k=True),
}


@pytest.mark.parametrize("types", [("f32", "f32"), ("f16", "f16"), ("q4_0", "q8_0")], ids="-".join)
@pytest.mark.parametrize("case", OPTIONS.values(), ids=OPTIONS)
def test_a_correct_kernel_stays_within_the_bounds_with_options(
    case: Case, types: tuple[str, str]
) -> None:
    if case.v_is_view_of_k:
        types = (types[0], types[0])
    checked = check(case.with_(type_K=types[0], type_V=types[1]))
    state = emulate(checked.case, checked.inputs, checked.how, 0, case.n_kv)
    assert (checked.error(normalised(state)) <= checked.bound).all()
    assert_state_within_bound(checked, state)


@pytest.mark.parametrize("segments", [1, 3])
def test_keys_far_below_the_maximum_widen_the_bound_of_no_row_that_sees_others(
    segments: int,
) -> None:
    """A mask of F16's lowest number leaves a key no weight; it is but one more that is added."""
    hidden, lowest = (
        SMALL.with_(type_K="f32", type_V="f32", mask_kind=kind, n_batch=6, segments=segments)
        for kind in ("leading", "lowest")
    )
    sees_some = np.s_[:, :, 2:]  # the first third of the rows sees no other key
    ends = [Expectations(case, make_inputs(case), ()).chain(None)[-1] for case in (hidden, lowest)]
    without, with_ = (end.output_bound()[sees_some] for end in ends)
    assert (with_ < 1.5 * without).all()
    assert (ends[1].output_bound()[:, :, :2] > 2 * U32 * 65504 * 0.1).any()


def test_partials_added_in_the_end_stay_within_the_bound_of_split_kv() -> None:
    case = SMALL.with_(n_kv=600, n_batch=1, threads=3, type_K="f32", type_V="f32")
    checked = check(case)
    how = arithmetic(case, "split-kv", ())
    assert how.n_partials == 3
    ends = [0, 200, 400, 600]
    parts = [
        emulate(case, checked.inputs, how, *pair).astype(np.float64)
        for pair in itertools.pairwise(ends)
    ]
    m = functools.reduce(np.maximum, [part[..., 0] for part in parts])
    sums = np.sum([part[..., 1:] * np.exp(part[..., :1] - m[..., None]) for part in parts], axis=0)
    output = (sums[..., 1:] / sums[..., :1]).astype(np.float32)
    bound = nothing(case, checked.inputs).then(checked.rounded, how).output_bound()
    assert (checked.error(output) <= bound).all()


def merge_in_f32(a: F32, b: F32) -> F32:
    """Merge states as a kernel does, all in float32."""
    m = np.maximum(a[..., 0], b[..., 0])
    base = np.where(np.isneginf(m), np.float32(0), m)
    wa, wb = (np.exp(x[..., 0] - base, dtype=np.float32)[..., None] for x in (a, b))
    state: F32 = np.concatenate([m[..., None], a[..., 1:] * wa + b[..., 1:] * wb], axis=-1)
    return state


@pytest.mark.parametrize("regime", ["normal", "spiky", "rising", "falling", "offset"])
@pytest.mark.parametrize("types", [("f16", "f16"), ("f32", "f32"), ("q8_0", "q4_0")], ids="-".join)
def test_parts_merged_in_any_order_stay_within_the_bounds(
    types: tuple[str, str], regime: str
) -> None:
    case = SMALL.with_(
        type_K=types[0], type_V=types[1], regime=regime, mask_kind="leading", n_batch=6, segments=7
    )
    inputs, how = make_inputs(case), arithmetic(case, "vec", ())
    rounded = dataclasses.replace(inputs, q=rounded_q(inputs.q, how.q_type)[0])
    limits = list(itertools.pairwise(case.segment_bounds()))
    parts = [emulate(case, inputs, how, *pair) for pair in limits]
    expected = merged(
        [nothing(case, inputs).then(oracle.attend(case, rounded, *p), how) for p in limits]
    )
    rows, of_merges, _ = merged_rows(parts)
    for order in ([0, 1, 2, 3, 4, 5, 6], [6, 2, 4, 0, 1, 5, 3], [3, 6, 5, 4, 2, 1, 0]):
        state = functools.reduce(merge_in_f32, [parts[i] for i in order])
        error = np.abs(oracle.finalise(expected.truth) - normalised(state))
        assert (error <= expected.output_bound()).all()
        with np.errstate(invalid="ignore"):
            apart = np.where(state == rows, 0.0, np.abs(state - rows))
        assert (apart <= of_merges).all()
        swapped = functools.reduce(lambda a, b: merge_in_f32(b, a), [parts[i] for i in order])
        with np.errstate(invalid="ignore"):
            apart = np.where(state == swapped, 0.0, np.abs(state - swapped))
        assert (apart <= merged_rows([parts[i] for i in order])[2]).all()


def test_a_merge_that_loses_a_part_or_weights_it_wrongly_exceeds_the_bound_of_merges() -> None:
    case = SMALL.with_(type_K="f16", type_V="f16", segments=3)
    inputs, how = make_inputs(case), arithmetic(case, "vec", ())
    parts = [
        emulate(case, inputs, how, *pair) for pair in itertools.pairwise(case.segment_bounds())
    ]
    rows, of_merges, _ = merged_rows(parts)
    lost = functools.reduce(merge_in_f32, parts[1:])
    assert (np.abs(lost - rows) > 100 * of_merges)[..., 1:].all(axis=-1).any()
    by_s = [np.concatenate([p[..., :2], p[..., 2:] * p[..., 1:2]], axis=-1) for p in parts]
    assert (np.abs(functools.reduce(merge_in_f32, by_s) - rows) > 100 * of_merges).any()


def test_rows_that_must_be_in_f32_have_its_bound_and_no_other() -> None:
    case = SMALL.with_(type_K="f16", type_V="f16", segments=2)
    inputs, how = make_inputs(case), arithmetic(case, "vec", ())
    limits = list(itertools.pairwise(case.segment_bounds()))
    first, second = (oracle.attend(case, inputs, *pair) for pair in limits)
    in_f32 = arithmetic(case.with_(type_V="f32"), "vec", ())
    rows = np.zeros(first.m.shape, np.bool_)
    rows[0, 1, 2] = True
    before = nothing(case, inputs).then(first, in_f32)
    mixed = before.then(second, how, in_f16=rows).state_bound()
    np.testing.assert_array_equal(mixed[0, 1, 2], before.then(second, how).state_bound()[0, 1, 2])
    mixed[0, 1, 2] = before.then(second, in_f32).state_bound()[0, 1, 2]
    np.testing.assert_array_equal(mixed, before.then(second, in_f32).state_bound())
    assert (before.then(second, how).state_bound()[..., 2:] > 10 * mixed[..., 2:]).all()


def test_another_order_of_the_keys_stays_within_the_bound() -> None:
    case = SMALL.with_(type_K="f16", type_V="f16", mask=False, mask_kind="none")
    checked = check(case)
    backwards = dataclasses.replace(
        checked.inputs, k=checked.inputs.k[:, :, ::-1], v=checked.inputs.v[:, :, ::-1]
    )
    forwards, reversed_ = (
        normalised(emulate(case, inputs, checked.how, 0, case.n_kv))
        for inputs in (checked.inputs, backwards)
    )
    assert forwards.tobytes() != reversed_.tobytes()
    assert (checked.error(reversed_) <= checked.bound).all()


@pytest.mark.parametrize(("type_", "factor"), [("f32", 1000), ("f16", 5), ("q8_0", 2), ("bf16", 2)])
@pytest.mark.parametrize("regime", ["normal", "spiky", "rising", "falling"])
def test_the_bound_is_far_below_the_signal(type_: str, factor: float, regime: str) -> None:
    checked = check(SMALL.with_(type_K=type_, type_V=type_, regime=regime))
    signal = np.sqrt((oracle.finalise(checked.rounded) ** 2).mean())
    assert np.median(checked.bound) * factor < signal


def _drop_a_key(case: Case, inputs: Inputs, how: Arithmetic) -> F64:
    return normalised(emulate(case, inputs, how, 0, case.n_kv - 1))


def _take_another_head(case: Case, inputs: Inputs, how: Arithmetic) -> F64:
    wrong = dataclasses.replace(inputs, q=inputs.q[:, ::-1])
    return normalised(emulate(case, wrong, how, 0, case.n_kv))


def _swap_two_rows(case: Case, inputs: Inputs, how: Arithmetic) -> F64:
    return normalised(emulate(case, inputs, how, 0, case.n_kv))[:, :, [1, 0, 2]]


def _slip_v_by_one_key(case: Case, inputs: Inputs, how: Arithmetic) -> F64:
    wrong = dataclasses.replace(inputs, v=np.roll(inputs.v, 1, axis=2))
    return normalised(emulate(case, wrong, how, 0, case.n_kv))


def _count_a_key_twice(case: Case, inputs: Inputs, how: Arithmetic) -> F64:
    twice = dataclasses.replace(
        inputs,
        k=np.concatenate([inputs.k, inputs.k[:, :, -1:]], axis=2),
        v=np.concatenate([inputs.v, inputs.v[:, :, -1:]], axis=2),
    )
    return normalised(emulate(case, twice, how, 0, case.n_kv + 1))


@pytest.mark.parametrize(
    "fault",
    [
        _drop_a_key,
        _take_another_head,
        _swap_two_rows,
        _slip_v_by_one_key,
        _count_a_key_twice,
    ],
)
@pytest.mark.parametrize(
    ("regime", "type_"),
    [
        *itertools.product(["uniform", "normal", "rising", "ties"], ["f32", "f16"]),
        ("offset", "f32"),  # F16 numerators near 1000 cannot tell one key of 64
    ],
)
def test_a_fault_exceeds_the_bound(
    fault: Callable[[Case, Inputs, Arithmetic], F64], regime: str, type_: str
) -> None:
    case = SMALL.with_(
        mask=False, mask_kind="none", regime=regime, type_K=type_, type_V=type_, n_kv=64
    )
    checked = check(case)
    broken = fault(case, checked.inputs, checked.how)
    assert (checked.error(broken) > checked.bound).any()


@pytest.mark.parametrize("n_kv", [4096, 65536])
def test_half_of_a_long_cache_dropped_exceeds_the_bound_however_small_the_output(
    n_kv: int,
) -> None:
    case = Case(
        hsk=32,
        hsv=32,
        n_head_kv=1,
        n_kv=n_kv,
        n_batch=1,
        mask=False,
        type_K="f32",
        type_V="f32",
        regime="normal",
    )
    checked = check(case)
    half = oracle.finalise(oracle.attend(case, checked.inputs, 0, n_kv // 2))
    assert np.abs(oracle.finalise(checked.rounded)).max() < 4 / np.sqrt(n_kv) * 4
    assert (checked.error(half) > 20 * checked.bound).any()


@pytest.mark.parametrize(
    ("types", "q_type"),
    [
        ("f32", "f32"),
        ("f16", "f16"),
        ("bf16", "bf16"),
        ("q8_0", "q8_0"),
        ("q4_0", "q8_0"),
        ("q5_0", "q8_0"),
        ("iq4_nl", "q8_0"),
        ("q4_1", "q8_1"),
        ("q5_1", "q8_1"),
    ],
)
def test_the_vec_path_rounds_q_to_the_type_of_k_s_dot_product(types: str, q_type: str) -> None:
    assert arithmetic(SMALL.with_(type_K=types), "vec", ()).q_type == q_type


def test_the_tiled_path_computes_in_f32() -> None:
    assert arithmetic(SMALL, "tiled", ("FP16_DOT", *IN_FP16)) == Arithmetic(
        q_type="f32", f16_numerators=False, loose_from=SEES_HIDDEN
    )


def test_f16_dot_products_are_those_of_f16_keys_where_the_cpu_has_them() -> None:
    features = ("FP16_DOT",)
    assert arithmetic(SMALL, "vec", features).f16_dot
    assert not arithmetic(SMALL, "vec", ()).f16_dot
    assert not arithmetic(SMALL.with_(type_K="q8_0"), "vec", features).f16_dot


def test_f16_factors_are_those_of_an_f16_v_of_a_step_at_least() -> None:
    features = ("FP16_MAD_128",)
    large = SMALL.with_(hsv=128)
    assert arithmetic(large, "vec", features).f16_factors
    assert arithmetic(large, "split-kv", features).f16_factors
    assert not arithmetic(large, "vec", ()).f16_factors
    assert not arithmetic(SMALL, "vec", features).f16_factors
    assert not arithmetic(large.with_(type_V="f32"), "vec", features).f16_factors
