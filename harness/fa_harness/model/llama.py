"""llama.cpp's own programs, built out of tree: for a real model, and for what a maintainer runs."""

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
from fa_harness.errors import FaHarnessError, SetupError
from fa_harness.model.perplexity import Perplexity, parse
from fa_harness.project import Project, locked, writing
from fa_harness.series.series import load_experiments, series_for
from fa_harness.series.tree import note, prepare_tree
from fa_harness.upstream.git import check_out, git
from fa_harness.upstream.source import find_source, whole_of

BENCH = "llama-bench"
PERPLEXITY = "llama-perplexity"
TEST_BACKEND_OPS = "test-backend-ops"
CAPTURE = "fa-harness-capture"
"""Ours, which runs a model and writes what its attention gets."""

OPTIONS: Mapping[str, str] = {
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_NATIVE": "ON",
    "GGML_OPENMP": "OFF",  # as the libraries of the harness are built
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_SERVER": "OFF",
    "LLAMA_CURL": "OFF",
    "LLAMA_OPENSSL": "OFF",
}
"""CMake options of every build; the rest is upstream's default."""

TRAP = (
    "llama.cpp is killed with repacked weights and runs without them: the machine refuses an "
    "instruction that its CPU advertises, as virtual ones do with AMX tiles"
)
KILLED = (-signal.SIGILL, -signal.SIGSEGV)
"""How a process ends at such an instruction."""
_PROBE = ("-p", "64", "-n", "1", "-r", "1")

_CAPTURE_SOURCE = Path(fa_harness.__file__).parent / "native" / "llama" / "capture.cpp"


@dataclass(frozen=True, kw_only=True)
class Programs:
    """A build folder of llama.cpp with its programs in it.

    Attributes:
        src: The sources.
        cmake: CMake's folder.
        setup: The tools and options that it is built with.
        label: What people call it.
    """

    src: Path
    cmake: Path
    setup: Mapping[str, object]
    label: str

    @property
    def bin(self) -> Path:
        """The folder of the programs and their shared libraries."""
        return self.cmake / "bin"

    def program(self, name: str) -> Path:
        """A program that was built."""
        return self.bin / name


def build_programs(
    repository: Path,
    commit: str,
    folder: Path,
    targets: Sequence[str],
    *,
    label: str,
    options: Mapping[str, str] = {},
    verbose: bool = False,
) -> Programs:
    """Build programs of a commit of llama.cpp; those that are current cost no compiler.

    The caller holds the lock of the folder.

    Args:
        repository: Has the commit.
        commit: Its id, or another name of it.
        folder: Gets `src`, `cmake` and the logs.
        targets: Programs by name.
        label: What people call this build.
        options: CMake options on top of `OPTIONS`.
        verbose: Print every command.

    Raises:
        SetupError: A tool is missing, or something does not build.
    """
    tools = {
        "c_compiler": toolchain.find_c_compiler(),
        "cxx_compiler": toolchain.find_cxx_compiler(),
        "cmake": toolchain.find_cmake(),
        "ninja": toolchain.find_ninja(),
    }
    setup = {
        **{key: tool.version for key, tool in tools.items()},
        "options": {**OPTIONS, **options},
    }
    built = Programs(src=folder / "src", cmake=folder / "cmake", setup=setup, label=label)
    check_out(repository, commit, built.src, verbose=verbose)
    toolchain.prepare_cmake_dir(built.cmake, setup)
    terminal.stage(f"configuring {label}")
    definitions = {
        **OPTIONS,
        **options,
        "CMAKE_MAKE_PROGRAM": tools["ninja"].command[0],
        # else it looks for a repository around the build folder
        "LLAMA_BUILD_COMMIT": git(repository, "rev-parse", "--short=9", commit),
    }
    flags = [f"-D{key}={value}" for key, value in definitions.items()]
    where: list[str | Path] = ["-S", built.src, "-B", built.cmake, "-G", "Ninja"]
    try:
        proc.run(
            [*tools["cmake"].command, *where, *flags],
            log=folder / "configure.log",
            verbose=verbose,
        )
    except proc.ProgramError as error:
        raise SetupError(f"{label} cannot be configured\n{error}") from error
    toolchain.run_ninja(
        built.cmake,
        targets,
        what=f"{', '.join(targets)} of {label}",
        log=folder / "build.log",
        verbose=verbose,
    )
    return built


