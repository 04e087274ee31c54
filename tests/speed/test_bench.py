"""What is timed and judged: statistics, the model of a chain, limits, and a real row."""

import dataclasses
import itertools
import json
import math
import shlex
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import schemas
from fa_harness.build.library import Library
from fa_harness.case.case import Case
from fa_harness.case.inputs import make_inputs
from fa_harness.cli import main as cli
from fa_harness.cli.bench import repro
from fa_harness.engine import ggml
from fa_harness.engine.ggml import Ggml
from fa_harness.errors import UsageError
from fa_harness.kernel import n_tiles, path
from fa_harness.speed import bench, timing
from fa_harness.speed.bench import judge
from fa_harness.speed.timing import SEGMENTS, Timings, chain_path, measure

DECODE = next(case for case in bench.SHAPES if (case.n_batch, case.n_kv) == (1, 8192))
SHORT_DECODE = next(case for case in bench.SHAPES if (case.n_batch, case.n_kv) == (1, 512))
PREFILL = next(case for case in bench.SHAPES if (case.n_batch, case.n_kv) == (512, 512))
ROUNDS = 25
TINY = "kv=512,nb=1,"  # the regular expression of the smallest shape


def timings(
    case: Case,
    *,
    factors: Mapping[str, float] | None = None,
    noise: float = 0.0,
    rounds: int = ROUNDS,
    parts: Collection[int] = (8,),
    **changes: Any,
) -> Timings:
    """Make timings in which all ways take as long as their models allow, but for the factors.

    The noise goes up and down by rounds, and for each way in another order.
    """
    calls = ("baseline", "standard", "again", "full_state", "standard_vec", "baseline_vec")
    empty = ("empty_vec", "empty_tiled", "empty_split-kv")
    seconds = {**dict.fromkeys(calls, 1e-3), **dict.fromkeys(empty, 1e-9)}
    seconds |= {"byte": 1e-16, "stored_byte": 1e-16}
    for n in SEGMENTS:
        bounds = case.with_(segments=n).segment_bounds()
        padding = n_tiles(case, bounds) / n_tiles(case, (0, case.n_kv))
        seconds[f"segmented_{n}"] = 1e-3 * (padding if path(case) == "tiled" else 1.0)
        if n in parts:
            seconds[f"parts_{n}"] = seconds[f"segmented_{n}"]
    for name, factor in (factors or {}).items():
        seconds[name] *= factor
    rng = np.random.default_rng(0)
    names = [name for name in seconds if not name.startswith("empty") and not name.endswith("byte")]
    values = {
        "seconds": {
            name: each * np.exp(noise * rng.standard_normal(rounds))
            for name, each in seconds.items()
        },
        "repetitions": 1,
        "work_size": dict.fromkeys(names, 1000),
        "allocations": dict.fromkeys(names, 2),
    }
    return Timings(**{**values, **changes})


# statistics


@pytest.mark.parametrize("n", [8, 9, 25, 50, 101])
def test_an_interval_is_the_narrowest_of_its_coverage(n: int) -> None:
    def coverage(rank: int) -> float:
        """1 - P(fewer than `rank` of n samples lie below the median, or above it)."""
        outside = 2 * sum(math.comb(n, i) for i in range(rank))
        return 1 - outside / float(2**n)

    rank = bench.order_rank(n)
    assert coverage(rank) >= bench.LEVEL > coverage(rank + 1)


def test_the_coverage_is_that_of_all_outcomes() -> None:
    n, level = 10, 0.9
    rank = bench.order_rank(n, level)
    inside = 0
    for signs in itertools.product((-1, 1), repeat=n):  # the samples, with their median at 0
        ordered = sorted(signs)
        inside += ordered[rank - 1] <= 0 <= ordered[-rank]
    assert inside / 2**n >= level
    narrower = sum(
        sorted(signs)[rank] <= 0 <= sorted(signs)[-rank - 1]
        for signs in itertools.product((-1, 1), repeat=n)
    )
    assert narrower / 2**n < level


