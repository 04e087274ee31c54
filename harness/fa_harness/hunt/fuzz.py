"""Run drawn cases on a library until they or the time are up: count them, and shrink what fails.

Nothing here knows how cases are drawn (`strategies`) or where failures are kept.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from fa_harness.case.case import Case
from fa_harness.engine.runner import Runner
from fa_harness.engine.session import Session
from fa_harness.hunt.shrink import Failure, shrink
from fa_harness.judge.verdict import Verdict

_BATCH = 64
"""So many cases are sorted by threads, since those of equal numbers run side by side."""
_SHRINK_SECONDS = 20.0
"""Shrinking a failure takes at most so long, also where the time of the run is up."""
_SHRINK_CASES = 400
"""Shrinking tries at most so many cases where the run has no limit of time, so that the same cases
run on every machine."""
_SIMPLER_SECONDS = 10.0
"""A case that is simpler than one that fails has this time; where that is not enough, it hangs."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A failure."""

    drawn: Case
    """The case that failed first."""
    verdict: Verdict
    """Of the smallest case that fails like it; of itself where it was stored."""
    count: int = 1
    """Cases that failed in this way."""


@dataclass(kw_only=True)
class Tally:
    """What ran, counted."""

    statuses: Counter[str] = field(default_factory=Counter)
    paths: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    """By the type of K, and of V where it is another; of segments and cold stores, too."""
    regimes: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    masks: Counter[str] = field(default_factory=Counter)
    lengths: Counter[str] = field(default_factory=Counter)
    """By the number of keys."""
    head_sizes: Counter[str] = field(default_factory=Counter)
    """By the largest of 64, 32, 16 and 8 that divides K's and V's, `n*64` to `n*8` or `any`.

    Those where they differ count under `unequal`, too.
    """
    threads: Counter[str] = field(default_factory=Counter)
    sequences: Counter[str] = field(default_factory=Counter)

    @property
    def cases(self) -> int:
        """How many cases ran."""
        return self.statuses.total()

    def coverage(self) -> dict[str, Counter[str]]:
        """Return what the cases reached, by kind."""
        counts = vars(self).items()
        return {name: of_name for name, of_name in counts if name != "statuses"}

    def add(self, verdict: Verdict) -> None:
        """Count a case."""
        case = verdict.case
        self.statuses[verdict.status] += 1
        self.paths[verdict.path] += 1
        of_segments = (type_ for types in case.segment_types for type_ in types.split("/"))
        cold = (case.cold_type,) if case.hot_window else ()
        whole = () if case.segment_types else (case.type_K, case.type_V)
        self.types.update({*whole, *of_segments, *cold})
        self.regimes[case.regime] += 1
        self.modes.update(verdict.modes)
        self.masks[case.mask_kind] += 1
        self.lengths[_range_of(case.n_kv, (1, 64, 512, 4096))] += 1
        divisor = math.gcd(case.hsk, case.hsv, 64)
        self.head_sizes[f"n*{divisor}" if divisor >= 8 else "any"] += 1
        self.head_sizes["unequal"] += case.hsk != case.hsv
        self.threads[_range_of(case.threads, (1, 2, 3, 9, 17))] += 1
        self.sequences[str(case.ne3)] += 1


def _range_of(n: int, starts: Sequence[int]) -> str:
    """Return the range that a number is in, in words: `2`, `3 to 8`, `from 17`."""
    i = sum(start <= n for start in starts) - 1
    if i == len(starts) - 1:
        return f"from {starts[i]}"
    last = starts[i + 1] - 1
    return f"{starts[i]} to {last}" if last > starts[i] else f"{last}"


@dataclass(frozen=True, kw_only=True)
class Fuzz(Session):
    """All that a run of the fuzzer found, and what it ran on."""

    seed: int
    tally: Tally
    found: tuple[Found, ...]
    failures_file: str
    """The case file in which they are kept."""

    @property
    def passed(self) -> bool:
        """Whether nothing failed, and not because nothing ran."""
        return not self.found and self.tally.statuses["pass"] > 0


class Fuzzer:
    """A run of the fuzzer, which keeps what it has found, also after Ctrl-C."""

    def __init__(
        self,
        runner: Runner,
        *,
        seconds: float | None,
        on_verdict: Callable[[Verdict], None],
        on_found: Callable[[Found], None],
        modes: tuple[str, ...] | None = None,
    ) -> None:
        """Prepare a run, whose time starts now; without `seconds` it has as much as it needs.

        `on_verdict` is told of each stored or drawn case, `on_found` of each failure that is not
        like one before, once it is shrunk.
        """
        self._run_cases = functools.partial(runner.run, modes=modes)
        self._end = None if seconds is None else time.monotonic() + seconds
        self._on_verdict = on_verdict
        self._on_found = on_found
        self._failed: deque[Verdict] = deque()
        self._by_kind: dict[tuple[str, str, str], Found] = {}
        self.tally = Tally()
        self.interrupted = False

    @property
    def found(self) -> tuple[Found, ...]:
        """The failures, one of each kind: status, what shows it, and path of the kernel."""
        return tuple(self._by_kind.values())

    def run(self, stored: Sequence[Case], drawn: Iterable[Case]) -> None:
        """Run the stored cases, then drawn ones until none is left or the time is up.

        Ctrl-C ends it; what failed until then is found, if not in its smallest form.
        """
        try:
            self._run(stored)
            self._note_failed(lambda verdict: verdict)
            cases = iter(drawn)
            while not self._is_over() and (batch := list(itertools.islice(cases, _BATCH))):
                self._run(sorted(batch, key=lambda case: case.threads))
                self._note_failed(self._smallest)
        except KeyboardInterrupt:
            self.interrupted = True
            self._note_failed(lambda verdict: verdict)

    def _run(self, cases: Sequence[Case]) -> None:
        for verdict in self._run_cases(cases):
            self.tally.add(verdict)
            if Failure.of(verdict):
                self._failed.append(verdict)
            self._on_verdict(verdict)
            if self._is_over():
                return

    def _is_over(self) -> bool:
        return self._end is not None and time.monotonic() > self._end

    def _note_failed(self, smallest: Callable[[Verdict], Verdict]) -> None:
        while self._failed:
            verdict = self._failed[0]  # there until it is noted, for the one who interrupts
            failure = Failure.of(verdict)
            assert failure is not None
            kind = (failure.status, failure.name, verdict.path)
            known = self._by_kind.get(kind)
            if known is not None:
                self._by_kind[kind] = replace(known, count=known.count + 1)
            else:
                found = Found(drawn=verdict.case, verdict=smallest(verdict))
                self._by_kind[kind] = found
                self._on_found(found)
            self._failed.popleft()

    def _smallest(self, verdict: Verdict) -> Verdict:
        """Return the verdict of the smallest case that fails as a case does."""
        verdicts = {verdict.case: verdict}
        end = time.monotonic() + _SHRINK_SECONDS

        def fails(case: Case) -> Failure | None:
            if case not in verdicts:
                [verdicts[case]] = self._run_cases([case], timeout=_SIMPLER_SECONDS)
            return Failure.of(verdicts[case])

        def is_enough() -> bool:
            if self._end is None:
                return len(verdicts) >= _SHRINK_CASES
            return time.monotonic() > end

        shrunk = shrink(verdict.case, fails, out_of_time=is_enough)
        assert shrunk is not None, "the case itself fails"
        return verdicts[shrunk.case]
