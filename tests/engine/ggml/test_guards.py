"""Guards around memory: what is written there is found with its place, and what is read is NaN."""

import ctypes
from typing import Any

import numpy as np
import pytest

from fa_harness.case.quants import TYPES, decode, row_bytes
from fa_harness.engine.ggml import Ggml, guards
from fa_harness.engine.ggml.guards import Guarded, Written

SIZES = [256, 18, 0, 1, 4096]


def write(address: int, data: bytes) -> None:
    ctypes.memmove(address, data, len(data))


def test_parts_begin_at_multiples_of_64_bytes_with_room_for_a_row_between_them() -> None:
    memory = Guarded(SIZES)
    starts = [*memory.addresses, memory.address + memory.size]
    assert all(address % 64 == 0 for address in memory.addresses)
    assert memory.addresses[0] - memory.address >= 512
    for size, start, after in zip(SIZES, memory.addresses, starts[1:], strict=True):
        assert after - start - size >= 512


def test_what_is_written_to_the_parts_is_no_fault() -> None:
    memory = Guarded(SIZES)
    for address, size in zip(memory.addresses, SIZES, strict=True):
        write(address, bytes(size))
    assert memory.lift() == []


@pytest.mark.parametrize("part", range(len(SIZES)))
@pytest.mark.parametrize("distance", [0, 4, 200])
def test_what_is_written_behind_a_part_is_found(part: int, distance: int) -> None:
    memory = Guarded(SIZES)
    write(memory.addresses[part] + SIZES[part] + distance, bytes(4))
    first = SIZES[part] + distance
    assert memory.lift() == [Written(part, "behind", first, first + 3)]


@pytest.mark.parametrize("part", range(len(SIZES)))
def test_what_is_written_before_a_part_is_found(part: int) -> None:
    memory = Guarded(SIZES)
    write(memory.addresses[part] - 4, bytes(4))
    assert memory.lift() == [Written(part, "before", -4, -1)]


def test_each_guard_that_was_written_to_is_told_until_it_is_set_anew() -> None:
    memory = Guarded(SIZES)
    for part in (0, 3):
        write(memory.addresses[part] + SIZES[part], b"\0")
    assert [found.part for found in memory.lift()] == [found.part for found in memory.lift()]
    memory.set()
    assert memory.lift() == []


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("size", [0, 2, 18, 34])
def test_a_row_that_is_read_from_a_guard_is_nan(type_: str, size: int) -> None:
    memory = Guarded([size])
    n = 256 if row_bytes(type_, 256) <= 512 else 64
    start = memory.addresses[0] - memory.address + size
    row = memory._memory[start : start + row_bytes(type_, n)]
    assert np.isnan(decode(row[None], type_)).all()


def test_unused_cells_that_are_copied_to_a_guard_are_found() -> None:
    memory = Guarded([64])
    write(memory.addresses[0] + 64, b"\xff" * 4)
    assert len(memory.lift()) == 1


def test_a_sanitizer_is_told_of_the_guards_and_that_they_are_lifted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[tuple[str, int, int]] = []
    for name in ("_POISON", "_UNPOISON"):

        def tell(address: Any, size: Any, name: str = name) -> None:
            told.append((name, address.value, size.value))

        monkeypatch.setattr(guards, name, tell)
    memory = Guarded([100])
    end = memory.addresses[0] + 100
    places = [(memory.address, 512), (end, memory.address + memory.size - end)]
    assert told == [("_POISON", *place) for place in places]
    told.clear()
    memory.lift()
    assert told == [("_UNPOISON", *place) for place in places]


@pytest.mark.parametrize(
    ("type_", "ne", "first", "words"),
    [
        ("f32", (64, 3, 2, 1), 1536, "4 bytes behind k from byte 1536 on: row 6 (of 0 to 5), elem"),
        ("f32", (64, 3, 2, 1), 1542, "4 bytes behind k from byte 1540 on: row 6 (of 0 to 5), elem"),
        ("f16", (64, 3, 2, 1), 902, "2 bytes behind k from byte 902 on: row 7 (of 0 to 5), elem"),
        ("q8_0", (64, 3, 2, 1), 443, "34 bytes behind k from byte 442 on: row 6 (of 0 to 5), bloc"),
        ("f32", (64, 3, 2, 1), -1, "4 bytes behind k from byte -4 on: row -1 (of 0 to 5), element"),
        ("f32", (0, 3, 2, 1), 0, "4 bytes behind k from byte 0 on"),
    ],
)
def test_a_place_outside_a_tensor_is_told_by_its_row_and_element(
    library: Ggml, type_: str, ne: tuple[int, ...], first: int, words: str
) -> None:
    with library.context() as ctx:
        found = ctx.tensor(type_, ne, "k").written("behind", first, first)
    assert found.startswith(words)


def test_tensors_of_a_context_and_the_work_memory_have_guards(library: Ggml) -> None:
    outside: dict[str, None] = {}
    with (
        library.backend(1, outside=outside) as backend,
        library.context(outside) as ctx,
    ):
        whole = ctx.tensor("f16", (64, 8, 1, 1), "the cache")
        view = ctx.view(whole, (64, 4, 1, 1), offset=whole.nb[1])
        q = ctx.tensor("f32", (64, 1, 1, 1), "q")
        out = ctx.flash_attn_ext(q, view, view, None, scale=1.0)
        backend.allocate(ctx)
        whole.write(np.zeros((8, 64), np.float16))
        q.write(np.zeros(64, np.float32))
        backend.compute(ctx.graph([out]))
        assert not out.read().any()
        [work] = backend._work.values()
        addresses = [
            int(library._ffi.cast("uintptr_t", tensor._p.data)) + tensor.nbytes
            for tensor in (whole, q, out)
        ]
        for address in addresses:
            write(address, bytes(2))
        write(work.address + work._guards[1][0], bytes(8))
        backend.compute(ctx.graph([out]))
        assert list(outside) == [
            f"8 bytes behind work memory from byte {next(iter(backend._work))} on"
        ]
    assert list(outside)[1:] == [
        "2 bytes behind the cache from byte 1024 on: row 8 (of 0 to 7), element 0",
        "4 bytes behind q from byte 256 on: row 1 (of 0 to 0), element 0",
        "4 bytes behind dst from byte 256 on: row 1 (of 0 to 0), element 0",
    ]
