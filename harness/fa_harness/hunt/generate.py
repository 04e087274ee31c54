"""Faults that nobody chose: mutants made from every line of attention, by rule.

`write` parses the patched sources with clang, puts all mutants into them (`rewrite.py`) and writes
a patch that goes on top of the series, from which the library `generated` is built, and a table of
what each mutant changes.
"""

from __future__ import annotations

import json
import random
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fa_harness
from fa_harness import proc
from fa_harness.build import toolchain
from fa_harness.errors import SetupError
from fa_harness.files import read_toml, replace_file
from fa_harness.hunt import attention
from fa_harness.hunt.attention import CASES, FUNCTIONS, added
from fa_harness.hunt.mutants import Mutant
from fa_harness.project import Project, writing
from fa_harness.series.series import series_for
from fa_harness.series.tree import Tree, prepare_tree
from fa_harness.upstream.git import check_out, git
from fa_harness.upstream.source import find_source

if TYPE_CHECKING:
    from clang.cindex import Cursor, TranslationUnit

    from fa_harness.hunt.rewrite import Change

_HEADER = "ggml-fa-generated.h"
_PATCH = "0001-generated-mutants.patch"
_TABLE = "mutants.json"
_DECLARATIONS = """\
    // generated mutants
    GGML_API bool         ggml_fa_mutant_set(const char * id); // NULL: none
    GGML_API bool         ggml_fa_mutant_reached(void);
    GGML_API const char * ggml_fa_mutant_id(int i);            // NULL: there are no more
    GGML_API void         ggml_fa_mutant_note_all(void);       // none is active
    GGML_API bool         ggml_fa_mutant_was_reached(int i);

"""
_SWITCH = """
// generated mutants

int ggml_fa_generated_first = 0;
int ggml_fa_generated_count = 0;

static _Atomic bool ggml_fa_generated_was_reached[{count}];

bool ggml_fa_generated_reach(int n) {{
    if (!ggml_fa_generated_was_reached[n - 1]) {{
        ggml_fa_generated_was_reached[n - 1] = true;
    }}

    return ggml_fa_generated_count == 1;
}}

static void ggml_fa_generated_ask(int first, int count) {{
    for (int i = 0; i < {count}; i++) {{
        ggml_fa_generated_was_reached[i] = false;
    }}
    ggml_fa_generated_first = first;
    ggml_fa_generated_count = count;
}}

bool ggml_fa_mutant_set(const char * id) {{
    ggml_fa_generated_ask(id ? atoi(id) : 0, id ? 1 : 0);

    return true;
}}

// for programs that cannot call ggml_fa_mutant_set
__attribute__((constructor)) static void ggml_fa_mutant_from_environment(void) {{
    ggml_fa_mutant_set(getenv("GGML_FA_MUTANT"));
}}

void ggml_fa_mutant_note_all(void) {{
    ggml_fa_generated_ask(1, {count});
}}

bool ggml_fa_mutant_was_reached(int i) {{
    return ggml_fa_generated_was_reached[i];
}}

bool ggml_fa_mutant_reached(void) {{
    const int n = ggml_fa_generated_first;

    return ggml_fa_generated_count == 1 && ggml_fa_generated_was_reached[n - 1];
}}

const char * ggml_fa_mutant_id(int i) {{
    static char id[16];

    snprintf(id, sizeof(id), "%d", i + 1);

    return i < 0 || i >= {count} ? NULL : id;
}}
"""


def write(project: Project) -> tuple[Change, ...]:
    """Make the mutants of the chosen upstream with its series, and return what each changes.

    Raises:
        SetupError: libclang is not installed, or does not understand the sources.
    """
    source = find_source(project)
    tree = prepare_tree(project, source, series_for(project, source))
    folder = project.generated
    with tempfile.TemporaryDirectory(prefix="fa-harness-") as temporary:
        sources = Path(temporary, "src")
        check_out(tree.path, tree.commits[-1], sources)
        # CMake makes this header, which no mutant needs
        version = '#pragma once\n#define GGML_VERSION ""\n#define GGML_COMMIT ""\n'
        (sources / "ggml" / "src" / "ggml-version.h").write_text(version)
        texts, changes = _rewritten(tree, sources, replaced=attention.is_replaced(project))
        patch = _patch(tree, Path(temporary, "index"), _with_switch(sources, texts, len(changes)))
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / _PATCH, patch)
        replace_file(folder / "series", f"{_PATCH}\n")
        replace_file(folder / _TABLE, json.dumps([asdict(each) for each in changes], indent=0))
    return tuple(changes)


