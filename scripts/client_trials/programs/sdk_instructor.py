"""Instructor with a schema and with a tool."""

import os

import instructor
from openai import OpenAI
from pydantic import BaseModel


class Person(BaseModel):
    """What is asked for."""

    name: str
    age: int


for mode in (instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS):
    client = instructor.from_openai(OpenAI(base_url=os.environ["BASE"] + "/v1", api_key="none"), mode=mode)
    asked = [{"role": "user", "content": "Bob is 5."}]
    found = client.chat.completions.create(
        model=os.environ["MODEL"], response_model=Person, messages=asked, max_tokens=200
    )
    assert isinstance(found, Person)
