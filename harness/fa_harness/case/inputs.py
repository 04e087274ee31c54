"""The data regimes: a case's Q, K, V, mask and sinks, from its regime, seed and shape alone.

Those of a captured case come out of a file instead; they are not drawn, and not of a regime.

Every number comes from the raw integers of a Philox generator, whose stream NumPy promises never to
change, through elementwise operations that IEEE 754 rounds in one way only. So the bytes are the
same on every machine; functions such as `exp`, and sums over an axis, would not give that.

The raw stream of each array has its own key, hence K is the same whatever the mask is.
"""

import dataclasses
import functools
import hashlib
import itertools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fa_harness.arrays import F16, F32, F64, U8, Bools, Ints
from fa_harness.case import captures
from fa_harness.case.captures import Entry
from fa_harness.case.case import CAPTURED, Case
from fa_harness.case.quants import decode, encode, row_bytes

QKV = tuple[F32, F32, F32]
Shape = tuple[int, ...]


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
    segments = [array for pair in inputs.segments for array in pair]
    for array in [*vars(inputs).values(), *segments]:
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
    return inputs


def _plain_inputs(case: Case) -> Inputs:
    if case.regime == CAPTURED:
        return _captured_inputs(case)
    stream = _Stream(case.regime, case.seed)
    q, k_values, v_values = _REGIMES[case.regime].draw(case, stream)
    k_raw = encode(k_values, case.type_K)
    k = decode(k_raw, case.type_K)
    if case.v_is_view_of_k:
        v_raw = np.ascontiguousarray(k_raw[..., : row_bytes(case.type_V, case.hsv_padded)])
    else:
        v_raw = encode(v_values, case.type_V)
    return Inputs(
        q=q,
        k_raw=k_raw,
        v_raw=v_raw,
        k=k,
        v=decode(v_raw, case.type_V),
        mask=_MASKS[case.mask_kind](case, stream) if case.mask else None,
        sinks=_sinks(case, stream) if case.sinks else None,
    )


