import stat
from pathlib import Path

import pytest

from fa_harness.errors import SetupError
from fa_harness.hunt import upstream_test


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program that prints lines as upstream's test does, with the fault's name."""
    path = tmp_path / "test-backend-ops"
    path.write_text(
        "#!/bin/sh\n"
        'test "$GGML_FA_MUTANT" = no-line && exit 0\n'
        'test "$GGML_FA_MUTANT" = crash-first && kill -FPE $$\n'
        "echo '  FLASH_ATTN_EXT(hsk=64,nb=1): \033[1;32mOK\033[0m'\n"
        'test "$GGML_FA_MUTANT" = crash && kill -ABRT $$\n'
        "error='' result='\033[1;32mOK\033[0m'\n"
        'test "$GGML_FA_MUTANT" = fail && error="[FLASH_ATTN_EXT] ERR = 1 > 0.0005" result=FAIL\n'
        'echo "$error  FLASH_ATTN_EXT(hsk=64,nb=3): $result"\n'
        'case "$GGML_FA_MUTANT" in fail|hang) exec sleep 600;; esac\n'
        "exit 0\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize(
    ("id_", "line"),
    [
        ("pass", ""),
        ("fail", "FLASH_ATTN_EXT(hsk=64,nb=3)"),
        ("crash", "after FLASH_ATTN_EXT(hsk=64,nb=1)"),
        ("crash-first", "the first line"),
    ],
)
def test_upstream_s_test_ends_at_the_first_line_that_fails(
    program: Path, id_: str, line: str
) -> None:
    assert upstream_test.sees(program, id_) == line


def test_an_upstream_s_test_that_tests_nothing_sees_nothing_and_is_told(
    program: Path,
) -> None:
    with pytest.raises(SetupError, match="it has no test FLASH_ATTN_EXT"):
        upstream_test.sees(program, "no-line")


def test_an_upstream_s_test_that_hangs_sees_the_fault(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream_test, "_IDLE_SECONDS", 0.5)
    assert upstream_test.sees(program, "hang") == "after FLASH_ATTN_EXT(hsk=64,nb=3)"
