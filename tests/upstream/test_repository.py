"""Pins of commits, from git repositories on this machine."""

import gzip
import os
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from fa_harness.errors import SetupError, UsageError
from fa_harness.project import Project
from fa_harness.series.series import load_series
from fa_harness.series.tree import prepare_tree
from fa_harness.upstream import newer
from fa_harness.upstream.fetch import fetch
from fa_harness.upstream.git import git
from fa_harness.upstream.pins import Pin, load_pins
from fa_harness.upstream.repository import contents_sha256
from fa_harness.upstream.source import Source, find_source, source_of

ATTRIBUTES = "LICENSE export-ignore\n*.c export-subst eol=crlf text\n"
MORE = {"ggml/src/version.c": "// $Format:%H$\n"}


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def commit(repository: Path, message: str = "change") -> str:
    git(repository, "add", "--all", "--force")
    git(repository, "commit", "--quiet", "--message", message)
    return git(repository, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path, files: Mapping[str, str]) -> Path:
    """A checkout with two commits, whose attributes would change what is archived."""
    folder = tmp_path / "my llama"  # a space, which a URL has to quote
    write(folder, files)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    commit(folder)
    write(folder, {".gitattributes": ATTRIBUTES, "include/llama.h": "", **MORE})
    (folder / "ggml" / "src" / "link.c").symlink_to("ggml.c")
    commit(folder)
    return folder


def head(repository: Path) -> str:
    return git(repository, "rev-parse", "HEAD")


def test_the_commit_of_a_checkout_is_pinned_and_gives_its_tree(
    project: Project, repository: Path, files: Mapping[str, str]
) -> None:
    pin = newer.add(project, str(repository))
    assert (pin.name, pin.root) == (f"llama.cpp-{head(repository)[:9]}", ".")
    assert (pin.git, pin.commit) == (repository.as_uri(), head(repository))
    assert pin.ggml_version == "0.1.2"
    assert load_pins(project.pins_file).upstreams[pin.name] == pin
    source = find_source(project, pin.name)
    assert source.commit == pin.commit[:9]
    tree = prepare_tree(project, source, load_series(project))
    for name, text in {"LICENSE": files["LICENSE"], **MORE}.items():
        assert (tree.path / name).read_bytes() == text.encode()
    assert (tree.path / "ggml" / "src" / "link.c").readlink() == Path("ggml.c")


def test_a_pin_gives_the_files_that_its_checkout_gives(project: Project, repository: Path) -> None:
    def files_of(source: Source) -> dict[str, bytes]:
        tree = prepare_tree(project, source, load_series(project)).path
        found = (path for path in tree.rglob("*") if ".git" not in path.parts and path.is_file())
        return {path.relative_to(tree).as_posix(): path.read_bytes() for path in found}

    pin = newer.add(project, str(repository))
    assert files_of(find_source(project, pin.name)) == files_of(source_of(repository))


@pytest.mark.parametrize("ref", ["main", "v1", "annotated", "commit"])
@pytest.mark.parametrize("form", ["url", "path"])
def test_a_branch_a_tag_or_a_commit_of_a_repository_is_pinned_as_its_commit(
    project: Project, repository: Path, ref: str, form: str
) -> None:
    pinned = head(repository)
    git(repository, "tag", "v1")
    git(repository, "tag", "--annotate", "--message", "one", "annotated")
    where = repository.as_uri() if form == "url" else repository
    pin = newer.add(project, f"{where}@{pinned if ref == 'commit' else ref}", "mine")
    write(repository, {"ggml/src/ggml.c": "int later;\n"})
    commit(repository)
    assert (pin.name, pin.git, pin.commit) == ("mine", repository.as_uri(), pinned)
    (project.cache / pin.archive_name).unlink()
    assert contents_sha256(fetch(project, pin)) == pin.sha256


def test_the_first_commit_has_no_llama_header_and_is_ggml(
    project: Project, repository: Path
) -> None:
    first = git(repository, "rev-parse", "HEAD~1")
    pin = newer.add(project, f"{repository.as_uri()}@{first}")
    assert (pin.name, pin.root) == (f"ggml-{first[:9]}", "ggml")


