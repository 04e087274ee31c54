"""Named lists of cases."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fa_harness.case import design
from fa_harness.case.case import REGIMES, Case
from fa_harness.case.case_file import read_cases
from fa_harness.errors import UsageError
from fa_harness.project import find_project
from fa_harness.stacks import names_in

Fields = dict[str, Any]

# listed boundaries, so that --segments leaves its two keys alone
SEED = Case(hsk=4, hsv=4, n_head_kv=1, n_kv=2, n_batch=1, boundaries=(1,), regime="seed")

_DECODE: Fields = {
    "hsk": 64, "hsv": 64, "n_head_kv": 2, "n_group": 4, "ne3": 1, "n_batch": 1, "threads": 2,
}  # fmt: skip
_PREFILL: Fields = {**_DECODE, "n_batch": 33, "mask_kind": "causal"}
_ROLLING: Fields = {
    **_DECODE, "mask_kind": "causal", "hot_window": 16, "group": 4, "threads": 1,
}  # fmt: skip

_REGIMES = tuple(regime for regime in REGIMES if regime not in ("nan", "few", "seed"))
"""The regimes of any shape and type that suites run."""

_TYPES = ("f16", "f32", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl")

_TYPED_CHAINS: tuple[tuple[str, ...], ...] = (
    ("q4_0", "q8_0", "f16"),
    ("f16", "q8_0"),
    ("f32", "f16"),
    ("q8_0", "f32/f16"),
    ("bf16", "f16"),
    ("f16", "q4_0", "f16"),
    ("q8_0/f16", "f16/q8_0"),
    ("q4_1", "q5_0", "q5_1", "iq4_nl", "f16"),
)

_OPTIONS: tuple[Fields, ...] = (
    {},
    {"mask": False},
    {"sinks": True},
    {"mask_kind": "causal"},
    {"mask_kind": "leading"},
    {"mask_kind": "masked_segment"},
    {"max_bias": 8.0},
    {"logit_softcap": 10.0},
)
"""What a path must bear beside types and cuts."""


def suite(name: str) -> list[Case]:
    """Return the cases of a suite: one of ours, or one that a series of the project has."""
    if name in SUITES:
        return SUITES[name]()
    file = _of_series().get(name)
    if file is None:
        raise UsageError(f"suite {name!r} is unknown; there are {', '.join(suite_names())}")
    return read_cases(file)


def suite_names() -> tuple[str, ...]:
    """Return the names of all suites that there are."""
    return (*SUITES, *(name for name in _of_series() if name not in SUITES))


def _of_series() -> dict[str, Path]:
    """Return the files with cases that series have, by name; the default stack goes first."""
    project = find_project()
    names = (*reversed(project.stack), *names_in(project.series_folders))
    found: dict[str, Path] = {}
    for series in dict.fromkeys(names):
        for file in sorted(project.folder_of(series).glob("suites/*.txt")):
            found.setdefault(file.stem, file)
    return found


def _case(shape: Fields, types: str = "f16", **changes: Any) -> Case:
    """Return a case of a shape with changes; `types` are those of K and V, such as `q8_0/f16`."""
    type_k, _, type_v = types.partition("/")
    usual = {"regime": "normal", "type_K": type_k, "type_V": type_v or type_k}
    return Case(**{**usual, **shape, **changes})


def _typed(types: tuple[str, ...]) -> Fields:
    """Return the fields of a case whose segments have these types."""
    return {"segment_types": types, "type_K": "f32", "type_V": "f32"}


def _of_turn(regime: str, turn: int) -> Fields:
    """Return a regime with the seed and the options of the n-th case: they go round."""
    if regime == "huge":
        # A soft cap, say, lets F16 numerators overflow; with some seeds no segment but the last has
        # any weight.
        return {"regime": regime, "seed": 4}
    return {"regime": regime, "seed": turn, **_OPTIONS[turn % len(_OPTIONS)]}


def _threads(turn: int) -> int:
    """Return 1 or 2, long in a row the same: cases of one number of threads run side by side."""
    return 1 + turn // 40 % 2


def _seed() -> list[Case]:
    return [SEED]


def _smoke() -> list[Case]:
    """A case or two for each kind of fault, all small."""
    decode = {**_DECODE, "n_kv": 160, "segments": 3}
    rows = {**decode, "n_batch": 5, "n_head_kv": 3, "n_group": 2, "ne3": 2, "n_kv": 97}
    return [
        SEED,
        *(_case(decode, regime=regime) for regime in ("normal", "rising", "falling", "spiky")),
        _case(rows, "f32"),
        _case(rows, "q8_0/q4_0", regime="outlier"),
        _case(rows, "bf16/f16", regime="huge"),
        # 18 rows of a KV head, which a library that groups heads takes as a tile
        _case(rows, "q8_0", n_batch=9),
        _case(rows, "q4_0/f16", n_batch=9, regime="outlier"),
        _case(rows, regime="offset", mask_kind="leading"),
        _case(rows, regime="ties", max_bias=8.0, logit_softcap=5.0, mask_heads=6),
        _case(rows, sinks=True, permute=(0, 2, 1, 3)),
        _case(rows, regime="constructed", mask=False),
        _case(rows, segments=4, boundaries=(0, 1, 90), regime="rising"),
        _case(decode, n_kv=601, regime="spiky"),
        _case(decode, n_kv=1201, boundaries=(20, 620)),
        _case(decode, n_batch=70, n_kv=150, mask_kind="causal", sinks=True),
        _case(decode, n_batch=66, n_kv=100, mask=False, logit_softcap=5.0),
        _case(
            {**decode, "n_head_kv": 1, "n_group": 16, "n_batch": 2, "n_kv": 130},
            hsk=192, hsv=128, v_is_view_of_k=True,
        ),
        # a segment that is all masked, one that is empty, and each option, on the tiled path
        _case(
            {**rows, "n_batch": 66, "n_kv": 99, "segments": 4}, boundaries=(33, 66, 66),
            mask_kind="masked_segment", mask_heads=6, max_bias=8.0, logit_softcap=5.0,
        ),
        # listed boundaries where types go with segments, so that --segments leaves them alone
        _case(rows, boundaries=(32, 65), **_typed(("q4_0", "q8_0/f16", "f16"))),
        # F32 numerators beyond the range of F16, on the tiled path and on the vec path
        _case(
            {**decode, "n_head_kv": 1, "n_group": 2, "n_batch": 66, "n_kv": 70, "segments": 2},
            boundaries=(35,), **_typed(("f32", "q8_0")), regime="huge",
        ),
        # elements of V that are exactly 0, so that a weight of e^-60 shows
        _case(rows, "f16/q4_0", regime="constructed", mask=False),
        _case(
            {**decode, "n_group": 1, "n_kv": 1600}, "f32", boundaries=(533, 1066),
            mask_kind="masked_segment", sinks=True,
        ),
        # split-KV in chunks of 23 keys: nothing is left for the last thread
        _case(decode, n_kv=529, segments=1, threads=24),
        *design.cases("short"),
        *design.cases("wild")[::3],
    ]  # fmt: skip


def _default() -> list[Case]:
    """Every kind of shape, type, mask, option and regime, with every fault's inputs among them."""
    cases = [SEED]

    def add(shape: Fields, types: str = "f16", **changes: Any) -> None:
        cases.append(_case(shape, types, **changes))

    for regime in _REGIMES:  # decode: the vec path, then split-KV
        add(_DECODE, n_kv=250, regime=regime)
        if regime != "offset":  # F16 sums of so many such V lose more than a lost state would
            add(_DECODE, n_kv=645, regime=regime)
    for regime in ("normal", "rising", "offset"):
        add(_DECODE, "f32", n_kv=645, regime=regime)
        # split-KV in the middle of a chain, after the vec path and after itself
        type_ = "f32" if regime == "offset" else "f16"
        add(_DECODE, type_, n_kv=1201, regime=regime, boundaries=(20, 620))
    for regime in _REGIMES:  # prefill: the vec path, then tiled
        add(_PREFILL, n_kv=200, regime=regime)
    for regime in ("normal", "spiky", "rising", "offset"):
        for type_ in ("f16", "f32"):
            add(_PREFILL, type_, n_batch=96, n_kv=192, regime=regime)

    for type_ in _TYPES[1:]:
        for regime in ("normal", "outlier"):
            add(_PREFILL, type_, n_kv=144, regime=regime)
    for types in ("q8_0/f16", "f16/q4_0", "q8_0/q5_1", "bf16/f32"):
        add(_PREFILL, types, n_kv=144, regime="spiky")

    for n_group, n_head_kv in ((1, 4), (8, 1), (3, 2), (5, 3)):  # GQA; 4 is everywhere else
        add(_PREFILL, n_head_kv=n_head_kv, n_group=n_group, n_batch=7, n_kv=120)
    for hsk, hsv in ((80, 80), (128, 128), (256, 256), (192, 128), (576, 512)):
        shape = {**_DECODE, "hsk": hsk, "hsv": hsv, "v_is_view_of_k": hsk == 576}
        add(shape, n_kv=128)
        add(shape, n_batch=16, n_kv=112, regime="rising")
    add(_DECODE, hsk=40, hsv=40, n_batch=3, n_kv=104)

    few = {**_DECODE, "n_batch": 9, "n_kv": 110}
    add(few, mask=False)
    add(few, mask=False, regime="constructed")
    for type_ in ("f16", "f32"):  # the last tile of keys is not full, and nothing masks its rest
        add(few, type_, n_batch=70, mask=False)
    for kind in ("zeros", "random", "causal", "leading", "masked_segment"):
        for type_ in ("f16", "q8_0"):
            add(few, type_, mask_kind=kind, regime="spiky")
    add(few, mask_kind="sparse", n_kv_max=16)
    add(few, mask_heads=8)

    for regime in ("normal", "spiky"):
        add(few, sinks=True, regime=regime)
        add(few, "q8_0", sinks=True, regime=regime)
        add(few, logit_softcap=10.0, regime=regime)
        add(few, max_bias=8.0, regime=regime)
    every: Fields = {"max_bias": 8.0, "logit_softcap": 5.0, "sinks": True}
    add(few, n_head_kv=3, n_group=2, **every, regime="uniform")
    add(_DECODE, n_kv=700, sinks=True, max_bias=8.0)
    add(few, n_batch=66, sinks=True, logit_softcap=10.0)

    for n_batch in (1, 9, 64):
        add(few, n_batch=n_batch, n_group=3, ne3=2)
    for permute in ((0, 2, 1, 3), (0, 1, 3, 2)):
        add(few, n_group=2, ne3=2, permute=permute)
    add(few, kv_view=False)

    for regime in ("normal", "rising", "falling"):  # uneven, empty and single-token segments
        add(few, boundaries=(1, 100, 101), regime=regime)
        add(few, boundaries=(0, 37, 37, 110), regime=regime)
        add(few, boundaries="random", segments=5, regime=regime)
    return [case if case.segments > 1 else case.with_(segments=4) for case in cases]


