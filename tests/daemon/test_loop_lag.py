"""The measure of the event loop's lag."""

from __future__ import annotations

import asyncio
import time

import pytest

from meshllm.daemon import loop_lag
from meshllm.daemon.loop_lag import LoopLag


async def sampled(lag: LoopLag, number: int) -> None:
    """Until there are so many samples."""
    while lag.samples < number:  # noqa: ASYNC110 - each turn of the loop may bring one
        await asyncio.sleep(0)


async def test_loop_lag_measures_a_blocked_loop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "meshllm")
    monkeypatch.setattr(loop_lag, "REPORT_SECONDS", 0.01)
    lag = LoopLag(sample=0.001)
    lag.start()
    lag.start()
    until = time.monotonic() + 0.05
    while time.monotonic() < until:  # work that keeps the loop from its timer
        pass
    async with asyncio.timeout(30):
        await sampled(lag, 1)
    lag.stop()
    assert lag.worst() >= 0.04
    assert lag.total >= lag.worst()
    assert "the event loop was blocked" in caplog.text


async def test_loop_lag_keeps_the_worst_of_a_minute_and_stops() -> None:
    lag = LoopLag(sample=0.0)
    lag.start()
    async with asyncio.timeout(30):
        await sampled(lag, 3 * loop_lag.WINDOW_SAMPLES)
    lag.stop()
    lag.stop()
    samples = lag.samples
    for _ in range(10):
        await asyncio.sleep(0)
    assert lag.samples == samples
    assert len(lag._window) == loop_lag.WINDOW_SAMPLES
