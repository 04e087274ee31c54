"""The tokens of each part of a mixed KV cache, read from what llama.cpp saves of it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from fa_harness.arrays import U8
from fa_harness.errors import FaHarnessError

_MAGIC = 0x6D697864


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A token as it was saved."""

    pos: int
    seqs: tuple[int, ...]
    k: bytes  # rows of all layers, one after the other
    v: bytes

    @property
    def key(self) -> tuple[int, tuple[int, ...]]:
        """What `Cell.key` is of the rule's."""
        return self.pos, self.seqs


@dataclass(frozen=True, kw_only=True)
class Part:
    """The hot or the cold tokens, or those of the layers with a sliding window."""

    streams: tuple[tuple[Saved, ...], ...]
    types: frozenset[tuple[int, int]]
    """ggml's numbers of the types of K and V, of every layer of every stream that has tokens."""


class _Reader:
    def __init__(self, raw: bytes) -> None:
        self.raw, self.at = raw, 0

    def take(self, form: str) -> int:
        (value,) = struct.unpack_from(f"<{form}", self.raw, self.at)
        self.at += struct.calcsize(form)
        return int(value)

    def rows(self, n: int, size: int) -> U8:
        found = np.frombuffer(self.raw, np.uint8, n * size, self.at)
        self.at += n * size
        return found.reshape(n, size)


def read_parts(state: bytes) -> list[Part]:
    """Return the hot part, the cold one, and that of the sliding window where there is one.

    `state` is that of all sequences.

    Raises:
        FaHarnessError: It is no such state.
    """
    reader = _Reader(state)
    try:
        reader.rows(1, reader.take("I"))  # the architecture
        if reader.take("I") != _MAGIC:
            raise FaHarnessError("llama.cpp's state is not that of a mixed KV cache")
        reader.take("I"), reader.take("I")  # numbers of tokens, 0 for all sequences
        parts = [_part(reader)]
        while reader.at < len(state):
            parts.append(_part(reader))
    except (struct.error, ValueError) as error:
        raise FaHarnessError(f"llama.cpp's state cannot be read: {error}") from error
    return parts


def _part(reader: _Reader) -> Part:
    streams: list[tuple[Saved, ...]] = []
    types: set[tuple[int, int]] = set()
    for _ in range(reader.take("I")):
        n = reader.take("I")
        if n == 0:
            streams.append(())
            continue
        keys = []
        for _ in range(n):
            pos, n_seq = reader.take("i"), reader.take("I")
            keys.append((pos, tuple(reader.take("i") for _ in range(n_seq))))
        if reader.take("I"):
            raise FaHarnessError("llama.cpp's state has a transposed V")
        n_layer = reader.take("I")
        found: list[tuple[U8, list[int]]] = []
        for _ in "kv":
            numbers, rows = [], []
            for _ in range(n_layer):
                numbers.append(reader.take("i"))
                rows.append(reader.rows(n, reader.take("Q")))
            found.append((np.concatenate(rows, axis=1), numbers))
        (k, k_types), (v, v_types) = found
        types.update(zip(k_types, v_types, strict=True))
        streams.append(
            tuple(
                Saved(pos=pos, seqs=seqs, k=k[i].tobytes(), v=v[i].tobytes())
                for i, (pos, seqs) in enumerate(keys)
            )
        )
    return Part(streams=tuple(streams), types=frozenset(types))
