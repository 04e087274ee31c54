"""New pins from an index of our own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fa_harness.errors import SetupError, UsageError
from fa_harness.files import sha256
from fa_harness.project import Project
from fa_harness.series.series import load_series
from fa_harness.series.tree import prepare_tree
from fa_harness.upstream import newer
from fa_harness.upstream.pins import load_pins
from fa_harness.upstream.source import find_source

MakeSdist = Callable[..., Path]


@pytest.fixture
def second(
    index: Path, make_sdist: MakeSdist, files: dict[str, str]
) -> Callable[[dict[str, str]], Path]:
    """Put version 2.0 with more files into the index."""

    def make(more: dict[str, str]) -> Path:
        page = index / "mini-llama"
        sdist = make_sdist({**files, **more}).rename(page / "mini_llama-2.0.tar.gz")
        links = [
            f'<a href="mini_llama-{n}.tar.gz">mini_llama-{n}.tar.gz</a>' for n in ("1.0", "2.0")
        ]
        (page / "index.html").write_text("".join(links))
        return sdist

    return make


def test_a_newer_version_is_found_and_pinned_with_its_checksum(
    project: Project, second: Callable[[dict[str, str]], Path]
) -> None:
    sdist = second({"include/llama.h": ""})
    [found] = newer.newest(project)
    assert (found.package, found.pinned, found.version) == ("mini-llama", "1.0", "2.0")
    assert found.is_newer
    pin = newer.add(project, "mini-llama==2.0")
    assert (pin.name, pin.root, pin.ggml_version) == ("llama.cpp-2.0", "vendor/llama.cpp", "0.1.2")
    assert pin.sha256 == sha256(sdist)
    assert load_pins(project.pins_file).upstreams["llama.cpp-2.0"] == pin
    source = find_source(project, "llama.cpp-2.0")
    tree = prepare_tree(project, source, load_series(project))
    assert (tree.path / "ggml" / "src" / "ggml.c").is_file()
    assert not newer.newest(project)[0].is_newer


@pytest.mark.parametrize("name", ['a"b', "a/b", "..", "a\nb", "-x"])
def test_a_name_that_cannot_be_a_folders_is_refused_before_anything_is_fetched(
    project: Project, name: str
) -> None:
    before = project.pins_file.read_text()
    with pytest.raises(UsageError, match="cannot be a folder's name"):
        newer.add(project, "mini-llama==9.9", name)
    assert project.pins_file.read_text() == before


@pytest.mark.parametrize(
    ("pinned", "version", "is_newer"),
    [
        ("0.9", "0.10", True),
        ("0.20.2", "0.20.2.post1", True),
        ("2.0", "1.9", False),  # the index lags behind, or it was taken back
        ("2.0", "2.0.0", False),
    ],
)
def test_a_version_is_newer_if_it_comes_later(pinned: str, version: str, is_newer: bool) -> None:
    found = newer.Newest(package="mini-llama", pinned=pinned, version=version)
    assert found.is_newer is is_newer


def test_a_pinned_version_that_is_none_is_named() -> None:
    found = newer.Newest(package="mini-llama", pinned="newest", version="1.0")
    with pytest.raises(SetupError, match=r"upstreams\.toml: Invalid version: 'newest'"):
        _ = found.is_newer


def test_an_sdist_of_ggml_alone_is_named_after_ggml(
    project: Project, second: Callable[[dict[str, str]], Path]
) -> None:
    second({})
    pin = newer.add(project, "mini-llama==2.0")
    assert (pin.name, pin.root) == ("ggml-0.1.2", "vendor/llama.cpp/ggml")


def test_what_is_pinned_is_not_pinned_again(
    project: Project, second: Callable[[dict[str, str]], Path]
) -> None:
    second({})
    before = project.pins_file.read_text()
    with pytest.raises(UsageError, match="is pinned already, as 'mini'"):
        newer.add(project, "mini-llama==1.0")
    with pytest.raises(UsageError, match="there is a pin 'mini' already"):
        newer.add(project, "mini-llama==2.0", "mini")
    assert project.pins_file.read_text() == before


@pytest.mark.parametrize("spec", ["mini-llama", "mini-llama>=2", "/some/checkout", "x==1; rm"])
def test_another_form_is_refused(project: Project, spec: str) -> None:
    with pytest.raises(UsageError, match="is not PACKAGE==VERSION"):
        newer.add(project, spec)


def test_a_version_that_no_index_has_leaves_the_pins_as_they_were(project: Project) -> None:
    before = project.pins_file.read_text()
    with pytest.raises(SetupError, match=r"no index gave the sdist mini-llama 3\.0"):
        newer.add(project, "mini-llama==3.0")
    assert project.pins_file.read_text() == before


def test_an_index_that_cannot_be_asked_is_named(
    project: Project, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", (index / "gone").as_uri())
    with pytest.raises(SetupError, match=r"no index has an sdist of mini-llama; tried\n.*gone"):
        newer.newest(project)


def test_an_sdist_without_ggml_is_no_upstream(
    project: Project,
    second: Callable[[dict[str, str]], Path],
    tmp_path: Path,
    make_sdist: MakeSdist,
) -> None:
    with pytest.raises(SetupError, match=r"there is no src/ggml\.c in it"):
        newer.look_into(make_sdist({"README.md": "x"}))
