"""Which upstream files a tree takes, and where it puts them.

A tree has llama.cpp's layout (`ggml/src/...`) even if it is made from ggml, so that one patch
series fits both repositories.
"""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import Path

GGML_PARTS = ("CMakeLists.txt", "cmake", "include", "src", "ggml.pc.in")
"""What a build of ggml reads in ggml's own folder."""

OTHER_FILES = (
    ".clang-format",
    ".editorconfig",
    "CONTRIBUTING.md",
    "LICENSE",
    "tests/test-backend-ops.cpp",
)
"""The rules for a patch's author, and the test that patches extend."""


def prefix_of(files: Container[str]) -> str | None:
    """Return how ggml's paths begin: `ggml/` in llama.cpp, nothing in ggml; None in neither."""
    return next((prefix for prefix in ("ggml/", "") if f"{prefix}src/ggml.c" in files), None)


def prefix_in(folder: Path) -> str | None:
    """Return how ggml's paths begin in a folder on this machine, as `prefix_of` does."""
    names = ("ggml/src/ggml.c", "src/ggml.c")
    return prefix_of([name for name in names if (folder / name).is_file()])


def is_checkout(folder: Path) -> bool:
    """Return whether a folder holds llama.cpp or ggml."""
    return prefix_in(folder) is not None


def place(path: str, prefix: str) -> str | None:
    """Return the place of an upstream file in a tree; None if a tree does not take it."""
    if path in OTHER_FILES:
        return path
    inside = path.removeprefix(prefix)
    is_taken = path.startswith(prefix) and inside.partition("/")[0] in GGML_PARTS
    return f"ggml/{inside}" if is_taken else None


def version_in(text: str) -> str:
    """Return the version that ggml's `CMakeLists.txt` sets; empty if it sets none."""
    numbers = dict(re.findall(r"set\(GGML_VERSION_(MAJOR|MINOR|PATCH) (\d+)\)", text))
    return ".".join(numbers.values()) if len(numbers) == 3 else ""
