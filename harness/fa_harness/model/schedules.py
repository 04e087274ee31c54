"""Random schedules on a mixed KV cache: after each step its memory is compared with the rule.

A step is a batch, a batch that is aborted, a removal, a copy, a shift of positions, or saving and
loading. After it the state of llama.cpp is read: each token of each sequence has to be in one part,
once, with the bytes that it had there before. A token that has moved has the bytes that ggml makes
of its hot ones. The first layer of a new token is compared with the model's weights.
"""

from __future__ import annotations

import functools
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import hypothesis
import numpy as np
from hypothesis import strategies as st

from fa_harness.arrays import F64, U8
from fa_harness.case import quants
from fa_harness.engine.ggml.llama import Llama, LlamaContext, Model, Setting, Shape, Token
from fa_harness.errors import FaHarnessError
from fa_harness.model.rule import Cell, Rule, Streams, copied
from fa_harness.model.state import Part, Saved, read_parts

SHAPES = (
    Shape(),
    Shape(head_dim=32, n_head=4, n_head_kv=2),  # quantised K and V are not rotated
    Shape(arch="gemma3"),
)
TYPES = (
    ("f16", "f16", "q8_0", "q8_0"),
    ("f16", "f16", "q8_0", "q4_0"),
    ("f16", "f16", "f16", "f16"),
    ("q8_0", "q8_0", "q4_0", "q4_0"),
    ("f16", "q8_0", "q5_1", "q8_0"),
    ("f32", "f32", "q4_0", "f16"),
)
"""Of K and V in the hot part, and in the cold one."""
_BATCHES = (*("decode",) * 3, "decode all", "decode shared")
_OPS = (
    *_BATCHES * 3, "abort", "roll back", "hole", "remove", "copy", "copy start", "keep",
    *("shift",) * 3, "settle", *("save", "load") * 2, "save all", "load all",
)  # fmt: skip
_END = 2**31 - 1
_CONTEXTS = 48
"""So many contexts are kept, for schedules of the same setting."""


class MismatchError(FaHarnessError):
    """The memory is not as the rule says."""


