import contextlib
import dataclasses
import io
from typing import Any

import pytest
from rich.console import Console

from fa_harness.build.library import Library
from fa_harness.case.case import Case
from fa_harness.cli.options import How
from fa_harness.cli.run import run_cases
from fa_harness.engine.session import Results
from fa_harness.judge.verdict import Verdict, judge


def test_an_error_of_our_own_ends_a_run_and_keeps_what_ran(
    patched: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[Case] = []

    def judge_one(case: Case, *args: Any, **more: Any) -> Verdict:
        judged.append(case)
        if len(judged) > 1:
            raise ZeroDivisionError
        return judge(case, *args, **more)

    monkeypatch.setattr("fa_harness.engine.runner.judge", judge_one)
    cases = [Case(n_kv=64, segments=n) for n in (1, 2, 3)]
    written: list[Results] = []
    with pytest.raises(ZeroDivisionError):
        run_cases(cases, How(), None, Console(file=io.StringIO()), write=written.append)
    [results] = written
    assert [verdict.status for verdict in results.verdicts] == ["pass"]
    assert results.interrupted
    assert not results.passed


def test_a_checkout_that_did_not_take_the_series_runs_the_mode_that_it_offers(
    pristine: Library, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    as_it_is = dataclasses.replace(
        pristine, series_note="series: not applied, patch 0002 conflicts"
    )

    def held(*_args: object) -> contextlib.AbstractContextManager[Library]:
        return contextlib.nullcontext(as_it_is)

    monkeypatch.setattr("fa_harness.cli.run.held_library", held)
    console = Console(file=io.StringIO())
    found = run_cases([Case(n_kv=64, segments=2)], How(), None, console, write=lambda _: None)
    assert [verdict.status for verdict in found.verdicts] == ["pass"]
    assert "--mode standard" in found.repro(found.verdicts[0].case)
    assert "has no flash attention with a state: only mode standard" in capsys.readouterr().err
    assert found.library["series_note"] == as_it_is.series_note


def test_a_library_that_should_have_the_state_and_has_not_is_no_pass(
    pristine: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "fa_harness.cli.run.held_library", lambda *_args: contextlib.nullcontext(pristine)
    )
    console = Console(file=io.StringIO())
    found = run_cases([Case(n_kv=64, segments=2)], How(), None, console, write=lambda _: None)
    assert [verdict.status for verdict in found.verdicts] == ["unsupported"]
    assert not found.passed
