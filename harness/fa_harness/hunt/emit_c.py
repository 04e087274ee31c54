"""A failing case as a C program that needs ggml alone, for those who mend the kernel.

The program makes the same tensors and calls, and compares what they leave behind with attention
that it computes itself, in double. `native/repro.c.j2` holds its text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fa_harness.arrays import F16, F32, F64
from fa_harness.case.case import Case
from fa_harness.case.inputs import Inputs, make_inputs
from fa_harness.errors import UsageError
from fa_harness.judge import bounds
from fa_harness.judge.compare import PARTS
from fa_harness.judge.contract import IN_TURN
from fa_harness.judge.expectations import Expectations
from fa_harness.judge.explain import Localisation
from fa_harness.judge.verdict import Verdict
from fa_harness.judge.words import explain

MOST_NUMBERS = 1 << 16
"""Nobody reads a program with more literals than this."""

_TEMPLATE = Path(__file__).parents[1] / "native" / "repro.c.j2"
_PLAIN = ("f32", "f16")
"""Types whose bytes the program makes from the numbers."""
_MODES = ("standard", "full_state", "segmented", "mixed", "merged")
_OF_BITS = ("full_state_vs_standard", "segmented_vs_standard", "segmented_vs_full_state")
"""Comparisons that the program can also make bit for bit."""


def program(verdict: Verdict, *, library: str, features: tuple[str, ...]) -> str:
    """Return the C program of a case that failed, crashed or hung.

    Args:
        verdict: The verdict of the case.
        library: The library that it ran on, in words.
        features: The library's CPU features, as `Ggml.features` names them.

    Raises:
        UsageError: The program cannot show how the case fails, or would be too large.
    """
    from jinja2 import StrictUndefined, Template

    case, mode = verdict.case, _mode(verdict)
    if mode not in _MODES:
        modes = f"{', '.join(_MODES[:-1])} and {_MODES[-1]}"
        raise UsageError(f"{case} fails in {mode or 'no mode'}: a C program can say {modes}")
    if mode in ("standard", "full_state"):
        case = case.with_(segments=1, boundaries=None, segment_types=())
    if case.regime == "nan":
        raise UsageError(f"{case}: a C program compares numbers, and does not judge a NaN")
    _check_size(case)
    inputs = make_inputs(case)
    own_types = mode == "mixed" or (mode == "merged" and bool(case.segment_types))
    expect = Expectations(case, inputs, features)
    hows = expect.hows[own_types]
    if mode == "standard":
        hows, expected = [expect.how], [expect.of_one]
    elif mode == "merged":
        expected = [*expect.parts, expect.merged]
    else:
        expected = expect.chain(None, own_types=own_types)
    # of each call, and of the merged state: [ne3, n_head, n_batch, M S VKQ and result]
    allowed = [
        np.concatenate([each.state_bound(), each.output_bound()], axis=-1) for each in expected
    ]
    found = verdict.localisation
    needs_bits = found is not None and not _shows(found, mode, allowed)
    if found is not None and needs_bits and found.comparison not in _OF_BITS:
        raise UsageError(
            f"{case}: {found.comparison.replace('_', ' ')} fails, which a C program would not "
            "show: it compares states and results with exact attention, and merges in turn"
        )
    rounded = _rounded_q(inputs.q, [how.q_type for how in hows])
    axes = [case.permute.index(i) for i in range(4)]
    template: Template = Template(
        _TEMPLATE.read_text("utf-8"),
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    return template.render(
        head=_head(verdict, library),
        case=case,
        inputs=inputs,
        mode=mode,
        own_types=own_types,
        needs_bits=needs_bits,
        allowed=allowed,
        arrays=[
            ("q", "N_ROWS*HSK", inputs.q),
            ("k", "NE3*N_HEAD_KV*N_KV*HSK", inputs.k),
            ("v", "NE3*N_HEAD_KV*N_KV*HSV", inputs.v),
            *((f"q_{q_type}", "N_ROWS*HSK", q) for q_type, q in rounded.items()),
        ],
        q_seen=[f"q_{how.q_type}" if how.q_type in rounded else "q" for how in hows],
        cache=_cache(case, inputs, own_types=own_types),
        axes=axes,
        ne=[("ne0", "ne1", "ne2", "NE3")[axis] for axis in axes],
        number=_number,
        numbers=_numbers,
    )


def _mode(verdict: Verdict) -> str:
    """Return the mode that failed; empty where no number is wrong."""
    if verdict.localisation is not None:
        return verdict.localisation.mode
    mode, colon, _ = verdict.reason.partition(":")
    return mode if colon and verdict.status in ("crash", "timeout") else ""


def _check_size(case: Case) -> None:
    rows = case.ne3 * case.n_head * case.n_batch
    n = rows * case.hsk_padded + case.ne3 * case.n_head_kv * case.n_kv * (
        case.hsk_padded + case.hsv_padded
    )
    n += case.ne3 * case.mask_heads * case.n_batch * case.n_kv * case.mask
    n += case.segments * rows * 2 * (1 + case.hsv_padded)
    if n > MOST_NUMBERS:
        raise UsageError(
            f"{case}: a C program of it would hold {n} numbers, more than {MOST_NUMBERS}; "
            "shrink it further (--seconds)"
        )


def _shows(found: Localisation, mode: str, allowed: Sequence[F64]) -> bool:
    """Tell whether the wrong number is beyond what the program allows."""
    if found.limit == "ratio":
        return False
    index = found.index or 0
    if mode == "merged" and found.index is None:
        if found.call != IN_TURN:
            return False
        index = -1
    hsv = allowed[index].shape[-1] // 2 - 1
    at = PARTS.index(found.part) if found.part in PARTS else 2 + hsv
    bound = allowed[index][found.batch, found.head, found.row, at + (found.element or 0)]
    return not abs(found.got - found.expected) <= bound


def _head(verdict: Verdict, library: str) -> str:
    lines = [str(verdict.case), "", f"{verdict.status} on {library}:", *explain(verdict)]
    # what the library printed must neither end the comment nor begin another
    words = "\n".join(f" * {line}".rstrip() for line in lines)
    return words.replace("*/", "* /").replace("/*", "/ *")


def _rounded_q(q: F32, q_types: Sequence[str]) -> dict[str, F32]:
    """Return Q as dot products of some types see it, where that is another Q."""
    rounded = {q_type: bounds.rounded_q(q, q_type)[0] for q_type in dict.fromkeys(q_types)}
    return {q_type: seen for q_type, seen in rounded.items() if not np.array_equal(seen, q)}


def _cache(case: Case, inputs: Inputs, *, own_types: bool) -> dict[str, list[dict[str, Any]]]:
    """Return K, and V unless it is a view of K, part by part: type, rows, and their array's name.

    The array is `NULL` where the program makes the bytes from the numbers.
    """
    if own_types:
        types = [case.types_of_segment(i) for i in range(case.segments)]
        raws: Sequence[Any] = inputs.segments
    else:
        types, raws = [(case.type_K, case.type_V)], [(inputs.k_raw, inputs.v_raw)]
    cache: dict[str, list[dict[str, Any]]] = {"k": [], "v": []}
    for i, pair in enumerate(zip(types, raws, strict=True)):
        for name, type_name, raw in zip(cache, *pair, strict=True):
            has_array = type_name not in _PLAIN and raw.size
            array = f"{name}{i if own_types else ''}_{type_name}"
            cache[name].append(
                {
                    "type": f"GGML_TYPE_{type_name.upper()}",
                    "rows": raw.reshape(-1, raw.shape[-1]).tolist(),
                    "bytes": array if has_array else "NULL",
                }
            )
    if case.v_is_view_of_k and not own_types:
        del cache["v"]
    return cache


def _numbers(values: F16 | F32 | F64, indent: int) -> str:
    """Return numbers as C literals, exactly as F32, one row per line."""
    rows = values.reshape(-1, values.shape[-1]).astype(np.float32).tolist()
    return "\n".join(f"{' ' * indent}{', '.join(map(_number, row))}," for row in rows)


def _number(value: float) -> str:
    """Return an F32 number as a C literal: a small whole number as it is, others in hexadecimal."""
    if math.isinf(value):
        return "INFINITY" if value > 0 else "-INFINITY"
    is_negative_zero = value == 0 and math.copysign(1, value) < 0
    if value == int(value) and abs(value) < 2**24 and not is_negative_zero:
        return str(int(value))
    mantissa, _, exponent = float(value).hex().partition("p")
    return f"{mantissa.rstrip('0').rstrip('.')}p{exponent}f"
