"""Facts of upstream's CPU kernel: its paths, tiles, types and thresholds, and the bits it promises.

They are those of `GGML_OP_FLASH_ATTN_EXT` in `ggml/src/ggml-cpu/ops.cpp` and of `GGML_FA_TILE_*` in
`common.h`. Whoever needs one reads it here, so an upstream that changes a tile is one edit.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from fa_harness.arrays import F32, Bools
from fa_harness.case.case import Case

Q_TILE = 64
"""Query rows of a tile. Fewer rows do not take the tiled path."""
KV_TILE = 64
"""Keys of a tile, counted from a call's first key."""
SPLIT_KV = 512
"""From this many keys on the threads share the keys of a single row."""
TILE_TYPES = ("f32", "f16")
"""Types of K and V, both the same, that the tiled path and split-KV take."""
F16_MAX = 65504.0
"""The largest F16 number, where F16 numerators end."""

FP16_DOT = "FP16_DOT"
"""CPU feature: dot products of F16 add in FP16 registers."""
FP16_MAD = "FP16_MAD_"
"""Begins the name of the CPU feature that multiplies and adds F16 V in FP16 registers; the number
of elements in a step follows."""
GROUPED = "GROUPED"
"""Feature of a library that computes the heads which share K and V together."""
GROUPED_Q8 = "GROUPED_Q8"
"""Feature of a library whose tiles, of heads together, multiply some types of K in 8 bits."""
GROUPED_BF16 = "GROUPED_BF16"
"""Feature of a library whose tiles, of heads together, multiply K of BF16 as it is."""
CHUNK = 512
"""Keys of a part of a chunked call, counted from the call's first key."""
CHUNKED_ROWS = 128
"""The most rows of a KV head, heads of its group times batch, whose keys are chunked."""
DOT_ROWS = 16
"""With fewer rows in a tile the scores are dot products, each row's own."""
SEES_HIDDEN, SEES_NAN, SEES_SOME, SEES_VISIBLE = 0.5, 0.75, 1.0, 2.0
"""What `Partial.loose` of a row says: a masked key is not finite, and the row sees none; it sees a
score of NaN; a masked key is not finite, and the row sees others; or a visible key is not finite in
a way that all kernels may treat differently."""
IN_F32 = "in F32"
"""No CPU has this feature. With it nothing but Q is rounded to less than F32, and Q as the oracle
rounds it: what a kernel may be off that is as good as can be."""

_DOT_TYPE = {
    "f32": "f32", "f16": "f16", "bf16": "bf16", "q8_0": "q8_0", "q4_0": "q8_0", "q5_0": "q8_0",
    "iq4_nl": "q8_0", "q2_0": "q8_0", "q1_0": "q8_0", "q4_1": "q8_1", "q5_1": "q8_1",
}  # fmt: skip
"""By K's type, the type that the vec path converts Q to for the dot product."""
_TILE_Q8 = ("q8_0", "q4_0")
"""Types of K that tiles multiply in 8 bits, with `GROUPED_Q8`."""


def path(case: Case, n_kv: int | None = None, features: Collection[str] = ()) -> str:
    """Return the path of one call over `n_kv` keys, or all, on a library with these features.

    Upstream's are `vec`, `tiled` and `split-kv`; those of a library that groups heads `chunked` and
    `grouped`. A state does not change it.
    """
    if GROUPED in features:
        return "chunked" if case.n_group * case.n_batch <= CHUNKED_ROWS else "grouped"
    n_kv = case.n_kv if n_kv is None else n_kv
    if case.type_K == case.type_V and case.type_K in TILE_TYPES:
        if case.n_batch == 1 and case.ne3 == 1 and n_kv >= SPLIT_KV:
            return "split-kv"
        if case.n_batch >= Q_TILE:
            return "tiled"
    return "vec"


def chain_paths(
    case: Case, features: Collection[str] = (), *, own_types: bool = False
) -> tuple[str, ...]:
    """Return the path of each call of the chain, in the cache's types or each segment's own."""
    limits = itertools.pairwise(case.segment_bounds())
    return tuple(
        path(case.of_segment(i) if own_types else case, stop - start, features)
        for i, (start, stop) in enumerate(limits)
    )


def chain_is_exact(case: Case, features: Collection[str] = ()) -> bool:
    """Tell whether the chain has to give the bits of one call.

    The vec path takes the keys one at a time, so it does not see where a call ends. The tiled path
    takes them by tiles, counted from the start of a call, and so does the grouped one. Split-KV
    sums parts of a call apart, as many as there are threads. A chunked call has parts of as many
    keys whatever the threads are, and adds them to the state in their order.
    """
    paths = {path(case, features=features), *chain_paths(case, features)}
    steps = {"tiled": KV_TILE, "grouped": KV_TILE, "chunked": CHUNK}
    [name, *others] = paths
    if not others and name in steps:
        inner = case.segment_bounds()[1:-1]
        return all(limit % steps[name] == 0 or limit == case.n_kv for limit in inner)
    return paths == {"vec"}


