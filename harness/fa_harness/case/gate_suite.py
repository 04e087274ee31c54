"""The cases that a gate runs."""

from __future__ import annotations

from typing import Any

from fa_harness.case.case import Case
from fa_harness.case.suite_parts import DECODE, REGIMES_OF_ANY_SHAPE, SEED, typed


def gate() -> list[Case]:
    """What a gate runs: an input for every fault that is known, with whatever seed and threads.

    A case must not be mistrusted, nor unsupported, with an unlucky seed. So there are rows enough
    that in some of them several segments have weight, `huge` is cut between the two keys of each
    pair of one score, and what overflows in F16 with some seeds (a soft cap on `huge`, `offset`
    over a long split-KV) comes in F32.
    """
    cases = [SEED, *_chains(), *_typed_chains(), *_rolling_caches()]
    return sorted(cases, key=lambda case: case.threads)  # those of one thread run side by side


_ROWS: dict[str, Any] = {
    **DECODE,
    "n_batch": 7,
    "n_head_kv": 3,
    "n_group": 2,
    "ne3": 1,
    "n_kv": 110,
}
_DECODE: dict[str, Any] = {**DECODE, "n_head_kv": 4, "n_kv": 150}
# a prime: some chunk of keys is shorter than the others, whatever the threads
_SPLIT: dict[str, Any] = {**_DECODE, "n_kv": 641}
_TILED: dict[str, Any] = {
    **DECODE,
    "n_batch": 70,
    "n_head_kv": 1,
    "n_group": 3,
    "ne3": 1,
    "n_kv": 200,
}