def _paths() -> list[Case]:
    """Every row of the exactness table: paths x types x regimes x cuts x threads."""
    vec = {"decode": {**_DECODE, "n_kv": 150}, "batch": {**_DECODE, "n_batch": 6, "n_kv": 110}}
    other = {
        "split-kv": {**_DECODE, "n_kv": 1101},
        "tiled": {**_DECODE, "n_batch": 66, "n_kv": 200},
    }
    cuts: tuple[Fields, ...] = (
        *({"segments": n} for n in (1, 2, 3, 8, 17)),
        {"segments": 5, "boundaries": "random"},
    )
    cases = [SEED]
    for type_ in (*_TYPES, "q2_0", "q1_0"):
        float_ = type_ in ("f16", "f32")
        for name, shape in {**vec, **(other if float_ else {})}.items():
            for regime, cut in itertools.product(_REGIMES, cuts):
                if (type_, name, regime) == ("f16", "split-kv", "offset"):
                    continue  # F16 sums of so many such V lose more than a lost state would
                fields = {**cut, **_of_turn(regime, len(cases))}
                kind = (regime, fields.get("mask_kind"), cut.get("boundaries", cut["segments"]))
                if kind in (("spiky", "leading", "random"), ("rising", "masked_segment", 3)):
                    fields["seed"] += 1  # with one seed nearly all weight lies in one segment
                for threads in (1, 2, 5) if float_ else ((1, 2, 5)[len(cases) % 3],):
                    cases.append(_case(shape, type_, **{**fields, "threads": threads}))
    return sorted(cases, key=lambda case: case.threads)  # those of one thread run side by side


