"""Quantisation with hysteresis."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshllm.core.quantise import quantise


def test_quantise_keeps_the_shown_value_within_the_tolerance() -> None:
    shown = quantise(20_123_456_789, 0)
    assert shown == 20_000_000_000
    assert quantise(24_900_000_000, shown) == shown
    assert quantise(15_100_000_000, shown) == shown
    assert quantise(26_400_000_000, shown) == 26_000_000_000
    assert quantise(0, shown) == 0


@given(st.integers(-5, 1 << 60), st.integers(0, 1 << 60))
def test_quantise_is_near_the_measurement_and_stable(measured: int, shown: int) -> None:
    value = quantise(measured, shown)
    assert abs(value - max(0, measured)) <= max(0.25 * shown, 0.05 * max(0, measured) + 1)
    assert quantise(measured, value) == value
