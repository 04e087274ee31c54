"""What a project's fa-harness.toml may say, and how a broken one is refused."""

from pathlib import Path

import pytest

from fa_harness.config import FILE, Config, load_config
from fa_harness.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout of ggml, less its files."""
    (tmp_path / "patches" / "mine").mkdir(parents=True)
    (tmp_path / "patches" / "mine" / "series").touch()
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "series").touch()
    (tmp_path / "deep" / "er").mkdir(parents=True)
    return tmp_path


def write(folder: Path, *lines: str) -> Path:
    file = folder / FILE
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def test_without_a_file_nothing_is_configured(folder: Path) -> None:
    assert load_config(folder) == Config()


def test_a_file_holds_below_its_folder_and_its_paths_are_relative_to_it(folder: Path) -> None:
    write(
        folder,
        'sources = "."',
        'series = "mine"',
        'patches = "patches"',
        'suites = ["smoke", "paths"]',
        'baselines = "gate/baselines"',
        "[build]",
        "GGML_OPENMP = true",
        "GGML_LTO = false",
        'CMAKE_BUILD_TYPE = "Debug"',
        "LEVEL = 3",
    )
    config = load_config(folder / "deep" / "er")
    assert config.sources == folder
    assert (config.series, config.patches) == ("mine", folder / "patches")
    assert config.suites == ("smoke", "paths")
    assert config.baselines == folder / "gate" / "baselines"
    assert config.build == {
        "GGML_OPENMP": "ON",
        "GGML_LTO": "OFF",
        "CMAKE_BUILD_TYPE": "Debug",
        "LEVEL": "3",
    }
    assert config.where("suites") == f"{folder / FILE}:4: suites"


def test_the_nearest_file_holds_alone(folder: Path) -> None:
    write(folder, 'suites = ["smoke"]')
    write(folder / "deep", 'upstream = "llama.cpp-0.3.36"')
    config = load_config(folder / "deep" / "er")
    assert (config.upstream, config.suites) == ("llama.cpp-0.3.36", ())


def test_a_project_may_have_no_series(folder: Path) -> None:
    write(folder, 'series = "none"')
    config = load_config(folder)
    assert (config.series, config.has_series) == (None, False)


BROKEN = {
    "unknown key": (
        ["# ours", 'sources = "."', 'suits = ["smoke"]'],
        "3: suits is unknown; the keys are sources, upstream, patches, series, suites, baselines,",
    ),
    "no text": (["upstream = 3"], "1: upstream is 3; write a text, such as upstream = "),
    "no list": (["", 'suites = "smoke"'], "2: suites is 'smoke'; write a list of names, such as"),
    "no folder": (['sources = "gone"'], "1: sources there is no folder "),
    "a folder": (
        ['series = "flat"'],
        "1: series is the folder 'flat', and a series goes by",
    ),
    "no patches": (['patches = "gone"'], "1: patches there is no folder "),
    "both": (['sources = "."', 'upstream = "x"'], "2: upstream excludes sources; keep one"),
    "no table": (["build = 1"], "1: build is 1; write a table [build]"),
    "no value": (
        ["[build]", "A = 1", "B = [1]"],
        "3: build.B is [1]; write a text, a number, true or false",
    ),
    "no value, dotted": (["build.A = 1", "build.B = [1]"], "2: build.B is [1]; write a text"),
    "no value, inline": (["", "build = { A = 1, B = [1] }"], "2: build.B is [1]; write a text"),
    "syntax": (
        ['sources = "."', "suites = [smoke]"],
        "2: 'suites = [smoke]' is not valid TOML: Invalid value (at line 2, column 11); correct",
    ),
    "twice": (["[build]", "A = 1", "A = 2"], "3: 'A = 2' is not valid TOML: Cannot overwrite"),
    "end": (["suites = ["], "1: "),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_with_its_line_and_key(folder: Path, name: str) -> None:
    lines, message = BROKEN[name]
    file = write(folder, *lines)
    with pytest.raises(UsageError) as caught:
        load_config(folder)
    assert str(caught.value).startswith(f"{file}:{message}")


def test_a_file_of_another_encoding_is_refused_with_its_line(folder: Path) -> None:
    (folder / FILE).write_bytes('suites = ["smoke"]\n# Größe\n'.encode("latin-1"))
    with pytest.raises(UsageError, match=r"toml:2: is not UTF-8; save the file as UTF-8"):
        load_config(folder)
