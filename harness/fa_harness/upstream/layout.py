"""Which upstream files a tree takes, and where they lie in it.

A tree always has llama.cpp's layout (`ggml/src/...`), whatever it was made from, so that one
patch series fits both repositories.
"""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import Path
from typing import Literal

Layout = Literal["llama.cpp", "ggml"]

GGML_PARTS = ("CMakeLists.txt", "cmake", "include", "src", "ggml.pc.in")
"""What a build of ggml reads, below ggml's own folder."""

OTHER_FILES = (
    ".clang-format",
    ".editorconfig",
    "CONTRIBUTING.md",
    "LICENSE",
    "tests/test-backend-ops.cpp",
)
"""What a patch's author follows, and the test that a patch extends."""


def detect_layout(files: Container[str]) -> Layout | None:
    """The layout of a source folder with these paths relative to it; None is neither."""
    if "ggml/src/ggml.c" in files:
        return "llama.cpp"
    return "ggml" if "src/ggml.c" in files else None


def is_checkout(folder: Path) -> bool:
    """Tell whether a folder holds llama.cpp or ggml."""
    return layout_of(folder) is not None


def layout_of(folder: Path) -> Layout | None:
    """The layout of a folder on this machine; None is neither."""
    return detect_layout(
        [name for name in ("ggml/src/ggml.c", "src/ggml.c") if (folder / name).is_file()]
    )


def place(path: str, layout: Layout) -> str | None:
    """Where the upstream file `path` lies in a tree; None if a tree does without it."""
    if path in OTHER_FILES:
        return path
    prefix = "ggml/" if layout == "llama.cpp" else ""
    if not path.startswith(prefix):
        return None
    inside = path[len(prefix) :]
    return f"ggml/{inside}" if inside.partition("/")[0] in GGML_PARTS else None


def ggml_version(tree: Path) -> str:
    """The version in a tree's `ggml/CMakeLists.txt`; empty where it cannot be told."""
    return version_in((tree / "ggml" / "CMakeLists.txt").read_text("utf-8", errors="replace"))


def version_in(text: str) -> str:
    """The version in the text of ggml's `CMakeLists.txt`; empty where it cannot be told."""
    numbers = dict(re.findall(r"set\(GGML_VERSION_(MAJOR|MINOR|PATCH) (\d+)\)", text))
    return ".".join(numbers.values()) if len(numbers) == 3 else ""
