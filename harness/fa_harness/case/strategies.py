"""What a case may be, as hypothesis strategies: valid by construction, a few milliseconds each.

A case gets a budget of work first, and a shape that fits into it. So the mean case is cheap, and
long caches and large heads still come.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import hypothesis
from hypothesis import strategies as st

from fa_harness.case.case import MASK_KINDS, REGIMES, Case
from fa_harness.case.quants import FLOAT_TYPES, TYPES, types_in_blocks
from fa_harness.case.regimes import CENTRED
from fa_harness.kernel import KV_TILE, Q_TILE, SPLIT_KV, TILE_TYPES

Fields = dict[str, Any]
Draw = st.DrawFn

_BYTES = 4096
"""More than a case is drawn from."""
_BUDGETS = (*(500_000,) * 8, *(1_500_000,) * 6, *(4_000_000,) * 4, *(12_000_000,) * 2)
"""The most `work` of a case: about 4 to 100 ms, beside some for each segment."""
_LONG_BUDGET = 20_000_000
"""Of a case with a long cache."""
_SCORE_WORK = 64
"""A score of a row, whatever the head size."""
_LEAST_SIZE = 32
"""Any case may have this sum of head sizes."""
_KEY_WORK = 4
"""An element of K or V is drawn, encoded, decoded and copied."""
_RESULT_WORK = 50
"""An element of a segment's result is compared some ten times, in float64."""

_KINDS = (*("row", "rows", "tiled", "split", "mixed", "rolling") * 5, "long")
_REGIMES = tuple(regime for regime in REGIMES if regime != "seed")
_MOST_F16_KEYS = 96
"""Keys that an F16 accumulator adds, if V has one sign: of more, what it may round away is more
than a lost segment changes."""
_PERMUTATIONS = tuple((0, *rest) for rest in itertools.permutations((1, 2, 3)))
_THREADS = (*(1,) * 130, *(2,) * 56, *range(3, 17))
"""More than two are few: where a machine has fewer cores, a graph takes some scheduler's ticks."""
_MOST_SEGMENTS = 9
_FEW_SEGMENTS = 3
"""The most where there are more than two threads."""
_HEADS = (1, 2, 6, 12)
"""For so many heads of all sequences the budget has room. More come, where the shape is smaller."""
_HEAD_SIZES = ((64, 64), (128, 128), (80, 80), (40, 40), (256, 256), (192, 128), *((576, 512),) * 3)
_ANY_HEAD_SIZE = 200
"""The largest that no model need have. All remainders by 8, 16, 32 and 64 are below."""
_SCALES = (0.125, 0.25, 0.5, 0.75, 1.5, 2.0, 4.0)
"""In units of 1/sqrt(hsk)."""
_LONGEST = 1 << 16


class _Limits(NamedTuple):
    """What a case may cost."""

    work: int
    segments: int


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


def work(case: Case) -> int:
    """Return what a case costs, in units of about 8 ns, beside some milliseconds for each segment.

    Measured for the worker, the oracle and the comparisons together. Few keys count as a tile.
    """
    rows, size = case.n_head * case.n_batch * case.ne3, case.hsk + case.hsv
    of_scores = rows * max(case.n_kv, KV_TILE) * (size + _SCORE_WORK)
    of_keys = _KEY_WORK * case.n_head_kv * case.ne3 * case.n_kv * size
    return of_scores + of_keys + _RESULT_WORK * rows * case.hsv * case.segments


