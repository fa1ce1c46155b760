"""The rate meter: bytes in all, and bytes per second over the last seconds."""

from __future__ import annotations

import pytest

from meshllm.util.rate_meter import RateMeter


def test_rate_meter_forgets_bytes_older_than_its_window() -> None:
    meter = RateMeter(100.0)
    assert meter.rate(100.0) == 0.0
    for second in range(10):
        meter.add(50, 100.25 + second)
        meter.add(50, 100.75 + second)
    assert meter.total == 1000
    assert meter.rate(109.999) == pytest.approx(100.0, rel=0.01)
    assert meter.rate(200.0) == 0.0
