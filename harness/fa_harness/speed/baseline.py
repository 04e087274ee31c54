"""What a gate compares with: how each case came out, and how fast, on one class of machines.

A baseline is a JSON file in git, schema `fa-harness.baseline/1`, sorted, so that a diff shows what
changed. It is of one upstream and one machine class: the same library gives other bits, hence other
errors, on CPUs for which upstream has other kernels.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
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
"""How the names begin of features with which products or sums are rounded in another way."""
_NEWER = re.compile(r"fa-harness\.baseline/([2-9]|[1-9][0-9]+)")


@dataclass(frozen=True, kw_only=True)
class CaseRecord:
    """How a case came out."""

    status: str
    bits: tuple[str, ...] = ()
    """The comparisons of two runs that had the same bits."""
    bound: tuple[str, ...] = ()
    """Those that were within their bounds."""
    of_bound: Mapping[str, float] = field(default_factory=dict)
    """How much of its bound each comparison with the oracle took at most."""

    @property
    def comparisons(self) -> tuple[str, ...]:
        """All comparisons that were made."""
        return (*self.bits, *self.bound, *self.of_bound)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Ratios of the speed rows, of one processor."""

    cpu: str
    rows: Mapping[str, Mapping[str, tuple[float, ...]]]
    """By case string, then by the way to compute it: its time to that of `standard`, each number of
    a process of its own."""


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """How the cases of a gate came out, and what that was made with."""

    made_with: Mapping[str, Any]
    """`tool`, `library`, `upstream`, `ggml_version`, `class`, `features`, `cpu`, `cores`, `series`
    (digests by name) and `build` (compilers, flags, CMake options)."""
    seed: int | None
    """The seed of all cases; None where each had its own."""
    threads: int | None
    cases: Mapping[str, CaseRecord]
    speed: Speed | None


@dataclass(frozen=True, kw_only=True)
class NoBaseline:
    """Why a run is compared with no baseline."""

    reason: str
    """In a few words, for each check that is skipped."""
    text: str
    """In full, with the next step; a gate prints it before anything else."""


def machine_class(machine: str, features: Sequence[str]) -> str:
    """Return what decides which bits a library computes: `x86_64-avx512-bf16-fp16`.

    Args:
        machine: The architecture, as `platform.machine()` has it.
        features: The library's CPU features, as `Ggml.features` names them.
    """
    vectors = [name.lower() for name in _VECTORS if name in features][:1]
    arithmetic = [
        word
        for start, word in _ARITHMETIC.items()
        if any(name.startswith(start) for name in features)
    ]
    return "-".join([machine, *vectors, *arithmetic])


