import contextlib
import dataclasses
import errno
import http.server
import io
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from fa_harness.errors import SetupError
from fa_harness.project import Project
from fa_harness.upstream.fetch import cached, extract, fetch
from fa_harness.upstream.pins import Pin, load_pins

ROOT = "vendor/llama.cpp"


@pytest.fixture
def pin(project: Project) -> Pin:
    return load_pins(project.pins_file).get()


@pytest.fixture
def sdist(index: Path) -> Path:
    return index / "mini-llama" / "mini_llama-1.0.tar.gz"


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextlib.contextmanager
def serving(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def send(
    request: http.server.BaseHTTPRequestHandler, body: bytes, kind: str, length: int | None = None
) -> None:
    request.send_response(200)
    request.send_header("Content-Type", kind)
    request.send_header("Content-Length", str(len(body) if length is None else length))
    request.end_headers()
    request.wfile.write(body)


def cache_files(project: Project) -> list[str]:
    return sorted(path.name for path in project.cache.glob("*"))


def test_the_sdist_of_the_pin_is_downloaded(project: Project, pin: Pin, sdist: Path) -> None:
    assert fetch(project, pin).read_bytes() == sdist.read_bytes()
    assert cache_files(project) == ["mini_llama-1.0.tar.gz"]


def test_a_second_fetch_asks_no_index(project: Project, pin: Pin, sdist: Path) -> None:
    first = fetch(project, pin)
    sdist.unlink()
    assert fetch(project, pin) == first


def test_a_sdist_with_another_sha256_is_refused_and_not_kept(
    project: Project, pin: Pin, sdist: Path
) -> None:
    sdist.write_bytes(sdist.read_bytes() + b"more")
    with pytest.raises(SetupError, match=rf"upstream 'mini': sha256 .* the lock says {pin.sha256}"):
        fetch(project, pin)
    assert cache_files(project) == []


def test_a_truncated_sdist_is_refused_with_its_size(
    project: Project, pin: Pin, sdist: Path
) -> None:
    sdist.write_bytes(sdist.read_bytes()[:100])
    with pytest.raises(SetupError, match=r"\(100 bytes\)"):
        fetch(project, pin)
    assert cache_files(project) == []


def test_a_connection_that_breaks_in_the_middle_leaves_nothing(
    project: Project, pin: Pin, sdist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        if request.path.endswith(".tar.gz"):
            send(request, sdist.read_bytes()[:50], "application/gzip", length=5000)
        else:
            send(request, (sdist.parent / "index.html").read_bytes(), "text/html")

    with serving(answer) as url:
        monkeypatch.setenv("PIP_INDEX_URL", f"{url}/simple")
        with pytest.raises(SetupError, match="download failed"):
            fetch(project, pin)
    assert cache_files(project) == []


def test_a_damaged_cached_archive_is_refused_with_the_way_out(project: Project, pin: Pin) -> None:
    fetch(project, pin).write_bytes(b"damaged")
    message = r"upstream 'mini': sha256 is .*; delete vendor/cache/mini_llama-1\.0\.tar\.gz and"
    with pytest.raises(SetupError, match=message):
        cached(project, pin)


def test_what_a_killed_download_left_is_not_taken(project: Project, pin: Pin, sdist: Path) -> None:
    project.cache.mkdir()
    (project.cache / "mini_llama-1.0.tar.gz.part").write_bytes(b"half of it")
    assert fetch(project, pin).read_bytes() == sdist.read_bytes()


def test_without_a_network_the_error_says_what_was_tried_and_what_to_do(
    project: Project, pin: Pin, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed_port}/simple")
    with pytest.raises(SetupError) as caught:
        fetch(project, pin)
    message = str(caught.value)
    assert "no index gave the sdist mini-llama 1.0" in message
    assert f"  http://127.0.0.1:{closed_port}/simple: " in message
    assert "refused" in message
    assert f"put mini_llama-1.0.tar.gz into {project.cache} by hand" in message
    assert "UPSTREAM_DIR=" in message
    with pytest.raises(SetupError) as caught:
        fetch(project, dataclasses.replace(pin, kind="peer"))
    assert str(caught.value).startswith("peer 'mini': ")
    assert "UPSTREAM_DIR=" not in str(caught.value)  # which chooses no peer


def test_broken_sources_before_a_good_one_do_not_stop_the_fetch(
    project: Project, pin: Pin, index: Path, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "/no/such/folder file:///no/such/page.html")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed_port}/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"file:///no/such/index {index.as_uri()}")
    assert fetch(project, pin).is_file()


def test_a_folder_of_find_links_serves_the_sdist(
    project: Project, pin: Pin, sdist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(sdist.parent))
    assert fetch(project, pin).is_file()


def test_an_index_without_the_version_is_told_from_one_without_an_answer(
    project: Project, pin: Pin, sdist: Path
) -> None:
    (sdist.parent / "index.html").write_text('<a href="mini_llama-2.0.tar.gz">2.0</a>')
    with pytest.raises(SetupError, match=r"has no sdist of mini-llama==1\.0"):
        fetch(project, pin)


def test_a_wheel_is_no_sdist(project: Project, pin: Pin, sdist: Path) -> None:
    (sdist.parent / "index.html").write_text('<a href="mini_llama-1.0-py3-none-any.whl">x</a>')
    with pytest.raises(SetupError, match=r"has no sdist of mini-llama==1\.0"):
        fetch(project, pin)


