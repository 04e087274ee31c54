"""What a gate finds in a run, what it lets pass, and what it will not tell."""

import dataclasses
import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from fa_harness.case.case import Case
from fa_harness.engine.session import Results
from fa_harness.judge.verdict import Verdict
from fa_harness.report import html, markdown
from fa_harness.speed import gate, ratios, renewal
from fa_harness.speed.baseline import Baseline, NoBaseline, Speed
from fa_harness.speed.ratios import Ratio
from fa_harness.speed.rows import NOISE, WAYS, SpeedRow
from fa_harness.speed.rows import OTHER as OTHER_LIBRARY
from fa_harness.stacks import Accepted
from gates import (
    BITS,
    CASE,
    MADE_WITH,
    NONE,
    OTHER,
    baseline_of,
    compared,
    comparison,
    count_of,
    failing,
    judged,
    results,
    verdict,
)

GOOD = results(compared(), compared(OTHER))


def kinds(found: gate.Gate) -> list[str]:
    return [finding.kind for finding in found.findings]


def status(found: gate.Gate, name: str) -> tuple[str, str]:
    [check] = [check for check in found.checks if check.name == name]
    return check.status, check.reason


def all_told(run: Results, before: Baseline | NoBaseline, **more: Any) -> gate.Gate:
    """A gate whose speed and instructions are fine."""
    fine, count = ratio_of(1.0, before=history()), count_of(1000, 1000)
    usual = {"ratios": [fine], "one_call": [one_call_of(1.0)], "counts": [count]}
    return judged(run, before, **{**usual, **more})


def test_a_gate_counts_the_checks_that_it_made() -> None:
    assert judged(GOOD, NONE).verdict == (
        "pass, 2 cases: 2 pass; 1 of 8 checks made; not checked: nothing is gone, bit-exactness, "
        "bits of one call, errors, speed, speed of one call, instructions"
    )
    assert all_told(GOOD, baseline_of(GOOD)).verdict == (
        "pass, 2 cases: 2 pass; 8 of 8 checks made"
    )


@pytest.mark.parametrize(
    ("run", "before", "missing"),
    [
        pytest.param(
            results(*GOOD.verdicts, verdict(CASE.with_(seed=3), "unsupported")),
            baseline_of(results(*GOOD.verdicts, verdict(CASE.with_(seed=3), "unsupported"))),
            (
                "cases (1 of 3 cases)",
                "bit-exactness (1 of 3 cases)",
                "bits of one call (1 of 3 cases)",
                "errors (1 of 3 cases)",
            ),
            id="unsupported",
        ),
        pytest.param(
            GOOD,
            baseline_of(results(GOOD.verdicts[0])),
            (
                "bit-exactness (1 of 2 cases)",
                "bits of one call (1 of 2 cases)",
                "errors (1 of 2 cases)",
            ),
            id="new",
        ),
        pytest.param(
            results(verdict(), verdict(OTHER)),
            baseline_of(results(verdict(), verdict(OTHER))),
            ("bit-exactness", "errors"),
            id="nothing to compare",
        ),
        pytest.param(
            results(GOOD.verdicts[0], selected=2),
            baseline_of(GOOD),
            (
                "cases (1 of 2 cases)",
                "nothing is gone",
                "bit-exactness (1 of 2 cases)",
                "bits of one call (1 of 2 cases)",
                "errors (1 of 2 cases)",
            ),
            id="interrupted",
        ),
    ],
)
def test_a_part_of_a_check_that_is_missing_is_named(
    run: Results, before: Baseline, missing: tuple[str, ...]
) -> None:
    assert all_told(run, before).not_checked == missing
    assert not all_told(run, before, strict=True).passed


def test_a_run_in_which_every_case_crashed_is_not_as_in_the_baseline() -> None:
    run = results(verdict(status="crash"), verdict(OTHER, "crash"))
    found = judged(run, baseline_of(GOOD))
    for name in ("bit-exactness", "bits of one call", "errors"):
        assert status(found, name)[0] == "skipped"


def test_ratios_that_are_too_noisy_are_counted_among_what_was_not_checked() -> None:
    ratios = [
        ratio_of(1.0, before=history()),
        ratio_of(1.0, spread=0.2, before=history()),
    ]
    found = all_told(GOOD, baseline_of(GOOD), ratios=ratios)
    assert found.not_checked == ("speed (1 of 2 ratios)",)


