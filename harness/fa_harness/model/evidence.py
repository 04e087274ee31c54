"""The parts of a patch's evidence, and the verdicts on their numbers. Pure functions, no I/O.

**Speed.** Each process of `llama-bench` gives one number per test. A round runs it before and after
the patches, in an order drawn anew, so whatever else the machine does falls on both. The ratio of a
round is free of it. The evidence shows the median of the rounds' ratios and its interval of
coverage 99 %. A process keeps its places in memory, which moves a build by some per mille against
itself. So a verdict needs more than `SAME`: *worse* and *better* need the whole interval beyond it.
*No change* needs the whole interval within `WITHIN`. Otherwise the evidence says that the verdict
cannot be told.

**Perplexity.** The same text gives the same bits on the same machine, before and after a patch that
does not touch what it computes. A ratio within `RELATIVE_TOLERANCE` is no change. The interval that
the program prints is of the text, not of the patch. What the patch does is in the chunks: each was
evaluated before and after, and the mean of their differences has an interval far narrower than
that. *Worse* and *better* need the whole of it beyond `RELATIVE_TOLERANCE`, *no change* needs it
within `PERPLEXITY_WITHIN`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from click import unstyle

from fa_harness.errors import SetupError
from fa_harness.model.perplexity import RELATIVE_TOLERANCE, Perplexity
from fa_harness.speed.bench import Interval, median_interval

SAME = 0.01
WITHIN = 0.03
PERPLEXITY_WITHIN = 0.005
"""Less than weights of Q5_K_M cost: 0.9 % of Llama 3 8B's perplexity, by upstream's table."""

_ERRORS = (63.66, 9.93, 5.85, 4.61, 4.04, 3.71, 3.50, 3.36, 3.25, 3.17, 3.11, 3.06, 3.02, 3.0)
"""How many standard errors a mean of 2, 3, ... differences is off at most in 99 %: Student's t."""

NO_CHANGE, BETTER, WORSE, UNKNOWN = "no change", "better", "worse", "cannot be told"

# the line of a failed case begins with what is wrong
_OP = re.compile(r"(?:^|\s)(FLASH_ATTN_EXT\w*)\((.*)\): (OK|FAIL|not supported.*)$")
_MEASURED = re.compile(r"(n_prompt|n_gen|n_depth|test_time|(avg|stddev|samples)_(ns|ts))")
"""Fields of a result of `llama-bench` that are in its name, or differ from run to run."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the evidence: a table, notes, and the commands that reproduce the numbers."""

    part: str  # its name in `PARTS`
    title: str
    commands: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()
    passed: bool | None = True  # whether it speaks for the patch; None if it was not measured
    data: Any = field(default=None, compare=False)  # the numbers, for the JSON document


PARTS: Mapping[str, str] = {
    "ops": "test-backend-ops, before and after",
    "proof": "What each patch turns from red to green",
    "suite": "fa-harness run",
    "mutants": "Faults put into the kernel",
    "bench": "llama-bench, before and after",
    "perplexity": "llama-perplexity, before and after",
    "size": "Binary size",
}
"""Parts of the evidence in their order, and their headings."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that was gathered."""

    tool_version: str
    branch: str
    base: str
    tip: str
    subjects: tuple[str, ...]
    machine: Mapping[str, str]
    variables: Mapping[str, str]  # values of the variables in commands, such as `$DIR`
    build: tuple[str, ...]  # commands that build the programs
    sections: tuple[Section, ...]

    @property
    def passed(self) -> bool:
        """Whether no part speaks against the patches."""
        return all(section.passed is not False for section in self.sections)


def _section(part: str, **fields: Any) -> Section:
    return Section(part=part, title=PARTS[part], **fields)


def skipped_section(part: str, why: str) -> Section:
    """Return a section that was not measured."""
    return _section(part, notes=(f"not measured: {why}",), passed=None)


def parse_ops(output: str) -> dict[str, str]:
    """Return the status of each flash-attention case: `OK`, `FAIL` or `not supported`."""
    found = {}
    for line in unstyle(output).splitlines():
        match = _OP.search(line)
        if match:
            found[f"{match[1]}({match[2]})"] = match[3].partition(" [")[0]
    if not found:
        raise SetupError("test-backend-ops printed no case of FLASH_ATTN_EXT; see its output")
    return found


