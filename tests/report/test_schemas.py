"""The published schemas: each kind of report has one, and it says no when a key is missing."""

import json
import re
from pathlib import Path

import pytest

import schemas
from fa_harness.cli import mixed
from fa_harness.cli import perplexity as cli
from fa_harness.cli.mixed import Measured
from fa_harness.cli.series_lint import document
from fa_harness.model.evidence import Evidence, Section
from fa_harness.model.mixed import Cache, Memory, Quality
from fa_harness.model.perplexity import (
    Expectation,
    Judgement,
    Perplexity,
    Setting,
)
from fa_harness.report import dossier
from fa_harness.report import json as run_report
from fa_harness.series.lint import Violation
from fa_harness.speed.bench import Interval
from fa_harness.speed.instructions import Count
from fa_harness.speed.ratios import Ratio
from gates import CASE, NONE, baseline_of, compared, judged, results

PACKAGE = Path(cli.__file__).parents[1]
FILES = ("baseline", "capture")
"""Schemas of files of the harness's own, which are no reports."""


def test_every_kind_of_report_has_a_schema() -> None:
    code = "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    kinds = set(re.findall(r'^SCHEMA\w* = "fa-harness\.([\w-]+)/(\d+)"', code, re.MULTILINE))
    assert {path.stem for path in schemas.FOLDER.iterdir()} == {
        f"{kind}-{version}" for kind, version in kinds if kind not in FILES
    }


def test_a_gates_report_has_the_keys_of_its_schema() -> None:
    run = results(compared())
    schemas.checked(run_report.document(run, judged(run, baseline_of(run))))
    ratio = Ratio(case=str(CASE), way="standard", to="pristine", status="skipped", reason="noisy")
    count = Count(
        case=str(CASE), way="full_state", to="standard", status="ok", reason="", now=1, before=1
    )
    found = judged(run, NONE, one_call=[ratio], counts=[count], part="--shard 1/2")
    schemas.checked(run_report.document(run, found))


@pytest.mark.parametrize("key", ["summary", "seconds", "results"])
def test_a_report_without_a_key_or_with_another_is_told(key: str) -> None:
    report = run_report.document(results(compared()))
    with pytest.raises(AssertionError, match="is a required property"):
        schemas.checked({name: value for name, value in report.items() if name != key})
    with pytest.raises(AssertionError, match=r"were unexpected|was unexpected"):
        schemas.checked({**report, f"{key}_more": 1})


def test_a_lint_report_has_the_keys_of_its_schema() -> None:
    found = Violation(
        level="must", rule="ascii", patch="0001-a.patch", line=3, file="a.c", file_line=7, text="x"
    )
    schemas.checked(document([found], ["clang-format"], upstream="llama.cpp-1", series="state"))


def test_a_report_of_mixed_caches_has_the_keys_of_its_schema() -> None:
    quality = Quality(
        perplexity=18.6, perplexity_error=0.9, mean=0.01, mean_error=0.001, median=0.005, p999=0.5,
        same_top=94.5, same_top_error=0.3,
    )  # fmt: skip
    measured = Measured(
        cache=Cache.parse("q4_0+f16:128"),
        bytes_per_element=0.65,
        memory=Memory(kv=3 << 20, compute=5 << 20, process=99 << 20),
        quality=quality,
        speed={"decode 4096": Interval(median=1.1, low=1.0, high=1.2)},
    )
    setting = {
        "context": 2048, "ubatch": 64, "chunks": 2, "threads": 2, "depths": [0, 4096], "rounds": 8,
    }  # fmt: skip
    schemas.checked(mixed.document("m.gguf", setting, [measured], {"base": "llama-perplexity"}))


def test_a_perplexity_report_has_the_keys_of_its_schema() -> None:
    found = Perplexity(estimate=6.5, error=0.1, chunks=(6.4, 6.5))
    expected = Expectation(exact=True, reason="each call is the standard one")
    report = cli.document(
        model="tiny.gguf",
        setting=Setting(n_ctx=256, n_ubatch=64),
        judgements=(
            Judgement(name="2 segments", expected=expected, ok=True, largest=0.0, message="equal"),
        ),
        results={"standard": found},
        commands={"standard": "llama-perplexity"},
    )
    schemas.checked(report)


@pytest.mark.parametrize("passed", [True, False, None])
def test_the_evidence_has_the_keys_of_its_schema(passed: bool | None) -> None:
    section = Section(
        part="ops", title="Ops", head=("a", "b"), rows=(("1", "2"),), passed=passed, data={"n": 1}
    )
    evidence = Evidence(
        tool_version="1.2",
        branch="fa",
        base="12ab",
        tip="34cd",
        subjects=("ggml : mend it",),
        machine={"CPU": "some"},
        variables={"BASE": "12ab"},
        build=("cmake .",),
        sections=(section,),
    )
    schemas.checked(json.loads(dossier.render(evidence)))
