import re

import pytest

from fa_harness.build.library import Library
from fa_harness.case.case import Case
from fa_harness.case.modes import modes_of
from fa_harness.case.suites import suite
from fa_harness.engine.ggml import CPU, Ggml
from fa_harness.engine.runner import Runner
from fa_harness.errors import SetupError

SMALL = Case(hsk=32, hsv=32, n_head_kv=1, n_kv=20, n_batch=2, segments=2, regime="normal")


def test_a_library_reaches_its_cpu_and_a_server_of_its_own(library: Ggml) -> None:
    found = {device.name: device for device in library.devices()}
    assert {CPU, "RPC"} <= set(found)
    assert 0 < found[CPU].free <= found[CPU].total


@pytest.mark.parametrize("name", ["Vulkan7", "RPC[nowhere]", ""])
def test_a_device_that_the_library_does_not_reach_is_refused(patched: Library, name: str) -> None:
    reason = f"backend '{name}': the library has no such device; it has CPU"
    with pytest.raises(SetupError, match=re.escape(reason)):
        Runner(patched.module_path, device=name).__enter__()


def test_one_call_on_a_server_is_judged_as_on_the_cpu(patched: Library) -> None:
    cases = suite("smoke")[::9]
    with Runner(patched.module_path) as here, Runner(patched.module_path, device="RPC") as there:
        expected = list(here.run(cases, modes=("standard",)))
        found = list(there.run(cases, modes=("standard",)))
    assert [verdict.status for verdict in found] == [verdict.status for verdict in expected]
    # the server has one thread
    digests = [(v.case, v.standard) for v in expected if v.case.threads == 1]
    assert len(digests) > 2
    assert [(v.case, v.standard) for v in found if v.case.threads == 1] == digests


def test_a_mode_that_a_device_does_not_support_is_left_out_unless_it_is_asked_for(
    patched: Library,
) -> None:
    with Runner(patched.module_path, device="RPC") as runner:
        [verdict] = runner.run([SMALL])
        [asked] = runner.run([SMALL], modes=("standard", "full_state"))
    assert (verdict.status, verdict.modes) == ("pass", ("standard",))
    assert "full_state" in modes_of(SMALL)
    assert asked.status == "unsupported"
    assert asked.reason == (
        "mode full_state: RPC does not support FLASH_ATTN_EXT of these shapes and types"
    )
