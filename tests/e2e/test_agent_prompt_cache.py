"""What a real engine computes of agents' prompts, as the callers' `usage` and the node's metrics say."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.daemons import MODEL, OPEN_WAIT_SECONDS, Daemon, daemon

REQUESTS = [json.loads(line) for line in Path(__file__).with_name("agent_requests.jsonl").read_text().splitlines()]
# How many characters are in place of recorded ones: a quarter, so that a processor computes them in seconds.
SCALE = 4
TOOLS = 9
TOOL_CHARACTERS = 450
WORDS = [
    "the",
    "file",
    "tool",
    "runs",
    "when",
    "you",
    "read",
    "write",
    "search",
    "list",
    "open",
    "close",
    "this",
    "that",
    "with",
    "from",
    "each",
    "path",
    "line",
    "text",
]

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon(tmp_path_factory.mktemp("cache") / "home", "--ctx-size", "4096", "--model", MODEL) as made:
        yield made.wait_until_serving()


def post(node: Daemon, path: str, body: dict[str, Any], **headers: str) -> str:
    address = node.base_url.removesuffix("/v1") + path
    data = json.dumps({**body, "model": MODEL}).encode()
    request = urllib.request.Request(address, data, {"content-type": "application/json", **headers})
    with urllib.request.urlopen(request, timeout=OPEN_WAIT_SECONDS) as answer:
        return str(answer.read().decode())


def prose(characters: int, seed: str) -> str:
    """Words, always the same for a seed."""
    random, text = Random(seed), ""
    while len(text) < characters:
        text += random.choice(WORDS) + " "
    return text


def session(number: int, ask: str) -> dict[str, Any]:
    """A session of Claude Code as it was recorded, with texts and tools of their real proportions."""
    body: dict[str, Any] = json.loads(json.dumps(REQUESTS[0]["body"]))

    def filled(text: str) -> str:
        found = re.fullmatch(r"\w+ text (\d+) in place of (\d+) characters", text)
        return prose(int(found[2]) // SCALE, found[1]) if found else text

    header, *blocks = body["system"]
    assert header["text"].startswith("x-anthropic-billing-header:")
    # It ends with a hash of the first message.
    header["text"] = f"x-anthropic-billing-header: cc_version=2.1.197.{number:03x}; cc_entrypoint=sdk-cli;"
    for block in blocks:
        block["text"] = filled(block["text"])
    user, later = body["messages"]
    user["content"][0]["text"] = filled(user["content"][0]["text"])
    user["content"][1]["text"] = ask
    assert later["role"] == "system"
    later["content"] = filled(later["content"])[:600]
    tool = body["tools"][1]
    body["tools"] = [
        {**tool, "name": f"Tool{index}", "description": prose(TOOL_CHARACTERS, f"tool {index}")}
        for index in range(TOOLS)
    ]
    body["metadata"] = {"user_id": f"user_0_account__session_{number}"}
    return {**body, "max_tokens": 2, "temperature": 0, "stream": False}


def counts(usage: dict[str, Any]) -> tuple[int, int]:
    """Tokens computed, and taken from the cache, as Anthropic's API says."""
    return int(usage["input_tokens"]), int(usage["cache_read_input_tokens"])


def metrics(node: Daemon) -> dict[str, int]:
    with urllib.request.urlopen(node.base_url.removesuffix("/v1") + "/metrics", timeout=OPEN_WAIT_SECONDS) as answer:
        text = answer.read().decode()
    found = re.findall(rf'mesh_llm_engine_tokens_total{{kind="(\w+)",model="{MODEL}"}} (\S+)', text)
    return {kind: int(float(number)) for kind, number in found}


def test_new_session_of_claude_code_finds_tools_and_instructions_in_the_cache(node: Daemon) -> None:
    before = metrics(node)
    beta = {"anthropic-beta": "claude-code-20250219,unknown-2099-01-01", "anthropic-version": "2023-06-01"}
    first = json.loads(post(node, "/v1/messages?beta=true", session(1, "Run echo hi"), **beta))
    computed, cached = counts(first["usage"])
    assert computed > 1500
    assert cached < 50
    second = json.loads(post(node, "/v1/messages?beta=true", session(2, "What is two plus two?"), **beta))
    again, reused = counts(second["usage"])
    # The bar: 2,000 of 20,000 tokens.
    assert again <= (again + reused) / 10, second["usage"]
    # What follows the user's first message are not repeated: its instructions in place, not in front.
    written = first["usage"]["output_tokens"] + second["usage"]["output_tokens"]
    after = metrics(node)
    gained = {kind: after[kind] - before.get(kind, 0) for kind in after}
    assert gained == {"computed": computed + again, "cached": cached + reused, "written": written}


