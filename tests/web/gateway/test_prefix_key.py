"""Which requests share a prefix: the same model, tools and beginning of the system prompt, whatever the user says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from web_rig import Town, ask, host, node_id, town

from meshllm.web.gateway.prefix_key import LEAST_BYTES, SYSTEM_BYTES, prefix_key
from meshllm.wire.api.routes import Api

ONE, TWO = node_id(1), node_id(2)
RULES = "You are a coding agent. " * 100
TOOLS = [{"type": "function", "function": {"name": "read", "description": "Reads a file. " * 100, "parameters": {}}}]


def chat(text: str = "hello", system: str = RULES, **more: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    return {"model": "m", "messages": messages, "tools": TOOLS, **more}


def messages(user: str, system: Any) -> dict[str, Any]:
    return {"model": "m", "system": system, "messages": [{"role": "user", "content": user}], "tools": TOOLS}


def test_key_does_not_depend_on_the_conversation() -> None:
    key = prefix_key(Api.CHAT, chat())
    assert key is not None
    assert key == prefix_key(Api.CHAT, chat("something else", user="another session", temperature=1))
    longer = chat()
    longer["messages"] += [{"role": "assistant", "content": "yes"}, {"role": "system", "content": "later"}]
    assert key == prefix_key(Api.CHAT, longer)
    # The date and the folder, at the end of a long system prompt.
    assert key != prefix_key(Api.CHAT, chat(system=RULES + "Today"))
    long = "You are a coding agent. " * 400
    assert len(long) > SYSTEM_BYTES
    assert prefix_key(Api.CHAT, chat(system=long)) == prefix_key(Api.CHAT, chat(system=long + "Today"))


def test_key_depends_on_what_the_engine_would_compute() -> None:
    tool = {"type": "function", "function": {"name": "other", "parameters": {}}}
    keys = {
        prefix_key(Api.CHAT, chat()),
        prefix_key(Api.CHAT, chat(model="other")),
        prefix_key(Api.CHAT, chat(system="Others. " + RULES)),
        prefix_key(Api.CHAT, chat(tools=[*TOOLS, tool])),
        prefix_key(Api.CHAT, chat(), salt="a guest"),
    }
    assert len(keys) == 5
    assert None not in keys


def test_key_of_each_api() -> None:
    item = {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": RULES}]}
    responses = {"model": "m", "input": [item, {"role": "user", "content": "hello"}]}
    assert prefix_key(Api.RESPONSES, responses) is not None
    assert prefix_key(Api.RESPONSES, {**responses, "instructions": "more"}) != prefix_key(Api.RESPONSES, responses)
    assert prefix_key(Api.RESPONSES, {"model": "m", "input": "hello", "instructions": RULES}) is not None
    # Claude Code's first block has a hash of the first user message, which our engines do not get.
    header = "x-anthropic-billing-header: cc_version=2.1.197.{}; cc_entrypoint=cli;"
    sessions = [
        prefix_key(Api.MESSAGES, messages(user, [{"type": "text", "text": header.format(user)}, rules]))
        for rules in [{"type": "text", "text": RULES}]
        for user in ("123", "a5a")
    ]
    assert sessions[0] == sessions[1] is not None


@pytest.mark.parametrize(
    "request_",
    [
        {"model": "m", "messages": [{"role": "user", "content": RULES}]},
        {"model": "m", "messages": [{"role": "system", "content": "x" * (LEAST_BYTES - 1)}]},
        {"model": "m", "messages": "no list", "tools": "none", "system": 5},
        {"model": "m", "messages": [5, None], "tools": [], "instructions": {"a": [1]}},
        {"model": "m"},
    ],
)
@pytest.mark.parametrize("api", list(Api))
def test_nothing_to_share_has_no_key(api: Api, request_: dict[str, Any]) -> None:
    assert prefix_key(api, request_) is None


@pytest.fixture
async def place(folder: Path) -> AsyncIterator[Town]:
    """Three gateways; the first one is asked."""
    async with town(folder) as made:
        yield made


def session(number: int) -> bytes:
    return ask(**chat(f"question {number}"), metadata={"user_id": f"session {number}"})


async def test_new_sessions_go_to_the_host_that_has_computed_their_prefix(place: Town) -> None:
    one, two = await place.serve(1), await place.serve(2)
    far = host(TWO, "m", rtt=0.5)
    place.here.meet(far)
    assert (await place.here.call(session(0))).status == 200
    place.here.meet(host(ONE, "m", rtt=0.001), far)
    for number in range(1, 10):
        assert (await place.here.call(session(number))).status == 200
    assert (len(one.calls), len(two.calls)) == (0, 10)
    # Another prompt goes to the nearest host, and so does this one once its host is lost.
    assert (await place.here.call(ask(**chat(system="Others. " + RULES)))).status == 200
    assert (len(one.calls), len(two.calls)) == (1, 10)
    place.roads.kill(TWO)
    for number in (20, 21):
        assert (await place.here.call(session(number))).status == 200
    assert (len(one.calls), len(two.calls)) == (3, 10)
