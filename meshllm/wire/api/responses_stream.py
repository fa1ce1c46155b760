"""Repairs streams of `/v1/responses`: every event and field that OpenAI's types require.

Faults of the engine: no sequence numbers, output or content indices; response objects of three fields;
`response.created` missing, or before every token if the first one was half a character; no
`function_call_arguments.done`; reasoning without parts; text and tools that first appear when they are done;
`completed` for a truncated answer; errors in another API's shape.

Invariants: an item is added before any event about it and done before the response is; its id and index never change.
Valid events pass unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshllm.wire.api import strict_json
from meshllm.wire.api.errors import CONTEXT_CODE, translate_event, translated
from meshllm.wire.api.event_stream import EventRepair, whole_number
from meshllm.wire.api.response_deltas import TextDeltas
from meshllm.wire.api.response_items import EventEmitter, ItemContents, OutputItem
from meshllm.wire.api.response_object import filled, filled_item, filled_usage, new_response, truncated
from meshllm.wire.api.routes import Api
from meshllm.wire.api.sse import MAX_EVENT, SseEvent

_MAX_ITEMS = 1024
_TERMINAL = ("response.completed", "response.failed", "response.incomplete")
_KIND_OF = {
    "content_part": "message",
    "output_text": "message",
    "refusal": "message",
    "reasoning_text": "reasoning",
    "reasoning_summary_part": "reasoning",
    "reasoning_summary_text": "reasoning",
    "function_call_arguments": "function_call",
}


class ResponsesRepair(EventRepair):
    """Repairs one stream; the contract is `meshllm.wire.api.stream_repair.StreamRepair`."""

    def __init__(
        self,
        *,
        model: str,
        ident: str,
        created: int,
        request: Mapping[str, Any],
        shared: bool = False,
        request_id: str | None = None,
        limit: int = MAX_EVENT,
    ) -> None:
        super().__init__(model, shared=shared, request_id=request_id, limit=limit)
        self._ident = ident
        self._base = new_response(request, model=model, ident=ident, created=created)
        try:
            strict_json.dumps(self._base)
        except ValueError:  # the request is nested too deeply to be repeated
            self._base = new_response({}, model=model, ident=ident, created=created)
        self._out = EventEmitter(limit)
        self._contents = ItemContents(self._out)
        self._progress = False
        self._items: dict[str, OutputItem] = {}
        self._quick: TextDeltas | None = None

    def _event(self, kind: str, value: dict[str, Any], event: SseEvent) -> bytes:
        self._out.now(value)
        self._quick = None
        if not kind:
            raise ValueError("an event without a type")
        value = {**value, "type": kind}
        if kind == "response.created":
            return b"" if self.started else self._created(value, event)
        if kind == "response.in_progress":
            begin = b"" if self.started else self._created()
            if self._progress and "prompt_progress" not in value:
                return begin
            self._progress = True
            return begin + self._lifecycle(value, event)
        if kind == "response.queued":
            return (b"" if self.started else self._created()) + self._lifecycle(value, event)
        begin = self._begun()
        if kind in _TERMINAL:
            return begin + self._finished(value, event)
        if kind == "response.output_item.added":
            return begin + self._item_added(value, event)
        if kind == "response.output_item.done":
            return begin + self._item_done(value, event)
        word, _, verb = kind.removeprefix("response.").rpartition(".")
        if word not in _KIND_OF or verb not in ("added", "delta", "done"):
            return begin + self._out.emit(value, event)
        item, adding = self._item_of(value, word)
        out = begin + adding + self._contents.about(item, word, verb, value, event)
        if kind == "response.output_text.delta":
            self._quick = TextDeltas.after(item, event)
        return out

    def _fast_path(self, block: bytes, start: int) -> tuple[bytes, int] | None:
        return self._quick.take(block, start, self._out) if self._quick is not None else None

    def _written(self) -> bytes:
        return b"".join(self._out.written)

    # -- the response as a whole

    def _created(self, value: Mapping[str, Any] | None = None, event: SseEvent | None = None) -> bytes:
        self.started = True
        given = (value or {}).get("response")
        for key in ("id", "created_at", "model"):
            if isinstance(given, dict) and given.get(key) is not None:
                self._base[key] = given[key]
        return self._lifecycle({**(value or {}), "type": "response.created"}, event)

    def _begun(self) -> bytes:
        """The events that must precede all others."""
        out = b"" if self.started else self._created()
        if not self._progress:
            self._progress = True
            out += self._lifecycle({"type": "response.in_progress"})
        return out

    def _lifecycle(self, value: Mapping[str, Any], event: SseEvent | None = None) -> bytes:
        return self._out.emit({**value, "response": self._response(value.get("response"))}, event)

    def _response(self, given: object) -> dict[str, Any]:
        """A full response object with the identity of the first one; clients require that."""
        full = filled(self._base, given)
        full["id"], full["created_at"] = self._base["id"], self._base["created_at"]
        full["usage"] = filled_usage(full.get("usage"))
        return full

    def _finished(self, value: Mapping[str, Any], event: SseEvent | None = None) -> bytes:
        kind = str(value["type"])
        given = value.get("response")
        given = dict(given) if isinstance(given, dict) else {}
        if kind == "response.completed" and truncated(given, self._base):
            kind = "response.incomplete"
            given["status"], given["incomplete_details"] = "incomplete", {"reason": "max_output_tokens"}
        if given.get("status") in (None, "in_progress"):
            given["status"] = kind.removeprefix("response.")
        finishing, given["output"] = self._finish_items(given.get("output"), kind == "response.completed")
        ending = self._lifecycle({**value, "type": kind, "response": given}, event)
        self.complete = True
        self.failed = kind == "response.failed"
        return finishing + ending

    def _finish_items(self, output: object, whole: bool) -> tuple[bytes, list[Any]]:
        """Ends all items and lists them; `output` is upstream's list."""
        out: list[bytes] = []
        final: dict[str, dict[str, Any]] = {}
        for position, given in enumerate(output if isinstance(output, list) else ()):
            if not isinstance(given, dict) or not isinstance(given.get("type"), str):
                continue
            item = self._find(given.get("id"), position)
            if item is None or item.kind != given["type"]:
                item, adding = self._add(given, None)
                out.append(adding)
            if item.final is None:
                out.append(self._contents.finish(item, given))
            final[item.ident] = filled_item({**given, "id": item.ident}, ident=item.ident, status="completed")
        for item in list(self._items.values()):
            if item.final is None:
                out.append(self._contents.finish(item, {"status": "completed" if whole else "incomplete"}))
        return b"".join(out), [final.get(item.ident) or item.final for item in self._ordered()]

    def _ordered(self) -> list[OutputItem]:
        return sorted(self._items.values(), key=lambda item: item.index)

    def _end(self) -> bytes:
        return self._finished({"type": "response.completed"})

    def _fail(self, found: Mapping[str, Any], status: int) -> bytes:
        try:
            begin = self._begun()
        except ValueError:
            begin = b""
        error = translate_event(
            Api.RESPONSES, found, status=status, sequence_number=self._out.number(), request_id=self._request_id
        )
        output = [item.final for item in self._ordered() if item.final is not None]
        told, shown = translated(Api.RESPONSES, found, status=status)
        # The codes of this object are a list of OpenAI's.
        code = "server_error" if told >= 500 else "invalid_prompt"
        if shown.get("code") == CONTEXT_CODE:  # in no list, but sent by OpenAI, and what agents compact on
            code = CONTEXT_CODE
        failure = {"code": code, "message": shown["message"]}
        failed = {"type": "response.failed", "response": {"status": "failed", "error": failure, "output": output}}
        try:
            ending = self._lifecycle(failed)
        except ValueError:
            ending = b""
        self.complete = self.failed = True
        return begin + error + ending

    # -- its items

    def _find(self, ident: object, index: int | None) -> OutputItem | None:
        """The item by id, or by index without an id."""
        if isinstance(ident, str):
            return self._items.get(ident)
        return next((item for item in self._items.values() if item.index == index), None)

    def _item_of(self, value: Mapping[str, Any], word: str) -> tuple[OutputItem, bytes]:
        """The item of an event; added first if upstream never added it."""
        kind = _KIND_OF[word]
        ident, index = value.get("item_id"), whole_number(value.get("output_index"))
        item = self._find(ident, index) or (self._find(None, index) if index is not None else None)
        if item is None and ident is None and index is None:
            item = next((item for item in reversed(self._items.values()) if item.kind == kind), None)
        if item is None:
            return self._add({"type": kind, "id": ident}, index)
        if item.kind != kind and not (word == "content_part" and item.kind == "reasoning"):
            raise ValueError(f"{word} of a {item.kind}")
        return item, b""

    def _add(
        self,
        given: Mapping[str, Any],
        index: int | None,
        value: Mapping[str, Any] | None = None,
        event: SseEvent | None = None,
    ) -> tuple[OutputItem, bytes]:
        taken = {item.index for item in self._items.values()}
        if len(taken) >= _MAX_ITEMS:
            raise ValueError("too many items")
        if index is None or index in taken:
            index = max(taken, default=-1) + 1
        full = filled_item(given, ident=f"item_{self._ident}_{index}", status="in_progress")
        if value is None:  # never added: add it empty, its contents follow
            empty = {"status": "in_progress", "content": [], "arguments": ""}
            full.update({key: nothing for key, nothing in empty.items() if key in full})
        ident = full["id"]
        if not isinstance(ident, str) or ident in self._items:
            raise ValueError("an item with the id of another one")
        item = self._items[ident] = OutputItem(index, ident, full)
        about = {**(value or {}), "type": "response.output_item.added", "output_index": index, "item": full}
        return item, self._out.emit(about, event)

    def _item_added(self, value: Mapping[str, Any], event: SseEvent) -> bytes:
        given, index = _item_in(value), whole_number(value.get("output_index"))
        return b"" if self._find(given.get("id"), index) is not None else self._add(given, index, value, event)[1]

    def _item_done(self, value: Mapping[str, Any], event: SseEvent) -> bytes:
        given, index = _item_in(value), whole_number(value.get("output_index"))
        item, adding = self._find(given.get("id"), index), b""
        if item is None:
            item, adding = self._add(given, index)
        return adding + (b"" if item.final is not None else self._contents.finish(item, given, value, event))


def _item_in(value: Mapping[str, Any]) -> dict[str, Any]:
    item = value.get("item")
    if not isinstance(item, dict) or not isinstance(item.get("type"), str):
        raise ValueError("an invalid item")
    return item
