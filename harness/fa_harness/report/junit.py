"""The report as JUnit XML, which CI servers read: a testcase a case, and one a part of a gate."""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree as ET

from fa_harness.case.label import label
from fa_harness.engine.session import Results
from fa_harness.judge.verdict import Verdict
from fa_harness.report.troubles import Trouble, troubles
from fa_harness.speed.gate import ALL, Gate, Ratio

_NO_CHARACTER = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, escaped or not."""


def render(results: Results, gate: Gate | None = None) -> str:
    """Return the document, ending in a newline.

    A crash is an error, any other trouble a failure; what was not told is skipped, with the reason.

    Args:
        results: The run.
        gate: What a gate found in it.
    """
    wrong: dict[str, list[Trouble]] = {}
    for trouble in troubles(results, gate):
        wrong.setdefault(trouble.case, []).append(trouble)
    root = ET.Element("testsuites", name="fa-harness")
    cases = ET.SubElement(root, "testsuite", name="cases")
    _properties(cases, results, gate)
    for verdict in results.verdicts:
        _case(cases, verdict, wrong.pop(str(verdict.case), []), results)
    if gate is not None:
        ratios = ET.SubElement(root, "testsuite", name="speed")
        for ratio in gate.ratios:
            _ratio(ratios, ratio)
            wrong.pop(ratio.case, None)
        checks = ET.SubElement(root, "testsuite", name="gate")
        for case, missing in wrong.items():  # of the baseline; it did not run
            element = _testcase(checks, "gone", case, 0.0)
            for trouble in missing:
                _bad(element, "failure", trouble)
        for check in gate.checks:
            element = _testcase(checks, "check", check.name, 0.0)
            if check.status == "regressed":
                ET.SubElement(element, "failure", message=_clean(check.reason), type=check.name)
            elif check.not_checked and gate.strict:
                message = _clean(f"not checked ({check.not_checked}): {check.reason}")
                ET.SubElement(element, "failure", message=message, type="not checked")
            elif check.status == "skipped":
                ET.SubElement(element, "skipped", message=_clean(check.reason))
    if results.interrupted:
        missing_cases = results.selected - len(results.verdicts)
        element = _testcase(cases, "run", "all cases ran", 0.0)
        message = f"interrupted: {missing_cases} cases did not run"
        ET.SubElement(element, "error", message=message, type="interrupted")
    _count(root)
    ET.indent(root)
    text = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _case(suite: ET.Element, verdict: Verdict, bad: list[Trouble], results: Results) -> None:
    element = _testcase(suite, verdict.path, str(verdict.case), verdict.seconds)
    for trouble in bad:
        _bad(element, "error" if trouble.kind in ("crash", "timeout") else "failure", trouble)
    if verdict.status == "unsupported" and not bad:
        ET.SubElement(element, "skipped", message=_clean(verdict.reason))
    if bad:
        ET.SubElement(element, "system-out").text = _clean(label(verdict.case))


def _ratio(suite: ET.Element, ratio: Ratio) -> None:
    element = _testcase(suite, ratio.way, ratio.case, 0.0)
    if ratio.status == "skipped":
        ET.SubElement(element, "skipped", message=_clean(ratio.reason))
    elif ratio.status == "regressed":
        tag = "error" if ratio.way == ALL else "failure"
        ET.SubElement(element, tag, message=_clean(ratio.reason), type="slower")


def _testcase(suite: ET.Element, group: str, name: str, seconds: float) -> ET.Element:
    return ET.SubElement(
        suite,
        "testcase",
        classname=_clean(f"fa-harness.{group.replace(' ', '-')}"),
        name=_clean(name),
        time=f"{seconds:.3f}",
    )


def _bad(element: ET.Element, tag: str, trouble: Trouble) -> None:
    bad = ET.SubElement(element, tag, message=_clean(trouble.lines[0]), type=trouble.kind)
    bad.text = _clean("\n".join([*trouble.lines, trouble.repro]))


def _properties(suite: ET.Element, results: Results, gate: Gate | None) -> None:
    values: Mapping[str, object] = {
        **{name: results.library.get(name, "") for name in ("name", "upstream", "ggml_version")},
        "features": " ".join(results.features),
        "cpu": results.machine["cpu"],
        "fa-harness": results.tool_version,
        **({"baseline": gate.without_baseline or gate.baseline} if gate else {}),
        **({"gate": gate.verdict} if gate else {}),
    }
    properties = ET.SubElement(suite, "properties")
    for name, value in values.items():
        ET.SubElement(properties, "property", name=name, value=_clean(str(value)))


def _count(root: ET.Element) -> None:
    """Set the totals of each suite, and of all."""
    for element in (*root, root):
        counts = {
            "tests": "testcase",
            "failures": "testcase[failure]",
            "errors": "testcase[error]",
            "skipped": "testcase[skipped]",
        }
        for name, found in counts.items():
            element.set(name, str(len(element.findall(f".//{found}"))))
        seconds = sum(float(case.get("time", 0)) for case in element.iter("testcase"))
        element.set("time", f"{seconds:.3f}")


def _clean(text: str) -> str:
    """Return a text with the characters that XML cannot hold in Python's notation."""
    return _NO_CHARACTER.sub(lambda found: ascii(found[0])[1:-1], text)
