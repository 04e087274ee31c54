import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fa_harness.machine import (
    available_memory,
    cpu_features,
    cpu_model,
    cpu_use,
    last_level_cache,
    usable_cores,
)


def test_the_processor_has_a_name_and_features_are_sorted() -> None:
    assert cpu_model()
    assert list(cpu_features()) == sorted(cpu_features())


def test_without_a_quota_every_core_of_the_affinity_is_usable(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    assert usable_cores(tmp_path) == cores
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_cores(tmp_path) == cores


def test_a_quota_cuts_the_cores_and_leaves_at_least_one(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert usable_cores(tmp_path) == 1


def test_a_quota_of_the_older_cgroups_counts_too(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores(tmp_path) == 1
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert usable_cores(tmp_path) == len(os.sched_getaffinity(0))


def test_affinity_limits_the_cores(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cores(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)


def test_memory_is_what_the_system_and_the_cgroup_leave(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    assert available_memory(meminfo, tmp_path) is None
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:       8 kB\n")
    assert available_memory(meminfo, tmp_path) == 8192
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5000\n")
    (tmp_path / "memory.stat").write_text("active_file 1\ninactive_file 1000\n")
    assert available_memory(meminfo, tmp_path) == 8192
    (tmp_path / "memory.max").write_text("7000\n")
    assert available_memory(meminfo, tmp_path) == 3000


def test_memory_of_the_older_cgroups_counts_too(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    for name, text in (
        ("limit_in_bytes", "7000"), ("usage_in_bytes", "5000"), ("stat", "total_inactive_file 10")
    ):  # fmt: skip
        (tmp_path / "memory" / f"memory.{name}").write_text(f"{text}\n")
    assert available_memory(tmp_path / "none", tmp_path) == 2010


def test_the_last_cache_is_the_largest(tmp_path: Path) -> None:
    for i, size in enumerate(("48K", "2048K", "260M", "")):
        (tmp_path / f"index{i}").mkdir()
        (tmp_path / f"index{i}" / "size").write_text(f"{size}\n")
    assert last_level_cache(tmp_path) == 260 << 20
    assert last_level_cache(tmp_path / "index0") is None


def test_a_process_has_the_cpu_seconds_and_the_threads_of_its_children() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while 1: 0'])"
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True) as process:
        try:
            deadline = time.monotonic() + 60
            while cpu_use(process.pid)[0] < 0.3 and time.monotonic() < deadline:
                time.sleep(0.05)
            seconds, wanting = cpu_use(process.pid)
            assert seconds >= 0.3
            assert wanting == 1
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    with subprocess.Popen(["sleep", "60"]) as sleeping:
        deadline = time.monotonic() + 60
        while cpu_use(sleeping.pid)[1] and time.monotonic() < deadline:  # it is just starting
            time.sleep(0.05)
        assert cpu_use(sleeping.pid)[1] == 0
        sleeping.kill()
    assert cpu_use(sleeping.pid) == (0, 0)