def _reduction() -> list[Case]:
    """Independent states that are merged: types, regimes, masks and cuts, equal types and mixed."""
    rows = {**_DECODE, "n_batch": 6, "n_group": 3, "ne3": 2, "n_kv": 120}
    long = [{**_DECODE, "n_kv": 1101}, {**_DECODE, "n_batch": 66, "n_kv": 200}]
    cases = [SEED]
    regimes = itertools.cycle(_REGIMES)

    def cuts(n_kv: int) -> list[Fields]:
        limits = (0, 0.3, 0.3, 0.31, 1)  # some segments are empty
        return [
            *({"segments": n} for n in (2, 3, 8, 17)),
            {"segments": 5, "boundaries": "random"},
            {"segments": 6, "boundaries": tuple(int(share * n_kv) for share in limits)},
        ]

    def add(shape: Fields, cut: Fields, regime: str, types: str = "f16", **changes: Any) -> None:
        turn = len(cases)
        fields = {**_of_turn(regime, turn), "threads": _threads(turn), **cut, **changes}
        cases.append(_case(shape, types, **fields))

    for type_, shape in itertools.product(_TYPES, ({**_DECODE, "n_kv": 150}, rows)):
        for cut in cuts(shape["n_kv"]):
            add(shape, cut, next(regimes), type_)
    for type_, shape in itertools.product(("f16", "f32"), long):
        for cut in cuts(shape["n_kv"]):
            regime = next(regimes)
            lost = (type_, shape["n_batch"], regime) == ("f16", 1, "offset")  # as in `_paths`
            add(shape, cut, "normal" if lost else regime, type_)
    cuts_of_rows = cuts(rows["n_kv"])
    for regime, cut in itertools.product(_REGIMES, cuts_of_rows):
        for type_ in ("f16", "q8_0"):
            add(rows, cut, regime, type_)
    for kind in ("leading", "masked_segment", "causal", "sparse"):
        masked = {**rows, "mask_kind": kind, "n_kv_max": 16 if kind == "sparse" else 0}
        for cut, sinks in itertools.product(cuts_of_rows, (False, True)):
            turn = len(cases)
            cases.append(_case(masked, **cut, sinks=sinks, seed=turn, threads=_threads(turn)))
    for types, cut in itertools.product(_TYPED_CHAINS, cuts_of_rows[1:]):
        cut = {**cut, "segments": max(cut["segments"], len(types))}
        add(rows, cut, next(regimes), **_typed(types))
    return list(dict.fromkeys(cases))  # `huge` has no options of its turn


