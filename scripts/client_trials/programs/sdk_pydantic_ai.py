"""Pydantic AI: text, and structured output by a tool (its default) and by a schema."""

import os

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class Person(BaseModel):
    """What is asked for."""

    name: str
    age: int


provider = OpenAIProvider(base_url=os.environ["BASE"] + "/v1", api_key="none")
model = OpenAIChatModel(os.environ["MODEL"], provider=provider)
settings = {"max_tokens": 200}
assert Agent(model, model_settings=settings).run_sync("Say hi.").output
assert (
    Agent(model, output_type=NativeOutput(Person), model_settings=settings).run_sync("Bob is 5.").output.name
    is not None
)
assert Agent(model, output_type=Person, model_settings=settings).run_sync("Bob is 5.").output.name is not None
