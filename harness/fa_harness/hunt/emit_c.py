"""A failing case as a C program that needs ggml alone, for those who mend the kernel.

The program makes the same tensors and calls, and compares what they leave behind with attention in
double that it computes itself. `native/repro.c.in` is its text; here is what depends on the case.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from string import Template

import numpy as np

from fa_harness.arrays import F32, F64, U8
from fa_harness.case.case import Case
from fa_harness.case.inputs import Inputs, make_inputs
from fa_harness.errors import UsageError
from fa_harness.judge import bounds
from fa_harness.judge.bounds import Expected
from fa_harness.judge.compare import PARTS
from fa_harness.judge.contract import IN_TURN
from fa_harness.judge.expectations import Expectations
from fa_harness.judge.explain import Localisation
from fa_harness.judge.verdict import Verdict
from fa_harness.report.results import explain

MOST_NUMBERS = 1 << 16
"""A program with more literals than this is none that a person reads."""

_PLAIN = ("f32", "f16")
"""Types whose bytes the program makes from the numbers."""
_SLOPE = """\
static double slope(int head) {
    const int    n_log2 = 1 << (int) floor(log2(N_HEAD));
    const double m0     = pow(2.0, -max_bias/n_log2);
    const double m1     = pow(2.0, -max_bias/n_log2/2.0);
    return head < n_log2 ? pow(m0, head + 1) : pow(m1, 2*(head - n_log2) + 1);
}

"""
"""The factor of a head's mask where there is ALiBi."""
_NEW_STATE = """\
// a fresh state: M is -INFINITY, whatever the rest is
static struct ggml_tensor * new_state(struct ggml_context * ctx) {
    struct ggml_tensor * state =
        ggml_new_tensor_4d(ctx, GGML_TYPE_F32, 2 + HSV, $ne1, $ne2, NE3);
    for (int i = 0; i < N_ROWS*(2 + HSV); ++i) {
        ((float *) state->data)[i] = i % (2 + HSV) == 0 ? -INFINITY : NAN;
    }
    return $state;
}

"""
_TEMPLATE = Path(__file__).parents[1] / "native" / "repro.c.in"
_MODES = ("standard", "full_state", "segmented", "mixed", "merged")
_OF_BITS = ("full_state_vs_standard", "segmented_vs_standard", "segmented_vs_full_state")
"""Comparisons bit for bit that the program makes, too."""


def program(verdict: Verdict, *, library: str, features: tuple[str, ...]) -> str:
    """Return the C program of a case that failed, crashed or hung.

    Args:
        verdict: What came out of the case.
        library: What it ran on, in words.
        features: The library's CPU features, as `Ggml.features` names them.

    Raises:
        UsageError: The program cannot say how the case fails, or would be too large.
    """
    case, mode = verdict.case, _mode(verdict)
    if mode not in _MODES:
        raise UsageError(
            f"{case} fails in {mode or 'no mode'}: a C program can say {_list(_MODES)}"
        )
    if mode in ("standard", "full_state"):
        case = case.with_(segments=1, boundaries=None, segment_types=())
    _check_size(case)
    source = _Source(case, make_inputs(case), mode, features)
    found = verdict.localisation
    needs_bits = False
    if found is not None and not source.shows(found):
        needs_bits = found.comparison in _OF_BITS
        if not needs_bits:
            raise UsageError(
                f"{case}: {found.comparison.replace('_', ' ')} fails, which a C program would not "
                "show: it compares states and results with exact attention, and merges in turn"
            )
    return source.text(_head(verdict, library), needs_bits=needs_bits)


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


def _head(verdict: Verdict, library: str) -> str:
    lines = [str(verdict.case), "", f"{verdict.status} on {library}:", *explain(verdict)]
    # what the library printed must neither end the comment nor begin another
    words = "\n".join(f" * {line}".rstrip() for line in lines)
    return words.replace("*/", "* /").replace("/*", "/ *")


