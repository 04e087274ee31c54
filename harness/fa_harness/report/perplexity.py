"""Perplexities of a model in segments and with caches of two types: tables, and JSON.

Schema `fa-harness.perplexity/1`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.text import Text

from fa_harness.model.perplexity import CacheRun, Judgement, Perplexity, Setting

SCHEMA = "fa-harness.perplexity/1"


@dataclass(frozen=True, kw_only=True)
class EndToEnd:
    """What came of all runs.

    Attributes:
        model: Its file's name.
        setting: Of all runs.
        judgements: Of the runs with segments.
        results: Of these and the standard run, by name.
        caches: Uniform caches and mixed ones; empty where they were not asked for.
        commands: Of each run, by name.
    """

    model: str
    setting: Setting
    judgements: tuple[Judgement, ...]
    results: Mapping[str, Perplexity]
    caches: tuple[tuple[CacheRun, Perplexity], ...]
    commands: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether each run is as near to the standard one as it must be."""
        return all(each.ok for each in self.judgements)


def print_segments(
    console: Console,
    setting: Setting,
    judgements: Sequence[Judgement],
    results: Mapping[str, Perplexity],
    commands: Mapping[str, str],
) -> None:
    """Print a line for each run with segments, and how to repeat those that are off."""
    console.print(Text(_title(setting), style="bold"), soft_wrap=True)
    names = [name for name in results if name not in {each.name for each in judgements}]
    for name in names:
        console.print(Text(f"  {name:12}  {_value(results[name])}"), soft_wrap=True)
    for each in judgements:
        line = Text(f"  {each.name:12}  {_value(results[each.name])}  ")
        line.append(each.message, style="green" if each.ok else "bold red")
        console.print(line, soft_wrap=True)
        if not each.ok:
            console.print(Text(f"    {commands[each.name]}", style="dim"), soft_wrap=True)


def print_caches(
    console: Console, setting: Setting, caches: Collection[tuple[CacheRun, Perplexity]]
) -> None:
    """Print a line for each cache, those of one size together."""
    console.print(Text(f"KV caches at {setting.n_ctx} tokens", style="bold"), soft_wrap=True)
    console.print(Text(f"  {'bytes per element':>17}  {'cache':24}  perplexity"), soft_wrap=True)
    for cache, found in sorted(caches, key=lambda each: -each[0].bytes_per_element):
        size = f"{cache.bytes_per_element:17.4f}"
        console.print(Text(f"  {size}  {cache.run.name:24}  {_value(found)}"), soft_wrap=True)


def render(result: EndToEnd) -> str:
    """Return the JSON document, ending in a newline."""
    document = {
        "schema": SCHEMA,
        "passed": result.passed,
        "model": result.model,
        "setting": asdict(result.setting),
        "runs": {name: asdict(found) for name, found in result.results.items()},
        "judgements": [asdict(each) for each in result.judgements],
        "caches": [
            {
                "name": cache.run.name,
                "bytes_per_element": cache.bytes_per_element,
                "hot_window": cache.hot,
                **asdict(found),
            }
            for cache, found in result.caches
        ],
        "commands": dict(result.commands),
    }
    return json.dumps(document, indent=1) + "\n"


def _title(setting: Setting) -> str:
    words = [f"perplexity, context {setting.n_ctx}, {setting.n_ubatch} rows a graph"]
    words.append(f"{setting.chunks} chunks, {setting.threads} threads")
    words += [f"window {setting.n_swa}"] if setting.n_swa else []
    return ", ".join(words)


def _value(found: Perplexity) -> str:
    return f"{found.estimate:.4f} +/- {found.error:.5f}"