def load(project: Project) -> tuple[Mutant, ...]:
    """Make the mutants of the chosen upstream, and return them."""
    known = reasons(project)
    turns: Counter[str] = Counter()
    mutants = []
    for change in write(project):
        turns[name(change)] += 1
        mutant = as_mutant(change, known.equivalent, turn=turns[name(change)])
        line = f"{change.function}: {change.source}"
        only_time = known.only_time.get(line, known.only_time.get(change.function, ""))
        unreached = known.unreached.get(line, "")
        mutants.append(replace(mutant, if_unreached=unreached, if_survived=only_time))
    return tuple(mutants)


@dataclass(frozen=True, kw_only=True)
class Reasons:
    """Why changes cannot show, as a series' `equivalent.toml` has it."""

    equivalent: dict[str, str]
    """Of a change, by its name."""
    unreached: dict[str, str]
    """Of the changes of a line that no case reaches, by its function and text."""
    only_time: dict[str, str]
    """Of the changes of a function, or of a line of it, on which no result depends."""


def reasons(project: Project) -> Reasons:
    """Return why some changes cannot show.

    `as_in` in the file names series whose reasons hold here, too.
    """
    path = project.mutants / attention.EQUIVALENT
    found = read_toml(path) if path.is_file() else {}
    found.pop("replaces_attention", None)
    equivalent: dict[str, str] = {}
    unreached: dict[str, str] = {}
    only_time: dict[str, str] = {}
    for other in found.pop("as_in", []):
        more = reasons(project.of(other))
        equivalent |= more.equivalent
        unreached |= more.unreached
        only_time |= more.only_time
    unreached |= found.pop("unreached", {})
    only_time |= found.pop("only_time", {})
    return Reasons(equivalent=equivalent | found, unreached=unreached, only_time=only_time)


def sample(mutants: Sequence[Mutant], size: int, seed: int) -> tuple[Mutant, ...]:
    """Return some of the mutants, drawn from a seed, in their order."""
    drawn = random.Random(seed).sample(range(len(mutants)), min(size, len(mutants)))
    return tuple(mutants[i] for i in sorted(drawn))


def as_mutant(change: Change, equivalent: Mapping[str, str], *, turn: int = 1) -> Mutant:
    """Return a change as a mutant of the library `generated`.

    `equivalent` says why some cannot show, by what `name` returns: of all changes that are called
    so, or with ` (2)` behind it of the second alone. `turn` counts them.
    """
    reason = equivalent.get(f"{name(change)} ({turn})", equivalent.get(name(change), ""))
    return Mutant(
        id=str(change.number),
        class_=change.kind,
        kind="kernel" if "ggml-cpu" in change.file else "api",
        patch=f"{Path(change.file).name}, {change.function}",
        does=f"{Path(change.file).name}:{change.line}: {change.before} -> {change.after}",
        shown_by="not known: it was made by rule",
        equivalent=reason,
        file=change.file,
        line=change.line,
    )


def name(change: Change) -> str:
    """Return what a change is called in `equivalent.toml`, whatever its line is."""
    return f"{change.function}: {change.source} | {change.before} -> {change.after}"


def _rewritten(tree: Tree, sources: Path, *, replaced: bool) -> tuple[dict[str, str], list[Change]]:
    """Return the new texts by their place in the sources, and all changes.

    If attention is `replaced`, only lines of the series are changed.
    """
    try:
        from fa_harness.hunt.rewrite import Rewriter
    except ImportError as error:
        raise SetupError(
            "generated mutants need libclang; install it with: pip install 'fa-harness[generate]'"
        ) from error
    texts: dict[str, str] = {}
    changes: list[Change] = []
    units: dict[str, TranslationUnit] = {}
    for unit_name, name in attention.files(tree):
        shown = f"ggml/src/{name}"
        path = sources / shown
        if not path.is_file():
            continue
        if unit_name not in units:
            units[unit_name] = _parse(sources, sources / "ggml/src" / unit_name)
        unit = units[unit_name]
        lines = {*added(tree, shown), *(() if replaced else _of_attention(unit, path))}
        rewriter = Rewriter(
            unit, path, shown=shown, wanted=lines.__contains__, first=len(changes) + 1
        )
        texts[shown] = rewriter.text()
        changes += rewriter.changes
    return texts, changes


