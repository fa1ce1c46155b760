"""OpenAI's Python SDK: chat, stream, a required tool call, structured output, completions, responses."""

import os

from openai import OpenAI
from pydantic import BaseModel


class Person(BaseModel):
    """What is asked for."""

    name: str
    age: int


model = os.environ["MODEL"]
client = OpenAI(base_url=os.environ["BASE"] + "/v1", api_key="none", max_retries=0)
asked = [{"role": "user", "content": "Say hi."}]
weather = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Rome", "Paris"]}},
    "required": ["city"],
}
tool = {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": weather}}

assert client.chat.completions.create(model=model, messages=asked, max_tokens=16).choices[0].message.content
chunks = client.chat.completions.create(model=model, messages=asked, max_tokens=16, stream=True)
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
called = client.chat.completions.create(
    model=model, messages=asked, tools=[tool], tool_choice="required", max_tokens=100
)
assert called.choices[0].message.tool_calls[0].function.name == "weather"
parsed = client.chat.completions.parse(model=model, messages=asked, response_format=Person, max_tokens=100)
assert parsed.choices[0].message.parsed.name is not None
assert client.completions.create(model=model, prompt="One, two,", max_tokens=8).choices[0].text
assert client.responses.create(model=model, input="Say hi.", max_output_tokens=16).output_text
assert client.responses.parse(model=model, input="Bob is 5.", text_format=Person, max_output_tokens=100).output_parsed
assert model in [card.id for card in client.models.list()]
