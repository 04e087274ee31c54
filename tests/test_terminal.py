import subprocess
import sys

import pytest

from fa_harness import terminal


class Clock:
    """Seconds that pass only when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    return clock


def test_in_a_pipe_a_step_has_a_line_at_each_tenth(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with terminal.bar("building library 'patched'") as advance:
        for done in range(0, 101, 5):
            clock.now += 3
            advance(done, 100)
    said = [f"building library 'patched': {n} of 100" for n in range(10, 100, 10)]
    assert capsys.readouterr().err.splitlines() == ["building library 'patched'", *said]


def test_in_a_pipe_a_step_of_a_moment_has_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.bar("fetching ggml", in_bytes=True) as advance:
        for done in range(100):
            advance(done, 100)
    assert capsys.readouterr().err == "fetching ggml\n"


def test_a_step_of_unknown_length_has_one_line(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with terminal.bar("fetching ggml", in_bytes=True) as advance:
        for done in range(3):
            clock.now += 60
            advance(done, None)
    assert capsys.readouterr().err == "fetching ggml\n"


def test_a_download_counts_megabytes(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.bar("fetching ggml", in_bytes=True) as advance:
        clock.now += 60
        advance(5_000_000, 20_000_000)
    assert "fetching ggml: 5.0 of 20.0 MB\n" in capsys.readouterr().err


def test_a_line_of_progress_needs_no_rich() -> None:
    code = (
        "import sys; from fa_harness import terminal\n"
        "terminal.stage('here')\n"
        "with terminal.bar('there'): pass\n"
        "print('rich' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "here\nthere\n")
