"""Mutants of the real sources: made, put into a patch, built, and tried."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import schemas
from fa_harness.build.named import held_library
from fa_harness.build.names import GENERATED
from fa_harness.case.suites import suite
from fa_harness.engine.ggml import EVERY_MUTANT
from fa_harness.engine.runner import Runner
from fa_harness.hunt import generate
from fa_harness.hunt.generate import as_mutant, name, sample
from fa_harness.hunt.rewrite import KINDS, Change
from fa_harness.project import find_project
from fa_harness.series.series import load_generated

CHANGE = Change(
    number=7, file="ggml/src/ggml-cpu/ops.cpp", line=9, function="attend", kind="operator",
    source="c = a + b;", before="a + b", after="-",
)  # fmt: skip


@pytest.fixture(scope="module")
def changes() -> tuple[Change, ...]:
    return generate.write(find_project())


def test_every_kind_of_change_is_made_in_every_file(changes: tuple[Change, ...]) -> None:
    assert [change.number for change in changes] == list(range(1, len(changes) + 1))
    assert len(changes) > 2000
    assert {change.kind for change in changes} == set(KINDS)
    of_files = Counter(Path(change.file).name for change in changes)
    assert set(of_files) == {"ops.cpp", "simd-gemm.h", "ggml.c", "ggml-cpu.c", "ggml-backend.cpp"}


def test_the_functions_of_attention_and_the_lines_of_the_series_are_changed(
    changes: tuple[Change, ...],
) -> None:
    functions = {change.function for change in changes}
    assert functions >= {
        "ggml_compute_forward_flash_attn_ext_f16_one_chunk",
        "ggml_compute_forward_flash_attn_ext_tiled",
        "ggml_flash_attn_ext_reduce_partials",
        "ggml_compute_forward_flash_attn_ext_f16",
        "ggml_compute_forward_flash_attn_ext_merge_states",
        "ggml_compute_forward_flash_attn_ext_from_state",
        "simd_gemm",
        "ggml_flash_attn_ext_with_state",
        "ggml_graph_plan",
    }


def test_of_a_series_with_a_kernel_of_its_own_that_alone_is_changed() -> None:
    changes = generate.write(find_project().of("fast"))
    assert {Path(change.file).name for change in changes} == {
        "flash-attn.cpp", "ops.cpp", "ggml-cpu.c",
    }  # fmt: skip
    elsewhere = [change for change in changes if "flash-attn" not in change.file]
    assert 0 < len(elsewhere) < 20  # where the kernel is called, not upstream's functions
    assert "fa_block_rows" in {change.function for change in changes}


def test_the_patch_is_made_anew_with_the_same_bytes(changes: tuple[Change, ...]) -> None:
    project = find_project()
    [patch] = load_generated(project).patches
    before = patch.read_bytes()
    assert generate.write(project) == changes
    assert patch.read_bytes() == before
    assert len(json.loads((project.generated / "mutants.json").read_text())) == len(changes)


def test_a_sample_is_the_same_for_a_seed_and_keeps_the_order() -> None:
    mutants = tuple(
        as_mutant(Change(**{**vars(CHANGE), "number": number}), {}) for number in range(1, 100)
    )
    drawn = sample(mutants, 20, 5)
    assert drawn == sample(mutants, 20, 5) != sample(mutants, 20, 6)
    assert [int(mutant.id) for mutant in drawn] == sorted({int(mutant.id) for mutant in drawn})
    assert sample(mutants, 1000, 5) == mutants


def test_a_reason_why_a_change_cannot_show_is_found_whatever_its_line_is() -> None:
    assert name(CHANGE) == "attend: c = a + b; | a + b -> -"
    mutant = as_mutant(CHANGE, {"attend: c = a + b; | a + b -> -": "b is 0"})
    assert (mutant.equivalent, mutant.does) == ("b is 0", "ops.cpp:9: a + b -> -")


def test_a_reason_may_be_of_one_change_of_several_that_are_called_the_same() -> None:
    reasons = {"attend: c = a + b; | a + b -> - (2)": "b is 0"}
    found = [as_mutant(CHANGE, reasons, turn=turn).equivalent for turn in (1, 2, 3)]
    assert found == ["", "b is 0", ""]


def test_a_series_may_take_the_reasons_of_another(tmp_path: Path) -> None:
    for series, text in (
        (
            "state",
            '"a" = "one"\n"b" = "two"\n[unreached]\n"c" = "three"\n[only_time]\n"e" = "six"\n',
        ),
        (
            "partial",
            'as_in = ["state"]\n"b" = "four"\n[unreached]\n"d" = "five"\n'
            '[only_time]\n"f" = "seven"\n',
        ),
    ):
        folder = tmp_path / series / "mutants"
        folder.mkdir(parents=True)
        (folder / "equivalent.toml").write_text(text)
        (tmp_path / series / "series").write_text("")
    project = replace(find_project(), more_series=(tmp_path,))
    assert generate.reasons(project.of("partial")) == generate.Reasons(
        equivalent={"a": "one", "b": "four"},
        unreached={"c": "three", "d": "five"},
        only_time={"e": "six", "f": "seven"},
    )


@pytest.mark.full
def test_a_run_without_a_mutant_tells_which_cases_reach_it(changes: tuple[Change, ...]) -> None:
    cases = suite("smoke")[::8]
    with held_library(GENERATED, {}) as library:
        with Runner(library.module_path, mutant=EVERY_MUTANT) as runner:
            assert [verdict.status for verdict in runner.run(cases)] == ["pass"] * len(cases)
            told = dict(runner.reached)
        for change in changes[:: len(changes) // 20]:
            number = str(change.number)
            with Runner(library.module_path, mutant=number) as runner:
                for case in cases:
                    [verdict] = runner.run([case])
                    reached = number in runner.reached[case] or verdict.status == "crash"
                    assert reached == (number in told[case]), (change, case)


@pytest.mark.full
def test_generated_mutants_are_killed_or_shown(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "fa_harness.cli", "mutants", "--generate", "--suite", "smoke"]
    done = subprocess.run(
        [*command, "--sample", "40", "--seed", "1", "--json", str(report)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    made = schemas.checked(json.loads(report.read_text()))
    summary = made["summary"]
    assert summary["mutants"] == 40, done.stderr
    assert summary["invalid"] == 0
    assert summary["killed"] >= 28, done.stdout
    assert all(row["file"] and row["line"] for row in made["results"])
    assert done.returncode == (0 if summary["survived"] == 0 else 1)
