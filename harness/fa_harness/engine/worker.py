"""A library in a child process: a crash or a hang there becomes a status, and the run goes on.

The child is started once and computes case after case. Cases and results go over a connection of
`multiprocessing`. The mode that is being computed stands in memory that both processes share. The
output of the library goes to a file, whose last lines explain an abort.

The child ends with its parent, whatever ends the parent. A child that is started again must load
the same library, so that a run does not mix two.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import mmap
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from fa_harness.build import sanitizers
from fa_harness.case.case import Case
from fa_harness.case.inputs import make_inputs
from fa_harness.case.modes import Run
from fa_harness.case.variations import Variation, vary
from fa_harness.engine import ggml
from fa_harness.engine.compute import lacking, run_case
from fa_harness.engine.ggml import CPU, Device, Ggml, RefusedError, WrongTensorError, counts
from fa_harness.errors import SetupError
from fa_harness.machine import cpu_use, usable_cores

_STDERR_LINES = 6
_APART = 1 << 16
"""Bytes from which an array is sent without a copy."""
_MODE_BYTES = 16
"""Room for the longest name of a mode."""
_START_SECONDS = 60.0
_REPLY_SECONDS = 60
"""How long a reply that has begun may pause."""
_PATIENCE = 20
"""How many times its limit a case may take that busy neighbours keep from running."""
_END_SECONDS = 60.0
"""How long a child may take to end after its output has closed; it may dump its memory first."""


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A case that the child did not finish."""

    status: str
    """`crash`, `timeout`, `oversized` (there was too little memory), or `fail`: a function gave a
    tensor that cannot be read as its result; `unsupported`, the device does not compute it."""
    reason: str
    """The mode, how it ended, and the last lines that the library printed."""

    @classmethod
    def of_memory(cls, where: str, error: MemoryError | OverflowError) -> Lost:
        """Return a case that needs more memory than there is, or numbers of more than 64 bits."""
        why = f" ({error})" if str(error) else ""
        return cls(
            status="oversized",
            reason=f"{where}: ran out of memory{why}; take fewer keys, rows, heads or segments, or "
            "a larger machine",
        )


