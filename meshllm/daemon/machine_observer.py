"""Observes this machine for the core: free memory, devices, disk, model files; every 15 s and after changes.

Invariants: one observation at a time, so an older result never replaces a newer one. A part that fails is logged and
read again next time; until then its last value stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from meshllm.core import events as e
from meshllm.tasks import Owner
from meshllm.util.threads import in_thread

log = logging.getLogger(__name__)
T = TypeVar("T")

OBSERVE_SECONDS = 15.0
# Reading the devices' free memory runs nvidia-smi (some 50 ms of processor time): while nothing changes, this often.
DEVICE_SECONDS = 60.0
# Looking through the model folders takes at most this part of one processor: 4 ms for a few models.
SCAN_PART = 1 / 1000


@dataclass(frozen=True, slots=True)
class FreeMemory:
    """Bytes offered for models, and for each accelerator, if there are several. `machine`: see `NodeRecord`'s
    `machine_memory`."""

    memory: int
    devices: tuple[int, ...] = ()
    machine: int = 0


@dataclass(frozen=True, slots=True)
class ModelsOnDisk:
    """Names of the models on the disk, further names of the same files, and the bytes of each model (0: unknown).
    `damaged`: names of models whose files are of no use, with the reasons and whether other
    nodes may hear of them."""

    models: tuple[str, ...]
    aliases: tuple[tuple[str, str], ...] = ()
    sizes: tuple[int, ...] = ()
    damaged: tuple[tuple[str, str, bool], ...] = ()


class MachineReader(Protocol):
    """Reads the facts. Each method but `refresh_devices` blocks and runs in a thread."""

    def free_memory(self) -> FreeMemory:
        """What is free now, and what this node's idle worker processes hold."""

    def used_memory(self) -> tuple[tuple[str, int], ...]:
        """Bytes that the engine process of each model uses; that of a worker has no name."""

    def disk_free(self) -> int | None:
        """Bytes free for model files."""

    def download_room(self) -> int:
        """Bytes that may still be downloaded for the mesh's demand."""

    def find_models(self) -> ModelsOnDisk:
        """The models on the disk."""

    async def refresh_devices(self) -> None:
        """Read the free memory of the devices, if there are any."""


class MachineObserver:
    """Posts `MachineObserved` every `interval` seconds, and soon after `refresh`."""

    def __init__(
        self, reader: MachineReader, post: Callable[[e.Event], None], interval: float = OBSERVE_SECONDS
    ) -> None:
        self._reader = reader
        self._post = post
        self._interval = interval
        self._owner = Owner("machine observer")
        self._wake = asyncio.Event()
        self._devices_due = self._files_due = 0.0  # on the loop's clock
        self._failures: dict[str, str] = {}

    def start(self) -> None:
        """Observe now, and from now on."""
        self._owner.start(self._observe_always(), "observe")

    def refresh(self, *, devices: bool = False, files: bool = False) -> None:
        """Something changed: observe soon, with the `devices` and the `files` if they may have changed, too."""
        if devices:
            self._devices_due = 0.0
        if files:
            self._files_due = 0.0
        self._wake.set()

    async def close(self) -> None:
        """Stop observing."""
        await self._owner.close()

    async def _observe_always(self) -> None:
        while True:
            self._wake.clear()
            await self._observe()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await self._wake.wait()

    async def _observe(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() >= self._devices_due:
            self._devices_due = loop.time() + DEVICE_SECONDS
            await self._read("the devices", self._reader.refresh_devices())
        found: ModelsOnDisk | None = None
        if loop.time() >= self._files_due:
            begun = loop.time()
            self._files_due = float("inf")  # unless `refresh` asks for another scan meanwhile
            found = await self._read(
                "the model files", in_thread(lambda stop: self._reader.find_models(), "scan models")
            )
            took = loop.time() - begun
            self._files_due = min(self._files_due, begun + max(self._interval, took / SCAN_PART))
        free = await self._read("the free memory", in_thread(lambda stop: self._reader.free_memory(), "free memory"))
        used = await self._read("the used memory", in_thread(lambda stop: self._reader.used_memory(), "used memory"))
        disk_free = await self._read("the disk", in_thread(lambda stop: self._reader.disk_free(), "free disk"))
        room = await self._read(
            "the room for downloads", in_thread(lambda stop: self._reader.download_room(), "room for downloads")
        )
        self._post(
            e.MachineObserved(
                memory=free.memory if free is not None else None,
                devices=free.devices if free is not None else (),
                disk_free=disk_free,
                download_room=room,
                models=found.models if found is not None else None,
                aliases=found.aliases if found is not None else (),
                machine_memory=free.machine if free is not None else None,
                used=used,
                model_sizes=found.sizes if found is not None else (),
                damaged=found.damaged if found is not None else (),
            )
        )

    async def _read(self, what: str, reading: Awaitable[T]) -> T | None:
        """The result; None if reading failed. A new cause is logged, the same one again is not."""
        try:
            result = await reading
        except Exception as error:  # noqa: BLE001 - logged, whatever it is
            if self._failures.get(what) != repr(error):
                self._failures[what] = repr(error)
                log.warning("cannot read %s: %r. The last values stay; the next attempt follows.", what, error)
            return None
        self._failures.pop(what, None)
        return result
