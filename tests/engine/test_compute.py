import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fa_harness.build.library import Library
from fa_harness.case.case import Case
from fa_harness.case.inputs import make_inputs
from fa_harness.case.modes import Left, Run, modes_of, order_of_parts
from fa_harness.case.suites import suite
from fa_harness.engine import compute
from fa_harness.engine import layout as tensors
from fa_harness.engine.compute import lacking, run_case
from fa_harness.engine.ggml import Backend, Ggml, Graph, load
from fa_harness.engine.layout import CaseTensors
from fa_harness.engine.worker import Worker
from fa_harness.judge.verdict import Verdict, judge
from fa_harness.kernel import chain_paths, path

F16 = Case(
    hsk=64, hsv=64, n_head_kv=2, n_group=2, ne3=2, n_kv=40, n_batch=3, segments=3, regime="normal"
)
TYPED = F16.with_(type_K="f32", type_V="f32", segment_types=("q4_0", "f16", "f32/f16"))
DECODE = Case(hsk=64, hsv=64, n_head_kv=2, n_group=4, n_kv=640, n_batch=1, regime="normal")
PREFILL = DECODE.with_(n_batch=66, n_kv=130)


def run(library: Ggml, case: Case) -> Run:
    return run_case(library, case, make_inputs(case))


def chain(run: Run) -> tuple[Left, ...]:
    return run.results["segmented"].calls


def judged(library: Ggml, case: Case, modes: tuple[str, ...] | None = None) -> Verdict:
    inputs = make_inputs(case)
    return judge(case, inputs, run_case(library, case, inputs, modes), features=library.features())


# the library: what the patches promise


@pytest.mark.parametrize("name", ["smoke", pytest.param("default", marks=pytest.mark.full)])
@pytest.mark.parametrize("series", ["patched", "partial"])
def test_without_a_state_the_patched_library_is_pristine_bit_for_bit_in_the_same_work_memory(
    name: str, series: str, request: pytest.FixtureRequest, pristine: Library
) -> None:
    cases, patched = suite(name), request.getfixturevalue(series)
    assert {path(case) for case in cases} == {"vec", "tiled", "split-kv"}
    with Worker(pristine.module_path) as upstream, Worker(patched.module_path) as ours:
        for case in cases:
            for worker in (upstream, ours):
                worker.submit(case, ("standard",), 60)
            theirs, mine = upstream.result(), ours.result()
            assert isinstance(theirs, Run), theirs
            assert isinstance(mine, Run), mine
            assert (
                mine.results["standard"].output.tobytes()
                == theirs.results["standard"].output.tobytes()
            ), case
            assert mine.work_size["standard"] == theirs.work_size["standard"], case


@pytest.mark.parametrize(
    "types", [("f16", "f16"), ("q8_0", "f16"), ("f32", "f32"), ("q4_0", "q5_1")], ids="-".join
)
@given(data=st.data())
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_chain_is_the_full_call_bit_for_bit_for_every_split(
    library: Ggml, types: tuple[str, str], data: st.DataObject
) -> None:
    inner = data.draw(st.lists(st.integers(0, F16.n_kv), min_size=1, max_size=5).map(sorted))
    regime = data.draw(st.sampled_from(["normal", "spiky", "rising", "falling", "huge"]))
    kind = data.draw(st.sampled_from(["random", "leading", "causal", "masked_segment"]))
    case = F16.with_(
        segments=len(inner) + 1, boundaries=tuple(inner), regime=regime, mask_kind=kind,
        type_K=types[0], type_V=types[1],
    )  # fmt: skip
    done = run(library, case)
    last, one_graph = chain(done)[-1], done.results["segmented"].one_graph
    assert last.output.tobytes() == done.results["standard"].output.tobytes()
    assert last.output.tobytes() == done.results["full_state"].first.output.tobytes()
    assert last.state.tobytes() == done.results["full_state"].first.state.tobytes()
    assert one_graph[0][-1].tobytes() == last.output.tobytes()
    assert one_graph[1].tobytes() == last.state.tobytes()


