"""The command line: the group of commands, and what becomes of errors."""

from __future__ import annotations

import errno
import os
import signal
import sys

import click

from fa_harness import __version__
from fa_harness.cli.lazy import LazyGroup
from fa_harness.errors import FaHarnessError, SetupError, UsageError

_COMMANDS = {
    "run": "Compare attention, computed in one call and in segments, with the oracle",
    "gate": "Reject a patch that is wrong, less accurate or slower than the baseline",
    "shrink": "Find and print the smallest case that fails in the same way",
    "bisect": "Find the patch that broke or fixed a case",
    "fuzz": "Run random cases; shrink and keep those that fail",
    "mutants": "Put faults into the kernel and check that the cases find them",
    "museum": "Put bugs back that kernels really had and check who sees them",
    "bench": "Measure the cost of the state, as ratios of times taken in one process",
    "capture": "Record a model's attention for `fa-harness run --captured`",
    "perplexity": "Compare the perplexities of a real model with and without segments",
    "mixed": "Compare a KV cache of two types with uniform ones: quality, bytes and speed",
    "schedules": "Compare the memory of a KV cache of two types with its rule, step by step",
    "evidence": "Commit the series to a branch of your checkout and gather evidence for it",
    "test-backend-ops": "Build and run upstream's test-backend-ops from a library's sources",
    "series": "Edit series of patches; each patch is a commit while you work on it",
    "upstream": "Pin versions of upstream",
    "init": "Write a fa-harness.toml, which every command in this folder and below it obeys",
    "vendor": "Fetch the upstream sources and apply the patch series",
    "build": "Build libraries",
    "devices": "List the devices that a library can compute on",
    "doctor": "Show what a run uses on this machine, and any problems",
}


@click.group(
    cls=LazyGroup,
    lazy=_COMMANDS,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "show_default": True,
    },
)
@click.version_option(__version__, prog_name="fa-harness")
def cli() -> None:
    """Test and maintain flash-attention patches for ggml.

    \b
    Exit codes:
      0  all cases pass
      1  a case failed, crashed, timed out or is mistrusted, or a check failed
      2  usage error: an unknown name, a bad value, an unreadable file
      3  environment error: no compiler, no library, no network, a full disk, ...
    """


@cli.result_callback()
def _end(passed: bool | None) -> None:
    """Exit with status 1 where a command returns that something did not pass."""
    if passed is False:
        sys.exit(FaHarnessError.exit_status)


def main() -> None:
    """Run the command line; exits with the statuses that `fa-harness --help` lists."""
    # NumPy's BLAS must not keep threads spinning on the cores that ggml is measured on.
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cancelled job keeps its report
    try:
        cli.main(standalone_mode=False)
        if sys.stdout:  # it may be closed
            sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        sys.exit(UsageError.exit_status)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(FaHarnessError.exit_status)
    except FaHarnessError as error:
        click.echo(f"fa-harness: {error}", err=True)
        sys.exit(error.exit_status)
    except BrokenPipeError:
        _silence_stdout()
        sys.exit(FaHarnessError.exit_status)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO):
            raise
        _silence_stdout()
        click.echo(f"fa-harness: cannot write standard output ({error.strerror})", err=True)
        sys.exit(SetupError.exit_status)


def _silence_stdout() -> None:
    """Keep the interpreter from trying once more to write what cannot be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
