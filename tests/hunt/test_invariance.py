"""Bug or rounding: variations keep bits or stay within bounds, and mutants do not."""

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

import schemas
from fa_harness.build.library import Library
from fa_harness.case.case import Case
from fa_harness.case.inputs import make_inputs
from fa_harness.case.suites import suite
from fa_harness.case.variations import Variation, as_it_is, as_seen, variations_of, vary
from fa_harness.cli.main import cli
from fa_harness.engine.runner import Runner
from fa_harness.hunt.invariance import Found, Row, vary_all
from fa_harness.hunt.invariance import Verdict as Varied
from fa_harness.judge import oracle
from fa_harness.judge.invariance import DIFFERS, ROUNDED, SAME, Invariance
from fa_harness.kernel import keeps_bits
from fa_harness.report.invariance import say_row

VEC = Case(
    hsk=24, hsv=16, n_head_kv=2, n_group=3, ne3=2, n_kv=70, n_batch=5, mask_kind="leading",
    mask_heads=3, sinks=True, type_K="f32", type_V="f16", regime="normal",
)  # fmt: skip
TILED = Case(
    hsk=16, hsv=8, n_head_kv=2, n_group=2, n_kv=100, n_batch=130, mask=False, logit_softcap=4,
    type_K="f16", type_V="f16", regime="spiky",
)  # fmt: skip
SPLIT = Case(
    hsk=16, hsv=24, n_head_kv=2, n_group=2, n_kv=602, n_batch=1, mask_kind="masked_segment",
    type_K="f32", type_V="f32", regime="rising", threads=2,
)  # fmt: skip
ALIBI = VEC.with_(max_bias=8, n_batch=2, type_V="q8_0")


def outcomes(verdict: Varied) -> dict[str, str]:
    return {row.name: row.outcome for row in verdict.rows}


