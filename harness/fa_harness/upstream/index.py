"""The user's own package-index configuration: what pip would use, without pip's internals."""

from __future__ import annotations

import ast
import os
import re
import ssl
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fa_harness import proc
from fa_harness.errors import SetupError


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """Where to look for packages, and how to reach it.

    Attributes:
        indexes: simple-API indexes, in order.
        find_links: folders or pages with files, in order; pip looks there first.
        trusted_hosts: hosts whose certificate is not checked.
        cert: a file of certificates to trust in place of the system's.
        proxy: proxy of every connection; the usual environment variables hold without it.
        timeout: seconds without an answer after which a connection is given up.
    """

    indexes: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    trusted_hosts: tuple[str, ...] = ()
    cert: str | None = None
    proxy: str | None = None
    timeout: float = 15.0

    def ssl_context(self) -> ssl.SSLContext | bool:
        """What checks servers' certificates; True is the HTTP client's own choice."""
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
    """Ask this environment's pip; without a pip there is nothing to go by, and no index."""
    pip = [sys.executable, "-m", "pip"]
    try:
        listing = proc.run([*pip, "config", "list"])
        usage = proc.run([*pip, "download", "--help"], env={**os.environ, "COLUMNS": "200"})
    except SetupError:
        listing = usage = ""
    return parse_index_config(listing.splitlines(), default_index=parse_default_index(usage))


def parse_default_index(usage: str) -> str:
    """The index that pip asks where no setting names one, as its own help has it."""
    match = re.search(r"--index-url <url>.*?\(default\s+([^\s)]+)\)", usage, re.DOTALL)
    return match[1] if match else ""


def parse_index_config(listing: Iterable[str], *, default_index: str) -> IndexConfig:
    """The configuration in the lines that `pip config list` prints (`section.key='value'`).

    As for `pip install`: its own section goes before `global`, and the environment before both.
    """
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listing:
        match = re.fullmatch(r"(global|install|:env:)\.([\w-]+)=(['\"].*)", line.strip())
        if match:
            sections[match[1]][match[2]] = ast.literal_eval(match[3])
    settings = {**sections["global"], **sections["install"], **sections[":env:"]}
    return _config(settings, default_index)


def _config(settings: Mapping[str, str], default_index: str) -> IndexConfig:
    indexes = (settings.get("index-url") or default_index).split()
    indexes += settings.get("extra-index-url", "").split()
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on", "y", "t"):
        indexes = []
    timeout = settings.get("timeout") or settings.get("default-timeout") or "15"
    return IndexConfig(
        indexes=tuple(dict.fromkeys(indexes)),
        find_links=tuple(settings.get("find-links", "").split()),
        trusted_hosts=tuple(settings.get("trusted-host", "").split()),
        cert=settings.get("cert") or None,
        proxy=settings.get("proxy") or None,
        timeout=float(timeout),
    )
