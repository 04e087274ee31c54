"""The real libraries: built once, before the first test that needs one."""

import pytest

from fa_harness import ggml
from fa_harness.ggml import Ggml
from fa_harness.library import Library
from fa_harness.project import find_project
from fa_harness.upstream.build import build


def _build(name: str) -> Library:
    [library] = build(find_project(), [name])
    return library


@pytest.fixture(scope="session")
def pristine() -> Library:
    """Upstream without a patch."""
    return _build("pristine")


@pytest.fixture(scope="session")
def bug() -> Library:
    """The first patch only: the accumulator is reset on every call."""
    return _build("0001")


@pytest.fixture(scope="session")
def patched() -> Library:
    """The whole series."""
    return _build("patched")


@pytest.fixture(scope="session")
def library(patched: Library) -> Ggml:
    """The patched library, loaded into this process, which can hold no other."""
    return ggml.load(patched.module_path)
