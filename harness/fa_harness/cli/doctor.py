"""`doctor`: whether this machine runs what a library was compiled to."""

from __future__ import annotations

from fa_harness.build.library import Library
from fa_harness.case.suites import suite
from fa_harness.engine.runner import Runner
from fa_harness.errors import SetupError


def try_library(library: Library) -> str | None:
    """Run a few small cases on a library; return why it died, or None."""
    try:
        with Runner(library.module_path) as runner:
            for verdict in runner.run(suite("smoke")[:8], modes=("standard",)):
                if verdict.status in ("crash", "timeout"):
                    return f"{verdict.status} in {verdict.case}: {verdict.reason}"
    except SetupError as error:
        return str(error)
    return None