def test_an_empty_segment_leaves_the_state_and_the_result_as_they_were(library: Ggml) -> None:
    case = F16.with_(segments=5, boundaries=(0, 17, 17, 40))
    empty_first, first, empty, whole, empty_last = chain(run(library, case))
    assert np.isneginf(empty_first.state[..., 0]).all()
    assert not empty_first.output.any()
    assert empty.state.tobytes() == first.state.tobytes()
    assert empty.output.tobytes() == first.output.tobytes()
    assert empty_last.state.tobytes() == whole.state.tobytes()
    assert empty_last.output.tobytes() == whole.output.tobytes()


def test_rows_without_keys_stay_fresh_and_give_0(library: Ggml) -> None:
    case = F16.with_(mask_kind="leading", n_batch=9)
    for step in chain(run(library, case)):
        assert np.isneginf(step.state[:, :, :3, 0]).all()
        assert not step.output[:, :, :3].any()
    last = chain(run(library, case))[-1]
    assert np.isfinite(last.state[:, :, 3:]).all()
    assert last.output[:, :, 3:].any(axis=-1).all()


def test_a_prefix_of_a_chain_is_the_call_over_the_prefix(library: Ggml) -> None:
    case = F16.with_(mask=False, mask_kind="none", segments=2, boundaries=(25,))
    inputs = make_inputs(case)
    prefix = dataclasses.replace(
        inputs,
        k=inputs.k[:, :, :25], k_raw=inputs.k_raw[:, :, :25],
        v=inputs.v[:, :, :25], v_raw=inputs.v_raw[:, :, :25],
    )  # fmt: skip
    short = case.with_(n_kv=25, segments=1, boundaries=None)
    first = chain(run_case(library, case, inputs))[0]
    assert (
        first.output.tobytes()
        == run_case(library, short, prefix).results["standard"].output.tobytes()
    )


@pytest.mark.parametrize(
    "case", [DECODE.with_(n_kv=250), F16.with_(n_batch=7), PREFILL], ids=["decode", "rows", "tiled"]
)
@pytest.mark.parametrize("type_", ["f16", "f32"])
def test_results_do_not_depend_on_the_number_of_threads(
    library: Ggml, case: Case, type_: str
) -> None:
    case = case.with_(type_K=type_, type_V=type_, segments=3)
    runs = [run(library, case.with_(threads=n)) for n in (1, 2, 3, 5)]
    assert len({done.results["standard"].output.tobytes() for done in runs}) == 1
    assert len({chain(done)[-1].output.tobytes() for done in runs}) == 1
    assert len({chain(done)[-1].state.tobytes() for done in runs}) == 1


# the layout of the inputs


@pytest.mark.parametrize("types", [("f16", "f16"), ("q8_0", "q4_0"), ("f32", "bf16")], ids="-".join)
@pytest.mark.parametrize(
    "permute", [p for p in itertools.permutations(range(4)) if p[0] == 0], ids=str
)
@pytest.mark.parametrize("kv_view", [False, True], ids=["whole", "view"])
def test_results_do_not_depend_on_where_the_inputs_lie_in_memory(
    library: Ggml, permute: tuple[int, int, int, int], kv_view: bool, types: tuple[str, str]
) -> None:
    case = F16.with_(type_K=types[0], type_V=types[1])
    plain = run(library, case.with_(kv_view=False))
    moved = run(library, case.with_(kv_view=kv_view, permute=permute))
    assert moved.results["standard"].output.tobytes() == plain.results["standard"].output.tobytes()
    assert chain(moved)[-1].state.tobytes() == chain(plain)[-1].state.tobytes()
    assert moved.inputs_written == ()