def test_a_strict_gate_passes_only_where_all_was_checked() -> None:
    assert all_told(GOOD, baseline_of(GOOD), strict=True).passed
    found = all_told(GOOD, baseline_of(GOOD), counts="there is no valgrind", strict=True)
    assert not found.passed
    assert found.verdict == (
        "fail (--strict), 2 cases: 2 pass; 7 of 8 checks made; not checked: instructions"
    )
    assert found.findings == ()


def test_the_same_run_passes_with_every_check_told() -> None:
    found = judged(GOOD, baseline_of(GOOD))
    assert found.passed
    assert [check.status for check in found.checks] == ["ok"] * 5 + ["skipped"] * 3


@pytest.mark.parametrize("bad", ["fail", "crash", "timeout", "mistrusted", "oversized"])
def test_a_case_that_does_not_pass_stops_the_patch(bad: str) -> None:
    found = judged(failing("why", status=bad), NONE)
    assert not found.passed
    assert kinds(found) == ["failed"]
    assert found.findings[0].text == f"{bad}: why"
    assert found.findings[0].repro.startswith("fa-harness run --library patched --case ")


def test_a_run_without_a_baseline_passes_with_the_rest_skipped_and_the_reason() -> None:
    found = judged(GOOD, NONE)
    assert found.passed
    assert found.without_baseline == NONE.text
    assert status(found, "cases")[0] == "ok"
    for name in ("nothing is gone", "bit-exactness", "bits of one call", "errors"):
        assert status(found, name) == ("skipped", "there is none")


def test_a_case_of_the_baseline_that_did_not_run_is_gone() -> None:
    found = judged(results(GOOD.verdicts[0]), baseline_of(GOOD))
    assert (kinds(found), found.findings[0].case) == (["gone"], str(OTHER))
    assert not found.passed


def test_a_case_that_is_no_longer_supported_is_gone() -> None:
    run = results(GOOD.verdicts[0], verdict(OTHER, "unsupported", "the library has no merge"))
    found = judged(run, baseline_of(GOOD))
    assert kinds(found) == ["gone"]
    assert "the library has no merge" in found.findings[0].text


def test_cases_that_are_unsupported_are_counted_and_named_never_hidden() -> None:
    lost = [verdict(CASE.with_(seed=n), "unsupported", "no type q9") for n in (3, 4)]
    run = results(*GOOD.verdicts, *lost)
    named = "hs128 h32 kv64 b8 f16 normal seed=3 t1"
    for before, since in (
        (NONE, ""),
        (baseline_of(GOOD), ""),
        (baseline_of(results(*GOOD.verdicts, lost[0])), ", 1 of them in the baseline"),
    ):
        found = judged(run, before)
        assert found.passed
        assert found.unsupported == (f"2 unsupported{since}: no type q9; such as {named}",)
        assert found.verdict.startswith("pass, 4 cases: 2 pass, 2 unsupported; ")
        assert f"2 unsupported{since}: no type q9" in markdown.render(run, found)
        assert f"2 unsupported{since}: no type q9" in html.render(run, found)


@pytest.mark.parametrize("worse", ["unsupported", "mistrusted", "oversized"])
def test_a_case_that_passed_and_can_no_longer_be_told_is_a_finding(worse: str) -> None:
    run = results(GOOD.verdicts[0], verdict(OTHER, worse, "why"))
    found = judged(run, baseline_of(GOOD))
    assert not found.passed
    assert kinds(found) == ["gone" if worse == "unsupported" else "failed"]
    assert f"2 cases: 1 pass, 1 {worse}; " in found.verdict
    assert found.statuses["pass"] == (1, 2)
    assert found.statuses[worse] == (1, 0)
    assert judged(run, NONE).statuses[worse] == (1, None)


def test_a_case_that_the_baseline_has_as_mistrusted_too_is_counted_and_fails_nothing() -> None:
    run = results(*GOOD.verdicts, verdict(CASE.with_(seed=3), "mistrusted", "all is 0"))
    found = judged(run, baseline_of(run))
    assert found.passed
    assert status(found, "cases")[1].startswith("2 pass, 1 mistrusted")
    assert found.verdict.startswith("pass, 3 cases: 2 pass, 1 mistrusted; ")
    assert not judged(run, baseline_of(run), strict=True).passed
    assert kinds(judged(run, baseline_of(GOOD))) == ["failed"]
    assert kinds(judged(run, NONE)) == ["failed"]


