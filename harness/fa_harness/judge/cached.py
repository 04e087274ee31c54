"""`functools.cached_property`, without the lock that it has before Python 3.12.

All instances share that lock: what is expected of two cases, in two threads, would be computed one
after the other.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

__all__ = ["cached_property"]

if TYPE_CHECKING or sys.version_info >= (3, 12):
    cached_property = functools.cached_property
else:

    class cached_property(functools.cached_property):  # noqa: N801
        """A property that is computed when it is first asked for."""

        def __get__(self, instance: Any, owner: type | None = None) -> Any:
            """Compute it; from then on the instance's own attribute is found first."""
            if instance is None:
                return self
            value = instance.__dict__[self.attrname] = self.func(instance)
            return value
