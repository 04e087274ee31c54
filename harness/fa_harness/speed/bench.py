"""Speed as ratios: what is timed, what each ratio may be at most, and why.

Every limit is judged on the lower end of the ratio's interval, so that noise does not decide: a row
is `over` only where the measurement excludes that it keeps the limit. Where the interval holds the
limit and is wider than `NOISY`, nothing is known. The row is measured again, and what stays so is
`noisy`: neither over nor a pass.

A row that is over is measured again, too, in other places in memory. Its places alone can make a
call some per cent slower for as long as it keeps them, and of some hundred ratios one or two would
be over by chance. The second time upstream's own calls on the segments are timed, too: on some CPUs
the same keys take longer in two calls than in one, state or no state. Such a limit has an interval
itself, and over is what is above its upper end. A row is over if it is so in both measurements. A
row that is noisy even then is measured a third time, where more rounds can be expected to tell.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from fa_harness.arrays import F64
from fa_harness.case.case import Case
from fa_harness.case.label import wanted
from fa_harness.case.quants import row_bytes
from fa_harness.engine.ggml import Ggml
from fa_harness.engine.session import Session
from fa_harness.errors import UsageError
from fa_harness.kernel import n_tiles, path
from fa_harness.speed.timing import SEGMENTS, Timings, chain_path, is_long_decode, measure

LEVEL = 0.99
"""Coverage of an interval, at least."""
MIN_ROUNDS = 8
"""Fewer rounds give no interval of that coverage."""
NOISY = 0.03
"""An interval wider than this, relative to its lower end, does not decide."""
FULL_STATE = 1.01
"""What one call with a state may take of one without, beside writing the state's bytes: of a
prefill over few keys that is some per cent, whatever the kernel."""
CHAIN = 1.03
"""What a chain may take of its model."""
LONG_DECODE = 1.00
"""What 8 segments of a long decode may take of one call: a segment stays in the cache. Where
computing takes longer than reading, upstream's own calls on the 8 parts take more than one call,
and that is what a chain may take."""

MIXED = 1.5
"""What a chain of segments of several types may take of upstream's own calls on them. A row that
goes on in F32 converts an F16 V and adds it in F32: two passes over V where upstream's call has one
in F16. With the pass over K, which stays as it is, that is at most three for two."""

_MOST_ROUNDS = 8  # times those asked for, in a third measurement
_PATIENCE = 120.0  # seconds of it at most
_SPACER = 256 << 20  # bytes, more than the arrays of a row
_FAR_OUT = 3.0  # interquartile ranges beyond a quartile, Tukey's outer fence


def shape(
    n_batch: int, n_kv: int, head: int | tuple[int, int], heads: tuple[int, int], type_: str
) -> Case:
    """Return a case with K and V as in llama.cpp's cache: the heads of one token side by side."""
    hsk, hsv = head if isinstance(head, tuple) else (head, head)
    n_head, n_head_kv = heads
    return Case(
        hsk=hsk,
        hsv=hsv,
        n_head_kv=n_head_kv,
        n_group=n_head // n_head_kv,
        n_kv=n_kv,
        n_batch=n_batch,
        type_K=type_,
        type_V=type_,
        v_is_view_of_k=hsk != hsv,
        mask_kind="causal",
        regime="normal",
        permute=(0, 2, 1, 3),
        kv_view=False,
    )


def mixed(n_batch: int, n_kv: int, cold: str, hot: str) -> Case:
    """Return a shape of two segments, each with types of its own."""
    case = shape(n_batch, n_kv, 128, (16, 4), "f32")
    return case.with_(segments=2, segment_types=(cold, hot))


