"""A state in a file: a chain may be cut anywhere and go on elsewhere, bit for bit.

The file is NumPy's `.npy`: float32 `[ne3, n_head, n_batch, 2 + hsv]`, rows `[M, S, VKQ]`. What a
row means does not depend on the types of the segments before it, so nothing else is kept.
"""

from __future__ import annotations

import functools
import io
import math
from pathlib import Path

import numpy as np

from fa_harness.arrays import F32
from fa_harness.case.case import Case
from fa_harness.errors import SetupError, UsageError


def save(path: Path, rows: F32) -> None:
    """Write the rows of a state to a file, an older one is replaced.

    Args:
        path: The file, as it is named: no ending is added.
        rows: float32 `[ne3, n_head, n_batch, 2 + hsv]`.

    Raises:
        SetupError: It cannot be written.
    """
    try:
        with path.open("ab") as file:
            if file.tell():  # to cut an empty file costs more than to write one
                file.truncate(0)
            file.write(_header(rows.shape) + rows.tobytes())
    except OSError as error:
        raise SetupError(
            f"state {path}: cannot be written ({error.strerror}); make room there, or name another "
            "folder with TMPDIR"
        ) from error


def load(path: Path, case: Case) -> F32:
    """Return the rows that `save` wrote, for a call that continues them.

    Args:
        path: The file.
        case: What the chain computes.

    Returns:
        float32 `[ne3, n_head, n_batch, 2 + hsv]`.

    Raises:
        UsageError: The file cannot be read, holds no state, or that of a case of another shape.
    """
    expected = (case.ne3, case.n_head, case.n_batch, 2 + case.hsv_padded)
    header = _header(expected)
    try:
        data = path.read_bytes()
        if data.startswith(header) and len(data) == len(header) + 4 * math.prod(expected):
            state: F32 = np.frombuffer(data, np.float32, offset=len(header)).copy()
            return state.reshape(expected)
        rows = np.load(io.BytesIO(data), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(
            f"state {path}: cannot be read ({error}); save it again with the call before"
        ) from error
    if not isinstance(rows, np.ndarray) or rows.dtype != np.float32 or rows.shape != expected:
        raise UsageError(
            f"state {path}: holds {_kind(rows)}, not float32 {list(expected)} "
            "([ne3, n_head, n_batch, 2 + hsv]); take the state of a chain of this case"
        )
    return rows


@functools.lru_cache
def _header(shape: tuple[int, ...]) -> bytes:
    """Return what a file begins with that holds float32 of this shape."""
    header = io.BytesIO()
    kind = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, kind)
    return header.getvalue()


def _kind(rows: object) -> str:
    if isinstance(rows, np.ndarray):
        return f"{rows.dtype} {list(rows.shape)}"
    return "several arrays"
