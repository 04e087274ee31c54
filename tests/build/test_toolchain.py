import re
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from fa_harness.build import toolchain
from fa_harness.errors import SetupError

AddProgram = Callable[[str, str], Path]


@pytest.fixture
def add_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AddProgram:
    """PATH is one empty folder, which programs that print a line are put into."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "bin" / "python"))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)

    def add(name: str, prints: str) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\necho '{prints}'\n")
        path.chmod(0o755)
        return path

    return add


def test_a_missing_compiler_is_named_with_what_to_install(add_program: AddProgram) -> None:
    with pytest.raises(SetupError, match=r"no C compiler: none of cc, gcc, clang is on PATH; inst"):
        toolchain.find_c_compiler()
    with pytest.raises(SetupError, match=r"no C\+\+17 compiler: none of c\+\+, g\+\+, clang\+\+"):
        toolchain.find_cxx_compiler()


def test_the_compiler_that_the_environment_names_is_taken(
    add_program: AddProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_program("cc", "usual 1")
    add_program("my-cc", "mine 2")
    monkeypatch.setenv("CC", "my-cc -m64")
    assert toolchain.find_c_compiler() == toolchain.Tool(
        command=("my-cc", "-m64"), version="mine 2"
    )


def test_a_compiler_that_the_environment_names_in_vain_is_refused(
    add_program: AddProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_program("cc", "usual 1")
    monkeypatch.setenv("CC", "gone-cc")
    with pytest.raises(SetupError, match="CC is 'gone-cc', but there is no program 'gone-cc'"):
        toolchain.find_c_compiler()


def test_a_cmake_that_is_too_old_is_passed_over(add_program: AddProgram, tmp_path: Path) -> None:
    old = add_program("cmake", "cmake version 3.17.5")
    with pytest.raises(SetupError, match=r"3\.18 or newer was not found \(.* too old: .*3\.17\.5"):
        toolchain.find_cmake()
    new = add_program("../venv/bin/cmake", "cmake version 4.0.1")
    found = toolchain.find_cmake()
    assert Path(found.command[0]).resolve() == new.resolve() != old


def test_a_missing_cmake_or_ninja_is_named_with_the_command_to_get_it(
    add_program: AddProgram,
) -> None:
    with pytest.raises(SetupError, match="-m pip install 'cmake"):
        toolchain.find_cmake()
    with pytest.raises(SetupError, match="-m pip install ninja"):
        toolchain.find_ninja()


def test_ccache_goes_before_sccache(add_program: AddProgram) -> None:
    assert toolchain.find_launcher() is None
    add_program("sccache", "")
    assert toolchain.find_launcher() == "sccache"
    add_program("ccache", "")
    assert toolchain.find_launcher() == "ccache"


def test_missing_python_headers_are_named_with_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    with pytest.raises(SetupError, match=rf"Python\.h is not in .*package python{version}-dev"):
        toolchain.find_python_headers()


def test_the_runtime_of_a_sanitizer_is_where_the_compiler_has_it() -> None:
    assert toolchain.find_runtime("libasan.so").is_file()


@pytest.mark.parametrize(
    ("version", "name"), [("g++ 12", "libnone.so"), ("clang version 17", "libasan.so")]
)
def test_a_compiler_without_that_runtime_is_told_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, version: str, name: str
) -> None:
    compiler = toolchain.Tool(command=("c++",), version=version)
    monkeypatch.setattr(toolchain, "find_cxx_compiler", lambda: compiler)
    with pytest.raises(SetupError, match=f"{re.escape(version)} has no {name}; .* need GCC"):
        toolchain.find_runtime(name)


def test_a_build_folder_is_emptied_where_its_setup_or_its_place_is_another(tmp_path: Path) -> None:
    there, moved = tmp_path / "there", tmp_path / "moved"
    toolchain.prepare_cmake_dir(there, {"cxx_compiler": "one"})
    (there / "build.ninja").write_text("compiles the sources beside it\n")
    toolchain.prepare_cmake_dir(there, {"cxx_compiler": "one"})
    assert (there / "build.ninja").exists()
    shutil.copytree(there, moved)
    toolchain.prepare_cmake_dir(moved, {"cxx_compiler": "one"})
    assert not (moved / "build.ninja").exists()
    toolchain.prepare_cmake_dir(there, {"cxx_compiler": "another"})
    assert not (there / "build.ninja").exists()


def test_gcov_has_the_version_of_the_compiler(
    add_program: AddProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_program("c++-91", "91")  # what it says to -dumpversion
    monkeypatch.setenv("CXX", "c++-91")
    add_program("gcov", "gcov (some) 90.1.0")
    with pytest.raises(SetupError, match=r"C\+\+ compiler 91 has no gcov; the library 'coverage'"):
        toolchain.find_gcov()
    add_program("gcov-91", "gcov (some) 91.2.0")
    assert toolchain.find_gcov().command == ("gcov-91",)


def test_clang_has_no_gcov(add_program: AddProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    add_program("clang++-92", "some clang version 92")
    add_program("gcov-92", "gcov 92.0")
    monkeypatch.setenv("CXX", "clang++-92")
    with pytest.raises(SetupError, match=r"needs GCC \(CC=gcc CXX=g\+\+\)"):
        toolchain.find_gcov()
