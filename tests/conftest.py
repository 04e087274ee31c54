"""The real libraries: built once, before the first test that needs one."""

import platform
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from fa_harness.build.builder import build
from fa_harness.build.library import Library
from fa_harness.engine import ggml
from fa_harness.engine.ggml import Ggml
from fa_harness.project import find_project

pytest_plugins = ["tiny_upstream"]


def pytest_configure() -> None:
    """Take SIGINT: a shell's background job ignores it, and so would all that the tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
def before_scheduler() -> Library:
    """The series up to the patch before the scheduler's; its headers are those of `patched`."""
    return _build("0006")


@pytest.fixture(scope="session")
def patched() -> Library:
    """The whole series."""
    return _build("patched")


@pytest.fixture(scope="session")
def partial() -> Library:
    """The series `partial`, whose calls return the state."""
    return _build("partial")


@pytest.fixture(scope="session")
def fast() -> Library:
    """The series `fast`, which has no state."""
    return _build("fast")


_NO_AVX = dict.fromkeys(
    [f"GGML_{name}" for name in ("NATIVE", "AVX", "AVX2", "FMA", "F16C", "BMI2")], "OFF"
)


@pytest.fixture(
    scope="session",
    params=[_NO_AVX, {**_NO_AVX, "GGML_SSE42": "OFF"}],
    ids=["4 floats", "no vectors"],
)
def narrow_fast(request: pytest.FixtureRequest) -> Library:
    """The series `fast` for CPUs with short vectors, or with none that ggml uses."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("these options are of x86; another CPU has vectors of its own")
    [library] = build(find_project(), ["fast"], options=request.param)
    return library


@pytest.fixture(scope="session", params=["state+fast", "partial+fast"])
def fast_with_state(request: pytest.FixtureRequest) -> Library:
    """The series `fast` with either form of the state."""
    return _build(request.param)


@pytest.fixture(scope="session")
def mutated() -> Library:
    """The whole series with a switch for faults."""
    return _build("mutants")


@pytest.fixture(scope="session")
def mutated_partial() -> Library:
    """The series `partial` with a switch for faults."""
    return _build("partial@mutants")


@pytest.fixture(scope="session")
def mutated_fast() -> Library:
    """The series `fast` with a switch for faults."""
    return _build("fast@mutants")


@pytest.fixture(scope="session")
def mutated_state_on_fast() -> Library:
    """The state on the series `fast` with a switch for faults of it."""
    return _build("state-on-fast@mutants")


@pytest.fixture(scope="session")
def museum_library() -> Library:
    """The whole series with faults that kernels really had."""
    return _build("museum")


@pytest.fixture(scope="session")
def library(patched: Library) -> Ggml:
    """The patched library, loaded into this process."""
    return ggml.load(patched.module_path)


@pytest.fixture
def around_patched(patched: Library, tmp_path: Path) -> Callable[[str], Path]:
    """Make a module around the patched library that runs some code before each use of `lib`.

    The code sees the `name` of the function and `n`, how often that one was used. The first graph
    is computed when a worker loads the library (`Ggml.features`).
    """

    def make(code: str) -> Path:
        module, real = tmp_path / "_ggml.py", str(patched.module_path)
        module.write_text(
            "import collections, importlib.util, os, signal\n"
            f"spec = importlib.util.spec_from_file_location('_ggml', {real!r})\n"
            "real = importlib.util.module_from_spec(spec)\n"
            "spec.loader.exec_module(real)\n"
            "uses = collections.Counter()\n"
            "class Lib:\n"
            "    def __getattr__(self, name):\n"
            "        uses[name] += 1\n"
            "        n = uses[name]\n"
            f"        {code}\n"
            "        return getattr(real.lib, name)\n"
            "ffi, lib = real.ffi, Lib()\n"
        )
        return module

    return make
