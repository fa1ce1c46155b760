"""A process is stopped when its last answer has ended, and not before."""

from __future__ import annotations

import asyncio

from meshllm.daemon.drains import Drains
from meshllm.tasks import Owner


async def test_drain_ends_with_the_last_request() -> None:
    busy = {("m", 1): True, ("m", 2): False}
    drains = Drains(lambda model, generation: busy[model, generation])
    await drains.drained("m", 2)
    owner = Owner("test")
    waiting = owner.start(drains.drained("m", 1), "drain")
    for _ in range(3):
        await asyncio.sleep(0)
        drains.changed()
    assert not waiting.done()
    busy["m", 1] = False
    drains.changed()
    async with asyncio.timeout(0.5):  # it does not wait for the next look
        await waiting
    await owner.close()


async def test_drain_of_a_request_that_ends_without_notice_ends_as_well() -> None:
    busy = iter([True, False])
    async with asyncio.timeout(20):
        await Drains(lambda model, generation: next(busy)).drained("m", 1)


async def test_drain_has_a_limit() -> None:
    async with asyncio.timeout(20):
        await Drains(lambda model, generation: True, within=0.05).drained("m", 1)


async def test_process_counts_as_idle_after_a_use_and_a_time_without_one() -> None:
    busy = {("m", 1): True}
    drains = Drains(lambda model, generation: busy[model, generation])
    owner = Owner("test")
    waiting = owner.start(drains.used_and_idle("m", 1, 0.01), "idle")
    await asyncio.sleep(0.05)
    assert not waiting.done(), "it has not been used"
    drains.changed()
    await asyncio.sleep(0.05)
    assert not waiting.done(), "it is busy"
    busy["m", 1] = False
    async with asyncio.timeout(20):
        await waiting
    await owner.close()