# a part of the cases


def test_of_a_baseline_only_the_chosen_cases_can_be_gone() -> None:
    before = gate.part_of(baseline_of(GOOD), lambda case: case == CASE)
    found = judged(results(GOOD.verdicts[0]), before, part="-k kv64 --shard 1/2")
    assert found.passed
    assert status(found, "nothing is gone") == ("ok", "as in the baseline, 1 of 1 cases")
    assert found.verdict.startswith("pass, 1 case of -k kv64 --shard 1/2: 1 pass; ")
    assert kinds(judged(results(GOOD.verdicts[0]), baseline_of(GOOD))) == ["gone"]


def test_what_was_not_run_after_the_first_failure_is_not_checked_and_not_gone() -> None:
    run = results(verdict(CASE, "fail", "off by 1"), selected=2, interrupted=False)
    found = judged(run, baseline_of(GOOD))
    stopped = "stopped at the first that fails (-x)"
    assert kinds(found) == ["failed"]
    assert status(found, "cases") == ("regressed", f"1 do not pass; {stopped}")
    assert status(found, "nothing is gone")[1] == f"{stopped}: which cases are gone is not known"
    assert "cases (1 of 2 cases)" in found.not_checked
    assert "1 of 2 cases: 1 fail; " in found.verdict


OTHER_BITS = bytes([1]) * 32


def of_one_call(bits: bytes = BITS, *, case: Case = CASE) -> Verdict:
    return dataclasses.replace(compared(case), standard=bits)


def test_one_call_that_had_the_other_librarys_bits_must_keep_them() -> None:
    run, theirs = results(of_one_call()), {CASE: BITS}
    before = baseline_of(run, bits=theirs)
    assert before.cases[str(CASE)].as_other is True
    assert status(judged(run, before, bits=theirs), "bits of one call")[0] == "ok"
    found = judged(results(of_one_call(OTHER_BITS)), before, bits=theirs)
    assert kinds(found) == ["bits_lost"]
    assert found.findings[0].text == "one call: had the bits of pristine, now has others"
    # what never had them, or nobody compared, is free
    for bits in ({CASE: OTHER_BITS}, {}, "no such library"):
        found = judged(results(of_one_call(OTHER_BITS)), baseline_of(run, bits=bits), bits=theirs)
        assert status(found, "bits of one call")[0] == "skipped"


@pytest.mark.parametrize(
    ("changed", "bits", "reason"),
    [
        ({}, "library 'pristine' cannot be had", "library 'pristine' cannot be had"),
        ({"against": "0001"}, {CASE: BITS}, "the baseline has those of pristine, not of 0001"),
        ({"build": {"c_compiler": "clang"}}, {CASE: BITS}, "the baseline is of another build: "),
    ],
)
def test_bits_of_one_call_that_cannot_be_compared_are_skipped(
    changed: dict[str, Any], bits: dict[Case, bytes] | str, reason: str
) -> None:
    run = results(of_one_call(OTHER_BITS))
    before = baseline_of(results(of_one_call()), bits={CASE: BITS})
    found = judged(run, before, bits=bits, made_with={**MADE_WITH, **changed})
    assert kinds(found) == []
    assert status(found, "bits of one call")[0] == "skipped"
    assert status(found, "bits of one call")[1].startswith(reason)


def test_a_baseline_tells_where_one_call_got_or_lost_the_other_librarys_bits() -> None:
    had, lost = (
        baseline_of(results(of_one_call(bits)), bits={CASE: BITS}) for bits in (BITS, OTHER_BITS)
    )
    assert renewal.changes(had, lost) == [f"one call, bits of the other library lost: {CASE}"]
    assert renewal.changes(lost, had) == [f"one call, bits of the other library gained: {CASE}"]


def test_a_comparison_that_is_no_longer_made_is_gone() -> None:
    run = results(verdict(standard_again=comparison(bitwise=True)), compared(OTHER))
    found = judged(run, baseline_of(GOOD))
    assert kinds(found) == ["gone"]
    assert found.findings[0].text == "no longer compared: standard vs oracle"


def test_an_interrupted_run_does_not_say_that_the_other_cases_are_gone() -> None:
    found = judged(results(GOOD.verdicts[0], selected=2), baseline_of(GOOD))
    assert kinds(found) == []
    assert not found.passed
    assert status(found, "cases") == ("regressed", "interrupted: 1 passed")


