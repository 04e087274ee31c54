"""Whether the schedules and llama.cpp's own test would notice a fault of the mixed KV cache.

The library with the mutants of the series `mixed` has all of them compiled in. A process computes
with the one that an environment variable names, and says when it is reached.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from fa_harness import proc
from fa_harness.hunt.mutants import Mutant
from fa_harness.model.llama import BINDINGS, TEST_KV_CACHE_MIXED, Programs

_SECONDS = 300.0
"""A mutant may loop for ever; the schedules take half a minute, the test some seconds."""
_SCHEDULES = "fa_harness.model.schedules"
_FAILED = re.compile(r"^\S*test-kv-cache-mixed\.cpp:\d+: |^fault: ")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a mutant."""

    status: str  # killed, survived, or invalid where it is not reached
    by_schedules: str  # what they said; empty if they passed
    by_test: str


def try_mutant(mutant: Mutant | None, built: Programs, n: int, seed: int) -> Outcome:
    """Run schedules and the test with a mutant, or without one, which then has to survive."""
    id_ = mutant.id if mutant else ""
    schedules = [sys.executable, "-m", _SCHEDULES, built.program(BINDINGS), n, seed]
    test = [built.program(TEST_KV_CACHE_MIXED), "-n", 2]
    by_schedules, was_reached = _run(schedules, id_)
    by_test, is_reached = _run(test, id_)
    if mutant and not (was_reached or is_reached):
        status = "invalid"
    else:
        status = "killed" if by_schedules or by_test else "survived"
    return Outcome(status=status, by_schedules=by_schedules, by_test=by_test)


def _run(command: Sequence[object], id_: str) -> tuple[str, bool]:
    """Return what a program says that fails, and whether it reached the mutant."""
    try:
        process = proc.ended(command, seconds=_SECONDS, GGML_NO_BACKTRACE="1", LLAMA_KV_MUTANT=id_)
    except subprocess.TimeoutExpired:
        return f"not done after {_SECONDS:.0f} s", True
    is_reached = f"llama_kv_mutant: {id_}\n" in process.stderr
    if process.returncode == 0:
        return "", is_reached
    said = process.stdout.splitlines()
    # the test prints what it refuses and measures, before what fails
    words = next((line for line in said if _FAILED.search(line)), "")
    asserted = next((line for line in process.stderr.splitlines() if "GGML_ASSERT" in line), "")
    return words or asserted or proc.ending(process.returncode), is_reached
