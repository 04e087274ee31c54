"""Captures: what flash attention got and gave in a model, layer by layer, in one compressed file.

The file is NumPy's `.npz` without pickles. Its array `meta` is JSON, as bytes; the others are named
`ENTRY.ARRAY`, such as `layer-5.prefill.q`. An entry is the attention of a layer: in the last batch
of the prompt (`prefill`) or in a later step (`decode`), or in each of them (`prefill-1`,
`decode-2`). K, V and mask are the whole of what the model gave to the op, cells without a token
included; `Entry.n_kv_seen` says where the cells end that count.

A KV cache of two types gives two parts, that of older tokens first. Its K and V are arrays of their
own, and the mask goes over both parts.

    capture = load(Path("gemma.npz"))
    arrays = arrays_of(f"gemma.npz#{capture.entries[0].name}")
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fa_harness.arrays import F16, F32, U8, Array
from fa_harness.case.case import CAPTURED, Case, Rules
from fa_harness.case.case_string import format_field
from fa_harness.case.quants import row_bytes
from fa_harness.errors import SetupError, UsageError
from fa_harness.files import replace_file

SCHEMA = "fa-harness.capture/1"
_SCHEMA_NAME, _, _SCHEMA_VERSION = SCHEMA.partition("/")
_FORBIDDEN = "()[],\n"
"""What a case string cannot hold in the name of a file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Arrays:
    """The arrays of an entry, read-only."""

    q: F32
    """`[ne3, n_head, n_batch, hsk]`."""
    k: U8
    """`[ne3, n_head_kv, n_kv - n_kv_cold, bytes of a row]`."""
    v: U8
    """`[ne3, n_head_kv, n_kv - n_kv_cold, bytes of a row]`."""
    mask: F16 | None
    """`[ne3, mask_heads, n_batch, n_kv]`."""
    sinks: F32 | None
    """`[n_head]`."""
    out: F32
    """What the op gave in the model, `[ne3, n_head, n_batch, hsv]`."""
    k_cold: U8 | None = None
    """`[ne3, n_head_kv, n_kv_cold, bytes of a row]`; None without a part of older tokens."""
    v_cold: U8 | None = None
    """`[ne3, n_head_kv, n_kv_cold, bytes of a row]`."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One call of the op in a model: all but its arrays."""

    layer: int
    phase: str
    """`prefill` or `decode`; of all batches and steps `prefill-1`, `decode-1` and so on."""
    position: int
    """Tokens of the sequence before the first row."""
    hsk: int
    hsv: int
    n_head: int
    n_head_kv: int
    n_kv: int
    n_batch: int
    ne3: int
    mask_heads: int
    """ne2 of the mask; 0 is no mask."""
    has_sinks: bool
    type_K: str  # noqa: N815 (as in a case)
    type_V: str  # noqa: N815
    v_is_view_of_k: bool
    scale: float
    max_bias: float
    logit_softcap: float
    prec: str
    threads: int
    """Threads that the model computed with."""
    n_kv_seen: int
    """Cells up to the last that a row sees."""
    n_causal: int
    """The first so many rows see, of as many cells, their own and those before, and no other."""
    sliding_window: int
    """The model's window where it hides keys from a row here; else 0."""
    n_kv_cold: int = 0
    """The first so many cells are a part of their own, of these types; 0 is no such part."""
    type_K_cold: str = ""  # noqa: N815
    type_V_cold: str = ""  # noqa: N815

    @property
    def name(self) -> str:
        """What the entry is called: `layer-5.prefill`."""
        return f"layer-{self.layer}.{self.phase}"

    @property
    def segment_types(self) -> tuple[str, ...]:
        """The types of both parts, as a case has them; none where there is one part."""
        if not self.n_kv_cold:
            return ()
        pairs = ((self.type_K_cold, self.type_V_cold), (self.type_K, self.type_V))
        return tuple(k if k == v else f"{k}/{v}" for k, v in pairs)


@dataclass(frozen=True, kw_only=True)
class Capture:
    """A file's entries, and where they come from."""

    model: str
    """Name of the model's file."""
    sha256: str
    """Of the model's file."""
    upstream: str
    """The llama.cpp that ran it."""
    entries: tuple[Entry, ...]


def load(path: Path) -> Capture:
    """Return what a capture holds, without its arrays."""
    try:
        status = path.stat()
    except OSError as error:
        raise UsageError(
            f"capture {path}: cannot be read ({error.strerror}); `fa-harness capture -o {path}` "
            "makes one"
        ) from error
    return _load(path, status.st_mtime_ns, status.st_size)


