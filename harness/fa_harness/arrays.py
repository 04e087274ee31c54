"""What arrays hold, by short names."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
