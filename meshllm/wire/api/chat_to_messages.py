"""Translates answers of `/v1/chat/completions` into those of `/v1/messages`, and cuts off what was not asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from meshllm.wire.api import strict_json

Event = dict[str, Any]

_STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class ChatToMessages:
    """The translator of one answer; `ident` is used for ids. `MessagesRepair` adds what events lack."""

    def __init__(self, ident: str) -> None:
        self._ident = ident
        self._kind = ""  # of the open block
        self._index = -1
        self._begun = False
        self._stop: Event = {}
        self._word: object = None  # the stop sequence

    def event(self, event: Event) -> Iterable[Event]:
        """The events in place of a chunk."""
        if not self._begun:
            self._begun = True
            message = {"id": f"msg_{self._ident}", "type": "message", "role": "assistant", "content": []}
            yield {"type": "message_start", "message": {**message, "model": event.get("model")}}
        self._word = self._word or _stop_word(event)
        for choice in event.get("choices") or ():
            delta = choice.get("delta") if isinstance(choice, dict) else None
            if isinstance(delta, dict):
                yield from self._delta(delta)
            if isinstance(choice, dict) and choice.get("finish_reason"):
                self._stop = _stop(choice["finish_reason"], self._word)
        usage = event.get("usage")
        if self._stop and isinstance(usage, dict):
            yield {"type": "message_delta", "delta": self._stop, "usage": _usage(usage)}
            yield {"type": "message_stop"}

    def _delta(self, delta: Event) -> Iterable[Event]:
        for field, kind in (("reasoning_content", "thinking"), ("content", "text")):
            text = delta.get(field)
            if isinstance(text, str) and text:
                if self._kind != kind:
                    yield self._open(kind, {"type": kind, kind: ""})
                yield self._about({"type": f"{kind}_delta", kind: text})
        for call in delta.get("tool_calls") or ():
            function = call.get("function") if isinstance(call, dict) else None
            if not isinstance(function, dict):
                continue
            if function.get("name"):
                block = {"type": "tool_use", "id": call.get("id"), "name": function["name"], "input": {}}
                yield self._open("tool_use", block)
            if function.get("arguments"):
                yield self._about({"type": "input_json_delta", "partial_json": function["arguments"]})

    def _open(self, kind: str, block: Event) -> Event:
        self._kind, self._index = kind, self._index + 1
        return {"type": "content_block_start", "index": self._index, "content_block": block}

    def _about(self, delta: Event) -> Event:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def whole(self, body: Event) -> Event:
        """A whole answer."""
        choices = body.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        message: Event = choice["message"] if isinstance(choice.get("message"), dict) else {}
        content: list[Event] = []
        if isinstance(message.get("reasoning_content"), str) and message["reasoning_content"]:
            content.append({"type": "thinking", "thinking": message["reasoning_content"], "signature": ""})
        if isinstance(message.get("content"), str) and message["content"]:
            content.append({"type": "text", "text": message["content"]})
        for call in message.get("tool_calls") or ():
            function = call.get("function") or {}
            given = strict_json.loads_object(function.get("arguments") or "{}")
            content.append(
                {"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": given or {}}
            )
        usage = body.get("usage")
        return {
            "id": f"msg_{self._ident}",
            "type": "message",
            "role": "assistant",
            "model": body.get("model"),
            "content": content,
            **_stop(choice.get("finish_reason"), _stop_word(body)),
            "usage": _usage(usage if isinstance(usage, dict) else {}),
        }


def _stop_word(event: Event) -> object:
    """The stop sequence that ended an answer: the engine names it only in its verbose part."""
    verbose = event.get("__verbose")
    return verbose.get("stopping_word") if isinstance(verbose, dict) else None


def _stop(reason: object, word: object) -> Event:
    if reason == "stop" and isinstance(word, str) and word:
        return {"stop_reason": "stop_sequence", "stop_sequence": word}
    return {"stop_reason": _STOPS.get(str(reason), "end_turn"), "stop_sequence": None}


def _usage(usage: Event) -> Event:
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    cached = cached if isinstance(cached, int) else 0
    prompt = usage.get("prompt_tokens")
    return {
        "input_tokens": max(0, prompt - cached) if isinstance(prompt, int) else 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.get("completion_tokens") or 0,
    }


class PrefillCut:
    """Cuts the caller's prefill off an answer of `/v1/messages`: the engine repeats it, and clients join both."""

    def __init__(self, prefill: str) -> None:
        self._left = prefill

    def event(self, event: Event) -> Iterable[Event]:
        """The event without the prefill; none if nothing is left of it."""
        delta = event.get("delta")
        if not self._left or not isinstance(delta, dict) or delta.get("type") != "text_delta":
            return (event,)
        text = self._cut(str(delta.get("text") or ""))
        return ({**event, "delta": {**delta, "text": text}},) if text else ()

    def whole(self, body: Event) -> Event:
        """The whole answer without the prefill."""
        content = body.get("content")
        if not isinstance(content, list):
            return body
        kept = [
            {**block, "text": self._cut(str(block.get("text") or ""))}
            if isinstance(block, dict) and block.get("type") == "text"
            else block
            for block in content
        ]
        return {**body, "content": kept}

    def _cut(self, text: str) -> str:
        if not self._left:
            return text
        if text.startswith(self._left):
            text, self._left = text[len(self._left) :], ""
        elif self._left.startswith(text):
            text, self._left = "", self._left[len(text) :]
        else:
            self._left = ""
        return text


class NoMessageTokens:
    """Takes away the one token that the engine writes although none was asked for (`max_tokens` 0)."""

    def __init__(self, _ident: str) -> None:
        """Nothing of it depends on the request."""

    def event(self, event: Event) -> Iterable[Event]:
        """An event of the stream."""
        if str(event.get("type")).startswith("content_block"):
            return ()
        return (self._cut(event, "delta") if event.get("type") == "message_delta" else event,)

    def whole(self, body: Event) -> Event:
        """A whole answer."""
        return self._cut({**body, "content": [], **_NOTHING_WRITTEN}, "")

    def _cut(self, event: Event, where: str) -> Event:
        usage = event.get("usage")
        if isinstance(usage, dict):
            event = {**event, "usage": {**usage, "output_tokens": 0}}
        return {**event, where: {**event[where], **_NOTHING_WRITTEN}} if where else event


_NOTHING_WRITTEN = {"stop_reason": "max_tokens", "stop_sequence": None}
