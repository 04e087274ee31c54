import hashlib
import itertools
from typing import Any

import numpy as np
import pytest

from fa_harness.case.case import REGIMES, Case
from fa_harness.case.inputs import Inputs, make_inputs
from fa_harness.case.quants import TYPES, decode

GENERAL_REGIMES = [regime for regime in REGIMES if regime not in ("seed", "nan")]
SMALL = Case(hsk=64, hsv=32, n_head_kv=2, n_group=3, ne3=2, n_kv=256, n_batch=5, mask=False)

# sha256 over all arrays of `_golden_case`; a change here changes the inputs of every repro line
GOLDEN = {
    "uniform": "7195404874c4906d",
    "normal": "7c96547836d879b2",
    "spiky": "5ca2b7d24e4efac4",
    "rising": "177628b602f1d254",
    "falling": "8c4d8aba739ed475",
    "ties": "62a36c74f2189857",
    "offset": "6965872e639c0f10",
    "outlier": "bbc3cf3f04aca497",
    "huge": "4d6157b3c563f187",
    "constructed": "b00aa0f9b59beffe",
    "nan": "1110760339b653f1",
    "few": "323d3ec41f7b2b2f",
    "seed": "fd528b5f0aff110d",
}


def _golden_case(regime: str) -> Case:
    if regime == "seed":
        return SEED.with_(mask=True, mask_kind="zeros")
    return Case(
        hsk=32,
        hsv=32,
        n_head_kv=2,
        n_group=2,
        ne3=2,
        n_kv=40,
        n_batch=3,
        sinks=True,
        type_K="f32" if regime == "nan" else "q4_0",
        regime=regime,
    )


SEED = Case(hsk=4, hsv=4, n_head_kv=1, n_kv=2, n_batch=1, regime="seed", mask=False)


def _arrays(inputs: Inputs) -> dict[str, np.ndarray]:
    arrays = {name: value for name, value in vars(inputs).items() if isinstance(value, np.ndarray)}
    for i, (k_raw, v_raw) in enumerate(inputs.segments):
        arrays |= {f"k_raw of segment {i}": k_raw, f"v_raw of segment {i}": v_raw}
    return arrays


def _digest(inputs: Inputs) -> str:
    digest = hashlib.sha256()
    for name, array in _arrays(inputs).items():
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _scores(case: Case, inputs: Inputs) -> np.ndarray:
    """Scaled scores, float64, `[ne3, n_head, n_batch, n_kv]`."""
    k = np.repeat(inputs.k, case.n_group, axis=1).astype(np.float64)
    scores: np.ndarray = case.scale * (inputs.q.astype(np.float64) @ k.swapaxes(-1, -2))
    return scores


def _output(case: Case, inputs: Inputs) -> np.ndarray:
    """Attention without mask and sinks, float64, `[ne3, n_head, n_batch, hsv]`."""
    scores = _scores(case, inputs)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    v = np.repeat(inputs.v, case.n_group, axis=1).astype(np.float64)
    output: np.ndarray = weights @ v / weights.sum(axis=-1, keepdims=True)
    return output


def _largest_numerator(case: Case, inputs: Inputs) -> float:
    """The largest |VKQ| that an online softmax meets on its way through the keys."""
    scores = _scores(case, inputs)
    v = np.repeat(inputs.v, case.n_group, axis=1).astype(np.float64)
    m = np.full(scores.shape[:-1], -np.inf)
    vkq = np.zeros((*m.shape, case.hsv_padded))
    largest = 0.0
    for j in range(case.n_kv):
        m_new = np.maximum(m, scores[..., j])
        weight = np.exp(scores[..., j] - m_new)[..., np.newaxis]
        vkq = vkq * np.exp(m - m_new)[..., np.newaxis] + weight * v[:, :, np.newaxis, j]
        m = m_new
        largest = max(largest, float(np.abs(vkq).max()))
    return largest


