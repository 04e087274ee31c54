import io
import re

import pytest
from rich.console import Console

from fa_harness.cli import fuzz
from fa_harness.cli.fuzz import ticker
from fa_harness.hunt.fuzz import Tally

TALLY = Tally()
TALLY.statuses.update({"pass": 30, "fail": 2})


def test_a_pipe_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(width=100)
    with console.capture() as printed, ticker(console) as show:
        show(TALLY, 1)
        monkeypatch.setattr(fuzz, "_LINE_SECONDS", 0.0)
        show(TALLY, 1)
    assert re.fullmatch(r" +0 s  32 cases, \d+ a second, 1 failure\n", printed.get())


def test_a_terminal_gets_one_line_that_goes_away() -> None:
    written = io.StringIO()
    with ticker(Console(width=100, file=written, force_terminal=True)) as show:
        show(TALLY, 2)
    assert "32 cases" in written.getvalue()
    assert "2 failures" in written.getvalue()
    assert written.getvalue().endswith("\x1b[2K")  # the line is erased
