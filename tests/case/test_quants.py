import re
import struct

import gguf
import numpy as np
import pytest

from fa_harness.case.quants import OTHER_TYPES, TYPES, decode, encode, negated, row_bytes
from fa_harness.errors import UsageError

# how far a value may move, relative to the largest of its block
ROUNDING = {
    "f32": 0,
    "f16": 2**-11,
    "bf16": 2**-8,
    "q8_0": 1 / 220,
    "q5_1": 1 / 28,
    "q5_0": 1 / 15,
    "q4_1": 1 / 13,
    "q4_0": 1 / 7,
    "iq4_nl": 1 / 8,
    "q2_0": 1 / 1.99,
    "q1_0": 1 / 1.99,
}


def _values(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape, dtype=np.float32)


def test_the_table_agrees_with_ggmls_block_layouts() -> None:
    assert {name: (traits.block_size, traits.block_bytes) for name, traits in TYPES.items()} == {
        "f32": (1, 4),
        "f16": (1, 2),
        "bf16": (1, 2),
        "q8_0": (32, 34),
        "q4_0": (32, 18),
        "q4_1": (32, 20),
        "q5_0": (32, 22),
        "q5_1": (32, 24),
        "iq4_nl": (32, 18),
        "q1_0": (128, 18),
        "q2_0": (64, 18),
    }


def test_the_table_holds_ggmls_enum_values() -> None:
    assert TYPES["f16"].ggml_type == 1
    assert TYPES["iq4_nl"].ggml_type == 20
    assert TYPES["bf16"].ggml_type == 30


@pytest.mark.parametrize("type_name", TYPES)
def test_encoded_rows_have_the_types_size(type_name: str) -> None:
    raw = encode(_values(2, 3, 5, 128), type_name)
    assert raw.dtype == np.uint8
    assert raw.shape == (2, 3, 5, row_bytes(type_name, 128))
    assert decode(raw, type_name).shape == (2, 3, 5, 128)
    assert decode(raw, type_name).dtype == np.float32


@pytest.mark.parametrize("type_name", TYPES)
def test_values_survive_within_the_types_rounding(type_name: str) -> None:
    values = _values(7, 384)
    error = np.abs(decode(encode(values, type_name), type_name) - values)
    blocks = (-1, TYPES[type_name].block_size)
    assert np.all(
        error.reshape(blocks).max(axis=1)
        <= ROUNDING[type_name] * np.abs(values).reshape(blocks).max(axis=1)
    )


@pytest.mark.parametrize("type_name", TYPES)
def test_a_row_is_encoded_alike_alone_and_among_many(type_name: str) -> None:
    values = _values(200, 128)
    raw = encode(values, type_name)
    for i in (0, 43, 199):
        assert np.array_equal(raw[i], encode(values[i], type_name))
        assert np.array_equal(decode(raw, type_name)[i], decode(raw[i], type_name))


@pytest.mark.parametrize("type_name", TYPES)
def test_a_block_of_zeros_stays_zero(type_name: str) -> None:
    assert not decode(encode(np.zeros((2, 128), dtype=np.float32), type_name), type_name).any()


def test_bf16_rounds_to_nearest_even() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001], dtype=np.uint32)
    assert encode(bits.view(np.float32), "bf16").view(np.uint16).tolist() == [
        0x3F80,
        0x3F82,
        0x3F81,
    ]


def test_iq4_nl_finds_every_code_of_its_codebook() -> None:
    codebook = np.array(gguf.quants.IQ4_NL.kvalues, dtype=np.float32)
    values = np.concatenate([codebook, codebook[::-1]])
    assert np.array_equal(decode(encode(values, "iq4_nl"), "iq4_nl"), values)


def test_iq4_nl_keeps_the_sign_of_the_largest_element() -> None:
    values = np.zeros(32, dtype=np.float32)
    values[5] = 254
    raw = encode(values, "iq4_nl")
    assert struct.unpack("<e", raw[:2].tobytes()) == (-2.0,)
    assert decode(raw, "iq4_nl")[5] == 254


def test_q2_0_has_four_values_in_halves_of_the_largest() -> None:
    values = np.tile(np.array([-4, -1.1, 0.9, 2.9, 3.1, 8], dtype=np.float32), 11)[:64]
    rounded = decode(encode(values, "q2_0"), "q2_0")
    assert rounded[:6].tolist() == [-4, 0, 0, 4, 4, 8]
    rounded = decode(encode(-values, "q2_0"), "q2_0")
    assert rounded[:6].tolist() == [4, 0, 0, -4, -4, -8]


def test_q1_0_keeps_signs_with_half_of_the_largest() -> None:
    values = np.tile(np.array([-6, 0.1, 2, -0.1], dtype=np.float32), 32)
    assert decode(encode(values, "q1_0"), "q1_0")[:4].tolist() == [-3, 3, 3, -3]


def test_types_that_are_known_but_not_encoded_go_by_ggmls_names() -> None:
    assert {"q4_K", "iq2_xxs", "tq1_0", "mxfp4", "q8_1"} < OTHER_TYPES.keys()
    assert OTHER_TYPES["q4_K"] == 256
    assert not OTHER_TYPES.keys() & TYPES.keys()


def test_a_strided_array_is_encoded_by_its_values() -> None:
    values = _values(64, 6).T
    assert np.array_equal(encode(values, "q8_0"), encode(values.copy(), "q8_0"))


def test_a_row_that_ends_within_a_block_is_refused() -> None:
    message = "a row of 72 elements cannot be q8_0: its blocks hold 32; use a multiple of 32"
    with pytest.raises(UsageError, match=re.escape(message)):
        encode(_values(2, 72), "q8_0")


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(UsageError, match="type 'q2_k' is unknown; known are f32, f16"):
        row_bytes("q2_k", 256)


@pytest.mark.parametrize("type_name", TYPES)
def test_negated_rows_have_the_other_sign_in_every_value(type_name: str) -> None:
    values = np.random.default_rng(1).normal(size=(3, 256)).astype(np.float32)
    raw = encode(values, type_name)
    before = raw.copy()
    turned = negated(raw, type_name)
    np.testing.assert_array_equal(decode(turned, type_name), -decode(raw, type_name))
    np.testing.assert_array_equal(raw, before)
    np.testing.assert_array_equal(negated(turned, type_name), raw)
