"""Images are found in every API, and nothing else is taken for one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.wire.api.images import MAX_PARTS, PICTURE_WORDS, shows_pictures

TEXT = {"type": "text", "text": "image_url"}
OPENAI = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
ANTHROPIC = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
RESPONSES = {"type": "input_image", "image_url": "data:image/png;base64,AA=="}


def user(*parts: object) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


@pytest.mark.parametrize(
    "request_",
    [
        {"messages": [user(TEXT, OPENAI)]},
        {"messages": [user(TEXT), {"role": "assistant", "content": "hm"}, user(OPENAI)]},
        {"messages": [{"role": "tool", "tool_call_id": "1", "content": [OPENAI]}]},
        {"messages": [user(ANTHROPIC, TEXT)]},
        {"messages": [user({"type": "tool_result", "tool_use_id": "1", "content": [TEXT, ANTHROPIC]})]},
        {"input": [user(RESPONSES)]},
        {"input": [{"type": "message", **user({"type": "input_text", "text": "?"}, RESPONSES)}]},
        {"input": [{"type": "function_call_output", "call_id": "1", "output": [RESPONSES]}]},
        {"prompt": {"prompt_string": "<__media__>", "multimodal_data": ["AA=="]}},
        {"prompt": ["a", {"prompt_string": "<__media__>", "multimodal_data": ["AA=="]}]},
    ],
)
def test_images_are_found_in_every_api(request_: dict[str, Any]) -> None:
    assert shows_pictures(request_)
    assert any(word in json.dumps(request_).encode() for word in PICTURE_WORDS)


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"messages": "image_url", "input": "image", "prompt": "input_image"},
        {"messages": [{"role": "user", "content": "look at this image"}, user(TEXT), user("image")]},
        {"messages": [user()], "tools": [{"type": "image_generation", "parameters": OPENAI}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": json.dumps(OPENAI)}}]}]},
        {"input": [{"type": "function_call", "arguments": json.dumps(RESPONSES)}]},
        {"prompt": {"prompt_string": "a", "multimodal_data": []}},
        {"messages": [{"type": ["image"], "content": {"type": {"image": 1}}}]},
    ],
)
def test_requests_without_images_have_none(request_: dict[str, Any]) -> None:
    assert not shows_pictures(request_)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.just("image"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["type", "content", "output", "multimodal_data", "x"]), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["messages", "input", "prompt"]), json_values))
def test_image_search_accepts_any_body(request_: dict[str, Any]) -> None:
    assert shows_pictures(request_) in (True, False)


def test_image_search_is_bounded() -> None:
    assert shows_pictures({"messages": [user(*[TEXT] * 100, OPENAI)]})
    assert not shows_pictures({"messages": [OPENAI, *[TEXT] * 2 * MAX_PARTS]})
