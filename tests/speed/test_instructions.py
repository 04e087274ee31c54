"""Instructions of a call: what callgrind's files say, what is too many, what cannot be counted."""

import os
import shutil
import stat
from pathlib import Path

import pytest

from fa_harness.build.builder import build
from fa_harness.build.library import Library
from fa_harness.case.case import Case
from fa_harness.project import find_project
from fa_harness.speed import instructions
from fa_harness.speed.bench import state_bytes
from fa_harness.speed.instructions import CannotCountError, Count
from fa_harness.stacks import Accepted

CASE = Case(hsk=64, hsv=64, n_head_kv=2, n_kv=64, n_batch=1, segments=4)
ELEMENTS = state_bytes(CASE) // 4


def written(folder: Path, *totals: object) -> Path:
    """Files as callgrind writes them, one for each call."""
    for i, total in enumerate(totals, 1):
        (folder / f"out.{i}").write_text(f"events: Ir\nfn=(1) a\n1 5\n\ntotals: {total}\n")
    (folder / "out").write_text("totals: 0\n")  # of the process's end
    return folder / "out"


def compared(
    theirs: dict[str, int] | str, accepted: float | None = None, **ours: int
) -> dict[str, Count]:
    of_theirs = theirs if isinstance(theirs, str) else {str(CASE): theirs}
    tables = [Accepted(case=str(CASE), times=accepted, why="of tanhf")] if accepted else []
    found = instructions.compare(
        {str(CASE): ours}, of_theirs, "pristine", {each.case: each for each in tables}
    )
    return {count.way: count for count in found}


def test_the_second_of_two_computations_is_counted(tmp_path: Path) -> None:
    out = written(tmp_path, 110, 100, 220, 200, 330, 300)
    names = [("a", "standard"), ("a", "parts"), ("b", "standard")]
    assert instructions.read(out, names) == {
        "a": {"standard": 100, "parts": 200},
        "b": {"standard": 300},
    }


@pytest.mark.parametrize("totals", [(), (1,), (1, 2, 3), (1, "none")])
def test_calls_that_were_not_seen_give_no_count(tmp_path: Path, totals: tuple[object, ...]) -> None:
    with pytest.raises(CannotCountError, match="valgrind "):
        instructions.read(written(tmp_path, *totals), [("a", "standard")])


@pytest.mark.parametrize(("now", "status"), [(1000, "ok"), (1010, "ok"), (1011, "regressed")])
def test_one_call_may_execute_1_per_cent_more_than_the_other_librarys(
    now: int, status: str
) -> None:
    found = compared({"standard": 1000}, standard=now)["standard"]
    assert (found.status, found.to, found.before) == (status, "pristine", 1000)


@pytest.mark.parametrize(
    ("now", "status", "words"),
    [
        (1010, "ok", "allowed +1.00%"),
        (1011, "accepted", "accepted +3.00% (of tanhf)"),
        (1030, "accepted", "accepted +3.00% (of tanhf)"),
        (1031, "regressed", "allowed +3.00%"),
    ],
)
def test_what_a_series_accepts_is_said_with_its_reason(now: int, status: str, words: str) -> None:
    found = compared({"standard": 1000}, 1.03, standard=now, full_state=5 * now)
    assert found["standard"].status == status
    assert found["standard"].reason.endswith(words)
    assert found["full_state"].status == "regressed"  # that is of one call alone


def test_a_state_may_cost_two_instructions_an_element_in_each_call() -> None:
    n = 1_000_000
    for more, status in ((0.01 * n + 2 * ELEMENTS, "ok"), (0.01 * n + 3 * ELEMENTS, "regressed")):
        found = compared({"standard": n}, standard=n, full_state=n + int(more))
        assert found["full_state"].status == status
    for more, status in ((0.01 * n + 8 * ELEMENTS, "ok"), (0.01 * n + 9 * ELEMENTS, "regressed")):
        found = compared({"standard": n}, standard=n, parts=n, segmented=n + int(more))
        assert found["segmented"].status == status


def test_a_slower_call_is_not_told_of_the_state_as_well() -> None:
    found = compared({"standard": 1000}, standard=2000, parts=2000, full_state=2000, segmented=2000)
    assert {way: count.status for way, count in found.items()} == {
        "standard": "regressed",
        "full_state": "ok",
        "segmented": "ok",
    }


def test_without_the_other_library_the_state_is_compared_all_the_same() -> None:
    found = compared("there is none", standard=1000, parts=1000, full_state=9000, segmented=1000)
    assert (found["standard"].status, found["standard"].reason) == ("skipped", "there is none")
    assert found["full_state"].status == "regressed"


def test_a_library_without_a_state_has_one_call_alone() -> None:
    assert list(compared({"standard": 1}, standard=1, parts=1)) == ["standard"]


def test_every_path_and_type_of_key_is_counted_in_one_thread() -> None:
    from fa_harness.kernel import path

    assert {path(case) for case in instructions.ROWS} == {"vec", "tiled", "split-kv"}
    assert {case.threads for case in instructions.ROWS} == {1}
    assert {case.type_K for case in instructions.ROWS} == {"f16", "f32", "q8_0"}


def test_without_valgrind_nothing_is_counted_and_the_reason_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert instructions.why_not() == "there is no valgrind; install it (apt install valgrind)"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "echo 'vex amd64->IR: unhandled instruction bytes: 0x62' >&2\n"
            "echo '==1==    at 0x4A8C8E3: ggml_init' >&2\nkill -4 $$",
            "valgrind: SIGILL: vex amd64->IR: unhandled instruction bytes: 0x62",
        ),
        ("exit 3", "valgrind: exit status 3"),
        ('echo \'[["a", "standard"]]\'', "valgrind saw 0 calls of ggml_backend_graph_compute"),
    ],
)
def test_what_valgrind_cannot_run_is_told_with_its_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, reason: str
) -> None:
    double = tmp_path / "valgrind"
    double.write_text(f"#!/bin/sh\n{script}\n")
    double.chmod(double.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(CannotCountError) as raised:
        instructions.count([tmp_path / "module.so"], [CASE])
    assert str(raised.value).startswith(reason)


@pytest.mark.full
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="there is no valgrind")
def test_counts_repeat_and_the_series_keeps_the_limits() -> None:
    def portable(name: str) -> Library:
        [library] = build(find_project(), [name], options=instructions.PORTABLE)
        return library

    ours, theirs = portable("patched").module_path, portable("pristine").module_path
    first, again, other = instructions.count([ours, ours, theirs])
    assert {count.status for count in instructions.compare(first, other, "pristine")} == {"ok"}
    for case, ways in first.items():
        for way, count in ways.items():
            assert again[case][way] == pytest.approx(count, rel=1e-3), (case, way)
