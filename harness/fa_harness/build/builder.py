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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import fa_harness
from fa_harness import proc, stacks, terminal
from fa_harness.build import coverage, toolchain
from fa_harness.build.coverage import COVERAGE
from fa_harness.build.library import Library, load, save
from fa_harness.build.names import PRISTINE, Name, build_command, find_name
from fa_harness.build.places import Copy
from fa_harness.build.sanitizers import SANITIZERS
from fa_harness.engine.ggml import bindings
from fa_harness.errors import SetupError, UsageError
from fa_harness.machine import cpu_features
from fa_harness.project import Project, locked, writing
from fa_harness.series.series import Series, series_for
from fa_harness.series.tree import Tree, current_tree, extend_tree, note, prepare_tree
from fa_harness.upstream.git import git
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

_TEST = "test-backend-ops"
"""Upstream's own test of its operators, which the series extends."""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """All that fixes the build of a library."""

    project: Project  # with the library's stack
    source: Source
    series: Series  # the stack's patches
    known_as: Name
    patches: Series  # the patches that the library has
    options: dict[str, str]  # all of its CMake options

    @property
    def name(self) -> str:
        """The library's full name."""
        return str(self.known_as)

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes that its series name; empty for all."""
        if self.known_as.part == PRISTINE:
            return ()
        return stacks.modes_of(self.project.series_folders, self.project.stack)

    @property
    def folder(self) -> Path:
        """The build folder: one per upstream, Python ABI and set of options."""
        key = str(sysconfig.get_config_var("SOABI"))
        if self.options != OPTIONS:
            key += f"-{_digest(json.dumps(self.options, sort_keys=True))[:8]}"
        return self.project.build / self.source.folder / key

    @property
    def lock(self) -> str:
        """What is locked while the build folder is worked in."""
        return str(self.folder.relative_to(self.project.build))

    @property
    def path(self) -> Path:
        """Where the library goes."""
        return self.folder / "lib" / self.name

    def log_path(self, step: str) -> Path:
        path = self.folder / "log" / f"{step}.log"
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def inputs(self) -> dict[str, str]:
        """Return all that the library depends on, under the names that messages use."""
        digests = self.patches.digests
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
            **({"modes of its series": " ".join(self.modes)} if self.modes else {}),
        }

    def why_stale(self, library: Library) -> str | None:
        """Return why a library is not what a build would make now; None if it is."""
        changed = [key for key, value in self.inputs().items() if library.inputs.get(key) != value]
        if not _compilers() and "compilers" in changed:
            # Without a compiler there is nothing better to be had.
            changed.remove("compilers")
        return f"{', '.join(changed)} changed" if changed else None

    def look(self) -> tuple[Library | None, str | None]:
        """Return the library that is there, and why it is stale."""
        try:
            library = load(self.path)
        except (FileNotFoundError, SetupError):
            return None, None  # a damaged record, or another version's, is built anew
        return library, self.why_stale(library)


def _plans(
    project: Project, names: Iterable[str], upstream: str | None, options: Mapping[str, str]
) -> list[_Plan]:
    asked = {**project.config.build, **options}
    sources: dict[tuple[str, ...], Source] = {}  # by stack: some need all files of llama.cpp
    plans = []
    for known_as in (find_name(project, name) for name in names):
        stack = known_as.project.stack
        if stack not in sources:
            sources[stack] = find_source(known_as.project, upstream)
        source = sources[stack]
        series, part = series_for(known_as.project, source), known_as.part
        plan = _Plan(
            project=known_as.project,
            source=source,
            series=series,
            known_as=known_as,
            patches=known_as.patches(series),
            options={
                **OPTIONS,
                **(SANITIZERS[part].options if part in SANITIZERS else {}),
                **(coverage.OPTIONS if part == COVERAGE else {}),
                **asked,
            },
        )
        plans.append(plan)
    return plans


def vendor(project: Project, *, verbose: bool = False) -> Tree:
    """Fetch the upstream and apply the series, as far as that is not done yet."""
    source = find_source(project)
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
    the library with the same headers that was built before them. `options` go on top of `OPTIONS`
    and of those of `fa-harness.toml`.
    """
    names = [str(find_name(project, name)) for name in names]
    libraries: dict[str, Library] = {}
    missing: dict[str, list[str]] = {}  # by build folder, which they share
    for plan in _plans(project, names, upstream, options):
        library, stale = plan.look()
        if library is None or stale:
            missing.setdefault(plan.lock, []).append(plan.name)
        else:
            libraries[plan.name] = library
    for lock, together in missing.items():
        with locked(project, lock):
            # The last holder of the lock may have built them, and the sources may have changed.
            wanted = []
            for plan in _plans(project, together, upstream, options):
                library, stale = plan.look()
                if library is not None and not stale:
                    libraries[plan.name] = library
                    continue
                wanted.append(plan)
                if stale:
                    terminal.stage(f"library '{plan.name}' is stale ({stale}): building it again")
            libraries |= _build_missing(wanted, verbose=verbose)
    built = [libraries[name] for name in names]
    for library in built:
        if library.series_note:
            terminal.stage_once(library.series_note)
    return built


