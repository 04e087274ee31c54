"""Faults of the harness itself, each as a double of one function of it: none may pass.

A table of fault classes, the doubles that stand for them, and a case of a suite that shows each.
"""

import ctypes
import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fa_harness.arrays import F32, F64
from fa_harness.case import inputs, modes, rolling
from fa_harness.case.case import Case
from fa_harness.case.inputs import Inputs, make_inputs
from fa_harness.case.quants import encode, row_bytes
from fa_harness.case.suites import suite
from fa_harness.engine import compute, fifo
from fa_harness.engine import state_file as state
from fa_harness.engine.compute import run_case
from fa_harness.engine.fifo import roll
from fa_harness.engine.ggml import Backend, Context, Ggml, Tensor
from fa_harness.engine.ggml.guards import Guarded
from fa_harness.engine.layout import CaseTensors, Keys
from fa_harness.judge import bounds, contract, oracle
from fa_harness.judge import compare as comparator
from fa_harness.judge.oracle import Partial
from fa_harness.judge.verdict import Verdict, judge

F16 = npt.NDArray[np.float16]
Method = Callable[..., Any]
Fault = Callable[[Method], Method]

CLASSES = {
    # of the harness alone, or of the kernel as well
    "mask-stride", "mask-broadcast", "mask-not-sliced", "state-not-reset", "fifo-gap",
    "fifo-overlap", "base-2", "pass-by-flatness", "pass-by-scale",
    # of calls and graphs, which the harness makes for its cases
    "view-stride", "view-offset", "node-missing", "node-order", "state-shared", "last-wins",
    "first-dropped",
    # of memory
    "input-written", "written-outside", "result-of-another-state",
    # of the judge
    "mode-missing", "comparison-missing", "bound-too-wide", "oracle-is-the-kernel",
}  # fmt: skip


def of_suite(name: str, **fields: Any) -> Case:
    """Return the first case of a suite with these fields."""
    return next(
        case
        for case in suite(name)
        if all(getattr(case, field) == value for field, value in fields.items())
    )


DECODE = of_suite("smoke", n_batch=1, n_kv=160, regime="normal")
RISING = of_suite("smoke", n_batch=1, n_kv=160, regime="rising")
FEW_ROWS = of_suite("smoke", n_batch=5, type_K="f32")
PERMUTED = of_suite("smoke", permute=(0, 2, 1, 3))
MASKS_BY_HEAD = of_suite("smoke", mask_heads=6)
SINKS = of_suite("smoke", n_batch=5, sinks=True)
MIXED = of_suite("mixed", n_batch=6, regime="normal", threads=1)
FIFO = of_suite("fifo", regime="normal", cold_type="q8_0")
LONG = Case(hsk=32, hsv=32, n_head_kv=1, n_kv=65536, n_batch=1, mask=False, regime="normal")

ONE_CALL = ("standard",)
CHAIN = ("full_state", "segmented")
BITS = "must be bit-identical"


# masks


def with_mask(change: Callable[[F16, tuple[int, int]], F16]) -> Fault:
    """Return a fault: a call's columns are cut out of another mask than the case's."""

    def fault(original: Method) -> Method:
        def columns(self: Any, segment: tuple[int, int]) -> Any:
            source = self._source
            if source.mask is None:
                return original(self, segment)
            self._source = dataclasses.replace(source, mask=change(source.mask, segment))
            try:
                return original(self, segment)
            finally:
                self._source = source

        return columns

    return fault


def rows_one_segment_apart(mask: F16, segment: tuple[int, int]) -> F16:
    start, stop = segment
    rows = mask.reshape(*mask.shape[:2], -1)[..., start : start + mask.shape[2] * (stop - start)]
    wrong: F16 = mask.copy()
    wrong[..., start:stop] = rows.reshape(*mask.shape[:3], stop - start)
    return wrong


def of_the_first_head(mask: F16, segment: tuple[int, int]) -> F16:
    return mask[:, :1]


def of_the_first_sequence(mask: F16, segment: tuple[int, int]) -> F16:
    return mask[:1]


def first_columns(original: Method) -> Method:
    def columns(self: Any, segment: tuple[int, int]) -> Any:
        start, stop = segment
        return original(self, (0, stop - start))

    return columns


def oracle_of_the_first_head(original: Method) -> Method:
    def bias(case: Case, inputs: Inputs, *where: Any) -> Any:
        mask = None if inputs.mask is None else inputs.mask[:, :1]
        return original(case, dataclasses.replace(inputs, mask=mask), *where)

    return bias


# views of the cache


