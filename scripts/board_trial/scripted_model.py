"""A model server with a script in the place of a model: it calls the tools of the blackboard as a prompt asks for.

It speaks the three APIs that agents use, streamed or whole: chat completions, Messages and Responses. What it does
depends on nothing but the conversation: the tools that the agent offers, and the results of the calls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

MODEL = "scripted-model"
# In a prompt: post this text, as a question to READER; or answer the question, if a notice tells of one.
ASK, ANSWER = "TRIAL-ASK:", "TRIAL-ANSWER:"
READER = "ben"
# What a hook says to an agent that is named in a message.
NOTICE = re.compile(r"messages? on the mesh blackboard names? you")
# A question in a list of messages: its head in the text, or the same for programs, which some agents show the model.
QUESTION = re.compile(r"\[[0-9a-f]{8}\] ([0-9a-f]{12}) question |\"id\": ?\"([0-9a-f]{32})\", ?\"kind\": ?\"question\"")


@dataclass(frozen=True)
class Talk:
    """A conversation: the tools that are offered, with their namespaces, texts of the user and the system, names of the
    tools that were called, and results."""

    tools: dict[str, str]
    texts: list[str]
    called: set[str]
    results: list[str]


@dataclass(frozen=True)
class Step:
    """What the model does: a text, or a `call` of a tool."""

    text: str = ""
    call: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    namespace: str = ""

    @property
    def id(self) -> str:
        """The id of the call."""
        return f"call_{self.call[-20:]}"


@dataclass
class Script:
    """Plays the model. `talks`: every conversation that it was asked to continue."""

    lock: Lock = field(default_factory=Lock)
    talks: list[Talk] = field(default_factory=list)

    def next_step(self, talk: Talk) -> Step:
        """What to do next in a conversation."""
        with self.lock:
            self.talks.append(talk)
        task = next((found for text in talk.texts if (found := _task(text))), None)
        if task is None or not talk.tools:
            return Step("Nothing to do.")
        kind, words = task
        post, feed = _named(talk.tools, "blackboard_post"), _named(talk.tools, "blackboard_feed")
        if post is None or feed is None:
            return Step(f"No tool of the blackboard among {', '.join(talk.tools)}.")
        if post in talk.called:
            return Step("Posted.")
        if kind == ASK:
            return Step("", post, {"text": words, "kind": "question", "to": [READER]}, talk.tools[post])
        if feed not in talk.called:
            told = any(NOTICE.search(text) for text in talk.texts)
            return Step("", feed, {"to_me": True}, talk.tools[feed]) if told else Step("I was told of no message.")
        found = next((match for text in talk.results if (match := QUESTION.search(text))), None)
        if found is None:
            return Step("The board showed no question.")
        return Step("", post, {"text": words, "reply_to": found.group(1) or found.group(2)}, talk.tools[post])


def _task(text: str) -> tuple[str, str] | None:
    for kind in (ASK, ANSWER):
        _, found, rest = text.partition(kind)
        if found:
            return kind, rest.splitlines()[0].split("<")[0].strip(' "')  # OpenCode puts a prompt in quotes
    return None


def _named(tools: Iterable[str], name: str) -> str | None:
    return next((tool for tool in tools if tool.endswith(name)), None)


def _text(value: Any) -> str:
    """All texts in a content, whatever its API."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(map(_text, value))
    if isinstance(value, dict):
        return "\n".join(_text(value[key]) for key in ("text", "content", "output") if key in value)
    return ""


def chat_talk(request: dict[str, Any]) -> Talk:
    """The conversation of a request for a chat completion."""
    messages = request["messages"]
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    return Talk(
        tools={str(tool["function"]["name"]): "" for tool in request.get("tools") or ()},
        texts=[_text(message.get("content")) for message in messages if message["role"] in ("user", "system")],
        called={str(call["function"]["name"]) for call in calls},
        results=[_text(message.get("content")) for message in messages if message["role"] == "tool"],
    )


def messages_talk(request: dict[str, Any]) -> Talk:
    """The conversation of a request for Messages."""
    contents = [message["content"] for message in request["messages"]]
    blocks = [block for content in contents if isinstance(content, list) for block in content]
    results = [block for block in blocks if block["type"] == "tool_result"]
    return Talk(
        tools={str(tool["name"]): "" for tool in request.get("tools") or ()},
        texts=[_text(content) for content in contents if isinstance(content, str)]
        + [_text(block) for block in blocks if block["type"] == "text"],
        called={str(block["name"]) for block in blocks if block["type"] == "tool_use"},
        results=[_text(block) for block in results],
    )


