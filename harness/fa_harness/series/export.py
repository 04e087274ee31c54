"""Turn commits into patches: write them to the folder of the series and name them."""

from __future__ import annotations

import itertools
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fa_harness.files import replace_file
from fa_harness.project import Project, writing
from fa_harness.series import variants
from fa_harness.series.series import load_series, title
from fa_harness.upstream.git import git

_FORMAT = (
    "format-patch", "--quiet", "--zero-commit", "--no-signature", "--no-numbered", "--full-index",
    "--filename-max-length=200",
)  # fmt: skip
_LONGEST_NAME = 80
"""Characters of a patch's file name. Git would cut at 64, in the middle of a word."""
_HUNK = re.compile(r"^@@ .* @@.*$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What a finished change did to the files of a series; patches are file names."""

    written: tuple[str, ...]  # new patches, and patches with new contents
    renamed: tuple[tuple[str, str], ...]  # the old and new name of patches with the same contents
    removed: tuple[str, ...]
    dropped: tuple[str, ...] = ()  # titles of patches that changed nothing where they were picked
    remembered: tuple[str, ...] = ()  # titles of patches whose conflicts were resolved as before
    undone: str = ""  # the command that was undone
    onto: str = ""  # after a rebase, the new upstream, as `find_source` takes it
    range_diff: str = ""  # after a rebase, git's comparison of the old patches and the new


def export(
    project: Project, repository: Path, base: str, tip: str, *, line_numbers: bool = False
) -> Changes:
    """Write the commits from `base`, on which the series stands, to `tip` as its patches.

    A patch with the same contents keeps every byte, because new line numbers and file ids only
    distract the reader of a diff. `line_numbers` also writes patches whose hunks have moved.
    """
    series = load_series(project)
    old = {patch.name: patch.read_text("utf-8") for patch in series.patches}
    same = {_content(text): name for name, text in old.items()}
    with tempfile.TemporaryDirectory() as folder:
        git(repository, *_FORMAT, "--output-directory", folder, f"{base}..{tip}")
        mails = {
            file_name(path.name): path.read_text("utf-8") for path in sorted(Path(folder).iterdir())
        }
    new: dict[str, str] = {}
    written, renamed = [], []
    for name, text in mails.items():
        known = same.pop(_content(text), None)
        kept = f"{name[:4]}-{known.partition('-')[2]}" if known else name
        has_moved = known and _HUNK.findall(text) != _HUNK.findall(old[known])
        if known and not (line_numbers and has_moved):
            new[kept] = old[known]
        else:
            new[kept] = text
            written.append(kept)
        if known and kept != known:
            renamed.append((known, kept))
    with writing(project.patches):
        for name, text in new.items():
            if old.get(name) != text:
                replace_file(project.patches / name, text)
        lines = series.file.read_text("utf-8").splitlines()
        head = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
        replace_file(series.file, "".join(f"{line}\n" for line in [*head, *new]))
        gone = [name for name in old if name not in new]
        # a patch with new contents may have another number, or a name that is cut elsewhere
        by_title = {title(project.patches / name): name for name in new}
        moved = {name: by_title.get(title(project.patches / name), name) for name in gone}
        for name in gone:
            (project.patches / name).unlink()
    variants.rename(project.about(), {**moved, **dict(renamed)})
    before = {name for name, _ in renamed}
    return Changes(
        written=tuple(written),
        renamed=tuple(renamed),
        removed=tuple(name for name in gone if name not in before),
    )


def file_name(name: str) -> str:
    """Return a patch's file name; if it is too long, it is cut at the end of a word."""
    stem, longest = name.removesuffix(".patch"), _LONGEST_NAME - len(".patch")
    if len(stem) > longest:
        words = stem[: longest + 1].rpartition("-")[0]
        stem = words if "-" in words else stem[:longest]
    return f"{stem}.patch"


def _content(mail: str) -> str:
    """Return a patch without its file ids and line numbers, which change when others do."""
    mail = re.sub(r"^From [0-9a-f]{40} .*\n", "", mail)
    mail = re.sub(r"^Subject: \[PATCH[^]]*\] ", "Subject: ", mail, flags=re.MULTILINE)
    mail = re.sub(r"^index [0-9a-f]+\.\.[0-9a-f]+", "index", mail, flags=re.MULTILINE)
    return _HUNK.sub("@@", mail).rstrip()
