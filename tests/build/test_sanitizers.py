"""The libraries with sanitizers: smoke is clean, and a fault in ggml's own sources is a crash."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fa_harness import proc
from fa_harness.build.builder import build
from fa_harness.build.library import Library
from fa_harness.build.sanitizers import finding
from fa_harness.build.toolchain import find_ninja
from fa_harness.case.case import Case
from fa_harness.case.suites import suite
from fa_harness.engine.runner import Runner
from fa_harness.judge.verdict import Verdict
from fa_harness.project import find_project, locked

TWO_THREADS = Case(
    hsk=32, hsv=32, n_head_kv=2, n_kv=40, n_batch=3, segments=2, regime="normal", threads=2
)

FUNCTION, PLACE = "ggml_cpu_extra_compute_forward", "ggml/src/ggml-cpu/traits.cpp:13"


def library_named(name: str) -> Library:
    [library] = build(find_project(), [name])
    return library


@contextmanager
def with_fault(fault: str, name: str, tmp_path: Path) -> Iterator[Path]:
    """Give the module of a library into which a fault is compiled, in a folder of its own.

    The fault goes into a function that each thread calls for each operator, in a short file of the
    library's own build folder, so that little is compiled. Were the file left as it is, the next
    build would see it.
    """
    library = library_named(name)
    [work] = (library.path.parents[1] / "work").glob("*/src")
    source = work / "ggml" / "src" / "ggml-cpu" / "traits.cpp"
    folder = tmp_path / name
    project = find_project()
    with locked(project, str(library.path.parents[1].relative_to(project.build))):
        right = source.read_text()
        begin = "ggml_tensor * op) {\n"
        # not where a library is asked for its features, with one head
        faulty = f"{begin}if (op->ne[1] == {TWO_THREADS.n_head}) {{ {fault} }}\n"
        source.write_text(right.replace(begin, faulty, 1))
        try:
            proc.run([*find_ninja().command, "-C", work.parent / "cmake", "all"])
            shutil.copytree(work.parent / "cmake" / "lib", folder, symlinks=True)
        finally:
            source.write_text(right)
    shutil.copy2(library.path / "library.json", folder)
    yield folder / library.module


def verdict_with(fault: str, name: str, tmp_path: Path) -> Verdict:
    with with_fault(fault, name, tmp_path) as module, Runner(module) as runner:
        [verdict] = runner.run([TWO_THREADS])
    return verdict


@pytest.mark.parametrize("name", ["asan-ubsan", pytest.param("tsan", marks=pytest.mark.full)])
def test_smoke_is_clean(name: str) -> None:
    # upstream's `ggml_vec_dot_f16` asserts that its sum is finite
    cases = [case for case in suite("smoke") if case.regime != "nan"]
    with Runner(library_named(name).module_path) as runner:
        verdicts = list(runner.run(cases))
    assert [v.reason for v in verdicts if v.status != "pass"] == []


def test_a_write_past_the_work_memory_is_a_crash_that_says_where(tmp_path: Path) -> None:
    fault = "((char *) params->wdata)[params->wsize] = 1;"
    verdict = verdict_with(fault, "asan-ubsan", tmp_path)
    assert verdict.status == "crash"
    assert verdict.reason.splitlines()[:4] == [
        "standard: SIGABRT",
        "  AddressSanitizer: use-after-poison",
        "  WRITE of size 1 by a thread",
        f"    in {FUNCTION} at {PLACE}",
    ]
    assert "byte region" in verdict.reason.splitlines()[4]


def test_an_exception_that_is_caught_is_no_finding(tmp_path: Path) -> None:
    fault = "try { throw params->nth; } catch (int) {}"
    assert verdict_with(fault, "asan-ubsan", tmp_path).status == "pass"


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("volatile int n = 2147483647; n = n + params->nth;", "signed integer overflow: "),
        (
            "*(volatile int *) ((char *) params->wdata + 1) = 0;",
            "store to misaligned address for type 'volatile int'",
        ),
    ],
)
def test_undefined_behaviour_is_a_crash_that_says_where(
    fault: str, what: str, tmp_path: Path
) -> None:
    one_thread = f"if (params->ith == 0) {{ {fault} }}"  # two may report at the same time
    verdict = verdict_with(one_thread, "asan-ubsan", tmp_path)
    assert verdict.status == "crash"
    how, finding_, place = verdict.reason.splitlines()
    assert how == "standard: SIGABRT"
    assert finding_.startswith(f"  UndefinedBehaviorSanitizer: {what}")
    assert place == f"    in {FUNCTION} at {PLACE}"


@pytest.mark.full
def test_a_race_between_two_threads_is_a_crash_that_says_where(tmp_path: Path) -> None:
    verdict = verdict_with("static int n_call; n_call++;", "tsan", tmp_path)
    assert verdict.status == "crash"
    assert verdict.reason.startswith("standard: SIGABRT\n  ThreadSanitizer: data race\n")
    assert verdict.reason.count(f"    in {FUNCTION} at {PLACE}") == 2


def test_of_a_report_the_first_known_line_of_each_stack_is_kept() -> None:
    assert finding(REPORT.splitlines()) == [
        "ThreadSanitizer: data race",
        "Write of size 4 by main thread",
        "  in ggml_compute(float*, int) at ggml/src/ops.cpp:70",
        "Previous atomic read of size 4 by a thread",
        "  in ggml_wait at ggml/src/threads.c:8",
    ]


def test_what_is_no_report_has_no_essential_lines() -> None:
    assert finding(["ops.cpp:12: GGML_ASSERT(n > 0) failed", "WARNING: all is well"]) == []


REPORT = """\
loading
==================
WARNING: ThreadSanitizer: data race (pid=7146)
  Write of size 4 at 0x7ffff5ba8118 by main thread:
    #0 memcpy ../../../../src/libsanitizer/tsan/tsan_interceptors.cpp:29 (libtsan.so.2+0x4d)
    #1 <null> <null> (libopenblas.so+0x1234)
    #2 ggml_compute(float*, int) ggml/src/ops.cpp:70 (libggml-cpu.so+0x9f6)
    #3 main ggml/src/main.c:1 (main+0x1)

  Previous atomic read of size 4 at 0x7ffff5ba8118 by thread T12:
    #0 ggml_wait ggml/src/threads.c:8 (libggml-cpu.so+0x9a)

SUMMARY: ThreadSanitizer: data race ggml/src/ops.cpp:70 in ggml_compute
"""
