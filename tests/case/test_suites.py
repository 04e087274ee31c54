import itertools
from pathlib import Path

import pytest

from fa_harness.case.case import REGIMES, Case
from fa_harness.case.quants import TYPES
from fa_harness.case.rolling import n_cold
from fa_harness.case.suites import SUITES, suite, suite_names
from fa_harness.errors import UsageError
from fa_harness.kernel import chain_paths, path
from tiny_upstream import write_files

IN_SUITES = [regime for regime in REGIMES if regime not in ("seed", "few", "nan")]
DEFAULT = suite("default")
OF_CACHES = set(TYPES) - {"q1_0", "q2_0"}  # those are of weights


@pytest.mark.parametrize("name", ["seed", "smoke", "default", "reduction", "mixed", "fifo"])
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


def test_a_series_has_suites_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(hsk=32, hsv=32, n_head_kv=1, n_kv=20, n_batch=2, segments=2)
    write_files(
        tmp_path,
        {
            "fa-harness.toml": 'patches = "patches"\nseries = "mine"\n',
            "patches/mine/series": "",
            "patches/mine/suites/tails.txt": f"# of a tail\n{case}\n",
            "patches/mine/suites/smoke.txt": "",
            "patches/other/series": "",
            "patches/other/suites/tails.txt": "",
        },
    )
    monkeypatch.chdir(tmp_path)
    assert suite("tails") == [case]
    assert len(suite("smoke")) > 1, "the name is taken"
    assert suite_names() == (*SUITES, "tails")
    with pytest.raises(UsageError, match=r"'tales' is unknown; there are seed, .*, tails$"):
        suite("tales")


def test_the_seed_suite_is_the_case_on_which_the_bug_was_found() -> None:
    [case] = suite("seed")
    assert case.regime == "seed"
    assert case.segment_bounds() == (0, 1, 2)


def test_every_suite_but_that_of_rolling_caches_has_the_seed_case() -> None:
    assert all(suite("seed")[0] in suite(name) for name in SUITES if name != "fifo")


def test_default_has_every_type_of_k_and_of_v() -> None:
    assert {case.type_K for case in DEFAULT} == OF_CACHES
    assert {case.type_V for case in DEFAULT} == OF_CACHES
    assert any(case.type_K != case.type_V for case in DEFAULT)


def test_default_has_every_path_in_every_float_type_that_takes_it() -> None:
    found = {(path(case), case.type_K) for case in DEFAULT if case.type_K == case.type_V}
    expected = {*itertools.product(["vec", "tiled", "split-kv"], ["f16", "f32"])}
    assert expected <= found


@pytest.mark.parametrize("regime", IN_SUITES)
def test_default_has_every_regime_for_decode_and_for_prefill(regime: str) -> None:
    cases = [case for case in DEFAULT if case.regime == regime]
    assert any(case.n_batch == 1 and path(case) == "vec" for case in cases)
    assert any(case.n_batch == 1 and path(case) == "split-kv" for case in cases)
    assert any(case.n_batch > 1 for case in cases)


@pytest.mark.parametrize("group", [1, 3, 4, 8])
def test_default_has_groups_of_query_heads(group: int) -> None:
    assert any(case.n_group == group for case in DEFAULT)


def test_default_has_a_group_of_three_with_several_kv_heads() -> None:
    assert any(case.n_group == 3 and case.n_head_kv > 1 for case in DEFAULT)


@pytest.mark.parametrize("sizes", [(64, 64), (80, 80), (128, 128), (256, 256), (576, 512)])
def test_default_has_the_head_sizes(sizes: tuple[int, int]) -> None:
    cases = [case for case in DEFAULT if (case.hsk, case.hsv) == sizes]
    assert {case.n_batch == 1 for case in cases} == {True, False}


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
    assert any(case.ne3 == 2 and case.n_batch > 1 for case in DEFAULT)
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
    assert any(1 < case.n_batch != case.n_head > 1 for case in DEFAULT)


@pytest.mark.parametrize("name", ["smoke", "default"])
@pytest.mark.parametrize("segments", [1, 2, 3, 4, 7])
def test_a_suite_can_be_run_in_any_usual_number_of_segments(name: str, segments: int) -> None:
    for case in suite(name):
        if case.boundaries is None and case.regime != "seed":
            assert len(case.with_(segments=segments).segment_bounds()) == segments + 1


def test_fifo_has_rolling_caches_only_in_which_tokens_get_cold() -> None:
    assert all(0 < case.hot_window < case.n_kv for case in suite("fifo"))


def test_fifo_has_every_cold_type_but_f32_in_every_kind_of_regime() -> None:
    for regime in ("normal", "spiky", "rising", "falling", "offset", "outlier", "huge"):
        found = {case.cold_type for case in suite("fifo") if case.regime == regime}
        assert found >= OF_CACHES - {"f32"}


def test_fifo_has_calls_on_split_kv_over_either_part_of_the_cache() -> None:
    cases = [case for case in suite("fifo") if case.ne3 == 1]
    assert any(
        case.hot_window >= 512 and case.type_K == "f16" and case.threads > 1 for case in cases
    )
    assert any(n_cold(case).max() >= 512 and case.cold_type == "f16" for case in cases)


def test_fifo_can_be_run_with_another_window_group_and_cold_type() -> None:
    for case in suite("fifo"):
        other = case.with_(hot_window=32, group=8, cold_type="q4_0")
        assert n_cold(other).any()


# what independent states and segments of different types have to meet


@pytest.mark.parametrize("name", ["reduction", "mixed"])
@pytest.mark.parametrize("regime", IN_SUITES)
def test_reduction_and_mixed_have_every_regime_in_typed_segments(name: str, regime: str) -> None:
    assert any(case.regime == regime and case.segment_types for case in suite(name))


@pytest.mark.parametrize("n", [2, 3, 8, 17])
def test_reduction_has_every_number_of_segments_for_every_type(n: int) -> None:
    types = {case.type_K for case in suite("reduction") if case.segments == n}
    assert types == OF_CACHES


@pytest.mark.parametrize("name", ["reduction", "mixed"])
def test_reduction_and_mixed_have_masks_sinks_and_empty_segments(name: str) -> None:
    cases = suite(name)
    assert {"leading", "masked_segment", "causal"} <= {case.mask_kind for case in cases}
    assert any(case.sinks for case in cases)
    assert any(case.max_bias for case in cases)
    assert any(case.logit_softcap for case in cases)
    assert any(case.ne3 > 1 and case.n_group == 3 for case in cases)
    assert any(0 in map(int.__sub__, case.segment_bounds()[1:], case.segment_bounds())
               for case in cases)  # fmt: skip


def test_reduction_has_a_first_segment_that_is_masked_for_all_rows() -> None:
    assert any(case.mask_kind == "leading" and case.segments >= 8 for case in suite("reduction"))


@pytest.mark.parametrize("wanted", ["tiled", "split-kv"])
def test_mixed_has_chains_that_change_their_path_with_the_type(wanted: str) -> None:
    paths = {chain_paths(case, own_types=True) for case in suite("mixed")}
    assert any(wanted in of_case and "vec" in of_case for of_case in paths)


def test_mixed_continues_quantised_segments_in_segments_with_an_f16_v() -> None:
    followed = {
        (case.types_of_segment(i)[1], case.types_of_segment(i + 1)[1])
        for case in suite("mixed")
        for i in range(case.segments - 1)
    }
    assert {("q8_0", "f16"), ("f32", "f16"), ("bf16", "f16"), ("f16", "q8_0")} <= followed
