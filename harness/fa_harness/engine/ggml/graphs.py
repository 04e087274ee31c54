"""Contexts, in which tensors and graphs are made, and the backend that computes them."""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fa_harness.arrays import Array
from fa_harness.engine.ggml import allocations
from fa_harness.engine.ggml.guards import Guarded
from fa_harness.engine.ggml.tensors import Shape, Tensor, WrongTensorError
from fa_harness.machine import available_memory

if TYPE_CHECKING:
    from fa_harness.engine.ggml.loaded import Ggml

CONTEXT_BYTES = 32 << 20
"""For headers of tensors and graphs only. They lie in a mapping of their own, whose pages are not
taken until they are used; memory of `malloc` may be filled at once (glibc's M_PERTURB)."""

_PRECISION = ("ggml_flash_attn_ext_set_prec", "ggml_prec_set_acc")

Found = dict[str, None]
"""What was written outside of tensors and work memory, in words, each once and in order."""


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

    def __init__(self, ggml: Ggml, outside: Found | None) -> None:
        self.ggml = ggml
        self._outside = outside
        self._p: Any = None
        self._wholes: list[Tensor] = []
        self._guarded: list[tuple[Guarded, list[Tensor]]] = []
        self._memory: mmap.mmap | None = None
        self._buffers: list[Any] = []
        self._arrays: list[Array] = []

    def __enter__(self) -> Context:
        ffi, lib = self.ggml._ffi, self.ggml._lib
        self._memory = self.ggml._mapping()
        params = {
            "mem_size": CONTEXT_BYTES,
            "mem_buffer": ffi.from_buffer(self._memory),
            "no_alloc": True,
        }
        self._p = lib.ggml_init(ffi.new("struct ggml_init_params *", params)[0])
        return self

    def __exit__(self, *exception: object) -> None:
        if self._outside is not None:
            for memory, tensors in self._guarded:
                for part, where, first, last in memory.lift():
                    self._outside[tensors[part].written(where, first, last)] = None
        for buffer in self._buffers:
            self.ggml._lib.ggml_backend_buffer_free(buffer)
        self.ggml._lib.ggml_free(self._p)
        if self._memory is not None:
            self.ggml._spare.append(self._memory)
        self._buffers, self._arrays, self._p, self._memory = [], [], None, None
        self._wholes, self._guarded = [], []

    def tensor(self, type_: str, ne: Sequence[int], name: str = "a tensor") -> Tensor:
        """Return a new contiguous tensor of shape `ne` (four numbers)."""
        pointer = self.ggml._lib.ggml_new_tensor_4d(self._p, self.ggml._type(type_), *ne)
        tensor = Tensor(self.ggml, pointer, type_, name)
        self._wholes.append(tensor)
        return tensor

    def place(self, tensor: Tensor, array: Array) -> None:
        """Let a tensor that has no memory live in an array's: what one writes, both hold.

        The array is contiguous and begins at a multiple of 64 bytes. The context keeps it alive.
        """
        address = array.ctypes.data
        if array.nbytes != tensor.nbytes or address % 64 or not array.flags.c_contiguous:
            raise ValueError(
                f"tensor {tensor.ne} {tensor.type}: takes {tensor.nbytes} contiguous bytes at a "
                f"multiple of 64, not {array.nbytes} at {address:#x}"
            )
        lib, pointer = self.ggml._lib, self.ggml._pointer(array)
        buffer = lib.ggml_backend_cpu_buffer_from_ptr(pointer, array.nbytes)
        lib.ggml_backend_tensor_alloc(buffer, tensor._p, pointer)
        self._buffers.append(buffer)
        self._arrays.append(array)
        self._wholes.remove(tensor)

    def permute(self, a: Tensor, axes: Sequence[int]) -> Tensor:
        """Return a view of `a` whose dimension `axes[i]` is dimension `i` of `a`."""
        return Tensor(self.ggml, self.ggml._lib.ggml_permute(self._p, a._p, *axes), a.type)

    def view(self, a: Tensor, ne: Sequence[int], *, offset: int = 0) -> Tensor:
        """Return a view of `a` from an offset in bytes, with its strides and a shape of its own."""
        pointer = self.ggml._lib.ggml_view_4d(self._p, a._p, *ne, *a.nb[1:], offset)
        return Tensor(self.ggml, pointer, a.type)

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
        starts: bool = False,
    ) -> Tensor:
        """Return the attention of `q` over `k` and `v`, F32 `[hsv, n_head, n_batch, ne3]`.

        With a state it continues from and into it. A library whose calls return the new state
        copies it there in the graph of the call; a call that `starts` a chain is given none to
        continue, as if the state were fresh. Q is F32 `[hsk, n_batch, n_head, ne3]`, K and V
        are `[hsk or hsv, n_kv, n_head_kv, ne3]`, the mask is F16, contiguous,
        `[n_kv, n_batch, 1 or more, 1 or ne3]`, the state F32 `[2 + hsv, n_batch, n_head, ne3]`, its
        rows `[M, S, VKQ]`. Sinks, F32 `[n_head, 1, 1, 1]`, are for the last call of a chain only.
        The other arguments are those of a `Case`.
        """
        lib, null = self.ggml._lib, self.ggml._ffi.NULL
        inputs = (q._p, k._p, v._p, mask._p if mask else null)
        factors = (scale, max_bias, logit_softcap)
        if state is None:
            call = lib.ggml_flash_attn_ext(self._p, *inputs, *factors)
        elif self.ggml.has_partial:
            earlier = null if starts else state._p
            call = lib.ggml_flash_attn_ext_partial(self._p, *inputs, earlier, *factors)
        else:
            call = lib.ggml_flash_attn_ext_with_state(self._p, *inputs, state._p, *factors)
        if sinks is not None:
            lib.ggml_flash_attn_ext_add_sinks(call, sinks._p)
        self._set_precision(call, prec)
        if n_kv_max:
            lib.ggml_flash_attn_ext_set_n_kv_max(call, n_kv_max)
        ne = (v.ne[0], q.ne[2], q.ne[1], q.ne[3])
        if state is None or not self.ggml.has_partial:
            return self._result("ggml_flash_attn_ext", call, ne)
        part = self._result("ggml_flash_attn_ext_partial", call, state.ne, "the partial result")
        part.kept_in = state.kept_in or state
        part.continued = None if starts else state
        out = self.reduce([part])
        out.part = part
        return out

    def filled(self, a: Tensor, value: float) -> Tensor:
        """Return a new tensor of the shape of `a` that holds a value everywhere."""
        return Tensor(self.ggml, self.ggml._lib.ggml_fill(self._p, a._p, value), a.type)

    def take_sinks(self, a: Tensor) -> None:
        """Take the sinks of the call `a` away again."""
        call = a.part or a
        self.ggml._lib.ggml_flash_attn_ext_add_sinks(call._p, self.ggml._ffi.NULL)

    def _set_precision(self, out: Any, prec: str) -> None:
        """Set the accumulator's precision, by each function that the library has for it.

        The CPU does not look at it. Where the library tells what is set, it has to be what was: the
        other precision first, since one of them is there from the beginning.
        """
        lib = self.ggml._lib
        either = {"def": lib.GGML_PREC_DEFAULT, "f32": lib.GGML_PREC_F32}
        wanted, [other] = either.pop(prec), either.values()
        names = [name for name in _PRECISION if hasattr(lib, name)]
        for name, precision in itertools.product(names, (other, wanted)):
            getattr(lib, name)(out, precision)
            if hasattr(lib, "ggml_flash_attn_ext_get_prec"):
                found = lib.ggml_flash_attn_ext_get_prec(out)
                if found != precision:
                    raise WrongTensorError(
                        f"{name} was told precision {precision}, and "
                        f"ggml_flash_attn_ext_get_prec says {found}"
                    )

    def state_after(self, a: Tensor) -> Tensor:
        """Return the state that the call `a` leaves: its state, as a tensor that depends on `a`.

        A call of the same graph that continues `a` takes this as its state.
        """
        if a.part is not None:
            return a.part
        pointer = self.ggml._lib.ggml_flash_attn_ext_get_state(self._p, a._p)
        hsv, n_head, n_batch, ne3 = a.ne
        ne = (2 + hsv, n_batch, n_head, ne3)
        return self._result("ggml_flash_attn_ext_get_state", pointer, ne)

    def merge_states(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the state of the keys of both `a` and `b`: a new tensor of their shape."""
        pointer = self.ggml._lib.ggml_flash_attn_ext_merge_states(self._p, a._p, b._p)
        return self._result("ggml_flash_attn_ext_merge_states", pointer, a.ne, "the merged state")

    def from_state(self, state: Tensor) -> Tensor:
        """Return the attention that a state stands for, F32 `[hsv, n_head, n_batch, ne3]`."""
        pointer = self.ggml._lib.ggml_flash_attn_ext_from_state(self._p, state._p)
        row, n_batch, n_head, ne3 = state.ne
        ne = (row - 2, n_head, n_batch, ne3)
        return self._result("ggml_flash_attn_ext_from_state", pointer, ne, "the result of a state")

    def reduce(self, states: Sequence[Tensor]) -> Tensor:
        """Return the attention over the keys of all states, F32 `[hsv, n_head, n_batch, ne3]`."""
        ffi, lib = self.ggml._ffi, self.ggml._lib
        pointers = ffi.new("struct ggml_tensor *[]", [state._p for state in states])
        pointer = lib.ggml_flash_attn_ext_reduce(self._p, pointers, len(states))
        row, n_batch, n_head, ne3 = states[0].ne
        return self._result("ggml_flash_attn_ext_reduce", pointer, (row - 2, n_head, n_batch, ne3))

    def _result(self, function: str, pointer: Any, ne: Shape, name: str = "dst") -> Tensor:
        """Return what a function of the library gives, which must be F32 of a shape."""
        tensor = Tensor(self.ggml, pointer, "f32", name)
        if tensor.ne != ne or pointer.type != self.ggml._type("f32"):
            raise WrongTensorError(
                f"{function} gives a tensor {list(tensor.ne)} of type {pointer.type}, it must be "
                f"{list(ne)} of type {self.ggml._type('f32')} (F32)"
            )
        if pointer.view_src == self.ggml._ffi.NULL:
            self._wholes.append(tensor)
        return tensor

    def _allocate_guarded(self) -> None:
        """Give memory to all tensors but one, with guards around each; views are left to ggml."""
        ffi, lib = self.ggml._ffi, self.ggml._lib
        memory = Guarded([tensor.nbytes for tensor in self._wholes])
        self._guarded.append((memory, self._wholes))
        buffer = lib.ggml_backend_cpu_buffer_from_ptr(
            ffi.cast("void *", memory.address), memory.size
        )
        self._buffers.append(buffer)
        for tensor, address in zip(self._wholes, memory.addresses, strict=True):
            lib.ggml_backend_tensor_alloc(buffer, tensor._p, ffi.cast("void *", address))
        self._wholes = []
        # ggml gives views their place only where something is left that needs memory
        lib.ggml_new_tensor_4d(self._p, self.ggml._type("f32"), 1, 1, 1, 1)

    def graph(self, outputs: Sequence[Tensor], *, size: int = 64, kept: bool = True) -> Graph:
        """Return a graph that computes `outputs`, each after all before it.

        It has room for `size` nodes and leaves. The state after the last call of a chain is left
        where the state of the chain is, unless it need not be `kept`: a library that returns it
        copies it. A call between would find it there even if it continued the wrong one.
        """
        lib = self.ggml._lib
        pointer = lib.ggml_new_graph_custom(self._p, max(size, 8 * len(outputs)), False)
        for output in outputs:
            lib.ggml_build_forward_expand(pointer, output._p)
        parts = [output.part for output in outputs if output.part is not None] if kept else []
        continued = [part.continued for part in parts]
        for part in parts:
            if part.kept_in is not None and part not in continued:
                copy = lib.ggml_cpy(self._p, part._p, part.kept_in._p)
                lib.ggml_build_forward_expand(pointer, copy)
        return Graph(self.ggml, pointer)


class Backend:
    """A CPU backend with a thread pool of its own; released on leaving the `with` block."""

    def __init__(
        self,
        ggml: Ggml,
        n_threads: int,
        *,
        reference: bool,
        poll: int,
        outside: Found | None = None,
    ) -> None:
        self._ggml = ggml
        self._reference = reference
        self._poll = poll
        self.outside = outside
        """What was found to be written outside of work memory; None without guards."""
        self._work: dict[int, Guarded] = {}
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
        self._work = {}

    def allocate(self, ctx: Context) -> None:
        """Give memory to all tensors of the context that have none."""
        if ctx._outside is not None:
            ctx._allocate_guarded()
        buffer = self._ggml._lib.ggml_backend_alloc_ctx_tensors(ctx._p, self._p)
        if buffer == self._ggml._ffi.NULL:
            raise MemoryError("ggml_backend_alloc_ctx_tensors: not enough memory for the tensors")
        ctx._buffers.append(buffer)

    def compute(self, graph: Graph) -> None:
        """Compute the graph, in work memory with guards if the backend has them."""
        if self.outside is not None:
            self._compute_guarded(graph, self.outside)
            return
        status = self._ggml._lib.ggml_backend_graph_compute(self._p, graph._p)
        if status != self._ggml._lib.GGML_STATUS_SUCCESS:
            raise RuntimeError(f"ggml_backend_graph_compute: status {status}")

    def _compute_guarded(self, graph: Graph, outside: Found) -> None:
        ffi, lib = self._ggml._ffi, self._ggml._lib
        plan = lib.ggml_graph_plan(graph._p, self.n_threads, self._pool)
        size = plan.work_size
        memory = self._work.get(size)
        if memory is None:
            available = available_memory()
            if available is not None and size > available:  # as estimated, the case fits
                raise WrongTensorError(
                    f"ggml_graph_plan asks for {size} bytes of work memory; the machine has "
                    f"{available} left"
                )
            memory = self._work[size] = Guarded([size])
        plan.work_data = ffi.cast("uint8_t *", memory.addresses[0])
        status = lib.ggml_graph_compute(graph._p, ffi.addressof(plan))
        for _, where, first, last in memory.lift():
            n_byte = last + 1 - first
            outside[f"{n_byte} bytes {where} work memory from byte {first} on"] = None
        memory.set()  # for the next graph
        if status != lib.GGML_STATUS_SUCCESS:
            raise RuntimeError(f"ggml_graph_compute: status {status}")

    def count_allocations(self, graph: Graph) -> int | None:
        """Compute the graph; return how often the library asked for memory, None if unknown.

        The first graph of a backend asks for the work memory. Any graph asks for what upstream's
        `ggml_graph_compute` takes for itself.
        """
        with allocations.counted(self._ggml._folder) as count:
            self.compute(graph)
            return count()