class Worker:
    """A child process that holds a library."""

    def __init__(
        self,
        module_path: Path,
        *,
        device: str = CPU,
        digest: str = "",
        mutant: str | None = None,
    ) -> None:
        """Prepare a child; the `with` block or the first case starts it.

        It must load the library with this `digest` of another worker, if one is given.
        """
        self._module_path = module_path
        self._device = device
        self.mutant = mutant
        """The mutant that the next cases are computed with; `EVERY_MUTANT`, none is active."""
        self._lost_at_start: Lost | None = None
        self._process: subprocess.Popen[bytes] | None = None
        # of a process
        self._resources = contextlib.ExitStack()
        self._connection: Connection
        self._stderr: IO[bytes]
        self._mode: mmap.mmap
        """The child writes here which mode it computes; a message for each would cost more."""
        self._is_interrupted = False
        self._is_patient = False
        self.is_busy = False
        """Whether a case was submitted whose result nobody took."""
        self.mutants_reached: frozenset[str] = frozenset()
        """The mutants that the last result was computed with; unknown for a lost case."""
        # facts of the library, known once the child has started
        self.digest = digest
        self.features: tuple[str, ...] = ()
        """CPU features that it uses."""
        self.types: tuple[str, ...] = ()
        """Types of K and V that it has."""
        self.lacks: dict[str, str] = {}
        """The modes, and `sinks`, that it cannot compute, each with the function that it lacks."""
        self.mutants: tuple[str, ...] = ()
        self.devices: tuple[Device, ...] = ()
        """What it can compute on."""

    def __enter__(self) -> Worker:
        try:
            self._start()
        except (EOFError, TimeoutError) as error:
            lost = self._lost("start", error)
            raise SetupError(
                f"{self._module_path}: the library cannot be loaded: {lost.reason}; "
                "`fa-harness doctor` tells more, `fa-harness build` makes it anew"
            ) from None
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        self._is_interrupted = False

    @property
    def pid(self) -> int:
        """The child's process id."""
        if self._process is None:
            raise RuntimeError("the worker is not running; use it in a `with` block")
        return self._process.pid

    def submit(
        self,
        case: Case,
        modes: tuple[str, ...],
        timeout: float,
        variation: Variation | None = None,
        *,
        is_patient: bool = False,
    ) -> None:
        """Start computing a case, or a variation of it, in `timeout` seconds at most.

        `result` waits for it. With `is_patient` only the time counts that the machine's other
        processes leave to it.
        """
        if self.is_busy:
            raise RuntimeError("the worker computes another case; take its result first")
        self._lost_at_start = None
        try:
            if self._process is None:
                self._start()
        except (EOFError, TimeoutError) as error:
            self._lost_at_start = self._lost("start", error)
            return
        self._begin = time.monotonic()
        self._deadline = self._begin + timeout
        self._timeout, self._is_patient = timeout, is_patient
        self._used = cpu_use(self.pid)[0] if is_patient else 0.0
        self.mutants_reached = frozenset()
        _set_mode(self._mode, "start")
        self.is_busy = True
        # had it died after its last reply, `result` finds the end of its output and says how
        with contextlib.suppress(ConnectionError):
            self._connection.send((case, modes, self.mutant, variation))

    def result(self) -> Run | Lost:
        """Return the result of the submitted case."""
        if self._lost_at_start is not None:
            return self._lost_at_start
        found: Run | Lost | SetupError
        try:
            while not self._connection.poll(max(self._deadline - time.monotonic(), 0)):
                if not self._is_patient or not (missed := self._seconds_missed()):
                    raise TimeoutError
                self._deadline = time.monotonic() + missed
            found, self.mutants_reached = self._receive(self._deadline)
        except (EOFError, TimeoutError) as error:
            return self._lost(_mode_in(self._mode), error)
        except MemoryError as error:  # the rest of the reply is lost
            self.stop()
            return Lost.of_memory("its result", error)
        self.is_busy = False
        if isinstance(found, SetupError):
            raise found
        return found

    def _seconds_missed(self) -> float:
        """Return how many seconds of its limit the case did not get, 0 if it got them or waits.

        A thread that sleeps is waiting for another one, which is none of the machine's doing.
        """
        used, wanting = cpu_use(self.pid)
        if not wanting or time.monotonic() > self._begin + _PATIENCE * self._timeout:
            return 0.0
        missed = self._timeout - (used - self._used) / min(wanting, usable_cores())
        return missed if missed > self._timeout / 20 else 0.0

    def interrupt(self) -> None:
        """Kill the child, from any thread, even if it is just being started.

        A waiting `result` returns a crash. The worker can be used again after its block.
        """
        self._is_interrupted = True
        process = self._process
        if process is not None:
            process.kill()

    def stop(self) -> None:
        """End the child, and with it a submitted case; the next case starts another child."""
        self._resources.close()
        self._process = None
        self.is_busy = False

    def _lost(self, mode: str, error: EOFError | TimeoutError) -> Lost:
        """End a child that closed its output or did not answer, and return how it was lost."""
        if isinstance(error, EOFError):
            status, how = "crash", self._end()
        else:
            status, how = "timeout", f"no result after {self._timeout:g} s"
        lost = Lost(status=status, reason=f"{mode}: {how}{self._last_lines()}")
        self.stop()
        return lost

    def _start(self) -> None:
        """Start the child and wait until it has loaded the library.

        Raises:
            EOFError: It ended before.
            TimeoutError: It does not answer.
        """
        prefix, settings = sanitizers.started_with(self._module_path)
        try:
            self._stderr = self._resources.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
            # if the child is killed, its files are deleted here
            files = self._resources.enter_context(
                tempfile.TemporaryDirectory(prefix="fa-harness-", ignore_cleanup_errors=True)
            )
            mode = Path(files, "mode")
            mode.write_bytes(bytes(_MODE_BYTES))  # on a full disk, a hole would give a signal
            self._mode = self._resources.enter_context(_shared(mode))
            ours, theirs = socket.socketpair()
            pause = struct.pack("ll", _REPLY_SECONDS, 0)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, pause)
            self._connection = self._resources.enter_context(Connection(ours.detach()))
            program = [*prefix, sys.executable, "-m", "fa_harness.engine.worker"]
            # on an abort, ggml would start a debugger: seconds for lines that nobody reads
            own = {"GGML_NO_BACKTRACE": "1", "TMPDIR": files, **settings}
            # what the library `coverage` counts goes nowhere unless somebody asks for it
            own["GCOV_PREFIX"] = os.environ.get("GCOV_PREFIX", files)
            with theirs:
                self._process = subprocess.Popen(
                    [*program, self._module_path, mode, str(theirs.fileno()), self._device],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.PIPE,  # its end tells the child that the parent has ended
                    stdout=self._stderr,
                    stderr=self._stderr,
                    env={**os.environ, **own},
                )
            self._resources.enter_context(self._process)
            self._resources.callback(self._process.kill)  # before it is waited for
        except OSError as error:
            self.stop()
            raise SetupError(
                f"a worker cannot be started ({error}); make room for processes and temporary files"
            ) from error
        if self._is_interrupted:
            self._process.kill()
        self._timeout = _START_SECONDS
        known = self._receive(time.monotonic() + _START_SECONDS)
        if not isinstance(known, SetupError):
            digest, self.features, self.types, self.lacks, self.mutants, self.devices = known
            self.digest = self.digest or digest
            if digest == self.digest:
                return
            known = SetupError(f"{self._module_path}: was replaced while it ran; run again")
        self.stop()
        raise known

    def _end(self) -> str:
        assert self._process is not None
        try:
            code = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed its output and did not end"
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"

    def _last_lines(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        shown = sanitizers.finding(lines) or lines[-_STDERR_LINES:]
        return "".join(f"\n  {line}" for line in shown)

    def _receive(self, deadline: float) -> Any:
        """Return the child's next reply.

        Raises:
            EOFError: It ended, perhaps in the middle of a reply.
            TimeoutError: It does not answer.
        """
        # a reply that came in time counts, however late it is read
        if not self._connection.poll(max(deadline - time.monotonic(), 0)):
            raise TimeoutError
        try:
            head, sizes = self._connection.recv()
            apart = [_received(self._connection.fileno(), size) for size in sizes]
            return pickle.loads(head, buffers=apart)
        except BlockingIOError:
            raise TimeoutError from None
        except OSError as error:
            raise EOFError from error


def _send(connection: Connection, reply: object) -> None:
    """Send a reply, and its large arrays as they lie in memory: a copy of them takes long."""
    apart: list[memoryview] = []

    def is_small(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes >= _APART:
            apart.append(raw)
        return raw.nbytes < _APART

    head = pickle.dumps(reply, protocol=5, buffer_callback=is_small)
    connection.send((head, [part.nbytes for part in apart]))
    for part in apart:
        while part:
            part = part[os.write(connection.fileno(), part) :]


def _received(descriptor: int, size: int) -> bytearray:
    """Return the next bytes of a connection.

    Raises:
        EOFError: It ends before.
    """
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        n_byte = os.readv(descriptor, [rest])
        if n_byte == 0:
            raise EOFError
        rest = rest[n_byte:]
    return data


def _shared(path: Path) -> mmap.mmap:
    """Return the `_MODE_BYTES` of a file as memory, shared by all that open it."""
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), _MODE_BYTES)


