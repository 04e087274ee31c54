"""The library that counts which branches are taken: how it is built, and what it keeps."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

COVERAGE = "coverage"
"""The part of its name: the whole stack, compiled for gcov."""

_FLAGS = "-O0 -DNDEBUG --coverage -fprofile-update=atomic"
OPTIONS = {
    "CMAKE_BUILD_TYPE": "RelWithDebInfo",
    "CMAKE_C_FLAGS_RELWITHDEBINFO": _FLAGS,
    "CMAKE_CXX_FLAGS_RELWITHDEBINFO": _FLAGS,
    # the runtime has it, and takes it in only where it is asked for
    "CMAKE_SHARED_LINKER_FLAGS": "-Wl,-u,__gcov_dump,-u,__gcov_reset",
}
"""The CMake options of such a library.

`-O0`, since GCC inserts the counters after its early passes: from `-O1` on these inline functions,
drop what they can tell and turn branches into arithmetic, so that what is counted is not what is
written. The SIMD paths are those of the machine, as in any build. `-DNDEBUG`, as in a release:
an `assert` is no branch of the kernel. Counters are atomic because gcov counts some arcs only and
subtracts for the others: one count that two threads lose makes up a branch, or hides one.
"""

_NOTES = "gcov"


def keep_notes(cmake: Path, library: Path) -> None:
    """Copy what gcov needs of a build folder, a file per object of ggml, into a library."""
    for path in cmake.glob("ggml/src/CMakeFiles/**/*.gcno"):
        kept = library / _NOTES / path.relative_to(cmake)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, kept)


def notes_of(library: Path) -> Iterator[tuple[Path, str]]:
    """Yield each file of notes, and how the path of its counts ends."""
    folder = library / _NOTES
    for path in sorted(folder.rglob("*.gcno")):
        yield path, path.relative_to(folder).with_suffix(".gcda").as_posix()
