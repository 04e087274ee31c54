"""From a tree to libraries: check out a state of the series, compile what it changes, keep it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import fa_harness
from fa_harness import proc, terminal
from fa_harness.build import toolchain
from fa_harness.build.library import Library, load, save
from fa_harness.build.names import MUTANTS, build_command, patches_of
from fa_harness.build.places import Copy, first_errors
from fa_harness.build.sanitizers import SANITIZERS
from fa_harness.engine.ggml import bindings
from fa_harness.errors import SetupError, UsageError
from fa_harness.machine import cpu_features
from fa_harness.project import Project, locked, writing
from fa_harness.series.series import Series, load_mutants, series_for
from fa_harness.series.tree import Tree, current_tree, extend_tree, note, prepare_tree
from fa_harness.upstream.git import check_out, git
from fa_harness.upstream.pins import Pin
from fa_harness.upstream.source import Source, find_source

NATIVE = Path(fa_harness.__file__).parent / "native"

OPTIONS: Mapping[str, str] = {
    "BUILD_SHARED_LIBS": "ON",
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_ACCELERATE": "OFF",
    "GGML_BLAS": "OFF",
    "GGML_BUILD_EXAMPLES": "OFF",
    "GGML_BUILD_TESTS": "OFF",
    "GGML_METAL": "OFF",
    "GGML_NATIVE": "ON",  # given, since SOURCE_DATE_EPOCH turns ggml's default off
    "GGML_OPENMP": "OFF",
    "GGML_RPC": "ON",
    "GGML_RPC_RDMA": "OFF",  # else on wherever libibverbs is, with its headers or without
}
"""CMake options of every build; `build(..., options=...)` adds to them and overrides them."""

TEST_BACKEND_OPS = "test-backend-ops"
"""Upstream's own test of its operators, which the series extends."""

FLAG_VARIABLES = ("CFLAGS", "CXXFLAGS", "LDFLAGS")
"""Environment variables that CMake takes compiler and linker flags from."""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """All that fixes a build except the library's name."""

    project: Project
    source: Source
    series: Series
    asked: Mapping[str, str]
    """CMake options that were asked for."""
    options: dict[str, str]
    """All of them."""

    def of(self, name: str) -> _Plan:
        """The plan with the options that the library `name` has of its own."""
        own = SANITIZERS[name].options if name in SANITIZERS else {}
        return dataclasses.replace(self, options={**OPTIONS, **own, **self.asked})

    @property
    def lock(self) -> str:
        """What is locked while it is built."""
        return str(self.folder.relative_to(self.project.build))

    @property
    def folder(self) -> Path:
        """Where it is built: one folder per upstream, Python ABI and set of options."""
        key = str(sysconfig.get_config_var("SOABI"))
        if self.options != OPTIONS:
            key += f"-{_digest(json.dumps(self.options, sort_keys=True))[:8]}"
        return self.project.build / self.source.folder / key

    def tag(self, work: Path) -> str:
        """What ends the names of the shared libraries of one build folder, and of no other."""
        return f"{work.name}-{_digest(self.lock)[:8]}"

    def library_path(self, name: str) -> Path:
        return self.folder / "lib" / name

    def log_path(self, step: str) -> Path:
        path = self.folder / "log" / f"{step}.log"
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def patches(self, name: str) -> Series:
        """The patches that the library has."""
        return patches_of(self.project, self.series, name)

    def inputs(self, name: str) -> dict[str, str]:
        """All that the library depends on, by what people call it."""
        digests = self.patches(name).digests
        if self.source.root:  # whether a checkout takes one patch depends on the others
            digests += self.series.digests
        return {
            "upstream": f"{self.source.digest} {self.source.commit}",
            "patches": _digest("\n".join(digests)),
            "CMake options": json.dumps(self.options, sort_keys=True),
            "compilers": _compilers(),
            "compiler flags": json.dumps(_flags(), sort_keys=True),
            "CPU": f"{platform.machine()} {_digest(' '.join(cpu_features()))}",
            "Python": f"{sysconfig.get_config_var('SOABI')} {platform.python_version()}",
            "bindings": bindings.source_digest(),
            "native/CMakeLists.txt": _digest((NATIVE / "CMakeLists.txt").read_text("utf-8")),
        }


def _plan(project: Project, upstream: str | None, options: Mapping[str, str]) -> _Plan:
    source = find_source(project, upstream)
    asked = {**project.config.build, **options}
    return _Plan(
        project=project,
        source=source,
        series=series_for(project, source),
        asked=asked,
        options={**OPTIONS, **asked},
    )


