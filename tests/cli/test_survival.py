"""A run that is hurt in every way: it ends, and loses or makes up no verdict.

Moments are drawn from a seed; what is asserted holds at any moment.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from fa_harness.build.library import Library
from fa_harness.project import find_project

PROJECT = find_project()
COMMAND = [sys.executable, "-m", "fa_harness.cli"]
WAIT = 120
"""Seconds after which a run hangs."""
SHORT = "FLASH_ATTN_EXT(hsk=32,hsv=32,nh=1,kv=64,nb=1,regime=normal,segments=2)"
LARGE_STATE = SHORT.replace("hsk=32,hsv=32,nh=1", "hsk=128,hsv=128,nh=8").replace("nb=1", "nb=32")

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("patched")]


class Running:
    """A run in a process group of its own, and the workers that it has had."""

    def __init__(
        self,
        report: Path,
        *options: object,
        command: str = "run",
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.report = report
        self.workers_seen: set[int] = set()
        self.process = subprocess.Popen(
            [*COMMAND, command, "--json", report, *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )

    def until_it_can_be_interrupted(self) -> None:
        """Wait until the command has begun: until then the interpreter ends as it likes."""
        bit = 1 << signal.SIGTERM - 1
        while self.process.poll() is None:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            if int(status.partition("SigCgt:")[2].split()[0], 16) & bit:
                return
            time.sleep(0.001)

    def until_lines(self, n: int) -> None:
        """Wait for the first lines of the table, the headings among them."""
        assert self.process.stdout is not None
        for _ in range(n):
            self.process.stdout.readline()

    def workers(self) -> list[int]:
        """Return the ids of the workers that the run has now."""
        found = []
        with contextlib.suppress(OSError):  # a process may end while it is looked at
            for task in Path(f"/proc/{self.process.pid}/task").iterdir():
                for pid in map(int, (task / "children").read_text().split()):
                    if b"fa_harness.engine.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        found.append(pid)
        self.workers_seen.update(found)
        return found

    def ended(self) -> tuple[int, str, str]:
        """Wait for the end; return the status, the rest of the output and the errors."""
        output, errors = self.process.communicate(timeout=WAIT)
        return self.process.returncode, output, errors

    def results(self) -> list[dict[str, Any]]:
        return list(json.loads(self.report.read_text())["results"])

    def has_left(self) -> list[int]:
        """Return the workers that do not end."""
        deadline = time.monotonic() + WAIT
        left = self.workers_seen
        while left and time.monotonic() < deadline:
            left = {pid for pid in left if _is_running(pid)}
            time.sleep(0.01)
        return sorted(left)


def _is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a run with some options; it is killed after the test."""
    started: list[Running] = []

    def run(*options: object, report: Path | None = None, **more: Any) -> Running:
        started.append(Running(report or tmp_path / "report.json", *options, **more))
        return started[-1]

    yield run
    for running in started:
        running.process.kill()
        running.process.communicate()


@pytest.fixture
def case_file(tmp_path: Path) -> Callable[..., Path]:
    def write(*cases: str) -> Path:
        file = tmp_path / "cases.txt"
        file.write_text("".join(f"{case}\n" for case in cases))
        return file

    return write


# workers that die

SIDE_BY_SIDE = ("--suite", "smoke", "--threads", "1", "--segments", "2,3")
ONE_AT_A_TIME = ("--suite", "smoke", "--threads", "1")  # too few for two


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name != "seconds"}


@pytest.mark.parametrize("options", [SIDE_BY_SIDE, ONE_AT_A_TIME], ids=["2 workers", "1 worker"])
def test_a_run_whose_workers_are_killed_has_each_case_once_and_the_others_right(
    start: Start, tmp_path: Path, options: tuple[str, ...]
) -> None:
    rng = random.Random(str(options))
    hurt = start(*options)
    hurt.until_lines(1)  # the library was loaded once
    killed = 0

    def kill_some() -> None:
        nonlocal killed
        while killed < 8 and hurt.process.poll() is None:
            workers = hurt.workers()
            if workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(workers), rng.choice([signal.SIGKILL, signal.SIGSEGV]))
                    killed += 1
            time.sleep(rng.uniform(0.0, 0.3))

    killer = threading.Thread(target=kill_some)
    killer.start()
    status, _, errors = hurt.ended()
    killer.join()
    assert (status, errors) == (1, "")

    whole = start(*options, report=tmp_path / "whole.json")
    assert whole.ended()[0] == 0
    assert [r["case"] for r in hurt.results()] == [r["case"] for r in whole.results()]
    crashes = [r for r in hurt.results() if r["status"] == "crash"]
    assert 1 <= len(crashes) <= killed
    for result, right in zip(hurt.results(), whole.results(), strict=True):
        if result["status"] == "crash":
            assert ": SIGKILL" in result["reason"] or ": SIGSEGV" in result["reason"]
            assert (result["comparisons"], result["modes"], result["outputs"]) == ({}, [], {})
        else:
            assert numbers(result) == numbers(right)
    assert hurt.has_left() == []


