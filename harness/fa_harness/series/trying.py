"""Run a command on the tree of each patch of a series, and keep what came out by tree and command.

A tree is checked out into a folder outside the repository. Files that do not change from one patch
to the next keep their time stamps, so that a build in the folder compiles only what changed.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fa_harness import proc
from fa_harness.project import Project, locked
from fa_harness.series import kept
from fa_harness.series.series import series_for, title
from fa_harness.series.tree import folder_of, prepare_whole_tree
from fa_harness.upstream.git import check_out, git
from fa_harness.upstream.source import Source

_KIND = "tried"
_SHOWN_LINES = 10


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What came of the command on the tree of one patch, with those before it."""

    patch: str  # its file name
    title: str
    tree: str  # git's id of the files
    status: int  # the exit status; negative: the signal that ended the command
    seconds: float
    output: tuple[str, ...]  # the last lines
    is_kept: bool  # whether it ran before, on the same files

    @property
    def passed(self) -> bool:
        """Whether the command ended with status 0."""
        return self.status == 0


def try_patches(
    project: Project, source: Source, command: str, *, jobs: int = 1, anew: bool = False
) -> Iterator[Tried]:
    """Run a shell command on the tree of each patch of the last series, and yield what came of it.

    The patches come in their order. `jobs` of them are under way at once, each in a folder of its
    own. `anew` runs the command where its result is kept, too.
    """
    stack = series_for(project, source)
    tree = prepare_whole_tree(project, source, stack)
    name = folder_of(project, source).name
    place = project.build / "tried" / name
    with locked(project, f"tried/{name}"), contextlib.ExitStack() as on_exit:
        folders: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for job in range(jobs):
            folders.put(place / f"{job + 1}")

        def tried(index: int) -> Tried:
            content = tree.contents[index + 1]
            record = None if anew else kept.recall(project, _KIND, content, command)
            is_kept = record is not None
            if record is None:
                folder = folders.get()
                try:
                    record = _run(tree.path, content, folder, command)
                finally:
                    folders.put(folder)
                if record["status"] not in (126, 127) and record["status"] >= 0:
                    kept.keep(project, _KIND, content, command, result=record)
            return Tried(
                patch=stack.names[index],
                title=title(stack.patches[index]),
                tree=content,
                status=record["status"],
                seconds=record["seconds"],
                output=tuple(record["output"]),
                is_kept=is_kept,
            )

        pool = on_exit.enter_context(ThreadPoolExecutor(jobs))
        on_exit.callback(pool.shutdown, wait=True, cancel_futures=True)
        yield from pool.map(tried, range(stack.below, len(stack.patches)))


def _run(repository: Path, content: str, folder: Path, command: str) -> dict[str, Any]:
    check_out(repository, content, folder)
    # what the last command did to files of the tree is undone
    index = folder.with_name(f"{folder.name}.index")
    force = (f"--work-tree={folder}", "checkout-index", "--all", "--force")
    git(repository, *force, index=index)
    start, status = time.perf_counter(), 0
    try:
        output = proc.run(["sh", "-c", command], cwd=folder)
    except proc.ProgramError as error:
        output, status = error.output, error.status
    return {
        "status": status,
        "seconds": round(time.perf_counter() - start, 3),
        "output": output.splitlines()[-_SHOWN_LINES:],
    }
