"""Captures: what flash attention got and gave in a model, layer by layer, in one compressed file.

The file is NumPy's `.npz` without pickles. Its array `meta` is JSON, as bytes; the others are named
`ENTRY.ARRAY`, such as `layer-5.prefill.q`. An entry is one call of the op: in the last batch of the
prompt (`prefill`) or in a later step (`decode`). K, V and mask are the whole of what the model gave
to the op, cells without a token included; `Entry.n_kv_seen` says where the cells end that count.

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
from typing import Any, BinaryIO

import numpy as np

from fa_harness.arrays import F16, F32, U8, Array
from fa_harness.case.case import CAPTURED, Case
from fa_harness.case.case_string import format_field
from fa_harness.case.quants import TYPES, decode, row_bytes
from fa_harness.errors import SetupError, UsageError
from fa_harness.files import replace_file

SCHEMA = "fa-harness.capture/1"
_SCHEMA_NAME, _, _SCHEMA_VERSION = SCHEMA.partition("/")
_STREAM = 1
"""Version of what the program `fa-harness-capture` writes."""
_FORBIDDEN = "()[],\n"
"""What a case string cannot hold in the name of a file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Arrays:
    """The arrays of an entry, read-only."""

    q: F32
    """`[ne3, n_head, n_batch, hsk]`."""
    k: U8
    """`[ne3, n_head_kv, n_kv, bytes of a row]`."""
    v: U8
    """`[ne3, n_head_kv, n_kv, bytes of a row]`."""
    mask: F16 | None
    """`[ne3, mask_heads, n_batch, n_kv]`."""
    sinks: F32 | None
    """`[n_head]`."""
    out: F32
    """What the op gave in the model, `[ne3, n_head, n_batch, hsv]`."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One call of the op in a model: all but its arrays."""

    layer: int
    phase: str
    """`prefill` or `decode`."""
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

    @property
    def name(self) -> str:
        """What the entry is called: `layer-5.prefill`."""
        return f"layer-{self.layer}.{self.phase}"


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
    """Return what a capture holds, without its arrays.

    Raises:
        UsageError: There is no such file, it is no capture, damaged, or of a newer fa-harness.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise UsageError(
            f"capture {path}: cannot be read ({error.strerror}); `fa-harness capture -o {path}` "
            "makes one"
        ) from error
    return _load(path, status.st_mtime_ns, status.st_size)


def split(reference: str) -> tuple[Path, str]:
    """Return the file and the entry's name of `FILE#ENTRY`.

    Raises:
        UsageError: It is not of that form, or a case string could not hold it.
    """
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
    """Return the entry that `FILE#ENTRY` names.

    Raises:
        UsageError: There is no such file or entry.
    """
    path, name = split(reference)
    entries = {entry.name: entry for entry in load(path).entries}
    if name not in entries:
        raise UsageError(f"capture {path}: has no entry {name!r}; it has {', '.join(entries)}")
    return entries[name]


def checked(case: Case) -> Case:
    """Return a case that its capture, if it is of one, has the inputs for.

    A `Case` itself reads no file: this is called where cases are chosen, before one runs.

    Raises:
        UsageError: There is no such file or entry, or it has not what the case asks for.
    """
    if not case.captured:
        return case
    entry = entry_of(case.captured)
    group = entry.n_head // entry.n_head_kv
    exactly = {"hsk": entry.hsk, "hsv": entry.hsv}
    at_most = {
        "n_head_kv": entry.n_head_kv,
        "n_kv": entry.n_kv,
        "n_batch": entry.n_batch,
        "mask_heads": max(1, entry.mask_heads),
    }
    off_or = {"max_bias": entry.max_bias, "logit_softcap": entry.logit_softcap}
    only_if = {
        "mask": entry.mask_heads > 0,
        "sinks": entry.has_sinks,
        "v_is_view_of_k": entry.v_is_view_of_k,
    }
    for name, found in exactly.items():
        if getattr(case, name) != found:
            raise case.refused(name, f"{case.captured} has {found}")
    for name, found in at_most.items():
        if getattr(case, name) > found:
            raise case.refused(name, f"{case.captured} has no more than {found}")
    if case.n_group > group or case.ne3 > entry.ne3:
        raise case.refused("n_group", f"{case.captured} has no more than [{group},{entry.ne3}]")
    for name, is_there in only_if.items():
        if getattr(case, name) and not is_there:
            raise case.refused(name, f"{case.captured} has it not")
    for name, value in off_or.items():
        if getattr(case, name) not in (0.0, value):
            raise case.refused(name, f"{case.captured} has {value:g}")
    if case.scale != entry.scale:
        scale = format_field("kq_scale", entry.scale)
        raise case.refused("kq_scale", f"{case.captured} has {scale}")
    if case.hot_window and case.mask_kind == CAPTURED and case.n_kv > entry.n_causal:
        raise case.refused(
            "hot_window",
            f"needs a causal mask; that of {case.captured} is one for the first {entry.n_causal} "
            f"tokens, and kv is {case.n_kv}",
        )
    return case


def arrays_of(reference: str) -> Arrays:
    """Return the arrays of the entry that `FILE#ENTRY` names.

    Raises:
        UsageError: There is no such file or entry, or it is damaged.
    """
    path, _ = split(reference)
    entry = entry_of(reference)
    status = path.stat()
    return _arrays(path, entry, status.st_mtime_ns, status.st_size)


def make_entry(
    arrays: Arrays,
    *,
    layer: int,
    phase: str,
    type_k: str,
    type_v: str,
    scale: float,
    position: int = 0,
    n_swa: int = 0,
    max_bias: float = 0.0,
    logit_softcap: float = 0.0,
    prec: str = "f32",
    threads: int = 1,
    v_is_view_of_k: bool = False,
) -> Entry:
    """Describe one call of the op.

    Args:
        arrays: What it got and gave.
        layer: The model's layer.
        phase: `prefill` or `decode`.
        type_k: Type of the rows of K, one of `quants.TYPES`.
        type_v: Type of the rows of V.
        scale: What the scores are multiplied with; rounded to float32.
        position: Tokens of the sequence before the first row.
        n_swa: The model's sliding window; 0 is none.
        max_bias: ALiBi; 0 is off.
        logit_softcap: 0 is off.
        prec: `f32` or `def`.
        threads: Threads that the model computed with.
        v_is_view_of_k: V is the first elements of K's rows.

    Raises:
        UsageError: The arrays do not go together, or hold numbers that are not finite where a row
            sees them.
    """
    ne3, n_head, n_batch, hsk = arrays.q.shape
    n_head_kv, n_kv = arrays.k.shape[1:3]
    mask = arrays.mask
    entry = Entry(
        layer=layer,
        phase=phase,
        position=position,
        hsk=hsk,
        hsv=arrays.out.shape[-1],
        n_head=n_head,
        n_head_kv=n_head_kv,
        n_kv=n_kv,
        n_batch=n_batch,
        ne3=ne3,
        mask_heads=0 if mask is None else mask.shape[1],
        has_sinks=arrays.sinks is not None,
        type_K=type_k,
        type_V=type_v,
        v_is_view_of_k=v_is_view_of_k,
        scale=float(np.float32(scale)),
        max_bias=max_bias,
        logit_softcap=logit_softcap,
        prec=prec,
        threads=threads,
        n_kv_seen=n_kv if mask is None else _n_seen(mask),
        n_causal=0 if mask is None else _n_causal(mask),
        sliding_window=n_swa if mask is not None and _hides_past(mask, position) else 0,
    )
    for name, type_name in (("K", type_k), ("V", type_v)):
        if type_name not in TYPES:
            raise UsageError(
                f"{entry.name}: {name} is {type_name}, which the harness cannot decode; capture "
                f"with another cache type, one of {', '.join(TYPES)}"
            )
    _check(entry, arrays)
    seen = np.s_[:, :, : entry.n_kv_seen]
    for name, values in (
        ("Q", arrays.q),
        ("K", decode(arrays.k[seen], type_k)),
        ("V", decode(arrays.v[seen], type_v)),
    ):
        if not np.isfinite(values).all():
            raise UsageError(f"{entry.name}: {name} holds numbers that are not finite")
    return entry


def save(
    path: Path,
    entries: Sequence[tuple[Entry, Arrays]],
    *,
    model: str,
    sha256: str,
    upstream: str,
    tool_version: str,
) -> Capture:
    """Write a capture; an older file is replaced, whole or not at all.

    Args:
        path: The file.
        entries: What it is to hold.
        model: Name of the model's file.
        sha256: Of the model's file.
        upstream: The llama.cpp that ran it.
        tool_version: Of fa-harness.

    Raises:
        SetupError: It cannot be written.
    """
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


def read_stream(stream: BinaryIO) -> list[tuple[Entry, Arrays]]:
    """Read what the program `fa-harness-capture` writes.

    Raises:
        UsageError: It ends too early, is of another version, or holds a call that the harness has
            no case for.
    """
    head = _line(stream)
    if head.get("stream") != _STREAM:
        raise UsageError(
            f"the stream of fa-harness-capture is of version {head.get('stream')}, not {_STREAM}; "
            "build the program anew"
        )
    entries = []
    while not (call := _line(stream)).get("end"):
        tensors = {item["name"]: _tensor(stream, item) for item in call["tensors"]}
        types = {item["name"]: item["type"] for item in call["tensors"]}
        name = f"layer-{call['layer']}.{call['phase']}"
        for tensor, wanted in (("q", "f32"), ("mask", "f16"), ("sinks", "f32"), ("out", "f32")):
            if types.get(tensor, wanted) != wanted:
                raise UsageError(f"{name}: {tensor} is {types[tensor]}; the harness takes {wanted}")
        q, sinks = tensors["q"].view(np.float32), tensors.get("sinks")
        if tensors["k"].shape[0] != q.shape[0]:
            raise UsageError(f"{name}: sequences share keys, which the harness has no case for")
        mask: F16 | None = None
        if "mask" in tensors:  # older versions pad its rows
            mask = tensors["mask"].view(np.float16)[:, :, : q.shape[2]]
            mask = np.ascontiguousarray(np.broadcast_to(mask, (q.shape[0], *mask.shape[1:])))
        arrays = Arrays(
            q=q,
            k=tensors["k"],
            v=tensors["v"],
            mask=mask,
            sinks=None if sinks is None else sinks.view(np.float32).reshape(-1),
            out=np.ascontiguousarray(tensors["out"].view(np.float32).swapaxes(1, 2)),
        )
        options = ("position", "max_bias", "logit_softcap", "prec", "threads", "v_is_view_of_k")
        entry = make_entry(
            arrays,
            layer=call["layer"],
            phase=call["phase"],
            type_k=types["k"],
            type_v=types["v"],
            scale=call["scale"],
            n_swa=head["n_swa"],
            **{option: call[option] for option in options},
        )
        entries.append((entry, arrays))
    return entries


def _line(stream: BinaryIO) -> dict[str, Any]:
    line = stream.readline()
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UsageError("the stream of fa-harness-capture ends too early or is damaged; run again")
    return found


def _tensor(stream: BinaryIO, item: dict[str, Any]) -> U8:
    shape = (*reversed(item["ne"][1:]), item["row_bytes"])
    data = stream.read(int(np.prod(shape, dtype=np.int64)))
    if len(data) != np.prod(shape, dtype=np.int64):
        raise UsageError("the stream of fa-harness-capture ends too early; run again")
    return np.frombuffer(data, np.uint8).reshape(shape)


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
        entries = tuple(Entry(**fields) for fields in meta.pop("entries"))
        return Capture(
            model=meta["model"], sha256=meta["sha256"], upstream=meta["upstream"], entries=entries
        )
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"capture {path}: its description is damaged ({_words(error)}); capture again"
        ) from error


@functools.lru_cache(maxsize=4)
def _arrays(path: Path, entry: Entry, changed: int, size: int) -> Arrays:
    """Return an entry's arrays; `changed` and `size` tell the file from one of the same name."""
    try:
        with _open(path) as file:
            found = {
                name: file.get(f"{entry.name}.{name}")
                for name in ("q", "k", "v", "mask", "sinks", "out")
            }
        if entry.v_is_view_of_k and found["k"] is not None:
            n_bytes = row_bytes(entry.type_V, entry.hsv)
            found["v"] = np.ascontiguousarray(found["k"][..., :n_bytes])
        arrays = Arrays(**found)
        _check(entry, arrays)
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


