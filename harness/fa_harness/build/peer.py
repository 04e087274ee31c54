"""The ggml of another project as a shared library, which `bench --peer` loads beside ours."""

from __future__ import annotations

from pathlib import Path

from fa_harness import terminal
from fa_harness.build import toolchain
from fa_harness.build.builder import NATIVE
from fa_harness.build.places import Copy
from fa_harness.errors import SetupError
from fa_harness.machine import cpu_features
from fa_harness.project import Project, locked
from fa_harness.upstream.pins import Pin

_PROJECT = NATIVE / "peer"

OPTIONS = {
    "BUILD_SHARED_LIBS": "ON",
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_BLAS": "OFF",
    "GGML_CUDA": "OFF",
    "GGML_IQK_FA_ALL_QUANTS": "ON",
    "GGML_IQK_FLASH_ATTENTION": "ON",
    "GGML_NATIVE": "ON",
    "GGML_OPENMP": "ON",  # without, each graph starts its threads anew
}
"""CMake options of a peer: what makes it fastest on a CPU."""


def peer_folder(project: Project, pin: Pin) -> Path:
    """Return where a peer's sources and its build are."""
    return project.build / "peers" / f"{pin.name}-{pin.version}-{pin.sha256[:8]}"


def build_peer(project: Project, pin: Pin) -> Path:
    """Return the shared library of a peer's ggml; fetch and build it if it is missing."""
    folder = peer_folder(project, pin)
    copy = Copy(
        src=folder / "src",
        cmake=folder / "cmake",
        own={},
        repository=folder / "src",
        before="",
        after="",
    )
    what = f"peer '{pin.name}'"
    tools = toolchain.find_tools()
    setup = {
        **{name: tool.version for name, tool in tools.items()},
        "options": OPTIONS,
        "cpu": cpu_features(),
        "project": (_PROJECT / "CMakeLists.txt").read_text("utf-8"),
    }
    with locked(project, str(folder.relative_to(project.build))):
        _unpack(project, pin, copy.src)
        toolchain.prepare_cmake_dir(copy.cmake, setup)
        if not _built(copy):
            terminal.stage(f"configuring {pin.name} {pin.version}; its build takes many minutes")
            definitions = {
                **OPTIONS,
                "CMAKE_MAKE_PROGRAM": tools["ninja"].command[0],
                "FA_HARNESS_PEER": str(copy.src / "ggml"),
            }
            log = folder / "configure.log"
            toolchain.configure(copy, _PROJECT, definitions, log=log, verbose=False)
            log = folder / "build.log"
            toolchain.run_ninja(copy, ["ggml"], what=what, log=log, verbose=False)
    if not (found := _built(copy)):
        raise SetupError(f"{what}: its build made no library in {copy.cmake / 'lib'}")
    return found[0]


def _built(copy: Copy) -> list[Path]:
    return sorted((copy.cmake / "lib").glob("libggml.*"))


def _unpack(project: Project, pin: Pin, target: Path) -> None:
    if target.is_dir():
        return
    # Imports an HTTP client, which only a fetch needs.
    from fa_harness.upstream.fetch import extract, fetch

    archive = fetch(project, pin)
    terminal.stage(f"unpacking {pin.name} {pin.version}")
    extract(archive, pin.root, target)
