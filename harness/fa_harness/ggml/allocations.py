"""Counts how often a library's code asks for memory, by way of the library's own import table.

Each shared object calls `malloc` and its like through pointers that the dynamic linker has filled
in. While counting, those of one library point to a counter that passes each call on. Linux on
x86-64 and AArch64, whose tables hold 64-bit `Elf64_Rela` entries.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_ALLOCATORS = {
    *("malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc", "memalign"),
    *("mmap", "mmap64"),
    *("_Znwm", "_Znam"),  # operator new and new[], then those that do not throw, and the aligned
    *("_ZnwmRKSt9nothrow_t", "_ZnamRKSt9nothrow_t", "_ZnwmSt11align_val_t", "_ZnamSt11align_val_t"),
}
_SLOTS = {"x86_64": (6, 7), "aarch64": (1025, 1026)}  # relocations: GLOB_DAT, JUMP_SLOT
_DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_RELASZ, _DT_JMPREL, _DT_PLTRELSZ = 5, 6, 7, 8, 23, 2
_PT_LOAD, _PT_DYNAMIC = 1, 2

# Whatever the function takes, it is passed in at most six registers, and so is what it returns.
_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_void_p, *[ctypes.c_void_p] * 6)


def can_count() -> bool:
    """Whether calls can be counted on this system."""
    return sys.platform == "linux" and platform.machine() in _SLOTS


@contextmanager
def counted(folder: Path) -> Iterator[Callable[[], int]]:
    """Count the calls of allocating functions by the loaded shared objects of a folder.

    Yields:
        A function that returns the calls so far, of all threads.
    """
    calls: list[str] = []
    kept: list[tuple[ctypes.c_void_p, int | None, Any]] = []  # a counter must live while it is used
    for path, base in _loaded(folder):
        library = ctypes.CDLL(str(path))
        for name, offset in _imports(path.read_bytes()):
            counter = _counter(name, _FUNCTION((name, library)), calls)
            pointer = ctypes.c_void_p.from_address(base + offset)
            _make_writable(base + offset)
            kept.append((pointer, pointer.value, counter))
            pointer.value = ctypes.cast(counter, ctypes.c_void_p).value
    try:
        yield lambda: len(calls)
    finally:
        for pointer, value, _ in kept:
            pointer.value = value


def _counter(name: str, function: Callable[..., int | None], calls: list[str]) -> Any:
    def count(*arguments: int | None) -> int | None:
        calls.append(name)
        return function(*arguments)

    return _FUNCTION(count)


def _loaded(folder: Path) -> list[tuple[Path, int]]:
    """Return the shared objects of a folder in this process, and where each begins."""
    begins: dict[Path, int] = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        path = Path(fields[5]) if len(fields) == 6 else Path()
        if path.parent == folder and path.name.startswith("libggml"):
            begins.setdefault(path, int(fields[0].partition("-")[0], 16))
    return list(begins.items())


def _imports(elf: bytes) -> Iterator[tuple[str, int]]:
    """Yield the allocating functions that a shared object calls: name, offset of the pointer."""
    segments_at, _, _, _, size, count = struct.unpack_from("<QQIHHH", elf, 32)
    segments = [struct.unpack_from("<IIQQQQ", elf, segments_at + i * size) for i in range(count)]
    loads = [
        (address, at, length) for kind, _, at, address, _, length in segments if kind == _PT_LOAD
    ]

    def in_file(address: int) -> int:
        [(start, at)] = [(start, at) for start, at, n in loads if start <= address < start + n]
        return int(at + address - start)

    [(start, length)] = [(s[2], s[5]) for s in segments if s[0] == _PT_DYNAMIC]
    dynamic = dict(struct.iter_unpack("<qQ", elf[start : start + length]))
    symbols, strings = in_file(dynamic[_DT_SYMTAB]), in_file(dynamic[_DT_STRTAB])
    for table, table_size in ((_DT_RELA, _DT_RELASZ), (_DT_JMPREL, _DT_PLTRELSZ)):
        if table not in dynamic:
            continue
        start = in_file(dynamic[table])
        for offset, info, _ in struct.iter_unpack("<QQq", elf[start : start + dynamic[table_size]]):
            if info & 0xFFFFFFFF in _SLOTS[platform.machine()]:
                (name_at,) = struct.unpack_from("<I", elf, symbols + 24 * (info >> 32))
                name = elf[strings + name_at : elf.index(b"\0", strings + name_at)].decode()
                if name in _ALLOCATORS:
                    yield name, offset


def _make_writable(address: int) -> None:
    """Lift the write protection that the linker puts on a table it has filled in."""
    page = address - address % mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(page), mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE):
        raise OSError(ctypes.get_errno(), "mprotect")
