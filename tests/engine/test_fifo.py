"""Mode `fifo`: where each token lies, and what the steps give; also with faults, to be red."""

import dataclasses
import io
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fa_harness.arrays import F32
from fa_harness.case import rolling
from fa_harness.case.case import Case
from fa_harness.case.inputs import Inputs, make_inputs
from fa_harness.case.modes import Rolled
from fa_harness.case.quants import decode, encode
from fa_harness.engine import fifo
from fa_harness.engine.compute import run_case
from fa_harness.engine.fifo import roll
from fa_harness.engine.ggml import Ggml, Tensor
from fa_harness.errors import UsageError
from fa_harness.judge import oracle, rolling_oracle
from fa_harness.judge.verdict import Verdict, judge
from fa_harness.report.console import Table
from runs import changed

Method = Callable[..., Any]

CASE = Case(
    hsk=64, hsv=64, n_head_kv=2, n_group=2, ne3=2, n_kv=30, n_batch=30, mask_kind="causal",
    regime="normal",
    hot_window=8, group=3, cold_type="q8_0",
)  # fmt: skip

WINDOWS = [  # hot_window, group, kv
    (8, 3, 30),
    (8, 4, 32),
    (8, 8, 33),
    (8, 1, 20),
    (7, 5, 23),
    (2, 1, 9),
    (5, 5, 11),
]


def window(hot_window: int, group: int, kv: int) -> Case:
    return CASE.with_(hot_window=hot_window, group=group, n_kv=kv, n_batch=kv)


def rolled(library: Ggml, case: Case, inputs: Inputs | None = None) -> Rolled:
    with library.backend(case.threads) as backend:
        return roll(library, case, inputs or make_inputs(case), backend)


def judged(library: Ggml, case: Case, inputs: Inputs | None = None) -> Verdict:
    inputs = inputs or make_inputs(case)
    run = run_case(library, case, inputs, ("standard", "fifo"))
    return judge(case, inputs, run, features=library.features())


# where the tokens lie


@pytest.mark.parametrize(("hot_window", "group"), [(8, 3), (8, 8), (8, 1), (1, 1), (5, 4), (50, 7)])
def test_the_rule_is_that_of_two_queues(hot_window: int, group: int) -> None:
    case = window(hot_window, group, 40)
    hot: deque[int] = deque()
    cold: list[int] = []
    for token, n_cold in enumerate(rolling.n_cold(case)):
        hot.append(token)
        if len(hot) > hot_window:
            cold.extend(hot.popleft() for _ in range(group))
        assert len(cold) == n_cold
        assert len(hot) == token + 1 - n_cold


@pytest.mark.parametrize("shape", [*WINDOWS, (1, 1, 5), (12, 5, 10), (10, 10, 10)])
def test_each_token_is_held_exactly_once_at_every_step(
    library: Ggml, shape: tuple[int, int, int]
) -> None:
    case = window(*shape)
    run = rolled(library, case)
    assert run.can_be_told_apart
    assert rolling.misplaced(case, run.held) is None
    for step, (held, n_cold) in enumerate(zip(run.held, rolling.n_cold(case), strict=True)):
        assert held.cold.tolist() == list(range(n_cold))
        assert sorted(held.hot[held.hot != rolling.HIDDEN]) == list(range(n_cold, step + 1))


def test_the_cold_store_holds_the_hot_values_quantised(library: Ggml) -> None:
    case = CASE.with_(type_K="bf16", type_V="f16", cold_type="q4_0")
    inputs = make_inputs(case)
    tokens = rolling.Tokens(case, inputs)
    mask = np.zeros((2, 1, 1), np.float16)
    k, v = inputs.k_raw[:, :, :1], inputs.v_raw[:, :, :1]
    k_cold, v_cold = encode(decode(k, "bf16"), "q4_0"), encode(decode(v, "f16"), "q4_0")
    assert tokens.identify("cold", 0, k_cold, v_cold, mask) == [0]
    assert tokens.identify("cold", 0, k, v, mask) == [rolling.OF_NO_TOKEN]
    assert rolling.misplaced(case, rolled(library, case, inputs).held) is None


def test_a_token_in_the_wrong_store_is_named() -> None:
    case = window(2, 1, 3)
    early = rolling.Held(cold=np.array([0]), hot=np.array([-1, -1]), cache_bytes=0)
    assert rolling.misplaced(case.with_(n_kv=1, n_batch=1), (early,)) == (
        "rolling cache at step 0: token 0 is in cold slot 0; it belongs to the hot tokens"
    )


def test_a_slot_shown_before_its_token_comes_is_named() -> None:
    case = window(2, 1, 3).with_(n_kv=1, n_batch=1)
    early = rolling.Held(cold=np.array([], int), hot=np.array([0, 1]), cache_bytes=0)
    assert rolling.misplaced(case, (early,)) == (
        "rolling cache at step 0: token 1 is in hot slot 1 before its time"
    )


def test_bytes_that_the_types_do_not_explain_are_named(
    library: Ggml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fifo._Store, "bytes_of_slot", 100)
    assert rolling.misplaced(CASE, rolled(library, CASE).held) == (
        "rolling cache at step 0: its tokens take 100 bytes; by their types it is 1024"
    )


