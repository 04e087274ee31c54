"""Upstream's rules on patches that break one each."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fa_harness.project import Project
from fa_harness.series import lint
from fa_harness.series.lint import Violation
from fa_harness.series.series import load_series
from fa_harness.series.tree import prepare_tree
from fa_harness.upstream.source import find_source
from tiny_upstream import FILES, MakeSdist, sha256

OPS = "ggml/src/ggml-cpu/ops.c"
AddPatch = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_clang_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that wants it brings its own."""
    monkeypatch.setattr(lint, "_clang_format", list)


@pytest.fixture(autouse=True)
def _why(project: Project) -> None:
    """The series says why it exists."""
    project.about().file.write_text('title = "t"\nwhy = "w"\n')


def findings(project: Project) -> list[Violation]:
    return lint.lint(project, find_source(project))[0]


def test_a_patch_that_keeps_all_rules_has_no_findings(
    project: Project, add_patch: AddPatch
) -> None:
    add_patch("answer", {OPS: [("return 41;", "return 42;")]})
    assert findings(project) == []


def test_a_series_that_does_not_say_why_it_exists_is_asked_about(
    project: Project, add_patch: AddPatch
) -> None:
    add_patch("answer", {OPS: [("return 41;", "return 42;")]})
    project.about().file.unlink()
    [found] = findings(project)
    assert (found.level, found.rule, found.patch) == ("should", "why", "series.toml")
    assert found.text.startswith("nothing says why the series exists")


def test_only_the_patches_of_the_series_itself_are_checked(
    project: Project, add_patch: AddPatch
) -> None:
    add_patch("answer", {OPS: [("return 41;", "return 42; ")]})
    add_patch("faster", {OPS: [("return 42; ", "\treturn 43;")]}, series="fast", on=("state",))
    [found] = findings(project.of("fast"))
    assert (found.rule, found.patch, found.file_line) == ("tabs", "0001-faster.patch", 7)


@pytest.mark.parametrize(
    ("line", "rule", "text"),
    [
        ("    return 42; // \u00e4", "ascii", "not ASCII"),
        ("    return 42; ", "space", "white space at the end"),
        ("\treturn 42;", "tabs", "a tab; upstream indents by 4 spaces"),
    ],
)
def test_a_line_that_breaks_a_rule_is_named_in_the_patch_and_upstream(
    project: Project, add_patch: AddPatch, line: str, rule: str, text: str
) -> None:
    patch = add_patch("answer", {OPS: [("    return 41;", line)]})
    [found] = findings(project)
    assert (found.level, found.rule, found.text) == ("must", rule, text)
    assert (found.file, found.file_line) == (OPS, 7)
    assert patch.read_text().split("\n")[found.line - 1] == f"+{line}"


def test_a_patch_that_is_wrong_alone_must_have_another_behind_it(
    project: Project, add_patch: AddPatch
) -> None:
    alone = add_patch("answer (wrong without the next)", {OPS: [("return 41;", "return 42;")]})
    [found] = findings(project)
    assert (found.level, found.rule, found.patch) == ("must", "unfinished", alone.name)
    assert found.text.endswith("none follows; add that patch, or drop this one")
    add_patch("mend", {OPS: [("return 42;", "return 43;")]})
    assert findings(project) == []


@pytest.mark.parametrize("subject", ["Answer", "ggml: answer", "ggml : answer.", "ggml :answer"])
def test_a_subject_of_another_form_is_a_finding(
    project: Project, add_patch: AddPatch, subject: str
) -> None:
    patch = add_patch("answer", {OPS: [("return 41;", "return 42;")]})
    patch.write_text(patch.read_text().replace("ggml : answer", subject))
    [found] = findings(project)
    assert (found.level, found.rule) == ("must", "subject")
    assert patch.read_text().split("\n")[found.line - 1].endswith(subject)


def test_a_long_subject_is_asked_about(project: Project, add_patch: AddPatch) -> None:
    add_patch("answer " * 12 + "it", {OPS: [("return 41;", "return 42;")]})
    assert [(f.level, f.rule) for f in findings(project)] == [("should", "subject")]


def test_a_message_that_is_not_ascii_is_a_finding(project: Project, add_patch: AddPatch) -> None:
    patch = add_patch("answer", {OPS: [("return 41;", "return 42;")]})
    patch.write_text(patch.read_text().replace("\n---\n", "\n\u201cquoted\u201d\n---\n", 1))
    assert [(f.level, f.rule) for f in findings(project)] == [("must", "ascii")]


def test_a_patch_that_no_reviewer_reads_in_an_hour_is_asked_about(
    project: Project, add_patch: AddPatch
) -> None:
    more = "".join(f"// {i}\n" for i in range(lint.READABLE))
    add_patch("answer", {OPS: [("int ggml_answer", f"{more}int ggml_answer")]})
    assert findings(project) == []
    add_patch("more", {OPS: [("// 0\n", f"{more}// more\n// 0\n")]})
    assert [(f.rule, f.text[:9]) for f in findings(project)][-1] == ("size", "401 lines")


