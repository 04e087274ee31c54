"""`upstream`: pins of other versions."""

from __future__ import annotations

import click

from fa_harness.project import find_project
from fa_harness.upstream.newer import add as add_pin
from fa_harness.upstream.newer import newest


@click.group()
def command() -> None:
    """Pin other versions of upstream."""


@command.command("add")
@click.argument("spec", metavar="PACKAGE==VERSION|DIR|GIT-URL@REF")
@click.option("--name", metavar="NAME", help="What the pin is called.")
def add_upstream(*, spec: str, name: str | None) -> None:
    """Pin an upstream: fetch it, look into it, record its checksum.

    An sdist of the package index, the commit that is checked out in DIR, or a branch, tag or whole
    commit id of a git repository. Of a branch the pin is today's commit. A pin of DIR holds on this
    machine.
    """
    pin = add_pin(find_project(), spec, name)
    origin = f"{pin.git} {pin.commit}" if pin.git else f"{pin.package} {pin.version}"
    click.echo(f"{pin.name}: {origin}, ggml {pin.ggml_version or 'unknown'}")


@command.command("update")
@click.option("--add", "adding", is_flag=True, help="Pin what is newer.")
def update_upstreams(*, adding: bool) -> None:
    """Look on the package index for versions that are newer than those that are pinned."""
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
