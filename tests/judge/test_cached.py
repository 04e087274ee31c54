"""What is expected of one case does not wait for what is expected of another."""

import threading

from fa_harness.judge.cached import cached_property


class Slow:
    """Something to compute, which may wait."""

    def __init__(self, may_end: threading.Event) -> None:
        self._may_end = may_end
        self.n_computed = 0

    @cached_property
    def value(self) -> int:
        self.n_computed += 1
        assert self._may_end.wait(timeout=30)
        return self.n_computed


def test_another_instance_is_computed_meanwhile() -> None:
    waits, other = Slow(threading.Event()), Slow(threading.Event())
    first = threading.Thread(target=lambda: waits.value)
    second = threading.Thread(target=lambda: other.value)
    first.start()
    other._may_end.set()
    second.start()
    second.join(timeout=20)
    is_done = not second.is_alive()
    waits._may_end.set()
    first.join(timeout=30)
    assert is_done


def test_is_computed_once() -> None:
    ready = threading.Event()
    ready.set()
    slow = Slow(ready)
    assert (slow.value, slow.value, slow.n_computed) == (1, 1, 1)
