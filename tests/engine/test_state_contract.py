"""A state that is set by hand: what a call may and may not do with the rows that it finds."""

import numpy as np
import numpy.typing as npt
import pytest

from fa_harness.arrays import F32, F64
from fa_harness.case import quants
from fa_harness.engine.ggml import Ggml, Tensor
from fa_harness.engine.layout import clear

HSV, N_KV, N_BATCH, N_HEAD = 64, 5, 3, 2


def continue_from(
    library: Ggml, state: F32, *, type_v: str = "f16", mask: npt.NDArray[np.float16] | None = None
) -> tuple[F32, F32, F64]:
    """Continue `[1, n_head, n_batch, 2 + hsv]` over keys with the score 0 (Q = 0) and V in [-1, 1].

    Returns:
        The output and the state after the call, `[1, n_head, n_batch, ...]`, and V, `[n_kv, hsv]`.
    """
    raw = quants.encode(
        np.random.default_rng(1).uniform(-1, 1, (1, 1, N_KV, HSV)).astype(np.float32), type_v
    )
    with library.context() as ctx, library.backend(1) as backend:
        q = ctx.tensor("f32", (HSV, N_BATCH, N_HEAD, 1))
        k = ctx.tensor("f16", (HSV, N_KV, 1, 1))
        v = ctx.tensor(type_v, (HSV, N_KV, 1, 1))
        m = ctx.tensor("f16", (N_KV, N_BATCH, 1, 1)) if mask is not None else None
        s = ctx.tensor("f32", state.shape[::-1])
        out = ctx.flash_attn_ext(q, k, v, m, scale=1.0, state=s)
        backend.allocate(ctx)
        q.write(np.zeros(q.ne[::-1], np.float32))
        k.write(np.ones(k.ne[::-1], np.float16))
        v.write(raw)
        s.write(state)
        if m is not None and mask is not None:
            m.write(mask)
        backend.compute(ctx.graph([out]))
        values = quants.decode(raw, type_v)[0, 0].astype(np.float64)
        return out.read().swapaxes(1, 2), s.read(), values


def rows(m: float, s: float, vkq: float) -> F32:
    state = np.full((1, N_HEAD, N_BATCH, 2 + HSV), vkq, np.float32)
    state[..., 0], state[..., 1] = m, s
    return state


def expected(state: F32, values: F64) -> F64:
    """Return the numerators after `continue_from` of a row with M = 0: every weight is 1."""
    after: F64 = state[..., 2:].astype(np.float64) + values.sum(axis=0)
    return after


@pytest.mark.parametrize("numerator", [1 / 3, 2049.0, 65_000.3])
def test_numerators_that_f16_cannot_hold_are_not_rounded(library: Ggml, numerator: float) -> None:
    state = rows(0.0, 1.0, numerator)
    _, after, values = continue_from(library, state)
    # N_KV additions in F32, of sums that are at most this large
    atol = N_KV * 2.0**-24 * (numerator + N_KV)
    np.testing.assert_allclose(after[..., 2:], expected(state, values), rtol=0, atol=atol)


def test_numerators_above_the_f16_range_do_not_overflow(library: Ggml) -> None:
    state = rows(0.0, 1.0, 1e6)
    out, after, values = continue_from(library, state)
    np.testing.assert_allclose(after[..., 2:], expected(state, values), rtol=6 * 2.0**-24)
    assert np.isfinite(out).all()


def test_one_numerator_that_f16_cannot_hold_takes_its_row_and_no_other_to_f32(
    library: Ggml,
) -> None:
    state = rows(0.0, 1.0, 1.5)
    state[0, 1, 2, 2 + 7] = 1 / 3
    _, after, values = continue_from(library, state)
    error = np.abs(after[..., 2:] - expected(state, values)).max(axis=-1)[0]
    in_f32 = error < 6 * 2.0**-24 * 8
    assert in_f32.tolist() == [[False, False, False], [False, False, True]]


def test_numerators_of_a_row_in_f16_stay_f16_numbers(library: Ggml) -> None:
    _, after, _ = continue_from(library, rows(0.0, 1.0, 1.5))
    np.testing.assert_array_equal(
        after[..., 2:].astype(np.float16).astype(np.float32), after[..., 2:]
    )


