"""A loaded library and thin typed wrappers over what the harness needs of ggml."""

from __future__ import annotations

import importlib.util
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fa_harness.arrays import F32, U8, Array
from fa_harness.case import quants
from fa_harness.engine.ggml import allocations
from fa_harness.errors import SetupError

S = TypeVar("S", bound=np.generic)

_CONTEXT_BYTES = 32 << 20
"""For headers of tensors and graphs only. They lie in a mapping of their own, whose pages are not
taken until they are used; memory of `malloc` may be filled at once (glibc's M_PERTURB)."""

_holders: dict[str, tuple[Path, int]] = {}
"""By the name of a shared library, the folder that it was loaded from and its inode."""


def load(module_path: Path) -> Ggml:
    """Load the cffi module of a library, and with it the library's shared objects.

    A process can hold several libraries if they were built in different folders, as `pristine` and
    `patched` are. The dynamic linker tells shared objects apart by their names, which end in a tag
    of the build folder; of two libraries with one tag it would take the first for the second.

    Raises:
        SetupError: The module cannot be loaded, or this process holds another library of its tag.
    """
    folder = module_path.resolve().parent
    holders = {path.name: (folder, path.stat().st_ino) for path in folder.glob("libggml*")}
    for name, (_, file) in holders.items():
        held_in, held = _holders.get(name, (folder, file))
        if held != file:  # of a link to the same file there is nothing to confuse
            raise SetupError(
                f"{folder}: cannot be loaded beside {held_in}, since both hold {name}; "
                "load it in a process of its own"
            )
    spec = importlib.util.spec_from_file_location("_ggml", module_path)
    if spec is None or spec.loader is None:
        raise SetupError(f"{module_path}: not a module of this Python; run `fa-harness build`")
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise SetupError(
            f"{module_path}: cannot be loaded ({error}); run `fa-harness build`"
        ) from error
    _holders.update(holders)
    return Ggml(module.ffi, module.lib, folder)


