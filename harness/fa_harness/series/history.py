"""What the commands did to the files of a series, so that the last change can be undone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from fa_harness.errors import UsageError
from fa_harness.files import replace_file
from fa_harness.project import Project, writing
from fa_harness.series.series import load_series
from fa_harness.stacks import ABOUT, ORDER

_KEPT = 20
"""Changes of a series that are kept."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """The text of each file that a command changes, and the default pin."""

    texts: Mapping[str, str]
    """By name in the folder of the series."""
    pins: str
    """The text of the file with the pins, which a rebase changes, too."""

    @classmethod
    def of(cls, project: Project) -> Files:
        """Return the files of the project's series as they are."""
        names = [ORDER, ABOUT, *load_series(project).names]
        paths = [project.patches / name for name in names]
        return cls(
            texts={path.name: path.read_text("utf-8") for path in paths if path.is_file()},
            pins=project.pins_file.read_text("utf-8"),
        )


@dataclass(frozen=True, kw_only=True)
class Change:
    """A finished change."""

    command: str
    before: Files
    after: Files


def keep(project: Project, command: str, before: Files) -> None:
    """Remember what a command did, unless it did nothing."""
    after = Files.of(project)
    if after != before:
        changes = [*_load(project), Change(command=command, before=before, after=after)]
        _save(project, changes[-_KEPT:])


def last(project: Project) -> Change:
    """Return the last change.

    Raises:
        UsageError: There is none, or files have changed since.
    """
    changes = _load(project)
    where = project.relative(project.patches)
    if not changes:
        raise UsageError(
            f"nothing to undo: no command has changed {where} here; git has what was committed"
        )
    now, then = Files.of(project), changes[-1].after
    names = sorted({*now.texts, *then.texts})
    changed = [name for name in names if now.texts.get(name) != then.texts.get(name)]
    if changed:
        raise UsageError(
            f"{', '.join(changed[:3])} changed after '{changes[-1].command}', which an undo would "
            f"lose; put {where} back as the command left it (git diff {where}), and run again"
        )
    return changes[-1]


def undo(project: Project) -> Change:
    """Put the files back as they were before the last change, and forget it."""
    change = last(project)
    before, after = change.before, change.after
    with writing(project.patches):
        for name, text in before.texts.items():
            if after.texts.get(name) != text:
                replace_file(project.patches / name, text)
        for name in after.texts.keys() - before.texts.keys():
            (project.patches / name).unlink()
        if before.pins != after.pins and project.pins_file.read_text("utf-8") == after.pins:
            replace_file(project.pins_file, before.pins)
    _save(project, _load(project)[:-1])
    return change


def _file(project: Project) -> Path:
    folder = hashlib.sha256(str(project.patches).encode()).hexdigest()[:8]
    return project.sources / ".history" / f"{project.series}-{folder}.json"


def _load(project: Project) -> list[Change]:
    try:
        records = json.loads(_file(project).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return [
        Change(
            command=record["command"],
            before=Files(**record["before"]),
            after=Files(**record["after"]),
        )
        for record in records
    ]


def _save(project: Project, changes: list[Change]) -> None:
    path = _file(project)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps([asdict(change) for change in changes]))
