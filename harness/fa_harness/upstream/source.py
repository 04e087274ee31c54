"""The sources of a tree's files: a pinned sdist or commit, or the developer's own checkout."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fa_harness.errors import SetupError, UsageError
from fa_harness.project import Project, writing
from fa_harness.upstream import git
from fa_harness.upstream.layout import GGML_PARTS, OTHER_FILES, place, prefix_in, version_in
from fa_harness.upstream.pins import Pin, load_pins


@dataclass(frozen=True, kw_only=True)
class Source:
    """The files of one upstream, not yet in a tree."""

    label: str  # the name in messages: the pin's, or `dir:FOLDER`
    folder: str  # the name of its folder in `vendor/src` and `build`
    digest: str  # changes when the files do
    commit: str  # upstream's commit; empty if it is not known
    ggml_version: str  # as the pin or the checkout gives it; empty if neither does
    variants_as: str  # the version that selects variants of patches
    origin: Pin | dict[str, Path]  # the pin, or the checkout's files: place in the tree -> path
    root: Path | None = None  # the checkout's folder; None for a pin
    is_whole: bool = False  # whether it has all files of llama.cpp, not only a library's
    takes_series: bool = True  # whether the patches are applied; else each library is pristine

    @property
    def name(self) -> str:
        """The argument that makes `find_source` find it: the pin's name, or the path."""
        return str(self.root) if self.root else self.label

    def named(self, suffix: str) -> Source:
        """Return the same source with folders of its own, for other patches."""
        return replace(self, folder=f"{self.folder}-{suffix}")


NO_SERIES = "NO_SERIES"
"""The environment variable that turns the patches off."""


def chosen() -> dict[str, str]:
    """Return the environment variables that choose the upstream, and whether it is patched."""
    names = ("UPSTREAM", "UPSTREAM_DIR", NO_SERIES)
    found = {name: value for name in names if (value := os.environ.get(name))}
    if {"UPSTREAM", "UPSTREAM_DIR"} <= set(found):
        raise UsageError("UPSTREAM (a pin) and UPSTREAM_DIR (a checkout) are both set; unset one")
    if found.get(NO_SERIES) == "0":
        del found[NO_SERIES]
    return found


def find_source(project: Project, upstream: str | None = None) -> Source:
    """Return the upstream that is called `upstream`: a pin, or the folder of a checkout.

    For None, UPSTREAM or UPSTREAM_DIR decides, then `fa-harness.toml`, then the default pin. It has
    all files of llama.cpp if a series of the stack changes more than ggml.
    NO_SERIES and the file may also turn the patches off then; NO_SERIES=0 overrides the file.
    """
    environment = chosen() if upstream is None else {}
    found = _find(project, upstream or environment.get("UPSTREAM"), environment)
    if any(project.about(name).whole for name in project.stack):
        found = whole_of(found)
    if upstream is None and not project.config.has_series and os.environ.get(NO_SERIES) != "0":
        return replace(found, takes_series=False)
    return replace(found, takes_series=NO_SERIES not in environment)


def _find(project: Project, upstream: str | None, environment: Mapping[str, str]) -> Source:
    config, named_by, checkout = project.config, "UPSTREAM_DIR", environment.get("UPSTREAM_DIR")
    if upstream is None and config.sources and not checkout:
        named_by, checkout = config.where("sources"), str(config.sources)
    if checkout:
        try:
            return source_of(Path(checkout))
        except SetupError as error:
            raise SetupError(f"{named_by}: {error}") from None
    pins = load_pins(project.pins_file)
    if upstream is None and config.upstream:
        upstream = config.upstream
        if upstream not in pins.upstreams:
            known = ", ".join(pins.upstreams)
            raise UsageError(
                f"{config.where('upstream')} '{upstream}' is no pin; there are {known}"
            )
    if upstream not in pins.upstreams and upstream is not None and Path(upstream).is_dir():
        return source_of(Path(upstream))
    pin = pins.get(upstream)
    return Source(
        label=pin.name,
        folder=pin.name,
        digest=f"{pin.sha256}:{pin.root}",
        commit=pin.commit[:9],
        ggml_version=pin.ggml_version,
        variants_as=pin.variants_as or pin.ggml_version,
        origin=pin,
    )


def unpack(project: Project, source: Source, target: Path) -> None:
    """Put a source's files into the new folder `target`, in the layout of a tree."""
    if isinstance(source.origin, Pin):
        # Imports an HTTP client, which only a fetch needs.
        from fa_harness.upstream.fetch import extract, fetch

        archive = fetch(project, source.origin)
        extract(archive, source.origin.root, target, whole=source.is_whole)
        return
    for spot, path in source.origin.items():
        with writing(target / spot):
            (target / spot).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / spot)


def source_of(root: Path) -> Source:
    """Return a checkout of llama.cpp or ggml as a source, uncommitted changes included."""
    root = root.expanduser().resolve()
    if not root.is_dir():
        raise SetupError(f"{root} is not a folder")
    prefix = prefix_in(root)
    if prefix is None:
        raise SetupError(
            f"{root} is no checkout of llama.cpp or ggml (neither "
            "ggml/src/ggml.c nor src/ggml.c is there)"
        )
    files = _files(root, prefix)
    listing = files.get("ggml/CMakeLists.txt")
    version = version_in(listing.read_text("utf-8", errors="replace")) if listing else ""
    return Source(
        label=f"dir:{root.name}",
        folder=f"dir-{root.name}-{hashlib.sha256(str(root).encode()).hexdigest()[:8]}",
        digest=_digest(files),
        commit=git.describe(root),
        ggml_version=version,
        variants_as=version,
        origin=files,
        root=root,
    )


def whole_of(source: Source) -> Source:
    """Return the source with all files of llama.cpp, for its programs."""
    if source.is_whole:
        return source
    whole = replace(source.named("whole"), is_whole=True)
    if isinstance(source.origin, Pin):
        return whole
    root = source.root
    if root is None or not (root / "include" / "llama.h").is_file():
        raise SetupError(f"upstream '{source.label}' is ggml without llama.cpp; take another")
    try:
        names = git.git(root, "ls-files", "-z").split("\0")
    except SetupError as error:
        raise SetupError(f"{root} is no git repository, so its files are not known") from error
    files = {name: path for name in names if name and (path := root / name).is_file()}
    return replace(whole, digest=_digest(files), origin=files)


def _digest(files: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for spot, path in files.items():
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{spot}\0{path.stat().st_mode & 0o100}\0{content}\n".encode())
    return digest.hexdigest()


def _files(root: Path, prefix: str) -> dict[str, Path]:
    """Return the files of a checkout that a tree takes: place in the tree -> path.

    Only these folders are searched, because a checkout may also hold builds and models.
    """
    files: dict[str, Path] = {}
    for name in (*OTHER_FILES, *(f"{prefix}{part}" for part in GGML_PARTS)):
        top = root / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            spot = place(path.relative_to(root).as_posix(), prefix)
            if spot and path.is_file():
                files[spot] = path
    return files
