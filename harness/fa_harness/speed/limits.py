"""What the machine can do at most, timed like everything else: reading memory, and multiply-adds.

Both come from a few lines of C (`native/limits.c`), which the user's compiler builds for this CPU
when they are first needed.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from fa_harness import proc
from fa_harness.arrays import U8
from fa_harness.build import toolchain
from fa_harness.build.builder import NATIVE
from fa_harness.engine.layout import aligned
from fa_harness.machine import cpu_features
from fa_harness.project import Project, locked, writing

_SOURCE = NATIVE / "limits.c"
_FLAGS = ("-O3", "-ffp-contract=fast", "-shared", "-fPIC")
_FOR_THIS_CPU = ("-march=native", "-mcpu=native")  # compilers know one of them at least
_TURNS = 1 << 22  # about 10 ms
_BLOCK = 512  # bytes; the C function reads whole ones


class Limits:
    """Reads memory and multiplies on some threads; a thread takes a part of its own."""

    def __init__(self, library: Path, n_bytes: int) -> None:
        """Load the built library, and take `n_bytes` of memory, more than caches hold."""
        self._lib = ctypes.CDLL(str(library))
        self._lib.read_memory.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._lib.multiply_add.argtypes = [ctypes.c_size_t, ctypes.c_float]
        self._lib.multiply_add.restype = ctypes.c_uint64
        self._memory: U8 = aligned(np.ones(n_bytes, np.uint8))

    @contextlib.contextmanager
    def reading(self, n_threads: int) -> Iterator[Callable[[], int]]:
        """Give a function that reads memory once and returns the bytes that it read."""
        size = self._memory.nbytes // n_threads // _BLOCK * _BLOCK
        start = self._memory.ctypes.data

        def read(thread: int) -> int:
            self._lib.read_memory(start + thread * size, size)
            return size

        with ThreadPoolExecutor(n_threads) as threads:
            yield partial(_total, threads, read, n_threads)

    @contextlib.contextmanager
    def multiplying(self, n_threads: int) -> Iterator[Callable[[], int]]:
        """Give a function that computes for some ms and returns the operations, two a step."""

        def multiply(_thread: int) -> int:
            return 2 * int(self._lib.multiply_add(_TURNS, 0.5))

        with ThreadPoolExecutor(n_threads) as threads:
            yield partial(_total, threads, multiply, n_threads)


def _total(threads: ThreadPoolExecutor, part: Callable[[int], int], n: int) -> int:
    return sum(threads.map(part, range(n)))


def build_limits(project: Project) -> Path:
    """Return the library of `native/limits.c`, compiled for this CPU; it takes a second once."""
    compiler = toolchain.find_c_compiler()
    parts = [_SOURCE.read_text("utf-8"), compiler.version, *_FLAGS, *cpu_features()]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    folder = project.build / "limits"
    library = folder / f"{digest}.so"
    with locked(project, "limits"):
        if not library.is_file():
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
            new = folder / f".{digest}.so"
            _compile(compiler, new)
            with writing(library):
                new.replace(library)
    return library


def _compile(compiler: toolchain.Tool, target: Path) -> None:
    *others, last = _FOR_THIS_CPU
    command: list[str | Path] = [*compiler.command, *_FLAGS, "-o", target, _SOURCE]
    for flag in others:
        with contextlib.suppress(proc.ProgramError):
            proc.run([*command, flag])
            return
    proc.run([*command, last])
