"""A case in a few words, and what `-k` finds."""

import pytest

from fa_harness.case.case import Case
from fa_harness.case.label import label, short_labels, wanted
from fa_harness.case.suites import SUITES, suite
from fa_harness.errors import UsageError

TILED = Case(
    hsk=64, hsv=64, n_kv=200, n_batch=64, type_K="q8_0", type_V="q8_0", mask=False, regime="ties"
)


def test_the_types_of_segments_stand_in_the_label() -> None:
    case = Case(
        hsk=64, hsv=64, segments=3, type_K="f32", type_V="f32", segment_types=("q4_0", "q8_0/f16")
    )
    assert label(case) == "hs64 h32 kv96 b8 q4_0+q8_0/f16 uniform t1"


def test_the_label_has_the_shape_and_what_is_not_usual() -> None:
    case = Case(
        hsk=192, hsv=128, n_head_kv=2, n_group=4, ne3=3, n_kv=70, n_batch=5, type_K="q8_0",
        type_V="f16", sinks=True,
        max_bias=8.0, logit_softcap=5.0, boundaries=(1, 9), regime="spiky", seed=7, threads=2,
    )  # fmt: skip
    expected = "hs192/128 h8/2 kv70 b5 q8_0/f16 spiky ne3=3 sinks alibi softcap cut:1,9 seed=7 t2"
    assert label(case) == expected


def test_a_case_of_usual_options_has_none_in_its_label() -> None:
    assert label(Case()) == "hs128 h32 kv96 b8 f16 uniform t1"


@pytest.mark.parametrize("width", [31, 62])
@pytest.mark.parametrize("name", SUITES)
def test_short_labels_fit_and_tell_the_cases_of_a_suite_apart(name: str, width: int) -> None:
    labels = short_labels(suite(name), width)
    assert max(map(len, labels.values())) <= width
    assert len({(text, case.segments) for case, text in labels.items()}) == len(labels)


def test_a_label_that_fits_is_whole() -> None:
    assert short_labels([TILED], 60) == {TILED: label(TILED)}


def test_what_many_cases_have_is_left_out_first() -> None:
    cases = [TILED.with_(n_kv=n) for n in range(100, 105)]
    assert list(short_labels(cases, 13).values()) == [f"hs64 kv{n} .." for n in range(100, 105)]


def test_two_cases_that_differ_in_what_is_usual_keep_it() -> None:
    usual = [TILED.with_(n_kv=n) for n in range(100, 120)]
    odd = usual[0].with_(threads=2)
    labels = short_labels([*usual, odd], 16)
    assert labels[odd] == "hs64 kv100 t2 .."
    assert labels[usual[0]] == "hs64 kv100 t1 .."


@pytest.mark.parametrize(
    "pattern",
    [
        "type_K=q8_0", "q8_0 kv200", "kv200 q8_0", "vec q8_0", "no mask", "kv20. hs64",
        "n?b=64 ties", "ties|normal", label(TILED), None, "",
    ],
)  # fmt: skip
def test_k_finds_strings_and_what_tables_show(pattern: str | None) -> None:
    assert wanted(pattern)(TILED)


@pytest.mark.parametrize(
    "pattern", ["kv20", "tiled", "q8_0 kv201", "type_K=f16", "sinks", "b6 q8_0"]
)
def test_k_finds_no_part_of_a_word(pattern: str) -> None:
    assert not wanted(pattern)(TILED)


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match=r"-k '\(' is not a regular expression"):
        wanted("(")


def test_a_regular_expression_may_hold_spaces() -> None:
    assert wanted("(kv=200| )")(TILED)
