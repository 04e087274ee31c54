"""The command line in processes of its own, on the real libraries, sources and tools."""

import contextlib
import fcntl
import hashlib
import json
import os
import pty
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import schemas
from fa_harness.build.library import Library
from fa_harness.build.toolchain import find_cmake, find_git, find_ninja
from fa_harness.case.suites import suite
from fa_harness.project import find_project
from fa_harness.upstream.fetch import extract, fetch
from fa_harness.upstream.git import git
from fa_harness.upstream.pins import load_pins

COMMAND = [sys.executable, "-m", "fa_harness.cli"]
PROJECT = find_project()
N_SMOKE = len(suite("smoke"))
PIN = load_pins(PROJECT.pins_file).get()
RECORDED = [1.888046, 2.264925, 2.643021, 3.019901]
"""The segmented output on which the accumulator's reset was found."""

pytestmark = pytest.mark.usefixtures("pristine", "bug", "patched")


def fa_harness(
    *arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command; `env` is laid over the environment."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )


def read_report(text: str) -> Any:
    """Read a report, as the standard of JSON has it (no NaN, no Infinity) and as its schema has."""

    def refuse(literal: str) -> None:
        raise ValueError(f"{literal} is not JSON")

    return schemas.checked(json.loads(text, parse_constant=refuse))


def flat(nested: Any) -> list[float]:
    return [x for item in nested for x in flat(item)] if isinstance(nested, list) else [nested]


def report_of(*arguments: object) -> Any:
    return read_report(fa_harness("run", "--json", "-", *arguments).stdout)


# The recorded case


def test_the_first_patch_alone_shows_the_recorded_bug() -> None:
    done = fa_harness("run", "--suite", "seed", "--library", "0001")
    assert done.returncode == 1
    line = next(line for line in done.stdout.splitlines() if line.startswith("hs4 "))
    assert re.search(r" 2 +0\.00e\+00 +2\.49e\+00 .* fail$", line)
    assert "state vs oracle: 4.00e+00, allowed 8.26e-03 at batch 0" in done.stdout


def test_the_first_patch_alone_gives_the_recorded_numbers() -> None:
    [result] = report_of("--suite", "seed", "--library", "0001")["results"]
    outputs = result["outputs"]
    assert flat(outputs["segmented"]) == pytest.approx(RECORDED, abs=2e-6)
    assert flat(outputs["after_segment"][0]) == [1, 2, 3, 4]
    assert flat(outputs["after_segment"][1]) == flat(outputs["segmented"])
    assert outputs["standard"] == outputs["full_state"]


def test_the_series_passes_on_the_recorded_case() -> None:
    done = fa_harness("run", "--suite", "seed")
    assert done.returncode == 0
    line = next(line for line in done.stdout.splitlines() if line.startswith("hs4 "))
    full, segmented = re.findall(r"\d\.\d\de[+-]\d\d", line)[:2]
    assert full == "0.00e+00"
    assert float(segmented) < 1e-5
    assert line.endswith(" pass")


# Suites


@pytest.mark.full
def test_the_default_suite_passes_in_four_segments() -> None:
    done = fa_harness("run", "--segments", 4)
    assert done.returncode == 0, done.stdout
    assert re.search(r"^\d+ cases: \d+ pass \| library state of ", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("threads", "segments"),
    [
        (1, "1,2,3,7"),
        pytest.param(2, "1,2,3,7", marks=pytest.mark.full),
        pytest.param(8, "2", marks=pytest.mark.full),
    ],
)
def test_the_smoke_suite_passes_in_any_number_of_segments(threads: int, segments: str) -> None:
    options = ("--suite", "smoke", "--segments", segments, "--threads", threads)
    done = fa_harness("run", *options)
    assert done.returncode == 0, done.stdout


def test_a_library_without_the_patch_runs_in_standard_mode() -> None:
    report = report_of("--suite", "smoke", "--library", "pristine", "--mode", "standard")
    assert report["summary"]["pass"] == report["summary"]["cases"] == N_SMOKE
    assert report["library"]["series"] == []
    assert set(report["results"][0]["comparisons"]) == {"standard_again", "standard_vs_oracle"}


def test_a_library_without_the_patch_does_not_pass_the_other_modes() -> None:
    done = fa_harness("run", "--suite", "seed", "--library", "pristine")
    assert done.returncode == 1
    assert "the library has no ggml_flash_attn_ext_with_state; use --mode standard" in done.stdout


# The JSON report


@pytest.fixture(scope="module")
def smoke() -> Any:
    return report_of("--suite", "smoke")


def test_the_report_says_what_ran_on_what(smoke: Any, patched: Library) -> None:
    assert smoke["schema"] == "fa-harness.run/1"
    assert set(smoke) == {
        "schema",
        "tool",
        "library",
        "machine",
        "started",
        "seconds",
        "interrupted",
        "summary",
        "results",
    }
    assert smoke["library"]["name"] == "state"
    assert smoke["library"]["upstream"] == patched.upstream
    assert smoke["library"]["ggml_version"] == patched.ggml_version
    assert smoke["library"]["series"] == list(patched.series)
    assert smoke["library"]["build"] == patched.build
    assert smoke["library"]["features"]
    assert smoke["machine"]["threads"] >= 1
    assert smoke["summary"] == {
        "cases": N_SMOKE,
        "pass": N_SMOKE,
        "fail": 0,
        "crash": 0,
        "timeout": 0,
        "unsupported": 0,
        "mistrusted": 0,
        "oversized": 0,
    }


def test_every_result_has_the_same_keys(smoke: Any) -> None:
    for result in smoke["results"]:
        assert set(result) == {
            "case",
            "status",
            "path",
            "modes",
            "reason",
            "localisation",
            "comparisons",
            "outputs",
            "steps",
            "seconds",
            "repro",
        }
        assert result["path"] in ("vec", "tiled", "split-kv")
        for comparison in result["comparisons"].values():
            assert {"max_abs", "max_rel_row", "nmse", "bitwise", "worst", "bound"} <= set(
                comparison
            )


def test_a_result_of_each_path_is_repeated_by_its_repro_line(smoke: Any) -> None:
    of_path = {result["path"]: result for result in smoke["results"]}
    assert set(of_path) == {"vec", "tiled", "split-kv"}
    for result in of_path.values():
        program, *arguments = shlex.split(result["repro"])
        assert program == "fa-harness"
        [again] = report_of(*arguments[1:])["results"]
        assert {**again, "seconds": 0} == {**result, "seconds": 0}


def test_a_typed_case_is_computed_in_its_own_types_and_repeated_by_its_repro_line() -> None:
    case = "FLASH_ATTN_EXT(hsk=64,hsv=64,nh=2,kv=96,nb=2,type_K=f32,type_V=f32,regime=normal)"
    options = ("--case", case, "--segments", 3, "--segment-types", "q4_0,q8_0/f16")
    [result] = report_of(*options, "--mode", "mixed")["results"]
    assert result["status"] == "pass"
    assert result["modes"] == ["standard", "mixed"]
    assert "segment_types=[q4_0,q8_0/f16]" in result["case"]
    [again] = report_of(*shlex.split(result["repro"])[2:])["results"]
    assert {**again, "seconds": 0} == {**result, "seconds": 0}


def test_a_mode_that_a_case_cannot_have_is_refused_with_the_option_to_give() -> None:
    done = fa_harness("run", "--suite", "seed", "--mode", "mixed")
    assert done.returncode == 2
    assert "--mode mixed: needs --segment-types" in done.stderr


def test_a_repro_line_keeps_the_modes_and_the_library() -> None:
    [result] = report_of("--suite", "seed", "--library", "0001", "--mode", "full_state")["results"]
    words = shlex.split(result["repro"])
    assert words[:6] == ["fa-harness", "run", "--library", "state@0001", "--mode", "full_state"]
    assert "segmented_vs_standard" not in result["comparisons"]


def test_a_rolling_cache_reports_each_of_its_steps() -> None:
    shape = "hsk=32,hsv=32,nh=1,kv=12,nb=12,mask_kind=causal,regime=normal"
    case = f"FLASH_ATTN_EXT({shape},hot_window=4,group=3,cold_type=q8_0)"
    [result] = report_of("--case", case, "--group", "2")["results"]
    assert result["status"] == "pass"
    assert [step["step"] for step in result["steps"]] == list(range(12))
    assert [step["tokens_cold"] for step in result["steps"]] == [0] * 4 + [2, 2, 4, 4, 6, 6, 8, 8]
    last = result["steps"][-1]
    assert (last["tokens_hot"], last["cache_bytes"]) == (4, 4 * 128 + 8 * 68)
    assert last["f16_bytes"] == 12 * 128
    assert 0 < last["error"] < last["quantisation_error"]
    assert 0 < last["of_bound"] < 1


def test_outputs_of_at_most_64_values_are_kept() -> None:
    small = "FLASH_ATTN_EXT(hsk=64,hsv=64,nh=1,kv=32,nb=1)"
    [result] = report_of("--case", small)["results"]
    assert len(flat(result["outputs"]["standard"])) == 64
    larger = small.replace("nb=1", "nb=2")
    [result] = report_of("--case", larger)["results"]
    assert result["outputs"] == {}
    [result] = report_of("--case", larger, "-v")["results"]
    assert len(flat(result["outputs"]["standard"])) == 128


def test_a_report_on_standard_output_is_alone_there() -> None:
    done = fa_harness("run", "--suite", "seed", "--json", "-")
    assert read_report(done.stdout)["summary"]["pass"] == 1
    assert done.stderr.startswith("case ")
    assert "1 case: 1 pass" in done.stderr


def test_a_report_in_a_file_leaves_the_table_on_standard_output(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    done = fa_harness("run", "--suite", "seed", "--json", file)
    assert read_report(file.read_text())["summary"]["pass"] == 1
    assert done.stdout.startswith("case ")
    assert done.stderr == ""


def test_what_overflow_excuses_is_in_no_comparison_of_the_report() -> None:
    # flat scores over many large V: F16 numerators overflow
    overflow = (
        "FLASH_ATTN_EXT(hsk=64,hsv=64,nh=1,kv=2000,nb=2,mask=0,logit_softcap=0.01,regime=huge)"
    )
    [result] = report_of("--case", overflow)["results"]
    assert result["status"] == "unsupported"
    assert result["comparisons"]["standard_vs_oracle"]["max_abs"] < 1


def test_verbose_prints_the_repro_line_of_a_case_that_passed() -> None:
    quiet = fa_harness("run", "--suite", "seed")
    verbose = fa_harness("run", "--suite", "seed", "-v")
    assert "fa-harness run --library state --case " not in quiet.stdout
    assert "fa-harness run --library state --case 'FLASH_ATTN_EXT(hsk=4," in verbose.stdout


# What a person sees


def test_a_pipe_gets_no_colours_and_no_bar() -> None:
    done = fa_harness("run", "--suite", "smoke")
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == N_SMOKE + 2  # headings, summary


def on_a_terminal(*arguments: str, columns: int) -> tuple[int, str]:
    """Run a command on a pseudo-terminal; its status and all that it wrote there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    hidden = ("NO_COLOR", "COLUMNS", "LINES", "CI")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**env, "TERM": "xterm-256color"},
    )
    os.close(theirs)
    written = bytearray()
    with contextlib.suppress(OSError):  # EIO at the end, when nobody holds the other side
        while chunk := os.read(ours, 65536):
            written += chunk
    os.close(ours)
    return process.wait(), written.decode()


def test_a_terminal_gets_colours_and_a_bar_that_goes_away() -> None:
    status, written = on_a_terminal("run", "--suite", "smoke", columns=150)
    assert status == 0
    assert "\x1b[32mpass" in written
    assert written.rindex(f"{N_SMOKE}/{N_SMOKE}") < written.rindex("\x1b[2K")  # the line is erased


def test_the_table_is_narrower_than_a_terminal_of_100_columns() -> None:
    _, written = on_a_terminal("run", "--suite", "seed", columns=100)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written)
    for line in re.split(r"[\r\n]+", plain):
        assert len(line) <= 100


# Cases of upstream's tool

FOUND = Path(__file__).parents[1] / "data" / "found-by-fuzz.txt"


def test_cases_on_which_our_bounds_once_were_too_tight_pass() -> None:
    done = fa_harness("run", "--case-file", FOUND)
    assert (done.returncode, "7 cases: 7 pass" in done.stdout) == (0, True)


TOOL_OUTPUT = Path(__file__).parents[1] / "data" / "test-backend-ops.txt"


@pytest.mark.parametrize(
    "options", [["--segments", "1,3"], ["--library", "pristine", "--mode", "standard"]]
)
def test_the_output_of_upstreams_tool_runs_as_it_is(options: list[str]) -> None:
    done = fa_harness("run", "--case-file", TOOL_OUTPUT, *options)
    assert done.returncode == 0
    n_case = 22 if "--segments" in options else 11
    assert f"\n{n_case} cases: {n_case} pass | " in done.stdout


def test_a_case_that_cannot_be_computed_is_listed_and_fails_nothing(tmp_path: Path) -> None:
    file = tmp_path / "cases.txt"
    file.write_text(f"{SHORT}\nFLASH_ATTN_EXT(kv=64,type_V=mxfp4)\n")
    done = fa_harness("run", "--case-file", file)
    assert done.returncode == 0
    assert "type_V=mxfp4: the harness cannot encode it" in done.stdout
    assert "2 cases: 1 pass, 1 unsupported" in done.stdout


# Interrupted, crashed, hung

LONG = "FLASH_ATTN_EXT(hsk=64,hsv=64,nh=32,kv=8192,nb=256,type_K=q4_0,type_V=q4_0,segments=7)"
SHORT = "FLASH_ATTN_EXT(kv=64,regime=normal)"


class Running:
    """A run of a short case, a long one and a short one, in a process group of its own."""

    def __init__(self, tmp_path: Path, *options: str) -> None:
        file = tmp_path / "cases.txt"
        file.write_text(f"{SHORT}\n{LONG}\n{SHORT.replace('64', '65')}\n")
        self.report = tmp_path / "report.json"
        self.process = subprocess.Popen(
            [*COMMAND, "run", "--case-file", file, "--json", self.report, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def until_the_long_case(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.rstrip().endswith(" pass"):
                return

    @property
    def worker(self) -> int:
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def worker_ticks(self) -> int:
        """The worker's time on a processor, in the kernel's ticks."""
        stat = Path(f"/proc/{self.worker}/stat").read_text()
        return int(stat.rpartition(")")[2].split()[11])  # utime

    def ended(self) -> tuple[int, str, Any]:
        output, _ = self.process.communicate()
        return self.process.returncode, output, read_report(self.report.read_text())


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    run = Running(tmp_path)
    run.until_the_long_case()
    yield run
    run.process.kill()
    run.process.wait()


@pytest.mark.parametrize(
    ("send", "number"),
    [(os.killpg, signal.SIGINT), (os.kill, signal.SIGINT), (os.kill, signal.SIGTERM)],
    ids=["Ctrl-C", "SIGINT", "SIGTERM"],
)
def test_an_interrupted_run_keeps_the_report_of_what_ran(
    running: Running, send: Callable[[int, int], None], number: int
) -> None:
    worker = running.worker
    send(running.process.pid, number)
    status, output, report = running.ended()
    assert status == 1
    assert "1 of 3 cases (interrupted): 1 pass" in output
    assert "Traceback" not in output
    assert report["interrupted"] is True
    assert [result["status"] for result in report["results"]] == ["pass"]
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_a_crash_of_the_library_costs_one_case(running: Running) -> None:
    before = running.worker_ticks()
    while running.worker_ticks() < before + 10:  # until it is at the long case
        assert running.process.poll() is None
    os.kill(running.worker, signal.SIGSEGV)
    status, output, report = running.ended()
    assert status == 1
    assert [result["status"] for result in report["results"]] == ["pass", "crash", "pass"]
    assert "SIGSEGV" in report["results"][1]["reason"]
    assert "3 cases: 2 pass, 1 crash" in output


@pytest.mark.timing
def test_a_case_that_takes_too_long_costs_one_case(tmp_path: Path) -> None:
    status, output, report = Running(tmp_path, "--timeout", "1").ended()
    assert status == 1
    assert [result["status"] for result in report["results"]] == ["pass", "timeout", "pass"]
    assert "no result after 1 s" in report["results"][1]["reason"]
    assert "3 cases: 2 pass, 1 timeout" in output


def test_a_full_disk_under_the_report_is_said_after_the_table(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.symlink_to("/dev/full")
    done = fa_harness("run", "--suite", "seed", "--json", report)
    assert done.returncode == 3
    assert "1 case: 1 pass" in done.stdout
    assert re.search(r"report .*: cannot be written \(No space left on device\)", done.stderr)


@pytest.mark.parametrize("options", [(), ("--json", "-")])
def test_a_full_disk_under_standard_output_is_said(options: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "run", "--suite", "seed", *options],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 3
    last = done.stderr.splitlines()[-1]
    assert last == "fa-harness: cannot write standard output (No space left on device)"


def test_a_reader_that_has_seen_enough_ends_a_run_without_a_word() -> None:
    with subprocess.Popen(
        [*COMMAND, "run", "--suite", "smoke"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"case ")
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


# Sources and builds, in a copy of the project


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh checkout: patches and pins, nothing fetched or built."""
    monkeypatch.delenv("UPSTREAM_DIR", raising=False)
    root = tmp_path / "checkout"
    shutil.copytree(PROJECT.patches, root / "patches" / "state")
    (root / "vendor").mkdir()
    shutil.copy(PROJECT.pins_file, root / "vendor")
    return root


@pytest.fixture(scope="module")
def archive() -> Path:
    """The sdist that the libraries were built from."""
    return fetch(PROJECT, PIN)


@pytest.fixture
def fetched(checkout: Path, archive: Path) -> Path:
    """A checkout that has the archive."""
    (checkout / "vendor" / "cache").symlink_to(archive.parent)
    return checkout


def the_patch_of_ops(root: Path) -> Path:
    """The last patch of the series that changes ops.cpp and nothing else."""
    series = root / "patches" / "state"
    names = (series / "series").read_text().split("\n")[1:-1]
    patches = [series / name for name in names]
    files = {path: re.findall(r"^\+\+\+ b/(.+)", path.read_text(), re.M) for path in patches}
    return [path for path in patches if files[path] == ["ggml/src/ggml-cpu/ops.cpp"]][-1]


@pytest.mark.parametrize("command", [["build"], ["run", "--suite", "seed"]])
def test_a_build_without_a_compiler_says_what_to_install(
    checkout: Path, tmp_path: Path, command: list[str]
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for tool in (find_git(), find_cmake(), find_ninja()):
        path = shutil.which(tool.command[0])
        assert path is not None
        (programs / Path(path).name).symlink_to(path)
    env = {"PATH": str(programs), "CC": "", "CXX": ""}
    done = fa_harness(*command, cwd=checkout, env=env)
    assert (done.returncode, done.stdout) == (3, "")
    assert "no C compiler: none of cc, gcc, clang is on PATH; install one" in done.stderr


def test_a_first_fetch_without_a_network_says_what_to_do(checkout: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # held, not listening: connections are refused
        index = f"http://127.0.0.1:{nobody.getsockname()[1]}/simple"
        env = {"PIP_INDEX_URL": index, "PIP_EXTRA_INDEX_URL": "", "PIP_CONFIG_FILE": os.devnull}
        done = fa_harness("vendor", cwd=checkout, env=env)
    assert done.returncode == 3
    assert f"no index gave the sdist {PIN.package} {PIN.version}" in done.stderr
    assert index in done.stderr
    assert "UPSTREAM_DIR=/path/to/llama.cpp" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_archive_with_another_sha256_is_refused(fetched: Path) -> None:
    pins = fetched / "vendor" / "upstreams.toml"
    wrong = hashlib.sha256(b"something else").hexdigest()
    pins.write_text(re.sub(r'(sha256 += )"[0-9a-f]+"', rf'\1"{wrong}"', pins.read_text()))
    done = fa_harness("vendor", cwd=fetched)
    assert done.returncode == 3
    assert f"the lock says {wrong}; delete vendor/cache/" in done.stderr
    assert list((fetched / "vendor" / "src").iterdir()) == []


def test_a_truncated_archive_is_refused(checkout: Path, archive: Path) -> None:
    cache = checkout / "vendor" / "cache"
    cache.mkdir()
    with archive.open("rb") as whole:
        (cache / archive.name).write_bytes(whole.read(1 << 20))
    done = fa_harness("vendor", cwd=checkout)
    assert done.returncode == 3
    assert f"delete vendor/cache/{archive.name} and fetch again" in done.stderr
    assert list((checkout / "vendor" / "src").iterdir()) == []


def test_a_patch_that_does_not_apply_is_named_and_the_tree_stays_as_it_was(fetched: Path) -> None:
    assert fa_harness("vendor", cwd=fetched).returncode == 0
    [tree] = (fetched / "vendor" / "src").iterdir()
    before = git(tree, "rev-parse", "HEAD")
    patch = the_patch_of_ops(fetched)
    text = patch.read_text()
    removed = next(line for line in text.splitlines() if re.match(r"-\s*\w", line))
    patch.write_text(text.replace(removed, "-    int not_there = 0;"))

    done = fa_harness("vendor", cwd=fetched)
    assert done.returncode == 3
    assert f"patch '{patch.name}' does not apply on upstream" in done.stderr
    assert re.search(r"ggml/src/ggml-cpu/ops\.cpp: hunk \d of \d, line \d+", done.stderr)
    assert git(tree, "rev-parse", "HEAD") == before
    assert git(tree, "status", "--porcelain") == ""
    assert list((fetched / "vendor" / "src").iterdir()) == [tree]


def test_two_fetches_at_the_same_time_make_one_tree(fetched: Path) -> None:
    both = [
        subprocess.Popen([*COMMAND, "vendor"], cwd=fetched, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    messages = sorted(process.communicate()[1] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert sum("unpacking" in message for message in messages) == 1
    assert sum("waiting for another fa-harness" in message for message in messages) == 1


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("layout", ["llama.cpp", "ggml"])
def test_the_series_applies_on_a_checkout_of_the_users_own(
    checkout: Path, archive: Path, tmp_path: Path, patched: Library, layout: str
) -> None:
    own = tmp_path / "own"
    extract(archive, PIN.root, own)
    upstream = own
    if layout == "ggml":
        upstream = own / "ggml"
        shutil.move(own / "tests", upstream / "tests")
    before = digests(own)
    done = fa_harness("vendor", cwd=checkout, env={"UPSTREAM_DIR": str(upstream)})
    assert done.returncode == 0, done.stderr
    [tree] = (checkout / "vendor" / "src").iterdir()
    assert len(git(tree, "log", "--format=%s", "series").splitlines()) == 1 + len(patched.series)
    assert "ggml_flash_attn_ext_with_state" in (tree / "ggml/include/ggml.h").read_text()
    assert digests(own) == before


def test_a_folder_that_is_no_checkout_is_refused(checkout: Path, tmp_path: Path) -> None:
    done = fa_harness("build", cwd=checkout, env={"UPSTREAM_DIR": str(tmp_path)})
    assert done.returncode == 3
    assert f"UPSTREAM_DIR: {tmp_path} is no checkout of llama.cpp or ggml" in done.stderr


def test_outside_a_checkout_the_projects_own_libraries_are_used(tmp_path: Path) -> None:
    assert fa_harness("run", "--suite", "seed", cwd=tmp_path).returncode == 0


# What a failure says


CHAIN = "FLASH_ATTN_EXT(hsk=64,hsv=64,nh=2,nr23=[2,1],kv=90,nb=3,segments=4,regime=spiky,threads=2)"


def test_a_failure_names_the_segment_the_part_and_the_element_in_the_table_and_in_json() -> None:
    done = fa_harness("run", "--library", "0001", "--case", CHAIN, "--json", "-")
    [result] = read_report(done.stdout)["results"]
    found = result["localisation"]
    assert (found["mode"], found["index"], found["part"]) == ("segmented", 1, "numerators")
    assert (found["right"], found["path"], found["keys"]) == (["M", "S"], "vec", [22, 45])
    assert found["lines"][0] == (
        "segmented, segment 1 (of 0 to 3), keys 22 to 44, vec path: "
        "numerators are wrong; M and S are within bounds"
    )
    assert 0 < found["of_f16_range"] < 1
    lines = [line.strip() for line in done.stderr.splitlines()]
    start = lines.index(result["reason"])
    assert lines[start + 1 : start + 4] == found["lines"]


def test_a_case_that_passes_has_no_localisation(smoke: Any) -> None:
    assert {result["localisation"] for result in smoke["results"]} == {None}


def test_shrink_prints_the_smallest_case_and_its_repro_line_and_writes_a_program(
    tmp_path: Path,
) -> None:
    program = tmp_path / "repro.c"
    done = fa_harness("shrink", "--library", "0001", "--case", CHAIN, "--emit-c", program)
    assert done.returncode == 1
    case, repro = done.stdout.splitlines()
    assert case == (
        "FLASH_ATTN_EXT(hsk=1,hsv=1,nh=1,nr23=[1,1],kv=2,nb=1,mask=0,sinks=0,max_bias=0.000000,"
        "logit_softcap=0.000000,prec=f32,type_K=f32,type_V=f32,permute=[0,1,2,3],kv_view=0,"
        "v_is_view_of_k=0,n_kv_max=0,segments=2,regime=few,seed=0,threads=1)"
    )
    assert repro == f"fa-harness run --library state@0001 --case '{case}'"
    again = fa_harness(*shlex.split(repro)[1:])
    assert (again.returncode, " fail\n" in again.stdout) == (1, True)
    steps = done.stderr.splitlines()
    assert steps[0] == "  threads 2 -> 1  state vs oracle"
    assert any(line.endswith("cases run: nothing simpler fails") for line in steps)
    assert program.read_text().startswith(f"/*\n * {case}\n")


def test_shrink_refuses_a_case_that_passes() -> None:
    done = fa_harness("shrink", "--case", CHAIN)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("passes on library 'patched': nothing to shrink\n")


def test_shrink_keeps_to_the_modes_that_are_asked_for() -> None:
    done = fa_harness("shrink", "--library", "0001", "--case", CHAIN, "--mode", "resumed")
    assert done.returncode == 1
    assert " --mode resumed --case " in done.stdout
    assert "resumed state vs oracle" in done.stderr