def _segment_maxima(case: Case, inputs: Inputs, segments: int) -> np.ndarray:
    bounds = case.with_(segments=segments).segment_bounds()
    scores = _scores(case, inputs)
    return np.stack(
        [scores[..., start:stop].max(axis=-1) for start, stop in itertools.pairwise(bounds)]
    )


@pytest.mark.parametrize("regime", REGIMES)
def test_the_bytes_of_a_regime_never_change(regime: str) -> None:
    assert _digest(make_inputs(_golden_case(regime))) == GOLDEN[regime]


@pytest.mark.parametrize("regime", GENERAL_REGIMES)
def test_threads_and_segments_do_not_change_the_inputs(regime: str) -> None:
    case = SMALL.with_(regime=regime, mask=True, mask_kind="random")
    other = case.with_(threads=8, segments=3, boundaries="random")
    assert _digest(make_inputs(case)) == _digest(make_inputs(other))


@pytest.mark.parametrize("regime", GENERAL_REGIMES)
def test_mask_and_sinks_do_not_change_the_rest(regime: str) -> None:
    plain = make_inputs(SMALL.with_(regime=regime))
    full = make_inputs(SMALL.with_(regime=regime, mask=True, mask_kind="random", sinks=True))
    for name, array in _arrays(plain).items():
        assert np.array_equal(array, getattr(full, name)), name


@pytest.mark.parametrize("regime", GENERAL_REGIMES)
def test_another_seed_gives_other_inputs(regime: str) -> None:
    ours = make_inputs(SMALL.with_(regime=regime))
    other = make_inputs(SMALL.with_(regime=regime, seed=1))
    assert not np.array_equal(ours.k_raw, other.k_raw)
    assert not np.array_equal(ours.v_raw, other.v_raw)


@pytest.mark.parametrize("regime", GENERAL_REGIMES)
def test_heads_and_sequences_differ(regime: str) -> None:
    inputs = make_inputs(SMALL.with_(regime=regime))
    for array in (inputs.q, inputs.k, inputs.v):
        planes = array.reshape(-1, *array.shape[2:])
        assert len({plane.tobytes() for plane in planes}) == len(planes)


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("regime", GENERAL_REGIMES)
def test_every_regime_is_finite_in_every_type(regime: str, type_name: str) -> None:
    inputs = make_inputs(SMALL.with_(regime=regime, type_K=type_name, type_V=type_name))
    assert all(np.isfinite(array).all() for array in (inputs.q, inputs.k, inputs.v))


def test_shapes_and_dtypes_follow_the_case() -> None:
    case = SMALL.with_(mask=True, mask_kind="random", mask_heads=3, sinks=True, type_K="q8_0")
    shapes = {
        name: (array.dtype.name, array.shape) for name, array in _arrays(make_inputs(case)).items()
    }
    assert shapes == {
        "q": ("float32", (2, 6, 5, 64)),
        "k_raw": ("uint8", (2, 2, 256, 68)),
        "v_raw": ("uint8", (2, 2, 256, 64)),
        "k": ("float32", (2, 2, 256, 64)),
        "v": ("float32", (2, 2, 256, 32)),
        "mask": ("float16", (2, 3, 5, 256)),
        "sinks": ("float32", (6,)),
    }


def test_the_values_are_exactly_those_of_the_encoded_rows() -> None:
    inputs = make_inputs(SMALL.with_(type_K="q4_1", type_V="iq4_nl"))
    assert np.array_equal(inputs.k, decode(inputs.k_raw, "q4_1"))
    assert np.array_equal(inputs.v, decode(inputs.v_raw, "iq4_nl"))


@pytest.mark.parametrize("type_name", TYPES)
def test_a_v_that_is_a_view_of_k_is_the_start_of_its_rows(type_name: str) -> None:
    case = SMALL.with_(type_K=type_name, type_V=type_name, v_is_view_of_k=True)
    inputs = make_inputs(case)
    assert np.array_equal(inputs.v, inputs.k[..., : case.hsv_padded])
    assert np.array_equal(inputs.v_raw, inputs.k_raw[..., : inputs.v_raw.shape[-1]])


