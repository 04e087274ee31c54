"""The gate's speed rows: what the state costs, as ratios to one call without it, round by round.

Some processes measure a row in turn, and each gives one number a ratio, the median of its rounds.
The rounds of one process share its places in memory, which alone make the same code some per cent
faster or slower; only another process draws them anew. And a crash or a hang in a process is a
finding, not the end of the gate.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fa_harness import proc
from fa_harness.case.case import Case
from fa_harness.speed.bench import shape
from fa_harness.terminal import Advance

WAYS = ("full_state", "segmented")
"""What is compared with the baseline."""
NOISE = ("again", "parts")
"""What tells the noise: one call without a state again, and a call without one per segment."""
OTHER = "other"
"""One call of another library, to which one call is compared."""
PROCESSES = 12
"""Of a measurement; a baseline, and what looks slower, is measured with twice as many."""
ROUNDS = 10
"""Of a process."""

_TIMEOUT = 120.0  # seconds; a process takes half of one

# so small that K and V stay in the core's own cache, which no neighbour on the machine shares
_VEC = shape(1, 256, 128, (8, 2), "f16").with_(segments=4)
_SPLIT_KV = _VEC.with_(segments=2, hsk=64, hsv=64, n_kv=1024)

ROWS: tuple[Case, ...] = (
    _VEC,
    _SPLIT_KV,
    _SPLIT_KV.with_(threads=2),
    _VEC.with_(hsk=64, hsv=64, n_head_kv=1, n_group=2, n_kv=512, n_batch=128),  # tiled
    _VEC.with_(type_K="q8_0", type_V="q8_0", n_kv=512),
)
"""Each of the kernel's paths, and quantised keys."""


@dataclass(frozen=True, kw_only=True)
class SpeedRow:
    """A measured speed row."""

    case: Case
    ratios: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """The time of each of `NOISE` and `WAYS` to that of `standard`, process by process.

    `OTHER` is the time of `standard` to that of one call of another library, where there is one.
    """
    fault: str = ""
    """How the process ended that measured it; empty where it ended well."""


def measure(
    module_path: Path,
    cases: Sequence[Case],
    *,
    processes: int = PROCESSES,
    seed: int = 0,
    other: Path | None = None,
    advance: Advance = lambda _done, _total: None,
) -> list[SpeedRow]:
    """Measure rows in turn, so that what drifts on the machine moves all of them alike.

    A case's segments are the chain's. `seed` draws the order in each round. `other` is the module
    of a library that is timed beside, in the same rounds. `advance` gets the number of processes
    that have ended, and of all.
    """
    rows = [SpeedRow(case=case) for case in cases]
    for n in range(processes):
        for i, row in enumerate(rows):
            advance(n * len(rows) + i, processes * len(rows))
            if not row.fault:
                rows[i] = _with_one_more(row, module_path, other, seed=seed + n)
    return rows


def _with_one_more(row: SpeedRow, module_path: Path, other: Path | None, *, seed: int) -> SpeedRow:
    """Return a row with what one more process measured."""
    command = [sys.executable, "-m", "fa_harness.speed.rows", row.case, ROUNDS, seed, module_path]
    command += [] if other is None else [other]
    try:
        done = proc.ended(command, seconds=_TIMEOUT, GGML_NO_BACKTRACE="1")
    except subprocess.TimeoutExpired:
        return SpeedRow(case=row.case, fault=f"no result after {_TIMEOUT:g} s")
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()[-3:]
        fault = "\n  ".join([proc.ending(done.returncode), *lines])
        return SpeedRow(case=row.case, fault=fault)
    medians: dict[str, float] = json.loads(done.stdout)
    return replace(
        row, ratios={way: (*row.ratios.get(way, ()), median) for way, median in medians.items()}
    )


def _serve(case: str, rounds: str, seed: str, *module_paths: str) -> None:
    """Measure a row on a library, perhaps beside another, and print the medians of its ratios."""
    from fa_harness.engine import ggml
    from fa_harness.speed.timing import measure_state

    reply = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the library prints must not get into the reply
    library, *others = [ggml.load(Path(path)) for path in module_paths]
    # a thread's stack begins at a page; the process's own wherever its environment ends
    with ThreadPoolExecutor(1) as thread:
        seconds = thread.submit(
            measure_state,
            library,
            Case.parse(case),
            rounds=int(rounds),
            seed=int(seed),
            other=others[0] if others else None,
        ).result()
    standard = seconds.pop("standard")
    ratios = {way: each / standard for way, each in seconds.items()}
    if OTHER in ratios:
        ratios[OTHER] = 1 / ratios[OTHER]
    json.dump({way: float(np.median(each)) for way, each in ratios.items()}, reply)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
