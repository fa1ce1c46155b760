"""Repairs streams of `/v1/messages` to Anthropic's grammar.

message_start, (block_start, block_delta*, block_stop)*, message_delta+, message_stop (ping anywhere)

Faults of the engine: no `message_start` if the first token is half a character or nothing was generated; text, thinking
and tool blocks are open at once and stopped at the end only, sometimes with the same index; its last event may start a
block again; a tool block has no `input`; errors have another shape.

Invariant: blocks follow one another and are numbered here; upstream's index and type only identify them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meshllm.wire.api.errors import translate_event
from meshllm.wire.api.event_stream import EventRepair, whole_number
from meshllm.wire.api.routes import Api
from meshllm.wire.api.sse import MAX_EVENT, PING, SseEvent, encode_event

_BLOCK_OF = {
    "text_delta": "text",
    "citations_delta": "text",
    "thinking_delta": "thinking",
    "signature_delta": "thinking",
    "input_json_delta": "tool_use",
}
_EMPTY: dict[str, dict[str, Any]] = {
    "text": {"text": ""},
    "thinking": {"thinking": "", "signature": ""},
    "tool_use": {"input": {}},
}
_FAST = {
    "text": b'"delta":{"type":"text_delta","text":"',
    "thinking": b'"delta":{"type":"thinking_delta","thinking":"',
    "tool_use": b'"delta":{"type":"input_json_delta","partial_json":"',
}
_INPUT_COUNTS = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


@dataclass(slots=True)
class _Block:
    """The open block: its number here, and upstream's index."""

    kind: str
    index: int
    source: int | None
    ident: str = ""
    signed: bool = False


