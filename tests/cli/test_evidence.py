"""Evidence on a small llama.cpp, whose programs say what the real ones say."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import schemas
from fa_harness.cli.main import cli
from fa_harness.errors import SetupError, UsageError
from fa_harness.project import Project
from fa_harness.upstream.git import git
from tiny_upstream import AddPatch, write_files

OPS = "ggml/src/ggml-cpu/ops.c"

PROGRAMS = {
    "include/llama.h": "",
    "CMakeLists.txt": (
        "cmake_minimum_required(VERSION 3.18)\nproject(llama C)\n"
        "set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)\n"
        "set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)\n"
        "set(BUILD_SHARED_LIBS ON)\n"
        "add_subdirectory(ggml)\n"
        "foreach (name test-backend-ops llama-bench llama-perplexity)\n"
        "    add_executable(${name} tools/${name}.c)\n"
        "    target_link_libraries(${name} ggml)\n"
        "endforeach()\n"
    ),
    "tools/test-backend-ops.c": (
        '#include <stdio.h>\n#include "ggml.h"\n'
        "int main(int argc, char ** argv) {\n"
        '    if (argc == 2) { printf("  -j <n>  threads\\n"); return 1; }\n'
        '    printf("  FLASH_ATTN_EXT(a=1): \\033[1;32mOK\\033[0m\\n");\n'
        "    int bad = ggml_answer() == 13;\n"
        '    if (bad) { printf("[FLASH_ATTN_EXT] ERR = 1.0 > 0.5 "); }\n'
        '    printf("  FLASH_ATTN_EXT(a=2): %s\\n", bad ? "FAIL" : "OK");\n'
        "    return bad;\n}\n"
    ),
    "tools/llama-bench.c": (
        '#include <signal.h>\n#include <stdio.h>\n#include <string.h>\n#include "ggml.h"\n'
        "int main(int argc, char ** argv) {\n"
        "    int repack = 1;\n"
        '    for (int i = 1; i < argc; i++) { if (!strcmp(argv[i], "--repack")) repack = 0; }\n'
        '    FILE * model = fopen(argv[2], "r");\n'
        "    char magic[8] = {0};\n"
        "    fread(magic, 1, 7, model);\n"
        '    if (!strcmp(magic, "GGUFBAD")) { printf("unknown architecture\\n"); return 1; }\n'
        '    if (!strcmp(magic, "GGUFAMX") && repack) raise(SIGILL);\n'
        '    printf("[{\\"n_prompt\\": 512, \\"n_gen\\": 0, ");\n'
        '    printf("\\"n_depth\\": 0, \\"avg_ts\\": %d.0}]\\n",\n'
        "        ggml_answer() == 12 ? 50 : 100);\n"
        "    return 0;\n}\n"
    ),
    "tools/llama-perplexity.c": (
        '#include <stdio.h>\n#include "ggml.h"\n'
        "int main(int argc, char ** argv) {\n"
        '    printf("[1]%d.0000,[2]%d.0000,\\n", ggml_answer(), ggml_answer());\n'
        '    printf("Final estimate: PPL = %d.0000 +/- 0.50000\\n", ggml_answer());\n'
        "    return 0;\n}\n"
    ),
}


ANSWER = "return 41;"


@pytest.fixture(autouse=True)
def _in_the_project(project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(project.home)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "none"))


@pytest.fixture
def mine(tmp_path: Path, files: Mapping[str, str]) -> Path:
    """A checkout of a llama.cpp with programs, and an author."""
    folder = tmp_path / "mine"
    write_files(folder, {**files, **PROGRAMS})
    git(folder, "init", "--quiet")
    git(folder, "checkout", "--quiet", "-B", "master")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "upstream")
    git(folder, "config", "user.name", "A")
    git(folder, "config", "user.email", "a@b.c")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF, as far as these programs look")
    return path


def call(
    mine: Path,
    *arguments: str | Path,
    folder: str = "out",
    skip: Sequence[str] = ("proof", "suite", "mutants"),
) -> int:
    """Return the exit status; what the user would see as an error is raised."""
    words = ["evidence", "--onto", mine, "--branch", "state", "-o", mine.parent / folder]
    skipped = [word for part in skip for word in ("--skip", part)]
    result = CliRunner().invoke(
        cli, [str(word) for word in (*words, *skipped, "--rounds", "8", *arguments)]
    )
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code


def report(mine: Path, folder: str = "out") -> dict[str, Any]:
    document = schemas.checked(json.loads((mine.parent / folder / "evidence.json").read_text()))
    return {
        **document,
        "sections": {section["part"]: section for section in document["sections"]},
    }


def content(folder: Path) -> dict[str, str]:
    """All files of a checkout, git's own included, except those that hold objects."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".git/objects" not in str(path)
    }