def test_lines_that_clang_format_would_change_are_asked_about(
    project: Project, add_patch: AddPatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "clang-format"
    program.write_text('#!/bin/sh\nfor file; do :; done\nsed "s/return 42;/return(42);/" "$file"\n')
    program.chmod(0o755)
    monkeypatch.setattr(lint, "_clang_format", lambda: [str(program)])
    add_patch("answer", {OPS: [("return 41;", "return 42;")]})
    assert findings(project) == []  # this upstream has no .clang-format
    source = find_source(project)
    tree = prepare_tree(project, source, load_series(project))
    (tree.path / ".clang-format").write_text("")
    [found] = findings(project)
    assert (found.level, found.rule, found.file_line) == ("should", "format", 7)
    assert found.text == "clang-format has: return(42);"


def test_a_file_that_upstream_itself_formats_otherwise_is_not_checked_and_that_is_said(
    project: Project, add_patch: AddPatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "clang-format"
    program.write_text(
        '#!/bin/sh\nfor file; do :; done\nsed "s/return \\(4.\\);/return(\\1);/" "$file"\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(lint, "_clang_format", lambda: [str(program)])
    add_patch("answer", {OPS: [("return 41;", "return 42;")]})
    source = find_source(project)
    tree = prepare_tree(project, source, load_series(project))
    (tree.path / ".clang-format").write_text("")
    found, missing = lint.lint(project, source)
    assert found == []
    assert missing == [f"format: of files that upstream itself formats otherwise, {OPS}"]


def test_a_series_without_cases_for_upstreams_own_test_is_a_finding(
    project: Project, add_patch: AddPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_patch("answer", {OPS: [("return 41;", "return 42;")]})
    monkeypatch.setattr(lint, "TESTS", "ggml/include/ggml.h")
    [found] = findings(project)
    assert (found.level, found.rule, found.patch) == ("must", "tests", "0001-answer.patch")


def test_what_a_merge_left_behind_is_a_finding(project: Project, add_patch: AddPatch) -> None:
    patch = add_patch("answer", {OPS: [("return 41;", "return 42;")]})
    head, found, rest = patch.read_text().partition("diff --git ")
    left = "ggml/src/ggml-cpu/ops.c.rej"
    patch.write_text(
        f"{head}diff --git a/{left} b/{left}\nnew file mode 100644\n--- /dev/null\n+++ b/{left}\n"
        f"@@ -0,0 +1 @@\n+rejected\n{found}{rest}"
    )
    [violation] = findings(project)
    assert (violation.level, violation.rule) == ("must", "left-behind")
    assert violation.text == f"{left} was left behind by a tool; take it out of the patch"


def test_a_series_of_llama_alone_needs_no_such_cases(
    project: Project,
    add_patch: AddPatch,
    make_sdist: MakeSdist,
    index: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = sha256(index / "mini-llama" / "mini_llama-1.0.tar.gz")
    sdist = make_sdist({**FILES, "include/llama.h": ""})
    shutil.copy(sdist, project.cache)
    text = project.pins_file.read_text()
    project.pins_file.write_text(text.replace(before, sha256(sdist)))
    project.about().file.write_text('title = "t"\nwhy = "w"\nwhole = true\n')
    add_patch("answer", {"src/llama.cpp": [("not needed", "needed")]})
    monkeypatch.setattr(lint, "TESTS", "ggml/include/ggml.h")
    assert findings(project) == []
    source = find_source(project)
    assert source.is_whole
    tree = prepare_tree(project, source, load_series(project))
    assert (tree.path / "src" / "llama.cpp").read_text() == "needed\n"


def test_what_cannot_be_checked_is_said(project: Project, add_patch: AddPatch) -> None:
    add_patch("answer", {OPS: [("return 41;", "return 42;")]})
    _, missing = lint.lint(project, find_source(project))
    assert missing == ["format: this upstream has no .clang-format"]


def test_changes_that_only_blank_lines_and_braces_part_are_told_apart() -> None:
    common = ["}", "", "};", ""] * 200
    before = [*common, "one", "", "}", "two", *common, "three", *common]
    after = [*common, "1", "", "}", "2", *common, "three", *common]
    assert list(lint._differences(before, after)) == [(800, 801, 800, 801), (803, 804, 803, 804)]


def test_a_line_is_named_where_it_is_and_not_where_the_hunk_says(
    project: Project, add_patch: AddPatch
) -> None:
    patch = add_patch("answer", {OPS: [("    return 41;", "    return 42; ")]})
    patch.write_text(patch.read_text().replace("@@ -4,7 +4,7 @@", "@@ -3,7 +3,7 @@"))
    assert "@@ -3,7 +3,7 @@" in patch.read_text()
    [found] = findings(project)
    assert found.file_line == 7