class _Source:
    """The parts of the program that depend on the case."""

    def __init__(self, case: Case, inputs: Inputs, mode: str, features: tuple[str, ...]) -> None:
        self._case = case
        self._inputs = inputs
        self._mode = mode
        own_types = mode == "mixed" or (mode == "merged" and bool(case.segment_types))
        self._own_types = own_types
        expect = Expectations(case, inputs, features)
        if mode == "standard":
            self._hows, self._expected = [expect.how], [expect.of_one]
        else:
            self._hows = expect.how_of_calls(own_types=own_types)
            self._expected = (
                [*expect.parts, expect.merged]
                if mode == "merged"
                else expect.chain(None, own_types=own_types)
            )
        """`_expected`: what is expected after each call, and of the merged state."""

    def shows(self, found: Localisation) -> bool:
        """Tell whether the number that is wrong is beyond what the program allows."""
        index = 0 if found.index is None else found.index
        if self._mode == "merged" and found.index is None:
            if found.call != IN_TURN:
                return False
            index = -1
        at = PARTS.index(found.part) if found.part in PARTS else 2 + self._case.hsv_padded
        allowed = self._allowed(self._expected[index])
        bound = allowed[found.batch, found.head, found.row, at + (found.element or 0)]
        return not abs(found.got - found.expected) <= bound

    def text(self, head: str, *, needs_bits: bool) -> str:
        """Return the program."""
        case = self._case
        in_cache = ", bool in_cache" if case.kv_view else ""
        return Template(_TEMPLATE.read_text("utf-8")).substitute(
            head=head,
            hsk=case.hsk_padded,
            hsv=case.hsv_padded,
            n_head=case.n_head,
            n_head_kv=case.n_head_kv,
            n_batch=case.n_batch,
            ne3=case.ne3,
            n_kv=case.n_kv,
            n_segments=case.segments,
            n_threads=case.threads,
            scale=_number(case.scale),
            max_bias=_number(case.max_bias),
            logit_softcap=_number(case.logit_softcap),
            first_key=", ".join(map(str, case.segment_bounds())),
            arrays=self._arrays(),
            n_checks="N_SEGMENTS + 1" if self._mode == "merged" else "N_SEGMENTS",
            unit="part" if self._mode == "merged" else "segment",
            and_merge=" and the merges" if self._mode == "merged" else "",
            allowed=",\n".join(
                f"    {{\n{_numbers(self._allowed(expected), 8)}\n    }}"
                for expected in self._expected
            ),
            slope=_SLOPE if case.max_bias else "",
            score_mask=self._score_mask(),
            m_of_sink="to == N_SEGMENTS ? sinks[head] : -INFINITY" if case.sinks
            else "-INFINITY",
            s_of_sink="to == N_SEGMENTS ? exp(sinks[head] - m) : 0.0" if case.sinks
            else "0.0",
            in_cache_parameter=in_cache,
            new_rows=self._new_rows(),
            tensors=self._tensors(),
            more_parameters=self._more(
                "int first, int n", "struct ggml_tensor * state", "bool is_last"
            ),
            more_arguments=self._more("first, n", "state", "s == N_SEGMENTS - 1"),
            state_data="NULL" if self._mode == "standard" else "state->data",
            call=self._call(),
            segment=self._segment(),
            from_segment="s" if self._mode == "merged" else "0",
            new_state="" if self._mode == "standard" else self._new_state(),
            end=self._end(needs_bits=needs_bits),
        )  # fmt: skip

    def _new_state(self) -> str:
        """Return the function that makes a state, laid out as `CaseTensors.state` does."""
        ne1, ne2, state = "N_BATCH", "N_HEAD", "state"
        if self._case.n_batch == 1:
            ne1, ne2, state = ne2, ne1, "ggml_permute(ctx, state, 0, 2, 1, 3)"
        return Template(_NEW_STATE).substitute(ne1=ne1, ne2=ne2, state=state)

    def _allowed(self, expected: Expected) -> F64:
        """Return the bounds of a call, `[ne3, n_head, n_batch, M S VKQ and result]`."""
        return np.concatenate([expected.state_bound(), expected.output_bound()], axis=-1)

    def _arrays(self) -> str:
        case, inputs = self._case, self._inputs
        arrays = [
            _array("q", inputs.q, "N_ROWS*HSK"),
            _array("k", inputs.k, "NE3*N_HEAD_KV*N_KV*HSK"),
            _array("v", inputs.v, "NE3*N_HEAD_KV*N_KV*HSV"),
        ]
        arrays += self._rounded_q()
        if inputs.mask is not None:
            mask = inputs.mask.astype(np.float32)
            arrays += [
                f"enum {{ MASK_HEADS = {case.mask_heads} }};",
                _array("mask", mask, "NE3*MASK_HEADS*N_BATCH*N_KV"),
            ]
        if inputs.sinks is not None:
            arrays.append(_array("sinks", inputs.sinks, "N_HEAD"))
        return "\n\n".join([*arrays, *self._encoded()])

    def _rounded_q(self) -> list[str]:
        """Return Q as the dot products of each segment see it."""
        arrays, seen = [], []
        for q_type in dict.fromkeys(how.q_type for how in self._hows):
            rounded, _ = bounds.rounded_q(self._inputs.q, q_type)
            if not np.array_equal(rounded, self._inputs.q):
                arrays.append(_array(f"q_{q_type}", rounded, "N_ROWS*HSK"))
        for how in self._hows:
            is_rounded = any(f" q_{how.q_type}[" in array for array in arrays)
            seen.append(f"q_{how.q_type}" if is_rounded else "q")
        comment = "// Q as each segment sees it: rounded to the type of K's dot product"
        names = ", ".join(seen)
        arrays.append(f"{comment}\nstatic const float * const q_seen[N_SEGMENTS] = {{ {names} }};")
        return arrays

    def _encoded(self) -> list[str]:
        """Return the bytes of K and V in types that are no plain numbers, and what goes with them.

        Segments of their own types have tables of types and bytes.
        """
        case, inputs = self._case, self._inputs
        if not self._own_types:
            return [
                _bytes(f"{name}_{type_name}", raw)
                for name, type_name, raw in self._whole_cache()
                if type_name not in _PLAIN
            ]
        arrays = []
        for name, of_pair in (("k", 0), ("v", 1)):
            types = [case.types_of_segment(i)[of_pair] for i in range(case.segments)]
            raws = [inputs.segments[i][of_pair] for i in range(case.segments)]
            names = [
                f"{name}{i}_{type_name}" if type_name not in _PLAIN and raw.size else "NULL"
                for i, (type_name, raw) in enumerate(zip(types, raws, strict=True))
            ]
            arrays += [
                _bytes(*array) for array in zip(names, raws, strict=True) if array[0] != "NULL"
            ]
            arrays.append(
                f"static const enum ggml_type {name}_types[N_SEGMENTS] = "
                f"{{ {', '.join(map(_ggml_type, types))} }};\n"
                f"static const uint8_t * const {name}_bytes[N_SEGMENTS] = {{ {', '.join(names)} }};"
            )
        return arrays

    def _whole_cache(self) -> list[tuple[str, str, U8]]:
        """Return K, and V where it is a tensor of its own: name, type, bytes."""
        case, inputs = self._case, self._inputs
        k, v = ("k", case.type_K, inputs.k_raw), ("v", case.type_V, inputs.v_raw)
        return [k] if case.v_is_view_of_k else [k, v]

    def _score_mask(self) -> str:
        if self._inputs.mask is None:
            return ""
        slope = "slope(head)*" if self._case.max_bias else ""
        row = "(i3*MASK_HEADS + head % MASK_HEADS)*N_BATCH + row"
        return f"    s += {slope}mask[({row})*N_KV + key];\n"

    def _new_rows(self) -> str:
        """Return how `new_rows` makes a tensor as the case lays it out in memory."""
        case = self._case
        at = [case.permute.index(i) for i in range(4)]
        names = ("ne0", "ne1", "ne2", "NE3")
        ne = [names[dim] for dim in at]
        twice = "*(in_cache ? 2 : 1)" if case.kv_view else ""
        lines = [
            f"struct ggml_tensor * t = ggml_new_tensor_4d(ctx, type, {ne[0]}, {ne[1]}{twice}, "
            f"{ne[2]}, {ne[3]});"
        ]
        if case.kv_view:
            lines += [
                "memset(t->data, 0xff, ggml_nbytes(t)); // NaN beside the view",
                "if (in_cache) { // the first half of a larger tensor",
                f"    t = ggml_view_4d(ctx, t, {', '.join(ne)}, t->nb[1], t->nb[2], t->nb[3], 0);",
                "}",
            ]
        if case.permute != (0, 1, 2, 3):
            lines.append(f"t = ggml_permute(ctx, t, {', '.join(map(str, at))});")
        return _indented(4, lines)

    def _tensors(self) -> str:
        """Return the tensors that all calls use."""
        case = self._case
        no_cache, in_cache = (", false", ", true") if case.kv_view else ("", "")
        lines = [
            "struct ggml_tensor * tq = new_rows(ctx, GGML_TYPE_F32, HSK, N_BATCH, N_HEAD, q, NULL, "
            f"N_BATCH{no_cache});"
        ]
        if not self._own_types:
            for name, type_name, _ in self._whole_cache():
                bytes_ = "NULL" if type_name in _PLAIN else f"{name}_{type_name}"
                lines.append(
                    f"struct ggml_tensor * t{name} = new_rows(ctx, {_ggml_type(type_name)}, "
                    f"HS{name.upper()}, N_KV, N_HEAD_KV, {name}, {bytes_}, N_KV{in_cache});"
                )
            if case.v_is_view_of_k:
                lines.append(_view("tv", "tk", "HSV", "N_KV", "0"))
        if self._mode == "merged":
            lines.append("struct ggml_tensor * states[N_SEGMENTS];")
        elif self._mode != "standard":
            lines.append("struct ggml_tensor * state = new_state(ctx);")
        return _indented(4, lines)

    def _segment(self) -> str:
        """Return K and V of segment `s`."""
        case = self._case
        if not self._own_types:
            lines = [
                _view("sk", "tk", "HSK", "n", "first*tk->nb[1]"),
                _view("sv", "tv", "HSV", "n", "first*tv->nb[1]"),
            ]
        else:
            in_cache = ", true" if case.kv_view else ""
            lines = [
                f"struct ggml_tensor * s{name} = new_rows(ctx, {name}_types[s], {size}, n, "
                f"N_HEAD_KV, {name} + first*{size}, {name}_bytes[s], N_KV{in_cache});"
                for name, size in (("k", "HSK"), ("v", "HSV"))
            ]
        if self._mode == "merged":
            lines.append("struct ggml_tensor * state = states[s] = new_state(ctx);")
        return _indented(8, lines)

    def _call(self) -> str:
        """Return how a call is made."""
        case = self._case
        lines = ["struct ggml_tensor * tmask = NULL;"]
        if self._inputs.mask is not None:
            lines = [
                "// the mask has to be contiguous: a copy of the columns",
                "struct ggml_tensor * tmask = ggml_new_tensor_4d(ctx, GGML_TYPE_F16, n, N_BATCH, "
                "MASK_HEADS, NE3);",
                "for (int i = 0; i < NE3*MASK_HEADS*N_BATCH; ++i) {",
                "    ggml_fp32_to_fp16_row(mask + i*N_KV + first, (ggml_fp16_t *) tmask->data + "
                "i*n, n);",
                "}",
            ]
        plain = "ggml_flash_attn_ext(ctx, tq, tk, tv, tmask, scale, max_bias, logit_softcap)"
        if self._mode == "standard":
            lines.append(f"struct ggml_tensor * out = {plain};")
        else:
            with_state = plain.replace("ext(", "ext_with_state(").replace("tmask,", "tmask, state,")
            lines += [
                "struct ggml_tensor * out = state ?",
                f"    {with_state} :",
                f"    {plain};",
            ]
        if case.prec == "f32":
            lines.append("ggml_prec_set_acc(out, GGML_PREC_F32);")
        if case.n_kv_max:
            lines.append(f"ggml_flash_attn_ext_set_n_kv_max(out, {case.n_kv_max});")
        if self._inputs.sinks is not None:
            lines += [
                "if (is_last) { // a sink belongs to the last call of a chain",
                "    struct ggml_tensor * tsinks = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, N_HEAD);",
                "    memcpy(tsinks->data, sinks, sizeof(sinks));",
                "    ggml_flash_attn_ext_add_sinks(out, tsinks);",
                "}",
            ]
        return _indented(4, lines)

    def _more(self, keys: str, state: str, is_last: str) -> str:
        """Return the parameters or arguments of a call that only some cases have."""
        words = [keys] * (self._inputs.mask is not None)
        words += [state] * (self._mode != "standard") + [is_last] * self._case.sinks
        return "".join(f", {word}" for word in words)

    def _end(self, *, needs_bits: bool) -> str:
        """Return what follows the calls: merges, or the comparison with one call."""
        lines: list[str] = []
        if self._mode == "merged":
            lines = [
                "",
                "// all states merged, one after another",
                "struct ggml_tensor * merged = states[0];",
                "for (int s = 1; s < N_SEGMENTS; ++s) {",
                "    merged = ggml_flash_attn_ext_merge_states(ctx, merged, states[s]);",
                "}",
                "out = ggml_flash_attn_ext_from_state(ctx, merged);",
                "compute(ctx, out);",
                'n_wrong += check("parts 0 to", N_SEGMENTS - 1, 0, N_SEGMENTS, '
                "allowed[N_SEGMENTS], out->data, merged->data);",
            ]
        if needs_bits:
            lines = [
                "",
                "// the bits of the last result have to be those of one call without a state",
                "struct ggml_tensor * one = attention(ctx, tq, tk, tv"
                f"{self._more('0, N_KV', 'NULL', 'true')});",
                "compute(ctx, one);",
                "if (memcmp(out->data, one->data, ggml_nbytes(one)) != 0) {",
                '    printf("the bits of the last result are not those of one call\\n");',
                "    n_wrong++;",
                "}",
            ]
        return _indented(4, lines)


