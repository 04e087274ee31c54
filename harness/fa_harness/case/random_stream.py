"""Random numbers that are the same on every machine and with every NumPy.

Every number comes from the raw integers of a Philox generator, whose stream NumPy promises never to
change, through elementwise operations that IEEE 754 rounds in one way only. Functions such as
`exp`, and sums over an axis, would not give that.
"""

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from fa_harness.arrays import F32, Ints

Shape = tuple[int, ...]


class Stream:
    """Random arrays by name. A name's numbers depend on the regime, the seed and the size alone."""

    _CHUNK = 1 << 18  # keeps the raw integers in the cache and their memory small

    def __init__(self, regime: str, seed: int) -> None:
        self._key = f"{regime}/{seed}"
        self._generator = np.random.Philox(key=0)
        self._state = self._generator.state

    def words(self, name: str, shape: Shape) -> NDArray[np.uint64]:
        """Raw 64-bit integers."""
        return self._philox(name).random_raw(math.prod(shape)).reshape(shape)

    def halves(self, name: str, shape: Shape) -> NDArray[np.uint16]:
        """Raw 16-bit integers."""
        n = math.prod(shape)
        raw = self._philox(name).random_raw((n + 3) // 4).astype("<u8", copy=False)
        return raw.view("<u2")[:n].reshape(shape)

    def below(self, name: str, limit: int, shape: Shape) -> Ints:
        """Integers in [0, limit), for limits far below 2^32."""
        upper = self.words(name, shape) >> np.uint64(32)
        scaled: NDArray[np.uint64] = upper * np.uint64(limit) >> np.uint64(32)
        return scaled.astype(np.int64)

    def signs(self, name: str, shape: Shape) -> F32:
        """-1 or +1."""
        return (self.below(name, 2, shape) * 2 - 1).astype(np.float32)

    def uniform(self, name: str, shape: Shape) -> F32:
        """Multiples of 2^-23 in [-1, 1)."""
        philox = self._philox(name)
        values = np.empty(math.prod(shape), dtype=np.float32)
        for start in range(0, values.size, self._CHUNK):
            part = values[start : start + self._CHUNK]
            raw = philox.random_raw((part.size + 1) // 2).astype("<u8", copy=False)
            part[:] = raw.view("<u4")[: part.size] >> np.uint32(8)
            part *= np.float32(2.0**-23)
            part -= np.float32(1)
        return values.reshape(shape)

    def normal(self, name: str, shape: Shape) -> F32:
        """Mean 0, standard deviation 1, within 3.47: the sum of four uniform numbers."""
        philox = self._philox(name)
        values = np.empty(math.prod(shape), dtype=np.float32)
        to_unit, two_quarters = np.float32(math.sqrt(3) / 2**16), np.uint64(0x0000_FFFF_0000_FFFF)
        for start in range(0, values.size, self._CHUNK):
            part = values[start : start + self._CHUNK]
            raw = philox.random_raw(part.size)
            halves = raw & two_quarters  # four quarters are added in pairs
            halves += raw >> np.uint64(16) & two_quarters
            halves += halves >> np.uint64(32)
            part[:] = halves.astype(np.uint32)
            part -= np.float32(131070)
            part *= to_unit
        return values.reshape(shape)

    def heavy_tailed(self, name: str, max_exponent: int, shape: Shape) -> F32:
        """2^e, where e is at least n with probability 2^-n and at most `max_exponent`."""
        raw = self.halves(name, shape)
        exponent = np.zeros(shape, dtype=np.int32)
        for n in range(1, max_exponent + 1):
            exponent += raw < 2 ** (16 - n)
        return np.ldexp(np.ones(shape, dtype=np.float32), exponent)

    def _philox(self, name: str) -> np.random.Philox:
        """Return the generator at the start of a name's numbers, of use until the next name's.

        One that is made anew asks the system for random bytes first, for nothing.
        """
        digest = hashlib.sha256(f"{self._key}/{name}".encode()).digest()
        self._state["state"]["key"] = np.frombuffer(digest, "<u8", count=2)
        self._generator.state = self._state
        return self._generator
