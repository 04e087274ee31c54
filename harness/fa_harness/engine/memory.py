"""How much memory a case needs, so that a case which is too large is refused early."""

from __future__ import annotations

import sys
from collections.abc import Collection

from fa_harness.case.case import Case
from fa_harness.case.quants import TYPES, row_bytes
from fa_harness.machine import available_memory

_SMALL = 256 << 20
"""Bytes that any machine has; for less, the available memory is not read."""
_SCORES = 1 << 18
"""Scores that the oracle holds at once; it holds those of at least `_ROWS` rows."""
_ROWS = 16
_BYTES_OF_SCORE = 48
_BYTES_OF_RESULT = (350, 130)
"""Measured for each element of each segment's result, in this process and in the worker."""


def too_large(case: Case, modes: Collection[str]) -> str | None:
    """Return why this machine has too little memory for a case, and what to do, or None."""
    needed = needed_bytes(case, modes)
    if is_available(needed):
        return None
    return (
        f"needs about {_in_words(needed)} of memory, {_in_words(_available())} are available; take "
        "fewer keys, rows, heads or segments, or a larger machine"
    )


def is_available(n_bytes: int) -> bool:
    """Tell whether programs can have so much memory."""
    return n_bytes <= _SMALL or n_bytes <= _available()


def _available() -> int:
    n_bytes = available_memory()
    return sys.maxsize if n_bytes is None else n_bytes


def needed_bytes(case: Case, modes: Collection[str]) -> int:
    """Return roughly the bytes that this process and the worker need at once for a case.

    Measured peaks are within a third of it. It takes no time, however large the case is.
    """
    if not {case.type_K, case.type_V} <= TYPES.keys():  # it will not be computed
        return 0
    rows = case.ne3 * case.n_head * case.n_batch
    kv_rows = case.ne3 * case.n_head_kv * case.n_kv
    hsk, hsv = case.hsk_padded, case.hsv_padded
    raw = kv_rows * (row_bytes(case.type_K, hsk) + row_bytes(case.type_V, hsv))
    values = 4 * kv_rows * (hsk + hsv)
    mask = 2 * case.ne3 * case.mask_heads * case.n_batch * case.n_kv if case.mask else 0
    inputs = 4 * rows * hsk + raw + values + mask
    drawn = (1 + 2 * len(set(case.segment_types))) * values

    segments = case.segments if set(modes) - {"standard", "full_state"} else 1
    here, in_worker = ((segments + 1) * rows * (hsv + 2) * n for n in _BYTES_OF_RESULT)
    tensors = 2 * (1 + case.kv_view) * raw + 2 * mask
    if case.hot_window:
        steps = case.n_kv * (case.n_kv + case.hot_window) * 8 * 4
        slots = case.ne3 * case.n_head_kv * case.hot_window * 8 * (hsk + hsv)
        here, in_worker = here + steps, in_worker + steps + slots
    return 2 * inputs + max(drawn, _oracle(case, segments) + here) + tensors + in_worker


def _oracle(case: Case, segments: int) -> int:
    """Return the bytes that the oracle needs beside the inputs and its results."""
    keys = case.n_kv if case.boundaries else -(-case.n_kv // segments)
    rows = case.n_group * case.n_batch
    keys_at_once = min(case.n_head_kv * keys, max(keys, _SCORES // rows))
    scores = min(case.n_head_kv * rows * keys, max(_ROWS * keys, _SCORES))
    return keys_at_once * 8 * (case.hsk_padded + 4 * case.hsv_padded) + scores * _BYTES_OF_SCORE


def _in_words(n_bytes: int) -> str:
    size = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if size < 1024:
            return f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.3g} EiB"
