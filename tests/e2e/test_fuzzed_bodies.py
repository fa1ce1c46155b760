"""The kept bodies of the APIs' fuzzer, and some mutations of them: `scripts/fuzz bodies` at its smallest."""

from __future__ import annotations

from random import Random

import pytest

from scripts.fuzzing.bodies import Run, read_kept
from tests.daemons import Daemon

pytestmark = pytest.mark.engine

MUTATIONS = 300


def test_every_answer_to_kept_and_mutated_bodies_is_typed(served: Daemon) -> None:
    kept = read_kept()
    assert len(kept) > 200
    report = Run(served, Random("bodies"), requests=len(kept) + MUTATIONS, seconds=300).go(kept)
    assert report.failures == []
    assert report.restarts == 0
    assert report.requests >= len(kept) + MUTATIONS
    assert report.answered > report.requests // 20