def test_an_interval_lies_between_the_samples_of_its_ranks() -> None:
    samples = np.random.default_rng(1).permutation(np.arange(1.0, 26.0))
    interval = bench.median_interval(samples)
    assert (interval.low, interval.median, interval.high) == (6.0, 13.0, 20.0)


def test_too_few_rounds_are_refused() -> None:
    bench.order_rank(bench.MIN_ROUNDS)
    with pytest.raises(UsageError, match="7 rounds give no interval of 99%; take 8 or more"):
        bench.order_rank(bench.MIN_ROUNDS - 1)


def test_outliers_are_beyond_tukeys_outer_fences() -> None:
    samples = np.arange(1.0, 10.0)  # quartiles 3 and 7: fences at -9 and 19
    assert bench.count_outliers(np.append(samples, [19.0])) == 0
    assert bench.count_outliers(np.append(samples, [100.0])) == 1
    assert bench.count_outliers(np.append(samples, [-100.0])) == 1


def test_an_outlier_moves_no_median_and_no_interval() -> None:
    samples = np.linspace(1.0, 1.1, ROUNDS)
    before = bench.median_interval(samples)
    samples[-1] = 1e6
    assert bench.median_interval(samples) == before


# the model


def test_the_model_adds_state_nodes_and_padding() -> None:
    model = bench.model(DECODE, 8, one_call=1e-3, empty_call=2e-6, byte_cost=1e-10)
    state_bytes = 32 * (2 + 128) * 4
    assert model.state == pytest.approx(8 * 2 * state_bytes * 1e-10 / 1e-3)
    assert model.nodes == pytest.approx(7 * 2e-6 / 1e-3)
    assert model.padding == 0
    assert model.ratio == pytest.approx(1 + model.state + model.nodes)


def test_segments_of_a_quarter_tile_cost_four_tiles_for_one() -> None:
    case = PREFILL.with_(n_batch=64, n_kv=4096)  # nearly every key is seen by every row
    model = bench.model(case, 256, one_call=1e-3, empty_call=0.0, byte_cost=0.0)
    assert model.padding == pytest.approx(3.0, rel=0.02)


@pytest.mark.parametrize("n_segments", [1, 2, 7, 8, 32])
@pytest.mark.parametrize(("n_batch", "n_kv"), [(512, 512), (512, 1000), (100, 640), (64, 2048)])
def test_a_tile_counts_if_the_mask_shows_one_of_its_keys(
    n_batch: int, n_kv: int, n_segments: int
) -> None:
    case = PREFILL.with_(
        n_batch=n_batch, n_kv=n_kv, hsk=32, hsv=32, n_head_kv=1, segments=n_segments
    )
    mask = make_inputs(case).mask
    assert mask is not None
    expected = 0
    for first in range(0, n_batch, 64):
        for start, stop in itertools.pairwise(case.segment_bounds()):
            for key in range(start, stop, 64):
                tile = mask[0, 0, first : first + 64, key : min(key + 64, stop)]
                expected += bool((tile > -np.inf).any())
    assert n_tiles(case, case.segment_bounds()) == expected


# limits


@pytest.mark.parametrize("case", [DECODE, SHORT_DECODE, PREFILL], ids=str)
def test_what_keeps_its_limits_passes(case: Case) -> None:
    row = judge(case, timings(case, noise=0.002))
    assert row.status == "pass"
    assert set(row.comparisons) >= {"standard", "full_state", *(f"segmented_{n}" for n in SEGMENTS)}


