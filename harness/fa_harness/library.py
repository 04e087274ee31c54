"""A built library and its record: all that the build half and the run half share."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fa_harness.errors import SetupError

RECORD = "library.json"


@dataclass(frozen=True, kw_only=True)
class Library:
    """One build: an upstream, a prefix of the series, build options, and its bindings.

    Attributes:
        name: `pristine`, `patched`, the number of the last patch in it (`0001`), or one of
            `SANITIZERS`.
        path: folder with the shared libraries, the bindings and `include/`.
        module: file name of the cffi extension module `_ggml` in that folder.
        upstream: name of the pin, or `dir:<folder>` for a developer's own checkout.
        upstream_commit: upstream's own commit; empty where it is not known.
        ggml_version: as ggml/CMakeLists.txt has it.
        series: file names of the patches applied, in order.
        build: what made it: options, compilers, flags, launcher, CMake, Python.
        inputs: digests or versions of all that the build depends on; a library is stale when
            one of them has changed.
        compiled: the source files that the last build of it compiled.
        preload: paths of the compiler's libraries that must be loaded before all else.
    """

    name: str
    path: Path
    module: str
    upstream: str
    upstream_commit: str
    ggml_version: str
    series: tuple[str, ...]
    build: dict[str, Any]
    inputs: dict[str, str]
    compiled: tuple[str, ...]
    preload: tuple[str, ...] = ()

    @property
    def module_path(self) -> Path:
        """The cffi extension module, ready to be imported."""
        return self.path / self.module

    @property
    def include_dir(self) -> Path:
        """The public headers that the library was built from."""
        return self.path / "include"

    def to_json(self) -> dict[str, Any]:
        """The part of a run's report that says which library ran."""
        return {
            "name": self.name,
            "upstream": self.upstream,
            "upstream_commit": self.upstream_commit,
            "ggml_version": self.ggml_version,
            "series": list(self.series),
            "build": self.build,
        }


def save(library: Library) -> None:
    """Write the record into the library's own folder."""
    record = dataclasses.asdict(library)
    del record["path"]  # the folder is renamed into place afterwards, and may be moved
    text = json.dumps(record, indent=2, sort_keys=True) + "\n"
    (library.path / RECORD).write_text(text, encoding="utf-8")


def load(path: Path) -> Library:
    """Read the record in the folder `path`.

    Raises:
        FileNotFoundError: there is no record, so no library.
        SetupError: the record is damaged or of another version of the harness.
    """
    text = (path / RECORD).read_text(encoding="utf-8")
    try:
        record = json.loads(text)
        for field in ("series", "compiled", "preload"):
            record[field] = tuple(record[field])
        return Library(path=path, **record)
    except (ValueError, TypeError, KeyError) as error:
        raise SetupError(
            f"{path / RECORD} is not a library record of this version; "
            f"delete {path} and build again"
        ) from error
