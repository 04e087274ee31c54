"""How the command line reads a call: what it refuses, with which status and message."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from fa_harness.case.suites import suite
from fa_harness.cli import build, doctor, series_check, series_lint
from fa_harness.cli import main as cli
from fa_harness.cli.doctor import Finding
from fa_harness.cli.lazy import LazyGroup
from fa_harness.model.llama import Programs
from fa_harness.project import Project
from fa_harness.series.lint import Violation

SEED = (
    "FLASH_ATTN_EXT(hsk=4,hsv=4,nh=1,nr23=[1,1],kv=2,nb=1,mask=1,sinks=0,max_bias=0.000000,"
    "logit_softcap=0.000000,prec=f32,type_K=f16,type_V=f16,permute=[0,1,2,3],kv_view=1,"
    "v_is_view_of_k=0,n_kv_max=0,segments=2,boundaries=[1],regime=seed,seed=0,threads=1)"
)
UPSTREAM_LINE = (
    "  FLASH_ATTN_EXT(hsk=64,hsv=64,nh=4,nr23=[1,1],kv=512,nb=1,mask=1,sinks=0,"
    "max_bias=0.000000,logit_softcap=0.000000,prec=f32,type_K=f16,type_V=f16,permute=[0,1,2,3]): "
    "\x1b[1;32mOK\x1b[0m"
)


class Ended:
    """How a call ended, and what it printed."""

    def __init__(self, status: int, stdout: str, stderr: str) -> None:
        self.status, self.stdout, self.stderr = status, stdout, stderr


Call = Callable[..., Ended]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """Call `fa-harness` in this process."""
    on_term = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["fa-harness", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        return Ended(status, *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, on_term)


@pytest.fixture
def listed(call: Call) -> Callable[..., list[str]]:
    """The case strings that `run --list` prints."""

    def run(*arguments: object) -> list[str]:
        ended = call("run", "--list", *arguments)
        assert (ended.status, ended.stderr) == (0, "")
        return ended.stdout.splitlines()

    return run


Listed = Callable[..., list[str]]


def test_help_names_the_commands_and_the_exit_statuses(call: Call) -> None:
    ended = call("--help")
    assert ended.status == 0
    for command in (
        "bench",
        "bisect",
        "build",
        "doctor",
        "fuzz",
        "gate",
        "run",
        "shrink",
        "vendor",
    ):
        assert f"\n  {command} " in ended.stdout
    text = " ".join(ended.stdout.split())
    assert (
        "Exit codes: 0 all cases pass 1 a case failed, crashed, timed out or is mistrusted" in text
    )
    assert "2 usage error: " in text
    assert "3 environment error: " in text


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from fa_harness.cli import main as cli\n"
        "sys.argv = ['fa-harness', '--help']\n"
        "try:\n    cli.main()\n"
        "finally:\n"
        "    heavy = {'numpy', 'rich', 'gguf', 'cffi', 'unearth', 'hypothesis'}\n"
        "    loaded = heavy & set(sys.modules)\n"
        "    print('loaded:', *loaded, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "loaded:\n")


@pytest.mark.parametrize("group", [cli.cli, cli.cli.load("series")], ids=["", "series"])
def test_the_list_of_commands_has_the_first_line_of_each_commands_help(group: LazyGroup) -> None:
    for name, line in group.lazy.items():
        [first, *_] = str(group.load(name).help).split("\n\n")
        assert (name, line) == (name, " ".join(first.split()).removesuffix("."))


def test_the_version_is_printed(call: Call) -> None:
    assert call("--version").stdout.startswith("fa-harness, version ")


def test_list_prints_the_cases_and_nothing_else(listed: Listed) -> None:
    assert listed("--suite", "seed") == [SEED]


def test_a_line_of_upstreams_own_test_can_be_pasted(listed: Listed) -> None:
    [case] = listed("--case", UPSTREAM_LINE)
    assert case.startswith("FLASH_ATTN_EXT(hsk=64,hsv=64,nh=4,nr23=[1,1],kv=512,nb=1,mask=1,")


@pytest.mark.parametrize(
    "options",
    [
        ("--segments", "1,2,3"),
        ("--segments", "1", "--segments", "2,3"),
        ("--segments", "1,2", "--segments", "2,3"),
    ],
)
def test_values_come_in_comma_lists_and_in_repeated_options(
    listed: Listed, options: tuple[str, ...]
) -> None:
    cases = listed("--case", "FLASH_ATTN_EXT(kv=64)", *options)
    assert [f"segments={n}," in case for n, case in zip((1, 2, 3), cases, strict=True)] == [
        True
    ] * 3


def test_every_regime_is_combined_with_every_number_of_threads(listed: Listed) -> None:
    cases = listed(
        "--case", "FLASH_ATTN_EXT(kv=64)", "--regime", "ties,huge", "--threads", "1", "--threads", 2
    )
    ends = [case.partition("regime=")[2] for case in cases]
    assert ends == [
        f"{regime},seed=0,threads={threads})" for regime in ("ties", "huge") for threads in (1, 2)
    ]


def test_the_seed_replaces_the_cases_own(listed: Listed) -> None:
    [case] = listed("--case", "FLASH_ATTN_EXT(seed=3)", "--seed", "11")
    assert ",seed=11," in case


def test_listed_boundaries_replace_equal_segments(listed: Listed) -> None:
    [case] = listed("--case", "FLASH_ATTN_EXT(kv=110)", "--boundaries", "1,100,101")
    assert ",segments=4,boundaries=[1,100,101]," in case


def test_random_boundaries_keep_the_number_of_segments(listed: Listed) -> None:
    [case] = listed("--case", "FLASH_ATTN_EXT(kv=110,segments=5)", "--boundaries", "random")
    assert ",segments=5,boundaries=random," in case


def test_k_keeps_the_cases_that_match(listed: Listed) -> None:
    pattern = r"type_K=q8_0|hsv=128\b"
    cases = listed("--suite", "smoke", "-k", pattern)
    assert 2 <= len(cases) < len(listed("--suite", "smoke"))
    assert all("type_K=q8_0" in case or "hsv=128," in case for case in cases)


def test_random_boundaries_go_with_a_number_of_segments(listed: Listed) -> None:
    cases = listed(
        "--case", "FLASH_ATTN_EXT(kv=110)", "--boundaries", "random", "--segments", "3,5"
    )
    assert [case.partition("segments=")[2].partition(",regime")[0] for case in cases] == [
        "3,boundaries=random",
        "5,boundaries=random",
    ]


def test_boundaries_need_to_fit_only_the_cases_that_are_selected(listed: Listed) -> None:
    [case] = listed("--suite", "smoke", "-k", "kv=601", "--boundaries", "1,599")
    assert ",segments=3,boundaries=[1,599]," in case


def test_a_case_file_has_a_case_a_line_and_comments(listed: Listed, tmp_path: Path) -> None:
    file = tmp_path / "cases.txt"
    file.write_text(f"# from a report\n\n{SEED}\n  # and one more\n{UPSTREAM_LINE}\n")
    first, second = listed("--case-file", file)
    assert first == SEED
    assert second.startswith("FLASH_ATTN_EXT(hsk=64,")


def test_a_bad_line_of_a_case_file_is_named(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "cases.txt"
    file.write_text(f"# two cases\n{SEED}\nFLASH_ATTN_EXT(hskk=64)\n")
    ended = call("run", "--case-file", file)
    assert ended.status == 2
    assert f"{file}:3: case field 'hskk' is unknown; the nearest is hsk" in ended.stderr


CASE = "FLASH_ATTN_EXT(kv=64)"
REFUSED = {
    "unknown suite": (
        ["--suite", "seeds"],
        "suite 'seeds' is unknown; there are seed, smoke, default",
    ),
    "unknown mode": (
        ["--suite", "seed", "--mode", "merge"],
        "mode 'merge' is unknown; there are standard, full_state, segmented",
    ),
    "unknown regime": (
        ["--case", CASE, "--regime", "flat"],
        "regime=flat: unknown; known are uniform,",
    ),
    "unknown type": (["--case", "FLASH_ATTN_EXT(type_V=q9)"], "type_V=q9: unknown type; known are"),
    "unknown field": (["--case", "FLASH_ATTN_EXT(n_kw=3)"], "case field 'n_kw' is unknown"),
    "unknown option": (["--segment", "4"], "No such option '--segment'"),
    "no case": (["--case", "FLASH_ATTN"], "'FLASH_ATTN' is not a case; one looks like"),
    "heads": (
        ["--case", "FLASH_ATTN_EXT(n_head=5,n_head_kv=2)"],
        "n_head=5: must be a multiple of n_head_kv=2",
    ),
    "type": (
        ["--case", "FLASH_ATTN_EXT(type_K=q8_o)"],
        "type_K=q8_o: unknown type; known are f32, f16, bf16, q8_0",
    ),
    "order": (["--case", CASE, "--boundaries", "9,3"], "boundaries=[9,3]: out of order"),
    "range": (
        ["--case", CASE, "--boundaries", "9,65"],
        "boundaries=[9,65]: must lie from 0 to kv=64",
    ),
    "boundaries": (
        ["--case", CASE, "--boundaries", "half"],
        "--boundaries 'half' is neither a comma list of keys nor 'random'",
    ),
    "segments": (["--case", CASE, "--segments", "65"], "segments=65: more than the kv=64 keys"),
    "no segments": (["--case", CASE, "--segments", "0"], "segments=0: must be at least 1"),
    "no number": (["--segments", "2,x"], "'2,x' is not a number or a list of numbers"),
    "threads": (["--case", CASE, "--threads", "0"], "threads=0: must be from 1 to 512"),
    "seed": (["--case", CASE, "--seed", "-1"], "seed=-1: must be from 0 to 2^64 - 1"),
    "timeout": (["--suite", "seed", "--timeout", "0"], "Invalid value for '--timeout'"),
    "pattern": (["-k", "("], "-k '(' is not a regular expression"),
    "two cuts": (
        ["--suite", "seed", "--segments", "2", "--boundaries", "1"],
        "--segments and a list of --boundaries exclude each other; give one",
    ),
    "nothing selected": (
        ["--suite", "smoke", "-k", "type_K=q5_1"],
        f"no case is left of {len(suite('smoke'))}: none matches -k 'type_K=q5_1'; --list",
    ),
    "two sources": (
        ["--suite", "seed", "--case", CASE],
        "--suite, --case, --case-file and --captured exclude each other; give one",
    ),
    "no case file": (["--case-file", "no-such-file"], "case file no-such-file: cannot be read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_call_is_refused_with_status_2(call: Call, name: str) -> None:
    arguments, message = REFUSED[name]
    ended = call("run", *arguments)
    assert ended.status == 2
    assert message in ended.stderr
    assert ended.stdout == ""


@pytest.mark.parametrize("definition", ["GGML_OPENMP", "=ON"])
@pytest.mark.parametrize("command", ["run", "build"])
def test_a_cmake_option_without_a_name_or_a_value_is_refused(
    call: Call, command: str, definition: str
) -> None:
    ended = call(command, "-D", definition)
    assert ended.status == 2
    assert f"'{definition}' is not NAME=VALUE" in ended.stderr


@pytest.mark.parametrize("command", [["run", "--suite", "seed", "--library"], ["build"]])
def test_an_unknown_library_is_refused_with_status_2(call: Call, command: list[str]) -> None:
    ended = call(*command, "0099")
    assert ended.status == 2
    assert "unknown library 'state@0099': state has 7 patches here, so " in ended.stderr


def test_a_case_file_without_a_case_is_refused(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "cases.txt"
    file.write_text("# nothing yet\n")
    ended = call("run", "--case-file", file)
    assert (ended.status, ended.stdout) == (2, "")
    assert f"{file} holds no case" in ended.stderr


def test_a_report_in_a_missing_folder_is_refused_before_anything_runs(
    call: Call, tmp_path: Path
) -> None:
    ended = call("run", "--suite", "seed", "--json", tmp_path / "no" / "report.json")
    assert (ended.status, ended.stdout) == (2, "")
    assert f"report {tmp_path}/no/report.json: there is no folder {tmp_path}/no" in ended.stderr


def test_a_report_path_that_is_a_folder_is_refused_before_anything_runs(
    call: Call, tmp_path: Path
) -> None:
    ended = call("run", "--suite", "seed", "--json", tmp_path)
    assert (ended.status, ended.stdout) == (2, "")
    assert f"report {tmp_path}: is a folder; name a file" in ended.stderr


def test_a_report_that_may_not_be_written_is_refused_before_anything_runs(call: Call) -> None:
    # nobody, root included, may make a file there
    ended = call("run", "--suite", "seed", "--json", "/proc/report.json")
    assert (ended.status, ended.stdout) == (2, "")
    assert "report /proc/report.json: cannot be written" in ended.stderr


def test_a_suite_of_rolling_caches_takes_another_window(listed: Callable[..., list[str]]) -> None:
    window = ("--hot-window", 32, "--group", 8, "--cold-type", "q4_0")
    cases = listed("--suite", "fifo", *window)
    assert cases
    assert all("hot_window=32,group=8,cold_type=q4_0," in case for case in cases)


def test_a_group_larger_than_the_window_is_refused(call: Call) -> None:
    ended = call("run", "--suite", "fifo", "--hot-window", 32, "--group", 40)
    assert (ended.status, ended.stdout) == (2, "")
    assert ended.stderr == "fa-harness: group=40: must be from 1 to hot_window=32\n"


def test_doctor_ends_with_the_status_of_a_problem(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "check", lambda *_: [Finding("CMake", "is gone", "problem")])
    monkeypatch.setattr(doctor, "baseline_here", lambda _: "none")
    ended = call("doctor")
    assert (ended.status, ended.stdout.split()[:4]) == (3, ["problem", "CMake", "is", "gone"])


@pytest.mark.parametrize(("level", "status"), [("must", 1), ("should", 0)])
def test_lint_ends_with_status_1_where_a_rule_that_upstream_insists_on_is_broken(
    call: Call, monkeypatch: pytest.MonkeyPatch, level: str, status: int
) -> None:
    found = Violation(
        level=level, rule="ascii", patch="0001-a.patch", line=3, file="a.c", file_line=7, text="x"
    )
    monkeypatch.setattr(series_lint, "lint", lambda *_: ([found], []))
    ended = call("series", "lint")
    assert ended.status == status
    assert f"patches/state/0001-a.patch:3: {level} [ascii] a.c:7: x" in ended.stdout


@pytest.mark.parametrize(("problem", "status"), [("does not apply", 1), ("", 0)])
def test_series_check_ends_with_status_1_where_the_series_does_not_pass(
    call: Call, monkeypatch: pytest.MonkeyPatch, problem: str, status: int
) -> None:
    found = series_check.CheckedUpstream(upstream="x", problem=problem)
    monkeypatch.setattr(series_check, "check", lambda *_: [found])
    assert call("series", "check", "--upstream", "x").status == status


def test_programs_of_llama_cpp_are_built_with_a_whole_stack(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def build_llama(project: Project, targets: Sequence[str], *, verbose: bool) -> Programs:
        asked.append((project.stack_name, tuple(targets), verbose))
        return Programs(src=tmp_path, cmake=tmp_path, setup={}, label="")

    monkeypatch.setattr(build, "build_llama", build_llama)
    ended = call("build", "mixed", "state", "--program", "llama-server", "--program", "llama-cli")
    bin_ = tmp_path / "bin"
    assert ended.status == 0
    assert ended.stdout.splitlines() == [str(bin_ / "llama-server"), str(bin_ / "llama-cli")] * 2
    programs = ("llama-server", "llama-cli")
    assert asked == [
        ("partial+fast+partial-on-fast+mixed", programs, False), ("state", programs, False)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pristine"], "--program: pristine is not a whole stack of series"),
        (["mixed@0002"], "+mixed@0002 is not a whole stack of series"),
        (["mixed", "-D", "GGML_OPENMP=ON"], "--define: is for libraries"),
    ],
)
def test_programs_of_a_part_of_a_stack_are_refused(
    call: Call, arguments: list[str], message: str
) -> None:
    ended = call("build", *arguments, "--program", "llama-server")
    assert ended.status == 2
    assert message in ended.stderr
