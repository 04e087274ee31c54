"""Libraries that check themselves while they run: how to build, start and read them."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fa_harness.build.library import load

_MOST_LINES = 8


@dataclass(frozen=True, kw_only=True)
class Sanitizer:
    """The compiler's sanitizers that one library has."""

    check: str  # their names for `-fsanitize=`
    preload: tuple[str, ...] = ()  # to be loaded before all else: the interpreter has not got them
    settings: Mapping[str, str]  # environment variables of a process that loads the library
    fixed_addresses: bool = False  # whether addresses that the kernel draws at random break it

    @property
    def options(self) -> dict[str, str]:
        """The CMake options of such a library.

        Flags, not ggml's own `GGML_SANITIZE_*`: those leave out the bindings and upstream's test,
        which are not in ggml's folder. Without `-DNDEBUG`, so that ggml's `assert`s count, too.
        """
        flags = f"-O1 -g1 -fno-omit-frame-pointer -fsanitize={self.check} -fno-sanitize-recover=all"
        return {
            "CMAKE_BUILD_TYPE": "RelWithDebInfo",
            "CMAKE_C_FLAGS_RELWITHDEBINFO": flags,
            "CMAKE_CXX_FLAGS_RELWITHDEBINFO": flags,
        }


SANITIZERS: dict[str, Sanitizer] = {
    "asan-ubsan": Sanitizer(
        check="address,undefined",
        # it looks for the functions that throw exceptions once, when it is loaded
        preload=("libasan.so", "libstdc++.so"),
        settings={
            # the interpreter itself frees memory only at the end of the process
            "ASAN_OPTIONS": "abort_on_error=1:detect_leaks=0",
            "UBSAN_OPTIONS": "abort_on_error=1:halt_on_error=1:print_stacktrace=1",
        },
    ),
    "tsan": Sanitizer(
        check="thread",
        preload=("libtsan.so",),
        settings={"TSAN_OPTIONS": "abort_on_error=1:halt_on_error=1"},
        fixed_addresses=True,
    ),
}
"""By the part of a library's name: the whole stack, built with them."""


def started_with(module_path: Path) -> tuple[list[str], dict[str, str]]:
    """Return the words before a command that loads a library's module, and its environment."""
    try:
        library = load(module_path.parent)
    except FileNotFoundError:
        return [], {}  # no build has made this module
    sanitizer = SANITIZERS.get(library.part)
    if sanitizer is None:
        return [], {}
    environment = dict(sanitizer.settings)
    if library.preload:
        environment["LD_PRELOAD"] = ":".join(library.preload)
    return list(_setarch() if sanitizer.fixed_addresses else ()), environment


@functools.cache
def _setarch() -> tuple[str, ...]:
    """Return the command that turns random addresses off, if it is there and may do so."""
    command = ("setarch", "-R")
    if shutil.which(command[0]) is None:
        return ()
    tried = subprocess.run([*command, "true"], capture_output=True, check=False)
    return command if tried.returncode == 0 else ()


_HEAD = re.compile(r"(?:ERROR|WARNING|FATAL): (\w+Sanitizer: .*)|:\d+:\d+: runtime error: (.*)")
_ACCESS = re.compile(r"(?i)\s*(?:previous )?(?:atomic )?(?:read|write) of size .*")
_PLACE = re.compile(r"0x[0-9a-f]+ is located .*")
_FRAME = re.compile(r"\s+#\d+ (?:0x[0-9a-f]+ in )?(\S.*?) ((?!\S*libsanitizer/)\S+:\d+)\b")
_CHANGING = (  # from run to run
    (r"0x[0-9a-f]+ is located", "it is located"),
    (r" \(pid=\d+\)| at pc 0x.*|(?: at| on address)? 0x[0-9a-f]+| \[0x[0-9a-f]+,0x[0-9a-f]+\)", ""),
    (r" (?:by )?thread T\d+", " by a thread"),
)


def finding(lines: Sequence[str]) -> list[str]:
    """Return the essential lines of a sanitizer's report, if there is one.

    They say what was done and, for each stack, name the first function whose source line is known
    and is not the sanitizer's own. The same fault has the same words in another run.
    """
    heads = [(i, head) for i, line in enumerate(lines) if (head := _HEAD.search(line))]
    if not heads:
        return []
    start, head = heads[0]
    found = [head[1] or f"UndefinedBehaviorSanitizer: {head[2]}"]
    wants_frame = True
    for line in lines[start + 1 :]:
        frame = _FRAME.match(line)
        if frame and wants_frame:
            found.append(f"  in {frame[1]} at {frame[2]}")
            wants_frame = False
        elif _ACCESS.match(line) or _PLACE.match(line):
            found.append(line.strip())
            wants_frame = True
    text = "\n".join(found[:_MOST_LINES])
    for changing, instead in _CHANGING:
        text = re.sub(changing, instead, text)
    return [line.rstrip(" :") for line in text.splitlines()]
