"""Put the series on a developer's checkout as a branch, and gather the evidence for it."""

from __future__ import annotations

import json
import os
import platform
import random
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fa_harness import __version__, proc, terminal
from fa_harness.build.places import Copy
from fa_harness.errors import SetupError, UsageError
from fa_harness.machine import available_memory, cpu_model, usable_cores
from fa_harness.model import evidence
from fa_harness.model.checkout import Checkout, make_branch, make_commits, open_checkout
from fa_harness.model.evidence import PARTS, Evidence, Pass, Section
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
from fa_harness.series.rework import command_of
from fa_harness.series.series import series_for, title
from fa_harness.series.tree import prepare_tree
from fa_harness.speed.bench import MIN_ROUNDS
from fa_harness.upstream.git import check_out, git
from fa_harness.upstream.source import source_of

_PROOF_SUITES = ("seed", "smoke")
_LIBRARIES = ("libggml-base.", "libggml-cpu.")
_BEFORE = "$DIR-before"
"""The checkout without the patches, as the document's commands name it."""
_OF_LIBRARIES = {"proof", "suite", "mutants"}
"""Parts that the harness measures on libraries that it builds itself."""
_OF_MODEL = {"bench", "perplexity"}

_Found = tuple[Section, list[str]]
"""A section, and the commands that reproduce its numbers."""


@dataclass(frozen=True, kw_only=True)
class EvidenceRequest:
    """What is asked for."""

    series: str | None
    """The series that is put on the branch; None for the default one."""
    onto: Path
    branch: str
    folder: Path
    parts: tuple[str, ...]  # some of `PARTS`
    model: Path | None  # a GGUF; without one, the parts that run a model are not measured
    text: Path
    threads: int
    rounds: int
    tests: tuple[str, ...]  # arguments of `llama-bench` that say what it measures
    ops_filter: str | None  # regular expression on the cases of `test-backend-ops`
    suite: str
    options: Mapping[str, str]  # CMake options of llama.cpp


def gather(request: EvidenceRequest, *, verbose: bool = False) -> Iterator[Evidence]:
    """Make the branch and gather the evidence; yield all of it after each part.

    The checkout does not change until both builds are done and the model has run.
    """
    project = find_project(stack=request.series)
    _check(request)
    checkout = open_checkout(project, request.onto, request.branch)
    work = project.build / "evidence" / checkout.folder
    with locked(project, f"evidence/{checkout.folder}"):
        repository = work / "repository"
        tip = make_commits(project, checkout, repository, verbose=verbose)
        if _OF_LIBRARIES & set(request.parts):
            before = work / "before" / "src"
            check_out(repository, checkout.head, before, verbose=verbose)
            _try_series(project, before, request.onto, verbose=verbose)
        builds = _build(request, checkout, work, tip, verbose=verbose)
    with writing(request.folder):
        (request.folder / "raw").mkdir(parents=True, exist_ok=True)
    gatherer = _Gatherer(
        project=project, request=request, checkout=checkout, tip=tip, builds=builds
    )
    gatherer.try_model()
    make_branch(checkout, repository, request.branch)
    terminal.stage(f"{checkout.path} has the branch '{request.branch}'")
    sections: list[Section] = []
    for part in request.parts:
        sections.append(gatherer.measure(part))
        yield gatherer.evidence(sections)


def _check(request: EvidenceRequest) -> None:
    """Refuse what cannot work before anything is built."""
    unknown = sorted(set(request.parts) - set(PARTS))
    if unknown:
        raise UsageError(f"part '{unknown[0]}' is unknown; there are {', '.join(PARTS)}")
    if request.rounds < MIN_ROUNDS:
        raise UsageError(f"--rounds {request.rounds}: an interval needs {MIN_ROUNDS} at least")
    if request.folder.exists() and (not request.folder.is_dir() or any(request.folder.iterdir())):
        raise UsageError(f"{request.folder} exists and is not empty; name another with --out")
    if not request.text.is_file():
        raise UsageError(f"--text {request.text}: there is no such file")
    if request.model is not None:
        size, free = request.model.stat().st_size, available_memory()
        if free is not None and size > free:
            raise SetupError(
                f"model {request.model} has {size / 2**30:.1f} GiB and {free / 2**30:.1f} GiB of "
                "memory are available; take a smaller one, or one quantised further"
            )


def _build(
    request: EvidenceRequest, checkout: Checkout, work: Path, tip: str, *, verbose: bool
) -> dict[str, Programs]:
    targets = [TEST_BACKEND_OPS, *([BENCH, PERPLEXITY] if request.model is not None else [])]
    repository = work / "repository"
    files = git(repository, "ls-tree", "-r", "-z", "--name-only", checkout.head)
    own = {name: checkout.path / name for name in files.split("\0") if name}
    return {
        name: build_programs(
            Copy(
                src=work / name / "src",
                cmake=work / name / "cmake",
                own=own,
                repository=repository,
                before=checkout.head,
                after=commit,
            ),
            targets,
            label=f"llama.cpp {what}",
            options=request.options,
            verbose=verbose,
        )
        for name, commit, what in (
            ("before", checkout.head, "as it is"),
            ("after", tip, "with the patches"),
        )
    }


