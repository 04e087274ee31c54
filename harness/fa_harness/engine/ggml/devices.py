"""The devices that a library reaches, and a backend on one of them.

ggml's registry names devices: `CPU`, `Vulkan0`, `CUDA0`. `RPC` is none of the registry's: it stands
for a server of the same library, a process that starts when it is asked for. It computes with one
thread, whatever a case says. Bounds are those of the case's threads, which are no smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fa_harness.engine.ggml.graphs import Backend, Graph
from fa_harness.errors import SetupError

if TYPE_CHECKING:
    from fa_harness.engine.ggml.loaded import Ggml

CPU = "CPU"
RPC = "RPC"


class RefusedError(Exception):
    """A device says that it does not support an op."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device of a library."""

    name: str
    """What `--backend` calls it."""
    description: str
    """The hardware, or its driver."""
    free: int
    """Bytes of its memory that are free, 0 where it does not say."""
    total: int
    """Bytes of its memory, 0 where it does not say."""


class OnDevice(Backend):
    """A backend on a device of the registry or of a server; released on leaving the `with` block.

    Nothing guards what lies around its tensors, and it plans no work memory.
    """

    def __init__(self, ggml: Ggml, name: str) -> None:
        """Take the name of a device, as `--backend` has it; `find` raises what is wrong with it."""
        super().__init__(ggml, 1, reference=False, poll=0)
        self._name = name

    def __enter__(self) -> OnDevice:
        ffi, lib = self._ggml._ffi, self._ggml._lib
        self._p = lib.ggml_backend_dev_init(find(self._ggml, self._name), ffi.NULL)
        if self._p == ffi.NULL:
            raise SetupError(
                f"{self._name}: its backend cannot be started; `fa-harness devices` lists what "
                "the library reaches"
            )
        return self

    def __exit__(self, *exception: object) -> None:
        self._ggml._lib.ggml_backend_free(self._p)

    def compute(self, graph: Graph) -> None:
        """Compute the graph.

        Raises:
            RefusedError: The device does not support one of its nodes.
        """
        self._check(graph)
        super().compute(graph)

    def _check(self, graph: Graph) -> None:
        ffi, lib = self._ggml._ffi, self._ggml._lib
        for i in range(lib.ggml_graph_n_nodes(graph._p)):
            node = lib.ggml_graph_node(graph._p, i)
            if not lib.ggml_backend_supports_op(self._p, node):
                op = ffi.string(lib.ggml_op_desc(node)).decode()
                raise RefusedError(f"{self._name} does not support {op} of these shapes and types")


def devices(ggml: Ggml) -> tuple[Device, ...]:
    """Return the devices of the library's registry, then that of its server, if it has one."""
    ffi, lib = ggml._ffi, ggml._lib
    found = []
    if not _knows_devices(ggml):
        return ()
    for i in range(lib.ggml_backend_dev_count()):
        device = lib.ggml_backend_dev_get(i)
        free, total = ffi.new("size_t *"), ffi.new("size_t *")
        lib.ggml_backend_dev_memory(device, free, total)
        found.append(
            Device(
                name=ffi.string(lib.ggml_backend_dev_name(device)).decode(),
                description=ffi.string(lib.ggml_backend_dev_description(device)).decode(),
                free=free[0],
                total=total[0],
            )
        )
    if ggml.has_remote:
        text = "the CPU of this library, in a server on the loopback device"
        found.append(Device(name=RPC, description=text, free=0, total=0))
    return tuple(found)


def find(ggml: Ggml, name: str) -> Any:
    """Return a device by its name.

    Raises:
        SetupError: The library does not reach it.
    """
    ffi, lib = ggml._ffi, ggml._lib
    if name == RPC and ggml.has_remote:
        return ggml.remote_device()
    for i in range(lib.ggml_backend_dev_count() if _knows_devices(ggml) else 0):
        device = lib.ggml_backend_dev_get(i)
        if ffi.string(lib.ggml_backend_dev_name(device)).decode() == name:
            return device
    known = ", ".join(device.name for device in devices(ggml)) or CPU
    raise SetupError(
        f"backend '{name}': the library has no such device; it has {known}; "
        "`fa-harness devices` tells more"
    )


def _knows_devices(ggml: Ggml) -> bool:
    return hasattr(ggml._lib, "ggml_backend_dev_count")
