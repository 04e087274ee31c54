"""llama-perplexity end to end: its output, the runs, and what they must print."""

import dataclasses
import math

import pytest

from fa_harness.errors import FaHarnessError, UsageError
from fa_harness.model.perplexity import (
    Perplexity,
    Setting,
    expectation,
    judge,
    parse,
    plan_segments,
)

OUTPUT = """\
0.02.370.121 I perplexity: tokenizing the input ..
0.02.609.230 I perplexity: tokenization took 239.092 ms
0.02.609.331 I perplexity: calculating perplexity over 4 chunks, n_ctx=512, batch_size=512, n_seq=1
0.08.844.907 I perplexity: 6.24 seconds per pass - ETA 0.40 minutes
[1]2.8612,[2]4.6150,[3]5.3691,[4]5.7459,
0.22.898.357 I Final estimate: PPL = 5.7459 +/- 0.52535

"""
"""Of a real run, as are its parts below."""
REFUSED = """\
0.00.634.412 E llama_init_from_model: failed to initialize the context: \
invalid LLAMA_FA_SEGMENTS='x': must be an integer from 0 to 1024
0.00.634.771 E common_init_from_params: failed to create context with model 'model.gguf'
"""
STANDARD = parse(OUTPUT)
PREFILL = Setting(n_ctx=2048, n_ubatch=512, n_swa=512)
DECODE = Setting(n_ctx=512, n_ubatch=1, n_swa=512)


def test_the_estimate_its_error_and_the_values_of_all_chunks_are_read() -> None:
    assert parse(OUTPUT) == Perplexity(
        estimate=5.7459, error=0.52535, chunks=(2.8612, 4.6150, 5.3691, 5.7459)
    )


def test_values_of_chunks_on_several_lines_are_read() -> None:
    assert parse(OUTPUT.replace(",[3]", ",\n0.09.000.000 W a warning\n[3]")) == STANDARD


def test_an_output_without_an_estimate_is_an_error_that_shows_its_end() -> None:
    with pytest.raises(FaHarnessError, match=r"no lines 'Final .* in: .*failed to create context"):
        parse(REFUSED)


def test_a_run_that_ended_half_way_is_an_error_that_counts_its_chunks() -> None:
    with pytest.raises(FaHarnessError, match=r"after 4 chunks.*if its status is 0, run it again"):
        parse(OUTPUT.partition("0.22.898")[0])


def test_a_run_that_did_not_begin_is_not_to_be_tried_again() -> None:
    with pytest.raises(FaHarnessError) as error:
        parse(REFUSED)
    assert "again" not in str(error.value)


def test_an_empty_output_is_an_error() -> None:
    with pytest.raises(FaHarnessError, match="ends in: nothing"):
        parse("")


def test_two_outputs_are_an_error() -> None:
    with pytest.raises(FaHarnessError, match="2 lines"):
        parse(OUTPUT * 2)


def test_a_chunk_that_is_missing_is_an_error() -> None:
    with pytest.raises(FaHarnessError, match=r"found those of \[1, 3, 4\]"):
        parse(OUTPUT.replace("[2]4.6150,", ""))


def test_another_form_of_the_values_is_an_error() -> None:
    with pytest.raises(FaHarnessError, match=r"of no chunk; --ppl-output-type 0"):
        parse(OUTPUT.replace("[", "").replace("]", "  "))


def test_a_value_that_is_not_a_number_is_an_error() -> None:
    with pytest.raises(FaHarnessError, match="not finite"):
        parse(OUTPUT.replace("[4]5.7459,", "[4]nan,"))


def test_the_runs_differ_in_the_environment_only() -> None:
    runs = plan_segments(PREFILL)
    assert [(run.name, dict(run.environment)) for run in runs] == [
        ("standard", {}),
        ("segments=1", {"LLAMA_FA_SEGMENTS": "1"}),
        ("segments=2", {"LLAMA_FA_SEGMENTS": "2"}),
        ("segments=8", {"LLAMA_FA_SEGMENTS": "8"}),
    ]
    assert {" ".join(run.arguments) for run in runs} == {
        "-fa on -c 2048 -b 2048 -ub 512 -t 2 --chunks 1"
    }


@pytest.mark.parametrize(
    "numbers",
    [
        {"n_ctx": 0, "n_ubatch": 1},
        {"n_ctx": 500, "n_ubatch": 1},
        {"n_ctx": 512, "n_ubatch": 0},
        {"n_ctx": 512, "n_ubatch": 513},
        {"n_ctx": 512, "n_ubatch": 1, "threads": 0},
    ],
)
def test_a_setting_that_cannot_be_is_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        Setting(**numbers)