def vendor(project: Project, *, upstream: str | None = None, verbose: bool = False) -> Tree:
    """Fetch the upstream and apply the series, as far as that is not done yet.

    Raises:
        UsageError: no pin is called `upstream`.
        SetupError: the upstream cannot be had, or a patch does not apply.
    """
    source = find_source(project, upstream)
    return prepare_tree(project, source, series_for(project, source), verbose=verbose)


def build(
    project: Project,
    names: Iterable[str],
    *,
    upstream: str | None = None,
    options: Mapping[str, str] = {},
    verbose: bool = False,
) -> list[Library]:
    """Make the libraries `names` current and return them, in the order asked for.

    A current library costs no program. Others recompile only what their patches change against
    the library with the same headers that was built before them.

    Args:
        project: where the patches are and the libraries go.
        names: of libraries, see `library_names`.
        upstream: name of a pin; None is what `find_source` takes then.
        options: CMake options on top of `OPTIONS` and of those of `fa-harness.toml`.
        verbose: print every program that is run.

    Raises:
        UsageError: a library or the upstream is unknown.
        SetupError: something that the build needs is missing, a patch does not apply, or the
            compiler refuses the sources.
    """
    names = list(names)
    plan = _plan(project, upstream, options)
    libraries = {name: _current(plan, name) for name in names}
    for together in _by_options(plan, [name for name in names if libraries[name] is None]):
        with locked(project, plan.of(together[0]).lock):
            # Whoever held the lock may have built them, and the sources may have changed.
            plan = _plan(project, upstream, options)
            libraries |= {name: _current(plan, name) for name in together}
            missing = [name for name in together if libraries[name] is None]
            for name in missing:
                if why := _why_stale(plan, name):
                    terminal.stage(f"library '{name}' is stale ({why}): building it again")
            libraries |= _build_missing(plan.of(together[0]), missing, verbose=verbose)
    built = [library for name in names if (library := libraries[name])]
    for library in built:
        if library.series_note:
            terminal.stage_once(library.series_note)
    return built


def build_test_backend_ops(
    project: Project,
    name: str,
    *,
    upstream: str | None = None,
    options: Mapping[str, str] = {},
    verbose: bool = False,
) -> Path:
    """Make the library `name` current, and upstream's `test-backend-ops` of the same sources.

    Returns:
        The program, which finds the library's shared objects beside itself.

    Raises:
        UsageError: the library or the upstream is unknown, or the upstream has no such test.
        SetupError: as for `build`.
    """
    [library] = build(project, [name], upstream=upstream, options=options, verbose=verbose)
    program = library.path / TEST_BACKEND_OPS
    if not program.exists():
        plan = _plan(project, upstream, options).of(name)
        with locked(project, plan.lock):
            bench = _Workbench(plan, verbose=verbose)
            work = bench.prepare(name)
            if not (work.src / "tests" / f"{TEST_BACKEND_OPS}.cpp").is_file():
                raise UsageError(f"upstream '{plan.source.label}' has no {TEST_BACKEND_OPS}")
            what = f"{TEST_BACKEND_OPS} of library '{name}'"
            bench.ninja(work, TEST_BACKEND_OPS, log=TEST_BACKEND_OPS, what=what)
            new = program.with_name(f".{TEST_BACKEND_OPS}.new")
            with writing(program):
                shutil.copy2(work.cmake / "bin" / TEST_BACKEND_OPS, new)
                new.replace(program)
    return program


def find(
    project: Project,
    name: str,
    *,
    upstream: str | None = None,
    options: Mapping[str, str] = {},
) -> Library:
    """The library `name` as it was built, current or not.

    Raises:
        UsageError: there is no such library.
        SetupError: it is not built.
    """
    plan = _plan(project, upstream, options).of(name)
    plan.patches(name)
    try:
        return load(plan.library_path(name))
    except FileNotFoundError:
        again = build_command(name, options)
        raise SetupError(f"library '{name}' is not built: {again}") from None


def is_stale(
    project: Project,
    library: Library,
    *,
    upstream: str | None = None,
    options: Mapping[str, str] = {},
) -> str | None:
    """Why `library` is not what a build would make now (`patches changed`); None if it is."""
    return _stale(_plan(project, upstream, options), library)


def _stale(plan: _Plan, library: Library) -> str | None:
    wanted = plan.of(library.name).inputs(library.name)
    changed = [key for key, value in wanted.items() if library.inputs.get(key) != value]
    if not _compilers() and "compilers" in changed:
        # Without a compiler there is nothing better to be had.
        changed.remove("compilers")
    return f"{', '.join(changed)} changed" if changed else None


