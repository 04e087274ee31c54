"""What the harness itself may take: of several tries the fastest counts, since others use the
machine, too. Where they use it all the time, or it is a slower one, its pace counts as well."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest

from fa_harness.build.library import Library
from fa_harness.case.case import Case
from fa_harness.case.inputs import make_inputs
from fa_harness.engine.compute import run_case
from fa_harness.engine.ggml import Backend, Ggml, Graph
from fa_harness.engine.runner import Runner
from fa_harness.machine import usable_cores

pytestmark = pytest.mark.timing

TRIES = 100
WORKERS = 10
IN_A_ROW = 10
SMALL = Case(hsk=64, hsv=64, n_head_kv=2, n_batch=3, n_kv=64, segments=2, regime="normal")
LIMIT = 5e-3
"""Seconds."""
ROOM = 1.25
"""How much slower a machine may be than cores that nobody shares, where a case takes 4 ms."""
PACE = 2.3e-6
"""Seconds that a step of `pace` takes there."""


def pace(seconds: float = 0.1) -> float:
    """Return what a step of what the harness does most takes: small arrays, Python's objects.

    Another process computes meanwhile, as a worker does.
    """
    array, steps = np.ones((3, 64)), 0
    busy = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    with subprocess.Popen(busy, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            start = now = time.perf_counter()
            while now - start < seconds:
                for _ in range(100):
                    str((array * 2.0).max(axis=1).size)
                steps += 100
                now = time.perf_counter()
        finally:
            other.kill()
    return (now - start) / steps


def assert_keeps_the_limit(patched: Library, attempt: Callable[[Runner], float]) -> None:
    """Assert that the fastest of many attempts takes `LIMIT` at most.

    Where none does, the usual `pace` between them counts: a machine on which it is more than `ROOM`
    times `PACE` has as much more time. Where others have the other half of a core, each step takes
    up to 1.7 times as long, and an attempt needs two cores that are free at once, which a step does
    not. The scheduler may keep a worker on the core of its parent, hence several.
    """
    found, paces = [], []
    for _ in range(WORKERS):
        with Runner(patched.module_path) as runner:
            for _ in range(TRIES // WORKERS):
                found.append(attempt(runner))
                if found[-1] <= LIMIT:
                    return
        paces.append(pace())
    slower = statistics.median(paces) / PACE
    limit = LIMIT * max(1.0, slower / ROOM)
    assert min(found) <= limit, (
        f"{min(found) * 1e3:.1f} ms a case beside its computing, at most {limit * 1e3:.1f} ms on a "
        f"machine that is {slower:.2f} times slower than cores that nobody shares"
    )


def test_help_takes_less_than_a_fifth_of_a_second() -> None:
    seconds = []
    for _ in range(TRIES):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "fa_harness.cli", "--help"], check=True, capture_output=True
        )
        seconds.append(time.perf_counter() - start)
        if seconds[-1] < 0.2:
            return
    raise AssertionError(f"fa-harness --help takes {min(seconds):.3f} s")


@pytest.mark.parametrize(
    "modes", [("standard", "full_state", "segmented"), None], ids=["chain", "by default"]
)
def test_a_small_case_takes_at_most_5_ms_more_than_its_computing(
    library: Ggml, patched: Library, modes: tuple[str, ...] | None
) -> None:
    """What one waits for a case, less what its modes take where nothing is around them."""
    inputs = make_inputs(SMALL)
    computing = min(
        sum(run_case(library, SMALL, inputs, modes).seconds.values()) for _ in range(TRIES)
    )

    def attempt(runner: Runner) -> float:
        start = time.perf_counter()
        list(runner.run([SMALL], modes=modes))
        return time.perf_counter() - start - computing

    assert_keeps_the_limit(patched, attempt)


@pytest.mark.skipif(
    usable_cores() < 2, reason="a case is judged while the next is computed where a core is free"
)
def test_small_cases_in_a_row_take_at_most_5_ms_each_more_than_the_library(
    library: Ggml, patched: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one waits for each, less what computing its graphs takes of it."""
    in_library = 0.0

    def timed(backend: Backend, graph: Graph) -> None:
        nonlocal in_library
        start = time.perf_counter()
        compute(backend, graph)
        in_library += time.perf_counter() - start

    compute = Backend.compute
    cases = [SMALL.with_(seed=seed) for seed in range(IN_A_ROW)]
    with monkeypatch.context() as patch:
        patch.setattr(Backend, "compute", timed)
        for case in cases:
            run_case(library, case, make_inputs(case))

    def attempt(runner: Runner) -> float:
        start = time.perf_counter()
        list(runner.run(cases))
        return (time.perf_counter() - start - in_library) / len(cases)

    assert_keeps_the_limit(patched, attempt)
