"""NumPy float32 <-> ggml's K and V types, by the reference implementation in the `gguf` package."""

from collections.abc import Callable
from typing import Any, NamedTuple

import gguf
import numpy as np

from fa_harness.arrays import F32, U8, Array
from fa_harness.errors import UsageError


class TypeTraits(NamedTuple):
    """How a ggml type lies in memory."""

    block_size: int
    """Elements in a block."""
    block_bytes: int
    """Bytes of a block."""
    ggml_type: int
    """The value of `enum ggml_type`."""


_ENUM: Any = gguf.GGMLQuantizationType

TYPES: dict[str, TypeTraits] = {
    **{
        name: TypeTraits(*gguf.GGML_QUANT_SIZES[_ENUM[name.upper()]], int(_ENUM[name.upper()]))
        for name in ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl")
    },
    "q1_0": TypeTraits(128, 18, 41),
    "q2_0": TypeTraits(64, 18, 42),
}
"""The types that K and V may have, by ggml's names."""

FLOAT_TYPES = ("f32", "f16", "bf16")
"""Those that are no blocks."""

OTHER_TYPES = {
    name: gguf.GGML_QUANT_SIZES[ggml_type][0]
    for ggml_type in _ENUM
    # ggml writes the K of q4_K large
    if (name := ggml_type.name.lower().replace("_k", "_K")) not in TYPES
}
"""The block sizes of ggml's other types, which the harness can neither encode nor decode."""

_FLOATS: dict[str, type[np.floating[Any]]] = {"f32": np.float32, "f16": np.float16}
_CODEBOOKS = {
    "iq4_nl": np.array(gguf.quants.IQ4_NL.kvalues, dtype=np.float32),
    "q2_0": np.array([-1, 0, 1, 2], dtype=np.float32),
    "q1_0": np.array([-1, 1], dtype=np.float32),
}
"""Of the types that are one F16 scale and then, for each element, the index of a value."""

# gguf works in groups of 16 rows; on rows of one head (64 elements) it spends its time between them
_LONG_ROW = 4096


def row_bytes(type_name: str, n: int) -> int:
    """The bytes that a row of `n` elements takes."""
    if type_name not in TYPES:
        raise UsageError(f"type {type_name!r} is unknown; known are {', '.join(TYPES)}")
    block_size, block_bytes, _ = TYPES[type_name]
    if n % block_size:
        raise UsageError(
            f"a row of {n} elements cannot be {type_name}: its blocks hold {block_size}; "
            f"use a multiple of {block_size}"
        )
    return n // block_size * block_bytes


def types_in_blocks(*sizes: int) -> list[str]:
    """Return the types of whose blocks rows of all these numbers of elements are made."""
    return [name for name, traits in TYPES.items() if not any(n % traits.block_size for n in sizes)]


def encode(values: F32, type_name: str) -> U8:
    """Round float32 `[..., n]` to bytes as ggml keeps them, `[..., row_bytes(type_name, n)]`."""
    shape = (*values.shape[:-1], row_bytes(type_name, values.shape[-1]))
    flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    if type_name in _FLOATS:
        return flat.astype(_FLOATS[type_name], copy=False).view(np.uint8).reshape(shape)
    if type_name in _CODEBOOKS:
        return _encode_by_codebook(flat, type_name).reshape(shape)
    ggml_type = _ENUM(TYPES[type_name].ggml_type)
    raw = _by_long_rows(lambda rows: gguf.quants.quantize(rows, ggml_type), flat, _LONG_ROW)
    return raw.view(np.uint8).reshape(shape)