class MessagesRepair(EventRepair):
    """Repairs one stream; the contract is `meshllm.wire.api.stream_repair.StreamRepair`."""

    def __init__(
        self,
        *,
        model: str,
        ident: str,
        input_tokens: int | None = None,
        shared: bool = False,
        request_id: str | None = None,
        limit: int = MAX_EVENT,
    ) -> None:
        super().__init__(model, shared=shared, request_id=request_id, limit=limit)
        self._ident = ident
        self._counts: dict[str, Any] = {} if input_tokens is None else {"input_tokens": input_tokens}
        self._open: _Block | None = None
        self._next = 0
        self._tools: dict[str, int | None] = {}
        self._run: re.Pattern[bytes] | None = None  # deltas of the open block, which pass unchanged
        self._stop_sent = False

    def _fast_path(self, block: bytes, start: int) -> tuple[bytes, int] | None:
        match = self._run.match(block, start) if self._run is not None else None
        return (match[0], match.end()) if match else None

    def _event(self, kind: str, value: dict[str, Any], event: SseEvent) -> bytes:
        if kind == "ping":
            return PING
        if kind == "message_start":
            return b"" if self.started else self._begin(value.get("message"), value, event)
        if not kind:
            raise ValueError("an event without a type")
        begin = b"" if self.started else self._begin(None)
        if kind == "content_block_start":
            return begin + self._block_start(value, event)
        if kind == "content_block_delta":
            return begin + self._block_delta(value, event)
        if kind == "content_block_stop":
            meant = self._open is not None and whole_number(value.get("index")) == self._open.source
            return begin + (self._close_block() if meant else b"")
        if kind == "message_delta":
            return begin + self._message_delta(value, event)
        if kind == "message_stop":
            return begin + self._end()
        return begin + encode_event({"type": kind, **value}, kind)

    # -- the message

    def _begin(self, message: object, value: Mapping[str, Any] | None = None, event: SseEvent | None = None) -> bytes:
        self.started = True
        given = message if isinstance(message, dict) else {}
        full = {
            "id": f"msg_{self._ident}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "stop_reason": None,
            "stop_sequence": None,
            **{key: item for key, item in given.items() if item is not None},
            "content": [],
        }
        full["id"] = _message_id(full["id"], self._ident)
        usage = full.get("usage")
        usage = dict(usage) if isinstance(usage, dict) else {}
        for key in _INPUT_COUNTS:
            if whole_number(usage.get(key)) is None:
                usage[key] = self._counts.get(key, 0)
            else:
                self._counts[key] = usage[key]
        usage.setdefault("output_tokens", 0)
        full["usage"] = usage
        return _send({**(value or {}), "type": "message_start", "message": full}, value, event)

    def _message_delta(self, value: Mapping[str, Any], event: SseEvent) -> bytes:
        closing = self._close_block()
        self._stop_sent = True
        delta = value.get("delta")
        delta = dict(delta) if isinstance(delta, dict) else {}
        if not isinstance(delta.get("stop_reason"), str):
            delta["stop_reason"] = "tool_use" if self._tools else "end_turn"
        delta.setdefault("stop_sequence", None)
        usage = value.get("usage")
        usage = dict(usage) if isinstance(usage, dict) else {}
        if whole_number(usage.get("output_tokens")) is None:
            usage["output_tokens"] = 0
        for key, count in self._counts.items():
            usage.setdefault(key, count)
        full = {**value, "type": "message_delta", "delta": delta, "usage": usage}
        return closing + _send(full, value, event)

    def _end(self) -> bytes:
        delta = b"" if self._stop_sent else self._message_delta({}, SseEvent("", None, None, b""))
        closing = self._close_block()
        self.complete = True
        return delta + closing + encode_event({"type": "message_stop"}, "message_stop")

    def _fail(self, found: Mapping[str, Any], status: int) -> bytes:
        self.complete = self.failed = True
        return translate_event(Api.MESSAGES, found, status=status, request_id=self._request_id)

    # -- its blocks

    def _block_start(self, value: Mapping[str, Any], event: SseEvent) -> bytes:
        given = value.get("content_block")
        kind = given.get("type") if isinstance(given, dict) else None
        if not isinstance(given, dict) or not isinstance(kind, str):
            raise ValueError("a block without a type")
        if self._stop_sent:
            return b""
        source = whole_number(value.get("index"))
        ident = given.get("id") if isinstance(given.get("id"), str) else ""
        current = self._open
        if current is not None and current.kind == kind and current.source == source and ident in ("", current.ident):
            return b""  # started a second time
        if kind == "tool_use" and ident and ident in self._tools:
            return b""  # the same after another block: what follows must be empty, see _tool_delta
        return self._open_block(kind, source, given, value, event)

    def _open_block(
        self,
        kind: str,
        source: int | None,
        given: Mapping[str, Any],
        value: Mapping[str, Any] | None = None,
        event: SseEvent | None = None,
    ) -> bytes:
        closing = self._close_block()
        full = {"type": kind, **_EMPTY.get(kind, {}), **{key: item for key, item in given.items() if item is not None}}
        block = _Block(kind, self._next, source)
        self._next += 1
        if kind == "tool_use":
            if not full.get("id"):
                full["id"] = f"toolu_{self._ident}_{block.index}"
            full.setdefault("name", "")
            if not isinstance(full["input"], dict):
                full["input"] = {}
            block.ident = str(full["id"])
            self._tools[block.ident] = source
        self._open = block
        if block.index == source and kind in _FAST:
            head = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,' % source
            self._run = re.compile(rb'(?:%b[^\r\n]*"\}\}\n\n)+' % re.escape(head + _FAST[kind]))
        start = {**(value or {}), "type": "content_block_start", "index": block.index, "content_block": full}
        return closing + _send(start, value, event)

    def _close_block(self) -> bytes:
        block, self._open, self._run = self._open, None, None
        if block is None:
            return b""
        out = b""
        if block.kind == "thinking" and not block.signed:
            signature = {"type": "signature_delta", "signature": ""}
            signed = {"type": "content_block_delta", "index": block.index, "delta": signature}
            out = encode_event(signed, "content_block_delta")
        return out + encode_event({"type": "content_block_stop", "index": block.index}, "content_block_stop")

    def _block_delta(self, value: Mapping[str, Any], event: SseEvent) -> bytes:
        delta = value.get("delta")
        word = delta.get("type") if isinstance(delta, dict) else None
        if not isinstance(delta, dict) or not isinstance(word, str):
            raise ValueError("a delta without a type")
        if self._stop_sent:
            return b""
        source = whole_number(value.get("index"))
        kind = _BLOCK_OF.get(word)
        opening = b""
        if kind == "tool_use":
            if not self._tool_delta(delta, source):
                return b""
        elif self._open is None or (kind is not None and self._open.kind != kind):
            if kind is None or word == "signature_delta":
                return b""  # about a closed block
            opening = self._open_block(kind, source, {})
        assert self._open is not None
        if word == "signature_delta":
            self._open.signed = True
        return opening + _send({**value, "type": "content_block_delta", "index": self._open.index}, value, event)

    def _tool_delta(self, delta: Mapping[str, Any], source: int | None) -> bool:
        """Whether a piece of tool input belongs to the open block; ValueError if it belongs to a closed one."""
        current = self._open
        if (
            current is not None
            and current.kind not in ("text", "thinking")
            # The engine numbers text before tools, so the index of an open tool block can change.
            and (source == current.source or source not in self._tools.values())
        ):
            return True
        if delta.get("partial_json"):
            raise ValueError("input for a tool that is not open")
        return False


def _send(full: Mapping[str, Any], value: Mapping[str, Any] | None, event: SseEvent | None) -> bytes:
    """The event, unchanged where nothing had to be repaired."""
    kind = str(full["type"])
    if event is not None and full == value and event.name == kind:
        return event.raw
    return encode_event(full, kind)


def _message_id(given: object, ident: str) -> object:
    """The id of a message; the engine gives that of a chat completion."""
    return f"msg_{ident}" if given is None or str(given).startswith("chatcmpl-") else given


def repair_message(body: Mapping[str, Any], *, model: str, ident: str) -> dict[str, Any]:
    """A whole `/v1/messages` reply with all fields that Anthropic's types require; existing fields stay."""
    full: dict[str, Any] = {
        "id": f"msg_{ident}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {},
        **body,
    }
    full["id"] = _message_id(full["id"], ident)
    usage = full["usage"] if isinstance(full["usage"], dict) else {}
    full["usage"] = {**dict.fromkeys(_INPUT_COUNTS, 0), "output_tokens": 0, **usage}
    if isinstance(full["content"], list):
        full["content"] = [
            {**_EMPTY.get(block.get("type", ""), {}), **block} if isinstance(block, dict) else block
            for block in full["content"]
        ]
    return full
