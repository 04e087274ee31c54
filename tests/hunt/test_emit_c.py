"""A failing case as a C program: needs ggml alone, is red on a bug and green without it."""

import dataclasses
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fa_harness.arrays import F32
from fa_harness.build.library import Library
from fa_harness.build.toolchain import find_c_compiler
from fa_harness.case.case import Case
from fa_harness.case.inputs import make_inputs
from fa_harness.case.modes import Left, Run
from fa_harness.engine import ggml
from fa_harness.engine.compute import run_case
from fa_harness.engine.runner import Runner
from fa_harness.errors import UsageError
from fa_harness.hunt import emit_c
from fa_harness.judge.compare import Narrowed
from fa_harness.judge.expectations import Expectations
from fa_harness.judge.verdict import Verdict, judge
from runs import changed

CASE = Case(
    hsk=32, hsv=32, n_head_kv=2, n_group=2, ne3=2, n_kv=7, n_batch=3, segments=3, regime="normal"
)

Build = Callable[[str, Library], Path]


@pytest.fixture
def compile_c(tmp_path: Path) -> Build:
    """Build a program against a library's own headers and shared objects."""

    def build(text: str, library: Library) -> Path:
        source, program = tmp_path / "repro.c", tmp_path / f"repro-{library.name}"
        source.write_text(text)
        shared = sorted(map(str, library.path.glob("libggml*.so")))
        assert shared
        command = [*find_c_compiler().command, "-std=c99", "-Wall", "-Wextra", "-Werror", "-O1"]
        command += [str(source), "-I", str(library.include_dir), *shared]
        command += [f"-Wl,-rpath,{library.path}", "-lm", "-o", str(program)]
        subprocess.run(command, check=True)
        return program

    return build


def verdict_of(case: Case, library: Library, *modes: str) -> tuple[Verdict, tuple[str, ...]]:
    with Runner(library.module_path) as runner:
        [verdict] = runner.run([case], modes=modes or None)
        return verdict, runner.features


def program_of(case: Case, library: Library, *modes: str) -> str:
    verdict, features = verdict_of(case, library, *modes)
    assert verdict.status == "fail"
    return emit_c.program(verdict, library="a library", features=features)


@pytest.mark.parametrize(
    "case",
    [
        CASE,
        CASE.with_(type_K="f32", type_V="f32", sinks=True, kv_view=False, segments=2),
        CASE.with_(type_K="q8_0", type_V="q8_0", permute=(0, 2, 1, 3), max_bias=8.0),
        CASE.with_(hsk=64, v_is_view_of_k=True, mask=False, mask_kind="none", logit_softcap=5.0),
        CASE.with_(
            boundaries=(0, 3, 3), segments=4, mask_heads=2, threads=2, n_head_kv=3, max_bias=4.0
        ),
        CASE.with_(mask_kind="sparse", n_kv_max=5, prec="def", type_K="bf16", type_V="q5_1"),
        CASE.with_(n_batch=1, n_head_kv=2, permute=(0, 2, 1, 3)),
    ],
    ids=[
        *("f16", "f32-sinks", "q8_0-permuted-alibi", "v-in-k-softcap", "empty-segments", "sparse"),
        "one-row",
    ],
)
def test_the_program_is_red_on_the_bug_and_green_on_the_patched_library(
    bug: Library, patched: Library, compile_c: Build, case: Case
) -> None:
    text = program_of(case, bug)
    red = subprocess.run([compile_c(text, bug)], capture_output=True, text=True, check=False)
    assert (red.returncode, red.stderr) == (1, "")
    first, *_, last = red.stdout.splitlines()
    assert first.startswith("segment 0: 0 numbers wrong")
    assert last == "WRONG"
    green = subprocess.run([compile_c(text, patched)], capture_output=True, text=True, check=False)
    assert (green.returncode, green.stderr) == (0, "")
    assert green.stdout.endswith("right\n")


TYPED = Case(
    hsk=32, hsv=32, n_head_kv=1, n_group=2, n_kv=9, n_batch=2, segments=3, regime="normal",
    type_K="f32",
    type_V="f32", segment_types=("q4_0", "f16/q8_0", "f32"),
)  # fmt: skip