def build_llama(
    project: Project,
    targets: Sequence[str],
    *,
    experimental: bool = False,
    capture: bool = False,
    verbose: bool = False,
) -> Programs:
    """Build programs of the chosen upstream's llama.cpp with the series.

    Args:
        project: Where `patches/` is.
        targets: Programs by name.
        experimental: Apply `patches/experimental/`, too.
        capture: Build `CAPTURE`, too.
        verbose: Print every command.

    Raises:
        UsageError: There is no such upstream.
        SetupError: It has no llama.cpp, a patch does not apply, or something does not build.
    """
    source = find_source(project)
    whole = whole_of(source)
    series = series_for(project, source)
    if experimental:
        series = series.then(load_experiments(project))
        whole = whole.named("experimental")
    with locked(project, whole.folder):
        tree = prepare_tree(project, whole, series, verbose=verbose)
        if experimental and tree.applied.conflict:
            raise SetupError(
                f"{note(whole, series, tree.applied)}; the experimental patches need the series"
            )
        built = build_programs(
            tree.path,
            tree.commits[-1],
            project.build / whole.folder,
            [*targets, *(["llama"] if capture else [])],
            label=f"llama.cpp of '{source.label}' with {len(series.patches)} patches",
            verbose=verbose,
        )
        if capture:
            _build_capture(built, verbose=verbose)
    return built


def is_trapped(built: Programs, model: Path, threads: int, logs: Path) -> bool:
    """Find out by trying whether this machine kills what its CPU features promise.

    Virtual machines above all advertise AMX and end a program at its first tile instruction, which
    llama.cpp uses on weights that it has repacked.

    Args:
        built: Has `BENCH`.
        model: A GGUF.
        threads: Of the program.
        logs: A folder for what it prints.

    Raises:
        SetupError: The model does not run, whichever way.
    """
    command: list[str | Path] = [built.program(BENCH), "-m", model, "-t", str(threads), *_PROBE]
    try:
        proc.run(command, log=logs / f"{BENCH}-probe.txt")
        return False
    except proc.ProgramError as error:
        first = error
    try:
        if first.status not in KILLED:
            raise first
        proc.run([*command, *no_repack(BENCH)], log=logs / f"{BENCH}-probe-no-repack.txt")
    except proc.ProgramError as error:
        raise SetupError(f"model {model} does not run\n{error}") from error
    terminal.stage(TRAP)
    return True


def no_repack(program: str) -> list[str]:
    """Return what tells a program of llama.cpp to leave weights as they are."""
    return ["--repack", "0"] if program == BENCH else ["--no-repack"]


def _build_capture(built: Programs, *, verbose: bool) -> None:
    """Compile our program against the libraries, unless it is current."""
    program = built.program(CAPTURE)
    mark = program.with_suffix(".sha256")
    headers = [built.src / "include" / "llama.h", built.src / "ggml" / "include" / "ggml.h"]
    text = b"".join(path.read_bytes() for path in (_CAPTURE_SOURCE, *headers))
    digest = hashlib.sha256(text).hexdigest()
    if program.is_file() and mark.is_file() and mark.read_text("utf-8") == digest:
        return
    includes = [f"-I{path.parent}" for path in headers]
    libraries = [f"-L{built.bin}", "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{built.bin}"]
    compiler = toolchain.find_cxx_compiler().command
    with writing(program):
        mark.unlink(missing_ok=True)
    proc.run(
        [*compiler, "-std=c++17", "-O2", *includes, _CAPTURE_SOURCE, "-o", program, *libraries],
        env={**os.environ, "LC_ALL": "C"},
        verbose=verbose,
    )
    with writing(mark):
        mark.write_text(digest, encoding="utf-8")


def measure(
    command: Sequence[str | Path], environment: Mapping[str, str], log: Path
) -> tuple[Perplexity, float]:
    """Run `llama-perplexity`; returns what it printed, and how many seconds it took.

    Its log is written by a thread, whose last lines may be lost when the process ends: one that
    ended well without an estimate is run once more.

    Raises:
        ProgramError: It failed.
        FaHarnessError: It printed no estimate.
    """
    # settings of the caller's own would change what is compared
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
