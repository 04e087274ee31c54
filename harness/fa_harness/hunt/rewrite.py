"""A source file with mutants in it: one change each of an operator, a constant, a condition, ...

clang's syntax tree says where the places are. The text is rewritten so that each place asks whether
its mutant is the active one (`native/ggml-fa-generated.h`): one build holds all of them.

Left as they are: what must be constant (types, `sizeof`, array sizes, template arguments, case
labels, `constexpr`, `static_assert`), and uses of macros, whose parts have no place in the text. So
assertions are not changed either; on valid inputs none of them fails.

A template is changed once, for all its instances. Where a type depends on its arguments, clang does
not know whether it is that of a pointer: such operators are left as they are.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clang.cindex import Cursor, CursorKind, TranslationUnit, TypeKind

KINDS = (
    "operator", "comparison", "condition", "constant", "index", "variable", "argument", "type",
    "statement", "barrier",
)  # fmt: skip

_COMPARISONS = {
    "<": ("<=", ">"),
    "<=": ("<", ">"),
    ">": (">=", "<"),
    ">=": (">", "<"),
    "==": ("!=", ">="),
    "!=": ("==", ">"),
}
_ARITHMETIC = {
    "+": ("-", "*"),
    "-": ("+",),
    "*": ("+", "/"),
    "/": ("*",),
    "%": ("/", "*"),
}
_ASSIGNMENTS = {"+=": ("-=", "="), "-=": ("+=", "="), "*=": ("/=",), "/=": ("*=", "=")}
_POINTERS = (
    TypeKind.POINTER, TypeKind.CONSTANTARRAY, TypeKind.INCOMPLETEARRAY,
    TypeKind.DEPENDENTSIZEDARRAY, TypeKind.NULLPTR,
)  # fmt: skip
_DEPENDENT = (TypeKind.DEPENDENT, TypeKind.UNEXPOSED)
"""On the arguments of a template."""
_NUMBERS = (
    TypeKind.BOOL, TypeKind.INT, TypeKind.UINT, TypeKind.LONG, TypeKind.ULONG, TypeKind.LONGLONG,
    TypeKind.ULONGLONG, TypeKind.FLOAT, TypeKind.DOUBLE, TypeKind.POINTER,
)  # fmt: skip
_AS_THEY_ARE = (
    CursorKind.TYPE_REF, CursorKind.CXX_UNARY_EXPR, CursorKind.MEMBER_REF, CursorKind.NAMESPACE_REF,
    CursorKind.TEMPLATE_REF, CursorKind.INIT_LIST_EXPR, CursorKind.STATIC_ASSERT,
)  # fmt: skip
_DEFINED = (
    CursorKind.FUNCTION_DECL, CursorKind.FUNCTION_TEMPLATE, CursorKind.CXX_METHOD,
    CursorKind.CONSTRUCTOR, CursorKind.DESTRUCTOR,
)  # fmt: skip
"""What may have a body."""
_HOLDERS = (
    CursorKind.STRUCT_DECL, CursorKind.CLASS_DECL, CursorKind.CLASS_TEMPLATE, CursorKind.NAMESPACE,
    CursorKind.LINKAGE_SPEC,
)  # fmt: skip
"""What may have such in it."""
_SHOWN = 80
"""Most characters of the text that a change is told with."""

Part = tuple[int, int, str]
"""From where to where in the file, and the new text."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a mutant changes."""

    number: int
    """What the library calls it."""
    file: str
    line: int
    function: str
    kind: str
    """One of `KINDS`."""
    source: str
    """The line's text."""
    before: str
    after: str


