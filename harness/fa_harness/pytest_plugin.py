"""A pytest plugin: the cases of a suite or of a file as tests in a project's own.

    @pytest.mark.fa_cases(suite="smoke")
    def test_kernel(fa_case):
        fa_case.check()

pytest loads it wherever the harness is installed, so what is heavy is imported where it is used.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fa_harness.build.library import Library
    from fa_harness.case.case import Case
    from fa_harness.engine.runner import Runner

_MARKER = (
    "fa_cases(suite=, case_file=, segments=[...], ...): run the test, which uses the fixture "
    "fa_case, for each of these cases. The arguments are those of "
    "fa_harness.case.selection.Selection; a case file or a capture lies beside the test."
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option and the setting that name the library."""
    text = "flash-attention library that the cases run on: patched, 0001, tsan, ..."
    parser.getgroup("fa-harness").addoption("--fa-library", metavar="NAME", help=text)
    parser.addini("fa_library", text, default="patched")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", _MARKER)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of each case that the markers of a test select."""
    if "fa_case" not in metafunc.fixturenames:
        return
    name = metafunc.definition.nodeid
    marks = list(metafunc.definition.iter_markers("fa_cases"))
    if not marks:
        example = '@pytest.mark.fa_cases(suite="smoke")'
        pytest.fail(f"{name}: fa_case needs cases, such as {example}", pytrace=False)
    cases = {case_id(case): case for mark in marks for case in _select(metafunc, mark)}
    metafunc.parametrize("fa_case", list(cases.values()), ids=list(cases), indirect=True)


def _select(metafunc: pytest.Metafunc, mark: pytest.Mark) -> list[Case]:
    from fa_harness.case.selection import Selection, select
    from fa_harness.errors import UsageError

    arguments = dict(mark.kwargs)
    for name in ("case_file", "captured"):
        if name in arguments:
            arguments[name] = metafunc.definition.path.parent / arguments[name]
    try:
        return select(Selection(*mark.args, **arguments))
    except (TypeError, UsageError) as error:
        text = f"{metafunc.definition.nodeid}: fa_cases: {error}"
        raise pytest.fail.Exception(text, pytrace=False) from None


def case_id(case: Case) -> str:
    """Return a case in a few words that `-k` takes: those of the table, and what they leave out.

    Cases that differ have different ones, whatever other cases there are.
    """
    from fa_harness.case.label import label

    left_out = [
        (bool(case.segment_types), "mixed"),
        (not isinstance(case.boundaries, tuple), f"s{case.segments}"),
        (case.n_kv_max != 0, f"visible:{case.n_kv_max}"),
        (case.prec != "f32", f"prec:{case.prec}"),
    ]
    words = " ".join([label(case), *(word for is_unusual, word in left_out if is_unusual)])
    for option, value in (("alibi", case.max_bias), ("softcap", case.logit_softcap)):
        words = words.replace(f" {option} ", f" {option}:{f'{value:.6f}'.rstrip('0').rstrip('.')} ")
    return re.sub(r"[^\w.:/+]+", "-", words)


@dataclass(frozen=True, kw_only=True)
class CaseUnderTest:
    """A case, and the library that it is to run on."""

    case: Case
    library: Library
    runner: Runner

    def check(self) -> None:
        """Run the case; the test fails, and says where it went wrong, unless the case passes.

        What the library or the harness cannot compute is skipped, and says why.
        """
        from fa_harness.engine.session import Clock, offered_modes
        from fa_harness.judge.words import explain

        modes = offered_modes(self.runner, self.library)
        [verdict] = self.runner.run([self.case], modes=modes)
        if verdict.status == "unsupported":
            pytest.skip(verdict.reason)
        if verdict.status != "pass":
            command = Clock(self.library, modes=modes).session().repro(self.case)
            reason, *where = explain(verdict)
            lines = [f"{verdict.status}: {reason}", *(f"    {line.strip()}" for line in where)]
            pytest.fail("\n".join([*lines, command]), pytrace=False)


@contextlib.contextmanager
def _without_traceback() -> Iterator[None]:
    """Fail the test where something cannot be, and say why."""
    from fa_harness.errors import FaHarnessError

    try:
        yield
    except FaHarnessError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


@pytest.fixture(scope="session")
def ggml_library(request: pytest.FixtureRequest) -> Iterator[Library]:
    """The library that `--fa-library` names, else the setting `fa_library`: current, and held."""
    from fa_harness.build.named import held_library

    config = request.config
    name = config.getoption("--fa-library") or config.getini("fa_library")
    capture = config.pluginmanager.getplugin("capturemanager")
    shown = capture.global_and_fixture_disabled() if capture else contextlib.nullcontext()
    with contextlib.ExitStack() as stack:
        with _without_traceback(), shown:  # a build takes minutes, and says how far it is
            library = stack.enter_context(held_library(name, {}, start=config.rootpath))
        yield library


@pytest.fixture(scope="session")
def _fa_runner(ggml_library: Library) -> Iterator[Runner]:
    """Keep the library's processes from test to test."""
    from fa_harness.engine.runner import Runner

    with contextlib.ExitStack() as stack:
        with _without_traceback():
            runner = stack.enter_context(Runner(ggml_library.module_path))
        yield runner


@pytest.fixture
def fa_case(
    request: pytest.FixtureRequest, ggml_library: Library, _fa_runner: Runner
) -> CaseUnderTest:
    """One of the cases of the marker `fa_cases`."""
    return CaseUnderTest(case=request.param, library=ggml_library, runner=_fa_runner)
