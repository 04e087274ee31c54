"""A state in a file: a chain may be cut anywhere and go on elsewhere, bit for bit.

The file is NumPy's `.npy`: float32 `[ne3, n_head, n_batch, 2 + hsv]`, rows `[M, S, VKQ]`. What a
row means does not depend on the types of the segments before it, so nothing else is kept.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fa_harness.cases import Case
from fa_harness.errors import SetupError, UsageError

F32 = npt.NDArray[np.float32]


def save(path: Path, rows: F32) -> None:
    """Write the rows of a state to a file, an older one is replaced.

    Args:
        path: The file, as it is named: no ending is added.
        rows: float32 `[ne3, n_head, n_batch, 2 + hsv]`.

    Raises:
        SetupError: It cannot be written.
    """
    data = io.BytesIO()  # of a file itself, `save` does not tell why it was not written
    np.save(data, rows, allow_pickle=False)
    try:
        path.write_bytes(data.getbuffer())
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
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(
            f"state {path}: cannot be read ({error}); save it again with the call before"
        ) from error
    expected = (case.ne3, case.n_head, case.nb, 2 + case.hsv_padded)
    if not isinstance(rows, np.ndarray) or rows.dtype != np.float32 or rows.shape != expected:
        raise UsageError(
            f"state {path}: holds {_kind(rows)}, not float32 {list(expected)} "
            "([ne3, n_head, n_batch, 2 + hsv]); take the state of a chain of this case"
        )
    return rows


def _kind(rows: object) -> str:
    if isinstance(rows, np.ndarray):
        return f"{rows.dtype} {list(rows.shape)}"
    return "several arrays"