_MLA = (576, 512)
SHAPES: tuple[Case, ...] = (
    # decode
    shape(1, 512, 128, (32, 8), "f16"),
    shape(1, 2048, 128, (32, 8), "f16"),
    shape(1, 8192, 128, (32, 8), "f16"),
    shape(1, 32768, 128, (16, 4), "f16"),
    shape(1, 8192, 64, (32, 4), "f16"),
    shape(1, 4096, 256, (8, 8), "f16"),
    shape(1, 8192, _MLA, (8, 1), "f16"),
    shape(1, 8192, 128, (8, 8), "f32"),
    shape(1, 8192, 128, (16, 4), "bf16"),
    shape(1, 8192, 128, (16, 4), "q8_0"),
    shape(1, 32768, 64, (8, 1), "q4_0"),
    # a few rows, as in speculative decoding and for several users
    shape(8, 2048, 128, (16, 4), "f16"),
    shape(8, 8192, 64, (8, 1), "q8_0"),
    shape(8, 1024, 256, (8, 8), "bf16"),
    shape(32, 2048, 128, (8, 2), "f16"),
    shape(32, 512, 128, (8, 1), "q4_0"),
    shape(32, 1024, _MLA, (8, 1), "q8_0"),
    shape(32, 4096, 64, (4, 4), "f32"),
    # prefill
    shape(512, 512, 128, (8, 2), "f16"),
    shape(512, 2048, 128, (4, 1), "f16"),
    shape(512, 32768, 64, (1, 1), "f16"),
    shape(512, 2048, 64, (8, 8), "f32"),
    shape(512, 2048, 256, (2, 2), "f16"),
    shape(512, 1024, _MLA, (2, 1), "f16"),
    shape(512, 1024, 128, (2, 2), "q8_0"),
    # a mixed cache: old tokens in blocks, new ones in F16; and the other way round
    mixed(1, 4096, "q8_0", "f16"),
    mixed(1, 4096, "f16", "q8_0"),
    mixed(8, 1024, "q8_0", "f16"),
    mixed(8, 1024, "f16", "q8_0"),
    mixed(8, 1024, "q4_0", "f16"),
    mixed(512, 512, "q8_0", "f16"),
    mixed(512, 512, "f16", "q8_0"),
)
"""Decode and prefill: every value of every axis, each of the kernel's paths with types and sizes
that it serves."""


def suite(
    threads: Sequence[int] = (1, 2), pattern: str | None = None, shapes: Sequence[Case] = SHAPES
) -> list[Case]:
    """Return every shape that matches once with each number of threads."""
    cases = [case.with_(threads=n) for case in shapes for n in threads]
    selected = list(filter(wanted(pattern), cases))
    if not selected:
        raise UsageError(
            f"no case is left of {len(cases)}: none matches -k {pattern!r}; --list shows them"
        )
    return selected


# statistics


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A median and an interval that holds it."""

    median: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """The width, relative to the lower end."""
        return self.high / self.low - 1


def reach(ratio: Interval) -> float:
    """Return how far from 1 a ratio's interval reaches, up or down, as a factor."""
    return max(ratio.high, 1 / ratio.low)


def order_rank(n: int, level: float = LEVEL) -> int:
    """Return the largest rank k such that `[x_(k), x_(n+1-k)]` holds the median.

    The number of samples below the median is binomial, whatever their distribution: the interval
    fails where fewer than k lie on one side of it. Of too few samples there is no such interval.
    """
    rank, below = 0, 0  # of all 2^n outcomes, those with fewer than `rank` samples below the median
    while 1 - 2 * (below + math.comb(n, rank)) / 2**n >= level:
        below += math.comb(n, rank)
        rank += 1
    if rank == 0:
        raise UsageError(f"{n} rounds give no interval of {level:.0%}; take {MIN_ROUNDS} or more")
    return rank


def median_interval(samples: F64 | Sequence[float], level: float = LEVEL) -> Interval:
    """Return the median of independent samples and its interval of at least that coverage."""
    ordered = np.sort(samples)
    rank = order_rank(len(ordered), level)
    return Interval(
        median=float(np.median(ordered)),
        low=float(ordered[rank - 1]),
        high=float(ordered[-rank]),
    )


def count_outliers(samples: F64) -> int:
    """Return how many samples lie beyond the fences; they do not move a median."""
    lower, upper = np.quantile(samples, (0.25, 0.75))
    fence = _FAR_OUT * (upper - lower)
    return int(np.sum((samples < lower - fence) | (samples > upper + fence)))


# the model of a chain


@dataclass(frozen=True, kw_only=True)
class Model:
    """What N calls with a state should take of one call."""

    state: float
    """Reading and writing the state in each call, at the cost of copying as many bytes."""
    nodes: float
    """The N - 1 further calls, each at the cost of a call of upstream's that sees no key."""
    padding: float
    """The further KV tiles of segments that do not fill theirs; tiled path only."""
    parts: float = 0.0
    """How much more than nodes and padding upstream's own calls on the segments take at least,
    where that was measured: on some CPUs the same keys take longer in two calls than in one."""

    @property
    def ratio(self) -> float:
        """The time of the chain, relative to one call."""
        return 1 + self.state + self.nodes + self.padding + self.parts

    def with_parts(self, ratio: float) -> Model:
        """Return the model where upstream's calls on the segments take so many times one call."""
        return replace(self, parts=max(0.0, ratio - (1 + self.nodes + self.padding)))


def model(
    case: Case, n_segments: int, *, one_call: float, empty_call: float, byte_cost: float
) -> Model:
    """Return the model of a chain of equal segments.

    All times are in seconds: of one call without a state on the path of the chain's calls, of one
    that sees no key, and of reading or writing a byte with as many threads.
    """
    padding = 0.0
    if chain_path(case, n_segments) == "tiled":
        bounds = case.with_(segments=n_segments).segment_bounds()
        padding = n_tiles(case, bounds) / n_tiles(case, (0, case.n_kv)) - 1
    return Model(
        state=n_segments * 2 * state_bytes(case) * byte_cost / one_call,
        nodes=(n_segments - 1) * empty_call / one_call,
        padding=padding * max(0.0, 1 - empty_call / one_call),
    )