def from_the_start(original: Method) -> Method:
    def view(self: Any, cache: Tensor, segment: tuple[int, int]) -> Any:
        start, stop = segment
        return original(self, cache, (0, stop - start))

    return view


def one_key_early(original: Method) -> Method:
    def view(self: Any, cache: Tensor, segment: tuple[int, int]) -> Any:
        start, stop = segment
        shift = start > 0
        return original(self, cache, (start - shift, stop - shift))

    return view


def last_key_lost(original: Method) -> Method:
    def view(self: Any, cache: Tensor, segment: tuple[int, int]) -> Any:
        start, stop = segment
        return original(self, cache, (start, stop - 1))

    return view


def offset_in_contiguous_rows(original: Method) -> Method:
    def view(self: Any, cache: Tensor, segment: tuple[int, int]) -> Any:
        start, stop = segment
        ne0, _, ne2, ne3 = cache.ne
        offset = start * row_bytes(cache.type, ne0)
        return self.ctx.view(cache, (ne0, stop - start, ne2, ne3), offset=offset)

    return view


def contiguous(ctx: Context, a: Tensor, ne: Sequence[int], offset: int) -> Tensor:
    """Return a view with the strides of a contiguous tensor."""
    nb1 = row_bytes(a.type, ne[0])
    strides = (nb1, nb1 * ne[1], nb1 * ne[1] * ne[2])
    return Tensor(ctx.ggml, ctx.ggml._lib.ggml_view_4d(ctx._p, a._p, *ne, *strides, offset), a.type)


def strides_of_a_contiguous_segment(original: Method) -> Method:
    def view(self: Any, cache: Tensor, segment: tuple[int, int]) -> Any:
        start, stop = segment
        ne0, _, ne2, ne3 = cache.ne
        return contiguous(self.ctx, cache, (ne0, stop - start, ne2, ne3), start * cache.nb[1])

    return view


def strides_of_a_contiguous_store(original: Method) -> Method:
    def views(self: Any, ctx: Context, n_used: int) -> Any:
        return tuple(contiguous(ctx, x, (x.ne[0], n_used, *x.ne[2:]), 0) for x in (self.k, self.v))

    return views


# states, calls and graphs


def only_once(original: Method) -> Method:
    reset: list[Tensor] = []

    def make_fresh(state: Tensor) -> None:
        if state not in reset:
            reset.append(state)
            original(state)

    return make_fresh


def one_for_all(original: Method) -> Method:
    made: dict[int, Tensor] = {}

    def state(self: Any) -> Tensor:
        return made.setdefault(id(self), original(self))

    return state


def a_fresh_state_for_each_call(original: Method) -> Method:
    def compute(self: Any, calls: Any, graphs: Any, state: Tensor) -> Any:
        pairs = zip(calls, graphs, strict=True)
        return tuple(original(self, [call], [graph], state)[0] for call, graph in pairs)

    return compute


def the_second_call_twice(original: Method) -> Method:
    def compute(self: Any, calls: Any, graphs: Any, state: Tensor) -> Any:
        return original(self, calls, [graphs[min(1, len(graphs) - 1)], *graphs[1:]], state)

    return compute


def the_second_state_twice(original: Method) -> Method:
    def merge(self: Context, a: Tensor, b: Tensor) -> Any:
        return original(self, b, b)

    return merge


def segments_reversed(original: Method) -> Method:
    def own_segment(self: Any, i: int) -> Any:
        return original(self, self._case.segments - 1 - i)

    return own_segment


def of_the_first_call(original: Method) -> Method:
    calls: list[Tensor] = []

    def state_after(self: Context, call: Tensor) -> Any:
        calls.append(call)
        return original(self, calls[0])

    return state_after


def in_order(order: Callable[[Sequence[Tensor]], Sequence[Tensor]]) -> Fault:
    def fault(original: Method) -> Method:
        def graph(self: Context, outputs: Sequence[Tensor], **more: Any) -> Any:
            return original(self, order(outputs) if len(outputs) > 1 else outputs, **more)

        return graph

    return fault


def nothing_is_computed(original: Method) -> Method:
    return lambda self, graph: None


def sinks_in_every_call(original: Method) -> Method:
    def call(self: Any, *args: Any, **more: Any) -> Any:
        return original(self, *args, **{**more, "sinks": True})

    return call


def no_sinks_with_a_state(original: Method) -> Method:
    def call(self: Any, *args: Any, **more: Any) -> Any:
        sinks = more["sinks"] and more.get("state") is None
        return original(self, *args, **{**more, "sinks": sinks})

    return call


