"""How much memory a case needs: what is told before, and a run that goes on after it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fa_harness.build.library import Library
from fa_harness.case.case import Case
from fa_harness.case.inputs import make_inputs
from fa_harness.case.modes import modes_of
from fa_harness.engine import memory
from fa_harness.engine.runner import Runner
from fa_harness.judge.verdict import Verdict

SMALL = Case(hsk=32, hsv=32, n_head_kv=1, n_kv=20, n_batch=2, segments=2, regime="normal")
HUGE = 10**12


def run(module: Path, *cases: Case) -> list[Verdict]:
    with Runner(module) as runner:
        return list(runner.run(cases))


TOO_LARGE = [
    SMALL.with_(n_kv=HUGE),
    SMALL.with_(n_kv=HUGE, segments=HUGE),
    SMALL.with_(n_kv=HUGE, boundaries="random"),
    SMALL.with_(n_batch=HUGE),
    SMALL.with_(hsk=HUGE),
    SMALL.with_(n_head_kv=HUGE),
    SMALL.with_(n_group=HUGE),
    SMALL.with_(ne3=HUGE),
    SMALL.with_(n_kv=2**62, n_head_kv=2**62, hsk=2**62),  # no number of 64 bits
    SMALL.with_(segments=1, mask_kind="causal", n_batch=20, hot_window=2**62),
]


def test_cases_that_are_too_large_are_told_apart_and_the_others_run(patched: Library) -> None:
    start = time.perf_counter()
    before, *large, after = run(patched.module_path, SMALL, *TOO_LARGE, SMALL.with_(seed=1))
    assert (before.status, after.status) == ("pass", "pass")
    for verdict in large:
        assert verdict.status == "oversized"
        assert verdict.reason.startswith("needs about ")
        assert "iB are available; take fewer keys, rows, heads or segments, or " in verdict.reason
    assert time.perf_counter() - start < 120


def test_what_is_needed_is_near_what_was_measured() -> None:
    for fields, measured in (
        ({"n_head_kv": 4, "n_kv": 262144, "n_batch": 1, "segments": 4}, 1415 + 1794),
        ({"n_head_kv": 4, "n_kv": 1024, "n_batch": 16, "segments": 128}, 210 + 65),
        ({"n_group": 8, "n_head_kv": 1, "n_kv": 65536, "n_batch": 16}, 231 + 117),
    ):
        case = Case(hsk=64, hsv=64, **fields)  # type: ignore[arg-type]
        needed = memory.needed_bytes(case, modes_of(case)) / 2**20
        assert measured / 1.33 < needed < measured * 1.33


def test_one_call_needs_nothing_for_segments() -> None:
    case = SMALL.with_(n_kv=1 << 20, segments=1 << 20)
    of_all = memory.needed_bytes(case, modes_of(case))
    assert memory.needed_bytes(case, ("standard",)) < of_all / 10


def test_a_case_that_fits_only_alone_waits_for_the_one_before(
    patched: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [2**40, 0, 0, 2**40]
    monkeypatch.setattr(memory, "_SMALL", 0)
    monkeypatch.setattr(memory, "available_memory", lambda: left.pop(0) if left else 2**40)
    monkeypatch.setattr("fa_harness.engine.runner.usable_cores", lambda: 2)
    verdicts = run(patched.module_path, SMALL, SMALL.with_(seed=1))
    assert [verdict.status for verdict in verdicts] == ["pass", "pass"]
    assert left == []


def exhausting(function: Callable[..., Any], *, seed: int) -> Callable[..., Any]:
    """Return a function that runs out of memory in the case with a seed."""

    def exhausted(case: Case, *arguments: Any, **more: Any) -> Any:
        if case.seed == seed:
            raise MemoryError("Unable to allocate 9 GiB")
        return function(case, *arguments, **more)

    return exhausted


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize(
    ("name", "where"), [("make_inputs", "the oracle"), ("judge", "the comparison")]
)
def test_a_run_goes_on_after_a_case_that_ran_out_of_memory_here(
    patched: Library, monkeypatch: pytest.MonkeyPatch, cores: int, name: str, where: str
) -> None:
    from fa_harness.engine import runner

    monkeypatch.setattr(runner, "usable_cores", lambda: cores)
    monkeypatch.setattr(runner, name, exhausting(getattr(runner, name), seed=1))
    cases = [SMALL.with_(seed=seed) for seed in range(3)]
    verdicts = run(patched.module_path, *cases)
    assert [verdict.status for verdict in verdicts] == ["pass", "oversized", "pass"]
    assert verdicts[1].reason.startswith(f"{where}: ran out of memory (Unable to allocate 9 GiB); ")


@pytest.mark.parametrize("error", ["MemoryError('too much')", "OverflowError('too much')"])
def test_a_run_goes_on_after_a_case_that_ran_out_of_memory_in_the_worker(
    around_patched: Callable[[str], Path], tmp_path: Path, error: str
) -> None:
    once = tmp_path / "once"
    code = (
        f"if (name, n) == ('ggml_graph_compute', 3) and not os.path.exists({str(once)!r}): "
        f"open({str(once)!r}, 'w').close(); raise {error}"
    )
    large, after = run(around_patched(code), SMALL, SMALL.with_(seed=1))
    assert (large.status, after.status) == ("oversized", "pass")
    assert large.reason.startswith("full_state: ran out of memory (too much); take fewer keys")


def test_a_worker_keeps_nothing_of_a_case_while_it_waits(patched: Library) -> None:
    large = Case(hsk=64, hsv=64, n_head_kv=1, n_kv=200_000, n_batch=1, mask=False)
    kept = sum(
        array.nbytes
        for array in vars(make_inputs(large)).values()
        if array is not None and hasattr(array, "nbytes")
    )

    def resident(pid: int) -> int:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096

    with Runner(patched.module_path) as runner:
        list(runner.run([SMALL]))
        before = resident(runner._worker.pid)
        list(runner.run([large], modes=("standard",)))
        assert resident(runner._worker.pid) - before < kept / 2
