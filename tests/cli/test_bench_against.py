"""`bench --against` and `--peer`: what is printed, written and refused."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

import schemas
from fa_harness.build.library import Library
from fa_harness.case.case import Case
from fa_harness.cli import main as cli
from fa_harness.cli.bench_against import document, print_headings, print_row, print_summary
from fa_harness.report.plot import plot
from fa_harness.speed import compare
from fa_harness.speed.bench import Interval, suite
from fa_harness.speed.compare import ComparedRow, Comparison

DECODE, LONG = compare.ROWS[0], compare.ROWS[4]
PREFILL = next(case for case in compare.ROWS if case.n_batch == 512)
OTHERS = ("pristine", "torch")

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Call `fa-harness bench` in this process: status, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fa-harness", "bench", *arguments])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        return status, *capsys.readouterr()

    return run


def row(case: Case = DECODE, *, high: float = 3.1, torch: bool = True) -> ComparedRow:
    ratios = {"pristine": Interval(median=3.0, low=2.9, high=high)}
    if torch:
        ratios["torch"] = Interval(median=0.9, low=0.88, high=0.92)
    return ComparedRow(
        case=case,
        library="fast",
        seconds={"fast": 4e-3, **{name: 4e-3 * each.median for name, each in ratios.items()}},
        ratios=ratios,
        unavailable={} if torch else {"torch": "torch has no q8_0"},
        bandwidth=24e9,
        peak=300e9,
        rounds=7,
    )


def result(*rows: ComparedRow, selected: int | None = None) -> Comparison:
    return Comparison(
        tool_version="1",
        library={"name": "fast", "ggml_version": "0.25.3"},
        against={"name": "pristine"},
        peers={"torch": "2.9"},
        machine={"cpu": "a CPU", "threads": 2},
        started=datetime(2026, 1, 1, tzinfo=timezone.utc),
        seconds=1.5,
        rounds=7,
        rows=rows,
        selected=len(rows) if selected is None else selected,
        interrupted=selected is not None,
    )


def printed(print_: Callable[[Console], None]) -> list[str]:
    console = Console(file=io.StringIO(), width=150, highlight=False)
    print_(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_row_has_time_rate_share_and_ratios_above_the_times_of_others() -> None:
    first, second = printed(lambda console: print_row(console, row(), OTHERS))
    assert first.split()[6:] == [
        *("4.000", "8.4", "GB/s", "35%", "mem"),
        *("3.00", "(2.90-3.10)", "0.90", "(0.88-0.92)", "measured"),
    ]
    assert second.split() == ["12.000", "ms", "3.600", "ms"]


def test_of_many_rows_the_operations_count() -> None:
    first, _ = printed(lambda console: print_row(console, row(PREFILL), OTHERS))
    operations = compare.operations(PREFILL) / 4e-3
    assert f"{operations / 1e9:.0f} GF/s" in first
    assert f"{operations / 300e9:.0%} fma" in first


def test_a_peer_that_lacks_a_type_has_a_dash_and_the_summary_says_why() -> None:
    lacking = row(torch=False)
    first, second = printed(lambda console: print_row(console, lacking, OTHERS))
    assert first.split()[-2:] == ["-", "measured"]
    assert second.split() == ["12.000", "ms"]
    lines = printed(lambda console: print_summary(console, result(row(), lacking, lacking)))
    assert lines[0].startswith(
        "3 rows: 3 measured | library fast against pristine, torch 2.9, ggml"
    )
    assert lines[1] == "torch was not measured: torch has no q8_0 (2 rows)"
    assert lines[2] == "1 thread: reads 24 GB/s, computes 300 GF/s of F32 multiply-adds"


def test_a_wide_interval_is_called_noisy_and_fails_nothing() -> None:
    noisy = row(high=3.4)
    first, _ = printed(lambda console: print_row(console, noisy, OTHERS))
    assert first.endswith("   noisy")
    assert result(noisy).passed
    assert not result().passed


def test_no_line_is_wider_than_a_wide_terminal() -> None:
    others = (*OTHERS, "ik_llama.cpp")
    rows = [row(case) for case in suite((16,), None, compare.ROWS)]
    lines = printed(lambda console: print_headings(console, others))
    for each in rows:
        lines += printed(lambda console, each=each: print_row(console, each, others))  # type: ignore[misc]
    assert max(map(len, lines)) <= 150
    assert len({line.rindex(line.split()[-1]) for line in lines[1::2]}) == 1


def test_the_document_has_the_keys_of_its_schema() -> None:
    found = schemas.checked(document(result(row(), row(torch=False, high=3.4), selected=3)))
    assert found["summary"] == {"rows": 2, "measured": 1, "noisy": 1}
    first, second = found["rows"]
    assert first["ratios"]["pristine"] == {"median": 3.0, "low": 2.9, "high": 3.1}
    assert second["unavailable"] == {"torch": "torch has no q8_0"}
    assert first["repro"].startswith(
        "fa-harness bench --library fast --against pristine --peer torch --threads 1 -k "
    )


def test_the_plot_has_a_panel_for_each_other_and_a_line_for_each_shape() -> None:
    rows = [row(DECODE), row(LONG), row(LONG.with_(n_kv=16384, type_K="q8_0"), torch=False)]
    image = ElementTree.fromstring(plot(result(*rows)))
    space = "{http://www.w3.org/2000/svg}"
    panels = image.findall(f"{space}g")
    titles = [panel.findtext(f"{space}text") for panel in panels]
    assert titles == ["pristine: time / fast's time", "torch: time / fast's time"]
    lines = [
        [len(line.attrib["points"].split()) for line in panel.findall(f"{space}polyline")]
        for panel in panels
    ]
    assert [sorted(each) for each in lines] == [[1, 2], [2]]
    [low, high] = [
        float(circle.attrib["cx"]) for circle in panels[1].findall(f"{space}circle")
    ]  # by n_kv
    assert low < high


def test_a_plot_of_no_row_is_an_image_all_the_same() -> None:
    ElementTree.fromstring(plot(result()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plot", "-"], "--plot: draws what --against or --peer measures"),
        (["--rounds", "5"], "5 rounds give no interval of 99%; take 8 or more"),
        (
            ["--against", "pristine", "--baseline-library", "pristine"],
            "--baseline-library: is of the state's cost; use --against NAME alone",
        ),
        (
            ["--against", "pristine", "--json", "-", "--plot", "-"],
            "only one report can go to standard output",
        ),
        (["--peer", "numpy"], "'numpy' is not one of 'ik_llama.cpp', 'torch'"),
        (["--against", "pristine", "--rounds", "4"], "4 is not in the range x>=5"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    call: Call, arguments: list[str], message: str
) -> None:
    status, _, stderr = call(*arguments)
    assert status == 2
    assert message in " ".join(stderr.split())


def test_a_library_is_not_compared_with_itself(call: Call, pristine: Library) -> None:
    status, _, stderr = call("--library", "pristine", "--against", "pristine")
    assert status == 2
    assert "--against pristine: is the library itself; name another" in stderr


_SMALL = """
import fa_harness.cli.bench_against, fa_harness.speed.cold, fa_harness.speed.compare
from fa_harness.cli import main
from fa_harness.speed.bench import shape

fa_harness.speed.compare.ROWS = (shape(1, 96, 64, (4, 2), "f16"),)
for module in (fa_harness.speed.cold, fa_harness.cli.bench_against):
    module.cold_bytes = lambda: 1 << 20
main.main()
"""


def test_a_real_row_is_measured_printed_and_written(
    fast: Library, pristine: Library, tmp_path: Path
) -> None:
    report, image = tmp_path / "report.json", tmp_path / "plot.svg"
    arguments = ["--library", "fast", "--against", "pristine", "--threads", "1", "--rounds", "5"]
    arguments += ["--json", str(report), "--plot", str(image)]
    # in a process of its own, since the libraries are loaded from copies that are deleted
    done = subprocess.run(
        [sys.executable, "-c", _SMALL, "bench", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    stdout = done.stdout
    assert "b1 kv96 hs64 h4/2 f16 t1" in stdout
    found = schemas.checked(json.loads(report.read_text()))
    assert set(found["rows"][0]["seconds"]) == {"fast", "pristine"}
    assert "pristine: time / fast" in image.read_text()