def test_passwords_in_index_urls_are_not_shown(
    project: Project, pin: Pin, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:secret@127.0.0.1:{closed_port}/simple")
    with pytest.raises(SetupError) as caught:
        fetch(project, pin)
    assert "secret" not in str(caught.value)


def test_the_proxy_of_the_configuration_is_used(
    project: Project, pin: Pin, sdist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        assert request.path.startswith("http://127.0.0.9/")
        if request.path.endswith(".tar.gz"):
            send(request, sdist.read_bytes(), "application/gzip")
        else:
            send(request, (sdist.parent / "index.html").read_bytes(), "text/html")

    with serving(answer) as url:
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.9/simple")
        monkeypatch.setenv("PIP_PROXY", url)
        assert fetch(project, pin).read_bytes() == sdist.read_bytes()


def test_a_full_disk_is_named_and_leaves_nothing(
    project: Project, pin: Pin, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullDisk(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    real_open = Path.open

    def open_(path: Path, mode: str = "r", *rest: Any, **more: Any) -> IO[Any]:
        if path.name.endswith(".part"):
            path.touch()
            return FullDisk()
        return real_open(path, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", open_)
    with pytest.raises(SetupError, match="the disk is full; free some space and run again"):
        fetch(project, pin)
    assert cache_files(project) == []


def test_only_what_a_tree_needs_is_extracted(tmp_path: Path, sdist: Path) -> None:
    extract(sdist, ROOT, tmp_path / "tree")
    found = {p.relative_to(tmp_path / "tree").as_posix() for p in (tmp_path / "tree").rglob("*.*")}
    assert found == {
        "ggml/CMakeLists.txt",
        "ggml/include/ggml.h",
        "ggml/src/ggml.c",
        "ggml/src/ggml-backend.c",
        "ggml/src/ggml-cpu/ops.c",
    }
    assert (tmp_path / "tree" / "LICENSE").is_file()


def test_a_plain_ggml_is_put_under_ggml(tmp_path: Path, make_sdist: Callable[..., Path]) -> None:
    sdist = make_sdist({"src/ggml.c": "int x;\n", "tests/other.c": ""}, root="deep/ggml")
    extract(sdist, "deep/ggml", tmp_path / "tree")
    assert [p.name for p in (tmp_path / "tree").rglob("*.c")] == ["ggml.c"]
    assert (tmp_path / "tree" / "ggml" / "src" / "ggml.c").is_file()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = target
    return member


def device(name: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = tarfile.CHRTYPE
    return member


IN_GGML = f"mini_llama-1.0/{ROOT}/ggml/src"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([tarfile.TarInfo("/etc/evil")], "'/etc/evil' would be written outside"),
        ([tarfile.TarInfo("mini_llama-1.0/../../evil")], "evil' would be written outside"),
        ([link(f"{IN_GGML}/up", "../../../up")], "up' leaves the tree"),
        ([link(f"{IN_GGML}/abs", "/etc/passwd")], "abs' leaves the tree"),
        (
            [link(f"{IN_GGML}/a", "."), link(f"{IN_GGML}/b", "a/../../../..")],
            "b' leaves the tree",
        ),
        (
            [link(f"{IN_GGML}/sub/a", "../../.."), link(f"{IN_GGML}/b", "sub/a/../..")],
            "leaves the tree",
        ),
        ([link(f"{IN_GGML}/hard", "not/there", tarfile.LNKTYPE)], "hard' leads to no file in it"),
        ([device(f"{IN_GGML}/null")], "null' is a device"),
    ],
)
def test_an_unsafe_archive_is_refused_and_leaves_nothing(
    tmp_path: Path,
    make_sdist: Callable[..., Path],
    members: list[tarfile.TarInfo],
    message: str,
) -> None:
    sdist = make_sdist(members=members)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(SetupError, match=message):
        extract(sdist, ROOT, tmp_path / "tree")
    assert set(tmp_path.rglob("*")) == before


def test_no_file_is_written_through_a_link(tmp_path: Path, make_sdist: Callable[..., Path]) -> None:
    inside = tarfile.TarInfo(f"{IN_GGML}/door/file.c")
    inside.size = 1
    sdist = make_sdist(members=[link(f"{IN_GGML}/door", "ggml-cpu"), inside])
    with pytest.raises(SetupError, match="cannot write"):
        extract(sdist, ROOT, tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


def test_links_that_stay_in_the_tree_are_kept(
    tmp_path: Path, make_sdist: Callable[..., Path]
) -> None:
    members = [
        link(f"{IN_GGML}/soft.c", "ggml.c"),
        link(f"{IN_GGML}/hard.c", f"{IN_GGML}/ggml.c", tarfile.LNKTYPE),
    ]
    extract(make_sdist(members=members), ROOT, tmp_path / "tree")
    source = tmp_path / "tree" / "ggml" / "src"
    assert (source / "soft.c").readlink() == Path("ggml.c")
    assert (source / "hard.c").read_bytes() == (source / "ggml.c").read_bytes()


def test_a_damaged_archive_is_refused_and_leaves_nothing(tmp_path: Path, sdist: Path) -> None:
    damaged = tmp_path / "damaged.tar.gz"
    damaged.write_bytes(sdist.read_bytes()[:-40])
    with pytest.raises(SetupError, match="is damaged"):
        extract(damaged, ROOT, tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


def test_an_archive_without_ggml_at_the_root_is_refused(tmp_path: Path, sdist: Path) -> None:
    with pytest.raises(SetupError, match=r"no ggml at 'vendor/elsewhere'.*correct 'root'"):
        extract(sdist, "vendor/elsewhere", tmp_path / "tree")
