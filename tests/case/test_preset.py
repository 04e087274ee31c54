"""States set by hand: the kinds of rows, and that each is what its name says."""

import numpy as np
import pytest

from fa_harness.case import preset
from fa_harness.case.case import Case

CASE = Case(hsk=32, hsv=40, n_head_kv=11, n_batch=4, n_kv=20, ne3=2, regime="normal", seed=3)


def test_every_row_is_of_one_kind_and_neighbours_are_of_others() -> None:
    are = np.stack([preset.are_of(kind, CASE) for kind in preset.KINDS])
    assert (are.sum(axis=0) == 1).all()
    of_rows = are.reshape(len(preset.KINDS), -1).argmax(axis=0)
    assert (of_rows[1:] != of_rows[:-1]).all()
    assert are.any(axis=(1, 2, 3)).all()


def test_another_seed_gives_a_row_another_kind() -> None:
    one, other = (preset.are_of("nan", CASE.with_(seed=seed)) for seed in (3, 4))
    assert not (one & other).any()


@pytest.mark.parametrize("kind", preset.KINDS)
def test_a_kind_is_what_its_name_says(kind: str) -> None:
    rows = preset.rows(CASE)[preset.are_of(kind, CASE)]
    m, s, vkq = rows[:, 0], rows[:, 1], rows[:, 2:]
    with np.errstate(over="ignore"):
        is_f16 = vkq.astype(np.float16).astype(np.float32) == vkq
    largest, smallest = np.finfo(np.float32).max, np.finfo(np.float32).smallest_normal
    is_what = {
        "fresh": np.isneginf(m) & np.isnan(s) & np.isnan(vkq).all(axis=1),
        "f16": is_f16.all(axis=1) & (s > 1),
        "last not f16": is_f16[:, :-1].all(axis=1) & ~is_f16[:, -1],
        "beyond f16": np.abs(vkq).max(axis=1) > 65504,
        "denormal": (s > 0) & (s < smallest) & (np.abs(vkq).max(axis=1) < smallest),
        "lowest maximum": (m == -largest) & (s > 1),
        "highest maximum": (m == largest) & (s > 1),
        "infinite maximum": np.isposinf(m) & (s > 1),
        "nan": np.isnan(rows).all(axis=1),
        "nan but its maximum": np.isfinite(m) & np.isnan(rows[:, 1:]).all(axis=1),
        "wild numerators": np.isfinite(m) & (~np.isfinite(vkq)).sum(axis=1).__eq__(3),
    }
    assert is_what.keys() == set(preset.KINDS)
    assert is_what[kind].all()
