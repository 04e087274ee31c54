"""`capture`: what it asks of the program and makes of its answers; the program is a script here."""

import dataclasses
import io
import os
import signal
import sys
from pathlib import Path

import pytest
from rich.console import Console

import captured
from fa_harness.case import captures
from fa_harness.cli import capture
from fa_harness.cli.capture import CaptureRequest, capture_model, print_capture
from fa_harness.errors import SetupError, UsageError
from fa_harness.model.llama import CAPTURE, Programs
from fa_harness.proc import ProgramError
from fa_harness.project import find_project

_SCRIPT = f"""\
#!{sys.executable}
import os, shutil, sys
arguments = sys.argv[1:]
{{code}}
shutil.copy({{stream!r}}, arguments[2])
"""


@pytest.fixture
def request_(tmp_path: Path) -> CaptureRequest:
    (tmp_path / "drawn.gguf").write_bytes(b"GGUF")
    (tmp_path / "text.txt").write_text("once upon a time")
    return CaptureRequest(
        layers=(0, 5), all_layers=False, tokens=40, ubatch=40, decode=1, all_steps=False,
        type_k="q8_0", type_v="f16", type_cold=None, hot=128, threads=2, no_repack=False,
    )  # fmt: skip


def take(request: CaptureRequest, out: Path) -> captures.Capture:
    model, text = out.with_name("drawn.gguf"), out.with_name("text.txt")
    return capture_model(find_project(), model, text, request, out, verbose=False)


def run(
    request: CaptureRequest, out: Path, monkeypatch: pytest.MonkeyPatch, code: str = ""
) -> tuple[captures.Capture, str]:
    built = Programs(src=out.parent, cmake=out.parent, setup={}, label="llama.cpp of 'x'")
    stream, program = out.with_name("stream"), built.program(CAPTURE)
    stream.write_bytes(captured.stream(*captured.calls()))
    program.parent.mkdir(exist_ok=True)
    program.write_text(_SCRIPT.format(code=code, stream=str(stream)))
    program.chmod(0o755)
    monkeypatch.setattr(capture, "build_llama", lambda *arguments, **options: built)
    console = Console(file=io.StringIO(), width=150)
    made = take(request, out)
    print_capture(console, made, out)
    return made, console.file.getvalue()  # type: ignore[attr-defined]


def test_the_capture_holds_what_the_program_wrote_and_names_the_model(
    request_: CaptureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "drawn.npz"
    made, printed = run(request_, out, monkeypatch)
    assert made == captures.load(out)
    assert made.entries == tuple(entry for entry, _ in captured.calls())
    assert (made.model, made.upstream) == ("drawn.gguf", "llama.cpp of 'x'")
    assert made.sha256.startswith("b83633aa7853")
    assert "layer-0.prefill  64/32  4/2    40    64    40    q8_0/f16  24" in printed
    assert f"{out}: 4 calls of drawn.gguf, 0.2 MB" in printed


def test_the_program_is_told_all_that_was_asked_for(
    request_: CaptureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told"
    run(
        request_,
        tmp_path / "x.npz",
        monkeypatch,
        f"open({str(told)!r}, 'w').write(repr(arguments))",
    )
    assert told.read_text().endswith(
        "'--tokens', '40', '--ubatch', '40', '--decode', '1', '--type-k', 'q8_0', '--type-v', "
        "'f16', '--threads', '2', '--layers', '0,5']"
    )


def test_the_program_is_told_of_a_cache_of_two_types(
    request_: CaptureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told"
    of_all = dataclasses.replace(
        request_, layers=(), all_layers=True, all_steps=True, type_cold="q4_0", hot=64
    )
    code = f"open({str(told)!r}, 'w').write(repr(arguments))"
    run(of_all, tmp_path / "x.npz", monkeypatch, code)
    assert told.read_text().endswith(
        "'--type-k-cold', 'q4_0', '--type-v-cold', 'q4_0', '--hot', '64', '--layers', 'all', "
        "'--all-steps']"
    )


@pytest.mark.parametrize("number", [signal.SIGILL, signal.SIGSEGV], ids=lambda s: s.name)
def test_where_amx_is_not_what_the_machine_says_the_model_runs_without_it(
    request_: CaptureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str], number: signal.Signals,
) -> None:  # fmt: skip
    code = f"'--no-repack' in arguments or os.kill(os.getpid(), {int(number)})"
    made, _ = run(request_, tmp_path / "x.npz", monkeypatch, code)
    assert len(made.entries) == 4
    assert "the machine refuses an instruction that its CPU advertises" in capfd.readouterr().err


def test_a_model_that_crashes_without_amx_too_is_an_error_of_the_environment(
    request_: CaptureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"os.kill(os.getpid(), {int(signal.SIGSEGV)})"
    with pytest.raises(ProgramError, match=r"was killed by signal 11: .* --no-repack"):
        run(request_, tmp_path / "x.npz", monkeypatch, code)
    assert not (tmp_path / "x.npz").exists()


@pytest.mark.parametrize(("status", "kind"), [(2, UsageError), (1, SetupError)])
def test_what_the_program_says_is_passed_on(
    request_: CaptureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int,
    kind: type[Exception],
) -> None:  # fmt: skip
    words = "fa-harness-capture: the text has 5 tokens, and 40 are wanted"
    code = f"print('warning'); print({words!r}); sys.exit({status})"
    with pytest.raises(kind, match="the text has 5 tokens, and 40 are wanted") as error:
        run(request_, tmp_path / "x.npz", monkeypatch, code)
    assert error.value.exit_status == (2 if status == 2 else 3)  # type: ignore[attr-defined]


def test_a_cache_type_that_is_not_known_is_refused_before_anything_is_built(
    request_: CaptureRequest, tmp_path: Path
) -> None:
    wrong = dataclasses.replace(request_, type_v="q6_K")
    with pytest.raises(UsageError, match="type 'q6_K' is unknown; known are f32, f16,"):
        take(wrong, tmp_path / "x")


def test_a_stream_that_breaks_off_leaves_an_older_capture_as_it_was(
    request_: CaptureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "drawn.npz"
    run(request_, out, monkeypatch)
    before = out.read_bytes()
    cut = f"os.truncate({str(tmp_path / 'stream')!r}, 3000)"
    with pytest.raises(UsageError, match="ends too early"):
        run(request_, out, monkeypatch, cut)
    assert out.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == [
        "bin", "drawn.gguf", "drawn.npz", "stream", "text.txt",
    ]  # fmt: skip
