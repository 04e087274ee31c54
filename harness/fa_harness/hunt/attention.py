"""Where attention is in upstream's sources: the lines that mutants change and coverage measures."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fa_harness.files import read_toml
from fa_harness.project import Project
from fa_harness.series.tree import Tree
from fa_harness.upstream.git import git

FILES = (
    ("ggml-cpu/ops.cpp", "ggml-cpu/ops.cpp"),
    ("ggml-cpu/ops.cpp", "ggml-cpu/simd-gemm.h"),
    ("ggml.c", "ggml.c"),
    ("ggml-cpu/ggml-cpu.c", "ggml-cpu/ggml-cpu.c"),
    ("ggml-backend.cpp", "ggml-backend.cpp"),
)
"""The translation units, and the files in them that have attention, in `ggml/src`: those that the
CPU backend's library is built from."""
FUNCTIONS = re.compile("flash_attn_ext|simd_gemm")
"""Every line of these belongs to it; elsewhere those lines do that the series has added."""
CASES = re.compile(r"case GGML_OP_FLASH_ATTN_EXT\w*:")
"""So do the lines of these cases of a `switch`."""


EQUIVALENT = "equivalent.toml"
"""Beside a series' mutants: whether it replaces attention, and which changes of it cannot show."""


def is_replaced(project: Project) -> bool:
    """Tell whether a series has a kernel of its own, in place of upstream's functions."""
    path = project.mutants / EQUIVALENT
    return path.is_file() and read_toml(path).get("replaces_attention") is True


def files(tree: Tree) -> tuple[tuple[str, str], ...]:
    """Return `FILES`, and the sources of the CPU backend that the series has added."""
    span = (tree.commits[0], tree.commits[-1])
    text = git(
        tree.path, "diff", "--name-only", "--diff-filter=A", *span, "--", "ggml/src/ggml-cpu"
    )
    names = [line.removeprefix("ggml/src/") for line in text.splitlines()]
    return (*FILES, *((name, name) for name in names if name.endswith((".c", ".cpp"))))


def added(tree: Tree, name: str) -> Iterator[int]:
    """Yield the lines of a file that the series has added."""
    return added_between(tree, tree.commits[0], tree.commits[-1], name)


def added_between(tree: Tree, before: str, after: str, name: str) -> Iterator[int]:
    """Yield the lines of a file in the state `after` that it has not in the state `before`."""
    text = git(tree.path, "diff", "-U0", before, after, "--", name)
    for start, count in re.findall(r"^@@ -\S+ \+(\d+)(?:,(\d+))? @@", text, re.M):
        yield from range(int(start), int(start) + int(count or 1))


def case_lines(text: str) -> Iterator[int]:
    """Yield the lines of the cases of a `switch` in a source text that belong to attention."""
    further = re.compile(r"\s*(?:(?:case\b[^:]*|default\s*):\s*)*")
    for found in CASES.finditer(text):
        start = further.match(text, found.end()).end()  # type: ignore[union-attr]
        end = text.find(";", start)
        if text[start] == "{":
            depth = 0
            for mark in re.compile(r"[{}]").finditer(text, start):
                depth += 1 if mark[0] == "{" else -1
                if depth == 0:
                    end = mark.start()
                    break
        first = text.count("\n", 0, found.start()) + 1
        yield from range(first, first + text.count("\n", found.start(), end) + 1)