def responses_talk(request: dict[str, Any]) -> Talk:
    """The conversation of a request for a response. Tools may be in namespaces, one for each MCP server."""
    items = request["input"] if isinstance(request["input"], list) else [{"content": request["input"]}]
    tools: dict[str, str] = {}
    for tool in request.get("tools") or ():
        if tool.get("type") == "namespace":
            tools |= {str(one["name"]): str(tool["name"]) for one in tool["tools"]}
        elif "name" in tool:
            tools[str(tool["name"])] = ""
    kinds = ("function_call_output",)
    return Talk(
        tools=tools,
        texts=[_text(item) for item in items if item.get("type", "message") == "message"],
        called={str(item["name"]) for item in items if item.get("type") == "function_call"},
        results=[_text(item) for item in items if item.get("type") in kinds],
    )


def chat_answer(step: Step) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A chat completion: the whole, and the events of its stream."""
    message: dict[str, Any] = {"role": "assistant", "content": step.text or None}
    if step.call:
        call = {"name": step.call, "arguments": json.dumps(step.arguments)}
        message["tool_calls"] = [{"index": 0, "id": step.id, "type": "function", "function": call}]
    base = {"id": "chatcmpl-1", "created": 0, "model": MODEL}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    reason = "tool_calls" if step.call else "stop"
    choice = {"index": 0, "message": message, "finish_reason": reason}
    chunk = base | {"object": "chat.completion.chunk"}
    events = [
        chunk | {"choices": [{"index": 0, "delta": message, "finish_reason": None}]},
        chunk | {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}], "usage": usage},
    ]
    return base | {"object": "chat.completion", "choices": [choice], "usage": usage}, events


def messages_answer(step: Step) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A message: the whole, and the events of its stream."""
    usage = {"input_tokens": 100, "output_tokens": 10}
    if step.call:
        block = {"type": "tool_use", "id": step.id, "name": step.call, "input": step.arguments}
        begun: dict[str, Any] = block | {"input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(step.arguments)}
    else:
        block, begun = {"type": "text", "text": step.text}, {"type": "text", "text": ""}
        delta = {"type": "text_delta", "text": step.text}
    reason = "tool_use" if step.call else "end_turn"
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": MODEL, "stop_sequence": None}
    start = message | {"content": [], "stop_reason": None, "usage": usage}
    events = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": begun},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": usage},
        {"type": "message_stop"},
    ]
    return message | {"content": [block], "stop_reason": reason, "usage": usage}, events


def responses_answer(step: Step) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A response: the whole, and the events of its stream."""
    if step.call:
        item: dict[str, Any] = {"type": "function_call", "id": "fc_1", "call_id": step.id, "status": "completed"}
        item |= {"name": step.call, "arguments": json.dumps(step.arguments)}
        if step.namespace:
            item["namespace"] = step.namespace
    else:
        part = {"type": "output_text", "text": step.text, "annotations": []}
        item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]}
    usage = {"input_tokens": 100, "output_tokens": 10, "total_tokens": 110}
    response = {"id": "resp_1", "object": "response", "created_at": 0, "model": MODEL, "usage": usage}
    response |= {"status": "completed", "output": [item]}
    events = [
        {"type": "response.created", "response": response | {"status": "in_progress", "output": [], "usage": None}},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": response},
    ]
    return response, events


# By the end of the path.
APIS = {
    "/chat/completions": (chat_talk, chat_answer),
    "/messages": (messages_talk, messages_answer),
    "/responses": (responses_talk, responses_answer),
}


def _handler(script: Script) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

        def do_GET(self) -> None:
            self._answer(json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}), "application/json")

        def do_POST(self) -> None:
            path, body = self.path.partition("?")[0], self.rfile.read(int(self.headers.get("content-length", 0)))
            api = next((api for end, api in APIS.items() if path.endswith(end)), None)
            if api is None:
                self._answer(json.dumps({"input_tokens": 100, "tokens": []}), "application/json")
                return
            request = json.loads(body)
            talk, answer = api
            whole, events = answer(script.next_step(talk(request)))
            if not request.get("stream"):
                self._answer(json.dumps(whole), "application/json")
                return
            named = [f"event: {event['type']}\n" if "type" in event else "" for event in events]
            lines = [f"{name}data: {json.dumps(event)}\n\n" for name, event in zip(named, events, strict=True)]
            if path.endswith("/chat/completions"):
                lines.append("data: [DONE]\n\n")
            self._answer("".join(lines), "text/event-stream")

        def _answer(self, body: str, kind: str) -> None:
            data = body.encode()
            self.send_response(200)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


@contextmanager
def scripted_model() -> Iterator[tuple[str, Script]]:
    """The URL of a running server, and its script."""
    script = Script()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(script))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
