import dataclasses
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import schemas
from fa_harness.build.library import Library
from fa_harness.case.case import Case
from fa_harness.case.suites import suite
from fa_harness.engine import ggml
from fa_harness.engine.runner import Runner
from fa_harness.engine.worker import Worker
from fa_harness.errors import SetupError
from fa_harness.hunt import mutants
from fa_harness.hunt.mutants import Mutant, Outcome
from fa_harness.kernel import GROUPED_Q8, path
from fa_harness.project import find_project
from fa_harness.series.series import load_mutants

CLASSES = {
    *(
        "reset-always",
        "reset-never",
        "scratch-carry",
        "scratch-and-dst",
        "norm-twice",
        "norm-never",
    ),
    *("s-not-rescaled", "vkq-not-rescaled", "rescale-from-fresh", "m-not-stored", "s-not-stored"),
    *("vkq-not-stored", "m-max-local", "f16-restore", "f16-overflow", "row-index-swap"),
    *("row-index-no-batch", "state-stride", "dst-offset", "thread0-init", "no-barrier"),
    "split-last-chunk",
    *("split-state-twice", "split-empty-chunk", "tile-tail", "tile-rows", "masked-row-nan"),
    *("masked-segment", "empty-segment", "sink-every-segment", "sink-lost", "sink-m"),
    *("softcap-dropped", "softcap-order", "alibi-head", "gqa-map", "mask-stride"),
    *("mask-broadcast", "q-type", "v-alias", "work-size", "view-stride", "view-offset"),
    *("node-missing", "node-order", "state-not-reset", "state-shared", "last-wins"),
    *("first-dropped", "merge-weight", "merge-empty", "merge-order", "base-2", "clamp-exp"),
    "input-written",
}
"""Every way that is known in which a kernel or its API goes wrong."""

CLASSES_OF = {
    "state": CLASSES,
    "partial": {
        *(CLASSES - {"state-shared"}),  # each call returns a state of its own
        *("prev-source", "prev-none", "row-layout", "masked-row-unwritten", "nan-row"),
        *("f16-stored", "f32-accumulator", "last-dropped", "source-limit", "source-twice"),
        *("single-source", "rows-dropped", "m-infinite", "prec-lost"),
    },
    "fast": {
        *("load-half", "block-scale", "offset-lost", "high-bits", "hidden-key", "zero-row"),
        *("gqa-map", "sequence-map", "q-head", "row-index-swap", "mask-head", "mask-broadcast"),
        *("mask-class", "mask-row", "sink-head", "alibi-head", "nan-row", "unseeing-row"),
        *("masked-row-nan", "vkq-not-rescaled", "s-not-rescaled", "neighbour-row", "last-wins"),
        *("keys-left-over", "rows-left-over", "columns-left-over", "heads-left-over", "last-key"),
        *("truncated", "saturates"),
        *("tile-tail", "tile-rows", "split-last-chunk", "first-dropped", "partials", "no-barrier"),
        *("merge-empty", "merge-weight", "m-max-local", "sink-every-segment", "scratch-carry"),
        *("item-skipped", "panel", "work-size"),
    },
    "state-on-fast": {
        *("row-index-swap", "row-index-no-batch", "reset-always", "reset-never"),
        *("split-state-twice", "masked-segment", "vkq-not-rescaled", "merge-order", "threads"),
        *("sink-lost", "sink-m", "nan-row", "norm-twice", "last-wins"),
    },
}
"""By series, the classes of its mutants."""

PATCHES = {series: find_project(stack=series).mutants for series in CLASSES_OF}
MUTANTS = {series: mutants.load(folder / "mutants.toml") for series, folder in PATCHES.items()}
EVERY = MUTANTS["state"]


@pytest.fixture(params=CLASSES_OF)
def series(request: pytest.FixtureRequest) -> str:
    """Each series that has mutants."""
    return str(request.param)


@pytest.fixture
def mutated_series(series: str, request: pytest.FixtureRequest) -> Library:
    """The library with the mutants of `series`."""
    fixture = "mutated" if series == "state" else f"mutated_{series.replace('-', '_')}"
    library = request.getfixturevalue(fixture)
    assert isinstance(library, Library)
    return library


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "fa_harness.cli", "mutants", *arguments]
    return subprocess.run(call, capture_output=True, text=True)


