"""How fast prompts are read: measured, kept over restarts, and the batch that follows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest

from meshllm.core.memory.speculation import DraftCounts
from meshllm.daemon.prompt_speeds import FILE, LEAST_BATCH, MAX_BYTES, PromptSpeed, PromptSpeeds, batch_for, measured
from meshllm.engine.processes.llama_server import PROCESSOR_BATCH
from meshllm.models.library.local_model import LocalModel


def model(name: str, digest: str | None = None) -> LocalModel:
    """A model's file that is not read."""
    nothing = cast("object", None)
    return LocalModel(name, Path(f"/models/{name}.gguf"), 10, digest, nothing, None, 0, ())  # type: ignore[arg-type]


def read(tokens: int, seconds: float) -> DraftCounts:
    return DraftCounts(read=tokens, read_seconds=seconds)


@pytest.mark.parametrize(
    ("speed", "batch"),
    [
        (None, PROCESSOR_BATCH),
        (0.1, LEAST_BATCH),
        (60, LEAST_BATCH),
        (118, LEAST_BATCH),
        (200, 160),
        (300, 224),
        (5000, PROCESSOR_BATCH),
    ],
)
def test_batch_takes_less_than_a_second(speed: float | None, batch: int) -> None:
    assert batch_for(speed) == batch
    if speed is not None and batch > LEAST_BATCH:
        assert batch / speed < 1.0


def test_short_prompts_say_nothing_of_long_ones() -> None:
    first = measured(None, 600, 2.0)
    assert first == PromptSpeed(300.0, 600)
    assert measured(None, 511, 1.0) is None
    assert measured(None, 600, 0.0) is None
    long = measured(first, 8000, 80.0)
    assert long == PromptSpeed(285.0, 8000)  # a busy moment, or a longer prompt
    assert measured(long, 600, 1.0) == long
    assert measured(long, 4000, 10.0) == PromptSpeed(400.0, 4000)


def test_figures_of_the_file_are_kept_over_restarts(tmp_path: Path) -> None:
    speeds, one, other = PromptSpeeds(tmp_path), model("a", "d1"), model("b")
    assert speeds.batch(one) == PROCESSOR_BATCH
    speeds.note({"a": one, "b": other}, {"a": read(100, 1.0)})
    assert not (tmp_path / FILE).exists()
    speeds.note({"a": one, "b": other}, {"a": read(1100, 11.0), "b": read(1000, 1.0)})
    assert (speeds.batch(one), speeds.batch(other)) == (LEAST_BATCH, PROCESSOR_BATCH)
    again = PromptSpeeds(tmp_path)
    assert (again.batch(model("renamed", "d1")), again.batch(model("c"))) == (LEAST_BATCH, PROCESSOR_BATCH)
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    # The same counts say nothing new, and an engine that counts on is measured from its last look.
    before = (tmp_path / FILE).read_bytes()
    speeds.note({"a": one}, {"a": read(1100, 11.0)})
    assert (tmp_path / FILE).read_bytes() == before
    speeds.note({"a": one}, {"a": read(3100, 21.0)})
    assert json.loads((tmp_path / FILE).read_bytes())["models"]["d1"] == {"speed": 200.0, "tokens": 2000}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"format": 2, "models": {}}',
        b'{"format": 1, "models": []}',
        b'{"format": 1, "models": {"d1": 3}}',
        b'{"format": 1, "models": {"d1": {"speed": -1, "tokens": 9}}}',
        b'{"format": 1, "models": {"d1": {"speed": NaN, "tokens": 9}}}',
        b'{"format": 1, "models": {"d1": {"speed": 9, "tokens": 1.5}}}',
        b" " * (MAX_BYTES + 1),
        b"[" * 100_000,
    ],
)
def test_damaged_file_costs_the_figures_only(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE).write_bytes(content)
    speeds = PromptSpeeds(tmp_path)
    assert speeds.batch(model("a", "d1")) == PROCESSOR_BATCH
    assert "batches start without what was measured" in caplog.text
    speeds.note({"a": model("a", "d1")}, {"a": read(1000, 10.0)})
    assert PromptSpeeds(tmp_path).batch(model("a", "d1")) == LEAST_BATCH
