"""The Python API: `fa_harness.compare` and `fa_harness.compare_arrays`.

    import fa_harness
    case = fa_harness.Case(n_head_kv=8, n_kv=1024, n_batch=4, segments=4)
    fa_harness.compare(case)

In a notebook the result of the last line is shown as a table.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fa_harness.arrays import F32, F64
from fa_harness.build.named import held_library
from fa_harness.case import captures
from fa_harness.case.case import Case
from fa_harness.case.inputs import Inputs
from fa_harness.case.label import label
from fa_harness.case.selection import check_modes
from fa_harness.engine.runner import Runner
from fa_harness.engine.session import Clock, offered_modes
from fa_harness.errors import UsageError
from fa_harness.judge import compare as comparator
from fa_harness.judge.compare import Check, Comparison
from fa_harness.judge.expectations import Expectations
from fa_harness.judge.verdict import Verdict
from fa_harness.judge.words import explain

_STYLE = {"pass": "color: green", "unsupported": "color: gray"}
_WRONG = "color: red; font-weight: bold"


class _Shown:
    """What a result prints: a line, and a line or a row of a table for each comparison."""

    @property
    def status(self) -> str:
        """`pass`, or how it did not pass."""
        raise NotImplementedError

    def _content(self) -> tuple[str, list[str], Mapping[str, Comparison]]:
        """Return a title, details, and comparisons by name."""
        raise NotImplementedError

    def __bool__(self) -> bool:
        return self.status == "pass"

    def __repr__(self) -> str:
        title, details, comparisons = self._content()
        lines = [f"{self.status}  {title}", *(f"  {line}" for line in details)]
        lines += [f"  {name:28}  {_in_words(c)}" for name, c in comparisons.items()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        title, details, comparisons = self._content()
        style = _STYLE.get(self.status, _WRONG)
        below = "".join(f"<br>{html.escape(line)}" for line in details)
        rows = "".join(
            f'<tr style="{"" if c.ok else _WRONG}"><td>{html.escape(name)}</td>'
            f"<td>{html.escape(_in_words(c))}</td></tr>"
            for name, c in comparisons.items()
        )
        return (
            f'<p><b style="{style}">{self.status}</b> {html.escape(title)}{below}</p>'
            f"<table><tr><th>comparison</th><th>result</th></tr>{rows}</table>"
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class CaseResult(_Shown):
    """What a library gives for a case, against the oracle. It is true where the case passes.

    Attributes:
        verdict: Status, reason, comparisons and outputs.
        library: Name of the library.
        upstream: What it was built from.
        repro: The command that repeats the case.
    """

    verdict: Verdict
    library: str
    upstream: str
    repro: str

    @property
    def status(self) -> str:
        """One of `judge.verdict.STATUSES`, such as `pass`."""
        return self.verdict.status

    @property
    def comparisons(self) -> Mapping[str, Comparison]:
        """By name, such as `segmented_vs_oracle`: the errors that were found."""
        return self.verdict.comparisons

    @property
    def outputs(self) -> Mapping[str, F32 | list[F32]]:
        """By mode: float32 `[ne3, n_head, n_batch, hsv]`; `after_segment` is a list of them."""
        return self.verdict.outputs

    def _content(self) -> tuple[str, list[str], Mapping[str, Comparison]]:
        title = f"{label(self.verdict.case)} on {self.library} of {self.upstream}"
        return title, [] if self else [*explain(self.verdict), self.repro], self.comparisons


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ArraysResult(_Shown):
    """How far an attention of one's own is from the oracle. It is true where each element is right.

    Attributes:
        expected: The oracle's attention, float64 `[ne3, n_head, n_batch, hsv]`.
        bound: How far an element may be from it, of the same shape: what rounding in float32 can
            cost at most.
        comparison: The largest error, its place, and its share of the bound.
    """

    expected: F64
    bound: F64
    comparison: Comparison

    @property
    def status(self) -> str:
        """`pass` or `fail`."""
        return "pass" if self.comparison.ok else "fail"

    def _content(self) -> tuple[str, list[str], Mapping[str, Comparison]]:
        title = f"attention {'x'.join(map(str, self.expected.shape))} against the oracle"
        details = []
        if (worst := self.comparison.worst) is not None:
            place = f"sequence {worst.batch}, head {worst.head}, row {worst.row}, dim {worst.dim}"
            expected = self.expected[worst.batch, worst.head, worst.row, worst.dim]
            details = [f"worst at {place}: expected {expected:.6g}"]
        return title, details, {"arrays_vs_oracle": self.comparison}


def compare(
    case: Case | str,
    library: str = "patched",
    *,
    modes: Sequence[str] = (),
    options: Mapping[str, str] = {},
    timeout: float | None = None,
) -> CaseResult:
    """Compute a case on a library, in a process of its own, and compare it with the oracle.

    The library is built first where it is missing or stale. It is that of the working directory's
    project: its `fa-harness.toml`, UPSTREAM and UPSTREAM_DIR hold here, too.

    Args:
        case: A case, or a case string as a report prints it.
        library: Its name: `pristine`, `patched`, `0001`, `state+fast`, `state@tsan`, ...
        modes: Some of `standard`, `full_state`, `segmented`, `merged`, `resumed`, `mixed` and
            `fifo`; empty for all that apply.
        options: CMake options that the library is built with.
        timeout: Seconds after which the case is given up; None for an estimate with much room.

    Raises:
        UsageError: The case, a mode or the library cannot be.
        SetupError: The library does not build or does not load.

    Example:
        >>> fa_harness.compare(fa_harness.Case(n_kv=256, segments=4), "patched")
        pass  hs128 h32 kv256 b8 f16 uniform t1 on state of llama.cpp-0.3.36
          ...
    """
    case = captures.checked(Case.parse(case) if isinstance(case, str) else case)
    asked = check_modes(modes, [case])
    with held_library(library, options) as built, Runner(built.module_path) as runner:
        asked = asked or offered_modes(runner, built)
        [verdict] = runner.run([case], modes=asked, timeout=timeout, with_outputs=True)
    return CaseResult(
        verdict=verdict,
        library=built.name,
        upstream=built.upstream,
        repro=Clock(built, options, asked).session().repro(case),
    )


def compare_arrays(
    q: Any,
    k: Any,
    v: Any,
    got: Any,
    *,
    mask: Any = None,
    sinks: Any = None,
    scale: float | None = None,
    max_bias: float = 0.0,
    logit_softcap: float = 0.0,
) -> ArraysResult:
    """Compare an attention that anything computed with the oracle, in float64.

    No library is used. The bound is that of a kernel that adds up in float32 (`judge/bounds.py`
    derives it); one that rounds K, V, the weights or the sum to F16 or BF16 goes beyond it, and the
    result's `comparison.of_bound` says by how much.

    Args:
        q: Queries, `[n_head, n_batch, hsk]`; like the others, and `got`, also with the number of
            sequences `ne3` in front. Any float dtype that float32 holds exactly.
        k: Keys, `[n_head_kv, n_kv, hsk]`; `n_head` is a multiple of `n_head_kv`.
        v: Values, `[n_head_kv, n_kv, hsv]`.
        got: What is compared, `[n_head, n_batch, hsv]`.
        mask: Added to the scores, `[n_batch, n_kv]` or `[n_mask, n_batch, n_kv]`, where `n_mask`
            divides `n_head`; -inf hides a key. Or booleans, true where a key is seen.
        sinks: A score for each head whose value is 0, `[n_head]`.
        scale: What the scores are multiplied with; None for 1/sqrt(hsk).
        max_bias: ALiBi's, which needs a mask; 0 is off.
        logit_softcap: Scores s become c * tanh(s / c); 0 is off.

    Raises:
        UsageError: Shapes do not fit, or a number is not finite.

    Example:
        >>> fa_harness.compare_arrays(q, k, v, my_attention(q, k, v))
        pass  attention 1x8x4x64 against the oracle
          worst at sequence 0, head 3, row 1, dim 17: expected 0.0312
          arrays_vs_oracle              largest error 2.4e-07, 3.1% of its bound
    """
    q, k, v = _four("q", q), _four("k", k), _four("v", v)
    ne3, n_head, n_batch, hsk = q.shape
    _, n_head_kv, n_kv, hsv = v.shape
    if n_head_kv == 0 or n_head % n_head_kv:
        raise UsageError(f"q has {n_head} heads, which is no multiple of v's {n_head_kv}")
    _require("k", k, (ne3, n_head_kv, n_kv, hsk))
    _require("v", v, (ne3, n_head_kv, n_kv, hsv))
    got = _four("got", got, may_be_infinite=True)
    _require("got", got, (ne3, n_head, n_batch, hsv))
    masks = None if mask is None else _mask(mask, (ne3, n_batch, n_kv))
    case = Case(
        hsk=hsk,
        hsv=hsv,
        n_head_kv=n_head_kv,
        n_group=n_head // n_head_kv,
        ne3=ne3,
        n_kv=n_kv,
        n_batch=n_batch,
        mask=masks is not None,
        mask_heads=1 if masks is None else masks.shape[1],
        sinks=sinks is not None,
        max_bias=max_bias,
        logit_softcap=logit_softcap,
        type_K="f32",
        type_V="f32",
        kq_scale=scale or 0.0,
    )
    unused = np.zeros(0, np.uint8)
    inputs = Inputs(
        q=q, k=k, v=v, k_raw=unused, v_raw=unused, mask=masks, sinks=_sinks(sinks, n_head)
    )
    expect = Expectations(case, inputs, ())
    region = expect.of_one.region
    check = Check(
        name="arrays_vs_oracle",
        mode="",
        call=expect.one_call,
        is_state=False,
        got=got,
        expected=expect.outputs[-1],
        region=region,
    )
    [judged] = comparator.compare([check])
    return ArraysResult(
        expected=expect.outputs[-1],
        bound=np.broadcast_to(region.bound, got.shape),
        comparison=judged.comparison,
    )


def _four(name: str, array: Any, *, may_be_infinite: bool = False) -> F32:
    """Return an array as float32 `[ne3, heads, rows, n]`."""
    given = np.asarray(array)
    if given.dtype.kind not in "fiu":
        raise UsageError(f"{name} is of dtype {given.dtype}; give real numbers")
    if given.ndim not in (3, 4) or 0 in given.shape:
        raise UsageError(
            f"{name} has the shape {given.shape}; it must be [heads, rows, n] or "
            "[ne3, heads, rows, n], none of them 0"
        )
    if not (may_be_infinite or np.isfinite(given).all()):
        raise UsageError(f"{name} holds a number that is not finite")
    with np.errstate(over="ignore"):
        made: F32 = np.ascontiguousarray(given, np.float32)
    if not may_be_infinite and not np.array_equal(made, given):
        raise UsageError(
            f"{name} of dtype {given.dtype} does not fit into float32; round it first, as the "
            "kernel does, and give the kernel the same numbers"
        )
    return made[None] if made.ndim == 3 else made


def _require(name: str, array: F32, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise UsageError(
            f"{name} has the shape {array.shape}, but q and v need {shape} ([ne3, heads, rows, n])"
        )


def _mask(mask: Any, sizes: tuple[int, int, int]) -> Any:
    """Return a mask `[ne3, n_mask, n_batch, n_kv]` that is added to scores."""
    given = np.asarray(mask)
    added: Any = np.where(given, 0.0, -np.inf) if given.dtype == bool else given.astype(np.float64)
    ne3, n_batch, n_kv = sizes
    if added.ndim not in (2, 3, 4) or added.shape[-2:] != (n_batch, n_kv):
        raise UsageError(
            f"mask has the shape {given.shape}; it must end in [n_batch, n_kv] = "
            f"[{n_batch}, {n_kv}]"
        )
    if np.isnan(added).any() or (added == np.inf).any():
        raise UsageError("mask holds NaN or +inf; give finite numbers, or -inf to hide a key")
    added = added.reshape((1,) * (4 - added.ndim) + added.shape)
    if added.shape[0] not in (1, ne3):
        raise UsageError(f"mask is of {added.shape[0]} sequences, q of {ne3}")
    return np.broadcast_to(added, (ne3, *added.shape[1:]))


def _sinks(sinks: Any, n_head: int) -> F32 | None:
    if sinks is None:
        return None
    given: F32 = np.asarray(sinks, np.float32)
    if given.shape != (n_head,) or not np.isfinite(given).all():
        raise UsageError(f"sinks must be {n_head} finite numbers, one for each head of q")
    return given


def _in_words(found: Comparison) -> str:
    if found.bitwise:
        return "bit-identical"
    text = f"largest error {found.max_abs:.2g}"
    if found.required == "bits":
        return f"{text}; must be bit-identical"
    return text if found.required == "none" else f"{text}, {found.of_bound:.1%} of its bound"
