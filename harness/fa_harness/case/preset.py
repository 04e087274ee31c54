"""States that nobody computed: what a call may find in a row, beside what calls leave there."""

from __future__ import annotations

import numpy as np

from fa_harness.arrays import F32, Bools
from fa_harness.case.case import Case
from fa_harness.case.random_stream import Stream
from fa_harness.case.regimes import top_score

KINDS = (
    "fresh", "f16", "last not f16", "beyond f16", "denormal", "lowest maximum", "highest maximum",
    "infinite maximum", "nan", "nan but its maximum", "wild numerators",
)  # fmt: skip
"""What the rows of a state are, by turns: fresh ones hold NaN; the numerators are F16 numbers, all
but the last, or beyond F16's range; the sums are below the normal range; the maximum is at an end
of F32, or infinite; and there are NaN and infinities."""

_LARGEST = np.finfo(np.float32).max


def rows(case: Case) -> F32:
    """Return a state for a case, `[ne3, n_head, n_batch, 2 + hsv]`, from its regime and seed."""
    shape, top = (case.ne3, case.n_head, case.n_batch), np.float32(top_score(case))
    stream = Stream(case.regime, case.seed)
    state = np.empty((*shape, 2 + case.hsv_padded), np.float32)
    state[..., 0] = top * stream.uniform("maximum of a state", shape)
    state[..., 1] = 3 + stream.uniform("sum of a state", shape)
    drawn = stream.uniform("numerators of a state", (*shape, case.hsv_padded))
    state[..., 2:] = drawn.astype(np.float16)
    of = {kind: state[are_of(kind, case)] for kind in KINDS}
    of["fresh"][:] = np.nan
    of["fresh"][:, 0] = -np.inf
    of["last not f16"][:, -1] = 1 + 2.0**-12
    of["beyond f16"][:, 2:] *= 2.0**18
    of["denormal"][:, 1:] *= 2.0**-140
    of["lowest maximum"][:, 0] = -_LARGEST
    of["highest maximum"][:, 0] = _LARGEST
    of["infinite maximum"][:, 0] = np.inf
    of["nan"][:] = np.nan
    of["nan but its maximum"][:, 1:] = np.nan
    wild = of["wild numerators"]
    wild[:, 0] = 2 * top  # a score above it could make the infinities 0 times infinity
    for i, value in enumerate((np.nan, np.inf, -np.inf)[: case.hsv]):
        wild[:, 2 + i] = value
    for kind, some in of.items():
        state[are_of(kind, case)] = some
    return state


def are_of(kind: str, case: Case) -> Bools:
    """Tell which rows of the state are of a kind, `[ne3, n_head, n_batch]`."""
    shape = (case.ne3, case.n_head, case.n_batch)
    turn = (np.arange(np.prod(shape)) + case.seed).reshape(shape) % len(KINDS)
    are: Bools = turn == KINDS.index(kind)
    return are