@pytest.mark.parametrize(
    ("case", "way", "factor", "over"),
    [
        (DECODE, "standard", 1.01, {"standard"}),
        (DECODE, "full_state", 1.02, {"full_state"}),
        (DECODE, "segmented_2", 1.05, {"segmented_2"}),
        (DECODE, "segmented_8", 1.02, {"long_decode"}),
        (DECODE, "segmented_8", 1.05, {"long_decode", "segmented_8"}),
        (SHORT_DECODE, "segmented_8", 1.02, set()),
        (SHORT_DECODE, "segmented_32", 1.05, {"segmented_32"}),
        (PREFILL, "full_state", 1.02, {"full_state"}),
        (PREFILL, "segmented_32", 1.05, {"segmented_32"}),
    ],
)
def test_a_ratio_over_its_limit_is_named(
    case: Case, way: str, factor: float, over: set[str]
) -> None:
    factors = {way: factor}
    if way == "standard":  # it is slower than the baseline, and the others with it
        ours = ("again", "full_state", "standard_vec", *(f"segmented_{n}" for n in SEGMENTS))
        factors |= dict.fromkeys(ours, factor)
    row = judge(case, timings(case, factors=factors, noise=0.001))
    assert {name for name, each in row.comparisons.items() if each.status == "over"} == over
    assert row.status == ("over" if over else "pass")


def test_the_lower_end_is_judged_so_that_noise_does_not_decide() -> None:
    row = judge(DECODE, timings(DECODE, factors={"full_state": 1.012}, noise=0.006))
    ratio = row.comparisons["full_state"].ratio
    assert ratio.low <= bench.FULL_STATE < ratio.median
    assert row.comparisons["full_state"].status == "pass"


def test_full_state_may_take_what_writing_the_states_bytes_takes_beside() -> None:
    byte = 0.02 * 1e-3 / bench.state_bytes(PREFILL)  # all of them: 2 % of a call
    for factor, status in ((1.029, "pass"), (1.031, "over")):
        found = timings(PREFILL, factors={"full_state": factor, "stored_byte": byte / 1e-16})
        comparison = judge(PREFILL, found).comparisons["full_state"]
        assert comparison.limit == pytest.approx(1.03)
        assert comparison.status == status


def test_an_interval_too_wide_to_tell_is_noisy_and_no_pass() -> None:
    row = judge(DECODE, timings(DECODE, noise=0.1))
    assert row.comparisons["full_state"].status == "noisy"
    assert row.status == "noisy"


def test_a_wide_interval_below_its_limit_tells_enough() -> None:
    row = judge(DECODE, timings(DECODE, factors={"segmented_8": 0.5}, noise=0.1))
    assert row.comparisons["segmented_8"].ratio.width > bench.NOISY
    assert row.comparisons["segmented_8"].status == "pass"


def test_upstreams_calls_on_the_parts_limit_a_chain_that_no_cache_helps() -> None:
    factors = {"parts_8": 1.02, "segmented_8": 1.02}
    row = judge(DECODE, timings(DECODE, factors=factors))
    assert row.comparisons["long_decode"].limit == pytest.approx(1.02)
    assert row.status == "pass"
    assert judge(DECODE, timings(DECODE, factors={"segmented_8": 1.02})).status == "over"


def test_parts_are_compared_with_one_call_of_their_own_library() -> None:
    factors = {"parts_8": 1.1, "baseline": 1.1, "segmented_8": 1.02}  # ours is faster, by its place
    row = judge(DECODE, timings(DECODE, factors=factors))
    assert row.comparisons["long_decode"].limit == pytest.approx(1.0)
    assert row.status == "over"


@pytest.mark.parametrize("case", [DECODE, SHORT_DECODE, PREFILL], ids=str)
@pytest.mark.parametrize(("of_upstream", "status"), [(1.0, "over"), (1.02, "over"), (1.05, "pass")])
def test_what_upstreams_calls_on_the_parts_take_a_chain_may_take_too(
    case: Case, of_upstream: float, status: str
) -> None:
    factors = {"segmented_2": 1.06, "parts_2": of_upstream}
    row = judge(case, timings(case, factors=factors, parts=SEGMENTS))
    assert row.comparisons["segmented_2"].status == row.status == status
    model, more = row.comparisons["segmented_2"].model, of_upstream - 1
    assert model is not None
    assert model.ratio == pytest.approx((1 + model.padding) * of_upstream, rel=1e-3)
    assert model.parts == pytest.approx(more * (1 + model.padding), abs=1e-3)