def _set_mode(shared: mmap.mmap, mode: str) -> None:
    shared[:] = mode.encode().ljust(_MODE_BYTES, b"\0")


def _mode_in(shared: mmap.mmap) -> str:
    return shared[:].rstrip(b"\0").decode()


def _poison_new_memory() -> None:
    """Let glibc's `malloc` give out memory full of NaN, for any float type."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # another C library has none
        m_perturb, complement_of_0xff = -6, 0x100  # its lowest byte counts; 0 would mean off
        mallopt(m_perturb, complement_of_0xff)


def _serve(module_path: Path, mode_path: Path, descriptor: int, device: str) -> None:
    """Compute cases until the parent closes its end of the connection."""
    _poison_new_memory()  # reading work memory before it is written to shows
    for number in (signal.SIGINT, signal.SIGTERM):  # they go to a group, and the parent decides
        signal.signal(number, signal.SIG_IGN)
    os.set_inheritable(descriptor, False)
    connection = Connection(descriptor)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()

    try:
        digest = _digest(module_path)
        library = ggml.load(module_path)
        if _digest(module_path) != digest:
            raise SetupError(f"{module_path}: was replaced while it was loaded; run again")
        library.compute_on(device)
    except SetupError as error:
        _send(connection, error)
        return
    write_counts = counts.writer(module_path)
    known = (
        digest,
        library.features(),
        library.types(),
        lacking(library),
        library.mutants,
        library.devices(),
    )
    _send(connection, known)
    shared = _shared(mode_path)
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        try:
            # nothing keeps a case, which may be large, while the child waits for the next
            _send(connection, _reply(library, shared, write_counts, *request))
        except MemoryError as error:
            _send(connection, (Lost.of_memory(_mode_in(shared), error), frozenset()))


def _reply(
    library: Ggml,
    shared: mmap.mmap,
    write_counts: Callable[[], None],
    case: Case,
    modes: tuple[str, ...],
    mutant: str | None,
    variation: Variation | None,
) -> tuple[Run | Lost | SetupError, frozenset[str]]:
    """Return a case's results, or why there are none; and the mutants that were reached."""
    try:
        inputs = make_inputs(case)
        if variation is not None:
            case, inputs = vary(case, inputs, variation)
        library.set_mutant(mutant)
        run = run_case(library, case, inputs, modes, on_mode=lambda mode: _set_mode(shared, mode))
        return run, library.mutants_reached
    except (SetupError, OSError) as error:
        why = f"temporary files cannot be used ({error}); make room for them"
        why = str(error) if isinstance(error, SetupError) else why
        return SetupError(f"mode {_mode_in(shared)}: {why}"), frozenset()
    except OverflowError as error:
        return Lost.of_memory(_mode_in(shared), error), frozenset()
    except RefusedError as error:
        return Lost(status="unsupported", reason=str(error)), frozenset()
    except WrongTensorError as error:
        return Lost(status="fail", reason=f"{_mode_in(shared)}: {error}"), library.mutants_reached
    except RuntimeError as error:
        reason = f"{_mode_in(shared)}: {type(error).__name__}: {error}"
        return Lost(status="crash", reason=reason), frozenset()
    finally:
        write_counts()  # before the reply, after which the child may be killed


def _end_with_the_parent() -> None:
    """End this process, even in the middle of a case, once the parent's end of stdin is closed."""
    poll = select.poll()
    poll.register(0, 0)  # a hang-up is always reported
    poll.poll()
    os._exit(1)


def _digest(module_path: Path) -> str:
    """Return a digest of the files that are loaded: the module and ggml's libraries."""
    digest = hashlib.sha256()
    try:
        for path in [module_path, *sorted(module_path.parent.glob("libggml*"))]:
            if not path.is_symlink():
                digest.update(path.name.encode() + b"\0" + path.read_bytes())
    except OSError as error:
        raise SetupError(
            f"{module_path}: cannot be read ({error.strerror}); run `fa-harness build`"
        ) from error
    return digest.hexdigest()


if __name__ == "__main__":
    from fa_harness.engine.worker import _serve  # pickles name this module, not `__main__`

    _serve(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