@pytest.mark.parametrize("type_v", ["f16", "f32", "bf16", "q8_0"])
def test_a_call_that_masks_a_row_leaves_its_state_alone(library: Ggml, type_v: str) -> None:
    state = rows(-3.25, 7.5, 1 / 3)
    state[0, :, 1] = rows(2.0, 3.0, 1.5)[0, :, 1]
    mask = np.zeros((1, 1, N_BATCH, N_KV), np.float16)
    mask[..., :2, :] = -np.inf
    out, after, _ = continue_from(library, state, type_v=type_v, mask=mask)
    assert after[:, :, :2].tobytes() == state[:, :, :2].tobytes()
    assert (after[:, :, 2] != state[:, :, 2]).any()
    np.testing.assert_allclose(
        out[:, :, :2], state[:, :, :2, 2:] / state[:, :, :2, 1:2], rtol=2 * 2.0**-24
    )


@pytest.mark.parametrize("type_v", ["f16", "f32", "q8_0"])
def test_a_fresh_row_that_a_call_masks_stays_fresh_and_gives_zeros(
    library: Ggml, type_v: str
) -> None:
    mask = np.full((1, 1, N_BATCH, N_KV), -np.inf, np.float16)
    state = rows(-np.inf, np.nan, np.nan)
    out, after, _ = continue_from(library, state, type_v=type_v, mask=mask)
    assert not out.any()
    assert (after[..., 0] == -np.inf).all()
    assert not after[..., 1:].any()


@pytest.mark.parametrize("type_v", ["f16", "f32", "q8_0"])
def test_a_fresh_row_takes_nothing_from_the_s_and_vkq_that_it_holds(
    library: Ggml, type_v: str
) -> None:
    clean, clean_state, values = continue_from(library, rows(-np.inf, 0.0, 0.0), type_v=type_v)
    dirty, dirty_state, _ = continue_from(library, rows(-np.inf, np.nan, 1e30), type_v=type_v)
    assert dirty.tobytes() == clean.tobytes()
    assert dirty_state.tobytes() == clean_state.tobytes()
    np.testing.assert_allclose(clean[0, 0, 0], values.mean(axis=0), atol=N_KV * 2.0**-11)


def test_the_result_is_the_numerators_over_s(library: Ggml) -> None:
    out, after, _ = continue_from(library, rows(0.5, 2.0, 1 / 3))
    np.testing.assert_allclose(out, after[..., 2:] / after[..., 1:2], rtol=2 * 2.0**-24)


PATHS = {"vec": (3, 40, "f16"), "vec f32": (3, 40, "f32"), "tiled": (66, 64, "f16"),
         "split-kv": (1, 600, "f16")}  # fmt: skip
"""Rows of Q and keys of a call with which the op takes each path, and the type of K and V."""


@pytest.mark.parametrize("path", PATHS)
def test_the_rows_of_a_state_of_one_row_a_head_lie_one_behind_another(
    library: Ggml, path: str
) -> None:
    """Of a dimension with one element the stride says nothing; a state is contiguous with any."""
    n_kv, type_ = PATHS[path][1:]
    rng = np.random.default_rng(1)
    values = [rng.normal(size=(1, n, m, 32)).astype(np.float32) for n, m in ((3, 1), (3, n_kv))]
    states = []
    for is_permuted in (False, True):
        with library.context() as ctx, library.backend(2) as backend:
            q, k, v = (ctx.tensor(t, (32, n, 3, 1)) for t, n in (("f32", 1), *[(type_, n_kv)] * 2))
            state = whole = ctx.tensor("f32", (34, 3, 1, 1) if is_permuted else (34, 1, 3, 1))
            if is_permuted:
                state = ctx.permute(whole, (0, 2, 1, 3))
            out = ctx.flash_attn_ext(q, k, v, None, scale=0.2, state=state)
            backend.allocate(ctx)
            q.write(values[0])
            for each in (k, v):
                each.write(quants.encode(values[1], type_))
            whole.write(np.full(whole.ne[::-1], -np.inf, np.float32))
            backend.compute(ctx.graph([out]))
            states.append(whole.read().tobytes())
    assert states[0] == states[1]


