"""Whether a patch keeps upstream's rules, as the pinned tree's CONTRIBUTING.md has them.

Rules that a reviewer there would insist on are `must`; what they would ask about is `should`.
"""

from __future__ import annotations

import difflib
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from fa_harness import proc
from fa_harness.project import Project
from fa_harness.series.series import series_for, title
from fa_harness.series.tree import Tree, prepare_tree
from fa_harness.upstream.git import git
from fa_harness.upstream.source import Source

READABLE = 400
"""Lines added and removed; upstream reckons with an hour of review for 200 to 400."""
SUBJECT = 72
"""Characters; what git's own tools show of a subject."""
TESTS = "tests/test-backend-ops.cpp"

_CODE = {".c", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".m"}
_C_FAMILY = {".c", ".cpp", ".h", ".hpp"}
_HUNK = re.compile(r"@@ -\d+(?:,\d+)? \+(\d+)(?:,\d+)? @@")


@dataclass(frozen=True, kw_only=True)
class Violation:
    """Something that breaks a rule."""

    level: str
    """`must` or `should`."""
    rule: str
    patch: str
    """The patch's file name."""
    line: int
    """Of the patch file, from 1."""
    file: str
    """The upstream file; empty where it is of the patch as a whole."""
    file_line: int
    """Of that file as the patch leaves it, from 1; 0 where it is of none."""
    text: str


@dataclass(frozen=True, kw_only=True)
class _Added:
    """A line that a patch adds."""

    line: int
    file: str
    file_line: int
    text: str


def lint(project: Project, source: Source) -> tuple[list[Violation], list[str]]:
    """Check the series.

    Returns:
        What breaks rules, patch by patch, and what could not be checked and why.

    Raises:
        SetupError: The series does not apply, or the upstream cannot be had.
    """
    series = series_for(project, source)
    tree = prepare_tree(project, source, series, exactly=True)
    findings: list[Violation] = []
    touched: set[str] = set()
    for i, patch in enumerate(series.patches):
        lines = patch.read_text("utf-8", errors="surrogateescape").splitlines()
        added = list(_added(lines))
        findings += _of_message(patch, lines)
        findings += _of_lines(patch.name, added)
        findings += _of_size(patch.name, lines)
        findings += _of_format(tree, i + 1, patch.name, added)
        touched |= _files(lines)
    if touched and TESTS not in touched and (tree.path / TESTS).is_file():
        text = f"no patch adds cases to {TESTS}: an op that is changed needs some"
        findings.append(_of_patch("must", "tests", series.names[-1], 1, text))
    missing = []
    if not (tree.path / ".clang-format").is_file():
        missing.append("format: this upstream has no .clang-format")
    elif not _clang_format():
        missing.append("format: there is no clang-format; pip install clang-format")
    return findings, missing


def _of_patch(level: str, rule: str, patch: str, line: int, text: str) -> Violation:
    return Violation(
        level=level, rule=rule, patch=patch, line=line, file="", file_line=0, text=text
    )


def _of_message(patch: Path, lines: list[str]) -> Iterator[Violation]:
    subject = title(patch)
    at = next((i for i, line in enumerate(lines, 1) if line.startswith("Subject:")), 1)
    if not re.fullmatch(r"[a-z][\w./-]* : \S.*[^.\s]", subject):
        text = (
            f"the subject is '{subject}'; upstream's form is 'module : what it does', no full stop"
        )
        yield _of_patch("must", "subject", patch.name, at, text)
    if len(subject) > SUBJECT:
        text = f"the subject has {len(subject)} characters; {SUBJECT} are read everywhere"
        yield _of_patch("should", "subject", patch.name, at, text)
    for i, line in enumerate(lines, 1):
        if line == "---":
            return
        if not line.isascii():
            yield _of_patch("must", "ascii", patch.name, i, f"not ASCII: {line.strip()}")


