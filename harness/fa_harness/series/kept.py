"""Results that stay true as long as what they are of does not change, kept by a digest of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from fa_harness.files import replace_file
from fa_harness.project import Project, writing


def recall(project: Project, kind: str, *of: str) -> dict[str, Any] | None:
    """Return the result of a kind that was kept for exactly this; None if there is none."""
    try:
        record: dict[str, Any] = json.loads(_file(project, kind, of).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record


def keep(project: Project, kind: str, *of: str, result: dict[str, Any]) -> None:
    """Keep a result; `of` is all that it depends on, such as digests and names."""
    path = _file(project, kind, of)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(result, indent=1) + "\n")


def _file(project: Project, kind: str, of: tuple[str, ...]) -> Path:
    digest = hashlib.sha256("\0".join(of).encode()).hexdigest()
    return project.build / "kept" / kind / f"{digest[:32]}.json"