def _chains() -> list[Case]:
    """Chains over a cache of one type: paths, types, masks, options, shapes and cuts."""
    rows, decode, split, tiled = _ROWS, _DECODE, _SPLIT, _TILED
    cases: list[Case] = []

    def add(shape: dict[str, Any], regime: str, types: str = "f16", **changes: Any) -> None:
        type_k, _, type_v = types.partition("/")
        turn = len(cases)
        fields = {**shape, "regime": regime, "type_K": type_k, "type_V": type_v or type_k}
        fields |= {"seed": turn, "threads": 1 + turn % 2, **changes}
        if regime == "huge":
            fields["boundaries"] = _between_pairs(fields["n_kv"])
            if (
                fields["n_batch"] == 1
            ):  # the only row of a mask might hide a key of each head's first pair
                fields["mask"] = False
        if not isinstance(fields.get("boundaries"), tuple):
            fields = {"segments": 4, **fields}
        cases.append(Case(**fields))

    for regime in REGIMES_OF_ANY_SHAPE:
        add(decode, regime)
        add(rows, regime, mask_kind="causal")
        add(split, regime, "f32" if regime in ("offset", "huge") else "f16")
        add(tiled, regime, "f32" if regime in ("falling", "huge", "ties") else "f16")
    add(split, "normal", "f32")
    add(split, "rising", n_kv=1201, boundaries=(20, 620))  # the vec path, then split-KV twice
    add(tiled, "normal", "f32", n_kv=192, segments=3)  # cut at the limits of tiles
    add(tiled, "spiky", n_kv=192, segments=3, mask_kind="causal")

    for type_ in ("f32", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl"):
        add(rows, "outlier", type_)
        add(decode, "rising", type_)
    for types in ("q8_0/f16", "f16/q4_0", "q8_0/q5_1", "bf16/f32", "f32/f16"):
        add(rows, "normal", types)
    for type_ in ("q1_0", "q2_0"):
        add(rows, "normal", type_, hsk=128, hsv=128)
    add(rows, "huge", "q8_0/bf16")

    masks: tuple[dict[str, Any], ...] = (
        {"mask": False},
        *({"mask_kind": kind} for kind in ("zeros", "random", "leading", "masked_segment")),
    )
    for mask in masks:
        add(rows, "normal", **mask)
        add(rows, "normal", "q8_0", **mask)
        add(tiled, "normal", **mask)
    add(split, "normal", mask=False)
    add(split, "normal", mask_kind="leading", segments=7)
    add(rows, "normal", n_kv_max=16)
    add(rows, "normal", mask_heads=6)
    add(tiled, "normal", mask_heads=3, n_group=3, ne3=2)

    options: tuple[dict[str, Any], ...] = (
        {"sinks": True},
        {"max_bias": 8.0},
        {"logit_softcap": 10.0},
        {"logit_softcap": 5.0, "mask": False},  # nothing masks the rest of the last tile
        {"sinks": True, "max_bias": 8.0, "logit_softcap": 5.0},
    )
    for option in options:
        for shape in (rows, split, tiled):
            add(shape, "normal", **option)
        add(rows, "normal", "q4_0", **option)
    add(rows, "spiky", logit_softcap=10.0, mask_kind="causal")
    add(tiled, "spiky", "f32", logit_softcap=10.0, mask_kind="causal")
    add(tiled, "falling", sinks=True)
    add(rows, "rising", sinks=True)

    for n_head_kv, n_group, ne3 in ((4, 1, 1), (1, 8, 1), (2, 5, 1), (2, 3, 2)):  # MHA, GQA, ne3
        add(rows, "normal", n_head_kv=n_head_kv, n_group=n_group, ne3=ne3)
    add(decode, "normal", "q8_0", n_head_kv=2, n_group=3, ne3=2)
    add(tiled, "normal", n_head_kv=2, n_group=1, ne3=2)
    for permute in ((0, 2, 1, 3), (0, 1, 3, 2)):
        add(rows, "normal", n_group=2, ne3=2, permute=permute)
        add(tiled, "normal", n_head_kv=2, n_group=1, ne3=2, permute=permute)
    add(split, "normal", permute=(0, 2, 1, 3))
    add(rows, "normal", kv_view=False)
    for hsk, hsv in ((40, 40), (80, 80), (128, 128), (256, 256), (192, 128)):
        add(rows, "normal", hsk=hsk, hsv=hsv)
    add(rows, "normal", hsk=576, hsv=512, n_head_kv=1, n_group=4, ne3=1, v_is_view_of_k=True)
    add(decode, "normal", "q8_0", hsk=192, hsv=128, v_is_view_of_k=True)
    add(tiled, "normal", hsk=128, hsv=128, n_head_kv=2, n_group=1, ne3=1)

    for regime in ("rising", "falling"):  # uneven, empty and single-key segments
        for type_ in ("f16", "q8_0"):
            add(rows, regime, type_, boundaries=(1, 100, 101))
            add(rows, regime, type_, boundaries=(0, 37, 37, 110))
    add(tiled, "rising", boundaries=(0, 1, 65, 65, 200))
    add(split, "rising", boundaries=(0, 300, 300, 641))
    for shape in (rows, tiled):
        add(shape, "normal", boundaries="random", segments=5)
    add(rows, "normal", segments=17)
    # the fewest threads of which the last finds no key, in either segment of 529
    add(split, "normal", n_kv=1058, segments=2, n_head_kv=1, n_group=2, ne3=1, threads=24)
    # so long that outputs are far below any absolute tolerance
    add(decode, "normal", "f32", n_kv=65536, n_head_kv=1, n_group=2, ne3=1, segments=2)
    return cases


def _typed_chains() -> list[Case]:
    """Chains of segments of different types, which change the kernel's path, too."""
    rows, split, tiled = _ROWS, {**_SPLIT, "n_kv": 1300}, _TILED
    n_kv = rows["n_kv"]
    chains: tuple[tuple[dict[str, Any], tuple[str, ...], str, tuple[int, ...]], ...] = (
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
        Case(
            **{**shape, **typed(types), "seed": turn, "threads": 1 + turn % 2},
            regime=regime,
            boundaries=cut,
        )
        for turn, (shape, types, regime, cut) in enumerate(chains)
    ]


def _rolling_caches() -> list[Case]:
    """Rolling caches: each cold type, windows and groups, options, shapes."""
    usual: dict[str, Any] = {
        **DECODE, "n_kv": 40, "n_batch": 40, "mask_kind": "causal", "regime": "normal",
        "hot_window": 16,
        "group": 4, "threads": 1,
    }  # fmt: skip
    caches: tuple[dict[str, Any], ...] = (
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
    return [Case(**{**usual, "seed": turn, **cache}) for turn, cache in enumerate(caches)]


def _between_pairs(n_kv: int) -> tuple[int, ...]:
    """Return cuts between the two keys of each pair of one score in the regime `huge`.

    So no segment has all of the weight, whatever the order of the scores. The n-th of its 8 keys
    lies in the n-th eighth of the keys.
    """
    return tuple(i * n_kv // 8 for i in (1, 3, 5, 7))
