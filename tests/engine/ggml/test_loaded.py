import itertools
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fa_harness.arrays import F32, U8
from fa_harness.build.library import Library
from fa_harness.case.case import Case
from fa_harness.case.inputs import make_inputs
from fa_harness.case.quants import TYPES, decode, row_bytes
from fa_harness.engine import ggml
from fa_harness.engine.compute import run_case
from fa_harness.engine.ggml import Ggml
from fa_harness.engine.layout import aligned
from fa_harness.errors import SetupError

SHAPE = (64, 5, 3, 2)
WIDE = (128, 5, 3, 2)  # a multiple of every type's block


def random_bytes(shape: Sequence[int], seed: int = 0) -> U8:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


# tensors


@pytest.mark.parametrize("type_", TYPES)
def test_a_tensor_gives_back_the_bytes_that_were_written(library: Ggml, type_: str) -> None:
    raw = random_bytes((2, 3, 5, row_bytes(type_, WIDE[0])))
    with library.context() as ctx, library.backend(1) as backend:
        tensor = ctx.tensor(type_, WIDE)
        backend.allocate(ctx)
        tensor.write(raw)
        assert tensor.type == type_
        assert tensor.nbytes == raw.nbytes
        np.testing.assert_array_equal(tensor.read_bytes(), raw.reshape(-1))
        assert tensor.holds(raw)
        for at in (0, raw.size // 2, raw.size - 1):
            changed = raw.copy()
            changed.reshape(-1)[at] ^= 1
            assert not tensor.holds(changed)
        assert not tensor.holds(raw[:1])
        tensor.fill(0xA5)
        assert tensor.holds(np.full_like(raw, 0xA5))


@pytest.mark.parametrize("type_", TYPES)
def test_shape_and_strides_are_numpy_s_reversed(library: Ggml, type_: str) -> None:
    raw = random_bytes((2, 3, 5, row_bytes(type_, WIDE[0])))
    with library.context() as ctx:
        tensor = ctx.tensor(type_, WIDE)
        assert tensor.ne == WIDE
        assert tensor.nb == (TYPES[type_].block_bytes, *raw.strides[-2::-1])


def test_numbers_come_back_in_numpy_s_order(library: Ggml) -> None:
    numbers = np.arange(2 * 3 * 5 * 64, dtype=np.float32).reshape(2, 3, 5, 64)
    with library.context() as ctx, library.backend(1) as backend:
        tensor = ctx.tensor("f32", SHAPE)
        backend.allocate(ctx)
        tensor.write(numbers)
        np.testing.assert_array_equal(tensor.read(), numbers)


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 2, 1, 3), (0, 1, 3, 2), (0, 3, 1, 2)], ids=str)
@pytest.mark.parametrize("type_", ["f32", "f16", "q8_0"])
def test_rows_are_read_and_written_through_the_strides_of_a_view(
    library: Ggml, type_: str, axes: tuple[int, int, int, int]
) -> None:
    with library.context() as ctx, library.backend(1) as backend:
        whole = ctx.tensor(type_, (64, 8, 7, 6))
        view = ctx.permute(ctx.view(whole, (64, 5, 3, 2)), axes)
        backend.allocate(ctx)
        before = random_bytes((6, 7, 8, row_bytes(type_, 64)))
        whole.write(before)
        # ggml: dimension axes[i] of the view is i of the tensor; here dimensions count from the end
        order = [3 - axes.index(3 - i) for i in range(4)]
        rows = before[:2, :3, :5].transpose(order)
        np.testing.assert_array_equal(view.read_rows(), rows)
        np.testing.assert_array_equal(view.read_rows(1, 1), rows[:, :, 1:2])

        new = random_bytes(rows[:, :, 1:].shape, seed=1)
        view.write_rows(1, new)
        np.testing.assert_array_equal(view.read_rows(1), new)
        expected = before.copy()
        expected[:2, :3, :5].transpose(order)[:, :, 1:] = new
        np.testing.assert_array_equal(whole.read_bytes(), expected.reshape(-1))


