"""Requests of real agents and broken histories, to models with four chat templates: no exception, no text lost.

`agent_requests.jsonl`: requests recorded from the agents with a server that answered first with a call and then with a
text; long texts, identifiers and most tools are replaced. Whether a text is in the prompt shows in the count of tokens:
it grows with that text.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from meshllm import paths
from tests.daemons import MODEL, OPEN_WAIT_SECONDS, Daemon, daemon
from tests.engine_samples import with_chat_template

TEMPLATES = Path(__file__).parents[1] / "engine" / "processes" / "templates"
REQUESTS = [json.loads(line) for line in Path(__file__).with_name("agent_requests.jsonl").read_text().splitlines()]
COUNTS = {
    "/v1/chat/completions": "/v1/chat/completions/input_tokens",
    "/v1/responses": "/v1/responses/input_tokens",
    "/v1/messages": "/v1/messages/count_tokens",
}
MORE_WORDS = " zebra" * 60

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module", params=[MODEL, "one-system", "in-turn", "no-tools"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that serves the model, with its own template or with another one in its file."""
    folder, name = tmp_path_factory.mktemp("template"), request.param
    model = name
    if name != MODEL:
        weights = next(paths.models().glob(f"{MODEL}*.gguf"))
        template = (TEMPLATES / f"{name}.jinja").read_text()
        model = str(with_chat_template(weights, template, folder / f"{name}.gguf"))
    with daemon(folder / "home", "--ctx-size", "2048", "--model", model) as node:
        node.model = name
        yield node.wait_until_serving(name)


class Caller:
    """Posts JSON over one connection."""

    def __init__(self, node: Daemon) -> None:
        address = urlsplit(node.base_url)
        assert address.hostname is not None
        self.model = node.model
        self.connection = http.client.HTTPConnection(address.hostname, address.port, timeout=OPEN_WAIT_SECONDS)

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, str]:
        """Status and text of the reply."""
        self.connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        reply = self.connection.getresponse()
        return reply.status, reply.read().decode()


@pytest.fixture(scope="module")
def caller(served: Daemon) -> Iterator[Caller]:
    found = Caller(served)
    yield found
    found.connection.close()


def count(caller: Caller, path: str, body: dict[str, Any]) -> int:
    """The tokens of the prompt."""
    status, text = caller.post(COUNTS[path], body)
    assert status == 200, (text, body)
    return int(json.loads(text)["input_tokens"])


def texts_in(value: Any, key: str = "") -> Iterator[tuple[Any, Any]]:
    """Where the texts of a conversation are: the object or list that holds each, and its key there."""
    if isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(item, str) and name in ("content", "text", "output", "system", "instructions"):
                yield value, name
            else:
                yield from texts_in(item)


@pytest.mark.parametrize("number", range(len(REQUESTS)), ids=lambda n: f"{REQUESTS[n]['agent']} {n}")
def test_no_text_of_an_agent_is_lost(caller: Caller, number: int) -> None:
    path = REQUESTS[number]["path"].partition("?")[0]
    body = deepcopy({**REQUESTS[number]["body"], "model": caller.model})
    tokens = count(caller, path, body)
    conversation = {key: body[key] for key in ("messages", "input", "system", "instructions") if key in body}
    places = list(texts_in(conversation))
    assert len(places) >= 2
    for holder, key in places:
        text = holder[key]
        holder[key] = text + MORE_WORDS
        assert count(caller, path, {**body, **conversation}) >= tokens + 50, text
        holder[key] = text


def test_tools_of_an_agent_are_in_the_prompt(caller: Caller) -> None:
    for request in REQUESTS:
        path, body = request["path"].partition("?")[0], {**request["body"], "model": caller.model}
        tools = [tool for tool in body.get("tools", ()) if tool.get("type") in (None, "function")]
        if not tools:
            continue
        tokens = count(caller, path, {**body, "tools": tools})
        more = deepcopy(tools)
        for tool in more:
            tool.get("function", tool)["description"] += MORE_WORDS
        assert count(caller, path, {**body, "tools": more}) >= tokens + 50 * len(tools), request["agent"]


@pytest.mark.parametrize("agent", ["claude-code", "codex", "opencode-ai"])
def test_an_agents_last_request_is_answered(caller: Caller, agent: str) -> None:
    request = [request for request in REQUESTS if request["agent"].startswith(agent)][-1]
    limit = "max_output_tokens" if "input" in request["body"] else "max_tokens"
    body = {**request["body"], "model": caller.model, limit: 2, "stream": True}
    status, text = caller.post(request["path"], body)
    assert status == 200, text
    assert any(end in text for end in ("[DONE]", "message_stop", "response.completed", "response.incomplete"))
    assert '"error"' not in text.replace('"error":null', "")