@st.composite
def cases(draw: Draw) -> Case:
    """Cases of every path, of segments with types and of rolling caches, about as many of each.

    One in some dozens has a long cache, on any path.
    """
    kind = draw(st.sampled_from(_KINDS))
    threads = draw(st.sampled_from(_THREADS))
    budget = _LONG_BUDGET if kind == "long" else draw(st.sampled_from(_BUDGETS))
    limits = _Limits(budget, _MOST_SEGMENTS if threads <= 2 else _FEW_SEGMENTS)
    of_head = limits._replace(work=budget // draw(st.sampled_from(_HEADS)))
    if kind == "long":
        fields = draw(_long(limits))
    elif kind == "mixed":
        fields = draw(_mixed(of_head))
    elif kind == "rolling":
        fields = draw(_rolling(limits))
    else:
        fields = draw(_of_path(kind, of_head))
    return draw(_case({"threads": threads, **fields}, limits))


def _around(*limits: int) -> tuple[int, ...]:
    """Return each limit, the number below it and the one above."""
    return tuple(limit + off for limit in limits for off in (-1, 0, 1))


_FEW_ROWS = st.one_of(st.integers(2, 12), st.sampled_from((*_around(16, 32)[:-1], 48, Q_TILE - 1)))
_TILED_ROWS = st.one_of(st.sampled_from(_around(Q_TILE, 2 * Q_TILE)[1:]), st.integers(Q_TILE, 140))
_QUARTERS = st.integers(1, 160).map(lambda n: n / 4)
_FLOATS = st.sampled_from(TILE_TYPES).map(lambda type_: (type_, type_))
_ANY_TYPES = st.one_of(
    st.sampled_from(tuple(TYPES)).map(lambda type_: (type_, type_)),
    st.tuples(*[st.sampled_from(tuple(TYPES))] * 2),
)


@st.composite
def _of_path(draw: Draw, kind: str, limits: _Limits) -> Fields:
    """One row or some on the vec path, tiles, or one row of a cache that threads share."""
    rows = {"rows": _FEW_ROWS, "tiled": _TILED_ROWS}.get(kind, st.just(1))
    keys = _keys_to_split if kind == "split" else _few_keys
    shape = draw(_shape(limits, rows, keys))
    types = draw(_types(_FLOATS if kind in ("tiled", "split") else _ANY_TYPES, shape))
    return {**shape, **types, **({"ne3": 1} if kind == "split" else {})}


@st.composite
def _long(draw: Draw, limits: _Limits) -> Fields:
    """A long cache of small heads, on any path."""
    of_head = limits._replace(work=limits.work // draw(st.integers(1, 3)))
    rows = st.one_of(st.just(1), _FEW_ROWS, _TILED_ROWS)
    shape = draw(_shape(of_head, rows, _many_keys, keys_first=True))
    return {**shape, **draw(_types(st.one_of(_FLOATS, _ANY_TYPES), shape))}


@st.composite
def _mixed(draw: Draw, limits: _Limits) -> Fields:
    """Segments of types of their own; the long ones, and those of many rows, change the path."""
    rows, keys = draw(
        st.sampled_from(
            ((_FEW_ROWS, _few_keys), (_TILED_ROWS, _few_keys), (st.just(1), _keys_to_split))
        )
    )
    shape = draw(_shape(limits, rows, keys, _sizes_in_blocks))
    cut = draw(_cut(shape, limits.segments))
    one = st.sampled_from(types_in_blocks(shape["hsk"], shape["hsv"]))
    types = st.one_of(one, st.tuples(one, one).map("/".join))
    chosen = draw(st.lists(types, min_size=1, max_size=min(cut["segments"], 6)))
    return {**shape, **cut, "segment_types": tuple(chosen), "type_K": "f32", "type_V": "f32"}


@st.composite
def _rolling(draw: Draw, limits: _Limits) -> Fields:
    """A step for each key, so there are few keys, and no more threads than most machines have."""
    n_kv = draw(st.integers(2, 40))
    hot_window = draw(st.integers(1, n_kv - 1))  # so that some get cold
    sizes = draw(_sizes_in_blocks(_most_size(limits, n_kv, n_kv)))
    fields = {
        "n_batch": n_kv,
        "n_kv": n_kv,
        "mask_kind": "causal",
        "hot_window": hot_window,
        "group": draw(st.integers(1, hot_window)),
        "cold_type": draw(st.sampled_from(types_in_blocks(sizes["hsk"], sizes["hsv"]))),
        "threads": draw(st.sampled_from((1, 1, 2))),
        "segments": 1,
        "boundaries": None,
    }
    return {**sizes, **draw(_types(_ANY_TYPES, sizes)), "v_is_view_of_k": False, **fields}


@st.composite
def _case(draw: Draw, fields: Fields, limits: _Limits) -> Case:
    """Draw what the fields leave open."""
    n_batch, n_kv = fields["n_batch"], fields["n_kv"]
    of_head = max(n_kv, KV_TILE) * _work_of_key(n_batch, fields["hsk"] + fields["hsv"])
    most = max(1, limits.work // of_head)
    ne3 = fields.get("ne3") or draw(st.integers(1, min(3, most)))
    group = draw(st.integers(1, min(8, most // ne3)))
    n_head_kv = draw(st.integers(1, min(7, most // (ne3 * group))))
    if "segments" not in fields:
        of_segment = _RESULT_WORK * group * n_head_kv * ne3 * n_batch * fields["hsv"]
        n_segment = min(max(2, limits.work // of_segment), limits.segments)
        fields = {**fields, **draw(_cut(fields, n_segment))}
    drawn = {
        "n_head_kv": n_head_kv,
        "n_group": group,
        "ne3": ne3,
        **draw(_mask(n_head=group * n_head_kv, n_kv=n_kv, kind=fields["mask_kind"])),
        "sinks": draw(st.booleans()),
        "logit_softcap": draw(_often_off(_QUARTERS)),
        "kq_scale": draw(_often_off(st.sampled_from(_SCALES))) / fields["hsk"] ** 0.5,
        "prec": draw(st.sampled_from(("f32", "def"))),
        "permute": draw(st.sampled_from(_PERMUTATIONS)),
        "kv_view": draw(st.booleans()),
        "regime": draw(st.sampled_from(_REGIMES)),
        "seed": draw(st.integers(0, 9999)),
    }
    fields = {**drawn, **fields}
    if fields["regime"] == "nan" and not _has_nan(fields):
        fields["regime"] = "normal"
    return Case(**(_in_range_of_f16(fields) if _adds_in_f16(fields) else fields))


def _has_nan(fields: Fields) -> bool:
    """Tell whether the types of a case have NaN, and its cache does not roll."""
    names = [name for types in fields.get("segment_types", ()) for name in types.split("/")]
    names += [fields["type_K"], fields["type_V"]]
    return set(names) <= set(FLOAT_TYPES) and not fields.get("hot_window")


def _adds_in_f16(fields: Fields) -> bool:
    """Tell whether a call of the case may accumulate in F16."""
    of_segments = [types.split("/")[-1] for types in fields.get("segment_types", ())]
    types = {fields["type_V"], fields.get("cold_type", ""), *of_segments}
    is_tiled = fields["n_batch"] >= Q_TILE and fields["type_K"] == "f16"
    return "f16" in types and not is_tiled


def _in_range_of_f16(fields: Fields) -> Fields:
    """Return the fields without what F16 numerators are no good for.

    Where V has one sign, the roundings of many keys may hide all faults. In regime `huge` the
    numerators stay finite only if pairs of keys, whose V then have opposite signs, have the scores
    that they are made for.
    """
    if fields["n_kv"] > _MOST_F16_KEYS:
        fields = {**fields, "v_is_view_of_k": False}
        if fields["regime"] not in CENTRED:
            fields |= {"regime": "normal"}
    if fields["regime"] == "huge":
        fields = {**fields, "kq_scale": 0.0, "logit_softcap": 0.0, "max_bias": 0.0}
        if fields["type_V"] != "f16":
            fields |= {"regime": "spiky"}
    return fields


@st.composite
def _shape(
    draw: Draw,
    limits: _Limits,
    rows: st.SearchStrategy[int],
    keys: Callable[[int], st.SearchStrategy[int]],
    sizes: Callable[[int], st.SearchStrategy[Fields]] | None = None,
    *,
    keys_first: bool = False,
) -> Fields:
    """Rows, a kind of mask, and keys and head sizes that the budget has room for.

    Keys or sizes come first, and take as much of it as they like.
    """
    sizes = sizes or _head_sizes
    n_batch = draw(rows)
    least = n_batch * KV_TILE * (_SCORE_WORK + _LEAST_SIZE)  # else all of many rows were tiny
    limits = limits._replace(work=max(limits.work, least))
    fields = {"n_batch": n_batch, "mask_kind": draw(st.sampled_from(MASK_KINDS))}
    if keys_first or draw(st.booleans()):
        n_kv = draw(keys(limits.work // _work_of_key(n_batch, 2)))
        return {**fields, **draw(sizes(_most_size(limits, n_batch, n_kv))), "n_kv": n_kv}
    size = draw(sizes(_most_size(limits, n_batch, KV_TILE)))
    n_kv = draw(keys(limits.work // _work_of_key(n_batch, sum(size.values()))))
    return {**fields, **size, "n_kv": n_kv}


def _most_size(limits: _Limits, n_batch: int, n_kv: int) -> int:
    """Return the largest sum of head sizes for which the budget has room."""
    of_key = limits.work // max(n_kv, KV_TILE)
    return max(2, (of_key - _SCORE_WORK * n_batch) // (n_batch + _KEY_WORK))


def _work_of_key(n_batch: int, size: int) -> int:
    return n_batch * (size + _SCORE_WORK) + _KEY_WORK * size


def _few_keys(most: int) -> st.SearchStrategy[int]:
    """Up to some hundreds, some about the end of a tile."""
    most = max(2, min(most, 400))
    about_tiles = (1, 2, *_around(KV_TILE, 2 * KV_TILE, 4 * KV_TILE))
    return st.one_of(st.sampled_from([n for n in about_tiles if n <= most]), st.integers(2, most))


def _keys_to_split(most: int) -> st.SearchStrategy[int]:
    """As many as make the threads share them, few more at most."""
    some = st.sampled_from((SPLIT_KV, SPLIT_KV + 1, 2 * SPLIT_KV))
    return st.one_of(some, st.integers(SPLIT_KV, 1300))


def _many_keys(most: int) -> st.SearchStrategy[int]:
    """From 512 on; of any number of digits about as many."""
    critical = (*_around(SPLIT_KV, 1024, 4096, 8192), 10_000, 32_768, _LONGEST - 1, _LONGEST)
    powers = range(SPLIT_KV.bit_length() - 1, min(most, _LONGEST).bit_length() - 1)
    some = st.sampled_from([n for n in critical if n <= most])
    return st.one_of(some, *(st.integers(2**n, 2 ** (n + 1)) for n in powers))


@st.composite
def _mask(draw: Draw, *, n_head: int, n_kv: int, kind: str) -> Fields:
    if kind == "none":
        return {"mask": False, "mask_kind": kind}
    fewest = min(2, n_kv)  # one visible key would be in one segment
    return {
        "mask_kind": kind,
        "mask_heads": draw(st.sampled_from([n for n in range(1, n_head + 1) if n_head % n == 0])),
        "n_kv_max": draw(st.integers(fewest, n_kv)) if kind == "sparse" else 0,
        "max_bias": draw(_often_off(st.one_of(st.sampled_from((0.25, 1.0)), _QUARTERS))),
    }


@st.composite
def _cut(draw: Draw, fields: Fields, most: int) -> Fields:
    """At most so many segments: equal ones, random ones, or listed, of which some may be empty.

    Listed ones leave two with keys that a row sees, where there are as many.
    """
    n_kv = fields["n_kv"]
    # the masks that hide the first keys from all rows, and how many
    n_hidden = {"leading": max(1, n_kv // 4), "masked_segment": int(n_kv == 2)}
    first = n_hidden.get(fields["mask_kind"], 0) + 1
    if first >= n_kv:
        return {"segments": 1, "boundaries": None}
    how = draw(st.sampled_from(("equal", "random", "listed", "listed")))
    if how != "listed":
        boundaries = "random" if how == "random" else None
        return {"segments": draw(st.integers(1, min(n_kv, most))), "boundaries": boundaries}
    of_tiles = st.integers(0, n_kv // KV_TILE).map(lambda n: n * KV_TILE)
    any_key = st.one_of(st.integers(0, n_kv), of_tiles, st.sampled_from((0, n_kv)))
    more = draw(st.lists(any_key, max_size=min(most - 2, 5)))
    limits = sorted([draw(st.integers(first, n_kv - 1)), *more])
    return {"segments": len(limits) + 1, "boundaries": tuple(limits)}


@st.composite
def _types(draw: Draw, types: st.SearchStrategy[tuple[str, str]], sizes: Fields) -> Fields:
    """Types of K and V, and that V lies in K, where it can."""
    type_k, type_v = draw(types)
    can_lie_in_k = type_k == type_v and sizes["hsv"] <= sizes["hsk"]
    lies_in_k = can_lie_in_k and draw(st.sampled_from((False, False, False, True)))
    return {"type_K": type_k, "type_V": type_v, "v_is_view_of_k": lies_in_k}


@st.composite
def _head_sizes(draw: Draw, most: int) -> Fields:
    """Head sizes of models, and any others, K's and V's the same or not; `most` is their sum."""
    of_models = [sizes for sizes in _HEAD_SIZES if sum(sizes) <= most]
    any_size = st.integers(1, min(_ANY_HEAD_SIZE, most // 2))
    any_sizes = [any_size.map(lambda n: (n, n)), st.tuples(any_size, any_size)]
    hsk, hsv = draw(st.one_of(*any_sizes, *([st.sampled_from(of_models)] if of_models else [])))
    return {"hsk": hsk, "hsv": hsv}


@st.composite
def _sizes_in_blocks(draw: Draw, most: int) -> Fields:
    """Head sizes of whole blocks of some types, or any; `most` is their sum."""
    in_blocks = [n for n in (32, 64, 96, 128, 192, 256) if 2 * n <= most]
    if not in_blocks or draw(st.sampled_from((False, False, False, True))):
        return draw(_head_sizes(most))
    sizes = st.sampled_from(in_blocks)
    hsk = draw(sizes)
    return {"hsk": hsk, "hsv": draw(st.one_of(st.just(hsk), sizes))}


def _often_off(option: st.SearchStrategy[float]) -> st.SearchStrategy[float]:
    return st.one_of(st.just(0.0), st.just(0.0), option)
