"""No test of upstream sources sees the user's settings."""

import pytest


@pytest.fixture(autouse=True)
def _own_settings(own_settings: None) -> None:
    pass
