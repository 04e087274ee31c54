"""Read the patches of a series or a stack, and those that go on top of it."""

from __future__ import annotations

import email
import email.policy
import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fa_harness.errors import SetupError
from fa_harness.files import replace_file
from fa_harness.project import Project, writing
from fa_harness.series.variants import WHOLE, compose, load_variants, of_version, parse_version
from fa_harness.stacks import DEFAULT, ORDER
from fa_harness.upstream.source import Source


@dataclass(frozen=True, kw_only=True)
class Series:
    """Patches in their order: those of one series, or of a stack."""

    file: Path  # the file with the order of the last series
    patches: tuple[Path, ...]
    digests: tuple[str, ...]  # the sha256 of each patch
    owners: tuple[str, ...]  # the name of the series that each patch is in
    below: int = 0  # how many of the first patches are of the series that the last one stands on

    @property
    def names(self) -> tuple[str, ...]:
        """The patches' file names."""
        return tuple(patch.name for patch in self.patches)

    @property
    def own(self) -> Series:
        """Return the patches of the last series alone."""
        return replace(
            self,
            patches=self.patches[self.below :],
            digests=self.digests[self.below :],
            owners=self.owners[self.below :],
            below=0,
        )

    def first(self, count: int) -> Series:
        """Return the first `count` patches."""
        return replace(
            self,
            patches=self.patches[:count],
            digests=self.digests[:count],
            owners=self.owners[:count],
            below=min(self.below, count),
        )

    def then(self, other: Series) -> Series:
        """Return these patches with those of another series after them."""
        return Series(
            file=other.file,
            patches=self.patches + other.patches,
            digests=self.digests + other.digests,
            owners=self.owners + other.owners,
            below=len(self.patches),
        )

    def number(self, index: int) -> int:
        """Return the number that a patch has in its own series, from 1."""
        return index + 1 - self.owners.index(self.owners[index])

    def label(self, index: int) -> str:
        """Return what messages call a patch: its file, with its series where there are several."""
        several = len(set(self.owners)) > 1
        return f"{self.owners[index]}/{self.names[index]}" if several else self.names[index]


def load_series(project: Project) -> Series:
    """Read the last series of the stack, as it is for the newest upstream.

    Its file `series` has one file name per line, with blank lines and `#` comments.
    """
    return _load(project.series_file, project.series)


def series_for(project: Project, source: Source) -> Series:
    """Return the stack's patches with the variants for an upstream; none if it takes no patches.

    Patches with other contents are written below `vendor/src`.
    """
    first, *others = (_varied(project, name, source) for name in project.stack)
    stack = functools.reduce(Series.then, others, first)
    return stack if source.takes_series else stack.first(0)


def as_files_are(project: Project, source: Source) -> Series:
    """Return the stack for an upstream, with the last series as its files are, without variants."""
    stack = series_for(project, source)
    return stack.first(stack.below).then(load_series(project))


def _varied(project: Project, name: str, source: Source) -> Series:
    about = project.about(name)
    series = _load(about.folder / ORDER, name)
    variants = load_variants(about)
    version = parse_version(source.variants_as)
    for variant in variants:
        if variant.patch not in (WHOLE, *series.names):
            raise SetupError(
                f"{about.file}: the series has no patch '{variant.patch}'; correct the name in its "
                "variant, or delete the table"
            )
    for whole in of_version(variants, WHOLE, version):
        series = series.first(whole.first or 0)
    patches, digests = list(series.patches), list(series.digests)
    for i, patch in enumerate(series.patches):
        holding = of_version(variants, patch.name, version)
        if holding:
            text = functools.reduce(compose, holding, patch.read_text(encoding="utf-8"))
            patches[i] = project.sources / ".variants" / source.folder / name / patch.name
            digests[i] = hashlib.sha256(text.encode()).hexdigest()
            if not patches[i].is_file() or patches[i].read_text(encoding="utf-8") != text:
                with writing(patches[i]):
                    patches[i].parent.mkdir(parents=True, exist_ok=True)
                    replace_file(patches[i], text)
    return replace(series, patches=tuple(patches), digests=tuple(digests))


def load_mutants(project: Project) -> Series:
    """Read the patches with the mutants of the stack's last series."""
    return _faults(project, "mutants")


def load_generated(project: Project) -> Series:
    """Read the patch with the generated mutants."""
    file = project.generated / "series"
    if not file.is_file():
        of = f" --series {project.series}" if project.stack != (DEFAULT,) else ""
        raise SetupError(f"no mutants are generated yet: fa-harness mutants --generate{of}")
    return _load(file, "generated")


def load_museum(project: Project) -> Series:
    """Read the museum of the stack's last series, which begins with the switch of the mutants."""
    return _faults(project, "museum")


def load_experiments(project: Project) -> Series:
    """Read the series' patches of llama.cpp that are not meant for upstream."""
    return _faults(project, "experimental")


def _faults(project: Project, what: str) -> Series:
    """Read patches that a series has beside its own, in a folder of that name."""
    file = project.patches / what / ORDER
    if not file.is_file():
        raise SetupError(f"series '{project.series}' has no {what}: there is no {file}")
    return _load(file, what)


def _load(path: Path, owner: str) -> Series:
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
    return Series(file=path, patches=patches, digests=digests, owners=(owner,) * len(patches))


WRONG_ALONE = "(wrong without the next)"
"""At the end of a patch's subject: the tree is wrong up to the patch behind it."""


def why_unfinished(patches: Sequence[Path]) -> str:
    """Return why a tree with these patches is known to be wrong, and what to do; empty if not."""
    if not patches or not title(patches[-1]).endswith(WRONG_ALONE):
        return ""
    return (
        f"{patches[-1].name} says that it is wrong without the next patch, and none follows; add "
        "that patch, or drop this one"
    )


def title(patch: Path) -> str:
    """Return the subject of a patch without `[PATCH]`."""
    subject = email.message_from_bytes(patch.read_bytes(), policy=email.policy.default)["Subject"]
    return re.sub(r"^\[PATCH[^]]*\]\s*", "", str(subject or patch.name))
