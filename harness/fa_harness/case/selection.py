"""Which cases and modes a call asks for: its options, read and applied to the cases' own."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fa_harness.case import captures
from fa_harness.case.captures import Entry
from fa_harness.case.case import CAPTURED, Case
from fa_harness.case.case_file import read_cases
from fa_harness.case.label import wanted
from fa_harness.case.modes import MODES, missing_option
from fa_harness.case.quants import types_in_blocks
from fa_harness.case.suites import suite as cases_of_suite
from fa_harness.errors import UsageError

_CAPTURED_SEGMENTS = 4
_CAPTURED_TYPES = ("q4_0", "q8_0", "f16")
_MOST_STEPS = 96
"""Tokens of a capture that go through a rolling cache."""
_SAME_IN_CASE = (
    "hsk", "hsv", "n_head_kv", "ne3", "n_batch", "max_bias", "logit_softcap", "prec", "type_K",
    "type_V", "v_is_view_of_k",
)  # fmt: skip
"""Fields of an entry that a case has under the same names."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What to run: one source of cases, and what is changed in them."""

    suite: str | None = None
    """Name of a suite, or a comma list; `default` where no other source of cases is given."""
    case_string: str | None = None
    case_file: Path | None = None
    """As `read_cases` reads it."""
    captured: Path | None = None
    """A capture: of each entry a case in several segments, one whose segments have types and, where
    its mask is causal, one with a rolling cache; of an entry with two parts these alone."""
    modes: Sequence[str] = ()
    """Of a capture, only the cases that all of these apply to."""
    segments: Sequence[int] = ()
    """Every case once with each of these, as with `regimes` and `threads`."""
    boundaries: str | None = None
    """Comma list of keys, or `random`, which goes with `segments`, too. A case that lists
    boundaries of its own keeps them, whatever is asked for."""
    regimes: Sequence[str] = ()
    threads: Sequence[int] = ()
    seed: int | None = None
    """Instead of the cases' own, as are those that follow."""
    segment_types: Sequence[str] = ()
    hot_window: int | None = None
    group: int | None = None
    cold_type: str | None = None
    pattern: str | None = None
    """What a case must match: see `label.wanted`."""
    shard: tuple[int, int] | None = None
    """`(I, N)`: only the cases of part I of N, counted from 1."""


def chosen(what: Selection) -> Callable[[Case], bool]:
    """Return what tells whether a case matches the pattern and is in the shard.

    A case's string alone decides its shard, so that cases of a baseline which no longer run, and
    cases that are new, belong to one as well.
    """
    is_wanted = wanted(what.pattern)
    if what.shard is None:
        return is_wanted
    part, n = what.shard

    def is_chosen(case: Case) -> bool:
        digest = hashlib.sha256(str(case).encode()).digest()
        return is_wanted(case) and int.from_bytes(digest[:8], "big") % n == part - 1

    return is_chosen


def select(what: Selection) -> list[Case]:
    """Return the cases that are asked for, each once."""
    cases = _cases(what)
    if what.captured is not None:  # its cases are cut and have types already
        what = replace(
            what, segments=(), segment_types=(), hot_window=None, group=None, cold_type=None
        )
    keys = _read_boundaries(what.boundaries)
    is_wanted = chosen(what)
    selected: dict[Case, None] = {}
    variants = [case.with_(**change) for case in cases for change in _changes(what)]
    for case, n in itertools.product(variants, what.segments or (None,)):
        try:
            is_rolling = what.captured is not None and case.hot_window > 0
            cut = case if is_rolling else _cut(case, n, keys)
            if what.segment_types:  # the whole cache is then F32
                types = {"segment_types": tuple(what.segment_types)}
                cut = cut.with_(**types, type_K="f32", type_V="f32")
            captures.checked(cut)
        except UsageError as error:
            if is_wanted(case):
                raise UsageError(f"{case}: {error}") from error
            continue
        if is_wanted(cut):
            selected[cut] = None
    if not selected:
        named = ",".join(what.modes) if what.captured else ""
        of_modes = f" that --mode {named} applies to" if named else ""
        of_shard = f" of shard {what.shard[0]}/{what.shard[1]}" if what.shard else ""
        raise UsageError(
            f"no case{of_shard} is left of {len(variants)}: none matches -k {what.pattern!r}; "
            "--list shows them"
            if what.pattern
            else f"no case is left of {len(variants)}: none is{of_shard}; take fewer shards"
            if what.shard
            else f"{what.captured or what.case_file or 'the suite'} holds no case{of_modes}"
        )
    return list(selected)


