"""The kinds of masks, `[ne3, mask_heads, n_batch, n_kv]`: added to the scores, -inf hides a key."""

import functools
import math
from collections.abc import Callable

import numpy as np

from fa_harness.arrays import F16, Bools, Ints
from fa_harness.case.case import Case
from fa_harness.case.random_stream import Shape, Stream


def _mask_shape(case: Case) -> Shape:
    return (case.ne3, case.mask_heads, case.n_batch, case.n_kv)


def _hide(is_hidden: Bools) -> F16:
    mask: F16 = np.where(is_hidden, np.float16(-np.inf), np.float16(0))
    return mask


def _random_mask(case: Case, stream: Stream) -> F16:
    """Values in [-1, 1), blocks of 0, blocks and single keys hidden, but no whole row."""
    mask = _mask_values()[stream.halves("mask", _mask_shape(case))]

    height, width = min(64, -(-case.n_batch // 4)), min(128, -(-case.n_kv // 4))
    n_block = max(1, mask.size // (5 * height * width))
    limits = zip(("ne3", "head", "row", "key"), mask.shape, strict=True)
    corners = [stream.below(f"{name} of block", limit, (n_block,)) for name, limit in limits]
    for i, (i3, head, row, key) in enumerate(zip(*corners, strict=True)):
        block = mask[i3, head, row : row + height, key : key + width]
        block[...] = 0 if i % 2 else -np.inf
    return _show_last_key(mask)


@functools.cache
def _mask_values() -> F16:
    """Return the entry of a random mask for each 16-bit integer."""
    raw = np.arange(2**16)
    value_of: F16 = ((raw >> 5) / np.float32(2**10) - 1).astype(np.float16)
    value_of[raw % 32 == 0] = -np.inf
    return value_of


def _show_last_key(mask: F16) -> F16:
    """Make the last key visible to rows that see none."""
    sees_none = np.isneginf(mask).all(axis=-1)
    mask[..., -1][sees_none] = 0
    return mask


def _causal_mask(case: Case, stream: Stream) -> F16:
    """With ALiBi the distance of a key behind its row counts, as llama.cpp fills its mask."""
    behind = _behind(case)
    mask = _hide(behind < 0)
    if case.max_bias:
        mask = np.where(behind >= 0, (-behind).astype(np.float16), mask)
    return np.ascontiguousarray(np.broadcast_to(mask, _mask_shape(case)))


def _behind(case: Case) -> Ints:
    """By how much a key is behind its row, `[n_batch, n_kv]`; rows are the sequence's last."""
    position = case.n_kv - case.n_batch + np.arange(case.n_batch)
    return position[:, np.newaxis] - np.arange(case.n_kv)


def _leading_mask(case: Case, stream: Stream) -> F16:
    """Causal, with a third of the rows hidden as a whole and a quarter of the keys from all rows.

    They are the first ones. Each sequence and head hides another key more than the one before. Of
    single rows, the first head's is hidden if each head has a mask of its own.
    """
    plane = np.arange(case.ne3 * case.mask_heads).reshape(case.ne3, case.mask_heads, 1, 1)
    n_hidden_row = np.full_like(plane, max(1, case.n_batch // 3))
    if case.n_batch == 1:
        n_hidden_row = ((plane == 0) & (case.mask_heads > 1)).astype(int)
    n_hidden_key = np.minimum(max(1, case.n_kv // 4) + plane, case.n_kv - 1)
    is_hidden_row = np.arange(case.n_batch)[:, np.newaxis] < n_hidden_row
    return _hide((_behind(case) < 0) | is_hidden_row | (np.arange(case.n_kv) < n_hidden_key))


def _sparse_mask(case: Case, stream: Stream) -> F16:
    """As upstream's test: up to `n_kv_max` keys a row are visible, some rows see a few less."""
    shape = _mask_shape(case)
    row = np.arange(math.prod(shape[:-1])).reshape(*shape[:-1], 1)
    n_visible = case.n_kv_max - row % min(case.n_kv_max, 17)
    order = np.argsort(stream.words("mask", shape), axis=-1, kind="stable")[..., : case.n_kv_max]
    value = np.float16(-0.03125) * ((order + row) % 7 + 1).astype(np.float16)
    value[np.arange(case.n_kv_max) >= n_visible] = -np.inf
    mask = np.full(shape, -np.inf, dtype=np.float16)
    np.put_along_axis(mask, order, value, axis=-1)
    return mask


def _masked_segment_mask(case: Case, stream: Stream) -> F16:
    """Random, with the middle third of the keys hidden from all rows."""
    mask = _random_mask(case, stream)
    mask[..., case.n_kv // 3 : 2 * case.n_kv // 3] = -np.inf
    return _show_last_key(mask)


def _lowest_mask(case: Case, stream: Stream) -> F16:
    """As `leading`, with F16's lowest number in place of -inf.

    The exponential of such a score is 0 beside any other; a row that sees no other key attends to
    all that are there.
    """
    mask = _leading_mask(case, stream)
    mask[np.isneginf(mask)] = np.finfo(np.float16).min
    return mask


MASKS: dict[str, Callable[[Case, Stream], F16]] = {
    "random": _random_mask,
    "causal": _causal_mask,
    "leading": _leading_mask,
    "zeros": lambda case, stream: np.zeros(_mask_shape(case), dtype=np.float16),
    "sparse": _sparse_mask,
    "masked_segment": _masked_segment_mask,
    "lowest": _lowest_mask,
}
