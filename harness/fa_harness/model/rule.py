"""Where each token of a mixed KV cache is, and with which bytes: the rule, in Python.

It says what docs/mixed-cache.md promises under "Where a token is", and the series' header
`llama-kv-cache-mixed.h`. It shares no code with the cache, and knows nothing of the slots that
tokens have in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fa_harness.engine.ggml.llama import Setting, Token


@dataclass(slots=True)
class Cell:
    """A token in memory. Sequences of a stream may share it."""

    token: int
    pos: int
    seqs: set[int]
    is_hot: bool = True
    k: bytes | None = None  # rows of all layers, one after the other; None until they are seen
    v: bytes | None = None
    shift: int = 0
    """By how much its position was changed since K was turned last."""
    turned: tuple[bytes, bool, int] | None = None
    """K before it was turned, whether it was hot, and by how much; None once that is checked."""

    @property
    def key(self) -> tuple[int, tuple[int, ...]]:
        """What a cell is known by in its stream: no sequence has a position twice."""
        return self.pos, tuple(sorted(self.seqs))

    def copy(self, seqs: set[int] | None = None) -> Cell:
        """Return a cell that shares nothing that changes, with other sequences if they are given.

        `dataclasses.replace` would take half the time of a schedule.
        """
        return Cell(
            self.token, self.pos, set(self.seqs) if seqs is None else seqs, self.is_hot, self.k,
            self.v, self.shift, self.turned,
        )  # fmt: skip


Streams = list[list[Cell]]


def copied(streams: Streams) -> Streams:
    """Return a copy that shares nothing that changes."""
    return [[cell.copy() for cell in cells] for cells in streams]


class Rule:
    """A mixed KV cache as it has to be.

    `cool` returns K and V of a token in the types of the cold part from those of the hot one.
    """

    def __init__(self, setting: Setting, cool: Callable[[bytes, bytes], tuple[bytes, bytes]]):
        self.setting = setting
        self._cool = cool
        self.streams: Streams = [[] for _ in range(1 if setting.unified else setting.n_seq)]
        self.n_moved = 0
        self.is_shifted = False
        """Whether positions were shifted since K was turned last."""

    @property
    def room(self) -> int:
        """Tokens that the hot part of a stream has room for: the newest of each, and a batch."""
        set_ = self.setting
        n_seq = set_.n_seq if set_.unified else 1
        return min(set_.n_ctx, set_.n_hot * n_seq + set_.n_ubatch)

    def stream(self, seq: int) -> int:
        """Return the number of a sequence's stream."""
        return 0 if self.setting.unified else seq

    def of(self, seq: int) -> list[Cell]:
        """Return a sequence's tokens, the oldest first."""
        cells = (cell for cell in self.streams[self.stream(seq)] if seq in cell.seqs)
        return sorted(cells, key=lambda cell: cell.pos)

    def last(self, seq: int) -> int:
        """Return the greatest position of a sequence; -1 for none."""
        return max((cell.pos for cell in self.of(seq)), default=-1)

    def is_shared(self, seq: int) -> bool:
        """Tell whether another sequence has one of its tokens, too."""
        return any(len(cell.seqs) > 1 for cell in self.of(seq))

    # batches

    def decode(self, tokens: Sequence[Token], *, stops: bool = False) -> list[Streams] | None:
        """Add a batch. Return the states that it goes through, or None where it does not fit.

        With `stops` these are all states in which the batch can be aborted: that before it, and for
        each micro-batch that after tokens have moved and, but for the last one, that after it was
        stored. Else it is that before it.
        """
        before, n_moved = self.streams, self.n_moved
        self.streams = copied(before)
        states = [before]

        def keep() -> None:
            if stops:
                states.append(self.streams)
                self.streams = copied(self.streams)

        for i, ubatch in enumerate(self._ubatches(tokens)):
            if i:
                keep()
            if not self._make_room(ubatch):
                self.streams, self.n_moved = before, n_moved
                return None
            keep()
            for token in ubatch:
                cell = Cell(token.id, token.pos, set(token.seqs))
                self.streams[self.stream(token.seqs[0])].append(cell)
        return states

    def _ubatches(self, tokens: Sequence[Token]) -> Iterator[list[Token]]:
        """Split a batch as llama.cpp does.

        In one stream micro-batches are taken in order. Of several streams each has as many tokens
        of every sequence that has some left.
        """
        n = self.setting.n_ubatch
        if self.setting.unified:
            yield from (list(tokens[i : i + n]) for i in range(0, len(tokens), n))
            return
        left: dict[int, list[Token]] = {}
        for token in tokens:
            left.setdefault(token.seqs[0], []).append(token)
        while left:
            n_each = min(max(1, n // len(left)), *map(len, left.values()), n)
            yield [token for of in left.values() for token in of[:n_each]]
            left = {seq: of[n_each:] for seq, of in left.items() if len(of) > n_each}

    def _make_room(self, ubatch: Sequence[Token]) -> bool:
        """Move what has to leave the hot part; return whether the micro-batch fits at all."""
        for stream in sorted({self.stream(token.seqs[0]) for token in ubatch}):
            new = [token for token in ubatch if self.stream(token.seqs[0]) == stream]
            cells = self.streams[stream]
            if len(cells) + len(new) > self.setting.n_ctx:
                return False
            n_hot = sum(cell.is_hot for cell in cells)
            if n_hot + len(new) > self.room or any(
                self._is_full(seq, sum(seq in token.seqs for token in new))
                for seq in {seq for token in new for seq in token.seqs}
            ):
                self._move(stream, len(new))
        return True

    def _is_full(self, seq: int, n_new: int) -> bool:
        """Tell whether a sequence would have too many hot tokens of its own.

        Hot tokens that are older than a cold one are hot only since another sequence needs them.
        """
        cells = self.of(seq)
        newest_cold = max((cell.pos for cell in cells if not cell.is_hot), default=-1)
        n_hot = sum(cell.is_hot and cell.pos >= newest_cold for cell in cells)
        return n_hot + n_new > self.setting.n_hot + self.setting.n_ubatch

    def _move(self, stream: int, n_new: int) -> None:
        """Move all tokens that are not among the newest of any of their sequences.

        A restored sequence has as its own what it shared before. If with it not even the newest
        tokens fit, half as many of each sequence stay, and so on.
        """
        n_keep = self.setting.n_hot
        while len(newest := self._newest(stream, n_keep)) + n_new > self.room and n_keep:
            n_keep //= 2
        for cell in self.streams[stream]:
            if cell.is_hot and id(cell) not in newest:
                cell.is_hot = False
                self.n_moved += 1
                if cell.k is not None and cell.v is not None:
                    cell.k, cell.v = self._cool(cell.k, cell.v)
                elif cell.turned is not None and cell.v is not None:
                    _, cell.v = self._cool(cell.turned[0], cell.v)

    def _newest(self, stream: int, n: int) -> set[int]:
        """Return the ids of the hot cells that are among the `n` newest of some sequence."""
        return {
            id(cell)
            for seq in range(self.setting.n_seq)
            if self.stream(seq) == stream
            for cell in self.of(seq)[::-1][:n]
            if cell.is_hot
        }

    def settle(self) -> None:
        """Turn K of all tokens, if positions were shifted, as llama.cpp does before a batch."""
        if self.is_shifted:
            for cell in (cell for cells in self.streams for cell in cells):
                assert cell.k is not None
                cell.turned, cell.k, cell.shift = (cell.k, cell.is_hot, cell.shift), None, 0
        self.is_shifted = False

    # what else changes the memory

    def remove(self, seq: int, start: int, end: int) -> None:
        """Remove a sequence's tokens at the positions `start` to `end`."""
        for cell in self.of(seq):
            if start <= cell.pos < end:
                cell.seqs.discard(seq)
        self._sweep(seq)

    def copy(self, source: int, target: int, end: int) -> None:
        """Let a sequence without tokens have another's up to a position, too."""
        if self.setting.unified:
            for cell in self.of(source):
                if cell.pos < end:
                    cell.seqs.add(target)
        else:
            self.streams[target] = [cell.copy({target}) for cell in self.streams[source]]

    def keep(self, seq: int) -> None:
        """Remove the tokens that a sequence does not have, of its stream."""
        for cell in self.streams[self.stream(seq)]:
            cell.seqs &= {seq}
        self._sweep(seq)

    def shift(self, seq: int, start: int, by: int) -> None:
        """Add to the positions of a sequence's tokens from `start` on."""
        for cell in self.of(seq):
            if cell.pos >= start:
                cell.pos += by
                cell.shift += by
                self.is_shifted = True

    def saved(self, seq: int) -> list[Cell]:
        """Return what is saved of a sequence."""
        return [cell.copy() for cell in self.of(seq)]

    def load(self, seq: int, saved: Sequence[Cell]) -> bool:
        """Restore a sequence in place of its tokens; return whether there was room.

        It comes back to the parts that it was saved from. Hot tokens of others may have to leave.
        """
        self.remove(seq, 0, 2**31)
        cells = self.streams[self.stream(seq)]
        if len(cells) + len(saved) > self.setting.n_ctx:
            return False
        n_hot = sum(cell.is_hot for cell in cells)
        n_new = sum(cell.is_hot for cell in saved)
        if n_hot and n_hot + n_new > self.room:
            self._move(self.stream(seq), n_new)
        cells += [cell.copy({seq}) for cell in saved]
        return True

    def _sweep(self, seq: int) -> None:
        stream = self.stream(seq)
        self.streams[stream] = [cell for cell in self.streams[stream] if cell.seqs]
