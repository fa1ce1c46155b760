"""OpenAI's Agents SDK over chat and over responses (its default), with a tool."""

import os

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

set_tracing_disabled(True)
client = AsyncOpenAI(base_url=os.environ["BASE"] + "/v1", api_key="none", max_retries=0)


@function_tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


for kind in (OpenAIChatCompletionsModel, OpenAIResponsesModel):
    agent = Agent(
        name="a",
        instructions="Be short.",
        tools=[weather],
        model=kind(model=os.environ["MODEL"], openai_client=client),
        model_settings=ModelSettings(max_tokens=64),
    )
    assert Runner.run_sync(agent, "Say hi.", max_turns=5).final_output
