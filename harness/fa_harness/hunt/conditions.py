"""The decisions in C and C++ sources: what each branch that gcov counts is called.

gcov counts the arcs of a line and names none of them. The decisions of a statement are read from
its text, in the order in which they are evaluated, and so are the arcs. Of a decision's two arcs
gcov puts that one first whose code comes first: what is evaluated next. That is the operand behind
`&&` if the decision is true and the one behind `||` if it is false; after the last operand it is
the body or the first value, if the decision is true.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

WAYS = ("true", "false")

_ASSERTIONS = re.compile(r"(?:GGML_ASSERT\w*|GGML_ABORT|assert|static_assert|_Static_assert)\s*\(")
_HEAD = re.compile(r"(if|while|for|switch)\b\s*(constexpr\b)?\s*(?=\()")
_LABEL = re.compile(r"(?:else|do|return|case\b[^:?]*:(?!:)|default\s*:|\w+\s*:(?!:))\s*")
_ARM = re.compile(r"\b(case\b[^:?]*?|default)\s*:(?!:)\s*")
_ASSIGNMENT = re.compile(r"(?<![=!<>])=(?!=)|<<=|>>=")
_CONSTANT = re.compile(
    r"[-+]?(?:\d[\w.]*|\.\d\w*|true|false|nullptr|NULL|[A-Z][A-Z0-9_]*|'.*'|\".*\")"
)
_BLANK = re.compile(
    r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|(?<!\w)'(?:\\.|[^'\\\n])+'"
    r"|^[ \t]*\#(?:\\\n|[^\n])*",
    re.S | re.M,
)
_OPEN, _CLOSE = "([{", ")]}"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A condition, or a `switch`, and the ways out of it in the order of gcov's arcs."""

    text: str
    ways: tuple[str, ...]
    """`true` and `false`, or the labels of a `switch`; an empty one only aborts."""
    is_switch: bool = False


@dataclass(frozen=True, kw_only=True)
class Statement:
    """Statements that share lines, and what they decide."""

    lines: range
    text: str
    decisions: tuple[Decision, ...]
    is_assertion: bool


def statements(source: str) -> list[Statement]:
    """Return the statements of a source file, in order."""
    clean = _BLANK.sub(lambda found: re.sub(r"[^\n]", _filler(found[0]), found[0]), source)
    starts = [0, *(found.end() for found in re.finditer("\n", clean))]
    groups: list[tuple[range, list[tuple[int, int]]]] = []
    for start, end in _pieces(clean):
        first = bisect.bisect_right(starts, start)
        lines = range(first, bisect.bisect_right(starts, end - 1) + 1)
        if groups and lines.start < groups[-1][0].stop:
            before, pieces = groups.pop()
            groups.append((range(before.start, max(before.stop, lines.stop)), pieces))
            pieces.append((start, end))
        else:
            groups.append((lines, [(start, end)]))
    return [_statement(source, clean, lines, pieces) for lines, pieces in groups]


def _statement(
    source: str, clean: str, lines: range, pieces: Sequence[tuple[int, int]]
) -> Statement:
    found: list[Decision] = []
    for start, end in pieces:
        reader = _Reader(source, clean)
        reader.piece(start, end)
        found += reader.found
    return Statement(
        lines=lines,
        text=_told(source[pieces[0][0] : pieces[-1][1]]),
        decisions=tuple(found),
        is_assertion=any(_ASSERTIONS.match(clean, start) for start, _ in pieces),
    )


def _filler(text: str) -> str:
    # a literal stays one word
    return "0" if text[0] in "\"'" else " "


