"""The counters of a library that is compiled for gcov."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path


def writer(module_path: Path) -> Callable[[], None]:
    """Return a function that adds what a loaded library has counted since then to files.

    A further call adds what was counted since the last one. The files are below the folder
    GCOV_PREFIX. Other processes may add to them at the same time: gcov's runtime locks each. With
    a library that does not count, the function does nothing.
    """
    # the runtime is in this library, on which the others depend, and it knows the others' counters
    base = next(module_path.parent.glob("libggml-base*"), None)
    if base is None or not hasattr(loaded := ctypes.CDLL(str(base)), "__gcov_dump"):
        return lambda: None
    dump, reset = (getattr(loaded, name) for name in ("__gcov_dump", "__gcov_reset"))
    reset()  # what was computed to know the library is no case

    def write() -> None:
        dump()
        reset()  # else the next call would write nothing

    return write
