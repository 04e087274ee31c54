"""`upstream`: pins of other versions."""

from __future__ import annotations

import click

from fa_harness.project import find_project
from fa_harness.upstream.newer import add as add_pin
from fa_harness.upstream.newer import newest


@click.group()
def command() -> None:
    """Pin versions of upstream."""


@command.command("add")
@click.argument("spec", metavar="PACKAGE==VERSION|DIR|GIT-URL@REF")
@click.option("--name", metavar="NAME", help="Name of the pin.")
def add_upstream(*, spec: str, name: str | None) -> None:
    """Pin an upstream: fetch it, inspect it and record its checksum.

    It is an sdist from the package index, the commit checked out in DIR, or a branch, tag or full
    commit id of a git repository. A branch is pinned at its current commit. A pin of DIR is valid
    on this machine only.
    """
    pin = add_pin(find_project(), spec, name)
    origin = f"{pin.git} {pin.commit}" if pin.git else f"{pin.package} {pin.version}"
    click.echo(f"{pin.name}: {origin}, ggml {pin.ggml_version or 'unknown'}")


@command.command("update")
@click.option("--add", "adding", is_flag=True, help="Pin the newer versions.")
def update_upstreams(*, adding: bool) -> None:
    """List pinned packages that have a newer version on the package index."""
    project = find_project()
    for each in newest(project):
        if not each.is_newer:
            click.echo(f"{each.package} {each.pinned}: the newest")
            continue
        spec = f"{each.package}=={each.version}"
        if not adding:
            click.echo(f"{each.package} {each.pinned}: fa-harness upstream add {spec}")
            continue
        pin = add_pin(project, spec)
        click.echo(f"{pin.name}: {spec}, ggml {pin.ggml_version or 'unknown'}")