# the run itself is ended


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seed", range(4))
def test_a_run_that_is_ended_leaves_a_whole_report_or_the_older_one(
    start: Start, tmp_path: Path, number: int, seed: int
) -> None:
    rng = random.Random(10 * seed + number)
    (tmp_path / "report.json").write_text("older")
    running = start("--suite", "default", "--threads", 1 + seed % 2)  # in 2 workers or in 1
    running.until_it_can_be_interrupted()
    if seed:
        running.until_lines(rng.randrange(1, 12))
    time.sleep(rng.uniform(0.0, 0.2 if seed else 1.0))
    running.workers()
    os.killpg(running.process.pid, number)
    status, output, errors = running.ended()
    assert "Traceback" not in output + errors
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    if running.report.read_text() == "older":
        # in the middle of an `exec`, as of a dataclass, Python ends by the signal all the same
        assert status in (1, -signal.SIGINT)
        assert errors.endswith("interrupted\n")
        assert " pass\n" not in output
    else:
        assert status == 1
        document = json.loads(running.report.read_text())
        assert document["interrupted"] is True
        assert "(interrupted)" in output
        assert {result["status"] for result in document["results"]} <= {"pass"}
    assert running.has_left() == []


def test_a_run_that_is_killed_leaves_no_worker_and_the_older_report(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "report.json").write_text("older")
    running = start("--suite", "default", "--threads", 1)
    running.until_lines(5)
    assert running.workers()
    os.kill(running.process.pid, signal.SIGKILL)
    running.process.wait()
    assert running.has_left() == []
    assert running.report.read_text() == "older"


# full disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("a small disk is mounted, and there is no `mount`")
    if done.returncode:
        pytest.skip(f"a small disk is mounted, which needs root: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_too_small_for_a_state_ends_the_run_and_keeps_the_verdicts_before(
    start: Start, case_file: Callable[..., Path], small_disk: Path
) -> None:
    cases = case_file(SHORT, LARGE_STATE, SHORT.replace("kv=64", "kv=65"))
    running = start("--case-file", cases, env={"TMPDIR": str(small_disk)})
    status, output, errors = running.ended()
    assert status == 3
    assert errors.startswith(f"fa-harness: mode resumed: state {small_disk}/fa-harness-")
    assert errors.endswith(
        "cannot be written (No space left on device); make room there, or name another folder "
        "with TMPDIR\n"
    )
    assert "1 of 3 cases (interrupted): 1 pass" in output
    assert [result["status"] for result in running.results()] == ["pass"]
    assert list(small_disk.iterdir()) == []


def test_a_disk_too_small_for_the_table_ends_the_run_and_keeps_its_report(
    tmp_path: Path, small_disk: Path
) -> None:
    (small_disk / "ballast").write_bytes(bytes(60 << 10))
    report, table = tmp_path / "report.json", small_disk / "table.txt"
    command = [*COMMAND, "run", *ONE_AT_A_TIME, "-v", "--json", str(report)]
    with table.open("w") as stdout:
        done = subprocess.run(
            command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, timeout=WAIT
        )
    assert done.returncode == 3
    assert done.stderr == ("fa-harness: cannot write standard output (No space left on device)\n")
    document = json.loads(report.read_text())
    assert document["interrupted"] is True
    assert document["summary"]["pass"] == document["summary"]["cases"] > 0


def test_a_disk_too_small_for_a_report_leaves_the_older_one(start: Start, small_disk: Path) -> None:
    report = small_disk / "report.json"
    report.write_text("older")
    running = start(*ONE_AT_A_TIME, report=report)  # its report takes more
    status, output, errors = running.ended()
    assert status == 3
    assert errors == (
        f"fa-harness: report {report}: cannot be written (No space left on device); make room or "
        "name another file\n"
    )
    assert " cases: " in output
    assert report.read_text() == "older"
    assert list(small_disk.iterdir()) == [report]