def score_of(*arguments: str, status: int = 0) -> Any:
    done = command(*arguments, "--json", "-")
    assert done.returncode == status, done.stdout + done.stderr
    return schemas.checked(json.loads(done.stdout))


def load(path: Path, text: str) -> tuple[Mutant, ...]:
    path.write_text(text)
    return mutants.load(path)


def made(id_: str, **changes: str) -> Mutant:
    fields: dict[str, Any] = {
        "class_": "c", "kind": "kernel", "patch": "p", "does": "d", "shown_by": "s",
    }  # fmt: skip
    return Mutant(id=id_, **{**fields, **changes})


def test_every_class_of_faults_has_a_mutant_and_no_mutant_is_of_another(series: str) -> None:
    classes = {mutant.class_ for mutant in MUTANTS[series] if mutant.kind != "impostor"}
    assert classes == CLASSES_OF[series]


def test_every_mutant_is_in_its_patch(series: str) -> None:
    for mutant in MUTANTS[series]:
        name = mutant.id.upper().replace("-", "_")
        patch = (PATCHES[series] / mutant.patch).read_text()
        assert f"GGML_FA_MUTANT({name})" in patch, mutant.id


def test_every_place_in_a_patch_is_of_a_mutant_that_is_described(series: str) -> None:
    found = {
        name.lower().replace("_", "-")
        for patch in load_mutants(find_project(stack=series)).patches
        for name in re.findall(r"GGML_FA_MUTANT\(([A-Z0-9_]+)\)", patch.read_text())
    }
    assert found == {mutant.id for mutant in MUTANTS[series]}


def test_the_library_has_the_mutants_that_are_described(
    series: str, mutated_series: Library
) -> None:
    with Worker(mutated_series.module_path) as worker:
        assert worker.mutants == tuple(mutant.id for mutant in MUTANTS[series])


def test_no_mutant_is_equivalent(series: str) -> None:
    assert [mutant.id for mutant in MUTANTS[series] if mutant.equivalent] == []


def test_a_fault_that_two_series_have_is_called_the_same_in_both() -> None:
    state, partial = (
        {mutant.id: mutant for mutant in MUTANTS[series]} for series in ("state", "partial")
    )
    shared = state.keys() & partial.keys()
    assert [id_ for id_ in shared if state[id_].class_ != partial[id_].class_] == []
    assert len(shared) > 100


def test_another_library_has_no_mutants(patched: Library) -> None:
    library = ggml.load(patched.module_path)
    assert library.mutants == ()
    library.set_mutant(None)
    assert not library.mutants_reached
    with pytest.raises(ValueError, match="the library has no mutant 'norm-never-vec'"):
        library.set_mutant("norm-never-vec")


@pytest.mark.parametrize(
    ("series", "some"),
    [
        *itertools.product(("state", "partial"), ("vec$", "tiled$", "^(?!.*(vec|tiled)$)")),
        ("fast", ""),
        ("state-on-fast", ""),
    ],
)
def test_every_mutant_is_killed_by_the_case_that_is_recorded_as_its_killer(
    series: str, mutated_series: Library, some: str
) -> None:
    score = score_of("--killers", "--series", series, "-k", some)
    left = [r["mutant"] for r in score["results"] if r["status"] != "killed"]
    with Runner(mutated_series.module_path) as runner:
        if GROUPED_Q8 not in runner.features:  # this CPU cannot
            left = [id_ for id_ in left if not id_.endswith("-8-bits")]
    assert left == []
    ids = [mutant.id for mutant in MUTANTS[series] if re.search(some, mutant.id)]
    assert [r["mutant"] for r in score["results"]] == ids
    assert not some or 20 < len(ids) < len(MUTANTS[series]) - 40


@pytest.fixture(scope="module")
def score(mutated: Library) -> Any:
    return score_of()


@pytest.mark.full
def test_every_mutant_is_killed_and_every_impostor_by_every_case(score: Any) -> None:
    assert [r["mutant"] for r in score["results"] if r["status"] != "killed"] == []
    assert score["summary"]["mutants"] == score["summary"]["killed"] == len(EVERY)
    n_case = sum(len(suite(name)) for name in mutants.SUITES)
    impostors = [r for r in score["results"] if r["kind"] == "impostor"]
    assert len(impostors) == 5
    assert {r["cases"] for r in impostors} == {n_case}