def _mixed() -> list[Case]:
    """Chains of segments of different types, among them such as change the kernel's path, too."""
    rows = {**_DECODE, "n_batch": 6, "n_group": 3, "ne3": 2, "n_kv": 120}
    cases: list[Case] = [SEED]

    def add(shape: Fields, types: tuple[str, ...], regime: str, **cut: Any) -> None:
        turn = len(cases)
        fields = {**shape, **_typed(types), **_of_turn(regime, turn), "threads": _threads(turn)}
        cases.append(_case(fields, **cut or {"segments": len(types)}))

    for types, regime in itertools.product(_TYPED_CHAINS, _REGIMES):
        add({**_DECODE, "n_kv": 150}, types, regime)
        add(rows, types, regime)
    for types in _TYPED_CHAINS:  # the last type goes on; empty and single-key segments; odd cuts
        add(rows, types, "rising", segments=len(types) + 3)
        add(rows, types, "normal", segments=len(types) + 2, boundaries="random")
        n = len(types) - 1
        add(rows, types, "spiky", boundaries=(0, *range(60, 60 + n), 60 + n, 120))
    # an F16 or F32 segment among others: tiled with these rows, split-KV with these keys
    for types in (("q8_0", "f16"), ("f32", "f16"), ("f16", "q4_0", "f32"), ("f32/f16", "f16")):
        for regime in _REGIMES:
            add({**_DECODE, "n_batch": 66, "n_kv": 200}, types, regime)
        for regime in _REGIMES:
            cut = (600, 660)[: len(types) - 1]
            if regime != "offset":  # as in `_paths`
                add({**_DECODE, "n_kv": 1200}, types, regime, boundaries=cut)
    for hsk, hsv in ((128, 128), (192, 128), (256, 256)):
        for types in _TYPED_CHAINS[:4]:
            add({**_DECODE, "hsk": hsk, "hsv": hsv, "n_batch": 4, "n_kv": 100}, types, "normal")
    return cases


