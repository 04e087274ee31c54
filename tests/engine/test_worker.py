import dataclasses
import os
import pickle
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fa_harness.build.library import Library
from fa_harness.case.case import Case
from fa_harness.case.modes import MODES, Run, modes_of
from fa_harness.case.quants import TYPES
from fa_harness.engine.worker import Lost, Worker
from fa_harness.errors import SetupError

SMALL = Case(hsk=32, hsv=32, n_head_kv=1, n_kv=20, n_batch=2, segments=2, regime="normal")
LONG = Case(
    hsk=128, hsv=128, n_head_kv=8, n_group=4, n_kv=2048, n_batch=512, type_K="q4_0", type_V="q4_0",
    regime="normal",
)  # fmt: skip
"""Minutes on the vec path."""


def compute(worker: Worker, case: Case, timeout: float = 60) -> Run | Lost:
    worker.submit(case, modes_of(case), timeout)
    return worker.result()


def aborting() -> Case:
    """A case that no `Case` can be, on which upstream aborts: ALiBi without a mask."""
    case = dataclasses.replace(SMALL, mask=False, mask_kind="none")
    object.__setattr__(case, "max_bias", 8.0)
    return case


def test_a_worker_knows_what_its_library_can(patched: Library, pristine: Library) -> None:
    with Worker(patched.module_path) as worker:
        assert worker.lacks == {"reduced": "ggml_flash_attn_ext_reduce"}
        assert worker.types == tuple(TYPES)
        assert all(name.isupper() or name[0].isupper() for name in worker.features)
    with Worker(pristine.module_path) as worker:
        assert worker.lacks.keys() == {*MODES} - {"standard"}


def test_one_child_computes_case_after_case(patched: Library) -> None:
    with Worker(patched.module_path) as worker:
        pid = worker.pid
        runs = [compute(worker, SMALL.with_(seed=seed)) for seed in (1, 2, 1)]
        assert worker.pid == pid
    first, second, again = (run for run in runs if isinstance(run, Run))
    assert (
        first.results["standard"].output.tobytes()
        == again.results["standard"].output.tobytes()
        != second.results["standard"].output.tobytes()
    )


def test_the_child_is_gone_after_the_block(patched: Library) -> None:
    with Worker(patched.module_path) as worker:
        pid = worker.pid
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_worker_that_is_not_entered_has_no_child() -> None:
    with pytest.raises(RuntimeError, match="not running; use it in a `with` block"):
        _ = Worker(Path("nowhere")).pid


def test_an_abort_is_told_with_the_mode_the_signal_and_the_assertion(patched: Library) -> None:
    with Worker(patched.module_path) as worker:
        lost = compute(worker, aborting())
        assert isinstance(lost, Lost)
        assert lost.status == "crash"
        assert lost.reason.startswith("standard: SIGABRT\n")
        assert "ggml.c:" in lost.reason
        assert "GGML_ASSERT(mask) failed" in lost.reason
        assert isinstance(compute(worker, SMALL), Run)


def test_the_lines_of_an_earlier_crash_are_not_told_again(patched: Library) -> None:
    with Worker(patched.module_path) as worker:
        compute(worker, aborting())
        assert isinstance(compute(worker, SMALL), Run)
        os.kill(worker.pid, signal.SIGSTOP)
        lost = compute(worker, SMALL, timeout=0.5)
        assert lost == Lost(status="timeout", reason="start: no result after 0.5 s")


@pytest.mark.parametrize("kind", ["SIGSEGV", "SIGILL", "SIGFPE", "SIGKILL"])
@pytest.mark.parametrize(("n", "mode"), [(1, "standard"), (3, "full_state"), (6, "segmented")])
def test_a_fault_in_the_middle_of_a_case_is_told_with_its_mode_and_signal(
    around_patched: Callable[[str], Path], n: int, mode: str, kind: str
) -> None:
    module = around_patched(
        f"if (name, n) == ('ggml_graph_compute', {n}): "
        f"os.write(2, b'here it ends'); os.kill(os.getpid(), signal.{kind})"
    )
    with Worker(module) as worker:
        lost = compute(worker, SMALL)
        assert lost == Lost(status="crash", reason=f"{mode}: {kind}\n  here it ends")