@pytest.mark.parametrize("then", ["the same keys", "other keys", "no keys", "masked keys"])
@pytest.mark.parametrize("path", PATHS)
def test_a_row_that_is_nan_is_so_where_one_call_has_it(library: Ggml, path: str, then: str) -> None:
    """It must not be taken for a fresh row by the next call, or by a merge."""
    n_batch, n_kv, type_ = PATHS[path]
    rng = np.random.default_rng(1)
    keys, values = (rng.normal(size=(1, 2, 2 * n_kv, 32)).astype(np.float32) for _ in range(2))
    queries = rng.normal(size=(1, 2, n_batch, 32)).astype(np.float32)
    if then == "other keys":
        keys[0, 0, :n_kv, 0] = np.nan  # those of a head in the first call
    else:
        queries[0, 0, 0, 0] = np.nan
    mask = np.zeros((1, 1, n_batch, 2 * n_kv), np.float16)
    mask[..., n_kv:] = -np.inf if then == "masked keys" else 0
    n_then = 0 if then == "no keys" else n_kv
    with library.context() as ctx, library.backend(2) as backend:
        q = ctx.tensor("f32", (32, n_batch, 2, 1))
        k, v = (ctx.tensor(type_, (32, 2 * n_kv, 2, 1)) for _ in range(2))
        masks = [ctx.tensor("f16", (n, n_batch, 1, 1)) for n in (n_kv + n_then, n_kv, n_then)]
        state, fresh = (ctx.tensor("f32", (34, n_batch, 2, 1)) for _ in range(2))

        def attend(start: int, stop: int, mask: Tensor, state: Tensor | None) -> Tensor:
            k_part, v_part = (
                ctx.view(each, (32, stop - start, 2, 1), offset=start * k.nb[1]) for each in (k, v)
            )
            return ctx.flash_attn_ext(q, k_part, v_part, mask, scale=0.2, state=state)

        one = attend(0, n_kv + n_then, masks[0], None)
        first = attend(0, n_kv, masks[1], state)
        merged = ctx.from_state(ctx.merge_states(ctx.merge_states(fresh, state), fresh))
        last = attend(n_kv, n_kv + n_then, masks[2], state)
        backend.allocate(ctx)
        q.write(queries)
        k.write(quants.encode(keys, type_))
        v.write(quants.encode(values, type_))
        for tensor, start in zip(masks, (0, 0, n_kv), strict=True):
            tensor.write(np.ascontiguousarray(mask[..., start : start + tensor.ne[0]]))
        for each in (state, fresh):
            each.write(np.full(each.ne[::-1], -np.inf, np.float32))
        found = {}
        for name, output in (("one", one), ("first", first), ("merged", merged), ("last", last)):
            clear(output)
            backend.compute(ctx.graph([output]))
            found[name] = np.isnan(output.read().swapaxes(1, 2)[0])
    if path != "tiled":  # upstream passes over a tile of keys whose scores are all NaN
        assert found["one"][0, 0].all()
    assert not found["one"][1].any()
    np.testing.assert_array_equal(found["merged"], found["first"])
    np.testing.assert_array_equal(found["last"], found["one"])


def merged(library: Ggml, a: F32, b: F32) -> F32:
    with library.context() as ctx, library.backend(1) as backend:
        tensors = [ctx.tensor("f32", a.shape[::-1]) for _ in range(2)]
        out = ctx.merge_states(*tensors)
        backend.allocate(ctx)
        for tensor, state in zip(tensors, (a, b), strict=True):
            tensor.write(state)
        backend.compute(ctx.graph([out]))
        return out.read()


@pytest.mark.parametrize("type_v", ["f16", "f32"])
def test_a_maximum_of_infinity_outweighs_all_others_in_a_chain_and_in_a_merge(
    library: Ggml, type_v: str
) -> None:
    top = rows(m=np.inf, s=1.0, vkq=0.5)
    _, chained, _ = continue_from(library, top, type_v=type_v)
    other = rows(m=3.0, s=2.0, vkq=0.25)
    for state in (chained, merged(library, top, other), merged(library, other, top)):
        np.testing.assert_array_equal(state, top)


def test_two_maxima_of_infinity_merge_to_nan_as_two_such_scores_do(library: Ggml) -> None:
    top = rows(m=np.inf, s=1.0, vkq=0.5)
    assert np.isnan(merged(library, top, top)[..., 1:]).all()
