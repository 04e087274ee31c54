"""The programs and headers that a build needs: found, or named in an error before it starts."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fa_harness import proc, terminal
from fa_harness.build.places import Copy
from fa_harness.errors import SetupError
from fa_harness.machine import cpu_features, usable_cores
from fa_harness.project import PACKAGE, writing


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A program: its command, and the first line that `--version` prints."""

    command: tuple[str, ...]
    version: str


def find_c_compiler() -> Tool:
    """Return the C compiler that CMake takes: CC, else the first of the usual names."""
    return _compiler("CC", ("cc", "gcc", "clang"), "C")


def find_cxx_compiler() -> Tool:
    """Return the C++ compiler that CMake takes: CXX, else the first of the usual names."""
    return _compiler("CXX", ("c++", "g++", "clang++"), "C++17")


def find_cmake() -> Tool:
    """Return CMake 3.18 or newer, from PATH or else from this Python environment."""
    too_old = ""
    for path in _candidates("cmake"):
        tool = _tool((path,))
        found = re.search(r"(\d+)\.(\d+)", tool.version)
        if found and (int(found[1]), int(found[2])) >= (3, 18):
            return tool
        too_old = f" ({path} is too old: {tool.version})"
    raise SetupError(
        f"CMake 3.18 or newer was not found{too_old}; install it, or run "
        f"{shlex.quote(sys.executable)} -m pip install 'cmake>=3.28,<5'"
    )


def find_ninja() -> Tool:
    """Return Ninja, from PATH or else from this Python environment."""
    for path in (*_candidates("ninja"), *_candidates("ninja-build")):
        return _tool((path,))
    raise SetupError(
        "Ninja was not found; install it, or run "
        f"{shlex.quote(sys.executable)} -m pip install ninja"
    )


def find_git() -> Tool:
    """Return git."""
    path = shutil.which("git")
    if path is None:
        raise SetupError("git was not found; install the package 'git'")
    return _tool((path,))


def find_launcher() -> str | None:
    """Return the compiler cache that ggml's CMake chooses."""
    return next((name for name in ("ccache", "sccache") if shutil.which(name)), None)


def find_runtime(name: str) -> Path:
    """Return the path of a library that comes with GCC, such as `libasan.so`."""
    compiler = find_cxx_compiler()
    path = Path(proc.run([*compiler.command, f"-print-file-name={name}"]).strip())
    if "clang" in compiler.version or not path.is_absolute():
        raise SetupError(
            f"C++ compiler {compiler.version} has no {name}; libraries with a sanitizer need GCC "
            "(CC=gcc CXX=g++) and its runtime libraries"
        )
    return path.resolve()


def find_gcov() -> Tool:
    """Return the gcov of the C++ compiler, which must be GCC: each version has files of its own."""
    compiler = find_cxx_compiler()
    if "clang" not in compiler.version:
        major = proc.run([*compiler.command, "-dumpversion"]).strip().partition(".")[0]
        for name in (f"gcov-{major}", "gcov"):
            if shutil.which(name):
                tool = _tool((name,))
                if re.search(rf" {major}\b", tool.version):
                    return tool
    raise SetupError(
        f"C++ compiler {compiler.version} has no gcov; the library 'coverage' needs GCC (CC=gcc "
        "CXX=g++) and the gcov of the same version"
    )


def find_tools() -> dict[str, Tool]:
    """Return what builds need: both compilers, CMake and Ninja."""
    return {
        "c_compiler": find_c_compiler(),
        "cxx_compiler": find_cxx_compiler(),
        "cmake": find_cmake(),
        "ninja": find_ninja(),
    }


def prepare_cmake_dir(path: Path, setup: Mapping[str, object]) -> None:
    """Make a build folder, or empty it if it was filled with another setup or elsewhere."""
    mark = path / "fa-harness.json"
    # A folder that was moved or copied would go on compiling the sources of the old place, and
    # CMake refuses one that another installation of fa-harness has filled.
    places = {"folder": str(path), "package": str(PACKAGE)}
    text = json.dumps({**setup, **places}, sort_keys=True)
    with writing(path):
        if not mark.is_file() or mark.read_text("utf-8") != text:
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
            mark.write_text(text, encoding="utf-8")


