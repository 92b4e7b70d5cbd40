"""Processor time and memory of processes, from /proc (Linux)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
#: Fields of /proc/PID/stat after the name, from `state` on: utime, stime, cutime, cstime.
_TIMES = slice(11, 15)


def cpu_seconds(pids: Iterable[int]) -> float:
    """Of these processes since their start, threads and children that were waited for included."""
    return sum(_cpu_of(pid) for pid in pids)


def _cpu_of(pid: int) -> float:
    # The name is in parentheses, and may hold any character.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[_TIMES])) / _TICKS


def memory(pid: int) -> float:
    """MiB that are resident now."""
    return _status(pid, "VmRSS")


def peak_memory(pid: int) -> float:
    """MiB that were resident at most since `forget_peak`."""
    return _status(pid, "VmHWM")


def forget_peak(pid: int) -> None:
    """From now on the peak is that of what follows."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status(pid: int, field: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _colon, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) / 1024
    raise ValueError(f"/proc/{pid}/status has no {field}")


def stolen_seconds() -> float:
    """Of all processors since the start of the system: time that the host gave to others."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return int(fields[8]) / _TICKS
