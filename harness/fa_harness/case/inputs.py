"""A case's inputs: Q, K, V, mask and sinks, the same bytes on every machine.

They are drawn from the case's regime, seed and shape alone. The inputs of a captured case come out
of a file instead. The random numbers of each array have a key of their own, so K is the same
whatever the mask is.
"""

import dataclasses
import itertools
from typing import Any

import numpy as np

from fa_harness.arrays import F16, F32, U8
from fa_harness.case import captures
from fa_harness.case.captures import Entry
from fa_harness.case.case import CAPTURED, Case
from fa_harness.case.masks import MASKS
from fa_harness.case.quants import decode, encode, row_bytes
from fa_harness.case.random_stream import Stream
from fa_harness.case.regimes import BY_NAME, draw_sinks


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """The arrays of a case. They are read-only, so that a kernel's run cannot change another's.

    `hsk` and `hsv` stand for the case's `hsk_padded` and `hsv_padded`.
    """

    q: F32
    """`[ne3, n_head, n_batch, hsk]`."""
    k_raw: U8
    """K as ggml keeps it: `[ne3, n_head_kv, n_kv, bytes of a row]`."""
    v_raw: U8
    """V as ggml keeps it: `[ne3, n_head_kv, n_kv, bytes of a row]`."""
    k: F32
    """The values of `k_raw`, exactly: `[ne3, n_head_kv, n_kv, hsk]`."""
    v: F32
    """The values of `v_raw`, exactly: `[ne3, n_head_kv, n_kv, hsv]`."""
    mask: F16 | None
    """`[ne3, mask_heads, n_batch, n_kv]`, added to the scores; -inf hides a key."""
    sinks: F32 | None
    """`[n_head]`."""
    segments: tuple[tuple[U8, U8], ...] = ()
    """K and V of each segment in its own types as ggml keeps them, `[ne3, n_head_kv, keys of the
    segment, bytes of a row]`; empty where the case names no segment types. `k` and `v` are then
    the values of these."""
    model_output: F32 | None = None
    """What the model's own call gave, `[ne3, n_head, n_batch, hsv]`, where a captured case computes
    just that, for all of its rows or some."""


def make_inputs(case: Case) -> Inputs:
    """Draw the inputs of a case, or take them from its capture.

    Its threads do not matter, and its segments and boundaries only where they have types.
    """
    inputs = _typed_inputs(case) if case.segment_types else _plain_inputs(case)
    if case.captured:
        inputs = dataclasses.replace(inputs, model_output=_model_output(case))
    segments = [array for pair in inputs.segments for array in pair]
    for array in [*vars(inputs).values(), *segments]:
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
    return inputs


def _plain_inputs(case: Case) -> Inputs:
    if case.regime == CAPTURED:
        return _captured_inputs(case)
    stream = Stream(case.regime, case.seed)
    q, k_values, v_values = BY_NAME[case.regime].draw(case, stream)
    return _encoded_inputs(
        case,
        q=q,
        k_raw=encode(k_values, case.type_K),
        v_raw=encode(v_values, case.type_V),
        mask=MASKS[case.mask_kind](case, stream) if case.mask else None,
        sinks=draw_sinks(case, stream) if case.sinks else None,
    )


def _encoded_inputs(case: Case, *, k_raw: U8, v_raw: U8, **others: Any) -> Inputs:
    """Return inputs of K and V as they are encoded; V may be the first elements of K's rows."""
    if case.v_is_view_of_k:
        v_raw = np.ascontiguousarray(k_raw[..., : row_bytes(case.type_V, case.hsv_padded)])
    k, v = decode(k_raw, case.type_K), decode(v_raw, case.type_V)
    return Inputs(k_raw=k_raw, v_raw=v_raw, k=k, v=v, **others)


