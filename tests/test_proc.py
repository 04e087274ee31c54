import os
import subprocess
import sys
from pathlib import Path

import pytest

from fa_harness.errors import SetupError
from fa_harness.proc import ProgramError, paste, run

PYTHON = [sys.executable, "-c"]


def test_both_streams_come_back_in_the_order_of_writing() -> None:
    code = "import os; os.write(1, b'one\\n'); os.write(2, b'two\\n'); os.write(1, b'three\\n')"
    assert run([*PYTHON, code]) == "one\ntwo\nthree"


def test_lines_are_seen_while_the_program_runs() -> None:
    seen: list[str] = []
    run([*PYTHON, "print('a'); print('b')"], on_line=seen.append)
    assert seen == ["a", "b"]


def test_the_log_has_the_command_and_its_output(tmp_path: Path) -> None:
    run([*PYTHON, "print('said')"], log=tmp_path / "log")
    assert (
        tmp_path / "log"
    ).read_text() == f"$ {paste([*PYTHON, 'print(' + repr('said') + ')'])}\nsaid\n"


def test_a_verbose_run_prints_a_command_that_a_shell_takes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "two words"
    folder.mkdir()
    run([*PYTHON, "import os; print(os.getcwd())"], cwd=folder, verbose=True)
    shown = capfd.readouterr().err.strip()
    assert shown.startswith("$ cd '")
    pasted = subprocess.run(["sh", "-c", shown[2:]], capture_output=True, text=True, check=True)
    assert pasted.stdout.strip() == str(folder)


def test_a_failure_has_the_status_the_last_lines_and_the_log(tmp_path: Path) -> None:
    code = "print(*range(30), sep='\\n'); raise SystemExit(7)"
    with pytest.raises(ProgramError, match="ended with status 7") as caught:
        run([*PYTHON, code], log=tmp_path / "log")
    shown = str(caught.value).splitlines()
    assert shown[-21:-1] == [str(number) for number in range(10, 30)]
    assert shown[-1] == f"the whole output is in {tmp_path / 'log'}"
    assert caught.value.output.startswith("0\n1\n")


def test_a_program_that_a_signal_ends_is_told_from_one_that_fails() -> None:
    with pytest.raises(ProgramError, match="was killed by signal 9"):
        run([*PYTHON, "import os; os.kill(os.getpid(), 9)"])


def test_a_missing_program_is_named() -> None:
    with pytest.raises(SetupError, match=r"program 'no-such-program' was not found; install it"):
        run(["no-such-program"])


def test_a_missing_folder_is_not_taken_for_a_missing_program(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"cannot run .* in .*gone: no such folder"):
        run([sys.executable], cwd=tmp_path / "gone")


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"cannot write .*gone/log: No such file"):
        run([sys.executable, "--version"], log=tmp_path / "gone" / "log")


def test_an_interrupt_ends_the_program_too() -> None:
    pids: list[int] = []

    def interrupt(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    code = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
    with pytest.raises(KeyboardInterrupt):
        run([*PYTHON, code], on_line=interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
