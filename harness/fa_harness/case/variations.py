"""Variations of one call over a case's keys that must not change its result, but for rounding.

A variation is a small record. Both processes apply it to the case's own inputs, so that no array is
sent: `vary` makes the case and the inputs that are computed, `as_seen` says which rows of the case
they give.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from fa_harness.arrays import Array, Ints
from fa_harness.case.case import CAPTURED, Case
from fa_harness.case.inputs import Inputs
from fa_harness.kernel import KV_TILE, Q_TILE, path

T = TypeVar("T", bound=Array)

KINDS = ("rows", "copies", "cells", "hidden", "padding", "sequence", "twice", "heads", "threads")

_JUNK_BYTE = 0xFF
"""Bytes that are NaN as F32, F16 or the scale of a block."""
_LARGE = {"f32": 1e30, "f16": 6e4}
"""Junk that is finite, as are the scores that it makes with a Q below 1e6."""
_MOST_CALLS = 8
_FEW_ROWS = 8
_MOST_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class Variation:
    """One call that stands for the whole case's, or for a part of it.

    kind      a, b: what they say
    rows      the query rows from a to b - 1 alone
    copies    a copies of the only row, as a batch
    cells     the keys in another order, drawn from the seed a
    hidden    other content in the cells that every row has masked
    padding   a cells more, masked, of any content
    sequence  sequence a alone
    twice     every sequence a times
    heads     the KV heads rotated by one, and so the query heads of each
    threads   a threads
    """

    kind: str
    """One of `KINDS`."""
    a: int = 0
    b: int = 0

    def __str__(self) -> str:
        a = self.a
        return {
            "rows": f"rows {a} to {self.b - 1}",
            "copies": f"{a} copies of the row",
            "cells": f"the order of cells from seed {a}",
            "hidden": "junk in masked cells",
            "padding": f"{a} cells behind",
            "sequence": f"sequence {a} alone",
            "twice": f"each sequence {a} times",
            "heads": "rotated heads",
            "threads": f"threads={a}",
        }[self.kind]


@dataclass(frozen=True, kw_only=True)
class Varied:
    """Variations that belong together."""

    name: str
    """What is varied, in words."""
    calls: tuple[Variation, ...]
    why_not: str = ""
    """Why there are no calls."""


def one_call(case: Case) -> Case:
    """Return the case of one call over all keys: without segments, and without steps of a cache."""
    return case.with_(
        segments=1, boundaries=None, segment_types=(), hot_window=0, group=1, cold_type="q8_0"
    )


def as_it_is(case: Case) -> Variation:
    """Return the variation that changes nothing."""
    return Variation(kind="threads", a=case.threads)


def variations_of(case: Case, inputs: Inputs) -> list[Varied]:
    """Return all that is varied of a case."""
    found = [_in_batches(case, size) for size in _batch_sizes(case.n_batch)]
    if case.n_batch == 1:
        for n in (2, Q_TILE):
            name = f"the row {n} times"
            found.append(Varied(name=name, calls=(Variation(kind="copies", a=n),)))
    cells = tuple(Variation(kind="cells", a=seed) for seed in range(3))
    none = "one key" if case.n_kv == 1 else ""
    found.append(Varied(name="cells permuted", calls=() if none else cells, why_not=none))
    none = "" if _hidden(inputs).any() else "no masked cell"
    hidden = (Variation(kind="hidden"),)
    found.append(Varied(name="junk in masked cells", calls=() if none else hidden, why_not=none))
    padding = tuple(Variation(kind="padding", a=n) for n in (1, KV_TILE + -case.n_kv % KV_TILE))
    found.append(Varied(name="junk in cells behind", calls=padding))
    if case.ne3 > 1:
        apart = tuple(Variation(kind="sequence", a=i) for i in range(min(case.ne3, _MOST_CALLS)))
        found.append(Varied(name="sequences apart", calls=apart))
    found.append(Varied(name="sequences twice", calls=(Variation(kind="twice", a=2),)))
    none = "one head" if case.n_head == 1 else ""
    none = none or ("ALiBi" if case.max_bias else "")
    heads = (Variation(kind="heads"),)
    found.append(Varied(name="heads rotated", calls=() if none else heads, why_not=none))
    threads = tuple(
        Variation(kind="threads", a=n) for n in range(1, _MOST_THREADS + 1) if n != case.threads
    )
    return [*found, Varied(name=f"threads 1 to {_MOST_THREADS}", calls=threads)]


def _batch_sizes(n_batch: int) -> list[int]:
    """Return the sizes of micro-batches: all of few, else those where something may change."""
    if n_batch <= _FEW_ROWS:
        return list(range(1, n_batch))
    critical = {1, 2, 3, 5, 8, n_batch // 2, n_batch - 1, Q_TILE - 1, Q_TILE, Q_TILE + 1}
    return sorted(size for size in critical if size < n_batch)


def _in_batches(case: Case, size: int) -> Varied:
    """Return micro-batches of a size: all, or some, the first and the last among them."""
    starts = range(0, case.n_batch, size)
    n = min(len(starts), _MOST_CALLS)
    chosen = [starts[i * (len(starts) - 1) // max(1, n - 1)] for i in range(n)]
    calls = [Variation(kind="rows", a=i, b=min(i + size, case.n_batch)) for i in chosen]
    return Varied(name=f"micro-batches of {size}", calls=tuple(calls))


def vary(case: Case, inputs: Inputs, variation: Variation) -> tuple[Case, Inputs]:
    """Return what is computed for a variation; `inputs` are the case's own."""
    case = one_call(case)
    if case.regime == "seed":  # its numbers are in `inputs`; it has one shape
        case = case.with_(regime="normal")
    inputs = dataclasses.replace(inputs, segments=(), model_output=None)
    changed_case, changed = _VARY[variation.kind](case, inputs, variation)
    return case.with_(**changed_case), dataclasses.replace(inputs, **changed)


