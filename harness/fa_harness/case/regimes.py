"""The data regimes: Q, K, V and sinks, each drawn to show what another would hide."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fa_harness.arrays import F32, Ints
from fa_harness.case.case import CAPTURED, Case
from fa_harness.case.random_stream import Shape, Stream

QKV = tuple[F32, F32, F32]


def _shapes(case: Case) -> dict[str, Shape]:
    of_keys = (case.ne3, case.n_head_kv, case.n_kv)
    return {
        "q": (case.ne3, case.n_head, case.n_batch, case.hsk_padded),
        "k": (*of_keys, case.hsk_padded),
        "v": (*of_keys, case.hsv_padded),
    }


def _to_query_heads(case: Case, per_kv_head: F32) -> F32:
    """Repeat `[ne3, n_head_kv, ...]` for the query heads of each group."""
    return np.repeat(per_kv_head, case.n_group, axis=1)


def _normal(
    case: Case, stream: Stream, draw: Callable[[Stream, str, Shape], F32] = Stream.normal
) -> QKV:
    q, k, v = (draw(stream, name, shape) for name, shape in _shapes(case).items())
    return q, k, v


def _spiky(case: Case, stream: Stream) -> QKV:
    """Scores of standard deviation 10: one key or a few take all of the weight."""
    q, k, v = _normal(case, stream)
    return q * np.float32(10), k, v


def _rising(case: Case, stream: Stream, *, falls: bool = False) -> QKV:
    """Scores that rise by 6 from the first key to the last, with noise of 1/4.

    Every segment raises the maximum as long as its own rise is well above the noise, which eight
    equal segments have; the first of them still carries weight. If the scores fall instead, the
    first segment holds the maximum.
    """
    q, k, v = _normal(case, stream)
    scores = 6 * np.arange(case.n_kv) / max(1, case.n_kv - 1)
    scores = 6 - scores if falls else scores
    direction = stream.signs("direction", (case.ne3, case.n_head_kv, 1, case.hsk_padded))
    along_k = (scores / math.sqrt(case.hsk_padded)).astype(np.float32)[:, np.newaxis]
    quarter = np.float32(0.25)
    return _to_query_heads(case, direction) + quarter * q, along_k * direction + quarter * k, v


def _ties(case: Case, stream: Stream) -> QKV:
    """Four distinct K rows a head, so that many scores, also the largest, are exactly equal."""
    q, _, v = _normal(case, stream)
    rows = stream.normal("k", (case.ne3, case.n_head_kv, 4, case.hsk_padded))
    chosen = stream.below("row of k", 4, (case.ne3, case.n_head_kv, case.n_kv, 1))
    return q, np.take_along_axis(rows, chosen, axis=2), v


def _offset(case: Case, stream: Stream) -> QKV:
    """V of mean 10 and standard deviation 1: the numerators grow with the number of keys."""
    q, k, v = _normal(case, stream)
    return q, k, v + np.float32(10)


def _outlier(case: Case, stream: Stream) -> QKV:
    """K with a few large channels and large keys, as language models have; V with heavy tails."""
    q, k, v = _normal(case, stream)
    k *= stream.heavy_tailed("channel of k", 4, (case.ne3, case.n_head_kv, 1, case.hsk_padded))
    is_large_key = stream.below("key of k", 16, (case.ne3, case.n_head_kv, case.n_kv, 1)) == 0
    k *= np.where(is_large_key, np.float32(2), np.float32(1))
    v *= stream.heavy_tailed("exponent of v", 6, v.shape)
    return q * np.float32(0.5), k, v


def _huge(case: Case, stream: Stream) -> QKV:
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

    drawn = stream.uniform("peak of v", (*heads, n_peak, case.hsv_padded))
    magnitude = np.float32(2**15) * (np.float32(1.375) + np.float32(0.375) * drawn)
    sign = stream.signs("sign of v", (*heads, 1, case.hsv_padded))
    if case.type_V == "f16":
        sign = sign * np.array([1, -1] * 4, dtype=np.float32)[:n_peak, np.newaxis]
    np.put_along_axis(v, peaks, magnitude * sign, axis=2)
    return q, k, v


def _constructed(case: Case, stream: Stream) -> QKV:
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


def _spread_keys(case: Case, stream: Stream, n: int) -> Ints:
    """One key out of each n-th of the keys, `[ne3, n_head_kv, n, 1]`."""
    starts = np.arange(n) * case.n_kv // n
    offset = stream.below("spread", case.n_kv // n, (case.ne3, case.n_head_kv, n))
    return (starts + offset)[..., np.newaxis]


def _nan(case: Case, stream: Stream) -> QKV:
    """Normal, with a number in each KV head that is not finite, or two.

    In every other head it is a NaN in one row of Q, or in V where there is but one row: the rest of
    the head stays finite. In the others, by turns, it is a NaN in the K of a key, or in its V, an
    infinity in K, or infinities of both signs in V.
    """
    q, k, v = _normal(case, stream)
    rows = q.reshape(case.ne3, case.n_head_kv, case.n_group * case.n_batch, -1)
    heads = (case.ne3, case.n_head_kv)
    keys = stream.below("key", case.n_kv, heads)
    row = stream.below("row", rows.shape[2], heads)
    of_k = stream.below("element of k", case.hsk, heads)
    of_v = stream.below("element of v", case.hsv, heads)
    for turn, (i3, head) in enumerate(np.ndindex(heads)):
        key, in_k, in_v = keys[i3, head], of_k[i3, head], of_v[i3, head]
        kind, is_odd = divmod(turn + case.seed, 2)
        if is_odd and rows.shape[2] > 1:
            rows[i3, head, row[i3, head], in_k] = np.nan
        elif is_odd or kind % 4 == 1:
            v[i3, head, key, in_v] = np.nan
        elif kind % 4 == 0:
            k[i3, head, key, in_k] = np.nan
        elif kind % 4 == 2:
            k[i3, head, key, in_k] = np.inf
        else:
            v[i3, head, key, in_v], v[i3, head, key, in_v - 1] = np.inf, -np.inf
    return q, k, v


def _few(case: Case, stream: Stream) -> QKV:
    """A few small whole numbers, for a person to read: Q and K of -1, 0 and 1, V of 1 to 4.

    No two neighbouring keys have the same V.
    """
    shapes, step = _shapes(case), np.arange(case.n_kv)[:, np.newaxis]
    q, k = ((stream.below(name, 3, shapes[name]) - 1).astype(np.float32) for name in ("q", "k"))
    v = 1 + (stream.below("v", 2, shapes["v"]) + 2 * step) % 4
    return q, k, v.astype(np.float32)


def _seed(case: Case, stream: Stream) -> QKV:
    """The minimal case on which the unconditional reset of the accumulator was found."""
    values = ([1, 0, 0, 0], [[1, 0, 0, 0], [0, 1, 0, 0]], [[1, 2, 3, 4], [5, 6, 7, 8]])
    q, k, v = (
        np.array(of_one, np.float32).reshape(shape)
        for of_one, shape in zip(values, _shapes(case).values(), strict=True)
    )
    return q, k, v


class Regime(NamedTuple):
    """How Q, K and V are drawn."""

    draw: Callable[[Case, Stream], QKV]
    top_score: float
    """About the largest score of a row; the sinks lie around it."""


BY_NAME = {
    "uniform": Regime(functools.partial(_normal, draw=Stream.uniform), 1),
    "normal": Regime(_normal, 3),
    "spiky": Regime(_spiky, 30),
    "rising": Regime(_rising, 6),
    "falling": Regime(functools.partial(_rising, falls=True), 6),
    "ties": Regime(_ties, 1),
    "offset": Regime(_offset, 3),
    "outlier": Regime(_outlier, 8),
    "huge": Regime(_huge, 30),
    "constructed": Regime(_constructed, 1),
    "nan": Regime(_nan, 3),
    "few": Regime(_few, 1),
    "seed": Regime(_seed, 1),
}

CENTRED = ("uniform", "normal", "spiky", "rising", "falling", "ties", "outlier", "nan")
"""Those whose V is symmetric about zero."""


def top_score(case: Case) -> float:
    """Return about the largest score of a row; of a capture, whose scores are unknown, some."""
    of_regime = 4.0 if case.regime == CAPTURED else BY_NAME[case.regime].top_score
    return min(of_regime, case.logit_softcap or math.inf)


def draw_sinks(case: Case, stream: Stream) -> F32:
    """Even heads have theirs above the regime's usual top score, odd ones below it."""
    top = top_score(case)
    distance = (stream.uniform("sinks", (case.n_head,)) + np.float32(1)) * np.float32(2)
    is_even = np.arange(case.n_head) % 2 == 0
    sinks: F32 = np.float32(top) + np.where(is_even, distance, np.float32(-2) * distance)
    return sinks