def test_a_patch_that_changes_no_number_has_evidence_and_a_branch(
    mine: Path, model: Path, add_patch: AddPatch
) -> None:
    add_patch("say 1", {OPS: [("return 0;", "return 1;")]})
    assert call(mine, "--model", model) == 0
    found = report(mine)
    assert found["passed"] is True
    assert found["tip"] == git(mine, "rev-parse", "state")
    assert found["base"] == git(mine, "rev-parse", "master")
    assert {part: section["passed"] for part, section in found["sections"].items()} == {
        "ops": True, "bench": True, "perplexity": True, "size": True
    }  # fmt: skip
    assert found["sections"]["bench"]["rows"] == [
        ["pp512", "100.00", "100.00", "1.000 (1.000 to 1.000)", "no change"]
    ]
    assert found["sections"]["perplexity"]["rows"][1][:2] == ["after", "41.0000"]
    text = (mine.parent / "out" / "evidence.md").read_text()
    assert "$AFTER/llama-bench -m $MODEL" in text
    assert f"DIR={mine}" in text
    raw = {path.name for path in (mine.parent / "out" / "raw").iterdir()}
    assert {"test-backend-ops-before.txt", "llama-bench-after-8.txt"} <= raw


@pytest.mark.parametrize(
    ("answer", "part", "words"),
    [
        ("return 13;", "ops", "OK before, FAIL after: FLASH_ATTN_EXT(a=2)"),
        ("return 12;", "bench", "worse"),
        ("return 42;", "perplexity", "2 running estimates, not all digits equal"),
    ],
)
def test_what_speaks_against_a_patch_is_said_and_the_status_is_1(
    mine: Path, model: Path, add_patch: AddPatch, answer: str, part: str, words: str
) -> None:
    add_patch("say more", {OPS: [(ANSWER, answer)]})
    assert call(mine, "--model", model) == 1
    section = report(mine)["sections"][part]
    assert section["passed"] is False
    assert words in str(section["notes"]) + str(section["rows"])


def test_a_machine_that_kills_tile_instructions_is_found_out_and_gone_around(
    mine: Path, model: Path, add_patch: AddPatch
) -> None:
    add_patch("say 1", {OPS: [("return 0;", "return 1;")]})
    model.write_bytes(b"GGUFAMX")
    assert call(mine, "--model", model) == 0
    found = report(mine)
    assert "the machine refuses an instruction" in found["machine"]["trap"]
    assert found["sections"]["bench"]["commands"][0].endswith("--repack 0")
    assert found["sections"]["perplexity"]["commands"][0].endswith("--no-repack")


def test_without_a_model_what_needs_one_is_said_not_to_be_measured(
    mine: Path, add_patch: AddPatch
) -> None:
    add_patch("say 1", {OPS: [("return 0;", "return 1;")]})
    assert call(mine) == 0
    sections = report(mine)["sections"]
    assert sections["bench"]["passed"] is None
    assert sections["perplexity"]["notes"] == ["not measured: no --model"]


def test_a_series_that_is_named_goes_onto_the_branch_with_what_it_stands_on(
    mine: Path, add_patch: AddPatch
) -> None:
    add_patch("say 1", {OPS: [("return 0;", "return 1;")]})
    add_patch("faster", {OPS: [("return 1;", "return 2;")]}, series="fast", on=("state",))
    add_patch("alone", {OPS: [("return 0;", "return 3;")]}, series="partial")
    words = ["--skip", "size", "--skip", "ops"]
    assert call(mine, "--series", "fast", *words, skip=["proof", "suite"]) == 0
    subjects = git(mine, "log", "--format=%s", "master..state").splitlines()
    assert subjects == ["ggml : faster", "ggml : say 1"]
    assert report(mine)["sections"]["mutants"]["notes"] == ["not measured: series 'fast' has none"]
    git(mine, "branch", "--quiet", "-D", "state")
    assert call(mine, "--series", "partial", *words, folder="out 2") == 0
    assert git(mine, "log", "--format=%s", "master..state") == "ggml : alone"