@pytest.fixture
def few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a machine has cores take their time."""
    monkeypatch.setattr("fa_harness.case.variations._MOST_THREADS", 3)


@pytest.fixture(scope="module")
def runner(patched: Library) -> Iterator[Runner]:
    with Runner(patched.module_path) as runner:
        yield runner


def test_on_the_vec_path_all_but_the_order_of_keys_keeps_the_bits(runner: Runner) -> None:
    verdict = vary_all(runner, VEC)
    assert verdict.passed
    assert outcomes(verdict) == {
        "as it is": ROUNDED,
        **{f"micro-batches of {size}": SAME for size in range(1, 5)},
        "cells permuted": ROUNDED,
        "junk in masked cells": SAME,
        "junk in cells behind": SAME,
        "sequences apart": SAME,
        "sequences twice": SAME,
        "heads rotated": SAME,
        "threads 1 to 16": SAME,
    }
    assert next(row for row in verdict.rows if row.name == "threads 1 to 16").calls == 15


@pytest.mark.usefixtures("few_threads")
def test_a_batch_that_leaves_the_tiles_is_rounded_otherwise(runner: Runner) -> None:
    verdict = vary_all(runner, TILED)
    assert verdict.passed
    rows = {row.name: row for row in verdict.rows}
    assert rows["micro-batches of 65"].paths == ("tiled",)
    assert rows["micro-batches of 65"].outcome == SAME
    assert rows["micro-batches of 64"].paths == ("tiled", "vec")
    for name in ("micro-batches of 1", "micro-batches of 64", "cells permuted"):
        assert (rows[name].required, rows[name].outcome) == ("bound", ROUNDED)
    for name in ("junk in cells behind", "sequences twice", "heads rotated", "threads 1 to 3"):
        assert (rows[name].required, rows[name].outcome) == ("bits", SAME)


@pytest.mark.usefixtures("few_threads")
def test_threads_that_share_keys_round_otherwise(runner: Runner) -> None:
    verdict = vary_all(runner, SPLIT)
    assert verdict.passed
    rows = {row.name: row for row in verdict.rows}
    assert rows["the row 64 times"].paths == ("tiled",)
    assert rows["junk in cells behind"].required == "bound"
    for name in ("threads 1 to 3", "the row 2 times"):
        assert (rows[name].required, rows[name].outcome) == ("bound", ROUNDED)
    for name in ("junk in masked cells", "heads rotated"):
        assert (rows[name].required, rows[name].outcome) == ("bits", SAME)


@pytest.mark.usefixtures("few_threads")
def test_what_cannot_be_varied_says_why(runner: Runner) -> None:
    rows = {row.name: row for row in vary_all(runner, ALIBI.with_(mask_kind="zeros")).rows}
    assert rows["heads rotated"].reason == "ALiBi"
    assert rows["junk in masked cells"].reason == "no masked cell"
    verdict = vary_all(runner, VEC.with_(type_K="q3_K", hsk=256, hsv=256))
    assert verdict.rows == ()
    assert "the harness cannot encode it" in verdict.unsupported


@pytest.mark.usefixtures("few_threads")
def test_the_seed_case_is_varied_though_its_regime_has_one_shape(runner: Runner) -> None:
    rows = {row.name: row for row in vary_all(runner, suite("seed")[0]).rows}
    assert rows["the row 2 times"].outcome == SAME
    assert rows["sequences twice"].outcome == SAME


@pytest.mark.parametrize(
    ("mutant", "case", "differs"),
    [
        # a row takes the mask of another, which depends on the rows before it
        ("mask-stride-vec", VEC, "micro-batches of 1"),
        ("mask-stride-tiled", TILED.with_(mask_kind="random", mask=True), "micro-batches of 65"),
        ("mask-broadcast-batch-vec", VEC, "sequences apart"),
        ("gqa-map-k-vec", VEC, "heads rotated"),
        ("split-last-chunk", SPLIT.with_(threads=1), "threads 1 to 3"),
        ("softcap-dropped-tiled", TILED.with_(n_batch=64), "as it is"),
    ],
)
@pytest.mark.usefixtures("few_threads")
def test_a_mutant_differs(mutated: Library, mutant: str, case: Case, differs: str) -> None:
    console = Console(width=80)
    with Runner(mutated.module_path, mutant=mutant) as runner, console.capture() as printed:
        verdict = vary_all(runner, case, on_row=lambda row: say_row(console, row))
    assert not verdict.passed
    assert outcomes(verdict)[differs] == DIFFERS
    lines = printed.get().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(f"  {differs} "))
    assert lines[at].endswith("  differs: fail")
    assert re.fullmatch(r"    .+ path: must (have|be) .+, differs by \S+", lines[at + 1])
    assert re.fullmatch(r"    worst at batch .+ of what rounding explains", lines[at + 2])


@pytest.mark.usefixtures("few_threads")
def test_a_call_that_is_lost_fails(patched: Library) -> None:
    with Runner(patched.module_path) as runner:
        killed: list[int] = []

        def kill_once(row: Row) -> None:
            if not killed:
                killed.append(runner._worker.pid)
                os.kill(killed[0], signal.SIGKILL)

        verdict = vary_all(runner, VEC.with_(n_batch=2), on_row=kill_once)
    assert not verdict.passed
    assert [row.outcome for row in verdict.rows[:3]] == [ROUNDED, "crash", ROUNDED]
    assert "SIGKILL" in verdict.rows[1].reason


# Without a library: the oracle in its place


def computed(case: Case, variation: Variation) -> tuple[Case, np.ndarray]:
    """What the oracle gives for a variation."""
    varied, inputs = vary(case, make_inputs(case), variation)
    state = oracle.attend(varied, inputs, 0, varied.n_kv)
    if inputs.sinks is not None:
        state = oracle.add_sinks(state, inputs.sinks)
    return varied, oracle.finalise(state)


CALLS = [
    pytest.param(case, call, id=f"{case.n_batch} {varied.name} {call.a}")
    for case in (VEC, TILED, SPLIT, ALIBI)
    for varied in variations_of(case, make_inputs(case))
    for call in varied.calls[:2]
]


@pytest.mark.parametrize(("case", "call"), CALLS)
def test_a_variation_has_the_same_exact_result(case: Case, call: Variation) -> None:
    _, whole = computed(case, as_it_is(case))
    varied, got = computed(case, call)
    assert got.shape == (varied.ne3, varied.n_head, varied.n_batch, varied.hsv_padded)
    np.testing.assert_allclose(got, as_seen(case, call, whole), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "outcome"),
    [
        (Variation(kind="rows", a=1, b=3), 0.0, SAME),
        (Variation(kind="rows", a=1, b=3), 1e-6, DIFFERS),
        (Variation(kind="cells", a=1), 1e-6, ROUNDED),
        (Variation(kind="cells", a=1), 1.0, DIFFERS),
        (Variation(kind="cells", a=1), np.nan, DIFFERS),
    ],
)
def test_one_element_that_is_off_shows(call: Variation, error: float, outcome: str) -> None:
    whole = computed(VEC, as_it_is(VEC))[1].astype(np.float32)
    got = as_seen(VEC, call, whole).copy()
    got[1, 2, 1, 3] += error
    found = Invariance(VEC, make_inputs(VEC), whole, ()).judge(call, got)
    assert found.outcome == outcome
    if outcome == DIFFERS:
        worst = found.comparison.worst
        assert worst is not None
        assert worst[:4] == (1, 2, 1, 3)


@pytest.mark.parametrize(
    ("case", "changes", "kind", "keeps"),
    [
        (VEC, {"n_batch": 1}, "rows", True),
        (VEC, {}, "cells", False),
        (TILED, {"n_batch": 64}, "rows", True),
        (TILED, {"n_batch": 63}, "rows", False),
        (SPLIT, {"threads": 3}, "threads", False),
        (SPLIT, {"n_kv": 640}, "padding", False),
        (SPLIT.with_(threads=1), {"n_kv": 640}, "padding", True),
        (SPLIT, {}, "heads", True),
        (SPLIT, {"ne3": 2}, "twice", False),
    ],
)
def test_bits_are_promised_by_path(
    case: Case, changes: dict[str, int], kind: str, keeps: bool
) -> None:
    assert keeps_bits(case, case.with_(**changes), kind) == keeps


# The command


@pytest.mark.usefixtures("few_threads")
def test_the_command_prints_a_table_and_writes_json(patched: Library, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    case = str(VEC.with_(segments=3, n_batch=2))
    done = CliRunner().invoke(
        cli, ["run", "--invariance", "--case", case, "--json", str(file)], env={"COLUMNS": "80"}
    )
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].endswith(", vec path")
    assert lines[3] == "  micro-batches of 1           2  vec           same bits"
    assert max(map(len, lines[1:-1])) <= 80
    assert lines[-1].startswith("1 case: 1 invariant | library state of ")
    report = schemas.checked(json.loads(file.read_text()))
    assert report["summary"] == {"cases": 1, "pass": 1, "fail": 0, "unsupported": 0}
    assert "segments=1" in report["results"][0]["case"]


@pytest.mark.parametrize("option", [("--mode", "standard"), ("--junit", "x.xml")])
def test_options_that_do_not_go_with_it_are_refused(option: tuple[str, str]) -> None:
    done = CliRunner().invoke(cli, ["run", "--invariance", "--suite", "seed", *option])
    assert done.exit_code != 0
    assert f"{option[0]} does not go with --invariance" in str(done.exception)


def test_nothing_varied_is_no_pass() -> None:
    assert not Varied(case=VEC, path="vec", rows=(), unsupported="why").rows
    fields = dict.fromkeys(("library", "machine", "tool_version", "started", "seconds"))
    assert not Found(**fields, verdicts=(), selected=1).passed  # type: ignore[arg-type]