def test_a_new_case_is_no_finding() -> None:
    assert judged(GOOD, baseline_of(results(GOOD.verdicts[0]))).passed


@pytest.mark.parametrize(("share", "grew"), [(0.1, False), (0.16, False), (0.161, True), (1, True)])
def test_an_error_may_grow_by_its_margin(share: float, grew: bool) -> None:
    run = results(compared(of_bound=share), compared(OTHER))
    found = judged(run, baseline_of(GOOD))
    assert kinds(found) == ["error_grew"] * grew
    assert found.passed is not grew


def test_an_error_that_grew_is_told_with_what_it_was_and_may_be() -> None:
    run = results(compared(of_bound=0.5), compared(OTHER))
    [finding] = judged(run, baseline_of(GOOD)).findings
    assert finding.text == (
        "standard vs oracle: takes 50.0% of its bound, was 10.0%, may be 16.0%; worst in segment 1 "
        "(of 0 to 2), batch 0, head 1, row 2, element 3"
    )


@pytest.mark.parametrize("required", ["bits", "bound"])
def test_bits_that_were_the_same_and_no_longer_are_stop_the_patch(required: str) -> None:
    same = comparison(bitwise=True, required="bits", of_bound=0.0)
    before = baseline_of(results(verdict(segmented_vs_standard=same)))
    run = results(verdict(segmented_vs_standard=comparison(required=required)))
    found = judged(run, before)
    assert kinds(found) == ["bits_lost"]
    assert found.findings[0].text == (
        "segmented vs standard: had the same bits, now differ by up to 1.00e-03"
    )


def test_bits_of_another_compiler_are_not_compared_but_errors_are() -> None:
    same = comparison(bitwise=True)
    before = baseline_of(
        results(verdict(a_vs_b=same, a_vs_oracle=comparison())), build={"c_compiler": "clang 9"}
    )
    run = results(verdict(a_vs_b=comparison(), a_vs_oracle=comparison(of_bound=0.9)))
    found = judged(run, before)
    assert kinds(found) == ["error_grew"]
    assert status(found, "bit-exactness") == (
        "skipped",
        "the baseline is of another build: c_compiler clang 9 (here gcc 1)",
    )


def test_a_case_that_fails_is_not_told_twice() -> None:
    bad = dataclasses.replace(compared(of_bound=9), status="fail")
    run = results(bad, compared(OTHER))
    assert kinds(judged(run, baseline_of(GOOD))) == ["failed"]


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (baseline_of(GOOD, upstream="llama.cpp-2"), "is of upstream llama.cpp-2, this run of"),
        (
            baseline_of(GOOD, None, **{"class": "arm"}),
            "is of machine class arm, this run of x86",
        ),
    ],
)
def test_another_upstream_or_class_is_skipped_never_a_pass(before: Baseline, reason: str) -> None:
    found = judged(results(verdict()), before)
    assert found.passed
    for name in ("nothing is gone", "bit-exactness", "bits of one call", "errors"):
        assert status(found, name)[0] == "skipped"
        assert reason in status(found, name)[1]


def test_another_seed_is_skipped() -> None:
    found = judged(results(verdict()), baseline_of(GOOD), seed=7)
    assert status(found, "errors") == (
        "skipped",
        "the baseline is of seed of each case's own, this run of seed 7: other numbers, so "
        "other errors",
    )


def test_what_differs_from_what_the_baseline_was_made_with_is_noted() -> None:
    now = {**MADE_WITH, "series": {"0001-a.patch": "34cd", "0002-b.patch": "56"}}
    found = judged(GOOD, baseline_of(GOOD), made_with=now)
    assert found.notes == ("patches that differ from the baseline's: 0001-a.patch, 0002-b.patch",)


# speed

ROW = Case(n_kv=256, n_batch=1)


def drawn(centre: float, spread: float = 0.005, n: int = 12, seed: int = 0) -> tuple[float, ...]:
    draw = random.Random(f"{centre}/{spread}/{seed}")
    return tuple(draw.gauss(centre, spread) for _ in range(n))


def history(*, spread: float = 0.005, n: int = 24) -> dict[str, tuple[float, ...]]:
    return {
        "again": drawn(1, spread, n, 1),
        "parts": drawn(1.2, spread, n, 2),
        "full_state": drawn(1, spread, n, 3),
        "segmented": drawn(1.105, spread, n, 5),
    }


