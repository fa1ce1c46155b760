"""Shared by the stream tests: an independent event parser, and what engines send."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st

from meshllm.wire.api.routes import Api
from meshllm.wire.api.stream_repair import StreamRepair, stream_repair

REQUEST: dict[str, Any] = {
    "model": "m",
    "instructions": "Be kind.",
    "max_output_tokens": 100,
    "tools": [],
    "stream": True,
}


def repairer(api: Api, **request: Any) -> StreamRepair:
    return stream_repair(api, model="m", ident="abc123", created=1_790_000_000, request={**REQUEST, **request})


def run(api: Api, stream: bytes, cuts: list[int] | None = None, **request: Any) -> tuple[bytes, StreamRepair]:
    """Feed `stream`, cut at `cuts`, and finish."""
    repair = repairer(api, **request)
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts or []), len(stream)]
    out = b"".join(repair.feed(stream[start:end]) for start, end in pairwise(edges))
    return out + repair.finish(), repair


def read(stream: bytes) -> list[tuple[str, Any]]:
    """Events as a simple client sees them: (event name, parsed data or the raw string)."""
    events = []
    for chunk in stream.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n\n"):
        name, data = "", []
        for line in chunk.split("\n"):
            if line.startswith("event:"):
                name = line[6:].strip()
            elif line.startswith("data:"):
                data.append(line[5:].removeprefix(" "))
        if data:
            text = "\n".join(data)
            try:
                events.append((name, json.loads(text)))
            except ValueError:
                events.append((name, text))
    return events


def event(data: Any, name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return (head + "data: " + json.dumps(data, separators=(",", ":"), ensure_ascii=False) + "\n\n").encode()


def typed(kind: str, **fields: Any) -> bytes:
    """An event of the messages or responses API, as the engine writes it."""
    return event({"type": kind, **fields}, kind)


def chunk(delta: dict[str, Any], *, index: int = 0, finish: str | None = None) -> bytes:
    """A chat chunk, as the engine writes it."""
    choice = {"finish_reason": finish, "index": index, "delta": delta}
    return event(
        {"choices": [choice], "created": 1, "id": "chatcmpl-x", "model": "m", "object": "chat.completion.chunk"}
    )


def check_messages(events: list[tuple[str, Any]]) -> None:
    """Check Anthropic's grammar; an error may end the stream anywhere."""
    state, current, following = "begin", None, 0
    for name, data in events:
        assert state not in ("end", "error"), f"{name} after the end"
        assert name == data["type"]
        if name == "ping":
            continue
        if name == "error":
            assert set(data["error"]) >= {"type", "message"}
            state = "error"
        elif name == "message_start":
            assert state == "begin"
            assert data["message"]["content"] == []
            assert data["message"]["usage"]["input_tokens"] >= 0
            state = "blocks"
        elif name == "content_block_start":
            assert state == "blocks"
            assert current is None
            assert data["index"] == following
            current, following = following, following + 1
        elif name in ("content_block_delta", "content_block_stop"):
            assert current is not None
            assert data["index"] == current
            current = None if name == "content_block_stop" else current
        elif name == "message_delta":
            assert state in ("blocks", "delta")
            assert current is None
            assert isinstance(data["delta"]["stop_reason"], str)
            state = "delta"
        elif name == "message_stop":
            assert state == "delta"
            state = "end"
        else:
            assert state != "begin"
    assert state in ("end", "error")


def check_responses(events: list[tuple[str, Any]]) -> None:
    """Check: numbers grow, items begin before and end after their events, the response ends once."""
    items: dict[int, str] = {}
    parts: dict[tuple[int, int], str] = {}
    done: set[int] = set()
    number, ended, identity = -1, False, None
    for name, data in events:
        assert name == data["type"]
        assert data["sequence_number"] > number
        number = data["sequence_number"]
        assert not ended, f"{name} after the end"
        if "response" in data:
            identity = identity or data["response"]["id"]
            assert data["response"]["id"] == identity
            missing = {
                "object",
                "created_at",
                "status",
                "model",
                "output",
                "tools",
                "parallel_tool_calls",
                "tool_choice",
            }
            assert missing <= set(data["response"])
            ended = name.rpartition(".")[2] in ("completed", "failed", "incomplete")
        elif name == "response.output_item.added":
            assert data["output_index"] not in items
            assert data["item"]["id"] not in items.values()
            items[data["output_index"]] = data["item"]["id"]
        elif name == "response.output_item.done":
            assert items[data["output_index"]] == data["item"]["id"]
            assert data["output_index"] not in done
            assert all(state == "done" for (index, _), state in parts.items() if index == data["output_index"])
            done.add(data["output_index"])
        elif name.startswith(("response.output_text.", "response.content_part.", "response.reasoning_text.")):
            place = (data["output_index"], data["content_index"])
            assert items[place[0]] == data["item_id"]
            assert place[0] not in done
            if name == "response.content_part.added":
                assert place not in parts
                parts[place] = "open"
            else:
                assert parts[place] == "open" or (parts[place] == "text" and name == "response.content_part.done")
                parts[place] = {"response.content_part.done": "done"}.get(
                    name, "text" if name.endswith("done") else "open"
                )
        elif name.startswith("response.function_call_arguments."):
            assert items[data["output_index"]] == data["item_id"]
            assert data["output_index"] not in done
    assert events[0][0] == "response.created"
    assert ended
    if events[-1][0] != "response.failed":
        assert done == set(items)
        assert [item["id"] for item in events[-1][1]["response"]["output"]] == [items[key] for key in sorted(items)]


cuts = st.lists(st.integers(min_value=0, max_value=1 << 20), max_size=12)
"""Cut positions; those beyond the end wrap around."""

line_end = st.sampled_from(["\n", "\n", "\r\n", "\r"])
garbage = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [
            b": ping\n\n",
            b"\n",
            b"\r\n\r\n",
            b"data: [DONE]\n\n",
            b"data:[DONE]\r\n\r\n",
            b"data: {}\n\n",
            b"data: [1]\n\n",
            b"data: null\n\n",
            b"data\n\n",
            b"id: 7\n\n",
            b'retry: 1\ndata: {"type":"x"}\n\n',
            b'error: {"code":500,"message":"boo","type":"server_error"}\n\n',
            b'data: {"error":{"code":500,"message":"boo","type":"server_error"}}\n\n',
            b'data: {"object":"error","message":"boo"}\n\n',
            b'data: {"a":' + b"[" * 2000 + b"]" * 2000 + b"}\n\n",
            b'data: {"type":"\\ud83d"}\n\n',
            b'data: {"type":"x","n":1e999}\n\n',
            b'data: {"type":"x","n":NaN}\n\n',
            b"data: \xff\xfe\n\n",
        ]
    ),
)
