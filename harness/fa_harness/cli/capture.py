"""`capture`: run a model through llama.cpp and store what its attention gets and gives."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from fa_harness import __version__, proc, terminal
from fa_harness.case import captures
from fa_harness.case.capture_stream import read_stream
from fa_harness.case.captures import Capture, Entry
from fa_harness.case.quants import TYPES
from fa_harness.cli import options
from fa_harness.errors import UsageError
from fa_harness.files import check_writable, sha256
from fa_harness.machine import usable_cores
from fa_harness.model.llama import CAPTURE, KILLED, TRAP, build_llama
from fa_harness.model.models import find_model, text_path
from fa_harness.project import Project, find_project, writing
from fa_harness.terminal import make_console, say

_WRONG_CALL = 2
"""Exit status of the program where it was asked for what cannot be."""


@dataclass(frozen=True, kw_only=True)
class CaptureRequest:
    """What to capture, as the options say it."""

    layers: tuple[int, ...]
    all_layers: bool
    tokens: int
    ubatch: int | None
    decode: int
    all_steps: bool
    type_k: str
    type_v: str
    type_cold: str | None
    hot: int
    threads: int | None
    no_repack: bool


_request = options.as_record(
    CaptureRequest,
    "request",
    options.numbers(
        "--layers", help="Layers to record.  [default: the first with each kind of mask]"
    ),
    click.option("--all-layers", is_flag=True, help="Record every layer."),
    options.count("--tokens", "Length of the prompt.", default=640),
    options.count("--ubatch", "Tokens per batch; the last batch is recorded.  [default: all]"),
    options.count(
        "--decode", "Decoding steps after the prompt; the last one is recorded.", least=0, default=4
    ),
    click.option(
        "--all-steps", is_flag=True, help="Record every batch and every step, not the last ones."
    ),
    click.option("--type-k", default="f16", metavar="T", help="Type of the K cache."),
    click.option("--type-v", default="f16", metavar="T", help="Type of the V cache."),
    click.option(
        "--type-cold",
        metavar="T",
        help="Type of the K and V of older tokens; takes the series mixed.  [default: one type]",
    ),
    options.count("--hot", "Newest tokens that keep their type, with --type-cold.", default=128),
    options.llama_threads,
    click.option("--no-repack", is_flag=True, help="Do not repack the weights; this avoids AMX."),
)


@click.command("capture")
@options.model(required=True)
@options.file("--text", text="Prompt text.  [default: a built-in text]")
@_request
@options.file("-o", "--out", text="File to write, .npz.", required=True)
@options.verbose
def command(
    *,
    model: str,
    accept_terms: bool,
    text: Path | None,
    request: CaptureRequest,
    out: Path,
    verbose: bool,
) -> None:
    """Record a model's attention for `fa-harness run --captured`.

    llama.cpp evaluates a text on the CPU. For some layers, the file stores Q, K, V, mask, sinks and
    the result of two attention calls: the last batch of the prompt, and one decoding step.

    With --type-cold, llama.cpp is built with the series `mixed`, and its KV cache has two types. A
    call then has two parts: older tokens, and the newest ones.
    """
    check_writable(out)
    if request.layers and request.all_layers:
        raise UsageError("--layers and --all-layers exclude each other; give one")
    project = find_project(stack="mixed") if request.type_cold else find_project()
    found = find_model(project, model, accept_terms=accept_terms)
    capture = capture_model(project, found, text or text_path(), request, out, verbose=verbose)
    print_capture(make_console(stderr=False), capture, out)


def capture_model(
    project: Project, model: Path, text: Path, request: CaptureRequest, out: Path, *, verbose: bool
) -> Capture:
    """Run a model on a text and write a capture of its attention.

    Raises:
        UsageError: There is no such layer, the text is too short, or the harness does not know
            K's or V's type.
    """
    for type_name in (request.type_k, request.type_v, request.type_cold or "f16"):
        if type_name not in TYPES:
            raise UsageError(f"type {type_name!r} is unknown; known are {', '.join(TYPES)}")
    built = build_llama(project, (), own=[CAPTURE], verbose=verbose)
    with tempfile.TemporaryDirectory(prefix="fa-harness-") as folder:
        stream = Path(folder, "stream")
        terminal.stage(f"running {model.name}")
        with writing(stream):
            _run([built.program(CAPTURE), model, text, stream], request, verbose=verbose)
            with stream.open("rb") as file:
                entries = read_stream(file)
    return captures.save(
        out,
        entries,
        model=model.name,
        sha256=sha256(model),
        upstream=built.label,
        tool_version=__version__,
    )


def _run(command: list[str | Path], request: CaptureRequest, *, verbose: bool) -> None:
    options = {
        "--tokens": request.tokens,
        "--ubatch": request.ubatch or request.tokens,
        "--decode": request.decode,
        "--type-k": request.type_k,
        "--type-v": request.type_v,
        "--threads": request.threads or usable_cores(),
    }
    if request.type_cold:
        options |= {"--type-k-cold": request.type_cold, "--type-v-cold": request.type_cold}
        options["--hot"] = request.hot
    if request.all_layers:
        options["--layers"] = "all"
    if request.layers:
        options["--layers"] = ",".join(map(str, request.layers))
    command += [str(word) for option in options.items() for word in option]
    command += ["--all-steps"] * request.all_steps
    try:
        try:
            proc.run([*command, *["--no-repack"] * request.no_repack], verbose=verbose)
        except proc.ProgramError as error:
            if request.no_repack or error.status not in KILLED:
                raise
            terminal.stage(TRAP)
            proc.run([*command, "--no-repack"], verbose=verbose)
    except proc.ProgramError as error:
        if error.status == _WRONG_CALL:
            raise UsageError(error.output.splitlines()[-1]) from error
        raise


def print_capture(console: Console, capture: Capture, file: Path) -> None:
    """Print a line for each call that a capture's file holds."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("call", "head", "heads", "rows", "keys", "seen", "types", "window", "options"):
        table.add_column(name, no_wrap=True)
    for entry in capture.entries:
        table.add_row(
            entry.name,
            str(entry.hsk) if entry.hsk == entry.hsv else f"{entry.hsk}/{entry.hsv}",
            f"{entry.n_head}/{entry.n_head_kv}",
            str(entry.n_batch),
            str(entry.n_kv),
            str(entry.n_kv_seen),
            "+".join(entry.segment_types) or f"{entry.type_K}/{entry.type_V}",
            str(entry.sliding_window or "-"),
            _options(entry),
        )
    console.print(table)
    size = file.stat().st_size / 1e6
    line = f"{file}: {len(capture.entries)} calls of {capture.model}, {size:.1f} MB"
    say(console, line, "bold")


def _options(entry: Entry) -> str:
    words = [f"scale {entry.scale:g}"]
    words += ["sinks"] if entry.has_sinks else []
    words += [f"alibi {entry.max_bias:g}"] if entry.max_bias else []
    words += [f"soft-cap {entry.logit_softcap:g}"] if entry.logit_softcap else []
    words += ["V in K"] if entry.v_is_view_of_k else []
    return ", ".join(words)