def with_parameters(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Fault:
    """Return a fault: every call, with a state or without, is given other parameters."""

    def fault(original: Method) -> Method:
        def call(self: Context, *args: Any, **more: Any) -> Any:
            return original(self, *args, **{**more, **change(more)})

        return call

    return fault


def half_of_the_keys(original: Method) -> Method:
    def call(self: Any, keys: Keys, segment: tuple[int, int], **more: Any) -> Any:
        n = (segment[1] - segment[0]) // 2
        views = [self.ctx.view(x, (x.ne[0], n, *x.ne[2:])) for x in keys]
        return original(self, Keys(*views), (segment[0], segment[0] + n), **more)

    return call


def written(place: Callable[[Guarded], int], *, to_work: bool = False) -> Fault:
    """Return a fault: four bytes are written to a guard, of work memory or of tensors."""

    def fault(original: Method) -> Method:
        def lift(self: Guarded) -> Any:
            if (len(self.addresses) == 1) == to_work:
                ctypes.memset(self.address + place(self), 0, 4)
            return original(self)

        return lift

    return fault


def behind_the_first(memory: Guarded) -> int:
    return memory._guards[1][0]


def behind_the_last(memory: Guarded) -> int:
    return memory._guards[-1][0]


def before_the_first(memory: Guarded) -> int:
    return memory._guards[0][1] - 8


def another_s(original: Method) -> Method:
    """The state is near the oracle's, but the result was not made from it."""

    def left(*, output: F32, state: F32) -> Any:
        state = state.copy()
        state[..., 1] *= np.float32(1 + 2**-20)
        return original(output=output, state=state)

    return left


def an_input_is_written(original: Method) -> Method:
    def after_writing(self: Any) -> Any:
        tensor, data = self._inputs["k"]
        changed = data.copy()
        changed.reshape(-1)[-1] ^= 1
        tensor.write(changed)
        return original(self)

    return after_writing


# base 2


def saved_in_base_2(original: Method) -> Method:
    def save(path: Any, rows: F32) -> None:
        rows = rows.copy()
        rows[..., 0] *= np.float32(np.log2(np.e))
        original(path, rows)

    return save


def weight_in_base_2(original: Method) -> Method:
    def weight(m: F64, m_new: F64) -> F64:
        factor: F64 = original(m, m_new) ** np.log(2)
        return factor

    return weight


def m_in_base_2(original: Method) -> Method:
    def attend(*args: Any, **more: Any) -> Partial:
        partial: Partial = original(*args, **more)
        return dataclasses.replace(partial, m=partial.m * np.log2(np.e))

    return attend


# inputs with which nothing could differ


def with_inputs(change: Callable[[Case, Inputs], dict[str, Any]]) -> Fault:
    def fault(original: Method) -> Method:
        def make(case: Case) -> Inputs:
            made: Inputs = original(case)
            return dataclasses.replace(made, **change(case, made))

        return make

    return fault


def values_that_are_not_the_bytes(original: Method) -> Method:
    def decode(*args: Any) -> F32:
        values: F32 = original(*args) * np.float32(1.01)
        return values

    return decode


def v_of(value: float) -> Fault:
    def change(case: Case, made: Inputs) -> dict[str, Any]:
        v = np.full_like(made.v, value)
        return {"v": v, "v_raw": encode(v, case.type_V)}

    return with_inputs(change)


def mask_of(value: float, *, but_the_last_segment: bool = False) -> Fault:
    def change(case: Case, made: Inputs) -> dict[str, Any]:
        assert made.mask is not None
        mask = np.zeros_like(made.mask)
        mask[..., : case.segment_bounds()[-2] if but_the_last_segment else None] = value
        return {"mask": mask}

    return with_inputs(change)


def all_keys_in_the_last_segment(original: Method) -> Method:
    def bounds_(self: Case) -> tuple[int, ...]:
        return (*[0] * self.segments, self.n_kv)

    return bounds_


# the judge


def without(mode: str) -> Fault:
    def fault(original: Method) -> Method:
        def make(*, results: dict[str, Any], **more: Any) -> Any:
            rest = {name: left for name, left in results.items() if name != mode}
            return original(results=rest, **more)

        return make

    return fault


def no_checks(original: Method) -> Method:
    return lambda *args: iter(())


def infinite(original: Method) -> Method:
    return lambda *args: np.full_like(original(*args), np.inf)


def nan(original: Method) -> Method:
    return lambda *args: np.full_like(original(*args), np.nan)


def always(original: Method) -> Method:
    return lambda *args: True


def no_share(original: Method) -> Method:
    return lambda *args: np.zeros_like(original(*args))


def nothing_is_small(original: Any) -> Any:
    return 0


def the_kernels_output(original: Method) -> Method:
    """Of the last mode that was computed; `rows_of` below remembers it."""

    def finalise(partial: Partial) -> F64:
        exact: F64 = original(partial)
        return REMEMBERED[-1].astype(np.float64) if REMEMBERED[-1].shape == exact.shape else exact

    return finalise


REMEMBERED: list[F32] = []


def remembered(original: Method) -> Method:
    def rows_of(out: Tensor) -> F32:
        REMEMBERED.append(original(out))
        return REMEMBERED[-1]

    return rows_of


# the rolling cache


def group_lost(original: Method) -> Method:
    def evict(self: Any) -> None:
        self.oldest_hot += self._case.group

    return evict


def group_counted_not_written(original: Method) -> Method:
    def evict(self: Any) -> None:
        self.oldest_hot += self._case.group
        self.n_cold += self._case.group

    return evict


def group_moved_twice(original: Method) -> Method:
    def evict(self: Any) -> None:
        oldest, n_cold = self.oldest_hot, self.n_cold
        if n_cold == 2 * self._case.group:
            self.n_cold -= self._case.group  # so that the store does not overflow
        original(self)
        if n_cold == 0:
            self.oldest_hot = oldest
            original(self)

    return evict


def copy_left_in_hot(original: Method) -> Method:
    def columns(self: Any, mask: Any) -> Any:
        columns = original(self, mask)
        if self.oldest_hot:
            columns[..., self.slot(self.oldest_hot - 1)] = mask[..., self.oldest_hot - 1]
        return columns

    return columns


def one_token_too_many_leaves(original: Method) -> Method:
    def evict(self: Any) -> None:
        original(self)
        self.oldest_hot += 1

    return evict


def written_over_the_last_group(original: Method) -> Method:
    def evict(self: Any) -> None:
        self.n_cold = 0
        original(self)

    return evict


def next_token_moved(original: Method) -> Method:
    def evict(self: Any) -> None:
        original_slot = self.slot
        self.slot = lambda token: original_slot(token + 1)
        original(self)
        del self.slot

    return evict


def columns_of_the_next_slot(original: Method) -> Method:
    def columns(self: Any, mask: Any) -> Any:
        return np.roll(original(self, mask), 1, axis=-1)

    return columns


def columns_in_token_order(original: Method) -> Method:
    def columns(self: Any, mask: Any) -> Any:
        columns = original(self, mask)
        slots = sorted(self.slot(token) for token in range(self.oldest_hot, self.n_token))
        columns[..., slots] = mask[..., self.oldest_hot : self.n_token]
        return columns

    return columns


def every_slot_shown(original: Method) -> Method:
    def columns(self: Any, mask: Any) -> Any:
        return np.where(np.isneginf(original(self, mask)), np.float16(0), original(self, mask))

    return columns


def ring_short_of_a_slot(original: Method) -> Method:
    def slot(self: Any, token: int) -> int:
        n_slots: int = self._case.hot_window
        return token % (n_slots - 1)

    return slot


def v_of_the_next_slot(original: Method) -> Method:
    def read(self: Any, slot: int) -> Any:
        return self.k.read_rows(slot, 1), self.v.read_rows((slot + 1) % self.v.ne[1], 1)

    return read


def heads_swapped(original: Method) -> Method:
    def write(self: Any, slot: int, k: Any, v: Any) -> None:
        original(self, slot, k[:, ::-1], v)

    return write


def sequences_swapped(original: Method) -> Method:
    def write(self: Any, slot: int, k: Any, v: Any) -> None:
        original(self, slot, k, v[::-1])

    return write


# the table


@dataclass(frozen=True, kw_only=True)
class Double:
    """A fault of the harness, and how it shows."""

    of: str
    """Its class."""
    where: Any
    """The class or module whose function is replaced."""
    name: str
    """The function."""
    fault: Fault
    case: Case
    asked: tuple[str, ...] | None
    """The modes, None for the case's own."""
    status: str
    reason: str
    """A comparison in words and `: `, which must not hold; else a regular expression that the
    verdict's reason begins with."""
    beside: tuple["Double", ...] = ()
    """Other faults at the same time, of which this one must not be a cover."""

    def __str__(self) -> str:
        return f"{self.of}-{self.name}"

    def put_in(self, monkeypatch: pytest.MonkeyPatch) -> list[None]:
        """Replace the functions; return a list that grows with each call of this one."""
        for double in self.beside:
            double.put_in(monkeypatch)
        faulty = self.fault(getattr(self.where, self.name))
        calls: list[None] = []

        if not callable(faulty):
            monkeypatch.setattr(self.where, self.name, faulty)
            return [None]

        def counted(*args: Any, **more: Any) -> Any:
            calls.append(None)
            return faulty(*args, **more)

        monkeypatch.setattr(self.where, self.name, counted)
        return calls


def double(
    of: str,
    where: Any,
    name: str,
    fault: Fault,
    case: Case,
    reason: str,
    *,
    asked: tuple[str, ...] | None = CHAIN,
    status: str = "fail",
    beside: tuple[Double, ...] = (),
) -> Double:
    return Double(
        of=of, where=where, name=name, fault=fault, case=case, reason=reason, asked=asked,
        status=status, beside=beside,
    )  # fmt: skip


SEGMENTED = f"segmented vs standard: {BITS}"
ONE_GRAPH = f"one graph vs segmented: {BITS}"
LAST_WINS = double(
    "last-wins", compute._Computation, "_compute", a_fresh_state_for_each_call, DECODE, SEGMENTED
)

DOUBLES = [
    double("mask-stride", CaseTensors, "_mask_columns", with_mask(rows_one_segment_apart),
           FEW_ROWS, SEGMENTED),
    double("mask-broadcast", CaseTensors, "_mask_columns", with_mask(of_the_first_head),
           MASKS_BY_HEAD, "standard vs oracle: "),
    double("mask-broadcast", CaseTensors, "_mask_columns", with_mask(of_the_first_sequence),
           FEW_ROWS, "standard vs oracle: "),
    double("mask-broadcast", oracle, "_bias", oracle_of_the_first_head, MASKS_BY_HEAD,
           "standard vs oracle: "),
    double("mask-not-sliced", CaseTensors, "_mask_columns", first_columns, FEW_ROWS, SEGMENTED),
    double("view-offset", CaseTensors, "_view", from_the_start, DECODE, SEGMENTED),
    double("view-offset", CaseTensors, "_view", one_key_early, DECODE, SEGMENTED),
    double("view-offset", CaseTensors, "_view", offset_in_contiguous_rows, PERMUTED, SEGMENTED),
    double("view-stride", CaseTensors, "_view", strides_of_a_contiguous_segment, DECODE, SEGMENTED),
    double("view-stride", fifo._Store, "views", strides_of_a_contiguous_store, FIFO,
           r"rolling cache at step \d+: ", asked=("fifo",)),
    double("view-length", CaseTensors, "_view", last_key_lost, DECODE, SEGMENTED),
    double("state-not-reset", compute, "make_fresh", only_once, DECODE,
           f"full state again: {BITS}"),
    double("state-not-reset", fifo, "make_fresh", only_once, FIFO, "", asked=("fifo",)),
    double("state-shared", CaseTensors, "state", one_for_all, DECODE, "merged vs oracle: ",
           asked=("merged",)),
    LAST_WINS,
    double("last-wins", Context, "merge_states", the_second_state_twice, DECODE,
           "merged vs oracle: ", asked=("merged",)),
    double("first-dropped", compute._Computation, "_compute", the_second_call_twice, DECODE, ""),
    double("node-missing", Context, "state_after", of_the_first_call, RISING, ONE_GRAPH),
    double("node-missing", Context, "graph", in_order(lambda calls: calls[1:]), RISING,
           ONE_GRAPH),
    double("node-missing", Context, "graph", in_order(lambda calls: calls[-1:]), RISING,
           ONE_GRAPH),
    double("node-order", Context, "graph", in_order(lambda calls: calls[::-1]), RISING,
           ONE_GRAPH),
    double("node-order", Context, "graph",
           in_order(lambda calls: [calls[1], calls[0], *calls[2:]]), RISING, ONE_GRAPH),
    double("node-order", Context, "graph", in_order(lambda calls: calls[::-1]), FIFO,
           f"fifo again: {BITS}", asked=("fifo",)),
    double("node-missing", Context, "graph", in_order(lambda calls: calls[1:]), FIFO,
           f"fifo again: {BITS}", asked=("fifo",)),
    double("node-order", CaseTensors, "own_segment", segments_reversed, MIXED, "mixed vs oracle: ",
           asked=("mixed",)),
    double("node-not-computed", Backend, "compute", nothing_is_computed, DECODE,
           "standard vs oracle: "),
    double("base-2", state, "save", saved_in_base_2, DECODE, f"resumed vs segmented: {BITS}",
           asked=("segmented", "resumed")),
    double("base-2", oracle, "weight", weight_in_base_2, RISING, "standard vs oracle: "),
    double("base-2", oracle, "attend", m_in_base_2, DECODE, ""),
    double("sinks", CaseTensors, "call", sinks_in_every_call, SINKS, SEGMENTED),
    double("sinks", CaseTensors, "call", no_sinks_with_a_state, SINKS,
           f"full state vs standard: {BITS}"),
    double("input-written", CaseTensors, "inputs_written", an_input_is_written, DECODE,
           r"the op wrote to its inputs: 2 bytes in k from byte \d+ on: row \d+ \(of 0 to \d+\), "
           r"element 63, outside the view"),
    double("written-outside", Guarded, "lift", written(behind_the_last), DECODE,
           r"the op wrote outside its tensors: standard: 4 bytes behind dst\[0:160\] from byte \d+ "
           r"on: row \d+ \(of 0 to \d+\), element 0, and \d+ more"),
    double("written-outside", Guarded, "lift", written(before_the_first), MIXED,
           "the op wrote outside its tensors: standard: 4 bytes before q from byte -8 on: row -1 ",
           asked=("mixed",)),
    double("written-outside", Guarded, "lift", written(behind_the_last), FIFO,
           "the op wrote outside its tensors: standard: 4 bytes behind dst", asked=("fifo",)),
    double("written-outside", Guarded, "lift", written(behind_the_first, to_work=True), DECODE,
           r"the op wrote outside its tensors: standard: 4 bytes behind work memory from byte \d+"),
    double("result-of-another-state", compute, "Left", another_s, DECODE,
           "full state result vs state: "),
    # what is wrong in every mode alike is seen by the oracle alone
    double("inputs", inputs, "decode", values_that_are_not_the_bytes, DECODE,
           "standard vs oracle: "),
    double("parameters", Context, "flash_attn_ext", with_parameters(
           lambda given: {"scale": 1.03 * given["scale"]}), DECODE, "standard vs oracle: "),
    double("parameters", Context, "flash_attn_ext", with_parameters(
           lambda given: {"max_bias": 0.0}), MASKS_BY_HEAD, "standard vs oracle: "),
    double("parameters", Context, "flash_attn_ext", with_parameters(
           lambda given: {"logit_softcap": 0.0}), MASKS_BY_HEAD, "standard vs oracle: "),
    double("parameters", Context, "flash_attn_ext", with_parameters(
           lambda given: {"sinks": None}), SINKS, "standard vs oracle: "),
    double("pass-by-scale", CaseTensors, "call", half_of_the_keys, LONG, "standard vs oracle: ",
           asked=ONE_CALL),
    double("pass-by-scale", CaseTensors, "call", half_of_the_keys,
           LONG.with_(regime="uniform"), "standard vs oracle: ", asked=ONE_CALL),
    double("pass-by-scale", CaseTensors, "call", half_of_the_keys,
           LONG.with_(type_K="q8_0", type_V="q8_0"), "standard vs oracle: ", asked=ONE_CALL),
    double("pass-by-flatness", inputs, "_plain_inputs", v_of(0), DECODE, "every output is 0",
           status="mistrusted"),
    double("pass-by-flatness", inputs, "_plain_inputs", v_of(1), DECODE,
           "a lost state would stay within the bound", status="mistrusted"),
    double("pass-by-flatness", inputs, "_plain_inputs", mask_of(-np.inf), DECODE,
           "every output is 0", status="mistrusted"),
    double("pass-by-flatness", inputs, "_plain_inputs",
           mask_of(-30, but_the_last_segment=True), DECODE,
           "reset numerators would stay within the bound", status="mistrusted"),
    double("pass-by-flatness", Case, "segment_bounds", all_keys_in_the_last_segment, DECODE,
           "3 segments were asked for, and no row has keys in two", status="mistrusted"),
    double("mode-missing", compute, "Run", without("segmented"), DECODE,
           "mode segmented was asked for, and not compared: one_graph_vs_segmented, prefix_vs",
           status="mistrusted"),
    double("mode-missing", compute, "Run", without("merged"), DECODE,
           "mode merged was asked for, and not compared: ", asked=None, status="mistrusted"),
    double("mode-missing", compute, "Run", without("resumed"), DECODE,
           "mode resumed was asked for, and not compared: ", asked=None, status="mistrusted"),
    *(
        double("comparison-missing", contract, f"_{mode}", no_checks, case,
               f"mode {mode} was asked for, and not compared: ", asked=None, status="mistrusted")
        for mode, case in (
            ("standard", DECODE), ("full_state", DECODE), ("segmented", DECODE),
            ("merged", DECODE), ("resumed", DECODE), ("mixed", MIXED), ("fifo", FIFO),
        )
    ),
    double("bound-too-wide", bounds.Expected, "output_bound", infinite, DECODE,
           "the bound is above every output", status="mistrusted"),
    double("bound-too-wide", bounds.Expected, "output_bound", nan, DECODE, "standard vs oracle: "),
    # of two ways to see a wrong chain one is enough
    double("comparison-missing", comparator, "_has_bits", always, DECODE, "state vs oracle: ",
           beside=(LAST_WINS,)),
    double("comparison-missing", comparator, "_shares", no_share, DECODE, SEGMENTED,
           beside=(LAST_WINS,)),
    double("comparison-missing", comparator, "_shares", no_share, DECODE, SEGMENTED,
           beside=(LAST_WINS, double("", comparator, "_TOGETHER", nothing_is_small, DECODE, ""))),
    double("oracle-is-the-kernel", oracle, "finalise", the_kernels_output, DECODE, SEGMENTED,
           beside=(LAST_WINS, double("", compute, "rows_of", remembered, DECODE, ""))),
    *(
        double(of, where, name, fault, FIFO, r"rolling cache at step \d+: ", asked=("fifo",))
        for of, where, name, fault in (
            ("fifo-gap", fifo._Cache, "_evict", group_lost),
            ("fifo-gap", fifo._Cache, "_evict", group_counted_not_written),
            ("fifo-gap", fifo._Cache, "_evict", one_token_too_many_leaves),
            ("fifo-gap", fifo._Cache, "_evict", written_over_the_last_group),
            ("fifo-overlap", fifo._Cache, "_evict", group_moved_twice),
            ("fifo-overlap", fifo._Cache, "hot_columns", copy_left_in_hot),
        )
    ),
]  # fmt: skip


def judged(library: Ggml, case: Case, asked: tuple[str, ...] | None) -> Verdict:
    asked = modes.modes_of(case) if asked is None else asked
    made = make_inputs(case)
    run = run_case(library, case, made, asked)
    return judge(case, made, run, features=library.features(), modes=asked)


def without_real_edges(library: Ggml, monkeypatch: pytest.MonkeyPatch, double: Double) -> None:
    """Let the order of a graph alone link the calls of a chain where the double changes that."""
    if (double.where, double.name) == (Context, "graph"):
        monkeypatch.setattr(library, "has_state_after", False)


def test_every_class_has_a_double() -> None:
    assert {double.of for double in DOUBLES} >= CLASSES


@pytest.mark.parametrize("double", DOUBLES, ids=str)
def test_a_fault_of_the_harness_does_not_pass(
    library: Ggml, monkeypatch: pytest.MonkeyPatch, double: Double
) -> None:
    without_real_edges(library, monkeypatch, double)
    calls = double.put_in(monkeypatch)
    verdict = judged(library, double.case, double.asked)
    assert calls, f"{double.name} is not called: the double changes nothing"
    assert (verdict.status, verdict.reason) != ("pass", "")
    assert verdict.status == double.status, verdict.reason
    words, _, how = double.reason.partition(": ")
    comparison = verdict.comparisons.get(words.replace(" ", "_"))
    if comparison is None:
        assert re.match(double.reason, verdict.reason), verdict.reason
    else:
        assert not comparison.ok
        assert comparison.required == ("bits" if how == BITS else "bound")


def test_a_double_that_is_not_reached_is_an_error(
    library: Ggml, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = double("state-not-reset", fifo, "make_fresh", only_once, DECODE, "")
    with pytest.raises(AssertionError, match="make_fresh is not called: the double changes nothi"):
        test_a_fault_of_the_harness_does_not_pass(library, monkeypatch, elsewhere)


@pytest.mark.parametrize(
    ("case", "asked"),
    dict.fromkeys((double.case, double.asked) for double in DOUBLES),
    ids=lambda value: str(value)[:40],
)
def test_without_a_fault_the_same_case_passes(
    library: Ggml, case: Case, asked: tuple[str, ...] | None
) -> None:
    verdict = judged(library, case, asked)
    assert (verdict.status, verdict.reason) == ("pass", "")


def test_a_graph_whose_order_alone_links_the_calls_passes(
    library: Ggml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "has_state_after", False)
    assert judged(library, RISING, CHAIN).status == "pass"


# the rolling cache's bookkeeping, in every size of a group

ROLLING = Case(
    hsk=64, hsv=64, n_head_kv=2, n_group=2, ne3=2, n_kv=30, n_batch=30, mask_kind="causal",
    regime="normal",
    hot_window=8, group=3, cold_type="q8_0",
)  # fmt: skip
WINDOWS = [  # hot_window, group, kv
    (8, 3, 30),
    (8, 4, 32),
    (8, 8, 33),
    (8, 1, 20),
    (7, 5, 23),
    (2, 1, 9),
    (5, 5, 11),
]

LOST = r"token \d+ is lost; it belongs to the (hot|cold) tokens"
TWICE = r"token \d+ is counted twice, in (hot|cold) slot \d+ and (hot|cold) slot \d+"
STRANGE = r"(hot|cold) slot \d+ is visible and holds no token's bytes in \S+"
MASK = r"token \d+ is in hot slot \d+ with another's mask column"

MISPLACED: list[tuple[type, str, Fault, str]] = [
    (fifo._Cache, "_evict", group_lost, LOST),
    (fifo._Cache, "_evict", group_counted_not_written, STRANGE),
    (fifo._Cache, "_evict", group_moved_twice, TWICE),
    (fifo._Cache, "hot_columns", copy_left_in_hot, f"{TWICE}|{LOST}"),
    (fifo._Cache, "_evict", one_token_too_many_leaves, LOST),
    (fifo._Cache, "_evict", next_token_moved, f"{TWICE}|{LOST}"),
    (fifo._Cache, "hot_columns", columns_of_the_next_slot, STRANGE),
    (fifo._Cache, "hot_columns", every_slot_shown, STRANGE),
    (fifo._Cache, "slot", ring_short_of_a_slot, LOST),
    (fifo._Store, "read", v_of_the_next_slot, STRANGE),
    (fifo._Store, "write", heads_swapped, STRANGE),
    (fifo._Store, "write", sequences_swapped, STRANGE),
]


def misplaced(library: Ggml, case: Case) -> str | None:
    with library.backend(case.threads) as backend:
        return rolling.misplaced(case, roll(library, case, make_inputs(case), backend).held)


def is_none(fault: Fault, hot_window: int, group: int) -> bool:
    """Tell whether a fault changes nothing.

    Of a group of one, the new token takes the slot in which a copy could be left; of a group as
    large as the ring, moving the next token of each moves all of them in another order.
    """
    return (fault, group) in ((copy_left_in_hot, 1), (next_token_moved, hot_window))


@pytest.mark.parametrize(
    ("shape", "where", "method", "fault", "reason"),
    [
        pytest.param(shape, *fault, id=f"{shape}-{fault[2].__name__}")
        for shape, fault in itertools.product(WINDOWS, MISPLACED)
        if not is_none(fault[2], *shape[:2])
    ],
)
def test_a_token_out_of_place_is_named_with_its_step(
    library: Ggml,
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, int, int],
    where: type,
    method: str,
    fault: Fault,
    reason: str,
) -> None:
    monkeypatch.setattr(where, method, fault(getattr(where, method)))
    hot_window, group, n_kv = shape
    case = ROLLING.with_(hot_window=hot_window, group=group, n_kv=n_kv, n_batch=n_kv)
    found = misplaced(library, case)
    assert found is not None
    assert re.fullmatch(rf"rolling cache at step \d+: ({reason})", found), found


def test_a_second_group_over_the_first_is_a_loss(
    library: Ggml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fifo._Cache, "_evict", written_over_the_last_group(fifo._Cache._evict))
    found = misplaced(library, ROLLING)
    assert found == "rolling cache at step 11: token 0 is lost; it belongs to the cold tokens"


def test_mask_columns_that_do_not_follow_their_tokens_show_with_alibi(
    library: Ggml, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = fifo._Cache.hot_columns
    monkeypatch.setattr(fifo._Cache, "hot_columns", columns_in_token_order(columns))
    assert misplaced(library, ROLLING) is None
    found = misplaced(library, ROLLING.with_(max_bias=8.0))
    assert found is not None
    assert re.fullmatch(rf"rolling cache at step 8: {MASK}", found), found


def test_a_lost_token_is_the_reason_though_the_oracle_sees_it_too(
    library: Ggml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fifo._Cache, "_evict", group_lost(fifo._Cache._evict))
    verdict = judged(library, ROLLING, ("fifo",))
    assert verdict.status == "fail"
    assert verdict.reason == (
        "rolling cache at step 8: token 0 is lost; it belongs to the cold tokens"
    )
    assert not verdict.comparisons["fifo_vs_oracle"].ok