def test_the_arrays_cannot_be_written() -> None:
    case = SMALL.with_(mask=True, mask_kind="causal", sinks=True)
    assert not any(array.flags.writeable for array in _arrays(make_inputs(case)).values())


def test_uniform_lies_in_minus_one_to_one() -> None:
    q = make_inputs(SMALL).q
    assert q.min() < -0.99
    assert q.max() > 0.99
    assert np.abs(q).max() <= 1


def test_normal_has_mean_0_and_standard_deviation_1() -> None:
    k = make_inputs(SMALL.with_(regime="normal", type_K="f32")).k
    assert abs(float(k.mean())) < 0.01
    assert float(k.std()) == pytest.approx(1, abs=0.01)
    # a normal distribution has kurtosis 3, the sum of four uniform ones 2.7, a single one 1.8
    assert float((k**4).mean()) == pytest.approx(2.7, abs=0.05)


def test_spiky_scores_have_a_standard_deviation_of_8_and_more() -> None:
    case = SMALL.with_(regime="spiky")
    assert _scores(case, make_inputs(case)).std() > 8


@pytest.mark.parametrize("type_name", ["f16", "q4_0"])
@pytest.mark.parametrize("segments", [2, 3, 4, 7, 8])
def test_rising_moves_the_maximum_in_every_segment(segments: int, type_name: str) -> None:
    case = SMALL.with_(regime="rising", type_K=type_name)
    assert np.all(np.diff(_segment_maxima(case, make_inputs(case), segments), axis=0) > 0)


@pytest.mark.parametrize("segments", [2, 3, 4, 7, 8])
def test_falling_has_the_maximum_in_the_first_segment(segments: int) -> None:
    case = SMALL.with_(regime="falling")
    maxima = _segment_maxima(case, make_inputs(case), segments)
    assert np.all(maxima[0] > maxima[1:].max(axis=0))


@pytest.mark.parametrize("regime", ["rising", "falling"])
def test_every_quarter_of_a_ramp_carries_weight(regime: str) -> None:
    case = SMALL.with_(regime=regime)
    weights = np.exp(_scores(case, make_inputs(case)))
    quarters = weights.reshape(*weights.shape[:-1], 4, -1).sum(axis=-1)
    assert np.all(quarters / quarters.sum(axis=-1, keepdims=True) > 1e-3)


@pytest.mark.parametrize("type_name", ["f16", "q5_0"])
def test_ties_repeats_the_largest_score_exactly(type_name: str) -> None:
    inputs = make_inputs(SMALL.with_(regime="ties", type_K=type_name))
    for head in inputs.k_raw.reshape(-1, *inputs.k_raw.shape[2:]):
        rows, counts = np.unique(head, axis=0, return_counts=True)
        assert len(rows) == 4
        assert counts.min() > 256 / 8


def test_offset_has_v_of_mean_10() -> None:
    v = make_inputs(SMALL.with_(regime="offset")).v
    assert float(v.mean()) == pytest.approx(10, abs=0.1)
    assert float(v.std()) == pytest.approx(1, abs=0.1)


def test_outlier_has_large_channels_and_moderate_scores() -> None:
    case = SMALL.with_(regime="outlier", type_K="f32")
    inputs = make_inputs(case)
    channel = inputs.k.std(axis=2)
    assert np.all(channel.max(axis=-1) > 7 * np.median(channel, axis=-1))
    assert np.abs(_scores(case, inputs)).max() < 60


def test_outlier_has_v_with_heavy_tails() -> None:
    v = make_inputs(SMALL.with_(regime="outlier", type_V="f32")).v
    assert np.abs(v).max() > 30 * np.median(np.abs(v))


def test_huge_values_come_near_the_f16_range() -> None:
    inputs = make_inputs(SMALL.with_(regime="huge"))
    assert 30_000 < np.abs(inputs.k).max() < 65_504
    assert 50_000 < np.abs(inputs.v).max() < 65_504


