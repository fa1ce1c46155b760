"""Quantisation with hysteresis: a measured figure that other nodes see changes only when it matters to them."""

from __future__ import annotations


def quantise(measured: int, shown: int, *, tolerance: float = 0.25) -> int:
    """The value to show for a new measurement, given the value shown so far (0: none yet).

    It stays while the measurement differs by at most `tolerance` of it; then it becomes the measurement, rounded to two
    significant digits. A measurement of 0 or less is shown as 0.
    """
    if measured <= 0:
        return 0
    if shown > 0 and abs(measured - shown) <= tolerance * shown:
        return shown
    unit: int = 10 ** max(0, len(str(measured)) - 2)
    return (measured + unit // 2) // unit * unit