@pytest.mark.parametrize(
    ("segmented", "status"), [(1.0, "pass"), (1.05, "noisy"), (1.1, "noisy"), (1.5, "over")]
)
@pytest.mark.parametrize("case", [DECODE, SHORT_DECODE, PREFILL], ids=str)
def test_parts_that_are_not_told_do_not_decide(case: Case, segmented: float, status: str) -> None:
    calm = timings(case, factors={f"segmented_{n}": segmented for n in SEGMENTS}, parts=SEGMENTS)
    scatter = np.tile([0.98, 1.2], ROUNDS)[:ROUNDS] / segmented  # of upstream's, about one call
    parts = {f"parts_{n}": calm.seconds[f"segmented_{n}"] * scatter for n in SEGMENTS}
    row = judge(case, dataclasses.replace(calm, seconds={**calm.seconds, **parts}))
    comparison = row.comparisons["segmented_2"]
    assert comparison.ratio.width == 0
    assert comparison.status == row.status == status
    assert (row.noise > bench.NOISY) == (status == "noisy")
    assert comparison.limit_high is not None
    assert comparison.model is not None
    assert comparison.limit == comparison.model.ratio * bench.CHAIN < comparison.limit_high


def test_parts_that_are_told_decide_though_the_ratio_lies_between_their_ends() -> None:
    calm = timings(DECODE, factors={"segmented_8": 1.025})
    parts = 1e-3 * np.tile([1.01, 1.03], ROUNDS)[:ROUNDS]
    row = judge(DECODE, dataclasses.replace(calm, seconds={**calm.seconds, "parts_8": parts}))
    assert row.comparisons["long_decode"].limit == pytest.approx(1.01)
    assert row.comparisons["long_decode"].limit_high == pytest.approx(1.03)
    assert row.status == "pass"


@pytest.mark.parametrize(("full_state", "status"), [(1.0, "noisy"), (1.05, "noisy"), (1.5, "over")])
def test_where_a_library_differs_from_itself_only_more_than_that_tells_something(
    full_state: float, status: str
) -> None:
    calm = timings(DECODE, factors={"full_state": full_state})
    again = calm.seconds["again"] * np.tile([0.9, 1.1], ROUNDS)[:ROUNDS]
    row = judge(DECODE, dataclasses.replace(calm, seconds={**calm.seconds, "again": again}))
    assert row.comparisons["standard"].ratio.width == 0
    assert row.status == status


@pytest.mark.parametrize(
    ("field", "found", "fault"),
    [
        ("work_size", 1200, "full_state: 1200 bytes of work memory are planned, not 1000"),
        ("allocations", 3, "full_state: 3 allocations in a graph, not 2"),
    ],
)
def test_more_memory_than_upstream_takes_is_a_fault(field: str, found: int, fault: str) -> None:
    calm = vars(timings(DECODE))
    row = judge(DECODE, Timings(**{**calm, field: {**calm[field], "full_state": found}}))
    assert row.faults == (fault,)
    assert row.status == "over"


def test_allocations_of_a_baseline_that_are_unknown_are_no_fault() -> None:
    calm = timings(DECODE)
    known = {name: 3 for name in calm.allocations if name != "baseline"}
    assert judge(DECODE, dataclasses.replace(calm, allocations=known)).faults == ()


def test_a_chain_that_leaves_split_kv_is_compared_with_a_call_on_its_own_path() -> None:
    row = judge(SHORT_DECODE, timings(SHORT_DECODE))
    assert (path(SHORT_DECODE), chain_path(SHORT_DECODE, 2)) == ("split-kv", "vec")
    assert row.comparisons["segmented_2"].to == "standard_vec"
    assert judge(DECODE, timings(DECODE)).comparisons["segmented_2"].to == "standard"


