import dataclasses
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from fa_harness.build import builder as build
from fa_harness.build.library import Library
from fa_harness.cli import doctor
from fa_harness.cli.doctor import Finding, baseline_here, check, look, try_library
from fa_harness.project import Project, find_project
from fa_harness.speed import baseline


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with one patch, not fetched, and the library `patched` as if it were built."""
    monkeypatch.delenv("UPSTREAM_DIR", raising=False)
    project = Project(data=tmp_path, home=tmp_path)
    project.patches.mkdir(parents=True)
    project.series_file.write_text("0001-a.patch\n")
    (project.patches / "0001-a.patch").write_text("patch")
    project.pins_file.parent.mkdir()
    project.pins_file.write_text(
        'default = "mini"\n[upstreams.mini]\npackage = "mini"\nversion = "1.0"\n'
        f'sha256 = "{"0" * 64}"\nroot = "ggml"\ncommit = "abc123"\n'
    )
    return project


def found(report: list[Finding], name: str) -> Finding:
    return next(finding for finding in report if finding.name == name)


def problems(report: list[Finding]) -> list[Finding]:
    return [finding for finding in report if finding.status == "problem"]


def pretend_built(project: Project, monkeypatch: pytest.MonkeyPatch, stale: str | None) -> Library:
    library = Library(
        name="state",
        path=project.home,
        module="_ggml.so",
        upstream="mini",
        upstream_commit="abc123",
        ggml_version="",
        series=(),
        build={},
        inputs={},
        compiled=(),
    )
    monkeypatch.setattr(build, "find", lambda _project, _name: library)
    monkeypatch.setattr(build, "is_stale", lambda _project, _library: stale)
    return library


def test_a_machine_that_can_build_has_no_problem(project: Project) -> None:
    report = check(project)
    assert problems(report) == []
    assert found(report, "upstream").value == "mini abc123 (not fetched yet)"
    assert found(report, "patch series").value == "1 patches (not applied yet)"
    library = found(report, "library state")
    assert (library.status, library.value) == (
        "note",
        "library 'state' is not built: fa-harness build state",
    )


def test_looking_changes_nothing(project: Project) -> None:
    before = set(project.home.rglob("*"))
    check(project)
    assert set(project.home.rglob("*")) == before


def test_a_missing_compiler_is_a_problem_with_its_next_step(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "gone")
    (problem,) = problems(check(project))
    assert problem.name == "C compiler"
    assert problem.value.endswith("correct CC or unset it")


def test_a_damaged_archive_is_a_problem(project: Project) -> None:
    project.cache.mkdir()
    (project.cache / "mini-1.0.tar.gz").write_bytes(b"damaged")
    (problem,) = problems(check(project))
    assert problem.name == "upstream"
    assert "delete vendor/cache/mini-1.0.tar.gz" in problem.value


def test_a_series_that_cannot_be_read_is_one_problem(project: Project) -> None:
    project.series_file.write_text("0002-gone.patch\n")
    report = check(project)
    assert [problem.name for problem in problems(report)] == ["patch series"]
    assert not [finding for finding in report if finding.name.startswith("library")]


def test_a_stale_library_says_why_and_what_to_do(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_built(project, monkeypatch, "patches changed")
    library = found(check(project), "library state")
    assert library.status == "note"
    assert library.value == "stale (patches changed): fa-harness build state"


def test_a_library_that_this_cpu_does_not_run_is_a_problem(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = pretend_built(project, monkeypatch, None)
    tried: list[Library] = []

    def dies(library: Library) -> str:
        tried.append(library)
        return "SIGILL"

    library = found(check(project, dies), "library state")
    assert tried == [built, built]
    assert library.status == "problem"
    assert "does not run on this machine: SIGILL; build it without" in library.value


def test_a_library_that_runs_is_said_to(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_built(project, monkeypatch, None)
    report = check(project, lambda _library: None)
    assert found(report, "library state").value == "current, runs here"


def test_the_places_of_configuration_patches_and_home_are_shown(project: Project) -> None:
    report = check(project)
    assert found(report, "configuration").value == "none (fa-harness init: fa-harness.toml)"
    assert found(report, "patches").value == str(project.patches)
    expected = f"{project.home} (FA_HARNESS_HOME moves them)"
    assert found(report, "sources, builds").value == expected


def test_a_home_that_cannot_be_written_is_a_problem(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    problem = found(check(project), "sources, builds")
    assert problem.status == "problem"
    assert problem.value == (
        f"{project.home} cannot be written; make it writable, or set FA_HARNESS_HOME"
    )


def test_little_room_on_the_disk_is_a_problem(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=10 << 20))
    (problem,) = problems(check(project))
    assert problem.value == "10 MiB free, a build needs 500; free some space"


def test_fewer_cores_than_the_machine_has_are_noted(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "usable_cores", lambda: 0)
    assert found(check(project), "cores").status == "note"


def test_only_features_that_ggml_has_kernels_for_are_shown(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("avx512_vnni", "amx_tile", "fpu", "smep", "sse4_2", "vme")
    monkeypatch.setattr(doctor, "cpu_features", lambda: flags)
    assert found(check(project), "CPU features").value == "avx512_vnni amx_tile sse4_2"


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
    finding = look("baseline", lambda: baseline_here(find_project()))
    assert (finding.name, finding.status) == ("baseline", "note")
    file = f"baselines/state/{patched.upstream}.some-class.json"
    assert finding.value.startswith(f"no baseline: {file} does not exist (")
    assert finding.value.endswith("fa-harness gate --update-baseline makes it")


def test_doctor_tells_which_baseline_the_gate_compares_with_here(
    patched: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    [file, *_] = find_project().baselines.glob(f"{patched.upstream}.*.json")
    class_ = baseline.load(file).made_with["class"]
    monkeypatch.setattr(baseline, "machine_class", lambda *_: class_)
    finding = look("baseline", lambda: baseline_here(find_project()))
    assert finding.value.startswith(f"baselines/state/{file.name} (machine class {class_})")
