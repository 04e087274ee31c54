import ctypes
import dataclasses
import fcntl
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from fa_harness import proc
from fa_harness.build import toolchain
from fa_harness.build.builder import build, find, is_stale, vendor
from fa_harness.build.library import RECORD, Library
from fa_harness.build.named import held_library
from fa_harness.config import Config
from fa_harness.engine.ggml import bindings
from fa_harness.errors import SetupError, UsageError
from fa_harness.project import Project
from fa_harness.series import rework
from fa_harness.upstream import newer
from fa_harness.upstream.git import git
from fa_harness.upstream.source import find_source
from tiny_upstream import write_files

OPS = "ggml/src/ggml-cpu/ops.c"
MODULE = """
#include <Python.h>
#include "ggml.h"
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_ggml", NULL, -1, NULL};
PyMODINIT_FUNC PyInit__ggml(void) {
    PyObject * made = PyModule_Create(&module);
    PyModule_AddIntConstant(made, "answer", ggml_answer());
    return made;
}
"""
AddPatch = Callable[..., Path]


def _emit_c(_include_dir: Path, out_c: Path) -> None:
    if not out_c.is_file():
        out_c.write_text(MODULE)


@pytest.fixture
def ready(project: Project, add_patch: AddPatch, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose two patches each change what the library answers; bindings to match."""
    add_patch(
        "first", {OPS: [("return 41;", "return 42;")], "ggml/include/ggml.h": [("\n", " \n")]}
    )
    add_patch("second", {OPS: [("return 42;", "return 43;")]})
    monkeypatch.setattr(bindings, "emit_c", _emit_c)
    monkeypatch.setattr(bindings, "source_digest", lambda: "bindings 1")
    return project


def answer(library: Library) -> int:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import _ggml; print(_ggml.answer)"
    command = [sys.executable, "-c", code, str(library.path)]
    return int(subprocess.run(command, check=True, capture_output=True).stdout)


def refuse_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(command: list[str], **_more: object) -> str:
        raise AssertionError(f"a program was run: {command}")

    monkeypatch.setattr(proc, "run", refuse)


def test_a_pinned_commit_is_built_where_the_environment_names_it(
    ready: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    author = tmp_path / "author"  # upstream, and the two patches as commits on it
    first = git(author, "rev-list", "--max-parents=0", "HEAD")
    pin = newer.add(ready, f"{author}@{first}", "mine")
    monkeypatch.setenv("UPSTREAM", "mine")
    pristine, patched = build(ready, ["pristine", "patched"])
    assert [answer(library) for library in (pristine, patched)] == [41, 43]
    assert (patched.upstream, patched.upstream_commit) == ("mine", first[:9])
    (ready.cache / pin.archive_name).unlink()
    shutil.rmtree(author)
    refuse_programs(monkeypatch)
    assert build(ready, ["pristine", "patched"]) == [pristine, patched]


def test_each_library_has_the_first_patches_and_recompiles_what_they_change(
    ready: Project,
) -> None:
    pristine, first, patched = build(ready, ["pristine", "0001", "patched"])
    assert [answer(library) for library in (pristine, first, patched)] == [41, 42, 43]
    assert len(pristine.compiled) == len(first.compiled) == 4
    assert patched.compiled == ("src/ggml-cpu/ops.c",)
    assert [len(library.series) for library in (pristine, first, patched)] == [0, 1, 2]
    assert patched.upstream == "mini"
    assert (patched.upstream_commit, patched.ggml_version) == ("abc123", "0.1.2")
    assert patched.build["options"]["GGML_NATIVE"] == "ON"
    assert patched.build["cxx_compiler"] == toolchain.find_cxx_compiler().version


def test_libraries_of_two_build_folders_have_names_of_their_own(ready: Project) -> None:
    names = [
        {path.name for path in library.path.glob("libggml*")}
        for options in ({}, {"GGML_OPENMP": "ON"})
        for library in build(ready, ["pristine", "patched"], options=options)
    ]
    assert all(len(of_library) >= 3 for of_library in names)
    assert len(set().union(*names)) == sum(map(len, names))


def test_new_bindings_recompile_no_file_that_depends_on_the_headers_only(
    ready: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["pristine", "0001", "patched"]
    build(ready, names)
    monkeypatch.setattr(bindings, "emit_c", lambda _dir, out: out.write_text(MODULE + "\n"))
    monkeypatch.setattr(bindings, "source_digest", lambda: "bindings 2")
    assert [set(library.compiled) for library in build(ready, names)] == [
        {"_ggml.c"},
        {"_ggml.c", "src/ggml-cpu/ops.c"},
        {"_ggml.c", "src/ggml-cpu/ops.c"},
    ]


def test_current_libraries_cost_no_program(ready: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build(ready, ["patched"])
    refuse_programs(monkeypatch)
    assert build(ready, ["patched"]) == built == [find(ready, "patched")]


def test_a_library_works_where_it_is_moved_to_and_tells_upstreams_commit(
    ready: Project, tmp_path: Path
) -> None:
    (library,) = build(ready, ["patched"])
    moved = tmp_path / "moved"
    library.path.rename(moved)
    shutil.rmtree(ready.home)
    base = next(moved.glob("libggml-base-*"))
    commit = ctypes.CDLL(str(base)).ggml_commit
    commit.restype = ctypes.c_char_p
    assert commit() == b"abc123"
    code = f"import sys; sys.path.insert(0, {str(moved)!r}); import _ggml"
    subprocess.run([sys.executable, "-c", code], check=True)
    for product in moved.glob("*.so"):
        assert str(tmp_path).encode() not in product.read_bytes()


def test_the_libraries_of_a_stack_have_each_series_and_share_what_is_compiled(
    ready: Project, add_patch: AddPatch
) -> None:
    add_patch("third", {OPS: [("return 43;", "return 44;")]}, series="fast", on=("state",))
    add_patch("fourth", {OPS: [("return 44;", "return 45;")]}, series="fast")
    add_patch("alone", {OPS: [("return 41;", "return 51;")]}, series="partial")
    built = build(ready, ["pristine", "state", "fast@0001", "fast", "partial"])
    assert [answer(library) for library in built] == [41, 43, 44, 45, 51]
    names = ["pristine", "state", "state+fast@0001", "state+fast", "partial"]
    assert [library.name for library in built] == names
    assert [library.path.name for library in built] == names
    state, first, fast = built[1:4]
    assert first.compiled == fast.compiled == ("src/ggml-cpu/ops.c",)
    assert state.series == fast.series[:2]
    assert fast.series[2:] == ("0001-third.patch", "0002-fourth.patch")
    assert build(ready, ["patched", "state+fast"]) == [state, fast]


def test_a_changed_series_makes_stale_what_stands_on_it(
    ready: Project, add_patch: AddPatch
) -> None:
    add_patch("third", {OPS: [("return 43;", "return 44;")]}, series="fast", on=("state",))
    add_patch("alone", {OPS: [("return 41;", "return 51;")]}, series="partial")
    state, fast, partial = build(ready, ["state", "fast", "partial"])
    add_patch("more", {"ggml/src/ggml-backend.c": [("return 0;", "return 1;")]})
    assert is_stale(ready, state) == is_stale(ready, fast) == "patches changed"
    assert is_stale(ready, partial) is None


def test_a_changed_patch_makes_stale_what_has_it_and_nothing_else(
    ready: Project, add_patch: AddPatch
) -> None:
    first, patched = build(ready, ["0001", "patched"])
    add_patch("third", {OPS: [("return 43;", "return 44;")]})
    assert is_stale(ready, first) is None
    assert is_stale(ready, patched) == "patches changed"
    (again,) = build(ready, ["patched"])
    assert (answer(again), again.compiled) == (44, ("src/ggml-cpu/ops.c",))
    assert is_stale(ready, again) is None


def test_what_runs_a_stale_library_builds_it_first_and_says_why(
    ready: Project,
    add_patch: AddPatch,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ready.home)
    with held_library("patched", {}) as library:
        assert answer(library) == 43
    assert "is stale" not in capsys.readouterr().err
    add_patch("third", {OPS: [("return 43;", "return 44;")]})
    with held_library("patched", {}) as library:
        assert answer(library) == 44
    said = capsys.readouterr().err
    assert "library 'state' is stale (patches changed): building it again\n" in said
    with held_library("patched", {}):
        assert capsys.readouterr().err == ""


def test_options_of_the_projects_file_hold_until_a_flag_says_else(ready: Project) -> None:
    options = {"GGML_OPENMP": "ON", "GGML_LTO": "OFF"}
    configured = dataclasses.replace(ready, config=Config(build=options))
    [library] = build(configured, ["pristine"], options={"GGML_LTO": "ON"})
    made = library.build["options"]
    assert (made["GGML_OPENMP"], made["GGML_LTO"]) == ("ON", "ON")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.setattr(bindings, "source_digest", lambda: "2"), "bindings changed"),
        (lambda m: m.setenv("CFLAGS", "-g"), "compiler flags changed"),
        (
            lambda m: m.setattr(
                toolchain,
                "find_c_compiler",
                lambda: toolchain.Tool(command=("cc",), version="other"),
            ),
            "compilers changed",
        ),
    ],
    ids=["bindings", "flags", "compiler"],
)
def test_a_stale_library_says_why(
    ready: Project,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch], None],
    reason: str,
) -> None:
    (library,) = build(ready, ["pristine"])
    assert is_stale(ready, library) is None
    change(monkeypatch)
    assert is_stale(ready, library) == reason


def test_a_machine_without_compiler_uses_the_library_that_is_there(
    ready: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build(ready, ["pristine"])
    monkeypatch.setenv("CC", "gone")
    assert build(ready, ["pristine"]) == built


def test_other_options_are_built_beside_the_usual_ones(ready: Project) -> None:
    (usual,) = build(ready, ["pristine"])
    (other,) = build(ready, ["pristine"], options={"GGML_OPENMP": "ON"})
    assert other.path != usual.path
    assert other.build["options"]["GGML_OPENMP"] == "ON"
    assert find(ready, "pristine") == usual
    assert find(ready, "pristine", options={"GGML_OPENMP": "ON"}) == other


def test_a_library_with_a_sanitizer_is_built_with_its_options_beside_the_usual_one(
    ready: Project,
) -> None:
    asan, patched = build(ready, ["asan-ubsan", "patched"])
    assert asan.path.parents[1] != patched.path.parents[1]
    assert asan.series == patched.series
    flags = asan.build["options"]["CMAKE_C_FLAGS_RELWITHDEBINFO"]
    assert "-fsanitize=address,undefined" in flags
    assert not [value for value in patched.build["options"].values() if "-fsanitize" in value]
    assert [Path(path).name.partition(".")[0] for path in asan.preload] == ["libasan", "libstdc++"]
    assert patched.preload == ()
    assert find(ready, "asan-ubsan") == asan
    assert is_stale(ready, asan) is None


def test_asked_options_go_above_those_of_a_library_with_a_sanitizer(ready: Project) -> None:
    (library,) = build(ready, ["tsan"], options={"CMAKE_BUILD_TYPE": "Debug"})
    assert library.build["options"]["CMAKE_BUILD_TYPE"] == "Debug"
    assert find(ready, "tsan", options={"CMAKE_BUILD_TYPE": "Debug"}) == library


@pytest.mark.skipif(not shutil.which("ccache"), reason="there is no ccache to ask")
@pytest.mark.parametrize("name", ["patched", "asan-ubsan"])
def test_a_clone_elsewhere_compiles_nothing_that_the_compiler_cache_has(
    name: str, ready: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hits_and_misses() -> tuple[int, int]:
        printed = proc.run(["ccache", "--print-stats"])
        n = {key: int(value) for key, value in map(str.split, printed.splitlines())}
        return n["direct_cache_hit"] + n["preprocessed_cache_hit"], n["cache_miss"]

    monkeypatch.setenv("CCACHE_DIR", str(tmp_path / "ccache"))
    options = {"CMAKE_C_COMPILER_LAUNCHER": "ccache"}
    place = tmp_path / "another place" / "clone"
    elsewhere = Project(data=place, home=place)
    shutil.copytree(ready.home, elsewhere.home)
    [first] = build(ready, [name], options=options)
    n_file = len(first.compiled)
    assert hits_and_misses() == (0, n_file)
    [second] = build(elsewhere, [name], options=options)
    assert hits_and_misses() == (n_file, n_file)
    for path in first.path.glob("*.so"):
        assert path.read_bytes() == (second.path / path.name).read_bytes()


def test_a_checkout_of_ones_own_is_built_and_an_edit_recompiles_one_file(
    ready: Project,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(vendor(ready).path / "ggml", tmp_path / "mine" / "ggml")
    ready.series_file.write_text("")
    monkeypatch.setenv("UPSTREAM_DIR", str(tmp_path / "mine"))
    (library,) = build(ready, ["pristine"])
    assert (library.upstream, answer(library)) == ("dir:mine", 43)
    source = tmp_path / "mine" / OPS
    source.write_text(source.read_text().replace("return 43;", "return 99;"))
    assert is_stale(ready, library) == "upstream changed"
    (again,) = build(ready, ["pristine"])
    assert (answer(again), again.compiled) == (99, ("src/ggml-cpu/ops.c",))


def test_sources_that_do_not_compile_are_reported_with_the_compilers_words(
    ready: Project, add_patch: AddPatch
) -> None:
    add_patch("broken", {OPS: [("return 43;", "return no_such_name;")]})
    with pytest.raises(SetupError) as caught:
        build(ready, ["patched"])
    message = str(caught.value)
    assert "library 'state' of upstream 'mini' does not build" in message
    assert "no_such_name" in message
    log = message.rpartition("the whole output is in ")[2]
    assert "no_such_name" in Path(log).read_text()
    with pytest.raises(SetupError, match="is not built"):
        find(ready, "patched")


def test_an_interrupted_build_leaves_no_library(
    ready: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_args: object, **_more: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copytree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(ready, ["pristine"])
    with pytest.raises(SetupError, match="library 'pristine' is not built"):
        find(ready, "pristine")
    (library,) = build(ready, ["pristine"])
    assert answer(library) == 41


def test_a_library_with_a_damaged_record_is_built_anew(ready: Project) -> None:
    (library,) = build(ready, ["pristine"])
    (library.path / RECORD).write_text("damaged")
    (again,) = build(ready, ["pristine"])
    assert find(ready, "pristine") == again
    assert again.compiled == ()


def test_an_unknown_library_is_refused_before_anything_is_run(
    ready: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_programs(monkeypatch)
    for call in (lambda: build(ready, ["pristine", "0099"]), lambda: find(ready, "0099")):
        with pytest.raises(UsageError, match="unknown library 'state@0099'"):
            call()


def test_a_library_that_is_not_built_is_named_with_the_command(ready: Project) -> None:
    with pytest.raises(SetupError, match=r"^library '0001' is not built: fa-harness build 0001$"):
        find(ready, "0001")


def test_a_missing_compiler_stops_the_build_before_the_fetch(
    ready: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "gone")
    with pytest.raises(SetupError, match="CXX is 'gone'"):
        build(ready, ["pristine"])
    assert not ready.sources.exists()


@pytest.fixture
def with_mutants(ready: Project, add_patch: AddPatch) -> Path:
    """The two patches, and a third that is one of the mutants."""
    patch = add_patch("switch", {OPS: [("return 43;", "return 99;")]})
    lines = ready.series_file.read_text().splitlines()
    ready.series_file.write_text("\n".join(lines[:-1]) + "\n")
    ready.mutants.mkdir()
    (ready.mutants / "series").write_text(f"{patch.name}\n")
    return patch.rename(ready.mutants / patch.name)


def test_the_library_of_the_mutants_has_them_on_top_of_the_series(
    ready: Project, with_mutants: Path
) -> None:
    mutated, patched = build(ready, ["mutants", "patched"])
    assert (answer(mutated), answer(patched)) == (99, 43)
    assert mutated.series == (*patched.series, with_mutants.name)


def test_a_changed_mutant_makes_only_their_library_stale(
    ready: Project, with_mutants: Path
) -> None:
    mutated, patched = build(ready, ["mutants", "patched"])
    with_mutants.write_text("broken")
    assert is_stale(ready, mutated) == "patches changed"
    assert is_stale(ready, patched) is None
    with pytest.raises(SetupError, match=r"patch '0003-switch\.patch' does not apply"):
        build(ready, ["mutants"])
    assert [answer(library) for library in build(ready, ["pristine", "patched"])] == [41, 43]


def test_a_patch_of_mutants_that_does_not_apply_is_left_out_of_their_library(
    ready: Project, with_mutants: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = with_mutants.with_name("0004-broken.patch")
    broken.write_text(with_mutants.read_text())  # its line is another by now
    last = with_mutants.with_name("0005-last.patch")
    last.write_text(
        with_mutants.read_text()
        .replace("return 43;", "return 99;")
        .replace("+    return 99", "+    return 100")
    )
    names = [patch.name for patch in (with_mutants, broken, last)]
    (ready.mutants / "series").write_text("\n".join(names) + "\n")
    [mutated] = build(ready, ["mutants"])
    assert answer(mutated) == 100
    assert mutated.series[-2:] == (with_mutants.name, last.name)
    assert "patch '0004-broken.patch' does not apply" in capsys.readouterr().err
    assert is_stale(ready, mutated) is None


def test_a_home_may_have_spaces_and_any_letters(ready: Project, tmp_path: Path) -> None:
    elsewhere = dataclasses.replace(ready, home=tmp_path / "Größe und Übermaß" / "日本語")
    [library] = build(elsewhere, ["patched"])
    assert library.module_path.is_file()
    assert not ready.build.exists()


def test_two_processes_at_once_in_one_home_build_a_library_once(ready: Project) -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        first, second = pool.starmap(build, [(ready, ["patched"]), (ready, ["patched"])])
    assert first == second
    assert len(first[0].compiled) == 4, "the second process found what the first had built"


@pytest.mark.parametrize("folder", ["/dev/null/home", "/proc/home"])
def test_a_home_that_cannot_be_made_is_named_with_the_next_step(
    ready: Project, folder: str
) -> None:
    with pytest.raises(SetupError, match=rf"cannot write {folder}.*FA_HARNESS_HOME="):
        build(dataclasses.replace(ready, home=Path(folder)), ["patched"])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a few pages, where it can be had."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only who may mount can make a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_named_and_with_room_the_build_goes_on(
    ready: Project, small_disk: Path
) -> None:
    full = dataclasses.replace(ready, home=small_disk)
    with pytest.raises(SetupError, match=r"the disk is full; free some space .*FA_HARNESS_HOME="):
        build(full, ["patched"])
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    [library] = build(full, ["patched"])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert build(full, ["patched"]) == [library], "what is built is used where nothing can be"


@pytest.fixture
def checkout(tmp_path: Path, files: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of the small upstream, which is the one that is meant."""
    folder = tmp_path / "my llama"
    write_files(folder, files)
    monkeypatch.setenv("UPSTREAM_DIR", str(folder))
    return folder


def change(checkout: Path, old: str, new: str) -> None:
    text = (checkout / OPS).read_text()
    assert old in text
    (checkout / OPS).write_text(text.replace(old, new))


def test_an_edit_that_conflicts_with_the_patches_is_built_as_it_is_and_one_line_says_so(
    ready: Project, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(checkout, "return 41;", "return 40 + 10;")
    pristine, patched = build(ready, ["pristine", "patched"])
    assert capsys.readouterr().err.count("series: not applied, patch 0001 conflicts") == 1
    assert [answer(library) for library in (pristine, patched)] == [50, 50]
    assert patched.series == ()
    assert f"patch 0001 conflicts in {OPS}" in patched.series_note
    assert patched.to_json()["series_note"] == patched.series_note
    assert is_stale(ready, patched) is None
    change(checkout, "return 40 + 10;", "return 60;")
    assert is_stale(ready, patched) == "upstream changed"
    [again] = build(ready, ["patched"])
    assert (answer(again), again.compiled) == (60, ("src/ggml-cpu/ops.c",))


def test_a_checkout_that_has_the_patches_is_built_with_the_edits_in_them(
    ready: Project, checkout: Path
) -> None:
    header = checkout / "ggml/include/ggml.h"
    header.write_text(header.read_text().replace("\n", " \n"))
    change(checkout, "return 41;", "return 43;")
    change(checkout, "return 0;", "return 7;")
    pristine, patched = build(ready, ["pristine", "patched"])
    assert [answer(library) for library in (pristine, patched)] == [43, 43]
    assert pristine.series == patched.series == ("0001-first.patch", "0002-second.patch")


def test_a_patch_decides_over_every_library_of_a_checkout(
    ready: Project, checkout: Path, add_patch: AddPatch
) -> None:
    [first] = build(ready, ["0001"])
    add_patch("third", {OPS: [("return 43;", "return 44;")]})
    assert is_stale(ready, first) == "patches changed"


def test_without_the_series_a_checkout_is_built_as_it_is(
    ready: Project, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [patched] = build(ready, ["patched"])
    assert (answer(patched), patched.series_note) == (43, "")
    monkeypatch.setenv("NO_SERIES", "1")
    assert is_stale(ready, patched) == "patches changed"
    [as_it_is] = build(ready, ["patched"])
    assert (answer(as_it_is), as_it_is.series) == (41, ())
    with pytest.raises(SetupError, match=r"is not built: fa-harness build pristine --no-series$"):
        find(ready, "pristine")


def test_a_compilers_error_names_the_users_own_file_and_line(
    ready: Project, checkout: Path, add_patch: AddPatch
) -> None:
    add_patch("lines", {OPS: [('#include "ggml.h"\n', '#include "ggml.h"\n// more\n// lines\n')]})
    change(checkout, "return 0;", "return no_such_name;")
    with pytest.raises(SetupError) as caught:
        build(ready, ["patched"])
    message = str(caught.value)
    assert f"{checkout / OPS}:16:12: error: 'no_such_name' undeclared" in message.replace(
        "‘", "'"
    ).replace("’", "'")
    assert "   16 |     return no_such_name;" in message
    assert "   18 |" not in message


def test_builds_of_different_upstreams_do_not_wait_for_each_other(
    ready: Project, tmp_path: Path
) -> None:
    [library] = build(ready, ["patched"])
    held = str(library.path.parents[1].relative_to(ready.build))
    code = (
        "import sys, time; from pathlib import Path\n"
        "from fa_harness.project import Project, locked\n"
        "root = Path(sys.argv[1])\n"
        "project = Project(data=root, home=root)\n"
        "with locked(project, 'mini'), locked(project, sys.argv[2]):\n"
        " print('held', flush=True); time.sleep(600)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(ready.home), held], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        author = tmp_path / "author"  # a clean checkout: the patches are commits in it
        git(author, "checkout", "--quiet", git(author, "rev-list", "--max-parents=0", "HEAD"))
        [of_checkout] = build(ready, ["patched"], upstream=str(author))
        assert answer(of_checkout) == 43
    finally:
        other.kill()
        other.wait()
        assert other.stdout is not None
        other.stdout.close()


def test_arguments_are_looked_at_before_a_lock_is_waited_for(ready: Project) -> None:
    def refuse(*_args: object) -> None:
        raise AssertionError("a lock was waited for")

    source = find_source(ready)
    vendor(ready)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fcntl, "flock", refuse)
        for call in (
            lambda: build(ready, ["0009"]),
            lambda: rework.edit(ready, source, "9"),
            lambda: rework.drop(ready, source, ["9"]),
            lambda: rework.reorder(ready, source, ["1", "1"]),
            lambda: rework.add(ready, source, [], "9"),
            lambda: rework.go_on(ready, source),
            lambda: rework.abort(ready, source),
            lambda: newer.add(ready, "what is this"),
        ):
            with pytest.raises(UsageError):
                call()
