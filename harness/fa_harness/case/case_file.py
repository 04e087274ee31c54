"""A file with a case a line: what is read from one, and how a case is added."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from click import unstyle

from fa_harness.case import captures
from fa_harness.case.case import Case
from fa_harness.case.case_string import OP
from fa_harness.errors import UsageError
from fa_harness.files import write_report
from fa_harness.project import writing

_OF_UPSTREAMS_TOOL = re.compile(
    r"Testing \d+ devices|Backend \d+/\d+: .*|Device (description|memory): .*|Failing tests:"
    r"|Skipping .*|\d+/\d+ (tests|backends) passed|Backend [^ ]+: (OK|FAIL)|OK|FAIL"
)
"""Lines of `test-backend-ops` that are about no case."""
_CASE_OF_AN_OP = re.compile(r"(?:\[.*\] .*)?\b([A-Z][A-Z0-9_]*)\(.*\)(: .*)?")


def read_cases(path: Path) -> list[Case]:
    """Return the cases of a file, also where `test-backend-ops` printed it.

    Empty lines, `#` comments and what that tool prints about other things are passed over.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"case file {path}: cannot be read ({error})") from error
    cases = []
    for number, line in enumerate(lines, start=1):
        if not _is_beside_cases(line):
            try:
                cases.append(captures.checked(Case.parse(line)))
            except UsageError as error:
                raise UsageError(f"{path}:{number}: {error}") from error
    return cases


def add_case(path: Path, case: Case, *, comment: str) -> None:
    """Add a case, under a comment, unless the file has it."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        known = path.read_text(encoding="utf-8") if path.exists() else ""
    if case not in (read_cases(path) if known else []):
        end = "" if known.endswith("\n") or not known else "\n"
        write_report(path, f"{known}{end}# {' '.join(comment.split())}\n{case}\n")


def _is_beside_cases(line: str) -> bool:
    """Tell whether a line is empty, a comment, or the upstream tool's about something else.

    An op whose name is nearly that of flash attention is taken for a slip of the pen.
    """
    line = unstyle(line).strip()
    if not line or line.startswith("#") or _OF_UPSTREAMS_TOOL.fullmatch(line):
        return True
    op = _CASE_OF_AN_OP.fullmatch(line)
    return op is not None and not difflib.get_close_matches(op[1], [OP], cutoff=0.8)