def ended(program: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program], capture_output=True, text=True, check=False)


def test_segments_have_their_own_types_in_the_program(
    bug: Library, patched: Library, compile_c: Build
) -> None:
    text = program_of(TYPED, bug, "mixed")
    assert ended(compile_c(text, bug)).returncode == 1
    assert ended(compile_c(text, patched)).returncode == 0


def test_the_program_names_the_first_segment_that_is_wrong_and_the_number(
    bug: Library, compile_c: Build
) -> None:
    case = Case(
        hsk=1, hsv=1, n_head_kv=1, n_kv=2, n_batch=1, mask=False, type_K="f32", type_V="f32",
        kv_view=False,
        segments=2, regime="few",
    )  # fmt: skip
    done = ended(compile_c(program_of(case, bug), bug))
    assert done.stdout.splitlines()[:2] == [
        "segment 0: 0 numbers wrong",
        "segment 1: 2 numbers wrong; worst at batch 0, head 0, row 0, numerator 0: "
        "got 3, expected 5, allowed error 8.8e-06",
    ]


# runs that are broken in one place


def doctored(case: Case, patched: Library, change: Callable[[Run], Run]) -> Verdict:
    library = ggml.load(patched.module_path)
    inputs = make_inputs(case)
    verdict = judge(case, inputs, change(run_case(library, case, inputs)), features=())
    assert verdict.status == "fail"
    return verdict


def emitted(verdict: Verdict) -> str:
    return emit_c.program(verdict, library="a library", features=())


def scaled(array: F32, by: float) -> F32:
    changed: F32 = array.copy()
    changed[0, 1, 0, -1] *= np.float32(by)
    return changed


def wrong_standard(run: Run) -> Run:
    standard = scaled(run.results["standard"].output, 1.5)
    return changed(run, standard=standard, standard_again=standard)


def wrong_state(run: Run) -> Run:
    step = dataclasses.replace(
        run.results["full_state"].first, state=scaled(run.results["full_state"].first.state, 1.5)
    )
    return changed(run, full_state=step, full_state_again=step, segmented=None)


def other_bit(run: Run) -> Run:
    *steps, last = run.results["segmented"].calls
    last = dataclasses.replace(last, output=scaled(last.output, 1 + 2.0**-23))
    return changed(
        run, segmented=dataclasses.replace(run.results["segmented"], calls=(*steps, last))
    )


def test_one_call_without_a_state_needs_no_patch(
    pristine: Library, patched: Library, compile_c: Build
) -> None:
    text = emitted(doctored(CASE, patched, wrong_standard))
    assert "state" not in text.partition("int main")[2].replace("NULL", "")
    assert ended(compile_c(text, pristine)).returncode == 0


def test_a_wrong_state_behind_a_right_result_is_looked_at(
    patched: Library, compile_c: Build
) -> None:
    """Nothing is wrong with the library's own state; an S that is doubled behind its back is."""
    text = emitted(doctored(CASE, patched, wrong_state))
    assert "N_SEGMENTS = 1," in text
    assert ended(compile_c(text, patched)).returncode == 0
    doubled = text.replace("n_wrong += ch", "((float *) state->data)[1] *= 2; n_wrong += ch")
    done = ended(compile_c(doubled, patched))
    assert done.returncode == 1
    assert done.stdout.startswith(
        "segment 0: 1 numbers wrong; worst at batch 0, head 0, row 0, S: got "
    )


def test_bits_are_compared_where_only_these_differ(
    bug: Library, patched: Library, compile_c: Build
) -> None:
    text = emitted(doctored(CASE, patched, other_bit))
    said = "the bits of the last result are not those of one call\n"
    green, red = ended(compile_c(text, patched)), ended(compile_c(text, bug))
    assert (green.returncode, said in green.stdout) == (0, False)
    assert (red.returncode, said in red.stdout) == (1, True)
    assert "memcmp" not in program_of(CASE, bug)


