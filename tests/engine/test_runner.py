import dataclasses
import json
import os
import signal
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fa_harness.build.library import Library
from fa_harness.case.case import Case
from fa_harness.case.modes import Run
from fa_harness.case.suites import suite
from fa_harness.engine import runner
from fa_harness.engine.runner import Runner
from fa_harness.engine.worker import Worker
from fa_harness.errors import SetupError
from fa_harness.judge.expectations import Expectations
from fa_harness.judge.verdict import Verdict, judge
from runs import changed

SEED = json.loads((Path(__file__).parents[1] / "data" / "seed.json").read_text())
SEED_CASE = Case.parse(SEED["case"])
SMALL = Case(hsk=32, hsv=32, n_head_kv=1, n_kv=20, n_batch=2, segments=2, regime="normal")


def run(
    library: Library, cases: Sequence[Case], modes: tuple[str, ...] | None = None
) -> list[Verdict]:
    with Runner(library.module_path) as runner:
        return list(runner.run(cases, modes=modes) if modes else runner.run(cases))


def test_the_first_patch_alone_gives_the_numbers_that_were_recorded_with_the_bug(
    bug: Library,
) -> None:
    [verdict] = run(bug, [SEED_CASE])
    recorded = SEED["library 0001"]
    assert verdict.status == "fail"
    after = np.array(verdict.outputs["after_segment"]).reshape(2, 4)
    np.testing.assert_allclose(after, recorded["after_segment"], rtol=0, atol=2e-6)
    segmented = np.array(verdict.outputs["segmented"]).reshape(4)
    np.testing.assert_allclose(segmented, recorded["after_segment"][-1], rtol=0, atol=2e-6)
    assert verdict.comparisons["full_state_vs_standard"].max_abs == 0
    difference = verdict.comparisons["segmented_vs_standard"].max_abs
    assert f"{difference:.2e}" == recorded["standard_vs_segmented"]


def test_the_reason_of_the_seed_case_names_the_element_that_is_off_by_that(bug: Library) -> None:
    [verdict] = run(bug, [SEED_CASE])
    assert verdict.reason == (
        "state vs oracle: 4.00e+00, allowed 8.26e-03 at batch 0, head 0, row 0, element 3"
    )


def test_the_series_gives_the_exact_result_of_the_seed_case(patched: Library) -> None:
    [verdict] = run(patched, [SEED_CASE])
    assert (verdict.status, verdict.reason) == ("pass", "")
    assert verdict.comparisons["full_state_vs_standard"].max_abs == 0
    assert verdict.comparisons["segmented_vs_standard"].max_abs == 0
    segmented = np.array(verdict.outputs["segmented"]).reshape(4)
    np.testing.assert_allclose(segmented, SEED["exact"], rtol=0, atol=1e-3)  # F16 numerators


def test_smoke_passes_on_the_series(patched: Library) -> None:
    verdicts = run(patched, suite("smoke"))
    assert [v.reason for v in verdicts if v.status != "pass"] == []


def test_smoke_fails_on_the_first_patch_alone(bug: Library) -> None:
    verdicts = run(bug, [case for case in suite("smoke") if case.segments > 1])
    assert len([v for v in verdicts if v.status == "fail"]) >= 0.9 * len(verdicts)


def test_pristine_has_no_calls_with_state(pristine: Library) -> None:
    verdicts = run(pristine, [SEED_CASE, SMALL])
    assert {(v.status, v.reason) for v in verdicts} == {
        ("unsupported", "the library has no ggml_flash_attn_ext_with_state; use --mode standard")
    }


def test_a_mode_that_a_library_cannot_do_is_left_out_where_none_was_named(bug: Library) -> None:
    [verdict] = run(bug, [SEED_CASE])
    assert verdict.modes == ("standard", "full_state", "segmented", "resumed")


def test_a_mode_that_is_named_and_a_library_cannot_do_is_unsupported(bug: Library) -> None:
    [verdict] = run(bug, [SEED_CASE], ("standard", "merged"))
    assert (verdict.status, verdict.modes) == ("unsupported", ())
    assert verdict.reason == (
        "the library has no ggml_flash_attn_ext_merge_states; leave mode merged out"
    )


