"""llama.cpp's own programs, built out of tree: to run a real model, and upstream's own tests."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import fa_harness
from fa_harness import proc, terminal
from fa_harness.build import toolchain
from fa_harness.build.places import Copy
from fa_harness.engine.ggml import llama as bindings
from fa_harness.errors import FaHarnessError, SetupError
from fa_harness.model.perplexity import Perplexity, parse
from fa_harness.project import Project, locked, writing
from fa_harness.series.series import load_experiments, load_mutants, series_for
from fa_harness.series.tree import note, prepare_tree
from fa_harness.upstream.git import git
from fa_harness.upstream.source import find_source, whole_of

BENCH = "llama-bench"
PERPLEXITY = "llama-perplexity"
SERVER = "llama-server"
TEST_BACKEND_OPS = "test-backend-ops"
CAPTURE = "fa-harness-capture"
"""Our own program. It runs a model and writes the inputs and results of its attention."""
LIBRARY = "llama"
TEST_KV_CACHE_MIXED = "test-kv-cache-mixed"
BINDINGS = "_llama.so"
"""The cffi module of libllama."""

OPTIONS: Mapping[str, str] = {
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_NATIVE": "ON",
    "GGML_OPENMP": "OFF",  # as the libraries of the harness are built
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_SERVER": "ON",  # as a target: it is compiled when it is asked for
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_CURL": "OFF",
    "LLAMA_OPENSSL": "OFF",
}
"""CMake options of every build; the others keep upstream's defaults."""

TRAP = (
    "llama.cpp is killed with repacked weights and runs without them: the machine refuses an "
    "instruction that its CPU advertises, as virtual ones do with AMX tiles"
)
KILLED = (-signal.SIGILL, -signal.SIGSEGV)
"""Exit statuses of a process that such an instruction has killed."""

_CAPTURE_SOURCE = Path(fa_harness.__file__).parent / "native" / "llama" / "capture.cpp"


@dataclass(frozen=True, kw_only=True)
class Programs:
    """A build of llama.cpp with its programs."""

    src: Path
    cmake: Path
    setup: Mapping[str, object]
    label: str

    @property
    def bin(self) -> Path:
        """The folder of the programs and their shared libraries."""
        return self.cmake / "bin"

    def program(self, name: str) -> Path:
        """Return the path of a program."""
        return self.bin / name


def build_programs(
    copy: Copy,
    targets: Sequence[str],
    *,
    label: str,
    options: Mapping[str, str] = {},
    verbose: bool = False,
) -> Programs:
    """Build programs of a commit of llama.cpp. Programs that are current cost no compiler.

    The caller holds the lock of the build folder. The copy is checked out here, and the logs go
    beside it. `options` go on top of `OPTIONS`.
    """
    folder, options = copy.src.parent, {**OPTIONS, **options}
    tools = toolchain.find_tools()
    setup = {**{key: tool.version for key, tool in tools.items()}, "options": options}
    copy.check_out(verbose=verbose)
    toolchain.prepare_cmake_dir(copy.cmake, setup)
    terminal.stage(f"configuring {label}")
    definitions = {
        **options,
        "CMAKE_MAKE_PROGRAM": tools["ninja"].command[0],
        # without it, CMake takes the commit of a repository around the build folder
        "LLAMA_BUILD_COMMIT": git(copy.repository, "rev-parse", "--short=9", copy.after),
    }
    log = folder / "configure.log"
    try:
        toolchain.configure(copy, copy.src, definitions, log=log, verbose=verbose)
    except proc.ProgramError as error:
        raise SetupError(f"{label} cannot be configured\n{error}") from error
    what = f"{', '.join(targets)} of {label}"
    toolchain.run_ninja(copy, targets, what=what, log=folder / "build.log", verbose=verbose)
    return Programs(src=copy.src, cmake=copy.cmake, setup=setup, label=label)