def test_a_view_of_no_rows_reads_as_none(library: Ggml) -> None:
    with library.context() as ctx, library.backend(1) as backend:
        whole = ctx.tensor("f16", SHAPE)
        view = ctx.view(whole, (64, 0, 3, 2))
        backend.allocate(ctx)
        assert view.read_rows().shape == (2, 3, 0, 128)


@pytest.mark.parametrize("axes", list(itertools.permutations(range(4))), ids=str)
def test_a_permuted_view_has_the_strides_of_numpy_s_transpose(
    library: Ggml, axes: tuple[int, ...]
) -> None:
    array = np.zeros((2, 3, 5, 64), np.float32)
    # dimension axes[i] of the view is dimension i; NumPy counts the other way round and inverted
    source = [axes.index(i) for i in range(4)]
    moved = array.transpose([3 - i for i in reversed(source)])
    with library.context() as ctx:
        view = ctx.permute(ctx.tensor("f32", SHAPE), axes)
        assert view.ne == moved.shape[::-1]
        assert view.nb == moved.strides[::-1]


def test_a_view_has_the_strides_of_numpy_s_slice_and_begins_where_it_does(library: Ggml) -> None:
    numbers = np.arange(2 * 3 * 5 * 64, dtype=np.float32).reshape(2, 3, 5, 64)
    part = numbers[:, :, 2:4]
    with library.context() as ctx, library.backend(1) as backend:
        tensor = ctx.tensor("f32", SHAPE)
        view = ctx.view(tensor, (64, 2, 3, 2), offset=2 * tensor.nb[1])
        single = ctx.view(tensor, (64, 1, 1, 1), offset=2 * tensor.nb[1] + tensor.nb[2])
        backend.allocate(ctx)
        tensor.write(numbers)
        assert view.ne == part.shape[::-1]
        assert view.nb == part.strides[::-1]
        np.testing.assert_array_equal(single.read().reshape(64), numbers[0, 1, 2])


def test_an_empty_tensor_is_written_and_read_as_nothing(library: Ggml) -> None:
    with library.context() as ctx, library.backend(1) as backend:
        tensor = ctx.tensor("f32", (0, 5, 1, 1))
        ctx.tensor("f32", (1, 1, 1, 1))
        backend.allocate(ctx)
        tensor.write(np.zeros((5, 0), np.float32))
        assert tensor.read().shape == (1, 1, 5, 0)


def test_bytes_of_another_number_are_refused(library: Ggml) -> None:
    with library.context() as ctx:
        tensor = ctx.tensor("f16", SHAPE)
        with pytest.raises(ValueError, match=r"^tensor \(64, 5, 3, 2\) f16: 3840 bytes, not 7680$"):
            tensor.write(np.zeros((2, 3, 5, 64), np.float32))


def test_only_f32_is_read_as_numbers(library: Ggml) -> None:
    with library.context() as ctx:
        tensor = ctx.tensor("f16", SHAPE)
        with pytest.raises(ValueError, match="f16: only an f32 tensor is read as numbers"):
            tensor.read()


# types


def special_blocks(type_: str) -> U8:
    """Blocks of all-equal bytes, and with extreme scales."""
    block_bytes = TYPES[type_].block_bytes
    equal = np.repeat(np.arange(256, dtype=np.uint8)[:, None], block_bytes, axis=1)
    if TYPES[type_].block_size == 1:
        return equal
    scales = np.array(
        [0, -0.0, 2**-24, -(2**-24), 2**-14, 1, 65504, -65504, np.inf, -np.inf, np.nan], np.float16
    )
    scaled = random_bytes((scales.size, block_bytes), seed=1)
    scaled[:, :2] = scales.view(np.uint8).reshape(-1, 2)
    return np.concatenate([equal, scaled])


