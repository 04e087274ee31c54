"""Baselines: how each case came out, and how fast, on one class of machines.

A baseline is a JSON file in git, schema `fa-harness.baseline/1`, sorted, so that a diff shows what
changed. It holds for one upstream and one machine class: where upstream has other kernels for a
CPU, the same library gives other bits, hence other errors.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fa_harness.errors import SetupError
from fa_harness.judge.compare import Comparison
from fa_harness.judge.verdict import Verdict

SCHEMA = "fa-harness.baseline/1"

_VECTORS = ("AVX512", "AVX2", "AVX", "SSE3", "SVE", "NEON", "VSX", "VXE")
"""Upstream's names of instruction sets; the first that a library has is the width of its sums."""
_ARITHMETIC = {"AVX512_BF16": "bf16", "FP16": "fp16"}
"""Features that round products or sums differently: how their names begin."""
_NEWER = re.compile(r"fa-harness\.baseline/([2-9]|[1-9][0-9]+)")


@dataclass(frozen=True, kw_only=True)
class CaseRecord:
    """How a case came out; `of_bound` has the largest share of its bound that a comparison took."""

    status: str
    bits: tuple[str, ...] = ()  # the comparisons of two runs that had the same bits
    bound: tuple[str, ...] = ()  # the others; they were within their bounds
    of_bound: Mapping[str, float] = field(default_factory=dict)  # by comparison with the oracle
    as_other: bool | None = None
    """Whether one call gave the bits of the library that it was compared with; None if unknown."""

    @property
    def comparisons(self) -> tuple[str, ...]:
        """All comparisons that were made."""
        return (*self.bits, *self.bound, *self.of_bound)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Ratios of the speed rows, of one processor."""

    cpu: str
    rows: Mapping[str, Mapping[str, tuple[float, ...]]]
    """By case string, then by the way to compute it: its time to that of `standard`, a number for
    each process."""


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """How the cases of a gate came out, on what."""

    made_with: Mapping[str, Any]
    """`tool`, `library`, `upstream`, `ggml_version`, `class`, `features`, `cpu`, `cores`, `series`
    (digests by name), `against` (what one call was compared with) and `build` (compilers, flags,
    CMake options)."""
    seed: int | None
    """The seed of all cases; None where each had its own."""
    threads: int | None
    cases: Mapping[str, CaseRecord]
    speed: Speed | None


@dataclass(frozen=True, kw_only=True)
class NoBaseline:
    """Why a run is compared with no baseline."""

    reason: str  # in a few words, for each skipped check
    text: str  # in full, with the next step; a gate prints it before anything else


def machine_class(machine: str, features: Sequence[str]) -> str:
    """Return what decides which bits a library computes: `x86_64-avx512-bf16-fp16`."""
    vectors = [name.lower() for name in _VECTORS if name in features][:1]
    words = _ARITHMETIC.items()
    arithmetic = [word for start, word in words if any(f.startswith(start) for f in features)]
    return "-".join([machine, *vectors, *arithmetic])


def file_name(upstream: str, class_: str) -> str:
    """Return the name of the baseline of an upstream on a machine class."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', upstream)}.{class_}.json"


def missing(file: str, *, upstream: str, class_: str) -> NoBaseline:
    """Return why nothing can be compared if a baseline's file does not exist."""
    return NoBaseline(
        reason="there is no baseline",
        text=(
            f"no baseline: {file} does not exist (upstream {upstream}, machine class {class_}); "
            "without it only the cases are checked; fa-harness gate --update-baseline makes it"
        ),
    )


def record(verdict: Verdict, *, as_other: bool | None) -> CaseRecord:
    """Return how a case came out, as a baseline holds it; `as_other` as in `CaseRecord`."""
    compared = sorted(verdict.comparisons.items())
    of_bound = {name: share(each) for name, each in compared if name.endswith("_vs_oracle")}
    others = [(name, each.bitwise) for name, each in compared if name not in of_bound]
    return CaseRecord(
        status=verdict.status,
        bits=tuple(name for name, bitwise in others if bitwise),
        bound=tuple(name for name, bitwise in others if not bitwise),
        of_bound=of_bound,
        as_other=as_other,
    )


def share(comparison: Comparison) -> float:
    """Return the share of its bound that a comparison takes, to the digits that are kept."""
    return float(f"{comparison.of_bound:.3g}")