def _check(entry: Entry, arrays: Arrays) -> None:
    """Find out whether an entry's arrays have the shapes and types that it says."""
    cache = (entry.ne3, entry.n_head_kv, entry.n_kv)
    rows = (entry.ne3, entry.n_head, entry.n_batch)
    wanted: dict[str, tuple[type, tuple[int, ...]] | None] = {
        "q": (np.float32, (*rows, entry.hsk)),
        "k": (np.uint8, (*cache, row_bytes(entry.type_K, entry.hsk))),
        "v": (np.uint8, (*cache, row_bytes(entry.type_V, entry.hsv))),
        "mask": (np.float16, (entry.ne3, entry.mask_heads, entry.n_batch, entry.n_kv))
        if entry.mask_heads
        else None,
        "sinks": (np.float32, (entry.n_head,)) if entry.has_sinks else None,
        "out": (np.float32, (*rows, entry.hsv)),
    }
    for name, array in vars(arrays).items():
        found = None if array is None else (array.dtype.type, array.shape)
        if found != wanted[name]:
            raise UsageError(f"{entry.name}: {name} is {_kind(found)}, not {_kind(wanted[name])}")


def _kind(found: tuple[type, tuple[int, ...]] | None) -> str:
    return "missing" if found is None else f"{found[0].__name__} {list(found[1])}"


def _n_seen(mask: F16) -> int:
    seen = np.flatnonzero(~np.isneginf(mask).all(axis=(0, 1, 2)))
    return int(seen[-1]) + 1 if seen.size else 0


def _n_causal(mask: F16) -> int:
    n = min(mask.shape[2:])
    is_other = (np.isneginf(mask[:, :, :n, :n]) == np.tri(n, dtype=bool)).any(axis=(0, 1))
    row, key = np.nonzero(is_other)
    return int(np.maximum(row, key).min()) if row.size else n


def _hides_past(mask: F16, position: int) -> bool:
    n_seen = (~np.isneginf(mask)).sum(axis=-1)
    return bool((n_seen < position + 1 + np.arange(mask.shape[2])).any())
