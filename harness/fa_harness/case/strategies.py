"""What a case may be, as hypothesis strategies: valid by construction, a few milliseconds each."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import hypothesis
from hypothesis import strategies as st

from fa_harness.case.case import MASK_KINDS, REGIMES, Case
from fa_harness.case.quants import TYPES, types_in_blocks
from fa_harness.kernel import KV_TILE, Q_TILE, SPLIT_KV

Fields = dict[str, Any]
Draw = st.DrawFn

_BYTES = 4096
"""More than a case is drawn from."""
_MOST_PRODUCTS = 3_000_000
"""Of a case: heads x sequences x rows x keys x (hsk + hsv). Few keys count as a tile of them, since
such a case costs what its outputs do."""

_FLOATS = st.sampled_from(("f16", "f32")).map(lambda type_: {"type_K": type_, "type_V": type_})
_REGIMES = tuple(regime for regime in REGIMES if regime != "seed")
_PERMUTATIONS = tuple((0, *rest) for rest in itertools.permutations((1, 2, 3)))
_THREADS = (*(1,) * 30, *(2,) * 16, 3, 3, 5, 8)
"""Few are more than most machines have cores: there a graph takes some scheduler's ticks."""
_HEAD_SIZES = ((64, 64), (128, 128), (80, 80), (40, 40), (256, 256), (192, 128), (576, 512))


def draw_cases(seed: int) -> Iterator[Case]:
    """Yield cases without end, each once; the same seed gives the same ones.

    Each comes from bytes of its own: the engine that makes examples of a property would vary one
    many times before it draws another, and mix in numbers that it finds in this package.
    """
    drawn: list[Case] = []

    @hypothesis.settings(database=None, deadline=None)
    @hypothesis.given(cases())
    def collect(case: Case) -> None:
        drawn.append(case)

    draw_from = collect.hypothesis.fuzz_one_input  # type: ignore[attr-defined]
    random_bytes = random.Random(seed).randbytes
    seen: set[Case] = set()
    while True:
        draw_from(random_bytes(_BYTES))
        for case in drawn:  # none where the bytes did not last
            if case not in seen:
                seen.add(case)
                yield case
        drawn.clear()


def cases() -> st.SearchStrategy[Case]:
    """Cases of every path, of segments with types and of rolling caches, about as many of each."""
    return st.one_of(
        _vec(st.just(1), most_keys=400),
        _vec(st.integers(2, 12), most_keys=200),
        _tiled(),
        _split_kv(),
        _mixed(),
        _rolling(),
    )


def _around(*limits: int) -> tuple[int, ...]:
    """Return each limit, the number below it and the one above."""
    return tuple(limit + off for limit in limits for off in (-1, 0, 1))


@st.composite
def _vec(draw: Draw, rows: st.SearchStrategy[int], *, most_keys: int) -> Case:
    """One row or some on the vec path."""
    return draw(_case({**draw(_types()), **draw(_shape(rows, most_keys=most_keys))}))


@st.composite
def _tiled(draw: Draw) -> Case:
    types = draw(_FLOATS)
    rows = st.one_of(st.sampled_from(_around(Q_TILE, 2 * Q_TILE)[1:]), st.integers(Q_TILE, 140))
    shape = draw(_shape(rows, most_keys=200))
    return draw(_case({**types, **shape}))


@st.composite
def _split_kv(draw: Draw) -> Case:
    types = draw(_FLOATS)
    some = st.sampled_from((SPLIT_KV, SPLIT_KV + 1, 2 * SPLIT_KV))
    n_kv = draw(st.one_of(some, st.integers(SPLIT_KV, 1300)))
    return draw(_case({**types, **draw(_head_sizes()), "n_batch": 1, "n_kv": n_kv}, sequences=1))


@st.composite
def _mixed(draw: Draw) -> Case:
    """Segments of types of their own; the long ones, and those of many rows, change the path."""
    sizes = _sizes_in_blocks()
    few_rows = _shape(st.integers(1, 8), sizes, most_keys=200)
    many_rows = _shape(st.integers(Q_TILE, Q_TILE + 16), sizes, most_keys=200)
    long = st.builds(
        lambda size, kv: {**size, "n_batch": 1, "n_kv": kv}, sizes, st.integers(600, 1200)
    )
    shape: Fields = draw(st.one_of(few_rows, many_rows, long))
    cut = draw(_cut(shape["n_kv"]))
    one = st.sampled_from(types_in_blocks(shape["hsk"], shape["hsv"]))
    types = st.one_of(one, st.tuples(one, one).map("/".join))
    chosen = draw(st.lists(types, min_size=1, max_size=min(cut["segments"], 6)))
    fields = {"segment_types": tuple(chosen), "type_K": "f32", "type_V": "f32"}
    return draw(_case({**fields, **shape, **cut}))


@st.composite
def _rolling(draw: Draw) -> Case:
    """A step for each key, so there are few keys, and no more threads than most machines have."""
    n_kv = draw(st.integers(2, 40))
    hot_window = draw(st.integers(1, n_kv + 1))
    sizes = draw(_sizes_in_blocks())
    fields = {
        "n_batch": n_kv,
        "n_kv": n_kv,
        "mask_kind": "causal",
        "hot_window": hot_window,
        "group": draw(st.integers(1, hot_window)),
        "cold_type": draw(st.sampled_from(types_in_blocks(*sizes.values()))),
        "threads": draw(st.sampled_from((1, 1, 2))),
        "segments": 1,
    }
    return draw(_case({**draw(_types(in_k=False)), **sizes, **fields}))


