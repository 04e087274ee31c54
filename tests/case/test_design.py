"""The cases by design are what their dimensions, values and rules say."""

import itertools
from collections.abc import Iterator

import pytest

from fa_harness.case import design
from fa_harness.case.design import BLOCKS, TRIPLES, Tuples, rules_of, tuples_of
from fa_harness.kernel import path


def can_meet(block: str, values: dict[str, str]) -> bool:
    """Tell whether no rule forbids some values, whatever the values of the other dimensions."""
    for names, holds in rules_of(block):
        others = [name for name in names if name not in values]
        choices = itertools.product(*(BLOCKS[block][name] for name in others))
        rows = ({**values, **dict(zip(others, choice, strict=True))} for choice in choices)
        if not any(holds(*(row[name] for name in names)) for row in rows):
            return False
    return True


def allowed(block: str, names: tuple[str, ...]) -> Iterator[tuple[tuple[str, str], ...]]:
    for values in itertools.product(*(BLOCKS[block][name] for name in names)):
        met = tuple(zip(names, values, strict=True))
        if can_meet(block, dict(met)):
            yield met


@pytest.mark.parametrize("block", BLOCKS)
def test_all_values_that_can_meet_do(block: str) -> None:
    dimensions = [*itertools.combinations(BLOCKS[block], 2), *TRIPLES[block]]
    wanted: Tuples = {met for names in dimensions for met in allowed(block, names)}
    assert tuples_of(design.rows_by_block()[block], dimensions) == wanted


@pytest.mark.parametrize("block", BLOCKS)
def test_every_row_obeys_the_rules(block: str) -> None:
    for row in design.rows_by_block()[block]:
        assert all(row[name] in values for name, values in BLOCKS[block].items())
        assert can_meet(block, dict(row))


@pytest.mark.parametrize("block", ["vec", "split-kv", "tiled"])
def test_a_block_s_cases_take_its_path(block: str) -> None:
    cases = [design.case_of(block, row) for row in design.rows_by_block()[block]]
    other = [case for case in cases if path(case) != block]
    # of the vec block, a single row of a float type and many keys is shared among the threads
    assert all(path(case) == "split-kv" for case in other)
    assert not other or block == "vec"
    assert len(other) < len(cases)


def test_the_whole_design_covers_itself_and_a_part_of_it_less() -> None:
    cases = design.cases()
    whole = design.covered(case.with_(seed=7) for case in cases)
    assert (whole.pairs, whole.triples) == (whole.of_pairs, whole.of_triples)
    part = design.covered(cases[::2])
    assert 0 < part.pairs < part.of_pairs == whole.of_pairs
    one_thread = design.covered(case.with_(threads=1) for case in cases)
    assert one_thread.pairs < whole.pairs
