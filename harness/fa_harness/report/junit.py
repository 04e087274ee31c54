"""The report as JUnit XML, which CI servers read: a testcase a case, and one a part of a gate."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from fa_harness.case.label import label
from fa_harness.engine.session import Results
from fa_harness.report.troubles import Trouble, measured_in_words, troubles
from fa_harness.speed.gate import Gate
from fa_harness.speed.ratios import ALL

_NO_CHARACTER = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, escaped or not."""


def render(results: Results, gate: Gate | None = None) -> str:
    """Return the document, ending in a newline.

    A crash is an error, any other trouble a failure; what was not told is skipped, with the reason.
    """
    wrong: dict[str, list[Trouble]] = {}
    for trouble in troubles(results, gate):
        wrong.setdefault(trouble.case, []).append(trouble)
    root = ET.Element("testsuites", name="fa-harness")
    cases = ET.SubElement(root, "testsuite", name="cases")
    _properties(cases, results, gate)
    for verdict in results.verdicts:
        element = _testcase(cases, verdict.path, str(verdict.case), verdict.seconds)
        bad = wrong.pop(str(verdict.case), [])
        for trouble in bad:
            _bad(element, "error" if trouble.kind in ("crash", "timeout") else "failure", trouble)
        if bad:
            ET.SubElement(element, "system-out").text = _clean(label(verdict.case))
        elif verdict.status == "unsupported":
            _add(element, "skipped", verdict.reason)
    if gate is not None:
        for name, measured, kind in (
            ("speed", gate.ratios, "slower"),
            ("instructions", gate.counts, "more instructions"),
        ):
            suite = ET.SubElement(root, "testsuite", name=name)
            for each in measured:
                element = _testcase(suite, measured_in_words(each), each.case)
                if each.status == "skipped":
                    _add(element, "skipped", each.reason)
                elif each.status == "regressed":
                    _add(element, "error" if each.way == ALL else "failure", each.reason, kind)
                wrong.pop(each.case, None)
        checks = ET.SubElement(root, "testsuite", name="gate")
        for case, missing in wrong.items():  # of the baseline; it did not run
            element = _testcase(checks, "gone", case)
            for trouble in missing:
                _bad(element, "failure", trouble)
        for check in gate.checks:
            element = _testcase(checks, "check", check.name)
            if check.status == "regressed":
                _add(element, "failure", check.reason, check.name)
            elif check.not_checked and gate.strict:
                message = f"not checked ({check.not_checked}): {check.reason}"
                _add(element, "failure", message, "not checked")
            elif check.status == "skipped":
                _add(element, "skipped", check.reason)
    if results.stopped:
        n_missing = results.selected - len(results.verdicts)
        element = _testcase(cases, "run", "all cases ran")
        message = f"{results.stopped}: {n_missing} cases did not run"
        if results.interrupted:
            _add(element, "error", message, "interrupted")
        else:
            _add(element, "skipped", message)
    _count(root)
    ET.indent(root)
    text = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _testcase(suite: ET.Element, group: str, name: str, seconds: float = 0.0) -> ET.Element:
    return ET.SubElement(
        suite,
        "testcase",
        classname=_clean(f"fa-harness.{group.replace(' ', '-')}"),
        name=_clean(name),
        time=f"{seconds:.3f}",
    )


def _bad(element: ET.Element, tag: str, trouble: Trouble) -> None:
    bad = _add(element, tag, trouble.lines[0], trouble.kind)
    bad.text = _clean("\n".join([*trouble.lines, trouble.repro]))


def _add(element: ET.Element, tag: str, message: str, type_: str = "") -> ET.Element:
    """Add a failure or an error of a type, or `skipped`, which has none."""
    added = ET.SubElement(element, tag, message=_clean(message))
    if type_:
        added.set("type", type_)
    return added


def _properties(suite: ET.Element, results: Results, gate: Gate | None) -> None:
    values: dict[str, object] = {
        **{name: results.library.get(name, "") for name in ("name", "upstream", "ggml_version")},
        "features": " ".join(results.features),
        "cpu": results.machine["cpu"],
        "fa-harness": results.tool_version,
    }
    if gate:
        values |= {"baseline": gate.without_baseline or gate.baseline, "gate": gate.verdict}
    properties = ET.SubElement(suite, "properties")
    for name, value in values.items():
        ET.SubElement(properties, "property", name=name, value=_clean(str(value)))


def _count(root: ET.Element) -> None:
    """Set the totals of each suite, and of all."""
    counts = {
        "tests": ".//testcase",
        "failures": ".//testcase[failure]",
        "errors": ".//testcase[error]",
        "skipped": ".//testcase[skipped]",
    }
    for element in (*root, root):
        for name, counted in counts.items():
            element.set(name, str(len(element.findall(counted))))
        seconds = sum(float(case.get("time", 0)) for case in element.iter("testcase"))
        element.set("time", f"{seconds:.3f}")


def _clean(text: str) -> str:
    """Return a text with the characters that XML cannot hold in Python's notation."""
    return _NO_CHARACTER.sub(lambda found: ascii(found[0])[1:-1], text)