def test_unused_rows_of_a_mask_change_nothing(
    library: Ggml, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(library, F16)
    monkeypatch.setattr(Ggml, "mask_pad", 64)  # as upstreams of 2025 want it
    padded = run(library, F16)
    assert padded.results["standard"].output.tobytes() == plain.results["standard"].output.tobytes()
    assert chain(padded)[-1].state.tobytes() == chain(plain)[-1].state.tobytes()


def test_v_may_be_a_view_of_k(library: Ggml) -> None:
    case = F16.with_(hsk=96, hsv=64, v_is_view_of_k=True)
    viewed = run(library, case)
    inputs = make_inputs(case)
    own = run_case(library, case.with_(v_is_view_of_k=False), inputs)
    assert viewed.results["standard"].output.tobytes() == own.results["standard"].output.tobytes()
    assert chain(viewed)[-1].state.tobytes() == chain(own)[-1].state.tobytes()


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (DECODE, "split-kv"),
        (DECODE.with_(n_kv=511), "vec"),
        (DECODE.with_(n_kv=512), "split-kv"),
        (DECODE.with_(type_V="f32"), "vec"),
        (DECODE.with_(n_group=4, ne3=2), "vec"),
        (DECODE.with_(type_K="q8_0", type_V="q8_0"), "vec"),
        (PREFILL, "tiled"),
        (PREFILL.with_(n_batch=63), "vec"),
        (PREFILL.with_(n_batch=64), "tiled"),
        (PREFILL.with_(type_K="bf16", type_V="bf16"), "vec"),
    ],
)
def test_the_path_is_upstream_s(
    library: Ggml, case: Case, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert path(case) == expected
    monkeypatch.setattr(
        compute, "chain_paths", lambda case, **_: ("vec",)
    )  # so there is a reference
    done = run(library, case.with_(threads=2))
    assert (done.results["standard"].reference is None) == (expected == "vec")
    if done.results["standard"].reference is not None:
        assert (
            done.results["standard"].reference.tobytes()
            != done.results["standard"].output.tobytes()
        )


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (DECODE.with_(n_kv=1100, segments=2), ("split-kv", "split-kv")),
        (DECODE.with_(n_kv=1100, segments=3), ("vec", "vec", "vec")),
        (
            DECODE.with_(n_kv=1100, segments=3, boundaries=(512, 512)),
            ("split-kv", "vec", "split-kv"),
        ),
        (PREFILL.with_(segments=2), ("tiled", "tiled")),
        (F16.with_(segments=2), ("vec", "vec")),
    ],
)
def test_each_call_of_a_chain_takes_the_path_of_its_own_keys(
    case: Case, expected: tuple[str, ...]
) -> None:
    assert chain_paths(case) == expected


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("type_", ["f16", "f32"])
@pytest.mark.parametrize("case", [DECODE, PREFILL, F16], ids=path)
def test_a_call_with_a_fresh_state_gives_the_bits_of_a_call_without(
    library: Ggml, case: Case, type_: str, sinks: bool, threads: int
) -> None:
    done = run(library, case.with_(type_K=type_, type_V=type_, sinks=sinks, threads=threads))
    assert (
        done.results["full_state"].first.output.tobytes()
        == done.results["standard"].output.tobytes()
    )


@pytest.mark.parametrize("mask_kind", ["causal", "leading", "masked_segment"])
@pytest.mark.parametrize("boundaries", [(64,), (64, 128), (0, 64, 64), (128, 192, 200)])
def test_a_tiled_chain_cut_at_tiles_gives_the_bits_of_one_call(
    library: Ggml, boundaries: tuple[int, ...], mask_kind: str
) -> None:
    case = PREFILL.with_(
        n_kv=200, boundaries=boundaries, segments=len(boundaries) + 1, mask_kind=mask_kind
    )
    done = run(library, case.with_(mask=True, sinks=True, threads=2))
    assert chain(done)[-1].output.tobytes() == done.results["full_state"].first.output.tobytes()
    assert chain(done)[-1].state.tobytes() == done.results["full_state"].first.state.tobytes()


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (F16, ("standard", "full_state", "segmented", "merged", "resumed")),
        (F16.with_(segments=1), ("standard", "full_state", "segmented", "preset")),
        (TYPED, ("standard", "full_state", "segmented", "merged", "resumed", "mixed")),
        (F16.with_(n_batch=40, mask_kind="causal", hot_window=8), ("standard", "fifo")),
    ],
    ids=["segments", "one segment", "typed", "rolling"],
)
def test_a_case_has_modes_of_its_own(case: Case, expected: tuple[str, ...]) -> None:
    assert modes_of(case) == expected


