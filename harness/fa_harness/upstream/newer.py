"""New pins: an sdist of the package index, looked into and recorded with its checksum."""

from __future__ import annotations

import re
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from fa_harness.errors import SetupError, UsageError
from fa_harness.files import replace_file
from fa_harness.project import Project, writing
from fa_harness.upstream.fetch import fetch, newest_version, sha256
from fa_harness.upstream.layout import version_in
from fa_harness.upstream.pins import Pin, load_pins

_KEYS = ("package", "version", "sha256", "root", "ggml_version")


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
        return self.version != self.pinned


def add(project: Project, spec: str, name: str | None = None) -> Pin:
    """Pin another version of a package.

    Args:
        project: Where `vendor/upstreams.toml` is.
        spec: `PACKAGE==VERSION`.
        name: What the pin is called; None for `llama.cpp-VERSION` or `ggml-GGML_VERSION`.

    Raises:
        UsageError: The spec is of another form, or the name or the version is pinned already.
        SetupError: The sdist cannot be had, or holds no ggml.
    """
    match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!+]*)", spec)
    if match is None:
        raise UsageError(
            f"'{spec}' is not PACKAGE==VERSION; a checkout of your own needs no pin, "
            "UPSTREAM_DIR=/path uses it"
        )
    pins = load_pins(project.pins_file).upstreams.values()
    package, version = match.groups()
    for pin in pins:
        if (pin.package, pin.version) == (package, version):
            raise UsageError(f"{spec} is pinned already, as '{pin.name}'")
    new = Pin(name=spec, package=package, version=version, sha256="", root="")
    archive = fetch(project, new)
    root, ggml_version, is_llama = look_into(archive)
    new = replace(
        new,
        name=name or (f"llama.cpp-{version}" if is_llama else f"ggml-{ggml_version or version}"),
        sha256=sha256(archive),
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
    default = pins.get().package
    packages: dict[str, list[str]] = {default: []}
    for pin in pins.upstreams.values():
        packages.setdefault(pin.package, []).append(pin.version)
    return [
        Newest(package=package, pinned=max(versions, key=_numbers), version=newest_version(package))
        for package, versions in packages.items()
    ]


def look_into(archive: Path) -> tuple[str, str, bool]:
    """Return where llama.cpp or ggml lies in an sdist, ggml's version, and whether it is llama.cpp.

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


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))