def render(baseline: Baseline) -> str:
    """Return the file: sorted, five lines a case, a line a measurement."""
    document = {
        "schema": json.dumps(SCHEMA),
        "made_with": "{\n" + _fields(dict(sorted(baseline.made_with.items())), 2) + "\n }",
        "seed": json.dumps(baseline.seed),
        "threads": json.dumps(baseline.threads),
        "cases": _of_cases({case: _known(kept) for case, kept in baseline.cases.items()}),
        "speed": "null",
    }
    if baseline.speed is not None:
        rows = {
            case: {way: [round(r, 4) for r in of] for way, of in sorted(ways.items())}
            for case, ways in baseline.speed.rows.items()
        }
        cpu = json.dumps(baseline.speed.cpu)
        document["speed"] = f'{{"cpu": {cpu}, "rows": {_of_cases(rows)}}}'
    lines = [f" {json.dumps(name)}: {text}" for name, text in document.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _known(record: CaseRecord) -> dict[str, Any]:
    """Return a record's fields, without what nobody compared."""
    return {name: value for name, value in vars(record).items() if value is not None}


def _fields(values: Mapping[str, Any], indent: int) -> str:
    """Return the fields of an object in JSON, one per line."""
    margin = " " * indent
    lines = [f"{margin}{json.dumps(name)}: {json.dumps(value)}" for name, value in values.items()]
    return ",\n".join(lines)


def _of_cases(cases: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a JSON object with an object for each case, sorted."""
    objects = [
        f"  {json.dumps(case)}: {{\n{_fields(values, 3)}}}"
        for case, values in sorted(cases.items())
    ]
    return "{\n" + ",\n".join(objects) + "\n }"


def load(path: Path) -> Baseline:
    """Read a baseline; `FileNotFoundError` where there is none.

    Raises:
        SetupError: It cannot be read, is broken, or a newer fa-harness made it.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
        schema = document["schema"]
        if isinstance(schema, str) and _NEWER.fullmatch(schema):
            raise SetupError(
                f"baseline {path}: its schema is {schema}, this fa-harness reads {SCHEMA}: it was "
                "made by a newer one; update fa-harness, or name another file with --baseline"
            )
        if schema != SCHEMA:
            raise ValueError(f"its schema is {schema!r}, not {SCHEMA!r}")
        return _read(document)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SetupError(
            f"baseline {path}: cannot be read ({error.strerror}); name another file with --baseline"
        ) from error
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
        raise SetupError(
            f"baseline {path}: is broken ({reason}); restore it (git checkout -- {path}), or "
            "delete it and make a new one with fa-harness gate --update-baseline"
        ) from error


def _read(document: Mapping[str, Any]) -> Baseline:
    made_with = _of_type(dict, document["made_with"])
    for key in ("upstream", "class", "build"):
        made_with[key]  # what a gate asks for
    cases, speed = _of_type(dict, document["cases"]), document["speed"]
    return Baseline(
        made_with=made_with,
        seed=_number_or_none(document["seed"]),
        threads=_number_or_none(document["threads"]),
        cases={case: _read_case(fields) for case, fields in cases.items()},
        speed=None if speed is None else _read_speed(speed),
    )


def _read_case(fields: Any) -> CaseRecord:
    return CaseRecord(
        status=_of_type(str, fields["status"]),
        bits=tuple(_of_type(str, name) for name in _of_type(list, fields["bits"])),
        bound=tuple(_of_type(str, name) for name in _of_type(list, fields["bound"])),
        of_bound={name: _number(n) for name, n in _of_type(dict, fields["of_bound"]).items()},
        as_other=None if (as_other := fields.get("as_other")) is None else _of_type(bool, as_other),
    )


def _read_speed(fields: Any) -> Speed:
    rows = {
        case: {
            way: tuple(map(_number, _of_type(list, ratios)))
            for way, ratios in _of_type(dict, ways).items()
        }
        for case, ways in _of_type(dict, fields["rows"]).items()
    }
    if any(0 in ratios for ways in rows.values() for ratios in ways.values()):
        raise ValueError("a ratio of times that is 0")
    return Speed(cpu=_of_type(str, fields["cpu"]), rows=rows)


def _of_type(type_: type, value: Any) -> Any:
    if not isinstance(value, type_):
        raise ValueError(f"{value!r} where a {type_.__name__} should be")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r} where a number should be")
    number = float(value)
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{value!r} where a number of at least 0 should be")
    return number


def _number_or_none(value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError(f"{value!r} where a whole number or null should be")
    return value


def _no_number(text: str) -> float:
    raise ValueError(f"{text} where a number should be")