@st.composite
def _shape(
    draw: Draw,
    rows: st.SearchStrategy[int],
    sizes: st.SearchStrategy[Fields] | None = None,
    *,
    most_keys: int,
) -> Fields:
    """Head sizes, rows, and as many keys as a head may have of them, some about a tile's end."""
    shape = {**draw(_head_sizes() if sizes is None else sizes), "n_batch": draw(rows)}
    most = min(most_keys, _MOST_PRODUCTS // (shape["n_batch"] * (shape["hsk"] + shape["hsv"])))
    about_tiles = [n for n in (1, 2, *_around(KV_TILE, 2 * KV_TILE)) if n <= most]
    n_kv = draw(st.one_of(st.sampled_from(about_tiles), st.integers(2, most)))
    return {**shape, "n_kv": n_kv}


@st.composite
def _case(draw: Draw, fields: Fields, *, sequences: int = 3) -> Case:
    """Draw what the fields leave open, with up to so many sequences."""
    products = fields["n_batch"] * max(fields["n_kv"], KV_TILE) * (fields["hsk"] + fields["hsv"])
    most = max(1, _MOST_PRODUCTS // products)
    group = draw(st.integers(1, min(8, most)))
    n_head_kv = draw(st.integers(1, min(4, most // group)))
    ne3 = draw(st.integers(1, max(1, min(sequences, most // (group * n_head_kv)))))
    drawn = {
        "n_head_kv": n_head_kv,
        "n_group": group,
        "ne3": ne3,
        **draw(_mask(n_head=group * n_head_kv, n_kv=fields["n_kv"], kind=fields.get("mask_kind"))),
        **draw(_cut(fields["n_kv"])),
        "sinks": draw(st.booleans()),
        "logit_softcap": draw(_often_off(st.integers(1, 60).map(float))),
        "prec": draw(st.sampled_from(("f32", "def"))),
        "permute": draw(st.sampled_from(_PERMUTATIONS)),
        "kv_view": draw(st.booleans()),
        "regime": draw(st.sampled_from(_REGIMES)),
        "seed": draw(st.integers(0, 9999)),
        "threads": draw(st.sampled_from(_THREADS)),
    }
    return Case(**{**drawn, **fields})


@st.composite
def _mask(draw: Draw, *, n_head: int, n_kv: int, kind: str | None) -> Fields:
    kind = kind or draw(st.sampled_from(MASK_KINDS))
    if kind == "none":
        return {"mask": False, "mask_kind": kind}
    return {
        "mask_kind": kind,
        "mask_heads": draw(st.sampled_from([n for n in range(1, n_head + 1) if n_head % n == 0])),
        "n_kv_max": draw(st.integers(1, n_kv)) if kind == "sparse" else 0,
        "max_bias": draw(_often_off(st.integers(1, 16).map(float))),
    }


@st.composite
def _cut(draw: Draw, n_kv: int) -> Fields:
    """Segments: equal ones, random ones, or listed limits, which may make empty ones."""
    how = draw(st.sampled_from(("equal", "random", "listed", "listed")))
    if how != "listed":
        boundaries = "random" if how == "random" else None
        return {"segments": draw(st.integers(1, min(n_kv, 9))), "boundaries": boundaries}
    of_tiles = st.integers(0, n_kv // KV_TILE).map(lambda n: n * KV_TILE)
    limits = draw(st.lists(st.one_of(st.integers(0, n_kv), of_tiles), min_size=1, max_size=6))
    return {"segments": len(limits) + 1, "boundaries": tuple(sorted(limits))}


@st.composite
def _types(draw: Draw, *, in_k: bool = True) -> Fields:
    """Types of K and V, equal ones as often as not, and whether V lies in K where it can."""
    type_k = draw(st.sampled_from(tuple(TYPES)))
    type_v = draw(st.one_of(st.just(type_k), st.sampled_from(tuple(TYPES))))
    fields: Fields = {"type_K": type_k, "type_V": type_v}
    if in_k and type_k == type_v:
        fields["v_is_view_of_k"] = draw(st.sampled_from((False, False, False, True)))
    return fields


@st.composite
def _head_sizes(draw: Draw) -> Fields:
    """Head sizes of models, and any others; that of V is no larger than that of K."""
    odd = st.integers(1, 130).map(lambda n: (n, n))
    unequal = st.lists(st.integers(1, 130), min_size=2, max_size=2).map(
        lambda sizes: tuple(sorted(sizes, reverse=True))
    )
    hsk, hsv = draw(st.one_of(st.sampled_from(_HEAD_SIZES), odd, unequal))
    return {"hsk": hsk, "hsv": hsv}


@st.composite
def _sizes_in_blocks(draw: Draw) -> Fields:
    """Head sizes of whole blocks of some types."""
    sizes = st.sampled_from((32, 64, 96, 128, 192, 256))
    hsk = draw(sizes)
    return {"hsk": hsk, "hsv": draw(st.one_of(st.just(hsk), sizes))}


def _often_off(option: st.SearchStrategy[float]) -> st.SearchStrategy[float]:
    return st.one_of(st.just(0.0), st.just(0.0), option)