def test_the_first_patch_alone_cannot_merge_and_orders_no_calls(bug: Library) -> None:
    assert lacking(load(bug.module_path)) == {
        "merged": "ggml_flash_attn_ext_merge_states",
        "reduced": "ggml_flash_attn_ext_reduce",
        "scheduled": "ggml_flash_attn_ext_get_state",
    }


@pytest.mark.parametrize("case", [F16, DECODE.with_(n_kv=1100), PREFILL, TYPED], ids=str)
def test_a_chain_goes_on_from_a_file_in_another_context_bit_for_bit(
    library: Ggml, case: Case
) -> None:
    done = run(library, case.with_(segments=3, threads=2, sinks=True))
    uncut = done.results["mixed"].first if case.segment_types else done.results["segmented"]
    assert uncut is not None
    for resumed, step in zip(done.results["resumed"], uncut.calls, strict=True):
        assert resumed.output.tobytes() == step.output.tobytes()
        assert resumed.state.tobytes() == step.state.tobytes()


def test_each_call_of_a_resumed_chain_has_a_backend_that_is_freed_before_the_next(
    library: Ggml, monkeypatch: pytest.MonkeyPatch
) -> None:
    live: list[int] = []
    enter, leave = Backend.__enter__, Backend.__exit__
    n_live = 0

    def entered(self: Backend) -> Backend:
        nonlocal n_live
        n_live += 1
        return enter(self)

    def left(self: Backend, *exception: object) -> None:
        nonlocal n_live
        live.append(n_live)
        n_live -= 1
        leave(self, *exception)

    monkeypatch.setattr(Backend, "__enter__", entered)
    monkeypatch.setattr(Backend, "__exit__", left)
    run_case(library, F16, make_inputs(F16), ("resumed",))
    assert live == [2] * F16.segments + [1]  # the outermost serves the other modes


def test_segments_of_their_own_types_give_what_the_op_gives_over_each_type(library: Ggml) -> None:
    done = run(library, TYPED.with_(mask=False, mask_kind="none"))
    for i, part in enumerate(done.results["merged"].parts):
        alone = TYPED.with_(mask=False, mask_kind="none").of_segment(i)
        inputs = make_inputs(alone)
        start, stop = TYPED.segment_bounds()[i : i + 2]
        rows = np.s_[:, :, start:stop]
        cut = dataclasses.replace(
            inputs, k=inputs.k[rows], k_raw=inputs.k_raw[rows], v=inputs.v[rows],
            v_raw=inputs.v_raw[rows],
        )  # fmt: skip
        short = alone.with_(n_kv=stop - start, segments=1)
        assert (
            part.output.tobytes()
            == run_case(library, short, cut, ()).results["standard"].output.tobytes()
        )


def test_parts_are_computed_in_an_order_drawn_from_the_seed() -> None:
    cases = [F16.with_(segments=8, seed=seed) for seed in range(4)]
    orders = [order_of_parts(case) for case in cases]
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert len({*orders, tuple(range(8))}) == 5
    assert orders == [order_of_parts(case) for case in cases]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_a_reduction_takes_each_part_once(library: Ggml, n: int) -> None:
    """Parts that see a key each, of score 0 and a V of its own: the numerators are the sum of V."""
    case = F16.with_(n_kv=n, segments=n, mask=False, mask_kind="none", type_K="f32", type_V="f32")
    inputs = make_inputs(case)
    v = np.zeros_like(inputs.v)
    v += (2.0 ** np.arange(n, dtype=np.float32))[:, None]
    inputs = dataclasses.replace(inputs, q=np.zeros_like(inputs.q), v=v, v_raw=v.view(np.uint8))
    merged = run_case(library, case, inputs, ("merged",)).results["merged"]
    assert merged is not None
    for step in (merged.in_turn, merged.swapped, merged.pairwise, merged.shuffled):
        assert (step.state[..., 0] == 0).all()
        assert (step.state[..., 1] == n).all()
        assert (step.state[..., 2:] == 2**n - 1).all()