def test_an_error_of_the_harness_in_the_child_is_a_crash_with_its_last_lines(
    around_patched: Callable[[str], Path],
) -> None:
    module = around_patched("if name == 'ggml_graph_compute': raise KeyError('lost')")
    with Worker(module) as worker:
        lost = compute(worker, SMALL)
        assert isinstance(lost, Lost)
        assert lost.status == "crash"
        assert lost.reason.startswith("standard: exit status 1\n")
        assert lost.reason.endswith("\n  KeyError: 'lost'")


def test_a_status_that_is_no_success_is_a_crash_that_names_it(
    around_patched: Callable[[str], Path],
) -> None:
    module = around_patched("if name == 'ggml_graph_compute': return lambda graph, plan: -2")
    with Worker(module) as worker:
        pid = worker.pid
        assert compute(worker, SMALL) == Lost(
            status="crash",
            reason="standard: RuntimeError: ggml_graph_compute: status -2",
        )
        assert worker.pid == pid


def test_a_library_that_asks_for_more_work_memory_than_there_is_is_at_fault_not_the_case(
    around_patched: Callable[[str], Path],
) -> None:
    code = (
        "if name == 'ggml_graph_plan':\n"
        "            def plan(*arguments):\n"
        "                made = real.lib.ggml_graph_plan(*arguments)\n"
        "                made.work_size = 1 << 54\n"
        "                return made\n"
        "            return plan"
    )
    with Worker(around_patched(code)) as worker:
        result = compute(worker, SMALL)
    assert isinstance(result, Lost)
    assert result.status == "fail"
    assert "asks for 18014398509481984 bytes of work memory" in result.reason


def test_a_child_that_does_not_answer_is_a_timeout_and_ended(patched: Library) -> None:
    with Worker(patched.module_path) as worker:
        pid = worker.pid
        os.kill(pid, signal.SIGSTOP)
        lost = compute(worker, SMALL, timeout=0.5)
        assert lost == Lost(status="timeout", reason="start: no result after 0.5 s")
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert isinstance(compute(worker, SMALL), Run)
        assert worker.pid != pid


def test_a_result_that_came_in_time_counts_however_late_it_is_looked_at(patched: Library) -> None:
    case = SMALL.with_(n_batch=400)  # more than a socket holds: the child waits until it is read
    with Worker(patched.module_path) as worker:
        worker.submit(case, modes_of(case), 60)
        assert worker._connection is not None
        assert worker._connection.poll(60)
        worker._deadline = 0.0
        run = worker.result()
        assert isinstance(run, Run)
        assert len(pickle.dumps(run)) > 1 << 18
        assert isinstance(compute(worker, SMALL), Run)


BROKEN_OFF = (
    "if name == 'ggml_graph_compute':\n"
    "            from multiprocessing.connection import Connection\n"
    "            def begin(self, reply, **_):\n"
    "                os.write(self.fileno(), bytes(reply[:10]))\n"
    "                {then}\n"
    "            Connection._send = begin"
)
"""The child sends ten bytes of its reply, and then..."""


def test_a_child_that_dies_in_the_middle_of_a_reply_is_a_crash(
    around_patched: Callable[[str], Path],
) -> None:
    module = around_patched(BROKEN_OFF.format(then="os.kill(os.getpid(), signal.SIGKILL)"))
    with Worker(module) as worker:
        lost = compute(worker, SMALL)
        assert isinstance(lost, Lost)
        assert lost.status == "crash"
        assert lost.reason.endswith(": SIGKILL")


