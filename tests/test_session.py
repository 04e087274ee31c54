import contextlib
import dataclasses
import io
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fa_harness import session
from fa_harness.cases import Case
from fa_harness.errors import SetupError, UsageError
from fa_harness.library import Library
from fa_harness.runner import Runner
from fa_harness.suites import suite
from fa_harness.verdict import Verdict

CASE = "FLASH_ATTN_EXT(kv=64)"
TOOL_OUTPUT = Path(__file__).parent / "data" / "test-backend-ops.txt"


def test_without_a_source_the_default_suite_is_selected() -> None:
    assert session.select() == suite("default")


def test_a_case_that_is_selected_twice_runs_once() -> None:
    assert len(session.select(case_string=CASE, segments=(2, 2), seed=0)) == 1


def test_the_output_of_upstreams_tool_is_a_case_file() -> None:
    cases = session.select(case_file=TOOL_OUTPUT)
    assert len(cases) == 11  # one of the lines comes twice
    assert [(case.hsk, case.hsk_padded, case.type_K) for case in cases[:3]] == [
        (72, 96, "q5_1"),
        (72, 96, "iq4_nl"),
        (128, 128, "q1_0"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "  ADD(type=f16,ne=[1,1,1,1],nr=[1,1,1,1],nf=1): \x1b[1;32mOK\x1b[0m",
        "  FLASH_ATTN_BACK(hsk=64): not supported [CPU]",
        "  SOFT_MAX(type=f32,ne=[16,2,32,1],mask=1)",
        "[MUL_MAT] ERR = 0.123 > 0.0005   MUL_MAT(type_a=q4_0): \x1b[1;31mFAIL\x1b[0m",
        "  Backend CUDA0: \x1b[1;31mFAIL\x1b[0m",
        "  Skipping CPU backend",
        "Failing tests:",
        "2/3 backends passed",
    ],
)
def test_what_upstreams_tool_prints_about_other_things_is_passed_over(
    line: str, tmp_path: Path
) -> None:
    file = tmp_path / "cases.txt"
    file.write_text(f"{line}\n{CASE}\n")
    assert len(session.select(case_file=file)) == 1


@pytest.mark.parametrize(
    "line",
    [
        "[FLASH_ATTN_EXT] ERR = 0.0123 > 0.0005   FLASH_ATTN_EXT(kv=64): \x1b[1;31mFAIL\x1b[0m",
        "  FLASH_ATTN_EXT(kv=64): not supported [CUDA0] ",
        "  FLASH_ATTN_EXT(kv=64):      1234 runs -    12.34 us/run - 1.23 GFLOP/run - 45.6 GFLOPS",
        "FLASH_ATTN_EXT(kv=64): skipping large tensors for speed",
    ],
)
def test_a_case_that_upstreams_tool_did_not_pass_is_a_case(line: str, tmp_path: Path) -> None:
    file = tmp_path / "cases.txt"
    file.write_text(line)
    assert session.select(case_file=file) == session.select(case_string=CASE)


@pytest.mark.parametrize(
    "line",
    [
        "FLASH_ATN_EXT(kv=64)",
        "flash_attn_ext(kv=64)",
        "FLASH_ATTN_EXT(kv=64",
        "FLASH_ATTN_EXT kv=64",
        "  FLASHATTN_EXT(kv=64): OK",
        "kv=64",
    ],
)
def test_a_slip_in_a_case_file_is_not_passed_over(line: str, tmp_path: Path) -> None:
    file = tmp_path / "cases.txt"
    file.write_text(f"{CASE}\n{line}\n")
    with pytest.raises(UsageError, match=r"cases\.txt:2: .* is not a case; one looks like FLASH"):
        session.select(case_file=file)


def test_segments_leave_a_case_with_listed_boundaries_as_it_is() -> None:
    assert session.select(suite="seed", segments=(1, 2, 7)) == suite("seed")


def test_segments_keep_random_boundaries_random() -> None:
    [case] = session.select(
        case_string="FLASH_ATTN_EXT(kv=64,segments=3,boundaries=random)", segments=(5,)
    )
    assert (case.segments, case.boundaries) == (5, "random")


def test_boundaries_may_repeat_for_empty_segments() -> None:
    [case] = session.select(case_string=CASE, boundaries="0,9,9,64")
    assert case.segment_bounds() == (0, 0, 9, 9, 64, 64)


def test_segment_types_go_with_the_segments_that_are_asked_for() -> None:
    cases = session.select(case_string=CASE, segments=(2, 3), segment_types=("q4_0", "q8_0/f16"))
    assert [case.segments for case in cases] == [2, 3]
    assert {case.segment_types for case in cases} == {("q4_0", "q8_0/f16")}
    assert {(case.type_K, case.type_V) for case in cases} == {("f32", "f32")}


def test_more_segment_types_than_segments_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"segment_types=\[f16,f32,f16\]: more than the segments=2"
    ):
        session.select(case_string=CASE, segments=(2,), segment_types=("f16", "f32", "f16"))


def test_modes_come_in_their_usual_order_each_once() -> None:
    cases = suite("seed")
    named = ("segmented", "standard", "segmented")
    assert session.check_modes(named, cases) == ("standard", "segmented")


def test_without_a_mode_each_case_has_its_own() -> None:
    assert session.check_modes((), suite("seed")) is None


