"""Where a tree's files come from: a pinned sdist or commit, or the developer's own checkout."""

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
from fa_harness.upstream.layout import (
    GGML_PARTS,
    OTHER_FILES,
    Layout,
    layout_of,
    place,
    version_in,
)
from fa_harness.upstream.pins import Pin, load_pins


@dataclass(frozen=True, kw_only=True)
class Source:
    """The files of one upstream, not yet in a tree.

    Attributes:
        label: how people see it: the pin's name, or `dir:<folder>`.
        folder: name of its folder below `vendor/src` and `build`.
        digest: changes when the files do.
        commit: upstream's commit; empty where it is not known.
        ggml_version: what the pin promises, or the checkout says; empty where nothing does.
        variants_as: the version by which it gets variants of patches.
        origin: the pin, or the checkout's files: place in the tree -> path.
        root: the checkout's folder; None for a pin.
        is_whole: it is llama.cpp with all its files, not the part that a library is built from.
        takes_series: the patches go on it; else every library is upstream as it is.
    """

    label: str
    folder: str
    digest: str
    commit: str
    ggml_version: str
    variants_as: str
    origin: Pin | dict[str, Path]
    root: Path | None = None
    is_whole: bool = False
    takes_series: bool = True

    @property
    def name(self) -> str:
        """What `find_source` finds it by: the pin's name, or the checkout's path."""
        return str(self.root) if self.root else self.label

    def named(self, suffix: str) -> Source:
        """The same source with folders of its own, for other patches."""
        return replace(self, folder=f"{self.folder}-{suffix}")


NO_SERIES = "NO_SERIES"
"""The variable of the environment that keeps the patches from every upstream."""


def chosen() -> dict[str, str]:
    """Return the variables of the environment that say which upstream is meant, and how.

    Raises:
        UsageError: A pin and a checkout are meant.
    """
    names = ("UPSTREAM", "UPSTREAM_DIR", NO_SERIES)
    found = {name: value for name in names if (value := os.environ.get(name))}
    if {"UPSTREAM", "UPSTREAM_DIR"} <= set(found):
        raise UsageError("UPSTREAM (a pin) and UPSTREAM_DIR (a checkout) are both set; unset one")
    if found.get(NO_SERIES) == "0":
        del found[NO_SERIES]
    return found


def find_source(project: Project, upstream: str | None = None) -> Source:
    """The upstream of that name; for None what UPSTREAM or UPSTREAM_DIR says, else
    `fa-harness.toml`, else the default pin.

    Where none is named, NO_SERIES keeps the patches from it, too, and so does the file, unless
    NO_SERIES is 0.

    Args:
        project: where the pins are.
        upstream: name of a pin, or the folder of a checkout.

    Raises:
        UsageError: no pin has the name, and there is no such folder.
        SetupError: the pins are wrong, or the folder is no checkout of llama.cpp or ggml.
    """
    environment = chosen() if upstream is None else {}
    found = _find(project, upstream or environment.get("UPSTREAM"), environment)
    if upstream is None and not project.config.has_series and os.environ.get(NO_SERIES) != "0":
        return replace(found, takes_series=False)
    return replace(found, takes_series=NO_SERIES not in environment)


def _find(project: Project, upstream: str | None, environment: Mapping[str, str]) -> Source:
    checkout = environment.get("UPSTREAM_DIR")
    if checkout:
        return _checkout("UPSTREAM_DIR", Path(checkout))
    config = project.config
    if upstream is None and config.sources:
        return _checkout(config.where("sources"), config.sources)
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


def _checkout(named_by: str, folder: Path) -> Source:
    try:
        return source_of(folder)
    except SetupError as error:
        raise SetupError(f"{named_by}: {error}") from None


def unpack(project: Project, source: Source, target: Path) -> None:
    """Put the source's files into the new folder `target`, in the layout of a tree."""
    if isinstance(source.origin, Pin):
        # Brings an HTTP client along, which nothing but a fetch needs.
        from fa_harness.upstream.fetch import extract, fetch

        archive = fetch(project, source.origin)
        extract(archive, source.origin.root, target, whole=source.is_whole)
        return
    for spot, path in source.origin.items():
        with writing(target / spot):
            (target / spot).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / spot)


def source_of(root: Path) -> Source:
    """The source that a checkout of llama.cpp or ggml is, uncommitted changes included.

    Raises:
        SetupError: `root` is none.
    """
    root = root.expanduser().resolve()
    if not root.is_dir():
        raise SetupError(f"{root} is not a folder")
    layout = layout_of(root)
    if layout is None:
        raise SetupError(
            f"{root} is no checkout of llama.cpp or ggml (neither "
            "ggml/src/ggml.c nor src/ggml.c is there)"
        )
    files = _files(root, layout)
    version = _version(files)
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
    """The source with all files of llama.cpp, for its programs.

    Raises:
        SetupError: it is ggml alone, or a checkout that is no git repository.
    """
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


def _version(files: dict[str, Path]) -> str:
    path = files.get("ggml/CMakeLists.txt")
    return version_in(path.read_text("utf-8", errors="replace")) if path else ""


def _files(root: Path, layout: Layout) -> dict[str, Path]:
    """The files of a checkout that a tree takes: place in the tree -> path.

    Only their folders are walked: a checkout holds builds and models besides.
    """
    ggml = root / "ggml" if layout == "llama.cpp" else root
    tops = [root / name for name in OTHER_FILES] + [ggml / name for name in GGML_PARTS]
    files: dict[str, Path] = {}
    for top in tops:
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            spot = place(path.relative_to(root).as_posix(), layout)
            if spot and path.is_file():
                files[spot] = path
    return files