def test_pristine_passes_in_mode_standard(pristine: Library) -> None:
    verdicts = run(pristine, suite("smoke"), ("standard",))
    assert [v.reason for v in verdicts if v.status != "pass"] == []
    assert all(set(v.comparisons) == {"standard_again", "standard_vs_oracle"} for v in verdicts)


def test_a_mode_that_is_not_asked_for_is_not_compared(patched: Library) -> None:
    [verdict] = run(patched, [SMALL], ("standard", "full_state"))
    assert verdict.status == "pass"
    assert not [name for name in verdict.comparisons if "segment" in name]


def impossible() -> Case:
    """A case that upstream aborts on: ALiBi without a mask."""
    case = dataclasses.replace(SMALL, mask=False, mask_kind="none")
    object.__setattr__(case, "max_bias", 8.0)
    return case


def test_an_abort_is_a_crash_with_its_assertion_and_the_next_case_runs(
    patched: Library,
) -> None:
    crash, after = run(patched, [impossible(), SMALL])
    assert crash.status == "crash"
    assert crash.reason.startswith("standard: SIGABRT\n")
    assert "GGML_ASSERT(mask) failed" in crash.reason
    assert crash.comparisons == {}
    assert after.status == "pass"


def test_each_verdict_says_how_long_its_case_took(patched: Library) -> None:
    start = time.perf_counter()
    verdicts = run(patched, [SMALL, SMALL.with_(seed=1)])
    assert all(v.seconds > 0 for v in verdicts)
    assert sum(v.seconds for v in verdicts) < time.perf_counter() - start


MANY = [SMALL.with_(seed=seed, n_kv=20 + seed % 3) for seed in range(40)]


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fa_harness.engine.runner.usable_cores", lambda: 2)