def test_a_child_that_hangs_in_the_middle_of_a_reply_is_a_timeout(
    around_patched: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fa_harness.engine.worker._REPLY_SECONDS", 1)
    module = around_patched(BROKEN_OFF.format(then="signal.pause()"))
    with Worker(module) as worker:
        lost = compute(worker, SMALL)
        assert isinstance(lost, Lost)
        assert lost.status == "timeout"


@pytest.mark.timing
def test_a_case_that_takes_too_long_is_a_timeout_in_its_mode(patched: Library) -> None:
    with Worker(patched.module_path) as worker:
        lost = compute(worker, LONG, timeout=2)
        assert isinstance(lost, Lost)
        assert lost.status == "timeout"
        assert lost.reason == "standard: no result after 2 s"


@pytest.mark.parametrize(
    ("use", "is_late"),
    [((0.0, 1), False), ((0.0, 0), True), ((1000.0, 1), True)],
    ids=["kept from running", "asleep", "got its time"],
)
def test_a_limit_counts_the_time_that_neighbours_leave(
    around_patched: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch,
    use: tuple[float, int], is_late: bool,
) -> None:  # fmt: skip
    module = around_patched("if name == 'ggml_graph_compute': __import__('time').sleep(0.3)")
    monkeypatch.setattr("fa_harness.engine.worker.cpu_use", lambda _: use)
    with Worker(module) as worker:
        worker.submit(SMALL, ("standard",), 0.2, is_patient=True)
        worker._used = 0.0
        found = worker.result()
    assert isinstance(found, Lost) == is_late


@pytest.mark.parametrize("case", [None, SMALL], ids=["idle", "hung in a case"])
def test_the_child_ends_when_its_parent_does(
    around_patched: Callable[[str], Path], case: Case | None
) -> None:
    module = around_patched("if name == 'ggml_graph_compute': os.write(2, b'hung'); signal.pause()")
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from fa_harness.case.case import Case\n"
        "from fa_harness.engine.worker import Worker\n"
        "worker = Worker(Path(sys.argv[1])).__enter__()\n"
        "if len(sys.argv) > 2:\n"
        "    worker.submit(Case.parse(sys.argv[2]), ('standard',), 600)\n"
        "    while not os.fstat(worker._stderr.fileno()).st_size: pass\n"
        "print(worker.pid, flush=True)\n"
        "os._exit(0)\n"
    )
    command = [sys.executable, "-c", code, str(module)]
    command += [str(case)] if case else []
    pid = int(subprocess.run(command, check=True, capture_output=True).stdout)
    try:
        child = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended, _, _ = select.select([child], [], [], 60)
    if not ended:
        os.kill(pid, signal.SIGKILL)
    os.close(child)
    assert ended


