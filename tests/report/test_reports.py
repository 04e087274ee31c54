"""JUnit, Markdown, annotations and HTML: what they say, and that no text can break them."""

import dataclasses
import re
from collections.abc import Callable
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from fa_harness.engine.session import Results
from fa_harness.judge.shares import Shares
from fa_harness.report import html, json, junit, markdown
from fa_harness.report.annotations import render as annotate
from fa_harness.speed.bench import Interval
from fa_harness.speed.gate import Gate
from fa_harness.speed.ratios import Ratio
from gates import CASE, NONE, OTHER, baseline_of, compared, failing, judged, results, verdict

NASTY = "<script>alert('&')</script> ]]> | `x` \x00\x1b[31m\ud800 % , : \r\n::error::second line"
GOOD = results(compared(), compared(OTHER))
GROWN = results(compared(of_bound=0.9), compared(OTHER))
WAS = baseline_of(GOOD)
EMPTY = {"br", "meta", "input", "link", "img", "path", "rect"}


def slower() -> Gate:
    now, was = (Interval(median=m, low=m - 0.01, high=m + 0.01) for m in (1.2, 1.0))
    ratios = [
        Ratio(
            case=str(CASE), way="segmented", status="regressed", reason="slow", now=now, before=was
        ),
        Ratio(case=str(CASE), way="full_state", status="skipped", reason="too noisy", now=now),
    ]
    return judged(GOOD, baseline_of(GOOD), ratios=ratios)


def suites(text: str) -> dict[str, ET.Element]:
    return {suite.get("name", ""): suite for suite in ET.fromstring(text)}


# JUnit


def test_junit_has_a_testcase_a_case_with_its_time_and_totals() -> None:
    root = ET.fromstring(junit.render(GOOD))
    cases = root.findall("./testsuite/testcase")
    assert [case.get("name") for case in cases] == [str(CASE), str(OTHER)]
    assert {case.get("time") for case in cases} == {"0.250"}
    assert (root.get("tests"), root.get("failures"), root.get("time")) == ("2", "0", "0.500")


def test_junit_tells_a_failure_from_an_error_and_from_what_is_skipped() -> None:
    run = results(
        verdict(status="fail", reason="off by 1"),
        verdict(OTHER, "crash", "SIGSEGV"),
        verdict(CASE.with_(seed=3), "unsupported", "no such type"),
    )
    root = ET.fromstring(junit.render(run))
    [failure], [error], [skipped] = (
        list(root.iter(tag)) for tag in ("failure", "error", "skipped")
    )
    assert failure.get("message") == "off by 1"
    assert "fa-harness run --library patched --case 'FLASH_ATTN_EXT(" in (failure.text or "")
    assert error.get("message") == "SIGSEGV"
    assert skipped.get("message") == "no such type"
    assert [root.get(name) for name in ("failures", "errors", "skipped")] == ["1", "1", "1"]


def test_junit_has_what_a_gate_found_in_a_case_that_passes() -> None:
    root = ET.fromstring(junit.render(GROWN, judged(GROWN, WAS)))
    [failure] = root.findall(f".//testcase[@name='{CASE}']/failure")
    assert failure.get("type") == "error grew"


@pytest.mark.parametrize("render", [junit.render, markdown.render, html.render, json.render])
def test_each_form_has_the_place_of_an_error_that_grew(
    render: Callable[[Results, Gate], str],
) -> None:
    gate = judged(GROWN, WAS)
    text = render(GROWN, gate).replace("\\", "")  # Markdown's
    assert "may be 16.0%; worst in segment 1 (of 0 to 2), batch 0, head 1, row 2, element 3" in text
    assert "segment 1 (of 0 to 2), batch 0, head 1, row 2, element 3" in annotate(GROWN, gate)


def test_junit_has_the_speed_and_the_checks_of_a_gate() -> None:
    found = suites(junit.render(GOOD, slower()))
    assert [each.tag for case in found["speed"] for each in case] == ["failure", "skipped"]
    checks = {case.get("name"): [each.tag for each in case] for case in found["gate"]}
    assert checks["errors"] == []
    assert checks["speed"] == ["failure"]


def test_junit_has_a_case_that_is_gone() -> None:
    run = results(verdict())
    found = suites(junit.render(run, judged(run, baseline_of(GOOD))))
    assert found["gate"].find(f"./testcase[@name='{OTHER}']/failure") is not None


def test_junit_of_an_interrupted_run_has_an_error() -> None:
    assert ET.fromstring(junit.render(results(verdict(), selected=5))).get("errors") == "1"


@pytest.mark.parametrize(
    "text", [NASTY, "".join(map(chr, range(0x2100))), "\ud800\uffff\U0010ffff"]
)
def test_junit_is_xml_whatever_a_reason_holds(text: str) -> None:
    rendered = junit.render(failing(text)).encode("utf-8")
    [failure] = ET.fromstring(rendered).iter("failure")
    assert failure.get("message")


