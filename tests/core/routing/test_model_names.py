"""The model that a caller's name means."""

from __future__ import annotations

import pytest

from meshllm.core.routing.model_names import ModelNames

KNOWN = ("Qwen3-8B", "SmolLM2-135M-Instruct", "org/Model:Q4_K_M", "twin", "Twin")
ALIASES = {"gpt-4o": "Qwen3-8B", "small": "smollm2-135m-instruct", "twin": "Qwen3-8B", "later": "not-here"}


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("Qwen3-8B", "Qwen3-8B"),
        ("qwen3-8b", "Qwen3-8B"),
        ("QWEN3-8B.GGUF", "Qwen3-8B"),
        ("Qwen3-8B.gguf", "Qwen3-8B"),
        ("ORG/model:q4_k_m", "org/Model:Q4_K_M"),
        ("gpt-4o", "Qwen3-8B"),
        ("small", "SmolLM2-135M-Instruct"),
        ("later", "not-here"),
        # A member can serve a model by any name: the owner's word comes first.
        ("twin", "Qwen3-8B"),
        ("Twin", "Twin"),
        ("Qwen3", "Qwen3"),
        ("GPT-4o", "Qwen3-8B"),
        ("TWIN", "Qwen3-8B"),
        ("", ""),
    ],
)
def test_name_means_one_known_model_or_stays(asked: str, meant: str) -> None:
    assert ModelNames(KNOWN, ALIASES).find(asked) == meant


def test_name_of_two_models_in_other_letters_is_the_name_of_none() -> None:
    assert ModelNames(KNOWN, {}).find("TWIN") == "TWIN"