def state_bytes(case: Case) -> int:
    """Return the size of a case's state."""
    return case.n_head * case.n_batch * case.ne3 * (2 + case.hsv) * 4


# judging


@dataclass(frozen=True, kw_only=True)
class LimitedRatio:
    """A ratio of times within a round, and its limit."""

    of: str
    to: str
    ratio: Interval
    limit: float | None
    """At most; None where the ratio is a measure for others."""
    limit_high: float | None = None
    """Where another ratio sets the limit: the limit that the upper end of that ratio's interval
    gives, as `limit` is what the lower end gives."""
    model: Model | None = None

    @property
    def status(self) -> str:
        """`pass`, `over` or `noisy`."""
        if self.limit is None or self.ratio.high <= self.limit:
            return "pass"
        if self.is_over_by(1.0):
            return "over"
        return "noisy" if self.width > NOISY else "pass"

    @property
    def width(self) -> float:
        """The width of the ratio's interval or of its limit's, whichever is wider."""
        if self.limit is None or self.limit_high is None:
            return self.ratio.width
        return max(self.ratio.width, self.limit_high / self.limit - 1)

    def is_over_by(self, factor: float) -> bool:
        """Tell whether even the lower end is above the limit, times a factor."""
        highest = self.limit if self.limit_high is None else self.limit_high
        return highest is not None and self.ratio.low > highest * factor


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """A case's times, ratios and what was planned for it."""

    case: Case
    seconds: Mapping[str, float]  # medians of one computation
    comparisons: Mapping[str, LimitedRatio]
    unavailable: Mapping[str, str]  # comparisons that cannot be made, and why
    outliers: int
    rounds: int
    repetitions: int
    attempts: int
    kv_bytes: int
    work_size: Mapping[str, int]
    allocations: Mapping[str, int]

    @property
    def faults(self) -> tuple[str, ...]:
        """What is wrong beyond ratios: a graph may take as much memory as upstream's, no more."""
        upstreams = "standard" if self.case.segment_types else "baseline"
        return tuple(
            f"{name}: {text.format(n, found[upstreams])}"
            for found, text in (
                (self.work_size, "{} bytes of work memory are planned, not {}"),
                (self.allocations, "{} allocations in a graph, not {}"),
            )
            if upstreams in found  # else the library does not tell
            for name, n in found.items()
            if n != found[upstreams]
        )

    @property
    def is_unsteady(self) -> bool:
        """Whether the library cannot even be compared with itself.

        Then a ratio tells something only if it is beyond this noise, too. On a busy machine a graph
        with more nodes, hence barriers, waits more often for a thread that has lost its core.
        """
        return self.comparisons["again"].ratio.width > NOISY

    @property
    def noise(self) -> float:
        """The width of the widest interval that tells nothing; 0 if each tells."""
        noisy = [each for each in self.comparisons.values() if each.status == "noisy"]
        if self.is_unsteady:
            noisy.append(self.comparisons["again"])
        return max((each.width for each in noisy), default=0.0)

    @property
    def status(self) -> str:
        """The worst of the comparisons' statuses; `over` where something else is wrong."""
        if self.faults:
            return "over"
        if self.is_unsteady:
            noise = reach(self.comparisons["again"].ratio)
            beyond = any(each.is_over_by(noise) for each in self.comparisons.values())
            return "over" if beyond else "noisy"
        statuses = {each.status for each in self.comparisons.values()}
        return next((status for status in ("over", "noisy") if status in statuses), "pass")


