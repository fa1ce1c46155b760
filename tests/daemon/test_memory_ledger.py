"""What is left for a further model while the processes of others load, run and end."""

from __future__ import annotations

import asyncio

import pytest

from meshllm.core.memory.devices import Device, MachineMemory, offer, room
from meshllm.daemon.memory_ledger import MemoryLedger, PlannedMemory

GB = 10**9


class Computer:
    """RAM and processes that take it: `private` bytes of each process are missing from `available`."""

    def __init__(self, cap: int | None = None) -> None:
        self.cap = cap
        self.private: dict[int, int] = {}
        self.ledger = MemoryLedger(lambda pid: self.private.get(pid, 0))

    def machine(self) -> MachineMemory:
        """As a plan sees it."""
        free = 30 * GB - sum(self.private.values())
        return self.ledger.left(MachineMemory(32 * GB, free, cap=self.cap, known=True))


def test_loading_process_counts_once_however_much_it_has_taken() -> None:
    computer = Computer()
    assert computer.machine().available == 30 * GB
    computer.ledger.reserve("m", PlannedMemory(10 * GB))
    assert computer.machine().available == 20 * GB
    computer.ledger.started("m", lambda: 7)
    for taken in (0, 4, 10):
        computer.private[7] = taken * GB
        assert computer.machine().available == 20 * GB
    computer.private[7] = 12 * GB  # more than planned: it is missing from the free memory
    assert computer.machine().available == 18 * GB
    computer.private.clear()
    computer.ledger.release("m")
    assert computer.machine().available == 30 * GB


def test_mapped_weights_stay_reserved_though_the_system_counts_them_as_available() -> None:
    computer = Computer()
    computer.ledger.reserve("m", PlannedMemory(10 * GB))
    computer.ledger.started("m", lambda: 7)
    computer.private[7] = 2 * GB
    computer.ledger.loaded("m")
    assert computer.machine().available == 20 * GB


def test_cap_is_shared_by_all_processes() -> None:
    computer = Computer(cap=8 * GB)
    assert offer(computer.machine()) == 8 * GB
    computer.ledger.reserve("a", PlannedMemory(5 * GB))
    assert offer(computer.machine()) == 3 * GB
    assert room(computer.machine()).capped
    computer.ledger.reserve("b", PlannedMemory(4 * GB))
    assert offer(computer.machine()) == 0
    computer.ledger.reserve("a", PlannedMemory(1 * GB))  # a new plan replaces the old one
    assert offer(computer.machine()) == 3 * GB


LEASE = (b"s" * 16, 1)


def test_lease_counts_for_what_is_served_here_and_not_for_the_next_lease() -> None:
    computer = Computer(cap=12 * GB)
    computer.ledger.reserve(LEASE, PlannedMemory(8 * GB))
    computer.ledger.started(LEASE, lambda: 7)
    computer.private[7] = 3 * GB  # the rest are weights, mapped from a file
    assert computer.machine().available == 22 * GB
    assert offer(computer.machine()) == 4 * GB
    computer.ledger.reserve("m", PlannedMemory(1 * GB))
    held = computer.ledger.left(MachineMemory(32 * GB, 30 * GB, cap=12 * GB, known=True), leases=False)
    assert (held.available, offer(held)) == (29 * GB, 11 * GB)
    computer.ledger.release(LEASE)
    assert offer(computer.machine()) == 11 * GB


async def test_next_plan_does_not_wait_for_a_lease_that_downloads_its_files() -> None:
    ledger = MemoryLedger(lambda pid: 0)
    ledger.reserve(LEASE, PlannedMemory(0, (("G", 20 * GB),)))
    await ledger.settled()
    before = ledger.left(gpu(78 * GB))
    assert (before.devices[0].free, before.cap_left) == (58 * GB, 40 * GB)
    ledger.loaded(LEASE)
    assert ledger.left(gpu(58 * GB)).devices[0].free == 58 * GB


def gpu(free: int, *, shared: bool = False) -> MachineMemory:
    """A machine with one accelerator of 80 GB, or one that uses the RAM."""
    device = Device("G", total=80 * GB, free=free, shared=shared)
    return MachineMemory(128 * GB, 100 * GB, devices=(device,), used=("G",), cap=60 * GB, known=True)


def test_accelerator_memory_is_taken_off_until_the_model_has_loaded() -> None:
    ledger = MemoryLedger(lambda pid: 0)
    ledger.reserve("m", PlannedMemory(1 * GB, (("G", 20 * GB),)))
    before = ledger.left(gpu(78 * GB))
    assert (before.devices[0].free, before.cap_left) == (58 * GB, 40 * GB)
    ledger.loaded("m")
    after = ledger.left(gpu(58 * GB))  # as the driver reports it now
    assert (after.devices[0].free, after.cap_left) == (58 * GB, 40 * GB)
    assert after.available == 99 * GB


def test_memory_that_an_accelerator_shares_is_taken_off_the_ram_too() -> None:
    ledger = MemoryLedger(lambda pid: 0)
    ledger.reserve("m", PlannedMemory(1 * GB, (("G", 20 * GB),)))
    assert ledger.left(gpu(90 * GB, shared=True)).available == 79 * GB


async def test_next_plan_waits_for_a_process_that_loads_onto_an_accelerator() -> None:
    ledger = MemoryLedger(lambda pid: 0)
    await ledger.settled()
    ledger.reserve("cpu", PlannedMemory(GB))
    await ledger.settled()
    ledger.reserve("m", PlannedMemory(0, (("G", GB),)))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await ledger.settled()
    ledger.loaded("m")
    await ledger.settled()
    ledger.reserve("m", PlannedMemory(0, (("G", GB),)))
    ledger.release("m")
    await ledger.settled()
