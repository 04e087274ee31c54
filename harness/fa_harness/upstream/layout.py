"""Which upstream files a tree takes, and where it puts them.

A tree has llama.cpp's layout (`ggml/src/...`) even if it is made from ggml, so that one patch
series fits both repositories.
"""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import Path
from typing import Literal

Layout = Literal["llama.cpp", "ggml"]

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


def detect_layout(files: Container[str]) -> Layout | None:
    """Return the layout of a folder with these relative paths; None if it is neither."""
    if "ggml/src/ggml.c" in files:
        return "llama.cpp"
    return "ggml" if "src/ggml.c" in files else None


def is_checkout(folder: Path) -> bool:
    """Return whether a folder holds llama.cpp or ggml."""
    return layout_of(folder) is not None


def layout_of(folder: Path) -> Layout | None:
    """Return the layout of a folder on this machine; None if it is neither."""
    return detect_layout(
        [name for name in ("ggml/src/ggml.c", "src/ggml.c") if (folder / name).is_file()]
    )


def place(path: str, layout: Layout) -> str | None:
    """Return the place of an upstream file in a tree; None if a tree does not take it."""
    if path in OTHER_FILES:
        return path
    prefix = "ggml/" if layout == "llama.cpp" else ""
    if not path.startswith(prefix):
        return None
    inside = path[len(prefix) :]
    return f"ggml/{inside}" if inside.partition("/")[0] in GGML_PARTS else None


def version_in(text: str) -> str:
    """Return the version that ggml's `CMakeLists.txt` sets; empty if it sets none."""
    numbers = dict(re.findall(r"set\(GGML_VERSION_(MAJOR|MINOR|PATCH) (\d+)\)", text))
    return ".".join(numbers.values()) if len(numbers) == 3 else ""
