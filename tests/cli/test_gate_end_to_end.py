"""The gate as it is called, with real libraries: what it stops, and what must not lose a report."""

import dataclasses
import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from fa_harness import stacks
from fa_harness.build.builder import build
from fa_harness.build.library import Library, held
from fa_harness.case import suites
from fa_harness.case.case import Case
from fa_harness.cli import gate as gate_of_cli
from fa_harness.cli import main as cli
from fa_harness.cli.options import How
from fa_harness.cli.run import run_cases
from fa_harness.engine.runner import Runner
from fa_harness.engine.session import Results
from fa_harness.engine.worker import Worker
from fa_harness.errors import SetupError
from fa_harness.project import find_project
from fa_harness.series.series import load_series
from fa_harness.speed import against as against_other
from fa_harness.speed import baseline, instructions
from fa_harness.speed import rows as speed
from fa_harness.speed.against import Sides
from gates import results

CASES = [
    *suites.suite("seed"),
    Case(hsk=64, hsv=64, n_head_kv=2, n_kv=40, n_batch=3, segments=3, regime="normal"),
]
SMALL = (
    "from fa_harness.case import suites\n"
    "from fa_harness.case.case import Case\n"
    "from fa_harness.cli.main import main\n"
    f"suites.SUITES['gate'] = lambda: [Case.parse(text) for text in {[*map(str, CASES)]!r}]\n"
    "main()"
)
"""A gate of two cases, in a process of its own."""

Call = Callable[..., "Ended"]


