"""Fetch a pin's sdist or commit, verify it, and extract the files that a tree takes.

`download` fetches any file of a package in the same way.
"""

from __future__ import annotations

import hashlib
import logging
import logging.handlers
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TypeVar, cast

from unearth import Link, PackageFinder
from unearth.auth import MultiDomainBasicAuth
from unearth.fetchers import Fetcher, PyPIClient

from fa_harness import terminal
from fa_harness.errors import SetupError
from fa_harness.files import sha256
from fa_harness.project import Project, locked, writing
from fa_harness.upstream.index import IndexConfig, load_index_config
from fa_harness.upstream.layout import place, prefix_of
from fa_harness.upstream.pins import Pin
from fa_harness.upstream.repository import contents_sha256, fetch_commit, opened

CHUNK = 1 << 18

_T = TypeVar("_T")

Kind = Literal["sdist", "wheel"]
_ENDINGS: dict[Kind, str] = {"sdist": ".tar.gz", "wheel": ".whl"}


@dataclass(frozen=True, kw_only=True)
class PackageFile:
    """A file of a package on the index."""

    owner: str  # how messages begin: `upstream 'NAME'`
    package: str  # the project on the package index
    version: str
    kind: Kind
    sha256: str  # empty if it is not known yet: any file is accepted then
    remedy: str  # what to do about another sha256, besides fetching again
    otherwise: str  # what to do if no index has the file


class _SourceError(Exception):
    """One index, or a download from it, failed; the next may work."""


def checksum(pin: Pin, archive: Path) -> str:
    """Return what the pin's sha256 is compared with."""
    return contents_sha256(archive) if pin.git else sha256(archive)


def cached(project: Project, pin: Pin) -> Path | None:
    """Return the pin's verified archive in `vendor/cache/`; None if it is not there."""
    archive = project.cache / pin.archive_name
    if not archive.is_file():
        return None
    if pin.sha256 and (found := checksum(pin, archive)) != pin.sha256:
        raise SetupError(
            f"{pin.kind} '{pin.name}': sha256 is {found}, the lock says {pin.sha256}; delete "
            f"{project.relative(archive)} and fetch again, or correct vendor/upstreams.toml"
        )
    return archive


def fetch(project: Project, pin: Pin) -> Path:
    """Return the pin's verified archive in `vendor/cache/`; fetch it if it is missing.

    A pin without a sha256 is still being made, and accepts any archive. After an error no archive
    is left that a later run would take.
    """
    found = cached(project, pin)
    if found is not None:
        return found
    with locked(project, pin.archive_name):
        # Whoever held the lock may have fetched it.
        return cached(project, pin) or _fetch(project, pin)


def _fetch(project: Project, pin: Pin) -> Path:
    owner = f"{pin.kind} '{pin.name}'"
    if not pin.git:
        by_hand = f"put {pin.archive_name} into {project.cache} by hand"
        checkout = ", or use a checkout of your own with UPSTREAM_DIR=/path/to/llama.cpp"
        sdist = PackageFile(
            owner=owner,
            package=pin.package,
            version=pin.version,
            kind="sdist",
            sha256=pin.sha256,
            remedy="correct vendor/upstreams.toml",
            otherwise=by_hand if pin.kind == "peer" else by_hand + checkout,
        )
        return download(sdist, project.cache / pin.archive_name)
    _, archive = fetch_commit(project, owner, pin.git, pin.commit)
    if (found := checksum(pin, archive)) != pin.sha256:
        archive.unlink()
        raise SetupError(
            f"{owner}: sha256 of the files of {pin.commit} is {found}, the lock says {pin.sha256}; "
            "nothing was kept; fetch again, or correct vendor/upstreams.toml"
        )
    return archive


def download(wanted: PackageFile, target: Path, config: IndexConfig | None = None) -> Path:
    """Download a file of a package to `target`, which appears only if its sha256 is right.

    Without a `config`, pip is asked for its settings, which takes a second.
    """

    def from_source(client: Fetcher, source: str, url: str) -> Path:
        requirement = f"{wanted.package}=={wanted.version}"
        _, link = _newest(client, source, url, requirement, wanted.kind, any_version=True)
        _download(client, link, wanted, target)
        return target

    return _from_first_source(
        from_source,
        f"{wanted.owner}: no index gave the {wanted.kind} {wanted.package} {wanted.version}",
        f", or {wanted.otherwise}",
        config,
    )


def newest_version(package: str) -> str:
    """Return the newest version of a package that has an sdist; no pre-release."""
    return _from_first_source(
        lambda client, source, url: _newest(client, source, url, package, "sdist")[0],
        f"no index has an sdist of {package}",
    )


def _from_first_source(
    ask: Callable[[Fetcher, str, str], _T],
    problem: str,
    otherwise: str = "",
    config: IndexConfig | None = None,
) -> _T:
    """Return the first answer that any source gives.

    `ask` gets the HTTP client, the kind of source (`index` or `find-links`) and its address. If all
    fail, `problem` begins the message, and `otherwise` says what else the user could do.
    """
    config = config or load_index_config()
    sources = [("find-links", url) for url in config.find_links]  # pip asks these first, too
    sources += [("index", url) for url in config.indexes]
    tried: list[str] = []
    with PyPIClient(
        trusted_hosts=config.trusted_hosts,
        verify=config.ssl_context(),
        proxy=config.proxy,
        timeout=config.timeout,
        follow_redirects=True,
        auth=MultiDomainBasicAuth(prompting=False, index_urls=config.indexes),
    ) as client:
        for source, url in sources:
            try:
                return ask(cast("Fetcher", client), source, url)
            except _SourceError as failure:
                tried.append(f"  {Link(url).redacted}: {failure}")
    raise SetupError(
        f"{problem}; tried\n"
        + ("\n".join(tried) or "  nothing: pip's configuration names no index")
        + f"\ncheck the network and pip's index settings (pip config list){otherwise}"
    )


