"""`scripts/bench speculation` at its smallest, every way of guessing with a text of each kind; and what is counted."""

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
    """A cell of one text: pace, tokens guessed and right of each answer, which has 100 tokens."""
    return Cell({"text": [Answer(pace, 100, guessed, right, "", pace) for pace, guessed, right in answers]})


def of(cell: Cell, base: Cell) -> dict[str, Any]:
    return figures(("plain", 0.0, 1), {"none": base, "n-grams": cell})[1]


def test_a_guess_has_the_price_that_was_measured() -> None:
    # 20 guesses, all wrong, took as long as 10 tokens.
    facts = of(told((1.1, 20, 0)), told((1.0, 0, 0)))
    assert facts["price"] == pytest.approx(0.5)
    assert facts["least_counted"] == pytest.approx(1 / 1.1)


def test_right_guesses_cost_no_step_of_their_own() -> None:
    # 40 tokens were guessed right: 60 steps, and the price of 40 guesses.
    facts = of(told((0.8, 40, 40)), told((1.0, 0, 0)))
    assert facts["price"] == pytest.approx(0.5)
    assert facts["least_counted"] == pytest.approx(1 / 0.8)
    assert (facts["guessed"], facts["right"]) == (0.4, 1.0)


def test_what_disturbs_one_round_does_not_change_what_is_counted() -> None:
    rounds = [(1.1, 20, 0), (1.1, 20, 0), (2.9, 20, 0)]
    facts = of(told(*rounds), told(*[(1.0, 0, 0)] * 3))
    assert facts["least_counted"] == pytest.approx(1 / 1.1)
    assert facts["ratio"] == pytest.approx(1 / 1.1)
    assert facts["least_quartiles"][0] < 0.7


def test_where_nothing_was_guessed_nothing_is_lost() -> None:
    facts = of(told((1.3, 0, 0)), told((1.0, 0, 0)))
    assert facts["least_counted"] == 1
    assert (facts["price"], facts["right"]) == (None, None)


def test_a_text_that_is_unknown_is_said_with_the_known_ones() -> None:
    result = bench("--text", "sonnet")
    assert result.returncode == 1
    assert "no text is called sonnet" in result.stderr
    assert "bicycle" in result.stderr


@pytest.mark.engine
@pytest.mark.slow
def test_every_way_is_measured() -> None:
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
        assert (row["guessed"] == 0) or row["way"] != "none"
        assert set(row["by_text"]) == {"quote" if row["texts"] == "repeating" else "bicycle"}
    assert any(row["guessed"] for row in rows if row["way"] == "n-grams" and row["texts"] == "repeating")
    assert len(found["bars"]) == 2