def split(reference: str) -> tuple[Path, str]:
    """Return the file and the entry's name of `FILE#ENTRY`."""
    file, hash_, name = reference.rpartition("#")
    if not (file and hash_ and name):
        raise UsageError(
            f"captured={reference}: is not FILE#ENTRY, such as gemma.npz#layer-5.decode"
        )
    if any(character in reference for character in _FORBIDDEN) or reference != reference.strip():
        raise UsageError(
            f"captured={reference}: a case string cannot hold this name; rename the file so that "
            "it has no brackets, commas or line ends, and no space at its ends"
        )
    return Path(file), name


def entry_of(reference: str) -> Entry:
    """Return the entry that `FILE#ENTRY` names."""
    path, name = split(reference)
    entries = {entry.name: entry for entry in load(path).entries}
    if name not in entries:
        raise UsageError(f"capture {path}: has no entry {name!r}; it has {', '.join(entries)}")
    return entries[name]


def checked(case: Case) -> Case:
    """Return a case that its capture, if it is of one, has the inputs for.

    A `Case` itself reads no file: this is called where cases are chosen, before one runs.
    """
    if case.captured:
        case.require(_rules(case, entry_of(case.captured)))
    return case


def _rules(case: Case, entry: Entry) -> Rules:
    group, has = entry.n_head // entry.n_head_kv, f"{case.captured} has"
    for name in ("hsk", "hsv"):
        found = getattr(entry, name)
        yield getattr(case, name) == found, name, f"{has} {found}"
    for name in ("n_head_kv", "n_kv", "n_batch", "mask_heads"):
        most = max(1, getattr(entry, name))  # without a mask a case says mask_heads=1
        yield getattr(case, name) <= most, name, f"{has} no more than {most}"
    is_there = case.n_group <= group and case.ne3 <= entry.ne3
    yield is_there, "n_group", f"{has} no more than [{group},{entry.ne3}]"
    yield entry.mask_heads > 0 or not case.mask, "mask", f"{has} it not"
    yield entry.has_sinks or not case.sinks, "sinks", f"{has} it not"
    yield entry.v_is_view_of_k or not case.v_is_view_of_k, "v_is_view_of_k", f"{has} it not"
    for name in ("max_bias", "logit_softcap"):
        value = getattr(entry, name)
        yield getattr(case, name) in (0.0, value), name, f"{has} {value:g}"
    scale = format_field("kq_scale", entry.scale)
    yield case.scale == entry.scale, "kq_scale", f"{has} {scale}"
    is_causal = case.mask_kind != CAPTURED or case.n_kv <= entry.n_causal
    yield (
        is_causal or not case.hot_window,
        "hot_window",
        f"needs a causal mask; that of {case.captured} is one for the first {entry.n_causal} "
        f"tokens, and kv is {case.n_kv}",
    )


def arrays_of(reference: str) -> Arrays:
    """Return the arrays of the entry that `FILE#ENTRY` names."""
    path, _ = split(reference)
    entry = entry_of(reference)
    status = path.stat()
    return _arrays(path, entry, status.st_mtime_ns, status.st_size)


def save(
    path: Path,
    entries: Sequence[tuple[Entry, Arrays]],
    *,
    model: str,
    sha256: str,
    upstream: str,
    tool_version: str,
) -> Capture:
    """Write a capture; an older file is replaced, whole or not at all."""
    capture = Capture(
        model=model, sha256=sha256, upstream=upstream, entries=tuple(entry for entry, _ in entries)
    )
    meta = {"schema": SCHEMA, "tool": {"version": tool_version}, **dataclasses.asdict(capture)}
    named: dict[str, Array] = {"meta": np.frombuffer(json.dumps(meta, indent=1).encode(), np.uint8)}
    for entry, arrays in entries:
        for name, array in vars(arrays).items():
            if array is not None and not (name == "v" and entry.v_is_view_of_k):
                named[f"{entry.name}.{name}"] = array
    data = io.BytesIO()
    np.savez_compressed(data, allow_pickle=False, **named)
    try:
        replace_file(path.resolve(), data.getvalue())
    except OSError as error:
        raise SetupError(
            f"capture {path}: cannot be written ({error.strerror}); make room or name another file"
        ) from error
    return capture


