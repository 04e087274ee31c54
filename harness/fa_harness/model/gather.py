"""Puts the series on a developer's checkout as a branch, and gathers what speaks for it."""

from __future__ import annotations

import json
import os
import platform
import random
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fa_harness import __version__, proc, terminal
from fa_harness.errors import SetupError, UsageError
from fa_harness.machine import available_memory, cpu_model, usable_cores
from fa_harness.model.checkout import Checkout, Commits, make_branch, make_commits, open_checkout
from fa_harness.model.evidence import (
    PARTS,
    Evidence,
    Pass,
    Section,
    bench_section,
    mutants_section,
    ops_section,
    parse_bench,
    parse_ops,
    perplexity_section,
    proof_section,
    size_section,
    skipped_section,
    suite_section,
)
from fa_harness.model.llama import (
    BENCH,
    PERPLEXITY,
    TEST_BACKEND_OPS,
    TRAP,
    Programs,
    build_programs,
    is_trapped,
    measure,
    no_repack,
)
from fa_harness.proc import ProgramError
from fa_harness.project import Project, find_project, locked, writing
from fa_harness.series.series import series_for, title
from fa_harness.series.tree import prepare_tree
from fa_harness.speed.bench import MIN_ROUNDS
from fa_harness.upstream.git import check_out
from fa_harness.upstream.source import source_of

_PROOF_SUITES = ("seed", "smoke")
_LIBRARIES = ("ggml-base", "ggml-cpu")
_BEFORE = "$DIR-before"
"""The checkout's commit without the patches, in the document's commands."""
_OF_LIBRARIES = {"proof", "suite", "mutants"}
"""Parts that the harness measures on libraries that it builds itself."""


@dataclass(frozen=True, kw_only=True)
class EvidenceRequest:
    """What is asked for.

    Attributes:
        onto: The developer's checkout.
        branch: The branch that it gets.
        folder: Where the evidence goes; new or empty.
        parts: Some of `evidence.PARTS`.
        model: A GGUF; without one its parts are not measured.
        text: For perplexity.
        threads: Of llama.cpp's programs.
        rounds: Of `llama-bench`.
        context: Tokens of a context in perplexity.
        tests: Arguments of `llama-bench` that say what it measures.
        ops_filter: Regular expression on the cases of `test-backend-ops`.
        suite: What `fa-harness run` runs.
        options: CMake options of llama.cpp.
    """

    onto: Path
    branch: str
    folder: Path
    parts: tuple[str, ...] = tuple(PARTS)
    model: Path | None = None
    text: Path | None = None
    threads: int = field(default_factory=usable_cores)
    rounds: int = 12
    context: int = 512
    tests: tuple[str, ...] = ("-p", "512", "-n", "32", "-d", "0,2048")
    ops_filter: str | None = None
    suite: str = "default"
    options: Mapping[str, str] = field(default_factory=dict)


def gather(request: EvidenceRequest, *, verbose: bool = False) -> Iterator[Evidence]:
    """Make the branch and gather the evidence; yields what there is after each part.

    Raises:
        UsageError: Something asked for cannot be.
        SetupError: The checkout cannot take the branch, a patch does not apply, something does not
            build, or a program fails. The checkout is as it was until both builds are done and the
            model has run.
    """
    project = find_project()
    _check(request)
    checkout = open_checkout(project, request.onto, request.branch)
    work = project.build / "evidence" / checkout.folder
    with locked(project, f"evidence/{checkout.folder}"):
        commits = make_commits(project, checkout, work / "repository", verbose=verbose)
        if _OF_LIBRARIES & set(request.parts):
            before = work / "before" / "src"
            check_out(commits.repository, commits.base, before, verbose=verbose)
            _try_series(project, before, request.onto, verbose=verbose)
        builds = _build(request, work, commits, verbose=verbose)
    gatherer = _Gatherer(request, checkout, builds)
    gatherer.try_model()
    make_branch(checkout, commits, request.branch)
    terminal.stage(f"{checkout.path} has the branch '{request.branch}'")
    sections: list[Section] = []
    for part in request.parts:
        sections.append(gatherer.measure(part))
        yield _evidence(gatherer, commits, sections)


