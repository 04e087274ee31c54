"""New pins: an sdist of the package index or a git commit, looked into, with its checksum."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from packaging.version import InvalidVersion, Version

from fa_harness.errors import SetupError, UsageError
from fa_harness.files import replace_file, sha256
from fa_harness.project import PATCHES, Project, locked, writing
from fa_harness.upstream.fetch import fetch, newest_version
from fa_harness.upstream.layout import version_in
from fa_harness.upstream.pins import NAME, Pin, load_pins
from fa_harness.upstream.repository import contents_sha256, fetch_commit, head_of

_KEYS = ("package", "version", "git", "commit", "sha256", "root", "ggml_version")


@dataclass(frozen=True, kw_only=True)
class Newest:
    """The newest version of a pinned package on the index."""

    package: str
    pinned: str
    """The newest version that is pinned."""
    version: str

    @property
    def is_newer(self) -> bool:
        """Whether it is newer than what is pinned."""
        return _version(self.version) > _version(self.pinned)


def add(project: Project, spec: str, name: str | None = None) -> Pin:
    """Pin another version of a package, or a commit.

    Args:
        project: Where `vendor/upstreams.toml` is.
        spec: `PACKAGE==VERSION`; the folder of a git checkout, whose HEAD is pinned; or
            `GIT-URL@REF` with a branch, a tag or a whole commit id.
        name: What the pin is called; None for `llama.cpp-VERSION` or `ggml-GGML_VERSION`, and
            with the commit's first digits as the version for `llama.cpp-COMMIT`, `ggml-COMMIT`.

    Raises:
        UsageError: The spec is of another form, or the name or the version is pinned already.
        SetupError: The sdist or the commit cannot be had or holds no ggml, or the checkout has
            changes that are not committed.
    """
    project.refuse_to_change_shipped(project.pins_file, "upstream add")
    if name is not None and not NAME.fullmatch(name):
        raise UsageError(
            f"--name {name!r}: cannot be a folder's name, which a pin's is, too; take letters, "
            "digits, dots, dashes, + and _"
        )
    package = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!+]*)", spec)
    url, ref = ("", "") if package else _repository(spec)
    with locked(project, PATCHES):
        return _add(project, spec, name, package=package, url=url, ref=ref)


def _add(
    project: Project,
    spec: str,
    name: str | None,
    *,
    package: re.Match[str] | None,
    url: str,
    ref: str,
) -> Pin:
    pins = load_pins(project.pins_file).upstreams.values()
    if package:
        new = Pin(name=spec, package=package[1], version=package[2], sha256="", root="")
        _refuse_twice(spec, new, pins)
        archive = fetch(project, new)
    else:
        commit, archive = fetch_commit(project, f"upstream '{spec}'", url, ref)
        new = Pin(name=spec, git=url, commit=commit, sha256="", root="")
        _refuse_twice(spec, new, pins)
    root, ggml_version, is_llama = look_into(archive)
    version = new.version or new.commit[:9]
    of_ggml = (new.version and ggml_version) or version
    new = replace(
        new,
        name=name or (f"llama.cpp-{version}" if is_llama else f"ggml-{of_ggml}"),
        sha256=contents_sha256(archive) if new.git else sha256(archive),
        root=root,
        ggml_version=ggml_version,
    )
    if any(pin.name == new.name for pin in pins):
        raise UsageError(f"there is a pin '{new.name}' already; name this one with --name")
    text = project.pins_file.read_text(encoding="utf-8").rstrip("\n")
    lines = [f'{key:12} = "{value}"\n' for key in _KEYS if (value := getattr(new, key))]
    with writing(project.pins_file):
        table = f'\n\n[upstreams."{new.name}"]\n' + "".join(lines)
        replace_file(project.pins_file.resolve(), text + table)
    return new


def newest(project: Project) -> list[Newest]:
    """Return the newest version of each pinned package, those of the default pin first.

    Raises:
        SetupError: No index could be asked.
    """
    pins = load_pins(project.pins_file)
    packages: dict[str, list[str]] = {pins.get().package: []}
    for pin in pins.upstreams.values():
        packages.setdefault(pin.package, []).append(pin.version)
    packages.pop("", None)  # of commits, which no index has
    return [
        Newest(package=package, pinned=max(versions, key=_version), version=newest_version(package))
        for package, versions in packages.items()
    ]


def _repository(spec: str) -> tuple[str, str]:
    """The URL of a repository and what to fetch from it, as a folder or `GIT-URL@REF` says."""
    folder = Path(spec).expanduser()
    if folder.is_dir():
        return head_of(folder.resolve())
    url, _, ref = spec.rpartition("@")
    if Path(url).expanduser().is_dir() and url:
        url = Path(url).expanduser().resolve().as_uri()
    if not re.fullmatch(r"(\w[\w+-]*://|[\w.-]+@[\w.-]+:)[^\s\"\\]+", url) or not re.fullmatch(
        r"\w[\w./+-]*", ref
    ):
        raise UsageError(
            f"'{spec}' is not PACKAGE==VERSION, the folder of a git checkout, or GIT-URL@REF with "
            "a branch, a tag or a whole commit id; files without git need no pin, "
            "UPSTREAM_DIR=/path uses them"
        )
    if re.match(r"[\w+-]+://[^/@]*:[^/@]*@", url):
        raise UsageError(
            f"the URL of {url.rpartition('@')[2]} has a password, which the pin would record; "
            "leave it out, or clone the repository and name the folder"
        )
    return url, ref


def _refuse_twice(spec: str, new: Pin, pins: Iterable[Pin]) -> None:
    for pin in pins:
        if _origin(pin) == _origin(new):
            raise UsageError(f"{spec} is pinned already, as '{pin.name}'")


def _origin(pin: Pin) -> tuple[str, ...]:
    return (pin.git, pin.commit) if pin.git else (pin.package, pin.version)


def look_into(archive: Path) -> tuple[str, str, bool]:
    """Return where llama.cpp or ggml lies in an archive, ggml's version, and if it is llama.cpp.

    Raises:
        SetupError: The archive holds no ggml, or is damaged.
    """
    try:
        with tarfile.open(archive, "r:gz") as tar:
            names = {
                str(PurePosixPath(*PurePosixPath(name).parts[1:])): name for name in tar.getnames()
            }
            found = sorted((n for n in names if f"/{n}".endswith("/src/ggml.c")), key=len)
            if not found:
                raise SetupError(f"archive {archive}: there is no src/ggml.c in it")
            ggml = PurePosixPath(found[0]).parent.parent
            is_llama = str(ggml.parent / "include" / "llama.h") in names
            listing = tar.extractfile(names[str(ggml / "CMakeLists.txt")])
            assert listing is not None
            version = version_in(listing.read().decode("utf-8", errors="replace"))
    except (tarfile.TarError, EOFError, KeyError, OSError) as error:
        raise SetupError(f"archive {archive} is damaged ({error}); delete it") from error
    return str(ggml.parent if is_llama else ggml), version, is_llama


def _version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion as error:
        raise SetupError(f"vendor/upstreams.toml: {error}; correct it there") from error
