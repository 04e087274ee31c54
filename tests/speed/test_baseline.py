"""Baseline files: what they hold, how they read in a diff, and what is wrong with a broken one."""

import dataclasses
import json
from pathlib import Path

import pytest

from fa_harness.case.case import Case
from fa_harness.errors import SetupError
from fa_harness.speed import baseline
from fa_harness.speed.baseline import Speed, file_name, load, machine_class, render
from gates import baseline_of, comparison, results, verdict

SPEED = Speed(cpu="some", rows={"FLASH_ATTN_EXT(kv=1)": {"full_state": (1.0, 1.5, 1.25)}})
RUN = results(
    verdict(
        Case(n_kv=9),
        full_state_vs_standard=comparison(bitwise=True, required="bits", of_bound=0.0),
        merged_swapped=comparison(),
        standard_vs_oracle=comparison(of_bound=0.123456),
    ),
    verdict(Case(n_kv=10), "unsupported", "no such type"),
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.json"
    path.write_text(render(baseline_of(RUN, SPEED)))
    return path


def broken(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(SetupError) as failure:
        load(path)
    return str(failure.value)


def test_what_is_written_is_read_again(file: Path) -> None:
    assert load(file) == baseline_of(RUN, SPEED)


def test_a_case_has_its_status_bits_bounds_and_shares_of_three_digits(file: Path) -> None:
    case = load(file).cases[str(Case(n_kv=9))]
    assert (case.status, case.bits, case.bound) == (
        "pass",
        ("full_state_vs_standard",),
        ("merged_swapped",),
    )
    assert case.of_bound == {"standard_vs_oracle": 0.123}


def test_an_error_that_changed_changes_one_line_of_the_file(file: Path) -> None:
    before = file.read_text().splitlines()
    [first, second] = RUN.verdicts
    comparisons = {**first.comparisons, "standard_vs_oracle": comparison(of_bound=0.2)}
    worse = dataclasses.replace(first, comparisons=comparisons)
    after = render(baseline_of(results(second, worse), SPEED)).splitlines()
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert len(changed) == 1
    assert '"standard_vs_oracle": 0.2' in changed[0][1]


def test_the_cases_are_sorted_whatever_the_order_of_the_run(file: Path) -> None:
    assert render(baseline_of(results(*reversed(RUN.verdicts)), SPEED)) == file.read_text()


def test_a_missing_baseline_is_not_a_broken_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.json")


def test_a_newer_schema_says_to_update_the_harness(file: Path) -> None:
    text = file.read_text().replace(baseline.SCHEMA, "fa-harness.baseline/2")
    message = broken(file, text)
    assert f"baseline {file}: its schema is fa-harness.baseline/2" in message
    assert "it was made by a newer one; update fa-harness, or name another file" in message


@pytest.mark.parametrize("cut", [0, 1, 100, -10])
def test_a_file_that_ends_too_soon_is_broken(file: Path, cut: int) -> None:
    message = broken(file, file.read_text()[:cut])
    assert message.startswith(f"baseline {file}: is broken (")
    assert f"restore it (git checkout -- {file}), or delete it and make a new one" in message


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"seed": null', '"seed": "x"', "'x' where a whole number or null should be"),
        ('"standard_vs_oracle": 0.123', '"standard_vs_oracle": NaN', "NaN where a number"),
        (
            '"standard_vs_oracle": 0.123',
            '"standard_vs_oracle": -1',
            "-1 where a number of at least",
        ),
        ('"standard_vs_oracle": 0.123', '"standard_vs_oracle": "a"', "'a' where a number"),
        ('"upstream": ', '"up": ', "'upstream' is missing"),
        ('"bound": ', '"bounds": ', "'bound' is missing"),
        ('"status": "pass"', '"status": 3', "3 where a str should be"),
        ("1.25", "0", "a ratio of times that is 0"),
        ('"schema": "fa-harness.baseline/1"', '"schema": 1', "its schema is 1, not"),
    ],
)
def test_what_is_wrong_with_a_broken_file_is_named(
    file: Path, old: str, new: str, reason: str
) -> None:
    text = file.read_text()
    assert old in text
    assert reason in broken(file, text.replace(old, new, 1))


@pytest.mark.parametrize("text", ["[]", "null", '"x"', "{}", "\x00", "<<<<<<< HEAD\n{}"])
def test_other_files_are_broken_baselines(file: Path, text: str) -> None:
    assert "is broken (" in broken(file, text)


def test_a_file_that_is_no_text_is_broken(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SetupError, match="is broken"):
        load(file)


def test_a_folder_in_its_place_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"cannot be read \(Is a directory\); name another file"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (("SSE3", "AVX", "AVX2", "FMA"), "x86_64-avx2"),
        (("AVX", "AVX2", "AVX512", "AVX512_BF16", "FP16_MAD_128"), "x86_64-avx512-bf16-fp16"),
        (("SSE3",), "x86_64-sse3"),
        ((), "x86_64"),
    ],
)
def test_a_machine_class_is_what_decides_the_bits(features: tuple[str, ...], expected: str) -> None:
    assert machine_class("x86_64", features) == expected


def test_a_file_is_named_for_upstream_and_class() -> None:
    assert file_name("dir:my llama", "x86_64-avx2") == "dir-my-llama.x86_64-avx2.json"


def test_the_committed_baselines_are_read_and_hold_only_cases_of_the_gate() -> None:
    from fa_harness.case.suites import suite
    from fa_harness.project import find_project

    files = list(find_project(Path(__file__)).baselines.glob("*.json"))
    cases = set(map(str, suite("gate")))
    found = [load(path) for path in files]
    # one of a class of machines that is not at hand may wait for the newest cases; the gate says so
    assert any(set(each.cases) == cases for each in found)
    for path, each in zip(files, found, strict=True):
        assert set(each.cases) <= cases
        assert render(each) == path.read_text(encoding="utf-8")
        assert json.loads(path.read_text(encoding="utf-8"))["schema"] == baseline.SCHEMA
