"""A peer's ggml is fetched by its pin, built as one shared library, and not built twice."""

import ctypes
from pathlib import Path

from fa_harness.build.peer import build_peer
from fa_harness.project import Project
from fa_harness.upstream.pins import load_pins


def test_a_peer_is_built_once_and_can_be_loaded(project: Project) -> None:
    pin = load_pins(project.pins_file).get()
    library = build_peer(project, pin)
    assert library.is_relative_to(project.build / "peers")
    assert ctypes.CDLL(str(library)).ggml_backend() == 0
    before = library.stat()
    assert build_peer(project, pin) == library
    assert library.stat().st_mtime_ns == before.st_mtime_ns


def test_a_damaged_build_is_made_again(project: Project) -> None:
    pin = load_pins(project.pins_file).get()
    library = build_peer(project, pin)
    Path(library).unlink()
    assert build_peer(project, pin).is_file()
