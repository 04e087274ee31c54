import pytest

from fa_harness.case.case import Case
from fa_harness.case.selection import Selection, check_modes, chosen, select
from fa_harness.case.suites import suite
from fa_harness.errors import UsageError

CASE = "FLASH_ATTN_EXT(kv=64)"


def test_without_a_source_the_default_suite_is_selected() -> None:
    assert select(Selection()) == suite("default")


def test_a_case_that_is_selected_twice_runs_once() -> None:
    assert len(select(Selection(case_string=CASE, segments=(2, 2), seed=0))) == 1


def test_shards_hold_each_case_once_and_a_case_stays_in_its_own_whatever_else_there_is() -> None:
    whole = select(Selection(suite="paths"))
    shards = [select(Selection(suite="paths", shard=(i, 3))) for i in (1, 2, 3)]
    assert all(shards)
    assert sorted(str(case) for part in shards for case in part) == sorted(map(str, whole))
    part = select(Selection(suite="paths", pattern="vec", shard=(2, 3)))
    assert part == [case for case in shards[1] if case in part]
    assert [str(case) for case in whole if chosen(Selection(shard=(1, 3)))(case)] == [
        str(case) for case in shards[0]
    ]


def test_a_shard_without_a_case_is_refused() -> None:
    empty = next(i for i in (1, 2) if not chosen(Selection(shard=(i, 2)))(Case.parse(CASE)))
    with pytest.raises(UsageError, match=rf"no case is left of 1: none is of shard {empty}/2; "):
        select(Selection(case_string=CASE, shard=(empty, 2)))


def test_segments_leave_a_case_with_listed_boundaries_as_it_is() -> None:
    assert select(Selection(suite="seed", segments=(1, 2, 7))) == suite("seed")


def test_segments_keep_random_boundaries_random() -> None:
    [case] = select(
        Selection(case_string="FLASH_ATTN_EXT(kv=64,segments=3,boundaries=random)", segments=(5,))
    )
    assert (case.segments, case.boundaries) == (5, "random")


def test_boundaries_may_repeat_for_empty_segments() -> None:
    [case] = select(Selection(case_string=CASE, boundaries="0,9,9,64"))
    assert case.segment_bounds() == (0, 0, 9, 9, 64, 64)


def test_segment_types_go_with_the_segments_that_are_asked_for() -> None:
    cases = select(Selection(case_string=CASE, segments=(2, 3), segment_types=("q4_0", "q8_0/f16")))
    assert [case.segments for case in cases] == [2, 3]
    assert {case.segment_types for case in cases} == {("q4_0", "q8_0/f16")}
    assert {(case.type_K, case.type_V) for case in cases} == {("f32", "f32")}


def test_more_segment_types_than_segments_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"segment_types=\[f16,f32,f16\]: more than the segments=2"
    ):
        select(Selection(case_string=CASE, segments=(2,), segment_types=("f16", "f32", "f16")))


def test_modes_come_in_their_usual_order_each_once() -> None:
    cases = suite("seed")
    named = ("segmented", "standard", "segmented")
    assert check_modes(named, cases) == ("standard", "segmented")


def test_without_a_mode_each_case_has_its_own() -> None:
    assert check_modes((), suite("seed")) is None


@pytest.mark.parametrize(
    ("mode", "option"), [("mixed", "--segment-types"), ("fifo", "--hot-window")]
)
def test_a_mode_that_does_not_apply_to_a_case_is_refused_with_the_option_to_give(
    mode: str, option: str
) -> None:
    with pytest.raises(UsageError, match=rf"--mode {mode}: needs {option}, which FLASH_ATTN_EXT"):
        check_modes((mode,), suite("seed"))