def build_test_backend_ops(project: Project, name: str, *, options: Mapping[str, str]) -> Path:
    """Make the library `name` current, and upstream's `test-backend-ops` of the same sources.

    The program finds the library's shared objects beside itself.
    """
    [library] = build(project, [name], options=options)
    program = library.path / _TEST
    if not program.exists():
        [plan] = _plans(project, [name], None, options)
        with locked(project, plan.lock):
            bench = _Workbench(plan, verbose=False)
            copy, _ = bench.prepare(plan)
            if not (copy.src / "tests" / f"{_TEST}.cpp").is_file():
                raise UsageError(f"upstream '{plan.source.label}' has no {_TEST}")
            bench.ninja(copy, _TEST, log=_TEST, what=f"{_TEST} of library '{name}'")
            new = program.with_name(f".{_TEST}.new")
            with writing(program):
                shutil.copy2(copy.cmake / "bin" / _TEST, new)
                new.replace(program)
    return program


def find(project: Project, name: str, *, options: Mapping[str, str] = {}) -> Library:
    """Return the library `name` as it was built, current or not."""
    [plan] = _plans(project, [name], None, options)
    try:
        return load(plan.path)
    except FileNotFoundError:
        again = build_command(name, options)
        raise SetupError(f"library '{name}' is not built: {again}") from None


def is_stale(project: Project, library: Library, *, options: Mapping[str, str] = {}) -> str | None:
    """Return why a library is not what a build would make now (`patches changed`), or None."""
    [plan] = _plans(project, [library.name], None, options)
    return plan.why_stale(library)


def _build_missing(plans: Sequence[_Plan], *, verbose: bool) -> dict[str, Library]:
    """Build libraries that share a build folder; the caller holds its lock."""
    if not plans:
        return {}
    preload = {  # what must be loaded before each of them
        plan.name: tuple(str(toolchain.find_runtime(each)) for each in SANITIZERS[part].preload)
        for plan in plans
        if (part := plan.known_as.part) in SANITIZERS
    }
    if any(plan.known_as.part == COVERAGE for plan in plans):
        toolchain.find_gcov()  # of a compiler that has none, its notes could not be read
    bench = _Workbench(plans[0], verbose=verbose)
    libraries: dict[str, Library] = {}
    for plan in sorted(plans, key=lambda plan: len(plan.patches.patches)):
        copy, series = bench.prepare(plan)
        compiled = bench.ninja(copy, "all", log=plan.name, what=f"library '{plan.name}'")
        library = Library(
            name=plan.name,
            path=plan.path,
            module=f"_ggml.{sysconfig.get_config_var('SOABI')}.so",
            upstream=plan.source.label,
            upstream_commit=plan.source.commit,
            ggml_version=bench.tree(plan).ggml_version,
            series=series,
            build=bench.setup,
            inputs=plan.inputs(),
            compiled=compiled,
            preload=preload.get(plan.name, ()),
            series_note=note(plan.source, plan.series, bench.tree(plan).applied),
            modes=plan.modes,
        )
        _install(library, copy)
        libraries[plan.name] = library
    return libraries


