"""Add pins: fetch an sdist or a git commit, inspect it, and record its checksum."""

from __future__ import annotations

import re
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from packaging.version import InvalidVersion, Version

from fa_harness.errors import SetupError, UsageError
from fa_harness.files import replace_file
from fa_harness.project import PATCHES, Project, locked, writing
from fa_harness.upstream.fetch import checksum, fetch, newest_version
from fa_harness.upstream.layout import version_in
from fa_harness.upstream.pins import NAME, Pin, load_pins
from fa_harness.upstream.repository import fetch_commit, head_of

_KEYS = ("package", "version", "git", "commit", "sha256", "root", "ggml_version")


@dataclass(frozen=True, kw_only=True)
class Newest:
    """The newest version of a pinned package on the index."""

    package: str
    pinned: str  # the newest version that is pinned
    version: str

    @property
    def is_newer(self) -> bool:
        """Whether the index has a newer version than the pins."""
        return _version(self.version) > _version(self.pinned)


def add(project: Project, spec: str, name: str | None = None) -> Pin:
    """Pin another version of a package, or a commit.

    `spec` is `PACKAGE==VERSION`; the folder of a git checkout, whose HEAD is pinned; or
    `GIT-URL@REF` with a branch, a tag or a whole commit id. Without a `name`, the pin is called
    `llama.cpp-VERSION` or `ggml-GGML_VERSION`. A commit's first digits stand for its version.
    """
    project.refuse_to_change_shipped(project.pins_file, "upstream add")
    if name is not None and not NAME.fullmatch(name):
        raise UsageError(
            f"--name {name!r}: cannot be a folder's name, which a pin's is, too; take letters, "
            "digits, dots, dashes, + and _"
        )
    package = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!+]*)", spec)
    new = Pin(name=spec, sha256="", root="")
    if package:
        new = replace(new, package=package[1], version=package[2])
    else:
        url, ref = _repository(spec)
    with locked(project, PATCHES):
        if not package:
            commit, _ = fetch_commit(project, f"upstream '{spec}'", url, ref)
            new = replace(new, git=url, commit=commit)
        pins = load_pins(project.pins_file).upstreams.values()
        for pin in pins:
            if pin.origin == new.origin:
                raise UsageError(f"{spec} is pinned already, as '{pin.name}'")
        archive = fetch(project, new)
        root, ggml_version, is_llama = look_into(archive)
        version = new.version or new.commit[:9]
        of_ggml = (new.version and ggml_version) or version
        new = replace(
            new,
            name=name or (f"llama.cpp-{version}" if is_llama else f"ggml-{of_ggml}"),
            sha256=checksum(new, archive),
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
    """Return the newest version of each pinned package, the default pin's package first."""
    pins = load_pins(project.pins_file)
    packages: dict[str, list[str]] = {pins.get().package: []}
    for pin in pins.upstreams.values():
        packages.setdefault(pin.package, []).append(pin.version)
    packages.pop("", None)  # pins of commits
    return [
        Newest(package=package, pinned=max(versions, key=_version), version=newest_version(package))
        for package, versions in packages.items()
    ]


def _repository(spec: str) -> tuple[str, str]:
    """Return the URL and the ref that a folder or `GIT-URL@REF` names."""
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


def look_into(archive: Path) -> tuple[str, str, bool]:
    """Return an archive's folder of llama.cpp or ggml, ggml's version, and if it is llama.cpp."""
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
