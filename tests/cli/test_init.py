"""A project of one's own: what `init` writes, and that commands obey it."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fa_harness.case.case import Case
from fa_harness.case.suites import suite
from fa_harness.cli.main import cli
from fa_harness.config import FILE, load_config
from fa_harness.errors import UsageError
from fa_harness.project import find_project
from fa_harness.upstream.source import find_source


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_settings: None) -> Path:
    """An empty folder, in which commands run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_SERIES", raising=False)
    return tmp_path


def make_checkout(folder: Path, name: str = "ggml/src/ggml.c") -> None:
    (folder / name).parent.mkdir(parents=True)
    (folder / name).touch()


def init() -> str:
    done = CliRunner().invoke(cli, ["init"], catch_exceptions=False, standalone_mode=False)
    return done.stderr


def test_init_takes_the_checkout_in_the_folder(folder: Path) -> None:
    make_checkout(folder)
    assert init() == f'wrote {folder / FILE}: sources = "."\nnext: fa-harness run\n'
    config = load_config(folder)
    assert config.sources == folder
    assert config.baselines == folder / "baselines"
    assert (config.series, config.has_series, config.suites, config.build) == (None, True, (), {})


def test_init_takes_the_only_checkout_below_the_folder(folder: Path) -> None:
    make_checkout(folder / "my ggml", "src/ggml.c")
    (folder / "models").mkdir()
    init()
    assert load_config(folder).sources == folder / "my ggml"


def test_init_without_a_checkout_leaves_the_pinned_version(folder: Path) -> None:
    assert "no checkout of llama.cpp or ggml is here, so the pinned version is built" in init()
    assert load_config(folder).sources is None


def test_init_of_several_checkouts_asks_for_one(folder: Path) -> None:
    make_checkout(folder / "a")
    make_checkout(folder / "b")
    assert "there are several checkouts (a, b); name one as sources" in init()


def test_init_overwrites_nothing(folder: Path) -> None:
    (folder / FILE).write_text("# mine\n")
    with pytest.raises(UsageError, match=r"fa-harness\.toml is there already; edit it, or delete"):
        init()
    assert (folder / FILE).read_text() == "# mine\n"


def listed(*arguments: str) -> list[str]:
    command = ["run", "--list", *arguments]
    done = CliRunner().invoke(cli, command, catch_exceptions=False, standalone_mode=False)
    return done.stdout.splitlines()


def test_a_run_takes_the_suites_of_the_file_and_a_flag_wins(folder: Path) -> None:
    (folder / FILE).write_text('suites = ["seed", "fifo"]\n')
    assert listed() == [str(case) for name in ("seed", "fifo") for case in suite(name)]
    assert listed("--suite", "seed") == [str(case) for case in suite("seed")]
    assert listed("--case", "FLASH_ATTN_EXT(kv=16)") == [str(Case(n_kv=16))]


def test_a_suite_that_the_file_invents_is_refused_with_its_line(folder: Path) -> None:
    (folder / FILE).write_text('# ours\nsuites = ["smoky"]\n')
    with pytest.raises(UsageError, match=r"toml:2: suites 'smoky' is unknown; there are seed, "):
        listed()


def test_the_files_sources_hold_until_the_environment_names_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkout(folder / "mine")
    make_checkout(folder / "other")
    (folder / FILE).write_text('sources = "mine"\nseries = "none"\n')
    (folder / "deep").mkdir()
    found = find_source(find_project(folder / "deep"))
    assert (found.label, found.takes_series) == ("dir:mine", False)
    monkeypatch.setenv("UPSTREAM_DIR", str(folder / "other"))
    assert find_source(find_project(folder)).label == "dir:other"
    monkeypatch.delenv("UPSTREAM_DIR")
    monkeypatch.setenv("UPSTREAM", "llama.cpp-0.3.36")
    monkeypatch.setenv("NO_SERIES", "0")
    found = find_source(find_project(folder))
    assert (found.label, found.takes_series) == ("llama.cpp-0.3.36", True)


def test_sources_that_are_no_checkout_are_refused_with_the_files_line(folder: Path) -> None:
    (folder / FILE).write_text('\nsources = "."\n')
    done = subprocess.run(
        [sys.executable, "-m", "fa_harness.cli", "build", "patched"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    expected = f"{folder / FILE}:2: sources: {folder} is no checkout of llama.cpp or ggml"
    assert expected in done.stderr


def test_a_pin_that_the_file_invents_is_refused_with_its_line(folder: Path) -> None:
    (folder / FILE).write_text('upstream = "llama.cpp-9"\n')
    with pytest.raises(UsageError, match=r"toml:1: upstream 'llama.cpp-9' is no pin; there are "):
        find_source(find_project(folder))
