"""The smallest case that fails in the same way, by greedy passes over ways to make a case simpler.

A way to simplify offers simpler cases, the simplest first; the first that still fails is taken, and
the passes start over until none is left. Each goes in one direction only, so this ends; the same
case and the same answers give the same result.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fa_harness.case import captures
from fa_harness.case.case import CAPTURED, Case
from fa_harness.case.case_string import spelled
from fa_harness.case.quants import TYPES
from fa_harness.errors import UsageError
from fa_harness.judge.verdict import Verdict

Changes = dict[str, Any]

_SIMPLE_REGIMES = ("few", "uniform", "normal")
"""Regimes that are tried instead of another, the simplest first."""
SIMPLE_MASKS = (
    "none", "zeros", "causal", "leading", "lowest", "masked_segment", "random", "sparse",
)  # fmt: skip
"""All kinds of masks, the simplest first."""
_PLAIN_OPTIONS: tuple[Changes, ...] = (
    {"sinks": False, "max_bias": 0.0, "logit_softcap": 0.0},
    {"sinks": False},
    {"max_bias": 0.0},
    {"logit_softcap": 0.0},
    {"kq_scale": 0.0},
    {"prec": "f32"},
)
_PLAIN_LAYOUTS: tuple[Changes, ...] = (
    {"permute": (0, 1, 2, 3), "kv_view": False, "v_is_view_of_k": False},
    {"permute": (0, 1, 2, 3)},
    {"kv_view": False},
    {"v_is_view_of_k": False},
)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How a case fails."""

    status: str
    """`fail`, `crash` or `timeout`."""
    name: str
    """What shows it: the comparison, or the mode and the signal."""
    kind: str
    """Its sort: cases with the same status and kind fail in the same way."""

    @classmethod
    def of(cls, verdict: Verdict) -> Failure | None:
        """Return how a verdict says that its case fails; None where it does not."""
        if verdict.status in ("crash", "timeout"):
            how = verdict.reason.partition("\n")[0]
            return cls(status=verdict.status, name=how, kind=verdict.status)
        if verdict.status != "fail":
            return None
        found = verdict.localisation
        if found is not None and found.reason == verdict.reason:
            required = verdict.comparisons[found.comparison].required
            return cls(status="fail", name=found.comparison, kind=required)
        # other than numbers: a token in another's place, what was written that is not the op's,
        # another work size
        what = re.split(r"[\d:]", verdict.reason)[0].strip()
        return cls(status="fail", name=what, kind=what)


@dataclass(frozen=True, kw_only=True)
class Simplification:
    """A simpler case that still fails."""

    case: Case
    what: str
    """What is simpler, in words: `kv 96 -> 2`."""
    failure: Failure


@dataclass(frozen=True, kw_only=True)
class Shrunk:
    """What shrinking a case came to."""

    case: Case
    """The smallest case found."""
    failure: Failure
    steps: tuple[Simplification, ...]
    tried: int
    """Different cases that were run."""
    finished: bool
    """Nothing simpler fails; else it was stopped before all was tried."""


def shrink(
    case: Case,
    fails: Callable[[Case], Failure | None],
    *,
    out_of_time: Callable[[], bool] = lambda: False,
    on_step: Callable[[Simplification], None] = lambda step: None,
) -> Shrunk | None:
    """Return the smallest case that fails as a case does; None where that one does not fail.

    A simpler case of the same comparison is taken before one that fails in another of its kind.

    Args:
        case: The case.
        fails: How a case fails, None where it does not. Asked once for each case.
        out_of_time: Asked before each case; where it says so, the smallest case so far is returned.
        on_step: Told of each simpler case that fails.
    """
    known = {case: fails(case)}
    failure = known[case]
    if failure is None:
        return None
    steps: list[Simplification] = []
    finished = True
    is_by_name = True
    while True:
        for candidate, what in _simpler(case):
            if candidate not in known:
                if out_of_time():
                    finished = False
                    break
                known[candidate] = fails(candidate)
            found = known[candidate]
            if (
                found is not None
                and (found.status, found.kind) == (failure.status, failure.kind)
                and (found.name == failure.name or not is_by_name)
            ):
                steps.append(Simplification(case=candidate, what=what, failure=found))
                on_step(steps[-1])
                case, failure, is_by_name = candidate, found, True
                break
        else:  # no simpler case fails like this one
            if not is_by_name:
                break
            is_by_name = False
        if not finished:
            break
    return Shrunk(
        case=case, failure=failure, steps=tuple(steps), tried=len(known), finished=finished
    )


def _simpler(case: Case) -> Iterator[tuple[Case, str]]:
    """Yield simpler cases, each once, and what is simpler in them."""
    seen = {case}
    for changes in _reductions(case):
        try:
            candidate = captures.checked(case.with_(**changes))
        except UsageError:  # what the case needs in another field
            continue
        if candidate not in seen:
            seen.add(candidate)
            yield candidate, _words(case, candidate)


def _words(before: Case, after: Case) -> str:
    names = [field.name for field in dataclasses.fields(Case)]
    return ", ".join(
        f"{spelled(name)} {_short(old)} -> {_short(new)}"
        for name in names
        if (new := getattr(after, name)) != (old := getattr(before, name))
    )


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    if isinstance(value, bool | float):
        return f"{value:g}"
    return "equal" if value is None else str(value)


def _reductions(case: Case) -> Iterator[Changes]:
    """Yield changes that make a case simpler; those that save most come first."""
    yield from ({"threads": n} for n in _smaller(case.threads))
    yield from _smaller_shape(case)
    yield from _fewer_segments(case)
    yield from _PLAIN_OPTIONS
    yield from _simpler_mask(case)
    yield from _plain_types(case)
    yield from _PLAIN_LAYOUTS
    yield from _plain_data(case)


