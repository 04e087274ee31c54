"""An RPC backend, which is another than the CPU's on any machine, and a scheduler over several.

What lies in the memory of one, the others cannot read: a scheduler copies it. The server of an RPC
backend is a process of its own, which computes on the CPU, listens on the loopback device, and ends
with the process that started it.

    python -m fa_harness.engine.ggml.remote MODULE ENDPOINT
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fa_harness.engine.ggml.graphs import Backend, Graph
from fa_harness.engine.ggml.tensors import Tensor

if TYPE_CHECKING:
    from fa_harness.engine.ggml.loaded import Ggml

_SECONDS = 30.0
"""A server that takes longer to start is lost."""
_ATTEMPTS = 3


class Remote(Backend):
    """The backend of a server; released on leaving the `with` block."""

    def __init__(self, ggml: Ggml, endpoint: str) -> None:
        """Take the address of a server, `HOST:PORT`."""
        super().__init__(ggml, 1, reference=False, poll=0)
        self._endpoint = endpoint

    def __enter__(self) -> Remote:
        device = device_of(self._ggml, self._endpoint)
        self._p = self._ggml._lib.ggml_backend_dev_init(device, self._ggml._ffi.NULL)
        return self

    def __exit__(self, *exception: object) -> None:
        self._ggml._lib.ggml_backend_free(self._p)


class Server:
    """A server of a library, which runs as long as this object lives, and the process."""

    def __init__(self, module_path: Path) -> None:
        """Start it.

        Raises:
            RuntimeError: It ends, or does not answer.
        """
        # another process may take the free port first
        if not any(self._starts(module_path) for _ in range(_ATTEMPTS)):
            raise RuntimeError(f"{module_path}: its RPC server does not answer at {self.endpoint}")

    def _starts(self, module_path: Path) -> bool:
        """Start it at a free port, and tell whether it answers."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.endpoint = f"127.0.0.1:{port}"
        command = [sys.executable, "-m", __name__, str(module_path), self.endpoint]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        stop = time.monotonic() + _SECONDS
        while time.monotonic() < stop and self._process.poll() is None:
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()
                return True
            time.sleep(0.01)
        self.close()
        return False

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


class Scheduler:
    """ggml's scheduler over backends, the CPU's last; released on leaving the `with` block."""

    def __init__(self, ggml: Ggml, backends: Sequence[Backend], *, parallel: bool = False) -> None:
        """Take the backends, each of which is held already.

        If it is `parallel`, inputs of a graph have several copies, which take turns.
        """
        self._ggml = ggml
        self._backends = backends
        self._parallel = parallel
        self._p: Any = None

    def __enter__(self) -> Scheduler:
        ffi, lib = self._ggml._ffi, self._ggml._lib
        n = len(self._backends)
        pointers = ffi.new("ggml_backend_t[]", [backend._p for backend in self._backends])
        self._p = lib.ggml_backend_sched_new(pointers, ffi.NULL, n, 2048, self._parallel, False)
        return self

    def __exit__(self, *exception: object) -> None:
        self._ggml._lib.ggml_backend_sched_free(self._p)

    def compute_on(self, node: Tensor, backend: Backend) -> None:
        """Compute a node on a backend, whatever the scheduler thinks."""
        self._ggml._lib.ggml_backend_sched_set_tensor_backend(self._p, node._p, backend._p)

    def compute(
        self,
        graph: Graph,
        kept: Sequence[Tensor],
        *,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Compute a graph whose nodes have no memory yet; those that are `kept` can be read.

        `before` is called when they have. What an earlier graph has left is lost then.
        """
        ffi, lib = self._ggml._ffi, self._ggml._lib
        for tensor in kept:
            whole = tensor._p.view_src  # only that has memory of its own
            lib.ggml_set_output(tensor._p if whole == ffi.NULL else whole)
        if not lib.ggml_backend_sched_alloc_graph(self._p, graph._p):
            raise MemoryError("ggml_backend_sched_alloc_graph: no memory for the graph")
        before()
        status = lib.ggml_backend_sched_graph_compute(self._p, graph._p)
        if status != lib.GGML_STATUS_SUCCESS:
            raise RuntimeError(f"ggml_backend_sched_graph_compute: status {status}")
        lib.ggml_backend_sched_reset(self._p)  # else it takes no other graph


def has_remote(ggml: Ggml) -> bool:
    """Tell whether a library has the RPC backend, and a scheduler for it and others."""
    ffi, lib = ggml._ffi, ggml._lib
    is_known = hasattr(lib, "ggml_backend_sched_new") and hasattr(lib, "ggml_backend_reg_by_name")
    return is_known and lib.ggml_backend_reg_by_name(b"RPC") != ffi.NULL


def device_of(ggml: Ggml, endpoint: str) -> Any:
    """Return the device of the server at an address, `HOST:PORT`."""
    add_server = _function(
        ggml, "ggml_backend_rpc_add_server", "ggml_backend_reg_t (*)(const char *)"
    )
    return ggml._lib.ggml_backend_reg_dev_get(add_server(endpoint.encode()), 0)


def _function(ggml: Ggml, name: str, type_: str) -> Any:
    ffi, lib = ggml._ffi, ggml._lib
    registry = lib.ggml_backend_reg_by_name(b"RPC")
    return ffi.cast(type_, lib.ggml_backend_reg_get_proc_address(registry, name.encode()))


def serve(ggml: Ggml, endpoint: str) -> None:
    """Serve the CPU backend of a library until the process ends."""
    ffi, lib = ggml._ffi, ggml._lib
    start = _function(
        ggml,
        "ggml_backend_rpc_start_server",
        "void (*)(const char *, const char *, size_t, size_t, ggml_backend_dev_t *)",
    )
    device = lib.ggml_backend_reg_dev_get(lib.ggml_backend_reg_by_name(b"CPU"), 0)
    start(endpoint.encode(), ffi.NULL, 1, 1, ffi.new("ggml_backend_dev_t[]", [device]))


def _end_with_parent() -> None:
    sys.stdin.buffer.read()  # until the parent has closed it, by its end at the latest
    os._exit(0)


if __name__ == "__main__":
    from fa_harness.engine.ggml.loaded import load

    threading.Thread(target=_end_with_parent, daemon=True).start()
    serve(load(Path(sys.argv[1])), sys.argv[2])