def _check(request: EvidenceRequest) -> None:
    """Find out before anything is built whether it can work."""
    unknown = sorted(set(request.parts) - set(PARTS))
    if unknown:
        raise UsageError(f"part '{unknown[0]}' is unknown; there are {', '.join(PARTS)}")
    if request.rounds < MIN_ROUNDS:
        raise UsageError(f"--rounds {request.rounds}: an interval needs {MIN_ROUNDS} at least")
    if request.folder.exists() and (not request.folder.is_dir() or any(request.folder.iterdir())):
        raise UsageError(f"{request.folder} exists and is not empty; name another with --out")
    if request.text is not None and not request.text.is_file():
        raise UsageError(f"--text {request.text}: there is no such file")
    if request.model is not None:
        size, free = request.model.stat().st_size, available_memory()
        if free is not None and size > free:
            raise SetupError(
                f"model {request.model} has {size / 2**30:.1f} GiB and {free / 2**30:.1f} GiB of "
                "memory are available; take a smaller one, or one quantised further"
            )


def _build(
    request: EvidenceRequest, work: Path, commits: Commits, *, verbose: bool
) -> dict[str, Programs]:
    targets = [TEST_BACKEND_OPS]
    if request.model is not None:
        targets += [BENCH, PERPLEXITY]
    return {
        name: build_programs(
            commits.repository,
            commit,
            work / name,
            targets,
            label=f"llama.cpp {what}",
            options=request.options,
            verbose=verbose,
        )
        for name, commit, what in (
            ("before", commits.base, "as it is"),
            ("after", commits.tip, "with the patches"),
        )
    }


def _try_series(project: Project, src: Path, onto: Path, *, verbose: bool) -> None:
    """Find out whether the series applies as libraries are built, to the line.

    Raises:
        SetupError: It needs to be merged, which commits are.
    """
    source = source_of(src)
    try:
        series = series_for(project, source)
        prepare_tree(project, source, series, exactly=True, verbose=verbose)
    except SetupError as error:
        parts = ", ".join(part for part in PARTS if part in _OF_LIBRARIES)
        raise SetupError(
            f"{error}\nthe parts {parts} need that: fa-harness series rebase --onto {onto} first, "
            f"or leave them out with --skip; nothing was changed in {onto}"
        ) from error


def _evidence(gatherer: _Gatherer, commits: Commits, sections: Sequence[Section]) -> Evidence:
    request, setup = gatherer.request, gatherer.builds["before"].setup
    patches = gatherer.checkout.series.patches
    options = " ".join(f"-D{name}={value}" for name, value in setup["options"].items())  # type: ignore[attr-defined]
    targets = " ".join(path for path in (TEST_BACKEND_OPS, BENCH, PERPLEXITY))
    build = [
        f"git -C $DIR worktree add --detach $DIR-{name} {commit}\n"
        f"cmake -S $DIR-{name} -B $DIR-{name}/build {options}\n"
        f"cmake --build $DIR-{name}/build --target {targets}"
        for name, commit in (("before", commits.base), ("after", request.branch))
    ]
    return Evidence(
        tool_version=__version__,
        branch=request.branch,
        base=commits.base,
        tip=commits.tip,
        subjects=tuple(title(patch) for patch in patches),
        machine={
            "CPU": cpu_model(),
            "threads": f"{request.threads} of {usable_cores()} usable cores",
            "memory": _memory(),
            "system": f"{platform.system()} {platform.release()}",
            "compiler": str(setup["cxx_compiler"]),
            "CMake options": options,
            **({"model": request.model.name} if request.model else {}),
            **gatherer.traps,
        },
        variables=gatherer.variables,
        build=tuple(build),
        sections=tuple(sections),
    )


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return "unknown"
    return f"{total / 2**30:.1f} GiB"


