"""Translates answers of `/v1/responses`: enveloped calls (see `call_envelope`) back into function calls, and the names
and kinds of tools back into those of the caller."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from meshllm.wire.api import strict_json
from meshllm.wire.api.call_envelope import EnvelopeReader, Piece
from meshllm.wire.api.offered_tools import Origin

Event = dict[str, Any]


class ResponsesCalls:
    """Makes a function call of the one message of an answer; `ident` is used for ids."""

    def __init__(self, ident: str) -> None:
        self._ident = ident
        self._reader = EnvelopeReader()
        self._held: list[Event] = []  # the beginning of the message, until its text shows what it is
        self._message: object = None  # the message's id
        self._name = self._arguments = self._answer = ""

    def event(self, event: Event) -> Iterable[Event]:
        """The events in place of one of the engine's."""
        kind, item = event.get("type"), event.get("item")
        if kind == "response.output_item.added" and isinstance(item, dict) and item.get("type") == "message":
            self._message = item.get("id")
            self._held.append(event)
            return
        if kind in ("response.completed", "response.incomplete") and isinstance(event.get("response"), dict):
            yield {**event, "response": self._final(event["response"])}
        elif self._message is None or self._about(event) != self._message:
            yield event
        elif kind == "response.content_part.added":
            self._held.append(event)
        elif kind == "response.output_text.delta":
            text = event.get("delta")
            yield from self._pieces(event, self._reader.feed(text if isinstance(text, str) else ""))
        elif kind == "response.output_text.done":
            if not self._reader.called and (rest := self._reader.rest()):
                yield from self._pieces(event, [(Piece.ANSWER, rest)])
            yield from self._done(event)
        elif kind == "response.content_part.done":
            if not self._reader.called:
                part = event.get("part")
                yield {**event, "part": {**part, "text": self._answer} if isinstance(part, dict) else part}
        elif kind == "response.output_item.done" and isinstance(item, dict):
            yield {**event, "item": self._item(item)}
        else:
            yield event

    def whole(self, body: Event) -> Event:
        """A whole answer."""
        for item in body.get("output") or ():
            for part in _parts(item):
                for piece, text in self._reader.feed(part["text"]):
                    self._take(piece, text)
                if not self._reader.called:
                    self._answer += self._reader.rest()
        return self._final(body)

    def _about(self, event: Event) -> object:
        item = event.get("item")
        return item.get("id") if isinstance(item, dict) else event.get("item_id")

    def _take(self, piece: Piece, text: str) -> None:
        if piece is Piece.NAME:
            self._name = text
        elif piece is Piece.ARGUMENTS:
            self._arguments += text
        else:
            self._answer += text

    def _pieces(self, event: Event, pieces: Iterable[tuple[Piece, str]]) -> Iterable[Event]:
        for piece, text in pieces:
            self._take(piece, text)
            if piece is Piece.NAME:
                self._held.clear()
                yield {"type": "response.output_item.added", "item": self._call("in_progress")}
            elif piece is Piece.ARGUMENTS:
                ident = self._call("in_progress")["id"]
                yield {"type": "response.function_call_arguments.delta", "item_id": ident, "delta": text}
            else:
                yield from self._held
                self._held.clear()
                yield {**event, "type": "response.output_text.delta", "delta": text}

    def _done(self, event: Event) -> Iterable[Event]:
        if self._reader.called:
            call = self._call("completed")
            done = {"type": "response.function_call_arguments.done", "item_id": call["id"]}
            yield {**done, "name": call["name"], "arguments": call["arguments"]}
        else:
            yield from self._held
            self._held.clear()
            yield {**event, "text": self._answer}

    def _call(self, status: str) -> Event:
        return {
            "type": "function_call",
            "id": f"fc_{self._ident}",
            "call_id": f"call_{self._ident}",
            "name": self._name,
            "arguments": "" if status == "in_progress" else self._arguments,
            "status": status,
        }

    def _item(self, item: Event) -> Event:
        """An item of the finished answer."""
        if item.get("type") != "message":
            return item
        if self._reader.called:
            return self._call("completed")
        content = item.get("content")
        if not isinstance(content, list):
            return item
        return {**item, "content": [{**part, "text": self._answer} if _is_text(part) else part for part in content]}

    def _final(self, response: Event) -> Event:
        output = response.get("output")
        if not isinstance(output, list):
            return response
        return {**response, "output": [self._item(item) if isinstance(item, dict) else item for item in output]}


def _is_text(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "output_text" and isinstance(part.get("text"), str)


def _parts(item: object) -> list[Event]:
    content = item.get("content") if isinstance(item, dict) and item.get("type") == "message" else None
    return [part for part in content if _is_text(part)] if isinstance(content, list) else []


class CallerNames:
    """Gives calls the names, namespaces and kinds that the caller's tools have."""

    def __init__(self, origins: Mapping[str, Origin]) -> None:
        self._origins = origins
        self._custom: set[object] = set()  # ids of items that are calls of custom tools

    def event(self, event: Event) -> Iterable[Event]:
        """The events in place of one that is about a call."""
        kind, item, response = event.get("type"), event.get("item"), event.get("response")
        if isinstance(item, dict):
            changed = self._item(item)
            if changed.get("type") == "custom_tool_call":
                self._custom.add(item.get("id"))
            yield {**event, "item": changed}
        elif isinstance(response, dict) and isinstance(response.get("output"), list):
            yield {**event, "response": self.whole(response)}
        elif event.get("item_id") in self._custom and isinstance(kind, str):
            # The input is one string of JSON: it is known when it is complete.
            if kind == "response.function_call_arguments.done":
                about, text = {"item_id": event["item_id"]}, _input(event.get("arguments"))
                yield {"type": "response.custom_tool_call_input.delta", **about, "delta": text}
                yield {"type": "response.custom_tool_call_input.done", **about, "input": text}
        elif kind == "response.function_call_arguments.done" and event.get("name") in self._origins:
            yield {**event, "name": self._origins[event["name"]].name}
        else:
            yield event

    def whole(self, body: Event) -> Event:
        """A whole answer."""
        output = body.get("output")
        if not isinstance(output, list):
            return body
        return {**body, "output": [self._item(item) if isinstance(item, dict) else item for item in output]}

    def _item(self, item: Event) -> Event:
        origin = self._origins.get(str(item.get("name"))) if item.get("type") == "function_call" else None
        if origin is None:
            return item
        if origin.custom:
            kept = {key: value for key, value in item.items() if key != "arguments"}
            return {**kept, "type": "custom_tool_call", "name": origin.name, "input": _input(item.get("arguments"))}
        return {**item, "name": origin.name, "namespace": origin.namespace}


def _input(arguments: object) -> str:
    """The input of a custom tool, in the arguments of the function that it is offered as."""
    if not isinstance(arguments, str) or not arguments:
        return ""
    found = strict_json.loads_object(arguments)
    text = found.get("input") if found is not None else None
    return text if isinstance(text, str) else arguments
