"""Case: everything that fixes one computation, printed and parsed in upstream's form."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from fa_harness.case.case_string import OP, format_field, format_value, read_fields, spelled
from fa_harness.case.quants import FLOAT_TYPES, OTHER_TYPES, TYPES
from fa_harness.errors import UsageError

_DRAWN = ("uniform", "normal", "spiky", "rising", "falling", "ties", "offset", "outlier", "huge")
REGIMES = (*_DRAWN, "constructed", "nan", "few", "seed")
MASK_KINDS = ("none", "random", "causal", "leading", "zeros", "sparse", "masked_segment", "lowest")
CAPTURED = "captured"
"""Regime and kind of mask of a case whose inputs are not drawn, but those of a model."""
MAX_THREADS = 512
"""`GGML_MAX_N_THREADS`."""

_DERIVED = ""
_OPTIONAL = ("mask_heads", "boundaries", "segment_types", "hot_window", "captured", "kq_scale")
"""Fields that a case string leaves out where they have their default."""
_MOST_INT = 2**63 - 1
_MOST_FLOAT = float(np.finfo(np.float32).max)
"""What ggml can be told."""
_UNKNOWN_TYPE = f"unknown type; known are {', '.join(TYPES)}"

Rules = Iterator[tuple[bool, str, str]]
"""Whether a rule holds, the field that it is about, and what is wrong with it if not."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One computation. The fields up to `n_kv_max` are those of upstream's `test-backend-ops`.

    A case that cannot be raises `UsageError` when it is made, also by `with_`.
    """

    hsk: int = 128
    """Head size of Q and K; the tensors have `hsk_padded`."""
    hsv: int = 128
    """Head size of V and of the output; the tensors have `hsv_padded`."""
    n_head_kv: int = 32
    """Number of KV heads."""
    n_group: int = 1
    """Query heads per KV head."""
    ne3: int = 1
    """Number of sequences: ne3 of every tensor."""
    n_kv: int = 96
    """Number of keys."""
    n_batch: int = 8
    """Number of query rows."""
    mask: bool = True
    sinks: bool = False
    max_bias: float = 0.0
    """ALiBi; 0 is off. At most six decimals, as it is printed."""
    logit_softcap: float = 0.0
    """0 is off. At most six decimals, as it is printed."""
    prec: str = "f32"
    """`f32` or `def`."""
    type_K: str = "f16"  # noqa: N815 (upstream's name)
    type_V: str = "f16"  # noqa: N815
    permute: tuple[int, int, int, int] = (0, 1, 2, 3)
    """Where each dimension of Q, K and V lies in memory."""
    kv_view: bool = True
    """K and V are views of a larger cache."""
    v_is_view_of_k: bool = False
    """V is the first `hsv` elements of K's rows."""
    n_kv_max: int = 0
    """An upper bound of the finite entries in a mask row; 0 is none."""

    mask_kind: str = _DERIVED
    """One of `MASK_KINDS`. Default: `none` without a mask, `zeros` in the regime `seed`,
    `sparse` with `n_kv_max`, else `random`."""
    mask_heads: int = 1
    """ne2 of the mask."""
    segments: int = 1
    """Number of KV segments. Explicit boundaries set it."""
    boundaries: tuple[int, ...] | Literal["random"] | None = None
    """The first key of every segment but the first; `None` splits equally. Explicit boundaries
    may make empty segments, random ones (drawn from the seed) do not."""
    segment_types: tuple[str, ...] = ()
    """Mode `mixed`: the types of each segment's K and V, `q8_0`, or `q8_0/f16` where they differ;
    the last goes on for the segments that are left. The values of `type_K` and `type_V`, F32, are
    then those of the segments, dequantised."""
    hot_window: int = 0
    """Mode `fifo`: the most tokens in the hot window of a rolling cache, which has the types
    `type_K` and `type_V`; 0 is no rolling cache. A step for each token, so `n_batch` is `n_kv`."""
    group: int = 1
    """Tokens that leave the hot window together, the oldest."""
    cold_type: str = "q8_0"
    """Type in which they are stored then."""
    regime: str = "uniform"
    """One of `REGIMES`, or `captured`."""
    seed: int = 0
    threads: int = 1
    captured: str = ""
    """`FILE#ENTRY`: the inputs are those of an entry of a capture, encoded in the case's types
    where they had others. A case may take the first of its keys, rows, heads and sequences, and
    leave its mask, sinks, ALiBi and soft-cap out."""
    kq_scale: float = 0.0
    """What the scores are multiplied with, a float32; 0 is 1/sqrt(hsk)."""

    def __post_init__(self) -> None:
        for name in ("max_bias", "logit_softcap"):
            object.__setattr__(self, name, float(getattr(self, name)))
        with np.errstate(over="ignore"):  # what is too large is refused below
            object.__setattr__(self, "kq_scale", float(np.float32(self.kq_scale)))
        if self.mask_kind == _DERIVED:
            object.__setattr__(self, "mask_kind", self._default_mask_kind())
        if isinstance(self.boundaries, tuple) and self.segments == 1:
            object.__setattr__(self, "segments", len(self.boundaries) + 1)
        self.require(self._rules())

    @property
    def n_head(self) -> int:
        """Number of query heads."""
        return self.n_head_kv * self.n_group

    @functools.cached_property
    def hsk_padded(self) -> int:
        """Elements in a row of Q and K: `hsk` up to a whole number of blocks, as upstream pads."""
        return _pad(self.hsk, self.type_K)

    @functools.cached_property
    def hsv_padded(self) -> int:
        """Elements in a row of V and of the output."""
        return _pad(self.hsv, self.type_V)

    @functools.cached_property
    def scale(self) -> float:
        """`kq_scale`, or 1/sqrt(hsk), rounded to float32 as upstream's test computes it."""
        return self.kq_scale or float(np.float32(1) / np.sqrt(np.float32(self.hsk)))

    def segment_bounds(self) -> tuple[int, ...]:
        """The segments' limits, `segments + 1` of them: `(0, b1, ..., n_kv)`."""
        if isinstance(self.boundaries, tuple):
            inner = self.boundaries
        elif self.boundaries == "random":
            rank = np.random.Philox(key=self.seed).random_raw(self.n_kv - 1)
            chosen = np.argsort(rank, kind="stable")[: self.segments - 1]
            inner = tuple(sorted(int(i) + 1 for i in chosen))
        else:
            inner = tuple(i * self.n_kv // self.segments for i in range(1, self.segments))
        return (0, *inner, self.n_kv)

    def types_of_segment(self, i: int) -> tuple[str, str]:
        """The types of K and V in segment `i`."""
        if not self.segment_types:
            return self.type_K, self.type_V
        type_k, _, type_v = self.segment_types[min(i, len(self.segment_types) - 1)].partition("/")
        return type_k, type_v or type_k

    def of_segment(self, i: int) -> "Case":
        """The case with the whole cache in the types of segment `i`."""
        if not self.segment_types:
            return self
        type_k, type_v = self.types_of_segment(i)
        return self.with_(segment_types=(), type_K=type_k, type_V=type_v)

    def with_(self, **changes: Any) -> "Case":
        """A copy with some fields changed, checked again.

        `mask_kind` and `segments` stay what they are unless they are given too.
        """
        return dataclasses.replace(self, **changes)

    @classmethod
    def parse(cls, text: str) -> "Case":
        """Read a case string, also out of a line that `test-backend-ops` prints.

        Names are upstream's. Fields left out take their defaults. `n_head`, `n_head_kv`, `n_kv` and
        `n_batch` may be given instead of `nr23`, `nh`, `kv` and `nb`.

        Raises:
            UsageError: The text holds no case, a field is unknown, given twice or not readable,
                or the case cannot be.
        """
        return cls(**read_fields(text))

    def __str__(self) -> str:
        left_out = {"ne3"} if self.hot_window else {"ne3", "group", "cold_type"}
        left_out |= {name for name in _OPTIONAL if getattr(self, name) == getattr(Case, name)}
        if self.mask_kind == self._default_mask_kind():
            left_out.add("mask_kind")
        names = (field.name for field in dataclasses.fields(self) if field.name not in left_out)
        return f"{OP}({','.join(map(self._print, names))})"

    def _print(self, name: str) -> str:
        """Return a field as a case string has it."""
        if name in ("n_group", "ne3"):
            return f"nr23={format_value((self.n_group, self.ne3))}"
        return f"{spelled(name)}={format_field(name, getattr(self, name))}"

    def _default_mask_kind(self) -> str:
        if not self.mask:
            return "none"
        if self.regime == CAPTURED:
            return CAPTURED
        if self.regime == "seed":
            return "zeros"
        return "sparse" if self.n_kv_max > 0 else "random"

    def _rules(self) -> Rules:
        """Yield what must hold; a rule may rely on those before it."""
        yield from self._rules_of_shape()
        yield from self._rules_of_types()
        yield from self._rules_of_options()
        yield from self._rules_of_mask()
        yield from self._rules_of_segments()
        yield from self._rules_of_data()
        yield from self._rules_of_rolling_cache()

    def _rules_of_shape(self) -> Rules:
        for name in ("hsk", "hsv", "n_head_kv", "n_kv", "n_batch"):
            yield getattr(self, name) >= 1, name, "must be at least 1"
        for name in ("hsk", "hsv", "n_head_kv", "n_group", "ne3", "n_kv", "n_batch", "hot_window"):
            yield getattr(self, name) <= _MOST_INT, name, "does not fit in 64 bits"
        is_positive = min(self.n_group, self.ne3) >= 1
        yield is_positive, "n_group", "must be two numbers of at least 1"
        yield (
            sorted(self.permute) == [0, 1, 2, 3] and self.permute[0] == 0,
            "permute",
            "must order 0,1,2,3 and begin with 0, since rows stay contiguous",
        )

    def _rules_of_types(self) -> Rules:
        for name in ("type_K", "type_V"):
            type_name = getattr(self, name)
            yield type_name in TYPES or type_name in OTHER_TYPES, name, _UNKNOWN_TYPE
        yield self.cold_type in TYPES, "cold_type", _UNKNOWN_TYPE
        yield (
            not self.v_is_view_of_k
            or (self.type_K == self.type_V and self.hsv_padded <= self.hsk_padded),
            "v_is_view_of_k",
            f"needs type_V = type_K (they are {self.type_V}, {self.type_K}) "
            f"and hsv <= hsk (they are {self.hsv}, {self.hsk})",
        )

    def _rules_of_options(self) -> Rules:
        for name in ("max_bias", "logit_softcap"):
            value = getattr(self, name)
            yield 0 <= value <= _MOST_FLOAT, name, "must be a number of at least 0 in float32"
            is_kept = float(format_value(value)) == value
            yield is_kept, name, "has more than the six decimals that a case string keeps"
        is_scale = math.isfinite(self.kq_scale) and self.kq_scale >= 0
        yield is_scale, "kq_scale", "must be a number of at least 0"
        yield self.prec in ("f32", "def"), "prec", "must be f32 or def"
        yield 1 <= self.threads <= MAX_THREADS, "threads", f"must be from 1 to {MAX_THREADS}"

    def _rules_of_mask(self) -> Rules:
        yield (
            self.mask_kind in MASK_KINDS or (self.mask_kind == CAPTURED and bool(self.captured)),
            "mask_kind",
            f"unknown; known are {', '.join(MASK_KINDS)}",
        )
        yield (
            (self.mask_kind == "none") == (not self.mask),
            "mask_kind",
            f"contradicts mask={self.mask:d}; none goes with mask=0, the others with mask=1",
        )
        divides = self.mask_heads >= 1 and self.n_head % self.mask_heads == 0
        yield divides, "mask_heads", f"must divide the {self.n_head} query heads"
        yield self.mask or self.mask_heads == 1, "mask_heads", "needs mask=1"
        yield self.mask or self.max_bias == 0, "max_bias", "ALiBi needs mask=1"
        yield 0 <= self.n_kv_max <= self.n_kv, "n_kv_max", f"must be from 0 to kv={self.n_kv}"
        yield (
            (self.n_kv_max > 0) == (self.mask_kind == "sparse"),
            "n_kv_max",
            f"contradicts mask_kind={self.mask_kind}; n_kv_max above 0 goes with sparse alone",
        )

    def _rules_of_segments(self) -> Rules:
        yield self.segments >= 1, "segments", "must be at least 1"
        if isinstance(self.boundaries, tuple):
            limits = self.boundaries
            makes = f"boundaries={format_value(limits)} make {len(limits) + 1}"
            yield self.segments == len(limits) + 1, "segments", makes
            yield list(limits) == sorted(limits), "boundaries", "out of order"
            are_keys = all(0 <= limit <= self.n_kv for limit in limits)
            yield are_keys, "boundaries", f"must lie from 0 to kv={self.n_kv}"
        else:
            yield self.boundaries in (None, "random"), "boundaries", "must be a list or random"
            yield (
                self.segments <= self.n_kv,
                "segments",
                f"more than the kv={self.n_kv} keys; explicit boundaries may make empty segments",
            )
        if not self.segment_types:
            return
        for i in range(len(self.segment_types)):
            for type_name, size in zip(self.types_of_segment(i), ("hsk", "hsv"), strict=True):
                yield from self._rules_of_stored_type("segment_types", type_name, size)
        n_types = len(self.segment_types)
        yield n_types <= self.segments, "segment_types", f"more than the segments={self.segments}"
        yield (
            (self.type_K, self.type_V) == ("f32", "f32") and not self.v_is_view_of_k,
            "segment_types",
            "needs type_K=f32,type_V=f32,v_is_view_of_k=0: the whole cache has the values of all "
            "segments, dequantised",
        )

    def _rules_of_data(self) -> Rules:
        is_captured = self.regime == CAPTURED
        yield (
            self.regime in REGIMES or (is_captured and bool(self.captured)),
            "regime",
            "needs captured=FILE#ENTRY"
            if is_captured
            else f"unknown; known are {', '.join(REGIMES)}",
        )
        of_capture = f"captured={self.captured}"
        yield is_captured or not self.captured, "regime", f"{of_capture} needs regime=captured"
        yield 0 <= self.seed < 2**64, "seed", "must be from 0 to 2^64 - 1"
        if self.regime == "seed":
            heads = (self.n_head_kv, self.n_group, self.ne3)
            shape = (self.hsk, self.hsv, *heads, self.n_kv, self.n_batch)
            yield (
                shape == (4, 4, 1, 1, 1, 2, 1) and not self.v_is_view_of_k,
                "regime",
                "has one shape: hsk=4,hsv=4,nh=1,nr23=[1,1],kv=2,nb=1,v_is_view_of_k=0",
            )
            yield (
                (self.hsk_padded, self.hsv_padded) == (4, 4),
                "regime",
                f"needs types without blocks (they are {self.type_K}, {self.type_V})",
            )
            is_plain = self.mask_kind in ("none", "zeros")
            yield is_plain, "mask_kind", "regime=seed has no mask or one of zeros"
        if self.regime == "nan":
            names = [name for pair in self.segment_types for name in pair.split("/")]
            names += [self.type_K, self.type_V]
            are_floats = all(name in FLOAT_TYPES for name in names)
            yield are_floats, "regime", f"needs types that have NaN: {', '.join(FLOAT_TYPES)}"
            yield not self.hot_window, "regime", "has no rolling cache"
        yield (
            not self.captured or (self.mask_kind in ("none", CAPTURED) and self.n_kv_max == 0),
            "mask_kind",
            f"{of_capture} has a mask of its own; take captured or none",
        )

    def _rules_of_rolling_cache(self) -> Rules:
        yield self.hot_window >= 0, "hot_window", "must be at least 0"
        if self.hot_window == 0:
            return
        fits = 1 <= self.group <= self.hot_window
        yield fits, "group", f"must be from 1 to hot_window={self.hot_window}"
        for size in ("hsk", "hsv"):
            yield from self._rules_of_stored_type("cold_type", self.cold_type, size)
        yield (
            self.n_batch == self.n_kv
            and self.mask_kind in ("causal", CAPTURED)
            and not self.v_is_view_of_k,
            "hot_window",
            "needs a step for each token: nb = kv, mask_kind=causal, v_is_view_of_k=0",
        )
        yield not self.segment_types, "hot_window", "excludes segment_types"

    def _rules_of_stored_type(self, field: str, type_name: str, size_field: str) -> Rules:
        yield type_name in TYPES, field, _UNKNOWN_TYPE
        block_size, size = TYPES[type_name].block_size, getattr(self, size_field)
        yield (
            size % block_size == 0,
            field,
            f"{size_field}={size} is not a multiple of the {block_size} elements in a block of "
            f"{type_name}",
        )

    def require(self, rules: Rules) -> None:
        """Refuse the case by the first rule that does not hold."""
        for holds, field, reason in rules:
            if not holds:
                raise UsageError(f"{self._print(field)}: {reason}")


def _pad(n: int, type_name: str) -> int:
    block_size = TYPES[type_name].block_size if type_name in TYPES else OTHER_TYPES[type_name]
    return -(-n // block_size) * block_size