class Ggml:
    """A loaded library."""

    def __init__(self, ffi: Any, lib: Any, folder: Path) -> None:
        self._ffi = ffi
        self._lib = lib
        self._folder = folder
        self._spare: list[mmap.mmap] = []
        """Mappings that contexts have left: in a new one each page is a fault anew."""

    @property
    def has_state(self) -> bool:
        """Whether the library has `ggml_flash_attn_ext_with_state`."""
        return hasattr(self._lib, "ggml_flash_attn_ext_with_state")

    @property
    def has_state_after(self) -> bool:
        """Whether the library has `ggml_flash_attn_ext_get_state`."""
        return hasattr(self._lib, "ggml_flash_attn_ext_get_state")

    @property
    def has_merge(self) -> bool:
        """Whether the library has `ggml_flash_attn_ext_merge_states` and `..._from_state`.

        It has `ggml_flash_attn_ext_get_state` then, too.
        """
        return hasattr(self._lib, "ggml_flash_attn_ext_merge_states")

    @property
    def has_sinks(self) -> bool:
        """Whether the library has `ggml_flash_attn_ext_add_sinks`."""
        return hasattr(self._lib, "ggml_flash_attn_ext_add_sinks")

    @property
    def has_reference(self) -> bool:
        """Whether the library can be told to take the vec path for every shape (`use_ref`)."""
        return hasattr(self._lib, "ggml_backend_cpu_set_use_ref")

    @property
    def mask_pad(self) -> int:
        """What the rows of a mask have to be a multiple of."""
        return int(getattr(self._lib, "GGML_KQ_MASK_PAD", 1))

    @property
    def mutants(self) -> tuple[str, ...]:
        """The ids of the mutants, deliberate faults that only the library `mutants` has."""
        ids: list[str] = []
        if hasattr(self._lib, "ggml_fa_mutant_id"):
            while (found := self._lib.ggml_fa_mutant_id(len(ids))) != self._ffi.NULL:
                ids.append(self._ffi.string(found).decode())
        return tuple(ids)

    @property
    def mutant_reached(self) -> bool:
        """Whether a mutant is set and was computed with since then."""
        return bool(self.mutants) and bool(self._lib.ggml_fa_mutant_reached())

    def set_mutant(self, id_: str | None) -> None:
        """Compute with a mutant from now on, with None as without any.

        Raises:
            ValueError: The library has no such mutant.
        """
        if id_ is not None and id_ not in self.mutants:
            raise ValueError(f"the library has no mutant '{id_}'")
        if self.mutants:
            self._lib.ggml_fa_mutant_set(self._ffi.NULL if id_ is None else id_.encode())

    def features(self) -> tuple[str, ...]:
        """Return the CPU features that the library uses here, upstream's names, then our own.

        Ours are found by what FP16 cannot hold, since upstream does not list them for x86:
        `FP16_DOT`, F16 dot products add in FP16 registers; `FP16_MAD_128`, in steps of 128 elements
        an F16 V is multiplied by weights that are F16 numbers, too.
        """
        ffi, lib = self._ffi, self._lib
        reg = lib.ggml_backend_cpu_reg()
        address = lib.ggml_backend_reg_get_proc_address(reg, b"ggml_backend_get_features")
        names = []
        if address != ffi.NULL:
            feature = ffi.cast("ggml_backend_get_features_t", address)(reg)
            while feature.name != ffi.NULL:
                names.append(ffi.string(feature.name).decode())
                feature += 1
        if self._dot_adds_in_fp16():
            names.append("FP16_DOT")
        step = self._step_of_f16_weights()
        if step is not None:
            names.append(f"FP16_MAD_{step}")
        return tuple(names)

    def types(self) -> tuple[str, ...]:
        """Return the types of `quants.TYPES` that this ggml has, under the same number."""
        lib, string = self._lib, self._ffi.string
        return tuple(
            name
            for name, traits in quants.TYPES.items()
            if traits.ggml_type < lib.GGML_TYPE_COUNT
            and string(lib.ggml_get_type_traits(traits.ggml_type).type_name).decode() == name
        )

    def _dot_adds_in_fp16(self) -> bool:
        n = 4096
        x = np.ones(n, np.float16)
        x[: n // 2] = 2048.0  # 2048 + 1 is not an F16 number
        y = np.ones(n, np.float16)
        total = self._ffi.new("float *")
        dot = self._lib.ggml_get_type_traits_cpu(self._type("f16")).vec_dot
        dot(n, total, 0, self._pointer(x), 0, self._pointer(y), 0, 1)
        return bool(total[0] != x.astype(np.float64).sum())

    def _step_of_f16_weights(self) -> int | None:
        """Return of how many elements the steps are that round a key's weight to F16.

        Attention over two keys with V = 0 and V = v: the numerator is weight * v. Of 255 elements,
        those beyond the last whole step are computed singly.
        """
        n, weight, v = 255, np.exp(np.float32(-0.5)), np.float32(1 + 2**-9)
        singly, in_step = (np.float16(w * v) for w in (weight, np.float32(np.float16(weight))))
        assert singly != in_step
        with self.context() as ctx, self.backend(1) as backend:
            q = ctx.tensor("f32", (1, 1, 1, 1))
            keys, values = (ctx.tensor("f16", (size, 2, 1, 1)) for size in (1, n))
            output = ctx.flash_attn_ext(q, keys, values, None, scale=1.0)
            graph = ctx.graph([output])
            backend.allocate(ctx)
            q.write(np.ones(1, np.float32))
            keys.write(np.array([0, -0.5], np.float16))
            values.write(np.repeat(np.array([0, v], np.float16), n))
            backend.compute(graph)
            numerators = output.read().reshape(n) * (1 + weight)
        is_in_step = np.abs(numerators - in_step) < np.abs(numerators - singly)
        n_in_step = int(is_in_step.sum())
        return n + 1 - n_in_step if n_in_step else None

    def dequantise(self, raw: U8, type_: str) -> F32:
        """Return the float32 values of rows `[..., row_bytes]`, by the library's own code.

        Args:
            raw: uint8 `[..., row_bytes]`.
            type_: The rows' type, any but `f32`, which needs no decoding.
        """
        block_size, block_bytes, _ = quants.TYPES[type_]
        raw = np.ascontiguousarray(raw)
        out = np.empty((*raw.shape[:-1], raw.shape[-1] // block_bytes * block_size), np.float32)
        to_float = self._lib.ggml_get_type_traits(self._type(type_)).to_float
        to_float(self._pointer(raw), self._ffi.cast("float *", self._pointer(out)), out.size)
        return out

    def context(self) -> Context:
        """Return an empty context; its tensors have no memory until `Backend.allocate`."""
        return Context(self)

    def backend(self, n_threads: int, *, reference: bool = False, poll: int = 0) -> Backend:
        """Return a CPU backend with a thread pool of its own.

        Args:
            n_threads: Threads that compute, the calling one among them.
            reference: Take the vec path for every shape (upstream's `use_ref`).
            poll: How long a thread spins for the next graph before it sleeps: 131,072 times this
                many turns, some milliseconds each; 0 sleeps at once. Between graphs the cores are
                NumPy's, so a thread should spin only where graph follows graph.
        """
        return Backend(self, n_threads, reference=reference, poll=poll)

    def _mapping(self) -> mmap.mmap:
        """Return memory for a context."""
        if self._spare:
            return self._spare.pop()
        try:
            return mmap.mmap(-1, _CONTEXT_BYTES, flags=mmap.MAP_PRIVATE)
        except OSError as error:
            raise MemoryError(f"no memory for a context of {_CONTEXT_BYTES} bytes") from error

    def _type(self, name: str) -> int:
        return quants.TYPES[name].ggml_type

    def _pointer(self, array: Array) -> Any:
        return self._ffi.from_buffer(array)


class Tensor:
    """A tensor of a context: shape `ne` in elements and strides `nb` in bytes, `ne[0]` first."""

    def __init__(self, ggml: Ggml, pointer: Any, type_: str) -> None:
        self._ggml = ggml
        self._p = pointer
        self.type = type_
        n0, n1, n2, n3 = pointer.ne
        self.ne: tuple[int, int, int, int] = (n0, n1, n2, n3)
        """The shape, in elements."""
        self._nbytes: int | None = None

    @property
    def nb(self) -> tuple[int, int, int, int]:
        """The strides, in bytes."""
        n0, n1, n2, n3 = self._p.nb
        return n0, n1, n2, n3

    @property
    def nbytes(self) -> int:
        """The bytes from the first element to the end of the last."""
        if self._nbytes is None:
            self._nbytes = int(self._ggml._lib.ggml_nbytes(self._p))
        return self._nbytes

    def write(self, array: Array) -> None:
        """Fill the whole of a contiguous tensor with the array's bytes.

        Raises:
            ValueError: The array has not as many bytes as the tensor.
        """
        array, nbytes = np.ascontiguousarray(array), self.nbytes
        if array.nbytes != nbytes:
            raise ValueError(f"tensor {self.ne} {self.type}: {nbytes} bytes, not {array.nbytes}")
        if nbytes:
            self._ggml._lib.ggml_backend_tensor_set(self._p, self._ggml._pointer(array), 0, nbytes)

    def fill(self, byte: int) -> None:
        """Fill the whole of a contiguous tensor with a byte."""
        self._ggml._lib.ggml_backend_tensor_memset(self._p, byte, 0, self.nbytes)

    def read_bytes(self) -> U8:
        """Return the bytes of a contiguous tensor."""
        return self._into(np.empty(self.nbytes, np.uint8))

    def holds(self, data: U8) -> bool:
        """Tell whether a contiguous tensor in the CPU's memory has the bytes of such an array."""
        nbytes = self.nbytes
        return nbytes == 0 or bool(self._ggml._ffi.buffer(self._p.data, nbytes) == data)

    def write_rows(self, start: int, rows: U8) -> None:
        """Write rows at index `start` of dimension 1, whatever the strides.

        Args:
            start: Index of the first.
            rows: uint8 `[ne3, ne2, n, row_bytes]`.

        Raises:
            ValueError: They are not rows of this tensor.
        """
        ne0, ne1, ne2, ne3 = self.ne
        n = rows.shape[2]
        if rows.shape != (ne3, ne2, n, quants.row_bytes(self.type, ne0)) or start + n > ne1:
            raise ValueError(f"tensor {self.ne} {self.type}: no place for {rows.shape} at {start}")
        rows = np.ascontiguousarray(rows)
        _, nb1, nb2, nb3 = self.nb
        for i3, i2, i1 in np.ndindex(rows.shape[:3]):
            row = rows[i3, i2, i1]
            offset = i3 * nb3 + i2 * nb2 + (start + i1) * nb1
            self._ggml._lib.ggml_backend_tensor_set(
                self._p, self._ggml._pointer(row), offset, row.nbytes
            )

    def read_rows(self, start: int = 0, n: int | None = None) -> U8:
        """Return rows of a tensor or a view, whatever the strides.

        Args:
            start: Index of the first, in dimension 1.
            n: How many; None for all that follow.

        Returns:
            uint8 `[ne3, ne2, n, row_bytes]`.
        """
        ne0, ne1, ne2, ne3 = self.ne
        shape = (ne3, ne2, ne1 - start if n is None else n, quants.row_bytes(self.type, ne0))
        if shape[2] == 0:
            return np.empty(shape, np.uint8)
        strides = (*self.nb[:0:-1], 1)
        # one read from the first row to the last, with what lies between them
        size = sum((count - 1) * stride for count, stride in zip(shape, strides, strict=True)) + 1
        out = np.empty(size, np.uint8)
        self._ggml._lib.ggml_backend_tensor_get(
            self._p, self._ggml._pointer(out), start * self.nb[1], size
        )
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(out, shape, strides))

    def read(self) -> F32:
        """Return a contiguous F32 tensor as an array of shape `ne[::-1]`."""
        if self.type != "f32":
            raise ValueError(f"tensor {self.ne} {self.type}: only an f32 tensor is read as numbers")
        return self._into(np.empty(self.ne[::-1], np.float32))

    def _into(self, out: npt.NDArray[S]) -> npt.NDArray[S]:
        """Return a contiguous array of as many bytes with the bytes of a contiguous tensor."""
        if out.size:
            pointer = self._ggml._pointer(out)
            self._ggml._lib.ggml_backend_tensor_get(self._p, pointer, 0, out.nbytes)
        return out


class Graph:
    """Nodes in the order in which the CPU backend computes them."""

    def __init__(self, ggml: Ggml, pointer: Any) -> None:
        self._ggml = ggml
        self._p = pointer

    def work_size(self, n_threads: int) -> int:
        """Return the bytes of work memory that upstream plans for the graph."""
        plan = self._ggml._lib.ggml_graph_plan(self._p, n_threads, self._ggml._ffi.NULL)
        return int(plan.work_size)


class Context:
    """Tensors and graphs; released on leaving the `with` block, and with it their memory."""

    def __init__(self, ggml: Ggml) -> None:
        self._ggml = ggml
        self._p: Any = None
        self._memory: mmap.mmap | None = None
        self._buffers: list[Any] = []
        self._arrays: list[Array] = []

    def __enter__(self) -> Context:
        ffi, lib = self._ggml._ffi, self._ggml._lib
        self._memory = self._ggml._mapping()
        params = {
            "mem_size": _CONTEXT_BYTES,
            "mem_buffer": ffi.from_buffer(self._memory),
            "no_alloc": True,
        }
        self._p = lib.ggml_init(ffi.new("struct ggml_init_params *", params)[0])
        return self

    @property
    def ggml(self) -> Ggml:
        """The library that it is of."""
        return self._ggml

    def __exit__(self, *exception: object) -> None:
        for buffer in self._buffers:
            self._ggml._lib.ggml_backend_buffer_free(buffer)
        self._ggml._lib.ggml_free(self._p)
        if self._memory is not None:
            self._ggml._spare.append(self._memory)
        self._buffers, self._arrays, self._p, self._memory = [], [], None, None

    def tensor(self, type_: str, ne: Sequence[int]) -> Tensor:
        """Return a new contiguous tensor of shape `ne` (four numbers)."""
        pointer = self._ggml._lib.ggml_new_tensor_4d(self._p, self._ggml._type(type_), *ne)
        return Tensor(self._ggml, pointer, type_)

    def place(self, tensor: Tensor, array: Array) -> None:
        """Let a tensor live in an array's memory: nothing is copied, what one writes, both hold.

        Args:
            tensor: A tensor without memory that is no view.
            array: Contiguous, as many bytes as the tensor, at a multiple of 64 bytes; the context
                keeps it alive.

        Raises:
            ValueError: The array is not so.
        """
        address = array.ctypes.data
        if array.nbytes != tensor.nbytes or address % 64 or not array.flags.c_contiguous:
            raise ValueError(
                f"tensor {tensor.ne} {tensor.type}: takes {tensor.nbytes} contiguous bytes at a "
                f"multiple of 64, not {array.nbytes} at {address:#x}"
            )
        lib, pointer = self._ggml._lib, self._ggml._pointer(array)
        buffer = lib.ggml_backend_cpu_buffer_from_ptr(pointer, array.nbytes)
        lib.ggml_backend_tensor_alloc(buffer, tensor._p, pointer)
        self._buffers.append(buffer)
        self._arrays.append(array)

    def permute(self, a: Tensor, axes: Sequence[int]) -> Tensor:
        """Return a view of `a` whose dimension `axes[i]` is dimension `i` of `a`."""
        return Tensor(self._ggml, self._ggml._lib.ggml_permute(self._p, a._p, *axes), a.type)

    def view(self, a: Tensor, ne: Sequence[int], *, offset: int = 0) -> Tensor:
        """Return a view of `a` with a shape of its own and the strides of `a`.

        Args:
            a: The tensor that owns the memory, or a view of it.
            ne: Shape, four numbers.
            offset: Bytes from the start of `a`.
        """
        pointer = self._ggml._lib.ggml_view_4d(self._p, a._p, *ne, *a.nb[1:], offset)
        return Tensor(self._ggml, pointer, a.type)

    def flash_attn_ext(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        *,
        scale: float,
        max_bias: float = 0.0,
        logit_softcap: float = 0.0,
        state: Tensor | None = None,
        sinks: Tensor | None = None,
        prec: str = "f32",
        n_kv_max: int = 0,
    ) -> Tensor:
        """Return the attention of `q` over `k` and `v`; with a state, continuing from and into it.

        Args:
            q: F32 `[hsk, n_batch, n_head, ne3]`.
            k: `[hsk, n_kv, n_head_kv, ne3]`.
            v: `[hsv, n_kv, n_head_kv, ne3]`.
            mask: F16, contiguous, `[n_kv, n_batch, 1 or more, 1 or ne3]`.
            scale: Factor of `q . k`.
            max_bias: ALiBi, 0 for none.
            logit_softcap: Soft cap of the scaled scores, 0 for none.
            state: F32 `[2 + hsv, n_batch, n_head, ne3]`, rows `[M, S, VKQ]`.
            sinks: F32 `[n_head, 1, 1, 1]`; of a chain, for its last call only.
            prec: Precision of the accumulator that is asked for, `f32` or `def`.
            n_kv_max: Upper bound on the finite entries of a mask row, 0 for none.

        Returns:
            F32 `[hsv, n_head, n_batch, ne3]`.
        """
        lib, null = self._ggml._lib, self._ggml._ffi.NULL
        inputs = (q._p, k._p, v._p, mask._p if mask else null)
        factors = (scale, max_bias, logit_softcap)
        if state is None:
            out = lib.ggml_flash_attn_ext(self._p, *inputs, *factors)
        else:
            out = lib.ggml_flash_attn_ext_with_state(self._p, *inputs, state._p, *factors)
        if sinks is not None:
            lib.ggml_flash_attn_ext_add_sinks(out, sinks._p)
        precision = {"def": lib.GGML_PREC_DEFAULT, "f32": lib.GGML_PREC_F32}[prec]
        if hasattr(lib, "ggml_prec_set_acc"):
            lib.ggml_prec_set_acc(out, precision)
        else:
            lib.ggml_flash_attn_ext_set_prec(out, precision)
        if n_kv_max:
            lib.ggml_flash_attn_ext_set_n_kv_max(out, n_kv_max)
        return Tensor(self._ggml, out, "f32")

    def state_after(self, a: Tensor) -> Tensor:
        """Return the state that the call `a` leaves: its state, as a tensor that depends on `a`.

        A call of the same graph that continues `a` takes this as its state.
        """
        pointer = self._ggml._lib.ggml_flash_attn_ext_get_state(self._p, a._p)
        return Tensor(self._ggml, pointer, "f32")

    def merge_states(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the state of the keys of both `a` and `b`: a new tensor of their shape."""
        pointer = self._ggml._lib.ggml_flash_attn_ext_merge_states(self._p, a._p, b._p)
        return Tensor(self._ggml, pointer, "f32")

    def from_state(self, state: Tensor) -> Tensor:
        """Return the attention that a state stands for, F32 `[hsv, n_head, n_batch, ne3]`."""
        pointer = self._ggml._lib.ggml_flash_attn_ext_from_state(self._p, state._p)
        return Tensor(self._ggml, pointer, "f32")

    def graph(self, outputs: Sequence[Tensor], *, size: int = 64) -> Graph:
        """Return a graph that computes `outputs`, each after all before it.

        Args:
            outputs: What to compute, and all that it depends on.
            size: Nodes and leaves that the graph has room for.
        """
        lib = self._ggml._lib
        pointer = lib.ggml_new_graph_custom(self._p, max(size, 8 * len(outputs)), False)
        for output in outputs:
            lib.ggml_build_forward_expand(pointer, output._p)
        return Graph(self._ggml, pointer)


class Backend:
    """A CPU backend with a thread pool of its own; released on leaving the `with` block."""

    def __init__(self, ggml: Ggml, n_threads: int, *, reference: bool, poll: int) -> None:
        self._ggml = ggml
        self._reference = reference
        self._poll = poll
        self.n_threads = n_threads
        self._p: Any = None
        self._pool: Any = None

    def __enter__(self) -> Backend:
        lib = self._ggml._lib
        params = lib.ggml_threadpool_params_default(self.n_threads)
        params.poll = self._poll
        self._pool = lib.ggml_threadpool_new(self._ggml._ffi.addressof(params))
        if self._pool == self._ggml._ffi.NULL:
            raise MemoryError(f"ggml_threadpool_new: no pool of {self.n_threads} threads")
        self._p = lib.ggml_backend_cpu_init()
        lib.ggml_backend_cpu_set_n_threads(self._p, self.n_threads)
        lib.ggml_backend_cpu_set_threadpool(self._p, self._pool)
        if self._reference:
            lib.ggml_backend_cpu_set_use_ref(self._p, True)
        return self

    def __exit__(self, *exception: object) -> None:
        self._ggml._lib.ggml_backend_free(self._p)
        self._ggml._lib.ggml_threadpool_free(self._pool)
        self._p = self._pool = None

    def allocate(self, ctx: Context) -> None:
        """Give memory to all tensors of the context that have none.

        Raises:
            MemoryError: There is not enough.
        """
        buffer = self._ggml._lib.ggml_backend_alloc_ctx_tensors(ctx._p, self._p)
        if buffer == self._ggml._ffi.NULL:
            raise MemoryError("ggml_backend_alloc_ctx_tensors: not enough memory for the tensors")
        ctx._buffers.append(buffer)

    def compute(self, graph: Graph) -> None:
        """Compute the graph.

        Raises:
            RuntimeError: The backend gave another status than success.
        """
        status = self._ggml._lib.ggml_backend_graph_compute(self._p, graph._p)
        if status != self._ggml._lib.GGML_STATUS_SUCCESS:
            raise RuntimeError(f"ggml_backend_graph_compute: status {status}")

    def count_allocations(self, graph: Graph) -> int | None:
        """Compute the graph; return how often the library asked for memory, None if unknown.

        The first graph of a backend asks for the work memory; any graph for what upstream's
        `ggml_graph_compute` takes for itself.
        """
        if not allocations.can_count():
            return None
        with allocations.counted(self._ggml._folder) as count:
            self.compute(graph)
            return count()
