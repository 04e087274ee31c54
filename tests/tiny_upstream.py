"""A small upstream with ggml's layout, an index that serves it, and a project that pins it."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from fa_harness.project import Project
from fa_harness.upstream.git import git

FILES = {
    "LICENSE": "do as you like\n",
    "README.md": "not needed\n",
    "ggml/CMakeLists.txt": (
        "cmake_minimum_required(VERSION 3.14...3.28)\n"
        "project(ggml C CXX)\n"
        "set(GGML_VERSION_MAJOR 0)\nset(GGML_VERSION_MINOR 1)\nset(GGML_VERSION_PATCH 2)\n"
        "find_program(GIT_EXE NAMES git)\n"
        "if (GIT_EXE)\n"
        "    execute_process(COMMAND ${GIT_EXE} hash-object --stdin\n"
        "        INPUT_FILE ${CMAKE_CURRENT_SOURCE_DIR}/src/ggml.c\n"
        "        OUTPUT_VARIABLE GGML_BUILD_COMMIT OUTPUT_STRIP_TRAILING_WHITESPACE)\n"
        "endif()\n"
        "add_library(ggml-base src/ggml.c)\n"
        'target_compile_definitions(ggml-base PRIVATE GGML_COMMIT="${GGML_BUILD_COMMIT}")\n'
        "add_library(ggml-cpu src/ggml-cpu/ops.c)\n"
        "add_library(ggml src/ggml-backend.c)\n"
        "target_include_directories(ggml-base PUBLIC include)\n"
        "target_link_libraries(ggml-cpu PUBLIC ggml-base)\n"
        "target_link_libraries(ggml PUBLIC ggml-base ggml-cpu)\n"
    ),
    "ggml/include/ggml.h": "int ggml_answer(void);\n",
    "ggml/src/ggml.c": (
        '#include "ggml.h"\nconst char * ggml_commit(void) { return GGML_COMMIT; }\n'
    ),
    "ggml/src/ggml-backend.c": "int ggml_backend(void) { return 0; }\n",
    "ggml/src/ggml-cpu/ops.c": (
        '#include "ggml.h"\n\n\n\n\nint ggml_answer(void) {\n    return 41;\n}\n\n\n\n\n\n\n'
        "int ggml_other(void) {\n    return 0;\n}\n"
    ),
    "ggml/tests/not-needed.c": "",
    "src/llama.cpp": "not needed\n",
}

MakeSdist = Callable[..., Path]
AddPatch = Callable[..., Path]


@pytest.fixture
def own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's index configuration or checkout."""
    for name in os.environ:
        if name.startswith("PIP_") or name in (
            "UPSTREAM",
            "UPSTREAM_DIR",
            "CFLAGS",
            "CXXFLAGS",
            "LDFLAGS",
            "FA_HARNESS_HOME",
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def make_sdist(tmp_path: Path, own_settings: None) -> MakeSdist:
    """Write an sdist with `files` under vendor/llama.cpp and any further `members`."""

    def make(
        files: Mapping[str, str] = FILES,
        members: Sequence[tarfile.TarInfo] = (),
        root: str = "vendor/llama.cpp",
    ) -> Path:
        path = tmp_path / "mini_llama-1.0.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            for name, text in files.items():
                member = tarfile.TarInfo(f"mini_llama-1.0/{root}/{name}")
                member.size = len(text.encode())
                tar.addfile(member, io.BytesIO(text.encode()))
            for member in members:
                tar.addfile(member, io.BytesIO(b"x" * member.size))
        return path

    return make


@pytest.fixture
def index(tmp_path: Path, make_sdist: MakeSdist, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder index with the sdist, which the user's configuration names."""
    folder = tmp_path / "index"
    page = folder / "mini-llama"
    page.mkdir(parents=True)
    sdist = make_sdist()
    sdist.rename(page / sdist.name)
    (page / "index.html").write_text(f'<a href="{sdist.name}">{sdist.name}</a>')
    monkeypatch.setenv("PIP_INDEX_URL", folder.as_uri())
    return folder


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def project(tmp_path: Path, index: Path) -> Project:
    """A project without patches whose only pin is the sdist in the index; it is fetched already.

    To ask pip for its settings takes half a second.
    """
    sdist = index / "mini-llama" / "mini_llama-1.0.tar.gz"
    root = tmp_path / "project"
    project = Project(data=root, home=root)
    write_files(
        root,
        {
            "patches/state/series": "",
            "vendor/upstreams.toml": (
                'default = "mini"\n[upstreams.mini]\npackage = "mini-llama"\nversion = "1.0"\n'
                f'sha256 = "{sha256(sdist)}"\n'
                'root = "vendor/llama.cpp"\ncommit = "abc123"\nggml_version = "0.1.2"\n'
            ),
        },
    )
    project.cache.mkdir()
    shutil.copy(sdist, project.cache)
    return project


def commit(place: Path, *arguments: str) -> None:
    """Commit as a developer does."""
    subprocess.run(
        ["git", "-c", "user.name=Dev", "-c", "user.email=dev@example.org", "commit", "--quiet",
         *arguments],
        cwd=place, check=True, capture_output=True,
    )  # fmt: skip


def replace(path: Path, old: str, new: str) -> None:
    """Replace a text in a file that has it."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.fixture
def add_patch(tmp_path: Path, project: Project) -> AddPatch:
    """Append a patch that replaces text in files of the small upstream, made by git itself.

    It goes to the project's series, or to another one, which may stand on several.
    """
    repository = tmp_path / "author"
    write_files(repository, FILES)
    git(repository, "init", "--quiet")
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "upstream")
    git(repository, "checkout", "--quiet", "-b", project.series)
    git(repository, "branch", "pristine")

    def add(
        subject: str,
        changes: Mapping[str, list[tuple[str, str]]],
        *,
        series: str = project.series,
        on: tuple[str, ...] = (),
    ) -> Path:
        folder = project.data / "patches" / series
        if not folder.is_dir():
            git(repository, "branch", series, on[-1] if on else "pristine")
            about = f'title = "{series}"\nwhy = "tests need it"\non = {json.dumps(on)}\n'
            write_files(folder, {"series": "", "series.toml": about})
        git(repository, "checkout", "--quiet", series)
        edits = [(name, *pair) for name, pairs in changes.items() for pair in pairs]
        for name, old, new in edits:
            text = (repository / name).read_text()
            assert old in text
            (repository / name).write_text(text.replace(old, new))
        git(repository, "commit", "--quiet", "--all", "--message", f"ggml : {subject}")
        order = folder / "series"
        number = len(order.read_text().split()) + 1
        mail = git(repository, "format-patch", "--stdout", "--zero-commit", "--no-signature",
                   "--no-numbered", "-1")  # fmt: skip
        patch = folder / f"{number:04}-{subject.replace(' ', '-')}.patch"
        patch.write_text(mail + "\n")
        order.write_text(order.read_text() + f"{patch.name}\n")
        return patch

    return add


@pytest.fixture
def files() -> Mapping[str, str]:
    """The small upstream's files."""
    return FILES