@dataclass(frozen=True)
class Step:
    """One step; its numbers are taken modulo what there is when it runs."""

    op: str
    seq: int
    other: int
    size: int
    at: int


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A model, a context and what is done with it."""

    shape: int
    setting: Setting
    steps: tuple[Step, ...]


@dataclass(kw_only=True)
class Tally:
    """What was done, in numbers."""

    schedules: int = 0
    steps: int = 0
    tokens: int = 0
    moved: int = 0
    turned: int = 0  # tokens of which K was turned, by 0 too
    aborted: int = 0
    full: int = 0  # batches and saved sequences without room
    loaded: int = 0
    unseen: int = 0  # tokens that were first seen cold


@st.composite
def _settings(draw: Callable[[st.SearchStrategy[int]], int]) -> Setting:
    def one_of(*values: int) -> int:
        return draw(st.sampled_from(values))

    hot_k, hot_v, cold_k, cold_v = TYPES[one_of(*range(len(TYPES)))]
    return Setting(
        hot_k=hot_k,
        hot_v=hot_v,
        cold_k=cold_k,
        cold_v=cold_v,
        n_hot=one_of(1, 4, 12, 24),
        n_ubatch=one_of(4, 8, 16),
        n_seq=one_of(1, 2, 3, 4),
        unified=bool(one_of(0, 1)),
        n_ctx=one_of(256, 512),  # the hot part has room for 256, padded
    )


def _steps(
    ops: tuple[str, ...], least: int, most: int, longest: int
) -> st.SearchStrategy[list[Step]]:
    step = st.builds(
        Step,
        op=st.sampled_from(ops),
        seq=st.integers(0, 3),
        other=st.integers(0, 3),
        size=st.one_of(st.integers(1, 4), st.integers(1, 12), st.integers(1, longest)),
        at=st.integers(0, 255),
    )
    return st.lists(step, min_size=least, max_size=most)


def _schedules(longest: int) -> st.SearchStrategy[Schedule]:
    """Schedules with batches of at most so many tokens; with long ones the context gets full."""
    return st.builds(
        lambda shape, setting, batches, steps: Schedule(
            shape=shape, setting=setting, steps=(*batches, *steps)
        ),
        st.integers(0, len(SHAPES) - 1),
        _settings(),
        _steps(_BATCHES, 2, 6, longest),
        _steps(_OPS, 12, 40, longest),
    )


def _known(*steps: tuple[str, int, int]) -> Schedule:
    """A schedule of steps: what is done, with which sequence, of what size."""
    setting = Setting(
        hot_k="f16", hot_v="f16", cold_k="q8_0", cold_v="q4_0",
        n_hot=4, n_ubatch=4, n_seq=3, unified=True, n_ctx=256,
    )  # fmt: skip
    known = (Step(op=op, seq=seq, other=seq + 1, size=size, at=0) for op, seq, size in steps)
    return Schedule(shape=0, setting=setting, steps=tuple(known))


KNOWN = (
    # what a sequence shares is hot, newer tokens are cold; then the other sequence goes on
    _known(
        *(("decode shared", 0, 4), ("decode", 0, 12), ("decode", 0, 1), ("decode", 0, 1)),
        *(("roll back", 0, 10), ("decode", 1, 12)),
    ),
    # a saved sequence has no room, makes room, takes the place of newer tokens
    _known(
        *(("decode", 0, 99), ("save", 0, 0), ("remove", 0, 0), ("decode", 1, 200)),
        *(("decode", 2, 4), ("load", 0, 0)),
    ),
    _known(("decode", 0, 8), ("save", 0, 0), ("decode", 1, 8), ("decode", 2, 8), ("load", 0, 0)),
    _known(("decode", 0, 4), ("save", 0, 0), ("decode", 0, 16), ("load", 0, 0)),
)
"""Schedules that chance seldom draws; they run first."""
SCHEDULES = st.sampled_from((16, 40, 100)).flatmap(_schedules)


class Runner:
    """Runs schedules. Models and contexts are kept."""

    def __init__(self, llama: Llama) -> None:
        self.llama = llama
        self.models = [llama.model(shape) for shape in SHAPES]
        self.tally = Tally()
        self._contexts: OrderedDict[tuple[int, Setting], LlamaContext] = OrderedDict()

    def run(self, schedule: Schedule) -> None:
        """Run a schedule.

        Raises:
            MismatchError: After a step the memory is not as the rule says.
        """
        context = self._context(schedule)
        run = Run(self.models[schedule.shape], context, schedule.setting, self.tally)
        done = []
        try:
            for step in schedule.steps:
                done.append(step)
                run.step(step)
        except FaHarnessError as error:
            shown = "\n".join(f"  {step}" for step in done)
            where = f"{SHAPES[schedule.shape]}\n  {schedule.setting}"
            raise MismatchError(f"{error}\n  {where}\n{shown}") from error
        finally:
            self.tally.schedules += 1
            self.tally.moved += run.rule.n_moved

    def _context(self, schedule: Schedule) -> LlamaContext:
        """Return an empty context, of which no copy or shift is left to be done."""
        key = schedule.shape, schedule.setting
        context = self._contexts.pop(key, None)
        if context is None:
            context = self.models[schedule.shape].context(schedule.setting)
        else:
            context.clear()
            context.decode([Token(id=0, pos=0, seqs=(0,))])
            context.clear()
        self._contexts[key] = context
        if len(self._contexts) > _CONTEXTS:
            self._contexts.popitem(last=False)
        return context


class Run:
    """One schedule under way."""

    def __init__(self, model: Model, context: LlamaContext, setting: Setting, tally: Tally) -> None:
        self.model, self.context, self.setting, self.tally = model, context, setting, tally
        self.rule = Rule(setting, self._cool)
        self._is_rotated = {
            name: model.shape.head_dim % 64 == 0
            and any(quants.TYPES[type_].block_size > 1 for type_ in types)
            for name, types in (
                ("k", (setting.hot_k, setting.cold_k)),
                ("v", (setting.hot_v, setting.cold_v)),
            )
        }
        self._copying: set[int] = set()
        """Streams to which another is copied with the next batch."""
        self._saved: list[tuple[bytes, list[Cell]]] = []
        self._saved_all: list[tuple[bytes, Streams]] = []
        self._next_id = 0

    def step(self, step: Step) -> None:
        """Do a step, or nothing where it is not possible, and compare."""
        self.tally.steps += 1
        rule, context = self.rule, self.context
        seq, other = step.seq % self.setting.n_seq, step.other % self.setting.n_seq
        n = rule.last(seq) + 1
        is_pending = rule.is_shifted or bool(self._copying)
        match step.op:
            case "decode":
                self._decode(self._new(seq, step.size))
            case "decode all":
                self._decode(self._new_of_all(1 + step.size % 8, in_turn=step.at % 2 == 1))
            case "decode shared":
                if self.setting.unified and seq != other and not rule.of(seq) + rule.of(other):
                    tokens = self._new(seq, step.size)
                    self._decode([replace(token, seqs=(seq, other)) for token in tokens])
            case "abort":
                if not is_pending:
                    tokens = self._new(seq, step.size)
                    self._decode(tokens, stop_after=step.at)
            case "settle":  # a batch that cannot fit
                n_left = self.setting.n_ctx - len(rule.streams[rule.stream(seq)])
                if n_left < self.setting.n_ctx:  # a batch is no longer than the context
                    self._decode(self._new(seq, n_left + 1))
            case "roll back":
                self._remove(seq, self._kept_up_to(seq, n - min(n, step.size)), _END)
            case "hole":
                start = step.at % max(n, 1)
                self._remove(seq, start, min(n - 1, start + step.size))
            case "remove":
                self._remove(seq, 0, _END)
            case "copy":
                self._copy(seq, other, _END)
            case "copy start":
                if self.setting.unified:
                    self._copy(seq, other, self._kept_up_to(seq, step.at % (n + 1)))
            case "keep":
                context.keep(seq)
                rule.keep(seq)
            case "shift":
                start = step.at % 8
                end = start + 1 + step.size % max(n // 2, 1)
                if n > end and not rule.is_shared(seq):
                    self._remove(seq, start, end)
                    context.shift(seq, end, start - end)
                    rule.shift(seq, end, start - end)
            case "save":
                if not is_pending:
                    self._saved.append((context.state(seq), rule.saved(seq)))
            case "load":
                if not is_pending and self._saved:
                    self._load(seq, *self._saved[step.at % len(self._saved)])
            case "save all":
                if not is_pending:
                    self._saved_all.append((context.state(), copied(rule.streams)))
            case "load all":
                if not is_pending and self._saved_all:
                    state, streams = self._saved_all[step.at % len(self._saved_all)]
                    if step.size % 2:
                        context.clear()
                    if not context.load(state):
                        raise MismatchError(f"{step}: a state of all sequences is refused")
                    rule.streams = copied(streams)
                    self.tally.loaded += sum(map(len, streams))
        parts = read_parts(context.state())
        self._check(parts, step.op)

    # steps

    def _new(self, seq: int, n: int) -> list[Token]:
        first = self.rule.last(seq) + 1
        found = []
        for pos in range(first, first + n):
            self._next_id = (self._next_id * 5 + 3) % self.model.shape.n_vocab
            found.append(Token(id=self._next_id, pos=pos, seqs=(seq,)))
        return found

    def _new_of_all(self, n: int, *, in_turn: bool) -> list[Token]:
        of_each = [self._new(seq, n) for seq in range(self.setting.n_seq)]
        if in_turn:
            return [token for tokens in zip(*of_each, strict=True) for token in tokens]
        return [token for tokens in of_each for token in tokens]

    def _decode(self, tokens: list[Token], *, stop_after: int | None = None) -> None:
        self.rule.settle()
        self._copying.clear()
        before = self.rule.streams
        n_moved = self.rule.n_moved
        states = self.rule.decode(tokens, stops=stop_after is not None)
        status = self.context.decode(tokens, stop_after=stop_after)
        if states is None:
            self.tally.full += 1
            if status != 1:
                raise MismatchError(f"a batch without room ends with status {status}")
        elif status == 0:
            self.tally.tokens += len(tokens)
        elif stop_after is None:
            raise MismatchError(f"a batch with room ends with status {status}")
        else:
            self.tally.aborted += 1
            self.rule.streams, self.rule.n_moved = before, n_moved
            seen = _places(read_parts(self.context.state()))
            for state in states:
                if _places_of(state) == seen:
                    self.rule.streams = state
                    return
            raise MismatchError(f"an aborted batch: {_difference(_places_of(before), seen)}")

    def _kept_up_to(self, seq: int, pos: int) -> int:
        """Return a position up to which a sequence can be kept; 0 for none.

        The layers with a sliding window have lost what is older than their cells.
        """
        is_lost = pos > 0 and self.context.first(seq) > max(0, pos - 2 * self.model.shape.n_swa)
        return 0 if self.model.shape.arch == "gemma3" and is_lost else pos

    def _remove(self, seq: int, start: int, end: int) -> None:
        if not self.context.remove(seq, start, end):
            raise MismatchError(f"sequence {seq}: tokens {start} to {end} are not removed")
        self.rule.remove(seq, start, end)

    def _copy(self, source: int, target: int, end: int) -> None:
        if source == target:
            return
        self._remove(target, 0, _END)
        self.context.copy(source, target, -1 if end == _END else end)
        self.rule.copy(source, target, end)
        if not self.setting.unified:
            self._copying.add(target)

    def _load(self, seq: int, state: bytes, saved: list[Cell]) -> None:
        is_taken = self.rule.load(seq, saved)
        if self.context.load(state, seq) != is_taken:
            raise MismatchError(f"sequence {seq}: a state {'with' if is_taken else 'without'} room")
        if is_taken:
            self.tally.loaded += len(saved)
        else:
            self.tally.full += 1

    # comparing

    def _check(self, parts: list[Part], what: str) -> None:
        seen, expected = _places(parts), _places_of(self.rule.streams)
        if seen != expected:
            raise MismatchError(f"{what}: {_difference(expected, seen)}")
        for seq in range(self.setting.n_seq):
            ends = self.context.first(seq), self.context.last(seq)
            cells = self.rule.of(seq)
            own = (cells[0].pos, cells[-1].pos) if cells else (-1, -1)
            # layers with a sliding window may have lost the first ones
            if ends[1] != own[1] or ends[0] < own[0] or (len(parts) == 2 and ends != own):
                raise MismatchError(f"{what}: sequence {seq} is from {ends[0]} to {ends[1]}")
        types = (
            (self.setting.hot_k, self.setting.hot_v),
            (self.setting.cold_k, self.setting.cold_v),
        )
        for part, pair in zip(parts, (*types, types[0]), strict=False):
            if part.types - {tuple(quants.TYPES[type_].ggml_type for type_ in pair)}:
                raise MismatchError(
                    f"{what}: a part has the types {set(part.types)} instead of {pair}"
                )
        for number, cells in enumerate(self.rule.streams):
            if number in self._copying:
                continue
            saved = [{each.key: each for each in part.streams[number]} for part in parts[:2]]
            for cell in cells:
                try:
                    self._check_cell(cell, saved[0 if cell.is_hot else 1][cell.key])
                except MismatchError as error:
                    raise MismatchError(
                        f"{what}: stream {number}, position {cell.pos} of sequences "
                        f"{sorted(cell.seqs)}, {'hot' if cell.is_hot else 'cold'}: {error}"
                    ) from error
        if len(parts) > 2:
            self._check_window(parts[2], what)

    def _check_cell(self, cell: Cell, saved: Saved) -> None:
        if cell.k is None and cell.turned is None:
            self._check_identity(cell, saved)
        if cell.k is None and cell.turned is not None:
            self._check_turned(cell, saved, *cell.turned)
        if cell.k is not None and cell.k != saved.k:
            raise MismatchError("K has other bytes")
        if cell.v is not None and cell.v != saved.v:
            raise MismatchError("V has other bytes")
        if cell.v is None and not cell.is_hot:
            self.tally.unseen += 1
        cell.k, cell.v, cell.turned = saved.k, saved.v, None

    def _check_window(self, part: Part, what: str) -> None:
        """Check that the layers with a window have no tokens but ours; they may lose old ones."""
        for number, cells in enumerate(part.streams):
            own = {(cell.pos, seq) for cell in self.rule.streams[number] for seq in cell.seqs}
            found = {(cell.pos, seq) for cell in cells for seq in cell.seqs}
            if found - own:
                raise MismatchError(f"{what}: the window has {sorted(found - own)[:4]} of nobody")

    def _cool(self, k: bytes, v: bytes) -> tuple[bytes, bytes]:
        set_ = self.setting
        return self._as(k, set_.hot_k, set_.cold_k), self._as(v, set_.hot_v, set_.cold_v)

    def _as(self, raw: bytes, type_: str, other: str) -> bytes:
        llama = self.model.llama
        return llama.encode(llama.decode(np.frombuffer(raw, np.uint8), type_), other).tobytes()

    def _check_identity(self, cell: Cell, saved: Saved) -> None:
        """Compare the first layer of a new token with what the weights make of its id."""
        shape, weights = self.model.shape, self.model.weights
        if shape.arch != "llama":
            return  # its first layers are not in these parts
        x = weights["token_embd.weight"][cell.token].astype(np.float64)
        x = x / np.sqrt((x**2).mean() + 1e-5) * weights["blk.0.attn_norm.weight"]
        k = weights["blk.0.attn_k.weight"] @ x
        v = weights["blk.0.attn_v.weight"] @ x
        k = turned(k.reshape(-1, shape.head_dim), cell.pos, shape)
        set_ = self.setting
        for name, values, raw, hot, cold in (
            ("k", k, saved.k, set_.hot_k, set_.cold_k),
            ("v", v.reshape(-1, shape.head_dim), saved.v, set_.hot_v, set_.cold_v),
        ):
            if self._is_rotated[name]:
                values = rotated(values)
            types = (hot,) if cell.is_hot else (hot, cold)
            n = values.size
            row = np.frombuffer(raw, np.uint8)[: quants.row_bytes(types[-1], n)]
            self._check_near(row, types, values.reshape(-1), f"{name.upper()} of the first layer")

    def _check_turned(
        self, cell: Cell, saved: Saved, before: bytes, was_hot: bool, by: int
    ) -> None:
        """Check that K was turned by a shift, and that it has the same bytes if that was 0."""
        self.tally.turned += 1
        set_, shape = self.setting, self.model.shape
        type_ = set_.hot_k if was_hot else set_.cold_k
        now = set_.hot_k if cell.is_hot else set_.cold_k
        old = self.model.llama.decode(np.frombuffer(before, np.uint8), type_)
        heads = old.astype(np.float64).reshape(-1, shape.head_dim)
        if by:
            heads = rotated(heads) if self._is_rotated["k"] else heads
            heads = turned(heads, by, shape)
            heads = rotated(heads) if self._is_rotated["k"] else heads
        types = (type_,) if type_ == now else (type_, now)
        raw = np.frombuffer(saved.k, np.uint8)
        self._check_near(raw, types, heads.reshape(-1), f"K, turned by {by},")

    def _check_near(self, raw: U8, types: tuple[str, ...], values: F64, what: str) -> None:
        """Check bytes of the last of `types` against values that are rounded to each of them."""
        found = self.model.llama.decode(raw, types[-1])
        # the angle of a position of some hundreds, in float32, is off by up to 3e-5
        allowed = sum(_rounding(values, type_) for type_ in types) + 2e-4
        if not (np.abs(found - values) <= allowed).all():
            worst = int(np.argmax(np.abs(found - values) - allowed))
            raise MismatchError(
                f"{what} has {found[worst]:.5f} in place of {values[worst]:.5f} at {worst}"
            )


def turned(heads: F64, by: int, shape: Shape) -> F64:
    """Return heads `[n_head, head_dim]` turned by a position: RoPE of pairs, or of halves."""
    half = shape.head_dim // 2
    angle = by * shape.rope_base ** (-np.arange(half) / half)
    cos, sin = np.cos(angle), np.sin(angle)
    out = np.empty_like(heads)
    if shape.arch == "gemma3":
        one, two = slice(0, half), slice(half, None)
    else:
        one, two = slice(0, None, 2), slice(1, None, 2)
    x, y = heads[:, one], heads[:, two]
    out[:, one], out[:, two] = x * cos - y * sin, x * sin + y * cos
    return out


def rotated(heads: F64) -> F64:
    """Return heads in Hadamard's basis; its rotation is its own inverse."""
    out: F64 = heads @ _hadamard(heads.shape[1])
    return out