@pytest.mark.parametrize(
    ("mode", "option"), [("mixed", "--segment-types"), ("fifo", "--hot-window")]
)
def test_a_mode_that_does_not_apply_to_a_case_is_refused_with_the_option_to_give(
    mode: str, option: str
) -> None:
    with pytest.raises(UsageError, match=rf"--mode {mode}: needs {option}, which FLASH_ATTN_EXT"):
        session.check_modes((mode,), suite("seed"))


def test_a_check_of_a_report_path_leaves_nothing_behind(tmp_path: Path) -> None:
    session.check_writable(tmp_path / "report.json")
    assert list(tmp_path.iterdir()) == []


def test_a_check_of_a_report_path_keeps_the_report_that_is_there(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text("older")
    session.check_writable(report)
    assert report.read_text() == "older"


def test_a_report_is_written_and_nothing_beside_it(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text("older")
    session.write_report(report, "{}\n")
    assert list(tmp_path.iterdir()) == [report]
    assert report.read_text() == "{}\n"


@contextlib.contextmanager
def little_space() -> Iterator[None]:
    """No file of this process may grow beyond 1,000 bytes; keep it short, its own log is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_report_that_cannot_be_written_whole_leaves_the_older_one(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text("older")
    text = "x" * 2000
    with (
        pytest.raises(SetupError, match=r"report .*report\.json: cannot be written \(File too"),
        little_space(),
    ):
        session.write_report(report, text)
    assert list(tmp_path.iterdir()) == [report]
    assert report.read_text() == "older"


def test_a_report_path_that_is_a_device_stays_one(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.symlink_to(os.devnull)
    session.check_writable(report)
    session.write_report(report, "{}\n")
    assert report.is_symlink()
    assert Path(os.devnull).is_char_device()


def test_a_full_disk_under_the_report_is_named(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.symlink_to("/dev/full")
    with pytest.raises(SetupError, match=r"report .*: cannot be written \(No space left on device"):
        session.write_report(report, "{}\n")


def test_a_pipe_takes_a_report(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    path = Path(f"/dev/fd/{writer}")
    session.check_writable(path)
    session.write_report(path, "{}\n")
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        assert pipe.read() == "{}\n"


def test_a_library_that_works_is_tried_without_complaint(patched: Library) -> None:
    assert session.try_library(patched) is None


def test_a_library_that_does_not_load_says_why(patched: Library, tmp_path: Path) -> None:
    (tmp_path / patched.module).write_bytes(b"not a library")
    reason = session.try_library(dataclasses.replace(patched, path=tmp_path))
    assert reason is not None
    assert str(tmp_path) in reason


def test_a_case_on_which_the_library_crashes_shrinks_to_what_crashes_it(
    around_patched: Callable[[str], Path], patched: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = around_patched(
        "name == 'ggml_flash_attn_ext_add_sinks' and os.kill(os.getpid(), signal.SIGSEGV)"
    )
    library = dataclasses.replace(patched, path=module.parent, module=module.name)
    monkeypatch.setattr(session, "current_library", lambda name, options: library)
    case = Case(hsk=64, hsv=64, nh=2, kv=40, nb=3, segments=4, sinks=True, threads=2)
    smallest = session.shrink_case(
        case,
        library="patched",
        modes=None,
        seconds=60,
        console=Console(file=io.StringIO(), width=150),
    )
    assert (smallest.shrunk.failure.status, smallest.verdict.status) == ("crash", "crash")
    assert smallest.shrunk.failure.name == "standard: SIGSEGV"
    assert smallest.shrunk.case == Case(
        hsk=1, hsv=1, nh=1, kv=1, nb=1, mask=False, sinks=True, type_K="f32", type_V="f32",
        kv_view=False, regime="few",
    )  # fmt: skip
    assert "ggml_flash_attn_ext_add_sinks(out, tsinks)" in session.c_program(smallest)


@pytest.mark.usefixtures("bug")
def test_ctrl_c_ends_the_search_for_a_smaller_case_and_keeps_what_was_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, n_run = Runner.run, 0

    def interrupted(self: Runner, *arguments: Any, **options: Any) -> Iterator[Verdict]:
        nonlocal n_run
        n_run += 1
        if n_run == 4:
            raise KeyboardInterrupt
        return run(self, *arguments, **options)

    monkeypatch.setattr(Runner, "run", interrupted)
    case = Case(hsk=64, hsv=64, nh=2, kv=40, nb=3, segments=4, regime="spiky", threads=4)
    smallest = session.shrink_case(
        case, library="0001", modes=None, seconds=60, console=Console(file=io.StringIO())
    )
    assert not smallest.shrunk.finished
    assert [step.what for step in smallest.shrunk.steps] == ["threads 4 -> 1", "nh 2 -> 1"]
    assert (smallest.shrunk.case.nh, smallest.verdict.case.nh, n_run) == (1, 1, 4)


def test_a_case_that_is_mistrusted_is_nothing_to_shrink(patched: Library) -> None:
    case = Case(hsk=64, hsv=64, nh=1, kv=40, nb=1, segments=2, boundaries=(0,))
    with pytest.raises(UsageError, match=r"is mistrusted on library 'patched' \(2 segments were"):
        session.shrink_case(case, library="patched", modes=None, seconds=9, console=Console())