def file_name(upstream: str, class_: str) -> str:
    """Return the name of the baseline of an upstream on a machine class."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', upstream)}.{class_}.json"


def missing(file: str, *, upstream: str, class_: str) -> NoBaseline:
    """Return what to say where a baseline does not exist: which was looked for, how to make it.

    Args:
        file: The file, as messages show it.
        upstream: What it would be of.
        class_: The machine class that it would be of.
    """
    return NoBaseline(
        reason="there is no baseline",
        text=(
            f"no baseline: {file} does not exist (upstream {upstream}, machine class {class_}); "
            "without it only the cases are checked; fa-harness gate --update-baseline makes it"
        ),
    )


def record(verdict: Verdict) -> CaseRecord:
    """Return how a case came out, as a baseline holds it."""
    bits, bound, of_bound = [], [], {}
    for name, comparison in sorted(verdict.comparisons.items()):
        if name.endswith("_vs_oracle"):
            of_bound[name] = share(comparison)
        elif comparison.bitwise:
            bits.append(name)
        else:
            bound.append(name)
    return CaseRecord(
        status=verdict.status, bits=tuple(bits), bound=tuple(bound), of_bound=of_bound
    )


def share(comparison: Comparison) -> float:
    """Return the share of its bound that a comparison takes, to the digits that are kept."""
    return float(f"{comparison.of_bound:.3g}")


def render(baseline: Baseline) -> str:
    """Return the file: sorted, four lines a case, a line a measurement."""
    line = json.dumps
    made = [f"  {line(key)}: {line(baseline.made_with[key])}" for key in sorted(baseline.made_with)]
    cases = [
        f"  {line(case)}: {{\n"
        f'   "status": {line(of_case.status)},\n'
        f'   "bits": {line(list(of_case.bits))},\n'
        f'   "bound": {line(list(of_case.bound))},\n'
        f'   "of_bound": {line(dict(of_case.of_bound))}}}'
        for case, of_case in sorted(baseline.cases.items())
    ]
    parts = [
        f' "schema": {line(SCHEMA)}',
        ' "made_with": {\n' + ",\n".join(made) + "\n }",
        f' "seed": {line(baseline.seed)}',
        f' "threads": {line(baseline.threads)}',
        ' "cases": {\n' + ",\n".join(cases) + "\n }",
        f' "speed": {_render_speed(baseline.speed)}',
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _render_speed(speed: Speed | None) -> str:
    if speed is None:
        return "null"
    line = json.dumps
    rows = []
    for case, ways in sorted(speed.rows.items()):
        of_ways = [
            f"   {line(way)}: {line([round(ratio, 4) for ratio in ratios])}"
            for way, ratios in sorted(ways.items())
        ]
        rows.append(f"  {line(case)}: {{\n" + ",\n".join(of_ways) + "}")
    rows_text = ",\n".join(rows)
    return f'{{"cpu": {line(speed.cpu)}, "rows": {{\n{rows_text}\n }}}}'


def load(path: Path) -> Baseline:
    """Read a baseline.

    Raises:
        FileNotFoundError: There is none.
        SetupError: It cannot be read, is broken, or is of a newer fa-harness.
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
    except KeyError as error:
        raise _broken(path, f"{error.args[0]!r} is missing") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _broken(path, str(error)) from error


def _broken(path: Path, reason: str) -> SetupError:
    return SetupError(
        f"baseline {path}: is broken ({reason}); restore it (git checkout -- {path}), or delete it "
        "and make a new one with fa-harness gate --update-baseline"
    )


def _read(document: Mapping[str, Any]) -> Baseline:
    made_with = _mapping(document["made_with"])
    for key in ("upstream", "class", "build"):
        made_with[key]  # what a gate asks for
    speed = document["speed"]
    return Baseline(
        made_with=made_with,
        seed=_number_or_none(document["seed"]),
        threads=_number_or_none(document["threads"]),
        cases={case: _read_case(fields) for case, fields in _mapping(document["cases"]).items()},
        speed=None if speed is None else _read_speed(speed),
    )


def _read_case(fields: Any) -> CaseRecord:
    return CaseRecord(
        status=_of_type(str, fields["status"]),
        bits=tuple(_of_type(str, name) for name in _of_type(list, fields["bits"])),
        bound=tuple(_of_type(str, name) for name in _of_type(list, fields["bound"])),
        of_bound={name: _number(n) for name, n in _mapping(fields["of_bound"]).items()},
    )


def _read_speed(fields: Any) -> Speed:
    return Speed(
        cpu=_of_type(str, fields["cpu"]),
        rows={
            case: {
                way: tuple(_positive(ratio) for ratio in _of_type(list, ratios))
                for way, ratios in _mapping(ways).items()
            }
            for case, ways in _mapping(fields["rows"]).items()
        },
    )


def _of_type(type_: Callable[..., Any], value: Any) -> Any:
    if not isinstance(value, type_):  # type: ignore[arg-type]
        raise ValueError(f"{value!r} where a {type_.__name__} should be")
    return value


def _mapping(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = _of_type(dict, value)
    return found


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r} where a number should be")
    number = float(value)
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{value!r} where a number of at least 0 should be")
    return number


def _positive(value: Any) -> float:
    number = _number(value)
    if number == 0:
        raise ValueError("a ratio of times that is 0")
    return number


def _number_or_none(value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError(f"{value!r} where a whole number or null should be")
    return value


def _no_number(text: str) -> float:
    raise ValueError(f"{text} where a number should be")