def test_a_repository_of_ggml_alone_is_pinned(
    project: Project, tmp_path: Path, files: Mapping[str, str]
) -> None:
    folder = tmp_path / "ggml"
    inside = {name[5:]: text for name, text in files.items() if name.startswith("ggml/")}
    write(folder, inside)
    git(folder, "init", "--quiet")
    commit(folder)
    pin = newer.add(project, str(folder))
    assert pin.root == "."
    tree = prepare_tree(project, find_source(project, pin.name), load_series(project))
    assert (tree.path / "ggml" / "src" / "ggml.c").is_file()


def test_the_cached_archive_needs_no_repository(project: Project, repository: Path) -> None:
    pin = newer.add(project, str(repository))
    repository.rename(repository.with_name("away"))
    assert fetch(project, pin).name == f"git-{pin.commit}.tar.gz"


def test_nothing_but_the_archive_is_left_in_the_cache(project: Project, repository: Path) -> None:
    pin = newer.add(project, str(repository))
    assert [path.name for path in project.cache.iterdir()] == [pin.archive_name]


def test_a_repository_that_is_gone_is_named_with_the_pin(
    project: Project, repository: Path
) -> None:
    pin = newer.add(project, str(repository))
    repository.rename(repository.with_name("away"))
    (project.cache / pin.archive_name).unlink()
    with pytest.raises(SetupError) as caught:
        fetch(project, pin)
    message = str(caught.value)
    assert message.startswith(f"upstream '{pin.name}': git cannot fetch '{pin.commit}' from file:")
    assert "(fatal: " in message
    assert "check the network" in message
    assert list(project.cache.iterdir()) == []


@pytest.mark.parametrize("ref", ["gone", "0" * 40])
def test_a_ref_that_is_not_there_is_named_and_nothing_pinned(
    project: Project, repository: Path, ref: str
) -> None:
    before = project.pins_file.read_text()
    with pytest.raises(SetupError, match=rf"git cannot fetch '{ref}' from .*\((fatal|error): "):
        newer.add(project, f"{repository.as_uri()}@{ref}")
    assert project.pins_file.read_text() == before


def test_files_with_another_sha256_are_refused_and_not_kept(
    project: Project, repository: Path
) -> None:
    pin = replace(newer.add(project, str(repository)), sha256="0" * 64)
    with pytest.raises(SetupError, match=r"sha256 is .*, the lock says 0+; delete vendor/cache"):
        fetch(project, pin)
    (project.cache / pin.archive_name).unlink()
    with pytest.raises(SetupError, match=rf"sha256 of the files of {pin.commit} is .*the lock"):
        fetch(project, pin)
    assert list(project.cache.iterdir()) == []


def test_a_damaged_cached_archive_is_refused_with_the_way_out(
    project: Project, repository: Path
) -> None:
    pin = newer.add(project, str(repository))
    archive = project.cache / pin.archive_name
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(SetupError, match=r"is damaged .*delete it and fetch again"):
        fetch(project, pin)


def test_the_sum_is_of_the_files_not_of_how_they_are_packed(
    project: Project, repository: Path, tmp_path: Path
) -> None:
    archive = fetch(project, newer.add(project, str(repository)))
    packed = tmp_path / "packed.tar.gz"
    packed.write_bytes(gzip.compress(gzip.decompress(archive.read_bytes()), 1))
    assert packed.read_bytes() != archive.read_bytes()
    assert contents_sha256(packed) == contents_sha256(archive)


@pytest.mark.parametrize("what", ["name", "mode", "content", "link", "more"])
def test_each_change_of_a_file_changes_the_sum(tmp_path: Path, what: str) -> None:
    def pack(changed: str) -> str:
        folder = tmp_path / (changed or "as it was")
        file = folder / ("b" if changed == "name" else "a")
        write(folder, {file.name: "2" if changed == "content" else "1"})
        file.chmod(0o755 if changed == "mode" else 0o644)
        (folder / "link").symlink_to("b" if changed == "link" else "a")
        if changed == "more":
            (folder / "more").touch()
        archive = tmp_path / "archive.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(folder, arcname="top")
        return contents_sha256(archive)

    assert pack(what) != pack("")


