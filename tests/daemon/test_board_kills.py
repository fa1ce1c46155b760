"""A daemon that is killed while it posts (`scripts/bench board --only kills` does it 200 times)."""

from __future__ import annotations

from pathlib import Path
from random import Random

from tests.daemon.board_kills import kill_while_posting


def test_killed_while_posting_loses_no_acknowledged_post_and_reuses_no_number(tmp_path: Path) -> None:
    result = kill_while_posting(tmp_path, 4, Random(11))
    assert result.acknowledged > 0
    assert (result.lost, result.reused) == (0, 0)
