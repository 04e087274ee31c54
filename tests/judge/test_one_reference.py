"""Of a failing case all numbers are about one reference, whatever is wrong, in every mode."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fa_harness.arrays import F32
from fa_harness.case.case import Case
from fa_harness.case.inputs import make_inputs
from fa_harness.case.modes import Run
from fa_harness.engine.compute import run_case
from fa_harness.engine.ggml import Ggml
from fa_harness.judge import contract
from fa_harness.judge.compare import ORACLE, PARTS, Check
from fa_harness.judge.expectations import Expectations
from fa_harness.judge.verdict import Verdict, judge
from fa_harness.judge.words import explain, worst
from fa_harness.report.json import plain

VEC = Case(
    hsk=32, hsv=32, n_head_kv=1, n_group=2, ne3=2, n_kv=40, n_batch=3, segments=3, regime="normal",
    type_K="f32", type_V="f32",
)  # fmt: skip
ROLLING = Case(
    hsk=32, hsv=32, n_head_kv=1, n_group=2, n_kv=12, n_batch=12, mask_kind="causal",
    regime="normal", hot_window=4, group=2, cold_type="q8_0",
)  # fmt: skip
CASES = {
    "f32": VEC,
    "f16": VEC.with_(type_K="f16", type_V="f16", sinks=True),
    "q8_0": VEC.with_(type_K="q8_0", type_V="q4_0"),
    "q4_1": VEC.with_(type_K="q4_1", type_V="f16"),
    "hidden rows": VEC.with_(mask_kind="leading"),
    "tiled": VEC.with_(n_batch=64, ne3=1, n_kv=70),
    "split-kv": VEC.with_(n_batch=1, ne3=1, n_kv=520, segments=2, threads=2),
    "split-kv f16": VEC.with_(
        n_batch=1, ne3=1, n_kv=520, segments=2, threads=2, type_K="f16", type_V="f16"
    ),
    "mixed": VEC.with_(segment_types=("q4_0", "q8_0", "f32/f16")),
    "alone": VEC.with_(segments=1),
    "wild": VEC.with_(
        hsk=64,
        hsv=40,
        n_head_kv=5,
        ne3=1,
        n_kv=70,
        segments=3,
        regime="nan",
        mask=False,
        mask_kind="none",
    ),
    "overflow": VEC.with_(type_V="f16", mask=False, mask_kind="none"),
    "rolling": ROLLING,
    "rolling f16": ROLLING.with_(cold_type="f16"),
}

Compute = Callable[[Case], tuple[Run, tuple[str, ...]]]


@pytest.fixture(scope="session")
def compute(library: Ggml) -> Compute:
    """Compute a case on the patched library, once, and tell of the library's features."""
    return functools.cache(
        lambda case: (run_case(library, case, inputs_of(case)), library.features())
    )


@functools.cache
def inputs_of(case: Case) -> Any:
    """Return a case's inputs; one has a V whose sums end beyond F16 in one of two sequences."""
    inputs = make_inputs(case)
    if case != CASES["overflow"]:
        return inputs
    v = inputs.v.copy()
    v[0] = 60000
    raw = v.astype(np.float16).view(np.uint8)
    return dataclasses.replace(
        inputs, q=np.zeros_like(inputs.q), v=raw.view(np.float16).astype(np.float32), v_raw=raw
    )


@functools.cache
def expected_of(case: Case, features: tuple[str, ...]) -> Expectations:
    return Expectations(case, inputs_of(case), features)


def judged(case: Case, run: Run, features: tuple[str, ...]) -> Verdict:
    expected = expected_of(case, features)
    return judge(case, inputs_of(case), run, features=features, expected=expected)


# what is said of a failure


