"""What is to be remembered is written in order, off the loop, and all of it before the end."""

from __future__ import annotations

import asyncio
import threading

import pytest

from meshllm.daemon.state_writer import StateWriter
from meshllm.errors import EnvironmentFailure


async def test_state_writer_writes_in_order_off_the_loop() -> None:
    keeper, written, threads = StateWriter(), list[int](), set[int]()
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    def save(number: int) -> None:
        written.append(number)
        threads.add(threading.get_ident())
        if number == 49:
            loop.call_soon_threadsafe(done.set)

    for number in range(50):
        keeper.add(lambda number=number: save(number))  # type: ignore[misc]
    async with asyncio.timeout(30):
        await done.wait()
    assert written == list(range(50))
    assert threading.get_ident() not in threads
    keeper.add(lambda: save(50))
    await keeper.close()
    assert written == list(range(51))


async def test_state_writer_close_writes_everything() -> None:
    keeper, written = StateWriter(), list[int]()
    began, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow() -> None:
        loop.call_soon_threadsafe(began.set)
        assert go_on.wait(30)
        written.append(0)

    keeper.add(slow)
    for number in range(1, 10):
        keeper.add(lambda number=number: written.append(number))  # type: ignore[misc]
    async with asyncio.timeout(30):
        await began.wait()
        loop.call_soon(go_on.set)
        await keeper.close()
    assert written == list(range(10))


async def test_state_writer_logs_errors_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    keeper, written = StateWriter(), list[int]()

    def full() -> None:
        raise EnvironmentFailure("The disk is full.")

    def broken() -> None:
        raise KeyError("a defect")

    for save in (full, broken, lambda: written.append(1)):
        keeper.add(save)
    await keeper.close()
    assert written == [1]
    assert "The disk is full." in caplog.text
    assert "a defect" in caplog.text