def chat(*messages: tuple[str, Any]) -> tuple[str, dict[str, Any]]:
    return "/v1/chat/completions", {"messages": [{"role": role, "content": text} for role, text in messages]}


def test_the_prompt_cache_serves_the_next_turn(caller: Caller) -> None:
    """Also where a system message became part of the user's, as in every request of Claude Code."""
    messages = [
        {"role": "user", "content": "Tell me of zebras." + MORE_WORDS},
        {"role": "system", "content": "Be brief." + MORE_WORDS},
    ]
    body = {"model": caller.model, "system": "You help.", "messages": messages, "max_tokens": 8, "temperature": 0}
    for _ in range(2):
        status, text = caller.post("/v1/messages", body)
        assert status == 200, text
        answer = json.loads(text)
        prompt = answer["usage"]["input_tokens"] + answer["usage"]["cache_read_input_tokens"]
        messages += [
            {"role": "assistant", "content": answer["content"]},
            {"role": "user", "content": "Go on."},
            {"role": "system", "content": "Still brief."},
        ]
    status, text = caller.post("/v1/messages", body)
    assert status == 200, text
    # All but what follows the prompt of the turn before, and some tokens where the answer is cut into others.
    assert json.loads(text)["usage"]["cache_read_input_tokens"] >= prompt - 2


def item(role: str, text: str) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]}


CALL = {"id": "call_longer-than-9", "type": "function", "function": {"name": "f", "arguments": "{}"}}
USE = [
    {"role": "user", "content": "Q"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": CALL["id"], "content": [{"type": "text", "text": "T"}]},
]
HISTORIES = {
    "two system messages": chat(("system", "A"), ("system", "B"), ("user", "Q")),
    "a later system message": chat(("system", "A"), ("user", "Q"), ("assistant", "B"), ("system", "R"), ("user", "P")),
    "a system message at the end": chat(("user", "Q"), ("system", "R")),
    "system and developer": chat(("system", "A"), ("developer", "B"), ("user", "Q")),
    "a developer in the middle": chat(("user", "Q"), ("developer", "B"), ("user", "P")),
    "two users in a row": chat(("user", "Q"), ("user", "P")),
    "two assistants in a row": chat(("user", "Q"), ("assistant", "A"), ("assistant", "B"), ("user", "P")),
    "parts and texts in a row": chat(("user", "Q"), ("user", [{"type": "text", "text": "P"}]), ("user", "O")),
    "an assistant first": chat(("assistant", "A"), ("user", "Q")),
    "a system message alone": chat(("system", "A")),
    "a user after a result": ("/v1/chat/completions", {"messages": [*USE, {"role": "user", "content": "P"}]}),
    "a system message after a result": (
        "/v1/chat/completions",
        {"messages": [*USE, {"role": "system", "content": "R"}]},
    ),
    "a system message before the result": (
        "/v1/chat/completions",
        {"messages": [*USE[:2], {"role": "system", "content": "R"}, *USE[2:]]},
    ),
    "messages with one in the middle": (
        "/v1/messages",
        {"system": "A", "messages": [{"role": "user", "content": "Q"}, {"role": "system", "content": "R"}]},
    ),
    "messages with a list and one at the start": (
        "/v1/messages",
        {
            "system": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}],
            "messages": [
                {"role": "system", "content": "R"},
                {"role": "user", "content": [{"type": "text", "text": "Q"}]},
            ],
        },
    ),
    "responses with instructions and a developer": (
        "/v1/responses",
        {"instructions": "A", "input": [item("developer", "B"), item("user", "Q"), item("user", "P")]},
    ),
    "responses with a developer later": (
        "/v1/responses",
        {"instructions": "A", "input": [item("user", "Q"), item("developer", "B")]},
    ),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_histories_that_strict_templates_refuse(caller: Caller, name: str) -> None:
    path, given = HISTORIES[name]
    limit = "max_output_tokens" if "input" in given else "max_tokens"
    body = {**deepcopy(given), "model": caller.model, limit: 1}
    status, text = caller.post(path, body)
    assert status == 200, text
    del body[limit]
    tokens = count(caller, path, body)
    for holder, key in texts_in(body):
        text = holder[key]
        holder[key] = text + MORE_WORDS
        assert count(caller, path, body) >= tokens + 50, text
        holder[key] = text
