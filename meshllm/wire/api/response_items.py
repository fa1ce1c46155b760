"""Events about one output item of a `/v1/responses` stream: its parts, their text, its arguments.

Invariants: a part is added before its text, its text is done before the part, the part before the item. Text that was
never streamed is streamed before it is done, so that deltas and whole text agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from meshllm.wire.api.event_stream import whole_number
from meshllm.wire.api.response_object import filled, filled_item, filled_part
from meshllm.wire.api.sse import SseEvent, encode_event

_MAX_PARTS = 1024
_PART_OF = {"message": "output_text", "reasoning": "reasoning_text"}


@dataclass(slots=True)
class ContentPart:
    """One content part: what was streamed of it, and whether it is done."""

    kind: str
    text: list[str] = field(default_factory=list)
    told_text: bool = False
    done: bool = False

    @property
    def key(self) -> str:
        """The field with its text."""
        return "refusal" if self.kind == "refusal" else "text"


@dataclass(slots=True)
class OutputItem:
    """One output item, open until `final` is set."""

    index: int
    ident: str
    added: dict[str, Any]
    parts: dict[int, ContentPart] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    told_arguments: bool = False
    final: dict[str, Any] | None = None

    @property
    def kind(self) -> str:
        """The type of the item."""
        return str(self.added.get("type"))

    @property
    def place(self) -> dict[str, Any]:
        """The fields that every event about the item carries."""
        return {"item_id": self.ident, "output_index": self.index}


class EventEmitter:
    """Writes the numbered events of one stream; remembers at most `limit` characters of text."""

    def __init__(self, limit: int) -> None:
        self._room = limit
        self._next = 0
        self._given: Mapping[str, Any] = {}
        self.written: list[bytes] = []  # for the current event

    def now(self, given: Mapping[str, Any]) -> None:
        """`given`: upstream's current event."""
        self._given = given
        self.written.clear()

    def number(self) -> int:
        """The next sequence number."""
        self._next += 1
        return self._next - 1

    def say(self, raw: bytes) -> bytes:
        """Add an encoded event."""
        self.written.append(raw)
        return raw

    def emit(self, value: Mapping[str, Any], event: SseEvent | None = None) -> bytes:
        """Add an event; unchanged if it is `event` and nothing had to be repaired."""
        kind = str(value["type"])
        given = whole_number(value.get("sequence_number")) or 0
        self._next = max(self._next, given)
        full = {"type": kind, **value, "sequence_number": self.number()}
        if event is not None and event.name == kind and full == self._given:
            return self.say(event.raw)
        return self.say(encode_event(full, kind))

    def has_room(self, text: str) -> bool:
        """Whether `remember` has room."""
        return len(text) <= self._room

    def remember(self, pieces: list[str], text: str) -> None:
        """Append `text` to `pieces`; ValueError beyond the limit."""
        self._room -= len(text)
        if self._room < 0:
            raise ValueError("text above the size limit")
        pieces.append(text)


