"""Memory, CPUs and disks that this process may use: the hardware, limited by cgroups and affinity.

Invariant: nothing here raises; a limit that cannot be read counts as unlimited. `memory` and `disk` take well under a
millisecond, so they can be polled.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path("/")
_PASS_BYTES: Final = 64 << 20
_UNLIMITED: Final = 1 << 60  # cgroup v1 writes its "no limit" as a number near 2**63


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. `total`: the smaller of the machine's memory and the cgroup limit; `limited`: it is the cgroup limit."""

    total: int
    available: int
    limited: bool


@dataclass(frozen=True, slots=True)
class Processors:
    """`logical`: CPUs of the machine; `usable`: those this process may use, by affinity and quota, at least 1."""

    logical: int
    usable: int


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes of the file system that holds `path`."""

    path: Path
    total: int
    free: int


def memory(root: Path = ROOT) -> Memory:
    """The memory that this process can use. `root`: the folder of /proc and /sys."""
    import psutil

    facts = psutil.virtual_memory()
    total, available = int(facts.total), int(facts.available)
    limit, used = _memory_limit(root)
    if limit is None or limit >= total:
        return Memory(total, available, limited=False)
    return Memory(limit, max(0, min(available, limit - used)), limited=True)


def processors(root: Path = ROOT) -> Processors:
    """The CPUs that this process can use."""
    logical = os.cpu_count() or 1
    usable = logical
    if hasattr(os, "sched_getaffinity"):
        try:
            usable = len(os.sched_getaffinity(0))
        except OSError:
            usable = logical
    quota = _processor_quota(root)
    if quota is not None:
        usable = min(usable, max(1, int(quota)))
    return Processors(logical, max(1, usable))


def memory_speed() -> int:
    """Bytes per second that one thread reads from memory: the best of three passes over 64 MiB, about 30 ms in all."""
    block = bytes(1) + b"\x01" * _PASS_BYTES
    best = min(_pass_seconds(block) for _ in range(3))
    return int(_PASS_BYTES / best)


def _pass_seconds(block: bytes) -> float:
    started = time.perf_counter()
    block.find(b"\x02")  # absent: reads every byte
    return max(1e-6, time.perf_counter() - started)


def disk(path: Path) -> Disk | None:
    """The file system of `path`, or of its nearest existing parent. None if it cannot be read."""
    for folder in (path, *path.parents):
        try:
            usage = shutil.disk_usage(folder)
        except OSError:
            continue
        return Disk(path, usage.total, usage.free)
    return None


def _memory_limit(root: Path) -> tuple[int | None, int]:
    """The lowest memory limit of this process's cgroups, and the bytes used without droppable caches."""
    lowest: int | None = None
    used = 0
    for controller, maximum, current, droppable in (
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        for folder in _groups(root, controller):
            limit = _number(folder / maximum)
            if limit is not None and limit < _UNLIMITED and (lowest is None or limit < lowest):
                lowest = limit
                used = max(0, (_number(folder / current) or 0) - _field(folder / "memory.stat", droppable))
    return lowest, used


def _processor_quota(root: Path) -> float | None:
    """The lowest CPU quota of this process's cgroups, in CPUs."""
    quotas: list[float] = []
    for folder in _groups(root, ""):
        words = _text(folder / "cpu.max").split()
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]) > 0:
            quotas.append(int(words[0]) / int(words[1]))
    for folder in _groups(root, "cpu"):
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota and period and quota > 0:
            quotas.append(quota / period)
    return min(quotas, default=None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's cgroup and its parents; `controller`: "" for cgroup version 2."""
    mount = root / "sys/fs/cgroup" / controller
    for line in _text(root / "proc/self/cgroup").splitlines()[:64]:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller not in controllers.split(","):
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            yield mount.joinpath(*parts[:depth])
        return


def _text(path: Path) -> str:
    try:
        with path.open("r", encoding="utf-8", errors="replace") as file:
            return file.read(65_536)
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _field(path: Path, name: str) -> int:
    for line in _text(path).splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == name and words[1].isdigit():
            return int(words[1])
    return 0
