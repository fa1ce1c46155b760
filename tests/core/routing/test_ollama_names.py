"""Names of Ollama's form find what the mesh serves, and nothing else."""

from __future__ import annotations

import pytest

from meshllm.core.routing.model_names import ModelNames
from meshllm.core.routing.ollama_names import ollama_name, quantization_at_end

NAMES = ("Qwen3-8B", "Llama-3.2-3B-Instruct-Q4_K_M", "llama3:8b", "SmolLM2", "phi-4-Q4_0", "phi-4-Q8_0", "org/x")
KNOWN = {"SmolLM2": "Q4_1", "Qwen3-8B": "UD-Q4_K_XL"}


def find(asked: str) -> str:
    names = ModelNames(NAMES, {"gpt-4o": "Qwen3-8B"})
    return ollama_name(asked, names, lambda name: KNOWN.get(name, ""))


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("Qwen3-8B", "Qwen3-8B"),
        ("qwen3-8b:latest", "Qwen3-8B"),
        ("qwen3:8b", "Qwen3-8B"),
        ("llama3:8b", "llama3:8b"),
        ("gpt-4o", "Qwen3-8B"),
        ("gpt-4o:latest", "Qwen3-8B"),
        ("llama-3.2-3b-instruct", "Llama-3.2-3B-Instruct-Q4_K_M"),
        ("llama-3.2:3b-instruct-q4_K_M", "Llama-3.2-3B-Instruct-Q4_K_M"),
        ("Llama-3.2-3B-Instruct:Q4_K_M", "Llama-3.2-3B-Instruct-Q4_K_M"),
        ("hf.co/bartowski/Llama-3.2-3B-Instruct-GGUF:Q4_K_M", "Llama-3.2-3B-Instruct-Q4_K_M"),
        ("hf.co/bartowski/Llama-3.2-3B-Instruct-GGUF", "Llama-3.2-3B-Instruct-Q4_K_M"),
        ("registry.ollama.ai/library/qwen3:8b", "Qwen3-8B"),
        ("smollm2:q4_1", "SmolLM2"),
        ("Qwen3-8B:UD-Q4_K_XL", "Qwen3-8B"),
        ("phi-4:Q8_0", "phi-4-Q8_0"),
        ("org/x:latest", "org/x"),
    ],
)
def test_name_finds_the_model(asked: str, name: str) -> None:
    assert find(asked) == name


@pytest.mark.parametrize(
    "asked",
    [
        "",
        ":",
        ":latest",
        "nothing",
        "nothing:latest",
        "Qwen3-8B:Q8_0",  # another quantization answers otherwise
        "Llama-3.2-3B-Instruct:Q8_0",
        "smollm2:8b",
        "org/x:Q4_0",  # not known
        "hf.co/",
        "hf.co/a/b:Q4_0",
    ],
)
def test_other_names_find_none(asked: str) -> None:
    assert find(asked) == asked


def test_a_name_of_several_models_finds_them() -> None:
    names = ModelNames(NAMES, {})
    assert names.candidates(find("phi-4:latest")) == ("phi-4-Q4_0", "phi-4-Q8_0")


def test_quantization_at_the_end_of_a_name() -> None:
    assert quantization_at_end("a-Q4_K_M") == quantization_at_end("a:q4_k_m.gguf") == "Q4_K_M"
    assert quantization_at_end("Q4_K_M") == quantization_at_end("a-Q4_K_M-b") == ""