def judge(case: Case, timings: Timings, *, attempts: int = 1) -> BenchRow:
    """Return a case's ratios and their limits; `measure` found the timings."""
    seconds = timings.seconds
    medians = {name: float(np.median(each)) for name, each in seconds.items()}

    def compare(of: str, to: str, limit: float | None, **more: Any) -> LimitedRatio:
        ratio = median_interval(seconds[of] / seconds[to])
        return LimitedRatio(of=of, to=to, ratio=ratio, limit=limit, **more)

    again = compare("again", "standard", None)
    row = partial(
        BenchRow,
        case=case,
        seconds=medians,
        outliers=sum(count_outliers(each) for each in seconds.values()),
        rounds=len(seconds["standard"]),
        repetitions=timings.repetitions,
        attempts=attempts,
        kv_bytes=kv_bytes(case),
        work_size=timings.work_size,
        allocations=timings.allocations,
    )
    if case.segment_types:
        chain = compare("mixed", "standard", MIXED)
        return row(comparisons={"again": again, "segmented_2": chain}, unavailable={})
    # What is as fast as standard can differ from it as far as standard differs from itself.
    noise = reach(again.ratio)
    written = state_bytes(case) * medians["stored_byte"] / medians["standard"]
    comparisons = {
        "again": again,
        "standard": compare("standard", "baseline", noise),
        "full_state": compare("full_state", "standard", FULL_STATE + written),
    }
    unavailable = {}
    for n in SEGMENTS:
        name, path_ = f"segmented_{n}", chain_path(case, n)
        to, of_theirs = (
            ("standard", "baseline") if path_ == path(case) else ("standard_vec", "baseline_vec")
        )
        if to not in seconds:
            unavailable[name] = (
                f"its calls take the {path_} path, one call takes {path(case)}, "
                "and the library cannot be told to take another (use_ref)"
            )
            continue
        lowest = highest = model(
            case,
            n,
            one_call=medians[to],
            empty_call=max(0.0, medians[f"empty_{path_}"]),
            byte_cost=medians["byte"],
        )
        if {f"parts_{n}", of_theirs} <= seconds.keys():
            parts = comparisons[f"parts_{n}"] = compare(f"parts_{n}", of_theirs, None)
            lowest = lowest.with_parts(parts.ratio.low)
            highest = highest.with_parts(parts.ratio.high)
        comparisons[name] = compare(
            name, to, lowest.ratio * CHAIN, limit_high=highest.ratio * CHAIN, model=lowest
        )
    if is_long_decode(case):
        of_parts = comparisons["parts_8"].ratio
        comparisons["long_decode"] = compare(
            "segmented_8",
            "standard",
            max(LONG_DECODE, of_parts.low),
            limit_high=max(LONG_DECODE, of_parts.high),
        )
    return row(comparisons=comparisons, unavailable=unavailable)


def kv_bytes(case: Case) -> int:
    """Return the bytes of K and V that are read; a V that is a view of K adds none."""
    if case.segment_types:
        of_segments = itertools.pairwise(case.segment_bounds())
        return sum(
            kv_bytes(case.of_segment(i).with_(n_kv=stop - start, segments=1))
            for i, (start, stop) in enumerate(of_segments)
        )
    per_key = row_bytes(case.type_K, case.hsk)
    if not case.v_is_view_of_k:
        per_key += row_bytes(case.type_V, case.hsv)
    return case.ne3 * case.n_head_kv * case.n_kv * per_key


# running


@dataclass(frozen=True, kw_only=True)
class Bench(Session):
    """All that a run found, and what it ran on."""

    baseline: Mapping[str, Any]
    rounds: int
    rows: tuple[BenchRow, ...]
    selected: int

    def count(self, status: str) -> int:
        """Return how many rows have a status."""
        return sum(row.status == status for row in self.rows)

    @property
    def passed(self) -> bool:
        """Whether every selected row was measured, none is over a limit, and some pass.

        Noise must not decide: a noisy row does not fail the run, if another one passes.
        """
        measured = len(self.rows) == self.selected
        return measured and not self.count("over") and self.count("pass") > 0


def run(library: Ggml, baseline: Ggml, cases: Sequence[Case], *, rounds: int) -> Iterator[BenchRow]:
    """Measure cases one after another; one that does not pass once more, with twice the rounds.

    One that is still noisy is measured with as many rounds as will probably tell, unless that takes
    too long. Earlier measurements are dropped. `rounds` are those of the first measurement.
    """
    if not library.has_state:
        raise UsageError(
            "the library has no ggml_flash_attn_ext_with_state; take one that has it, such as "
            "--library patched"
        )
    for case in cases:
        row = judge(case, measure(library, baseline, case, rounds=rounds))
        if row.status != "pass":
            spacer = np.ones(_SPACER, np.uint8)  # takes the pages that were just given back
            start = time.perf_counter()
            timings = measure(library, baseline, case, rounds=2 * rounds, seed=1, parts=SEGMENTS)
            row = judge(case, timings, attempts=2)
            del spacer
            most = min(_MOST_ROUNDS, 2 * _PATIENCE / (time.perf_counter() - start))
            if enough := _rounds_that_tell(row, int(most * rounds)):
                timings = measure(library, baseline, case, rounds=enough, seed=2, parts=SEGMENTS)
                row = judge(case, timings, attempts=3)
        yield row


def _rounds_that_tell(row: BenchRow, most: int) -> int:
    """Return how many rounds will probably tell what is noisy; 0 for none or more than `most`.

    An interval's width falls with the root of the rounds. With just as many as that asks for, half
    of the intervals would still be too wide, so it is twice as many, if there is time.
    """
    if row.status != "noisy":
        return 0
    just = math.ceil(row.rounds * (row.noise / NOISY) ** 2)
    return min(2 * just, most) if just <= most else 0
