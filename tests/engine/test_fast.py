"""The series `fast`: heads of a group computed together, judged by what such a kernel promises."""

from dataclasses import replace

import numpy as np
import pytest

from fa_harness.build.library import Library
from fa_harness.case.case import Case
from fa_harness.case.inputs import make_inputs
from fa_harness.case.suites import suite
from fa_harness.engine import ggml
from fa_harness.engine.compute import run_case
from fa_harness.engine.ggml import Ggml
from fa_harness.engine.layout import CaseTensors, rows_of
from fa_harness.engine.runner import Runner
from fa_harness.engine.session import offered_modes
from fa_harness.kernel import (
    CHUNK,
    CHUNKED_ROWS,
    DOT_ROWS,
    GROUPED,
    GROUPED_BF16,
    GROUPED_Q8,
    SEES_HIDDEN,
    SEES_SOME,
    SEES_VISIBLE,
    arithmetic,
    chain_is_exact,
    keeps_bits,
    path,
)

FEATURES = ("AVX2", GROUPED)
DECODE = Case(hsk=64, hsv=64, n_head_kv=2, n_group=4, n_kv=1300, n_batch=1, threads=1)
FEW = DECODE.with_(n_batch=20, n_kv=150)
MANY = DECODE.with_(n_batch=40, n_kv=150)


@pytest.fixture(scope="module")
def grouping(fast: Library) -> Ggml:
    return ggml.load(fast.module_path)


def test_a_library_that_groups_heads_is_known_by_its_function(
    grouping: Ggml, library: Ggml
) -> None:
    assert GROUPED in grouping.features()
    assert GROUPED not in library.features()


def test_tiles_of_a_library_multiply_in_8_bits_where_the_cpu_can(
    grouping: Ggml, library: Ggml
) -> None:
    features = grouping.features()
    assert (GROUPED_Q8 in features) == ("AVX512_VNNI" in features)
    assert (GROUPED_BF16 in features) == ("AVX512_BF16" in features)
    assert not {GROUPED_Q8, GROUPED_BF16} & {*library.features()}


@pytest.mark.parametrize(
    ("case", "q_type"),
    [
        (DECODE.with_(type_K="q8_0", type_V="f16"), "f32"),
        (FEW.with_(type_K="q8_0", type_V="f16"), "q8"),
        (MANY.with_(type_K="q4_0", type_V="f16"), "q8"),
        (MANY.with_(type_K="q5_0", type_V="q8_0"), "f32"),
        (DECODE.with_(type_K="bf16", type_V="f16"), "f32"),
        (FEW.with_(type_K="bf16", type_V="f16"), "bf16"),
        (MANY.with_(type_K="f16", type_V="bf16"), "f32"),
    ],
)
def test_tiles_round_q_for_the_types_that_are_multiplied_as_they_are(
    case: Case, q_type: str
) -> None:
    features = (*FEATURES, GROUPED_Q8, GROUPED_BF16)
    assert arithmetic(case, path(case, features=features), features).q_type == q_type
    assert arithmetic(case, path(case, features=FEATURES), FEATURES).q_type == "f32"