# what the steps give


@pytest.mark.parametrize("types", [("f16", "q8_0"), ("f16", "f16"), ("f32", "q4_0")], ids="-".join)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"sinks": True, "logit_softcap": 10.0, "max_bias": 8.0, "mask_heads": 4},
        {"n_group": 3, "ne3": 1, "hsk": 192, "hsv": 128},
        {"permute": (0, 2, 1, 3), "kv_view": False, "regime": "offset"},
    ],
    ids=str,
)
def test_a_rolling_cache_passes(
    library: Ggml, types: tuple[str, str], fields: dict[str, Any]
) -> None:
    hot_type, cold_type = types
    case = CASE.with_(type_K=hot_type, type_V=hot_type, cold_type=cold_type).with_(**fields)
    verdict = judged(library, case)
    assert (verdict.status, verdict.reason) == ("pass", "")
    assert {name for name in verdict.comparisons if name.startswith("fifo")} == {
        "fifo_again",
        "fifo_vs_oracle",
        "fifo_state_vs_oracle",
        "fifo_result_vs_state",
    }


def test_results_do_not_depend_on_the_number_of_threads(library: Ggml) -> None:
    case = window(4, 2, 8)
    runs = [rolled(library, case.with_(threads=n)) for n in (1, 2, 3)]
    assert len({run.output.tobytes() for run in runs}) == 1
    assert len({run.state.tobytes() for run in runs}) == 1


def test_a_window_that_nothing_leaves_gives_the_results_of_the_whole_cache(library: Ggml) -> None:
    case = CASE.with_(hot_window=CASE.n_kv)
    run = run_case(library, case, make_inputs(case), ("standard", "fifo"))
    assert run.results["fifo"].first.output.tobytes() == run.results["standard"].output.tobytes()


def test_an_f16_cache_behind_an_f16_window_gives_the_whole_cache_but_for_the_order_of_keys(
    library: Ggml,
) -> None:
    case = CASE.with_(hot_window=1, group=1, cold_type="f16")  # in this ring there is one order
    run = run_case(library, case, make_inputs(case), ("standard", "fifo"))
    assert run.results["fifo"].first.output.tobytes() == run.results["standard"].output.tobytes()


def test_the_expected_results_are_attention_on_the_values_held() -> None:
    case = CASE.with_(sinks=True, max_bias=8.0, cold_type="q4_0")
    inputs = make_inputs(case)
    assert inputs.mask is not None
    nowhere = np.zeros((case.ne3, case.n_head, case.n_batch), bool)
    expected = rolling_oracle.expect(case, inputs, nowhere, ())
    out = oracle.finalise(expected.exact)
    k_cold, v_cold = (decode(encode(x, "q4_0"), "q4_0") for x in (inputs.k, inputs.v))
    for step, n_cold in enumerate(rolling.n_cold(case)):
        held = dataclasses.replace(
            inputs,
            q=inputs.q[:, :, step : step + 1],
            k=np.concatenate([k_cold[:, :, :n_cold], inputs.k[:, :, n_cold:]], axis=2),
            v=np.concatenate([v_cold[:, :, :n_cold], inputs.v[:, :, n_cold:]], axis=2),
            mask=inputs.mask[:, :, step : step + 1],
        )
        one = oracle.attend(case.with_(hot_window=0, n_batch=1), held, 0, step + 1)
        assert inputs.sinks is not None
        exact = oracle.finalise(oracle.add_sinks(one, inputs.sinks))
        np.testing.assert_allclose(out[:, :, step : step + 1], exact, rtol=1e-12, atol=1e-13)


def between_the_calls(change: Callable[[F32], F32]) -> Method:
    """Return a `Tensor.read` that changes the state once it has been read."""
    original = Tensor.read

    def read(self: Tensor) -> F32:
        numbers = original(self)
        if self.ne[0] == 2 + CASE.hsv:
            self.write(change(numbers))
        return numbers

    return read


def _numerators_in_f16(state: F32) -> F32:
    rounded: F32 = state.copy()
    rounded[..., 2:] = rounded[..., 2:].astype(np.float16)
    return rounded


def _numerators_reset(state: F32) -> F32:
    reset: F32 = state.copy()
    reset[..., 2:] = 0
    return reset


def _state_lost(state: F32) -> F32:
    lost: F32 = state.copy()
    lost[..., 0] = -np.inf
    return lost


@pytest.mark.parametrize("change", [_numerators_in_f16, _numerators_reset, _state_lost])
def test_a_state_that_is_not_carried_from_call_to_call_fails(
    library: Ggml, monkeypatch: pytest.MonkeyPatch, change: Callable[[F32], F32]
) -> None:
    monkeypatch.setattr(Tensor, "read", between_the_calls(change))
    verdict = judged(library, CASE)
    assert verdict.status == "fail"
    assert not verdict.comparisons["fifo_vs_oracle"].ok
    assert not verdict.comparisons["fifo_state_vs_oracle"].ok
    assert not verdict.comparisons["fifo_again"].ok


