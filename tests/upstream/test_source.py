from collections.abc import Mapping
from pathlib import Path

import pytest

from fa_harness.errors import SetupError, UsageError
from fa_harness.project import Project
from fa_harness.upstream.git import git
from fa_harness.upstream.source import find_source, unpack


def write(folder: Path, files: Mapping[str, str], *, below: str = "") -> None:
    for name, text in files.items():
        if name.startswith(below):
            path = folder / name[len(below) :]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def listing(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def checkout(tmp_path: Path, files: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "my-llama"
    write(folder, files)
    monkeypatch.setenv("UPSTREAM_DIR", str(folder))
    return folder


def test_the_default_pin_is_the_source(project: Project) -> None:
    source = find_source(project)
    assert (source.label, source.folder, source.commit) == ("mini", "mini", "abc123")


def test_an_unknown_upstream_is_refused(project: Project) -> None:
    with pytest.raises(UsageError, match="unknown upstream 'maxi'"):
        find_source(project, "maxi")


def test_a_checkout_goes_before_the_default_pin(project: Project, checkout: Path) -> None:
    assert find_source(project).label == "dir:my-llama"


def test_an_upstream_asked_for_by_name_goes_before_the_checkout(
    project: Project, checkout: Path
) -> None:
    assert find_source(project, "mini").label == "mini"


def test_a_checkout_is_copied_without_a_change_to_it(
    project: Project, checkout: Path, tmp_path: Path
) -> None:
    git(checkout, "init", "--quiet")
    git(checkout, "add", "--all")
    git(checkout, "commit", "--quiet", "--message", "mine")
    before = listing(checkout)
    unpack(project, find_source(project), tmp_path / "tree")
    assert listing(checkout) == before
    assert set(listing(tmp_path / "tree")) == {
        "LICENSE",
        "ggml/CMakeLists.txt",
        "ggml/include/ggml.h",
        "ggml/src/ggml.c",
        "ggml/src/ggml-backend.c",
        "ggml/src/ggml-cpu/ops.c",
    }


def test_a_checkout_of_plain_ggml_gives_the_same_tree(
    project: Project,
    tmp_path: Path,
    files: Mapping[str, str],
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(tmp_path / "my-ggml", files, below="ggml/")
    write(tmp_path / "my-ggml", {"LICENSE": files["LICENSE"]})
    of_llama = find_source(project)
    monkeypatch.setenv("UPSTREAM_DIR", str(tmp_path / "my-ggml"))
    of_ggml = find_source(project)
    assert of_ggml.label == "dir:my-ggml"
    assert of_ggml.digest == of_llama.digest


def test_uncommitted_work_changes_the_source(project: Project, checkout: Path) -> None:
    before = find_source(project)
    (checkout / "ggml" / "src" / "ggml.c").write_text("changed\n")
    after = find_source(project)
    assert after.digest != before.digest
    assert after.folder == before.folder


def test_files_that_a_tree_does_without_do_not_change_the_source(
    project: Project, checkout: Path
) -> None:
    before = find_source(project)
    (checkout / "src" / "llama.cpp").write_text("changed\n")
    assert find_source(project).digest == before.digest


def test_the_checkouts_commit_is_recorded_with_whether_it_is_dirty(
    project: Project, checkout: Path
) -> None:
    assert find_source(project).commit == ""
    git(checkout, "init", "--quiet")
    git(checkout, "add", "--all")
    git(checkout, "commit", "--quiet", "--message", "mine")
    head = git(checkout, "rev-parse", "--short=9", "HEAD")
    assert find_source(project).commit == head
    (checkout / "LICENSE").write_text("changed\n")
    assert find_source(project).commit == f"{head}-dirty"


def test_a_folder_that_is_no_checkout_is_refused(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPSTREAM_DIR", str(tmp_path))
    with pytest.raises(SetupError, match=r"is no checkout of llama\.cpp or ggml"):
        find_source(project)


def test_a_checkout_that_does_not_exist_is_refused(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPSTREAM_DIR", str(tmp_path / "gone"))
    with pytest.raises(SetupError, match=r"UPSTREAM_DIR: .*gone is not a folder"):
        find_source(project)


def test_another_pin_is_meant_by_its_name_in_the_environment(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = project.pins_file
    text = pins.read_text()
    pins.write_text(text + text.partition("\n")[2].replace("upstreams.mini", "upstreams.other"))
    assert find_source(project).label == "mini"
    monkeypatch.setenv("UPSTREAM", "other")
    assert find_source(project).label == "other"
    assert find_source(project, "mini").label == "mini"
    monkeypatch.setenv("UPSTREAM", "gone")
    with pytest.raises(UsageError, match="unknown upstream 'gone'"):
        find_source(project)
    monkeypatch.setenv("UPSTREAM_DIR", str(project.home))
    with pytest.raises(UsageError, match="are both set; unset one"):
        find_source(project)
