"""What the fuzzer draws: valid, small, and some of everything."""

import itertools
from collections import Counter
from collections.abc import Callable

import pytest

from fa_harness.case.case import MASK_KINDS, REGIMES, Case
from fa_harness.case.quants import TYPES
from fa_harness.case.strategies import draw_cases, work
from fa_harness.kernel import chain_paths, path


@pytest.fixture(scope="module")
def drawn() -> list[Case]:
    return list(itertools.islice(draw_cases(1), 800))


def test_a_seed_gives_the_same_cases_again_and_another_others(drawn: list[Case]) -> None:
    assert list(itertools.islice(draw_cases(1), 150)) == drawn[:150]
    assert len(set(itertools.islice(draw_cases(2), 150)) & set(drawn)) < 15


def test_no_case_is_drawn_twice(drawn: list[Case]) -> None:
    assert len(set(drawn)) == len(drawn)


def test_every_path_has_its_share(drawn: list[Case]) -> None:
    paths = Counter(path(case) for case in drawn if not case.segment_types and not case.hot_window)
    assert min(paths[name] for name in ("vec", "tiled", "split-kv")) >= len(drawn) / 10


@pytest.mark.parametrize(
    ("of", "all_"),
    [
        (lambda case: [case.type_K], TYPES),
        (lambda case: [case.type_V], TYPES),
        (lambda case: [t for s in case.segment_types for t in s.split("/")], TYPES),
        (lambda case: [case.cold_type] if case.hot_window else [], TYPES),
        (lambda case: [case.mask_kind], MASK_KINDS),
        (lambda case: [case.regime], set(REGIMES) - {"seed"}),
        (lambda case: [case.permute[1:]], itertools.permutations((1, 2, 3))),
        (lambda case: [case.threads if case.threads < 3 else (case.threads + 3) // 4],
         (1, 2, *range(1, 5))),
        (lambda case: [case.n_group], range(1, 9)),
        (lambda case: [case.ne3], (1, 2, 3)),
        (lambda case: [case.prec], ("f32", "def")),
        (lambda case: [case.mask_kind] if case.sinks else [], MASK_KINDS),
        (lambda case: [case.n_batch % case.threads for _ in range(case.threads == 2)], (0, 1)),
        *((lambda case, n=n: [case.hsk % n], range(n)) for n in (8, 16, 32)),
        *((lambda case, n=n: [case.hsv % n], range(n)) for n in (8, 16, 32)),
        (lambda case: [case.boundaries if case.boundaries in (None, "random") else "listed"],
         (None, "random", "listed")),
    ],
    ids=[
        "K", "V", "segments", "cold", "masks", "regimes", "permutations", "threads", "groups",
        "sequences", "precision", "masks beside sinks", "rows that two threads do not divide",
        "hsk by 8", "hsk by 16", "hsk by 32", "hsv by 8", "hsv by 16", "hsv by 32", "cuts",
    ],
)  # fmt: skip
def test_each_of_them_is_drawn(
    drawn: list[Case], of: Callable[[Case], list[object]], all_: object
) -> None:
    assert {value for case in drawn for value in of(case)} == set(all_)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "is_one",
    [
        lambda case: case.segments == 1,
        lambda case: len(set(case.segment_bounds())) <= case.segments,
        lambda case: len(set(chain_paths(case))) > 1,
        lambda case: case.hsk % 2 == 1 and case.type_K in ("f16", "f32"),
        lambda case: (case.hsk, case.hsv) == (576, 512),
        lambda case: case.v_is_view_of_k,
        lambda case: case.hsk_padded > case.hsk,
        lambda case: case.type_K != case.type_V,
        lambda case: case.n_batch >= 64 and case.n_kv % 64 != 0 and not case.mask,
        lambda case: case.mask_heads > 1,
        lambda case: case.max_bias and case.logit_softcap and case.sinks,
        lambda case: not case.kv_view,
        lambda case: 0 < case.hot_window < case.n_kv and case.group > 1,
        lambda case: "/" in "".join(case.segment_types),
        lambda case: case.n_batch > case.n_kv,
        lambda case: case.hsv > case.hsk,
        lambda case: case.kq_scale > case.with_(kq_scale=0).scale,
        lambda case: 0 < case.kq_scale < case.with_(kq_scale=0).scale,
        lambda case: case.max_bias and case.n_head not in (1, 2, 4, 8, 16, 32),
        lambda case: case.threads > case.n_head * case.n_batch * case.ne3,
        lambda case: case.threads > 2 and case.n_head * case.n_batch * case.ne3 % case.threads,
        lambda case: case.n_kv >= 4096,
        lambda case: case.n_kv > 512 and path(case) == "vec",
        lambda case: case.n_kv > 512 and path(case) == "tiled",
        lambda case: case.n_batch > 12 and path(case) == "vec",
    ],
    ids=[
        "one segment", "an empty segment", "a chain over two paths", "an odd head size", "MLA",
        "V in K", "padded rows", "unequal types", "a tile that is not full", "masks by head",
        "all options",
        "no view", "a rolling cache", "unequal types of a segment", "more rows than keys",
        "V larger than K", "a larger scale", "a smaller scale", "ALiBi of no power of two",
        "more threads than rows", "rows that many threads do not divide", "a long cache",
        "a long cache on the vec path", "a long cache in tiles", "many rows on the vec path",
    ],
)  # fmt: skip
def test_such_a_case_is_drawn(drawn: list[Case], is_one: Callable[[Case], bool]) -> None:
    assert sum(map(bool, map(is_one, drawn))) >= 3


def test_long_caches_come_every_few_dozen_cases(drawn: list[Case]) -> None:
    lengths = [case.n_kv for case in drawn if case.n_kv > 1300]
    assert len(drawn) / 100 < len(lengths) < len(drawn) / 20
    assert max(lengths) > 32768


def test_the_mean_case_is_cheap_and_none_costs_much(drawn: list[Case]) -> None:
    costs = [work(case) for case in drawn]
    assert sum(costs) / len(costs) < 2_500_000  # 20 ms, see `work`
    assert max(costs) < 40_000_000
    assert sum(case.threads > 2 for case in drawn) < len(drawn) / 10
    assert max(case.segments for case in drawn if case.threads > 2) <= 3


def test_segments_have_keys_that_a_row_sees(drawn: list[Case]) -> None:
    """Else they would be mistrusted, whatever the library does."""
    chains = [case for case in drawn if case.segments > 1 and case.mask_kind in ("none", "zeros")]
    for case in chains:
        assert len(set(case.segment_bounds())) > 2, case
    assert len(chains) > len(drawn) / 10
