"""A download that is interrupted twenty times among faults is correct and repeats few bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from interruptions import PART_BYTES, measure


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "wrong"), [(1, 0), (2, 1)])
def test_download_survives_twenty_interruptions(seed: int, wrong: int, tmp_path: Path) -> None:
    """Wrong bytes cost their chunk if its digest is known; that chunk is not counted here."""
    figures = measure(tmp_path, seed, wrong=wrong)
    print(figures)
    assert figures.cancelled + figures.killed == 20
    assert figures.wrong_chunks == wrong
    assert 0 <= figures.twice <= PART_BYTES
