"""`test-backend-ops`: upstream's own test, built from a library's sources."""

from __future__ import annotations

import os
import sys

import click

from fa_harness.build.builder import build_test_backend_ops
from fa_harness.cli import options
from fa_harness.cli.options import How
from fa_harness.project import find_project


@click.command("test-backend-ops", context_settings={"ignore_unknown_options": True})
@options.library_of
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENTS]...")
def command(*, how: How, arguments: tuple[str, ...]) -> None:
    """Build and run upstream's test-backend-ops from a library's sources.

    ARGUMENTS are passed on. Without any, the flash-attention operators are tested on the CPU: test
    -b CPU -o 'FLASH_ATTN_EXT.*'.
    """
    program = build_test_backend_ops(find_project(), how.library, options=how.options)
    arguments = arguments or ("test", "-b", "CPU", "-o", "FLASH_ATTN_EXT.*")
    sys.stdout.flush()
    os.execv(program, [str(program), *arguments])
