"""README and docs say what the tool does: their examples are run, their options and links exist."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from docs.examples import PAGES, ROOT, Block, Command, blocks, commands, invocations, matches
from fa_harness.build.library import Library
from fa_harness.cli.main import cli

BLOCKS = [block for page in PAGES for block in blocks(page)]
CONSOLE = [block for block in BLOCKS if block.language == "console"]
PYTHON = [block for block in BLOCKS if block.language == "python"]
NOT_RUN = {
    "README.md": 3,
    "docs/bench.md": 2,
    "docs/captures.md": 1,
    "docs/evidence.md": 1,
    "docs/failures.md": 2,
    "docs/fuzzing.md": 1,
    "docs/gate.md": 3,
    "docs/installation.md": 2,
    "docs/libraries.md": 2,
    "docs/mixed-cache.md": 5,
    "docs/museum.md": 1,
    "docs/mutants.md": 1,
    "docs/real-model.md": 1,
    "docs/run.md": 2,
    "docs/series.md": 6,
    "docs/upstreams.md": 2,
}
"""Console blocks that are not run, by page."""
LANGUAGES = {"console", "python", "text", "make", "yaml", "toml", "ini"}
OTHER_OPTIONS = {
    "--amend", "--fa-library", "--cache-hot", "--cache-type-k-cold", "--cache-type-v-cold",
}  # fmt: skip
"""Options of git, of pytest and of llama.cpp."""
SOME_OF_SMOKE = "q8_0"
"""The tests of a pytest example that are run."""


def _environment() -> dict[str, str]:
    inherited = {
        name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ
    }
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**inherited, "PATH": path, "NO_COLOR": "1"}


def _run(command: str, folder: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command in a shell whose last one ended with a status."""
    return subprocess.run(
        ["bash", "-c", f"(exit {status}); {command}"],
        cwd=folder, env=_environment(), text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.usefixtures("pristine", "bug", "patched", "mutated", "museum_library")
@pytest.mark.parametrize(
    "page", sorted({b.page for b in CONSOLE if not b.reason}), ids=lambda p: p.name
)
def test_the_examples_of_a_page_print_what_it_shows(page: Path, tmp_path: Path) -> None:
    wrong, status = [], 0
    for block in (block for block in CONSOLE if block.page == page and not block.reason):
        for command in commands(block):
            done = _run(command.text, tmp_path, status)
            status = done.returncode
            if not matches(command.shown, done.stdout):
                wrong.append(f"{block}\n$ {command.text}\n{done.stdout}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_examples_run(block: Block, patched: Library, tmp_path: Path) -> None:
    file = tmp_path / "test_example.py"
    file.write_text(block.body)
    is_test = "import pytest" in block.body
    pytest_ = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", SOME_OF_SMOKE]
    done = subprocess.run(
        [sys.executable, *(pytest_ if is_test else []), str(file)],
        cwd=tmp_path, env=_environment(), text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_examples_that_are_not_run_are_counted_and_say_why() -> None:
    counted: dict[str, int] = {}
    for block in (block for block in CONSOLE if block.reason):
        name = str(block.page.relative_to(ROOT))
        counted[name] = counted.get(name, 0) + 1
    assert counted == NOT_RUN


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_blocks_are_of_a_known_language_and_commands_are_in_console_blocks(block: Block) -> None:
    assert block.language in LANGUAGES
    assert (block.language == "console") == block.body.startswith("$ ")


@pytest.mark.parametrize("block", CONSOLE, ids=str)
def test_each_command_that_is_shown_is_one_that_there_is(block: Block) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in commands(block):
        for program, *arguments in invocations(command.text):
            if program == "fa-harness":
                _parse(cli, arguments)
            if program == "make":
                assert next(word for word in arguments if "=" not in word) in targets


def _below(command: click.Command) -> dict[str, click.Command]:
    """Return the commands of a group by name."""
    if not isinstance(command, click.Group):
        return {}
    context = click.Context(command)
    found = {name: command.resolve_command(context, [name])[1] for name in command.commands}
    return {name: below for name, below in found.items() if below}


def _parse(command: click.Command, arguments: list[str]) -> None:
    """Let a command read its arguments; one that it does not know is an error."""
    context = click.Context(command, **command.context_settings)
    rest = command.make_parser(context).parse_args(list(arguments))[1]
    if (below := _below(command)) and rest:
        assert rest[0] in below
        _parse(below[rest[0]], rest[1:])


def _options(command: click.Command) -> set[str]:
    own = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    return own.union(*map(_options, _below(command).values()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_option_in_the_text_is_one_that_there_is(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    code = " ".join(re.findall(r"`([^`]+)`", text))
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", code)) <= _options(cli) | OTHER_OPTIONS


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "ARCHITECTURE.md", ROOT / "CHANGELOG.md"], ids=lambda page: page.name
)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
            assert anchor in slugs, target


def test_the_files_in_the_map_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    package = ROOT / "harness" / "fa_harness"
    for name in re.findall(r"`([\w/]+/[\w.]*|\w+\.py)`", text.split("## Where is it decided?")[1]):
        assert (package / name).exists() or (ROOT / name).exists(), name


def test_the_keys_of_a_report_are_those_in_the_docs(patched: Library, tmp_path: Path) -> None:
    _run("fa-harness run --suite seed --json report.json", tmp_path)
    document = json.loads((tmp_path / "report.json").read_text())
    result = document["results"][0]
    sections = re.split(r"^#+ ", (ROOT / "docs" / "json.md").read_text(), flags=re.MULTILINE)
    tables = {section.splitlines()[0]: section for section in sections if section}
    comparison = result["comparisons"]["standard_vs_oracle"]
    records = {"A run": document, "A result": result, "A comparison": comparison}
    for title, record in records.items():
        rows = re.findall(r"^\| (`.+?) \|", tables[title], re.MULTILINE)
        assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(record), title


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        (["a  2.49e+00  485 x"], "a 1.25e+01     3 x\n", True),
        (["hs64 kv250 4 pass"], "hs64 kv250 5 pass\n", False),
        (["std 0.00e+00"], "std 1.00e-07\n", False),
        (["std 1.00e-07"], "std 0.00e+00\n", False),
        (["121 cases: 121 pass | 10.5 s"], "121 cases: 121 pass | 9 s\n", False),
        (["1 case | ggml 0.25.3 | 10.5 s"], "1 case | ggml 0.25.3 | 9.1 s\n", True),
        (["1 case | ggml 0.25.3"], "1 case | ggml 0.25.4\n", False),
        (["a", "...", "b"], "a\nb\n", True),
        (["a", "...", "b"], "a\nx\ny\nb\n", True),
        (["a", "b"], "a\nx\nb\n", False),
        (["run --case 'X(a=1,...,b=2)'"], "run --case 'X(a=1,z=9,b=2)'\n", True),
        ([], "anything\n", False),
    ],
)  # fmt: skip
def test_what_must_be_stable_is_compared(shown: list[str], printed: str, same: bool) -> None:
    assert matches(shown, printed) is same


def test_a_block_is_commands_with_what_they_show() -> None:
    block = Block(
        page=ROOT / "README.md", line=1, language="console", body="$ a\nx\ny\n$ b\n", reason=None
    )
    assert commands(block) == [Command(text="a", shown=["x", "y"]), Command(text="b")]
