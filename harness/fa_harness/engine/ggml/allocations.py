"""Counts how often a library's code asks for memory, by way of the library's own import table.

Each shared object calls `malloc` and its like through pointers that the dynamic linker has filled
in. While counting, those of one library point to a counter that passes each call on. Linux on
x86-64 and AArch64, whose tables hold 64-bit `Elf64_Rela` entries.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ALLOCATORS = {
    *("malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc", "memalign"),
    *("mmap", "mmap64"),
    *("_Znwm", "_Znam"),  # operator new and new[], then those that do not throw, and the aligned
    *("_ZnwmRKSt9nothrow_t", "_ZnamRKSt9nothrow_t", "_ZnwmSt11align_val_t", "_ZnamSt11align_val_t"),
}
_SLOTS = {"x86_64": (6, 7), "aarch64": (1025, 1026)}  # relocations: GLOB_DAT, JUMP_SLOT
_DT_NULL, _DT_STRTAB, _DT_SYMTAB = 0, 5, 6
_DT_RELA, _DT_RELASZ, _DT_JMPREL, _DT_PLTRELSZ = 7, 8, 23, 2
_PT_DYNAMIC = 2
_HEADER = struct.Struct("<IIQQQQQQ")  # Elf64_Phdr
_DYNAMIC = struct.Struct("<qQ")  # Elf64_Dyn
_RELOCATION = struct.Struct("<QQq")  # Elf64_Rela
_SYMBOL_SIZE = 24  # Elf64_Sym, which begins with the place of its name

# Whatever the function takes, it is passed in at most six registers, and so is what it returns.
_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_void_p, *[ctypes.c_void_p] * 6)


@contextmanager
def counted(folder: Path) -> Iterator[Callable[[], int | None]]:
    """Count the calls of allocating functions by the loaded shared objects of a folder.

    They need not lie there any more: the process still holds them. The function that is given
    returns the calls so far, of all threads. It returns None if no object of the folder calls an
    allocating function: one that is not found would look like one that asks for nothing.
    """
    calls: list[str] = []
    kept: list[tuple[ctypes.c_void_p, int | None, Any]] = []  # a counter must live while it is used
    is_known = sys.platform == "linux" and platform.machine() in _SLOTS
    for loaded in _loaded(folder) if is_known else []:
        library = ctypes.CDLL(loaded.name, os.RTLD_NOLOAD | os.RTLD_LAZY)
        for name, address in _imports(loaded):
            counter = _counter(name, _FUNCTION((name, library)), calls)
            pointer = ctypes.c_void_p.from_address(address)
            _make_writable(address)
            kept.append((pointer, pointer.value, counter))
            pointer.value = ctypes.cast(counter, ctypes.c_void_p).value
    try:
        yield lambda: len(calls) if kept else None
    finally:
        for pointer, value, _ in kept:
            pointer.value = value


def _counter(name: str, function: Callable[..., int | None], calls: list[str]) -> Any:
    def count(*arguments: int | None) -> int | None:
        calls.append(name)
        return function(*arguments)

    return _FUNCTION(count)


class _Info(ctypes.Structure):
    """The beginning of `struct dl_phdr_info`: what the dynamic linker knows of an object."""

    _fields_ = (
        ("base", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
        ("headers", ctypes.c_void_p),
        ("n_headers", ctypes.c_uint16),
    )


_VISITOR = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Info), ctypes.c_size_t, ctypes.c_void_p)


@dataclass(frozen=True)
class _Loaded:
    """A shared object in this process.

    The dynamic linker finds it by its `name`, wherever its file is now. Its addresses count from
    `base`; `dynamic` is the address of its table of tables.
    """

    name: str
    base: int
    dynamic: int


def _loaded(folder: Path) -> list[_Loaded]:
    """Return the shared objects of a library that was loaded from a folder."""
    found = []

    def add(info: Any, size: int, data: int | None) -> int:
        object_ = info.contents
        name = os.fsdecode(object_.name)
        path = Path(os.path.realpath(name))
        if path.parent == folder and path.name.startswith("libggml"):
            headers = ctypes.string_at(object_.headers, _HEADER.size * object_.n_headers)
            [dynamic] = [
                at for kind, _, _, at, *_ in _HEADER.iter_unpack(headers) if kind == _PT_DYNAMIC
            ]
            found.append(_Loaded(name, object_.base, object_.base + dynamic))
        return 0

    ctypes.CDLL(None).dl_iterate_phdr(_VISITOR(add), None)
    return found


def _imports(loaded: _Loaded) -> Iterator[tuple[str, int]]:
    """Yield the allocating functions that a shared object calls: name, address of the pointer."""
    tables: dict[int, int] = {}
    at = loaded.dynamic
    while (entry := _DYNAMIC.unpack(ctypes.string_at(at, _DYNAMIC.size)))[0] != _DT_NULL:
        tables.setdefault(*entry)
        at += _DYNAMIC.size

    def address(of: int) -> int:
        """Where a table is: some linkers have added the base already, some have not."""
        return tables[of] if tables[of] >= loaded.base else loaded.base + tables[of]

    symbols, strings = address(_DT_SYMTAB), address(_DT_STRTAB)
    for table, table_size in ((_DT_RELA, _DT_RELASZ), (_DT_JMPREL, _DT_PLTRELSZ)):
        if table not in tables:
            continue
        relocations = ctypes.string_at(address(table), tables[table_size])
        for offset, info, _ in _RELOCATION.iter_unpack(relocations):
            if info & 0xFFFFFFFF in _SLOTS[platform.machine()]:
                symbol = ctypes.string_at(symbols + _SYMBOL_SIZE * (info >> 32), 4)
                name_at = int.from_bytes(symbol, sys.byteorder)
                name = ctypes.string_at(strings + name_at).decode()
                if name in _ALLOCATORS:
                    yield name, loaded.base + offset


def _make_writable(address: int) -> None:
    """Lift the write protection that the linker puts on a table it has filled in."""
    page = address - address % mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(page), mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE):
        raise OSError(ctypes.get_errno(), "mprotect")
