"""A case on the libraries of the project's own series."""

import io

import pytest
from rich.console import Console

from fa_harness.build.library import Library
from fa_harness.case.case import Case
from fa_harness.cli import bisect
from fa_harness.project import find_project
from fa_harness.series.series import load_series

CASE = Case(hsk=64, hsv=64, n_head_kv=2, n_kv=90, n_batch=3, segments=3)


@pytest.fixture
def some_libraries(
    monkeypatch: pytest.MonkeyPatch, pristine: Library, bug: Library, patched: Library
) -> None:
    """Look at three libraries of the series only: to build all takes minutes."""
    every = bisect.prefixes_of
    names = [library.name for library in (pristine, bug, patched)]
    monkeypatch.setattr(
        bisect,
        "prefixes_of",
        lambda *of: [prefix for prefix in every(*of) if prefix.library in names],
    )


@pytest.mark.usefixtures("some_libraries")
def test_the_first_patch_turns_a_chain_red_and_the_series_turns_it_green() -> None:
    console = Console(file=io.StringIO(), width=150)
    found = bisect.bisect_case(CASE, console=console)
    pristine, bug, patched = found.rows
    assert (pristine.verdict.status, pristine.verdict.modes) == ("pass", ("standard",))
    assert pristine.lacks.startswith("the library has no ggml_flash_attn_ext_with_state")
    assert bug.verdict.localisation is not None
    assert bug.verdict.localisation.part == "numerators"
    assert patched.verdict.modes == ("standard", "full_state", "segmented", "merged", "resumed")
    turns = [(turn.row.prefix.library, turn.to_red) for turn in found.turns]
    assert turns == [("state@0001", True), ("state", False)]
    assert found.passed


def test_every_prefix_of_the_series_has_a_library_and_the_last_is_the_whole_one() -> None:
    project = find_project()
    series = load_series(project)
    found = bisect.prefixes_of(project, series)
    assert [prefix.patch for prefix in found] == ["", *series.names]
    assert [prefix.library for prefix in found[:3]] == ["pristine", "state@0001", "state@0002"]
    assert found[-1].library == "state"
