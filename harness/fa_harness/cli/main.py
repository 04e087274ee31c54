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
    "run": "Compare attention, in one call and over segments, with the oracle",
    "gate": "Stop a patch that is wrong, less exact or slower than the baseline",
    "shrink": "Find the smallest case that fails as a case does, and print it",
    "bisect": "Show which patch of the series turned a case red or green",
    "fuzz": "Run cases of all kinds at random; shrink and keep those that fail",
    "mutants": "Put faults into the kernel and see whether the cases notice",
    "bench": "Measure what the state costs, as ratios of times taken in one process",
    "capture": "Store a model's own attention, for `fa-harness run --captured`",
    "perplexity": "Run a real model with its attention in segments, and compare the perplexities",
    "evidence": "Put the series on your checkout as a branch, with evidence for a maintainer",
    "test-backend-ops": "Build upstream's test-backend-ops from a library's sources and run it",
    "series": "Change the patch series: patches are commits while you work on them",
    "upstream": "Pin other versions of upstream",
    "init": "Write a fa-harness.toml, which every command in this folder and below it obeys",
    "vendor": "Fetch the upstream sources and apply the patch series",
    "build": "Build libraries by name [default: patched]",
    "doctor": "Show what a run would use on this machine, and what is wrong with it",
}


@click.group(
    cls=LazyGroup,
    lazy=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="fa-harness")
def cli() -> None:
    """Carry, prove and guard ggml flash-attention patches.

    Exit status: 0 all passed; 1 a case failed, crashed, timed out or was mistrusted; 2 the call was
    wrong; 3 the environment is (no compiler, no library, no network for a first fetch, ...).
    """


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
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
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
