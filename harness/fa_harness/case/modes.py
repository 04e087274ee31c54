"""The modes in which a case is computed, and what each leaves behind.

All arrays of rows are `[ne3, n_head, n_batch, ...]`, the order of the state contract.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import Generic, TypedDict, TypeVar

import numpy as np

from fa_harness.arrays import F32
from fa_harness.case.case import Case
from fa_harness.case.rolling import Held

T = TypeVar("T")

_FEW_ELEMENTS = 1 << 14
"""Of K and V: so many go to another backend and back in a few milliseconds."""

MOST_PARTS = 9
"""States of a case that one reduction takes, beside a fresh one (`GGML_MAX_SRC` is 10)."""

MODES = (
    "standard", "full_state", "segmented", "merged", "reduced", "resumed", "scheduled", "mixed",
    "fifo", "preset",
)  # fmt: skip
"""In the order in which they are computed; `standard` always is."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Left:
    """What a call with a state leaves behind."""

    output: F32
    """`[ne3, n_head, n_batch, hsv]`."""
    state: F32
    """`[ne3, n_head, n_batch, 2 + hsv]`, rows `[M, S, VKQ]`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Preset(Left):
    """What a call leaves behind that continues a state set by hand."""

    alone: F32 | None
    """The result of that state itself, shaped as `output`; None where the library gives none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Standard:
    """One `ggml_flash_attn_ext`; each output is `[ne3, n_head, n_batch, hsv]`."""

    output: F32
    again: F32
    """The same graph computed once more."""
    reference: F32 | None = None
    """The call on the vec path, where the chain takes another than `output`."""

    @property
    def runs(self) -> list[F32]:
        """The call on its own path and, where there is one, on the vec path."""
        return [self.output] if self.reference is None else [self.output, self.reference]


@dataclass(frozen=True, kw_only=True, eq=False)
class Chain:
    """A call for each segment, in turn, on one state."""

    calls: tuple[Left, ...]
    """A graph for each call."""
    one_graph: tuple[tuple[F32, ...], F32]
    """The same chain once more, as one graph: the output of each call, and the last state."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Merged:
    """A call for each segment, each on a state of its own, and the states merged to one.

    Of a reduction there is its last state, and the result from it.
    """

    order: tuple[int, ...]
    """The segments in the order in which their calls were computed."""
    parts: tuple[Left, ...]
    """Each segment alone, in the order of the segments."""
    parts_after: tuple[F32, ...]
    """The states of the parts after all merges."""
    in_turn: Left
    """((0 + 1) + 2) + ..."""
    in_turn_again: Left
    """Parts, merges and result in one graph."""
    swapped: Left
    """... + (2 + (1 + 0))"""
    pairwise: Left
    """((0 + 1) + (2 + 3)) + ..."""
    shuffled: Left
    """In turn, in the order `order`."""
    with_fresh: tuple[F32, F32]
    """The state of `in_turn` merged with a fresh state, and a fresh state with it."""
    fresh: Left
    """Two fresh states."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reduced:
    """A state for each segment, and results of all of them at once."""

    order: tuple[int, ...]
    """The states as `shuffled` takes them, and in which they were computed."""
    parts: tuple[Left, ...]
    """Each segment alone."""
    parts_after: tuple[F32, ...]
    """The states of the parts once they were reduced."""
    in_turn: F32
    """The states in the order of the segments; outputs are `[ne3, n_head, n_batch, hsv]`."""
    reversed: F32
    """From the last to the first."""
    shuffled: F32
    """In the order `order`."""
    again: F32
    """In turn, in one graph with the parts, of which every other one continues nothing."""
    with_fresh: tuple[F32, F32]
    """In turn, with as many fresh states as a reduction takes before them and behind them."""
    with_top: tuple[F32, F32]
    """In turn, with a state of `top_rows` before them and behind them."""
    fresh: F32
    """A fresh state alone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rolled:
    """A simulation of a rolling cache. In the arrays, row t of `n_batch` is step t."""

    output: F32
    """`[ne3, n_head, n_batch, hsv]`."""
    cold_output: F32
    """The result of the call over the cold tokens."""
    cold_state: F32
    """The state after it, `[ne3, n_head, n_batch, 2 + hsv]`."""
    state: F32
    """The state after the call over the hot tokens, too."""
    held: tuple[Held, ...]
    """What each step's calls were given."""
    can_be_told_apart: bool
    """Each token's bytes are its own, so that `held` names the right ones."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Twice(Generic[T]):
    """What was computed, and computed again."""

    first: T
    again: T


@dataclass(frozen=True, kw_only=True, eq=False)
class FullState(Twice[Left]):
    """One call with a state, and the same graph once more, on a fresh state."""

    negated: Left
    """The graph once more, with the signs of Q, K and V turned where they are."""


Mixed = Twice[Chain]
"""A chain whose segments are caches of their own, in their own types, in two contexts."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scheduled:
    """Two chains under a scheduler, each in one graph, and a call without a state."""

    chains: tuple[tuple[tuple[F32, ...], F32], tuple[tuple[F32, ...], F32]]
    """The output of each call, and the last state. The state of the first chain is allocated
    before, that of the second is made by the graph."""
    standard: F32
    """The call without a state, in the graph of the first chain."""


