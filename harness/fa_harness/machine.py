"""What this machine's processor is, and how many of its cores this process may use."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import platform
import re
from pathlib import Path


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo; empty where there is none."""
    try:
        first, _, _ = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def cpu_model() -> str:
    """The processor's name, or the architecture's where the system does not say."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def cpu_features() -> tuple[str, ...]:
    """The instruction set extensions that the system advertises, sorted.

    What is advertised need not work (a virtual machine may list AMX and kill its first
    instruction); only running a library shows that.
    """
    info = _cpuinfo()
    return tuple(sorted((info.get("flags") or info.get("Features") or "").split()))


def cpu_use(pid: int) -> tuple[float, int]:
    """Return the CPU seconds of a process and its children, and how many threads want to run now.

    Children that have ended count no more. (0, 0) where the system does not say.
    """
    seconds, wanting = 0.0, 0
    tasks = Path(f"/proc/{pid}/task")
    with contextlib.suppress(OSError):
        whole = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
        seconds = (int(whole[11]) + int(whole[12])) / os.sysconf("SC_CLK_TCK")
        for task in tasks.iterdir():
            state = (task / "stat").read_text("utf-8").rpartition(")")[2].split()[0]
            wanting += state in ("R", "D")
            for child in (task / "children").read_text("utf-8").split():
                of_child = cpu_use(int(child))
                seconds, wanting = seconds + of_child[0], wanting + of_child[1]
    return seconds, wanting


def last_level_cache(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int | None:
    """Bytes of the largest cache that the first core uses; None where the system does not say."""
    found = []
    for path in folder.glob("index*/size"):
        with contextlib.suppress(OSError):
            if size := re.fullmatch(r"(\d+)([KM])", path.read_text("utf-8").strip()):
                found.append(int(size[1]) << {"K": 10, "M": 20}[size[2]])
    return max(found, default=None)


def available_memory(
    meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Bytes that programs can have, by the system and the cgroup; None where neither says."""
    known = [_system_memory(meminfo), _memory_of_cgroup(cgroup)]
    return min((n_bytes for n_bytes in known if n_bytes is not None), default=None)


def _system_memory(meminfo: Path) -> int | None:
    try:
        found = re.search(r"^MemAvailable: +(\d+) kB$", meminfo.read_text("utf-8"), re.M)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _memory_of_cgroup(cgroup: Path) -> int | None:
    """Bytes that the cgroup (v2, else v1) leaves, cached files not counted; None is no limit."""
    for limit, used, stat, cached in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        try:
            most, now = (cgroup / limit).read_text().strip(), int((cgroup / used).read_text())
            found = re.search(rf"^{cached} (\d+)$", (cgroup / stat).read_text(), re.M)
        except (OSError, ValueError):
            continue
        free = int(found[1]) if found else 0
        return max(0, int(most) - now + free) if most.isdigit() else None
    return None


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The cores that this process may use: its affinity, cut by the cgroup's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _quota(cgroup)
    return max(1, min(cores or 1, math.ceil(quota) if quota else cores or 1))


def _quota(cgroup: Path) -> float | None:
    """Cores' worth of time per period that the cgroup (v2, else v1) allows; None is no limit."""
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return int(limit) / int(period) if limit.isdigit() and int(period) > 0 else None
