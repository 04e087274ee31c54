"""Of a checkout, what it has changed is measured: against the pin with its version of ggml."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from fa_harness.hunt.coverage import own_lines
from fa_harness.project import Project
from fa_harness.series.series import series_for
from fa_harness.series.tree import prepare_tree
from fa_harness.upstream.source import source_of
from tiny_upstream import AddPatch, write_files

OPS = "ggml/src/ggml-cpu/ops.c"
ADDED = "int ggml_other(void) {\n    return 0;\n}\n"
OWN = "int ggml_own(int a) {\n    return a ? 1 : 2;\n}\n"


def lines_of(project: Project, root: Path) -> tuple[dict[str, set[int]], str]:
    source = source_of(root)
    return own_lines(project, source, prepare_tree(project, source, series_for(project, source)))


@pytest.fixture
def checkout(tmp_path: Path, files: Mapping[str, str]) -> Path:
    write_files(tmp_path / "mine", files)
    return tmp_path / "mine"


def test_the_lines_that_a_checkout_has_changed_are_known_and_those_of_the_series_are_not(
    project: Project, add_patch: AddPatch, checkout: Path
) -> None:
    add_patch("ggml : the answer", {OPS: [("return 41;", "return 42;")]})
    with (checkout / OPS).open("a") as file:
        file.write(OWN)
    (checkout / "ggml/src/ggml-cpu/new.c").write_text("int a;\n")
    (checkout / "ggml/include/ggml.h").write_text("int ggml_answer(void);\n\n")
    n = (checkout / OPS).read_text().count("\n")
    assert lines_of(project, checkout) == (
        {OPS: {n - 2, n - 1, n}, "ggml/src/ggml-cpu/new.c": {1}}, ""
    )  # fmt: skip


def test_a_checkout_without_changes_has_no_lines_of_its_own(
    project: Project, checkout: Path
) -> None:
    text = "dir:mine has the kernel of mini, so all of attention is measured"
    assert lines_of(project, checkout) == ({}, text)


def test_without_a_pin_of_its_version_what_is_new_is_not_known(
    project: Project, checkout: Path
) -> None:
    listing = checkout / "ggml/CMakeLists.txt"
    listing.write_text(listing.read_text().replace("VERSION_PATCH 2", "VERSION_PATCH 3"))
    assert lines_of(project, checkout) == (
        {}, "no pin has ggml 0.1.3, so all of attention is measured"
    )  # fmt: skip