def _smaller(n: int, least: int = 1) -> Iterator[int]:
    """Yield smaller numbers: the least, then n less a half, a quarter, ... of what is above it."""
    if n <= least:
        return
    yield least
    cut = (n - least) // 2
    while cut >= 1:
        yield n - cut
        cut //= 2


def _smaller_shape(case: Case) -> Iterator[Changes]:
    for n in _smaller(case.ne3):
        yield {"ne3": n}
    for n in _smaller(case.n_head_kv):
        yield {"n_head_kv": n, "mask_heads": 1}
    for n in _smaller(case.n_group):
        yield {"n_group": n, "mask_heads": 1}
    if not case.hot_window:  # else there is a row for each key
        yield from ({"n_batch": n} for n in _smaller(case.n_batch))
    for n in _smaller(case.n_kv):
        yield _with_fewer_keys(case, n)
    sizes_k, sizes_v = (
        [n * block for n in _smaller(-(-size // block))]
        for size, block in (
            (case.hsk, _block_size(case, case.type_K)),
            (case.hsv, _block_size(case, case.type_V)),
        )
    )
    yield from ({"hsk": n, "hsv": min(n, case.hsv)} for n in sizes_k)
    yield from ({"hsk": n} for n in sizes_k)
    yield from ({"hsv": n} for n in sizes_v)


def _block_size(case: Case, type_name: str) -> int:
    """Return what a head size should be a multiple of: the largest block of the types in use."""
    segment_types = [t for types in case.segment_types for t in types.split("/")]
    cold_types = [case.cold_type] if case.hot_window else []
    return max(TYPES[t].block_size for t in (type_name, *segment_types, *cold_types))


def _with_fewer_keys(case: Case, n_kv: int) -> Changes:
    """Return the changes to a cache of fewer keys, with all that counts them."""
    changes: Changes = {"n_kv": n_kv, "n_kv_max": min(case.n_kv_max, n_kv)}
    if case.hot_window:
        changes |= {"n_batch": n_kv}
    if isinstance(case.boundaries, tuple):
        changes["boundaries"] = tuple(min(key, n_kv) for key in case.boundaries)
    else:
        changes["segments"] = min(case.segments, n_kv)
    return changes


def _fewer_segments(case: Case) -> Iterator[Changes]:
    if case.boundaries is not None:
        yield {"boundaries": None}
    if isinstance(case.boundaries, tuple):
        for i in range(len(case.boundaries)):
            fewer = case.boundaries[:i] + case.boundaries[i + 1 :]
            yield {"boundaries": fewer or None, "segments": len(fewer) + 1}
        for i, key in enumerate(case.boundaries):
            for n in _smaller(key, least=case.boundaries[i - 1] if i else 0):
                yield {"boundaries": (*case.boundaries[:i], n, *case.boundaries[i + 1 :])}
    else:
        for n in _smaller(case.segments):
            yield {"segments": n, "segment_types": case.segment_types[:n]}
    for i in range(len(case.segment_types)):
        yield {"segment_types": case.segment_types[:i] + case.segment_types[i + 1 :]}
    if case.hot_window:
        yield {"hot_window": 0, "group": 1, "cold_type": "q8_0"}
        for n in _smaller(case.hot_window):
            yield {"hot_window": n, "group": min(case.group, n)}
        yield from ({"group": n} for n in _smaller(case.group))


def _simpler_mask(case: Case) -> Iterator[Changes]:
    simpler: tuple[str, ...] = ("none",)
    if case.mask_kind != CAPTURED:
        simpler = SIMPLE_MASKS[: SIMPLE_MASKS.index(case.mask_kind)]
    for kind in simpler:
        changes: Changes = {"mask_kind": kind, "mask": kind != "none", "n_kv_max": 0}
        if kind == "none":
            changes |= {"mask_heads": 1, "max_bias": 0.0}
        yield changes
    yield {"mask_heads": 1}
    yield from ({"n_kv_max": n} for n in _smaller(case.n_kv_max))


def _plain_types(case: Case) -> Iterator[Changes]:
    for plain in ("f32", "f16"):
        names = [name for name in ("type_K", "type_V") if _is_simpler(plain, getattr(case, name))]
        yield dict.fromkeys(names, plain)
        yield from ({name: plain} for name in names)
        if case.hot_window and _is_simpler(plain, case.cold_type):
            yield {"cold_type": plain}
    types = case.segment_types
    for i in range(len(types)):
        for plain in ("f32", "f16"):
            if _is_simpler(plain, types[i]):
                yield {"segment_types": (*types[:i], plain, *types[i + 1 :])}


def _is_simpler(plain: str, type_name: str) -> bool:
    return type_name not in ("f32", plain)


def _plain_data(case: Case) -> Iterator[Changes]:
    if case.captured:
        kinds = ("none", "zeros", "causal") if case.mask else ("none",)
        drawn: Changes = {"captured": "", "kq_scale": 0.0, "seed": 0}
        for regime, kind in itertools.product(_SIMPLE_REGIMES, kinds):
            yield {**drawn, "regime": regime, "mask_kind": kind, "mask": kind != "none"}
        return
    simpler: tuple[str, ...] = _SIMPLE_REGIMES
    if case.regime in simpler:
        simpler = simpler[: simpler.index(case.regime)]
    yield from ({"regime": regime, "seed": 0} for regime in simpler)
    yield from ({"regime": regime} for regime in simpler)
    yield {"seed": 0}
