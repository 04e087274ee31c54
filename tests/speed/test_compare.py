"""Rows of a comparison: what they hold, their shares of the limits, and when a ratio is known."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from fa_harness.case.label import speed_pattern
from fa_harness.speed import compare
from fa_harness.speed.bench import Interval, shape, suite
from fa_harness.speed.cold import FMA, MEMORY, Timed

DECODE = shape(1, 1000, 128, (32, 8), "f16")
ROUNDS = compare.MIN_ROUNDS


def timed(**ms: float | list[float]) -> Timed:
    """Make timings: a byte takes 0.1 ns, an operation 0.01 ns."""
    seconds = {name: np.broadcast_to(np.array(each) * 1e-3, ROUNDS) for name, each in ms.items()}
    limits = {MEMORY: np.full(ROUNDS, 1e-10), FMA: np.full(ROUNDS, 1e-11)}
    return Timed(seconds={**seconds, **limits}, unavailable={})


def test_a_ratio_says_how_many_times_as_long_the_other_takes() -> None:
    row = compare.compare(DECODE, "ours", timed(ours=2.0, theirs=[5.9, 6.0, 6.1, 6.2, 5.8]))
    assert row.seconds == {"ours": pytest.approx(2e-3), "theirs": pytest.approx(6e-3)}
    ratio = row.ratios["theirs"]
    assert (ratio.low, ratio.median, ratio.high) == pytest.approx((2.9, 3.0, 3.1))
    assert list(row.ratios) == ["theirs"]


def test_ratios_are_taken_within_a_round() -> None:
    slower = [1.0, 2.0, 3.0, 4.0, 5.0]
    row = compare.compare(DECODE, "ours", timed(ours=slower, theirs=[2 * ms for ms in slower]))
    assert row.ratios["theirs"] == Interval(median=2.0, low=2.0, high=2.0)


@pytest.mark.parametrize(
    ("theirs", "status"),
    [([2.0, 2.0, 2.09, 2.1, 2.1], "measured"), ([2.0, 2.0, 2.09, 2.3, 2.3], "noisy")],
)
def test_a_row_with_a_wide_interval_is_noisy(theirs: list[float], status: str) -> None:
    row = compare.compare(DECODE, "ours", timed(ours=1.0, theirs=theirs, steady=1.0))
    assert row.status == status
    assert row.noisy == (("theirs",) if status == "noisy" else ())


def test_shares_are_of_what_was_measured_beside() -> None:
    row = compare.compare(DECODE, "ours", timed(ours=1.0))
    n_bytes = 2 * 8 * 1000 * 128 * 2
    assert row.bytes_per_second == pytest.approx(n_bytes / 1e-3)
    assert row.of_bandwidth == pytest.approx(n_bytes * 1e-10 / 1e-3)
    assert row.of_peak == pytest.approx(32 * 1000 * 4 * 128 * 1e-11 / 1e-3)


def test_hidden_keys_are_no_operations() -> None:
    case = DECODE.with_(n_batch=3, n_kv=5)
    seen = 3 + 4 + 5
    assert compare.operations(case) == seen * 32 * 2 * (128 + 128)


def test_the_rows_have_the_shapes_that_claims_are_about() -> None:
    found = {(case.n_batch, case.n_kv) for case in compare.ROWS}
    assert found >= {(1, 8192), (1, 32768), (8, 4096), (32, 4096), (512, 4096)}
    assert found >= {(63, 4096), (64, 4096)}
    decode = [case for case in compare.ROWS if (case.n_batch, case.n_kv) == (1, 8192)]
    assert {case.hsk for case in decode} == {64, 80, 128, 256, 576}
    assert {case.n_group for case in decode} == {1, 3, 4, 8, 32}
    assert {case.type_K for case in decode} == {"f16", "bf16", "q8_0", "q4_0"}
    assert all(case.permute == (0, 2, 1, 3) for case in compare.ROWS)
    assert len(set(compare.ROWS)) == len(compare.ROWS)


def test_the_pattern_of_a_row_finds_it_alone() -> None:
    for case in suite((2,), None, compare.ROWS):
        assert suite((2,), speed_pattern(case), compare.ROWS) == [case]


def test_a_noisy_row_is_measured_again_with_twice_the_rounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noisy = timed(ours=1.0, theirs=[1.0, 2.0, 3.0, 4.0, 5.0])
    found, asked = [noisy, timed(ours=1.0, theirs=3.0)], []

    def measured(*arguments: object, rounds: int, **more: Any) -> Timed:
        asked.append(rounds)
        return found[len(asked) - 1]

    monkeypatch.setattr(compare, "measure", measured)
    libraries: Mapping[str, Any] = {"ours": None, "theirs": None}
    limits: Any = None
    [row] = compare.run(libraries, [], limits, [DECODE], rounds=5)
    assert (row.status, asked) == ("measured", [5, 10])
