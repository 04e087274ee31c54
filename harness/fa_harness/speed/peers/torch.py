"""torch as a peer: `scaled_dot_product_attention` on the CPU.

It has no keys of several heads in a group that it would read once: `enable_gqa` copies them per
query head. So the heads of a group are packed as rows of one head. A prefill may be faster head by
head, with views of K and V. Both are tried, and the faster one is timed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fa_harness.arrays import F32, U8
from fa_harness.case.case import Case
from fa_harness.errors import SetupError
from fa_harness.project import Project
from fa_harness.speed.cold import Cold

_TYPES = {
    "f32": ("float32", np.int32),
    "f16": ("float16", np.int16),
    "bf16": ("bfloat16", np.int16),
}
"""torch's name of a type, and NumPy integers of the same size."""


class TorchPeer:
    """`torch.nn.functional.scaled_dot_product_attention`."""

    name = "torch"

    def __init__(self, project: Project) -> None:
        try:
            self._torch: Any = importlib.import_module("torch")
        except ImportError as error:
            raise SetupError(
                f"peer 'torch': it cannot be imported ({error}); pip install 'fa-harness[torch]', "
                "or pip install torch"
            ) from error
        self.version = str(self._torch.__version__)

    def why_not(self, case: Case) -> str | None:
        """Return why it does not compute a case, or None."""
        if case.type_K not in _TYPES:
            return f"torch has no {case.type_K}"
        return None

    @contextlib.contextmanager
    def way(self, cold: Cold) -> Iterator[_TorchWay]:
        """Give its faster way to compute a case."""
        self._torch.set_num_threads(cold.case.threads)
        ways = [_TorchWay(self._torch, cold, packed=packed) for packed in (True, False)]
        yield min(ways, key=_seconds)


def _seconds(way: _TorchWay) -> float:
    """Return the seconds of a computation, after another."""
    way.compute(0)
    start = time.perf_counter()
    way.compute(1)
    return time.perf_counter() - start


class _TorchWay:
    """A case's call on each copy; `packed` makes the heads of a group rows of one head."""

    def __init__(self, torch: Any, cold: Cold, *, packed: bool) -> None:
        self._case = case = cold.case
        self._packed = packed
        self._attention = functools.partial(
            torch.nn.functional.scaled_dot_product_attention, scale=case.scale
        )
        name, self._integers = _TYPES[case.type_K]
        self._torch, self._type = torch, getattr(torch, name)
        rows = cold.q.reshape(case.n_batch, case.n_head_kv, case.n_group, case.hsk)
        q = torch.from_numpy(rows).permute(1, 2, 0, 3).to(self._type)
        if packed:
            q = q.reshape(1, case.n_head_kv, case.n_group * case.n_batch, case.hsk)
        self._q = q.contiguous()
        self._mask = None
        if cold.mask is not None and cold.mask.any():
            mask = np.tile(cold.mask, (case.n_group if packed else 1, 1))
            self._mask = torch.from_numpy(mask).to(self._type)[None, None]
        self._copies = [self._keys(*copy) for copy in cold.copies]
        self._out: Any = None

    @contextlib.contextmanager
    def ready(self) -> Iterator[Callable[[int], None]]:
        yield self.compute

    def compute(self, copy: int) -> None:
        k, v = self._copies[copy]
        self._out = self._attention(self._q, k, v, attn_mask=self._mask)

    def result(self) -> F32:
        case = self._case
        shape = (case.n_head_kv, case.n_group, case.n_batch, case.hsv)
        out = self._out.float().reshape(shape).permute(2, 0, 1, 3)
        found: F32 = out.reshape(case.n_batch, case.n_head, case.hsv).numpy()
        return found

    def _keys(self, k: U8, v: U8 | None) -> tuple[Any, Any]:
        k_ = self._rows(k, self._case.hsk)
        return k_, k_[..., : self._case.hsv] if v is None else self._rows(v, self._case.hsv)

    def _rows(self, rows: U8, size: int) -> Any:
        """Return `[n_kv, n_head_kv, bytes of a row]` as heads of keys, in place."""
        heads = self._torch.from_numpy(rows.view(self._integers)).view(self._type).permute(1, 0, 2)
        if self._packed:
            return heads[None]
        return heads[:, None].expand(-1, self._case.n_group, -1, -1)