def as_seen(case: Case, variation: Variation, rows: T) -> T:
    """Return rows of the case, `[ne3, n_head, n_batch, ...]`, as the variation computes them."""
    a, b = variation.a, variation.b
    seen: Any = rows
    if variation.kind == "rows":
        seen = rows[:, :, a:b]
    elif variation.kind == "copies":
        seen = np.repeat(rows, a, axis=2)
    elif variation.kind == "sequence":
        seen = rows[a : a + 1]
    elif variation.kind == "twice":
        seen = np.concatenate([rows] * a)
    elif variation.kind == "heads":
        seen = rows[:, _rotated_heads(case)]
    changed: T = seen
    return changed


Changed = tuple[dict[str, Any], dict[str, Any]]
"""Fields of the case, and arrays of the inputs."""
_OF_KEYS = ("k_raw", "v_raw", "k", "v")
"""Inputs `[ne3, n_head_kv, n_kv, ...]`."""


def _rows(case: Case, inputs: Inputs, variation: Variation) -> Changed:
    some = np.s_[:, :, variation.a : variation.b]
    mask = inputs.mask
    return {"n_batch": variation.b - variation.a}, {
        "q": inputs.q[some],
        "mask": None if mask is None else mask[some],
    }


def _copies(case: Case, inputs: Inputs, variation: Variation) -> Changed:
    n, mask = variation.a, inputs.mask
    return {"n_batch": n}, {
        "q": np.repeat(inputs.q, n, axis=2),
        "mask": None if mask is None else np.repeat(mask, n, axis=2),
    }


def _cells(case: Case, inputs: Inputs, variation: Variation) -> Changed:
    rank = np.random.Philox(key=variation.a).random_raw(case.n_kv)
    order: Ints = np.argsort(rank, kind="stable")
    mask = inputs.mask
    keys = {name: getattr(inputs, name)[:, :, order] for name in _OF_KEYS}
    return {}, {**keys, "mask": None if mask is None else mask[..., order]}


def _hidden(inputs: Inputs) -> Array:
    """Tell of each cell of each sequence whether it is masked in every row, `[ne3, n_kv]`."""
    if inputs.mask is None:
        return np.zeros((1, 1), bool)
    return np.asarray(np.isneginf(inputs.mask).all(axis=(1, 2)))


