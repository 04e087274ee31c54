"""Mutants that cannot show, since the compiler makes the same object code with them."""

from __future__ import annotations

import functools
import json
import shlex
import tempfile
from pathlib import Path

from fa_harness import proc
from fa_harness.build import toolchain
from fa_harness.build.library import Library
from fa_harness.hunt.mutants import Mutant


class ObjectCode:
    """The code of a library with one generated mutant alone, or with none.

    Each is compiled with the command that made the library and `FA_ONLY`, and compared byte by
    byte. A compilation takes some ten seconds.
    """

    def __init__(self, library: Library) -> None:
        folder = next(each for each in library.path.parents if (each / "work").is_dir())
        self._folder = folder / "work" / library.name.replace("@", "-") / "cmake"

    def why_equivalent(self, mutant: Mutant) -> str:
        """Return why a mutant cannot show; nothing if its code differs, or it is a written one."""
        if not mutant.file:
            return ""
        command = self._command(Path(mutant.file).name)
        is_same = self._compiled(command, int(mutant.id)) == self._plain(command)
        return "the object code is the same" if is_same else ""

    @functools.cached_property
    def _commands(self) -> dict[str, str]:
        ninja = [*toolchain.find_ninja().command, "-C", str(self._folder), "-t", "compdb"]
        said = proc.run(ninja)
        entries = json.loads(said[said.index("[") :])
        return {Path(entry["file"]).name: entry["command"] for entry in entries}

    def _command(self, file: str) -> tuple[str, ...]:
        # a header is compiled in the only file that includes it
        return tuple(shlex.split(self._commands["ops.cpp" if file.endswith(".h") else file]))

    @functools.lru_cache(maxsize=8)  # noqa: B019 - a few files, as long as the command runs
    def _plain(self, command: tuple[str, ...]) -> bytes:
        return self._compiled(command, 0)

    def _compiled(self, command: tuple[str, ...], number: int) -> bytes:
        words = list(command)
        with tempfile.TemporaryDirectory(prefix="fa-harness-") as temporary:
            out = Path(temporary, "code.o")
            words[words.index("-o") + 1] = str(out)
            proc.run([*words, f"-DFA_ONLY={number}"], cwd=self._folder)
            return out.read_bytes()