def test_numerators_in_f16_are_right_where_the_cold_store_is_f16(
    library: Ggml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tensor, "read", between_the_calls(_numerators_in_f16))
    assert judged(library, CASE.with_(cold_type="f16")).status == "pass"


def test_sinks_in_both_calls_fail(library: Ggml, monkeypatch: pytest.MonkeyPatch) -> None:
    original = fifo._call
    sinks: list[Tensor] = []

    def with_sinks(*arguments: Any) -> Any:
        sinks.extend(arguments[6:])
        return original(*arguments[:6], *sinks[:1])

    monkeypatch.setattr(fifo, "_call", with_sinks)
    verdict = judged(library, CASE.with_(sinks=True))
    assert verdict.status == "fail"
    assert not verdict.comparisons["fifo_vs_oracle"].ok


def test_the_row_of_a_wrong_output_is_its_step(library: Ggml) -> None:
    inputs = make_inputs(CASE)
    run = run_case(library, CASE, inputs, ("standard", "fifo"))
    output = run.results["fifo"].first.output.copy()
    output[1, 2, 17, 5] += 0.01
    wrong = dataclasses.replace(run.results["fifo"].first, output=output)
    run = changed(run, fifo=wrong, fifo_again=wrong)
    verdict = judge(CASE, inputs, run, features=library.features())
    assert verdict.status == "fail"
    assert verdict.reason.startswith("fifo vs oracle: 1.00e-02, allowed ")
    assert verdict.reason.endswith(" at batch 1, head 2, row 17, element 5")
    assert [step.step for step in verdict.steps if step.of_bound > 1] == [17]


# what it costs


@pytest.mark.parametrize(
    ("hot_type", "cold_type", "hot", "cold"),
    [("f16", "q4_0", 128, 36), ("f32", "q8_0", 256, 68), ("bf16", "f16", 128, 128)],
)
def test_memory_falls_as_the_types_say(
    library: Ggml, hot_type: str, cold_type: str, hot: int, cold: int
) -> None:
    """A row of 64 elements takes `hot` bytes in the window and `cold` bytes in the store."""
    case = CASE.with_(type_K=hot_type, type_V=hot_type, cold_type=cold_type)
    n_row = 2 * 2 * 2  # K and V, two heads, two sequences
    for step, n_cold in zip(judged(library, case).steps, rolling.n_cold(case), strict=True):
        assert step.tokens_hot + step.tokens_cold == step.step + 1
        assert step.tokens_cold == n_cold
        assert step.cache_bytes == n_row * (hot * step.tokens_hot + cold * step.tokens_cold)
        assert step.f16_bytes == n_row * 128 * (step.step + 1)


def test_coarser_cold_types_cost_more_exactness(library: Ggml) -> None:
    def worst(cold_type: str) -> float:
        steps = judged(library, CASE.with_(cold_type=cold_type)).steps
        return max(step.quantisation_error for step in steps)

    assert worst("q4_0") > 4 * worst("q8_0") > 4 * worst("f16") > 0


def test_nothing_is_quantised_before_the_first_token_gets_cold(library: Ggml) -> None:
    steps = judged(library, CASE).steps
    for step in steps[:8]:  # the same numbers, added up by the oracle in another order
        assert step.quantisation_error == pytest.approx(step.error, rel=1e-9)
    assert all(step.quantisation_error > step.error for step in steps[8:])


# what cannot be trusted


def test_a_window_that_holds_all_tokens_is_mistrusted(library: Ggml) -> None:
    verdict = judged(library, CASE.with_(hot_window=30))
    assert verdict.status == "mistrusted"
    assert verdict.reason == "no token ever gets cold: hot_window=30 holds the kv=30"


def test_tokens_of_the_same_bytes_are_mistrusted(library: Ggml) -> None:
    inputs = make_inputs(CASE)
    same = {
        name: array[:, :, [0, 0, *range(2, 30)]]
        for name in ("k", "v", "k_raw", "v_raw")
        for array in [getattr(inputs, name)]
    }
    verdict = judged(library, CASE, dataclasses.replace(inputs, **same))
    assert verdict.status == "mistrusted"
    assert verdict.reason == ("two tokens have the same bytes: one in the other's place would pass")


# the call


def test_a_group_larger_than_the_window_is_refused() -> None:
    with pytest.raises(UsageError, match=r"group=40: must be from 1 to hot_window=32"):
        CASE.with_(hot_window=32, group=40)


def test_a_case_alone_shows_some_of_its_steps(library: Ggml) -> None:
    console = Console(file=io.StringIO(), width=150, highlight=False)
    table = Table(console, [CASE], verbose=False)
    table.add(judged(library, CASE), "fa-harness run --case '...'")
    assert isinstance(console.file, io.StringIO)
    _, line, headings, first, *_, last = console.file.getvalue().splitlines()
    assert line.startswith("hs64 h4/2 kv30 f16>q8_0 normal w8/3 ne3=2 t1 ")
    assert line.endswith(" pass")
    assert headings.split("  ")[-1] == "vs unquantised"
    assert first.split()[:5] == ["0", "1", "0", "1024", "100%"]
    assert last.split()[:3] == ["29", "6", "24"]