def _fifo() -> list[Case]:
    """Rolling caches: cold and hot types, windows and groups, shapes, options and paths."""
    cases: list[Case] = []

    def add(n_kv: int = 60, **changes: Any) -> None:
        cases.append(_case({**_ROLLING, "n_kv": n_kv, "n_batch": n_kv}, **changes))

    options: tuple[Fields, ...] = (
        {},
        {"sinks": True},
        {"max_bias": 8.0},
        {"logit_softcap": 10.0},
        {"sinks": True, "max_bias": 8.0, "logit_softcap": 10.0},
    )
    for cold_type in ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "bf16", "f16"):
        for regime in ("normal", "spiky", "rising", "falling", "offset", "outlier", "huge"):
            # a soft cap, say, lets F16 numerators overflow
            option = options[len(cases) % len(options)] if regime != "huge" else {"seed": 1}
            add(cold_type=cold_type, regime=regime, **option)
    for hot_type, cold_type in itertools.product(("f32", "bf16"), ("q8_0", "q4_0", "f16")):
        add(types=hot_type, cold_type=cold_type, regime="rising")
    add(types="q8_0/f16", cold_type="q4_0")

    for hot_window, group in ((1, 1), (7, 3), (16, 1), (16, 5), (16, 16), (40, 33)):
        for cold_type in ("q8_0", "f16"):
            add(hot_window=hot_window, group=group, cold_type=cold_type)
    for n_head_kv, n_group, ne3 in ((4, 1, 1), (1, 8, 1), (2, 3, 2), (3, 2, 3)):  # MHA, GQA, ne3
        add(n_head_kv=n_head_kv, n_group=n_group, ne3=ne3, cold_type="q4_0", sinks=True)
    add(n_group=2, ne3=2, mask_heads=4, max_bias=8.0)
    for hsk, hsv in ((128, 128), (256, 256), (192, 128)):
        add(hsk=hsk, hsv=hsv, n_group=2)
    add(permute=(0, 2, 1, 3), n_group=2, ne3=2)
    add(kv_view=False)
    # on busy cores a graph with more threads takes some milliseconds, so these are few and short
    for threads, cold_type in ((2, "q4_0"), (2, "f16"), (3, "q8_0")):
        add(40, threads=threads, cold_type=cold_type, sinks=True)
    # split-KV over the hot window, then over the cold store
    add(560, n_head_kv=1, n_group=2, hot_window=512, group=32, threads=2)
    add(560, n_head_kv=1, n_group=2, hot_window=24, group=12, cold_type="f16")
    return cases