@functools.lru_cache(maxsize=16)
def _load(path: Path, changed: int, size: int) -> Capture:
    """Return what a capture holds; `changed` and `size` tell it from one of the same name."""
    try:
        with _open(path) as file:
            if "meta" not in file:
                raise ValueError("it holds no description")
            meta = json.loads(file["meta"].tobytes())
        name, _, version = str(meta["schema"]).partition("/")
        if name != _SCHEMA_NAME or not version.isdecimal():
            raise ValueError(f"its schema is {meta['schema']!r}")
    except (ValueError, KeyError, TypeError, EOFError, OSError, *_DAMAGE) as error:
        raise UsageError(
            f"capture {path}: is no capture, or damaged ({_words(error)}); `fa-harness capture` "
            "makes one"
        ) from error
    if int(version) > int(_SCHEMA_VERSION):
        raise UsageError(
            f"capture {path}: its schema is {meta['schema']}, this fa-harness knows {SCHEMA}; take "
            "a newer fa-harness or capture again"
        )
    try:
        entries = tuple(Entry(**fields) for fields in meta["entries"])
        origin = {name: meta[name] for name in ("model", "sha256", "upstream")}
        return Capture(entries=entries, **origin)
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"capture {path}: its description is damaged ({_words(error)}); capture again"
        ) from error


@functools.lru_cache(maxsize=4)
def _arrays(path: Path, entry: Entry, changed: int, size: int) -> Arrays:
    """Return an entry's arrays; `changed` and `size` tell the file from one of the same name."""
    try:
        with _open(path) as file:
            names = (field.name for field in dataclasses.fields(Arrays))
            found = {name: file.get(f"{entry.name}.{name}") for name in names}
        if entry.v_is_view_of_k and found["k"] is not None:
            n_bytes = row_bytes(entry.type_V, entry.hsv)
            found["v"] = np.ascontiguousarray(found["k"][..., :n_bytes])
        arrays = Arrays(**found)
        check_arrays(entry, arrays)
    except (ValueError, EOFError, OSError, UsageError, *_DAMAGE) as error:
        raise UsageError(
            f"capture {path}: entry {entry.name} is damaged ({_words(error)}); capture again"
        ) from error
    for array in vars(arrays).values():
        if array is not None:
            array.flags.writeable = False
    return arrays


_DAMAGE = (zipfile.BadZipFile, zlib.error, NotImplementedError)


def _open(path: Path) -> Any:
    file = np.load(path, allow_pickle=False)
    if isinstance(file, np.ndarray):
        raise ValueError("it holds one array")
    return file


def _words(error: Exception) -> str:
    """Return why a file cannot be read; NumPy takes for a pickle what is none of its own."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, KeyError):
        return f"{error} is missing"
    text = str(error).partition("\n")[0]
    return "it is no .npz" if "pickle" in text else text or type(error).__name__


def check_arrays(entry: Entry, arrays: Arrays) -> None:
    """Find out whether an entry's arrays have the shapes and types that it says."""
    heads = (entry.ne3, entry.n_head_kv)
    cache, cold = (*heads, entry.n_kv - entry.n_kv_cold), (*heads, entry.n_kv_cold)
    rows = (entry.ne3, entry.n_head, entry.n_batch)
    mask = (entry.ne3, entry.mask_heads, entry.n_batch, entry.n_kv)
    wanted = {
        "q": _kind("float32", *rows, entry.hsk),
        "k": _kind("uint8", *cache, row_bytes(entry.type_K, entry.hsk)),
        "v": _kind("uint8", *cache, row_bytes(entry.type_V, entry.hsv)),
        "mask": _kind("float16", *mask) if entry.mask_heads else "missing",
        "sinks": _kind("float32", entry.n_head) if entry.has_sinks else "missing",
        "out": _kind("float32", *rows, entry.hsv),
        "k_cold": "missing",
        "v_cold": "missing",
    }
    if entry.n_kv_cold:
        wanted["k_cold"] = _kind("uint8", *cold, row_bytes(entry.type_K_cold, entry.hsk))
        wanted["v_cold"] = _kind("uint8", *cold, row_bytes(entry.type_V_cold, entry.hsv))
    for name, array in vars(arrays).items():
        found = "missing" if array is None else _kind(array.dtype.type.__name__, *array.shape)
        if found != wanted[name]:
            raise UsageError(f"{entry.name}: {name} is {found}, not {wanted[name]}")


def _kind(type_name: str, *shape: int) -> str:
    return f"{type_name} {list(shape)}"
