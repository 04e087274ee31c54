"""The real llama.cpp, built with its programs, on a tiny model of random weights.

Each of the four builds takes minutes on two cores, so what can be seen without them is tested
elsewhere.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tiny_model
from fa_harness.build.library import Library
from fa_harness.case.modes import MODES
from fa_harness.project import find_project
from fa_harness.upstream.git import git
from fa_harness.upstream.source import find_source, unpack, whole_of

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    tiny_model.write(path)
    return path


@pytest.fixture(scope="module")
def checkout() -> Path:
    """The pinned llama.cpp as a developer would have it, with a branch and an author.

    Always in the same place, so that its builds are current the next time.
    """
    project = find_project()
    folder = project.build / "evidence" / "checkout-of-the-tests"
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unpack(project, whole_of(find_source(project)), folder)
    git(folder, "init", "--quiet")
    git(folder, "checkout", "--quiet", "-B", "master")
    git(folder, "add", "--all", "--force")
    git(folder, "commit", "--quiet", "--message", "upstream")
    git(folder, "config", "user.name", "A")
    git(folder, "config", "user.email", "a@b.c")
    return folder


def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fa_harness.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


@pytest.mark.parametrize("ubatch", ["256", "1"], ids=["prefill", "decode"])
def test_a_model_in_segments_prints_the_digits_that_it_must(
    model: Path, tmp_path: Path, ubatch: str
) -> None:
    report = tmp_path / "report.json"
    setting = ("--context", "512", "--ubatch", ubatch, "--chunks", "2", "--threads", "1")
    done = call("perplexity", "--model", model, *setting, "--json", report)
    assert done.returncode == 0, done.stdout + done.stderr
    judgements = {each["name"]: each for each in read(report)["judgements"]}
    assert list(judgements) == ["segments=1", "segments=2", "segments=8"]
    exact = [each["expected"]["exact"] for each in judgements.values()]
    assert exact[0]
    assert all(each["largest"] == 0 for each in judgements.values() if each["expected"]["exact"])


def test_evidence_on_the_real_llama_cpp(checkout: Path, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evidence"
    done = call(
        "evidence", "--onto", checkout, "--branch", "state", "-o", folder, "--model", model,
        "--part", "size", "--part", "ops", "--part", "bench", "--part", "perplexity",
        "--ops-filter", "hsk=64,.*nb=3,.*type_K=f16", "--rounds", "8", "--bench", "-p 64 -n 4",
        "-D", "CMAKE_BUILD_TYPE=Debug",
    )  # fmt: skip
    assert (folder / "evidence.json").is_file(), done.stdout + done.stderr
    report = read(folder / "evidence.json")
    sections = {section["part"]: section for section in report["sections"]}
    assert sections["size"]["passed"]
    assert sections["ops"]["passed"]
    assert {row[0] for row in sections["ops"]["rows"]} >= {"FLASH_ATTN_EXT", "FLASH_ATTN_EXT_STATE"}
    assert sections["perplexity"]["passed"]
    assert "all digits equal" in sections["perplexity"]["notes"][0]
    # whether it is as fast is not for a machine that others use, too
    assert [row[0] for row in sections["bench"]["rows"]] == ["pp64", "tg4"]
    assert git(checkout, "rev-list", "--count", "master..state") == str(len(report["subjects"]))


def test_a_models_own_attention_is_captured_and_passes_in_every_mode(
    model: Path, patched: Library, tmp_path: Path
) -> None:
    file, report = tmp_path / "tiny.npz", tmp_path / "report.json"
    done = call("capture", "--model", model, "--layers", "0,5", "--tokens", "96", "-o", file)
    assert done.returncode == 0, done.stdout + done.stderr
    done = call("run", "--captured", file, "--json", report)
    assert done.returncode == 0, done.stdout + done.stderr
    results = read(report)["results"]
    assert {result["status"] for result in results} == {"pass"}
    modes = {mode for result in results for mode in result["modes"]}
    assert modes == set(MODES)
