import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fa_harness.arrays import F32
from fa_harness.build.library import Library
from fa_harness.case.case import Case
from fa_harness.case.inputs import make_inputs
from fa_harness.engine import state_file as state
from fa_harness.engine.compute import run_case
from fa_harness.engine.ggml import Ggml
from fa_harness.errors import UsageError

CASE = Case(
    hsk=64, hsv=32, n_head_kv=2, n_group=2, ne3=2, n_kv=90, n_batch=3, segments=4, sinks=True,
    regime="rising",
    type_K="f32", type_V="f32", segment_types=("q4_0", "q8_0", "f16"),
)  # fmt: skip


def rows(shape: tuple[int, ...] = (2, 4, 3, 34)) -> F32:
    numbers = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    numbers[0, 0, 0, 0] = -np.inf
    numbers[0, 0, 0, 1:] = np.nan
    numbers[0, 0, 1, 2] = -0.0
    return numbers


def test_a_state_comes_out_of_its_file_bit_for_bit(tmp_path: Path) -> None:
    state.save(tmp_path / "state", rows())
    assert state.load(tmp_path / "state", CASE).tobytes() == rows().tobytes()


def test_a_file_that_is_there_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "state.npy"
    state.save(file, np.zeros_like(rows()))
    state.save(file, rows())
    assert state.load(file, CASE).tobytes() == rows().tobytes()
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "changes",
    [{"n_batch": 4}, {"hsv": 64}, {"n_head_kv": 4}, {"n_group": 2, "ne3": 1}],
    ids=lambda c: next(iter(c)),
)
def test_a_state_of_another_shape_is_refused_with_both_shapes(
    changes: dict[str, object], tmp_path: Path
) -> None:
    file = tmp_path / "state.npy"
    state.save(file, rows())
    with pytest.raises(
        UsageError,
        match=r"state .*state\.npy: holds float32 \[2, 4, 3, 34\], not float32 \[.*\] \(\[ne3, ",
    ):
        state.load(file, CASE.with_(**changes))


def test_a_state_in_which_rows_and_heads_are_swapped_is_refused(tmp_path: Path) -> None:
    state.save(tmp_path / "state.npy", rows().swapaxes(1, 2))
    with pytest.raises(UsageError, match=r"holds float32 \[2, 3, 4, 34\]"):
        state.load(tmp_path / "state.npy", CASE)


def test_numbers_of_another_type_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "state.npy", rows().astype(np.float64))
    with pytest.raises(UsageError, match=r"holds float64 \[2, 4, 3, 34\], not float32"):
        state.load(tmp_path / "state.npy", CASE)


def test_an_archive_of_arrays_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "state.npz", rows(), rows())
    with pytest.raises(UsageError, match="holds several arrays, not float32"):
        state.load(tmp_path / "state.npz", CASE)


@pytest.mark.parametrize("n_bytes", [0, 20, 1000])
def test_a_truncated_file_is_refused(n_bytes: int, tmp_path: Path) -> None:
    file = tmp_path / "state.npy"
    state.save(file, rows())
    file.write_bytes(file.read_bytes()[:n_bytes])
    with pytest.raises(UsageError, match=r"state .*: cannot be read \(.*save it again"):
        state.load(file, CASE)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"state .*none\.npy: cannot be read \(.*No such file"):
        state.load(tmp_path / "none.npy", CASE)


_PART = """
import sys
from pathlib import Path
from fa_harness.engine import ggml
from fa_harness.engine import state_file as state
from fa_harness.case.case import Case
from fa_harness.case.inputs import make_inputs
from fa_harness.engine.layout import CaseTensors, make_fresh, rows_of

module, case_string, first, stop, folder = sys.argv[1:]
case, folder = Case.parse(case_string), Path(folder)
library, inputs = ggml.load(Path(module)), make_inputs(case)
for i in range(int(first), int(stop)):
    with library.context() as ctx, library.backend(case.threads) as backend:
        tensors = CaseTensors(ctx, case, inputs)
        rows, segment = tensors.state(), case.segment_bounds()[i : i + 2]
        last = i == case.segments - 1
        call = tensors.call(tensors.own_segment(i), segment, sinks=last, state=rows)
        graph = ctx.graph([call])
        tensors.allocate(backend)
        if i == 0:
            make_fresh(rows)
        else:
            rows.write(state.load(folder / "state.npy", case))
        backend.compute(graph)
        state.save(folder / "state.npy", rows.read())
        state.save(folder / "output.npy", rows_of(call))
"""


@pytest.mark.parametrize("types", [("q4_0", "q8_0", "f16"), ()], ids=["mixed", "segmented"])
@pytest.mark.parametrize("cut", [1, 3])
def test_two_processes_share_a_chain_bit_for_bit(
    library: Ggml, patched: Library, tmp_path: Path, cut: int, types: tuple[str, ...]
) -> None:
    case = dataclasses.replace(CASE, segment_types=types)
    done = run_case(library, case, make_inputs(case), ("segmented", "mixed") if types else None)
    chain = done.results["mixed"].first if types else done.results["segmented"]
    for first, stop in ((0, cut), (cut, case.segments)):
        command = [sys.executable, "-c", _PART, str(patched.module_path), str(case)]
        subprocess.run([*command, str(first), str(stop), str(tmp_path)], check=True, timeout=60)
        step = chain.calls[stop - 1]
        assert state.load(tmp_path / "state.npy", case).tobytes() == step.state.tobytes()
        assert np.load(tmp_path / "output.npy").tobytes() == step.output.tobytes()
