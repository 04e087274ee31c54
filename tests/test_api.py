"""What a notebook gets."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import fa_harness
from fa_harness import Case, UsageError
from fa_harness.build.library import Library

SMALL = Case(hsk=64, hsv=64, n_head_kv=2, n_kv=90, n_batch=3, segments=3)


def test_a_case_is_compared_with_the_oracle_in_one_line(patched: Library) -> None:
    result = fa_harness.compare(SMALL)
    assert result
    assert result.status == "pass"
    assert result.comparisons["segmented_vs_full_state"].bitwise
    assert np.shape(result.outputs["segmented"]) == (1, 2, 3, 64)
    first, *lines = repr(result).splitlines()
    assert first == "pass  hs64 h2 kv90 b3 f16 uniform t1 on state of llama.cpp-0.3.36"
    assert any(line.split()[:2] == ["segmented_vs_full_state", "bit-identical"] for line in lines)
    assert "<td>segmented_vs_full_state</td><td>bit-identical</td>" in result._repr_html_()


def test_a_case_string_that_fails_says_where_and_how_to_repeat_it(bug: Library) -> None:
    result = fa_harness.compare(str(SMALL), "0001", modes=["segmented"])
    assert not result
    assert result.status == "fail"
    text = repr(result)
    assert "numerators are wrong" in text
    assert f"fa-harness run --library state@0001 --mode segmented --case '{SMALL}'" in text
    assert 'style="color: red' in result._repr_html_()


def test_what_cannot_be_compared_is_refused(patched: Library) -> None:
    with pytest.raises(UsageError, match="mode 'fast' is unknown"):
        fa_harness.compare(SMALL, modes=["fast"])
    with pytest.raises(UsageError, match="unknown library 'gone'"):
        fa_harness.compare(SMALL, "gone")


def softmax_attention(
    q: Any, k: Any, v: Any, *, scale: float, bias: Any = 0.0, softcap: float = 0.0, sink: Any = None
) -> Any:
    """Attention as a textbook has it, for as many heads of K as of Q."""
    scores = q @ np.swapaxes(k, -1, -2) * scale
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    scores = scores + bias
    if sink is not None:
        column = np.broadcast_to(np.reshape(sink, (-1, 1, 1)), (*scores.shape[:-1], 1))
        scores = np.concatenate([scores, column], axis=-1)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights[..., : k.shape[-2]] @ v


@pytest.fixture
def qkv() -> tuple[Any, Any, Any]:
    """Q of 4 heads and 3 rows, K and V of 2 heads and 50 keys."""
    draw = np.random.default_rng(0)
    shapes = ((4, 3, 16), (2, 50, 16), (2, 50, 8))
    return tuple(draw.normal(size=shape).astype(np.float32) for shape in shapes)  # type: ignore[return-value]


def of_all_heads(array: Any) -> Any:
    return np.repeat(array, 2, axis=0)


def test_arrays_of_ones_own_are_compared_with_the_oracle(qkv: tuple[Any, Any, Any]) -> None:
    q, k, v = qkv
    result = fa_harness.compare_arrays(
        q, k, v, softmax_attention(q, of_all_heads(k), of_all_heads(v), scale=0.25)
    )
    assert result
    assert result.expected.shape == result.bound.shape == (1, 4, 3, 8)
    assert 0 < result.comparison.of_bound < 1
    assert repr(result).startswith("pass  attention 1x4x3x8 against the oracle\n  worst at ")
    assert "% of its bound</td>" in result._repr_html_()


def test_mask_soft_cap_sinks_and_scale_are_those_of_the_textbook(qkv: tuple[Any, Any, Any]) -> None:
    q, k, v = qkv
    seen = np.arange(50) <= np.array([[20], [30], [49]])
    sinks = np.array([0.5, -1.0, 2.0, 0.0], np.float32)
    got = softmax_attention(
        q, of_all_heads(k), of_all_heads(v),
        scale=0.3, bias=np.where(seen, 0.0, -np.inf), softcap=5.0, sink=sinks,
    )  # fmt: skip
    more: dict[str, Any] = {"scale": 0.3, "logit_softcap": 5.0, "sinks": sinks}
    assert fa_harness.compare_arrays(q, k, v, got, mask=seen, **more)
    added = np.where(seen, 0.0, -np.inf)[None]
    assert fa_harness.compare_arrays(q[None], k[None], v[None], got[None], mask=added, **more)
    assert not fa_harness.compare_arrays(q, k, v, got, mask=seen, scale=0.3, sinks=sinks)


def test_one_wrong_element_is_found(qkv: tuple[Any, Any, Any]) -> None:
    q, k, v = qkv
    got = softmax_attention(q, of_all_heads(k), of_all_heads(v), scale=0.25)
    got[2, 1, 5] += 1e-3
    result = fa_harness.compare_arrays(q, k, v, got)
    assert not result
    assert "worst at sequence 0, head 2, row 1, dim 5: expected " in repr(result)
    got[2, 1, 5] = np.nan
    assert not fa_harness.compare_arrays(q, k, v, got)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": np.zeros((3, 16))}, r"q has the shape \(3, 16\); it must be \[heads, rows, n\]"),
        ({"k": np.zeros((2, 49, 16))}, r"k has the shape \(1, 2, 49, 16\), but q and v need"),
        ({"v": np.zeros((3, 50, 8))}, "q has 4 heads, which is no multiple of v's 3"),
        ({"got": np.zeros((4, 3, 9))}, r"got has the shape \(1, 4, 3, 9\), but q and v need"),
        ({"q": np.full((4, 3, 16), 0.1)}, "q of dtype float64 does not fit into float32; round"),
        ({"v": np.full((2, 50, 8), np.inf)}, "v holds a number that is not finite"),
        ({"k": np.zeros((2, 50, 16), complex)}, "k is of dtype complex128; give real numbers"),
        ({"mask": np.zeros((50, 3))}, r"mask has the shape \(50, 3\); it must end in"),
        ({"mask": np.full((3, 50), np.nan)}, r"mask holds NaN or \+inf; give finite numbers"),
        ({"mask": np.zeros((3, 3, 50))}, "mask_heads"),
        ({"sinks": [1.0]}, "sinks must be 4 finite numbers"),
        ({"scale": -1.0}, "kq_scale"),
        ({"max_bias": 8.0}, "ALiBi needs mask"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    qkv: tuple[Any, Any, Any], changes: dict[str, Any], message: str
) -> None:
    arrays = dict(zip("qkv", qkv, strict=True)) | {"got": np.zeros((4, 3, 8))} | changes
    with pytest.raises(UsageError, match=message):
        fa_harness.compare_arrays(**arrays)


def test_the_public_names_are_those_of_the_list_and_cost_nothing_until_used() -> None:
    assert all(hasattr(fa_harness, name) for name in fa_harness.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'gone'"):
        fa_harness.gone  # noqa: B018
    code = "import sys, fa_harness; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
