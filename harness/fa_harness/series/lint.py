"""Check patches against upstream's rules, which are in the CONTRIBUTING.md of the pinned tree.

A reviewer there insists on a rule that is `must`, and asks about one that is `should`.
"""

from __future__ import annotations

import functools
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from fa_harness import proc
from fa_harness.project import Project
from fa_harness.series.series import series_for, title, why_unfinished
from fa_harness.series.tree import Tree, prepare_whole_tree
from fa_harness.stacks import ABOUT
from fa_harness.upstream.git import git
from fa_harness.upstream.source import Source

READABLE = 400
"""Lines added and removed. Upstream expects a review of 200 to 400 lines to take an hour."""
SUBJECT = 72
"""Characters of a subject that git's own tools show."""
TESTS = "tests/test-backend-ops.cpp"
OWN_FORMAT = 0.05
"""If clang-format would change a larger share of upstream's own lines of a file, upstream does not
format it so, and no reviewer asks for it."""

_CODE = {".c", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".m"}
_C_FAMILY = {".c", ".cpp", ".h", ".hpp"}
_LEFT_BEHIND = (".rej", ".orig", ".bak", ".swp", "~")
"""Endings of files that a merge or an editor leaves."""
_HUNK = re.compile(r"@@ -\d+(?:,\d+)? \+(\d+)(?:,\d+)? @@")


@dataclass(frozen=True, kw_only=True)
class Violation:
    """A place where a patch breaks a rule."""

    level: str  # `must` or `should`
    rule: str
    patch: str  # the patch's file name, or that of another file of the series
    line: int  # the line of the patch file, from 1
    file: str = ""  # the upstream file; empty if the rule is about the patch as a whole
    file_line: int = 0  # the line of that file after the patch, from 1; 0 without a file
    text: str


@dataclass(frozen=True, kw_only=True)
class _Added:
    """A line that a patch adds."""

    line: int  # the line of the patch file, from 1
    file: str
    file_line: int
    text: str


def lint(project: Project, source: Source) -> tuple[list[Violation], list[str]]:
    """Return the violations in the order of the patches, and what could not be checked and why."""
    stack = series_for(project, source)
    tree = prepare_whole_tree(project, source, stack)
    findings: list[Violation] = []
    touched: set[str] = set()
    unlike: dict[str, bool] = {}
    for i, patch in enumerate(stack.own.patches, stack.below):
        lines = patch.read_text("utf-8", errors="surrogateescape").splitlines()
        added = list(_added(lines))
        placed = {each.line: each for each in _placed(tree, i + 1, added)}
        findings += _of_message(patch, lines)
        findings += _of_lines(patch.name, [placed.get(each.line, each) for each in added])
        findings += _of_size(patch.name, lines)
        findings += _of_format(tree, i + 1, patch.name, list(placed.values()), unlike)
        touched |= {line.removeprefix("+++ b/") for line in lines if line.startswith("+++ b/")}
    changes_ggml = any(name.startswith("ggml/") for name in touched)
    if changes_ggml and TESTS not in touched and (tree.path / TESTS).is_file():
        text = f"no patch adds cases to {TESTS}: an op that is changed needs some"
        last = stack.names[-1]
        findings.append(Violation(level="must", rule="tests", patch=last, line=1, text=text))
    if text := why_unfinished(stack.own.patches):
        last = stack.own.patches[-1].name
        findings.append(Violation(level="must", rule="unfinished", patch=last, line=1, text=text))
    if not project.about().why:
        text = "nothing says why the series exists, and how to tell that it is no longer needed"
        findings.append(Violation(level="should", rule="why", patch=ABOUT, line=1, text=text))
    missing = []
    if not (tree.path / ".clang-format").is_file():
        missing.append("format: this upstream has no .clang-format")
    elif not _clang_format():
        missing.append("format: there is no clang-format; pip install clang-format")
    elif held := tree.applied.held:
        missing.append(f"format: of the first {held} patches, which {source.label} has already")
    if others := [file for file, is_unlike in unlike.items() if is_unlike]:
        missing.append(
            f"format: of files that upstream itself formats otherwise, {', '.join(others)}"
        )
    return findings, missing


def _of_message(patch: Path, lines: Sequence[str]) -> Iterator[Violation]:
    subject = title(patch)
    at = next((i for i, line in enumerate(lines, 1) if line.startswith("Subject:")), 1)
    found = functools.partial(Violation, patch=patch.name)
    if not re.fullmatch(r"[a-z][\w./-]* : \S.*[^.\s]", subject):
        form = "upstream's form is 'module : what it does', no full stop"
        text = f"the subject is '{subject}'; {form}"
        yield found(level="must", rule="subject", line=at, text=text)
    if len(subject) > SUBJECT:
        text = f"the subject has {len(subject)} characters; {SUBJECT} are read everywhere"
        yield found(level="should", rule="subject", line=at, text=text)
    for i, line in enumerate(lines, 1):
        if line == "---":
            return
        if not line.isascii():
            yield found(level="must", rule="ascii", line=i, text=f"not ASCII: {line.strip()}")


def _of_lines(patch: str, added: Sequence[_Added]) -> Iterator[Violation]:
    for each in added:
        is_code = PurePosixPath(each.file).suffix in _CODE
        indentation = each.text[: len(each.text) - len(each.text.lstrip())]
        for rule, broken, text in (
            ("ascii", not each.text.isascii(), "not ASCII"),
            ("space", each.text != each.text.rstrip(), "white space at the end"),
            ("tabs", is_code and "\t" in indentation, "a tab; upstream indents by 4 spaces"),
        ):
            if broken:
                yield _at(each, level="must", rule=rule, patch=patch, text=text)