@pytest.fixture
def side_by_side(two_cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores, and no case is too small for a worker of its own."""
    monkeypatch.setattr("fa_harness.engine.runner._WORTH_A_THREAD", 0)


@pytest.fixture(params=["two_cores", "side_by_side"])
def several_at_once(request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(request.param)


def test_cases_of_one_thread_run_side_by_side_and_keep_their_order(
    patched: Library, side_by_side: None
) -> None:
    with Runner(patched.module_path) as runner:
        verdicts = list(runner.run(MANY))
        assert [verdict.case for verdict in verdicts] == MANY
        assert {verdict.status for verdict in verdicts} == {"pass"}
        pids = {worker.pid for worker in (runner._worker, *runner._others)}
    assert len(pids) == 2


def test_what_runs_at_once_gives_the_numbers_that_it_gives_alone(
    patched: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    def numbers(n_core: int, worth_a_thread: int) -> list[object]:
        monkeypatch.setattr("fa_harness.engine.runner.usable_cores", lambda: n_core)
        monkeypatch.setattr("fa_harness.engine.runner._WORTH_A_THREAD", worth_a_thread)
        return [verdict.comparisons for verdict in run(patched, MANY)]

    assert numbers(2, 0) == numbers(2, 1 << 60) == numbers(1, 0)


@pytest.mark.parametrize(
    ("cases", "n_worker"),
    [
        (MANY, 1),
        ([case.with_(n_kv=4096, hsk=64, hsv=64, n_batch=4, segments=1) for case in MANY], 2),
        ([case.with_(threads=2) for case in MANY], 1),
    ],
    ids=["small", "large", "of as many threads as cores"],
)
def test_only_large_cases_of_one_thread_run_in_a_worker_for_each_core(
    patched: Library, two_cores: None, cases: list[Case], n_worker: int
) -> None:
    with Runner(patched.module_path) as runner:
        verdicts = list(runner.run(cases, modes=("standard",)))
        assert {verdict.status for verdict in verdicts} == {"pass"}
        assert 1 + len(runner._others) == n_worker


@pytest.mark.parametrize(
    ("n_thread", "steps"),
    [
        (1, ["submit 0", "oracle 0", "submit 1", "judge 0", "oracle 1", "judge 1"]),
        (2, ["submit 0", "judge 0", "submit 1", "judge 1"]),
    ],
    ids=["a core is free", "the cases take all"],
)
def test_where_a_core_is_free_a_case_is_judged_while_the_next_is_computed(
    patched: Library,
    two_cores: None,
    monkeypatch: pytest.MonkeyPatch,
    n_thread: int,
    steps: list[str],
) -> None:
    done: list[str] = []

    def noting(step: str, function: Callable[..., Any], *, of: int) -> Callable[..., Any]:
        def noted(*arguments: Any, **keywords: Any) -> Any:
            done.append(f"{step} {arguments[of].seed}")
            return function(*arguments, **keywords)

        return noted

    monkeypatch.setattr(Worker, "submit", noting("submit", Worker.submit, of=1))
    monkeypatch.setattr(
        "fa_harness.engine.runner.Expectations", noting("oracle", Expectations, of=0)
    )
    monkeypatch.setattr("fa_harness.engine.runner.judge", noting("judge", judge, of=0))
    cases = [SMALL.with_(threads=n_thread, seed=seed) for seed in range(2)]
    assert {verdict.status for verdict in run(patched, cases)} == {"pass"}
    assert done == steps


def test_two_runs_at_once_do_not_take_each_others_results(
    patched: Library, two_cores: None
) -> None:
    with Runner(patched.module_path) as runner:
        verdicts = runner.run(MANY)
        next(verdicts)
        with pytest.raises(RuntimeError, match="take its result first"):
            list(runner.run(MANY))
        assert [verdict.case for verdict in verdicts] == MANY[1:]


def test_a_verdict_is_kept_where_the_next_case_cannot_even_start(
    patched: Library, two_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(worker: Worker) -> None:
        if worker.digest:  # again
            raise SetupError("a worker cannot be started")
        first_start(worker)

    first_start = Worker._start
    monkeypatch.setattr(Worker, "_start", start)
    verdicts: list[Verdict] = []
    with Runner(patched.module_path) as runner, pytest.raises(SetupError, match="cannot be start"):
        verdicts.extend(runner.run([SMALL, impossible(), SMALL]))
    assert [verdict.status for verdict in verdicts] == ["pass", "crash"]


def test_an_abort_beside_other_cases_is_a_crash_of_its_case_alone(
    patched: Library, several_at_once: None
) -> None:
    verdicts = run(patched, [*MANY[:20], impossible(), *MANY[20:]])
    assert [i for i, verdict in enumerate(verdicts) if verdict.status != "pass"] == [20]
    assert verdicts[20].status == "crash"


@pytest.mark.timing
def test_a_run_that_is_given_up_ends_its_cases_and_the_runner_goes_on(
    patched: Library, several_at_once: None
) -> None:
    minutes = Case(hsk=128, hsv=128, ne3=2, n_kv=4096, n_batch=512, type_K="q4_0", type_V="q4_0")
    with Runner(patched.module_path) as runner:
        verdicts = runner.run([MANY[0], minutes, *MANY[1:]])
        assert isinstance(verdicts, Generator)
        assert next(verdicts).status == "pass"
        start = time.perf_counter()
        verdicts.close()
        assert time.perf_counter() - start < 30
        assert [verdict.status for verdict in runner.run(MANY)] == ["pass"] * len(MANY)


def test_a_library_that_is_replaced_before_a_worker_beside_starts_is_not_mixed_in(
    around_patched: Callable[[str], Path], side_by_side: None
) -> None:
    module = around_patched("pass")
    with Runner(module) as runner:
        module.write_text(module.read_text() + "# another build\n")
        with pytest.raises(SetupError, match="was replaced while it ran"):
            list(runner.run(MANY))


def test_a_mode_that_the_library_leaves_out_is_mistrusted(
    patched: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = Worker.result

    def without_segments(self: Worker) -> Run:
        done = result(self)
        assert isinstance(done, Run)
        return changed(done, segmented=None)

    monkeypatch.setattr(Worker, "result", without_segments)
    [verdict] = run(patched, [SMALL], ("segmented",))
    assert verdict.status == "mistrusted"
    assert verdict.reason.startswith("mode segmented was asked for, and not compared: ")


def test_sinks_that_a_library_does_not_know_are_unsupported(
    patched: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = suite("seed")[0].with_(sinks=True)
    with Runner(patched.module_path) as runner:
        list(runner.run([case]))
        monkeypatch.setattr(runner._worker, "lacks", {"sinks": "ggml_flash_attn_ext_add_sinks"})
        [verdict] = runner.run([case])
    assert verdict.status == "unsupported"
    assert verdict.reason.startswith("the library has no ggml_flash_attn_ext_add_sinks; ")


def test_a_type_that_the_harness_cannot_encode_is_unsupported(patched: Library) -> None:
    unknown, after = run(patched, [SMALL.with_(type_K="q4_K"), SMALL])
    assert unknown.status == "unsupported"
    assert unknown.reason.startswith("type_K=q4_K: the harness cannot encode it; it can f32, f16,")
    assert after.status == "pass"


def test_a_type_that_the_library_lacks_is_unsupported(
    around_patched: Callable[[str], Path],
) -> None:
    with Runner(around_patched("if name == 'GGML_TYPE_COUNT': return 42")) as runner:
        [lacks, has] = runner.run([SMALL.with_(type_V="q2_0"), SMALL.with_(type_V="q1_0")])
    assert (lacks.status, lacks.reason) == (
        "unsupported",
        "type_V=q2_0: the library's ggml does not have it",
    )
    assert has.status == "pass"


def test_a_result_of_another_shape_is_a_failure_that_names_the_function(
    around_patched: Callable[[str], Path],
) -> None:
    transposed = (
        "lambda ctx, state: real.lib.ggml_permute(ctx, real.lib.{0}(ctx, state), 0, 2, 1, 3)"
    )
    function = "ggml_flash_attn_ext_from_state"
    module = around_patched(f"if name == {function!r}: return {transposed.format(function)}")
    case = SMALL.with_(n_head_kv=3)
    with Runner(module) as runner:
        [wrong] = runner.run([case])
        [right] = runner.run([case], modes=("standard", "full_state", "segmented"))
    assert (wrong.status, wrong.reason) == (
        "fail",
        f"merged: {function} gives a tensor [32, 2, 3, 1] of type 0, it must be [32, 3, 2, 1] of "
        "type 0 (F32)",
    )
    assert right.status == "pass"


def test_verdicts_come_in_the_order_of_the_cases(patched: Library) -> None:
    cases = [SMALL.with_(seed=seed) for seed in range(4)]
    with Runner(patched.module_path) as runner:
        verdicts = runner.run(cases)
        assert next(verdicts).case == cases[0]
        assert [verdict.case for verdict in verdicts] == cases[1:]


def test_a_signal_is_a_crash_in_its_mode_and_the_next_case_runs(
    around_patched: Callable[[str], Path], tmp_path: Path
) -> None:
    once = tmp_path / "once"
    module = around_patched(
        f"if (name, n) == ('ggml_graph_compute', 3) and not os.path.exists({str(once)!r}): "
        f"open({str(once)!r}, 'w').close(); os.kill(os.getpid(), signal.SIGSEGV)"
    )
    with Runner(module) as runner:
        crash, after = runner.run([SMALL, SMALL.with_(seed=1)])
    assert (crash.status, crash.reason) == ("crash", "full_state: SIGSEGV")
    assert after.status == "pass"


def test_a_stopped_library_is_a_timeout_and_the_next_case_runs(patched: Library) -> None:
    with Runner(patched.module_path) as runner:
        os.kill(runner._worker.pid, signal.SIGSTOP)
        [verdict] = runner.run([SMALL], timeout=0.5)
        assert verdict.status == "timeout"
        assert "no result after 0.5 s" in verdict.reason
        [verdict] = runner.run([SMALL])
        assert verdict.status == "pass"


def test_results_that_passed_are_not_judged_again(
    patched: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[Case] = []

    def note(case: Case, *args: Any, **options: Any) -> Verdict:
        judged.append(case)
        return judge(case, *args, **options)

    monkeypatch.setattr(runner, "judge", note)
    cases, passed = suite("smoke")[:8], dict[Case, set[bytes]]()
    for again in (False, True):
        with Runner(patched.module_path, passed=passed) as some:
            assert {verdict.status for verdict in some.run(cases)} == {"pass"}
        assert judged == cases
        assert again or passed.keys() == set(cases)


def test_a_mutant_that_changes_a_result_is_judged_whatever_passed(mutated: Library) -> None:
    case, passed = suite("seed")[0], dict[Case, set[bytes]]()
    for mutant, status in ((None, "pass"), ("reset-always-vec", "fail"), (None, "pass")):
        with Runner(mutated.module_path, mutant=mutant, passed=passed) as some:
            assert [verdict.status for verdict in some.run([case])] == [status]
    assert len(passed[case]) == 1