def dequantise(library: Ggml, raw: U8, type_: str) -> F32:
    """Return the float32 values of rows, uint8 `[..., row_bytes]`, by the library's own code.

    It has none for `f32`.
    """
    block_size, block_bytes, enum_value = TYPES[type_]
    raw = np.ascontiguousarray(raw)
    out = np.empty((*raw.shape[:-1], raw.shape[-1] // block_bytes * block_size), np.float32)
    to_float = library._lib.ggml_get_type_traits(enum_value).to_float
    floats = library._ffi.cast("float *", library._pointer(out))
    to_float(library._pointer(raw), floats, out.size)
    return out


@pytest.mark.parametrize("type_", [name for name in TYPES if name != "f32"])
def test_the_library_decodes_as_the_reference_does_bit_for_bit(library: Ggml, type_: str) -> None:
    blocks = np.concatenate(
        [random_bytes((8192, TYPES[type_].block_bytes)), special_blocks(type_)]
    ).reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = decode(blocks, type_)
    got = dequantise(library, blocks, type_)
    is_nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), is_nan)
    np.testing.assert_array_equal(got.view(np.uint32)[~is_nan], expected.view(np.uint32)[~is_nan])
    assert is_nan.mean() < 0.2


@pytest.mark.parametrize("type_", ["f16", "bf16"])
def test_every_number_of_a_16_bit_type_is_decoded_as_the_reference_does(
    library: Ggml, type_: str
) -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.uint8)
    np.testing.assert_array_equal(dequantise(library, every, type_), decode(every, type_))


def test_decoded_rows_keep_their_shape(library: Ggml) -> None:
    raw = random_bytes((2, 3, row_bytes("q4_1", 64)))
    assert dequantise(library, raw, "q4_1").shape == (2, 3, 64)


# the library


def test_features_are_names_of_which_some_hold_for_every_processor(library: Ggml) -> None:
    features = library.features()
    assert len(set(features)) == len(features)
    assert "REPACK" in features
    assert all(name.replace("_", "").isalnum() for name in features)


def test_what_a_library_can_is_known(library: Ggml) -> None:
    assert library.has_state
    assert library.has_reference


def test_contexts_and_backends_are_released(library: Ggml) -> None:
    def use() -> None:
        with library.context() as ctx, library.backend(2) as backend:
            tensor = ctx.tensor("f32", (1 << 18, 1, 1, 1))  # 1 MiB
            backend.allocate(ctx)
            tensor.write(np.ones(1 << 18, np.float32))

    use()
    before, threads = resident_kib(), n_threads()
    for _ in range(200):
        use()
    assert resident_kib() - before < 20 * 1024
    assert n_threads() == threads


def resident_kib() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 1024


def n_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_a_context_is_released_when_its_block_fails(library: Ggml) -> None:
    before = n_threads()
    for _ in range(20):
        with pytest.raises(KeyError), library.context(), library.backend(3):
            raise KeyError
    assert n_threads() == before


def test_too_large_a_tensor_is_a_memory_error(library: Ggml) -> None:
    with library.context() as ctx, library.backend(1) as backend:
        ctx.tensor("f32", (1 << 46, 1, 1, 1))
        with pytest.raises(MemoryError, match="not enough memory for the tensors"):
            backend.allocate(ctx)


def test_a_file_that_is_no_module_is_an_error_that_names_it(tmp_path: Path) -> None:
    module = tmp_path / "_ggml.so"
    module.write_text("no library")
    with pytest.raises(SetupError, match=r"_ggml\.so: cannot be loaded .*; run `fa-harness build`"):
        ggml.load(module)


def test_a_file_of_another_kind_is_an_error_that_names_it(tmp_path: Path) -> None:
    module = tmp_path / "_ggml.txt"
    module.write_text("no library")
    with pytest.raises(SetupError, match=r"_ggml\.txt: not a module of this Python"):
        ggml.load(module)


# memory


def test_a_tensor_lives_in_an_array_that_is_placed(library: Ggml) -> None:
    array = aligned(np.arange(2 * 3 * 5 * 64, dtype=np.float32).reshape(2, 3, 5, 64))
    with library.context() as ctx, library.backend(1) as backend:
        tensor = ctx.tensor("f32", SHAPE)
        ctx.place(tensor, array)
        view = ctx.view(tensor, (64, 1, 3, 2))
        ctx.tensor("f32", SHAPE)
        backend.allocate(ctx)  # the other one; the view gets its place in the array
        np.testing.assert_array_equal(tensor.read(), array)
        array[0, 0, 0, 0] = 7
        assert tensor.read()[0, 0, 0, 0] == 7
        tensor.write(np.zeros_like(array))
        assert not array.any()
        assert view.ne == (64, 1, 3, 2)


