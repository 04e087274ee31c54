"""`devices`: what a library can compute on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fa_harness.build.named import held_library
from fa_harness.cli import options
from fa_harness.cli.options import How
from fa_harness.engine.runner import Runner
from fa_harness.terminal import make_console

if TYPE_CHECKING:
    from fa_harness.engine.ggml import Device

_GIB = 1 << 30


@click.command("devices")
@options.library_of
def command(*, how: How) -> None:
    """List the devices that a library can compute on.

    The names are those that --backend of other commands takes.
    """
    with held_library(how.library, how.options) as library, Runner(library.module_path) as runner:
        found = runner.devices
    width = max(len(device.name) for device in found)
    console = make_console(stderr=False)
    for device in found:
        console.print(
            f"{device.name:<{width}}  {_described(device)}", markup=False, highlight=False
        )


def _described(device: Device) -> str:
    if not device.total:
        return device.description
    return f"{device.description}, {device.free / _GIB:.1f} of {device.total / _GIB:.1f} GiB free"