def _gate() -> list[Case]:
    """What a gate runs: an input for every known fault and the design, whatever seed and threads.

    A case must not be mistrusted, nor unsupported, with an unlucky seed. So there are rows enough
    that in some of them several segments have weight, `huge` is cut between the two keys of each
    pair of one score, and what overflows in F16 with some seeds (a soft cap on `huge`, `offset`
    over a long split-KV) comes in F32.
    """
    chosen = [SEED, *_gate_chains(), *_gate_typed_chains(), *_gate_rolling_caches()]
    cases = dict.fromkeys([*chosen, *design.cases()])
    return sorted(cases, key=lambda case: case.threads)  # those of one thread run side by side


_GATE_ROWS: Fields = {**_DECODE, "n_batch": 7, "n_head_kv": 3, "n_group": 2, "n_kv": 110}
_GATE_DECODE: Fields = {**_DECODE, "n_head_kv": 4, "n_kv": 150}
# a prime: some chunk of keys is shorter than the others, whatever the threads
_GATE_SPLIT: Fields = {**_GATE_DECODE, "n_kv": 641}
_GATE_TILED: Fields = {**_DECODE, "n_batch": 70, "n_head_kv": 1, "n_group": 3, "n_kv": 200}


def _gate_chains() -> list[Case]:
    """Chains over a cache of one type: paths, types, masks, options, shapes and cuts."""
    rows, decode, split, tiled = _GATE_ROWS, _GATE_DECODE, _GATE_SPLIT, _GATE_TILED
    cases: list[Case] = []

    def add(shape: Fields, types: str = "f16", **changes: Any) -> None:
        turn = len(cases)
        fields = {**shape, "seed": turn, "threads": 1 + turn % 2, **changes}
        if fields.get("regime") == "huge":
            fields["boundaries"] = _between_pairs(fields["n_kv"])
            if fields["n_batch"] == 1:  # the only row of a mask might hide a head's first peak
                fields["mask"] = False
        if not isinstance(fields.get("boundaries"), tuple):
            fields = {"segments": 4, **fields}
        cases.append(_case(fields, types))

    for regime in _REGIMES:
        add(decode, regime=regime)
        add(rows, regime=regime, mask_kind="causal")
        add(split, "f32" if regime in ("offset", "huge") else "f16", regime=regime)
        add(tiled, "f32" if regime in ("falling", "huge", "ties") else "f16", regime=regime)
    add(split, "f32")
    add(split, regime="rising", n_kv=1201, boundaries=(20, 620))  # vec, then split-KV twice
    add(tiled, "f32", n_kv=192, segments=3)  # cut at the limits of tiles
    add(tiled, regime="spiky", n_kv=192, segments=3, mask_kind="causal")

    for type_ in _TYPES[1:]:
        add(rows, type_, regime="outlier")
        add(decode, type_, regime="rising")
    for types in ("q8_0/f16", "f16/q4_0", "q8_0/q5_1", "bf16/f32", "f32/f16"):
        add(rows, types)
    for type_ in ("q1_0", "q2_0"):
        add(rows, type_, hsk=128, hsv=128)
    add(rows, "q8_0/bf16", regime="huge")

    masks: tuple[Fields, ...] = (
        {"mask": False},
        *({"mask_kind": kind} for kind in ("zeros", "random", "leading", "masked_segment")),
    )
    for mask in masks:
        add(rows, **mask)
        add(rows, "q8_0", **mask)
        add(tiled, **mask)
    add(split, mask=False)
    add(split, mask_kind="leading", segments=7)
    add(rows, n_kv_max=16)
    add(rows, mask_heads=6)
    add(tiled, mask_heads=3, n_group=3, ne3=2)

    options: tuple[Fields, ...] = (
        {"sinks": True},
        {"max_bias": 8.0},
        {"logit_softcap": 10.0},
        {"logit_softcap": 5.0, "mask": False},  # nothing masks the rest of the last tile
        {"sinks": True, "max_bias": 8.0, "logit_softcap": 5.0},
    )
    for option in options:
        for shape in (rows, split, tiled):
            add(shape, **option)
        add(rows, "q4_0", **option)
    add(rows, regime="spiky", logit_softcap=10.0, mask_kind="causal")
    add(tiled, "f32", regime="spiky", logit_softcap=10.0, mask_kind="causal")
    add(tiled, regime="falling", sinks=True)
    add(rows, regime="rising", sinks=True)

    for n_head_kv, n_group, ne3 in ((4, 1, 1), (1, 8, 1), (2, 5, 1), (2, 3, 2)):  # MHA, GQA, ne3
        add(rows, n_head_kv=n_head_kv, n_group=n_group, ne3=ne3)
    add(decode, "q8_0", n_head_kv=2, n_group=3, ne3=2)
    add(tiled, n_head_kv=2, n_group=1, ne3=2)
    for permute in ((0, 2, 1, 3), (0, 1, 3, 2)):
        add(rows, n_group=2, ne3=2, permute=permute)
        add(tiled, n_head_kv=2, n_group=1, ne3=2, permute=permute)
    add(split, permute=(0, 2, 1, 3))
    add(rows, kv_view=False)
    for hsk, hsv in ((40, 40), (80, 80), (128, 128), (256, 256), (192, 128)):
        add(rows, hsk=hsk, hsv=hsv)
    add(rows, hsk=576, hsv=512, n_head_kv=1, n_group=4, v_is_view_of_k=True)
    add(decode, "q8_0", hsk=192, hsv=128, v_is_view_of_k=True)
    add(tiled, hsk=128, hsv=128, n_head_kv=2, n_group=1)

    for regime in ("rising", "falling"):  # uneven, empty and single-key segments
        for type_ in ("f16", "q8_0"):
            add(rows, type_, regime=regime, boundaries=(1, 100, 101))
            add(rows, type_, regime=regime, boundaries=(0, 37, 37, 110))
    add(tiled, regime="rising", boundaries=(0, 1, 65, 65, 200))
    add(split, regime="rising", boundaries=(0, 300, 300, 641))
    for shape in (rows, tiled):
        add(shape, boundaries="random", segments=5)
    add(rows, segments=17)
    # the fewest threads of which the last finds no key, in either segment of 529
    add(split, n_kv=1058, segments=2, n_head_kv=1, n_group=2, threads=24)
    # so long that outputs are far below any absolute tolerance
    add(decode, "f32", n_kv=65536, n_head_kv=1, n_group=2, segments=2)
    # for bugs of the museum that showed nowhere else
    add(rows, "q8_0", hsk=512, hsv=512, n_head_kv=1, n_group=2)
    add(rows, n_batch=33, n_kv=33, mask=False)  # as a causal mask would be, but there is none
    add(tiled, n_head_kv=2, n_group=3)
    add(split, hsk=4, hsv=4, threads=3)  # more parts than half the head size
    add(split, n_kv=1800, segments=3, mask_kind="masked_segment")  # a split call that sees no key
    # so many heads that work memory is laid out for their parts, which take more than tiles do
    add(split, n_kv=1040, segments=2, hsk=32, hsv=32, n_head_kv=16, n_group=32, threads=2)
    # a thread without keys, whose M and S of all heads fill more than one partial result
    add(split, n_kv=1058, segments=2, hsk=4, hsv=4, n_head_kv=3, n_group=4, threads=24)
    # so many keys that the threads would share them, but for the types
    add(split, "f16/f32", n_kv=700, threads=2)
    add(split, "f32/f16", n_kv=700, threads=2)
    # one row, and NaN in keys that it does not see: nothing else may read them
    add(decode, n_kv=97, n_head_kv=3, n_group=1, hsk=64, hsv=64, segments=1, regime="nan")
    # the same, and with this seed it sees none of them: K in one head, V in the others
    add(decode, n_kv=97, n_head_kv=3, n_group=1, hsk=64, hsv=64, segments=1, regime="nan", seed=8)
    # a tile of BF16, which some CPUs multiply in pairs, with odd rows
    add(rows, "bf16", n_batch=20, n_group=3, hsk=33, hsv=40)
    # rows of a KV head that fill one panel of a tile and a part of the next, K multiplied as it is
    add(rows, "bf16", n_batch=20, n_group=4)
    add(rows, "q8_0", n_batch=28, n_group=4)
    # full tiles, and so many keys that a thread computes both KV heads at once
    add(rows, n_batch=8, n_head_kv=2, n_kv=1600, threads=1)
    # heads so large that a tile has more numbers than are computed at once for several heads
    add(rows, hsk=576, hsv=512, n_head_kv=1, n_group=4, n_batch=20, v_is_view_of_k=True)
    return cases


