"""What this machine has for models, and how much of it may be used.

Law: pure. What the engine can compute on is its own word, what is free the system's; somebody may name the devices to
use and cap what is lent. Sizes are bytes; memory that a device shares with the computer is counted once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meshllm.core.memory.layer_placement import AcceleratorBudget, MemoryBudget
from meshllm.errors import UsageError

# Of the memory that is free, this much stays for everything else on the machine.
MEMORY_SHARE = 0.9
# Of a device's memory, this stays for its driver and what that keeps for each program (CUDA: 0.3 to 0.5 GB).
DRIVER_SHARE = 0.04
DRIVER_LEAST = 512 << 20
NONE = "none"


@dataclass(frozen=True, slots=True)
class Device:
    """An accelerator as the engine sees it. `shared`: its memory is the computer's own; `id`: where it is plugged in,
    "" if that is not told."""

    name: str
    description: str = ""
    backend: str = ""
    total: int = 0
    free: int = 0
    shared: bool = False
    id: str = ""


@dataclass(frozen=True, slots=True)
class MachineMemory:
    """What there is: the computer's memory (`limited`: a cgroup allows no more), and the engine's devices, of which
    `used` are used. `cap`: bytes that may be lent at most, None for all. `known`: the engine has been asked."""

    total: int
    available: int
    limited: bool = False
    devices: tuple[Device, ...] = ()
    used: tuple[str, ...] = ()
    cap: int | None = None
    known: bool = False

    @property
    def in_use(self) -> tuple[Device, ...]:
        """The devices that are used, in the engine's order."""
        return tuple(device for device in self.devices if device.name in self.used)


def select(devices: Sequence[Device], wanted: Sequence[str]) -> tuple[str, ...]:
    """The names of the devices to use: those that somebody `wanted`, or the engine's own choice where nobody did.

    Raises UsageError for one that is not there, and says which are.
    """
    if wanted:
        if NONE in wanted:
            if len(set(wanted)) > 1:
                raise UsageError('--device "none" leaves no room for others.', advice="Name devices, or none.")
            return ()
        names = [device.name for device in devices]
        for name in wanted:
            if name not in names:
                there = f"There are: {', '.join(names)}." if names else "The engine sees none here."
                raise UsageError(f"There is no device {name}.", advice=f"{there} `mesh-llm doctor` shows them.")
        return tuple(name for name in names if name in wanted)
    # Two backends may show one device: the first counts. Integrated ones count only where there is nothing better.
    seen: set[str] = set()
    once = []
    for device in devices:
        if not device.id or device.id not in seen:
            seen.add(device.id)
            once.append(device)
    dedicated = [device.name for device in once if not device.shared]
    return tuple(dedicated or [device.name for device in once])


def room(machine: MachineMemory) -> MemoryBudget:
    """What may be used of `machine`. A cap is one on accelerators where any are used, and on memory where none is."""
    host = int(machine.available * MEMORY_SHARE)
    devices = machine.in_use
    if not devices:
        capped = machine.cap is not None and machine.cap < host
        return MemoryBudget(min(host, machine.cap) if machine.cap is not None else host, capped=capped)
    rooms = [_room_of(device, host) for device in devices]
    whole = sum(rooms)
    if machine.cap is not None and machine.cap < whole:
        rooms = [room * machine.cap // whole for room in rooms]
    accelerators = tuple(
        AcceleratorBudget(device.name, room, device.shared) for device, room in zip(devices, rooms, strict=True)
    )
    return MemoryBudget(host, accelerators)


def offer(machine: MachineMemory) -> int:
    """Bytes for models, as other nodes are told: of the accelerators where any are used, else of the memory."""
    given = room(machine)
    return sum(accelerator.room for accelerator in given.accelerators) if given.accelerators else given.host


def _room_of(device: Device, host: int) -> int:
    if device.shared:
        return min(device.free or host, host)
    return max(0, device.free - max(DRIVER_LEAST, int(device.total * DRIVER_SHARE)))