def _try_series(project: Project, src: Path, onto: Path, *, verbose: bool) -> None:
    """Refuse a series that only a merge can apply: libraries are built of exact patches."""
    source = source_of(src)
    try:
        series = series_for(project, source)
        prepare_tree(project, source, series, exactly=True, verbose=verbose)
    except SetupError as error:
        parts = ", ".join(part for part in PARTS if part in _OF_LIBRARIES)
        raise SetupError(
            f"{error}\nthe parts {parts} need that: {command_of(project, 'rebase')} --onto "
            f"{onto} first, or leave them out with --skip; nothing was changed in {onto}"
        ) from error


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return "unknown"
    return f"{total / 2**30:.1f} GiB"


@dataclass(kw_only=True)
class _Gatherer:
    """Runs the programs, keeps their output, and makes the sections."""

    project: Project
    request: EvidenceRequest
    checkout: Checkout
    tip: str
    """The last commit of the branch."""
    builds: Mapping[str, Programs]
    traps: dict[str, str] = field(default_factory=dict)
    """What this machine advertises and does not do."""

    @property
    def _of_series(self) -> list[str]:
        """The option that names the series, if one was named."""
        return ["--series", self.request.series] if self.request.series else []

    @property
    def _raw(self) -> Path:
        return self.request.folder / "raw"

    def try_model(self) -> None:
        """Run the model, if a part needs it, and find out whether the machine has a trap."""
        request = self.request
        if request.model is None or not _OF_MODEL & set(request.parts):
            return
        if is_trapped(self.builds["before"], request.model, request.threads, self._raw):
            self.traps["trap"] = TRAP

    def measure(self, part: str) -> Section:
        """Measure a part."""
        if part in _OF_MODEL and self.request.model is None:
            return evidence.skipped_section(part, "no --model")
        if part == "mutants" and not self.project.mutants.is_dir():
            return evidence.skipped_section(part, f"series '{self.project.series}' has none")
        terminal.stage(f"gathering: {PARTS[part]}")
        found: Callable[[], _Found] = getattr(self, f"_{part}")
        section, commands = found()
        return replace(section, commands=tuple(commands))

    def evidence(self, sections: Sequence[Section]) -> Evidence:
        """Return all that was gathered."""
        request, setup = self.request, self.builds["before"].setup
        options = " ".join(f"-D{name}={value}" for name, value in setup["options"].items())  # type: ignore[attr-defined]
        build = [
            f"git -C $DIR worktree add --detach $DIR-{name} {commit}\n"
            f"cmake -S $DIR-{name} -B $DIR-{name}/build {options}\n"
            f"cmake --build $DIR-{name}/build --target {TEST_BACKEND_OPS} {BENCH} {PERPLEXITY}"
            for name, commit in (("before", self.checkout.head), ("after", request.branch))
        ]
        paths: dict[str, Path | None] = {
            "DIR": self.checkout.path,
            **{name.upper(): built.bin for name, built in self.builds.items()},
            "MODEL": request.model,
            "TEXT": request.text,
        }
        return Evidence(
            tool_version=__version__,
            branch=request.branch,
            base=self.checkout.head,
            tip=self.tip,
            subjects=tuple(title(patch) for patch in self.checkout.series.patches),
            machine={
                "CPU": cpu_model(),
                "threads": f"{request.threads} of {usable_cores()} usable cores",
                "memory": _memory(),
                "system": f"{platform.system()} {platform.release()}",
                "compiler": str(setup["cxx_compiler"]),
                "CMake options": options,
                **({"model": request.model.name} if request.model else {}),
                **self.traps,
            },
            variables={name: shlex.quote(str(path)) for name, path in paths.items() if path},
            build=tuple(build),
            sections=tuple(sections),
        )

    # parts

    def _ops(self) -> _Found:
        found, ended, commands = [], [], []
        for name, op in (("before", "FLASH_ATTN_EXT"), ("after", "FLASH_ATTN_EXT.*")):
            program = self.builds[name].program(TEST_BACKEND_OPS)
            arguments = ["test", "-b", "CPU", "-o", op]
            if self.request.ops_filter:
                arguments += ["-p", self.request.ops_filter]
            if _runs_in_parallel(program):
                arguments += ["-j", str(self.request.threads)]
            log = self._raw / f"{TEST_BACKEND_OPS}-{name}.txt"
            output, status = _output([program, *arguments], log)
            found.append(evidence.parse_ops(output))
            ended.append(status)
            commands.append(self._shown(name, TEST_BACKEND_OPS, arguments))
        return evidence.ops_section(*found, ended=ended), commands

    def _proof(self) -> _Found:
        documents, commands = {}, []
        for suite in _PROOF_SUITES:
            arguments = ["series", "status", *self._of_series, "--suite", suite]
            documents[suite], command = self._harness(arguments, f"proof-{suite}.json")
            commands.append(command)
        return evidence.proof_section(documents, _BEFORE), commands

    def _suite(self) -> _Found:
        library, suite = self.project.stack_name, self.request.suite
        _, build = self._harness(["build", library])
        run = ["run", *(["--library", library] if self._of_series else []), "--suite", suite]
        document, command = self._harness(run, "run.json", may_fail=True)
        return evidence.suite_section(document, suite), [build, command]

    def _mutants(self) -> _Found:
        _, build = self._harness(["build", f"{self.project.stack_name}@mutants"])
        run = ["mutants", *self._of_series]
        document, command = self._harness(run, "mutants.json", may_fail=True)
        return evidence.mutants_section(document), [build, command]

    def _bench(self) -> _Found:
        arguments = [
            *("-m", str(self.request.model), "-t", str(self.request.threads)),
            *self.request.tests,
            *("-fa", "1", "-r", "1", "-o", "json"),
            *(no_repack(BENCH) if self.traps else ()),
        ]
        found: dict[str, list[dict[str, float]]] = {name: [] for name in self.builds}
        for n, name in self._rounds(self.request.rounds, BENCH):
            command = [self.builds[name].program(BENCH), *arguments]
            output = proc.run(command, log=self._raw / f"{BENCH}-{name}-{n}.txt")
            found[name].append(evidence.parse_bench(output))
        notes = (
            f"{self.request.rounds} processes each, in turn; medians, and of the ratios the "
            "interval of coverage 99 %",
            *self.traps.values(),
        )
        section = evidence.bench_section(found["before"], found["after"], notes)
        return section, [self._shown(name, BENCH, arguments) for name in self.builds]

    def _perplexity(self) -> _Found:
        arguments = [
            *("-m", str(self.request.model), "-f", str(self.request.text)),
            *("-c", "512", "-t", str(self.request.threads), "-fa", "on"),
            *(no_repack(PERPLEXITY) if self.traps else ()),
        ]
        found: dict[str, list[Pass]] = {name: [] for name in self.builds}
        for n, name in self._rounds(2, PERPLEXITY):
            command = [self.builds[name].program(PERPLEXITY), *arguments]
            perplexity, seconds = measure(command, {}, self._raw / f"{PERPLEXITY}-{name}-{n}.txt")
            found[name].append(Pass(perplexity=perplexity, seconds=seconds))
        section = evidence.perplexity_section(found["before"], found["after"])
        return section, [self._shown(name, PERPLEXITY, arguments) for name in self.builds]

    def _size(self) -> _Found:
        sizes = {
            name: {
                path.name: path.stat().st_size
                for path in sorted(built.bin.iterdir())
                if path.is_file()
                and not path.is_symlink()
                and any(library in path.name for library in _LIBRARIES)
            }
            for name, built in self.builds.items()
        }
        commands = [f"ls -lL ${name.upper()}/libggml-*.so" for name in self.builds]
        return evidence.size_section(sizes["before"], sizes["after"]), commands

    # running

    def _rounds(self, n: int, what: str) -> Iterator[tuple[int, str]]:
        """Yield the round, from 1 on, and the build that runs next, in an order drawn anew."""
        with terminal.bar(f"running {what}") as advance:
            for i in range(n):
                names = list(self.builds)
                random.shuffle(names)
                for k, name in enumerate(names):
                    advance(i * len(names) + k, n * len(names))
                    yield i + 1, name

    def _harness(
        self, arguments: Sequence[str], report: str | None = None, *, may_fail: bool = False
    ) -> tuple[dict[str, object], str]:
        """Run the harness on the checkout's commit and return its JSON report and the command.

        If it `may_fail`, exit status 1 is a result: something is wrong.
        """
        shown = f"UPSTREAM_DIR={_BEFORE} fa-harness {shlex.join(arguments)}"
        path = self._raw / report if report else None
        words = [sys.executable, "-m", "fa_harness.cli", *arguments]
        environment = {k: v for k, v in os.environ.items() if k != "UPSTREAM"}
        # not the checkout, which the developer may change meanwhile
        environment["UPSTREAM_DIR"] = str(self.builds["before"].src)
        try:
            proc.run([*words, *(["--json", str(path)] if path else [])], env=environment)
        except ProgramError as error:
            if not may_fail or error.status != 1 or path is None or not path.is_file():
                raise
        return json.loads(path.read_text(encoding="utf-8")) if path else {}, shown

    def _shown(self, name: str, program: str, arguments: Sequence[str]) -> str:
        """Return a command with the names of the document's variables."""
        values = {str(self.request.model): "$MODEL", str(self.request.text): "$TEXT"}
        words = [values.get(word) or shlex.quote(word) for word in arguments]
        return " ".join([f"${name.upper()}/{program}", *words])


def _runs_in_parallel(program: Path) -> bool:
    """Tell whether the program knows `-j`; older ones have no `--help` and print their usage."""
    try:
        return "-j <n>" in proc.run([program, "--help"])
    except ProgramError as error:
        return "-j <n>" in error.output


def _output(command: Sequence[str | Path], log: Path) -> tuple[str, int]:
    """Run a program whose exit status is a result; return its output and the status."""
    try:
        return proc.run(command, log=log), 0
    except ProgramError as error:
        if error.status < 0:  # a signal
            raise
        return error.output, error.status
