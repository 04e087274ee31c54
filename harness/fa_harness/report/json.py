"""The JSON report: one document, schema `fa-harness.run/1`, its keys as in the README.

A gate's has the schema `fa-harness.gate/1`: the same keys, and `gate`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np

from fa_harness.engine.session import Results
from fa_harness.judge.compare import Comparison
from fa_harness.judge.verdict import STATUSES, Verdict
from fa_harness.speed.gate import Gate

SCHEMA = "fa-harness.run/1"
SCHEMA_OF_GATE = "fa-harness.gate/1"


def render(results: Results, gate: Gate | None = None) -> str:
    """Return the document, ending in a newline."""
    return json.dumps(document(results, gate), indent=1, allow_nan=False) + "\n"


def document(results: Results, gate: Gate | None = None) -> dict[str, Any]:
    """Return the document as plain data."""
    return {
        **results.header(SCHEMA_OF_GATE if gate else SCHEMA),
        "library": {**results.library, "features": list(results.features)},
        "summary": {
            "cases": len(results.verdicts),
            **{status: results.count(status) for status in STATUSES},
        },
        **({"gate": _gate(gate)} if gate else {}),
        **({"coverage": results.coverage} if results.coverage else {}),
        "results": [_result(verdict, results.repro(verdict.case)) for verdict in results.verdicts],
    }


def _gate(gate: Gate) -> dict[str, Any]:
    return {
        "passed": gate.passed,
        "strict": gate.strict,
        "verdict": gate.verdict,
        "checks_made": gate.n_made,
        "not_checked": list(gate.not_checked),
        "baseline": gate.baseline,
        "without_baseline": gate.without_baseline,
        "checks": [vars(check) for check in gate.checks],
        "findings": [vars(finding) for finding in gate.findings],
        "notes": list(gate.notes),
        "unsupported": list(gate.unsupported),
        "part": gate.part,
        "statuses": {
            status: {"now": now, "baseline": before}
            for status, (now, before) in gate.statuses.items()
        },
        "speed": [dataclasses.asdict(ratio) for ratio in gate.ratios],
        "instructions": [vars(count) for count in gate.counts],
    }


def _result(verdict: Verdict, repro: str) -> dict[str, Any]:
    found = verdict.localisation
    return {
        "case": str(verdict.case),
        "status": verdict.status,
        "path": verdict.path,
        "modes": list(verdict.modes),
        "reason": verdict.reason,
        # where it went wrong first, and the same in words
        "localisation": found
        and plain({**vars(found), "of_f16_range": found.of_f16_range, "lines": found.lines()}),
        "comparisons": {name: _comparison(c) for name, c in verdict.comparisons.items()},
        "outputs": plain(verdict.outputs),
        "steps": [plain(vars(step)) for step in verdict.steps],
        "seconds": round(verdict.seconds, 4),
        "repro": repro,
    }


def _comparison(comparison: Comparison) -> Any:
    worst = comparison.worst and comparison.worst._asdict()
    record = {**comparison._asdict(), "worst": worst}
    del record["by_row"]
    return plain(record)


def plain(value: Any) -> Any:
    """Return what JSON can hold: lists for arrays, NaN and infinity as `nan`, `inf`, `-inf`."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