@pytest.mark.parametrize("wrong", ["size", "place", "strides"])
def test_an_array_that_does_not_fit_a_tensor_is_not_placed(library: Ggml, wrong: str) -> None:
    array = aligned(np.zeros(64 * 5 * 3 * 2 + 64, np.float32))
    array = {
        "size": array,
        "place": array[1:-63],
        "strides": aligned(np.zeros((64 * 5 * 3 * 2, 2), np.float32))[:, 0],
    }[wrong]
    with library.context() as ctx:
        message = r"takes 7680 contiguous bytes at a multiple of 64, not \d+ at 0x"
        with pytest.raises(ValueError, match=message):
            ctx.place(ctx.tensor("f32", SHAPE), array)


def test_allocations_of_a_graph_are_counted_those_of_its_work_memory_too(library: Ggml) -> None:
    with library.context() as ctx, library.backend(2) as backend:
        ne = (64, 5, 2, 1)
        q, k, v = tensors = [ctx.tensor(type_, ne) for type_ in ("f32", "f16", "f16")]
        calls = [ctx.flash_attn_ext(q, k, v, None, scale=1.0) for _ in range(3)]
        backend.allocate(ctx)
        for tensor in tensors:
            tensor.write(np.zeros(tensor.nbytes, np.uint8))
        first, second, third, of_three = (
            backend.count_allocations(ctx.graph(outputs))
            for outputs in ([calls[0]], [calls[0]], [calls[0]], calls)
        )
    assert first is not None
    assert second is not None
    assert first > second  # the work memory
    assert second == third == of_three  # what upstream takes for a graph, whatever is in it


def test_allocations_of_a_library_whose_files_went_away_are_counted(
    patched: Library, tmp_path: Path
) -> None:
    program = """
import pathlib, shutil, sys
from fa_harness.engine import ggml

module = pathlib.Path(sys.argv[1])
library = ggml.load(module)
with library.context() as ctx, library.backend(1) as backend:
    q, k, v = (ctx.tensor(type_, (64, 5, 2, 1)) for type_ in ("f32", "f16", "f16"))
    graph = ctx.graph([ctx.flash_attn_ext(q, k, v, None, scale=1.0)])
    backend.allocate(ctx)
    backend.compute(graph)
    counts = [backend.count_allocations(graph)]
    module.parent.rename(module.parent.with_name("elsewhere"))
    counts.append(backend.count_allocations(graph))
    shutil.copytree(module.parent.with_name("elsewhere"), module.parent)  # as a build puts it there
    counts.append(backend.count_allocations(graph))
    shutil.rmtree(module.parent)
    counts.append(backend.count_allocations(graph))
    library._folder = library._folder.with_name("never")
    counts.append(backend.count_allocations(graph))
print(counts)
"""
    copy = tmp_path / "library"
    shutil.copytree(patched.path, copy, symlinks=True)
    module = copy / patched.module_path.relative_to(patched.path)
    done = subprocess.run(
        [sys.executable, "-c", program, module], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.replace("None", "null"))
    assert counts[0] > 0
    assert counts == [counts[0]] * 4 + [None]  # what is not found is unknown, not 0


# two libraries in one process