def _junk(case: Case, type_name: str, n_byte: int) -> Array:
    """Return the bytes of a row of junk.

    NaN, but in tiles: there the weight 0 of a masked cell multiplies its V, in a tile of which
    another cell is seen, and that must not be NaN or infinite. They are large numbers there.
    """
    if path(case) != "tiled":
        return np.full(n_byte, _JUNK_BYTE, np.uint8)
    dtype = {"f32": np.float32, "f16": np.float16}[type_name]
    large = np.full(n_byte // np.dtype(dtype).itemsize, _LARGE[type_name], dtype)
    large[::2] *= -1
    return large.view(np.uint8)


def _hidden_cells(case: Case, inputs: Inputs, variation: Variation) -> Changed:
    """K and V as numbers stay as they are: no row sees them."""
    is_hidden = _hidden(inputs)[:, None, :, None]
    return {}, {
        name: np.where(is_hidden, _junk(case, type_name, raw.shape[-1]), raw)
        for name, type_name, raw in (
            ("k_raw", case.type_K, inputs.k_raw),
            ("v_raw", case.type_V, inputs.v_raw),
        )
    }


def _padding(case: Case, inputs: Inputs, variation: Variation) -> Changed:
    """K and V as numbers are 0: no row sees them."""
    n, mask, fields = variation.a, inputs.mask, {}
    if mask is None:
        mask = np.zeros((case.ne3, 1, case.n_batch, case.n_kv), np.float16)
        fields = {"mask": True, "mask_kind": CAPTURED if case.captured else "zeros"}
    hidden = np.full((*mask.shape[:3], n), -np.inf, np.float16)
    longer = case.with_(n_kv=case.n_kv + n, **fields)
    arrays = {"mask": np.concatenate([mask, hidden], axis=-1)}
    for name, type_name in (("k_raw", case.type_K), ("v_raw", case.type_V)):
        raw = getattr(inputs, name)
        junk = _junk(longer, type_name, raw.shape[-1])
        junk = np.broadcast_to(junk, (*raw.shape[:2], n, raw.shape[-1]))
        arrays[name] = np.concatenate([raw, junk], axis=2)
    for name in ("k", "v"):
        array = getattr(inputs, name)
        zeros = np.zeros((*array.shape[:2], n, array.shape[-1]), np.float32)
        arrays[name] = np.concatenate([array, zeros], axis=2)
    return {"n_kv": longer.n_kv, **fields}, arrays


def _sequences(case: Case, inputs: Inputs, variation: Variation) -> Changed:
    a = variation.a

    def of(array: Array | None) -> Array | None:
        if array is None:
            return None
        return np.concatenate([array] * a) if variation.kind == "twice" else array[a : a + 1]

    ne3 = case.ne3 * a if variation.kind == "twice" else 1
    return {"ne3": ne3}, {name: of(getattr(inputs, name)) for name in ("q", *_OF_KEYS, "mask")}


def _rotated_heads(case: Case) -> Ints:
    """Return the query heads in another order: those of a group stay together."""
    heads = np.arange(case.n_head).reshape(case.n_head_kv, case.n_group)
    rotated: Ints = np.roll(heads, -1, axis=(0, 1)).reshape(-1)
    return rotated


def _heads(case: Case, inputs: Inputs, variation: Variation) -> Changed:
    order, mask, sinks = _rotated_heads(case), inputs.mask, inputs.sinks
    arrays = {name: np.roll(getattr(inputs, name), -1, axis=1) for name in _OF_KEYS}
    fields = {}
    if mask is not None:  # head h has mask h % mask_heads
        arrays["mask"] = mask[:, order % mask.shape[1]]
        fields = {"mask_heads": case.n_head}
    sinks = None if sinks is None else sinks[order]
    return fields, {**arrays, "q": inputs.q[:, order], "sinks": sinks}


def _threads(case: Case, inputs: Inputs, variation: Variation) -> Changed:
    return {"threads": variation.a}, {}


_VARY: dict[str, Callable[[Case, Inputs, Variation], Changed]] = {
    "rows": _rows,
    "copies": _copies,
    "cells": _cells,
    "hidden": _hidden_cells,
    "padding": _padding,
    "sequence": _sequences,
    "twice": _sequences,
    "heads": _heads,
    "threads": _threads,
}