def _of_lines(patch: str, added: list[_Added]) -> Iterator[Violation]:
    for each in added:
        is_code = PurePosixPath(each.file).suffix in _CODE
        indentation = each.text[: len(each.text) - len(each.text.lstrip())]
        for rule, broken, text in (
            ("ascii", not each.text.isascii(), "not ASCII"),
            ("space", each.text != each.text.rstrip(), "white space at the end"),
            ("tabs", is_code and "\t" in indentation, "a tab; upstream indents by 4 spaces"),
        ):
            if broken:
                yield Violation(
                    level="must", rule=rule, patch=patch, line=each.line, file=each.file,
                    file_line=each.file_line, text=text,
                )  # fmt: skip


def _of_size(patch: str, lines: list[str]) -> Iterator[Violation]:
    is_change = re.compile(r"[+-](?!\+\+ |-- )")
    start = next((i for i, line in enumerate(lines) if line.startswith("diff --git ")), len(lines))
    size = sum(bool(is_change.match(line)) for line in lines[start:])
    if size > READABLE:
        text = f"{size} lines; a reviewer reads {READABLE} in an hour: is it one idea?"
        yield _of_patch("should", "size", patch, start + 1, text)
    for i, line in enumerate(lines[start:], start + 1):
        if line.startswith("new file mode "):
            name = lines[i - 2].rpartition(" b/")[2]
            text = f"a new file, {name}; upstream avoids extra files"
            yield _of_patch("should", "new-file", patch, i, text)


def _of_format(tree: Tree, n: int, patch: str, added: list[_Added]) -> Iterator[Violation]:
    """Yield what upstream's .clang-format has otherwise in the lines that a patch adds."""
    if not (tree.path / ".clang-format").is_file() or not _clang_format():
        return
    for file in dict.fromkeys(each.file for each in added):
        if PurePosixPath(file).suffix not in _C_FAMILY:
            continue
        of_file = {each.file_line: each for each in added if each.file == file}
        for line, wanted in _formatted(tree, n, file, list(of_file)):
            yield Violation(
                level="should", rule="format", patch=patch, line=of_file[line].line, file=file,
                file_line=line, text=f"clang-format has: {wanted}",
            )  # fmt: skip


def _formatted(tree: Tree, n: int, file: str, lines: list[int]) -> Iterator[tuple[int, str]]:
    """Yield what clang-format would change of a file as `n` patches leave it: where, and how."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / PurePosixPath(file).name
        before = git(tree.path, "show", f"{tree.commits[n]}:{file}")
        path.write_text(before + "\n", encoding="utf-8")
        ranges = [f"--lines={line}:{line}" for line in lines]
        style = f"--style=file:{tree.path / '.clang-format'}"
        after = proc.run([*_clang_format(), style, *ranges, path])
    a, b = before.splitlines(), after.splitlines()
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
    for tag, a0, a1, b0, b1 in matcher.get_opcodes():
        changed = [line for line in lines if a0 < line <= max(a1, a0 + 1)]
        if tag != "equal" and changed:
            wanted = " ".join(line.strip() for line in b[b0:b1])
            yield changed[0], f"{len(changed)} lines; {wanted}" if len(changed) > 1 else wanted


def _clang_format() -> list[str]:
    """Return the command, first that of this environment; empty where there is none."""
    own = str(Path(sys.executable).parent)
    found = shutil.which("clang-format", path=own) or shutil.which("clang-format")
    return [found] if found else []


def _added(lines: list[str]) -> Iterator[_Added]:
    file, at, in_hunk = "", 0, False
    for i, line in enumerate(lines, 1):
        if line.startswith("diff --git "):
            in_hunk = False
        elif line.startswith("+++ b/") and not in_hunk:
            file = line.removeprefix("+++ b/")
        elif hunk := _HUNK.match(line):
            at, in_hunk = int(hunk[1]), True
        elif in_hunk and line.startswith("+"):
            yield _Added(line=i, file=file, file_line=at, text=line[1:])
            at += 1
        elif in_hunk and not line.startswith(("-", "\\")):
            at += 1


def _files(lines: list[str]) -> set[str]:
    return {line.removeprefix("+++ b/") for line in lines if line.startswith("+++ b/")}