def ops_section(
    before: Mapping[str, str],
    after: Mapping[str, str],
    *,
    ended: Sequence[int] = (0, 0),
) -> Section:
    """Return the section of what `parse_ops` gave without and with the patches.

    `ended` holds both exit statuses.
    """
    found = {"before": before, "after": after}
    rows = []
    for op in sorted({case.partition("(")[0] for case in (*before, *after)}):
        for label, cases in found.items():
            count = Counter(s for case, s in cases.items() if case.startswith(f"{op}("))
            if count:
                cells = [str(count[status]) for status in ("OK", "FAIL", "not supported")]
                rows.append((op, label, *cells))
    lost = sorted(case for case, status in before.items() if after.get(case, status) != status)
    missing = sorted(set(before) - set(after))
    failed = sorted(case for case, status in after.items() if status == "FAIL")
    unexplained = [
        f"{label}, the program ends with status {status}, and no case of these fails"
        for (label, cases), status in zip(found.items(), ended, strict=True)
        if status and "FAIL" not in cases.values()
    ]
    return _section(
        "ops",
        head=("op", "", "OK", "FAIL", "not supported"),
        rows=tuple(rows),
        notes=(
            f"{len(set(after) - set(before))} cases are new",
            *(f"{before[case]} before, {after[case]} after: {case}" for case in lost),
            *(f"gone: {case}" for case in missing),
            *(f"fails: {case}" for case in failed if case not in lost),
            *unexplained,
        ),
        passed=not (lost or missing or failed or unexplained),
        data={
            "before": dict(Counter(before.values())),
            "after": dict(Counter(after.values())),
            "lost": lost,
        },
    )


