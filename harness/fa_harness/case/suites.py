"""Named lists of cases."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from fa_harness.case.case import Case
from fa_harness.case.gate_suite import gate
from fa_harness.case.suite_parts import DECODE, PREFILL, REGIMES_OF_ANY_SHAPE, SEED, typed
from fa_harness.errors import UsageError


def suite(name: str) -> list[Case]:
    """Return the cases of a suite.

    Raises:
        UsageError: There is no suite of that name.
    """
    if name not in SUITES:
        raise UsageError(f"suite {name!r} is unknown; there are {', '.join(SUITES)}")
    return SUITES[name]()


def _seed() -> list[Case]:
    return [SEED]


def _smoke() -> list[Case]:
    """A case or two for each kind of fault, all small."""
    decode = {**DECODE, "n_kv": 160, "segments": 3}
    few_rows = {**decode, "n_batch": 5, "n_head_kv": 3, "n_group": 2, "ne3": 2, "n_kv": 97}
    return [
        SEED,
        *(Case(**decode, regime=regime) for regime in ("normal", "rising", "falling", "spiky")),
        Case(**few_rows, regime="normal", type_K="f32", type_V="f32"),
        Case(**few_rows, regime="outlier", type_K="q8_0", type_V="q4_0"),
        Case(**few_rows, regime="huge", type_K="bf16", type_V="f16"),
        Case(**few_rows, regime="offset", mask_kind="leading"),
        Case(**few_rows, regime="ties", max_bias=8.0, logit_softcap=5.0, mask_heads=6),
        Case(**few_rows, regime="normal", sinks=True, permute=(0, 2, 1, 3)),
        Case(**few_rows, regime="constructed", mask=False),
        Case(**{**few_rows, "segments": 4}, boundaries=(0, 1, 90), regime="rising"),
        Case(**{**decode, "n_kv": 601}, regime="spiky"),
        Case(**{**decode, "n_kv": 1201}, boundaries=(20, 620), regime="normal"),
        Case(**{**decode, "n_batch": 70, "n_kv": 150}, mask_kind="causal", sinks=True,
        regime="normal"),
        Case(**{**decode, "n_batch": 66, "n_kv": 100}, mask=False, logit_softcap=5.0,
        regime="normal"),
        Case(
            hsk=192, hsv=128, n_head_kv=1, n_group=16, n_batch=2, n_kv=130, v_is_view_of_k=True,
            segments=3,
            regime="normal", threads=2,
        ),
        # a segment that is all masked, one that is empty, and each option, on the tiled path
        Case(
            **{**few_rows, "n_batch": 66, "n_kv": 99, "segments": 4}, boundaries=(33, 66, 66),
            mask_kind="masked_segment", mask_heads=6, max_bias=8.0, logit_softcap=5.0,
            regime="normal",
        ),
        # listed boundaries where types go with segments, so that --segments leaves them alone
        Case(**few_rows, boundaries=(32, 65), regime="normal",
             **typed(("q4_0", "q8_0/f16", "f16"))),
        # F32 numerators beyond the range of F16, on the tiled path and on the vec path
        Case(
            **{**decode, "n_head_kv": 1, "n_group": 2, "n_batch": 66, "n_kv": 70, "segments": 2},
            boundaries=(35,), **typed(("f32", "q8_0")), regime="huge",
        ),
        # elements of V that are exactly 0, so that a weight of e^-60 shows
        Case(**few_rows, regime="constructed", mask=False, type_V="q4_0"),
        Case(
            **{**decode, "n_group": 1, "n_kv": 1600}, boundaries=(533, 1066), type_K="f32",
            type_V="f32", mask_kind="masked_segment", sinks=True, regime="normal",
        ),
        # split-KV in chunks of 23 keys: nothing is left for the last thread
        Case(**{**decode, "n_kv": 529, "segments": 1, "threads": 24}, regime="normal"),
    ]  # fmt: skip


def _default() -> list[Case]:
    """Every kind of shape, type, mask, option and regime, with every fault's inputs among them."""
    cases = [SEED]
    add = cases.append

    for regime in REGIMES_OF_ANY_SHAPE:  # decode: the vec path, then split-KV
        add(Case(**DECODE, n_kv=250, regime=regime))
        if regime != "offset":  # F16 sums of so many such V lose more than a lost state would
            add(Case(**DECODE, n_kv=645, regime=regime))
    for regime in ("normal", "rising", "offset"):
        add(Case(**DECODE, n_kv=645, regime=regime, type_K="f32", type_V="f32"))
        # split-KV in the middle of a chain, after the vec path and after itself
        type_ = "f32" if regime == "offset" else "f16"
        long = {**DECODE, "n_kv": 1201, "type_K": type_, "type_V": type_}
        add(Case(**long, regime=regime, boundaries=(20, 620)))
    for regime in REGIMES_OF_ANY_SHAPE:  # prefill: the vec path, then tiled
        add(Case(**PREFILL, n_kv=200, regime=regime))
    for regime in ("normal", "spiky", "rising", "offset"):
        for type_ in ("f16", "f32"):
            tiled = {**PREFILL, "n_batch": 96}
            add(Case(**tiled, n_kv=192, regime=regime, type_K=type_, type_V=type_))

    for type_ in ("f32", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl"):
        for regime in ("normal", "outlier"):
            add(Case(**PREFILL, n_kv=144, regime=regime, type_K=type_, type_V=type_))
    for type_k, type_v in (("q8_0", "f16"), ("f16", "q4_0"), ("q8_0", "q5_1"), ("bf16", "f32")):
        add(Case(**PREFILL, n_kv=144, regime="spiky", type_K=type_k, type_V=type_v))

    for n_group, n_head_kv in ((1, 4), (8, 1), (3, 2), (5, 3)):  # GQA; 4 is everywhere else
        shape = {**PREFILL, "n_head_kv": n_head_kv, "n_group": n_group, "n_batch": 7}
        add(Case(**shape, n_kv=120, regime="normal"))
    for hsk, hsv in ((80, 80), (128, 128), (256, 256), (192, 128), (576, 512)):
        shape = {**DECODE, "hsk": hsk, "hsv": hsv}
        add(Case(**shape, n_kv=128, regime="normal", v_is_view_of_k=hsk == 576))
        add(Case(**{**shape, "n_batch": 16}, n_kv=112, regime="rising", v_is_view_of_k=hsk == 576))
    add(Case(**{**DECODE, "hsk": 40, "hsv": 40, "n_batch": 3}, n_kv=104, regime="normal"))

    few = {**DECODE, "n_batch": 9, "n_kv": 110}
    add(Case(**few, mask=False, regime="normal"))
    add(Case(**few, mask=False, regime="constructed"))
    for type_ in ("f16", "f32"):  # the last tile of keys is not full, and nothing masks its rest
        tiled = {**few, "n_batch": 70, "type_K": type_, "type_V": type_}
        add(Case(**tiled, mask=False, regime="normal"))
    for kind in ("zeros", "random", "causal", "leading", "masked_segment"):
        for type_ in ("f16", "q8_0"):
            add(Case(**few, mask_kind=kind, regime="spiky", type_K=type_, type_V=type_))
    add(Case(**few, mask_kind="sparse", n_kv_max=16, regime="normal"))
    add(Case(**few, mask_heads=8, regime="normal"))

    for regime in ("normal", "spiky"):
        add(Case(**few, sinks=True, regime=regime))
        add(Case(**few, sinks=True, regime=regime, type_K="q8_0", type_V="q8_0"))
        add(Case(**few, logit_softcap=10.0, regime=regime))
        add(Case(**few, max_bias=8.0, regime=regime))
    add(
        Case(
            **{**few, "n_head_kv": 3, "n_group": 2},
            max_bias=8.0,
            logit_softcap=5.0,
            sinks=True,
        )
    )
    add(Case(**{**DECODE, "n_kv": 700}, sinks=True, max_bias=8.0, regime="normal"))
    add(Case(**{**few, "n_batch": 66}, sinks=True, logit_softcap=10.0, regime="normal"))

    for n_batch in (1, 9, 64):  # ne3
        add(Case(**{**few, "n_batch": n_batch, "n_group": 3, "ne3": 2}, regime="normal"))
    for permute in ((0, 2, 1, 3), (0, 1, 3, 2)):
        add(Case(**{**few, "n_group": 2, "ne3": 2}, permute=permute, regime="normal"))
    add(Case(**few, kv_view=False, regime="normal"))

    for regime in ("normal", "rising", "falling"):  # uneven, empty and single-token segments
        add(Case(**few, boundaries=(1, 100, 101), regime=regime))
        add(Case(**few, boundaries=(0, 37, 37, 110), regime=regime))
        add(Case(**few, boundaries="random", segments=5, regime=regime))
    return [case if case.segments > 1 else case.with_(segments=4) for case in cases]


def _paths() -> list[Case]:
    """Every row of the exactness table: paths x types x regimes x cuts x threads."""
    vec = {"decode": {**DECODE, "n_kv": 150}, "batch": {**DECODE, "n_batch": 6, "n_kv": 110}}
    other = {
        "split-kv": {**DECODE, "n_kv": 1101},
        "tiled": {**DECODE, "n_batch": 66, "n_kv": 200},
    }
    cuts: tuple[dict[str, Any], ...] = (
        *({"segments": n} for n in (1, 2, 3, 8, 17)),
        {"segments": 5, "boundaries": "random"},
    )
    cases = [SEED]
    for type_ in (*_TYPES, "q2_0", "q1_0"):
        float_ = type_ in ("f16", "f32")
        for name, shape in {**vec, **(other if float_ else {})}.items():
            for regime, cut in itertools.product(REGIMES_OF_ANY_SHAPE, cuts):
                if (type_, name, regime) == ("f16", "split-kv", "offset"):
                    continue  # F16 sums of so many such V lose more than a lost state would
                fields = {**shape, **cut, **_of_turn(regime, len(cases))}
                kind = (regime, fields.get("mask_kind"), cut.get("boundaries", cut["segments"]))
                if kind in (("spiky", "leading", "random"), ("rising", "masked_segment", 3)):
                    fields["seed"] += 1  # with one seed nearly all weight lies in one segment
                types = {"type_K": type_, "type_V": type_}
                for threads in (1, 2, 5) if float_ else ((1, 2, 5)[len(cases) % 3],):
                    cases.append(Case(**{**fields, **types, "threads": threads}))
    return sorted(cases, key=lambda case: case.threads)  # those of one thread run side by side


def _fifo() -> list[Case]:
    """Rolling caches: cold and hot types, windows and groups, shapes, options and paths."""
    rolling: dict[str, Any] = {
        **DECODE, "n_kv": 60, "n_batch": 60, "mask_kind": "causal", "regime": "normal",
        "hot_window": 16,
        "group": 4, "threads": 1,
    }  # fmt: skip
    cases: list[Case] = []

    def add(**fields: Any) -> None:
        cases.append(Case(**{**rolling, **fields}))

    options: tuple[dict[str, Any], ...] = (
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
        add(type_K=hot_type, type_V=hot_type, cold_type=cold_type, regime="rising")
    add(type_K="q8_0", type_V="f16", cold_type="q4_0")

    for hot_window, group in ((1, 1), (7, 3), (16, 1), (16, 5), (16, 16), (40, 33)):
        for cold_type in ("q8_0", "f16"):
            add(hot_window=hot_window, group=group, cold_type=cold_type)
    for n_head_kv, n_group, ne3 in ((4, 1, 1), (1, 8, 1), (2, 3, 2), (3, 2, 3)):  # MHA, GQA, ne3
        add(n_head_kv=n_head_kv, n_group=n_group, ne3=ne3, cold_type="q4_0", sinks=True)
    add(n_group=2, ne3=2, mask_heads=4, max_bias=8.0)
    for hsk, hsv in ((128, 128), (256, 256), (192, 128)):
        add(hsk=hsk, hsv=hsv, n_group=2, ne3=1)
    add(permute=(0, 2, 1, 3), n_group=2, ne3=2)
    add(kv_view=False)
    # on busy cores a graph with more threads takes some milliseconds, so these are few and short
    for threads, cold_type in ((2, "q4_0"), (2, "f16"), (3, "q8_0")):
        add(threads=threads, n_kv=40, n_batch=40, cold_type=cold_type, sinks=True)
    long: dict[str, Any] = {"n_head_kv": 1, "n_group": 2}
    # split-KV over the hot window, then over the cold store
    add(**long, n_kv=560, n_batch=560, hot_window=512, group=32, threads=2)
    add(**long, n_kv=560, n_batch=560, hot_window=24, group=12, cold_type="f16")
    return cases


def _reduction() -> list[Case]:
    """Independent states that are merged: types, regimes, masks and cuts, equal types and mixed."""
    rows = {"n_batch": 6, "n_group": 3, "ne3": 2, "n_kv": 120}
    shapes = [{**DECODE, "n_kv": 150}, {**DECODE, **rows}]
    long = [{**DECODE, "n_kv": 1101}, {**DECODE, "n_batch": 66, "n_kv": 200}]
    cuts: tuple[dict[str, Any], ...] = (
        *({"segments": n} for n in (2, 3, 8, 17)),
        {"segments": 5, "boundaries": "random"},
        {"segments": 6, "boundaries": (0, 0.3, 0.3, 0.31, 1)},  # of kv; some segments are empty
    )
    cases = [SEED]

    def add(shape: dict[str, Any], cut: dict[str, Any], regime: str, **types: Any) -> None:
        turn = len(cases)
        fields = {**shape, **_cut_at(shape["n_kv"], cut), **types, **_of_turn(regime, turn)}
        cases.append(Case(**{**fields, "threads": _threads(turn)}))

    regimes = itertools.cycle(REGIMES_OF_ANY_SHAPE)
    for type_, shape, cut in itertools.product(_TYPES, shapes, cuts):
        add(shape, cut, next(regimes), type_K=type_, type_V=type_)
    for type_, shape, cut in itertools.product(("f16", "f32"), long, cuts):
        regime = next(regimes)
        lost = type_ == "f16" and shape["n_batch"] == 1 and regime == "offset"  # as in `_paths`
        add(shape, cut, "normal" if lost else regime, type_K=type_, type_V=type_)
    for regime, cut in itertools.product(REGIMES_OF_ANY_SHAPE, cuts):
        for type_ in ("f16", "q8_0"):
            add(shapes[1], cut, regime, type_K=type_, type_V=type_)
    for kind in ("leading", "masked_segment", "causal", "sparse"):
        more = {"mask_kind": kind, "n_kv_max": 16 if kind == "sparse" else 0}
        for cut, sinks in itertools.product(cuts, (False, True)):
            fields = {**shapes[1], **_cut_at(shapes[1]["n_kv"], cut), **more, "regime": "normal"}
            turn = len(cases)
            cases.append(
                Case(**{**fields, "sinks": sinks, "seed": turn, "threads": _threads(turn)})
            )
    for types, cut in itertools.product(_TYPED_CHAINS, cuts[1:]):
        cut = {**cut, "segments": max(cut["segments"], len(types))}
        add(shapes[1], cut, next(regimes), **typed(types))
    return list(dict.fromkeys(cases))  # `huge` has no options of its turn


def _mixed() -> list[Case]:
    """Chains of segments of different types, among them such as change the kernel's path, too."""
    rows = {**DECODE, "n_batch": 6, "n_group": 3, "ne3": 2, "n_kv": 120}
    cases: list[Case] = [SEED]

    def add(shape: dict[str, Any], types: tuple[str, ...], regime: str, **cut: Any) -> None:
        cut = cut or {"segments": len(types)}
        fields = {**shape, **typed(types), **_of_turn(regime, len(cases)), **cut}
        cases.append(Case(**{**fields, "threads": _threads(len(cases))}))

    for types, regime in itertools.product(_TYPED_CHAINS, REGIMES_OF_ANY_SHAPE):
        add({**DECODE, "n_kv": 150}, types, regime)
        add(rows, types, regime)
    for types in _TYPED_CHAINS:  # the last type goes on; empty and single-key segments; odd cuts
        add(rows, types, "rising", segments=len(types) + 3)
        add(rows, types, "normal", segments=len(types) + 2, boundaries="random")
        n = len(types) - 1
        add(rows, types, "spiky", boundaries=(0, *range(60, 60 + n), 60 + n, 120))
    # an F16 or F32 segment among others: tiled with these rows, split-KV with these keys
    for types in (("q8_0", "f16"), ("f32", "f16"), ("f16", "q4_0", "f32"), ("f32/f16", "f16")):
        for regime in REGIMES_OF_ANY_SHAPE:
            add({**DECODE, "n_batch": 66, "n_kv": 200}, types, regime)
        for regime in REGIMES_OF_ANY_SHAPE:
            cut = (600, 660)[: len(types) - 1]
            if regime != "offset":  # as in `_paths`
                add({**DECODE, "n_kv": 1200}, types, regime, boundaries=cut)
    for hsk, hsv in ((128, 128), (192, 128), (256, 256)):
        shape = {**DECODE, "hsk": hsk, "hsv": hsv, "n_batch": 4, "n_kv": 100}
        for types in _TYPED_CHAINS[:4]:
            add(shape, types, "normal")
    return cases


def _of_turn(regime: str, turn: int) -> dict[str, Any]:
    """Return a regime with the seed and the options of the n-th case: they go round."""
    if regime == "huge":
        # A soft cap, say, lets F16 numerators overflow; with some seeds no segment but the last has
        # any weight.
        return {"regime": regime, "seed": 4}
    return {"regime": regime, "seed": turn, **_OPTIONS[turn % len(_OPTIONS)]}


def _threads(turn: int) -> int:
    """Return 1 or 2, long in a row the same: cases of one number of threads run side by side."""
    return 1 + turn // 40 % 2


def _cut_at(n_kv: int, cut: dict[str, Any]) -> dict[str, Any]:
    """Return a cut whose boundaries, if it lists any, are shares of the keys."""
    if not isinstance(cut.get("boundaries"), tuple):
        return cut
    return {**cut, "boundaries": tuple(int(share * n_kv) for share in cut["boundaries"])}


_OPTIONS: tuple[dict[str, Any], ...] = (
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

SUITES: dict[str, Callable[[], list[Case]]] = {
    "seed": _seed,
    "smoke": _smoke,
    "default": _default,
    "paths": _paths,
    "reduction": _reduction,
    "mixed": _mixed,
    "fifo": _fifo,
    "gate": gate,
}
"""Name -> the suite's cases; its docstring is shown by `fa-harness run --help`."""