def _view(name: str, of: str, size: str, n: str, offset: str) -> str:
    strides = ", ".join(f"{of}->nb[{i}]" for i in (1, 2, 3))
    return (
        f"struct ggml_tensor * {name} = ggml_view_4d(ctx, {of}, {size}, {n}, N_HEAD_KV, NE3, "
        f"{strides}, {offset});"
    )


def _ggml_type(type_name: str) -> str:
    return f"GGML_TYPE_{type_name.upper()}"


def _array(name: str, values: F32, size: str) -> str:
    return f"static const float {name}[{size}] = {{\n{_numbers(values, 4)}\n}};"


def _bytes(name: str, raw: U8) -> str:
    rows = [", ".join(map(str, row)) for row in raw.reshape(-1, raw.shape[-1])]
    return f"static const uint8_t {name}[] = {{\n" + "".join(f"    {row},\n" for row in rows) + "};"


def _numbers(values: F32 | F64, indent: int) -> str:
    """Return numbers as C literals, exactly as F32, a row a line."""
    rows = values.reshape(-1, values.shape[-1]).astype(np.float32)
    return _indented(indent, [", ".join(map(_number, row.tolist())) + "," for row in rows])


def _number(value: float) -> str:
    """Return an F32 number as a C literal: a small whole number as it is, others in hexadecimal."""
    if math.isinf(value):
        return "INFINITY" if value > 0 else "-INFINITY"
    is_negative_zero = value == 0 and math.copysign(1, value) < 0
    if value == int(value) and abs(value) < 2**24 and not is_negative_zero:
        return str(int(value))
    mantissa, _, exponent = float(value).hex().partition("p")
    return f"{mantissa.rstrip('0').rstrip('.')}p{exponent}f"


def _indented(n: int, lines: Sequence[str]) -> str:
    return "\n".join(f"{' ' * n}{line}".rstrip() for line in lines)


def _list(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"
