"""Conversations shaped for templates that do not render everything: nothing is lost, and prefixes stay."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meshllm.wire.api.conversation import (
    ANY_TEMPLATE,
    START,
    TemplateTraits,
    shape,
    shape_anthropic,
    shape_body,
    shape_responses,
)
from meshllm.wire.api.routes import Api

ONE_SYSTEM = TemplateTraits(systems_first=False, later_system=False)
IN_TURN = replace(
    ONE_SYSTEM,
    users_in_row=False,
    assistants_in_row=False,
    user_after_tool=False,
    assistant_first=False,
    system_alone=False,
)
NO_SYSTEM = replace(IN_TURN, system=False, developer=False)
STRICT = (ONE_SYSTEM, IN_TURN, NO_SYSTEM)


def said(*messages: str) -> list[dict[str, Any]]:
    """Messages written `s:text`; `c` is a call, `t` its result."""
    roles = {"s": "system", "d": "developer", "u": "user", "a": "assistant", "t": "tool"}
    written: list[dict[str, Any]] = []
    for message in messages:
        kind, _, text = message.partition(":")
        if kind == "c":
            call = {"id": text, "type": "function", "function": {"name": "f", "arguments": "{}"}}
            written.append({"role": "assistant", "content": None, "tool_calls": [call]})
        elif kind == "t":
            written.append({"role": "tool", "tool_call_id": "1", "content": text})
        else:
            written.append({"role": roles[kind], "content": text})
    return written


RULE = "[system]\nR\n[/system]"


@pytest.mark.parametrize(
    ("traits", "before", "after"),
    [
        (ONE_SYSTEM, ("s:A", "s:B", "u:Q"), ("s:A\n\nB", "u:Q")),
        (ONE_SYSTEM, ("s:A", "d:B", "u:Q"), ("s:A\n\nB", "u:Q")),
        (ONE_SYSTEM, ("s:A", "u:Q", "s:R"), ("s:A", f"u:Q\n\n{RULE}")),
        (ONE_SYSTEM, ("u:Q", "s:R", "a:B", "u:C"), (f"u:Q\n\n{RULE}", "a:B", "u:C")),
        (ONE_SYSTEM, ("u:Q", "a:B", "s:R", "u:C"), ("u:Q", "a:B", f"u:{RULE}\n\nC")),
        (ONE_SYSTEM, ("u:Q", "c:1", "s:R", "t:T"), ("u:Q", "c:1", "t:T", f"u:{RULE}")),
        (ONE_SYSTEM, ("u:Q", "u:P"), ("u:Q", "u:P")),
        (IN_TURN, ("u:Q", "u:P", "a:A", "a:B", "u:C"), ("u:Q\n\nP", "a:A\n\nB", "u:C")),
        (IN_TURN, ("u:Q", "c:1", "t:T", "s:R"), ("u:Q", "c:1", f"t:T\n\n{RULE}")),
        (IN_TURN, ("u:Q", "c:1", "s:R", "t:T", "t:U"), ("u:Q", "c:1", "t:T", f"t:U\n\n{RULE}")),
        (
            IN_TURN,
            ("u:Q", "c:1", "t:T", "u:P", "u:O"),
            ("u:Q", "c:1", "t:T\n\n[user]\nP\n[/user]\n\n[user]\nO\n[/user]"),
        ),
        (IN_TURN, ("s:A", "a:B", "u:C"), ("s:A", f"u:{START}", "a:B", "u:C")),
        (IN_TURN, ("s:A",), ("u:A",)),
        (IN_TURN, ("s:A", "s:B"), ("u:A\n\nB",)),
        (NO_SYSTEM, ("s:A", "s:B", "u:Q"), ("u:A\n\nB\n\nQ",)),
        (NO_SYSTEM, ("s:A", "a:B", "u:Q"), ("u:A", "a:B", "u:Q")),
        (replace(NO_SYSTEM, users_in_row=True), ("s:A", "u:Q", "u:P"), ("u:A\n\nQ", "u:P")),
        (replace(ANY_TEMPLATE, developer=False), ("d:A", "u:Q"), ("s:A", "u:Q")),
        (ANY_TEMPLATE, ("u:Q", "a:A", "a:B"), ("u:Q", "a:A\n\nB")),
    ],
)
def test_shape_of_chat_messages(traits: TemplateTraits, before: tuple[str, ...], after: tuple[str, ...]) -> None:
    assert shape(said(*before), traits) == said(*after)


@pytest.mark.parametrize("traits", [ANY_TEMPLATE, *STRICT])
def test_a_conversation_that_renders_is_not_copied(traits: TemplateTraits) -> None:
    messages = said("u:Q", "a:A", "u:P", "c:1", "t:T", "a:B", "u:C")
    assert shape(messages, traits) is messages
    assert shape_body(Api.CHAT, {"messages": messages}, traits) is None


def test_pictures_stay_in_place_when_messages_are_joined() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Q"}, picture]},
        {"role": "system", "content": "R"},
        {"role": "user", "content": None},
    ]
    space = {"type": "text", "text": "\n\n"}
    assert shape(messages, IN_TURN) == [
        {"role": "user", "content": [{"type": "text", "text": "Q"}, picture, space, {"type": "text", "text": RULE}]}
    ]


def test_joined_assistants_keep_calls_and_reasoning() -> None:
    messages = said("u:Q", "a:A", "c:1", "t:T")
    messages[1]["reasoning_content"] = "why"
    messages[2]["reasoning_content"] = "how"
    shaped = shape(messages, IN_TURN)
    assert [message["role"] for message in shaped] == ["user", "assistant", "tool"]
    assert shaped[1]["content"] == "A"
    assert shaped[1]["reasoning_content"] == "why\n\nhow"
    assert shaped[1]["tool_calls"][0]["id"] == "1"


def test_a_request_as_codex_sends_it() -> None:
    def item(role: str, *texts: str) -> dict[str, Any]:
        return {"type": "message", "role": role, "content": [{"type": "input_text", "text": text} for text in texts]}

    call = {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "1"}
    result = {"type": "function_call_output", "call_id": "1", "output": "T"}
    items = [item("developer", "A", "B"), item("user", "E"), item("user", "Q"), call, result, item("user", "P")]
    assert shape_responses("I", items, ONE_SYSTEM) == ("I\n\nA\nB", items[1:])
    head, shaped = shape_responses("I", items, IN_TURN)
    assert head == "I\n\nA\nB"
    assert shaped == [
        {"type": "message", "role": "user", "content": "E\n\nQ"},
        call,
        {**result, "output": "T\n\n[user]\nP\n[/user]"},
    ]
    head, shaped = shape_responses(None, items[:3], NO_SYSTEM)
    assert head is None
    assert shaped == [{"role": "user", "content": "A\nB\n\nE\n\nQ"}]
    assert shape_responses("I", items[1:5], ONE_SYSTEM) == ("I", items[1:5])


def test_input_of_responses_that_is_a_text() -> None:
    body = {"instructions": "I", "input": "Q"}
    assert shape_body(Api.RESPONSES, body, ONE_SYSTEM) is None
    assert shape_body(Api.RESPONSES, body, NO_SYSTEM) == {"input": [{"role": "user", "content": "I\n\nQ"}]}
    assert shape_body(Api.INPUT_TOKENS, body, NO_SYSTEM) == {"input": [{"role": "user", "content": "I\n\nQ"}]}


def test_a_request_as_claude_code_sends_it() -> None:
    def text(words: str) -> dict[str, Any]:
        return {"type": "text", "text": words}

    use = {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}
    result = {"type": "tool_result", "tool_use_id": "1", "content": "T"}
    system = [text("x-anthropic-billing-header: cch=aaaaa;"), text("A")]
    messages = [
        {"role": "user", "content": [text("E"), text("Q")]},
        {"role": "system", "content": "R"},
        use,
        {"role": "user", "content": [result, text("N")]},
    ]
    split = [*messages[:3], {"role": "user", "content": [result]}, {"role": "user", "content": [text("N")]}]
    assert shape_anthropic(system, messages, ANY_TEMPLATE) == (system, split)
    asked = {"role": "user", "content": f"E\nQ\n\n{RULE}"}
    assert shape_anthropic(system, messages, ONE_SYSTEM) == (system, [asked, use, *split[3:]])
    told = {**result, "content": "T\n\n[user]\nN\n[/user]"}
    assert shape_anthropic(system, messages, IN_TURN) == (system, [asked, use, {"role": "user", "content": [told]}])
    counted = shape_body(Api.COUNT_TOKENS, {"system": "A", "messages": messages}, IN_TURN)
    assert counted == shape_body(Api.MESSAGES, {"system": "A", "messages": messages}, IN_TURN)
    assert shape_anthropic("A", [{"role": "system", "content": "B"}, use], ONE_SYSTEM) == ("A\n\nB", [use])
    assert shape_anthropic(system, [{"role": "system", "content": "B"}, use], ONE_SYSTEM) == (
        [*system, text("\n\n"), text("B")],
        [use],
    )


@pytest.mark.parametrize("traits", STRICT)
@pytest.mark.parametrize(
    "messages", [7, [None], ["x", {"role": []}], [{"role": "user"}, {"role": "user", "content": 3}]]
)
def test_what_is_no_conversation_is_left_to_the_engine(traits: TemplateTraits, messages: Any) -> None:
    for api in Api:
        for field in ("messages", "input", "system", "instructions"):
            shape_body(api, {field: messages, "messages": messages}, traits)


# -- rules, for every short conversation

KINDS = ("s", "u", "a")


def conversations(length: int) -> list[list[dict[str, Any]]]:
    return [
        said(*(f"{kind}:w{place}" for place, kind in enumerate(kinds)))
        for kinds in itertools.product(KINDS, repeat=length)
    ]


@pytest.mark.parametrize("traits", STRICT)
def test_no_text_is_lost_and_what_comes_out_renders(traits: TemplateTraits) -> None:
    for messages in itertools.chain.from_iterable(conversations(length) for length in range(1, 6)):
        shaped = shape(messages, traits)
        told = "\n".join(message["content"] for message in shaped)
        places = [told.find(f"w{place}") for place in range(len(messages))]
        assert min(places) >= 0, messages
        assert places == sorted(places), messages
        roles = [message["role"] for message in shaped]
        assert "system" not in roles[1 if traits.system else 0 :], messages
        talk = [role for role in roles if role != "system"]
        if not traits.users_in_row:
            assert talk == ["user", "assistant"] * (len(talk) // 2) + ["user"] * (len(talk) % 2), messages
        assert shape(shaped, traits) is shaped, messages


@pytest.mark.parametrize("traits", STRICT)
def test_the_prompt_of_a_turn_begins_the_prompt_of_the_next(traits: TemplateTraits) -> None:
    """For every conversation to which an answer and a further message are added, as agents do."""
    tools = [said("u:Q", "c:1", *more) for more in (("t:T",), ("t:T", "s:R"), ("t:T", "u:P"), ("s:R", "t:T"))]
    for asked in itertools.chain(*(conversations(length) for length in range(1, 5)), tools):
        if asked[-1]["role"] == "assistant" or all(message["role"] == "system" for message in asked):
            continue  # the engine continues such a message; a system message alone is no turn
        before = shape(asked, traits)
        for more in (
            said("a:x", "u:y"),
            said("a:x", "u:y", "s:z"),
            said("c:1", "t:y"),
            said("c:1", "t:y", "s:z", "a:x"),
        ):
            assert shape(asked + more, traits)[: len(before)] == before, (asked, more)


# -- requests of agents (how they were recorded: tests/e2e/test_agent_requests.py)

RECORDED = Path(__file__).parents[2] / "e2e" / "agent_requests.jsonl"
APIS = {"/v1/chat/completions": Api.CHAT, "/v1/responses": Api.RESPONSES, "/v1/messages": Api.MESSAGES}


def of_agents() -> list[tuple[str, Api, list[dict[str, Any]]]]:
    """For each agent its API, and its requests with the same tools, in order."""
    found: dict[str, tuple[Api, list[dict[str, Any]]]] = {}
    for line in RECORDED.read_text().splitlines():
        request = json.loads(line)
        if request["body"].get("tools"):  # others are for titles
            api = APIS[request["path"].partition("?")[0]]
            found.setdefault(request["agent"], (api, []))[1].append(request["body"])
    return [(agent, *requests) for agent, requests in found.items()]


def conversation_of(body: dict[str, Any]) -> list[Any]:
    """The whole conversation, without what is no part of the prompt."""
    entries = [body.get("system"), body.get("instructions"), *body.get("messages", body.get("input"))]
    written = json.dumps(entries).replace(', "cache_control": {"type": "ephemeral"}', "")
    return list(json.loads(written))


@pytest.mark.parametrize("traits", [ANY_TEMPLATE, *STRICT])
@pytest.mark.parametrize(
    ("agent", "api", "bodies"), of_agents(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_turns_of_an_agent_begin_alike_where_the_agents_own_do(
    traits: TemplateTraits, agent: str, api: Api, bodies: list[dict[str, Any]]
) -> None:
    grown = 0
    for before, after in itertools.pairwise(bodies):
        sent, later = conversation_of(before), conversation_of(after)
        if later[: len(sent)] != sent:
            continue  # the agent itself changed what it had sent
        shaped = conversation_of(shape_body(api, before, traits) or before)
        shaped_later = conversation_of(shape_body(api, after, traits) or after)
        assert shaped_later[: len(shaped)] == shaped, agent
        grown += 1
    assert grown, agent


def test_parts_become_texts_where_they_are_not_rendered() -> None:
    no_parts = replace(ANY_TEMPLATE, parts=False)
    parts = [{"type": "text", "text": "Q"}, {"type": "text", "text": "P"}]
    picture = {"role": "user", "content": [*parts, {"type": "image_url", "image_url": {"url": "data:,"}}]}
    assert shape([{"role": "user", "content": parts}, picture], no_parts) == [
        {"role": "user", "content": "Q\nP"},
        picture,
    ]
    system, messages = shape_anthropic(parts, [{"role": "user", "content": parts}], no_parts)
    assert system == parts
    assert messages == [{"role": "user", "content": "Q\nP"}]
    # In responses the engine makes parts of texts: tools that the template then leaves out are described.
    body = {"input": "Q", "tools": [{"type": "function", "name": "f"}]}
    told = shape_body(Api.RESPONSES, body, no_parts)
    assert told is not None
    assert '"name":"f"' in told["instructions"]
    assert shape_body(Api.RESPONSES, {"input": "Q"}, no_parts) is None
