"""ik_llama.cpp as a peer: built from its pinned source, loaded beside our libraries.

It ends the process for a type that it has no kernel for. So a child process tries each shape first.
"""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fa_harness import proc
from fa_harness.arrays import F32
from fa_harness.build.peer import build_peer
from fa_harness.case.case import Case
from fa_harness.engine.ggml.ik import Ik, IkCalls
from fa_harness.project import Project
from fa_harness.speed.cold import Cold, make_cold
from fa_harness.upstream.pins import load_pins

_TRIED = 512  # keys
_TIMEOUT = 120.0  # seconds


class IkPeer:
    """The flash attention of ik_llama.cpp."""

    name = "ik_llama.cpp"

    def __init__(self, project: Project) -> None:
        pin = load_pins(project.pins_file).peers[self.name]
        self.version = pin.version
        self._library = build_peer(project, pin)
        self._ik = Ik(self._library)

    def why_not(self, case: Case) -> str | None:
        """Return why it does not compute a case, or None."""
        return _why_not(self._library, case.with_(n_kv=_TRIED))

    @contextlib.contextmanager
    def way(self, cold: Cold) -> Iterator[_IkWay]:
        """Give its way to compute a case."""
        with self._ik.calls(cold.case, cold.q, cold.mask, cold.copies) as calls:
            yield _IkWay(calls)


@dataclass(frozen=True)
class _IkWay:
    calls: IkCalls

    @contextlib.contextmanager
    def ready(self) -> Iterator[Callable[[int], None]]:
        yield self.calls.compute

    def result(self) -> F32:
        return self.calls.out


@functools.cache
def _why_not(library: Path, case: Case) -> str | None:
    """Return why a child process did not compute a case, or None."""
    command = [sys.executable, "-m", __name__, str(library), str(case)]
    try:
        done = proc.ended(command, seconds=_TIMEOUT)
    except subprocess.TimeoutExpired:
        return f"no result after {_TIMEOUT:g} s"
    if done.returncode == 0:
        return None
    said = [line.strip("= ") for line in done.stderr.splitlines() if line.strip("= ")]
    # an abort says why first, an exception last
    why = said[0 if done.returncode < 0 else -1] if said else "it says nothing"
    return f"{proc.ending(done.returncode)}: {why}"


def _try(library: str, case: str) -> None:
    """Compute a case once."""
    cold = make_cold(Case.parse(case), n_copies=1)
    with Ik(Path(library)).calls(cold.case, cold.q, cold.mask, cold.copies) as calls:
        calls.compute(0)


if __name__ == "__main__":
    _try(*sys.argv[1:])