Fifo = Twice[Rolled]
"""A rolling cache with a graph for each of a step's two calls, and with a graph for each step."""


class ByMode(TypedDict, total=False):
    """By mode, what it left behind; a mode that was not computed is not there."""

    standard: Standard
    full_state: FullState
    segmented: Chain
    merged: Merged
    reduced: Reduced
    resumed: tuple[Left, ...]
    scheduled: Scheduled
    mixed: Mixed
    fifo: Fifo
    preset: Preset


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """All that was computed of a case."""

    results: ByMode
    inputs_written: tuple[str, ...] = ()
    """The inputs whose bytes were not the same after all modes, and where."""
    outside_written: tuple[str, ...] = ()
    """What a mode wrote outside its tensors and its work memory, and where."""
    work_size: dict[str, int]
    """Bytes of work memory planned for one call, by mode (`standard`, `full_state`); only the CPU
    plans it."""
    seconds: dict[str, float]
    """Seconds of computing, by mode, all repeats included."""
    refused: dict[str, str] = field(default_factory=dict)
    """Why the device does not compute a mode, by mode."""

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes that were computed, in the order of `MODES`."""
        return tuple(mode for mode in MODES if mode in self.results)


def modes_of(case: Case) -> tuple[str, ...]:
    """Return the modes that a case is computed in where nothing else is asked for."""
    if case.hot_window:
        return ("standard", "fifo")
    several = ("merged", "resumed") if case.segments > 1 else ("preset",)
    if case.segments > 1 and not case.segment_types and _is_soon_copied(case):
        several = (*several, "scheduled")
    mixed = ("mixed",) if case.segment_types else ()
    return tuple(
        mode for mode in MODES if mode in ("standard", "full_state", "segmented", *several, *mixed)
    )


def offered(case: Case, lacks: Container[str]) -> tuple[str, ...]:
    """Return the modes of a case without those that a library lacks.

    A library that cannot merge states, but reduce them, computes `reduced` in place of `merged`.
    """
    reduces = "merged" in lacks and "reduced" not in lacks and case.segments <= MOST_PARTS
    modes = ("reduced" if mode == "merged" and reduces else mode for mode in modes_of(case))
    return tuple(mode for mode in modes if mode not in lacks)


def _is_soon_copied(case: Case) -> bool:
    """Tell whether K and V are small enough for another backend's memory in every run."""
    n = case.ne3 * case.n_head_kv * case.n_kv * (case.hsk_padded + case.hsv_padded)
    return n <= _FEW_ELEMENTS


def missing_option(case: Case, mode: str) -> str | None:
    """Return the option without which a mode does not apply to a case, or None."""
    if mode == "mixed" and not case.segment_types:
        return "--segment-types"
    if mode == "fifo" and not case.hot_window:
        return "--hot-window"
    return None


def order_of_parts(case: Case) -> tuple[int, ...]:
    """Return the segments in the order in which mode `merged` computes them, from the seed."""
    rank = np.random.Philox(key=case.seed).random_raw(case.segments)
    return tuple(int(i) for i in np.argsort(rank, kind="stable"))


def top_rows(case: Case) -> Left:
    """Return a state whose maximum of +INFINITY outweighs all others, and its result."""
    rows = (case.ne3, case.n_head, case.n_batch)
    output = np.full((*rows, case.hsv_padded), 0.5, np.float32)
    state = np.concatenate([np.full((*rows, 2), (np.inf, 1), np.float32), output], axis=-1)
    return Left(output=output, state=state)


def fresh_rows(case: Case) -> Left:
    """Return what two fresh states merge to: fresh rows, and zeros."""
    rows = (case.ne3, case.n_head, case.n_batch)
    state = np.zeros((*rows, 2 + case.hsv_padded), np.float32)
    state[..., 0] = -np.inf
    return Left(output=np.zeros((*rows, case.hsv_padded), np.float32), state=state)