def configure(
    copy: Copy, project: Path, definitions: Mapping[str, str], *, log: Path, verbose: bool
) -> None:
    """Let CMake configure the build folder of a copy; errors name the user's own files."""
    flags = [f"-D{key}={value}" for key, value in definitions.items()]
    proc.run(
        [*find_cmake().command, "-S", project, "-B", copy.cmake, "-G", "Ninja", *flags],
        log=log,
        excerpt=copy.excerpt,
        verbose=verbose,
    )


def run_ninja(
    copy: Copy, targets: Sequence[str], *, what: str, log: Path, verbose: bool
) -> tuple[str, ...]:
    """Build targets in the configured build folder of a copy, and show the progress.

    Return the source files that were compiled. Errors name the user's own files.
    """
    compiled: list[str] = []
    with terminal.bar(f"building {what}") as advance:

        def follow(line: str) -> None:
            if step := re.match(r"\[(\d+)/(\d+)\] (.*)", line):
                advance(int(step[1]), int(step[2]))
                if built := re.match(r"Building \w+ object .*?\.dir/(.+)\.o$", step[3]):
                    compiled.append(built[1])

        try:
            proc.run(
                [*find_ninja().command, "-C", copy.cmake, f"-j{usable_cores() + 1}", *targets],
                env={**os.environ, "NINJA_STATUS": "[%f/%t] ", **_cache_settings(copy.cmake)},
                log=log,
                on_line=follow,
                excerpt=copy.excerpt,
                verbose=verbose,
            )
        except proc.ProgramError as error:
            raise SetupError(f"{what} does not build\n{error}") from error
    return tuple(compiled)


def _cache_settings(cmake_dir: Path) -> dict[str, str]:
    """Return the environment in which a compiler cache recognises a build in another folder.

    Paths below the folder of sources and build are relative to it for the cache, and absolute in
    messages. The CPU is part of the key: another one may share the cache, and cannot use code for
    this one (`-march=native`).
    """
    cpu = hashlib.sha256(" ".join(cpu_features()).encode()).hexdigest()[:8]
    work = os.path.realpath(cmake_dir.parent)
    by_cpu = ("CCACHE_NAMESPACE", "SCCACHE_C_CUSTOM_CACHE_BUSTER")
    return {
        "CCACHE_ABSSTDERR": "1",
        "CCACHE_BASEDIR": work,
        "SCCACHE_BASEDIRS": work,
        **{name: os.environ.get(name, "") + cpu for name in by_cpu},
    }


def find_python_headers() -> Path:
    """Return the folder of Python.h."""
    folder = Path(sysconfig.get_path("include"))
    if not (folder / "Python.h").is_file():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise SetupError(
            f"Python.h is not in {folder}; install the headers of Python {version} "
            f"(package python{version}-dev, or python3-devel)"
        )
    return folder


def _compiler(variable: str, names: tuple[str, ...], language: str) -> Tool:
    if wanted := shlex.split(os.environ.get(variable, "")):
        if shutil.which(wanted[0]) is None:
            raise SetupError(
                f"{language} compiler: {variable} is '{' '.join(wanted)}', but there is no "
                f"program '{wanted[0]}'; correct {variable} or unset it"
            )
        return _tool(tuple(wanted))
    for name in names:
        if shutil.which(name):
            return _tool((name,))
    raise SetupError(
        f"no {language} compiler: none of {', '.join(names)} is on PATH; install one (package "
        f"build-essential, or gcc-c++), or name it in {variable}"
    )


def _candidates(name: str) -> list[str]:
    """Return the places of a program: on PATH, then beside this Python, where pip puts it."""
    beside = os.path.dirname(sys.executable)
    return [path for where in (None, beside) if (path := shutil.which(name, path=where))]


@functools.cache
def _tool(command: tuple[str, ...]) -> Tool:
    version = proc.run([*command, "--version"]).partition("\n")[0]
    return Tool(command=command, version=version)