def _gate_typed_chains() -> list[Case]:
    """Chains of segments of different types, which change the kernel's path, too."""
    rows, split, tiled = _GATE_ROWS, {**_GATE_SPLIT, "n_kv": 1300}, _GATE_TILED
    n_kv = rows["n_kv"]
    chains: tuple[tuple[Fields, tuple[str, ...], str, tuple[int, ...]], ...] = (
        (rows, ("q4_0", "q8_0", "f16"), "huge", _between_pairs(n_kv)),
        (rows, ("f16", "q8_0"), "normal", (0, 40, 40, n_kv)),
        (rows, ("f32", "f16"), "falling", (30, 60)),
        (rows, ("q8_0", "f32/f16"), "rising", (50,)),
        (rows, ("bf16", "f16"), "outlier", (50,)),
        (rows, ("f16", "q4_0", "f16"), "normal", (40, 80)),
        (rows, ("q8_0/f16", "f16/q8_0"), "spiky", (40, 80)),
        (rows, ("q4_1", "q5_0", "q5_1", "iq4_nl", "f16"), "normal", (20, 45, 70, 90)),
        (tiled, ("q8_0", "f16"), "normal", (100,)),
        (tiled, ("f32", "f16"), "rising", (64, 130)),
        (split, ("q8_0", "f16", "f32"), "normal", (100, 700)),
    )
    return [
        _case({**shape, **_typed(types), "regime": regime, "boundaries": cut},
              seed=turn, threads=1 + turn % 2)
        for turn, (shape, types, regime, cut) in enumerate(chains)
    ]  # fmt: skip


