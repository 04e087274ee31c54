"""How fast flash attention is: beside another library and peers, and beside the machine's limits.

Nothing is judged: a ratio has no limit here. A ratio is known if its interval is narrow; else it is
`noisy`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fa_harness.case.case import Case
from fa_harness.engine.ggml import Ggml
from fa_harness.engine.session import Session
from fa_harness.speed.bench import Interval, kv_bytes, median_interval, shape
from fa_harness.speed.cold import FMA, MEMORY, Peer, Timed, measure
from fa_harness.speed.limits import Limits

LEVEL = 0.9
"""Coverage of an interval, at least: of up to 7 rounds it takes all."""
MIN_ROUNDS = 5
"""Fewer rounds give no interval of that coverage."""
NOISY = 0.1
"""A ratio whose interval is wider than this, relative to its median, is not known."""

_TYPES = ("f16", "bf16", "q8_0", "q4_0")
_HEADS = (32, 8)

ROWS: tuple[Case, ...] = (
    # decode
    *(shape(1, n_kv, 128, _HEADS, type_) for n_kv in (8192, 32768) for type_ in _TYPES),
    # a few rows, as in speculative decoding and for several users
    *(shape(8, 4096, 128, _HEADS, type_) for type_ in ("f16", "q8_0", "q4_0")),
    *(shape(32, 4096, 128, _HEADS, type_) for type_ in _TYPES),
    # upstream's tiles begin at 64 rows; a row should take as long on either side
    *(shape(n_batch, 4096, 128, _HEADS, "f16") for n_batch in (63, 64)),
    # prefill
    *(shape(512, 4096, 128, _HEADS, type_) for type_ in _TYPES),
    # other head sizes, the last with V as a view of K
    *(shape(1, 8192, size, _HEADS, "f16") for size in (64, 80, 256)),
    shape(1, 8192, (576, 512), (32, 1), "f16"),
    # other groups of heads
    *(shape(1, 8192, 128, (8 * n_group, 8), "f16") for n_group in (1, 3, 8)),
)
"""Decode to prefill of a model with 32 query heads and 8 KV heads, and what varies from it."""


@dataclass(frozen=True, kw_only=True)
class ComparedRow:
    """A case's times and what they are compared with."""

    case: Case
    library: str
    """The name of the library under test, which the others are compared with."""
    seconds: Mapping[str, float]
    """Medians of one computation, by the name of a library or a peer."""
    ratios: Mapping[str, Interval]
    """By the name of another, how many times as long as the library's call its call takes."""
    unavailable: Mapping[str, str]
    """By name, why another was not timed."""
    bandwidth: float
    """Bytes per second that the threads read from memory."""
    peak: float
    """F32 operations per second that the threads compute in registers, two in a multiply-add."""
    rounds: int

    @property
    def bytes_per_second(self) -> float:
        """K and V that are read per second."""
        return kv_bytes(self.case) / self.seconds[self.library]

    @property
    def operations_per_second(self) -> float:
        """Operations that the result takes, per second."""
        return operations(self.case) / self.seconds[self.library]

    @property
    def of_bandwidth(self) -> float:
        """How much of the bandwidth reading K and V takes."""
        return self.bytes_per_second / self.bandwidth

    @property
    def of_peak(self) -> float:
        """How much of the peak the operations take."""
        return self.operations_per_second / self.peak

    @property
    def noisy(self) -> tuple[str, ...]:
        """The others whose ratio is not known."""
        return tuple(name for name, ratio in self.ratios.items() if width(ratio) >= NOISY)

    @property
    def status(self) -> str:
        """`measured`, or `noisy` if a ratio is not known."""
        return "noisy" if self.noisy else "measured"


def width(ratio: Interval) -> float:
    """Return the width of a ratio's interval, relative to its median."""
    return (ratio.high - ratio.low) / ratio.median


def operations(case: Case) -> int:
    """Return the operations of a causal call, two in a multiply-add.

    That is what any kernel has to compute: scores and sums of the keys that a row sees.
    """
    hidden = case.n_batch * (case.n_batch - 1) // 2
    seen = case.n_batch * case.n_kv - hidden
    return 2 * case.ne3 * case.n_head * seen * (case.hsk + case.hsv)


def compare(case: Case, library: str, timed: Timed) -> ComparedRow:
    """Return a row; `library` is the name of the one that the others are compared with."""
    seconds = {name: each for name, each in timed.seconds.items() if name not in (MEMORY, FMA)}
    ours = seconds[library]
    return ComparedRow(
        case=case,
        library=library,
        seconds={name: float(np.median(each)) for name, each in seconds.items()},
        ratios={
            name: median_interval(each / ours, LEVEL)
            for name, each in seconds.items()
            if name != library
        },
        unavailable=timed.unavailable,
        bandwidth=1 / float(np.median(timed.seconds[MEMORY])),
        peak=1 / float(np.median(timed.seconds[FMA])),
        rounds=len(ours),
    )


@dataclass(frozen=True, kw_only=True)
class Comparison(Session):
    """All that a run found, and what it ran on."""

    against: Mapping[str, Any] | None
    peers: Mapping[str, str]
    """The versions of the peers, by name."""
    rounds: int
    rows: tuple[ComparedRow, ...]
    selected: int

    def count(self, status: str) -> int:
        """Return how many rows have a status."""
        return sum(row.status == status for row in self.rows)

    @property
    def others(self) -> tuple[str, ...]:
        """The names of what the library is compared with."""
        return (*([self.against["name"]] if self.against else ()), *self.peers)

    @property
    def passed(self) -> bool:
        """Whether anything was measured."""
        return bool(self.rows)


def run(
    libraries: Mapping[str, Ggml],
    peers: Sequence[Peer],
    limits: Limits,
    cases: Sequence[Case],
    *,
    rounds: int,
) -> Iterator[ComparedRow]:
    """Measure cases one after another; a noisy one once more, with twice the rounds."""
    library = next(iter(libraries))
    for case in cases:
        row = compare(case, library, measure(case, libraries, peers, limits, rounds=rounds))
        if row.noisy:
            timed = measure(case, libraries, peers, limits, rounds=2 * rounds, seed=1)
            row = compare(case, library, timed)
        yield row
