"""A loaded library and thin typed wrappers over what the harness needs of ggml."""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
from pathlib import Path
from typing import Any

import numpy as np

from fa_harness.arrays import Array
from fa_harness.case import quants
from fa_harness.engine.ggml import devices
from fa_harness.engine.ggml.devices import CPU, RPC, Device, OnDevice
from fa_harness.engine.ggml.graphs import CONTEXT_BYTES, Backend, Context, Found
from fa_harness.engine.ggml.remote import Remote, Server, device_of, has_remote
from fa_harness.engine.ggml.tensors import WrongTensorError
from fa_harness.errors import SetupError
from fa_harness.kernel import DOT_ROWS, GROUPED, GROUPED_BF16, GROUPED_Q8

_GROUPED = "ggml_compute_forward_flash_attn_ext_grouped"

EVERY_MUTANT = "*"
"""In place of a mutant: compute with none, and note which ones would have been computed with."""

_holders: dict[str, tuple[Path, int]] = {}
"""By the name of a shared library, the folder that it was loaded from and its inode."""


def load(module_path: Path) -> Ggml:
    """Load the cffi module of a library, and with it the library's shared objects.

    A process can hold several libraries if they were built in different folders, as `pristine` and
    `patched` are. The dynamic linker tells shared objects apart by their names, which end in a tag
    of the build folder; of two libraries with one tag it would take the first for the second.
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
    return Ggml(module.ffi, module.lib, module_path.resolve())


class Ggml:
    """A loaded library."""

    def __init__(self, ffi: Any, lib: Any, module_path: Path) -> None:
        self._ffi = ffi
        self._lib = lib
        self._module_path = module_path
        self._folder = module_path.parent
        self._server: Server | None = None
        self._spare: list[mmap.mmap] = []
        """Mappings that contexts have left: in a new one each page is a fault anew."""
        self.has_partial = hasattr(lib, "ggml_flash_attn_ext_partial")
        """Whether a call returns the new state, which a reduction turns into the result, in place
        of updating a state and returning the result."""
        self.has_state = self.has_partial or hasattr(lib, "ggml_flash_attn_ext_with_state")
        self.has_state_after = self.has_partial or hasattr(lib, "ggml_flash_attn_ext_get_state")
        self.has_merge = hasattr(lib, "ggml_flash_attn_ext_merge_states")
        """It has `..._from_state` and `..._get_state` then, too."""
        self.has_sinks = hasattr(lib, "ggml_flash_attn_ext_add_sinks")
        self.has_reference = hasattr(lib, "ggml_backend_cpu_set_use_ref")
        """Whether the library can be told to take the vec path for every shape."""
        ids: list[str] = []
        if hasattr(lib, "ggml_fa_mutant_id"):
            while (found := lib.ggml_fa_mutant_id(len(ids))) != ffi.NULL:
                ids.append(ffi.string(found).decode())
        self.mutants = tuple(ids)
        """Deliberate faults that only the libraries `mutants`, `museum` and `generated` have."""
        self._mutant: str | None = None
        self.device = CPU
        """The device that cases are computed on."""

    @property
    def mask_pad(self) -> int:
        """What the rows of a mask have to be a multiple of."""
        return int(getattr(self._lib, "GGML_KQ_MASK_PAD", 1))

    @property
    def mutants_reached(self) -> frozenset[str]:
        """The mutants that were computed with since they were set: one, none, or noted ones."""
        lib = self._lib
        if self._mutant == EVERY_MUTANT:
            was_reached = lib.ggml_fa_mutant_was_reached
            return frozenset(id_ for i, id_ in enumerate(self.mutants) if was_reached(i))
        if self._mutant is None or not lib.ggml_fa_mutant_reached():
            return frozenset()
        return frozenset([self._mutant])

    def set_mutant(self, id_: str | None) -> None:
        """Compute with a mutant from now on, or with none.

        With `EVERY_MUTANT` it is none, too, and `mutants_reached` tells all that would have been
        computed with; only the library `generated` can note that.
        """
        if id_ is not None and id_ not in (*self.mutants, EVERY_MUTANT):
            raise ValueError(f"the library has no mutant '{id_}'")
        self._mutant = id_
        if id_ == EVERY_MUTANT:
            self._lib.ggml_fa_mutant_note_all()
        elif self.mutants:
            self._lib.ggml_fa_mutant_set(self._ffi.NULL if id_ is None else id_.encode())

    def features(self) -> tuple[str, ...]:
        """Return the CPU features that the library uses here, upstream's names, then our own.

        Ours are found by what FP16 cannot hold, since upstream does not list them for x86:
        `FP16_DOT`, F16 dot products add in FP16 registers; `FP16_MAD_128`, in steps of 128 elements
        an F16 V is multiplied by weights that are F16 numbers, too. `GROUPED` is of a library that
        computes the heads of a group together: the CPU backend has a function for it. `GROUPED_Q8`,
        its tiles round Q to 8 bits where K is Q8_0 or Q4_0; `GROUPED_BF16`, to BF16 where K is.
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
        if self._groups_heads():
            names.append(GROUPED)
            if self._tiles_round_q("q8_0", (127, 0.4), (0, 1)):
                names.append(GROUPED_Q8)
            if self._tiles_round_q("bf16", (1, 1 + 2**-9), (-64, 64)):
                names.append(GROUPED_BF16)
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

    def _groups_heads(self) -> bool:
        """Tell whether the CPU backend has a function for the heads of a group; none is called."""
        files = self._folder.glob("libggml-cpu*.so")  # loaded already
        return any(hasattr(ctypes.CDLL(str(file)), _GROUPED) for file in files)

    def _tiles_round_q(
        self, type_k: str, q_pair: tuple[float, float], k_pair: tuple[float, float]
    ) -> bool:
        """Tell whether a tile over two keys, K = 0 and K = k, rounds a q * k above 0.1 to 0."""
        n = 32
        q_row = np.zeros((DOT_ROWS, n), np.float32)
        q_row[:, :2] = q_pair
        k_rows = np.zeros((2, n), np.float32)
        k_rows[1, :2] = k_pair
        with self.context() as ctx, self.backend(1) as backend:
            q = ctx.tensor("f32", (n, DOT_ROWS, 1, 1))
            keys, values = ctx.tensor(type_k, (n, 2, 1, 1)), ctx.tensor("f32", (1, 2, 1, 1))
            output = ctx.flash_attn_ext(q, keys, values, None, scale=1.0)
            graph = ctx.graph([output])
            backend.allocate(ctx)
            q.write(q_row)
            keys.write(quants.encode(k_rows, type_k))
            values.write(np.array([0, 1], np.float32))
            backend.compute(graph)
            return bool((np.abs(output.read() - 0.5) < 2**-10).all())

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

    def context(self, outside: Found | None = None) -> Context:
        """Return an empty context; its tensors have no memory until `Backend.allocate`.

        With `outside` there are guards around each tensor in the CPU's memory. What was written
        there is told on leaving the `with` block: it becomes a key, in words.
        """
        return Context(self, outside)

    def backend(
        self,
        n_threads: int,
        *,
        reference: bool = False,
        poll: int = 0,
        outside: Found | None = None,
    ) -> Backend:
        """Return a CPU backend with a thread pool of its own; the calling thread is one of them.

        With `reference` every shape takes the vec path (upstream's `use_ref`). A thread spins for
        the next graph for `poll` times 131,072 turns, some milliseconds each, before it sleeps.
        Between graphs the cores are NumPy's, so it should spin only where graph follows graph.

        With `outside` there are guards around the work memory of each graph, and what was written
        there becomes a key, in words. A `reference` cannot have them.
        """
        return Backend(self, n_threads, reference=reference, poll=poll, outside=outside)

    @property
    def is_on_cpu(self) -> bool:
        """Whether cases are computed by the library itself, in this process."""
        return self.device == CPU

    def devices(self) -> tuple[Device, ...]:
        """Return the devices that the library reaches."""
        return devices.devices(self)

    def compute_on(self, device: str) -> None:
        """Compute cases on another device from now on.

        Raises:
            SetupError: The library does not reach it.
        """
        if device != CPU:
            devices.find(self, device)
            if device != RPC:
                raise SetupError(
                    f"backend '{device}': what its kernel rounds is not known to the verdicts; "
                    "take CPU or RPC"
                )
        self.device = device

    def computing(self, n_threads: int, *, outside: Found | None = None) -> Backend:
        """Return the backend that cases are computed on: that of the device.

        Threads and guards are the CPU's alone; see `backend`.
        """
        if not self.is_on_cpu:
            return OnDevice(self, self.device)
        return self.backend(n_threads, outside=outside)

    @property
    def has_remote(self) -> bool:
        """Whether the library has the RPC backend, and a scheduler for it and others."""
        return has_remote(self)

    def remote(self) -> Remote:
        """Return the RPC backend of a server of this library, which serves one at a time."""
        return Remote(self, self._endpoint())

    def remote_device(self) -> Any:
        """Return the device of this library's server."""
        return device_of(self, self._endpoint())

    def check_refusal(self) -> None:
        """Check that a scheduler refuses a state that it would have to copy.

        Raises:
            WrongTensorError: It does not.
        """
        from fa_harness.engine.ggml.refusal import is_refused  # it loads a library itself

        mutant = None if self._mutant == EVERY_MUTANT else self._mutant
        if not is_refused(self._module_path, self._endpoint(), mutant):
            raise WrongTensorError(
                "a state in the memory of another backend was not refused; its copy would be "
                "updated in its place"
            )

    def _endpoint(self) -> str:
        """Return the address of the server, which starts when it is first asked for."""
        if self._server is None:
            self._server = Server(self._module_path)
        return self._server.endpoint

    def _mapping(self) -> mmap.mmap:
        """Return memory for a context."""
        if self._spare:
            return self._spare.pop()
        try:
            return mmap.mmap(-1, CONTEXT_BYTES, flags=mmap.MAP_PRIVATE)
        except OSError as error:
            raise MemoryError(f"no memory for a context of {CONTEXT_BYTES} bytes") from error

    def _type(self, name: str) -> int:
        return quants.TYPES[name].ggml_type

    def _pointer(self, array: Array) -> Any:
        return self._ffi.from_buffer(array)