def _captured_inputs(case: Case) -> Inputs:
    """Take the first sequences, heads, rows and keys of an entry, as many as the case has."""
    captures.checked(case)
    entry, found = captures.entry_of(case.captured), captures.arrays_of(case.captured)
    hot = np.s_[: case.ne3, : case.n_head_kv, : max(0, case.n_kv - entry.n_kv_cold)]
    of_k, of_v = [(found.k[hot], entry.type_K)], [(found.v[hot], entry.type_V)]
    if found.k_cold is not None and found.v_cold is not None:
        cold = np.s_[: case.ne3, : case.n_head_kv, : case.n_kv]
        of_k.insert(0, (found.k_cold[cold], entry.type_K_cold))
        of_v.insert(0, (found.v_cold[cold], entry.type_V_cold))
    mask = sinks = None
    if case.mask and found.mask is not None:
        mask = found.mask[: case.ne3, : case.mask_heads, : case.n_batch, : case.n_kv].copy()
    if case.sinks and found.sinks is not None:
        of_heads = found.sinks.reshape(entry.n_head_kv, -1)
        sinks = of_heads[: case.n_head_kv, : case.n_group].flatten()
    return _encoded_inputs(
        case,
        q=_padded(_rows(case, entry, found.q), case.hsk_padded),
        k_raw=_recoded(of_k, case.type_K, case.hsk_padded),
        v_raw=_recoded(of_v, case.type_V, case.hsv_padded),
        mask=mask,
        sinks=sinks,
    )


def _rows(case: Case, entry: Entry, array: F32) -> F32:
    """Return the case's rows of Q or the output, `[ne3, n_head, n_batch, n]`."""
    by_group = (entry.n_head_kv, entry.n_head // entry.n_head_kv)
    n = array.shape[-1]
    array = array.reshape(entry.ne3, *by_group, entry.n_batch, n)
    array = array[: case.ne3, : case.n_head_kv, : case.n_group, : case.n_batch]
    return array.reshape(case.ne3, case.n_head, case.n_batch, n)


def _model_output(case: Case) -> F32 | None:
    entry = captures.entry_of(case.captured)
    is_the_models = (
        case.n_kv >= entry.n_kv_seen
        and case.segment_types == entry.segment_types
        and (
            case.boundaries == (entry.n_kv_cold,)
            if entry.segment_types
            else (case.type_K, case.type_V) == (entry.type_K, entry.type_V)
        )
        and (case.max_bias, case.logit_softcap) == (entry.max_bias, entry.logit_softcap)
        and (case.mask, case.sinks) == (entry.mask_heads > 0, entry.has_sinks)
        and not case.hot_window
    )
    if not is_the_models:
        return None
    rows: F32 = _rows(case, entry, captures.arrays_of(case.captured).out).copy()
    return rows


def _recoded(parts: list[tuple[U8, str]], wanted: str, n: int) -> U8:
    """Return the rows of all parts in one type, with zeros up to `n` elements.

    Those that have the type already are taken as they are.
    """
    recoded = [
        np.array(raw) if type_name == wanted else encode(_padded(decode(raw, type_name), n), wanted)
        for raw, type_name in parts
        if raw.size
    ]
    return np.concatenate(recoded, axis=2)


def _padded(rows: F32, n: int) -> F32:
    """Return a copy with zeros up to `n` elements."""
    padded = np.zeros((*rows.shape[:-1], n), np.float32)
    padded[..., : rows.shape[-1]] = rows
    return padded


def _typed_inputs(case: Case) -> Inputs:
    """Take each segment's rows from the case with the whole cache in the segment's types."""
    limits = itertools.pairwise(case.segment_bounds())
    types = [case.types_of_segment(i) for i in range(case.segments)]
    whole = {own: _plain_inputs(case.of_segment(types.index(own))) for own in dict.fromkeys(types)}
    rows = [np.s_[:, :, start:stop] for start, stop in limits]
    cut = [(whole[own], at) for own, at in zip(types, rows, strict=True)]
    k = np.concatenate([part.k[at] for part, at in cut], axis=2)
    v = np.concatenate([part.v[at] for part, at in cut], axis=2)
    return dataclasses.replace(
        whole[types[0]],
        k=k,
        v=v,
        k_raw=encode(k, "f32"),
        v_raw=encode(v, "f32"),
        segments=tuple((part.k_raw[at], part.v_raw[at]) for part, at in cut),
    )
