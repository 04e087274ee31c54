"""The stream that the program `fa-harness-capture` writes, read into entries of a capture."""

from __future__ import annotations

import json
from typing import Any, BinaryIO

import numpy as np

from fa_harness.arrays import F16, U8
from fa_harness.case.captures import Arrays, Entry, check_arrays
from fa_harness.case.quants import TYPES, decode
from fa_harness.errors import UsageError

_STREAM = 1
"""Version of what the program writes."""
_MASKS = ("mask_cold", "mask")
"""As the cells lie in the mask of an entry: older tokens first."""
_USUAL = {
    "max_bias": 0.0, "logit_softcap": 0.0, "prec": "f32", "threads": 1, "v_is_view_of_k": False,
}  # fmt: skip


def read_stream(stream: BinaryIO) -> list[tuple[Entry, Arrays]]:
    """Read what the program `fa-harness-capture` writes."""
    head = _line(stream)
    if head.get("stream") != _STREAM:
        raise UsageError(
            f"the stream of fa-harness-capture is of version {head.get('stream')}, not {_STREAM}; "
            "build the program anew"
        )
    entries = []
    while not (call := _line(stream)).get("end"):
        items = call.pop("tensors")
        tensors = {item["name"]: _tensor(stream, item) for item in items}
        types = {item["name"]: item["type"] for item in items}
        name = f"layer-{call['layer']}.{call['phase']}"
        wanted_types = {"q": "f32", "mask": "f16", "mask_cold": "f16", "sinks": "f32", "out": "f32"}
        for tensor, wanted in wanted_types.items():
            if types.get(tensor, wanted) != wanted:
                raise UsageError(f"{name}: {tensor} is {types[tensor]}; the harness takes {wanted}")
        q, sinks = tensors["q"].view(np.float32), tensors.get("sinks")
        if tensors["k"].shape[0] != q.shape[0]:
            raise UsageError(f"{name}: sequences share keys, which the harness has no case for")
        masks = [tensors[part].view(np.float16) for part in _MASKS if part in tensors]
        if len(masks) == 1 and "k_cold" in tensors:
            raise UsageError(f"{name}: one of its two parts has no mask")
        if len(masks) == 2 and np.isneginf(masks[0]).all():  # no token is old yet: one part
            del masks[0], tensors["k_cold"], tensors["v_cold"]
        mask: F16 | None = None
        if masks:
            mask = np.concatenate(masks, axis=-1)[:, :, : q.shape[2]]  # older versions pad its rows
            mask = np.ascontiguousarray(np.broadcast_to(mask, (q.shape[0], *mask.shape[1:])))
        arrays = Arrays(
            q=q,
            k=tensors["k"],
            v=tensors["v"],
            mask=mask,
            sinks=None if sinks is None else sinks.view(np.float32).reshape(-1),
            out=np.ascontiguousarray(tensors["out"].view(np.float32).swapaxes(1, 2)),
            k_cold=tensors.get("k_cold"),
            v_cold=tensors.get("v_cold"),
        )
        entry = make_entry(
            arrays,
            type_k=types["k"],
            type_v=types["v"],
            type_K_cold=types["k_cold"] if "k_cold" in tensors else "",
            type_V_cold=types["v_cold"] if "v_cold" in tensors else "",
            n_swa=head["n_swa"],
            **call,
        )
        entries.append((entry, arrays))
    return entries


def _line(stream: BinaryIO) -> dict[str, Any]:
    line = stream.readline()
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UsageError("the stream of fa-harness-capture ends too early or is damaged; run again")
    return found


def _tensor(stream: BinaryIO, item: dict[str, Any]) -> U8:
    shape = (*reversed(item["ne"][1:]), item["row_bytes"])
    data = stream.read(int(np.prod(shape, dtype=np.int64)))
    if len(data) != np.prod(shape, dtype=np.int64):
        raise UsageError("the stream of fa-harness-capture ends too early; run again")
    return np.frombuffer(data, np.uint8).reshape(shape)


def make_entry(
    arrays: Arrays,
    *,
    type_k: str,
    type_v: str,
    scale: float,
    position: int = 0,
    n_swa: int = 0,
    **of_call: Any,
) -> Entry:
    """Describe one call of the op, with the other fields of an `Entry` or their usual values.

    `n_swa` is the model's window. Numbers that a row sees must be finite.
    """
    ne3, n_head, n_batch, hsk = arrays.q.shape
    n_head_kv, n_kv_hot = arrays.k.shape[1:3]
    n_kv_cold = 0 if arrays.k_cold is None else arrays.k_cold.shape[2]
    n_kv = n_kv_cold + n_kv_hot
    mask = arrays.mask
    entry = Entry(
        **{**_USUAL, **of_call},
        position=position,
        hsk=hsk,
        hsv=arrays.out.shape[-1],
        n_head=n_head,
        n_head_kv=n_head_kv,
        n_kv=n_kv,
        n_kv_cold=n_kv_cold,
        n_batch=n_batch,
        ne3=ne3,
        mask_heads=0 if mask is None else mask.shape[1],
        has_sinks=arrays.sinks is not None,
        type_K=type_k,
        type_V=type_v,
        scale=float(np.float32(scale)),
        n_kv_seen=n_kv if mask is None else _n_seen(mask),
        n_causal=0 if mask is None else _n_causal(mask),
        sliding_window=n_swa if mask is not None and _hides_past(mask, position) else 0,
    )
    seen = np.s_[:, :, : max(0, entry.n_kv_seen - n_kv_cold)]
    stored = [("K", type_k, arrays.k[seen]), ("V", type_v, arrays.v[seen])]
    if arrays.k_cold is not None and arrays.v_cold is not None:
        stored += [("K", entry.type_K_cold, arrays.k_cold), ("V", entry.type_V_cold, arrays.v_cold)]
    for name, type_name, _ in stored:
        if type_name not in TYPES:
            raise UsageError(
                f"{entry.name}: {name} is {type_name}, which the harness cannot decode; capture "
                f"with another cache type, one of {', '.join(TYPES)}"
            )
    check_arrays(entry, arrays)
    values = [("Q", arrays.q), *((name, decode(rows, type_)) for name, type_, rows in stored)]
    for name, found in values:
        if not np.isfinite(found).all():
            raise UsageError(f"{entry.name}: {name} holds numbers that are not finite")
    return entry


def _n_seen(mask: F16) -> int:
    seen = np.flatnonzero(~np.isneginf(mask).all(axis=(0, 1, 2)))
    return int(seen[-1]) + 1 if seen.size else 0


def _n_causal(mask: F16) -> int:
    n = min(mask.shape[2:])
    is_other = (np.isneginf(mask[:, :, :n, :n]) == np.tri(n, dtype=bool)).any(axis=(0, 1))
    row, key = np.nonzero(is_other)
    return int(np.maximum(row, key).min()) if row.size else n


def _hides_past(mask: F16, position: int) -> bool:
    n_seen = (~np.isneginf(mask)).sum(axis=-1)
    return bool((n_seen < position + 1 + np.arange(mask.shape[2])).any())
