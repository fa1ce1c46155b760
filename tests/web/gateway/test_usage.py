"""Token counts read from the bytes of responses."""

from __future__ import annotations

import pytest

from meshllm.web.gateway.usage import TokenUsage, UsageReader, usage_in, whole_usage
from meshllm.wire.api.routes import Api

OPENAI = (
    b'"usage":{"completion_tokens":7,"prompt_tokens":20,"total_tokens":27,"prompt_tokens_details":{"cached_tokens":5}}'
)
TIMINGS = b'"timings":{"cache_n":5,"prompt_n":15,"prompt_ms":1.5,"predicted_n":7,"predicted_per_second":9.5}'
ANTHROPIC = b'"usage":{"input_tokens":15,"cache_read_input_tokens":5,"output_tokens":7}'


@pytest.mark.parametrize("data", [OPENAI, TIMINGS, b"{" + TIMINGS + b"," + OPENAI + b"}", OPENAI.replace(b":", b": ")])
def test_usage_of_openai_responses(data: bytes) -> None:
    assert usage_in(data, anthropic=False) == TokenUsage(20, 5, 7)


def test_usage_of_anthropic_responses_counts_the_cached_tokens() -> None:
    assert whole_usage(Api.MESSAGES, b"{" + ANTHROPIC + b"}") == TokenUsage(20, 5, 7)


def test_usage_is_unknown_where_none_is_reported() -> None:
    assert usage_in(b'{"choices":[]}', anthropic=False) == TokenUsage()
    assert usage_in(b'{"usage":null}', anthropic=False) == TokenUsage()


def test_usage_text_of_the_model_is_not_a_count() -> None:
    said = b'{"content":"\\"usage\\":{\\"prompt_tokens\\":9}"}'
    assert usage_in(said, anthropic=False) == TokenUsage()


@pytest.mark.parametrize("first", [False, True])
def test_usage_of_large_responses_is_found_at_either_end(first: bool) -> None:
    body = b"0.25," * 10_000
    body = OPENAI + body if first else body + OPENAI
    assert whole_usage(Api.EMBEDDINGS, body).prompt == 20


def test_usage_of_a_stream_in_separate_pieces() -> None:
    reader = UsageReader(Api.CHAT)
    for piece in (b'data: {"x":1}\n\n',) * 50 + (b"data: {" + OPENAI + b"}\n\n", b"data: [DONE]\n\n", b""):
        reader.add(piece)
    assert reader.read() == TokenUsage(20, 5, 7)


def test_usage_of_an_anthropic_stream_is_in_its_first_and_last_events() -> None:
    reader = UsageReader(Api.MESSAGES)
    reader.add(
        b'data: {"type":"message_start","usage":{"input_tokens":15,"cache_read_input_tokens":5,"output_tokens":0}}'
    )
    for _ in range(50):
        reader.add(b'data: {"type":"content_block_delta"}\n\n')
    reader.add(b'data: {"type":"message_delta","usage":{"output_tokens":7}}\n\n')
    reader.add(b'data: {"type":"message_stop"}\n\n')
    assert reader.read() == TokenUsage(20, 5, 7)