class Rewriter:
    """One file of a translation unit.

    Args:
        unit: Parsed with a detailed preprocessing record.
        path: The file.
        shown: Its name in the changes.
        wanted: Tells whether a line may be changed.
        first: The first mutant's number.
    """

    def __init__(
        self,
        unit: TranslationUnit,
        path: Path,
        *,
        shown: str,
        wanted: Callable[[int], bool],
        first: int,
    ) -> None:
        self._path, self._shown, self._wanted, self._next = str(path), shown, wanted, first
        self._source = path.read_bytes()
        self._lines = self._source.decode().splitlines()
        self._function = ""
        self._locals: list[tuple[str, str, int, int]] = []
        """Name, type, and from where to where it is visible, of the function's variables."""
        self.changes: list[Change] = []
        top = [cursor for cursor in unit.cursor.get_children() if self._is_here(cursor)]
        self._macros: list[tuple[int, int]] = []
        """The outermost uses of macros."""
        for start, end in sorted(
            (cursor.extent.start.offset, cursor.extent.end.offset)
            for cursor in top
            if cursor.kind == CursorKind.MACRO_INSTANTIATION
        ):
            if not self._macros or start >= self._macros[-1][1]:
                self._macros.append((start, end))
        self._macro_starts = [start for start, _ in self._macros]
        self._bodies = list(self._found(top))
        """Functions, methods and templates with their bodies."""

    def text(self) -> str:
        """Return the whole file with its mutants, and note them in `changes`."""
        parts: list[Part] = []
        for function, body in self._bodies:
            extent = function.extent
            if not any(map(self._wanted, range(extent.start.line, extent.end.line + 1))):
                continue
            self._function = function.spelling
            start, end = self._extent(body)
            self._locals = [
                (child.spelling, _type(child), start, end)
                for child in function.get_children()
                if child.kind == CursorKind.PARM_DECL
            ]
            self._note_locals(body, end)
            parts.append((start, end, self._rewritten(body)))
        return self._joined(0, len(self._source), parts)

    def _found(self, cursors: Iterable[Cursor]) -> Iterator[tuple[Cursor, Cursor]]:
        """Yield functions, methods and templates with their bodies, in the order of the text."""
        for cursor in cursors:
            if cursor.kind in _HOLDERS:
                yield from self._found(cursor.get_children())
            elif cursor.kind in _DEFINED:
                for child in cursor.get_children():
                    is_body = child.kind == CursorKind.COMPOUND_STMT
                    if is_body and not self._is_constexpr(cursor, child):
                        yield cursor, child

    # places in the text

    def _is_here(self, cursor: Cursor) -> bool:
        file = cursor.location.file
        return file is not None and file.name == self._path

    def _slice(self, start: int, end: int) -> str:
        return self._source[start:end].decode()

    def _shown_text(self, cursor: Cursor) -> str:
        text = " ".join(self._slice(*self._extent(cursor)).split())
        return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."

    def _macro(self, offset: int) -> tuple[int, int] | None:
        i = bisect.bisect_right(self._macro_starts, offset) - 1
        return self._macros[i] if i >= 0 and offset < self._macros[i][1] else None

    def _extent(self, cursor: Cursor) -> tuple[int, int]:
        """Return where a cursor's text is, which has whole uses of macros only."""
        start, end = cursor.extent.start.offset, cursor.extent.end.offset
        if macro := self._macro(start):
            start, end = macro[0], max(end, macro[1])
        if macro := self._macro(max(start, end - 1)):
            end = max(end, macro[1])
        return start, end

    def _is_constexpr(self, cursor: Cursor, part: Cursor) -> bool:
        """Tell whether the text says so between the start of a cursor and a part of it."""
        return "constexpr" in self._slice(self._extent(cursor)[0], self._extent(part)[0]).split()

    def _is_macro(self, cursor: Cursor) -> bool:
        start, end = self._extent(cursor)
        macro = self._macro(start)
        return macro is not None and macro[1] >= end

    def _children(self, cursor: Cursor) -> list[tuple[int, int, Cursor]]:
        """Return the children in the order of the text; of a macro's parts the first."""
        placed = [
            (*self._extent(child), child) for child in cursor.get_children() if self._is_here(child)
        ]
        apart: list[tuple[int, int, Cursor]] = []
        for each in sorted(placed, key=lambda each: (each[0], -each[1])):
            if not apart or each[0] >= apart[-1][1]:
                apart.append(each)
        return apart

    def _joined(self, start: int, end: int, parts: Iterable[Part]) -> str:
        words, at = [], start
        for part_start, part_end, text in parts:
            words += [self._slice(at, part_start), text]
            at = part_end
        return "".join([*words, self._slice(at, end)])

    def _new(self, cursor: Cursor, kind: str, after: str) -> int:
        """Return a new mutant's number; 0 where the line must stay."""
        line = cursor.extent.start.line
        if not self._wanted(line):
            return 0
        self._next += 1
        self.changes.append(
            Change(
                number=self._next - 1,
                file=self._shown,
                line=line,
                function=self._function,
                kind=kind,
                source=self._lines[line - 1].strip(),
                before=self._shown_text(cursor),
                after=after,
            )
        )
        return self._next - 1

    # variables

    def _note_locals(self, cursor: Cursor, scope_end: int) -> None:
        for child in cursor.get_children():
            if child.kind == CursorKind.VAR_DECL and self._is_here(child):
                after = self._extent(child)[1]
                self._locals.append((child.spelling, _type(child), after, scope_end))
            is_scope = child.kind in (CursorKind.COMPOUND_STMT, CursorKind.FOR_STMT)
            self._note_locals(child, self._extent(child)[1] if is_scope else scope_end)

    def _neighbour(self, cursor: Cursor) -> str | None:
        """Return a visible variable of the type whose name differs in one character, or None."""
        at, name, type_ = self._extent(cursor)[0], cursor.spelling, _type(cursor)
        if name not in {known for known, *_ in self._locals}:
            return None
        near = sorted(
            {
                other
                for other, of_type, start, end in self._locals
                if of_type == type_ and start <= at < end and _differ_in_one(name, other)
            }
        )
        return near[at % len(near)] if near else None

    # expressions

    def _rewritten(self, cursor: Cursor) -> str:
        if self._is_macro(cursor) or cursor.kind in _AS_THEY_ARE:
            return self._slice(*self._extent(cursor))
        make = getattr(self, f"_{cursor.kind.name.lower()}", None)
        made: str | None = make(cursor) if make else None
        return self._with_children(cursor, self._rewritten) if made is None else made

    def _with_children(self, cursor: Cursor, make: Callable[[Cursor], str]) -> str:
        start, end = self._extent(cursor)
        parts = [
            (child_start, child_end, make(child))
            for child_start, child_end, child in self._children(cursor)
            if child_start >= start and child_end <= end
        ]
        return self._joined(start, end, parts)

    def _operands(self, cursor: Cursor) -> tuple[Cursor, str, Cursor] | None:
        children = self._children(cursor)
        if len(children) != 2:
            return None
        (_, left_end, left), (right_start, _, right) = children
        between = self._slice(left_end, right_start)
        return left, re.sub(r"/\*.*?\*/|//[^\n]*", "", between, flags=re.S).strip(), right

    def _binary_operator(self, cursor: Cursor) -> str | None:
        found = self._operands(cursor)
        if found is None:
            return None
        a, operator, b = found
        left = self._target(a) if operator == "=" else self._rewritten(a)
        right = self._rewritten(b)
        n_pointer = sum(_kind(each) in _POINTERS for each in (a, b))
        if any(_kind(each) in _DEPENDENT for each in (a, b)):
            pass
        elif operator in ("&&", "||"):
            other = "||" if operator == "&&" else "&&"
            if number := self._new(cursor, "operator", other):
                return f"FA_LOGIC({number}, ({left}), {operator}, {other}, ({right}))"
        elif operator in _COMPARISONS and n_pointer:
            other = "!=" if operator == "==" else "=="
            if number := self._new(cursor, "comparison", other):
                return f"(FA_M({number}) != (({left}) {operator} ({right})))"
        elif operator in _COMPARISONS:
            return self._chosen(cursor, "comparison", left, operator, right, _COMPARISONS[operator])
        elif operator in _ARITHMETIC and n_pointer == 1:
            other = "-" if operator == "+" else "+"
            return self._chosen(cursor, "index", left, operator, right, (other,))
        elif operator in _ARITHMETIC and not n_pointer:
            return self._chosen(cursor, "operator", left, operator, right, _ARITHMETIC[operator])
        return f"{left} {operator} {right}"

    def _chosen(
        self, cursor: Cursor, kind: str, left: str, operator: str, right: str, others: Sequence[str]
    ) -> str:
        numbers = [self._new(cursor, kind, other) for other in others]
        if not all(numbers):
            return f"{left} {operator} {right}"
        choices = ", ".join(f"{n}, {other}" for n, other in zip(numbers, others, strict=True))
        return f"FA_BINARY{len(others)}(({left}), {operator}, ({right}), {choices})"

    def _target(self, cursor: Cursor) -> str:
        """Return what is assigned to, which stays an lvalue."""
        if cursor.kind == CursorKind.DECL_REF_EXPR:
            return self._slice(*self._extent(cursor))
        return self._rewritten(cursor)

    def _compound_assignment_operator(self, cursor: Cursor) -> str | None:
        found = self._operands(cursor)
        if found is None or found[1] not in _ASSIGNMENTS:
            return None
        a, operator, b = found
        left, right = self._target(a), self._rewritten(b)
        out = f"({left} {operator} {right})"
        for other in _ASSIGNMENTS[operator]:
            if other == "=" and _kind(a) == TypeKind.POINTER:
                continue
            if number := self._new(cursor, "operator", other):
                out = f"(FA_M({number}) ? ({left} {other} {right}) : {out})"
        return out

    def _unary_operator(self, cursor: Cursor) -> str | None:
        children = self._children(cursor)
        if len(children) != 1:
            return None
        start, end = self._extent(cursor)
        [(operand_start, operand_end, operand)] = children
        operator = self._slice(start, operand_start).strip()
        after = self._slice(operand_end, end).strip()
        if operator in ("&", "++", "--") or after in ("++", "--"):
            inner = self._target(operand)
            return self._joined(start, end, [(operand_start, operand_end, inner)])
        inner = self._rewritten(operand)
        if operator == "-" and (number := self._new(cursor, "operator", "without the sign")):
            return f"FA_NEG({number}, ({inner}))"
        if operator == "!" and (number := self._new(cursor, "condition", "without the !")):
            return f"(FA_M({number}) != !({inner}))"
        return self._joined(start, end, [(operand_start, operand_end, inner)])

    def _integer_literal(self, cursor: Cursor) -> str | None:
        text = self._slice(*self._extent(cursor))
        if not re.fullmatch(r"\d+u?", text):
            return None
        up = self._new(cursor, "constant", f"{text} + 1")
        down = self._new(cursor, "constant", f"{text} - 1")
        return f"FA_CONST({text}, {up}, {down})" if up else None

    def _floating_literal(self, cursor: Cursor) -> str | None:
        text = self._slice(*self._extent(cursor))
        to = "1" if float(text.rstrip("fF")) == 0 else "0"
        replaced = self._new(cursor, "constant", to)
        other = self._new(cursor, "constant", f"2*{text} + 1")
        return f"FA_FLOAT({text}, {replaced}, {to}, {other})" if other else None

    def _cxx_bool_literal_expr(self, cursor: Cursor) -> str | None:
        text = self._slice(*self._extent(cursor))
        number = self._new(cursor, "constant", "false" if text == "true" else "true")
        return f"(FA_M({number}) != {text})" if number else None

    def _decl_ref_expr(self, cursor: Cursor) -> str:
        text = self._slice(*self._extent(cursor))
        if text != cursor.spelling or _kind(cursor) not in _NUMBERS:
            return text  # template arguments may be behind the name
        other = self._neighbour(cursor)
        number = self._new(cursor, "variable", other) if other else 0
        return f"(FA_M({number}) ? {other} : {text})" if number else text

    def _array_subscript_expr(self, cursor: Cursor) -> str | None:
        children = self._children(cursor)
        if len(children) != 2:
            return None
        (start, end, array), (index_start, index_end, index) = children
        inner = self._rewritten(index)
        is_number = index.kind == CursorKind.INTEGER_LITERAL  # which is changed itself
        if not is_number and (number := self._new(cursor, "index", "the next element")):
            inner = f"{inner} + FA_M({number})"
        base = self._rewritten(array)
        if base.startswith("(FA_M("):  # GCC 12 fails inside templates for (a ? b : c)[({ d; })]
            return f"(*({base} + ({inner})))"
        parts = [(start, end, base), (index_start, index_end, inner)]
        return self._joined(*self._extent(cursor), parts)

    def _call_expr(self, cursor: Cursor) -> str:
        plain = self._with_children(cursor, self._rewritten)
        arguments = [argument for argument in cursor.get_arguments() if argument is not None]
        for a, b in itertools.pairwise(arguments):
            (start, end), (start_b, end_b) = self._extent(a), self._extent(b)
            text, text_b = self._slice(start, end), self._slice(start_b, end_b)
            are_names = all(re.fullmatch(r"[A-Za-z_]\w*", each) for each in (text, text_b))
            if not are_names or text == text_b or _type(a) != _type(b):
                continue
            if number := self._new(cursor, "argument", f"{text} and {text_b} exchanged"):
                parts = [(start, end, text_b), (start_b, end_b, text)]
                exchanged = self._joined(*self._extent(cursor), parts)
                return f"(FA_M({number}) ? {exchanged} : {plain})"
        return plain

    def _lambda_expr(self, cursor: Cursor) -> str:
        start, end, body = self._children(cursor)[-1]
        outer = self._locals
        if not self._slice(*self._extent(cursor)).startswith("[&]"):
            self._locals = []  # it need not see them
        text = self._rewritten(body)
        self._locals = outer
        return self._joined(*self._extent(cursor), [(start, end, text)])

    def _var_decl(self, cursor: Cursor) -> str:
        start, end = self._extent(cursor)
        whole = self._slice(start, end)
        children = self._children(cursor)
        is_constant = "constexpr" in self._slice(max(0, start - 20), end)
        if is_constant or not children or "[" in cursor.type.spelling:
            return whole
        value_start, value_end, value = children[-1]
        if value_end != end or value.kind == CursorKind.TYPE_REF:
            return whole
        inner = self._rewritten(value)
        is_number = value.kind in (CursorKind.FLOATING_LITERAL, CursorKind.UNARY_OPERATOR)
        if (
            _type(cursor) == "float"
            and not is_number
            and (number := self._new(cursor, "type", "rounded to F16"))
        ):
            inner = f"FA_F16({number}, {inner})"
        return self._joined(start, end, [(value_start, value_end, inner)])

    # statements

    def _condition(self, cursor: Cursor) -> str:
        text = self._rewritten(cursor)
        true, false = (self._new(cursor, "condition", value) for value in ("true", "false"))
        return f"FA_COND({true}, {false}, {text})" if true else text

    def _after_condition(self, cursor: Cursor, make: Callable[[Cursor], str]) -> str:
        (start, end, condition), *others = self._children(cursor)
        parts = [(start, end, self._condition(condition))]
        parts += [(first, last, make(child)) for first, last, child in others]
        return self._joined(*self._extent(cursor), parts)

    def _if_stmt(self, cursor: Cursor) -> str:
        (_, _, condition), *branches = self._children(cursor)
        if self._is_constexpr(cursor, condition):
            parts = [(start, end, self._statement(branch)) for start, end, branch in branches]
            return self._joined(*self._extent(cursor), parts)
        return self._after_condition(cursor, self._statement)

    def _conditional_operator(self, cursor: Cursor) -> str | None:
        if len(self._children(cursor)) != 3:
            return None
        return self._after_condition(cursor, self._rewritten)

    def _for_stmt(self, cursor: Cursor) -> str:
        *heads, (start, end, body) = self._children(cursor)
        parts = [(first, last, self._rewritten(child)) for first, last, child in heads]
        return self._joined(*self._extent(cursor), [*parts, (start, end, self._statement(body))])

    def _case_stmt(self, cursor: Cursor) -> str:
        start, end, body = self._children(cursor)[-1]
        return self._joined(*self._extent(cursor), [(start, end, self._statement(body))])

    _default_stmt = _case_stmt

    def _compound_stmt(self, cursor: Cursor) -> str:
        def make(child: Cursor) -> str:
            number = 0
            if child.kind == CursorKind.CONTINUE_STMT:
                number = self._new(child, "statement", "deleted")
            return f"if (!FA_M({number})) continue" if number else self._statement(child)

        return self._with_children(cursor, make)

    def _statement(self, cursor: Cursor) -> str:
        text = self._rewritten(cursor)
        is_expression = cursor.kind in (
            CursorKind.BINARY_OPERATOR,
            CursorKind.COMPOUND_ASSIGNMENT_OPERATOR,
            CursorKind.CALL_EXPR,
        )
        if is_expression and not self._is_macro(cursor):
            kind = "barrier" if "barrier" in self._shown_text(cursor) else "statement"
            if number := self._new(cursor, kind, "deleted"):
                return f"(FA_M({number}) ? (void) 0 : (void) ({text}))"
        return text


def _kind(cursor: Cursor) -> TypeKind:
    return cursor.type.get_canonical().kind


def _type(cursor: Cursor) -> str:
    """Return a type without the `const` of the variable itself."""
    spelling = cursor.type.get_canonical().spelling
    outer = r"(?<=\*)\s*const$" if "*" in spelling else r"\bconst\b"
    return re.sub(outer, "", spelling).strip()


def _differ_in_one(a: str, b: str) -> bool:
    return len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) == 1
