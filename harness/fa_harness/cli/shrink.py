"""`shrink`: the smallest case that fails as one does, and a C program of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console

from fa_harness.build.library import Library
from fa_harness.build.named import held_library
from fa_harness.case.case import Case
from fa_harness.engine.modes import missing_option
from fa_harness.engine.runner import Runner
from fa_harness.errors import UsageError
from fa_harness.hunt import emit_c
from fa_harness.hunt.shrink import Failure, Shrunk, shrink
from fa_harness.judge.verdict import Verdict
from fa_harness.report.results import repro
from fa_harness.report.shrink import print_shrink_step, print_shrunk
from fa_harness.upstream.source import chosen

_SIMPLER_SECONDS = 5.0
"""A case that is simpler than one that fails has this time; where that is not enough, it hangs."""


@dataclass(frozen=True, kw_only=True)
class Smallest:
    """The smallest failing case that was found, and how it fails."""

    shrunk: Shrunk
    verdict: Verdict
    features: tuple[str, ...]
    """CPU features that the library uses here."""
    library: Library
    repro: str
    """The command that repeats it."""


def shrink_case(
    case: Case,
    *,
    library: str,
    options: Mapping[str, str] = {},
    modes: tuple[str, ...] | None,
    seconds: float,
    console: Console,
) -> Smallest:
    """Find the smallest case that fails on a library as a case does, and print each step to it.

    Ctrl-C ends the search; the smallest case so far is returned.

    Args:
        case: A case that fails, crashes or hangs.
        library: Name of the library.
        options: CMake options that it was built with.
        modes: What to compute; None for each case's own.
        seconds: After these, counted from the end of its own run, the smallest so far is returned.
        console: Where the steps go.

    Raises:
        UsageError: The case does not fail, or there is no library of that name.
        SetupError: It is not built, not current, or does not load.
    """
    with held_library(library, options) as found, Runner(found.module_path) as runner:
        [verdict] = runner.run([case], modes=modes)
        verdicts = {case: verdict}
        end = time.monotonic() + seconds
        interrupted = False

        def fails(candidate: Case) -> Failure | None:
            nonlocal interrupted
            if any(missing_option(candidate, mode) for mode in modes or ()):
                return None
            if candidate not in verdicts:
                try:
                    [verdicts[candidate]] = runner.run(
                        [candidate], modes=modes, timeout=_SIMPLER_SECONDS
                    )
                except KeyboardInterrupt:
                    interrupted = True
                    return None
            return Failure.of(verdicts[candidate])

        shrunk = shrink(
            case,
            fails,
            out_of_time=lambda: interrupted or time.monotonic() > end,
            on_step=lambda step: print_shrink_step(console, step),
        )
        if shrunk is None:
            how = "passes" if verdict.status == "pass" else f"is {verdict.status}"
            reason = f" ({verdict.reason})" if verdict.reason else ""
            raise UsageError(f"{case} {how} on library {library!r}{reason}: nothing to shrink")
        print_shrunk(console, shrunk, verdicts[shrunk.case])
        return Smallest(
            shrunk=shrunk,
            verdict=verdicts[shrunk.case],
            features=runner.features,
            library=found,
            repro=repro(
                shrunk.case,
                library=library,
                options=options,
                modes=modes or (),
                environment=chosen(),
            ),
        )


def c_program(smallest: Smallest) -> str:
    """Return a C program of the smallest case that needs ggml alone.

    Raises:
        UsageError: It cannot say how the case fails, or would be too large.
    """
    built = smallest.library
    return emit_c.program(
        smallest.verdict,
        library=f"library {built.name} of {built.upstream}, ggml {built.ggml_version}",
        features=smallest.features,
    )