def file_at(address: int) -> Path:
    """Return the file that is mapped at an address of this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        limits, *_, name = line.split()
        start, stop = (int(limit, 16) for limit in limits.split("-"))
        if start <= address < stop:
            return Path(name)
    raise AssertionError(f"nothing is mapped at {address:#x}")


@pytest.mark.parametrize("part", ["cpu", "base"])
def test_each_of_two_libraries_runs_its_own_code(
    library: Ggml, patched: Library, pristine: Library, part: str
) -> None:
    for loaded, of in ((ggml.load(pristine.module_path), pristine), (library, patched)):
        lib, ffi = loaded._lib, loaded._ffi
        data = lib.ggml_backend_cpu_reg() if part == "cpu" else lib.ggml_get_type_traits(1)
        path = file_at(int(ffi.cast("uintptr_t", data)))
        assert path.parent == of.path
        assert path.name.startswith(f"libggml-{part}-")


def test_two_libraries_compute_side_by_side(library: Ggml, pristine: Library) -> None:
    other = ggml.load(pristine.module_path)
    assert (other.has_state, library.has_state) == (False, True)
    case = Case(hsk=64, hsv=64, n_head_kv=2, n_batch=3, n_kv=70, threads=2)
    inputs = make_inputs(case)
    expected = run_case(library, case, inputs, ("standard",)).results["standard"].output
    with library.backend(2), other.backend(2):
        runs = [run_case(each, case, inputs, ("standard",)) for each in (other, library, other)]
    for run in runs:
        np.testing.assert_array_equal(run.results["standard"].output, expected)


def test_two_libraries_of_one_build_folder_are_refused(
    library: Ggml, patched: Library, before_scheduler: Library
) -> None:
    message = r"0006: cannot be loaded beside .*lib/state, since both hold libggml.*; load it in a"
    with pytest.raises(SetupError, match=message):
        ggml.load(before_scheduler.module_path)


# what ggml_flash_attn_ext_with_state refuses

CALL = """
import sys
from pathlib import Path
from fa_harness.engine import ggml
library = ggml.load(Path(sys.argv[1]))
with library.context() as ctx:
    shapes = dict(q=(32, 3, 4, 2), k=(32, 7, 2, 2), v=(64, 7, 2, 2), state=(66, 3, 4, 2),
                  mask=(7, 3, 1, 1))
    types = dict(q="f32", k="f16", v="f16", state="f32", mask="f16")
    exec(sys.argv[2])
    t = {name: ctx.tensor(types[name], shape) for name, shape in shapes.items()}
    if "permuted" in globals():
        t["state"] = ctx.permute(t["state"], permuted)
    ctx.flash_attn_ext(t["q"], t["k"], t["v"], t["mask"], scale=1.0, state=t["state"])
"""


def call(library: Library, change: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CALL, str(library.module_path), change]
    environment = {"GGML_NO_BACKTRACE": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_a_right_state_is_accepted(patched: Library) -> None:
    done = call(patched, "")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("types['state'] = 'f16'", "state must be F32"),
        ("shapes['state'] = (64, 3, 4, 2)", "ne[0] == 2 + head size of v"),
        ("shapes['state'] = (34, 3, 4, 2)", "ne[0] == 2 + head size of v"),
        ("shapes['state'] = (66, 4, 4, 2)", "ne[1] == n_batch"),
        ("shapes['state'] = (66, 4, 3, 2)", "ne[1] == n_batch"),
        ("shapes['state'] = (66, 3, 2, 2)", "ne[2] == n_head"),
        ("shapes['state'] = (66, 3, 4, 1)", "ne[3] == ne3"),
        ("shapes['state'] = (66, 4, 3, 2); permuted = (0, 2, 1, 3)", "state must be contiguous"),
        ("types['q'] = 'f16'", "q must be F32"),
        ("shapes['k'] = (64, 7, 2, 2)", "k and q must have the same head size"),
        ("shapes['v'] = (64, 8, 2, 2)", "k and v must have the same number of tokens"),
        ("shapes['k'] = (32, 7, 3, 2)", "the heads of q must be a multiple of the heads of k"),
        ("shapes['v'] = (64, 7, 3, 2)", "the heads of q must be a multiple of the heads of v"),
        ("shapes['mask'] = (6, 3, 1, 1)", "mask must have a column per token of k"),
        ("shapes['mask'] = (7, 2, 1, 1)", "mask must have a row per token of q"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(patched: Library, change: str, message: str) -> None:
    done = call(patched, change)
    assert done.returncode == -6
    assert "GGML_ASSERT" in done.stderr
    assert message in done.stderr
