import contextlib
import dataclasses
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fa_harness.build.library import Library
from fa_harness.case.case import Case
from fa_harness.cli import shrink
from fa_harness.cli.options import How
from fa_harness.engine.runner import Runner
from fa_harness.errors import UsageError
from fa_harness.hunt import emit_c
from fa_harness.judge.verdict import Verdict


def test_a_case_on_which_the_library_crashes_shrinks_to_what_crashes_it(
    around_patched: Callable[[str], Path], patched: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = around_patched(
        # it is looked for once, when the library is loaded
        "name == 'ggml_flash_attn_ext_add_sinks' and n > 1 and os.kill(os.getpid(), signal.SIGSEGV)"
    )
    library = dataclasses.replace(patched, path=module.parent, module=module.name)
    monkeypatch.setattr(
        shrink, "held_library", lambda name, options: contextlib.nullcontext(library)
    )
    case = Case(hsk=64, hsv=64, n_head_kv=2, n_kv=40, n_batch=3, segments=4, sinks=True, threads=2)
    smallest = shrink.shrink_case(
        case,
        How(),
        modes=None,
        seconds=60,
        console=Console(file=io.StringIO(), width=150),
    )
    assert (smallest.shrunk.failure.status, smallest.verdict.status) == ("crash", "crash")
    assert smallest.shrunk.failure.name == "standard: SIGSEGV"
    assert smallest.shrunk.case == Case(
        hsk=1, hsv=1, n_head_kv=1, n_kv=1, n_batch=1, mask=False, sinks=True, type_K="f32",
        type_V="f32",
        kv_view=False, regime="few",
    )  # fmt: skip
    program = emit_c.program(
        smallest.verdict, library=smallest.session.what_ran, features=smallest.features
    )
    assert "ggml_flash_attn_ext_add_sinks(out, tsinks)" in program


@pytest.mark.usefixtures("bug")
def test_ctrl_c_ends_the_search_for_a_smaller_case_and_keeps_what_was_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, n_run = Runner.run, 0

    def interrupted(self: Runner, *arguments: Any, **options: Any) -> Iterator[Verdict]:
        nonlocal n_run
        n_run += 1
        if n_run == 4:
            raise KeyboardInterrupt
        return run(self, *arguments, **options)

    monkeypatch.setattr(Runner, "run", interrupted)
    case = Case(
        hsk=64, hsv=64, n_head_kv=2, n_kv=40, n_batch=3, segments=4, regime="spiky", threads=4
    )
    smallest = shrink.shrink_case(
        case, How(library="0001"), modes=None, seconds=60, console=Console(file=io.StringIO())
    )
    assert not smallest.shrunk.finished
    assert [step.what for step in smallest.shrunk.steps] == ["threads 4 -> 1", "nh 2 -> 1"]
    assert (smallest.shrunk.case.n_head_kv, smallest.verdict.case.n_head_kv, n_run) == (1, 1, 4)


def test_a_case_that_is_mistrusted_is_nothing_to_shrink(patched: Library) -> None:
    case = Case(hsk=64, hsv=64, n_head_kv=1, n_kv=40, n_batch=1, segments=2, boundaries=(0,))
    with pytest.raises(UsageError, match=r"is mistrusted on library 'patched' \(2 segments were"):
        shrink.shrink_case(case, How(), modes=None, seconds=9, console=Console())
