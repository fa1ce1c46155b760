"""Answers with several choices: one usage for all of them.

The engine reports the usage of each choice in a stream, and in a whole answer that of the first choice only. So it is
asked for a stream, whose usages are summed, and a whole answer is assembled from that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from meshllm.wire.api import strict_json
from meshllm.wire.api.errors import find_error, status_of, translate_error
from meshllm.wire.api.refusal import Refusal, RequestRefused
from meshllm.wire.api.routes import Api
from meshllm.wire.api.sse import parse_event, split_events

Event = dict[str, Any]

MAX_CHOICES = 4096


class SummedUsage:
    """Sums the usages of a stream's choices; the last event with one gets the sum, the others lose theirs."""

    def __init__(self, choices: int, each: int) -> None:
        """`choices`: of the whole answer; `each`: of one prompt, which is counted once."""
        self._left = choices
        self._each = each
        self._last = 0  # the choice that ended last: chat reports its usage in the event after it
        self._prompts: dict[int, tuple[int, int]] = {}
        self._completion = 0

    def event(self, event: Event) -> Iterable[Event]:
        """The event, with the usage of all choices, or without one."""
        for choice in event.get("choices") or ():
            if isinstance(choice, dict) and choice.get("finish_reason") and isinstance(choice.get("index"), int):
                self._last = choice["index"]
        usage = event.get("usage")
        if not isinstance(usage, dict):
            return (event,)
        self._left -= 1
        details = usage.get("prompt_tokens_details")
        cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else 0
        prompt = self._last // self._each
        prompt_tokens = _count(usage.get("prompt_tokens"))
        known = self._prompts.get(prompt)
        # The later choices of a prompt find all of it in the cache.
        self._prompts[prompt] = (prompt_tokens, cached if known is None else min(known[1], cached))
        self._completion += _count(usage.get("completion_tokens"))
        plain = {key: value for key, value in event.items() if key != "usage"}
        if self._left > 0:
            return (plain,) if event.get("choices") else ()
        return ({**plain, "usage": self._sum()},)

    def _sum(self) -> Event:
        prompt = sum(tokens for tokens, _ in self._prompts.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._completion,
            "total_tokens": prompt + self._completion,
            "prompt_tokens_details": {"cached_tokens": sum(cached for _, cached in self._prompts.values())},
        }

    def whole(self, body: Event) -> Event:
        """Whole answers are assembled from a stream."""
        return body


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < 1 << 53 else 0


def events_in(stream: bytes) -> Iterator[Event]:
    """The parsed events of a whole stream; RequestRefused with an error in it, ValueError if one is invalid."""
    for raw in split_events(stream.rstrip(b"\r\n") + b"\n\n"):
        data = parse_event(raw).data
        if data is None or data.strip() in (b"[DONE]", b"null"):
            continue
        value = strict_json.loads(data)
        if not isinstance(value, dict):
            raise ValueError("not a chunk")
        if "choices" not in value:
            found = find_error(value)
            if found is None:
                raise ValueError("not a chunk")
            status, body = translate_error(Api.CHAT, status_of(found), data)
            error = body["error"]
            raise RequestRefused(Refusal(error["param"], error["message"], error["code"] or "upstream_error", status))
        yield value


def assembled(events: Iterable[Event]) -> Event:
    """The whole answer that the chunks of a stream make; ValueError if they are not chunks."""
    body: Event = {}
    choices: dict[int, Event] = {}
    for event in events:
        for key, value in event.items():
            if key not in ("choices", "object", "prompt_progress") and value is not None:
                body[key] = value
        body["object"] = str(event.get("object") or "").removesuffix(".chunk")
        for part in event["choices"]:
            index = part.get("index") if isinstance(part, dict) else None
            if not isinstance(index, int) or not 0 <= index < MAX_CHOICES:
                raise ValueError("a choice without an index")
            _add(choices.setdefault(index, {"index": index, "finish_reason": None}), part)
    return {**body, "choices": [choices[index] for index in sorted(choices)]}


def _add(choice: Event, part: Event) -> None:
    """Add the part of a choice in a chunk to what is known of it."""
    delta = part.get("delta")
    if isinstance(delta, dict):
        message = choice.setdefault("message", {"role": "assistant", "content": None})
        for key in ("content", "reasoning_content", "refusal"):
            if isinstance(delta.get(key), str):
                message[key] = (message.get(key) or "") + delta[key]
        for call in delta.get("tool_calls") or ():
            _add_call(message.setdefault("tool_calls", []), call)
    elif isinstance(part.get("text"), str):
        choice["text"] = choice.get("text", "") + part["text"]
    found = part.get("logprobs")
    if isinstance(found, dict):
        known = choice["logprobs"] = choice.get("logprobs") or {}  # null before the first token
        for key, value in found.items():
            known[key] = known[key] + value if isinstance(value, list) and isinstance(known.get(key), list) else value
    elif "text" in choice:
        choice.setdefault("logprobs", None)
    if part.get("finish_reason"):
        choice["finish_reason"] = part["finish_reason"]


def _add_call(calls: list[Event], part: Event) -> None:
    index = part.get("index")
    if not isinstance(index, int) or not 0 <= index <= len(calls):
        raise ValueError("a call without an index")
    function = part.get("function") or {}
    if index == len(calls):
        calls.append({"id": part.get("id"), "type": "function", "function": {"name": "", "arguments": ""}})
    known = calls[index]["function"]
    for key in ("name", "arguments"):
        known[key] += str(function.get(key) or "")
