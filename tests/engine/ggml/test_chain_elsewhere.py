"""A chain in one graph under the graph allocator, the scheduler and the RPC backend.

What is computed, and by what means, is in `chain_elsewhere.py`. Each runs in a process of its own,
since a refusal ends it.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fa_harness.build.library import Library

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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, str(PROGRAM), str(patched.module_path), "serve", endpoint]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            _wait_for(process, endpoint)
            yield endpoint
        finally:
            process.kill()


def _wait_for(process: subprocess.Popen[bytes], endpoint: str) -> None:
    host, port = endpoint.split(":")
    for _ in range(600):
        try:
            socket.create_connection((host, int(port))).close()
            return
        except ConnectionRefusedError:
            try:
                raise AssertionError(f"the server ended with {process.wait(timeout=0.1)}")
            except subprocess.TimeoutExpired:
                continue
    raise AssertionError(f"no server at {endpoint} after a minute")


def test_the_graph_allocator_keeps_a_state_that_is_input_and_output(
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


def test_without_the_scheduler_s_patch_the_state_is_lost_in_a_copy(
    before_scheduler: Library, plain: list[float], server: str
) -> None:
    assert numbers(chain(before_scheduler, "rpc-kv", server)) != plain


@pytest.mark.parametrize("how", ["rpc-state", "rpc-fresh"])
def test_the_scheduler_refuses_a_state_that_it_would_have_to_copy(
    patched: Library, server: str, how: str
) -> None:
    result = chain(patched, how, server)
    assert result.returncode != 0
    message = result.stderr.decode()
    assert (
        "an operation (FLASH_ATTN_EXT) that runs on CPU must be in a buffer of that back" in message
    )
