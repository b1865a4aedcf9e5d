"""How much of the machine other processes used during a benchmark, so that a noisy run shows."""

import os
import time

import psutil


class Neighbours:
    """Counts from its making: CPU seconds of all processes, less those of this one and its descendants."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._others_s = _all_cpu_s() - _own_cpu_s()

    def share(self) -> float:
        """The part of all cores' time that others used since."""
        others_s = _all_cpu_s() - _own_cpu_s() - self._others_s
        available_s = (time.perf_counter() - self._started) * (psutil.cpu_count() or 1)
        return max(0.0, others_s / available_s)


def _all_cpu_s() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.system + getattr(times, "nice", 0.0) + getattr(times, "steal", 0.0))


def _own_cpu_s() -> float:
    """This process and all it ever started: living ones, and ended ones through those that waited for them."""
    own = os.times()
    seconds = own.user + own.system + own.children_user + own.children_system
    for child in psutil.Process().children(recursive=True):
        try:
            seconds += sum(child.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return seconds