@pytest.mark.parametrize(
    ("setting", "n_segments", "exact", "reason"),
    [
        (PREFILL, 0, True, "one call"),
        (DECODE, 1, True, "one call"),
        (PREFILL, 8, True, "multiples of 64"),
        (PREFILL, 7, False, "512 cells: a boundary at 73 cuts a tile"),
        # 256 cells in eight parts of 32
        (dataclasses.replace(PREFILL, n_ubatch=256), 8, False, "256 cells: a boundary at 32"),
        # the local layers keep 512 + 128 cells, in the padding's 768: parts of 96
        (Setting(n_ctx=2048, n_ubatch=512, n_swa=128), 8, False, "768 cells: a boundary at 96"),
        # from 63 rows on down there are no tiles
        (dataclasses.replace(PREFILL, n_ubatch=63), 7, True, "one row at a time"),
        (Setting(n_ctx=2048, n_ubatch=32), 7, True, "one row at a time"),
        (Setting(n_ctx=256, n_ubatch=1), 8, True, "one row at a time"),
        (DECODE, 2, False, "512 cells: one call is split among 2 threads"),
        (dataclasses.replace(DECODE, threads=1), 2, True, "one row at a time"),
        (Setting(n_ctx=1024, n_ubatch=1, threads=1), 2, False, "a later segment of 512"),
        (Setting(n_ctx=1024, n_ubatch=1, threads=1), 8, True, "one row at a time"),
    ],
)
def test_which_digits_must_be_equal(
    setting: Setting, n_segments: int, exact: bool, reason: str
) -> None:
    expected = expectation(setting, n_segments)
    assert expected.exact is exact
    assert reason in expected.reason


def test_a_control_is_planned_where_a_run_may_differ() -> None:
    assert [run.name for run in plan_segments(DECODE)][:2] == ["standard", "control"]
    control = plan_segments(DECODE)[1]
    assert control.control
    assert not control.environment
    assert " ".join(control.arguments) == "-fa on -c 512 -b 512 -ub 1 -t 1 --chunks 1"
    assert "-ub 32" in " ".join(plan_segments(PREFILL, [7])[1].arguments)
    assert not any(run.control for run in plan_segments(PREFILL))


def test_a_run_may_be_twice_as_far_off_as_the_control() -> None:
    # one thread and two, 512 tokens decoded by Gemma 3 270M
    one, two = (Perplexity(estimate=x, error=0.4, chunks=(x,)) for x in (2.8681, 2.8370))
    runs = plan_segments(DECODE, [1, 2])
    found = {"standard": two, "control": one, "segments=1": two}
    for estimate, ok in [(2.89, True), (2.91, False)]:
        result = dataclasses.replace(one, estimate=estimate, chunks=(estimate,))
        exact, bounded = judge(DECODE, runs, found | {"segments=2": result})
        assert exact.ok
        assert bounded.ok is ok
        assert "must be within 0.022: 512 cells" in bounded.message


def test_a_control_that_ended_early_is_refused() -> None:
    short = dataclasses.replace(STANDARD, chunks=STANDARD.chunks[:3])
    with pytest.raises(UsageError, match="the control"):
        judge(DECODE, plan_segments(DECODE), results() | {"control": short})


def test_a_control_does_not_loosen_what_must_be_equal() -> None:
    runs = plan_segments(DECODE)
    off = dataclasses.replace(STANDARD, estimate=5.7460)
    rows = judge(DECODE, runs, results() | {"control": off, "segments=1": off})
    assert [row.ok for row in rows] == [False, True, True]


def results(**changes: float | tuple[float, ...]) -> dict[str, Perplexity]:
    """What all runs print: the same, but for changes of the last."""
    last = dataclasses.replace(STANDARD, **changes)  # type: ignore[arg-type]
    return {run.name: STANDARD for run in plan_segments(DECODE)} | {"segments=8": last}


def test_equal_digits_are_ok_in_every_run() -> None:
    rows = judge(DECODE, plan_segments(DECODE), results())
    assert [row.name for row in rows] == ["segments=1", "segments=2", "segments=8"]
    assert all(row.ok and row.largest == 0 for row in rows)
    assert rows[0].message == "equal, must be equal: one call: the state changes no result"


@pytest.mark.parametrize(
    ("setting", "estimate", "ok"),
    [(DECODE, 5.7461, True), (DECODE, 5.7470, False), (PREFILL, 5.7460, False)],
)
def test_the_last_digit_counts_where_all_must_be_equal(
    setting: Setting, estimate: float, ok: bool
) -> None:
    row = judge(setting, plan_segments(setting), results(estimate=estimate))[-1]
    assert row.ok is ok
    assert row.largest == pytest.approx((estimate - 5.7459) / 5.7459)


def test_one_chunk_that_is_off_is_not_hidden_by_the_estimate() -> None:
    chunks = (2.8612, 4.6250, 5.3691, 5.7459)
    row = judge(DECODE, plan_segments(DECODE), results(chunks=chunks))[-1]
    assert not row.ok
    assert "off by 0.0022, must be within 0.0001: 512 cells: one call is split" in row.message


def test_the_error_counts_among_the_digits() -> None:
    assert not judge(PREFILL, plan_segments(PREFILL), results(error=0.52536))[-1].ok


def test_a_run_with_fewer_chunks_is_not_ok() -> None:
    row = judge(DECODE, plan_segments(DECODE), results(chunks=STANDARD.chunks[:3]))[-1]
    assert not row.ok
    assert math.isinf(row.largest)
    assert row.message == "3 chunks, the standard run has 4"


def test_a_run_without_a_result_is_refused() -> None:
    with pytest.raises(UsageError, match="no results of the runs control, segments=2, segm"):
        judge(DECODE, plan_segments(DECODE), {"standard": STANDARD, "segments=1": STANDARD})


def test_a_comparison_needs_the_standard_run() -> None:
    with pytest.raises(UsageError, match="the first run"):
        judge(DECODE, plan_segments(DECODE)[1:], results())
