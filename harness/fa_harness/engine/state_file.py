"""A state in a file: a chain can stop anywhere and go on elsewhere, bit for bit.

The file is NumPy's `.npy`: float32 `[ne3, n_head, n_batch, 2 + hsv]`, rows `[M, S, VKQ]`. The
meaning of a row does not depend on the types of earlier segments, so nothing else is kept.
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
    """Write the rows of a state, `[ne3, n_head, n_batch, 2 + hsv]`, to a file of this name."""
    try:
        with path.open("ab") as file:
            if file.tell():  # to truncate an empty file costs more than to write one
                file.truncate(0)
            file.write(_header(rows.shape) + rows.tobytes())
    except OSError as error:
        raise SetupError(
            f"state {path}: cannot be written ({error.strerror}); make room there, or name another "
            "folder with TMPDIR"
        ) from error


def load(path: Path, case: Case) -> F32:
    """Return the rows that `save` wrote, `[ne3, n_head, n_batch, 2 + hsv]` of the case."""
    expected = (case.ne3, case.n_head, case.n_batch, 2 + case.hsv_padded)
    header = _header(expected)
    try:
        data = path.read_bytes()
        if data.startswith(header) and len(data) == len(header) + 4 * math.prod(expected):
            state: F32 = np.frombuffer(data, np.float32, offset=len(header)).copy()
            return state.reshape(expected)
        state = np.load(io.BytesIO(data), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(
            f"state {path}: cannot be read ({error}); save it again with the call before"
        ) from error
    is_array = isinstance(state, np.ndarray)
    if not is_array or state.dtype != np.float32 or state.shape != expected:
        kind = f"{state.dtype} {list(state.shape)}" if is_array else "several arrays"
        raise UsageError(
            f"state {path}: holds {kind}, not float32 {list(expected)} "
            "([ne3, n_head, n_batch, 2 + hsv]); take the state of a chain of this case"
        )
    return state


@functools.lru_cache
def _header(shape: tuple[int, ...]) -> bytes:
    """Return the header of a file with float32 of this shape."""
    header = io.BytesIO()
    kind = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, kind)
    return header.getvalue()
