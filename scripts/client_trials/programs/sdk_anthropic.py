"""Anthropic's Python SDK: messages, stream, a forced tool call, tokens, models."""

import os

from anthropic import Anthropic

model = os.environ["MODEL"]
client = Anthropic(base_url=os.environ["BASE"], api_key="none", max_retries=0)
asked = [{"role": "user", "content": "Say hi."}]
schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
tools = [{"name": "weather", "description": "The weather.", "input_schema": schema}]

assert client.messages.create(model=model, messages=asked, max_tokens=16).content[0].text
with client.messages.stream(model=model, messages=asked, max_tokens=16) as stream:
    assert "".join(stream.text_stream)
forced = {"type": "tool", "name": "weather"}
called = client.messages.create(model=model, messages=asked, max_tokens=100, tools=tools, tool_choice=forced)
assert called.content[-1].name == "weather"
assert client.messages.count_tokens(model=model, messages=asked).input_tokens
assert model in [card.id for card in client.models.list()]