@functools.cache
def _hadamard(n: int) -> F64:
    basis = np.ones((1, 1))
    while len(basis) < n:
        basis = np.block([[basis, basis], [basis, -basis]])
    return np.divide(basis, np.sqrt(n), dtype=np.float64)


def _rounding(values: F64, type_: str) -> F64:
    """Return by how much a type may change values at most."""
    size = quants.TYPES[type_].block_size
    if size == 1:
        return np.abs(values) * {"f32": 1e-5, "f16": 2.0**-10}[type_]
    blocks = np.abs(values).reshape(-1, size)
    # a step of the scale; Q4_0 clips the other end by up to one
    steps = {"q8_0": 127, "q4_0": 7.5, "q5_1": 15}[type_]
    return np.repeat(blocks.max(axis=1) / steps * 1.05, size)


Places = list[tuple[list[tuple[int, tuple[int, ...]]], list[tuple[int, tuple[int, ...]]]]]
"""By stream, what its hot tokens are known by, and its cold ones, in order."""


def _places(parts: list[Part]) -> Places:
    hot, cold = ([sorted(each.key for each in of) for of in part.streams] for part in parts[:2])
    return list(zip(hot, cold, strict=True))


def _places_of(streams: Streams) -> Places:
    return [
        (
            sorted(cell.key for cell in cells if cell.is_hot),
            sorted(cell.key for cell in cells if not cell.is_hot),
        )
        for cells in streams
    ]


