"""The fuzzer on real libraries: it finds the bug of the first patch, and nothing in the series."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

import schemas
from fa_harness.build.library import Library
from fa_harness.case.case import Case
from fa_harness.case.case_file import read_cases
from fa_harness.cli.fuzz import document, find_failures
from fa_harness.cli.options import How
from fa_harness.engine.runner import Runner
from fa_harness.errors import UsageError
from fa_harness.hunt.fuzz import Found, Fuzz, Fuzzer, Tally
from fa_harness.judge.verdict import Verdict

RESET = Case(
    hsk=32, hsv=32, n_head_kv=2, n_group=2, n_kv=40, n_batch=3, segments=3, regime="normal",
    type_K="q8_0",
    type_V="f32", seed=5,
)  # fmt: skip
"""The bug of the first patch makes it fail."""
HARMLESS = RESET.with_(segments=1, n_head_kv=1, n_group=1, n_batch=1, seed=0)
"""It does not: its only row is fresh, also in mode `preset`."""


def find(library: Library, failures: Path, *, cases: int, seed: int = 1) -> tuple[Fuzz, str]:
    """Run the fuzzer; what it found, and what it printed."""
    console = Console(width=150)
    with console.capture() as printed:
        fuzz = find_failures(
            How(library=library.name),
            cases=cases,
            seconds=None,
            seed=seed,
            failures=failures,
            console=console,
        )
    return fuzz, printed.get()


@pytest.mark.parametrize("n", [12, pytest.param(128, marks=pytest.mark.full)])
def test_the_series_passes(n: int, patched: Library, tmp_path: Path) -> None:
    fuzz, printed = find(patched, tmp_path / "failures.txt", cases=n)
    assert fuzz.found == (), printed
    assert fuzz.passed
    assert fuzz.tally.statuses["pass"] >= 0.75 * n
    assert not (tmp_path / "failures.txt").exists()
    assert printed.splitlines()[-1].startswith(f"{n} cases: {fuzz.tally.statuses['pass']} pass")


def test_a_checkout_that_did_not_take_the_series_runs_the_mode_that_it_offers(
    pristine: Library, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    as_it_is = dataclasses.replace(pristine, series_note="series: not applied, 0002 conflicts")
    monkeypatch.setattr(
        "fa_harness.cli.fuzz.held_library", lambda *_args: contextlib.nullcontext(as_it_is)
    )
    fuzz, printed = find(as_it_is, tmp_path / "failures.txt", cases=6)
    assert fuzz.passed, printed
    assert set(fuzz.tally.modes) == {"standard"}
    assert "--mode standard" in fuzz.repro(RESET)


@pytest.fixture(scope="module")
def found_bug(bug: Library, tmp_path_factory: pytest.TempPathFactory) -> tuple[Fuzz, str, Path]:
    """What some cases find on the first patch, and the file, which had a case before."""
    file = tmp_path_factory.mktemp("fuzz") / "failures.txt"
    file.write_text(f"# mine\n{HARMLESS}")
    return *find(bug, file, cases=6), file


def test_the_bug_of_the_first_patch_is_found_and_made_tiny(
    found_bug: tuple[Fuzz, str, Path],
) -> None:
    fuzz, _, _ = found_bug
    assert not fuzz.passed
    resets = [
        found.verdict
        for found in fuzz.found
        if found.verdict.localisation is not None and found.verdict.localisation.mode == "segmented"
    ]
    assert resets
    for verdict in resets:
        assert (
            verdict.path != "vec"
            or verdict.case.n_batch * verdict.case.n_kv * verdict.case.hsv <= 4
        )
        assert verdict.localisation is not None
        assert verdict.localisation.part == "numerators"


def test_a_failure_is_printed_with_its_explanation_and_its_repro_line(
    found_bug: tuple[Fuzz, str, Path],
) -> None:
    fuzz, printed, file = found_bug
    first = fuzz.found[0].verdict
    lines = printed.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("fail: hs"))
    assert ", shrunk from hs" in lines[at]
    assert lines[at + 1] == f"    {first.reason}"
    assert f"    fa-harness run --library state@0001 --case '{first.case}'" in lines
    assert f"    kept in {file}" in lines
    assert "kinds of failure | library state@0001 of " in lines[-1]


def test_failures_are_added_to_a_case_file(found_bug: tuple[Fuzz, str, Path]) -> None:
    fuzz, _, file = found_bug
    first = fuzz.found[0].verdict
    assert file.read_text().startswith(
        f"# mine\n{HARMLESS}\n# fail: {first.reason}\n{first.case}\n"
    )
    kept = dict.fromkeys(found.verdict.case for found in fuzz.found)
    assert read_cases(file) == [HARMLESS, *kept]


def test_the_report_has_what_ran_and_what_failed(found_bug: tuple[Fuzz, str, Path]) -> None:
    fuzz, _, file = found_bug
    report = schemas.checked(document(fuzz))
    assert report["schema"] == "fa-harness.fuzz/1"
    assert (report["seed"], report["library"]["name"]) == (1, "state@0001")
    summary = report["summary"]
    assert summary["cases"] == 7 == sum(report["coverage"]["paths"].values())
    assert summary["fail"] == sum(failure["cases"] for failure in report["failures"])
    assert summary["failures"] == len(report["failures"]) == len(fuzz.found)
    assert report["failures_file"] == str(file)
    assert report["failures"][0]["repro"].startswith("fa-harness run --library state@0001 --case ")
    assert len(report["failures"][0]["explanation"]) > 1


def test_a_kept_failure_runs_first_and_is_neither_shrunk_nor_kept_again(
    bug: Library, tmp_path: Path
) -> None:
    file = tmp_path / "failures.txt"
    file.write_text(f"# mine\n{HARMLESS}\n{RESET}")
    fuzz, _ = find(bug, file, cases=1)
    assert (fuzz.found[0].drawn, fuzz.found[0].verdict.case) == (RESET, RESET)
    assert file.read_text().startswith(f"# mine\n{HARMLESS}\n{RESET}")
    assert file.read_text().count(str(RESET)) == 1
    assert fuzz.tally.cases == 3


def test_a_file_of_something_else_is_refused(patched: Library, tmp_path: Path) -> None:
    file = tmp_path / "failures.txt"
    file.write_text("no case\n")
    with pytest.raises(UsageError, match=r"failures\.txt:1: 'no case' is not a case"):
        find(patched, file, cases=1)


def test_a_number_of_cases_runs_whatever_the_time(bug: Library, tmp_path: Path) -> None:
    ran = [find(bug, tmp_path / f"{i}.txt", cases=3, seed=2)[0] for i in range(2)]
    assert ran[0].tally.cases == 3
    kept = [[found.verdict.case for found in fuzz.found] for fuzz in ran]
    assert kept[0] == kept[1]


def test_cases_are_counted_by_what_they_reach(patched: Library, tmp_path: Path) -> None:
    fuzz, printed = find(patched, tmp_path / "failures.txt", cases=4)
    coverage = fuzz.tally.coverage()
    del coverage["head_sizes"]["unequal"]
    for name in ("lengths", "head_sizes", "threads", "sequences", "masks", "paths", "regimes"):
        assert coverage[name].total() == 4, name
    assert "\nhead sizes " in printed


@pytest.mark.parametrize(
    ("changes", "kind", "name"),
    [
        ({"n_kv": 63}, "lengths", "1 to 63"),
        ({"n_kv": 64}, "lengths", "64 to 511"),
        ({"n_kv": 4096}, "lengths", "from 4096"),
        ({"threads": 2}, "threads", "2"),
        ({"threads": 9}, "threads", "9 to 16"),
        ({"hsk": 96, "hsv": 48}, "head_sizes", "n*16"),
        ({"hsk": 96, "hsv": 48}, "head_sizes", "unequal"),
        ({"hsk": 4, "hsv": 4}, "head_sizes", "any"),
        ({"ne3": 3}, "sequences", "3"),
    ],
)
def test_a_case_is_counted_under(changes: dict[str, int], kind: str, name: str) -> None:
    tally = Tally()
    tally.add(Verdict(case=Case(**changes), status="pass", path="vec"))  # type: ignore[arg-type]
    assert tally.coverage()[kind][name] == 1


@pytest.fixture
def fuzzer_on(bug: Library) -> Iterator[Callable[..., tuple[Fuzzer, list[Found]]]]:
    """Make a fuzzer on the first patch, and a list of what it tells to have found."""
    with Runner(bug.module_path) as runner:

        def make(
            on_verdict: Callable[[Verdict], None], seconds: float = 60
        ) -> tuple[Fuzzer, list[Found]]:
            told: list[Found] = []
            return Fuzzer(
                runner, seconds=seconds, on_verdict=on_verdict, on_found=told.append
            ), told

        yield make


def interrupt(verdict: Verdict) -> None:
    if verdict.case == HARMLESS:
        raise KeyboardInterrupt


def test_ctrl_c_keeps_what_has_failed_as_it_was_drawn(
    fuzzer_on: Callable[..., tuple[Fuzzer, list[Found]]],
) -> None:
    fuzzer, told = fuzzer_on(interrupt)
    fuzzer.run([], [RESET, HARMLESS, RESET.with_(seed=6)])
    assert fuzzer.interrupted
    assert fuzzer.tally.cases == 2
    assert [found.verdict.case for found in told] == [RESET]
    assert fuzzer.found == tuple(told)


def test_failures_of_one_kind_are_counted_and_the_first_is_shrunk(
    fuzzer_on: Callable[..., tuple[Fuzzer, list[Found]]],
) -> None:
    fuzzer, told = fuzzer_on(lambda verdict: None)
    fuzzer.run([], [HARMLESS, RESET, RESET.with_(seed=6), RESET.with_(seed=7)])
    [found] = fuzzer.found
    assert (found.drawn, found.count) == (RESET, 3)
    assert found.verdict.case.n_kv <= 2
    assert len(told) == 1
    assert fuzzer.tally.statuses == {"pass": 1, "fail": 3}


def test_it_stops_when_the_time_is_up(
    fuzzer_on: Callable[..., tuple[Fuzzer, list[Found]]],
) -> None:
    fuzzer, _ = fuzzer_on(lambda verdict: None, seconds=0.5)
    fuzzer.run([], (HARMLESS.with_(seed=n) for n in range(10**6)))
    assert 0 < fuzzer.tally.cases < 10**4
    assert not fuzzer.interrupted
