"""The memory that this node's engine processes take or were planned with, so that the next plan does not count on it.

A process takes its memory while it loads, and the weights that it maps from a file never count as used. So the system's
free memory shows a part of each plan only, and the ledger takes the rest out of what a plan may use. The rpc-server of
a lease counts like the process of a model, except in what this node offers for its next lease, which gets that memory.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import psutil

from meshllm.core.memory.devices import MachineMemory


@dataclass(frozen=True, slots=True)
class PlannedMemory:
    """Bytes of RAM that an engine process may come to take, and of each accelerator, by name."""

    host: int = 0
    devices: tuple[tuple[str, int], ...] = ()

    def on(self, names: Iterable[str]) -> int:
        """Bytes on the accelerators `names`; in RAM if there are none."""
        wanted = set(names)
        return sum(taken for name, taken in self.devices if name in wanted) if wanted else self.host


NOTHING_PLANNED = PlannedMemory()

LeaseKey = tuple[bytes, int]
"""Session and generation of a lease."""


@dataclass(slots=True)
class _Process:
    """What was planned for a process, its id (0: it has none yet), whether it has loaded, and whether it is the
    rpc-server of a `lease`."""

    planned: PlannedMemory
    pid: Callable[[], int] = int
    loaded: bool = False
    lease: bool = False


class MemoryLedger:
    """The plans of this node's engine processes, by model or lease. `reservations`: how many have been made; a plan
    during which another one was made may have counted on the same memory."""

    def __init__(self, private_bytes: Callable[[int], int] | None = None) -> None:
        """`private_bytes`: bytes of RAM that a process takes and that are in no file."""
        self._private = private_bytes or _private_bytes
        self._processes: dict[str | LeaseKey, _Process] = {}
        self.reservations = 0
        self._settled = asyncio.Event()
        self._settled.set()

    def reserve(self, owner: str | LeaseKey, planned: PlannedMemory) -> None:
        """A process of `owner`, a model or a lease, is going to be started with that plan; it replaces an earlier
        one."""
        self._processes[owner] = _Process(planned, lease=not isinstance(owner, str))
        self.reservations += 1
        self._update()

    def started(self, owner: str | LeaseKey, pid: Callable[[], int]) -> None:
        """The process has been started; `pid`: its id now (0: it has none yet)."""
        if (process := self._processes.get(owner)) is not None:
            process.pid = pid

    def loaded(self, owner: str | LeaseKey) -> None:
        """The process has loaded its model: its memory on accelerators is taken."""
        if (process := self._processes.get(owner)) is not None:
            process.loaded = True
            self._update()

    def release(self, owner: str | LeaseKey) -> None:
        """The process has ended, or is not started."""
        self._processes.pop(owner, None)
        self._update()

    async def settled(self) -> None:
        """Wait until no process is between its plan and the end of its loading.

        What such a process has taken of an accelerator is not known, so it would count twice, or not at all. A lease is
        not waited for: its files may be downloaded first.
        """
        await self._settled.wait()

    def _update(self) -> None:
        loading = (it for it in self._processes.values() if not it.loaded and not it.lease)
        if any(process.planned.devices for process in loading):
            self._settled.clear()
        else:
            self._settled.set()

    def left(self, machine: MachineMemory, *, leases: bool = True) -> MachineMemory:
        """`machine` without the memory that its processes will still take, and with what they have of --max-vram.

        Without `leases`, as if those had ended: then `machine` counts what their processes hold as available.
        """
        processes = [process for process in self._processes.values() if leases or not process.lease]
        if not processes:
            return machine
        host, devices = 0, dict.fromkeys((device.name for device in machine.devices), 0)
        for process in processes:
            pid = process.pid()
            taken = self._private(pid) if pid else 0
            host += max(0, process.planned.host - taken)
            for name, size in process.planned.devices:
                if not process.loaded and name in devices:
                    devices[name] += size
        host += sum(devices[device.name] for device in machine.devices if device.shared)
        used = [device.name for device in machine.in_use]
        return replace(
            machine,
            available=max(0, machine.available - host),
            devices=tuple(
                replace(device, free=max(0, device.free - devices[device.name])) for device in machine.devices
            ),
            planned=sum(process.planned.on(used) for process in processes),
        )


def _private_bytes(pid: int) -> int:
    with contextlib.suppress(psutil.Error):
        found = psutil.Process(pid).memory_info()
        # The system counts pages of files as available; so does `shared` (Linux).
        return max(0, int(found.rss) - int(getattr(found, "shared", 0)))
    return 0
