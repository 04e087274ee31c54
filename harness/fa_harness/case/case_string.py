"""Case strings: a case's fields as upstream's `test-backend-ops` prints them, read and printed."""

import difflib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from click import unstyle

from fa_harness.errors import UsageError

OP = "FLASH_ATTN_EXT"
"""The name that begins a case string."""
_SPELLED = {"n_head_kv": "nh", "n_kv": "kv", "n_batch": "nb"}
"""How upstream spells fields in case strings, which also has `n_group` and `ne3` as `nr23`."""
_FIELDS = {spelled: name for name, spelled in _SPELLED.items()}


def spelled(field: str) -> str:
    """Return how upstream, and so a case string, spells the name of a field."""
    return _SPELLED.get(field, field)


def read_fields(text: str) -> dict[str, Any]:
    """Return the fields of a `Case` that a line with a case string gives, under their own names."""
    found = re.findall(rf"\b{OP}\(([^()]*)\)", unstyle(text))
    if len(found) != 1:
        raise UsageError(
            f"{text.strip()!r} is {'not a case' if not found else 'more than one case'}; "
            f"one looks like {OP}(hsk=64,hsv=64,nh=8,...)"
        )
    fields: dict[str, Any] = {}
    for item in filter(None, re.split(r",(?![^\[]*\])", found[0])):
        name, _, value = (part.strip() for part in item.partition("="))
        field = spelled(name)
        if field not in _READERS:
            raise UsageError(f"case field {name!r} is unknown; {_nearest(name)}")
        if field in fields:
            raise UsageError(f"{name}={value}: {field} is given twice; leave one out")
        try:
            fields[field] = _READERS[field](value)
        except ValueError as error:
            raise UsageError(f"{name}={value}: {error}") from None
    return _as_fields(fields)


def format_field(name: str, value: object) -> str:
    """Return a field's value as it is printed; a scale keeps all that a float32 has."""
    return str(np.float32(value)) if name == "kq_scale" else format_value(value)  # type: ignore[arg-type]


def format_value(value: object) -> str:
    """Return a value as it is printed."""
    match value:
        case bool():
            return str(int(value))
        case float():
            return f"{value:.6f}"
        case tuple():
            return f"[{','.join(map(str, value))}]"
        case _:
            return str(value)


def _nearest(name: str) -> str:
    known = {field.lower(): field for field in (*_READERS, *_SPELLED)}
    near = difflib.get_close_matches(name.lower(), known, n=1)
    return f"the nearest is {known[near[0]]}" if near else f"known are {', '.join(known.values())}"


def _as_fields(read: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that a case string's, under upstream's names, stand for."""
    fields = {_FIELDS.get(name, name): value for name, value in read.items()}
    n_group, ne3 = fields.pop("nr23", (1, 1))
    n_head = fields.pop("n_head", None)
    if n_head is not None:
        n_head_kv = fields.setdefault("n_head_kv", n_head // max(n_group, 1))
        if "nr23" in read and n_head != n_head_kv * n_group:
            raise UsageError(
                f"n_head={n_head}: contradicts nh={n_head_kv} and nr23=[{n_group},{ne3}]; "
                "leave n_head or nr23 out"
            )
        if n_head_kv < 1 or n_head % n_head_kv:
            raise UsageError(f"n_head={n_head}: must be a multiple of n_head_kv={n_head_kv}")
        n_group = n_head // n_head_kv
    return {**fields, "n_group": n_group, "ne3": ne3}


Reader = Callable[[str], Any]


def _reader(pattern: str, what: str, read: Reader) -> Reader:
    """Return what reads values of a pattern; of others it says that they must be `what`."""

    def reader(value: str) -> Any:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"must be {what}")
        return read(value)

    return reader


_read_int = _reader(r"-?[0-9]+", "a whole number", int)
_read_ints = _reader(
    r"\[([0-9]+(,[0-9]+)*)?\]",
    "a list of whole numbers such as [1,2]",
    lambda value: tuple(int(item) for item in value[1:-1].split(",") if item),
)
_read_types = _reader(
    r"\[[\w/]+(,[\w/]+)*\]",
    "a list of types such as [q4_0,q8_0/f16]",
    lambda value: tuple(value[1:-1].split(",")),
)
_read_bool = _reader("[01]", "0 or 1", lambda value: value == "1")
_read_word = _reader(r"\w+", "a word", str)


def _read_float(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError("must be a number") from None


def _read_pair(value: str) -> Any:
    pair = _read_ints(value)
    if len(pair) != 2:
        raise ValueError("must be two whole numbers such as [4,1]")
    return pair


_INTS = "hsk hsv nh kv nb n_kv_max mask_heads segments seed threads n_head hot_window group"
_READERS: dict[str, Reader] = {
    **dict.fromkeys(_INTS.split(), _read_int),
    **dict.fromkeys(("mask", "sinks", "kv_view", "v_is_view_of_k"), _read_bool),
    **dict.fromkeys(("max_bias", "logit_softcap"), _read_float),
    **dict.fromkeys(("prec", "type_K", "type_V", "mask_kind", "regime", "cold_type"), _read_word),
    "captured": str,
    "kq_scale": _read_float,
    "segment_types": _read_types,
    "nr23": _read_pair,
    "permute": _read_ints,
    "boundaries": lambda value: value if value == "random" else _read_ints(value),
}
