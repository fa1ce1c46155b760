"""A lab for each test, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netlab.lab import Lab, missing


@pytest.fixture
def lab() -> Iterator[Lab]:
    if (reason := missing()) is not None:
        pytest.skip(f"no network lab: {reason}")
    with Lab() as made:
        yield made
