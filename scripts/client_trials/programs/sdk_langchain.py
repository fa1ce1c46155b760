"""LangChain with OpenAI's and Anthropic's classes: invoke, stream, structured output; an agent of LangGraph."""

import os

from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI
from langgraph.prebuilt import create_react_agent

model, base = os.environ["MODEL"], os.environ["BASE"]
chat = ChatOpenAI(model=model, base_url=f"{base}/v1", api_key="none", max_tokens=32, max_retries=0)
assert chat.invoke("Say hi.").content
assert "".join(str(part.content) for part in chat.stream("Say hi."))
schema = {
    "title": "Person",
    "type": "object",
    "properties": {"age": {"type": "integer"}},
    "required": ["age"],
    "additionalProperties": False,
}
assert "age" in chat.with_structured_output(schema, method="json_schema").invoke("Bob is 5.")
claude = ChatAnthropic(model=model, base_url=base, api_key="none", max_tokens=32, max_retries=0)
assert claude.invoke("Say hi.").content


def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


assert create_react_agent(chat, [weather]).invoke({"messages": [("user", "Say hi.")]})["messages"]
