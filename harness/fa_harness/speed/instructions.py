"""Instructions of a call, counted under valgrind: what no neighbour on the machine can move.

A count is of what `ggml_backend_graph_compute` executes, of one thread, when it computes a graph
for the second time: the first asks for work memory. callgrind adds them up from the function's
entry to its end, so nothing of Python is in it. The same library gives the same number each time:
ten processes on a busy machine agreed to the last digit. Other arguments and variables move the
stack and the heap, which is worth 0.03 % at most.

**One call** may take `LIMIT` times what it takes in the other library, which the same compiler has
built in the same run. The compiler chooses other instructions for a loop where the code around it
changes: the series changes that by -1.2 to +0.5 % (GCC 12). Of a key
with 128 dimensions in F16, 300 instructions, 1 % is 3; one more for every 8 elements of K is 5 %.
What a series accepts with a reason (`accepted` in its `series.toml`) takes the place of `LIMIT`.

**The state** may cost `PER_ELEMENT` instructions for each element of a row that a call reads and
writes, on top. Four floats at a time, the narrowest vectors that there are, reading and writing
takes half an instruction each, and as much goes to the loop around them; that is 1, and a loop
that copies to work memory first takes it twice. GCC 12 takes 0.7 to 1.2. One call with a state is
compared with one without, a chain with the calls on its segments, of the same library.

valgrind does not know AVX-512, so the libraries are built with `PORTABLE`.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fa_harness import proc
from fa_harness.case.case import Case
from fa_harness.speed.bench import state_bytes
from fa_harness.speed.rows import ROWS as SPEED_ROWS
from fa_harness.stacks import Accepted

PORTABLE = {"GGML_NATIVE": "OFF"}
"""CMake options of a library that valgrind can run."""
LIMIT = 1.01
PER_ELEMENT = 2

_FUNCTION = "ggml_backend_graph_compute"
_TIMES = 2  # each graph is computed; the last is counted
_TIMEOUT = 300.0  # seconds; a process takes some five of one
_START = {
    "x86_64": bytes.fromhex(
        "4889f8"  # mov rax, rdi: the request
        "31d2"  # xor edx, edx: the result without valgrind
        "48c1c703 48c1c70d 48c1c73d 48c1c733"  # rol rdi by 3, 13, 61, 51: as it was
        "4887db"  # xchg rbx, rbx: what valgrind looks for
        "4889d0"  # mov rax, rdx
        "c3"
    )
}
"""By machine, a function that hands valgrind a request, as its `valgrind.h` does."""
_START_INSTRUMENTATION = (ord("C") << 24 | ord("T") << 16) + 4
_FRAME = re.compile(r"==\d+== +(at|by) 0x|==\d+== *$")
_TOTALS = re.compile(r"^totals: (\d+)$", re.MULTILINE)


def _rows() -> tuple[Case, ...]:
    vec, split_kv, tiled, quantised = (case for case in SPEED_ROWS if case.threads == 1)
    return (
        vec,
        vec.with_(type_K="f32", type_V="f32", sinks=True, logit_softcap=10.0),
        split_kv,
        tiled.with_(n_kv=256, n_batch=64),  # as few rows as take that path
        quantised,
    )


ROWS = _rows()
"""The speed rows of one thread; F32 with all options."""

Counts = Mapping[str, Mapping[str, int]]
"""Instructions by case string, then by way: `standard`, `parts` (a call without a state for each
segment), `full_state`, `segmented`."""


class CannotCountError(Exception):
    """Why the instructions of a library cannot be counted."""


@dataclass(frozen=True, kw_only=True)
class Count:
    """The instructions of a way, and of what it is compared with."""

    case: str
    way: str
    to: str  # a way of the same library, or another library
    status: str  # `ok`, `accepted`, `regressed` or `skipped`
    reason: str
    now: int
    before: int | None = None  # of what it is compared with
    allowed: float | None = None  # `now` may be so many times `before`


def why_not() -> str | None:
    """Return why nothing can be counted on this machine, or None."""
    if shutil.which("valgrind") is None:
        return "there is no valgrind; install it (apt install valgrind)"
    return None


def count(module_paths: Sequence[Path], cases: Sequence[Case] = ROWS) -> list[Counts]:
    """Count the instructions of each case on libraries, which run side by side.

    Raises:
        CannotCountError: valgrind or a library ended early.
    """
    with ThreadPoolExecutor(len(module_paths)) as pool:
        return list(pool.map(lambda path: _count(path, cases), module_paths))


def _count(module_path: Path, cases: Sequence[Case]) -> Counts:
    with tempfile.TemporaryDirectory(prefix="fa-harness-") as folder:
        out = Path(folder) / "counts"
        command = [
            "valgrind", "--quiet", "--tool=callgrind", "--collect-atstart=no",
            f"--instr-atstart={'no' if platform.machine() in _START else 'yes'}",
            f"--toggle-collect={_FUNCTION}", f"--dump-after={_FUNCTION}",
            f"--callgrind-out-file={out}",
            sys.executable, "-m", __name__, str(module_path), *map(str, cases),
        ]  # fmt: skip
        try:
            done = proc.ended(
                command,
                seconds=_TIMEOUT,
                GGML_NO_BACKTRACE="1",
                OPENBLAS_NUM_THREADS="1",
                PYTHONHASHSEED="0",
            )
        except subprocess.TimeoutExpired:
            raise CannotCountError(f"valgrind has no result after {_TIMEOUT:g} s") from None
        if done.returncode != 0:
            raise CannotCountError(f"valgrind: {_last_words(done.stderr, done.returncode)}")
        names: list[tuple[str, str]] = [(case, way) for case, way in json.loads(done.stdout)]
        return read(out, names)


def read(out: Path, names: Sequence[tuple[str, str]]) -> Counts:
    """Read callgrind's files `OUT.1`, `OUT.2`, ..., one for each computation of a case and way.

    Raises:
        CannotCountError: They are not as many, or not callgrind's.
    """
    n = sum(path.suffix[1:].isdigit() for path in out.parent.glob(f"{out.name}.*"))
    if n != _TIMES * len(names):
        raise CannotCountError(
            f"valgrind saw {n} calls of {_FUNCTION}, of {_TIMES * len(names)} that were made"
        )
    found: dict[str, dict[str, int]] = {}
    for i, (case, way) in enumerate(names, 1):
        totals = _TOTALS.search(out.with_name(f"{out.name}.{_TIMES * i}").read_text("utf-8"))
        if totals is None:
            raise CannotCountError("valgrind wrote a file without totals")
        found.setdefault(case, {})[way] = int(totals[1])
    return found


def _last_words(stderr: str, code: int) -> str:
    """Return how a process ended, and what was said of it: of an unknown instruction, or last."""
    lines = [line for line in stderr.splitlines() if not _FRAME.match(line)]
    unknown = [line for line in lines if "unhandled instruction" in line]
    how = proc.ending(code)
    return f"{how}: {[*lines, *unknown][-1]}" if lines else how


def compare(
    ours: Counts, theirs: Counts | str, other: str, accepted: Mapping[str, Accepted] | None = None
) -> list[Count]:
    """Compare the counts of a library with each other, and one call with that of another library.

    `theirs` are the counts of the library `other`, or why there are none. `accepted`
    has the cases whose one call may take more times those than `LIMIT`.
    """
    return [
        count
        for case, ways in ours.items()
        for count in _of_case(case, ways, theirs, other, (accepted or {}).get(case))
    ]


def _of_case(
    text: str,
    ours: Mapping[str, int],
    theirs: Counts | str,
    other: str,
    accepted: Accepted | None,
) -> list[Count]:
    case = Case.parse(text)
    state = PER_ELEMENT * state_bytes(case) // 4
    found = []
    if isinstance(theirs, str):
        now = ours["standard"]
        found.append(
            Count(case=text, way="standard", to=other, status="skipped", reason=theirs, now=now)
        )
    else:
        before = theirs[text]["standard"]
        found.append(_compared(text, "standard", other, ours, before, 0, accepted))
    for way, to, n_call in (("full_state", "standard", 1), ("segmented", "parts", case.segments)):
        if way in ours:
            found.append(_compared(text, way, to, ours, ours[to], n_call * state))
    return found


def _compared(
    case: str,
    way: str,
    to: str,
    ours: Mapping[str, int],
    before: int,
    more: int,
    accepted: Accepted | None = None,
) -> Count:
    """Compare a way with a count, of which it may take `LIMIT` times, and some instructions.

    If it takes more, but not more than is accepted, it is `accepted`.
    """
    now, allowed = ours[way], LIMIT + more / before
    status, why = "ok" if now <= allowed * before else "regressed", ""
    if accepted and status == "regressed":
        allowed = accepted.times
        if now <= allowed * before:
            status, why = "accepted", f" ({accepted.why})"
    of = {"standard": "one call", "parts": "the same calls without a state"}.get(to, to)
    return Count(
        case=case,
        way=way,
        to=to,
        status=status,
        reason=(
            f"{now:,} instructions, {of} {before:,}: {now / before - 1:+.2%}, "
            f"{'accepted' if why else 'allowed'} {allowed - 1:+.2%}{why}"
        ),
        now=now,
        before=before,
        allowed=allowed,
    )


def _start() -> None:
    """Let callgrind follow from here on, which slows all down: Python's own start takes longest.

    On a machine for which there is no `_START` it has followed from the start.
    """
    code = _START.get(platform.machine())
    if code is None:
        return
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    request = (ctypes.c_uint64 * 6)(_START_INSTRUMENTATION)
    ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(address)(ctypes.addressof(request))


def _serve(module_path: str, *cases: str) -> None:
    """Compute each way of each case; print the names of the computations, in order."""
    from fa_harness.engine import ggml
    from fa_harness.speed.timing import compute_ways

    reply = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the library prints must not get into the reply
    library = ggml.load(Path(module_path))
    _start()
    names = [
        (case, way)
        for case in cases
        for way in compute_ways(library, Case.parse(case), times=_TIMES)
    ]
    json.dump(names, reply)
    reply.close()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