def _parse(sources: Path, path: Path) -> TranslationUnit:
    import clang.cindex as clang

    is_c = path.suffix == ".c"
    include = [f"-I{sources / 'ggml' / each}" for each in ("include", "src", "src/ggml-cpu")]
    arguments = ["-xc", "-std=c11"] if is_c else ["-xc++", "-std=c++17"]
    arguments += ["-D_GNU_SOURCE", "-march=native", *include, *_system_headers()]
    record = clang.TranslationUnit.PARSE_DETAILED_PROCESSING_RECORD
    try:
        unit = clang.Index.create().parse(str(path), args=arguments, options=record)
    except clang.TranslationUnitLoadError as error:
        raise SetupError(f"libclang cannot parse {path.name}: {error}") from error
    # the compiler's own headers name functions that clang does not have
    wrong = [
        each
        for each in unit.diagnostics
        if each.severity >= each.Error
        and each.location.file
        and Path(each.location.file.name).is_relative_to(sources)
    ]
    if wrong:
        raise SetupError(f"libclang does not understand {path.name}: {wrong[0]}")
    return unit


def _system_headers() -> list[str]:
    """Return the options for the folders in which the C++ compiler looks for its headers."""
    compiler = toolchain.find_cxx_compiler().command
    said = proc.run([*compiler, "-xc++", "-E", "-v", "/dev/null"])
    _, _, rest = said.partition("search starts here:\n")
    folders = re.findall(r"^ (\S.*)$", rest.partition("End of search list")[0], re.M)
    return [f"-isystem{folder}" for folder in folders]


def _of_attention(unit: TranslationUnit, path: Path) -> Iterator[int]:
    """Yield the lines of the functions and cases that compute attention."""
    from clang.cindex import CursorKind

    text = path.read_bytes()
    for cursor in unit.cursor.get_children():
        if not (cursor.location.file and cursor.location.file.name == str(path)):
            continue
        is_function = cursor.kind in (CursorKind.FUNCTION_DECL, CursorKind.FUNCTION_TEMPLATE)
        if is_function and cursor.is_definition():
            if FUNCTIONS.search(cursor.spelling):
                yield from _lines(cursor)
            elif b"GGML_OP_FLASH_ATTN_EXT" in text[_bytes(cursor)]:
                yield from _of_cases(cursor, text)


def _of_cases(cursor: Cursor, text: bytes) -> Iterator[int]:
    from clang.cindex import CursorKind

    for child in cursor.walk_preorder():
        if child.kind == CursorKind.CASE_STMT and CASES.match(text[_bytes(child)].decode()):
            yield from _lines(child)


def _bytes(cursor: Cursor) -> slice:
    return slice(cursor.extent.start.offset, cursor.extent.end.offset)


def _lines(cursor: Cursor) -> range:
    return range(cursor.extent.start.line, cursor.extent.end.line + 1)


def _with_switch(sources: Path, texts: dict[str, str], count: int) -> dict[str, str]:
    """Add what switches the mutants to the texts."""
    include = f'#include "{_HEADER}"\n'
    texts = {
        name: (
            text.replace("#pragma once\n", f"#pragma once\n\n{include}", 1)
            if name.endswith(".h")
            else re.sub(r'^(?=#include ")', include, text, count=1, flags=re.M)
        )
        for name, text in texts.items()
    }
    texts["ggml/src/ggml.c"] += _SWITCH.format(count=count)
    header = (sources / "ggml/include/ggml.h").read_text("utf-8")
    at = header.rindex("#ifdef")  # the end of extern "C"
    texts["ggml/include/ggml.h"] = f"{header[:at]}{_DECLARATIONS}{header[at:]}"
    native = Path(fa_harness.__file__).parent / "native" / _HEADER
    texts[f"ggml/src/{_HEADER}"] = native.read_text("utf-8")
    return texts


def _patch(tree: Tree, index: Path, texts: dict[str, str]) -> str:
    """Return a patch that gives files of the tree's last state new texts."""
    tip = tree.commits[-1]
    git(tree.path, "read-tree", tip, index=index)
    for name, text in texts.items():
        file = index.with_name("text")
        file.write_text(text, encoding="utf-8")
        blob = git(tree.path, "hash-object", "-w", file).strip()
        entry = f"100644,{blob},{name}"
        git(tree.path, "update-index", "--add", "--cacheinfo", entry, index=index)
    content = git(tree.path, "write-tree", index=index).strip()
    message = "ggml : generated mutants of flash attention"
    commit = git(tree.path, "commit-tree", content, "-p", tip, "-m", message).strip()
    options: tuple[Any, ...] = ("--zero-commit", "--no-signature", "--full-index", "--stdout")
    return git(tree.path, "format-patch", *options, f"{tip}..{commit}") + "\n"
