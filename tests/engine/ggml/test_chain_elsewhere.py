"""A chain in one graph under the graph allocator, the scheduler and the RPC backend.

What is computed, and by what means, is in `chain_elsewhere.py`. Each runs in a process of its own,
since a refusal ends it.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fa_harness.build.library import Library
from fa_harness.engine.ggml.remote import Server

PROGRAM = Path(__file__).with_name("chain_elsewhere.py")
Result = subprocess.CompletedProcess[bytes]


def chain(library: Library, how: str, *endpoint: str) -> Result:
    return subprocess.run(
        [sys.executable, PROGRAM, library.module_path, how, *endpoint],
        capture_output=True,
        timeout=120,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
    )


def numbers(result: Result) -> list[float]:
    assert result.returncode == 0, result.stderr.decode()
    values: list[float] = np.frombuffer(result.stdout, np.float32).tolist()
    assert values
    return values


@pytest.fixture(scope="module")
def plain(patched: Library) -> list[float]:
    """The last output and the state of a chain on one CPU backend."""
    return numbers(chain(patched, "plain"))


@pytest.fixture(scope="module")
def server(patched: Library) -> Iterator[str]:
    """The address of an RPC server of the patched library, on the loopback device."""
    of_library = Server(patched.module_path)
    yield of_library.endpoint
    of_library.close()


def test_the_graph_allocator_keeps_a_state_that_is_input_and_output_up_to_the_graph_s_end(
    patched: Library, plain: list[float]
) -> None:
    assert numbers(chain(patched, "allocated")) == plain


def test_a_scheduler_over_two_cpu_backends_keeps_the_state(
    patched: Library, plain: list[float]
) -> None:
    assert numbers(chain(patched, "two-cpu")) == plain


def test_an_rpc_server_of_the_same_tree_computes_the_chain(
    patched: Library, plain: list[float], server: str
) -> None:
    assert numbers(chain(patched, "rpc", server)) == plain


def test_the_rpc_backend_refuses_the_op_with_a_state_only(patched: Library, server: str) -> None:
    assert numbers(chain(patched, "supports", server)) == [1, 0]


def test_the_scheduler_computes_where_the_state_is(
    patched: Library, plain: list[float], server: str
) -> None:
    assert numbers(chain(patched, "rpc-kv", server)) == plain


def test_a_state_that_the_graph_makes_is_made_where_the_calls_run(
    patched: Library, plain: list[float], server: str
) -> None:
    assert numbers(chain(patched, "rpc-fresh", server)) == plain


@pytest.mark.parametrize("how", ["kept", "kept-parallel"])
def test_a_state_that_the_user_allocated_is_kept_from_graph_to_graph(
    patched: Library, plain: list[float], server: str, how: str
) -> None:
    assert numbers(chain(patched, how, server)) == plain


def test_a_state_that_a_graph_allocates_is_lost_to_the_next_graph(
    patched: Library, plain: list[float]
) -> None:
    assert numbers(chain(patched, "overwritten")) != plain


def test_the_scheduler_refuses_a_state_that_it_would_have_to_copy(
    patched: Library, server: str
) -> None:
    result = chain(patched, "rpc-state", server)
    assert result.returncode != 0
    message = result.stderr.decode()
    assert (
        "an operation (FLASH_ATTN_EXT) that runs on CPU must be in a buffer of that back" in message
    )


def test_a_server_ends_with_the_process_that_started_it(patched: Library) -> None:
    program = (
        "import os, pathlib, sys\n"
        "from fa_harness.engine.ggml.remote import Server\n"
        f"server = Server(pathlib.Path({str(patched.module_path)!r}))\n"
        "print(server.endpoint, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    host, port = done.stdout.strip().split(":")
    stop = time.monotonic() + 60
    while time.monotonic() < stop:
        try:
            socket.create_connection((host, int(port))).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.05)
    raise AssertionError(f"a server still answers at {done.stdout}")


def test_a_server_that_cannot_start_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"gone\.py: its RPC server does not answer"):
        Server(tmp_path / "gone.py")
