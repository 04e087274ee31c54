"""Guards: bytes of a known pattern around all that a library may write to.

Tensors lie in one block of memory, with a guard before the first and behind each, and so does the
work memory of a graph. What a library writes to a guard is found afterwards, with its place. Each
guard is NaN in every type, so that what is read there shows, too. AddressSanitizer, where it is in
the process, is told of the guards, and stops at the first byte that is read or written there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fa_harness.arrays import U8

_ALIGNMENT = 64
"""Parts begin at multiples of it."""
_WIDTH = 512
"""Bytes of a guard at least: a row of most tensors, or more than one."""
_PATTERN = b"\xfd\xff\xfe\xff" * ((_WIDTH + 2 * _ALIGNMENT) // 4)
"""Both halves, and the whole, are NaN as F16, BF16, F32 and as the scale of a block. Unused cells
are filled with 0xFF: what is copied from there shows in a guard, too."""

_POISON, _UNPOISON = (  # None without AddressSanitizer
    getattr(ctypes.CDLL(None), f"__asan_{name}_memory_region", None)
    for name in ("poison", "unpoison")
)


class Written(NamedTuple):
    """Bytes of a guard that were written to."""

    part: int
    """The index of the part that they are nearest to."""
    where: str
    """They lie `behind` it or `before` it."""
    first: int
    """The first of them, counted from the part's first byte."""
    last: int


class Guarded:
    """Memory for parts, one behind another, with guards around them."""

    def __init__(self, sizes: Sequence[int]) -> None:
        """Take memory for parts of some bytes. It holds what `malloc` gives, but for the guards.

        Raises:
            MemoryError: There is too little.
        """
        offsets, self._guards, end = [], [(0, _WIDTH)], _WIDTH
        for size in sizes:
            offsets.append(end)
            start = end + size
            end = -(-(start + _WIDTH) // _ALIGNMENT) * _ALIGNMENT
            self._guards.append((start, end))
        memory = np.empty(end + _ALIGNMENT, np.uint8)
        first = -memory.ctypes.data % _ALIGNMENT
        self._memory: U8 = memory[first : first + end]
        self.size = end
        self.address = memory.ctypes.data + first
        self.addresses = [self.address + offset for offset in offsets]
        """Where each part begins."""
        self.set()

    def set(self) -> None:
        """Set the guards."""
        data = self._memory.data
        for start, end in self._guards:
            data[start:end] = _pattern(start, end)
        self._tell_sanitizer(_POISON)

    def lift(self) -> list[Written]:
        """Return what was written to the guards; they are no longer forbidden until set again."""
        self._tell_sanitizer(_UNPOISON)
        data = self._memory.data
        return [
            self._written(i, start, end)
            for i, (start, end) in enumerate(self._guards)
            if data[start:end].tobytes() != _pattern(start, end)  # faster than a view compares
        ]

    def _written(self, i: int, start: int, end: int) -> Written:
        """Return what was written to the guard before part `i`, which is behind the one before."""
        expected = np.frombuffer(_pattern(start, end), np.uint8)
        changed = start + np.flatnonzero(self._memory[start:end] != expected)
        is_behind = i == len(self.addresses) or (i > 0 and changed[0] < (start + end) // 2)
        part, where = (i - 1, "behind") if is_behind else (i, "before")
        first, last = changed[[0, -1]] - (self.addresses[part] - self.address)
        return Written(part, where, int(first), int(last))

    def _tell_sanitizer(self, function: Any) -> None:
        if function is not None:
            for start, end in self._guards:
                address = ctypes.c_void_p(self.address + start)
                function(address, ctypes.c_size_t(end - start))


def _pattern(start: int, end: int) -> bytes:
    return _PATTERN[start % 4 : start % 4 + end - start]
