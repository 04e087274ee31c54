"""llama-perplexity on a model, with attention in segments of the KV cache.

Seen from outside, this is what `experimental` of the series makes llama.cpp do. The output is
parsed and runs are planned. For each run it is decided beforehand whether it must print what the
standard run prints. The caller runs the programs.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fa_harness.errors import FaHarnessError, UsageError
from fa_harness.kernel import KV_TILE, Q_TILE, SPLIT_KV

RELATIVE_TOLERANCE = 1e-4
"""How far a perplexity may be off if sums are in another order and no control allows more."""
CONTROL_FACTOR = 2
"""How many times as far off as the control a run may be."""

_PADDING = 256
"""llama.cpp pads the cells that a graph sees to a multiple of this."""

_CHUNK = re.compile(r"\[(\d+)\](-?nan|-?inf|\d+\.\d{4}),")
_STARTED = "perplexity: calculating perplexity over"
_LOST = " (llama.cpp may lose its last lines at exit; if its status is 0, run it again)"
_FINAL = re.compile(r"Final estimate: PPL = (\d+\.\d+) \+/- (\d+\.\d+)")


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """The output of llama-perplexity, to all of its digits."""

    estimate: float  # over all chunks
    error: float  # the standard error of the estimate, printed after +/-
    chunks: tuple[float, ...]  # over the first, the first two, ...; the last is the estimate


def parse(output: str) -> Perplexity:
    """Read the output of llama-perplexity, with log lines and others in between.

    The final estimate goes to standard error, the values of chunks to standard output.
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
    """How the text goes through the model; this decides the path of each attention call."""

    n_ctx: int  # tokens of a chunk: a multiple of 256, so that llama.cpp does not change it
    n_ubatch: int  # tokens of one graph, which are the rows of a call; 1 is decoding
    threads: int = 2
    chunks: int = 1
    n_swa: int = 0  # window of the model's local layers, 0 if it has none

    def __post_init__(self) -> None:
        if self.n_ctx < _PADDING or self.n_ctx % _PADDING:
            raise UsageError(f"n_ctx={self.n_ctx}: give a multiple of {_PADDING}")
        if not 1 <= self.n_ubatch <= self.n_ctx:
            raise UsageError(f"n_ubatch={self.n_ubatch}: give one from 1 to n_ctx={self.n_ctx}")
        if self.threads < 1 or self.chunks < 1 or self.n_swa < 0:
            raise UsageError("threads and chunks must be at least 1, n_swa at least 0")

    @property
    def arguments(self) -> tuple[str, ...]:
        """The options of llama-perplexity without model and text.

        A batch is one chunk, so that the cache holds one sequence, in order.
        """
        return (
            *("-fa", "on", "-c", str(self.n_ctx), "-b", str(self.n_ctx)),
            *("-ub", str(self.n_ubatch), "-t", str(self.threads), "--chunks", str(self.chunks)),
        )


@dataclass(frozen=True, kw_only=True)
class ProgramRun:
    """One run of llama-perplexity."""

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)  # on top of the caller's
    arguments: tuple[str, ...]  # all but model and text
    n_segments: int = 0  # attention calls with a state; 0 stands for one call without a state
    control: bool = False  # whether it is a standard run that sums in another order


