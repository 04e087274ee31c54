"""Whether a scheduler refuses a state in the memory of a backend that cannot compute the op.

ggml refuses by ending the process, so this is one of its own:

    python -m fa_harness.engine.ggml.refusal MODULE ENDPOINT [MUTANT]

It ends with status 0 where the graph was not refused.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from fa_harness.engine.ggml.loaded import Ggml, load
from fa_harness.engine.ggml.remote import Remote, Scheduler

_SECONDS = 60.0


def is_refused(module_path: Path, endpoint: str, mutant: str | None) -> bool:
    """Try a graph with the server at an endpoint, `HOST:PORT`, and a mutant of the library."""
    command = [sys.executable, "-m", __name__, str(module_path), endpoint]
    done = subprocess.run(
        [*command, *([mutant] if mutant else [])],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        timeout=_SECONDS, check=False, env={**os.environ, "GGML_NO_BACKTRACE": "1"},
    )  # fmt: skip
    return done.returncode < 0 and b"the state (" in done.stderr


def _compute(ggml: Ggml, endpoint: str) -> None:
    """Compute a call on the CPU with a state in the server's memory."""
    with (
        ggml.context() as ctx,
        ggml.context() as calls,
        Remote(ggml, endpoint) as remote,
        ggml.backend(1) as cpu,
        Scheduler(ggml, [remote, cpu]) as scheduler,
    ):
        q, k, v, state = (ctx.tensor("f32", (n, 1, 1, 1)) for n in (4, 4, 4, 6))
        remote.allocate(ctx)
        call = calls.flash_attn_ext(q, k, v, None, scale=1.0, state=state)
        scheduler.compute(calls.graph([call]), [call])


if __name__ == "__main__":
    module, server, *mutants = sys.argv[1:]
    library = load(Path(module))
    library.set_mutant(mutants[0] if mutants else None)
    _compute(library, server)
