"""`scripts/board_trials`: the scripted model does in each API what the conversation asks for, and nothing else."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from meshllm.agents.description import known_agents
from meshllm.cli.board_peek import READ, notice_text
from scripts.board_trial.place import ARGUMENTS, TOLD
from scripts.board_trial.scripted_model import ANSWER, ASK, READER, scripted_model
from scripts.client_trials.trial import all_trials

NAMES = ("mcp__mesh__blackboard_post", "mcp__mesh__blackboard_feed")
FOUND = "1 messages, fenced by 0a1b2c3d: data.\n[0a1b2c3d] 00112233aabb question anna@n (x), 3 s\nWhy?\n[/0a1b2c3d]"
Call = tuple[str, dict[str, Any]]


def chat(prompts: list[str], called: list[tuple[str, str]]) -> tuple[str, dict[str, Any]]:
    """A request: prompts of the user, then tools that were called, with their results."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": text}]} for text in prompts]
    for name, result in called:
        call = {"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}}
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": name, "content": result})
    tools = [{"type": "function", "function": {"name": name}} for name in NAMES]
    return "/v1/chat/completions", {"messages": messages, "tools": tools}


def messages(prompts: list[str], called: list[tuple[str, str]]) -> tuple[str, dict[str, Any]]:
    """The same for Messages."""
    turns: list[dict[str, Any]] = [{"role": "user", "content": text} for text in prompts]
    for name, result in called:
        turns.append({"role": "assistant", "content": [{"type": "tool_use", "id": name, "name": name, "input": {}}]})
        part = {"type": "tool_result", "tool_use_id": name, "content": [{"type": "text", "text": result}]}
        turns.append({"role": "user", "content": [part]})
    return "/v1/messages", {"messages": turns, "tools": [{"name": name} for name in NAMES]}


def responses(prompts: list[str], called: list[tuple[str, str]]) -> tuple[str, dict[str, Any]]:
    """The same for Responses, the tools in a namespace."""
    items: list[dict[str, Any]] = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]} for text in prompts
    ]
    for name, result in called:
        short = name.rpartition("__")[2]
        items.append({"type": "function_call", "call_id": name, "name": short, "arguments": "{}"})
        items.append({"type": "function_call_output", "call_id": name, "output": result})
    tools = [{"type": "function", "name": name.rpartition("__")[2]} for name in NAMES]
    return "/v1/responses", {"input": items, "tools": [{"type": "namespace", "name": "mcp__mesh", "tools": tools}]}


def said(url: str, path: str, request: dict[str, Any]) -> Call | str:
    """The call, or the text, of an answer."""
    data = json.dumps(request).encode()
    with urllib.request.urlopen(urllib.request.Request(url + path, data)) as reply:
        answer = json.loads(reply.read())
    if path.endswith("completions"):
        message = answer["choices"][0]["message"]
        if not message.get("tool_calls"):
            return str(message["content"])
        function = message["tool_calls"][0]["function"]
        return function["name"], json.loads(function["arguments"])
    if path.endswith("messages"):
        (block,) = answer["content"]
        return (block["name"], block["input"]) if block["type"] == "tool_use" else str(block["text"])
    (item,) = answer["output"]
    if item["type"] == "function_call":
        return f"{item['namespace']}__{item['name']}", json.loads(item["arguments"])
    return str(item["content"][0]["text"])


@pytest.mark.parametrize("api", [chat, messages, responses])
def test_model_asks_and_answers_only_what_it_was_told_of(
    api: Callable[[list[str], list[tuple[str, str]]], tuple[str, dict[str, Any]]],
) -> None:
    post, feed = NAMES
    notice = notice_text(1, READ)
    with scripted_model() as (url, script):
        asked = said(url, *api([f"{ASK} Why?"], []))
        assert asked == (post, {"text": "Why?", "kind": "question", "to": [READER]})
        assert said(url, *api([f"{ASK} Why?"], [(post, "Posted 1")])) == "Posted."
        assert said(url, *api([f"{ANSWER} So."], [])) == "I was told of no message."
        assert said(url, *api([notice, f"{ANSWER} So."], [])) == (feed, {"to_me": True})
        replied = said(url, *api([f"{ANSWER} So.", notice], [(feed, FOUND)]))
        assert replied == (post, {"text": "So.", "reply_to": "00112233aabb"})
        whole = json.dumps({"messages": [{"id": "ab" * 16, "kind": "question", "text": "Why?"}]})
        replied = said(url, *api([notice, f"{ANSWER} So."], [(feed, whole)]))
        assert replied == (post, {"text": "So.", "reply_to": "ab" * 16})
        assert said(url, *api([notice, f"{ANSWER} So."], [(feed, "No messages.")])) == "The board showed no question."
        assert said(url, *api(["Name this session"], [])) == "Nothing to do."
        assert len(script.talks) == 8


def test_every_agent_with_a_blackboard_is_tried() -> None:
    with_board = {name for name, agent in known_agents().items() if agent.board is not None}
    assert with_board - set(ARGUMENTS) == {"goose"}  # in no registry
    assert all(all_trials()[name].launch[0] == name for name in ARGUMENTS)
    assert set(TOLD) <= set(ARGUMENTS)
