import dataclasses
from pathlib import Path

from fa_harness.build.library import Library
from fa_harness.cli.doctor import try_library


def test_a_library_that_works_is_tried_without_complaint(patched: Library) -> None:
    assert try_library(patched) is None


def test_a_library_that_does_not_load_says_why(patched: Library, tmp_path: Path) -> None:
    (tmp_path / patched.module).write_bytes(b"not a library")
    reason = try_library(dataclasses.replace(patched, path=tmp_path))
    assert reason is not None
    assert str(tmp_path) in reason
