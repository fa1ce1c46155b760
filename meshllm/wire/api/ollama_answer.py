"""Translates answers of OpenAI's API into those of Ollama's: events into lines of JSON, whole answers into objects.

The input has passed a `StreamRepair`: whole events, and an end. A line without text stands for a comment, by which a
caller learns that the request is alive: clients parse every line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from meshllm.wire.api import strict_json
from meshllm.wire.api.ollama_errors import error_in, error_line, text_line
from meshllm.wire.api.ollama_request import AnswerForm
from meshllm.wire.api.response_translation import WRONG_SHAPE
from meshllm.wire.api.sse import MAX_EVENT, parse_event, split_events

MEDIA_TYPE = "application/x-ndjson"
# Calls are passed on when they are complete; their text is bounded as an event is.
MAX_CALLS = 1024
_NANOSECONDS = 1_000_000_000
_LOADED = (AnswerForm.CHAT_LOADED, AnswerForm.GENERATE_LOADED)
_CHATS = (AnswerForm.CHAT, AnswerForm.CHAT_LOADED)
_VECTORS = (
    AnswerForm.EMBED,
    AnswerForm.EMBEDDING,
    AnswerForm.EMBED_NOTHING,
    AnswerForm.EMBEDDING_NOTHING,
)
# Inside a JSON string the quotes would be escaped.
_VECTOR = re.compile(rb'"embedding":\s*(\[[-+0-9.eE,\s]+\])')
_INDEX = re.compile(rb'"index":\s*(\d{1,9})\b')
_USAGE = re.compile(rb'"usage":\s*(\{[^{}]{0,1000}\})')
_INVALID = "The model server sent an answer that this API does not have."
_EMPTY = "The model server closed the stream without an answer."


@dataclass(frozen=True, slots=True)
class Moment:
    """When something is written: `stamp` as RFC 3339 writes a time, `elapsed` in seconds since the request came."""

    stamp: str
    elapsed: float


@dataclass(frozen=True, slots=True)
class _ToldCall:
    """A call of a tool that is being told, in UTF-8: pieces of some characters each would take much more."""

    ident: object
    name: bytearray = field(default_factory=bytearray)
    arguments: bytearray = field(default_factory=bytearray)


class BrokenCall(ValueError):
    """A call of a tool whose arguments are not a JSON object, which this API cannot state."""


class OllamaAnswer:
    """The translator of one answer. `feed` and `finish` for a stream, or `whole`, once.

    `ended`: the last line has been made; what comes later is dropped.
    """

    def __init__(self, form: AnswerForm, model: str) -> None:
        """`model`: as the caller named it."""
        self._form = form
        self._model = model
        self.ended = False
        self._begun = False
        self._first: float | None = None  # seconds until the first token
        self._calls: list[_ToldCall] = []
        self._room = MAX_EVENT
        self._reason = ""
        self._usage: Mapping[str, Any] = {}
        self._timings: Mapping[str, Any] = {}

    # -- a stream

    def feed(self, events: bytes, at: Moment) -> bytes:
        """The lines for a block of whole events; empty if they say nothing yet."""
        lines: list[bytes] = []
        alive = False
        for raw in split_events(events):
            if self.ended:
                break
            event = parse_event(raw)
            alive = alive or event.data is None
            if event.data is None:
                continue
            if event.data.strip() == b"[DONE]":
                lines += self._last(at)
                continue
            value = strict_json.loads_object(event.data)
            try:
                if value is None:
                    raise ValueError("not an object")
                lines += self._event(value, at)
            except WRONG_SHAPE:
                lines.append(self._failed(text_line(_INVALID)))
        if not lines and alive and not self.ended:
            return self.alive(at)
        return b"".join(lines)

    def alive(self, at: Moment) -> bytes:
        """A line that says nothing, for a caller that has heard nothing for a while; empty after the end."""
        return b"" if self.ended else self._line(self._part(""), at)

    def finish(self, at: Moment) -> bytes:
        """What the stream lacks at its end."""
        if self.ended:
            return b""
        return b"".join(self._last(at)) if self._begun else self._failed(text_line(_EMPTY))

    def _event(self, value: dict[str, Any], at: Moment) -> Iterator[bytes]:
        if (found := error_in(value)) is not None:
            yield self._failed(error_line(found, self._model))
            return
        self._begun = True
        self._note(value)
        choices = value.get("choices") or ()
        for choice in choices[:1]:
            self._reason = choice.get("finish_reason") or self._reason
            delta = choice.get("delta") or {}
            for call in delta.get("tool_calls") or ():
                self._add_call(call)
            text = choice.get("text") if self._form is AnswerForm.RAW else delta.get("content")
            thinking = delta.get("reasoning_content")
            if self._form in _LOADED or not (text or thinking):
                continue
            if self._first is None:
                self._first = at.elapsed
            yield self._line({**self._part(_text(text), _text(thinking)), **_logprobs(choice)}, at)

    def _note(self, value: Mapping[str, Any]) -> None:
        """Token counts and durations, which are in one of the last events."""
        if isinstance(usage := value.get("usage"), dict):
            self._usage = usage
        if isinstance(timings := value.get("timings"), dict):
            self._timings = timings

    def _add_call(self, call: Mapping[str, Any]) -> None:
        """A part of a call of a tool: its name, or more of its arguments."""
        function = call.get("function") or {}
        index = call.get("index")
        if index is None or index == len(self._calls):
            if len(self._calls) >= MAX_CALLS:
                raise ValueError("too many calls")
            self._calls.append(_ToldCall(call.get("id")))
        known = self._calls[-1 if index is None else index]
        for text, part in ((known.name, function.get("name")), (known.arguments, function.get("arguments"))):
            new = (part or "").encode()
            self._room -= len(new)
            text.extend(new)
        if self._room < 0:
            raise ValueError("calls above the size limit")

    def _last(self, at: Moment) -> Iterator[bytes]:
        """The calls of tools, and the line that ends the answer."""
        try:
            calls = _calls(self._calls, cut=self._reason == "length")
        except BrokenCall as broken:
            yield self._failed(text_line(str(broken)))
            return
        if calls:
            yield self._line(self._part("", calls=calls), at)
        yield self._line({**self._part(""), **self._end(at)}, at)
        self.ended = True

    def _failed(self, line: bytes) -> bytes:
        self.ended = True
        return line + b"\n"

    def _line(self, part: Mapping[str, Any], at: Moment) -> bytes:
        return strict_json.dumps({**self._head(at), "done": False, **part}) + b"\n"

    # -- a whole answer

    def whole(self, body: bytes, at: Moment) -> tuple[int, bytes]:
        """Status and body for a successful answer of OpenAI's API; an error if it is none."""
        self.ended = True
        if self._form in _VECTORS:
            return self._embedded(body, at)
        value = strict_json.loads_object(body)
        try:
            if value is None:
                raise ValueError("not an object")
            self._note(value)
            return 200, strict_json.dumps(self._object(value, at))
        except BrokenCall as broken:
            return 500, text_line(str(broken))
        except WRONG_SHAPE:
            return 502, text_line(_INVALID)

    def _object(self, value: Mapping[str, Any], at: Moment) -> dict[str, Any]:
        form = self._form
        choice = value["choices"][0]
        self._reason = choice.get("finish_reason") or ""
        if form in _LOADED:
            return {**self._head(at), **self._part(""), **self._end(at)}
        if form is AnswerForm.RAW:
            return {**self._head(at), **self._part(_text(choice["text"])), **self._end(at)}
        message = choice["message"]
        for call in message.get("tool_calls") or ():
            self._add_call(call)
        calls = _calls(self._calls, cut=self._reason == "length")
        part = self._part(_text(message.get("content")), _text(message.get("reasoning_content")), calls)
        return {**self._head(at), **part, **_logprobs(choice), **self._end(at)}

    def _embedded(self, body: bytes, at: Moment) -> tuple[int, bytes]:
        """The same for vectors, whose numbers are copied as they are: a large batch has millions of them."""
        nothing = self._form in (AnswerForm.EMBED_NOTHING, AnswerForm.EMBEDDING_NOTHING)
        vectors = [] if nothing else _vectors(body)
        if not vectors and not nothing:
            return 502, text_line(_INVALID)
        if self._form in (AnswerForm.EMBEDDING, AnswerForm.EMBEDDING_NOTHING):
            return 200, b'{"embedding":%b}' % (vectors[0] if vectors else b"[]")
        usage = _USAGE.search(body)
        self._usage = (strict_json.loads_object(usage[1]) if usage is not None else None) or {}
        total = max(1, round(at.elapsed * _NANOSECONDS))
        more = {"total_duration": total, "load_duration": 0, **self._counts(prompt_eval_count="prompt_tokens")}
        head = strict_json.dumps({"model": self._model})[:-1]
        return 200, b'%b,"embeddings":[%b],%b' % (head, b",".join(vectors), strict_json.dumps(more)[1:])

    # -- parts of both

    def _head(self, at: Moment) -> dict[str, Any]:
        return {"model": self._model, "created_at": at.stamp}

    def _part(self, text: str, thinking: str = "", calls: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        more: dict[str, Any] = {"thinking": thinking} if thinking else {}
        if self._form not in _CHATS:
            return {"response": text, **more}
        if calls:
            more["tool_calls"] = calls
        return {"message": {"role": "assistant", "content": text, **more}}

    def _end(self, at: Moment) -> dict[str, Any]:
        if self._form in _LOADED:
            return {"done": True, "done_reason": "load"}
        reason = "length" if self._reason == "length" else "stop"
        counts = self._counts(prompt_eval_count="prompt_tokens", eval_count="completion_tokens")
        return {"done": True, "done_reason": reason, **self._durations(at), **counts}

    def _counts(self, **names: str) -> dict[str, int]:
        """Token counts by Ollama's names; those that the host does not report are left out."""
        found = {name: self._usage.get(key) for name, key in names.items()}
        return {name: count for name, count in found.items() if isinstance(count, int) and count >= 0}

    def _durations(self, at: Moment) -> dict[str, int]:
        """Nanoseconds. The host says how long it computed; the rest was spent on waiting and loading."""
        total = max(1, round(at.elapsed * _NANOSECONDS))
        prompt = _milliseconds(self._timings.get("prompt_ms"))
        written = _milliseconds(self._timings.get("predicted_ms"))
        if prompt is None or written is None:  # a server that does not say
            prompt = min(total, round((self._first or 0.0) * _NANOSECONDS))
            written = total - prompt
        return {
            "total_duration": total,
            "load_duration": max(0, total - prompt - written),
            "prompt_eval_duration": prompt,
            "eval_duration": max(1, written),
        }


def _calls(found: list[_ToldCall], *, cut: bool) -> list[dict[str, Any]]:
    """The calls with their arguments as objects. `cut`: the answer ended before the last one was complete."""
    calls = []
    for index, call in enumerate(found):
        name, arguments = call.name.decode(), strict_json.loads_object(bytes(call.arguments) or b"{}")
        if arguments is None:
            if cut and index == len(found) - 1:
                break
            raise BrokenCall(f"error parsing tool call: the arguments of {name[:200]!r} are not a JSON object")
        function = {"index": index, "name": name, "arguments": arguments}
        calls.append({**({"id": call.ident} if isinstance(call.ident, str) else {}), "function": function})
    return calls


def _vectors(body: bytes) -> list[bytes]:
    """The vectors of an answer of `/v1/embeddings` as they are written there, in the order of their texts."""
    vectors: list[bytes] = _VECTOR.findall(body)
    places = [int(place) for place in _INDEX.findall(body)]
    if len(places) != len(vectors):
        return vectors
    return [vector for _, vector in sorted(zip(places, vectors, strict=True), key=lambda pair: pair[0])]


def _logprobs(choice: Mapping[str, Any]) -> dict[str, Any]:
    found = choice.get("logprobs")
    tokens = found.get("content") if isinstance(found, dict) else None
    return {"logprobs": tokens} if isinstance(tokens, list) else {}


def _text(value: object) -> str:
    if not isinstance(value, str | None):
        raise TypeError("not a text")
    return value or ""


def _milliseconds(value: object) -> int | None:
    """Nanoseconds of a number of milliseconds; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        return None
    return round(value * 1_000_000)
