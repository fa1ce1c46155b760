"""What the status says of this machine: its memory now, and the graphics processors its tools told of at the start.

Law: telling never waits. Memory is read at most once a second, however many look; devices are looked for once.
"""

from __future__ import annotations

from meshllm.machine import accelerators, resources
from meshllm.web.status import DeviceStatus, MachineStatus

MEMORY_SECONDS = 1.0


class MachineFacts:
    """Facts of this machine for viewers."""

    def __init__(self) -> None:
        self._devices: list[DeviceStatus] = []
        self._processors = 0
        self._told: MachineStatus | None = None
        self._told_at = 0.0

    async def look(self) -> None:
        """Find out what does not change."""
        found = await accelerators.find()
        self._devices = [
            DeviceStatus(
                kind=device.kind,
                name=device.name,
                memory_total=device.memory_total,
                memory_free=device.memory_free,
                unified=device.unified,
            )
            for device in found
        ]
        self._told = None

    def status(self, now: float) -> MachineStatus:
        """What is so at `now` (seconds, monotonic), give or take a second."""
        if self._told is None or now - self._told_at >= MEMORY_SECONDS:
            memory = resources.memory()
            self._processors = self._processors or resources.processors().usable
            self._told_at = now
            self._told = MachineStatus(
                memory_total=memory.total,
                memory_available=memory.available,
                processors=self._processors,
                devices=self._devices,
            )
        return self._told