class _Gatherer:
    """Runs what gives the numbers, keeps what it printed, and makes the sections."""

    def __init__(
        self, request: EvidenceRequest, checkout: Checkout, builds: Mapping[str, Programs]
    ) -> None:
        self.request = request
        self.checkout = checkout
        self.builds = builds
        self.traps: dict[str, str] = {}
        """What this machine does not do as it says."""
        self.variables = {
            "DIR": shlex.quote(str(checkout.path)),
            **{name.upper(): shlex.quote(str(built.bin)) for name, built in builds.items()},
        }
        if request.model is not None:
            self.variables["MODEL"] = shlex.quote(str(request.model))
        if request.text is not None:
            self.variables["TEXT"] = shlex.quote(str(request.text))
        with writing(request.folder):
            (request.folder / "raw").mkdir(parents=True, exist_ok=True)

    def try_model(self) -> None:
        """Find out whether the model runs, and how, if a part needs it.

        Raises:
            SetupError: It does not.
        """
        if self.request.model is None or not {"bench", "perplexity"} & set(self.request.parts):
            return
        raw = self.request.folder / "raw"
        if is_trapped(self.builds["before"], self.request.model, self.request.threads, raw):
            self.traps["trap"] = TRAP

    def measure(self, part: str) -> Section:
        """Measure a part."""
        if part in ("bench", "perplexity") and self.request.model is None:
            return skipped_section(part, "no --model")
        if part == "perplexity" and self.request.text is None:
            return skipped_section(part, "no --text")
        terminal.stage(f"gathering: {PARTS[part]}")
        measure: Callable[[], Section] = getattr(self, f"_{part}")
        return measure()

    # parts

    def _ops(self) -> Section:
        found, ended, commands = {}, {}, []
        for name, op in (("before", "FLASH_ATTN_EXT"), ("after", "FLASH_ATTN_EXT.*")):
            program = self.builds[name].program(TEST_BACKEND_OPS)
            arguments = ["test", "-b", "CPU", "-o", op]
            if self.request.ops_filter:
                arguments += ["-p", self.request.ops_filter]
            if self._ops_in_parallel(program):
                arguments += ["-j", str(self.request.threads)]
            output, ended[name] = self._run_to_end(name, program, arguments)
            found[name] = parse_ops(output)
            commands.append(self._shown(name, TEST_BACKEND_OPS, arguments))
        return ops_section(
            found["before"],
            found["after"],
            ended=(ended["before"], ended["after"]),
            commands=tuple(commands),
        )

    def _ops_in_parallel(self, program: Path) -> bool:
        """Tell whether it knows -j; older ones print their usage for what they do not know."""
        try:
            return "-j <n>" in proc.run([program, "--help"])
        except ProgramError as error:
            return "-j <n>" in error.output

    def _proof(self) -> Section:
        documents, commands = {}, []
        for suite in _PROOF_SUITES:
            arguments = ["series", "status", "--suite", suite]
            documents[suite], command = self._harness(f"proof-{suite}.json", arguments)
            commands.append(command)
        return proof_section(documents, _BEFORE, commands=tuple(commands))

    def _suite(self) -> Section:
        _, build = self._harness(None, ["build", "patched"])
        suite = self.request.suite
        document, command = self._harness("run.json", ["run", "--suite", suite], may_fail=True)
        return suite_section(document, suite, commands=(build, command))

    def _mutants(self) -> Section:
        _, build = self._harness(None, ["build", "mutants"])
        document, command = self._harness("mutants.json", ["mutants"], may_fail=True)
        return mutants_section(document, commands=(build, command))

    def _bench(self) -> Section:
        arguments = [
            *("-m", str(self.request.model), "-t", str(self.request.threads)),
            *self.request.tests,
            *("-fa", "1", "-r", "1", "-o", "json"),
            *self._no_repack(BENCH),
        ]
        found: dict[str, list[dict[str, float]]] = {name: [] for name in self.builds}
        for n, name in self._rounds(self.request.rounds, "llama-bench"):
            program = self.builds[name].program(BENCH)
            output = self._run(f"{name}-{n + 1}", program, arguments)
            found[name].append(parse_bench(output))
        commands = tuple(self._shown(name, BENCH, arguments) for name in self.builds)
        notes = (
            f"{self.request.rounds} processes each, in turn; medians, and of the ratios the "
            "interval of coverage 99 %",
            *self.traps.values(),
        )
        return bench_section(found["before"], found["after"], commands=commands, notes=notes)

    def _perplexity(self) -> Section:
        arguments = [
            *("-m", str(self.request.model), "-f", str(self.request.text)),
            *("-c", str(self.request.context), "-t", str(self.request.threads), "-fa", "on"),
            *self._no_repack(PERPLEXITY),
        ]
        found: dict[str, list[Pass]] = {name: [] for name in self.builds}
        for n, name in self._rounds(2, "llama-perplexity"):
            program = self.builds[name].program(PERPLEXITY)
            log = self.request.folder / "raw" / f"{PERPLEXITY}-{name}-{n + 1}.txt"
            perplexity, seconds = measure([program, *arguments], {}, log)
            found[name].append(Pass(perplexity=perplexity, seconds=seconds))
        commands = tuple(self._shown(name, PERPLEXITY, arguments) for name in self.builds)
        return perplexity_section(found["before"], found["after"], commands=commands)

    def _size(self) -> Section:
        sizes = {}
        for name, built in self.builds.items():
            found = {
                path.name: path.stat().st_size
                for path in sorted(built.bin.iterdir())
                if path.is_file()
                and not path.is_symlink()
                and any(f"lib{library}." in path.name for library in _LIBRARIES)
            }
            sizes[name] = found
        commands = tuple(f"ls -lL ${name.upper()}/libggml-*.so" for name in self.builds)
        return size_section(sizes["before"], sizes["after"], commands=commands)

    # running

    def _rounds(self, n: int, what: str) -> Iterator[tuple[int, str]]:
        """Yield which build runs next: before and after in turn, in an order drawn anew."""
        with terminal.bar(f"running {what}") as advance:
            for i in range(n):
                names = list(self.builds)
                random.shuffle(names)
                for k, name in enumerate(names):
                    advance(i * len(names) + k, n * len(names))
                    yield i, name

    def _no_repack(self, program_name: str) -> list[str]:
        return no_repack(program_name) if self.traps else []

    def _run(self, name: str, program: Path, arguments: Sequence[str]) -> str:
        """Run a program of llama.cpp; returns what it printed."""
        log = self.request.folder / "raw" / f"{program.name}-{name}.txt"
        return proc.run([program, *arguments], log=log)

    def _run_to_end(self, name: str, program: Path, arguments: Sequence[str]) -> tuple[str, int]:
        """Run a program whose exit status is a result; returns what it printed, and that.

        Raises:
            ProgramError: A signal ended it.
        """
        try:
            return self._run(name, program, arguments), 0
        except ProgramError as error:
            if error.status < 0:
                raise
            return error.output, error.status

    def _harness(
        self, report: str | None, arguments: Sequence[str], *, may_fail: bool = False
    ) -> tuple[dict[str, object], str]:
        """Run the harness on the checkout's commit; returns its JSON report and the command.

        Args:
            report: File name of the report, for commands that write one.
            arguments: Of the harness.
            may_fail: Its finding that something is wrong, exit status 1, is a result.
        """
        shown = f"UPSTREAM_DIR={_BEFORE} fa-harness {shlex.join(arguments)}"
        words = [sys.executable, "-m", "fa_harness.cli", *arguments]
        if report is None:
            self._harness_run(words)
            return {}, shown
        path = self.request.folder / "raw" / report
        try:
            self._harness_run([*words, "--json", str(path)])
        except ProgramError as error:
            if not may_fail or error.status != 1 or not path.is_file():
                raise
        return json.loads(path.read_text(encoding="utf-8")), shown

    def _harness_run(self, words: Sequence[str]) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "UPSTREAM"}
        # not the checkout: the developer may go on with it meanwhile
        environment["UPSTREAM_DIR"] = str(self.builds["before"].src)
        proc.run(words, env=environment)

    def _shown(self, name: str, program: str, arguments: Sequence[str]) -> str:
        """Return a command with the names of the document's variables."""
        values = {str(self.request.model): "$MODEL", str(self.request.text): "$TEXT"}
        words = [values.get(word) or shlex.quote(word) for word in arguments]
        return " ".join([f"${name.upper()}/{program}", *words])