def keeps_bits(case: Case, varied: Case, kind: str, features: Collection[str] = ()) -> bool:
    """Tell whether one call has to give a variation of its case the same bits.

    `kind` is one of `variations.KINDS`; not on the bits of a zero's sign in tiles.

    - On another path numbers are rounded in other places, and keys in another order give sums in
      another order: nothing is promised.
    - vec: a row is computed from its own Q, mask and sink and the K and V of its head alone, a key
      at a time. A masked key is left out before K or V is read. Threads take whole rows.
    - tiled: an element of a tile's products is one chain of FMAs over hsk, then over the tile's
      keys, whatever row of the tile it is in. Threads and batches cut rows into tiles in other
      places only. A masked key adds 0 times a finite V; that may turn -0 into 0, no more. Tiles of
      keys begin at the call's first key, so cells behind the last change none of them.
    - split-kv: a part is `n_kv / threads` keys, rounded up. Both make other parts, if there are
      several.
    - chunked, grouped: as tiled, and a tile's rows are those of all heads of a group. With few rows
      a tile computes scores by dot products, and sums the weights in another order. The parts of a
      chunked call do not depend on the threads.
    """
    own, other = (path(each, features=features) for each in (case, varied))
    if kind == "cells" or own != other:
        return False
    if own == "chunked":
        return _takes_dots(case) == _takes_dots(varied)
    if own != "split-kv":
        return True
    same_keys = case.n_kv == varied.n_kv or case.threads == 1
    return same_keys and case.threads == varied.threads


def _takes_dots(case: Case) -> bool:
    return case.n_group * case.n_batch < DOT_ROWS


def n_tiles(case: Case, bounds: tuple[int, ...]) -> int:
    """Return the KV tiles that the tiled path computes for a head under a causal mask.

    A tile is computed for a tile of query rows if one of the rows sees one of its keys. The calls
    have the limits `bounds`.
    """
    total = 0
    for first in range(0, case.n_batch, Q_TILE):
        last = min(first + Q_TILE, case.n_batch) - 1
        visible = case.n_kv - case.n_batch + last + 1
        for start, stop in itertools.pairwise(bounds):
            total += math.ceil(max(0, min(stop, visible) - start) / KV_TILE)
    return total


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """What a call computes in."""

    q_type: str
    """The type that Q is rounded to."""
    f16_numerators: bool
    """VKQ is accumulated in F16."""
    f16_dot: bool = False
    """Dot products add in F16 registers."""
    f16_factors: bool = False
    """What multiplies V and VKQ is rounded to F16."""
    loose_from: float = SEES_VISIBLE
    """From which `Partial.loose` on a row may be anything."""
    is_q_known: bool = False
    """Q has the values that the oracle rounds it to, next to a tie, too."""
    n_partials: int = 0
    """Parts that are accumulated apart and then added; 0 where keys are added to the state."""

    @property
    def rescale_roundings(self) -> int:
        """How often the sum before a new maximum is rounded there."""
        return 2 if self.f16_factors else 1


def arithmetic(case: Case, path: str, features: tuple[str, ...]) -> Arithmetic:
    """Return what a path computes a case in, on CPU features as `Ggml.features` names them."""
    in_8_bits = GROUPED_Q8 in features and case.type_K in _TILE_Q8
    in_bf16 = GROUPED_BF16 in features and case.type_K == "bf16"
    tiles = Arithmetic(
        q_type="q8" if in_8_bits else "bf16" if in_bf16 else "f32",
        f16_numerators=False,
        loose_from=SEES_HIDDEN,
        is_q_known=IN_F32 in features,
    )
    if path in ("tiled", "grouped"):
        return tiles
    if path == "chunked":
        n_chunks = math.ceil(case.n_kv / CHUNK)
        chunked = replace(tiles, n_partials=max(1, n_chunks))
        if _takes_dots(case):
            # a row without keys is left out, and so is a key that no row of the tile sees
            is_shared = case.n_batch == 1 and case.mask_heads == 1
            loose_from = SEES_VISIBLE if is_shared else SEES_SOME
            return replace(chunked, q_type="f32", loose_from=loose_from)
        return chunked
    n_partials = case.threads if path == "split-kv" else 0
    if IN_F32 in features:
        return Arithmetic(
            q_type=_DOT_TYPE[case.type_K],
            f16_numerators=False,
            is_q_known=True,
            n_partials=n_partials,
        )
    return Arithmetic(
        q_type=_DOT_TYPE[case.type_K],
        f16_numerators=case.type_V == "f16",
        f16_dot=case.type_K == "f16" and FP16_DOT in features,
        f16_factors=case.type_V == "f16" and case.hsv_padded >= _f16_step(features),
        n_partials=n_partials,
    )


def goes_on_in_f16(state: F32) -> Bools:
    """Tell of each row of a state whether a call with an F16 V continues it in F16.

    Fresh rows do, and those whose numerators are all F16 numbers.
    """
    vkq = np.ascontiguousarray(state[..., 2:])
    with np.errstate(over="ignore"):
        again = vkq.astype(np.float16).astype(np.float32)
    is_f16 = again.view(np.uint32) == vkq.view(np.uint32)
    fresh_or_f16: Bools = np.isneginf(state[..., 0]) | is_f16.all(axis=-1)
    return fresh_or_f16


def why_work_size(work_size: dict[str, int]) -> str | None:
    """Return what is wrong with the bytes of work memory planned by mode, None where nothing is.

    The state needs none: a call with it plans what one without does.
    """
    without = work_size.get("standard")
    with_ = work_size.get("full_state", without)
    if with_ == without:
        return None
    return f"the work size is {with_} bytes with a state, {without} without"


@functools.cache
def _f16_step(features: tuple[str, ...]) -> float:
    """Return from how many elements on FP16 multiplies and adds; what is left over is done in F32.

    Nothing is told apart within a row: all of it then counts as done in FP16.
    """
    steps = [name.removeprefix(FP16_MAD) for name in features if name.startswith(FP16_MAD)]
    return int(steps[0]) if steps else math.inf