def plan_segments(setting: Setting, segments: Sequence[int] = (1, 2, 8)) -> tuple[ProgramRun, ...]:
    """Return the standard run, a run for each number of segments, and a control if one is needed.

    Weights and activations of few bits amplify the rounding of attention: Gemma 3 270M (Q4_K)
    decodes 512 tokens to 2.8681 on one thread and to 2.8370 on two, without any patch. So if a run
    may differ, the control tells how far. It is a standard run with another number of threads, or
    with batches too small for tiles.
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
class Expectation:
    """How close a run must be to the standard run, and why."""

    exact: bool  # whether all digits must be equal; otherwise the values, within a tolerance
    reason: str


def expectation(setting: Setting, n_segments: int) -> Expectation:
    """Say whether an F16 cache in segments must give the bits of one call.

    It must if each call of every graph does. One call with a state is the standard call. On the
    tiled path the boundaries must not cut a tile. With one row at a time any split is exact, unless
    the whole or a later segment is split among threads and then reduced.
    """
    if n_segments <= 1:
        return Expectation(exact=True, reason="one call: the state changes no result")
    for rows, n_kv in _calls(setting):
        why = _why_inexact(rows, n_kv, n_segments, setting.threads)
        if why is not None:
            return Expectation(exact=False, reason=f"{n_kv} cells: {why}")
    return Expectation(
        exact=True,
        reason=f"boundaries are multiples of {KV_TILE}"
        if setting.n_ubatch >= Q_TILE
        else "one row at a time, in the same order",
    )


def _why_inexact(rows: int, n_kv: int, n_segments: int, threads: int) -> str | None:
    """Return why the segments of a call need not give its bits, or None."""
    ends = [i * n_kv // n_segments for i in range(n_segments + 1)]
    if rows >= Q_TILE:
        cut = next((end for end in ends if end % KV_TILE), None)
        return None if cut is None else f"a boundary at {cut} cuts a tile of {KV_TILE}"
    if rows > 1 or n_kv < SPLIT_KV:
        return None
    if threads > 1:
        return f"one call is split among {threads} threads"
    longest = max(b - a for a, b in itertools.pairwise(ends[1:]))
    return f"a later segment of {longest} is reduced" if longest >= SPLIT_KV else None


def _calls(setting: Setting) -> list[tuple[int, int]]:
    """Return rows and cells of each different attention call in a chunk, smallest first."""
    sizes = {setting.n_ctx}
    if setting.n_swa:
        sizes.add(_padded(min(setting.n_ctx, setting.n_swa + setting.n_ubatch)))
    calls = set()
    for done in range(0, setting.n_ctx, setting.n_ubatch):
        rows = min(setting.n_ubatch, setting.n_ctx - done)
        calls |= {(rows, min(_padded(done + rows), size)) for size in sizes}
    return sorted(calls)


def _padded(n_kv: int) -> int:
    return -(-n_kv // _PADDING) * _PADDING


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A run compared with the standard run."""

    name: str
    expected: Expectation
    ok: bool
    largest: float  # the largest relative difference, of the estimate and of all chunks
    message: str


def judge(
    setting: Setting, runs: Sequence[ProgramRun], results: Mapping[str, Perplexity]
) -> tuple[Judgement, ...]:
    """Compare each run of `plan_segments` that has segments with the standard run, the first.

    Where digits may differ, the values must be within `RELATIVE_TOLERANCE`, or within
    `CONTROL_FACTOR` times the difference of the control from the standard run if that is more.
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
    judgements = []
    for run in (run for run in runs[1:] if not run.control):
        expected, result = expectation(setting, run.n_segments), results[run.name]
        largest = _difference(result, standard)
        # the digits of the error count where all do; it has no bound of its own
        ok = result == standard if expected.exact else largest <= tolerance
        required = "equal" if expected.exact else f"within {tolerance:.2g}"
        found = "equal" if result == standard else f"off by {largest:.2g}"
        message = f"{found}, must be {required}: {expected.reason}"
        if math.isinf(largest):
            message = f"{len(result.chunks)} chunks, the standard run has {len(standard.chunks)}"
        judgements.append(
            Judgement(name=run.name, expected=expected, ok=ok, largest=largest, message=message)
        )
    return tuple(judgements)


def _difference(result: Perplexity, standard: Perplexity) -> float:
    """Return the largest relative difference, infinite for different numbers of chunks."""
    if len(result.chunks) != len(standard.chunks):
        return math.inf
    pairs = [
        *zip(result.chunks, standard.chunks, strict=True),
        (result.estimate, standard.estimate),
    ]
    return max(abs(a - b) / b for a, b in pairs)