@dataclasses.dataclass(frozen=True)
class Ended:
    status: int
    stdout: str
    stderr: str


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """Call `fa-harness gate`, which has two cases, in this process."""
    monkeypatch.setitem(suites.SUITES, "gate", lambda: CASES)
    on_term = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["fa-harness", "gate", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        return Ended(status, *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, on_term)


@pytest.fixture
def file(tmp_path: Path, call: Call, patched: Library) -> Path:
    """A baseline of the two cases, without speed."""
    path = tmp_path / "baseline.json"
    assert call("--baseline", path, "--update-baseline", "--no-speed").status == 0
    return path


def test_a_case_whose_numbers_show_nothing_is_drawn_again_where_a_seed_is_given(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(
        hsk=256, hsv=40, n_head_kv=3, n_group=4, n_kv=1023, n_batch=1, mask_kind="causal",
        permute=(0, 2, 1, 3), segments=3, boundaries=(0, 341), regime="rising", threads=2,
    )  # fmt: skip
    monkeypatch.setitem(suites.SUITES, "gate", lambda: [case])
    done = call("--seed", 5075, "--no-speed", "-v")
    statuses = [
        line.split()[-1] for line in done.stdout.splitlines() if line.startswith("hs256/40")
    ]
    assert {*statuses[:-1]} == {"mistrusted"}
    assert statuses[-1] == "pass"
    last = 5075 + len(statuses) - 1
    assert f"seed={last}" in done.stdout
    assert done.status == 0
    assert "1 case: 1 pass" in done.stdout
    assert call("--seed", last, "--no-speed").stdout.count("hs256/40") == 1


def test_a_gate_passes_against_its_own_baseline(call: Call, file: Path) -> None:
    ended = call("--baseline", file, "--no-speed")
    assert ended.status == 0
    for line in (
        "ok         cases              2 pass",
        "ok         errors             as in the baseline, 2 of 2 cases",
    ):
        assert line in ended.stdout
    assert "skipped    speed              left out (--no-speed)" in ended.stdout
    made = (
        "gate: pass, 2 cases: 2 pass; 5 of 8 checks made; not checked: speed, speed of one call, "
        "instructions"
    )
    assert f"{made} | baseline {file}" in ended.stdout


def test_a_library_with_the_bug_is_stopped_and_its_baseline_refused(
    call: Call, file: Path, bug: Library
) -> None:
    before = file.read_text()
    ended = call("--library", "0001", "--baseline", file, "--no-speed", "--update-baseline")
    assert ended.status == 1
    assert "gate: fail, 2 findings, 2 cases: 2 fail; " in ended.stdout
    assert f"baseline {file}: is left as it was; mend what is wrong first" in ended.stdout
    assert file.read_text() == before


def test_an_update_tells_what_changed(call: Call, file: Path) -> None:
    document = json.loads(file.read_text())
    case = str(CASES[1])
    document["cases"][case]["of_bound"]["standard_vs_oracle"] = 0.9
    document["cases"]["FLASH_ATTN_EXT(kv=3)"] = document["cases"].pop(str(CASES[0]))
    file.write_text(json.dumps(document))
    ended = call("--baseline", file, "--no-speed", "--update-baseline")
    assert ended.status == 0
    assert "gone: FLASH_ATTN_EXT(kv=3)" in ended.stdout
    assert f"added: {CASES[0]}" in ended.stdout
    assert "standard_vs_oracle 0.9 -> " in ended.stdout
    assert baseline.render(baseline.load(file)) == file.read_text()


def test_only_the_chosen_cases_are_checked_and_the_verdict_says_which(
    call: Call, file: Path
) -> None:
    ended = call("--baseline", file, "--no-speed", "-k", "kv40")
    assert ended.status == 0
    assert "nothing is gone    as in the baseline, 1 of 1 cases" in ended.stdout
    assert "gate: pass, 1 case of -k kv40: 1 pass; " in ended.stdout
    sizes = []
    for i in (1, 2, 3):
        ended = call("--baseline", file, "--no-speed", "--shard", f"{i}/3", "--json", "-")
        if ended.status == 2:
            assert "take fewer shards" in ended.stderr
            continue
        document = json.loads(ended.stdout)
        assert document["gate"]["part"] == f"--shard {i}/3"
        assert document["gate"]["findings"] == []
        sizes.append(len(document["results"]))
    assert sum(sizes) == 2


def test_the_first_case_that_fails_is_the_last_that_runs(
    call: Call, file: Path, bug: Library
) -> None:
    ended = call("--library", "0001", "--baseline", file, "--no-speed", "-x")
    assert ended.status == 1
    assert "1 of 2 cases (stopped at the first that fails (-x)): 1 fail" in ended.stdout
    assert "gate: fail, 1 finding, 1 of 2 cases: 1 fail; " in ended.stdout
    assert "not checked: cases (1 of 2 cases), nothing is gone, " in ended.stdout


def test_an_error_that_grew_is_stopped(call: Call, file: Path) -> None:
    text = file.read_text()
    grown = text.replace('"standard_vs_oracle": 0.', '"standard_vs_oracle": 0.00')
    assert grown != text
    file.write_text(grown)
    ended = call("--baseline", file, "--no-speed")
    assert ended.status == 1
    assert "error grew: hs" in ended.stdout
    assert "standard vs oracle: takes " in ended.stdout
    assert re.search(
        r"; worst in the only call, batch 0, head \d+, row \d+, element \d+", ended.stdout
    )


def test_a_gate_names_the_baseline_it_lacks_first_and_counts_what_it_checked(
    call: Call, monkeypatch: pytest.MonkeyPatch, patched: Library
) -> None:
    monkeypatch.setattr(baseline, "machine_class", lambda *_: "some-class")
    ended = call("--no-speed")
    assert ended.status == 0
    lines = ended.stdout.splitlines()
    file = f"baselines/state/{patched.upstream}.some-class.json"
    of = f"upstream {patched.upstream}, machine class some-class"
    assert lines[0].startswith(f"no baseline: {file} does not exist ({of}); ")
    assert lines[0].endswith("fa-harness gate --update-baseline makes it")
    assert ended.stdout.count("skipped  ") == 7
    assert lines[-1] == (
        "gate: pass, 2 cases: 2 pass; 1 of 8 checks made; not checked: nothing is gone, "
        "bit-exactness, bits of one call, errors, speed, speed of one call, instructions | "
        "no baseline"
    )


def test_what_a_series_accepts_is_of_a_row_that_is_counted(
    call: Call, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = find_project()
    rows = [str(case) for case in instructions.ROWS]
    for name in stacks.names_in(project.series_folders):
        assert {*stacks.accepted_by(project.series_folders, [name])} <= {*rows}, name
    monkeypatch.setattr(gate_of_cli, "accepted_by", lambda *_: {"FLASH": None})
    ended = call("--baseline", file)
    assert ended.status == 3
    assert "in a series.toml of 'state': the gate counts no instructions of " in ended.stderr
    assert rows[0] in ended.stderr


def test_a_strict_gate_fails_where_something_was_not_checked(
    call: Call, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = call("--baseline", file, "--no-speed", "--strict")
    assert ended.status == 1
    assert "gate: fail (--strict), 2 cases: 2 pass; 5 of 8 checks made; not c" in ended.stdout
    monkeypatch.setattr(baseline, "machine_class", lambda *_: "some-class")
    ended = call("--strict", "--no-speed")
    assert ended.status == 1
    assert ended.stdout.startswith("no baseline: ")
    assert "gate: fail (--strict), 2 cases: 2 pass; 1 of 8 checks made; not c" in ended.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is broken ("),
        ('{"schema": "fa-harness.baseline/2"}', "it was made by a newer one; update fa-harness"),
    ],
)
@pytest.mark.parametrize("update", [[], ["--update-baseline"]])
def test_a_baseline_that_cannot_be_used_ends_the_gate_before_it_runs(
    call: Call, tmp_path: Path, patched: Library, text: str, message: str, update: list[str]
) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    ended = call("--baseline", file, *update)
    assert (ended.status, ended.stdout) == (3, "")
    assert message in ended.stderr
    assert file.read_text() == text


def test_a_wrong_call_is_refused(call: Call, tmp_path: Path) -> None:
    ended = call("--baseline", tmp_path / "none.json")
    assert (ended.status, ended.stdout) == (2, "")
    assert "there is no such file; --update-baseline makes it" in ended.stderr
    ended = call("--update-baseline", "--seed", 3)
    assert (ended.status, ended.stdout) == (2, "")
    assert "leave them out, or name another file with --baseline" in ended.stderr
    for part in (["-x"], ["-k", "vec"], ["--shard", "1/2"]):
        ended = call("--update-baseline", *part)
        assert (ended.status, ended.stdout) == (2, "")
        assert "a baseline is of all cases; leave -x, -k and --shard out" in ended.stderr
    for text in ("3/2", "0/2", "1", "a/b"):
        assert "is not I/N" in call("--shard", text).stderr
    ended = call("--against", "nothing")
    assert (ended.status, ended.stdout) == (2, "")
    assert "unknown library 'nothing'" in ended.stderr
    ended = call("--update-baseline", "--strict")
    assert (ended.status, ended.stdout) == (2, "")
    assert "--strict: a run that becomes the baseline is compared with none" in ended.stderr


def test_the_reports_are_of_one_run_and_json_stands_alone_on_standard_output(
    call: Call, file: Path, tmp_path: Path
) -> None:
    paths = {kind: tmp_path / f"report.{kind}" for kind in ("junit", "markdown", "html")}
    arguments = [word for kind, path in paths.items() for word in (f"--{kind}", path)]
    ended = call("--baseline", file, "--no-speed", "--json", "-", *arguments)
    document = json.loads(ended.stdout)
    assert (document["schema"], document["gate"]["passed"]) == ("fa-harness.gate/1", True)
    assert [result["case"] for result in document["results"]] == [*map(str, CASES)]
    assert ET.parse(paths["junit"]).getroot().get("failures") == "0"
    headline = "gate passed, 5 of 8 checks made: 2 cases"
    assert paths["markdown"].read_text().startswith(f"## ✅ {headline}")
    assert headline in paths["html"].read_text()


def test_in_github_actions_what_is_wrong_is_annotated_and_the_summary_added_to(
    call: Call, file: Path, bug: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("# before\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    ended = call("--library", "0001", "--baseline", file, "--no-speed")
    assert ended.status == 1
    commands = [line for line in ended.stdout.splitlines() if line.startswith("::error")]
    assert len(commands) == 2
    assert all(line.startswith("::error title=fail%3A hs") for line in commands)
    assert summary.read_text().startswith(
        "# before\n## ❌ gate failed, 1 of 8 checks made: 2 finding"
    )


@pytest.mark.full
def test_every_case_of_the_gate_passes_on_the_series_with_a_seed_of_no_choice(
    patched: Library,
) -> None:
    cases = [case.with_(seed=20261125, threads=1) for case in suites.suite("gate")]
    with Runner(patched.module_path) as runner:
        bad = [f"{v.status}: {v.reason}: {v.case}" for v in runner.run(cases) if v.status != "pass"]
    assert bad == []


# faults of files


def test_a_report_that_cannot_be_written_keeps_no_other_back(
    call: Call, file: Path, tmp_path: Path
) -> None:
    junit = tmp_path / "report.xml"
    ended = call("--baseline", file, "--no-speed", "--json", "/dev/full", "--junit", junit)
    assert ended.status == 3
    assert "report /dev/full: cannot be written (No space left on device)" in ended.stderr
    assert "gate: pass" in ended.stdout
    assert ET.parse(junit).getroot().get("failures") == "0"


def test_a_full_disk_leaves_the_older_baseline(
    call: Call, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, limits = file.read_text(), resource.getrlimit(resource.RLIMIT_FSIZE)
    render = baseline.render

    def render_on_a_full_disk(new: baseline.Baseline) -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        return render(new)

    monkeypatch.setattr(baseline, "render", render_on_a_full_disk)
    try:
        ended = call("--baseline", file, "--no-speed", "--update-baseline")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ended.status == 3
    assert f"cannot write {file}" in ended.stderr
    assert file.read_text() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_disk_that_fills_up_ends_a_run_and_keeps_what_was_found_until_then(
    patched: Library,
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    console = Console(file=open(os.devnull, "w"))  # noqa: SIM115
    written: list[Results] = []
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(SetupError):
            run_cases(
                [CASES[0], CASES[1]],  # the state of the first fits
                How(),
                ("resumed",),
                console,
                write=written.append,
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    [results] = written
    assert [verdict.status for verdict in results.verdicts] == ["pass"]
    assert results.interrupted
    assert not results.passed


def test_a_file_that_a_worker_cannot_write_is_no_crash_of_the_case(patched: Library) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with Worker(patched.module_path) as worker:
            worker.submit(CASES[1], ("resumed",), 60)
            with pytest.raises(SetupError, match=r"state .*: cannot be written \(File too large\)"):
                worker.result()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_gates_that_run_at_once_leave_a_whole_baseline_of_one_of_them(
    patched: Library, tmp_path: Path
) -> None:
    file = tmp_path / "x.json"
    arguments = ["gate", "--baseline", str(file), "--update-baseline", "--no-speed"]
    gates = [
        subprocess.Popen(
            [sys.executable, "-c", SMALL, *arguments], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in gates]
    assert [process.returncode for process in gates] == [0, 0, 0]
    assert set(baseline.load(file).cases) == {*map(str, CASES)}
    # each tells what it changed against the one before it
    assert sum("new: 2 cases" in output for output in outputs) == 1
    assert sum("written, nothing changed" in output for output in outputs) == 2
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_baseline_that_cannot_be_written_keeps_no_report_back(
    call: Call, patched: Library, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    file = tmp_path / "no" / "such" / "folder" / "x.json"
    ended = call("--baseline", file, "--update-baseline", "--no-speed", "--json", report)
    assert ended.status == 3
    assert f"cannot write {file.parent}" in ended.stderr
    assert json.loads(report.read_text())["gate"]["passed"]


def test_a_gate_that_is_interrupted_while_it_measures_keeps_its_report_and_does_not_pass(
    call: Call, patched: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> list[speed.SpeedRow]:
        raise KeyboardInterrupt

    monkeypatch.setattr(speed, "measure", interrupt)
    report = tmp_path / "report.json"
    file = tmp_path / "x.json"
    ended = call("--baseline", file, "--update-baseline", "--json", report)
    assert ended.status == 1
    assert not json.loads(report.read_text())["gate"]["passed"]
    assert not file.exists()


# a library that is replaced


@pytest.fixture
def replaceable(patched: Library, tmp_path: Path) -> Library:
    path = tmp_path / "lib" / "patched"
    shutil.copytree(patched.path, path, symlinks=True)
    return dataclasses.replace(patched, path=path)


def test_a_library_that_is_replaced_while_it_runs_stays_what_it_was(
    replaceable: Library, bug: Library
) -> None:
    with held(replaceable) as library, Runner(library.module_path) as runner:
        shutil.rmtree(replaceable.path)
        shutil.copytree(bug.path, replaceable.path, symlinks=True)
        os.kill(runner._worker.pid, signal.SIGKILL)  # the next one loads anew
        statuses = [verdict.status for verdict in runner.run([CASES[0], *CASES])]
    assert statuses == ["crash", "pass", "pass"]
    assert library.series == replaceable.series
    assert [path.name for path in replaceable.path.parent.iterdir()] == ["patched"]


def test_a_library_that_goes_away_before_it_is_held_says_so(
    replaceable: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(replaceable.path)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(SetupError, match=r"went away from .*; build it again"), held(replaceable):
        pass
    assert list(replaceable.path.parent.iterdir()) == []


def test_what_a_killed_process_held_is_deleted_and_what_a_living_one_holds_is_not(
    replaceable: Library,
) -> None:
    code = (
        "import os, sys, pathlib\n"
        "from fa_harness.build.library import held, load\n"
        "with held(load(pathlib.Path(sys.argv[1]))):\n"
        "    os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, replaceable.path], check=False)
    folder = replaceable.path.parent
    assert len(list(folder.iterdir())) == 2
    with held(replaceable) as outer:
        assert len(list(folder.iterdir())) == 2
        with held(replaceable) as inner:
            assert outer.path != inner.path
            assert outer.module_path.exists()
        assert outer.module_path.exists()
    assert [path.name for path in folder.iterdir()] == ["patched"]


def test_who_may_not_write_beside_a_library_runs_it_in_its_place(
    replaceable: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> str:  # root may write in any folder
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with held(replaceable) as library:
        assert library == replaceable


# speed


def test_each_number_of_a_speed_row_is_of_a_process_of_its_own(patched: Library) -> None:
    [row] = speed.measure(patched.module_path, speed.ROWS[:1], processes=3)
    assert row.fault == ""
    assert {way: len(each) for way, each in row.ratios.items()} == dict.fromkeys(
        (*speed.NOISE, *speed.WAYS), 3
    )
    assert all(ratio > 0 for each in row.ratios.values() for ratio in each)


def test_one_call_of_another_library_is_timed_beside(patched: Library, pristine: Library) -> None:
    [row] = speed.measure(
        patched.module_path, speed.ROWS[:1], processes=2, other=pristine.module_path
    )
    assert row.fault == ""
    assert len(row.ratios[speed.OTHER]) == 2
    # one call of a library that lacks the state is all that can be timed of it
    [row] = speed.measure(pristine.module_path, speed.ROWS[:1], processes=1)
    assert (row.fault, list(row.ratios)) == ("", [*speed.NOISE])


@pytest.mark.parametrize(
    ("library", "against", "reason"),
    [
        ("pristine", "pristine", "library 'pristine' has the same sources as 'pristine'"),
        ("patched", "0006", "so they cannot be loaded together"),
    ],
)
def test_what_one_call_cannot_be_compared_with_is_skipped_with_the_reason(
    library: str,
    against: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    before_scheduler: Library,
) -> None:
    monkeypatch.setattr(instructions, "why_not", lambda: "left out")
    [held_one] = build(find_project(), [library])
    sides = Sides(library=held_one, options={}, against=against, is_chosen=lambda _: True)
    none = baseline.NoBaseline(reason="no baseline", text="")
    measured, rows = sides.measure(none, update=False)
    assert rows == []
    assert (measured.speed, measured.instructions) == ("no baseline", "left out")
    assert reason in str(measured.one_call)


def test_a_library_that_cannot_be_built_leaves_the_other_checks_as_they_are(
    patched: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*_: Any) -> Any:
        raise SetupError("no C++ compiler")

    monkeypatch.setattr(instructions, "why_not", lambda: None)
    monkeypatch.setattr(against_other, "held_library", no_compiler)
    sides = Sides(library=patched, options={}, against="pristine", is_chosen=lambda _: True)
    measured, _ = sides.measure(baseline.NoBaseline(reason="none", text=""), update=False)
    assert measured.one_call == "library 'pristine' cannot be had: no C++ compiler"
    assert measured.instructions == "no C++ compiler"


def test_a_crash_while_a_speed_row_is_measured_is_its_fault(
    around_patched: Callable[[str], Path],
) -> None:
    code = "os.kill(os.getpid(), 11) if name == 'ggml_backend_graph_compute' and n > 3 else None"
    rows = speed.measure(around_patched(code), speed.ROWS[:2], processes=2)
    assert [row.fault.split()[0] for row in rows] == ["SIGSEGV", "SIGSEGV"]


@pytest.mark.timing
def test_a_ratio_that_got_worse_is_measured_twice_and_stopped(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patched: Library
) -> None:
    monkeypatch.setattr(speed, "ROWS", speed.ROWS[:1])
    measured: list[speed.SpeedRow] = []
    measure = speed.measure

    def counted(*arguments: Any, **more: Any) -> list[speed.SpeedRow]:
        rows = measure(*arguments, **more)
        measured.extend(rows)
        return rows

    monkeypatch.setattr(speed, "measure", counted)
    monkeypatch.setattr(instructions, "why_not", lambda: "left out")
    file = tmp_path / "x.json"
    assert call("--baseline", file, "--update-baseline").status == 0
    assert [len(row.ratios["again"]) for row in measured] == [24]
    document = json.loads(file.read_text())
    ratios = document["speed"]["rows"][str(speed.ROWS[0])]["segmented"]
    ratios[:] = [ratio / 5 for ratio in ratios]
    file.write_text(json.dumps(document))
    measured.clear()
    ended = call("--baseline", file)
    assert ended.status == 1
    assert "slower: hs128 h8/2 kv256 b1" in ended.stdout
    assert [len(row.ratios["segmented"]) for row in measured] == [12, 24]


def test_a_library_made_before_its_patches_were_renamed_is_compared_all_the_same(
    patched: Library,
) -> None:
    names = tuple(f"{name[:4]}-older.patch" for name in patched.series)
    older = dataclasses.replace(patched, series=names)
    series = gate_of_cli.what_made(find_project(), older, results(), "x86_64-avx2")["series"]
    assert tuple(series) == load_series(find_project()).names
