"""Pieces that several suites are made of."""

from __future__ import annotations

from typing import Any

from fa_harness.case.case import Case

# listed boundaries, so that --segments leaves its two keys alone
SEED = Case(hsk=4, hsv=4, n_head_kv=1, n_kv=2, n_batch=1, boundaries=(1,), regime="seed")

DECODE: dict[str, Any] = {
    "hsk": 64,
    "hsv": 64,
    "n_head_kv": 2,
    "n_group": 4,
    "ne3": 1,
    "n_batch": 1,
    "threads": 2,
}
PREFILL: dict[str, Any] = {**DECODE, "n_batch": 33, "mask_kind": "causal"}

REGIMES_OF_ANY_SHAPE = (
    "uniform", "normal", "spiky", "rising", "falling", "ties", "offset", "outlier", "huge",
    "constructed",
)  # fmt: skip


def typed(types: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields of a case whose segments have these types."""
    return {"segment_types": types, "type_K": "f32", "type_V": "f32"}