def _current(plan: _Plan, name: str) -> Library | None:
    library = _loaded(plan, name)
    return None if library is None or _stale(plan, library) else library


def _why_stale(plan: _Plan, name: str) -> str | None:
    """Why the library that is there is not what a build would make now; None if none is there."""
    library = _loaded(plan, name)
    return _stale(plan, library) if library is not None else None


def _loaded(plan: _Plan, name: str) -> Library | None:
    plan.patches(name)
    try:
        return load(plan.of(name).library_path(name))
    except (FileNotFoundError, SetupError):
        return None  # a damaged record, or another version's, is built anew


def _by_options(plan: _Plan, names: Iterable[str]) -> list[list[str]]:
    """The names, those of the same CMake options together: they share a workbench."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(json.dumps(plan.of(name).options, sort_keys=True), []).append(name)
    return list(groups.values())


def _build_missing(plan: _Plan, names: list[str], *, verbose: bool) -> dict[str, Library]:
    """Build `names`, whose plan it is; the caller holds its lock."""
    if not names:
        return {}
    preload = {name: _preload(name) for name in names}
    bench = _Workbench(plan, verbose=verbose)
    libraries: dict[str, Library] = {}
    for name in sorted(names, key=lambda name: len(plan.patches(name).patches)):
        work = bench.prepare(name)
        compiled = bench.ninja(work, "all", log=name, what=f"library '{name}'")
        library = Library(
            name=name,
            path=plan.library_path(name),
            module=f"_ggml.{sysconfig.get_config_var('SOABI')}.so",
            upstream=plan.source.label,
            upstream_commit=plan.source.commit,
            ggml_version=bench.tree.ggml_version,
            series=work.series,
            build=bench.setup,
            inputs=plan.inputs(name),
            compiled=compiled,
            preload=preload[name],
            series_note=note(plan.source, plan.series, bench.tree.applied),
        )
        _install(library, products=work.cmake / "lib", headers=work.headers)
        libraries[name] = library
    return libraries


class _Workbench:
    """Build folders of a plan, and the tools that fill them; for the holder of its lock."""

    def __init__(self, plan: _Plan, *, verbose: bool) -> None:
        self._plan = plan
        self._verbose = verbose
        self._configured: set[Path] = set()
        self.tools = {
            "c_compiler": toolchain.find_c_compiler(),
            "cxx_compiler": toolchain.find_cxx_compiler(),
            "cmake": toolchain.find_cmake(),
            "ninja": toolchain.find_ninja(),
        }
        toolchain.find_python_headers()
        self.tree = prepare_tree(plan.project, plan.source, plan.series, verbose=verbose)
        self.setup = {
            **{key: tool.version for key, tool in self.tools.items()},
            "flags": _flags(),
            "launcher": toolchain.find_launcher(),
            "options": plan.options,
            "python": platform.python_version(),
        }

    def prepare(self, name: str) -> _Work:
        """Check out the patches of a library and configure; return where Ninja runs."""
        with locked(self._plan.project, self._plan.source.folder):
            work = self._check_out(name)
        toolchain.prepare_cmake_dir(work.cmake, self.setup)
        with writing(work.cmake):
            bindings.emit_c(work.headers, work.cmake / "_ggml.c")
        if work.src not in self._configured:
            _configure(self._plan, work, self.setup, self.tools, verbose=self._verbose)
            self._configured.add(work.src)
        return work

    def _check_out(self, name: str) -> _Work:
        plan = self._plan
        patches = plan.patches(name)
        count = len(patches.patches)
        try:
            tree = self._tree_of(name)
            folder = plan.folder / "work" / f"{_last_header_patch(tree, count):04}"
            work = _Work(
                src=folder / "src",
                cmake=folder / "cmake",
                series=tree.patches(patches if name == MUTANTS else plan.series, count),
                told=_told_of_own(plan.source, tree, folder, tree.contents[count]),
            )
            check_out(tree.path, tree.contents[count], work.src, verbose=self._verbose)
        except proc.ProgramError as error:
            if current_tree(plan.project, plan.source, plan.series) == self.tree:
                raise
            raise SetupError(
                f"{plan.source.label} was changed while it was built; run again"
            ) from error
        return work

    def _tree_of(self, name: str) -> Tree:
        if name != MUTANTS:
            return self.tree
        plan, mutants = self._plan, load_mutants(self._plan.project)
        return extend_tree(plan.project, plan.source, self.tree, mutants, verbose=self._verbose)

    def ninja(self, work: _Work, target: str, *, log: str, what: str) -> tuple[str, ...]:
        """Run Ninja; the source files that it compiled."""
        return toolchain.run_ninja(
            work.cmake,
            [target],
            what=f"{what} of upstream '{self._plan.source.label}'",
            log=self._plan.log_path(log),
            told=work.told,
            verbose=self._verbose,
        )


@dataclass(frozen=True, kw_only=True)
class _Work:
    """One build folder: sources as they are checked out, and CMake's."""

    src: Path
    cmake: Path
    series: tuple[str, ...]
    """The patches that the sources have."""
    told: Callable[[list[str]], list[str]]
    """Turns what compilers say of the sources into the words of a developer's own files."""

    @property
    def headers(self) -> Path:
        return self.src / "ggml" / "include"


