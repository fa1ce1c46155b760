"""Hints for names that are not known."""

from __future__ import annotations

import pytest

from meshllm.util.near_names import near_names


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("smollm2:135m", ["SmolLM2-135M-Instruct"]),  # as Ollama spells it
        ("smollm2:latest", ["SmolLM2-135M-Instruct"]),
        ("SMOLLM2-135M-Instrct", ["SmolLM2-135M-Instruct"]),
        ("qwen3", ["Qwen3-8B"]),
        ("gemma", []),
        ("", []),
        ("x" * 10_000, []),
    ],
)
def test_hints_for_unknown_names(asked: str, near: list[str]) -> None:
    assert near_names(asked, ["Qwen3-8B", "SmolLM2-135M-Instruct", "llama"]) == near