def _difference(expected: Places, seen: Places) -> str:
    """Say where tokens are first that should not be there, or are not."""
    for number, (want, have) in enumerate(zip(expected, seen, strict=True)):
        for name, is_, should in zip(("hot", "cold"), have, want, strict=True):
            if is_ != should:
                extra, missing = _minus(is_, should), _minus(should, is_)
                return (
                    f"stream {number}: {len(is_)} {name} tokens, not {len(should)}; "
                    f"too many: {extra[:3]}, missing: {missing[:3]}"
                )
    return "no difference"


def _minus(a: list[tuple[int, tuple[int, ...]]], b: list[tuple[int, tuple[int, ...]]]) -> list[str]:
    left = list(a)
    for key in b:
        if key in left:
            left.remove(key)
    return [f"position {pos} of {list(seqs)}" for pos, seqs in left]


def run_schedules(
    runner: Runner,
    n: int,
    seed: int,
    *,
    shrink: bool = True,
    note: Callable[[Schedule], None] = lambda schedule: None,
) -> str | None:
    """Run the known schedules and `n` others; return what does not hold, or None.

    Of the others that is told of the smallest one, but without `shrink` of the first.

    `note` is called with each schedule before it runs.
    """
    phases = [hypothesis.Phase.generate, *([hypothesis.Phase.shrink] if shrink else [])]

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=n,
        database=None,
        deadline=None,
        phases=phases,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
        print_blob=False,
    )
    @hypothesis.given(SCHEDULES)
    def test(schedule: Schedule) -> None:
        note(schedule)
        runner.run(schedule)

    try:
        for schedule in KNOWN:
            note(schedule)
            runner.run(schedule)
        test()
    except MismatchError as error:
        return str(error)
    return None


def main(module: str, n: str, seed: str) -> None:
    """Run schedules in a process of their own and print what did not hold; exits 1 then.

    A fault of llama.cpp may end the process.
    """
    found = run_schedules(Runner(Llama(Path(module))), int(n), int(seed), shrink=False)
    if found:
        print(f"fault: {found}")
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