def _told_of_own(
    source: Source, tree: Tree, folder: Path, content: str
) -> Callable[[list[str]], list[str]]:
    if isinstance(source.origin, Pin):
        return lambda lines: lines
    copy = Copy(
        path=folder / "src",
        seen_from=folder / "cmake",
        own=source.origin,
        repository=tree.path,
        before=tree.commits[0],
        after=content,
    )
    return copy.told_of_own


def _last_header_patch(tree: Tree, count: int) -> int:
    """The last of the first `count` patches that changes a header or a CMake file; 0 if none does.

    States that differ in neither share a build folder, where going from one to the other
    recompiles a few files. Others would recompile nearly all of them, again and again.
    """
    for number in range(count, 0, -1):
        before, after = tree.contents[number - 1 : number + 1]
        names = git(tree.path, "diff-tree", "-r", "--name-only", before, after).splitlines()
        if any(name.endswith((".h", ".hpp", ".cmake", "CMakeLists.txt")) for name in names):
            return number
    return 0


def _configure(
    plan: _Plan,
    work: _Work,
    setup: Mapping[str, object],
    tools: Mapping[str, toolchain.Tool],
    *,
    verbose: bool,
) -> None:
    terminal.stage(f"configuring {plan.source.label} with {setup['cxx_compiler']}")
    definitions = {
        **plan.options,
        "CMAKE_MAKE_PROGRAM": tools["ninja"].command[0],
        "FA_HARNESS_BINDINGS": str(work.cmake / "_ggml.c"),
        "FA_HARNESS_COMMIT": plan.source.commit or "unknown",
        "FA_HARNESS_GGML": str(work.src / "ggml"),
        "FA_HARNESS_TAG": plan.tag(work.src.parent),
        # The interpreter behind the virtual environment, which may be gone tomorrow.
        "Python_EXECUTABLE": os.path.realpath(sys.executable),
    }
    flags = [f"-D{key}={value}" for key, value in definitions.items()]
    where = ["-S", str(NATIVE), "-B", str(work.cmake), "-G", "Ninja"]
    proc.run(
        [*tools["cmake"].command, *where, *flags],
        log=plan.log_path("configure"),
        excerpt=lambda lines: work.told(first_errors(lines)),
        verbose=verbose,
    )


def _install(library: Library, *, products: Path, headers: Path) -> None:
    """Copy a finished build to `library.path`, which changes in one step."""
    new = library.path.with_name(f".{library.name}.new")
    old = library.path.with_name(f".{library.name}.old")
    for left_over in (new, old):
        shutil.rmtree(left_over, ignore_errors=True)
    with writing(library.path):
        shutil.copytree(products, new, symlinks=True)
        shutil.copytree(headers, new / "include")
        save(dataclasses.replace(library, path=new))
        if library.path.exists():
            library.path.rename(old)
        new.rename(library.path)
    shutil.rmtree(old, ignore_errors=True)


def _preload(name: str) -> tuple[str, ...]:
    """Paths of what must be loaded before the library `name`."""
    needed = SANITIZERS[name].preload if name in SANITIZERS else ()
    return tuple(str(toolchain.find_runtime(runtime)) for runtime in needed)


def _compilers() -> str:
    """Both compilers' versions; empty if one is missing."""
    try:
        tools = toolchain.find_c_compiler(), toolchain.find_cxx_compiler()
    except SetupError:
        return ""
    return "; ".join(f"{' '.join(tool.command)}: {tool.version}" for tool in tools)


def _flags() -> dict[str, str]:
    return {name: os.environ[name] for name in FLAG_VARIABLES if os.environ.get(name)}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
