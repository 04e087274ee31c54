"""End to end: llama-perplexity on a model, with attention in segments of the KV cache.

What `patches/experimental` makes llama.cpp do, seen from outside: the output is parsed, runs are
planned, and of each is said beforehand whether it must print what the standard run prints.
Programs are run by the caller.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fa_harness.case.quants import TYPES
from fa_harness.errors import FaHarnessError, UsageError
from fa_harness.kernel import KV_TILE, Q_TILE, SPLIT_KV

SEGMENTS = (1, 2, 8)
"""How many segments the comparison cuts the cells into."""
UNIFORM_TYPES = ("f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""KV types of the table of mixed and uniform caches, by falling size."""
HOT_TYPES = ("f16", "q8_0")
"""Types of the mixed caches' newest cells: one that llama.cpp does not rotate, and one it does."""
RELATIVE_TOLERANCE = 1e-4
"""How far a perplexity may be off where sums are in another order, if no control says more."""
CONTROL_FACTOR = 2
"""How many times as far off as the control it may be."""

_PADDING = 256
"""llama.cpp pads the cells that a graph sees to a multiple of this."""

_CHUNK = re.compile(r"\[(\d+)\](-?nan|-?inf|\d+\.\d{4}),")
_STARTED = "perplexity: calculating perplexity over"
_LOST = " (llama.cpp may lose its last lines at exit; if its status is 0, run it again)"
_FINAL = re.compile(r"Final estimate: PPL = (\d+\.\d+) \+/- (\d+\.\d+)")


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """What llama-perplexity prints, to all of its digits."""

    estimate: float
    """Over all chunks."""
    error: float
    """The standard error of the estimate, behind its +/-."""
    chunks: tuple[float, ...]
    """Over the first chunk, the first two, and so on; the last is the estimate."""


def parse(output: str) -> Perplexity:
    """Read the output of llama-perplexity, in which its log and other lines may stand between.

    Args:
        output: Standard output and standard error; the final estimate goes to the latter.

    Raises:
        FaHarnessError: no final estimate, several of them, or not the values of chunks 1, 2, ...
    """
    finals = _FINAL.findall(output)
    chunks = _CHUNK.findall(output)
    if len(finals) != 1:
        last = next((line for line in reversed(output.splitlines()) if line.strip()), "nothing")
        raise FaHarnessError(
            f"llama-perplexity: {len(finals) or 'no'} lines 'Final estimate: PPL = ...' after "
            f"{len(chunks)} chunks, one was expected; the output ends in: {last.strip()}"
            f"{_LOST if not finals and _STARTED in output else ''}"
        )
    numbers = [int(number) for number, _ in chunks]
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        raise FaHarnessError(
            "llama-perplexity: expected the values of chunks as '[1]...,[2]...,', found those of "
            f"{numbers or 'no chunk'}; --ppl-output-type 0 prints them"
        )
    values = tuple(float(value) for _, value in chunks)
    if not all(map(math.isfinite, values)):
        raise FaHarnessError(f"llama-perplexity: the values of chunks are not finite: {values}")
    estimate, error = map(float, finals[0])
    return Perplexity(estimate=estimate, error=error, chunks=values)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How the text goes through the model: what decides on the path of each call of attention.

    Raises:
        UsageError: a number that cannot be.
    """

    n_ctx: int
    """Tokens of a chunk: a multiple of 256, so that llama.cpp does not change it."""
    n_ubatch: int
    """Tokens of one graph: the rows of a call. 1 is decoding."""
    threads: int = 2
    chunks: int = 1
    n_swa: int = 0
    """Window of the model's local layers, 0 if it has none."""
    swa_full: bool = False
    """Whether local layers keep all cells, in the order of position."""

    def __post_init__(self) -> None:
        if self.n_ctx < _PADDING or self.n_ctx % _PADDING:
            raise UsageError(f"n_ctx={self.n_ctx}: give a multiple of {_PADDING}")
        if not 1 <= self.n_ubatch <= self.n_ctx:
            raise UsageError(f"n_ubatch={self.n_ubatch}: give one from 1 to n_ctx={self.n_ctx}")
        if self.threads < 1 or self.chunks < 1 or self.n_swa < 0:
            raise UsageError("threads and chunks must be at least 1, n_swa at least 0")

    @property
    def arguments(self) -> tuple[str, ...]:
        """The options of llama-perplexity, but for model and text.

        A batch is one chunk, so that the cache holds one sequence, in order.
        """
        numbers = {
            "-c": self.n_ctx,
            "-b": self.n_ctx,
            "-ub": self.n_ubatch,
            "-t": self.threads,
            "--chunks": self.chunks,
        }
        options = [text for name, value in numbers.items() for text in (name, str(value))]
        return ("-fa", "on", *options, *(("--swa-full",) if self.swa_full else ()))


@dataclass(frozen=True, kw_only=True)
class ProgramRun:
    """One run of llama-perplexity."""

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    """What is added to the caller's."""
    arguments: tuple[str, ...]
    """But for model and text."""
    n_segments: int = 0
    """Calls of attention with a state, 0: one without."""
    control: bool = False
    """Whether it is a standard run that sums in another order."""


