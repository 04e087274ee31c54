"""`fa-harness series` as it is called, on the project's own patches."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import schemas
from fa_harness.build.library import Library
from fa_harness.project import find_project
from fa_harness.series.series import load_series

NAMES = load_series(find_project()).names


def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fa_harness.cli", "series", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_status_has_each_patch_with_its_files() -> None:
    done = call("status", "--json", "-")
    assert done.returncode == 0, done.stderr
    patches = schemas.checked(json.loads(done.stdout))["patches"]
    assert tuple(patch["name"] for patch in patches) == NAMES
    assert all(patch["files"] and not patch["is_upstream"] for patch in patches)
    assert patches[0]["turned_green"] is None


@pytest.mark.full
def test_the_series_keeps_what_upstream_insists_on() -> None:
    done = call("lint", "--json", "-")
    report = schemas.checked(json.loads(done.stdout))
    assert [f for f in report["findings"] if f["level"] == "must"] == []
    assert done.returncode == 0
    assert report["not_checked"] == []


def test_check_runs_a_suite_on_an_upstream(
    patched: Library, pristine: Library, tmp_path: Path
) -> None:
    file = tmp_path / "matrix.md"
    done = call("check", "--upstream", patched.upstream, "--suite", "seed", "--markdown", file)
    assert done.returncode == 0, done.stderr
    assert f"patches {len(NAMES)} of {len(NAMES)}  variants 0  drift 0  seed: 1 of 1" in done.stdout
    assert f"| {patched.upstream} |" in file.read_text()


def test_a_command_is_run_on_each_patch_and_its_results_are_known_the_next_time() -> None:
    command = "grep -q flash_attn_ext_from_state ggml/include/ggml.h"
    first, again = (call("test", command, "--jobs", "2", "--json", "-") for _ in range(2))
    assert (first.returncode, again.returncode) == (1, 1), first.stderr
    report = schemas.checked(json.loads(again.stdout))
    assert [each["patch"] for each in report["patches"]] == [*NAMES]
    assert all(each["is_kept"] for each in report["patches"])
    passed = [each["passed"] for each in report["patches"]]
    assert passed == [False] * 5 + [True] * 2
    assert "2 of 7 patches pass" in again.stderr


def test_a_series_is_compared_with_itself(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = call("compare", find_project().patches, "--json", report)
    assert done.returncode == 0, done.stderr
    found = schemas.checked(json.loads(report.read_text()))
    assert [line.split()[2] for line in found["range_diff"]] == ["="] * len(NAMES)
    assert (found["suite"], found["patches"]) == (None, [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "--upstream", "gone"], "unknown upstream 'gone'"),
        (["check", "--upstream", "all", "--suite", "gone"], "gone"),
        (["edit"], "name the patch to edit"),
        (["edit", "1", "--series", "gone"], "there is no series 'gone'; there are: "),
        (["status", "--series", "state+state"], "names a stack; name one series, the last"),
        (["compare", "/gone"], "'/gone' is no folder with a series and no revision"),
        (["drop"], "name one patch at least"),
        (["drop", "0042"], "no patch is called or begins with '0042'"),
        (["reorder", "1", "1"], "a patch is named twice"),
        (["add", "/gone.patch"], "there is no file /gone.patch"),
        (["refresh", "--continue"], "no change of the series has begun"),
        (["drop", "1", "--abort"], "take nothing else"),
    ],
)
def test_a_wrong_call_is_refused_with_status_2(arguments: list[str], message: str) -> None:
    done = call(*arguments)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
