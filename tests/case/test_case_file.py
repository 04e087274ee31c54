from pathlib import Path

import pytest

from fa_harness.case.case import Case
from fa_harness.case.case_file import read_cases
from fa_harness.errors import UsageError

CASE = "FLASH_ATTN_EXT(kv=64)"
TOOL_OUTPUT = Path(__file__).parents[1] / "data" / "test-backend-ops.txt"


def test_the_output_of_upstreams_tool_is_a_case_file() -> None:
    cases = read_cases(TOOL_OUTPUT)
    assert len(cases) == 12
    assert [(case.hsk, case.hsk_padded, case.type_K) for case in cases[:3]] == [
        (72, 96, "q5_1"),
        (72, 96, "iq4_nl"),
        (128, 128, "q1_0"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "  ADD(type=f16,ne=[1,1,1,1],nr=[1,1,1,1],nf=1): \x1b[1;32mOK\x1b[0m",
        "  FLASH_ATTN_BACK(hsk=64): not supported [CPU]",
        "  SOFT_MAX(type=f32,ne=[16,2,32,1],mask=1)",
        "[MUL_MAT] ERR = 0.123 > 0.0005   MUL_MAT(type_a=q4_0): \x1b[1;31mFAIL\x1b[0m",
        "  Backend CUDA0: \x1b[1;31mFAIL\x1b[0m",
        "  Skipping CPU backend",
        "Failing tests:",
        "2/3 backends passed",
    ],
)
def test_what_upstreams_tool_prints_about_other_things_is_passed_over(
    line: str, tmp_path: Path
) -> None:
    file = tmp_path / "cases.txt"
    file.write_text(f"{line}\n{CASE}\n")
    assert read_cases(file) == [Case.parse(CASE)]


@pytest.mark.parametrize(
    "line",
    [
        "[FLASH_ATTN_EXT] ERR = 0.0123 > 0.0005   FLASH_ATTN_EXT(kv=64): \x1b[1;31mFAIL\x1b[0m",
        "  FLASH_ATTN_EXT(kv=64): not supported [CUDA0] ",
        "  FLASH_ATTN_EXT(kv=64):      1234 runs -    12.34 us/run - 1.23 GFLOP/run - 45.6 GFLOPS",
        "FLASH_ATTN_EXT(kv=64): skipping large tensors for speed",
    ],
)
def test_a_case_that_upstreams_tool_did_not_pass_is_a_case(line: str, tmp_path: Path) -> None:
    file = tmp_path / "cases.txt"
    file.write_text(line)
    assert read_cases(file) == [Case.parse(CASE)]


@pytest.mark.parametrize(
    "line",
    [
        "FLASH_ATN_EXT(kv=64)",
        "flash_attn_ext(kv=64)",
        "FLASH_ATTN_EXT(kv=64",
        "FLASH_ATTN_EXT kv=64",
        "  FLASHATTN_EXT(kv=64): OK",
        "kv=64",
    ],
)
def test_a_slip_in_a_case_file_is_not_passed_over(line: str, tmp_path: Path) -> None:
    file = tmp_path / "cases.txt"
    file.write_text(f"{CASE}\n{line}\n")
    with pytest.raises(UsageError, match=r"cases\.txt:2: .* is not a case; one looks like FLASH"):
        read_cases(file)