def test_modes_that_are_not_asked_for_are_not_computed(library: Ggml) -> None:
    told: list[str] = []
    inputs = make_inputs(F16)
    done = run_case(library, F16, inputs, ("full_state",), on_mode=told.append)
    assert told == ["standard", "full_state"]
    assert list(done.seconds) == told
    assert done.modes == tuple(told)
    assert done.modes == ("standard", "full_state")


def test_the_work_size_is_that_of_one_call(library: Ggml) -> None:
    for case in (F16, DECODE, PREFILL):
        sizes = run(library, case.with_(threads=2)).work_size
        assert sizes["standard"] == sizes["full_state"] > 0


# what the tensors hold

CHAIN = Case(
    hsk=64,
    hsv=64,
    n_head_kv=2,
    n_group=2,
    ne3=1,
    n_kv=90,
    n_batch=4,
    segments=3,
    regime="rising",
    sinks=True,
)


def test_what_lies_outside_the_view_of_a_cache_is_not_read(
    library: Ggml, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run(library, CHAIN)
    monkeypatch.setattr(tensors, "_UNUSED", 0x3C)
    after = run(library, CHAIN)
    assert before.results["standard"].output.tobytes() == after.results["standard"].output.tobytes()
    assert chain(before)[-1].state.tobytes() == chain(after)[-1].state.tobytes()


def test_s_and_vkq_of_a_fresh_row_are_nan_so_that_nobody_relies_on_them(
    library: Ggml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fa_harness.engine.ggml.Backend.compute", lambda self, graph: None)
    done = run(library, CHAIN)
    for step in chain(done):
        assert np.isneginf(step.state[..., 0]).all()
        assert np.isnan(step.state[..., 1:]).all()


@pytest.mark.parametrize("kv_view", [False, True], ids=["whole", "view"])
@pytest.mark.parametrize(
    "permute", [p for p in itertools.permutations(range(4)) if p[0] == 0], ids=str
)
def test_each_dimension_lies_in_memory_where_permute_says(
    library: Ggml, permute: tuple[int, int, int, int], kv_view: bool
) -> None:
    case = F16.with_(permute=permute, kv_view=kv_view)
    with library.context() as ctx:
        made = CaseTensors(ctx, case, make_inputs(case))
        q, (k, v) = made._q, made.cache()
        assert q.ne == (64, 3, 4, 2)
        assert k.ne == v.ne == (64, 40, 2, 2)
        for tensor in (q, k, v):
            by_stride = sorted(range(4), key=tensor.nb.__getitem__)
            assert [permute[dim] for dim in by_stride] == [0, 1, 2, 3]


def test_an_input_that_a_call_with_a_state_wrote_is_told_though_it_is_written_anew(
    library: Ggml, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[CaseTensors] = []
    allocate, compute = CaseTensors.allocate, Backend.compute

    def noted(self: CaseTensors, backend: Backend) -> None:
        held.append(self)
        allocate(self, backend)

    def writing(self: Backend, graph: Graph) -> None:
        compute(self, graph)
        if len(held) == 2:  # of mode full_state
            held[1]._q.fill(0)

    monkeypatch.setattr(CaseTensors, "allocate", noted)
    monkeypatch.setattr(Backend, "compute", writing)
    case = F16.with_(segments=1, n_kv=20)
    done = run_case(library, case, make_inputs(case), ("full_state",))
    assert len(held) == 2
    assert [text for text in done.inputs_written if " in q " in text]