def _newest(
    client: Fetcher,
    source: str,
    url: str,
    requirement: str,
    kind: Kind,
    *,
    any_version: bool = False,
) -> tuple[str, Link]:
    """Return the version and the link of the newest file that one source has.

    Each source is asked alone, so that a broken one does not hide the others. `any_version`
    includes yanked versions and pre-releases.
    """
    finder = PackageFinder(
        session=client,
        index_urls=[url] if source == "index" else [],
        find_links=[url] if source == "find-links" else [],
        ignore_compatibility=True,
    )
    # unearth only logs why it passes a source over.
    logger = logging.getLogger("unearth")
    logged = logging.handlers.BufferingHandler(capacity=1000)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(logged)
    try:
        found = finder.find_matches(
            requirement, allow_yanked=any_version, allow_prereleases=any_version
        )
        matches = [(str(match.version), match.link) for match in found]
    except Exception as error:  # each transport has errors of its own
        raise _SourceError(str(error) or type(error).__name__) from error
    finally:
        logger.removeHandler(logged)
        logger.propagate = propagate
    for version, link in matches:
        if link.filename.endswith(_ENDINGS[kind]):
            return version, link
    messages = [record.getMessage() for record in logged.buffer]
    raise _SourceError("; ".join(messages) or f"has no {kind} of {requirement}")


def _download(client: Fetcher, link: Link, wanted: PackageFile, target: Path) -> None:
    """Stream `link` to `target`, which appears only if its sha256 is right."""
    part = target.with_name(f"{target.name}.part")
    size = 0
    digest = hashlib.sha256()
    text = f"fetching {link.filename} from {link.parsed.hostname or link.file_path.parent}"
    try:
        with terminal.bar(text, in_bytes=True) as advance, writing(part):
            part.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as out:
                for chunk, total in _chunks(client, link):
                    digest.update(chunk)
                    out.write(chunk)
                    size += len(chunk)
                    advance(size, total)
        if wanted.sha256 and digest.hexdigest() != wanted.sha256:
            raise SetupError(
                f"{wanted.owner}: sha256 of {link.redacted} ({size} bytes) is "
                f"{digest.hexdigest()}, the lock says {wanted.sha256}; nothing was kept; "
                f"fetch again, or {wanted.remedy}"
            )
        with writing(target):
            part.rename(target)
    finally:
        part.unlink(missing_ok=True)


def _chunks(client: Fetcher, link: Link) -> Iterator[tuple[bytes, int | None]]:
    """Yield the body of `link`, with its announced length."""
    try:
        # A transfer encoding would change the bytes that the sha256 is of.
        headers = {"Accept-Encoding": "identity"}
        with client.get_stream(link.normalized, headers=headers) as response:
            response.raise_for_status()
            length = response.headers.get("Content-Length", "")
            for chunk in response.iter_bytes(CHUNK):
                yield chunk, int(length) if length.isdigit() else None
    except Exception as error:  # as in _newest
        raise _SourceError(f"download failed: {error or type(error).__name__}") from error


def extract(archive: Path, root: str, target: Path, *, whole: bool = False) -> None:
    """Extract the files that a tree takes into `target`, which appears only with all of them.

    `root` is the folder of llama.cpp or ggml below the top folder of the archive, a verified
    .tar.gz. `whole` extracts all files of llama.cpp.
    """
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with opened(archive) as tar:
            _extract_members(tar, archive.name, PurePosixPath(root), partial, whole=whole)
        with writing(target):
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _extract_members(
    tar: tarfile.TarFile, archive_name: str, root: PurePosixPath, target: Path, *, whole: bool
) -> None:
    members: dict[str, tarfile.TarInfo] = {}
    for member in tar.getmembers():
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts:
            raise SetupError(
                f"archive {archive_name}: refused, '{member.name}' would be written outside"
            )
        inside = PurePosixPath(*name.parts[1:])
        if not member.isdir() and inside.is_relative_to(root):
            members[str(inside.relative_to(root))] = member
    prefix = prefix_of(members)
    if prefix is None:
        raise SetupError(
            f"archive {archive_name}: no ggml at '{root}' (neither ggml/src/ggml.c nor "
            "src/ggml.c); correct 'root' in vendor/upstreams.toml"
        )
    if whole and "include/llama.h" not in members:
        raise SetupError(f"archive {archive_name}: it is ggml without llama.cpp; take another")
    if whole:  # except .git, which in the archive of a submodule leads nowhere
        placed = {path: m for path, m in members.items() if path.partition("/")[0] != ".git"}
    else:
        placed = {spot: m for path, m in members.items() if (spot := place(path, prefix))}
    for member in placed.values():
        if not (member.isfile() or member.issym() or member.islnk()):
            raise SetupError(f"archive {archive_name}: refused, '{member.name}' is a device")
    # Links come last, so that no file is written through one.
    for spot, member in sorted(placed.items(), key=lambda item: item[1].issym()):
        path = target / spot
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if member.issym():
                os.symlink(member.linkname, path)
                continue
            try:
                content = tar.extractfile(member)  # a hard link gives the member that it names
            except KeyError:
                content = None
            if content is None:
                raise SetupError(
                    f"archive {archive_name}: refused, link '{member.name}' leads to no file in it"
                )
            with content, path.open("wb") as out:
                shutil.copyfileobj(content, out)
            path.chmod(0o755 if member.mode & 0o100 else 0o644)
    for spot, member in placed.items():
        if member.issym() and not (target / spot).resolve().is_relative_to(target.resolve()):
            raise SetupError(
                f"archive {archive_name}: refused, link '{member.name}' leaves the tree"
            )
