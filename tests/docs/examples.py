"""The fenced blocks of README and docs, and how what they show is compared with what is printed.

A block of the language `console` holds commands, `$ ...`, and the output below each. What must be
stable is compared:

- `...` in a line stands for any text; a line of its own for any lines, also none.
- A number with a decimal point or an exponent, a percentage and a factor (`485 x`) stand for any
  such number. `0.00e+00`, the same bits, stands for itself.
- Spaces in a row count as one.

A block that is not run has `<!-- not run: REASON -->` above it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))

_FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+?) -->\n+)?"
    r"^```(?P<language>\w*)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_NUMBER = re.compile(
    r"(?<![\w.-])(?!0\.00e\+00\b)(\d+(?:\.\d+)?(?:e[+-]\d+)?)(%| x\b)?(?![\w.]*\w)"
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    """Where its text begins."""
    language: str
    body: str
    reason: str | None
    """Why it is not run; None where it is."""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of a console block, and what it shows below."""

    text: str
    shown: list[str] = field(default_factory=list)


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    text = page.read_text()
    for found in _FENCE.finditer(text):
        yield Block(
            page=page,
            line=text.count("\n", 0, found.start("body")) + 1,
            language=found["language"],
            body=found["body"],
            reason=found["reason"],
        )


def commands(block: Block) -> list[Command]:
    """Return the commands of a console block."""
    found: list[Command] = []
    for line in block.body.splitlines():
        if line.startswith("$ "):
            found.append(Command(text=line[2:]))
        else:
            found[-1].shown.append(line)
    return found


def invocations(command: str) -> Iterator[list[str]]:
    """Yield the words of each program that a command starts."""
    words: list[str] = []
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.commenters = "#"
    for word in [*lexer, ";"]:
        if set(word) <= set("();<>|&"):
            if words:
                yield words
            words = []
        elif words or not re.match(r"[A-Z_]+=", word):
            words.append(word)


def matches(shown: list[str], printed: str) -> bool:
    """Tell whether a command printed what a page shows."""
    pattern = "".join(
        r"(?:.*\n)*" if line.strip() == "..." else _line_pattern(line) + r"\n" for line in shown
    )
    lines = [_stable(line) + "\n" for line in printed.splitlines()]
    return re.fullmatch(pattern, "".join(lines)) is not None


def _line_pattern(line: str) -> str:
    return ".*".join(re.escape(part) for part in _stable(line).split("..."))


def _stable(line: str) -> str:
    """Return a line without what may differ from machine to machine."""
    return re.sub(r"\s+", " ", _NUMBER.sub(_without_digits, line)).strip()


def _without_digits(found: re.Match[str]) -> str:
    number, unit = found[1], found[2] or ""
    return f"#{unit}" if unit or not number.isdecimal() else number
