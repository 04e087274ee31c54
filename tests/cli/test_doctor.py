import dataclasses
from pathlib import Path

import pytest

from fa_harness.build.library import Library
from fa_harness.cli.doctor import baseline_here, try_library
from fa_harness.project import find_project
from fa_harness.speed import baseline


def test_a_library_that_works_is_tried_without_complaint(patched: Library) -> None:
    assert try_library(patched) is None


def test_a_library_that_does_not_load_says_why(patched: Library, tmp_path: Path) -> None:
    (tmp_path / patched.module).write_bytes(b"not a library")
    reason = try_library(dataclasses.replace(patched, path=tmp_path))
    assert reason is not None
    assert str(tmp_path) in reason


def test_doctor_names_the_baseline_that_the_gate_lacks_here(
    patched: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baseline, "machine_class", lambda *_: "some-class")
    finding = baseline_here(find_project())
    assert (finding.name, finding.status) == ("baseline", "note")
    file = f"baselines/{patched.upstream}.some-class.json"
    assert finding.value.startswith(f"no baseline: {file} does not exist (")
    assert finding.value.endswith("fa-harness gate --update-baseline makes it")


def test_doctor_tells_which_baseline_the_gate_compares_with_here(
    patched: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    [file, *_] = find_project().baselines.glob(f"{patched.upstream}.*.json")
    class_ = baseline.load(file).made_with["class"]
    monkeypatch.setattr(baseline, "machine_class", lambda *_: class_)
    finding = baseline_here(find_project())
    assert finding.value.startswith(f"baselines/{file.name} (machine class {class_})")