def ratio_of(
    full_state: float, *, spread: float = 0.005, before: dict[str, tuple[float, ...]]
) -> Ratio:
    first, _ = both_drawn(full_state=full_state, spread=spread, before=before)
    return first


def both_drawn(
    *,
    full_state: float = 1.0,
    segmented: float = 1.1,
    parts: float = 1.2,
    spread: float = 0.005,
    before: dict[str, tuple[float, ...]],
) -> list[Ratio]:
    row = SpeedRow(
        case=ROW,
        ratios={
            "again": drawn(1, spread, seed=7),
            "parts": drawn(parts, spread, seed=6),
            "full_state": drawn(full_state, spread, seed=8),
            "segmented": drawn(segmented, spread, seed=9),
        },
    )
    return ratios.compare_speed(row, before, cores=2)


def test_the_same_speed_is_ok() -> None:
    assert ratio_of(1.0, before=history()).status == "ok"


def test_a_ratio_that_is_a_tenth_worse_is_slower() -> None:
    found = ratio_of(1.1, before=history())
    assert found.status == "regressed"
    assert re.match(r"takes 1\.(09|10)\d of .*, was (0\.99|1\.00)\d: ", found.reason)


def test_a_ratio_that_is_a_per_cent_worse_without_a_doubt_is_not_slower() -> None:
    assert ratio_of(1.01, spread=0.0005, before=history(spread=0.0005)).status == "ok"


def test_a_faster_ratio_is_ok() -> None:
    assert ratio_of(0.8, before=history()).status == "ok"


def test_one_process_that_a_neighbour_spoilt_does_not_decide() -> None:
    spoilt = (*drawn(1, 0.005, 11, 8), 40.0)
    row = SpeedRow(case=ROW, ratios=dict.fromkeys((*NOISE, *WAYS), spoilt))
    assert ratios.compare_speed(row, history(), cores=2)[0].status == "ok"


def test_a_noisy_machine_is_skipped_with_the_reason_never_ok() -> None:
    found = ratio_of(1.0, spread=0.2, before=history())
    assert found.status == "skipped"
    assert "too noisy: " in found.reason


def test_what_is_far_beyond_the_noise_is_slower_nevertheless() -> None:
    assert ratio_of(3.0, spread=0.05, before=history()).status == "regressed"


def test_a_chain_that_waits_longer_as_the_same_calls_without_a_state_do_is_no_slower() -> None:
    # two cores of which a neighbour holds one: each barrier costs a slice of time
    one_call, chain = both_drawn(segmented=2.0, parts=2.2, before=history())
    assert (one_call.status, chain.status) == ("ok", "skipped")
    assert "too noisy: as many calls without a state take 2.2" in chain.reason
    # less than they do shows nothing, either
    assert both_drawn(segmented=1.1, parts=0.6, before=history())[1].status == "skipped"


def test_a_chain_that_is_slower_than_such_calls_explain_is_slower() -> None:
    assert both_drawn(segmented=1.21, before=history())[1].status == "regressed"
    assert both_drawn(segmented=3.0, parts=2.2, before=history())[1].status == "regressed"


def test_without_such_calls_in_the_baseline_only_one_call_with_a_state_is_compared() -> None:
    before = {way: each for way, each in history().items() if way != "parts"}
    one_call, chain = both_drawn(before=before)
    assert one_call.status == "ok"
    assert "too little history: 0 processes" in chain.reason


@pytest.mark.parametrize("before", [{}, history(n=9)])
def test_too_little_history_is_skipped(before: dict[str, tuple[float, ...]]) -> None:
    found = ratio_of(9.0, before=before)
    assert found.status == "skipped"
    assert found.reason.startswith("too little history: ")


def test_a_row_of_more_threads_than_cores_is_skipped() -> None:
    row = SpeedRow(case=ROW.with_(threads=4), ratios={})
    assert {ratio.status for ratio in ratios.compare_speed(row, history(), cores=2)} == {"skipped"}


def one_call_of(centre: float, *, spread: float = 0.005, case: Case = ROW) -> Ratio:
    """One call beside that of another library."""
    row = SpeedRow(
        case=case,
        ratios={"again": drawn(1, spread, seed=7), OTHER_LIBRARY: drawn(centre, spread, seed=8)},
    )
    return ratios.compare_one_call(row, "pristine", cores=2)


