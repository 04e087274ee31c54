"""How other programs are run."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fa_harness import terminal
from fa_harness.errors import SetupError
from fa_harness.project import DISK_IS_FULL, writing

SHOWN_LINES = 20


class ProgramError(SetupError):
    """A program ended with a status other than 0: of a signal its number, negative.

    The output is everything that it printed, standard error included.
    """

    def __init__(self, message: str, *, output: str, status: int) -> None:
        super().__init__(message)
        self.output = output
        self.status = status


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    on_line: Callable[[str], None] | None = None,
    idle_seconds: float | None = None,
    excerpt: Callable[[list[str]], list[str]] = lambda lines: lines[-SHOWN_LINES:],
    verbose: bool = False,
) -> str:
    """Run `command` to its end and return what it printed (both streams, as they came).

    `env` is the whole environment. The log gets the command and its output while it runs.
    `on_line` is called with each line, without its end. A program that prints nothing for
    `idle_seconds` is killed. `verbose` prints the command first.

    Raises:
        ProgramError: The program ended with a status other than 0; the message has an
            excerpt of its output and names the log.
        SetupError: The program cannot be started.
    """
    words = [str(word) for word in command]
    pasteable = paste(words, cwd=cwd)
    if verbose:
        terminal.stage(f"$ {pasteable}")
    lines: list[str] = []
    log_path = log or Path(os.devnull)
    with writing(log_path), log_path.open("w", encoding="utf-8") as log_file:
        log_file.write(f"$ {pasteable}\n")
        process = _start(words, cwd=cwd, env=env)
        watch = _Watch(process, idle_seconds)
        try:
            assert process.stdout is not None
            for raw in process.stdout:
                watch.restart()
                line = raw.rstrip("\n")
                lines.append(line)
                log_file.write(raw)
                if on_line:
                    on_line(line)
            status = process.wait()
        except BaseException:
            # Ctrl-C, a full disk under the log: nothing may go on writing behind our back.
            process.terminate()
            process.wait()
            raise
        finally:
            watch.stop()
    output = "\n".join(lines)
    if status != 0:
        message = _failure(words[0], pasteable, status, excerpt(lines), log)
        if any(os.strerror(errno.ENOSPC) in line for line in lines):
            message += f"\n{DISK_IS_FULL}"
        raise ProgramError(message, output=output, status=status)
    return output


class _Watch:
    """Kills a program that is silent for too long."""

    def __init__(self, process: subprocess.Popen[str], seconds: float | None) -> None:
        self._process = process
        self._seconds = seconds
        self._timer: threading.Timer | None = None
        self.restart()

    def restart(self) -> None:
        self.stop()
        if self._seconds is not None:
            self._timer = threading.Timer(self._seconds, self._process.kill)
            self._timer.daemon = True
            self._timer.start()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def paste(command: Sequence[str | Path], *, cwd: Path | None = None) -> str:
    """`command` as a shell would take it, from any directory."""
    line = shlex.join(str(word) for word in command)
    return line if cwd is None else f"cd {shlex.quote(str(cwd))} && {line}"


def _start(
    words: list[str], *, cwd: Path | None, env: Mapping[str, str] | None
) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            words,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
    except FileNotFoundError as error:
        if error.filename == words[0]:
            raise SetupError(
                f"program '{words[0]}' was not found; install it or put it on PATH"
            ) from error
        raise SetupError(f"cannot run '{words[0]}' in {cwd}: no such folder") from error
    except OSError as error:
        raise SetupError(f"cannot run '{words[0]}': {error.strerror}") from error


def _failure(program: str, pasteable: str, status: int, shown: list[str], log: Path | None) -> str:
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    parts = [f"'{Path(program).name}' {how}: {pasteable}", *shown]
    if log is not None:
        parts.append(f"the whole output is in {log}")
    return "\n".join(parts)


def ended(
    command: Sequence[object], *, seconds: float, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program of our own to its end, whatever that is, and keep what it printed.

    Raises:
        subprocess.TimeoutExpired: It took longer than `seconds`, and was killed.
    """
    return subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds,
        check=False,
        env={**os.environ, **environment},
    )


def ending(code: int) -> str:
    """Return how a process ended, in words."""
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"
