"""A capture made of drawn numbers, for tests that need no model."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fa_harness.case import captures
from fa_harness.case.capture_stream import make_entry
from fa_harness.case.captures import Arrays, Capture, Entry
from fa_harness.case.case import Case
from fa_harness.case.inputs import Inputs
from fa_harness.case.quants import decode, encode
from fa_harness.judge.oracle import add_sinks, attend, finalise

SCALE = 0.15
N_SWA = 24
_NAMES = ("q", "k", "v", "mask", "sinks", "k_cold", "v_cold", "mask_cold", "out")


def window_mask(position: int, n_batch: int, n_kv: int, n_swa: int) -> npt.NDArray[np.float16]:
    """The mask of rows from `position` on that see the last `n_swa` tokens; 0 is all of them."""
    row, key = position + np.arange(n_batch)[:, None], np.arange(n_kv)
    hidden = (key > row) | (n_swa > 0) & (key <= row - n_swa)
    mask: npt.NDArray[np.float16] = np.where(hidden, np.float16(-np.inf), np.float16(0))
    return mask[None, None]


def call(
    *, position: int = 0, n_batch: int = 40, n_kv: int = 64, n_swa: int = N_SWA, layer: int = 0,
    type_k: str = "q8_0", type_v: str = "f16", sinks: bool = True, max_bias: float = 0.0,
    logit_softcap: float = 0.0,
) -> tuple[Entry, Arrays]:  # fmt: skip
    """A call of 4 query heads on 2 KV heads; cells behind the last token hold zeros.

    With ALiBi the mask holds distances, as llama.cpp fills it.

    One channel of K is large, as some are in models.
    """
    random = np.random.default_rng(layer + 100 * position)
    q = random.standard_normal((1, 4, n_batch, 64)).astype(np.float32)
    k, v = random.standard_normal((2, 1, 2, n_kv, 64)).astype(np.float32)
    k[..., 5] *= 20
    for rows in (k, v):
        rows[:, :, position + n_batch :] = 0
    mask = window_mask(position, n_batch, n_kv, n_swa)
    if max_bias:
        behind = position + np.arange(n_batch)[:, None] - np.arange(n_kv)
        mask = np.where(np.isneginf(mask), mask, (-behind).astype(np.float16))
    k_raw, v_raw = encode(k, type_k), encode(v[..., :32], type_v)
    shape = Case(
        hsk=64, hsv=32, n_head_kv=2, n_group=2, n_kv=n_kv, n_batch=n_batch, type_K=type_k,
        type_V=type_v,
        kq_scale=SCALE, max_bias=max_bias, logit_softcap=logit_softcap,
    )  # fmt: skip
    of_heads = random.standard_normal(4).astype(np.float32) if sinks else None
    inputs = Inputs(
        q=q, k_raw=k_raw, v_raw=v_raw, k=decode(k_raw, type_k), v=decode(v_raw, type_v),
        mask=mask, sinks=of_heads,
    )  # fmt: skip
    partial = attend(shape, inputs, 0, n_kv, for_bounds=False)
    if of_heads is not None:
        partial = add_sinks(partial, of_heads)
    out = finalise(partial).astype(np.float32)
    arrays = Arrays(q=q, k=k_raw, v=v_raw, mask=mask, sinks=of_heads, out=out)
    entry = make_entry(
        arrays, layer=layer, phase="prefill" if n_batch > 1 else "decode", type_k=type_k,
        type_v=type_v, scale=SCALE, position=position, n_swa=n_swa,
        max_bias=max_bias, logit_softcap=logit_softcap,
    )  # fmt: skip
    return entry, arrays


def two_parts(*, n_batch: int = 1) -> tuple[Entry, Arrays]:
    """A call over a cache of two types: tokens 0 to 23 in Q4_0, later ones in F16.

    Both parts have cells without a token, and in neither are the tokens in their order.
    """
    random = np.random.default_rng(n_batch)
    position, n_cold = 40, 32
    cells = np.full(64, -1)
    cells[:24] = random.permutation(24)
    cells[n_cold : n_cold + 16 + n_batch] = 24 + random.permutation(16 + n_batch)
    q = random.standard_normal((1, 4, n_batch, 64)).astype(np.float32)
    k, v = random.standard_normal((2, 1, 2, 64, 64)).astype(np.float32)
    v = v[..., :32]
    for rows in (k, v):
        rows[:, :, cells < 0] = 0
    hidden = (cells < 0) | (cells > position + np.arange(n_batch)[:, None])
    mask = np.where(hidden, np.float16(-np.inf), np.float16(0))[None, None]
    parts = [
        (encode(rows[:, :, at], type_name), type_name)
        for at, type_name in ((np.s_[:n_cold], "q4_0"), (np.s_[n_cold:], "f16"))
        for rows in (k, v)
    ]
    k, v = (np.concatenate([decode(*parts[i]), decode(*parts[i + 2])], axis=2) for i in (0, 1))
    sinks = random.standard_normal(4).astype(np.float32)
    shape = Case(
        hsk=64, hsv=32, n_head_kv=2, n_group=2, n_kv=64, n_batch=n_batch, type_K="f32",
        type_V="f32", kq_scale=SCALE,
    )  # fmt: skip
    inputs = Inputs(
        q=q, k_raw=encode(k, "f32"), v_raw=encode(v, "f32"), k=k, v=v, mask=mask, sinks=sinks
    )
    partial = add_sinks(attend(shape, inputs, 0, 64, for_bounds=False), sinks)
    arrays = Arrays(
        q=q, k=parts[2][0], v=parts[3][0], mask=mask, sinks=sinks,
        out=finalise(partial).astype(np.float32), k_cold=parts[0][0], v_cold=parts[1][0],
    )  # fmt: skip
    entry = make_entry(
        arrays, layer=0, phase="decode" if n_batch == 1 else "prefill", type_k="f16", type_v="f16",
        type_K_cold="q4_0", type_V_cold="q4_0", scale=SCALE, position=position,
    )  # fmt: skip
    return entry, arrays


def calls() -> list[tuple[Entry, Arrays]]:
    """A layer with a sliding window and a global one, in the prompt and after it."""
    return [
        call(),
        call(layer=5, n_swa=0, type_k="f16"),
        call(position=40, n_batch=1),
        call(position=40, n_batch=1, layer=5, n_swa=0, type_k="f16"),
    ]


def write(path: Path, entries: list[tuple[Entry, Arrays]] | None = None) -> Capture:
    """Write a capture."""
    return captures.save(
        path, calls() if entries is None else entries,
        model="drawn.gguf", sha256="0" * 64, upstream="llama.cpp", tool_version="0",
    )  # fmt: skip


def stream_of(entry: Entry, arrays: Arrays) -> bytes:
    """What the program `fa-harness-capture` writes of one call."""
    types = {
        "k": entry.type_K, "v": entry.type_V, "k_cold": entry.type_K_cold,
        "v_cold": entry.type_V_cold, "mask": "f16", "mask_cold": "f16",
    }  # fmt: skip
    tensors, data = [], b""
    for name in _NAMES:
        array = getattr(arrays, name, arrays.mask if entry.n_kv_cold else None)
        if array is None:
            continue
        if "mask" in name:  # the older tokens' columns come first
            array = array[..., : entry.n_kv_cold] if "_" in name else array[..., entry.n_kv_cold :]
        if name == "out":
            array = array.swapaxes(1, 2)
        if name == "sinks":
            array = array.reshape(1, 1, 1, -1)
        row_bytes = array.shape[-1] * array.itemsize
        n = {"k": entry.hsk, "v": entry.hsv}.get(name.removesuffix("_cold"), array.shape[-1])
        ne = [n, *array.shape[2::-1]]
        type_ = types.get(name, "f32")
        tensors.append({"name": name, "type": type_, "row_bytes": row_bytes, "ne": ne})
        data += np.ascontiguousarray(array).tobytes()
    head = {
        "layer": entry.layer, "phase": entry.phase, "position": entry.position,
        "threads": entry.threads, "scale": entry.scale, "max_bias": entry.max_bias,
        "logit_softcap": entry.logit_softcap, "prec": entry.prec,
        "v_is_view_of_k": entry.v_is_view_of_k, "tensors": tensors,
    }  # fmt: skip
    return json.dumps(head).encode() + b"\n" + data


def stream(*entries: tuple[Entry, Arrays]) -> bytes:
    """All that the program writes."""
    head = json.dumps({"stream": 1, "n_layer": 6, "n_swa": N_SWA}).encode() + b"\n"
    return head + b"".join(stream_of(*entry) for entry in entries) + b'{"end":true}\n'
