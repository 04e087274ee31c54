"""The JSON report: one document, schema `fa-harness.run/1`, its keys as in the README."""

from __future__ import annotations

import json
from typing import Any

from fa_harness.report import Results
from fa_harness.verdict import STATUSES, Verdict

SCHEMA = "fa-harness.run/1"


def render(results: Results) -> str:
    """Return the document, ending in a newline."""
    return json.dumps(document(results), indent=1, allow_nan=False) + "\n"


def document(results: Results) -> dict[str, Any]:
    """Return the document as plain data."""
    return {
        "schema": SCHEMA,
        "tool": {"version": results.tool_version},
        "library": {**results.library, "features": list(results.features)},
        "machine": results.machine,
        "started": results.started.isoformat(timespec="seconds"),
        "seconds": round(results.seconds, 3),
        "interrupted": results.interrupted,
        "summary": {
            "cases": len(results.verdicts),
            **{status: results.count(status) for status in STATUSES},
        },
        "results": [_result(verdict, results.repro(verdict)) for verdict in results.verdicts],
    }


def _result(verdict: Verdict, repro: str) -> dict[str, Any]:
    return {
        "case": str(verdict.case),
        "status": verdict.status,
        "path": verdict.path,
        "reason": verdict.reason,
        "comparisons": {name: c.to_json() for name, c in verdict.comparisons.items()},
        "outputs": verdict.outputs,
        "seconds": round(verdict.seconds, 4),
        "repro": repro,
    }