def test_a_chain_without_a_call_on_its_own_path_is_not_compared() -> None:
    all_ = timings(SHORT_DECODE)
    seconds = {name: each for name, each in all_.seconds.items() if name != "standard_vec"}
    row = judge(SHORT_DECODE, dataclasses.replace(all_, seconds=seconds))
    assert set(row.unavailable) == {f"segmented_{n}" for n in SEGMENTS}
    assert "calls take the vec path, one call takes split-kv" in row.unavailable["segmented_2"]


# the suite


def test_the_suite_has_every_value_of_every_axis() -> None:
    cases = bench.suite()
    assert {case.n_batch for case in cases} == {1, 8, 32, 512}
    assert {case.n_kv for case in cases} >= {512, 2048, 8192, 32768}
    assert {(case.hsk, case.hsv) for case in cases} == {
        (64, 64), (128, 128), (256, 256), (576, 512)
    }  # fmt: skip
    assert {case.n_group for case in cases} >= {1, 4, 8}
    assert {case.type_K for case in cases} == {"f32", "f16", "bf16", "q8_0", "q4_0"}
    assert {case.threads for case in cases} == {1, 2}
    assert {path(case) for case in cases} == {"vec", "tiled", "split-kv"}
    assert all(case.n_kv % max(SEGMENTS) == 0 for case in cases)  # so all calls take one path


def test_a_regular_expression_selects_cases() -> None:
    assert {case.type_K for case in bench.suite((1,), "type_K=q4_0")} == {"q4_0"}
    with pytest.raises(UsageError, match=r"none matches -k 'kv=7,'; --list shows them"):
        bench.suite((1,), "kv=7,")
    with pytest.raises(UsageError, match=r"-k '\(' is not a regular expression"):
        bench.suite((1,), "(")


# a run


SLOW = {"factors": {"full_state": 1.1}}


NOISE = {"noise": 0.02}


@pytest.mark.parametrize(
    ("found", "status", "attempts"),
    [
        ([NOISE, {}], "pass", 2),
        ([SLOW, {}], "pass", 2),
        ([SLOW, SLOW], "over", 2),
        ([{}, SLOW], "pass", 1),
        ([NOISE, NOISE, {}], "pass", 3),
        ([SLOW, NOISE, SLOW], "over", 3),
        ([NOISE, NOISE, {"noise": 0.1}, {}], "noisy", 3),
        ([SLOW, {"noise": 0.1}, {}], "noisy", 2),
    ],
)
def test_a_row_that_does_not_pass_is_measured_again_until_it_can_be_told(
    library: Ggml,
    monkeypatch: pytest.MonkeyPatch,
    found: list[dict[str, Any]],
    status: str,
    attempts: int,
) -> None:
    asked: list[int] = []
    parts: list[Collection[int]] = []

    def measured(*arguments: object, rounds: int, **more: Any) -> Timings:
        asked.append(rounds)
        parts.append(more.get("parts", ()))
        return timings(DECODE, rounds=rounds, **{"noise": 0.001, **found[len(asked) - 1]})

    monkeypatch.setattr(bench, "measure", measured)
    [row] = bench.run(library, library, [DECODE], rounds=25)
    assert (row.status, row.attempts, row.rounds) == (status, attempts, asked[-1])
    assert asked[:2] == [25, 50][:attempts]
    assert parts == [(), SEGMENTS, SEGMENTS][:attempts]
    assert all(100 <= rounds <= 200 for rounds in asked[2:])