def test_a_crash_is_made_again_and_what_the_library_printed_does_not_end_the_comment(
    patched: Library, compile_c: Build
) -> None:
    crash = Verdict(
        case=CASE, status="crash", path="vec", modes=(), comparisons={}, outputs={},
        reason="segmented: SIGABRT\n  ops.cpp:8900: GGML_ASSERT(/* 4*/2) failed",
    )  # fmt: skip
    assert ended(compile_c(emitted(crash), patched)).returncode == 0


def wrong_merge(run: Run, name: str = "in_turn") -> Run:
    right: Left = getattr(run.results["merged"], name)
    changes: dict[str, Any] = {
        name: dataclasses.replace(right, state=scaled(right.state, 1.5)),
    }
    return changed(run, merged=dataclasses.replace(run.results["merged"], **changes))


@pytest.mark.parametrize("case", [CASE.with_(sinks=True), TYPED], ids=["one-cache", "typed"])
def test_parts_are_merged_in_turn(patched: Library, compile_c: Build, case: Case) -> None:
    """Right on the library; wrong where the first part is merged in the others' place."""
    text = emitted(doctored(case, patched, wrong_merge))
    done = ended(compile_c(text, patched))
    assert (done.returncode, done.stderr) == (0, "")
    *parts, merge, last = done.stdout.splitlines()
    assert [line.split(":")[0] for line in parts] == ["part 0", "part 1", "part 2"]
    assert (merge.split(";")[0], last) == ("parts 0 to 2: 0 numbers wrong", "right")
    done = ended(compile_c(text.replace("merged, states[s])", "merged, states[0])"), patched))
    assert done.returncode == 1
    assert "part 2: 0 numbers wrong" in done.stdout


def wrong_pair(run: Run) -> Run:
    return wrong_merge(run, "pairwise")


def wrong_resumption(run: Run) -> Run:
    *steps, last = run.results["resumed"]
    last = dataclasses.replace(last, state=scaled(last.state, 1.5))
    return changed(run, resumed=(*steps, last))


def wrong_repeat(run: Run) -> Run:
    return changed(run, standard_again=scaled(run.results["standard"].output, 1 + 2.0**-23))


def written(run: Run) -> Run:
    return changed(run, inputs_written=("k",))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (wrong_resumption, "fails in resumed: a C program can say standard, full_state, segmented"),
        (written, "fails in no mode: a C program can say standard, full_state, segmented, mixed"),
        (wrong_pair, "merged vs parts fails, which a C program would not show: it compares"),
        (wrong_repeat, "standard again fails, which a C program would not show: it compares"),
    ],
)
def test_what_a_program_cannot_say_is_refused(
    patched: Library, change: Callable[[Run], Run], reason: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(reason)):
        emitted(doctored(CASE, patched, change))


def test_an_error_that_only_the_standard_run_s_forbids_is_refused(patched: Library) -> None:
    case = CASE.with_(n_kv=60, type_K="f32", type_V="f32")

    def grown(run: Run) -> Run:
        expect = Expectations(case, make_inputs(case), ())
        region = expect.not_far_worse(expect.of_one.region, run.results["standard"].runs)
        assert isinstance(region, Narrowed)
        left = run.results["full_state"].first
        output = left.output.copy()
        output[1, 2, 1, 5] += np.float32(1.3 * region.ratio.bound[1, 2, 1, 5])
        return changed(run, full_state=dataclasses.replace(left, output=output))

    verdict = doctored(case, patched, grown)
    assert verdict.localisation is not None
    assert verdict.localisation.limit == "ratio"
    with pytest.raises(UsageError, match="full state vs oracle fails, which a C program would not"):
        emitted(verdict)


def test_a_case_of_too_many_numbers_is_refused_with_their_number() -> None:
    case = Case(hsk=64, hsv=64, n_head_kv=4, n_kv=4096, n_batch=1)
    crash = Verdict(
        case=case, status="crash", path="vec", modes=(), comparisons={}, outputs={},
        reason="standard: SIGSEGV",
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"would hold 2102024 numbers, more than 65536; shrink it"):
        emitted(crash)
