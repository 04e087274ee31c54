"""A case in a few words: what tables show, and what `-k` finds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from fa_harness.case.case import CAPTURED, Case
from fa_harness.errors import UsageError
from fa_harness.kernel import path

_LEFT_OUT = ".."


def label(case: Case) -> str:
    """Return a case in a few words: shape, then what is not usual about it."""
    return " ".join(_words(case))


def _words(case: Case) -> list[str]:
    usual = (0, 2, 1, 3) if case.captured else (0, 1, 2, 3)  # a model's cache is permuted
    heads, size = _pair(case.n_head, case.n_head_kv), _pair(case.hsk, case.hsv)
    types = "+".join(case.segment_types) or _pair(case.type_K, case.type_V)
    found = [f"hs{size}", f"h{heads}", f"kv{case.n_kv}"]
    data = case.captured.rpartition("/")[2] or case.regime
    if case.hot_window:  # b is kv, and the mask causal
        found += [f"{types}>{case.cold_type}", data, f"w{case.hot_window}/{case.group}"]
    else:
        found += [f"b{case.n_batch}", types, data]
    kinds = ("none", "random", CAPTURED)
    cuts = ",".join(map(str, case.segment_bounds()[1:-1]))
    options = [
        (case.ne3 != 1, f"ne3={case.ne3}"),
        (not case.mask, "no mask"),
        (not case.hot_window and case.mask_kind not in kinds, case.mask_kind),
        (case.mask_heads != 1, f"mask/{case.mask_heads}"),
        (case.sinks, "sinks"),
        (case.max_bias != 0, "alibi"),
        (case.logit_softcap != 0, "softcap"),
        (case.kq_scale != 0 and not case.captured, f"scale:{case.kq_scale:g}"),
        (case.permute != usual, "permuted:" + "".join(map(str, case.permute))),
        (not case.kv_view, "no view"),
        (case.v_is_view_of_k, "V in K"),
        (case.boundaries == "random", "cut:random"),
        (isinstance(case.boundaries, tuple), f"cut:{cuts}"),
        (case.seed != 0, f"seed={case.seed}"),
    ]
    found += [word for shown, word in options if shown]
    return [*found, f"t{case.threads}"]


def speed_label(case: Case) -> str:
    """Return a case whose speed is measured in a few words."""
    size, heads = _pair(case.hsk, case.hsv), f"h{case.n_head}/{case.n_head_kv}"
    types = "+".join(case.segment_types) or case.type_K
    return f"b{case.n_batch} kv{case.n_kv} hs{size} {heads} {types} t{case.threads}"


def speed_pattern(case: Case) -> str:
    """Return the regular expression by which `-k` finds such a case alone among its like."""
    fields = str(case).partition("(")[2].split(",mask=")[0]  # the sizes
    types = f".*segment_types=[{','.join(case.segment_types)}]" if case.segment_types else ""
    return re.sub(r"[][]", ".", f"{fields},.*type_K={case.type_K},{types}")


def _pair(one: object, other: object) -> str:
    return f"{one}" if one == other else f"{one}/{other}"


def short_labels(cases: Sequence[Case], width: int) -> dict[Case, str]:
    """Return labels of at most some characters that still tell the cases apart.

    Words that many of the cases have are left out first, and two dots say so.
    """
    of_cases = {case: _words(case) for case in cases}
    counts = Counter(word for each in of_cases.values() for word in each)
    kept: dict[Case, set[str]] = {case: set() for case in of_cases}
    labels: dict[Case, str] = {}
    for _ in range(3):
        labels = {case: _short(each, width, counts, kept[case]) for case, each in of_cases.items()}
        alike: dict[tuple[str, int], list[Case]] = {}
        for case, text in labels.items():
            alike.setdefault((text, case.segments), []).append(case)  # these have a column
        groups = [group for group in alike.values() if len(group) > 1]
        if not groups:
            break
        for group in groups:
            shared = set.intersection(*(set(of_cases[case]) for case in group))
            for case in group:
                kept[case] |= set(of_cases[case]) - shared
    return labels


def _short(of_case: Sequence[str], width: int, counts: Counter[str], kept: set[str]) -> str:
    """Leave words out, those in `kept` last, until the others fit."""
    left, last_first = list(of_case), list(reversed(of_case))
    for word in sorted(last_first, key=lambda word: (word in kept, -counts[word])):
        text = " ".join(left if len(left) == len(of_case) else [*left, _LEFT_OUT])
        if len(text) <= width:
            return text
        if len(left) > 1:
            left.remove(word)
    text = " ".join([*left, _LEFT_OUT])
    return text if len(text) <= width else text[: width - 2] + _LEFT_OUT


def wanted(pattern: str | None) -> Callable[[Case], bool]:
    """Return what `-k` asks for: a regular expression on case strings, or words of a table.

    Words may come in any order. Each has to be a word of the case's label, or the path that it
    takes, or to be found in its string; a name of a field is no word of it.
    """
    text = pattern or ""
    whole = regex(text)
    has_plain_words = re.fullmatch(r"[\w\s]+", text) is not None
    try:
        parts = [re.compile(word) for word in text.split()]
    except re.error:  # a regular expression with spaces in it
        parts = []

    def is_wanted(case: Case) -> bool:
        string = str(case)
        if not has_plain_words and whole.search(string):
            return True
        values = re.sub(r"\w+=", "=", string)
        shown = {path(case), *label(case).split(), *speed_label(case).split()}
        return bool(parts) and all(
            any(map(part.fullmatch, shown))
            or part.pattern in shown
            or part.search(values if part.pattern.isidentifier() else string)
            for part in parts
        )

    return is_wanted


def regex(pattern: str | None) -> re.Pattern[str]:
    """Return a pattern; without one, what is found in every text."""
    try:
        return re.compile(pattern or "")
    except re.error as error:
        raise UsageError(f"-k {pattern!r} is not a regular expression: {error}") from error
