"""`init`: a project's own `fa-harness.toml`."""

from __future__ import annotations

from pathlib import Path

import click

from fa_harness.case.suites import SUITES
from fa_harness.config import FILE
from fa_harness.errors import UsageError
from fa_harness.project import writing
from fa_harness.upstream.layout import is_checkout

_TEMPLATE = """\
# Settings of fa-harness for this folder and all below it. Flags win over them, and so do the
# variables UPSTREAM, UPSTREAM_DIR and NO_SERIES. Paths are relative to this file.

# Build this llama.cpp or ggml checkout, uncommitted changes included.
{sources}

# Or build a pinned version in place of a checkout; leave sources out then.
# upstream = "llama.cpp-0.3.36"

# Find series of patches of your own in this folder: patches/NAME/series. Those that come with
# fa-harness are there, too.
# patches = "patches"

# Take this series where none is named, or a stack of several (state+NAME), or with "none" no patch.
# series = "state"

# Run these suites: {suites}.
# suites = ["smoke", "paths"]

# Keep the gate's baselines here; fa-harness gate --update-baseline makes one.
baselines = "baselines"

# Give CMake these options for every library.
[build]
# GGML_OPENMP = true
"""


@click.command("init")
def command() -> None:
    """Write a fa-harness.toml, which every command in this folder and below it obeys.

    A llama.cpp or ggml checkout in this folder, or one right below it, becomes its sources.
    """
    file = Path.cwd() / FILE
    if file.exists():
        raise UsageError(f"{file} is there already; edit it, or delete it and run again")
    found = _checkouts(Path.cwd())
    sources = f'sources = "{found[0]}"' if len(found) == 1 else '# sources = "path/to/llama.cpp"'
    with writing(file), file.open("x", encoding="utf-8") as new:
        new.write(_TEMPLATE.format(sources=sources, suites=", ".join(SUITES)))
    click.echo(f"wrote {file}: {sources if len(found) == 1 else _no_sources(found)}", err=True)
    click.echo("next: fa-harness run", err=True)


def _checkouts(folder: Path) -> list[str]:
    """Return the checkouts of llama.cpp or ggml: the folder itself, else those right in it."""
    if is_checkout(folder):
        return ["."]
    return sorted(each.name for each in folder.iterdir() if each.is_dir() and is_checkout(each))


def _no_sources(found: list[str]) -> str:
    if found:
        return f"there are several checkouts ({', '.join(found)}); name one as sources"
    return "no checkout of llama.cpp or ggml is here, so the pinned version is built"