def same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def numbers_agree(verdict: Verdict) -> None:
    """Assert that all numbers of a failing case are about one element and one reference."""
    found = verdict.localisation
    assert found is not None
    reason, where, at_worst, _ = lines = explain(verdict)
    assert lines == [verdict.reason, *found.lines()]
    assert where.startswith(f"{found.mode}, {found.call}, ")
    assert same(found.error, abs(found.got - found.expected))
    same_bits, is_same = found.limit == "bits", found.limit in ("bits", "equality")
    assert found.share > 1
    assert not found.error <= found.bound or same_bits

    # the records in JSON
    comparison = verdict.comparisons[found.comparison]
    assert not comparison.ok
    assert (comparison.required == "bits") == same_bits
    assert comparison.worst is not None
    assert comparison.worst[:3] == (found.batch, found.head, found.row)
    dim = PARTS.index(found.part) if found.part in PARTS else 0
    assert comparison.worst.dim == dim + (found.element or 0)
    assert same(comparison.worst.error, found.error)
    assert comparison.bound == found.bound
    assert comparison.place == f"{found.call}, {found.place}"
    if not same_bits:
        assert comparison.of_bound == pytest.approx(found.share, rel=1e-9)
    assert not comparison.max_abs < found.error
    assert plain(vars(found))["error"] == (
        found.error if math.isfinite(found.error) else str(found.error)
    )

    # what a person reads
    assert reason.endswith(f" at {found.place}")
    assert at_worst.startswith(f"worst at {found.place}: got ")
    other = "expected" if found.other == ORACLE else f"in {found.other}"
    told = re.search(rf": got (\S+), {re.escape(other)} (\S+?)(?:,|$)", at_worst)
    assert told, at_worst
    got, expected = float(told[1]), float(told[2])
    error = abs(got - expected)
    column, share = worst(verdict)
    if is_same:
        what = "bit-identical" if same_bits else "equal"
        assert f": must be {what}, " in reason
        assert "the bound" not in at_worst
        assert (share == "bits") == same_bits
        if found.error == 0:
            assert same_bits
            assert "0 and -0 differ" in reason
            return
        said = re.search(r"differs by (\S+) at ", reason)
        assert said
    else:
        said = re.search(r": (\S+), (?:allowed|the standard run's error allows) (\S+) at ", reason)
        assert said
        assert not float(said[1]) <= float(said[2])
        assert not error <= float(said[2])
        words = re.search(r", (\S+) x (?:the bound|what the standard run's error allows)", at_worst)
        if math.isfinite(found.share):
            assert words
            assert float(words[1]) > 1
            assert float(words[1]) == pytest.approx(error / float(said[2]), rel=0.02)
            assert share == f"{words[1]} x"
        else:
            assert f"allowed error {said[2]}" in at_worst
            assert share == "inf x"
    assert column == said[1]
    if math.isfinite(found.error):
        assert float(said[1]) == pytest.approx(error, rel=0.01)
        assert error > 0
    else:
        assert same(float(said[1]), error)
    for part in found.right:
        assert part in PARTS
        assert part != found.part


@pytest.mark.parametrize("name", CASES)
def test_of_a_case_that_passes_each_record_is_of_one_element(compute: Compute, name: str) -> None:
    case = CASES[name]
    run, features = compute(case)
    verdict = judged(case, run, features)
    assert verdict.status == ("unsupported" if name == "overflow" else "pass"), verdict.reason
    for found in verdict.comparisons.values():
        assert (found.worst is None) == (found.place == "")
        if found.worst is not None and found.bound:
            assert found.of_bound == pytest.approx(found.worst.error / found.bound, rel=1e-9)
            batch, head, row, _, _ = found.worst
            assert f", batch {batch}, head {head}, row {row}, " in found.place


# a number of one check

QUICK = ("f32", "f16", "q8_0", "split-kv", "alone", "rolling", "rolling f16")


def other_numbers(x: F32, expected: Any, bound: Any) -> Iterator[F32]:
    """Yield other numbers for one: just beyond the bound, far beyond, the next, and none."""
    with np.errstate(all="ignore"):
        # where bits are required the bound is 0, and these would all be the expected number
        for beyond in (9.7, 1.0001, 1.3, -1.01, -4000.0) if bound else ():
            yield np.float32(expected + beyond * bound)
        for other in (np.nextafter(x, np.float32(np.inf)), -x, x + 1, np.nan, np.inf, -np.inf, 17):
            yield np.float32(other)