def build_llama(
    project: Project,
    targets: Sequence[str],
    *,
    experimental: bool = False,
    mutants: bool = False,
    own: Sequence[str] = (),
    verbose: bool = False,
) -> Programs:
    """Build programs of the chosen upstream's llama.cpp with the series.

    `experimental` also applies `experimental/` of the series, `mutants` its `mutants/`. `own` are
    files of ours that are compiled against the library: `CAPTURE`, `BINDINGS`.
    """
    source = find_source(project)
    whole = whole_of(source)
    series = series_for(project, source)
    then = None
    if experimental:
        then, what = load_experiments(project), "experimental"
    elif mutants:
        then, what = load_mutants(project), "mutants"
    if then is not None:
        series = series.then(then)
        whole = whole.named(what)
    with locked(project, whole.folder):
        tree = prepare_tree(project, whole, series, verbose=verbose)
        if then is not None and tree.applied.conflict:
            raise SetupError(
                f"{note(whole, series, tree.applied)}; the patches in {what}/ need the series"
            )
        copy = Copy.of(whole, tree, tree.commits[-1], project.build / whole.folder)
        built = build_programs(
            copy,
            [*targets, *([LIBRARY] if own else [])],
            label=f"llama.cpp of '{source.label}' with {len(series.patches)} patches",
            verbose=verbose,
        )
        for name in own:
            _BUILD_OWN[name](built, copy, verbose=verbose)
    return built


def is_trapped(built: Programs, model: Path, threads: int, logs: Path) -> bool:
    """Run a model to find out whether this machine kills an instruction that its CPU advertises.

    Mostly virtual machines do. They advertise AMX and end a program at its first tile instruction,
    which llama.cpp uses on weights that it has repacked.
    """
    probe = ("-t", str(threads), "-p", "64", "-n", "1", "-r", "1")
    command: list[str | Path] = [built.program(BENCH), "-m", model, *probe]
    try:
        try:
            proc.run(command, log=logs / f"{BENCH}-probe.txt")
            return False
        except proc.ProgramError as error:
            if error.status not in KILLED:
                raise
        proc.run([*command, *no_repack(BENCH)], log=logs / f"{BENCH}-probe-no-repack.txt")
    except proc.ProgramError as error:
        raise SetupError(f"model {model} does not run\n{error}") from error
    terminal.stage(TRAP)
    return True


def no_repack(program: str) -> list[str]:
    """Return the options that let a program of llama.cpp leave weights as they are."""
    return ["--repack", "0"] if program == BENCH else ["--no-repack"]


def _build_capture(built: Programs, copy: Copy, *, verbose: bool) -> None:
    compiler = toolchain.find_cxx_compiler().command
    _compile(built, copy, CAPTURE, _CAPTURE_SOURCE, [*compiler, "-std=c++17"], verbose=verbose)


def _build_bindings(built: Programs, copy: Copy, *, verbose: bool) -> None:
    source = built.program(BINDINGS).with_suffix(".c")
    with writing(source):
        bindings.emit_c(source)
    compiler = toolchain.find_c_compiler().command
    headers = f"-I{toolchain.find_python_headers()}"
    command = [*compiler, "-shared", "-fPIC", headers]
    _compile(built, copy, BINDINGS, source, command, verbose=verbose)


_BUILD_OWN = {CAPTURE: _build_capture, BINDINGS: _build_bindings}


def _compile(
    built: Programs, copy: Copy, name: str, source: Path, command: Sequence[str], *, verbose: bool
) -> None:
    """Compile a source of ours against the libraries, unless it is current."""
    program = built.program(name)
    mark = program.with_suffix(".sha256")
    headers = [built.src / "include" / "llama.h", built.src / "ggml" / "include" / "ggml.h"]
    text = b"".join(path.read_bytes() for path in (source, *headers))
    digest = hashlib.sha256(text).hexdigest()
    if program.is_file() and mark.is_file() and mark.read_text("utf-8") == digest:
        return
    includes = [f"-I{path.parent}" for path in headers]
    libraries = ["-lllama", "-lggml", "-lggml-cpu", "-lggml-base"]
    linked = [f"-L{built.bin}", *libraries, f"-Wl,-rpath,{built.bin}"]
    with writing(program):
        mark.unlink(missing_ok=True)
    proc.run(
        [*command, "-O2", *includes, source, "-o", program, *linked],
        env={**os.environ, "LC_ALL": "C"},
        excerpt=copy.excerpt,
        verbose=verbose,
    )
    with writing(mark):
        mark.write_text(digest, encoding="utf-8")


def measure(
    command: Sequence[str | Path], environment: Mapping[str, str], log: Path
) -> tuple[Perplexity, float]:
    """Run `llama-perplexity` and return its results and the seconds that it took.

    A thread writes the program's log, and its last lines may be lost at exit. If the program ends
    with status 0 and without an estimate, it is run once more.
    """
    # the user's own settings would change what is compared
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("LLAMA_")}
    for is_last in (False, True):
        start = time.perf_counter()
        output = proc.run(command, env={**inherited, **environment}, log=log)
        seconds = time.perf_counter() - start
        try:
            return parse(output), seconds
        except FaHarnessError:
            if is_last:
                raise
    raise AssertionError("unreachable")
