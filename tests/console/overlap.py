"""Finds overlapping boxes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

Box = Sequence[float]  # x, y, width, height


def overlapping(boxes: Sequence[Box]) -> list[tuple[int, int]]:
    """The index pairs of overlapping boxes."""
    return [
        (one, other)
        for (one, (ax, ay, aw, ah)), (other, (bx, by, bw, bh)) in combinations(enumerate(boxes), 2)
        if ax < bx + bw and bx < ax + aw and ay < by + bh and by < ay + ah
    ]