def parse_bench(output: str) -> dict[str, float]:
    """Return tokens per second of each test of one `llama-bench -o json`.

    The name of a test says what it does: `pp512`, `tg32 @ d2048`, `pp512+tg128`. If several tests
    do the same, the fields in which they differ follow: `pp512, type_k=q8_0`.
    """
    text = output[output.find("[") : output.rfind("]") + 1]
    try:
        rows = json.loads(text)
        names = [_test(row) for row in rows]
        found = {}
        for name, row in zip(names, rows, strict=True):
            differing = [
                f"{key}={value}"
                for key, value in row.items()
                if not _MEASURED.fullmatch(key) and any(each.get(key) != value for each in rows)
            ]
            is_known_by_name = names.count(name) == 1
            full_name = name if is_known_by_name else ", ".join([name, *differing])
            found[full_name] = float(row["avg_ts"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SetupError(f"llama-bench printed no result that can be read: {error}") from error
    if not found:
        raise SetupError("llama-bench printed no result that can be read: there is none")
    if len(found) < len(rows):
        raise SetupError("llama-bench ran the same test twice; ask for each once with --bench")
    return found


def _test(row: Mapping[str, Any]) -> str:
    parts = [f"{what}{row[key]}" for what, key in (("pp", "n_prompt"), ("tg", "n_gen")) if row[key]]
    return "+".join(parts) + (f" @ d{row['n_depth']}" if row.get("n_depth") else "")


def judge_ratio(ratios: Sequence[float]) -> tuple[Interval, str]:
    """Return the interval of the ratio of speeds, after to before, and the verdict.

    `ratios` holds one ratio per round, at least `bench.MIN_ROUNDS`.
    """
    interval = median_interval(np.asarray(ratios, dtype=np.float64))
    if interval.low > 1 + SAME:
        return interval, BETTER
    if interval.high < 1 - SAME:
        return interval, WORSE
    if interval.low >= 1 - WITHIN and interval.high <= 1 + WITHIN:
        return interval, NO_CHANGE
    return interval, UNKNOWN


def bench_section(
    before: Sequence[Mapping[str, float]],
    after: Sequence[Mapping[str, float]],
    notes: Sequence[str] = (),
) -> Section:
    """Return the section of what `parse_bench` gave without and with the patches, per round."""
    rows, data = [], {}
    for test in before[0]:
        pairs = [(b[test], a[test]) for b, a in zip(before, after, strict=True)]
        interval, verdict = judge_ratio([a / b for b, a in pairs])
        cells = [f"{np.median(column):.2f}" for column in zip(*pairs, strict=True)]
        ratio = f"{interval.median:.3f} ({interval.low:.3f} to {interval.high:.3f})"
        rows.append((test, *cells, ratio, verdict))
        data[test] = {"samples": pairs, "ratio": vars(interval), "verdict": verdict}
    if any(row[-1] == UNKNOWN for row in rows):
        notes = [*notes, f"an interval half as wide takes --rounds {4 * len(before)}"]
    return _section(
        "bench",
        head=("test", "before, t/s", "after, t/s", "after / before", "verdict"),
        rows=tuple(rows),
        notes=tuple(notes),
        passed=not any(row[-1] == WORSE for row in rows),
        data=data,
    )


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One run of `llama-perplexity`."""

    perplexity: Perplexity
    seconds: float  # seconds of the whole process


def judge_perplexity(before: Perplexity, after: Perplexity) -> tuple[Interval, str]:
    """Return the interval of the ratio of two perplexities, after to before, and the verdict.

    Of one chunk nothing is known but the ratio.
    """
    ratio = after.estimate / before.estimate
    low, high, n = 0.0, math.inf, len(before.chunks)
    if len(after.chunks) == n > 1:
        changes = np.diff(np.arange(n + 1) * np.log([1.0, *np.divide(after.chunks, before.chunks)]))
        error = _ERRORS[min(n, len(_ERRORS) + 1) - 2] * changes.std(ddof=1) / math.sqrt(n)
        low, high = ratio * math.exp(-error), ratio * math.exp(error)
    interval = Interval(median=ratio, low=low, high=high)
    if abs(ratio - 1) <= RELATIVE_TOLERANCE:
        return interval, NO_CHANGE
    is_lost = math.isfinite(before.estimate) and not math.isfinite(after.estimate)
    if is_lost or low > 1 + RELATIVE_TOLERANCE:
        return interval, WORSE
    if high < 1 - RELATIVE_TOLERANCE:
        return interval, BETTER
    within = low >= 1 - PERPLEXITY_WITHIN and high <= 1 + PERPLEXITY_WITHIN
    return interval, NO_CHANGE if within else UNKNOWN


def perplexity_section(before: Sequence[Pass], after: Sequence[Pass]) -> Section:
    """Return the section of `llama-perplexity` of its runs without and with the patches."""
    rows = []
    for label, passes in (("before", before), ("after", after)):
        values = " or ".join(f"{v:.4f}" for v in sorted({p.perplexity.estimate for p in passes}))
        seconds = np.median([p.seconds for p in passes])
        rows.append((label, values, f"+/- {passes[0].perplexity.error:.5f}", f"{seconds:.1f} s"))
    interval, verdict = judge_perplexity(before[0].perplexity, after[0].perplexity)
    same = {p.perplexity for p in (*before, *after)}
    equal = "all digits equal" if len(same) == 1 else "not all digits equal"
    n_chunk = len(before[0].perplexity.chunks)
    spread = f"{interval.low:.4f} to {interval.high:.4f}"
    if math.isinf(interval.high):
        spread = "an interval takes 2 chunks"
    notes = [
        f"after / before {interval.median:.4f} ({spread}): {verdict}",
        f"{n_chunk} running estimates, {equal}",
    ]
    unsteady = any(len({p.perplexity for p in passes}) > 1 for passes in (before, after))
    if unsteady:
        notes.append("the same build gave different values in different rounds")
    return _section(
        "perplexity",
        head=("", "perplexity", "of the text", "time"),
        rows=tuple(rows),
        notes=tuple(notes),
        passed=verdict != WORSE and not unsteady,
        data={
            "before": [dataclasses.asdict(each) for each in before],
            "after": [dataclasses.asdict(each) for each in after],
            "ratio": vars(interval) if math.isfinite(interval.high) else None,
            "verdict": verdict,
        },
    )


def proof_section(documents: Mapping[str, Mapping[str, Any]], onto: str) -> Section:
    """Return the section of what each patch turns from red to green.

    `documents` holds, for each suite, the document of `fa-harness series status --suite`. Commands
    name the checkout `onto`.
    """
    rows, notes, worse = [], [], False
    for suite, document in documents.items():
        for number, patch in enumerate(document["patches"], start=1):
            green, red = patch["turned_green"], patch["turned_red"]
            worse = worse or bool(red)
            rows.append((patch["title"], suite, str(len(green)), str(len(red))))
            before, after = document["libraries"][number - 1 : number + 1]
            notes += [
                f"patch {number}, {word}: UPSTREAM_DIR={onto} fa-harness run --library {library} "
                f"--case '{min(green, key=len)}'"
                for word, library in (("red", before), ("green", after))
                if green
            ]
    return _section(
        "proof",
        head=("patch", "suite", "red to green", "green to red"),
        rows=tuple(rows),
        notes=tuple(notes),
        passed=not worse,
        data=dict(documents),
    )


def suite_section(document: Mapping[str, Any], suite: str) -> Section:
    """Return the section of the document that `fa-harness run --json` wrote of a suite."""
    summary, interrupted = document["summary"], document["interrupted"]
    wrong = {k: n for k, n in summary.items() if n and k not in ("cases", "pass", "unsupported")}
    counts = [str(summary.get(key, 0)) for key in ("cases", "pass", "unsupported")]
    others = ", ".join(f"{n} {key}" for key, n in wrong.items()) or "0"
    return _section(
        "suite",
        head=("suite", "cases", "pass", "unsupported", "other"),
        rows=((suite, *counts, others),),
        notes=("the run was ended before all cases had run",) if interrupted else (),
        passed=not wrong and summary["pass"] > 0 and not interrupted,
        data=summary,
    )


def mutants_section(document: Mapping[str, Any]) -> Section:
    """Return the section of the document that `fa-harness mutants --json` wrote."""
    results = document["results"]
    counts = Counter(each["status"] for each in results)
    survivors = [m["mutant"] for m in results if m["status"] not in ("killed", "equivalent")]
    return _section(
        "mutants",
        head=("mutants", ""),
        rows=tuple((status, str(n)) for status, n in sorted(counts.items())),
        notes=tuple(f"not killed: {name}" for name in survivors),
        passed=not survivors and not document["interrupted"],
        data=dict(counts),
    )


def size_section(before: Mapping[str, int], after: Mapping[str, int]) -> Section:
    """Return the section of the libraries' sizes, in bytes."""
    rows = [
        (name, str(size), str(after[name]), f"{after[name] - size:+}")
        for name, size in before.items()
        if name in after
    ]
    return _section(
        "size",
        head=("library", "before, bytes", "after, bytes", "difference"),
        rows=tuple(rows),
        data={"before": dict(before), "after": dict(after)},
    )
