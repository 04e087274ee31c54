"""Read the patch series, and the series that go on top of it."""

from __future__ import annotations

import email
import email.policy
import functools
import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path

from fa_harness.errors import SetupError
from fa_harness.files import replace_file
from fa_harness.project import Project, writing
from fa_harness.series.variants import SERIES, compose, load_variants, of_version, parse_version
from fa_harness.upstream.source import Source


@dataclass(frozen=True, kw_only=True)
class Series:
    """Patches in the order of a file `series` beside them."""

    file: Path  # the file with the order
    patches: tuple[Path, ...]
    digests: tuple[str, ...]  # the sha256 of each patch

    @property
    def names(self) -> tuple[str, ...]:
        """The patches' file names."""
        return tuple(patch.name for patch in self.patches)

    def first(self, count: int) -> Series:
        """Return the first `count` patches."""
        return replace(self, patches=self.patches[:count], digests=self.digests[:count])

    def then(self, other: Series) -> Series:
        """Return these patches with those of another series after them."""
        return replace(
            self, patches=self.patches + other.patches, digests=self.digests + other.digests
        )


def load_series(project: Project) -> Series:
    """Read `patches/series`: one file name per line, with blank lines and `#` comments."""
    return _load(project.series_file)


def series_for(project: Project, source: Source) -> Series:
    """Return the series with the variants for an upstream; empty if it takes no patches.

    Patches with other contents are written below `vendor/src`.
    """
    series = load_series(project)
    if not source.takes_series:
        return series.first(0)
    variants = load_variants(project.patches)
    version = parse_version(source.variants_as)
    for variant in variants:
        if variant.patch not in (SERIES, *series.names):
            raise SetupError(
                f"patches/variants.toml: the series has no patch '{variant.patch}'; rename its "
                "table to what the patch is called now, or delete it"
            )
    for whole in of_version(variants, SERIES, version):
        series = series.first(whole.first or 0)
    patches, digests = list(series.patches), list(series.digests)
    for i, patch in enumerate(series.patches):
        holding = of_version(variants, patch.name, version)
        if holding:
            text = functools.reduce(compose, holding, patch.read_text(encoding="utf-8"))
            patches[i] = project.sources / ".variants" / source.folder / patch.name
            digests[i] = hashlib.sha256(text.encode()).hexdigest()
            if not patches[i].is_file() or patches[i].read_text(encoding="utf-8") != text:
                with writing(patches[i]):
                    patches[i].parent.mkdir(parents=True, exist_ok=True)
                    replace_file(patches[i], text)
    return replace(series, patches=tuple(patches), digests=tuple(digests))


def load_mutants(project: Project) -> Series:
    """Read `patches/mutants/series`."""
    return _load(project.mutants / "series")


def load_generated(project: Project) -> Series:
    """Read the patch with the generated mutants."""
    file = project.generated / "series"
    if not file.is_file():
        raise SetupError("no mutants are generated yet: fa-harness mutants --generate")
    return _load(file)


def load_museum(project: Project) -> Series:
    """Read `patches/museum/series`, which begins with the switch of the mutants."""
    return _load(project.museum / "series")


def load_experiments(project: Project) -> Series:
    """Read `patches/experimental/series`: patches of llama.cpp that are not meant for upstream."""
    return _load(project.patches / "experimental" / "series")


def _load(path: Path) -> Series:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SetupError(f"cannot read the patch series {path}: {error.strerror}") from error
    names = [name for line in lines if (name := line.partition("#")[0].strip())]
    for name in names:
        if names.count(name) > 1:
            raise SetupError(f"{path}: '{name}' is listed twice")
        if not (path.parent / name).is_file():
            raise SetupError(f"{path}: there is no patch '{name}' in {path.parent}")
    patches = tuple(path.parent / name for name in names)
    digests = tuple(hashlib.sha256(patch.read_bytes()).hexdigest() for patch in patches)
    return Series(file=path, patches=patches, digests=digests)


def title(patch: Path) -> str:
    """Return the subject of a patch without `[PATCH]`."""
    subject = email.message_from_bytes(patch.read_bytes(), policy=email.policy.default)["Subject"]
    return re.sub(r"^\[PATCH[^]]*\]\s*", "", str(subject or patch.name))