@pytest.mark.parametrize("type_k", ["q8_0", "bf16"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_in_a_row_of_q_shows_in_that_row_alone(
    grouping: Ggml, value: float, type_k: str
) -> None:
    case = FEW.with_(type_K=type_k, type_V="f16")
    inputs = make_inputs(case)
    q = inputs.q.copy()
    q[0, 5, 7, 3] = value
    output = (
        run_case(grouping, case, replace(inputs, q=q), ("standard",)).results["standard"].output
    )
    wrong = ~np.isfinite(output).all(axis=-1)
    assert np.argwhere(wrong).tolist() == [[0, 5, 7]]


def test_rows_of_q_near_0_have_the_mean_of_v(grouping: Ggml) -> None:
    case = FEW.with_(type_K="q8_0", type_V="f32", mask=False, mask_kind="none")
    inputs = make_inputs(case)
    mean = np.repeat(inputs.v.astype(np.float64).mean(axis=2), case.n_group, axis=1)
    for size in (1e-45, 1e-38, 1e-30):
        tiny = replace(inputs, q=np.full_like(inputs.q, size))
        output = run_case(grouping, case, tiny, ("standard",)).results["standard"].output
        np.testing.assert_allclose(
            output, np.broadcast_to(mean[:, :, None], output.shape), atol=1e-6
        )


@pytest.mark.parametrize(
    ("case", "name"),
    [
        (DECODE, "chunked"),
        (DECODE.with_(n_batch=CHUNKED_ROWS // 4), "chunked"),
        (DECODE.with_(n_batch=CHUNKED_ROWS // 4 + 1), "grouped"),
        (DECODE.with_(n_batch=CHUNKED_ROWS, n_group=1), "chunked"),
    ],
)
def test_the_rows_of_a_kv_head_alone_choose_the_path(case: Case, name: str) -> None:
    for changes in ({}, {"type_K": "q8_0"}, {"n_kv": 17}, {"threads": 7}):
        assert path(case.with_(**changes), features=FEATURES) == name


@pytest.mark.parametrize(
    ("case", "bounds", "is_exact"),
    [
        (DECODE, (CHUNK, 2 * CHUNK), True),
        (DECODE, (CHUNK, 2 * CHUNK - 64), False),
        (FEW, (64,), False),
        (MANY, (64, 128), True),
        (MANY, (63,), False),
    ],
)
def test_a_chain_is_exact_where_each_call_begins_with_a_chunk_or_a_tile(
    case: Case, bounds: tuple[int, ...], is_exact: bool
) -> None:
    cut = case.with_(segments=len(bounds) + 1, boundaries=bounds)
    assert chain_is_exact(cut, FEATURES) == is_exact


def test_few_rows_are_summed_in_another_order_than_more() -> None:
    one, more = DECODE.with_(n_group=1), DECODE.with_(n_group=1, n_batch=DOT_ROWS)
    assert keeps_bits(one, more.with_(n_batch=DOT_ROWS - 1), "rows", FEATURES)
    assert not keeps_bits(one, more, "rows", FEATURES)
    assert keeps_bits(one, one.with_(threads=9), "threads", FEATURES)


@pytest.mark.parametrize(
    ("case", "loose_from"),
    [
        (DECODE, SEES_VISIBLE),
        (DECODE.with_(mask_heads=2), SEES_SOME),
        (DECODE.with_(n_batch=2, n_group=2), SEES_SOME),
        (FEW, SEES_HIDDEN),
        (MANY, SEES_HIDDEN),
    ],
)
def test_what_a_masked_key_may_do_depends_on_the_rows_beside(case: Case, loose_from: float) -> None:
    how = arithmetic(case, path(case, features=FEATURES), FEATURES)
    assert (how.loose_from, how.q_type, how.f16_numerators) == (loose_from, "f32", False)


def test_every_case_of_smoke_passes_with_bounds_of_f32(fast: Library) -> None:
    with Runner(fast.module_path) as runner:
        modes = offered_modes(runner, fast)
        assert modes == ("standard",)
        verdicts = list(runner.run(suite("smoke"), modes=modes))
    assert {verdict.status for verdict in verdicts} == {"pass"}
    assert {verdict.path for verdict in verdicts} == {"chunked", "grouped"}


def test_with_short_vectors_a_unit_of_values_has_several_panels(narrow_fast: Library) -> None:
    # V of F32 is read as it is, and a masked key is read where there are zeros
    cases = [
        case
        for case in suite("paths")
        if case.type_V == "f32" and case.mask_kind in ("leading", "masked_segment")
    ]
    with Runner(narrow_fast.module_path) as runner:
        assert "AVX" not in runner.features
        verdicts = list(runner.run([*suite("smoke"), *cases], modes=("standard",)))
    assert {verdict.status for verdict in verdicts} == {"pass"}


def test_with_a_state_every_case_of_smoke_passes_in_every_mode(fast_with_state: Library) -> None:
    with Runner(fast_with_state.module_path) as runner:
        assert offered_modes(runner, fast_with_state) is None  # all
        verdicts = list(runner.run(suite("smoke")))
    assert {verdict.status for verdict in verdicts} == {"pass"}
    assert {verdict.path for verdict in verdicts} == {"chunked", "grouped"}


@pytest.mark.parametrize(
    ("case", "bounds"),
    [(DECODE, (CHUNK, 2 * CHUNK)), (FEW.with_(n_kv=1300), (CHUNK,)), (MANY, (64, 128))],
    ids=["decode", "few", "many"],
)
def test_a_chain_of_whole_chunks_gives_the_bits_of_one_call_whatever_the_threads(
    fast_with_state: Library, case: Case, bounds: tuple[int, ...]
) -> None:
    library = ggml.load(fast_with_state.module_path)
    cut = case.with_(segments=len(bounds) + 1, boundaries=bounds)
    inputs = make_inputs(cut)
    found = set()
    for threads in (1, 2, 3, 8, 16):
        results = run_case(
            library, cut.with_(threads=threads), inputs, ("standard", "full_state", "segmented")
        ).results
        found.add(results["standard"].output.tobytes())
        found.add(results["full_state"].first.output.tobytes())
        found.add(results["segmented"].calls[-1].output.tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("case", [DECODE, FEW, MANY], ids=["decode", "few", "many"])
@pytest.mark.parametrize("types", [("f16", "f16"), ("q8_0", "q4_0"), ("bf16", "f32")])
def test_any_number_of_threads_gives_the_same_bits(
    grouping: Ggml, case: Case, types: tuple[str, str]
) -> None:
    typed = case.with_(type_K=types[0], type_V=types[1])
    inputs = make_inputs(typed)
    found = {
        run_case(grouping, typed.with_(threads=threads), inputs, ("standard",))
        .results["standard"]
        .output.tobytes()
        for threads in (1, 2, 3, 8, 16)
    }
    assert len(found) == 1


@pytest.mark.parametrize("case", [DECODE, FEW, MANY], ids=["decode", "few", "many"])
@pytest.mark.parametrize("types", [("f16", "f16"), ("q8_0", "q4_0"), ("bf16", "f32")])
def test_with_no_state_given_the_bits_are_those_of_the_series_alone(
    grouping: Ggml, fast_with_state: Library, case: Case, types: tuple[str, str]
) -> None:
    typed = case.with_(type_K=types[0], type_V=types[1])
    inputs = make_inputs(typed)
    outputs = [
        run_case(library, typed, inputs, ("standard",)).results["standard"].output.tobytes()
        for library in (grouping, ggml.load(fast_with_state.module_path))
    ]
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("case", [DECODE, FEW, MANY], ids=["decode", "few", "many"])
@pytest.mark.parametrize("types", [("f16", "f16"), ("q8_0", "q4_0"), ("q5_1", "iq4_nl")])
def test_the_reference_keeps_upstreams_bits(
    grouping: Ggml, pristine: Library, case: Case, types: tuple[str, str]
) -> None:
    upstream = ggml.load(pristine.module_path)
    typed = case.with_(type_K=types[0], type_V=types[1])
    outputs = [_reference(each, typed) for each in (grouping, upstream)]
    assert outputs[0] == outputs[1]


def _reference(library: Ggml, case: Case) -> bytes:
    """Return the bits of one call that upstream's reference computes."""
    with library.context() as ctx, library.backend(case.threads, reference=True) as backend:
        tensors = CaseTensors(ctx, case, make_inputs(case))
        call = tensors.call(tensors.cache(), (0, case.n_kv), sinks=True)
        graph = ctx.graph([call])
        tensors.allocate(backend)
        backend.compute(graph)
        return rows_of(call).tobytes()
