"""Upstream's own test-backend-ops, built from the patched tree."""

import re
import subprocess
import sys

import pytest

CLI = [sys.executable, "-m", "fa_harness.cli", "test-backend-ops"]
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CLI, *arguments], capture_output=True, text=True, timeout=900)


@pytest.mark.full
@pytest.mark.parametrize(
    "op", ["FLASH_ATTN_EXT_STATE", "FLASH_ATTN_EXT_MERGE_STATES,FLASH_ATTN_EXT_FROM_STATE"]
)
def test_upstream_s_test_passes_the_cases_of_the_series(op: str) -> None:
    result = run("test", "-b", "CPU", "-o", op)
    output = ANSI.sub("", result.stdout)
    counts = re.search(r"(\d+)/(\d+) tests passed", output)
    assert result.returncode == 0, output[-2000:] + result.stderr
    assert counts is not None, output[-2000:]
    assert counts[1] == counts[2] != "0"
    assert "not supported" not in output


@pytest.mark.full
def test_the_cases_include_chains_and_merges_on_every_path() -> None:
    listed = ANSI.sub("", run("support", "-b", "CPU", "-o", "FLASH_ATTN_EXT_STATE").stdout)
    for part in ("merge=0", "merge=1", "kv=1200,nb=1,", "nb=75", "type_K=q8_0", "n_seg=7"):
        assert part in listed, part


@pytest.mark.full
def test_arguments_of_its_own_are_passed_on() -> None:
    assert "FLASH_ATTN_EXT_MERGE_STATES" in run("--list-ops").stdout


def test_an_unknown_library_is_refused_before_anything_is_built() -> None:
    result = run("--library", "0099", "test")
    assert result.returncode == 2
    assert "0099" in result.stderr
