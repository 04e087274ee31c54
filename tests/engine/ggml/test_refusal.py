"""Whether a state that a scheduler would have to copy is refused."""

from collections.abc import Iterator

import pytest

from fa_harness.build.library import Library
from fa_harness.engine.ggml import WrongTensorError, load, loaded
from fa_harness.engine.ggml.refusal import is_refused
from fa_harness.engine.ggml.remote import Server


@pytest.fixture
def server(partial: Library) -> Iterator[str]:
    """The address of a server of the library whose calls return the state."""
    of_library = Server(partial.module_path)
    yield of_library.endpoint
    of_library.close()


def test_the_library_that_updates_a_state_refuses_it_elsewhere(patched: Library) -> None:
    load(patched.module_path).check_refusal()


def test_a_library_that_does_not_refuse_is_told_from_one_that_does(
    partial: Library, server: str
) -> None:
    # there a copy of the state is right, so nothing is refused
    assert not is_refused(partial.module_path, server, None)


def test_what_is_not_refused_is_the_library_s_fault(
    patched: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fa_harness.engine.ggml.refusal.is_refused", lambda *_: False)
    library = loaded.load(patched.module_path)
    with pytest.raises(WrongTensorError, match="another backend was not refused"):
        library.check_refusal()
