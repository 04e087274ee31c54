"""A `llama-server` that a test starts, and what it answers."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_START_SECONDS, _ANSWER_SECONDS = 120, 300
_VERBOSE = "5"
"""Verbosity at which llama.cpp tells of tokens that move."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server."""

    url: str
    log: Path

    def post(self, path: str, **body: object) -> dict[str, Any]:
        """Return the answer to a request; an error of the server is one, too, as `error`."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:
                found: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            found = json.load(error)
        return found

    def said(self, pattern: str) -> int:
        """Return how often something is in the log."""
        return len(re.findall(pattern, self.log.read_text(errors="replace")))


def run_to_end(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=_START_SECONDS)


@contextlib.contextmanager
def serving(program: Path, *arguments: str | Path, log: Path) -> Iterator[Server]:
    """Start a server, wait until it has loaded its model, and end it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    address = ("--host", "127.0.0.1", "--port", port)
    with log.open("w") as output:
        process = subprocess.Popen(
            [program, *address, "-lv", _VERBOSE, *arguments], stdout=output, stderr=output
        )
        try:
            server = Server(url=f"http://127.0.0.1:{port}", log=log)
            end = time.monotonic() + _START_SECONDS
            while not _is_ready(server):
                assert process.poll() is None, log.read_text()[-2000:]
                assert time.monotonic() < end, f"{program.name} does not start; see {log}"
                time.sleep(0.1)
            yield server
        finally:
            process.terminate()
            process.wait()


def _is_ready(server: Server) -> bool:
    try:
        with urllib.request.urlopen(server.url + "/health", timeout=5):
            return True
    except OSError:
        return False