def test_a_row_that_takes_too_long_to_be_told_stays_noisy(
    library: Ggml, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def measured(*arguments: object, rounds: int, **more: Any) -> Timings:
        asked.append(rounds)
        return timings(DECODE, rounds=rounds, noise=0.02)

    clock = itertools.count(step=bench._PATIENCE)
    monkeypatch.setattr(bench, "measure", measured)
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    [row] = bench.run(library, library, [DECODE], rounds=25)
    assert (row.status, asked) == ("noisy", [25, 50])


def test_a_library_without_the_state_is_refused(library: Ggml, pristine: Library) -> None:
    other = ggml.load(pristine.module_path)
    with pytest.raises(UsageError, match="has no ggml_flash_attn_ext_with_state; take one that"):
        next(bench.run(other, library, [DECODE], rounds=8))


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("size", [66, 514])
def test_as_many_bytes_are_stored_as_are_counted(n_threads: int, size: int) -> None:
    with timing._store_rows(n_threads, size) as stored:
        assert len(stored._parts) == n_threads
        stored.time(1)
        rows = [cast("partial[Any]", part).args[3] for part in stored._parts]
    assert all((part == 1).all() and part.shape[1] == size for part in rows)
    assert 0 <= timing._COPIED_BYTES - sum(part.nbytes for part in rows) < 4 * size


@pytest.mark.parametrize("parts", [(), SEGMENTS], ids=str)
@pytest.mark.parametrize("case", bench.suite((1,), TINY), ids=str)
def test_a_row_is_measured_on_both_libraries(
    library: Ggml, pristine: Library, case: Case, parts: Collection[int]
) -> None:
    other = ggml.load(pristine.module_path)
    found = measure(library, other, case.with_(n_head_kv=1), rounds=8, parts=parts)
    ways = {"baseline", "standard", "again", "standard_vec", "full_state"}
    ways |= {f"segmented_{n}" for n in SEGMENTS} | {f"parts_{n}" for n in parts}
    if parts:
        ways.add("baseline_vec")
    assert set(found.seconds) == {*ways, "empty_vec", "byte", "stored_byte"}
    assert all(each.shape == (8,) and (each > 0).all() for each in found.seconds.values())
    # A line is read and written where it is stored, as where it is copied, but a row at a time.
    # The fastest rounds, which no neighbour on the machine disturbs.
    assert 1 / 1.2 < found.seconds["stored_byte"].min() / found.seconds["byte"].min() < 2 * 2
    assert set(found.work_size) == set(found.allocations) == ways
    assert len(set(found.work_size.values())) == len(set(found.allocations.values())) == 1


def test_a_chain_of_calls_that_return_the_state_is_measured(
    partial: Library, pristine: Library
) -> None:
    ours, theirs = (ggml.load(each.module_path) for each in (partial, pristine))
    [case] = bench.suite((1,), TINY)
    found = measure(ours, theirs, case.with_(n_head_kv=1), rounds=8)
    assert {f"segmented_{n}" for n in SEGMENTS} <= found.seconds.keys()
    assert len(set(found.work_size.values())) == 1


@pytest.mark.parametrize("case", [case for case in bench.SHAPES if case.segment_types][2:5])
def test_a_chain_of_several_types_is_timed_against_upstreams_calls_on_its_segments(
    library: Ggml, pristine: Library, case: Case
) -> None:
    other = ggml.load(pristine.module_path)
    found = measure(library, other, case, rounds=8)
    assert set(found.seconds) == {"standard", "again", "mixed"}
    row = judge(case, found)
    assert set(row.comparisons) == {"again", "segmented_2"}
    assert row.faults == ()
    # by a factor of 2 and more where V went through ggml-base
    assert row.comparisons["segmented_2"].ratio.low < bench.MIXED


def test_a_chain_of_several_types_that_takes_twice_as_long_is_over() -> None:
    case = next(case for case in bench.SHAPES if case.segment_types)
    seconds = {"standard": 1e-3, "again": 1e-3, "mixed": 2e-3}
    found = Timings(
        seconds={name: np.full(ROUNDS, each) for name, each in seconds.items()},
        repetitions=1,
        work_size=dict.fromkeys(seconds, 1000),
        allocations=dict.fromkeys(seconds, 2),
    )
    assert judge(case, found).status == "over"


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], patched: Library
) -> Callable[..., tuple[int, str]]:
    """Call `fa-harness bench` in this process: status, standard output."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fa-harness", "bench", *arguments])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        return status, capsys.readouterr().out

    return run


@pytest.mark.parametrize(("factor", "status"), [(1.0, 0), (1.05, 1)])
def test_a_limit_that_is_not_kept_ends_with_status_1(
    call: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    pristine: Library,
    factor: float,
    status: int,
) -> None:
    def measured(_library: Ggml, _baseline: Ggml, case: Case, **_more: Any) -> Timings:
        return timings(case, factors={"full_state": factor})

    monkeypatch.setattr(bench, "measure", measured)
    got, text = call("-k", TINY, "--threads", "1")
    assert got == status
    assert ("full_state / standard: 1.050 (1.050-1.050), at most 1.010" in text) == (status == 1)


def test_list_prints_the_cases_and_measures_none(call: Callable[..., tuple[int, str]]) -> None:
    status, text = call("--list", "-k", TINY)
    assert status == 0
    assert text.splitlines() == [str(case) for case in bench.suite((1, 2), TINY)]


def test_rounds_without_an_interval_are_a_wrong_call(call: Callable[..., tuple[int, str]]) -> None:
    assert call("--rounds", str(bench.MIN_ROUNDS - 1), "-k", TINY)[0] == 2
    assert call("--rounds", str(bench.MIN_ROUNDS), "--list", "-k", TINY)[0] == 0


def test_a_run_writes_its_report(pristine: Library, patched: Library, tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    command = ["bench", "-k", TINY, "--threads", "1", "--rounds", "8", "--json", str(report)]
    done = subprocess.run(
        [sys.executable, "-m", "fa_harness.cli", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    document = schemas.checked(json.loads(report.read_text()))
    passed = document["summary"]["pass"] == document["summary"]["rows"] == 1
    assert (done.returncode, done.stderr) == (0 if passed else 1, "")
    assert document["schema"] == "fa-harness.bench/1"
    assert set(document) == {
        *("schema", "tool", "library", "baseline", "machine", "started", "seconds"),
        *("interrupted", "rounds", "level", "summary", "rows"),
    }
    assert (document["library"]["name"], document["baseline"]["name"]) == ("state", "pristine")
    [row] = document["rows"]
    assert set(row) == {
        *("case", "status", "ok", "path", "seconds", "kv_bytes", "ns_per_kv_byte", "ratios"),
        *("unavailable", "faults", "outliers", "rounds", "repetitions", "attempts"),
        *("work_size", "allocations", "repro"),
    }
    assert row["case"] == str(bench.suite((1,), TINY)[0])
    assert row["ns_per_kv_byte"] == pytest.approx(
        row["seconds"]["standard"] * 1e9 / row["kv_bytes"]
    )
    assert set(row["ratios"]) == {
        "again",
        "standard",
        "full_state",
        *map("segmented_{}".format, SEGMENTS),
        *(map("parts_{}".format, SEGMENTS) if row["attempts"] > 1 else ()),
    }
    for ratio in row["ratios"].values():
        assert set(ratio) == {
            *("of", "to", "median", "low", "high"),
            *("limit", "limit_high", "model", "status", "ok"),
        }
        assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
    assert set(row["ratios"]["segmented_8"]["model"]) == {
        *("state", "nodes", "padding", "parts", "ratio")
    }


def test_the_command_that_repeats_a_row_selects_that_row() -> None:
    for case in bench.suite((1, 2)):
        *_, threads, _, pattern = shlex.split(repro(case))
        assert bench.suite((int(threads),), pattern) == [case]


def test_kv_bytes_count_a_v_inside_k_once() -> None:
    mla = next(case for case in bench.SHAPES if case.v_is_view_of_k and case.type_K == "f16")
    assert bench.kv_bytes(mla) == mla.n_kv * 576 * 2
    assert bench.kv_bytes(DECODE) == 8192 * 8 * 128 * 2 * 2
