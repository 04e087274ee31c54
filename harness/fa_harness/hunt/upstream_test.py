"""Upstream's own test of attention, run with a fault.

The program gets the fault through the environment. It compares the CPU backend with the same
library's reference, which is the vec path, so a fault there is on both sides.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from fa_harness import proc
from fa_harness.errors import SetupError

_FROM_ENVIRONMENT = "GGML_FA_MUTANT"
_CALL = ("test", "-b", "CPU", "-o", "FLASH_ATTN_EXT")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_IDLE_SECONDS = 120.0
"""Without a line the program hangs: the output of dozens of cases takes seconds."""


class _FailedError(Exception):
    """A line of the test failed."""


def sees(program: Path, fault: str) -> str:
    """Return the first line that fails with a fault; empty where none does.

    The test ends at that line. A line during which the program ended, or hung, counts as failed.

    Args:
        program: `test-backend-ops`, built from a library that has the fault.
        fault: The id of the fault.

    Raises:
        SetupError: The test did not run.
    """
    last = ""

    def note(line: str) -> None:
        nonlocal last
        if found := re.search(r"(FLASH_ATTN_EXT\(.*?\)): *(\w+)", _ANSI.sub("", line)):
            last = found[1]
            if found[2] == "FAIL":
                raise _FailedError

    environment = {**os.environ, _FROM_ENVIRONMENT: fault}
    try:
        proc.run([program, *_CALL], env=environment, on_line=note, idle_seconds=_IDLE_SECONDS)
    except _FailedError:
        return last
    except proc.ProgramError as error:
        if not last and error.status >= 0:
            raise SetupError(f"{error}\nupstream's test did not run") from error
        # the output of a program that ends is whole, but for the line that it was at
        return f"after {last}" if last else "the first line"
    if not last:
        raise SetupError(f"{program}: it has no test FLASH_ATTN_EXT; choose another upstream")
    return ""
