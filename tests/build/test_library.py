import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from fa_harness.build.library import RECORD, Library, held, load, save
from fa_harness.errors import SetupError


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(
        name="0001",
        path=tmp_path,
        module="_ggml.so",
        upstream="llama.cpp-0.3.36",
        upstream_commit="0c1e57098",
        ggml_version="0.25.3",
        series=("0001-a.patch",),
        build={"options": {"GGML_NATIVE": "ON"}, "launcher": None},
        inputs={"patches": "digest"},
        compiled=("ggml-cpu/ops.cpp",),
    )


def test_a_record_comes_back_as_it_was_saved(library: Library) -> None:
    save(library)
    assert load(library.path) == library


def test_a_library_is_where_its_record_is_found(library: Library, tmp_path: Path) -> None:
    save(library)
    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / RECORD).rename(moved / RECORD)
    assert load(moved) == dataclasses.replace(library, path=moved)
    assert load(moved).module_path == moved / "_ggml.so"


def test_a_report_says_which_library_ran_without_this_machines_paths(library: Library) -> None:
    text = json.dumps(library.to_json())
    assert json.loads(text) == {
        "name": "0001",
        "upstream": "llama.cpp-0.3.36",
        "upstream_commit": "0c1e57098",
        "ggml_version": "0.25.3",
        "series": ["0001-a.patch"],
        "series_note": "",
        "build": {"options": {"GGML_NATIVE": "ON"}, "launcher": None},
    }


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"series": [], "compiled": [], "more": 1}'])
def test_a_damaged_record_is_refused_with_the_way_out(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(SetupError, match=r"is not a library record .*; delete .* and build again"):
        load(tmp_path)


def test_a_folder_without_a_record_holds_no_library(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path)


def test_a_disk_that_is_full_is_named_where_a_library_is_copied(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(number: int) -> None:
        raise OSError(number, os.strerror(number))

    save(library)
    monkeypatch.setattr(os, "link", lambda *_: refuse(errno.EPERM))
    monkeypatch.setattr(shutil, "copy2", lambda *_: refuse(errno.ENOSPC))
    said = r"cannot be held in .*No space left on device.*make room"
    with pytest.raises(SetupError, match=said), held(library):
        pass
