"""Which cases and modes a call asks for: its options, read and applied to the cases' own."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fa_harness.case_file import read_cases
from fa_harness.cases import Case
from fa_harness.errors import UsageError
from fa_harness.modes import MODES, missing_option
from fa_harness.suites import suite as cases_of_suite


def select(
    *,
    suite: str | None = None,
    case_string: str | None = None,
    case_file: Path | None = None,
    segments: Sequence[int] = (),
    boundaries: str | None = None,
    regimes: Sequence[str] = (),
    threads: Sequence[int] = (),
    seed: int | None = None,
    segment_types: Sequence[str] = (),
    hot_window: int | None = None,
    group: int | None = None,
    cold_type: str | None = None,
    pattern: str | None = None,
) -> list[Case]:
    """Return the cases that a call asks for, each once.

    Args:
        suite: Name of a suite; `default` where no other source of cases is given.
        case_string: One case.
        case_file: A file with a case a line, also as `test-backend-ops` prints it. Empty lines, `#`
            comments and what that tool prints about other things are passed over.
        segments: Every case once with each of these.
        boundaries: Comma list of keys, or `random`, which goes with `segments`, too. A case that
            lists boundaries of its own keeps them, whatever is asked for.
        regimes: Every case once with each of these.
        threads: Every case once with each of these.
        seed: Instead of the cases' own.
        segment_types: Instead of the cases' own types.
        hot_window: Instead of the cases' own.
        group: Instead of the cases' own.
        cold_type: Instead of the cases' own.
        pattern: Regular expression that a case's string must match.

    Raises:
        UsageError: A name or a number is not one that can be, or nothing is selected.
    """
    given = [name for name in (suite, case_string, case_file) if name is not None]
    if len(given) > 1:
        raise UsageError("--suite, --case and --case-file exclude each other; give one")
    if boundaries not in (None, "random") and segments:
        raise UsageError("--segments and a list of --boundaries exclude each other; give one")
    if case_string is not None:
        cases = [Case.parse(case_string)]
    elif case_file is not None:
        cases = read_cases(case_file)
    else:
        cases = cases_of_suite(suite or "default")

    given_once = {
        "seed": seed,
        "hot_window": hot_window,
        "group": group,
        "cold_type": cold_type,
    }
    changes: list[list[dict[str, Any]]] = [
        [{"regime": regime} for regime in regimes] or [{}],
        [{"threads": n} for n in threads] or [{}],
        [{key: value for key, value in given_once.items() if value is not None}],
    ]
    variants = [
        case.with_(**{key: value for change in combination for key, value in change.items()})
        for case in cases
        for combination in itertools.product(*changes)
    ]
    keys = _read_boundaries(boundaries)
    wanted = regex(pattern).search
    selected: dict[Case, None] = {}
    for case, n in itertools.product(variants, segments or (None,)):
        try:
            cut = _cut(case, n, keys)
            if segment_types:  # the whole cache is then F32
                types = {"segment_types": tuple(segment_types), "type_K": "f32", "type_V": "f32"}
                cut = cut.with_(**types)
        except UsageError as error:
            if wanted(str(case)):
                raise UsageError(f"{case}: {error}") from error
            continue
        if wanted(str(cut)):
            selected[cut] = None
    if not selected:
        raise UsageError(
            f"no case is left of {len(variants)}: none matches -k {pattern!r}; --list shows them"
            if pattern
            else f"{case_file or 'the suite'} holds no case"
        )
    return list(selected)


def check_modes(names: Sequence[str], cases: Sequence[Case]) -> tuple[str, ...] | None:
    """Return the modes to compute, in their usual order; None where none is named.

    Raises:
        UsageError: There is no mode of that name, or it does not apply to a case.
    """
    for name in names:
        if name not in MODES:
            raise UsageError(f"mode {name!r} is unknown; there are {', '.join(MODES)}")
        for case in cases:
            option = missing_option(case, name)
            if option is not None:
                raise UsageError(f"--mode {name}: needs {option}, which {case} has not; give it")
    return tuple(mode for mode in MODES if mode in names) or None


def _cut(case: Case, segments: int | None, boundaries: tuple[int, ...] | str | None) -> Case:
    if isinstance(case.boundaries, tuple):
        return case
    if isinstance(boundaries, tuple):
        return case.with_(boundaries=boundaries, segments=len(boundaries) + 1)
    return case.with_(
        segments=case.segments if segments is None else segments,
        boundaries=case.boundaries if boundaries is None else "random",
    )


def _read_boundaries(text: str | None) -> tuple[int, ...] | str | None:
    if text in (None, "random"):
        return text
    try:
        return tuple(int(key) for key in str(text).split(","))
    except ValueError:
        raise UsageError(
            f"--boundaries {text!r} is neither a comma list of keys nor 'random'"
        ) from None


def regex(pattern: str | None) -> re.Pattern[str]:
    """Return what `-k` asks for; without it, what is found in every text.

    Raises:
        UsageError: It is no regular expression.
    """
    try:
        return re.compile(pattern or "")
    except re.error as error:
        raise UsageError(f"-k {pattern!r} is not a regular expression: {error}") from error
