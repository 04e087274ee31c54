"""`--coverage` of `run` and `gate`, from the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import schemas
from fa_harness.case.suites import suite
from fa_harness.cli import gate as gate_command
from fa_harness.cli.main import cli
from fa_harness.errors import UsageError


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli, list(map(str, arguments)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--library", "pristine"), "runs the library 'coverage' of a stack, which counts"),
        (("gate", "--update-baseline"), "with no baseline, and makes none; leave it or --update"),
        (("gate", "--baseline", "a.json"), "leave it or --baseline out"),
    ],
)
def test_what_coverage_cannot_do_is_refused(arguments: tuple[str, ...], message: str) -> None:
    ended = call(*arguments, "--coverage")
    assert isinstance(ended.exception, UsageError)
    assert message in str(ended.exception)


@pytest.mark.full
@pytest.mark.parametrize("strict", [False, True])
def test_a_missed_branch_is_told_and_stops_only_a_strict_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strict: bool
) -> None:
    monkeypatch.setattr(gate_command, "select", lambda _: suite("seed"))
    file = tmp_path / "report.json"
    ended = call("gate", "--coverage", "--json", file, *(["--strict"] if strict else []))
    assert ended.exit_code == int(strict), ended.output
    assert "never entered: ggml_compute_forward_flash_attn_ext_tiled (ggml/src/" in ended.stdout
    assert "isnan(S) is never true    | if (isnan(S))\n" in ended.stdout
    report = schemas.checked(json.loads(file.read_text()))
    found = report["coverage"]
    assert found["branches"] == found["taken"] + found["accepted"] + found["not_taken"]
    assert found["not_taken"] == len(found["missed"]) > 100
    assert found["taken"] > 50
