"""Ways timed cold: they compute the same, on copies in turn, and one that is wrong is not timed."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from fa_harness.arrays import F32
from fa_harness.build.library import Library
from fa_harness.build.peer import peer_folder
from fa_harness.case.case import Case
from fa_harness.engine import ggml
from fa_harness.engine.ggml import Ggml
from fa_harness.errors import SetupError
from fa_harness.project import find_project
from fa_harness.speed import cold
from fa_harness.speed.bench import kv_bytes, shape
from fa_harness.speed.cold import FMA, MEMORY, Cold, Way, measure
from fa_harness.speed.compare import ROWS
from fa_harness.speed.limits import Limits, build_limits
from fa_harness.speed.peers import by_name
from fa_harness.speed.peers.ik import IkPeer, _why_not
from fa_harness.speed.peers.torch import TorchPeer
from fa_harness.upstream.pins import load_pins

DECODE = shape(1, 96, 64, (4, 2), "f16").with_(threads=2)
PREFILL = shape(40, 96, 64, (4, 2), "f16")
VIEW = shape(3, 96, (576, 512), (4, 1), "f16")
CASES = [DECODE, PREFILL, VIEW, DECODE.with_(type_K="f32", type_V="f32")]


@pytest.fixture(autouse=True)
def _few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold, "cold_bytes", lambda: 400_000)


@pytest.fixture(scope="module")
def limits() -> Limits:
    return Limits(build_limits(find_project()), 1 << 20)


@pytest.fixture(scope="module")
def plain(pristine: Library) -> Ggml:
    return ggml.load(pristine.module_path)


@pytest.fixture(scope="module")
def fast_(fast: Library) -> Ggml:
    return ggml.load(fast.module_path)


@dataclass
class Double:
    """A peer that returns the right result times a factor, and notes the copies that it is told."""

    expected: F32
    factor: float = 1.0
    copies: list[int] = field(default_factory=list)
    name: str = "double"
    version: str = "1"

    def why_not(self, case: Case) -> str | None:
        return None if case.type_K == "f16" else f"has no {case.type_K}"

    @contextlib.contextmanager
    def way(self, cold: Cold) -> Iterator[Way]:
        yield self

    @contextlib.contextmanager
    def ready(self) -> Iterator[Callable[[int], object]]:
        yield self.copies.append

    def result(self) -> F32:
        found: F32 = self.expected * np.float32(self.factor)
        return found


def result_of(library: Ggml, case: Case) -> F32:
    with cold._own_way(library, cold.make_cold(case, n_copies=2)) as way:
        with way.ready() as compute:
            compute(1)
        return way.result()


def attention(case: Case, inputs: Cold) -> F32:
    """Attention in float64, `[n_batch, n_head, hsv]`."""
    k, v = (np.repeat(each[0], case.n_group, axis=0) for each in (inputs.inputs.k, inputs.inputs.v))
    assert inputs.mask is not None
    scores = np.einsum("bhd,hkd->hbk", inputs.q.astype(np.float64), k) * case.scale + inputs.mask
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    found: F32 = np.einsum("hbk,hkd->bhd", weights / weights.sum(-1, keepdims=True), v)
    return found


def nmse(found: F32, expected: F32) -> float:
    return float(np.sum((found - expected) ** 2) / np.sum(expected**2))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_our_way_computes_attention_on_the_copies(fast_: Ggml, case: Case) -> None:
    expected = attention(case, cold.make_cold(case, n_copies=2))
    assert nmse(result_of(fast_, case), expected) < 1e-6


def test_every_copy_is_memory_of_its_own_and_all_are_larger_than_the_cache() -> None:
    found = cold.make_cold(DECODE, n_copies=cold._n_copies(DECODE))
    places = [k.ctypes.data for k, _ in found.copies]
    assert len(set(places)) == len(places)
    assert (len(places) - 1) * kv_bytes(DECODE) >= 400_000
    assert all(np.array_equal(k, found.copies[0][0]) for k, _ in found.copies)


def test_every_row_is_cold_with_a_cache_of_any_size() -> None:
    least = min(map(kv_bytes, ROWS))
    assert least * (cold._MOST_COPIES - 1) >= cold._MOST_COLD


def test_no_way_finds_the_copy_that_another_had_last(limits: Limits) -> None:
    copies: list[int] = []
    right = np.ones(1, np.float32)
    peers = [Double(right, copies=copies, name=name) for name in ("one", "other")]
    measure(DECODE, {}, peers, limits, rounds=3)
    n_copies = cold._n_copies(DECODE)
    timed = copies[len(peers) :]  # the first computation of each gives its result
    assert timed == [i % n_copies for i in range(len(timed))]
    assert len(timed) > 2 * n_copies


def test_libraries_peers_and_limits_are_timed_in_the_same_rounds(
    fast_: Ggml, plain: Ggml, limits: Limits
) -> None:
    peer = Double(result_of(fast_, DECODE))
    timed = measure(DECODE, {"fast": fast_, "pristine": plain}, [peer], limits, rounds=5)
    assert set(timed.seconds) == {"fast", "pristine", "double", MEMORY, FMA}
    assert all(len(each) == 5 and (each > 0).all() for each in timed.seconds.values())
    assert not timed.unavailable


@pytest.mark.parametrize("factor", [1.05, np.nan])
def test_a_peer_with_wrong_numbers_is_refused(fast_: Ggml, limits: Limits, factor: float) -> None:
    peer = Double(result_of(fast_, DECODE), factor)
    timed = measure(DECODE, {"fast": fast_}, [peer], limits, rounds=2)
    assert "double" not in timed.seconds
    assert timed.unavailable["double"].startswith("its result is not that of fast: NMSE ")
    assert timed.unavailable["double"].endswith(" > 0.0005")


def test_a_peer_without_a_type_is_not_asked(fast_: Ggml, limits: Limits) -> None:
    case = DECODE.with_(type_K="q8_0", type_V="q8_0")
    peer = Double(np.zeros(0, np.float32))
    timed = measure(case, {"fast": fast_}, [peer], limits, rounds=2)
    assert timed.unavailable == {"double": "has no q8_0"}
    assert not peer.copies


# peers


@pytest.mark.parametrize("case", [*CASES, DECODE.with_(type_K="bf16", type_V="bf16")], ids=str)
@pytest.mark.parametrize("packed", [True, False])
def test_torch_computes_the_same(case: Case, packed: bool) -> None:
    pytest.importorskip("torch")
    from fa_harness.speed.peers import torch as peer

    inputs = cold.make_cold(case, n_copies=2)
    way = peer._TorchWay(TorchPeer(find_project())._torch, inputs, packed=packed)
    way.compute(1)
    assert nmse(way.result(), attention(case, inputs)) < 1e-4


def test_torch_without_torch_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SetupError, match=r"^peer 'torch': it cannot be imported .*pip install"):
        TorchPeer(find_project())


def test_torch_has_no_blocks() -> None:
    peer = TorchPeer.__new__(TorchPeer)
    assert peer.why_not(DECODE.with_(type_K="q8_0", type_V="q8_0")) == "torch has no q8_0"
    assert peer.why_not(DECODE) is None


@pytest.fixture(scope="module")
def ik() -> IkPeer:
    """ik_llama.cpp if it is built; building it takes too long for a test."""
    project = find_project()
    pin = load_pins(project.pins_file).peers[IkPeer.name]
    library = peer_folder(project, pin) / "cmake" / "lib" / "libggml.so"
    if not library.is_file():
        pytest.skip("ik_llama.cpp is not built; fa-harness bench --peer ik_llama.cpp builds it")
    return IkPeer(project)


IK_CASES = [
    *(case.with_(n_kv=160) for case in CASES if case.type_K == "f16"),
    *(PREFILL.with_(n_kv=160, type_K=type_, type_V=type_) for type_ in ("q8_0", "q4_0")),
]


@pytest.mark.parametrize("case", IK_CASES, ids=str)
def test_ik_llama_cpp_computes_the_same(ik: IkPeer, case: Case) -> None:
    inputs = cold.make_cold(case, n_copies=2)
    assert ik.why_not(case) is None
    with ik.way(inputs) as way:
        with way.ready() as compute:
            compute(1)
        assert nmse(way.result(), attention(case, inputs)) < 1e-4


def test_what_ik_llama_cpp_aborts_on_is_told(ik: IkPeer) -> None:
    reason = ik.why_not(DECODE.with_(type_K="f32", type_V="f32"))
    assert reason is not None
    assert reason.startswith("SIGABRT: K cache f32 coupled with V cache f32 is not a supported")


def test_a_shape_that_ends_a_child_process_is_not_tried_in_this_one(tmp_path: Path) -> None:
    reason = _why_not(tmp_path / "libggml.so", DECODE)
    assert reason is not None
    assert reason.startswith("exit status 1: fa_harness.errors.SetupError: ")
    assert reason.endswith("delete it and run again")


@pytest.mark.parametrize(("variable", "spins"), [("OMP_WAIT_POLICY", None), ("OTHER", "20000")])
def test_threads_of_a_peer_spin_shortly_unless_the_user_says_how(
    monkeypatch: pytest.MonkeyPatch, variable: str, spins: str | None
) -> None:
    for name in by_name._SPIN_VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv(variable, "active")
    peer = Double(np.zeros(0, np.float32))
    monkeypatch.setitem(by_name._OPEN, "double", lambda _project: peer)
    assert by_name.open_peer(find_project(), "double") is peer
    assert os.environ.get("GOMP_SPINCOUNT") == spins


# limits


def test_reading_takes_every_byte_and_multiplying_says_how_much(limits: Limits) -> None:
    with limits.reading(2) as read:
        assert read() == 1 << 20
    with limits.reading(3) as read:
        assert (1 << 20) - 3 * 512 < read() <= 1 << 20
    with limits.multiplying(1) as one, limits.multiplying(2) as two:
        assert two() == 2 * one() > 1e8