def plan_segments(setting: Setting, segments: Sequence[int] = SEGMENTS) -> tuple[ProgramRun, ...]:
    """Return the standard run, one for each number of segments, and a control where it is needed.

    Weights and activations of few bits blow up what attention rounds otherwise: Gemma 3 270M (Q4_K)
    decodes 512 tokens to 2.8681 on one thread and to 2.8370 on two, without any patch. So where a
    run may differ, the control tells how far: a standard run with another number of threads, or
    in batches too small for tiles.

    Args:
        setting: Of all runs but the control.
        segments: Numbers of segments, each at least 1.
    """
    bounded = any(not expectation(setting, n).exact for n in segments)
    other = (
        replace(setting, n_ubatch=Q_TILE // 2)
        if setting.n_ubatch >= Q_TILE
        else replace(setting, threads=1 if setting.threads > 1 else 2)
    )
    return (
        ProgramRun(name="standard", arguments=setting.arguments),
        *([ProgramRun(name="control", arguments=other.arguments, control=True)] if bounded else []),
        *(
            ProgramRun(
                name=f"segments={n}",
                environment={"LLAMA_FA_SEGMENTS": str(n)},
                arguments=setting.arguments,
                n_segments=n,
            )
            for n in segments
        ),
    )


@dataclass(frozen=True, kw_only=True)
class CacheRun:
    """One row of the table of mixed and uniform caches."""

    run: ProgramRun
    bytes_per_element: float
    """Of K and V, at the end of a chunk."""
    hot: int | None = None
    """Newest cells that keep the cache's type, if the others do not."""


def bytes_per_element(name: str) -> float:
    """Return what an element of a ggml type takes, scales included.

    Raises:
        UsageError: the type is not known.
    """
    if name not in TYPES:
        raise UsageError(f"type {name!r} is not known; known are {', '.join(TYPES)}")
    return TYPES[name].block_bytes / TYPES[name].block_size


def hot_window(n_kv: int, *, hot: str, cold: str, budget: float) -> int:
    """Return how many of the cells can be hot if a cache may take so many bytes an element.

    Args:
        n_kv: Cells.
        hot: Type of the newest cells.
        cold: Type of the others, a smaller one.
        budget: Bytes an element, between those of the two types.

    Raises:
        UsageError: no window has that size.
    """
    small, large = bytes_per_element(cold), bytes_per_element(hot)
    if not small < large or not small <= budget <= large:
        raise UsageError(
            f"{budget} bytes an element do not lie between those of "
            f"cold {cold} ({small}) and hot {hot} ({large})"
        )
    return int(n_kv * (budget - small) / (large - small))


def plan_mixed(
    setting: Setting,
    *,
    uniform: Sequence[str] = UNIFORM_TYPES,
    hots: Sequence[str] = HOT_TYPES,
    cold: str = "q4_0",
) -> tuple[CacheRun, ...]:
    """Return uniform caches, and the mixed ones of their sizes, for each hot type that can be.

    llama.cpp rotates K and V of a quantised cache, which costs no memory and helps it. A mixed
    cache is rotated as its hot type is; so compare hot f16 with uniform caches under
    `LLAMA_ATTN_ROT_DISABLE=1`, too.

    Args:
        setting: Of all runs. Local layers must keep all cells.
        uniform: Types of the uniform caches.
        hots: Types of the mixed caches' newest cells.
        cold: Type of their other cells.

    Raises:
        UsageError: a type is not known, or the newest cells need not be the last ones.
    """
    if setting.n_swa and not setting.swa_full:
        raise UsageError("a mixed cache needs its cells in order: set swa_full")
    rows = []
    for name in uniform:
        arguments = (*setting.arguments, "-ctk", name, "-ctv", name)
        rows.append(
            CacheRun(
                run=ProgramRun(name=name, arguments=arguments),
                bytes_per_element=bytes_per_element(name),
            )
        )
    small = bytes_per_element(cold)
    for hot, name in itertools.product(hots, uniform):
        budget, large = bytes_per_element(name), bytes_per_element(hot)
        if not small < budget < large:
            continue
        window = hot_window(setting.n_ctx, hot=hot, cold=cold, budget=budget)
        rows.append(
            CacheRun(
                run=ProgramRun(
                    name=f"{cold}+{hot}:{window}",
                    environment={"LLAMA_FA_COLD_TYPE": cold, "LLAMA_FA_HOT": str(window)},
                    arguments=(*setting.arguments, "-ctk", hot, "-ctv", hot),
                    n_segments=2,
                ),
                bytes_per_element=small + (large - small) * window / setting.n_ctx,
                hot=window,
            )
        )
    return tuple(rows)


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """How near a run must be to the standard one, and why."""

    exact: bool
    """Whether all digits must be equal; else the values, within a tolerance."""
    reason: str


def expectation(setting: Setting, n_segments: int) -> Expectation:
    """Say whether an F16 cache in segments must give what one call gives, bit for bit.

    It must if each call of every graph does. One call with a state is the standard call. On the
    tiled path the boundaries must not cut a tile. One row at a time, any split will do, as long
    as neither the whole nor a later segment is split among threads and then reduced.

    Args:
        setting: Of both runs.
        n_segments: Of the run with segments; 0 is the standard run.
    """
    if n_segments <= 1:
        return Expectation(exact=True, reason="one call: the state changes no result")
    for rows, n_kv in _calls(setting):
        ends = [i * n_kv // n_segments for i in range(n_segments + 1)]
        what = f"{n_kv} cells"
        if rows >= Q_TILE:
            cut = next((end for end in ends if end % KV_TILE), None)
            if cut is not None:
                return Expectation(
                    exact=False, reason=f"{what}: a boundary at {cut} cuts a tile of {KV_TILE}"
                )
        elif rows == 1 and n_kv >= SPLIT_KV:
            if setting.threads > 1:
                return Expectation(
                    exact=False,
                    reason=f"{what}: one call is split among {setting.threads} threads",
                )
            longest = max(b - a for a, b in itertools.pairwise(ends[1:]))
            if longest >= SPLIT_KV:
                return Expectation(
                    exact=False, reason=f"{what}: a later segment of {longest} is reduced"
                )
    return Expectation(
        exact=True,
        reason=f"boundaries are multiples of {KV_TILE}"
        if setting.n_ubatch >= Q_TILE
        else "one row at a time, in the same order",
    )


def _calls(setting: Setting) -> tuple[tuple[int, int], ...]:
    """Return rows and cells of each different call of attention in a chunk, smallest first."""
    sizes = {setting.n_ctx}
    if setting.n_swa and not setting.swa_full:
        sizes.add(_padded(min(setting.n_ctx, setting.n_swa + setting.n_ubatch)))
    calls = set()
    for done in range(0, setting.n_ctx, setting.n_ubatch):
        rows = min(setting.n_ubatch, setting.n_ctx - done)
        calls |= {(rows, min(_padded(done + rows), size)) for size in sizes}
    return tuple(sorted(calls))


def _padded(n_kv: int) -> int:
    return -(-n_kv // _PADDING) * _PADDING


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A run beside the standard one."""

    name: str
    expected: Expectation
    ok: bool
    largest: float
    """The largest relative difference, of the estimate and of all chunks."""
    message: str


def judge(
    setting: Setting, runs: Sequence[ProgramRun], results: Mapping[str, Perplexity]
) -> tuple[Judgement, ...]:
    """Compare each run with segments with the standard run, the first.

    Where digits may differ, the values must be within `RELATIVE_TOLERANCE`, or within
    `CONTROL_FACTOR` times what lies between the control and the standard run if that is more.

    Args:
        setting: Of all runs.
        runs: From `plan_segments`.
        results: What each run printed, by its name.

    Raises:
        UsageError: a run has no result, the control has another number of chunks, or the runs do
            not begin with a standard one.
    """
    missing = [run.name for run in runs if run.name not in results]
    if missing:
        raise UsageError(f"no results of the runs {', '.join(missing)}")
    if not runs or runs[0].n_segments or runs[0].control:
        raise UsageError("the first run must be the standard one")
    standard = results[runs[0].name]
    spread = max(
        (_difference(results[run.name], standard) for run in runs if run.control), default=0
    )
    if math.isinf(spread):
        raise UsageError("the control and the standard run have different numbers of chunks")
    tolerance = max(RELATIVE_TOLERANCE, CONTROL_FACTOR * spread)
    return tuple(
        _judgement(
            run.name, expectation(setting, run.n_segments), results[run.name], standard, tolerance
        )
        for run in runs[1:]
        if not run.control
    )


def _difference(result: Perplexity, standard: Perplexity) -> float:
    """Return the largest relative difference of the estimates and of all chunks."""
    if len(result.chunks) != len(standard.chunks):
        return math.inf
    pairs = [
        *zip(result.chunks, standard.chunks, strict=True),
        (result.estimate, standard.estimate),
    ]
    return max(abs(a - b) / b for a, b in pairs)


def _judgement(
    name: str,
    expected: Expectation,
    result: Perplexity,
    standard: Perplexity,
    tolerance: float,
) -> Judgement:
    largest = _difference(result, standard)
    if len(result.chunks) != len(standard.chunks):
        return Judgement(
            name=name,
            expected=expected,
            ok=False,
            largest=largest,
            message=f"{len(result.chunks)} chunks, the standard run has {len(standard.chunks)}",
        )
    # the error's digits count where all do; it has no bound of its own
    ok = result == standard if expected.exact else largest <= tolerance
    required = "equal" if expected.exact else f"within {tolerance:.2g}"
    found = "equal" if result == standard else f"off by {largest:.2g}"
    return Judgement(
        name=name,
        expected=expected,
        ok=ok,
        largest=largest,
        message=f"{found}, must be {required}: {expected.reason}",
    )