def test_instructions_in_the_midst_stay_there(node: Daemon) -> None:
    """A system message after a result, as Claude Code sends it each turn, moves nothing in front of it."""
    body = session(3, "Count to three")
    body["messages"] += [{"role": "assistant", "content": "One"}, {"role": "user", "content": "And on?"}]
    whole = json.loads(post(node, "/v1/messages", body))
    body["messages"] += [
        {"role": "assistant", "content": "Two"},
        {"role": "user", "content": "More?"},
        {"role": "system", "content": "9000 tokens left"},
    ]
    turn = json.loads(post(node, "/v1/messages", body))
    computed, cached = counts(turn["usage"])
    assert computed < 80
    assert cached >= sum(counts(whole["usage"])) - 8


PROMPT = prose(1200, "prompt")
MESSAGES = [{"role": "user", "content": PROMPT}]
ASKED: dict[str, tuple[dict[str, Any], tuple[str, str], str]] = {
    "/v1/chat/completions": (
        {"messages": MESSAGES, "max_tokens": 4, "stream_options": {"include_usage": True}},
        ("prompt_tokens_details", "cached_tokens"),
        "prompt_tokens",
    ),
    "/v1/responses": (
        {"input": PROMPT, "max_output_tokens": 4},
        ("input_tokens_details", "cached_tokens"),
        "input_tokens",
    ),
    "/v1/messages": ({"messages": MESSAGES, "max_tokens": 4}, ("", "cache_read_input_tokens"), ""),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", ASKED)
def test_cached_tokens_are_in_the_field_of_each_api(node: Daemon, path: str, stream: bool) -> None:
    body, (details, field), prompt = ASKED[path]
    body = {key: value for key, value in body.items() if stream or key != "stream_options"}
    post(node, path, body)
    text = post(node, path, {**body, "stream": stream})
    if stream:
        events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        usages = [event.get("usage") or (event.get("response") or {}).get("usage") for event in events]
        usage = next(usage for usage in reversed(usages) if usage)
    else:
        usage = json.loads(text)["usage"]
    cached = usage[details][field] if details else usage[field]
    tokens = usage[prompt] if prompt else usage["input_tokens"] + cached
    assert tokens > 200
    assert tokens - 5 <= cached < tokens


def test_background_requests_leave_the_conversation_in_the_cache(node: Daemon) -> None:
    """More titles and summaries than there are slots, each with instructions of its own, between two turns."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": prose(4000, "conversation")}]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    body = {"messages": messages, "tools": [tool], "max_tokens": 4, "temperature": 0}
    first = json.loads(post(node, "/v1/chat/completions", body))["usage"]
    for number in range(6):
        title = [
            {"role": "system", "content": prose(600, f"title {number}")},
            {"role": "user", "content": f"Title number {number}, please."},
        ]
        post(node, "/v1/chat/completions", {"messages": title, "max_tokens": 8})
    messages += [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Go on."}]
    turn = json.loads(post(node, "/v1/chat/completions", body))["usage"]
    assert turn["prompt_tokens_details"]["cached_tokens"] >= first["prompt_tokens"] - 8


def test_two_sessions_of_one_agent_that_take_turns_both_find_their_prompts(node: Daemon) -> None:
    """They share more than half of what they send: each would take the other's slot, and the rest be lost."""
    system = {"role": "system", "content": prose(4000, "instructions")}
    sessions = [
        [system, {"role": "user", "content": prose(1600, f"session {number}")}, {"role": "user", "content": "Begin."}]
        for number in range(2)
    ]
    for turn in range(3):
        for messages in sessions:
            usage = json.loads(post(node, "/v1/chat/completions", {"messages": messages, "max_tokens": 4}))["usage"]
            computed = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
            if turn:
                assert computed <= usage["prompt_tokens"] * 0.05, (turn, usage)
            messages += [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": f"Go on with {turn}."}]