class _Workbench:
    """A build folder, and what fills it; the caller holds its lock."""

    def __init__(self, plan: _Plan, *, verbose: bool) -> None:
        self._plan = plan
        self._verbose = verbose
        self._configured: set[Path] = set()
        self._tools = toolchain.find_tools()
        toolchain.find_python_headers()
        self._trees: dict[tuple[str, ...], Tree] = {}
        self.tree(plan)
        self.setup = {
            **{key: tool.version for key, tool in self._tools.items()},
            "flags": _flags(),
            "launcher": toolchain.find_launcher(),
            "options": plan.options,
            "python": platform.python_version(),
        }

    def tree(self, plan: _Plan) -> Tree:
        """Return the tree of a library's stack."""
        stack = plan.project.stack
        if stack not in self._trees:
            self._trees[stack] = prepare_tree(
                plan.project, plan.source, plan.series, verbose=self._verbose
            )
        return self._trees[stack]

    def prepare(self, plan: _Plan) -> tuple[Copy, tuple[str, ...]]:
        """Check out the patches of a library and configure; return the sources and the patches."""
        with locked(plan.project, plan.source.folder):
            copy, series = self._check_out(plan)
        toolchain.prepare_cmake_dir(copy.cmake, self.setup)
        with writing(copy.cmake):
            bindings.emit_c(copy.src / "ggml" / "include", copy.cmake / "_ggml.c")
        if copy.src not in self._configured:
            self._configure(copy)
            self._configured.add(copy.src)
        return copy, series

    def _check_out(self, plan: _Plan) -> tuple[Copy, tuple[str, ...]]:
        count = len(plan.patches.patches)
        try:
            tree, series = self.tree(plan), plan.series
            faults = plan.known_as.faults()
            if faults is not None:
                series = plan.patches
                tree = extend_tree(plan.project, plan.source, tree, faults, verbose=self._verbose)
            # what has no patch is loaded beside what has some, so it shares no folder with them
            is_alone = faults is not None or count == 0
            state = plan.known_as.folder
            if not is_alone:
                state = _header_folder(plan, _last_header_patch(tree, count))
            folder = plan.folder / "work" / state
            copy = Copy.of(plan.source, tree, tree.contents[count], folder)
            copy.check_out(verbose=self._verbose)
        except proc.ProgramError as error:
            if current_tree(plan.project, plan.source, plan.series) == self.tree(plan):
                raise
            raise SetupError(
                f"{plan.source.label} was changed while it was built; run again"
            ) from error
        return copy, tree.patches(series, count)

    def _configure(self, copy: Copy) -> None:
        plan = self._plan
        terminal.stage(f"configuring {plan.source.label} with {self.setup['cxx_compiler']}")
        definitions = {
            **plan.options,
            "CMAKE_MAKE_PROGRAM": self._tools["ninja"].command[0],
            "FA_HARNESS_BINDINGS": str(copy.cmake / "_ggml.c"),
            "FA_HARNESS_COMMIT": plan.source.commit or "unknown",
            "FA_HARNESS_GGML": str(copy.src / "ggml"),
            # ends the names of the shared libraries of this folder, and of no other
            "FA_HARNESS_TAG": f"{copy.src.parent.name}-{_digest(plan.lock)[:8]}",
            # The interpreter behind the virtual environment, which may be gone tomorrow.
            "Python_EXECUTABLE": os.path.realpath(sys.executable),
        }
        log = plan.log_path("configure")
        toolchain.configure(copy, NATIVE, definitions, log=log, verbose=self._verbose)

    def ninja(self, copy: Copy, target: str, *, log: str, what: str) -> tuple[str, ...]:
        """Run Ninja and return the source files that it compiled."""
        return toolchain.run_ninja(
            copy,
            [target],
            what=f"{what} of upstream '{self._plan.source.label}'",
            log=self._plan.log_path(log),
            verbose=self._verbose,
        )


def _header_folder(plan: _Plan, count: int) -> str:
    """Return the build folder of the states whose last change of a header is in patch `count`."""
    if not count:
        return "0000"
    owner, number = plan.series.owners[count - 1], plan.series.number(count - 1)
    stack = plan.project.stack
    return f"{'+'.join(stack[: stack.index(owner) + 1])}-{number:04}"


def _last_header_patch(tree: Tree, count: int) -> int:
    """Return the last of the first `count` patches that changes a header or a CMake file, or 0.

    States that differ in neither share a build folder: going from one to the other recompiles a few
    files there, instead of nearly all.
    """
    for number in range(count, 0, -1):
        before, after = tree.contents[number - 1 : number + 1]
        names = git(tree.path, "diff-tree", "-r", "--name-only", before, after).splitlines()
        if any(name.endswith((".h", ".hpp", ".cmake", "CMakeLists.txt")) for name in names):
            return number
    return 0


def _install(library: Library, copy: Copy) -> None:
    """Copy a finished build to `library.path`, which changes in one step."""
    new = library.path.with_name(f".{library.name}.new")
    old = library.path.with_name(f".{library.name}.old")
    for left_over in (new, old):
        shutil.rmtree(left_over, ignore_errors=True)
    with writing(library.path):
        shutil.copytree(copy.cmake / "lib", new, symlinks=True)
        shutil.copytree(copy.src / "ggml" / "include", new / "include")
        if library.part == COVERAGE:
            coverage.keep_notes(copy.cmake, new)
        save(dataclasses.replace(library, path=new))
        if library.path.exists():
            library.path.rename(old)
        new.rename(library.path)
    shutil.rmtree(old, ignore_errors=True)


def _compilers() -> str:
    """Return both compilers' versions; nothing if one is missing."""
    try:
        tools = toolchain.find_c_compiler(), toolchain.find_cxx_compiler()
    except SetupError:
        return ""
    return "; ".join(f"{' '.join(tool.command)}: {tool.version}" for tool in tools)


def _flags() -> dict[str, str]:
    """Return the variables of the environment that CMake takes flags from."""
    names = ("CFLAGS", "CXXFLAGS", "LDFLAGS")
    return {name: os.environ[name] for name in names if os.environ.get(name)}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
