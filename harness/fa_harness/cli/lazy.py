"""Groups of commands whose modules are imported when they are called."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click


class LazyGroup(click.Group):
    """A group whose help imports no command.

    `lazy` is by name the first line of a command's help. Its module `fa_harness.cli.NAME`, of a
    group's `fa_harness.cli.GROUP_NAME`, has it as `command`.
    """

    def __init__(
        self, *args: Any, lazy: Mapping[str, str], package: str = "fa_harness.cli.", **more: Any
    ) -> None:
        super().__init__(*args, **more)
        self.lazy, self._package = lazy, package
        for name, text in lazy.items():
            self.add_command(click.Command(name, short_help=text))

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the table."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the first argument names, imported."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, self.load(name) if name and name in self.lazy else command, rest

    def load(self, name: str) -> click.Command:
        """Import a command of the table."""
        module: Any = importlib.import_module(self._package + name.replace("-", "_"))
        command: click.Command = module.command
        return command