def _captured_inputs(case: Case) -> Inputs:
    """Take the first sequences, heads, rows and keys of an entry, as many as the case has."""
    captures.checked(case)
    entry, found = captures.entry_of(case.captured), captures.arrays_of(case.captured)
    by_group = (entry.n_head_kv, entry.n_head // entry.n_head_kv)

    def rows(array: F32) -> F32:
        """Return the case's rows of Q or the output, `[ne3, n_head, n_batch, n]`."""
        n = array.shape[-1]
        array = array.reshape(entry.ne3, *by_group, entry.n_batch, n)
        array = array[: case.ne3, : case.n_head_kv, : case.n_group, : case.n_batch]
        return array.reshape(case.ne3, case.n_head, case.n_batch, n)

    keys = np.s_[: case.ne3, : case.n_head_kv, : case.n_kv]
    k_raw = _recoded(found.k[keys], entry.type_K, case.type_K, case.hsk_padded)
    if case.v_is_view_of_k:
        v_raw = np.ascontiguousarray(k_raw[..., : row_bytes(case.type_V, case.hsv_padded)])
    else:
        v_raw = _recoded(found.v[keys], entry.type_V, case.type_V, case.hsv_padded)
    mask = sinks = None
    if case.mask and found.mask is not None:
        mask = found.mask[: case.ne3, : case.mask_heads, : case.n_batch, : case.n_kv].copy()
    if case.sinks and found.sinks is not None:
        sinks = found.sinks.reshape(by_group)[: case.n_head_kv, : case.n_group].flatten()
    return Inputs(
        q=_padded(rows(found.q), case.hsk_padded),
        k_raw=k_raw,
        v_raw=v_raw,
        k=decode(k_raw, case.type_K),
        v=decode(v_raw, case.type_V),
        mask=mask,
        sinks=sinks,
        model_output=rows(found.out).copy() if _is_the_models_call(case, entry) else None,
    )


def _is_the_models_call(case: Case, entry: Entry) -> bool:
    return (
        case.n_kv >= entry.n_kv_seen
        and (case.type_K, case.type_V) == (entry.type_K, entry.type_V)
        and (case.max_bias, case.logit_softcap) == (entry.max_bias, entry.logit_softcap)
        and (case.mask, case.sinks) == (entry.mask_heads > 0, entry.has_sinks)
        and not case.hot_window
    )


def _recoded(raw: U8, type_name: str, wanted: str, n: int) -> U8:
    """Return rows in another type, with zeros up to `n` elements; those of the same as they are."""
    if type_name == wanted:
        return np.array(raw)
    return encode(_padded(decode(raw, type_name), n), wanted)


def _padded(rows: F32, n: int) -> F32:
    """Return a copy with zeros up to `n` elements."""
    padded = np.zeros((*rows.shape[:-1], n), np.float32)
    padded[..., : rows.shape[-1]] = rows
    return padded


def _typed_inputs(case: Case) -> Inputs:
    """Take each segment's rows from the case with the whole cache in the segment's types."""
    limits = list(itertools.pairwise(case.segment_bounds()))
    whole = {
        types: _plain_inputs(case.of_segment(i))
        for types, i in {case.types_of_segment(i): i for i in range(case.segments)}.items()
    }
    parts = [whole[case.types_of_segment(i)] for i in range(case.segments)]
    rows = [np.s_[:, :, start:stop] for start, stop in limits]
    k = np.concatenate([part.k[at] for part, at in zip(parts, rows, strict=True)], axis=2)
    v = np.concatenate([part.v[at] for part, at in zip(parts, rows, strict=True)], axis=2)
    return dataclasses.replace(
        parts[0],
        model_output=None,
        k=k,
        v=v,
        k_raw=encode(k, "f32"),
        v_raw=encode(v, "f32"),
        segments=tuple(
            (part.k_raw[at], part.v_raw[at]) for part, at in zip(parts, rows, strict=True)
        ),
    )


class _Stream:
    """Random arrays by name. A name's numbers depend on the regime, the seed and the size alone."""

    _CHUNK = 1 << 18  # keeps the raw integers in the cache and their memory small

    def __init__(self, regime: str, seed: int) -> None:
        self._key = f"{regime}/{seed}"
        self._generator = np.random.Philox(key=0)
        self._state = self._generator.state

    def words(self, name: str, shape: Shape) -> NDArray[np.uint64]:
        """Raw 64-bit integers."""
        return self._philox(name).random_raw(math.prod(shape)).reshape(shape)

    def halves(self, name: str, shape: Shape) -> NDArray[np.uint16]:
        """Raw 16-bit integers."""
        n = math.prod(shape)
        raw = self._philox(name).random_raw((n + 3) // 4).astype("<u8", copy=False)
        return raw.view("<u2")[:n].reshape(shape)

    def below(self, name: str, limit: int, shape: Shape) -> Ints:
        """Integers in [0, limit), for limits far below 2^32."""
        upper = self.words(name, shape) >> np.uint64(32)
        scaled: NDArray[np.uint64] = upper * np.uint64(limit) >> np.uint64(32)
        return scaled.astype(np.int64)

    def signs(self, name: str, shape: Shape) -> F32:
        """-1 or +1."""
        return (self.below(name, 2, shape) * 2 - 1).astype(np.float32)

    def uniform(self, name: str, shape: Shape) -> F32:
        """Multiples of 2^-23 in [-1, 1)."""
        philox = self._philox(name)
        values = np.empty(math.prod(shape), dtype=np.float32)
        for start in range(0, values.size, self._CHUNK):
            part = values[start : start + self._CHUNK]
            raw = philox.random_raw((part.size + 1) // 2).astype("<u8", copy=False)
            part[:] = raw.view("<u4")[: part.size] >> np.uint32(8)
            part *= np.float32(2.0**-23)
            part -= np.float32(1)
        return values.reshape(shape)

    def normal(self, name: str, shape: Shape) -> F32:
        """Mean 0, standard deviation 1, within 3.47: the sum of four uniform numbers."""
        philox = self._philox(name)
        values = np.empty(math.prod(shape), dtype=np.float32)
        to_unit, two_quarters = np.float32(math.sqrt(3) / 2**16), np.uint64(0x0000_FFFF_0000_FFFF)
        for start in range(0, values.size, self._CHUNK):
            part = values[start : start + self._CHUNK]
            raw = philox.random_raw(part.size)
            halves = raw & two_quarters  # four quarters are added in pairs
            halves += raw >> np.uint64(16) & two_quarters
            halves += halves >> np.uint64(32)
            part[:] = halves.astype(np.uint32)
            part -= np.float32(131070)
            part *= to_unit
        return values.reshape(shape)

    def heavy_tailed(self, name: str, max_exponent: int, shape: Shape) -> F32:
        """2^e, where e is at least n with probability 2^-n and at most `max_exponent`."""
        raw = self.halves(name, shape)
        exponent = np.zeros(shape, dtype=np.int32)
        for n in range(1, max_exponent + 1):
            exponent += raw < 2 ** (16 - n)
        return np.ldexp(np.ones(shape, dtype=np.float32), exponent)

    def _philox(self, name: str) -> np.random.Philox:
        """Return the generator at the start of a name's numbers, of use until the next name's.

        One that is made anew asks the system for random bytes first, for nothing.
        """
        digest = hashlib.sha256(f"{self._key}/{name}".encode()).digest()
        self._state["state"]["key"] = np.frombuffer(digest, "<u8", count=2)
        self._generator.state = self._state
        return self._generator


def _q_shape(case: Case) -> Shape:
    return (case.ne3, case.n_head, case.n_batch, case.hsk_padded)


def _k_shape(case: Case) -> Shape:
    return (case.ne3, case.n_head_kv, case.n_kv, case.hsk_padded)


def _v_shape(case: Case) -> Shape:
    return (case.ne3, case.n_head_kv, case.n_kv, case.hsv_padded)


def _to_query_heads(case: Case, per_kv_head: F32) -> F32:
    """Repeat `[ne3, n_head_kv, ...]` for the query heads of each group."""
    return np.repeat(per_kv_head, case.n_group, axis=1)


def _uniform(case: Case, stream: _Stream) -> QKV:
    return (
        stream.uniform("q", _q_shape(case)),
        stream.uniform("k", _k_shape(case)),
        stream.uniform("v", _v_shape(case)),
    )


def _normal(case: Case, stream: _Stream) -> QKV:
    return (
        stream.normal("q", _q_shape(case)),
        stream.normal("k", _k_shape(case)),
        stream.normal("v", _v_shape(case)),
    )


def _spiky(case: Case, stream: _Stream) -> QKV:
    """Scores of standard deviation 10: one key or a few take all of the weight."""
    q, k, v = _normal(case, stream)
    return q * np.float32(10), k, v


def _rising(case: Case, stream: _Stream) -> QKV:
    """Scores that rise by 6 from the first key to the last, with noise of 1/4.

    Every segment raises the maximum as long as its own rise is well above the noise, which eight
    equal segments have; the first of them still carries weight.
    """
    return _ramp(case, stream, _ramp_scores(case))


def _falling(case: Case, stream: _Stream) -> QKV:
    """Scores that fall by 6: the first segment holds the maximum."""
    return _ramp(case, stream, 6 - _ramp_scores(case))


def _ramp_scores(case: Case) -> F64:
    return 6 * np.arange(case.n_kv) / max(1, case.n_kv - 1)


def _ramp(case: Case, stream: _Stream, scores: F64) -> QKV:
    q, k, v = _normal(case, stream)
    direction = stream.signs("direction", (case.ne3, case.n_head_kv, 1, case.hsk_padded))
    along_k = (scores / math.sqrt(case.hsk_padded)).astype(np.float32)[:, np.newaxis]
    quarter = np.float32(0.25)
    return _to_query_heads(case, direction) + quarter * q, along_k * direction + quarter * k, v


def _ties(case: Case, stream: _Stream) -> QKV:
    """Four distinct K rows a head, so that many scores, also the largest, are exactly equal."""
    q, _, v = _normal(case, stream)
    rows = stream.normal("k", (case.ne3, case.n_head_kv, 4, case.hsk_padded))
    chosen = stream.below("row of k", 4, (case.ne3, case.n_head_kv, case.n_kv, 1))
    return q, np.take_along_axis(rows, chosen, axis=2), v


def _offset(case: Case, stream: _Stream) -> QKV:
    """V of mean 10 and standard deviation 1: the numerators grow with the number of keys."""
    q, k, v = _normal(case, stream)
    return q, k, v + np.float32(10)


def _outlier(case: Case, stream: _Stream) -> QKV:
    """K with a few large channels and large keys, as language models have; V with heavy tails."""
    q, k, v = _normal(case, stream)
    k *= stream.heavy_tailed("channel of k", 4, (case.ne3, case.n_head_kv, 1, case.hsk_padded))
    is_large_key = stream.below("key of k", 16, (case.ne3, case.n_head_kv, case.n_kv, 1)) == 0
    k *= np.where(is_large_key, np.float32(2), np.float32(1))
    v *= stream.heavy_tailed("exponent of v", 6, _v_shape(case))
    return q * np.float32(0.5), k, v


def _huge(case: Case, stream: _Stream) -> QKV:
    """K and V near the F16 range: eight dominating keys, the others far below.

    The dominating keys have V of magnitude 2^15 to 2^15.8 and come in pairs of one score: 12, 18,
    24 or 30. Upstream accumulates an F16 V in F16, so there the two of a pair have V of opposite
    signs, and the numerators stay finite in whatever segments the keys are taken. Any other type
    accumulates in F32; its pairs agree in sign, and the numerators exceed the F16 range.
    """
    n_peak = max(1, min(8, case.n_kv // 4))
    q, k, v = _normal(case, stream)
    heads = (case.ne3, case.n_head_kv)
    # powers of two are exact in every type that the kernel converts Q to
    q_step = np.float32(2.0**-13 if case.hsk_padded >= 64 else 2.0**-11)
    direction = stream.signs("direction", (*heads, 1, case.hsk_padded))
    q = q_step * (_to_query_heads(case, direction) + np.float32(0.25) * q)

    k *= np.float32(1 / 8) / q_step
    v *= np.float32(64)
    peaks = _spread_keys(case, stream, n_peak)
    levels = np.argsort(stream.words("level", (*heads, (n_peak + 1) // 2)), axis=-1, kind="stable")
    scores = 12 + 6 * np.repeat(levels, 2, axis=-1)[..., :n_peak, np.newaxis]
    along_k = (scores / (math.sqrt(case.hsk_padded) * float(q_step))).astype(np.float32)
    np.put_along_axis(k, peaks, along_k * direction, axis=2)

    magnitude = np.float32(2**15) * (
        np.float32(1.375)
        + np.float32(0.375) * stream.uniform("peak of v", (*heads, n_peak, case.hsv_padded))
    )
    sign = stream.signs("sign of v", (*heads, 1, case.hsv_padded))
    if case.type_V == "f16":
        sign = sign * np.array([1, -1] * 4, dtype=np.float32)[:n_peak, np.newaxis]
    np.put_along_axis(v, peaks, magnitude * sign, axis=2)
    return q, k, v


def _constructed(case: Case, stream: _Stream) -> QKV:
    """Results known without an oracle, by the parity of query row plus head.

    Even: Q is 0, so the output is the mean of V. Odd: Q is aligned with one key, whose score is
    above every other by 40 and more, so the output is that key's V.

    The keys that Q may be aligned with are rows of a Hadamard matrix, hence orthogonal.
    """
    n_target = min(8, 1 << (case.hsk_padded.bit_length() - 1), case.n_kv)
    q, k, v = _normal(case, stream)
    targets = _spread_keys(case, stream, n_target)
    code, channel = np.arange(n_target)[:, np.newaxis], np.arange(case.hsk_padded)
    both = code & channel
    hadamard = (1 - 2 * ((both ^ both >> 1 ^ both >> 2) & 1)).astype(np.float32)
    codes = hadamard * stream.signs("direction", (case.ne3, case.n_head_kv, 1, case.hsk_padded))
    k *= np.float32(1 / 8)
    np.put_along_axis(k, targets, codes, axis=2)

    chosen = stream.below("target", n_target, (case.ne3, case.n_head, case.n_batch, 1))
    q = np.take_along_axis(_to_query_heads(case, codes), chosen, axis=2)
    q *= np.float32(next(2**n for n in range(7) if 4**n * case.hsk_padded >= 64**2))
    parity = (np.arange(case.n_head)[:, np.newaxis] + np.arange(case.n_batch)) & 1
    return q * parity.astype(np.float32)[..., np.newaxis], k, v


def _spread_keys(case: Case, stream: _Stream, n: int) -> Ints:
    """One key out of each n-th of the keys, `[ne3, n_head_kv, n, 1]`."""
    starts = np.arange(n) * case.n_kv // n
    offset = stream.below("spread", case.n_kv // n, (case.ne3, case.n_head_kv, n))
    return (starts + offset)[..., np.newaxis]


def _few(case: Case, stream: _Stream) -> QKV:
    """A few small whole numbers, for a person to read: Q and K of -1, 0 and 1, V of 1 to 4.

    No two neighbouring keys have the same V.
    """
    q, k = (
        (stream.below(name, 3, shape) - 1).astype(np.float32)
        for name, shape in (("q", _q_shape(case)), ("k", _k_shape(case)))
    )
    step = np.arange(case.n_kv)[:, np.newaxis]
    v = 1 + (stream.below("v", 2, _v_shape(case)) + 2 * step) % 4
    return q, k, v.astype(np.float32)


def _seed(case: Case, stream: _Stream) -> QKV:
    """The minimal case on which the unconditional reset of the accumulator was found."""
    return (
        np.array([1, 0, 0, 0], dtype=np.float32).reshape(_q_shape(case)),
        np.array([[1, 0, 0, 0], [0, 1, 0, 0]], dtype=np.float32).reshape(_k_shape(case)),
        np.array([[1, 2, 3, 4], [5, 6, 7, 8]], dtype=np.float32).reshape(_v_shape(case)),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Regime:
    draw: Callable[[Case, _Stream], QKV]
    top_score: float
    """About the largest score of a row; the sinks lie around it."""


_REGIMES = {
    "uniform": _Regime(draw=_uniform, top_score=1),
    "normal": _Regime(draw=_normal, top_score=3),
    "spiky": _Regime(draw=_spiky, top_score=30),
    "rising": _Regime(draw=_rising, top_score=6),
    "falling": _Regime(draw=_falling, top_score=6),
    "ties": _Regime(draw=_ties, top_score=1),
    "offset": _Regime(draw=_offset, top_score=3),
    "outlier": _Regime(draw=_outlier, top_score=8),
    "huge": _Regime(draw=_huge, top_score=30),
    "constructed": _Regime(draw=_constructed, top_score=1),
    "few": _Regime(draw=_few, top_score=1),
    "seed": _Regime(draw=_seed, top_score=1),
}


def _sinks(case: Case, stream: _Stream) -> F32:
    """Even heads have theirs above the regime's usual top score, odd ones below it."""
    top = min(_REGIMES[case.regime].top_score, case.logit_softcap or math.inf)
    distance = (stream.uniform("sinks", (case.n_head,)) + np.float32(1)) * np.float32(2)
    is_even = np.arange(case.n_head) % 2 == 0
    sinks: F32 = np.float32(top) + np.where(is_even, distance, np.float32(-2) * distance)
    return sinks


def _mask_shape(case: Case) -> Shape:
    return (case.ne3, case.mask_heads, case.n_batch, case.n_kv)


def _hide(is_hidden: Bools) -> F16:
    mask: F16 = np.where(is_hidden, np.float16(-np.inf), np.float16(0))
    return mask


def _zeros_mask(case: Case, stream: _Stream) -> F16:
    return np.zeros(_mask_shape(case), dtype=np.float16)


def _random_mask(case: Case, stream: _Stream) -> F16:
    """Values in [-1, 1), blocks of 0, blocks and single keys hidden, but no whole row."""
    mask = _mask_values()[stream.halves("mask", _mask_shape(case))]

    height, width = min(64, -(-case.n_batch // 4)), min(128, -(-case.n_kv // 4))
    n_block = max(1, mask.size // (5 * height * width))
    limits = (
        (case.ne3, "ne3"),
        (case.mask_heads, "head"),
        (case.n_batch, "row"),
        (case.n_kv, "key"),
    )
    corners = [stream.below(f"{name} of block", limit, (n_block,)) for limit, name in limits]
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


def _causal_mask(case: Case, stream: _Stream) -> F16:
    """With ALiBi the distance of a key behind its row counts, as llama.cpp fills its mask."""
    mask = _hide(_is_future(case))
    if case.max_bias:
        position = case.n_kv - case.n_batch + np.arange(case.n_batch)
        behind = position[:, np.newaxis] - np.arange(case.n_kv)
        mask = np.where(behind >= 0, (-behind).astype(np.float16), mask)
    return np.ascontiguousarray(np.broadcast_to(mask, _mask_shape(case)))


def _is_future(case: Case) -> Bools:
    """`[n_batch, n_kv]`; the query rows are the last of the sequence."""
    position = case.n_kv - case.n_batch + np.arange(case.n_batch)
    return np.arange(case.n_kv) > position[:, np.newaxis]


def _leading_mask(case: Case, stream: _Stream) -> F16:
    """Causal, with a third of the rows hidden as a whole and a quarter of the keys from all rows.

    They are the first ones. Each sequence and head hides another key more than the one before.
    """
    n_hidden_row = max(1, case.n_batch // 3) if case.n_batch > 1 else 0
    plane = np.arange(case.ne3 * case.mask_heads).reshape(case.ne3, case.mask_heads, 1, 1)
    n_hidden_key = np.minimum(max(1, case.n_kv // 4) + plane, case.n_kv - 1)
    is_hidden_row = np.arange(case.n_batch)[:, np.newaxis] < n_hidden_row
    return _hide(_is_future(case) | is_hidden_row | (np.arange(case.n_kv) < n_hidden_key))


def _sparse_mask(case: Case, stream: _Stream) -> F16:
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


def _masked_segment_mask(case: Case, stream: _Stream) -> F16:
    """Random, with the middle third of the keys hidden from all rows."""
    mask = _random_mask(case, stream)
    mask[..., case.n_kv // 3 : 2 * case.n_kv // 3] = -np.inf
    return _show_last_key(mask)


_MASKS: dict[str, Callable[[Case, _Stream], F16]] = {
    "random": _random_mask,
    "causal": _causal_mask,
    "leading": _leading_mask,
    "zeros": _zeros_mask,
    "sparse": _sparse_mask,
    "masked_segment": _masked_segment_mask,
}
