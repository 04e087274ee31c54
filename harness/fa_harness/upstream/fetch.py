"""From a pin to verified files: get the sdist or commit, check it, extract what is needed.

`download` gets any file of a package in this way.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import logging
import os
import shutil
import tarfile
import zlib
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
from fa_harness.upstream.layout import detect_layout, place
from fa_harness.upstream.pins import Pin
from fa_harness.upstream.repository import contents_sha256, fetch_commit

CHUNK = 1 << 18

_T = TypeVar("_T")

Kind = Literal["sdist", "wheel"]
_ENDINGS: dict[Kind, str] = {"sdist": ".tar.gz", "wheel": ".whl"}


@dataclass(frozen=True, kw_only=True)
class PackageFile:
    """A file of a package on the index.

    Attributes:
        owner: whose it is, as messages begin: `upstream 'NAME'`.
        package: the project on the package index.
        version: its version there.
        kind: which of the version's files.
        sha256: of the file; empty where that is not known yet, and what comes is taken.
        remedy: what to do about another sha256, beside fetching again.
        otherwise: what to do where no index has it.
    """

    owner: str
    package: str
    version: str
    kind: Kind
    sha256: str
    remedy: str
    otherwise: str


class _SourceError(Exception):
    """One index, or the download from it, did not work; the next may."""


def cached(project: Project, pin: Pin) -> Path | None:
    """The pin's verified archive in `vendor/cache/`; None if it is not there.

    Raises:
        SetupError: the archive there has another sha256.
    """
    archive = project.cache / pin.archive_name
    if not archive.is_file():
        return None
    found = contents_sha256(archive) if pin.git else sha256(archive)
    if pin.sha256 and found != pin.sha256:
        raise SetupError(
            f"upstream '{pin.name}': sha256 is {found}, the lock says {pin.sha256}; delete "
            f"{project.relative(archive)} and fetch again, or correct vendor/upstreams.toml"
        )
    return archive


def fetch(project: Project, pin: Pin) -> Path:
    """The pin's verified archive in `vendor/cache/`, fetched first where it is not there.

    A pin that is only being made has no sha256 yet, and takes what comes.

    Raises:
        SetupError: the cached archive or the fetched one has another sha256, nothing could be
            fetched, or the disk is full. No archive is left that a later run would take.
    """
    found = cached(project, pin)
    if found is not None:
        return found
    with locked(project, pin.archive_name):
        # Whoever held the lock may have fetched it meanwhile.
        return cached(project, pin) or _fetch(project, pin)


def _fetch(project: Project, pin: Pin) -> Path:
    if pin.git:
        return _fetch_commit(project, pin)
    sdist = PackageFile(
        owner=f"upstream '{pin.name}'",
        package=pin.package,
        version=pin.version,
        kind="sdist",
        sha256=pin.sha256,
        remedy="correct vendor/upstreams.toml",
        otherwise=f"put {pin.archive_name} into {project.cache} by hand, or use a checkout of "
        "your own with UPSTREAM_DIR=/path/to/llama.cpp",
    )
    return download(sdist, project.cache / pin.archive_name)


def _fetch_commit(project: Project, pin: Pin) -> Path:
    owner = f"upstream '{pin.name}'"
    _, archive = fetch_commit(project, owner, pin.git, pin.commit)
    found = contents_sha256(archive)
    if found != pin.sha256:
        archive.unlink()
        raise SetupError(
            f"{owner}: sha256 of the files of {pin.commit} is {found}, the lock says {pin.sha256}; "
            "nothing was kept; fetch again, or correct vendor/upstreams.toml"
        )
    return archive


def download(wanted: PackageFile, target: Path, config: IndexConfig | None = None) -> Path:
    """Download a file of a package to `target`, which appears only when its sha256 is right.

    Args:
        wanted: The file.
        target: Where to; its folder is made.
        config: What pip would use; None asks pip, which takes a second.

    Raises:
        SetupError: Nothing could be downloaded, it has another sha256, or the disk is full.
    """

    def from_source(client: Fetcher, source: str, url: str) -> Path:
        _download(client, _find(client, source, url, wanted), wanted, target)
        return target

    return _from_first_source(
        from_source,
        f"{wanted.owner}: no index gave the {wanted.kind} {wanted.package} {wanted.version}",
        f", or {wanted.otherwise}",
        config,
    )


def newest_version(package: str) -> str:
    """Return the newest version of a package of which there is an sdist; no pre-release.

    Raises:
        SetupError: No index has one.
    """
    return _from_first_source(
        lambda client, source, url: _matches(client, source, url, package, "sdist")[0][0],
        f"no index has an sdist of {package}",
    )


def _from_first_source(
    ask: Callable[[Fetcher, str, str], _T],
    problem: str,
    otherwise: str = "",
    config: IndexConfig | None = None,
) -> _T:
    """Return what the first source gives that gives anything.

    Args:
        ask: Called with the HTTP client, a kind of source (`index` or `find-links`) and its
            address.
        problem: What is said where none does.
        otherwise: What else the user could do then.
        config: What pip would use; None asks pip.
    """
    config = config or load_index_config()
    tried: list[str] = []
    with _connect(config) as client:
        for source, url in _sources(config):
            try:
                return ask(client, source, url)
            except _SourceError as failure:
                tried.append(f"  {Link(url).redacted}: {failure}")
    raise SetupError(
        f"{problem}; tried\n"
        + ("\n".join(tried) or "  nothing: pip's configuration names no index")
        + f"\ncheck the network and pip's index settings (pip config list){otherwise}"
    )


@contextlib.contextmanager
def _connect(config: IndexConfig) -> Iterator[Fetcher]:
    """The HTTP client that the user's configuration asks for."""
    with PyPIClient(
        trusted_hosts=config.trusted_hosts,
        verify=config.ssl_context(),
        proxy=config.proxy,
        timeout=config.timeout,
        follow_redirects=True,
        auth=MultiDomainBasicAuth(prompting=False, index_urls=config.indexes),
    ) as client:
        yield cast("Fetcher", client)