@pytest.mark.parametrize(
    ("centre", "spread", "status"),
    [
        (1.0, 0.005, "ok"),
        (1.01, 0.002, "ok"),  # as far as another place of the same code goes
        (0.9, 0.005, "ok"),
        (1.05, 0.008, "regressed"),
        (1.05, 0.001, "regressed"),
        (1.0, 0.2, "skipped"),
        (2.0, 0.1, "regressed"),
    ],
)
def test_one_call_may_take_no_more_time_than_that_of_the_other_library(
    centre: float, spread: float, status: str
) -> None:
    assert one_call_of(centre, spread=spread).status == status


def test_a_uniform_loss_of_5_per_cent_is_stopped_or_the_noise_told_never_ok() -> None:
    draws = [
        SpeedRow(case=ROW, ratios={
            "again": drawn(1, spread, seed=i), OTHER_LIBRARY: drawn(1.05, spread, seed=1000 + i)})
        for spread in (0.002, 0.005, 0.01, 0.03, 0.1)
        for i in range(60)
    ]  # fmt: skip
    found = Counter(ratios.compare_one_call(row, "pristine", cores=2).status for row in draws)
    assert found["ok"] <= 0.01 * len(draws)


def test_false_alarms_of_one_call_are_rarer_than_the_level_whatever_the_noise() -> None:
    draws = [
        SpeedRow(case=ROW, ratios={
            "again": drawn(1, spread, seed=i), OTHER_LIBRARY: drawn(1.01, spread, seed=1000 + i)})
        for spread in (0.002, 0.01, 0.1, 0.5)
        for i in range(100)
    ]  # fmt: skip
    found = [ratios.compare_one_call(row, "pristine", cores=2).status for row in draws]
    assert "regressed" not in found


def test_instructions_that_the_series_accepts_pass_and_are_counted() -> None:
    accepted = [Accepted(case=str(CASE), times=1.03, why="of tanhf")]
    counts = [count_of(1000, 1000, way="standard"), count_of(1030, 1000, accepted=accepted)]
    for measured, words in ((counts, "1 ok, 1 accepted of 2"), (counts[1:], "1 accepted of 1")):
        found = judged(GOOD, NONE, counts=measured)
        assert found.passed
        check = next(each for each in found.checks if each.name == "instructions")
        assert (check.status, check.reason) == ("ok", f"{words} ratios")
        assert not check.not_checked
    found = judged(GOOD, NONE, counts=[count_of(1031, 1000, accepted=accepted)])
    assert kinds(found) == ["more_instructions"]


def test_a_slower_call_and_more_instructions_fail_the_gate_without_a_baseline() -> None:
    found = judged(GOOD, NONE, one_call=[one_call_of(1.06)], counts=[count_of(1011, 1000)])
    assert not found.passed
    assert kinds(found) == ["slower", "more_instructions"]
    assert found.findings[0].text.startswith("speed of one call, standard: takes 1.0")
    assert found.findings[1].text == (
        "instructions, standard: 1,011 instructions, pristine 1,000: +1.10%, allowed +1.00%"
    )


def test_one_call_of_a_process_that_died_is_a_finding_of_it() -> None:
    row = SpeedRow(case=ROW, fault="SIGSEGV")
    found = judged(GOOD, NONE, one_call=[ratios.compare_one_call(row, "pristine", cores=2)])
    assert kinds(found) == ["failed"]


def test_a_library_without_a_state_has_one_call_alone() -> None:
    row = SpeedRow(case=ROW, ratios={"again": drawn(1), OTHER_LIBRARY: drawn(1)})
    assert {r.status for r in ratios.compare_speed(row, history(), cores=2)} == {"skipped"}
    assert renewal.speed_of([row], cpu="some").rows == {}


def test_only_what_is_slower_twice_counts() -> None:
    slow, fine = ratio_of(1.3, before=history()), ratio_of(1.0, before=history())
    assert [ratio.status for ratio in ratios.confirmed([slow], [fine])] == ["ok"]
    assert [ratio.status for ratio in ratios.confirmed([slow], [slow])] == ["regressed"]


