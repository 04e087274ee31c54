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
from fa_harness.judge.explain import Localisation
from fa_harness.judge.verdict import STATUSES, Verdict
from fa_harness.speed.gate import Gate

SCHEMA = "fa-harness.run/1"
SCHEMA_OF_GATE = "fa-harness.gate/1"


def render(results: Results, gate: Gate | None = None) -> str:
    """Return the document, ending in a newline.

    Args:
        results: The run.
        gate: What a gate found in it.
    """
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
        "results": [_result(verdict, results.repro_of(verdict)) for verdict in results.verdicts],
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
        "speed": [
            {
                **vars(ratio),
                "now": vars(ratio.now) if ratio.now else None,
                "before": vars(ratio.before) if ratio.before else None,
            }
            for ratio in gate.ratios
        ],
    }


def _result(verdict: Verdict, repro: str) -> dict[str, Any]:
    return {
        "case": str(verdict.case),
        "status": verdict.status,
        "path": verdict.path,
        "modes": list(verdict.modes),
        "reason": verdict.reason,
        "localisation": _localisation(verdict.localisation),
        "comparisons": {name: _comparison(c) for name, c in verdict.comparisons.items()},
        "outputs": {name: _numbers(output) for name, output in verdict.outputs.items()},
        "steps": [{name: _numbers(n) for name, n in vars(step).items()} for step in verdict.steps],
        "seconds": round(verdict.seconds, 4),
        "repro": repro,
    }


def _localisation(found: Localisation | None) -> dict[str, Any] | None:
    """Return where a case went wrong first, and the same in words; None where it did not."""
    if found is None:
        return None
    record = dataclasses.asdict(found) | {"of_f16_range": found.of_f16_range}
    return {name: _numbers(value) for name, value in record.items()} | {"lines": found.lines()}


def _comparison(comparison: Comparison) -> dict[str, Any]:
    worst = comparison.worst
    return {
        "max_abs": _numbers(comparison.max_abs),
        "max_rel_row": _numbers(comparison.max_rel_row),
        "nmse": _numbers(comparison.nmse),
        "bitwise": comparison.bitwise,
        "worst": {name: _numbers(n) for name, n in worst._asdict().items()} if worst else None,
        "bound": _numbers(comparison.bound),
        "of_bound": _numbers(comparison.of_bound),
        "required": comparison.required,
        "ok": comparison.ok,
    }


def _numbers(value: Any) -> Any:
    """Return numbers as JSON can hold them: NaN and infinity as `nan`, `inf`, `-inf`."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