@pytest.mark.full
def test_smoke_alone_kills_nine_of_ten_faults(score: Any) -> None:
    assert score["suites"][0] == "smoke"
    summary = score["summary"]
    assert summary["killed_by_first_suite"] >= 0.9 * summary["faults"] > 0


@pytest.mark.full
def test_a_row_tells_the_mutant_the_case_and_the_comparison(score: Any) -> None:
    [row] = [r for r in score["results"] if r["mutant"] == "reset-always-vec"]
    assert row["class"] == "reset-always"
    assert row["suite"] == "smoke"
    assert row["case"] in map(str, suite("smoke"))
    assert row["comparison"] == "state_vs_oracle"
    assert row["reason"]
    assert row["repro"] == "fa-harness mutants -v -k '^reset-always-vec$'"


def test_a_mutant_that_no_case_notices_survives_with_status_1(mutated: Library) -> None:
    # the seed case has one head: no head's numbers can be another's
    done = command("--suite", "seed", "-k", "^gqa-map-k-vec$")
    assert done.returncode == 1
    assert re.search(r"gqa-map-k-vec +survived", done.stdout)
    assert "none of 1 cases fails with it" in done.stdout
    assert "0002-vec.patch: K of head h % n_head_kv" in done.stdout
    assert "1 mutant: 1 survived" in done.stdout


def test_in_the_gate_other_bits_of_one_call_kill_a_mutant_that_the_verdicts_let_pass(
    mutated: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutants, "_KILLING", ())
    by_id = {each.id: each for each in EVERY}
    for id_, name, status in (
        ("base-2-exp-vec", "gate", "killed"),
        ("base-2-exp-vec", "smoke", "survived"),
        ("reset-always-vec", "gate", "survived"),  # of a call without a state it changes nothing
    ):
        [outcome] = mutants.run(mutated, [by_id[id_]], {name: suite("smoke")[:1]})
        assert outcome.status == status, id_
        assert outcome.comparison == (mutants.BITS if status == "killed" else "")


def test_of_a_kernel_with_other_bits_than_upstreams_the_gate_compares_none(
    mutated_fast: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutants, "_KILLING", ())
    [mutant] = [each for each in MUTANTS["fast"] if each.id == "gqa-map-k"]
    [outcome] = mutants.run(mutated_fast, [mutant], {"gate": suite("smoke")[1:2]})
    assert outcome.status == "survived"


def test_a_mutant_that_no_case_reaches_is_invalid_with_status_1(mutated: Library) -> None:
    score = score_of("--suite", "seed", "-k", "^tile-rows$", status=1)
    assert score["summary"] | {"mutants": 1, "invalid": 1, "killed": 0} == score["summary"]
    assert score["results"][0]["reason"] == "none of 1 cases reaches it"


def outcomes(
    library: Library, *tried: Mutant, suites: Mapping[str, list[Any]]
) -> list[tuple[str, str]]:
    found = {o.mutant.id: o for o in mutants.run(library, tried, suites)}
    return [(found[mutant.id].status, found[mutant.id].reason) for mutant in tried]


def test_a_mutant_that_the_library_does_not_have_is_invalid(mutated: Library) -> None:
    [(status, reason)] = outcomes(
        mutated, made("gone", patch="0002-vec.patch"), suites={"seed": suite("seed")}
    )
    assert (status, reason) == (
        "invalid",
        "the library does not have it; correct mutants.toml or 0002-vec.patch",
    )


def test_a_mutant_whose_patch_was_left_out_is_invalid_and_the_others_are_tried(
    mutated: Library,
) -> None:
    tried = made("gone", patch="0009-new.patch"), made("norm-never-vec", patch="0002-vec.patch")
    [gone, other] = outcomes(mutated, *tried, suites={"seed": suite("seed")})
    assert gone == (
        "invalid",
        "the library does not have it; 0009-new.patch does not apply, bring it up to date",
    )
    assert other[0] == "killed"


def test_a_left_out_mutant_whose_name_is_in_the_table_is_not_taken_for_unreached(
    mutated: Library,
) -> None:
    mutant = made("norm-never-vec", patch="0009-new.patch", if_unreached="not on this CPU")
    [(status, reason)] = outcomes(mutated, mutant, suites={"seed": suite("seed")})
    assert status == "invalid"
    assert reason.endswith("0009-new.patch does not apply, bring it up to date")


