"""What this machine has to compute with. Reads the system's own tables; never touches a GPU."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path


def cores() -> set[int]:
    """The cores that this process may use, by number; a single thread may be held to fewer."""
    return (
        os.sched_getaffinity(os.getpid()) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    )


def memory_bytes() -> int:
    """Bytes of memory that this process may use: the machine's, or its control group's limit if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdecimal() else total


def bytes_left_by_others(own: Iterable[int]) -> int:
    """Bytes that the own processes have or could have: what is free or a file's, and what they hold."""
    return free_bytes() + sum(map(_private_bytes, own))


def _private_bytes(pid: int) -> int:
    """Resident bytes of a process that are no file's."""
    import psutil

    try:
        memory = psutil.Process(pid).memory_info()
    except psutil.NoSuchProcess:
        return 0
    return int(memory.rss - getattr(memory, "shared", 0))


def free_bytes() -> int:
    """Bytes that this process could take now and nobody would be pushed out: free ones, and file pages."""
    import psutil

    return min(int(psutil.virtual_memory().available), memory_bytes())


def present_gpu() -> str | None:
    """Name a GPU that is in this machine, whether or not anything can use it; None if none is seen."""
    for information in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in information.read_text(errors="replace").splitlines():
            if line.startswith("Model:"):
                return line.removeprefix("Model:").strip()
    if Path("/dev/kfd").exists():
        return "AMD GPU"
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return "Apple GPU"
    return None