def test_a_model_that_does_not_run_is_an_error_with_its_last_words(
    mine: Path, model: Path, add_patch: AddPatch
) -> None:
    add_patch("say 1", {OPS: [("return 0;", "return 1;")]})
    model.write_bytes(b"GGUFBAD")
    before = content(mine)
    with pytest.raises(SetupError, match=r"does not run\n(.*\n)*unknown architecture"):
        call(mine, "--model", model)
    assert content(mine) == before


def test_a_series_that_has_to_be_merged_is_refused_where_libraries_are_built_of_it(
    mine: Path, project: Project, add_patch: AddPatch
) -> None:
    add_patch("say 40", {OPS: [(ANSWER, "return 40;")]})
    text = (mine / OPS).read_text()
    (mine / OPS).write_text(text.replace("\nint ggml_answer", "\n#define N 3\nint ggml_answer"))
    git(mine, "commit", "--quiet", "--all", "--message", "moved on")
    before = content(mine)
    with pytest.raises(SetupError, match="does not apply") as caught:
        call(mine, skip=["proof", "mutants"])
    assert f"series rebase --onto {mine} first, or leave them out" in str(caught.value)
    assert content(mine) == before
    assert not list(project.build.glob("evidence/*/*/cmake")), "asked after the builds"
    assert call(mine, folder="others") == 0
    assert list(project.build.glob("evidence/*/*/cmake"))


@pytest.mark.parametrize("answer", ["no C;", "return unknown;"])
def test_a_build_that_fails_half_way_leaves_the_checkout_as_it_was(
    mine: Path, add_patch: AddPatch, answer: str
) -> None:
    add_patch("say nothing", {OPS: [(ANSWER, answer)]})
    before = content(mine)
    with pytest.raises(SetupError, match=r"llama\.cpp with the patches does not build"):
        call(mine)
    assert content(mine) == before
    assert not (mine.parent / "out").exists()


def test_a_compilers_error_names_the_developers_own_file_and_line(
    mine: Path, add_patch: AddPatch
) -> None:
    more = '#include "ggml.h"\n#define BROKEN\n'
    add_patch("break", {OPS: [('#include "ggml.h"\n', more), (ANSWER, "return my_answer;")]})
    text = (mine / OPS).read_text()
    (mine / OPS).write_text(
        text.replace("return 0;", "return 0;\n#ifdef BROKEN\n#error odd\n#endif")
    )
    git(mine, "commit", "--quiet", "--all", "--message", "mine")
    with pytest.raises(SetupError) as caught:
        call(mine)
    message = str(caught.value)
    assert f"src/{OPS}:8:12: error: " in message
    assert f" [a patch has added this line at {mine / OPS}:8]" in message
    assert f"{mine / OPS}:18:2: error: #error odd" in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "no-such.gguf"), "no-such.gguf"),
        (("--model", "no-such-model"), "unknown model 'no-such-model'"),
        (("--text", "no-such.txt"), "there is no such file"),
        (("--part", "speed"), "part 'speed' is unknown"),
        (("--rounds", "3"), "an interval needs 8"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    mine: Path, project: Project, arguments: tuple[str, ...], words: str
) -> None:
    before = content(mine)
    with pytest.raises(UsageError) as caught:
        call(mine, *arguments)
    assert words in str(caught.value)
    assert content(mine) == before
    assert not (project.build / "evidence").exists()


def test_a_folder_with_something_in_it_is_not_written_into(mine: Path) -> None:
    (mine.parent / "out").mkdir()
    (mine.parent / "out" / "evidence.md").write_text("of before")
    with pytest.raises(UsageError, match="exists and is not empty"):
        call(mine)


def test_a_model_that_does_not_fit_is_refused(
    mine: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fa_harness.model.gather.available_memory", lambda: 10)
    with pytest.raises(SetupError, match="of memory are available"):
        call(mine, "--model", model)