def _cases(what: Selection) -> list[Case]:
    """Return the cases of the source, as they are there."""
    sources = (what.suite, what.case_string, what.case_file, what.captured)
    if sum(source is not None for source in sources) > 1:
        raise UsageError("--suite, --case, --case-file and --captured exclude each other; give one")
    if what.boundaries not in (None, "random") and what.segments:
        raise UsageError("--segments and a list of --boundaries exclude each other; give one")
    if what.captured is not None:
        if what.regimes:
            raise UsageError("--regime: the inputs of --captured are a model's; leave one out")
        return [
            case
            for entry in captures.load(what.captured).entries
            for case in _cases_of_entry(f"{what.captured}#{entry.name}", entry, what)
            if not any(missing_option(case, mode) for mode in what.modes)
            and (not case.hot_window or not what.modes or "fifo" in what.modes)
        ]
    if what.case_string is not None:
        return [captures.checked(Case.parse(what.case_string))]
    if what.case_file is not None:
        return read_cases(what.case_file)
    names = ("default" if what.suite is None else what.suite).split(",")
    return [case for name in names for case in cases_of_suite(name)]


def _changes(what: Selection) -> Iterator[dict[str, Any]]:
    """Yield what is changed in each case: all combinations of what is asked for."""
    once = {name: getattr(what, name) for name in ("seed", "hot_window", "group", "cold_type")}
    given = {name: value for name, value in once.items() if value is not None}
    regimes = [{"regime": regime} for regime in what.regimes] or [{}]
    threads = [{"threads": n} for n in what.threads] or [{}]
    for regime, n in itertools.product(regimes, threads):
        yield {**regime, **n, **given}


def _cases_of_entry(reference: str, entry: Entry, what: Selection) -> list[Case]:
    """Return the cases of an entry, whose arrays can be read: in segments, with a rolling cache."""
    captures.arrays_of(reference)
    # cells behind the last that a row sees are left out
    plain = case_of(reference, entry, n_kv=max(1, entry.n_kv_seen))
    if plain.segment_types:
        return [plain]
    segments = what.segments or (_CAPTURED_SEGMENTS,)
    cut = [plain.with_(segments=min(n, plain.n_kv)) for n in segments]
    fitting = types_in_blocks(entry.hsk, entry.hsv)
    usual = [name for name in _CAPTURED_TYPES if name in fitting]
    mixed = [
        case.with_(
            segment_types=tuple(what.segment_types or usual[: case.segments]),
            type_K="f32", type_V="f32", v_is_view_of_k=False,
        )
        for case in cut
        if case.segments > 1
    ]  # fmt: skip
    most = _MOST_STEPS if what.hot_window is None else max(_MOST_STEPS, 3 * what.hot_window)
    n = min(entry.n_causal, most)
    window = max(1, n // 3) if what.hot_window is None else what.hot_window
    if n <= window:  # no token would ever get cold
        return [*cut, *mixed]
    rolling = plain.with_(
        n_kv=n,
        n_batch=n,
        v_is_view_of_k=False,
        hot_window=window,
        group=max(1, window // 4) if what.group is None else what.group,
        cold_type=what.cold_type or ("q8_0" if "q8_0" in fitting else "f16"),
    )
    return [*cut, *mixed, rolling]


def case_of(reference: str, entry: Entry, *, n_kv: int) -> Case:
    """Return the case that is the entry `FILE#ENTRY` as it is, with its first `n_kv` keys."""
    is_usual = entry.scale == Case(hsk=entry.hsk).scale
    fields = {name: getattr(entry, name) for name in _SAME_IN_CASE}
    if entry.segment_types:
        fields |= {"type_K": "f32", "type_V": "f32", "segment_types": entry.segment_types}
        fields["boundaries"] = (min(n_kv, entry.n_kv_cold),)
    return Case(
        **fields,
        n_group=entry.n_head // entry.n_head_kv,
        n_kv=n_kv,
        mask=entry.mask_heads > 0,
        mask_heads=max(1, entry.mask_heads),
        sinks=entry.has_sinks,
        permute=(0, 2, 1, 3),  # as llama.cpp lays them out
        regime=CAPTURED,
        captured=reference,
        kq_scale=0.0 if is_usual else entry.scale,
    )


def check_modes(names: Sequence[str], cases: Sequence[Case]) -> tuple[str, ...] | None:
    """Return the modes to compute, in their usual order; None where none is named."""
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