def test_one_call_that_is_too_noisy_is_settled_by_more_processes_if_they_can() -> None:
    noisy, hopeless, fine, slow = (
        one_call_of(centre, spread=spread)
        for centre, spread in ((1.04, 0.02), (1.0, 0.3), (1.0, 0.005), (1.06, 0.005))
    )
    assert [each.status for each in (noisy, hopeless)] == ["skipped", "skipped"]
    assert [ratios.is_open(each) for each in (noisy, hopeless, fine, slow)] == [1, 0, 0, 1]
    assert ratios.confirmed([noisy], [fine]) == [fine]
    assert ratios.confirmed([noisy], [slow]) == [slow]
    assert ratios.confirmed([slow], [fine]) == [fine]
    hardly = dataclasses.replace(slow, p=1e-4)  # it was not seen twice
    assert ratios.confirmed([noisy], [hardly]) == [noisy]
    assert ratios.confirmed([slow], [hardly]) == [hardly]


@pytest.mark.parametrize("order", [0, 1])
def test_a_process_that_died_in_one_of_two_measurements_is_a_finding(order: int) -> None:
    died = ratios.compare_speed(SpeedRow(case=ROW, fault="SIGSEGV"), history(), cores=2)
    fine = [ratio_of(1.0, before=history())]
    pair = (died, fine) if order else (fine, died)
    [ratio] = ratios.confirmed(*pair)
    assert ratio.status == "regressed"
    found = judged(GOOD, baseline_of(GOOD), ratios=[ratio])
    assert (kinds(found), found.findings[0].text) == (["failed"], "speed, all ways: ended: SIGSEGV")


def test_a_slower_ratio_fails_the_gate_and_a_skipped_one_does_not() -> None:
    slow, noisy = ratio_of(1.3, before=history()), ratio_of(1.0, spread=0.2, before=history())
    assert kinds(judged(GOOD, baseline_of(GOOD), ratios=[slow])) == ["slower"]
    found = judged(GOOD, baseline_of(GOOD), ratios=[noisy])
    assert found.passed
    assert status(found, "speed")[0] == "skipped"


def test_false_alarms_of_the_same_speed_are_rarer_than_the_level() -> None:
    before = history()
    draws = [
        SpeedRow(case=ROW, ratios={way: drawn(centre, seed=100 + i) for way, centre in (
            ("again", 1.0), ("parts", 1.2), ("full_state", 1.0), ("segmented", 1.105))})
        for i in range(300)
    ]  # fmt: skip
    found = [ratio for row in draws for ratio in ratios.compare_speed(row, before, cores=2)]
    assert {ratio.status for ratio in found} == {"ok"}


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (baseline_of(GOOD), "the baseline has no speed"),
        (baseline_of(GOOD, Speed(cpu="old", rows={})), "of another CPU, old; this is some"),
        (NONE, "there is none"),
    ],
)
def test_speed_of_another_cpu_or_of_no_baseline_is_not_compared(
    before: Baseline | NoBaseline, reason: str
) -> None:
    assert reason in str(ratios.speed_incomparable(before, "some"))


# what changed


def changed(old: Sequence[object], new: Sequence[object]) -> list[str]:
    return renewal.changes(baseline_of(results(*old)), baseline_of(results(*new)))  # type: ignore[arg-type]


def test_a_new_baseline_that_is_the_same_changed_nothing() -> None:
    assert changed(GOOD.verdicts, GOOD.verdicts) == []


def test_cases_errors_and_bits_that_changed_are_told() -> None:
    old = [verdict(a_vs_b=comparison(bitwise=True), a_vs_oracle=comparison(of_bound=0.1))]
    new = [verdict(a_vs_b=comparison(), a_vs_oracle=comparison(of_bound=0.25)), verdict(OTHER)]
    case = old[0].case
    assert changed(old, new) == [
        f"bit-exactness lost, a_vs_b: {case}",
        f"a_vs_oracle 0.1 -> 0.25 of its bound: {case}",
        f"added: {OTHER}",
    ]
    assert changed(new, old)[0] == f"gone: {OTHER}"


def test_speed_that_changed_is_told() -> None:
    was, now = (
        renewal.speed_of(
            [SpeedRow(case=ROW, ratios=dict.fromkeys((*NOISE, *WAYS), (ratio,) * 24))], cpu="some"
        )
        for ratio in (1.0, 0.5)
    )
    lines = renewal.changes(baseline_of(GOOD, was), baseline_of(GOOD, now))
    assert [line.split(":")[0] for line in lines] == [
        "speed of full_state 1.000 -> 0.500",
        "speed of segmented 1.000 -> 0.500",
    ]