@pytest.mark.parametrize("mask_or_view", [{}, {"hsk": 32}, {"v_is_view_of_k": True}])
def test_huge_numerators_of_an_f16_v_stay_in_its_range(mask_or_view: dict[str, Any]) -> None:
    case = SMALL.with_(regime="huge", **mask_or_view)
    assert _largest_numerator(case, make_inputs(case)) < 65_504


@pytest.mark.parametrize("type_V", [name for name in TYPES if name not in ("f16", "q1_0")])
def test_huge_numerators_of_other_types_exceed_the_f16_range(type_V: str) -> None:
    case = SMALL.with_(regime="huge", type_V=type_V)
    assert _largest_numerator(case, make_inputs(case)) > 65_504


def test_huge_scores_stay_moderate() -> None:
    case = SMALL.with_(regime="huge")
    assert np.abs(_scores(case, make_inputs(case))).max() < 200


@pytest.mark.parametrize("hsk", [4, 9, 31, 64, 80, 128, 576])
def test_constructed_gives_the_mean_or_one_keys_v(hsk: int) -> None:
    case = SMALL.with_(regime="constructed", hsk=hsk)
    _check_constructed(case)


@pytest.mark.parametrize("type_name", TYPES)
def test_constructed_survives_every_type(type_name: str) -> None:
    _check_constructed(SMALL.with_(regime="constructed", type_K=type_name, type_V=type_name))