def _gate_rolling_caches() -> list[Case]:
    """Rolling caches: each cold type, windows and groups, options, shapes."""
    caches: tuple[Fields, ...] = (
        {"cold_type": "q8_0", "hot_window": 1, "group": 1},
        {"cold_type": "q4_0", "hot_window": 7, "group": 3, "regime": "rising"},
        {"cold_type": "q4_1", "group": 16, "regime": "spiky"},
        {"cold_type": "q5_0", "sinks": True, "regime": "falling"},
        {"cold_type": "q5_1", "logit_softcap": 10.0},
        {"cold_type": "iq4_nl", "max_bias": 8.0, "n_head_kv": 3, "n_group": 2},
        {"cold_type": "bf16", "n_group": 2, "ne3": 2, "permute": (0, 2, 1, 3), "group": 5},
        {"cold_type": "f16", "regime": "outlier"},
        {"cold_type": "q8_0", "type_K": "f32", "type_V": "f32", "regime": "offset"},
        {"cold_type": "q4_0", "type_K": "q8_0", "type_V": "f16", "kv_view": False, "threads": 2},
    )
    usual = {**_ROLLING, "n_kv": 40, "n_batch": 40}
    return [_case({**usual, "seed": turn, **cache}) for turn, cache in enumerate(caches)]


def _between_pairs(n_kv: int) -> tuple[int, ...]:
    """Return cuts between the two keys of each pair of one score in the regime `huge`.

    So no segment has all of the weight, whatever the order of the scores. The n-th of its 8 keys
    lies in the n-th eighth of the keys.
    """
    return tuple(i * n_kv // 8 for i in (1, 3, 5, 7))


SUITES: dict[str, Callable[[], list[Case]]] = {
    "seed": _seed,
    "smoke": _smoke,
    "default": _default,
    "paths": _paths,
    "reduction": _reduction,
    "mixed": _mixed,
    "fifo": _fifo,
    "gate": _gate,
}
"""Name -> what returns the cases of the suite."""