def _sources(config: IndexConfig) -> Iterator[tuple[str, str]]:
    """What to ask, in pip's order."""
    for url in config.find_links:
        yield "find-links", url
    for url in config.indexes:
        yield "index", url


class _Messages(logging.Handler):
    """Keeps what unearth only logs: why a source was passed over."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _find(client: Fetcher, source: str, url: str, wanted: PackageFile) -> Link:
    """The link of a file at one source; each is asked alone, so that none stops all."""
    requirement = f"{wanted.package}=={wanted.version}"
    return _matches(client, source, url, requirement, wanted.kind, any_version=True)[0][1]


def _matches(
    client: Fetcher,
    source: str,
    url: str,
    requirement: str,
    kind: Kind,
    *,
    any_version: bool = False,
) -> list[tuple[str, Link]]:
    """The versions and links of files at one source, the newest first; one at least.

    Args:
        client: The HTTP client.
        source: `index` or `find-links`.
        url: Where to ask.
        requirement: A package, or a version of it.
        kind: Which files.
        any_version: Also one that was yanked, or is a pre-release.
    """
    finder = PackageFinder(
        session=client,
        index_urls=[url] if source == "index" else [],
        find_links=[url] if source == "find-links" else [],
        ignore_compatibility=True,
    )
    logger = logging.getLogger("unearth")
    messages = _Messages()
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(messages)
    try:
        found = finder.find_matches(
            requirement, allow_yanked=any_version, allow_prereleases=any_version
        )
        matches = [(str(match.version), match.link) for match in found]
    except Exception as error:  # a source fails in as many ways as there are transports
        raise _SourceError(str(error) or type(error).__name__) from error
    finally:
        logger.removeHandler(messages)
        logger.propagate = propagate
    files = [match for match in matches if match[1].filename.endswith(_ENDINGS[kind])]
    if not files:
        raise _SourceError("; ".join(messages.lines) or f"has no {kind} of {requirement}")
    return files


def _download(client: Fetcher, link: Link, wanted: PackageFile, target: Path) -> None:
    """Stream `link` to `target`, which appears only when its sha256 is right."""
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
    """The body of `link`, with its announced length."""
    try:
        # A transfer encoding would change the bytes that the sha256 is of.
        headers = {"Accept-Encoding": "identity"}
        with client.get_stream(link.normalized, headers=headers) as response:
            response.raise_for_status()
            length = response.headers.get("Content-Length", "")
            for chunk in response.iter_bytes(CHUNK):
                yield chunk, int(length) if length.isdigit() else None
    except Exception as error:  # as in _find: the next source may work
        raise _SourceError(f"download failed: {error or type(error).__name__}") from error


def extract(archive: Path, root: str, target: Path, *, whole: bool = False) -> None:
    """Put the files that a tree needs from the sdist `archive` into the new folder `target`.

    Args:
        archive: a verified .tar.gz.
        root: where llama.cpp or ggml lies below the archive's top folder.
        target: must not exist; it does only when everything is in it.
        whole: all files of llama.cpp instead.

    Raises:
        SetupError: the archive is damaged or unsafe, or holds no ggml (no llama.cpp) at `root`.
    """
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            _extract_members(tar, archive.name, PurePosixPath(root), partial, whole=whole)
        with writing(target):
            partial.rename(target)
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SetupError(
            f"archive {archive} is damaged ({error}); delete it and fetch again"
        ) from error
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
    layout = detect_layout(members)
    if layout is None:
        raise SetupError(
            f"archive {archive_name}: no ggml at '{root}' (neither ggml/src/ggml.c nor "
            "src/ggml.c); correct 'root' in vendor/upstreams.toml"
        )
    if whole and "include/llama.h" not in members:
        raise SetupError(f"archive {archive_name}: it is ggml without llama.cpp; take another")
    # an archive of a submodule has a .git, which leads nowhere
    of_whole = {path: None if PurePosixPath(path).parts[0] == ".git" else path for path in members}
    spots = of_whole if whole else {path: place(path, layout) for path in members}
    wanted = [(spot, member) for path, member in members.items() if (spot := spots[path])]
    for _, member in wanted:
        if not (member.isfile() or member.issym() or member.islnk()):
            raise SetupError(f"archive {archive_name}: refused, '{member.name}' is a device")
    # Links come last: no file can then be written through one.
    for spot, member in sorted(wanted, key=lambda item: item[1].issym()):
        path = target / spot
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if member.issym():
                os.symlink(member.linkname, path)
            else:
                _write_file(tar, archive_name, member, path)
    for spot, member in wanted:
        if member.issym() and not (target / spot).resolve().is_relative_to(target.resolve()):
            raise SetupError(
                f"archive {archive_name}: refused, link '{member.name}' leaves the tree"
            )


def _write_file(
    tar: tarfile.TarFile, archive_name: str, member: tarfile.TarInfo, path: Path
) -> None:
    try:
        content = tar.extractfile(member)  # of a hard link: the member that it names
    except KeyError:
        content = None
    if content is None:
        raise SetupError(
            f"archive {archive_name}: refused, link '{member.name}' leads to no file in it"
        )
    with content, path.open("wb") as out:
        shutil.copyfileobj(content, out)
    path.chmod(0o755 if member.mode & 0o100 else 0o644)
