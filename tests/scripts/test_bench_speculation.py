"""`scripts/bench speculation` at its smallest: every way of guessing answers every kind of text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from meshllm import paths
from meshllm.engine import build

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def test_every_way_is_measured() -> None:
    if build.find() is None or not (paths.models() / "SmolLM2-135M-Instruct.Q4_1.gguf").is_file():
        pytest.skip("the engine or the model is not here (mesh-llm --model SmolLM2-135M-Instruct)")
    command = [sys.executable, "-m", "scripts.benchmarks", "speculation", "--rounds", "1", "--tokens", "8", "--json"]
    result = subprocess.run([*command, "--cut", "4"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    told = json.loads(result.stdout)
    rows = told["rows"]
    assert [row["way"] for row in rows] == ["none", "n-grams", "cut"] * 6
    assert {row["texts"] for row in rows} == {"repeating", "plain"}
    for row in rows:
        assert row["ratio"] > 0
        assert row["least"] <= row["ratio"]
        assert (row["guessed"] == 0) or row["way"] != "none"
    assert any(row["guessed"] for row in rows if row["way"] == "n-grams" and row["texts"] == "repeating")
    assert len(told["bars"]) == 2
