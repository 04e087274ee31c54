"""A tensor of a context: its shape, and its bytes in and out."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from fa_harness.arrays import F32, U8, Array
from fa_harness.case import quants

if TYPE_CHECKING:
    from fa_harness.engine.ggml.loaded import Ggml

S = TypeVar("S", bound=np.generic)
Shape = tuple[int, int, int, int]


class WrongTensorError(Exception):
    """The library gives a tensor that is not of the shape or type that its function promises."""


class Tensor:
    """A tensor of a context: shape `ne` in elements and strides `nb` in bytes, `ne[0]` first."""

    def __init__(self, ggml: Ggml, pointer: Any, type_: str, name: str = "a tensor") -> None:
        self._ggml = ggml
        self._p = pointer
        self.type = type_
        n0, n1, n2, n3 = pointer.ne
        self.ne: Shape = (n0, n1, n2, n3)
        """The shape, in elements."""
        self.name = name
        """How it is called where something is written outside of it."""
        self.part: Tensor | None = None
        """Of the result of a call with a state, where the state after the call is a new tensor."""
        self.kept_in: Tensor | None = None
        """Of such a part, the state with which its chain began."""
        self.continued: Tensor | None = None
        """Of such a part, the part or state that it continues."""

    @property
    def nb(self) -> Shape:
        """The strides, in bytes."""
        n0, n1, n2, n3 = self._p.nb
        return n0, n1, n2, n3

    @functools.cached_property
    def nbytes(self) -> int:
        """The bytes from the first element to the end of the last."""
        return int(self._ggml._lib.ggml_nbytes(self._p))

    def written(self, where: str, first: int, last: int) -> str:
        """Return in words that bytes `first` to `last` were written `where`: `in` it or `behind`.

        They count from the first byte of the tensor, which is contiguous. Elements, or blocks of
        them, count as a whole. Rows are counted on behind the tensor, and below 0 before it.
        """
        item_bytes, row_bytes, _, _ = self.nb
        start = first // item_bytes * item_bytes
        size = (last // item_bytes + 1) * item_bytes - start
        found = f"{size} bytes {where} {self.name} from byte {start} on"
        if row_bytes == 0:
            return found
        row, column = divmod(start, row_bytes)
        item = "element" if quants.TYPES[self.type].block_size == 1 else "block"
        n_rows = self.nbytes // row_bytes
        return f"{found}: row {row} (of 0 to {n_rows - 1}), {item} {column // item_bytes}"

    def write(self, array: Array) -> None:
        """Fill the whole of a contiguous tensor with the array's bytes."""
        array, nbytes = np.ascontiguousarray(array), self.nbytes
        if array.nbytes != nbytes:
            raise ValueError(f"tensor {self.ne} {self.type}: {nbytes} bytes, not {array.nbytes}")
        if nbytes:
            self._ggml._lib.ggml_backend_tensor_set(self._p, self._ggml._pointer(array), 0, nbytes)

    def fill(self, byte: int) -> None:
        """Fill the whole of a contiguous tensor with a byte."""
        self._ggml._lib.ggml_backend_tensor_memset(self._p, byte, 0, self.nbytes)

    def read_bytes(self) -> U8:
        """Return the bytes of a contiguous tensor."""
        return self._into(np.empty(self.nbytes, np.uint8))

    def holds(self, data: U8) -> bool:
        """Tell whether a contiguous tensor has the bytes of such an array."""
        nbytes = self.nbytes
        if not self._ggml.is_on_cpu:  # its memory cannot be looked at
            return bool(self.read_bytes().tobytes() == data.tobytes())
        return nbytes == 0 or bool(self._ggml._ffi.buffer(self._p.data, nbytes) == data)

    def write_rows(self, start: int, rows: U8) -> None:
        """Write rows, uint8 `[ne3, ne2, n, row_bytes]`, at index `start` of dimension 1.

        The tensor may have any strides.
        """
        ne0, ne1, ne2, ne3 = self.ne
        n = rows.shape[2]
        if rows.shape != (ne3, ne2, n, quants.row_bytes(self.type, ne0)) or start + n > ne1:
            raise ValueError(f"tensor {self.ne} {self.type}: no place for {rows.shape} at {start}")
        rows = np.ascontiguousarray(rows)
        _, nb1, nb2, nb3 = self.nb
        for i3, i2, i1 in np.ndindex(rows.shape[:3]):
            row = rows[i3, i2, i1]
            offset = i3 * nb3 + i2 * nb2 + (start + i1) * nb1
            self._ggml._lib.ggml_backend_tensor_set(
                self._p, self._ggml._pointer(row), offset, row.nbytes
            )

    def read_rows(self, start: int = 0, n: int | None = None) -> U8:
        """Return rows, uint8 `[ne3, ne2, n, row_bytes]`, from index `start` of dimension 1.

        The tensor may have any strides. Without `n`, all rows that follow are returned.
        """
        ne0, ne1, ne2, ne3 = self.ne
        shape = (ne3, ne2, ne1 - start if n is None else n, quants.row_bytes(self.type, ne0))
        if shape[2] == 0:
            return np.empty(shape, np.uint8)
        strides = (*self.nb[:0:-1], 1)
        # one read from the first row to the last, with what lies between them
        size = sum((count - 1) * stride for count, stride in zip(shape, strides, strict=True)) + 1
        out = np.empty(size, np.uint8)
        self._ggml._lib.ggml_backend_tensor_get(
            self._p, self._ggml._pointer(out), start * self.nb[1], size
        )
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(out, shape, strides))

    def read(self) -> F32:
        """Return a contiguous F32 tensor as an array of shape `ne[::-1]`."""
        if self.type != "f32":
            raise ValueError(f"tensor {self.ne} {self.type}: only an f32 tensor is read as numbers")
        return self._into(np.empty(self.ne[::-1], np.float32))

    def _into(self, out: npt.NDArray[S]) -> npt.NDArray[S]:
        """Return a contiguous array of as many bytes with the bytes of a contiguous tensor."""
        if out.size:
            pointer = self._ggml._pointer(out)
            self._ggml._lib.ggml_backend_tensor_get(self._p, pointer, 0, out.nbytes)
        return out