def test_an_equivalent_mutant_is_not_tried_and_has_its_reason(mutated: Library) -> None:
    mutant = made("norm-never-vec", equivalent="S is 1")
    assert outcomes(mutated, mutant, suites={"seed": suite("seed")}) == [("equivalent", "S is 1")]


def test_a_generated_mutant_that_no_case_reaches_is_equivalent_where_a_reason_says_so(
    mutated: Library,
) -> None:
    tiled = [case for case in suite("smoke") if path(case) == "tiled"][:1]
    for reason, status in (("the loop is empty here", "equivalent"), ("", "survived")):
        mutant = made("norm-never-vec", file="ops.cpp", if_unreached=reason)
        [outcome] = mutants.run(mutated, [mutant], {"some": tiled})
        assert outcome.status == status
        assert outcome.reason == (reason or "none of 1 cases reaches it")


def test_a_mutant_that_only_time_shows_is_tried_and_equivalent_if_it_survives(
    mutated: Library,
) -> None:
    mutant = made("norm-never-vec", if_survived="it only reads ahead")
    tiled = [case for case in suite("smoke") if path(case) == "tiled"][:1]
    assert outcomes(mutated, mutant, suites={"some": tiled}) == [
        ("equivalent", "it only reads ahead")
    ]
    [(status, _)] = outcomes(mutated, mutant, suites={"seed": suite("seed")})
    assert status == "killed"


def test_a_case_that_fails_without_the_mutant_kills_none(mutated: Library) -> None:
    zeros = suite("seed")[0].with_(n_kv=1, boundaries=(0,), regime="normal", mask_kind="zeros")
    mistrusted = zeros.with_(hsk=32, hsv=32)
    tried = made("norm-never-vec")
    [(status, _)] = outcomes(mutated, tried, suites={"one": [mistrusted]})
    assert status == "survived"


def test_an_impostor_survives_the_first_case_that_it_passes(mutated: Library) -> None:
    # as an impostor, a fault of another path has to fail in every case
    tried = made("norm-never-tiled", kind="impostor")
    [(status, reason)] = outcomes(mutated, tried, suites={"seed": suite("seed")})
    assert (status, reason) == ("survived", "a case is not red: pass")


def recorded(
    library: Library, *tried: Mutant, killers: Mapping[str, Case]
) -> list[tuple[str, str]]:
    return [(o.status, o.reason) for o in mutants.run_killers(library, tried, killers)]


def test_a_mutant_that_its_recorded_case_does_not_kill_is_told_with_the_next_step(
    mutated: Library,
) -> None:
    [seed] = suite("seed")
    # it has one head, whose numbers cannot be another's, and one query row, which no tile holds
    tried = made("gqa-map-k-vec"), made("norm-never-tiled"), made("norm-never-vec")
    found = recorded(mutated, *tried, killers={mutant.id: seed for mutant in tried})
    again = "`fa-harness mutants --record -k '^{}$'` looks for another case"
    assert found[:2] == [
        (
            "survived",
            f"the recorded case does not fail with it: pass; {again.format('gqa-map-k-vec')}",
        ),
        ("invalid", f"the recorded case does not reach it; {again.format('norm-never-tiled')}"),
    ]
    assert found[2][0] == "killed"


def test_a_mutant_without_a_recorded_case_is_not_taken_for_killed(mutated: Library) -> None:
    [(status, reason)] = recorded(mutated, made("norm-never-vec"), killers={})
    assert status == "invalid"
    assert reason == (
        "no case is recorded that kills it; "
        "`fa-harness mutants --record -k '^norm-never-vec$'` looks for one"
    )


def test_a_recorded_case_that_fails_without_the_mutant_kills_none(mutated: Library) -> None:
    zeros = suite("seed")[0].with_(n_kv=1, boundaries=(0,), regime="normal", mask_kind="zeros")
    mistrusted = zeros.with_(hsk=32, hsv=32)
    tried = made("norm-never-vec")
    [(status, reason)] = recorded(mutated, tried, killers={tried.id: mistrusted})
    assert status == "survived"
    assert "the recorded case does not pass without it: mistrusted" in reason


def test_what_one_mutant_does_to_its_process_does_not_judge_the_next(mutated: Library) -> None:
    [seed] = suite("seed")
    tried = made("norm-never-vec"), made("gqa-map-k-vec"), made("norm-never-vec")
    found = recorded(mutated, *tried, killers={mutant.id: seed for mutant in tried})
    assert [status for status, _ in found] == ["killed", "survived", "killed"]


