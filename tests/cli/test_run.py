import io
from typing import Any

import pytest
from rich.console import Console

from fa_harness.build.library import Library
from fa_harness.case.case import Case
from fa_harness.cli.options import How
from fa_harness.cli.run import EndedError, run_cases
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
    with pytest.raises(EndedError) as ended:
        run_cases(
            [Case(n_kv=64, segments=n) for n in (1, 2, 3)],
            How(),
            modes=None,
            console=Console(file=io.StringIO()),
        )
    results = ended.value.results
    assert isinstance(ended.value.cause, ZeroDivisionError)
    assert [verdict.status for verdict in results.verdicts] == ["pass"]
    assert results.interrupted
    assert not results.passed