def _at(added: _Added, *, level: str, rule: str, patch: str, text: str) -> Violation:
    return Violation(level=level, rule=rule, patch=patch, **{**vars(added), "text": text})


def _of_size(patch: str, lines: Sequence[str]) -> Iterator[Violation]:
    is_change = re.compile(r"[+-](?!\+\+ |-- )")
    start = next((i for i, line in enumerate(lines) if line.startswith("diff --git ")), len(lines))
    size = sum(bool(is_change.match(line)) for line in lines[start:])
    found = functools.partial(Violation, level="should", patch=patch)
    if size > READABLE:
        text = f"{size} lines; a reviewer reads {READABLE} in an hour: is it one idea?"
        yield found(rule="size", line=start + 1, text=text)
    for i, line in enumerate(lines[start:], start + 1):
        if line.startswith("new file mode "):
            name = lines[i - 2].rpartition(" b/")[2]
            if name.endswith(_LEFT_BEHIND):
                text = f"{name} was left behind by a tool; take it out of the patch"
                yield Violation(level="must", rule="left-behind", patch=patch, line=i, text=text)
                continue
            text = f"a new file, {name}; upstream avoids extra files"
            yield found(rule="new-file", line=i, text=text)


def _of_format(
    tree: Tree, n: int, patch: str, added: Sequence[_Added], unlike: dict[str, bool]
) -> Iterator[Violation]:
    """Yield the lines that state `n` adds and upstream's .clang-format would change.

    `unlike` collects by file whether upstream's own lines are formatted otherwise.
    """
    style, program = tree.path / ".clang-format", _clang_format()
    if not style.is_file() or not program:
        return
    for file in dict.fromkeys(each.file for each in added):
        if PurePosixPath(file).suffix not in _C_FAMILY:
            continue
        if file not in unlike:
            unlike[file] = _is_unlike(tree, file, [*program, f"--style=file:{style}"])
        if unlike[file]:
            continue
        of_file = {each.file_line: each for each in added if each.file == file}
        before = git(tree.path, "show", f"{tree.commits[n]}:{file}")
        with TemporaryDirectory() as folder:
            path = Path(folder) / PurePosixPath(file).name
            path.write_text(before + "\n", encoding="utf-8")
            starts = [line for line in of_file if line - 1 not in of_file]
            ends = [line for line in of_file if line + 1 not in of_file]
            # a range for each line would take twice as long
            ranges = [f"--lines={a}:{b}" for a, b in zip(starts, ends, strict=True)]
            after = proc.run([*program, f"--style=file:{style}", *ranges, path]).splitlines()
        for a0, a1, b0, b1 in _differences(before.splitlines(), after):
            changed = [line for line in of_file if a0 < line <= max(a1, a0 + 1)]
            if changed:
                wanted = " ".join(line.strip() for line in after[b0:b1])
                many = f"{len(changed)} lines; " if len(changed) > 1 else ""
                text = f"clang-format has: {many}{wanted}"
                at = of_file[changed[0]]
                yield _at(at, level="should", rule="format", patch=patch, text=text)


def _is_unlike(tree: Tree, file: str, program: Sequence[str]) -> bool:
    """Tell whether upstream's own version of a file is formatted in another way."""
    if not git(tree.path, "ls-tree", tree.commits[0], "--", file):
        return False
    own = git(tree.path, "show", f"{tree.commits[0]}:{file}")
    with TemporaryDirectory() as folder:
        path = Path(folder) / PurePosixPath(file).name
        path.write_text(own + "\n", encoding="utf-8")
        formatted = proc.run([*program, path])
    lines = own.splitlines()
    changed = Counter(lines) - Counter(formatted.splitlines())
    return changed.total() > OWN_FORMAT * len(lines)


def _differences(a: list[str], b: list[str]) -> Iterator[tuple[int, int, int, int]]:
    """Yield the ranges in which two files differ: first and last line + 1 in `a`, then in `b`.

    Source files have thousands of blank lines and lone braces, each of which matches all others.
    `autojunk` anchors no match at such lines, or it would take a minute. The ranges that it leaves
    are short enough to compare all their lines.
    """
    for tag, a0, a1, b0, b1 in SequenceMatcher(None, a, b).get_opcodes():
        if tag == "equal":
            continue
        inner = SequenceMatcher(None, a[a0:a1], b[b0:b1], autojunk=False)
        for inner_tag, i0, i1, j0, j1 in inner.get_opcodes():
            if inner_tag != "equal":
                yield a0 + i0, a0 + i1, b0 + j0, b0 + j1


def _clang_format() -> list[str]:
    """Return the command, preferably this environment's; empty if there is none."""
    own = str(Path(sys.executable).parent)
    found = shutil.which("clang-format", path=own) or shutil.which("clang-format")
    return [found] if found else []


def _added(lines: Sequence[str]) -> Iterator[_Added]:
    """Yield the lines that a diff adds, with the numbers that its hunks give."""
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


def _placed(tree: Tree, n: int, added: Sequence[_Added]) -> Iterator[_Added]:
    """Yield the lines of patch `n` that its state really adds, with their numbers in the tree.

    A hunk may apply some lines away from where its patch says. A merge may also find that a line
    is there already.
    """
    diff = git(tree.path, "diff", "--unified=0", "--no-renames", *tree.commits[n - 1 : n + 1])
    there = list(_added(diff.splitlines()))
    before, after = ([(each.file, each.text) for each in lines] for lines in (added, there))
    for a, b, size in SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks():
        for k in range(size):
            yield replace(added[a + k], file_line=there[b + k].file_line)