def _told(text: str) -> str:
    """Return source text in one line, without comments."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*|\\\n", " ", text, flags=re.S)
    return " ".join(text.split())


def _pieces(clean: str) -> Iterator[tuple[int, int]]:
    """Yield from where to where the statements are: up to `;`, `{` or `}` outside parentheses."""
    depth, start = 0, 0
    for found in re.finditer(r"[()\[\];{}]", clean):
        mark, at = found[0], found.start()
        if mark in "([":
            depth += 1
        elif mark in ")]":
            depth = max(depth - 1, 0)
        elif depth == 0:
            text = clean[start:at]
            if text.strip():
                yield start + len(text) - len(text.lstrip()), start + len(text.rstrip())
            start = at + 1


class _Reader:
    """Reads what one statement decides into `found`."""

    def __init__(self, source: str, clean: str) -> None:
        self._source, self._clean = source, clean
        self.found: list[Decision] = []

    def piece(self, start: int, end: int) -> None:
        """Read a statement without its body."""
        if _ASSERTIONS.match(self._clean, start):
            return
        while label := _LABEL.match(self._clean, start, end):
            start = label.end()
        head = _HEAD.match(self._clean, start, end)
        if head is None:
            self._value(start, end)
            return
        close = self._closing(head.end())
        inside = (head.end() + 1, close)
        if head[1] == "switch":
            self._value(*inside)
            self._switch(*inside)
        elif head[1] == "for":
            self._loop(*inside)
        elif not head[2]:  # `if constexpr` is decided by the compiler
            self._condition(*inside, first=True)
        self.piece(close + 1, end)

    def _loop(self, start: int, end: int) -> None:
        parts = self._split(start, end, ";")
        if len(parts) == 1:  # over a range
            self._add(start, end, first=True)
            return
        self._value(*parts[0])
        if self._clean[slice(*parts[1])].strip():
            self._condition(*parts[1], first=True)
        for part in parts[2:]:
            self._value(*part)

    def _switch(self, start: int, end: int) -> None:
        body = self._clean.find("{", end)
        close = self._closing(body)
        labels: list[str] = []
        arms: list[str] = []
        for found in _ARM.finditer(self._clean, body, close):
            if self._depth(body, found.start()) != 1:
                continue
            labels.append(self._text(*found.span(1)))
            if not _ARM.match(self._clean, found.end()):
                aborts = re.compile(r"\{?\s*GGML_ABORT").match(self._clean, found.end())
                arms.append("" if aborts else ", ".join(labels))
                labels = []
        if not re.search(r"\bdefault\s*:", self._clean[body:close]):
            arms.append("no case")
        text = f"switch ({self._text(start, end)})"
        self.found.append(Decision(text=text, ways=tuple(arms), is_switch=True))

    # expressions

    def _value(self, start: int, end: int) -> None:
        """Read an expression whose value is used, or a declaration."""
        for part in self._split(start, end, ","):
            assigned = [
                at.end() for at in _ASSIGNMENT.finditer(self._clean, *part) if self._top(part, at)
            ]
            if assigned:
                self._inside(part[0], assigned[0])
            self._condition(assigned[-1] if assigned else part[0], part[1], first=None)

    def _condition(self, start: int, end: int, *, first: bool | None) -> None:
        """Read an expression; `first` is the outcome after which the next code is run.

        None: it is no condition unless it holds one.
        """
        clean = self._clean
        while start < end and clean[start].isspace():
            start += 1
        while end > start and clean[end - 1].isspace():
            end -= 1
        if chosen := self._ternary(start, end):
            question, colon = chosen
            second, third = (question + 1, colon), (colon + 1, end)
            swapped = not self._is_bool(start, question) and _is_swapped(
                clean[slice(*second)].strip(), clean[slice(*third)].strip()
            )
            self._condition(start, question, first=not swapped)
            for arm in (third, second) if swapped else (second, third):
                self._condition(*arm, first=None)
            return
        for operator in ("||", "&&"):
            parts = self._split(start, end, operator)
            if len(parts) > 1:
                for part in parts[:-1]:
                    self._condition(*part, first=operator == "&&")
                self._condition(*parts[-1], first=first is not False)
                return
        if clean[start:end].startswith("(") and self._closing(start) == end - 1:
            self._condition(start + 1, end - 1, first=first)
            return
        negated = re.compile(r"!\s*(?=\()").match(clean, start, end)
        if negated and first is not None and self._closing(negated.end()) == end - 1:
            n_before = len(self.found)
            self._condition(negated.end(), end, first=not first)
            if len(self.found) == n_before + 1:  # one operand is told with its sign
                self.found.pop()
                self._add(start, end, first=first)
            return
        self._inside(start, end)
        if first is not None and clean[start:end] not in ("true", "false", "0", "1"):
            self._add(start, end, first=first)

    def _inside(self, start: int, end: int) -> None:
        """Read what is in the parentheses of an expression."""
        at = start
        while at < end:
            if self._clean[at] in _OPEN:
                close = min(self._closing(at), end)
                self._value(at + 1, close)
                at = close
            at += 1

    def _add(self, start: int, end: int, *, first: bool) -> None:
        ways = WAYS if first else WAYS[::-1]
        self.found.append(Decision(text=self._text(start, end), ways=ways))

    def _is_bool(self, start: int, end: int) -> bool:
        """Tell whether a condition is no comparison, not even with 0: a call, or a `bool`."""
        text = self._clean[start:end].strip()
        if re.fullmatch(r"\w+", text):
            return re.search(rf"\bbool\s+(?:const\s+)?{text}\b", self._clean) is not None
        call = re.match(r"[\w:]+\s*(?=\()", text)
        at = start + self._clean[start:end].index(text) if call else 0
        return call is not None and self._closing(at + call.end()) == at + len(text) - 1

    # places in the text

    def _text(self, start: int, end: int) -> str:
        return _told(self._source[start:end])

    def _closing(self, at: int) -> int:
        """Return where the parenthesis that opens at a place is closed."""
        depth = 0
        for found in re.compile(r"[()\[\]{}]").finditer(self._clean, at):
            depth += 1 if found[0] in _OPEN else -1
            if depth == 0:
                return found.start()
        return len(self._clean)

    def _depth(self, start: int, at: int) -> int:
        text = self._clean[start:at]
        return sum(map(text.count, _OPEN)) - sum(map(text.count, _CLOSE))

    def _top(self, part: tuple[int, int], found: re.Match[str]) -> bool:
        return self._depth(part[0], found.start()) == 0

    def _split(self, start: int, end: int, separator: str) -> list[tuple[int, int]]:
        parts, at = [], start
        for found in re.compile(re.escape(separator)).finditer(self._clean, start, end):
            if self._depth(start, found.start()) == 0:
                parts.append((at, found.start()))
                at = found.end()
        return [*parts, (at, end)]

    def _ternary(self, start: int, end: int) -> tuple[int, int] | None:
        """Return where the `?` and the `:` of an expression are."""
        question, nested = None, 0
        for found in re.compile(r"\?|(?<!:):(?!:)").finditer(self._clean, start, end):
            if self._depth(start, found.start()):
                continue
            if found[0] == ":":
                nested -= 1
                if question is not None and nested == 0:
                    return question, found.start()
            else:
                nested += 1
                question = found.start() if question is None else question
        return None


def _is_swapped(second: str, third: str) -> bool:
    """Tell whether GCC negates the condition of `? second : third` to have the simpler value last.

    It wants constants there, else variables (`tree_swap_operands_p` in its fold-const.cc). A
    `bool` it leaves as it is.
    """
    for is_simple in (_CONSTANT.fullmatch, re.compile(r"[A-Za-z_]\w*").fullmatch):
        if is_simple(third):
            return False
        if is_simple(second):
            return True
    return False
