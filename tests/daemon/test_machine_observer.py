"""The observer of the machine: one observation at a time, failures are logged and change nothing."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from meshllm.core import events as e
from meshllm.daemon.machine_observer import FreeMemory, MachineObserver, ModelsOnDisk


class Machine:
    """A machine whose facts a test changes; a scan waits for `gate`."""

    def __init__(self) -> None:
        self.memory, self.models = 100, ("a",)
        self.fault: Exception | None = None
        self.scan_fault: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.scans = 0
        self.scan_begun = threading.Event()
        self.scanning = threading.Lock()
        self.overlaps = 0
        self.device_reads = 0

    def free_memory(self) -> FreeMemory:
        if self.fault is not None:
            raise self.fault
        return FreeMemory(self.memory, machine=90)

    def used_memory(self) -> tuple[tuple[str, int], ...]:
        return (("a", 5),)

    def disk_free(self) -> int | None:
        return 7

    def download_room(self) -> int:
        return 5

    def find_models(self) -> ModelsOnDisk:
        if not self.scanning.acquire(blocking=False):
            self.overlaps += 1
        try:
            self.scans += 1
            found = self.models
            self.scan_begun.set()
            self.gate.wait(60)
            if self.scan_fault is not None:
                raise self.scan_fault
            return ModelsOnDisk(found, sizes=(7,) * len(found))
        finally:
            if self.scanning.locked():
                self.scanning.release()

    async def refresh_devices(self) -> None:
        self.device_reads += 1


class Observed:
    """An observer and what it posts."""

    def __init__(self, machine: Machine, interval: float) -> None:
        self.events = asyncio.Queue[e.Event]()
        self.observer = MachineObserver(machine, self.events.put_nowait, interval)

    async def next(self) -> e.MachineObserved:
        event = await asyncio.wait_for(self.events.get(), 60)
        assert isinstance(event, e.MachineObserved)
        return event


@asynccontextmanager
async def observed(machine: Machine, interval: float = 3600.0) -> AsyncIterator[Observed]:
    made = Observed(machine, interval)
    made.observer.start()
    try:
        yield made
    finally:
        machine.gate.set()
        await made.observer.close()


async def test_observer_posts_all_facts_at_once_and_again_after_a_change() -> None:
    machine = Machine()
    async with observed(machine) as it:
        assert await it.next() == e.MachineObserved(
            100, (), 7, ("a",), model_sizes=(7,), machine_memory=90, used=(("a", 5),), download_room=5
        )
        machine.memory = 50
        it.observer.refresh()
        again = e.MachineObserved(50, (), 7, None, machine_memory=90, used=(("a", 5),), download_room=5)
        assert await it.next() == again, "files are scanned only if they may have changed"
        machine.models = ("a", "b")
        it.observer.refresh(files=True, devices=True)
        assert (await it.next()).models == ("a", "b")
        assert machine.device_reads == 2


async def test_observer_sees_new_memory_and_files_without_being_told() -> None:
    machine = Machine()
    async with observed(machine, interval=0.001) as it:
        await it.next()
        machine.memory, machine.models = 60, ()
        for _ in itertools.count():
            event = await it.next()
            if event.models == ():
                break
        assert event.memory == 60


async def test_scans_never_overlap_and_a_change_during_a_scan_is_seen() -> None:
    machine = Machine()
    machine.gate.clear()
    async with observed(machine) as it:
        assert await asyncio.to_thread(machine.scan_begun.wait, 60)
        machine.models = ("b",)
        for _ in range(5):
            it.observer.refresh(files=True)
        machine.gate.set()
        assert (await it.next()).models == ("a",)
        assert (await it.next()).models == ("b",), "the newer result comes last"
        assert (machine.scans, machine.overlaps) == (2, 0)


async def test_scan_that_fails_takes_no_memory_away_and_is_retried(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    machine.scan_fault = OSError("the disk is on fire")
    with caplog.at_level(logging.WARNING):
        async with observed(machine) as it:
            assert await it.next() == e.MachineObserved(
                100, (), 7, None, machine_memory=90, used=(("a", 5),), download_room=5
            )
            it.observer.refresh(files=True)
            assert (await it.next()).models is None
            machine.scan_fault = None
            it.observer.refresh(files=True)
            assert (await it.next()).models == ("a",)
    assert len([record for record in caplog.records if "the disk is on fire" in record.getMessage()]) == 1


async def test_memory_that_cannot_be_read_is_reported_as_unknown() -> None:
    machine = Machine()
    machine.fault = OSError("no /proc")
    async with observed(machine) as it:
        assert await it.next() == e.MachineObserved(
            None, (), 7, ("a",), model_sizes=(7,), used=(("a", 5),), download_room=5
        )


async def test_close_ends_the_observer_although_something_changed_in_the_same_moment() -> None:
    """Python 3.11's `wait_for` keeps a cancellation to itself when what it waits for ends with it: CI hung on that."""
    async with observed(Machine()) as it:
        await it.next()
        for _ in range(10):
            await asyncio.sleep(0)  # until it waits
        it.observer.refresh()
        async with asyncio.timeout(30):
            await it.observer.close()
