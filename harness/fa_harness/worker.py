"""A library in a child process: a crash or a hang there becomes a status, and the run goes on.

The child is started once and computes case after case. Frames go over its standard input and
output: eight bytes of length, then a pickle. What the library prints goes to a file, whose last
lines explain an abort.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fa_harness.cases import Case
from fa_harness.errors import SetupError
from fa_harness.modes import Run

_HEADER = struct.Struct("<Q")
_STDERR_LINES = 6
_START_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A case that the child did not finish."""

    status: str
    """`crash` or `timeout`."""
    reason: str
    """The mode, how it ended, and the last lines that the library printed."""


class Worker:
    """A child process that holds a library.

    Args:
        module_path: The library's module.
        mutant: Which of the library's mutants it computes with, in each process anew.
    """

    def __init__(self, module_path: Path, *, mutant: str | None = None) -> None:
        self._module_path = module_path
        self._mutant = mutant
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] | None = None
        self._is_interrupted = False
        self.features: tuple[str, ...] = ()
        """The library's CPU features, known once it is entered."""
        self.types: tuple[str, ...] = ()
        """The types of K and V that the library has."""
        self.lacks: dict[str, str] = {}
        """The modes that it cannot compute, each with the function that it lacks."""
        self.mutants: tuple[str, ...] = ()
        """The mutants that it has."""
        self.mutant_reached = False
        """Whether the last result was computed with the mutant; of a lost case it is not known."""

    def __enter__(self) -> Worker:
        self._start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()
        self._is_interrupted = False

    @property
    def pid(self) -> int:
        """The child's process id."""
        if self._process is None:
            raise RuntimeError("the worker is not running; use it in a `with` block")
        return self._process.pid

    def submit(self, case: Case, modes: tuple[str, ...], timeout: float) -> None:
        """Start computing a case; `result` waits for it.

        Args:
            case: The case.
            modes: Some of `modes.MODES`.
            timeout: Seconds that it may take.
        """
        if self._process is None:
            self._start()
        self._deadline = time.monotonic() + timeout
        self._timeout = timeout
        self.mutant_reached = False
        self._send((case, modes, timeout, self._mutant))

    def result(self) -> Run | Lost:
        """Return what the submitted case gave."""
        mode = "start"
        while True:
            try:
                kind, value = self._receive(self._deadline)
            except TimeoutError:
                return self._lost("timeout", f"{mode}: no result after {self._timeout:g} s")
            except EOFError:
                return self._lost("crash", f"{mode}: {self._end()}")
            if kind == "run":
                run, self.mutant_reached = value
                assert isinstance(run, Run)
                return run
            if kind == "error":
                return Lost(status="crash", reason=f"{mode}: {value}")
            mode = value

    def interrupt(self) -> None:
        """Kill the child, from whatever thread, also one that is just being started.

        A `result` that waits for it gives a crash. The worker is of use again after its block.
        """
        self._is_interrupted = True
        process = self._process
        if process is not None:
            process.kill()

    def _lost(self, status: str, reason: str) -> Lost:
        lost = Lost(status=status, reason=reason + self._last_lines())
        self._stop()
        return lost

    def _start(self) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (closed in `_stop`)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fa_harness.worker", str(self._module_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            # ggml starts a debugger on an abort where it finds one: seconds for lines nobody reads
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        )
        if self._is_interrupted:
            self._process.kill()
        try:
            kind, value = self._receive(time.monotonic() + _START_SECONDS)
        except (EOFError, TimeoutError):
            kind = "error"
            value = (
                f"{self._module_path}: the library cannot be loaded{self._last_lines()}; "
                "`fa-harness doctor` tells more, `fa-harness build` makes it anew"
            )
        if kind == "error":
            self._stop()
            raise SetupError(str(value))
        self.features, self.types, self.lacks, self.mutants = value

    def _stop(self) -> None:
        if self._process is not None:
            self._kill()
        if self._stderr is not None:
            self._stderr.close()
        self._process = self._stderr = None

    def _kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # what is left to write has no reader
                    pipe.close()

    def _end(self) -> str:
        assert self._process is not None
        code = self._process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"

    def _last_lines(self) -> str:
        assert self._stderr is not None
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return "".join(f"\n  {line}" for line in lines[-_STDERR_LINES:])

    def _send(self, message: Any) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        # had it died after its last reply, `result` meets the end of its output and says how
        with contextlib.suppress(BrokenPipeError):
            _write(self._process.stdin, message)

    def _receive(self, deadline: float) -> tuple[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        header = _read(fd, _HEADER.size, deadline)
        kind, value = pickle.loads(_read(fd, _HEADER.unpack(header)[0], deadline))
        return kind, value


def _read(fd: int, size: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < size:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            raise TimeoutError
        chunk = os.read(fd, size - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)


def _write(stream: IO[bytes], message: Any) -> None:
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(_HEADER.pack(len(data)) + data)
    stream.flush()


def _poison_new_memory() -> None:
    """Let `malloc` hand out memory full of NaN, whatever the float type, where it is glibc's."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_perturb, complement_of_0xff = -6, 0x100  # its lowest byte counts; 0 would mean off
        mallopt(m_perturb, complement_of_0xff)


def _serve(module_path: Path) -> None:
    """Compute cases until standard input ends."""
    from fa_harness import ggml
    from fa_harness.inputs import make_inputs
    from fa_harness.modes import lacking, run_case

    _poison_new_memory()  # what reads work memory before it is written to shows
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the library prints must not get among the replies

    try:
        library = ggml.load(module_path)
    except SetupError as error:
        _write(replies, ("error", str(error)))
        return
    about = (library.features(), library.types(), lacking(library), library.mutants)
    _write(replies, ("ready", about))
    while True:
        header = requests.read(_HEADER.size)
        if not header:
            return
        case, modes, timeout, mutant = pickle.loads(requests.read(_HEADER.unpack(header)[0]))
        # should the parent be gone by then, nobody else would end a hang
        signal.setitimer(signal.ITIMER_REAL, timeout + 5)
        try:
            inputs = make_inputs(case)
            library.set_mutant(mutant)
            run = run_case(
                library, case, inputs, modes, on_mode=lambda mode: _write(replies, ("mode", mode))
            )
            reply: tuple[str, Any] = ("run", (run, library.mutant_reached))
        except (MemoryError, RuntimeError) as error:
            reply = ("error", f"{type(error).__name__}: {error}")
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write(replies, reply)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
