"""`bench`: what the state costs, on two libraries in this process."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone

from rich.console import Console

from fa_harness import __version__
from fa_harness.build.named import current_library
from fa_harness.case.case import Case
from fa_harness.engine import ggml
from fa_harness.machine import cpu_model, usable_cores
from fa_harness.report.bench import Table, print_summary
from fa_harness.speed import bench
from fa_harness.speed.bench import Bench, Row


def measure_speed(
    cases: Sequence[Case],
    *,
    library: str,
    baseline: str,
    options: Mapping[str, str] = {},
    rounds: int,
    console: Console,
) -> Bench:
    """Measure cases on two libraries in this process and print each.

    Ctrl-C ends the run, not the report: what was measured until then is returned.

    Raises:
        UsageError: There is no library of that name, or the one to measure has no state.
        SetupError: One is not built, not current, or does not load beside the other.
    """
    found, other = current_library(library, options), current_library(baseline, options)
    started, start = datetime.now(timezone.utc), time.perf_counter()
    loaded = ggml.load(found.module_path), ggml.load(other.module_path)
    rows: list[Row] = []
    interrupted = False
    with Table(console, total=len(cases)) as table:
        try:
            for row in bench.run(*loaded, cases, rounds=rounds):
                rows.append(row)
                table.add(row)
        except KeyboardInterrupt:
            interrupted = True
    result = Bench(
        tool_version=__version__,
        library=found.to_json(),
        baseline=other.to_json(),
        machine={"cpu": cpu_model(), "threads": usable_cores()},
        started=started,
        seconds=time.perf_counter() - start,
        rounds=rounds,
        rows=tuple(rows),
        selected=len(cases),
        interrupted=interrupted,
    )
    print_summary(console, result)
    return result
