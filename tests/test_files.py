import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fa_harness.errors import SetupError
from fa_harness.files import check_writable, write_report


def test_a_check_of_a_report_path_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "report.json")
    assert list(tmp_path.iterdir()) == []


def test_a_check_of_a_report_path_keeps_the_report_that_is_there(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text("older")
    check_writable(report)
    assert report.read_text() == "older"


def test_a_report_is_written_and_nothing_beside_it(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text("older")
    write_report(report, "{}\n")
    assert list(tmp_path.iterdir()) == [report]
    assert report.read_text() == "{}\n"


@contextlib.contextmanager
def little_space() -> Iterator[None]:
    """No file of this process may grow beyond 1,000 bytes; keep it short, its own log is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_report_that_cannot_be_written_whole_leaves_the_older_one(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text("older")
    text = "x" * 2000
    with (
        pytest.raises(SetupError, match=r"report .*report\.json: cannot be written \(File too"),
        little_space(),
    ):
        write_report(report, text)
    assert list(tmp_path.iterdir()) == [report]
    assert report.read_text() == "older"


def test_a_report_that_is_interrupted_while_it_is_written_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "report.json"
    report.write_text("older")
    write = Path.write_text

    def interrupted(self: Path, text: str, **more: Any) -> int:
        write(self, text[: len(text) // 2], **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_report(report, "{}\n")
    assert list(tmp_path.iterdir()) == [report]
    assert report.read_text() == "older"


def test_a_report_path_that_is_a_device_stays_one(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.symlink_to(os.devnull)
    check_writable(report)
    write_report(report, "{}\n")
    assert report.is_symlink()
    assert Path(os.devnull).is_char_device()


def test_a_full_disk_under_the_report_is_named(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.symlink_to("/dev/full")
    with pytest.raises(SetupError, match=r"report .*: cannot be written \(No space left on device"):
        write_report(report, "{}\n")


def test_a_pipe_takes_a_report(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    path = Path(f"/dev/fd/{writer}")
    check_writable(path)
    write_report(path, "{}\n")
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        assert pipe.read() == "{}\n"
