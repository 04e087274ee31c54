"""Carry, prove and guard ggml flash-attention patches."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fa_harness.api import ArraysResult, CaseResult, compare, compare_arrays
    from fa_harness.case.case import Case
    from fa_harness.errors import FaHarnessError, SetupError, UsageError

__version__ = "0.1.0"
__all__ = [
    "ArraysResult",
    "Case",
    "CaseResult",
    "FaHarnessError",
    "SetupError",
    "UsageError",
    "compare",
    "compare_arrays",
]
_HOMES = {"Case": "case.case"} | dict.fromkeys(
    ("FaHarnessError", "SetupError", "UsageError"), "errors"
)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: the command line needs none of them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"fa_harness.{_HOMES.get(name, 'api')}"), name)