def test_a_child_that_closes_its_output_and_lives_on_is_ended(
    around_patched: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fa_harness.engine.worker._END_SECONDS", 0.5)
    module = around_patched(
        "if name == 'ggml_graph_compute': os.closerange(1, 100); signal.pause()"
    )
    with Worker(module) as worker:
        lost = compute(worker, SMALL)
    assert lost == Lost(status="crash", reason="standard: closed its output and did not end")


def test_a_child_that_is_killed_while_it_starts_again_costs_a_case(
    around_patched: Callable[[str], Path], tmp_path: Path
) -> None:
    count = tmp_path / "starts"
    module = around_patched(
        "if (name, n) == ('ggml_backend_cpu_reg', 1): "
        f"open({str(count)!r}, 'a').write('.'); "
        f"os.path.getsize({str(count)!r}) == 2 and os.kill(os.getpid(), signal.SIGKILL)"
    )
    with Worker(module) as worker:
        os.kill(worker.pid, signal.SIGSEGV)
        assert compute(worker, SMALL) == Lost(status="crash", reason="start: SIGSEGV")
        assert compute(worker, SMALL) == Lost(status="crash", reason="start: SIGKILL")
        assert isinstance(compute(worker, SMALL), Run)


def test_a_child_that_is_started_again_with_another_library_is_refused(
    around_patched: Callable[[str], Path],
) -> None:
    module = around_patched("pass")
    with Worker(module) as worker:
        assert isinstance(compute(worker, SMALL), Run)
        module.write_text(module.read_text() + "# another build\n")
        assert isinstance(compute(worker, SMALL), Run)  # it holds the first
        os.kill(worker.pid, signal.SIGKILL)
        assert isinstance(compute(worker, SMALL), Lost)
        with pytest.raises(SetupError, match=r"_ggml\.py: was replaced while it ran; run again"):
            compute(worker, SMALL)


def test_a_worker_beside_another_refuses_another_library(
    around_patched: Callable[[str], Path],
) -> None:
    module = around_patched("pass")
    with Worker(module) as worker:
        with Worker(module, digest=worker.digest) as same:
            assert same.digest == worker.digest
        module.write_text(module.read_text() + "# another build\n")
        other = Worker(module, digest=worker.digest)
        with pytest.raises(SetupError, match="was replaced while it ran"), other:
            pass


def test_a_library_that_is_gone_when_the_child_starts_again_is_an_error_of_the_set_up(
    around_patched: Callable[[str], Path],
) -> None:
    module = around_patched("pass")
    with Worker(module) as worker:
        module.unlink()
        os.kill(worker.pid, signal.SIGKILL)
        assert isinstance(compute(worker, SMALL), Lost)
        with pytest.raises(SetupError, match=r"_ggml\.py: cannot be read \(No such file"):
            compute(worker, SMALL)


def test_a_worker_without_a_place_for_temporary_files_is_an_error_of_the_set_up(
    patched: Library, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(SetupError, match="a worker cannot be started"), Worker(patched.module_path):
        pass


def test_a_child_that_is_killed_leaves_no_files(
    around_patched: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    module = around_patched(
        "if (name, n) == ('ggml_graph_compute', 4): os.kill(os.getpid(), signal.SIGKILL)"
    )
    with Worker(module) as worker:
        worker.submit(SMALL, ("resumed",), 60)
        assert worker.result() == Lost(status="crash", reason="resumed: SIGKILL")
        assert list(folder.iterdir()) == []
        assert isinstance(compute(worker, SMALL), Lost)  # in another mode
    assert list(folder.iterdir()) == []


def test_a_state_file_that_cannot_be_written_is_an_error_of_the_set_up(patched: Library) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Worker(patched.module_path) as worker:
        # of the child, as if the disk were full
        resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (100, limits[1]))
        worker.submit(SMALL, ("standard", "resumed"), 60)
        with pytest.raises(
            SetupError, match=r"mode resumed: state .*state\.npy: cannot be written"
        ):
            worker.result()
        worker.submit(SMALL, ("standard", "segmented"), 60)
        assert isinstance(worker.result(), Run)


def test_what_the_library_prints_does_not_get_among_the_replies(
    around_patched: Callable[[str], Path],
) -> None:
    module = around_patched(
        "os.write(1, b'stray output on 1\\n' * 100); os.write(2, b'and on 2\\n')"
    )
    with Worker(module) as worker:
        assert isinstance(compute(worker, SMALL), Run)
        lost = compute(worker, aborting())
        assert isinstance(lost, Lost)
        assert "GGML_ASSERT(mask) failed" in lost.reason
        assert "and on 2" in lost.reason


def test_a_module_that_cannot_be_loaded_is_an_error_of_the_set_up(tmp_path: Path) -> None:
    module = tmp_path / "_ggml.so"
    module.write_text("no library")
    with (
        pytest.raises(SetupError, match=r"_ggml\.so: .*(build|doctor)"),
        Worker(module),
    ):
        pass


def test_a_library_that_dies_on_loading_is_an_error_that_tells_its_last_lines(
    tmp_path: Path,
) -> None:
    module = tmp_path / "_ggml.py"
    module.write_text(
        "import os, signal\nos.write(2, b'illegal instruction ahead\\n')\n"
        "os.kill(os.getpid(), signal.SIGILL)\n"
    )
    with (
        pytest.raises(
            SetupError,
            match=r"(?s)cannot be loaded: start: SIGILL\n  illegal instruction ahead; `fa-harness",
        ),
        Worker(module),
    ):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_group_does_not_end_the_child_while_its_parent_decides(
    patched: Library, number: int
) -> None:
    with Worker(patched.module_path) as worker:
        pid = worker.pid
        os.kill(pid, number)
        assert isinstance(compute(worker, SMALL), Run)
        assert worker.pid == pid