# Markdown


def test_markdown_begins_with_the_verdict() -> None:
    assert markdown.render(GOOD).startswith("## ✅ run passed: 2 cases (2 pass)")
    assert markdown.render(GROWN, judged(GROWN, WAS)).startswith(
        "## ❌ gate failed, 5 of 8 checks made: 1 finding, "
    )


def test_markdown_has_a_row_for_what_is_wrong_and_the_repro_line_folded() -> None:
    text = markdown.render(failing("off by 1"))
    assert "| **fail** | hs128 h32 kv64 b8 f16 normal t1 | off by 1 |" in text
    folded = text.partition("<details>")[2]
    assert f"fa-harness run --library patched --case '{CASE}'" in folded


def test_markdown_stays_short_and_says_how_many_more_there_are() -> None:
    text = markdown.render(failing("off", n=100))
    assert "70 more" in text
    assert len(text) < 50_000


def test_markdown_keeps_a_reason_in_its_cell_and_its_fence() -> None:
    text = markdown.render(failing(NASTY + " ```\n# head"))
    [row] = [line for line in text.splitlines() if line.startswith("| **fail**")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 4
    assert "<script>" not in re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert text.count("```") == 2


# annotations


def test_there_is_no_annotation_where_all_is_well() -> None:
    assert annotate(GOOD) == ""


def test_at_most_ten_annotations_and_a_line_that_says_how_many_more() -> None:
    lines = annotate(failing("off", n=25)).splitlines()
    assert [line.startswith("::error ") for line in lines] == [True] * 10 + [False]
    assert lines[-1] == "fa-harness: 15 more; the report has them all"


def test_the_worst_is_annotated_first() -> None:
    run = results(
        verdict(status="mistrusted", reason="b"),
        verdict(OTHER, "fail", "a"),
        verdict(CASE.with_(seed=3), "crash", "SIGSEGV"),
    )
    titles = [line.split(" ")[1] for line in annotate(run).splitlines()]
    assert titles == ["title=crash%3A", "title=fail%3A", "title=mistrusted%3A"]


def test_an_annotation_is_one_line_whatever_the_reason_holds() -> None:
    [line] = annotate(failing(NASTY)).split("\n")[:-1]
    command, _, message = line.removeprefix("::error ").partition("::")
    assert not set(command.removeprefix("title=")) & set(",:\r\n")
    assert "%25" in message
    assert "%0Afa-harness run" in message


def test_a_run_that_failed_without_a_case_that_did_is_annotated() -> None:
    assert annotate(results(verdict(), selected=5)) == (
        "::error title=fa-harness::run failed: interrupted, 1 of 5 cases (1 pass)\n"
    )


# HTML


class Elements(HTMLParser):
    """The elements of a page, checked to be closed in turn, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def pictured() -> Results:
    shares = Shares(
        comparison="segmented_vs_oracle",
        by_row=np.array([[0.05, 0.05, 7.0], [0.05, np.inf, 0.9]], np.float32),
        by_segment=(0.01, 4.0, float("inf")),
    )
    [bad] = failing("off by 1").verdicts
    return results(dataclasses.replace(bad, shares=shares), verdict(OTHER))


def test_html_is_whole_and_needs_nothing_beside_itself() -> None:
    page = Elements(html.render(pictured(), slower()))
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.found}
    for _, attributes in page.found:
        assert not {"src", "srcset", "onload", "onclick"} & set(attributes)
        assert (attributes.get("href") or "#").startswith("#")
    style = re.search(r"<style>(.*?)</style>", html.render(GOOD), re.DOTALL)
    assert style
    assert not re.search(r"url\(|@import", style[1])


def test_html_says_what_broke_before_anything_else() -> None:
    page = Elements(html.render(pictured()))
    text = page.text.partition("run failed: 1 finding, 2 cases")[2]
    assert text.index("What broke (1)") < text.index("Where and why") < text.index("All cases (2)")
    assert "off by 1" in text
    assert f"fa-harness run --library patched --case '{CASE}'" in text


def test_the_picture_has_a_path_a_colour_that_covers_its_cells() -> None:
    page = Elements(html.render(pictured()))
    paths = {str(each["class"]): str(each["d"]) for each in page.of("path")}
    assert paths == {
        "l0": "M0 0h2v1h-2zM0 1h1v1h-1z",
        "l3": "M2 0h1v1h-1z",
        "l5": "M1 1h1v1h-1z",
        "l2": "M2 1h1v1h-1z",
    }


def test_the_bars_of_the_segments_grow_with_the_share() -> None:
    widths = [
        str(each["style"]) for each in Elements(html.render(pictured())).of("i") if "style" in each
    ]
    assert widths == ["width:28%", "width:100%", "width:100%"]


def test_html_links_each_row_of_what_broke_to_its_details() -> None:
    page = Elements(html.render(failing("off", n=3)))
    ids = {attributes.get("id") for _, attributes in page.found}
    links = [str(each["href"]) for each in page.of("a")]
    assert len(links) == 6
    assert {link.removeprefix("#") for link in links} <= ids


def test_html_has_the_speed_with_both_intervals() -> None:
    text = Elements(html.render(GOOD, slower())).text
    assert "1.200 1.190 to 1.210" in text
    assert "1.000 0.990 to 1.010" in text


@pytest.mark.parametrize("text", [NASTY, "".join(map(chr, range(0x300)))])
def test_html_shows_a_reason_as_text_whatever_it_holds(text: str) -> None:
    rendered = html.render(failing(text))
    page = Elements(rendered)
    assert page.of("script") == []
    rendered.encode("utf-8")
    assert "\x00" not in rendered


RENDER = {"junit": junit.render, "markdown": markdown.render, "html": html.render}


def as_text(kind: str, run: Results, gate: Gate) -> str:
    """Return what a report says, without the form's own marks."""
    text = RENDER[kind](run, gate)
    if kind == "junit":
        return " ".join(
            value for each in ET.fromstring(text).iter() for value in each.attrib.values()
        )
    return Elements(text).text if kind == "html" else text.replace("\\", "")


@pytest.mark.parametrize("kind", RENDER)
def test_every_report_of_a_gate_counts_what_was_checked_and_names_what_was_not(kind: str) -> None:
    text = as_text(kind, GOOD, judged(GOOD, baseline_of(GOOD)))
    assert "5 of 8 checks made" in text
    assert "not checked: speed" in text


@pytest.mark.parametrize("kind", RENDER)
def test_every_report_names_the_baseline_that_a_gate_lacks_before_its_checks(kind: str) -> None:
    text = as_text(kind, GOOD, judged(GOOD, NONE))
    assert text.index(NONE.text) < text.index("bit-exactness")
    assert "1 of 8 checks made" in text
    assert "not checked: nothing is gone, bit-exactness, bits of one call, errors, speed, " in text
    assert "baselines/x.json" not in text  # a file that does not exist


def test_the_json_of_a_gate_counts_what_was_checked_and_names_what_was_not() -> None:
    found = json.document(GOOD, judged(GOOD, NONE))["gate"]
    assert found["verdict"].startswith("pass, 2 cases: 2 pass; 1 of 8 checks made; not checked: ")
    assert found["checks_made"] == 1
    names = ["nothing is gone", "bit-exactness", "bits of one call", "errors"]
    assert found["not_checked"] == [*names, "speed", "speed of one call", "instructions"]
    assert found["without_baseline"] == NONE.text
    assert (found["passed"], found["strict"]) == (True, False)


def test_a_page_is_green_only_where_most_was_checked() -> None:
    def state(gate: Gate) -> str | None:
        return Elements(html.render(GOOD, gate)).of("header")[0]["class"]

    assert state(judged(GOOD, baseline_of(GOOD))) == "good"
    assert state(judged(GOOD, NONE)) == "unchecked"
    assert state(judged(GOOD, NONE, strict=True)) == "bad"
    assert markdown.render(GOOD, judged(GOOD, NONE)).startswith("## ⚠️ gate passed, 1 of 8")


def test_a_strict_gate_has_a_failure_in_junit_for_each_check_that_was_not_made() -> None:
    root = ET.fromstring(junit.render(GOOD, judged(GOOD, NONE, strict=True)))
    assert (root.get("failures"), root.get("skipped")) == ("7", "0")


def test_what_was_not_checked_is_annotated_and_a_missing_baseline_is_a_warning() -> None:
    assert annotate(GOOD, judged(GOOD, baseline_of(GOOD))) == (
        "::notice title=not checked::gate passed, 5 of 8 checks made: 2 cases (2 pass)"
        "%0Anot checked: speed, speed of one call, instructions\n"
    )
    [warning] = annotate(GOOD, judged(GOOD, NONE)).splitlines()
    assert warning.startswith("::warning title=not checked::gate passed, 1 of 8 checks made")
    assert f"%0A{NONE.text}%0Anot checked: nothing is gone, " in warning
    [error, _] = annotate(GOOD, judged(GOOD, NONE, strict=True)).splitlines()
    assert error.startswith(
        "::error title=fa-harness::gate failed, 1 of 8 checks made: not all was"
    )


def test_numbers_that_json_does_not_have_are_strings() -> None:
    assert json.plain([np.inf, -np.inf, np.nan, 1.5]) == ["inf", "-inf", "nan", 1.5]
