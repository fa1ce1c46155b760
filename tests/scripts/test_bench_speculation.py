"""`scripts/bench speculation`: a minimal run with a text of each kind; figures from draft counts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from meshllm import paths
from meshllm.engine.build import builder
from scripts.benchmarks.speculation import Answer, Cell, figures

ROOT = Path(__file__).parents[2]
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXTS = ["--text", "quote", "--text", "bicycle", "--how", "greedy"]


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.benchmarks", "speculation", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def told(*answers: tuple[float, int, int]) -> Cell:
    """A cell of one text: pace, drafted and accepted tokens of each answer of 100 tokens."""
    return Cell({"text": [Answer(pace, 100, drafted, accepted, "", pace) for pace, drafted, accepted in answers]})


def of(cell: Cell, base: Cell) -> dict[str, Any]:
    return figures(("plain", 0.0, 1), {"none": base, "n-grams": cell})[1]


def test_price_of_a_rejected_draft_token() -> None:
    # 20 rejected draft tokens took as long as 10 tokens.
    facts = of(told((1.1, 20, 0)), told((1.0, 0, 0)))
    assert facts["price"] == pytest.approx(0.5)
    assert facts["least_counted"] == pytest.approx(1 / 1.1)


def test_accepted_draft_tokens_need_no_step() -> None:
    # 40 accepted draft tokens: 60 steps, and the price of 40 draft tokens.
    facts = of(told((0.8, 40, 40)), told((1.0, 0, 0)))
    assert facts["price"] == pytest.approx(0.5)
    assert facts["least_counted"] == pytest.approx(1 / 0.8)
    assert (facts["drafted"], facts["accepted"]) == (0.4, 1.0)


def test_counted_speed_is_robust_against_one_slow_round() -> None:
    rounds = [(1.1, 20, 0), (1.1, 20, 0), (2.9, 20, 0)]
    facts = of(told(*rounds), told(*[(1.0, 0, 0)] * 3))
    assert facts["least_counted"] == pytest.approx(1 / 1.1)
    assert facts["ratio"] == pytest.approx(1 / 1.1)
    assert facts["least_quartiles"][0] < 0.7


def test_figures_without_draft_tokens() -> None:
    facts = of(told((1.3, 0, 0)), told((1.0, 0, 0)))
    assert facts["least_counted"] == 1
    assert (facts["price"], facts["accepted"]) == (None, None)


def test_unknown_text_is_named_with_the_known_ones() -> None:
    result = bench("--text", "sonnet")
    assert result.returncode == 1
    assert "unknown text sonnet" in result.stderr
    assert "bicycle" in result.stderr


@pytest.mark.engine
@pytest.mark.slow
def test_bench_speculation_measures_every_kind() -> None:
    if builder.find() is None or not (paths.models() / MODEL).is_file():
        pytest.skip("the engine or the model is not here (mesh-llm --model SmolLM2-135M-Instruct)")
    result = bench("--rounds", "1", "--tokens", "24", "--json", *TEXTS)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(result.stdout)
    rows = found["rows"]
    assert [row["way"] for row in rows] == ["none", "n-grams"] * 2
    assert [row["texts"] for row in rows] == ["repeating"] * 2 + ["plain"] * 2
    for row in rows:
        assert row["ratio"] > 0
        assert row["least"] <= row["ratio"] * 1.0001
        assert (row["drafted"] == 0) or row["way"] != "none"
        assert set(row["by_text"]) == {"quote" if row["texts"] == "repeating" else "bicycle"}
    assert any(row["drafted"] for row in rows if row["way"] == "n-grams" and row["texts"] == "repeating")
    assert len(found["bars"]) == 2
