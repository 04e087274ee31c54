"""The user's package-index configuration, as pip itself prints it."""

from __future__ import annotations

import ast
import os
import re
import ssl
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from fa_harness import proc
from fa_harness.errors import SetupError


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """Where pip looks for packages, and how it connects."""

    indexes: tuple[str, ...] = ()  # simple-API indexes, in order
    find_links: tuple[str, ...] = ()  # folders or pages with files, in order; pip looks there first
    trusted_hosts: tuple[str, ...] = ()  # hosts whose certificate is not checked
    cert: str | None = None  # a file of certificates to trust instead of the system's
    proxy: str | None = None  # of every connection; without it, the usual variables apply
    timeout: float = 15.0  # seconds without an answer until a connection is given up

    def ssl_context(self) -> ssl.SSLContext | bool:
        """Return what checks servers' certificates; True leaves the choice to the HTTP client."""
        if self.cert is None:
            return True
        try:
            return ssl.create_default_context(cafile=self.cert)
        except (OSError, ssl.SSLError) as error:
            raise SetupError(
                f"cannot use the certificates in '{self.cert}': {error}; correct pip's setting "
                "'cert' (or PIP_CERT)"
            ) from error


def load_index_config() -> IndexConfig:
    """Ask this environment's pip; without a pip there is no index."""
    pip = [sys.executable, "-m", "pip"]
    try:
        listing = proc.run([*pip, "config", "list"])
        usage = proc.run([*pip, "download", "--help"], env={**os.environ, "COLUMNS": "200"})
    except SetupError:
        listing = usage = ""
    return parse_index_config(listing.splitlines(), default_index=parse_default_index(usage))


def parse_default_index(usage: str) -> str:
    """Return the index that pip's help names as its default; empty if it names none."""
    match = re.search(r"--index-url <url>.*?\(default\s+([^\s)]+)\)", usage, re.DOTALL)
    return match[1] if match else ""


def parse_index_config(listing: Iterable[str], *, default_index: str) -> IndexConfig:
    """Return the configuration that the lines of `pip config list` give (`section.key='value'`).

    The order is that of `pip install`: the environment wins over its own section, which wins over
    `global`.
    """
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listing:
        match = re.fullmatch(r"(global|install|:env:)\.([\w-]+)=(['\"].*)", line.strip())
        if match:
            sections[match[1]][match[2]] = ast.literal_eval(match[3])
    settings = {**sections["global"], **sections["install"], **sections[":env:"]}
    indexes = (settings.get("index-url") or default_index).split()
    indexes += settings.get("extra-index-url", "").split()
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on", "y", "t"):
        indexes = []
    return IndexConfig(
        indexes=tuple(dict.fromkeys(indexes)),
        find_links=tuple(settings.get("find-links", "").split()),
        trusted_hosts=tuple(settings.get("trusted-host", "").split()),
        cert=settings.get("cert") or None,
        proxy=settings.get("proxy") or None,
        timeout=float(settings.get("timeout") or settings.get("default-timeout") or "15"),
    )
