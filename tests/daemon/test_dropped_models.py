"""Models that the owner dropped are remembered over a restart, on another clock."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from meshllm.core.node import DROPPED_SECONDS
from meshllm.daemon import dropped_models
from meshllm.daemon.dropped_models import FILE


def test_dropped_models_are_kept_for_the_rest_of_their_time(tmp_path: Path) -> None:
    assert dropped_models.load(tmp_path, 0.0, 1e9) == {}
    dropped_models.save(tmp_path, {"a": 5000.0, "b": 1100.0}, now=1000.0, unix=1e9)
    assert dropped_models.load(tmp_path, now=10.0, unix=1e9 + 60) == {"a": 10.0 + 3940, "b": 10.0 + 40}
    assert dropped_models.load(tmp_path, now=10.0, unix=1e9 + 200) == {"a": 10.0 + 3800}
    # A clock that was set back does not make a day longer.
    assert dropped_models.load(tmp_path, now=0.0, unix=0.0)["a"] == DROPPED_SECONDS


@pytest.mark.parametrize("text", ["", "[1]", '{"a": "b", "c": null, "d": true}', "{" * 10_000, "\xff", '{"a": NaN}'])
def test_damaged_file_counts_for_nothing(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE).write_bytes(text.encode("latin-1"))
    with caplog.at_level(logging.WARNING):
        assert dropped_models.load(tmp_path, 0.0, 1e9) == {}
