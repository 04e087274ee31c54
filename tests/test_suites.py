import itertools

import pytest

from fa_harness.cases import REGIMES, Case
from fa_harness.errors import UsageError
from fa_harness.modes import path
from fa_harness.quants import TYPES
from fa_harness.suites import SUITES, suite

DEFAULT = suite("default")


@pytest.mark.parametrize("name", ["seed", "smoke", "default"])
def test_the_cases_of_a_suite_are_told_apart_by_their_strings_which_parse_back(name: str) -> None:
    cases = suite(name)
    strings = [str(case) for case in cases]
    assert len(set(strings)) == len(strings)
    assert [Case.parse(string) for string in strings] == cases


def test_an_unknown_suite_is_refused_with_the_names_that_there_are() -> None:
    with pytest.raises(
        UsageError, match=r"suite 'smok' is unknown; there are seed, smoke, default"
    ):
        suite("smok")


def test_the_seed_suite_is_the_case_on_which_the_bug_was_found() -> None:
    [case] = suite("seed")
    assert case.regime == "seed"
    assert case.segment_bounds() == (0, 1, 2)


def test_every_suite_has_the_seed_case() -> None:
    assert all(suite("seed")[0] in suite(name) for name in SUITES)


def test_default_has_every_type_of_k_and_of_v() -> None:
    of_caches = set(TYPES) - {"q1_0", "q2_0"}  # those are of weights
    assert {case.type_K for case in DEFAULT} == of_caches
    assert {case.type_V for case in DEFAULT} == of_caches
    assert any(case.type_K != case.type_V for case in DEFAULT)


def test_default_has_every_path_in_every_float_type_that_takes_it() -> None:
    found = {(path(case), case.type_K) for case in DEFAULT if case.type_K == case.type_V}
    expected = {*itertools.product(["vec", "tiled", "split-kv"], ["f16", "f32"])}
    assert expected <= found


@pytest.mark.parametrize("regime", [regime for regime in REGIMES if regime != "seed"])
def test_default_has_every_regime_for_decode_and_for_prefill(regime: str) -> None:
    cases = [case for case in DEFAULT if case.regime == regime]
    assert any(case.nb == 1 and path(case) == "vec" for case in cases)
    assert any(case.nb == 1 and path(case) == "split-kv" for case in cases)
    assert any(case.nb > 1 for case in cases)


@pytest.mark.parametrize("group", [1, 3, 4, 8])
def test_default_has_groups_of_query_heads(group: int) -> None:
    assert any(case.nr23[0] == group for case in DEFAULT)


def test_default_has_a_group_of_three_with_several_kv_heads() -> None:
    assert any(case.nr23[0] == 3 and case.n_head_kv > 1 for case in DEFAULT)


@pytest.mark.parametrize("sizes", [(64, 64), (80, 80), (128, 128), (256, 256), (576, 512)])
def test_default_has_the_head_sizes(sizes: tuple[int, int]) -> None:
    cases = [case for case in DEFAULT if (case.hsk, case.hsv) == sizes]
    assert {case.nb == 1 for case in cases} == {True, False}


@pytest.mark.parametrize("kind", ["none", "causal", "random", "leading", "zeros", "sparse"])
def test_default_has_the_masks(kind: str) -> None:
    assert any(case.mask_kind == kind for case in DEFAULT)


@pytest.mark.parametrize("option", ["sinks", "logit_softcap", "max_bias"])
def test_default_has_each_option_without_the_others(option: str) -> None:
    others = {"sinks", "logit_softcap", "max_bias"} - {option}
    cases = [case for case in DEFAULT if getattr(case, option)]
    assert any(not any(getattr(case, other) for other in others) for case in cases)


def test_default_has_alibi_with_a_number_of_heads_that_is_no_power_of_two() -> None:
    assert any(case.max_bias and case.n_head & (case.n_head - 1) for case in DEFAULT)


def test_default_has_options_on_the_paths_that_treat_them_apart() -> None:
    for wanted in ("tiled", "split-kv"):
        assert any(case.sinks and path(case) == wanted for case in DEFAULT)
    assert any(case.logit_softcap and path(case) == "tiled" for case in DEFAULT)


def test_default_has_two_sequences_masks_per_head_permutations_and_a_cache_of_its_own() -> None:
    assert any(case.ne3 == 2 and case.nb > 1 for case in DEFAULT)
    assert any(case.mask_heads > 1 for case in DEFAULT)
    assert any(case.permute != (0, 1, 2, 3) for case in DEFAULT)
    assert {case.kv_view for case in DEFAULT} == {True, False}
    assert any(case.v_is_view_of_k for case in DEFAULT)


def test_default_has_uneven_empty_and_single_key_segments() -> None:
    lengths = [
        [stop - start for start, stop in itertools.pairwise(case.segment_bounds())]
        for case in DEFAULT
        if case.boundaries is not None
    ]
    assert any(0 in of_case for of_case in lengths)
    assert any(1 in of_case for of_case in lengths)
    assert any(len(set(of_case)) > 1 for of_case in lengths)
    assert any(case.boundaries == "random" for case in DEFAULT)


def test_default_has_no_square_shape_in_which_rows_and_heads_could_be_swapped_unseen() -> None:
    assert any(1 < case.nb != case.n_head > 1 for case in DEFAULT)


@pytest.mark.parametrize("name", ["smoke", "default"])
@pytest.mark.parametrize("segments", [1, 2, 3, 4, 7])
def test_a_suite_can_be_run_in_any_usual_number_of_segments(name: str, segments: int) -> None:
    for case in suite(name):
        if case.boundaries is None and case.regime != "seed":
            assert len(case.with_(segments=segments).segment_bounds()) == segments + 1
