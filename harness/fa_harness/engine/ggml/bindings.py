"""The C source of the cffi module `_ggml`, made from `decl/*.h` for the headers of one library.

API mode: the C compiler checks every declaration against the library's own headers, so that a
changed struct or signature is a compile error when the library is built, not a crash later.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import cffi
from cffi import recompiler

_DECL = Path(__file__).parent / "decl"
_REQUIRED = ("ggml.h", "ggml-backend.h", "ggml-cpu.h")
_PREAMBLE = """\
#include "ggml.h"
#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#pragma GCC diagnostic ignored "-Wdeprecated-declarations" // of upstreams in which both names exist
"""


def emit_c(include_dir: Path, out_c: Path) -> None:
    """Write the C source of the module `_ggml` for the headers in `include_dir`.

    A declaration file `optional-*.h` takes part only where the headers know all of its functions
    and constants.
    `out_c` is left alone where it holds the right text already, so that a build has nothing to do.
    """
    headers = "".join(p.read_text() for p in sorted(include_dir.glob("*.h")))
    decls = [(_DECL / name).read_text() for name in _REQUIRED]
    for path in sorted(_DECL.glob("optional-*.h")):
        text = path.read_text()
        if all(re.search(rf"\b{name}", headers) for name in _names(text)):
            decls.append(text)
    ffi = cffi.FFI()
    ffi.cdef("\n".join(decls))
    ffi.set_source("_ggml", _PREAMBLE)
    recompiler.make_c_source(ffi, "_ggml", _PREAMBLE, str(out_c))


def source_digest() -> str:
    """Return the digest of all that the bindings are made from."""
    digest = hashlib.sha256(cffi.__version__.encode())
    for path in [Path(__file__), *sorted(_DECL.glob("*.h"))]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _names(text: str) -> list[str]:
    """Return patterns of the functions and constants that a text declares."""
    code = re.sub(r"//.*", "", text)
    functions = [rf"{name}\s*\(" for name in re.findall(r"\b(\w+)\s*\(", code)]
    return functions + [rf"{name}\b" for name in re.findall(r"#define (\w+)", code)]
