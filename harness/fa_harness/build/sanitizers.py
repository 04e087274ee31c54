"""Libraries that check themselves while they run: how to build and start them, what they find."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_MOST_LINES = 8


@dataclass(frozen=True, kw_only=True)
class Sanitizer:
    """Those of the compiler's sanitizers that one library has.

    Attributes:
        check: what `-fsanitize=` calls them.
        preload: the compiler's libraries that must be loaded before all else, since the
            interpreter is not linked with them.
        settings: environment variables that a process with it runs under.
        fixed_addresses: it cannot live with the address space that the kernel may draw.
    """

    check: str
    preload: tuple[str, ...] = ()
    settings: Mapping[str, str]
    fixed_addresses: bool = False

    @property
    def options(self) -> dict[str, str]:
        """The CMake options of such a library.

        Flags, not ggml's own `GGML_SANITIZE_*`: those leave out what is not in ggml's folder, the
        bindings and upstream's test. Without `-DNDEBUG`, so that ggml's own `assert`s count, too.
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
        # it looks for what throws exceptions as soon as it is loaded, and never again
        preload=("libasan.so", "libstdc++.so"),
        settings={
            # the interpreter itself leaves memory to the end of the process
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
"""By the name of the library: the whole series, built with them."""


def started_with(name: str, preload: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return what goes before a command that loads a library, and into its environment.

    Args:
        name: The library's name.
        preload: Paths of what must be loaded before all else, as the library's record has them.
    """
    sanitizer = SANITIZERS.get(name)
    if sanitizer is None:
        return [], {}
    environment = dict(sanitizer.settings)
    if preload:
        environment["LD_PRELOAD"] = ":".join(preload)
    return [*(_setarch() if sanitizer.fixed_addresses else ())], environment


@functools.cache
def _setarch() -> tuple[str, ...]:
    """Return the command that turns the drawing of addresses off, empty where it may not."""
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
    """Return the essential lines of a sanitizer's report, empty where there is none.

    What was done, and of each stack the first function whose source line is known and is not the
    sanitizer's own. The same fault has the same words in another run.
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
    return [_lasting(line) for line in found[:_MOST_LINES]]


def _lasting(line: str) -> str:
    for changing, instead in _CHANGING:
        line = re.sub(changing, instead, line)
    return line.rstrip(" :")
