"""Programs of a small llama.cpp: what is said of one that does not build."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from fa_harness.errors import SetupError
from fa_harness.model.llama import build_llama
from fa_harness.project import Project
from fa_harness.upstream.git import git
from tiny_upstream import AddPatch, write_files

OPS = "ggml/src/ggml-cpu/ops.c"
BENCH = "tools/llama-bench.c"
PROGRAM = {
    "include/llama.h": "",
    "CMakeLists.txt": (
        "cmake_minimum_required(VERSION 3.18)\nproject(llama C)\nadd_subdirectory(ggml)\n"
        f"add_executable(llama-bench {BENCH})\ntarget_link_libraries(llama-bench ggml)\n"
    ),
    BENCH: "int main(void) {\n    return 0;\n}\n",
}


@pytest.fixture
def mine(
    tmp_path: Path, project: Project, files: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A checkout of a llama.cpp with a program, which is the upstream that is meant."""
    folder = tmp_path / "my llama"
    write_files(folder, {**files, **PROGRAM})
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "upstream")
    monkeypatch.setenv("UPSTREAM_DIR", str(folder))
    return folder


def change(mine: Path, name: str, old: str, new: str) -> None:
    text = (mine / name).read_text()
    assert old in text
    (mine / name).write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("name", "line"), [(OPS, 16), (BENCH, 2)], ids=["a file with patches", "one without"]
)
def test_a_compilers_error_names_the_users_own_file_and_line(
    project: Project, mine: Path, add_patch: AddPatch, name: str, line: int
) -> None:
    add_patch("lines", {OPS: [('#include "ggml.h"\n', '#include "ggml.h"\n// more\n// lines\n')]})
    change(mine, name, "return 0;", "return no_such_name;")
    with pytest.raises(SetupError) as caught:
        build_llama(project, ["llama-bench"])
    message = str(caught.value).replace("‘", "'").replace("’", "'")
    assert f"{mine / name}:{line}:12: error: 'no_such_name' undeclared" in message
    assert f"{line:5} |     return no_such_name;" in message