def decode(raw: U8, type_name: str) -> F32:
    """The exact values, float32 `[..., n]`, of encoded rows `[..., row_bytes(type_name, n)]`."""
    block_size, block_bytes, enum_value = TYPES[type_name]
    shape = (*raw.shape[:-1], raw.shape[-1] // block_bytes * block_size)
    if type_name in _FLOATS:
        floats = np.ascontiguousarray(raw).view(_FLOATS[type_name])
        return floats.astype(np.float32).reshape(shape)
    if type_name in _CODEBOOKS:
        return _decode_by_codebook(raw, type_name).reshape(shape)
    ggml_type = _ENUM(enum_value)
    values = _by_long_rows(
        lambda rows: gguf.quants.dequantize(rows, ggml_type),
        np.ascontiguousarray(raw).reshape(-1),
        _LONG_ROW // block_size * block_bytes,
    )
    return values.reshape(shape)


def negated(raw: U8, type_name: str) -> U8:
    """Return encoded rows with the sign of every value turned.

    Of blocks, that turns the sign of the scale, and of the minimum where there is one.
    """
    _, block_bytes, _ = TYPES[type_name]
    sign_bytes = {"q4_1": (1, 3), "q5_1": (1, 3)}.get(type_name, (1,))
    if type_name in FLOAT_TYPES:
        sign_bytes = (block_bytes - 1,)
    turned: U8 = raw.copy()
    blocks = turned.reshape(-1, block_bytes)
    blocks[:, sign_bytes] ^= np.uint8(0x80)
    return turned


def _by_long_rows(function: Callable[[Array], Array], flat: Array, length: int) -> Array:
    """Apply `function`, which works on whole blocks, to rows of `length` and to the rest."""
    n_whole = flat.size - flat.size % length
    if n_whole == 0:
        return function(flat)
    whole = function(flat[:n_whole].reshape(-1, length)).reshape(-1)
    return whole if n_whole == flat.size else np.concatenate([whole, function(flat[n_whole:])])


def _encode_by_codebook(flat: F32, type_name: str) -> U8:
    """Encode as the nearest codes under a scale per block.

    The scale takes the element of the largest magnitude to the codebook's end of the largest one.
    For Q1_0, which has but the signs, that would double every element: there to twice that end.
    """
    codebook = _CODEBOOKS[type_name]
    blocks = flat.reshape(-1, TYPES[type_name].block_size)
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1, keepdims=True), axis=-1)
    end = codebook[np.abs(codebook).argmax()] * (2 if type_name == "q1_0" else 1)
    scale = (peak / end).astype(np.float16)
    divisor = scale.astype(np.float32)
    divisor[divisor == 0] = 1
    codes = np.searchsorted((codebook[1:] + codebook[:-1]) / 2, blocks / divisor).astype(np.uint8)
    return np.concatenate([scale.view(np.uint8), _pack(codes, type_name)], axis=-1)


def _decode_by_codebook(raw: U8, type_name: str) -> F32:
    blocks = np.ascontiguousarray(raw).reshape(-1, TYPES[type_name].block_bytes)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    values: F32 = scale * _CODEBOOKS[type_name][_unpack(blocks[:, 2:], type_name)]
    return values


def _pack(codes: U8, type_name: str) -> U8:
    if type_name == "iq4_nl":
        low, high = np.split(codes, 2, axis=-1)
        both: U8 = low | high << np.uint8(4)
        return both
    n_bits = _CODEBOOKS[type_name].size.bit_length() - 1
    bits = codes[..., np.newaxis] >> np.arange(n_bits, dtype=np.uint8) & np.uint8(1)
    return np.packbits(bits.reshape(len(codes), -1), axis=-1, bitorder="little")


def _unpack(packed: U8, type_name: str) -> U8:
    if type_name == "iq4_nl":
        return np.concatenate([packed & 15, packed >> 4], axis=-1)
    n_bits = _CODEBOOKS[type_name].size.bit_length() - 1
    shifts = np.arange(0, 8, n_bits, dtype=np.uint8)
    codes: U8 = packed[..., np.newaxis] >> shifts & np.uint8(2**n_bits - 1)
    return codes.reshape(len(packed), -1)
