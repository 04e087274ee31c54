"""Bad values of options: each is refused in a line that says why, and none with a traceback."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fa_harness.cli import main as cli

CASE = "FLASH_ATTN_EXT(hsk=32,hsv=32,nh=1,kv=20,nb=2)"
LONG = "x" * 5000
DIGITS = "9" * 5000
NUMBERS = ("", "1.5", "-1", DIGITS)
SECONDS = ("", "x", "0", "nan", "inf", "-inf", "1e300")
FILES = (LONG, f"no/such/{LONG}", "no/such/folder/file", "")


def of(command: str, option: str, *values: str, also: tuple[str, ...] = ()) -> list[list[str]]:
    return [[command, *also, option, value] for value in values]


ONE = ("--case", CASE)
BAD = [
    *of("run", "--timeout", *SECONDS, also=ONE),
    *of("run", "--seed", *NUMBERS, str(2**64), also=ONE),
    *of("run", "--threads", *NUMBERS, "0", "513", "1,0", str(10**9), also=ONE),
    *of("run", "--segments", *NUMBERS, "0", "21", str(10**9), also=ONE),
    *of("run", "--boundaries", *NUMBERS, "21", "9,3", also=ONE),
    *of("run", "--hot-window", *NUMBERS, also=("--suite", "fifo")),
    *of("run", "--group", *NUMBERS, "0", "1000", also=("--suite", "fifo")),
    *of("run", "--cold-type", "", "nope", "q4_K", also=ONE),
    *of("run", "--cold-type", "", "nope", "q4_K", also=("--suite", "fifo")),
    *of("run", "--segment-types", "", "nope", "q8_0/nope", also=ONE),
    *of("run", "--regime", "", "nope", also=ONE),
    *of("run", "--mode", "", "nope", "mixed", "fifo", also=(*ONE, "--list")),
    *of("run", "--suite", "", "nope", "seed,nope"),
    *of("run", "-k", "(", "[", "*", also=("--suite", "seed")),
    *of("run", "--case", "", "nope", "FLASH_ATTN_EXT(kv=0)", f"FLASH_ATTN_EXT(kv={DIGITS})"),
    *of("run", "--case", "FLASH_ATTN_EXT(kq_scale=1e39)", "FLASH_ATTN_EXT(logit_softcap=1e39)"),
    *of("run", "--case", "FLASH_ATTN_EXT(max_bias=1e39)", f"FLASH_ATTN_EXT(kv={2**63})"),
    *of("run", "--case", f"FLASH_ATTN_EXT(kv=4,boundaries=[{DIGITS}])"),
    *of("run", "--case-file", *FILES, "."),
    *of("run", "--captured", *FILES, "."),
    *of("run", "--library", "", "nope", also=ONE),
    *of("run", "-D", "", "x", "=1", also=ONE),
    *(
        [*of(command, form, *FILES, ".", also=also)][i]
        for command, also in (("run", ONE), ("gate", ()))
        for form in ("--json", "--junit", "--markdown", "--html")
        for i in range(5)
    ),
    *of("gate", "--baseline", *FILES, "."),
    *of("gate", "--seed", *NUMBERS, str(2**64)),
    *of("gate", "--threads", *NUMBERS, "0", "513"),
    *of("gate", "--library", "", "nope"),
    *of("fuzz", "--seconds", *SECONDS),
    *of("fuzz", "--cases", *NUMBERS, "0"),
    *of("fuzz", "--seed", "", "x", "1.5", "-1", DIGITS),
    *of("fuzz", "--failures", *FILES, "."),
    *of("fuzz", "--json", *FILES, "."),
    *of("shrink", "--seconds", *SECONDS, also=ONE),
    *of("shrink", "--mode", "", "nope", "fifo", also=ONE),
    *of("shrink", "--emit-c", *FILES, ".", also=ONE),
    *of("shrink", "--case", "", "nope"),
    *of("bench", "--threads", *NUMBERS, "0", "513"),
    *of("bench", "--rounds", *NUMBERS, "0", "7"),
    *of("bench", "-k", "(", "nothing matches this"),
    *of("bench", "--json", *FILES, "."),
    *of("bench", "--peer", "", "nope"),
    *of("bench", "--plot", *FILES, "."),
    *of("bench", "--threads", *NUMBERS, "0", "513", also=("--against", "pristine")),
    *of("bench", "-k", "(", "nothing matches this", also=("--peer", "torch")),
]


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[[list[str]], tuple[object, str]]]:
    on_term = signal.getsignal(signal.SIGTERM)

    def run(arguments: list[str]) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["fa-harness", *arguments])
        status: object = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code
        return status, capsys.readouterr().err

    yield run
    signal.signal(signal.SIGTERM, on_term)


@pytest.mark.parametrize("bad", BAD, ids=lambda words: " ".join(words)[:70])
def test_a_bad_value_is_refused_in_a_line(
    call: Callable[[list[str]], tuple[object, str]], bad: list[str]
) -> None:
    status, stderr = call(bad)
    assert status in (2, 3)
    assert "Traceback" not in stderr
    assert "Warning" not in stderr
    assert stderr.strip()


@pytest.mark.parametrize(
    "command",
    [
        ["fuzz"],
        ["bench"],
        ["mutants"],
        ["museum"],
        ["bisect", "--case", CASE],
        ["perplexity", "--model", "gemma-3-270m"],
        ["series", "status"],
        ["series", "lint"],
        ["series", "check", "--upstream", "all"],
    ],
    ids=" ".join,
)
def test_a_report_that_cannot_be_written_is_refused_before_anything_is_done(
    call: Callable[[list[str]], tuple[object, str]], tmp_path: Path, command: list[str]
) -> None:
    status, stderr = call([*command, "--json", str(tmp_path / "no" / "x.json")])
    assert (status, stderr.splitlines()[-1]) == (
        2,
        f"fa-harness: report {tmp_path}/no/x.json: there is no folder {tmp_path}/no; make it first",
    )


def test_an_endless_time_is_no_number_of_seconds(
    call: Callable[[list[str]], tuple[object, str]],
) -> None:
    for value in ("nan", "inf"):
        _, stderr = call(["run", *ONE, "--timeout", value])
        assert f"'--timeout': '{value}' is not a number of seconds above 0 and up to 1" in stderr


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x00\xff\xfe binary", "cannot be read"),
        (b"", "holds no case"),
        (b"# nothing\n\n", "holds no case"),
        (f"{CASE}\n\n{CASE[:-1]},nope=1)\n{CASE}\n".encode(), ":3: case field 'nope' is unknown"),
    ],
    ids=["binary", "empty", "comments", "one bad line"],
)
def test_a_case_file_that_cannot_be_used_is_named_with_its_bad_line(
    call: Callable[[list[str]], tuple[object, str]], tmp_path: Path, content: bytes, reason: str
) -> None:
    file = tmp_path / "cases.txt"
    file.write_bytes(content)
    status, stderr = call(["run", "--case-file", str(file)])
    assert status == 2
    assert str(file) in stderr
    assert reason in stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_case_file_that_may_not_be_read_is_named(
    call: Callable[[list[str]], tuple[object, str]], tmp_path: Path
) -> None:
    file = tmp_path / "cases.txt"
    file.write_text(CASE)
    file.chmod(0)
    status, stderr = call(["run", "--case-file", str(file)])
    assert status == 2
    assert f"case file {file}: cannot be read" in stderr