def key(check: Check) -> tuple[object, ...]:
    return check.mode, check.name, check.call.name, check.is_state, check.first_row


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in CASES],
)
def test_whatever_check_does_not_hold_its_numbers_agree(
    compute: Compute, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    run, features = compute(case)
    original, expected = contract.checks, expected_of(case, features)
    rng = np.random.default_rng(7)
    of_name: dict[tuple[object, ...], list[Check]] = {}
    with np.errstate(all="ignore"):
        for each in original(expected, run.results):
            of_name.setdefault((each.name, each.is_state), []).append(each)
    chosen = [checks[rng.integers(len(checks))] for checks in of_name.values()]
    reached = set()
    for check in chosen:
        n = check.got.shape[-1]
        dims = (0, 1, 2 + int(rng.integers(n - 2))) if check.is_state else (int(rng.integers(n)),)
        for dim in dims:
            at = (*(int(rng.integers(size)) for size in check.got.shape[:3]), dim)
            near = check.expected if check.region is None else check.region.centre
            bound = 0.0 if check.region is None else check.region.bound[at]
            others = list(other_numbers(check.got[at], near[at], bound))
            for other in [others[0], *rng.choice(others[1:], 3, replace=False)]:

                def with_fault(
                    *args: Any, check: Check = check, at: Any = at, other: Any = other
                ) -> Iterator[Check]:
                    for each in original(*args):
                        if key(each) == key(check):
                            got = each.got.copy()
                            got[at] = other
                            each = dataclasses.replace(each, got=got)
                        yield each

                monkeypatch.setattr(contract, "checks", with_fault)
                verdict = judged(case, run, features)
                if verdict.localisation is not None:
                    assert verdict.localisation.comparison == check.name
                    numbers_agree(verdict)
                    reached.add((check.name, check.is_state))
                else:
                    assert verdict.status != "fail", verdict.reason
    # a loose row may be anything, and so may one whose F16 accumulator ended
    assert name in ("wild", "overflow") or len(reached) == len(of_name)


# a fault of a run


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths to all arrays of what modes left."""
    if isinstance(value, np.ndarray):
        if value.dtype == np.float32 and value.ndim == 4:
            yield path
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name), (*path, field.name))
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from leaves(item, (*path, name))
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            yield from leaves(item, (*path, i))


def with_leaf(value: Any, path: tuple[Any, ...], change: Callable[[F32], F32]) -> Any:
    """Return what modes left with a change of one array."""
    if not path:
        return change(value)
    first, *rest = path
    if isinstance(value, dict):
        return {**value, first: with_leaf(value[first], tuple(rest), change)}
    if isinstance(value, tuple):
        items = list(value)
        items[first] = with_leaf(items[first], tuple(rest), change)
        return tuple(items)
    item = with_leaf(getattr(value, first), tuple(rest), change)
    return dataclasses.replace(value, **{first: item})


@st.composite
def faults(draw: st.DrawFn) -> tuple[str, Callable[[Run], Run]]:
    """Draw a case, and what goes wrong in one array of what it left, or in all that are equal."""
    name = draw(st.sampled_from(sorted(CASES)))
    which, seed = draw(st.floats(0, 0.999)), draw(st.integers(0, 1 << 20))
    where = draw(st.sampled_from(["element", "row", "head", "all"]))
    size = 2.0 ** -draw(st.integers(0, 24))
    how = draw(st.sampled_from(["scaled", "added", "noise", "set", "turned"]))
    value = draw(st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3e38, 17.0]))
    everywhere = draw(st.booleans())

    def change(array: F32) -> F32:
        rng = np.random.default_rng(seed)
        at: list[Any] = [int(rng.integers(n)) for n in array.shape]
        n_kept = {"element": 4, "row": 3, "head": 2, "all": 0}[where]
        at[n_kept:] = [slice(None)] * (4 - n_kept)
        result: F32 = array.copy()
        some = result[tuple(at)]
        with np.errstate(all="ignore"):
            result[tuple(at)] = {
                "scaled": lambda: some * np.float32(1 + size),
                "added": lambda: some + np.float32(size),
                "noise": lambda: some * (1 + size * rng.normal(size=some.shape)),
                "set": lambda: np.full_like(some, value),
                "turned": lambda: -some,
            }[how]()
        return result

    def fault(run: Run) -> Run:
        paths = list(leaves(run.results))
        path = paths[int(which * len(paths))]
        original: Any = run.results
        for step in path:
            is_item = isinstance(original, dict | tuple)
            original = original[step] if is_item else getattr(original, step)
        results: Any = run.results
        for other in paths if everywhere else [path]:

            def of_equal(array: F32) -> F32:
                is_equal = array.shape == original.shape and array.tobytes() == original.tobytes()
                return change(array) if is_equal else array

            results = with_leaf(results, other, of_equal)
        return dataclasses.replace(run, results=results)

    return name, fault


@settings(
    max_examples=200, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(faults())
def test_whatever_a_mode_leaves_the_numbers_of_its_failure_agree(
    compute: Compute, fault: tuple[str, Callable[[Run], Run]]
) -> None:
    name, make_wrong = fault
    case = CASES[name]
    run, features = compute(case)
    verdict = judged(case, make_wrong(run), features)
    if verdict.status == "fail":
        numbers_agree(verdict)
    else:
        assert verdict.localisation is None