class ItemContents:
    """Passes on and completes upstream's events about items. ValueError for invalid ones."""

    def __init__(self, emitter: EventEmitter) -> None:
        self._out = emitter

    def about(self, item: OutputItem, word: str, verb: str, value: Mapping[str, Any], event: SseEvent) -> bytes:
        """An event `response.WORD.VERB` about an open item."""
        if item.final is not None:
            raise ValueError("event about an item that is done")
        about = {**value, **item.place}
        if word == "function_call_arguments":
            return self._arguments(item, verb, about, event)
        if word.startswith("reasoning_summary"):
            return self._out.emit({"summary_index": 0, **about}, event)
        number = whole_number(about.get("content_index")) or 0
        if number >= _MAX_PARTS:
            raise ValueError("too many parts")
        about["content_index"] = number
        if word == "content_part":
            given = filled_part(about.get("part") or {"type": _PART_OF.get(item.kind, "output_text")})
            if verb == "done":
                return self._finish_part(item, number, given, about, event)
            return self._part(item, number, str(given["type"]), {**about, "part": given}, event)[1]
        part, adding = self._part(item, number, word)
        if part.done or part.told_text or part.kind != word:
            raise ValueError("event about a part that is done, or of another kind")
        if verb == "done":
            return adding + self._finish_text(item, number, part, about, event)
        delta = about.get("delta")
        if not isinstance(delta, str):
            raise ValueError("a delta without text")
        self._out.remember(part.text, delta)
        if word == "output_text" and about.get("logprobs") is None:
            about["logprobs"] = []
        return adding + self._out.emit(about, event)

    def finish(
        self,
        item: OutputItem,
        given: Mapping[str, Any],
        value: Mapping[str, Any] | None = None,
        event: SseEvent | None = None,
    ) -> bytes:
        """Everything that an item lacks, then its end; `given` is upstream's last event about it."""
        out: list[bytes] = []
        base = {**item.added, "status": "completed"}
        if item.kind in _PART_OF:
            content = given.get("content")
            for number, part in enumerate(content[:_MAX_PARTS] if isinstance(content, list) else ()):
                if isinstance(part, dict):
                    out.append(self._finish_part(item, number, part))
            for number in list(item.parts):
                out.append(self._finish_part(item, number, {}))
            base["content"] = [
                filled_part({"type": part.kind, part.key: "".join(part.text)}) for _, part in sorted(item.parts.items())
            ]
        elif item.kind == "function_call":
            arguments = given.get("arguments")
            out.append(self._finish_arguments(item, arguments if isinstance(arguments, str) else None))
            base["arguments"] = "".join(item.arguments)
        full = filled_item(filled(base, {**given, "id": item.ident}), ident=item.ident, status="completed")
        item.final = full
        about = {**(value or {}), "type": "response.output_item.done", "output_index": item.index, "item": full}
        out.append(self._out.emit(about, event))
        return b"".join(out)

    # -- parts

    def _part(
        self,
        item: OutputItem,
        number: int,
        kind: str,
        about: Mapping[str, Any] | None = None,
        event: SseEvent | None = None,
    ) -> tuple[ContentPart, bytes]:
        part = item.parts.get(number)
        if part is not None:
            return part, b""
        part = item.parts[number] = ContentPart(kind)
        place = {**item.place, "content_index": number, "part": filled_part({"type": kind})}
        return part, self._out.emit({**place, **(about or {}), "type": "response.content_part.added"}, event)

    def _finish_part(
        self,
        item: OutputItem,
        number: int,
        given: Mapping[str, Any],
        about: Mapping[str, Any] | None = None,
        event: SseEvent | None = None,
    ) -> bytes:
        kind = given.get("type") or _PART_OF.get(item.kind, "output_text")
        part, out = self._part(item, number, str(kind))
        if part.done:
            return b""
        if not part.told_text:
            out += self._finish_text(item, number, part, given)
        part.done = True
        full = filled_part(filled({part.key: "".join(part.text)}, {**given, "type": part.kind}))
        place = {**item.place, "content_index": number, **(about or {})}
        return out + self._out.emit({**place, "type": "response.content_part.done", "part": full}, event)

    def _finish_text(
        self,
        item: OutputItem,
        number: int,
        part: ContentPart,
        given: Mapping[str, Any],
        event: SseEvent | None = None,
    ) -> bytes:
        """The end of a part's text, after the part that was never streamed."""
        place: dict[str, Any] = {**item.place, "content_index": number}
        if part.kind == "output_text":
            place["logprobs"] = []
        streamed = "".join(part.text)
        text = given.get(part.key)
        text = text if isinstance(text, str) else streamed
        out = b""
        if text.startswith(streamed) and len(text) > len(streamed):
            delta = text[len(streamed) :]
            self._out.remember(part.text, delta)
            out = self._out.emit({"type": f"response.{part.kind}.delta", **place, "delta": delta})
        part.told_text = True
        whole = {"type": f"response.{part.kind}.done", **place, part.key: text}
        return out + self._out.emit(filled(whole, given) if event is not None else whole, event)

    # -- arguments of a function call

    def _arguments(self, item: OutputItem, verb: str, about: Mapping[str, Any], event: SseEvent) -> bytes:
        if item.told_arguments:
            raise ValueError("arguments after their end")
        if verb == "done":
            arguments = about.get("arguments")
            return self._finish_arguments(item, arguments if isinstance(arguments, str) else None, about, event)
        delta = about.get("delta")
        if not isinstance(delta, str):
            raise ValueError("a delta without text")
        self._out.remember(item.arguments, delta)
        return self._out.emit(about, event)

    def _finish_arguments(
        self,
        item: OutputItem,
        arguments: str | None,
        about: Mapping[str, Any] | None = None,
        event: SseEvent | None = None,
    ) -> bytes:
        if item.told_arguments:
            return b""
        item.told_arguments = True
        streamed = "".join(item.arguments)
        if arguments is None:
            arguments = streamed
        out = b""
        if arguments.startswith(streamed) and len(arguments) > len(streamed):
            delta = arguments[len(streamed) :]
            self._out.remember(item.arguments, delta)
            out = self._out.emit({"type": "response.function_call_arguments.delta", **item.place, "delta": delta})
        whole = {**item.place, "name": item.added.get("name"), **(about or {}), "arguments": arguments}
        return out + self._out.emit({**whole, "type": "response.function_call_arguments.done"}, event)
