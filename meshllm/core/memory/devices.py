"""The memory of this machine that may be used for models: devices, limits, reserves. Pure.

The devices are as the engine lists them. Sizes are bytes; memory that a device shares with the computer counts once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meshllm.core.memory.layer_placement import AcceleratorBudget, MemoryBudget
from meshllm.errors import UsageError

# The part of the free RAM that may be used; the rest stays for other programs.
MEMORY_SHARE = 0.9
# The part of a device's memory that stays for its driver and the driver's state (CUDA: 0.3 to 0.5 GB a program).
DRIVER_SHARE = 0.04
DRIVER_LEAST = 512 << 20
NONE = "none"


@dataclass(frozen=True, slots=True)
class Device:
    """An accelerator as the engine lists it. `shared`: its memory is the computer's RAM. `id`: its PCI address, "" if
    unknown."""

    name: str
    description: str = ""
    backend: str = ""
    total: int = 0
    free: int = 0
    shared: bool = False
    id: str = ""


@dataclass(frozen=True, slots=True)
class MachineMemory:
    """The machine: its RAM (`limited`: by a cgroup) and the engine's devices, of which those named in `used` are used.
    `cap`: --max-vram in bytes (None: no limit). `known`: the engine has listed its devices. `planned`: bytes of the cap
    that engine processes of this node have or were planned with."""

    total: int
    available: int
    limited: bool = False
    devices: tuple[Device, ...] = ()
    used: tuple[str, ...] = ()
    cap: int | None = None
    known: bool = False
    planned: int = 0

    @property
    def cap_left(self) -> int | None:
        """What is left of the cap; None without one."""
        return None if self.cap is None else max(0, self.cap - self.planned)

    @property
    def in_use(self) -> tuple[Device, ...]:
        """The devices that are used, in the engine's order."""
        return tuple(device for device in self.devices if device.name in self.used)


def select(devices: Sequence[Device], wanted: Sequence[str]) -> tuple[str, ...]:
    """The names of the devices to use: the `wanted` ones, or the engine's own choice if there are none.

    Raises UsageError for a device that does not exist.
    """
    if wanted:
        if NONE in wanted:
            if len(set(wanted)) > 1:
                raise UsageError(
                    '--device "none" cannot be combined with other devices.', advice="Name devices, or none."
                )
            return ()
        names = [device.name for device in devices]
        for name in wanted:
            if name not in names:
                there = f"Devices: {', '.join(names)}." if names else "The engine finds no device."
                raise UsageError(f"There is no device {name}.", advice=f"{there} `mesh-llm doctor` shows them.")
        return tuple(name for name in names if name in wanted)
    # Two backends may list one device: the first counts. Integrated devices count only if there are no dedicated ones.
    seen: set[str] = set()
    once = []
    for device in devices:
        if not device.id or device.id not in seen:
            seen.add(device.id)
            once.append(device)
    dedicated = [device.name for device in once if not device.shared]
    return tuple(dedicated or [device.name for device in once])


def room(machine: MachineMemory) -> MemoryBudget:
    """The memory that may be used. A cap limits the accelerators, or the RAM if no accelerator is used."""
    host = int(machine.available * MEMORY_SHARE)
    devices, cap = machine.in_use, machine.cap_left
    if not devices:
        capped = cap is not None and cap < host
        return MemoryBudget(min(host, cap) if cap is not None else host, capped=capped)
    rooms = [_room_of(device, host) for device in devices]
    whole = sum(rooms)
    if cap is not None and cap < whole:
        rooms = [room * cap // whole for room in rooms]
    accelerators = tuple(
        AcceleratorBudget(device.name, room, device.shared) for device, room in zip(devices, rooms, strict=True)
    )
    return MemoryBudget(host, accelerators)


def offer(machine: MachineMemory) -> int:
    """Bytes that this node offers for models: of the accelerators if any are used, else of the RAM."""
    given = room(machine)
    return sum(accelerator.room for accelerator in given.accelerators) if given.accelerators else given.host


def _room_of(device: Device, host: int) -> int:
    if device.shared:
        return min(device.free or host, host)
    return max(0, device.free - max(DRIVER_LEAST, int(device.total * DRIVER_SHARE)))