def test_a_reader_that_has_seen_enough_of_the_table_does_not_take_the_report(start: Start) -> None:
    running = start("--suite", "default")
    running.until_lines(3)
    assert running.process.stdout is not None
    running.process.stdout.close()
    assert running.process.wait(WAIT) == 1
    assert running.process.stderr is not None
    assert running.process.stderr.read() == ""
    document = json.loads(running.report.read_text())
    assert document["interrupted"] is True
    assert document["summary"]["pass"] == document["summary"]["cases"] >= 2


# another library in its place


@pytest.fixture
def checkout(patched: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout at a path that is not ASCII, with a copy of the library."""
    monkeypatch.delenv("UPSTREAM_DIR", raising=False)
    root = tmp_path / "prüfstand 試験"
    shutil.copytree(PROJECT.patches.parent, root / "patches")
    (root / "vendor").mkdir()
    shutil.copy(PROJECT.pins_file, root / "vendor")
    shutil.copytree(patched.path, in_checkout(root, patched), symlinks=True)
    return root


def in_checkout(root: Path, library: Library) -> Path:
    return root / "build" / library.path.relative_to(PROJECT.build)


def test_a_library_that_is_replaced_while_it_runs_is_not_mixed_in(
    start: Start, checkout: Path, patched: Library, bug: Library
) -> None:
    library = in_checkout(checkout, patched)
    other = library.with_name("other")
    shutil.copytree(bug.path, other, symlinks=True)
    running = start("--suite", "smoke", "--threads", "2", cwd=checkout)
    running.until_lines(3)
    library.rename(library.with_name("before"))
    other.rename(library)
    [worker] = running.workers()
    os.kill(worker, signal.SIGKILL)  # the next one loads the library anew
    status, _, errors = running.ended()
    assert (status, errors) == (1, "")
    document = json.loads(running.report.read_text())
    assert document["library"]["series"] == list(patched.series)
    assert document["interrupted"] is False
    statuses = [result["status"] for result in document["results"]]
    assert statuses.count("crash") == 1
    assert set(statuses) == {"pass", "crash"}
    assert running.has_left() == []
    assert {path.name for path in library.parent.iterdir()} == {library.name, "before"}


@pytest.mark.parametrize(
    ("command", "name", "options", "status"),
    [
        ("fuzz", "bug", ("--library", "0001", "--seed", "1", "--cases", "60"), 1),
        ("mutants", "mutated", ("-k", "^row-index-"), 0),
    ],
)
def test_a_library_that_goes_away_is_there_for_later_workers(
    start: Start,
    checkout: Path,
    request: pytest.FixtureRequest,
    command: str,
    name: str,
    options: tuple[str, ...],
    status: int,
) -> None:
    library: Library = request.getfixturevalue(name)
    path = in_checkout(checkout, library)
    shutil.copytree(library.path, path, symlinks=True)
    running = start(*options, command=command, cwd=checkout)
    running.until_lines(3)  # a failure of the first cases; the first mutant
    path.rename(path.with_name("before"))
    if command == "fuzz":  # else each mutant has a worker of its own
        os.kill(running.workers()[0], signal.SIGKILL)
    ended, _, errors = running.ended()
    assert (ended, errors) == (status, "")
    assert not json.loads(running.report.read_text())["interrupted"]


# poor surroundings


def test_a_checkout_at_any_path_runs_in_any_locale(start: Start, checkout: Path) -> None:
    env = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    running = start("--suite", "seed", cwd=checkout, env=env)
    status, output, errors = running.ended()
    assert (status, errors) == (0, "")
    assert "1 case: 1 pass" in output


def test_a_run_needs_no_home_no_terminal_no_standard_input_and_no_folder_of_its_own(
    tmp_path: Path,
) -> None:
    report = tmp_path / "report.json"
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *COMMAND, "run", "--suite", "seed", "--json", report],
        cwd="/proc",  # nobody can write there
        env={"PATH": os.environ["PATH"], "TERM": "dumb"},
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(report.read_text())["summary"]["pass"] == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_report_is_written_with_standard_streams_closed(tmp_path: Path, closed: str) -> None:
    report = tmp_path / "report.json"
    command = [*COMMAND, "run", "--suite", "seed", "--json", str(report)]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(report.read_text())["summary"]["pass"] == 1


def test_a_report_on_a_standard_output_that_is_closed_is_refused_before_anything_runs() -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, "run", "--suite", "seed", "--json", "-"],
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT,
    )
    assert done.returncode == 2
    assert done.stderr == "fa-harness: report -: standard output is closed; name a file\n"
