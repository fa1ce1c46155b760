"""Our SmolLM2 template renders as the model's own, with tools in addition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from gguf import GGUFReader
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

import meshllm.models
from meshllm import paths

MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
OURS = (Path(meshllm.models.__file__).parent / "catalog" / "templates" / "smollm2-tools.jinja").read_text()
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Of a city", "parameters": PARAMETERS}}
CALL = {"type": "function", "id": "1", "function": {"name": "weather", "arguments": {"city": "Rome"}}}


def template(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment()
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(source)


def rendered(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
    return template(OURS).render(messages=messages, tools=tools, add_generation_prompt=True)


@pytest.fixture(scope="module")
def own() -> jinja2.Template:
    file = paths.models() / MODEL_FILE
    if not file.exists():
        pytest.skip(f"{file} is not there: mesh-llm download SmolLM2-135M-Instruct")
    return template(str(GGUFReader(file).fields["tokenizer.chat_template"].contents()))


messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text(max_size=20)}),
    min_size=1,
    max_size=5,
)


@pytest.mark.engine
@given(messages, st.booleans())
def test_template_without_tools_renders_as_the_models_own(
    own: jinja2.Template, said: list[dict[str, Any]], prompt: bool
) -> None:
    ours = template(OURS).render(messages=said, add_generation_prompt=prompt)
    assert ours == own.render(messages=said, add_generation_prompt=prompt)


def test_template_renders_tools_calls_and_results() -> None:
    said: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "sun"},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
    ]
    text = rendered(said, [TOOL])
    assert text.startswith("<|im_start|>system\nBe brief.\n\n")
    assert text.count("Be brief.") == 1
    assert f"<tools>\n{json.dumps(TOOL)}\n</tools>" in text
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    results = "<tool_response>\nsun\n</tool_response>\n<tool_response>\nrain\n</tool_response>"
    assert f"<|im_start|>assistant\n{call}\n{call}<|im_end|>\n<|im_start|>user\n{results}<|im_end|>\n" in text
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_template_with_tools_keeps_the_default_system_message() -> None:
    text = rendered([{"role": "user", "content": "Hi"}], [TOOL])
    assert text.startswith(
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face\n\n"
    )