def test_recorded_cases_are_read_as_they_were_written_in_the_order_of_the_mutants(
    tmp_path: Path,
) -> None:
    file, [seed] = tmp_path / "killers.toml", suite("seed")
    first, second = made("first"), made("second")
    killers = {"second": seed, "first": seed.with_(seed=1)}
    mutants.save_killers(file, killers, [first, second])
    assert mutants.load_killers(file, [first, second]) == killers
    lines = file.read_text().splitlines()
    assert [line.partition(" = ")[0] for line in lines[-2:]] == ["first", "second"]
    of_series = dataclasses.replace(first, series="partial"), second
    mutants.save_killers(file, killers, of_series)
    assert "`fa-harness mutants --series partial --record`" in file.read_text()


def test_a_search_renews_the_cases_of_the_mutants_that_it_tried() -> None:
    [seed] = suite("seed")
    killed = Outcome(mutant=made("a"), status="killed", reason="r", case=seed)
    survived = Outcome(mutant=made("b"), status="survived", reason="r", case=seed)
    other = seed.with_(seed=1)
    before = {"a": other, "b": other, "c": other}
    assert mutants.renewed(before, [killed, survived]) == {"a": seed, "c": other}


def test_a_case_is_recorded_on_one_thread_where_it_kills_there_too(mutated: Library) -> None:
    two = suite("seed")[0].with_(threads=2)
    tried = made("norm-never-vec"), made("gqa-map-k-vec")
    found = [Outcome(mutant=mutant, status="killed", reason="r", case=two) for mutant in tried]
    cases = [outcome.case for outcome in mutants.on_one_thread(mutated, found)]
    assert cases == [two.with_(threads=1), two]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('gone = "FLASH_ATTN_EXT(hsk=64,hsv=64)"\n', "mutants.toml has no 'gone'; delete"),
        ('a = "no case"\n', "a: .*`fa-harness mutants --record` renews it"),
        ("a = 1\n", "a: .*`fa-harness mutants --record` renews it"),
        ("a = \n", "is not valid TOML"),
    ],
)
def test_recorded_cases_that_cannot_be_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "killers.toml"
    file.write_text(text)
    with pytest.raises(SetupError, match=message):
        mutants.load_killers(file, [made("a")])


def test_killers_are_not_searched_for_and_recorded_at_once() -> None:
    done = command("--killers", "--record")
    assert done.returncode == 2
    assert "leave out --suite and --record" in done.stderr


def test_a_worker_that_crashed_starts_again_with_its_mutant(mutated: Library) -> None:
    case = suite("seed")[0]
    with Worker(mutated.module_path, mutant="norm-never-vec") as worker:
        results = []
        for _ in range(2):
            worker.submit(case, ("standard",), 60)
            results.append(worker.result())
            assert worker.mutants_reached == {"norm-never-vec"}
            worker.stop()
    both = [result.results["standard"].output for result in results]  # type: ignore[union-attr]
    assert both[0].tobytes() == both[1].tobytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]\nclass = 1\n", "mutant 'a': class must be a string, not 1"),
        ('[a]\nclas = "c"\n', "mutant 'a': unknown key 'clas'; known: class, kind"),
        ('[a]\nclass = "c"\n', "mutant 'a': kind is missing"),
        (
            '[a]\nclass = "c"\nkind = "k"\npatch = "p"\ndoes = "d"\nshown_by = "s"\n',
            "mutant 'a': kind is 'k'; there are kernel, api, impostor",
        ),
        ("a = 1\n", r"mutant 'a': must be a table \[a\]"),
        ("a = \n", "is not valid TOML"),
    ],
)
def test_a_list_that_cannot_be_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        load(tmp_path / "mutants.toml", text)


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"cannot read .*mutants\.toml"):
        mutants.load(tmp_path / "mutants.toml")


def test_a_pattern_that_no_mutant_matches_is_refused() -> None:
    done = command("-k", "nothing-like-it")
    assert done.returncode == 2
    assert f"none of {len(EVERY)} mutants matches -k 'nothing-like-it'" in done.stderr


def test_list_prints_what_each_mutant_does_and_runs_none() -> None:
    done = command("--list", "-k", "^norm-never-vec$")
    assert done.returncode == 0
    assert done.stdout.split() == [
        *("norm-never-vec", "kernel", "the", "result", "is", "not", "divided", "by", "S"),
    ]