def _check_constructed(case: Case) -> None:
    inputs = make_inputs(case)
    output = _output(case, inputs)
    scores = _scores(case, inputs)
    for i3, head, row in np.ndindex(case.ne3, case.n_head, case.n_batch):
        v = inputs.v[i3, head // case.n_group].astype(np.float64)
        if (head + row) % 2 == 0:
            expected = v.mean(axis=0)
        else:
            below, top = np.sort(scores[i3, head, row])[-2:]
            assert top - below >= 40
            expected = v[scores[i3, head, row].argmax()]
        np.testing.assert_allclose(output[i3, head, row], expected, rtol=0, atol=1e-12)


def test_constructed_aims_at_several_keys() -> None:
    case = SMALL.with_(regime="constructed")
    assert len(np.unique(_scores(case, make_inputs(case)).argmax(axis=-1))) > 4


def test_one_key_gives_its_v() -> None:
    case = SMALL.with_(regime="normal", n_kv=1)
    inputs = make_inputs(case)
    v = np.repeat(inputs.v, 3, axis=1)
    assert np.array_equal(_output(case, inputs), np.broadcast_to(v, (2, 6, 5, 32)))


def test_seed_holds_the_recorded_case() -> None:
    inputs = make_inputs(SEED.with_(mask=True, mask_kind="zeros"))
    assert inputs.q.tolist() == [[[[1, 0, 0, 0]]]]
    assert inputs.k.tolist() == [[[[1, 0, 0, 0], [0, 1, 0, 0]]]]
    assert inputs.v.tolist() == [[[[1, 2, 3, 4], [5, 6, 7, 8]]]]
    assert inputs.mask is not None
    assert inputs.mask.tolist() == [[[[0, 0]]]]


def test_seed_gives_the_recorded_result() -> None:
    exact = [2.510163, 3.510163, 4.510163, 5.510163]
    np.testing.assert_allclose(_output(SEED, make_inputs(SEED)).ravel(), exact, atol=1e-6)


def _mask(**changes: Any) -> np.ndarray:
    mask = make_inputs(SMALL.with_(mask=True, **changes)).mask
    assert mask is not None
    return mask


def test_a_case_without_mask_and_sinks_has_neither() -> None:
    inputs = make_inputs(SMALL)
    assert inputs.mask is None
    assert inputs.sinks is None


def test_a_zeros_mask_hides_nothing() -> None:
    assert not _mask(mask_kind="zeros").any()


def test_a_random_mask_hides_some_keys_of_every_row_and_never_all() -> None:
    hidden = np.isneginf(_mask(mask_kind="random"))
    assert hidden.any(axis=-1).all()
    assert not hidden.all(axis=-1).any()
    assert 0.03 < hidden.mean() < 0.3


def test_a_random_mask_of_one_key_hides_no_row() -> None:
    assert np.isfinite(_mask(mask_kind="random", n_kv=1, n_batch=512)).all()


def test_a_random_mask_has_values_from_minus_one_to_one() -> None:
    values = _mask(mask_kind="random")
    visible = values[np.isfinite(values)]
    assert -1 <= visible.min() < -0.99
    assert 0.99 < visible.max() < 1


@pytest.mark.parametrize("kind", ["random", "leading", "sparse", "masked_segment"])
def test_masks_differ_between_sequences_and_heads(kind: str) -> None:
    planes = _mask(mask_kind=kind, mask_heads=3, n_kv_max=20 if kind == "sparse" else 0)
    planes = planes.reshape(-1, *planes.shape[2:])
    assert len({plane.tobytes() for plane in planes}) == 6


def test_a_causal_mask_shows_a_row_the_keys_up_to_its_own() -> None:
    assert _mask(mask_kind="causal", n_kv=4, n_batch=3)[1, 0].tolist() == [
        [0, 0, -np.inf, -np.inf],
        [0, 0, 0, -np.inf],
        [0, 0, 0, 0],
    ]


def test_a_causal_mask_with_alibi_holds_the_distances() -> None:
    assert _mask(mask_kind="causal", n_kv=4, n_batch=3, max_bias=8.0)[1, 0].tolist() == [
        [-1, 0, -np.inf, -np.inf],
        [-2, -1, 0, -np.inf],
        [-3, -2, -1, 0],
    ]


def test_a_leading_mask_hides_the_first_rows_and_the_first_keys() -> None:
    assert _mask(mask_kind="leading", n_group=3, ne3=1, n_kv=8, n_batch=3)[0, 0].tolist() == [
        [-np.inf] * 8,
        [-np.inf] * 2 + [0] * 5 + [-np.inf],
        [-np.inf] * 2 + [0] * 6,
    ]


def test_a_leading_mask_hides_a_single_row_of_one_head_of_several() -> None:
    assert np.isfinite(_mask(mask_kind="leading", n_batch=1)).any(axis=-1).all()
    of_heads = _mask(mask_kind="leading", n_batch=1, mask_heads=6, ne3=1)
    assert np.isfinite(of_heads).any(axis=-1).ravel().tolist() == [False] + [True] * 5


def test_a_sparse_mask_shows_at_most_n_kv_max_keys_a_row() -> None:
    visible = np.isfinite(_mask(mask_kind="sparse", n_kv_max=20, n_batch=30)).sum(axis=-1)
    assert visible.max() == 20
    assert visible.min() == 4


def test_a_masked_segment_hides_the_middle_third_from_every_row() -> None:
    mask = _mask(mask_kind="masked_segment")
    assert np.isneginf(mask[..., 85:170]).all()
    assert np.isfinite(mask[..., :85]).any()
    assert np.isfinite(mask).any(axis=-1).all()


@pytest.mark.parametrize("regime", GENERAL_REGIMES)
def test_sinks_lie_above_and_below_the_row_maxima(regime: str) -> None:
    case = SMALL.with_(regime=regime, sinks=True)
    inputs = make_inputs(case)
    assert inputs.sinks is not None
    above = inputs.sinks[:, np.newaxis] > _scores(case, inputs).max(axis=-1)
    assert above.any()
    assert not above.all()


def test_sinks_follow_a_soft_cap() -> None:
    sinks = make_inputs(SMALL.with_(regime="spiky", sinks=True, logit_softcap=10)).sinks
    assert sinks is not None
    assert 10 <= sinks.max() <= 14


# segments with types

TYPED = Case(
    hsk=64, hsv=32, n_head_kv=2, n_group=2, n_kv=60, n_batch=3, regime="normal", sinks=True,
    type_K="f32",
    type_V="f32", boundaries=(20, 20, 50), segment_types=("q4_0", "f16", "q8_0/f16"),
)  # fmt: skip


def test_the_cache_has_the_values_of_each_segment_in_its_own_types() -> None:
    inputs = make_inputs(TYPED)
    for i, (start, stop) in enumerate(itertools.pairwise(TYPED.segment_bounds())):
        whole = make_inputs(TYPED.of_segment(i))
        k_raw, v_raw = inputs.segments[i]
        np.testing.assert_array_equal(k_raw, whole.k_raw[:, :, start:stop])
        np.testing.assert_array_equal(v_raw, whole.v_raw[:, :, start:stop])
        np.testing.assert_array_equal(inputs.k[:, :, start:stop], whole.k[:, :, start:stop])
        np.testing.assert_array_equal(inputs.v[:, :, start:stop], whole.v[:, :, start:stop])


def test_the_raw_cache_of_typed_segments_is_f32() -> None:
    inputs = make_inputs(TYPED)
    np.testing.assert_array_equal(inputs.k_raw.view(np.float32), inputs.k)
    np.testing.assert_array_equal(inputs.v_raw.view(np.float32), inputs.v)


def test_types_of_segments_change_nothing_but_k_and_v() -> None:
    plain = make_inputs(TYPED.with_(segment_types=()))
    inputs = make_inputs(TYPED)
    assert inputs.mask is not None
    assert inputs.sinks is not None
    np.testing.assert_array_equal(inputs.q, plain.q)
    np.testing.assert_array_equal(inputs.mask, plain.mask)
    np.testing.assert_array_equal(inputs.sinks, plain.sinks)
    assert plain.segments == ()


def test_the_bytes_of_segments_cannot_be_written() -> None:
    assert not any(raw.flags.writeable for pair in make_inputs(TYPED).segments for raw in pair)


# what is not finite


NAN = Case(hsk=32, hsv=32, n_head_kv=8, n_group=2, n_kv=40, n_batch=3, regime="nan", seed=8)


def test_each_head_has_something_that_is_not_finite_and_every_other_one_it_in_a_row_of_q() -> None:
    inputs = make_inputs(NAN)
    rows = inputs.q.reshape(8, 6, 32)
    in_q = np.isnan(rows).any(axis=-1).sum(axis=-1).tolist()
    in_k, in_v = (np.isfinite(x[0]).sum(axis=(1, 2)) - x[0, 0].size for x in (inputs.k, inputs.v))
    assert in_q == [0, 1] * 4
    assert in_k.tolist() == [-1, 0, 0, 0, -1, 0, 0, 0]
    assert in_v.tolist() == [0, 0, -1, 0, 0, 0, -2, 0]
    assert np.isnan(inputs.k[0, 0]).any()
    assert np.isposinf(inputs.k[0, 4]).any()
    assert np.isnan(inputs.v[0, 2]).any()
    assert {np.inf, -np.inf} <= set(inputs.v[0, 6].flatten().tolist())


def test_the_rest_is_normal() -> None:
    usual, inputs = make_inputs(NAN), make_inputs(NAN.with_(seed=9))
    for array in (usual.q, usual.k, usual.v, inputs.k):
        assert 0.9 < array[np.isfinite(array)].std() < 1.1


def test_a_single_row_keeps_its_q() -> None:
    inputs = make_inputs(NAN.with_(n_group=1, n_batch=1))
    assert np.isfinite(inputs.q).all()
    assert np.isnan(inputs.v[0, 1::2]).any(axis=(1, 2)).all()


def test_a_lowest_mask_has_f16_s_lowest_number_where_a_leading_one_hides() -> None:
    leading, lowest = (
        make_inputs(NAN.with_(regime="normal", mask_kind=kind)).mask
        for kind in ("leading", "lowest")
    )
    assert leading is not None
    assert lowest is not None
    hidden = np.isneginf(leading)
    assert 0 < hidden.sum() < hidden.size
    assert set(lowest[hidden].tolist()) == {-65504.0}
    np.testing.assert_array_equal(lowest[~hidden], leading[~hidden])
