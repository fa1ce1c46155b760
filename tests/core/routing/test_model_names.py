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


QUANTIZED = ("Other-Model.Q4_1", "Qwen3-8B-Q4_K_M", "Qwen3-8B-Q8_0", "Tiny-UD-IQ2_XXS", "Plain", "Plain-BF16")


@pytest.mark.parametrize(
    ("asked", "meant", "candidates"),
    [
        ("Other-Model", "Other-Model.Q4_1", ()),
        ("other-model.gguf", "Other-Model.Q4_1", ()),
        ("tiny", "Tiny-UD-IQ2_XXS", ()),
        ("Plain", "Plain", ()),  # exact
        ("qwen3-8b", "qwen3-8b", ("Qwen3-8B-Q4_K_M", "Qwen3-8B-Q8_0")),
        ("Qwen3-8B-Q8_0", "Qwen3-8B-Q8_0", ()),
        ("Other-Model.Q8_0", "Other-Model.Q8_0", ()),  # that is another one
        ("alias", "alias-of", ()),
        ("several", "Qwen3-8B", ("Qwen3-8B-Q4_K_M", "Qwen3-8B-Q8_0")),
    ],
)
def test_name_without_its_quantization_is_the_name_of_the_only_such_model(
    asked: str, meant: str, candidates: tuple[str, ...]
) -> None:
    names = ModelNames(QUANTIZED, {"alias": "alias-of", "several": "Qwen3-8B"})
    assert names.find(asked) == meant
    assert names.candidates(asked) == candidates
    assert names.is_known(asked) == (meant in QUANTIZED)