def test_a_checkout_with_changes_is_not_pinned(project: Project, repository: Path) -> None:
    (repository / "build").mkdir()
    write(repository, {"LICENSE": "changed\n", "build/log": "untracked\n"})
    with pytest.raises(SetupError) as caught:
        newer.add(project, str(repository))
    assert "has changes that are not committed (M LICENSE)" in str(caught.value)
    assert f"UPSTREAM_DIR={repository} uses it as it is" in str(caught.value)
    git(repository, "checkout", "--", "LICENSE")
    assert newer.add(project, str(repository)).commit == head(repository)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_checkout_of_another_user_is_pinned(project: Project, repository: Path) -> None:
    for path in (repository, *repository.rglob("*")):
        os.chown(path, 65534, -1, follow_symlinks=False)
    assert newer.add(project, str(repository)).commit == head(repository)


def test_a_folder_without_a_commit_is_not_pinned(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    with pytest.raises(SetupError, match=r"plain is no git checkout with a commit \(fatal: .*UPS"):
        newer.add(project, str(folder))
    git(folder, "init", "--quiet")
    with pytest.raises(SetupError, match="plain is no git checkout with a commit"):
        newer.add(project, str(folder))


def test_a_folder_inside_a_checkout_is_not_pinned(project: Project, repository: Path) -> None:
    with pytest.raises(SetupError, match=r"is a folder of the git checkout .*my llama; name that"):
        newer.add(project, str(repository / "ggml"))


def test_a_repository_without_ggml_is_no_upstream(project: Project, tmp_path: Path) -> None:
    before = project.pins_file.read_text()
    write(tmp_path / "other", {"README.md": "x"})
    git(tmp_path / "other", "init", "--quiet")
    commit(tmp_path / "other")
    with pytest.raises(SetupError, match=r"there is no src/ggml\.c in it"):
        newer.add(project, str(tmp_path / "other"))
    assert project.pins_file.read_text() == before


def test_a_commit_is_not_pinned_twice(project: Project, repository: Path) -> None:
    pin = newer.add(project, str(repository))
    with pytest.raises(UsageError, match=rf"is pinned already, as '{pin.name}'"):
        newer.add(project, f"{repository.as_uri()}@main")


@pytest.mark.parametrize(
    "spec",
    [
        "https://example.invalid/llama",
        "https://example.invalid/llama@",
        "https://example.invalid/llama@-x",
        "https://example.invalid/llama@main:evil",
        "--upload-pack=touch x@main",
        "ssh://-oProxyCommand=x y@main",
        "/not/there@main",
    ],
)
def test_another_form_is_refused(project: Project, spec: str) -> None:
    with pytest.raises(UsageError, match="is not PACKAGE==VERSION, the folder of a git checkout"):
        newer.add(project, spec)


def test_a_password_is_not_recorded(project: Project) -> None:
    with pytest.raises(UsageError, match="has a password") as caught:
        newer.add(project, "https://me:secret@example.invalid/llama@main")
    assert "secret" not in str(caught.value)


def test_no_program_is_started_for_a_url(project: Project, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not PACKAGE"):
        newer.add(project, f"ext::touch% {tmp_path}/started@main")
    assert not (tmp_path / "started").exists()


def test_newer_versions_are_asked_for_packages_only(project: Project, repository: Path) -> None:
    newer.add(project, str(repository))
    assert [found.package for found in newer.newest(project)] == ["mini-llama"]


GOOD = Pin(name="a", git="https://example.invalid/x", commit="0" * 40, sha256="1" * 64, root=".")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("git =", 'package = "x"\ngit =', "has git and package; it is an sdist or a commit"),
        (GOOD.commit, "abc", "commit must be 40 hexadecimal digits"),
        ("commit =", "root =", "not valid TOML"),
        (f'commit = "{GOOD.commit}"\n', "", "commit is missing"),
    ],
)
def test_a_wrong_pin_of_a_commit_is_refused(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    keys = ("git", "commit", "sha256", "root")
    text = "".join(f'{key} = "{getattr(GOOD, key)}"\n' for key in keys)
    path = tmp_path / "upstreams.toml"
    path.write_text(f'default = "a"\n[upstreams.a]\n{text}')
    assert load_pins(path).get() == GOOD
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(SetupError, match=message):
        load_pins(path)
