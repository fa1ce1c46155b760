"""Repairs streams of `/v1/chat/completions` and `/v1/completions`.

Faults of the engine: the first delta of a choice lacks its role if the first token is half a character; an error in a
stream ends it without `[DONE]`; a stream for a list of prompts has `null` events. Faults of other backends: no finish
reason, no `[DONE]`, errors in a shape that clients do not raise.

Invariants: after the first delta of every choice, bytes pass unchanged and no event is parsed: two substring scans per
block (three for `/v1/completions`, or if the engine computes with other nodes). Generated text cannot match them,
because JSON escapes quotes and line breaks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshllm.wire.api import strict_json
from meshllm.wire.api.errors import find_error, loads_error, translate_event
from meshllm.wire.api.event_stream import RepairBase
from meshllm.wire.api.routes import Api
from meshllm.wire.api.sse import (
    DONE,
    MAX_EVENT,
    SseEvent,
    encode_event,
    event_spans,
    events_backwards,
    events_with,
    parse_event,
    split_events,
)
from meshllm.wire.api.worker_loss import MARK, is_worker_loss

_CHAT_ID, _COMPLETION_ID = b'"id":"chatcmpl-', b'"id":"cmpl-'
_CHAT = Api.CHAT  # looked up once, as `routes.ENGINE`
_MAX_CHOICES = 128  # OpenAI's own limit of `n`


class ChatRepair(RepairBase):
    """Repairs one stream; the contract is `meshllm.wire.api.stream_repair.StreamRepair`.

    `choices`: the request's `n`. `Api.COMPLETIONS` has no roles; only its end is repaired.
    """

    def __init__(
        self,
        api: Api,
        *,
        model: str,
        ident: str,
        created: int,
        choices: int = 1,
        shared: bool = False,
        request_id: str | None = None,
        limit: int = MAX_EVENT,
    ) -> None:
        super().__init__(model, shared=shared, request_id=request_id, limit=limit)
        self._api = api
        self._choices = max(1, min(choices, _MAX_CHOICES))
        chat = api is _CHAT
        self._envelope: dict[str, Any] = {
            "id": f"chatcmpl-{ident}" if chat else f"cmpl-{ident}",
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": created,
            "model": model,
        }
        self._in_head = True
        self._seen: set[int] = set()
        self._finished: set[int] = set()
        self._finish_mark = b'"finish_reason":"'
        self._done_mark = b"data: [DONE]"
        self._last = b""  # the last block with data: its last event says how the stream ended

    # -- the beginning: event by event, until every choice has its role

    def _block(self, block: bytes) -> bytes:
        block = with_own_id(self._api, block)
        return self._head(block) if self._in_head else self._bulk(block)

    def _head(self, block: bytes) -> bytes:
        out: list[bytes] = []
        for start, end in event_spans(block):
            out.append(self._first(block[start:end]))
            if self.complete:
                break
            if not self._in_head:
                out.append(self._bulk(block[end:]))
                break
        return b"".join(out)

    def _first(self, raw: bytes) -> bytes:
        event = parse_event(raw)
        if event.data is None:
            if event.error is not None:
                return self._upstream_error(loads_error(event.error) or {"message": "unknown error"})
            return raw
        if event.data.strip() == b"[DONE]":
            return self._close()
        if event.data.strip() == b"null":  # the engine's beginning of a stream for a list of prompts
            return b""
        chunk = strict_json.loads_object(event.data)
        if chunk is None:
            return self._invalid()
        if "choices" not in chunk:
            found = find_error(chunk)
            if found is not None:
                return self._upstream_error(found)
        return self._first_chunk(event, chunk)

    def _first_chunk(self, event: SseEvent, chunk: dict[str, Any]) -> bytes:
        if not self.started:
            self.started = True
            for key in ("id", "created", "model", "system_fingerprint"):
                if chunk.get(key) is not None:
                    self._envelope[key] = chunk[key]
            if b'"choices": ' in event.raw:
                self._finish_mark = b'"finish_reason": "'
            if event.raw.startswith(b"data:{"):
                self._done_mark = b"data:[DONE]"
        self._last = event.raw
        roles: list[bytes] = []
        for choice in _choices(chunk):
            index = _index(choice)
            if index not in self._seen:
                self._seen.add(index)
                if self._api is _CHAT and not _has_role(choice):
                    delta = {"role": "assistant", "content": ""}
                    roles.append(self._chunk({"index": index, "delta": delta, "finish_reason": None}))
            if choice.get("finish_reason"):
                self._finished.add(index)
        self._in_head = len(self._seen) < self._choices
        return b"".join(roles) + event.raw

    # -- the rest: whole blocks

    def _bulk(self, block: bytes) -> bytes:
        if not block:
            return b""
        if self._shared and MARK in block and (loss := self._find_loss(block)) is not None:
            return block[:loss] + self._upstream_lost()
        cut = self._find_done(block)
        if cut is not None:
            block = block[:cut]
        if self._finish_mark in block:
            self._note_finish(block)
        if block.startswith(b"data:") or any(_carries(raw) for raw in split_events(block)):
            self._last = block
        return block if cut is None else block + self._end()

    def _find_done(self, block: bytes) -> int | None:
        """The offset of the `[DONE]` event, or None."""
        mark = self._done_mark
        position = block.find(mark)
        while position >= 0:
            after = position + len(mark)
            if (position == 0 or block[position - 1] in b"\r\n") and block[after : after + 1] in (b"\n", b"\r"):
                return position
            position = block.find(mark, after)
        return None

    def _find_loss(self, block: bytes) -> int | None:
        """The offset of the event that reports a lost worker, or None."""
        for start, end in event_spans(block):
            if MARK in block[start:end]:
                found = loads_error(parse_event(block[start:end]).data or b"")
                if found is not None and is_worker_loss(found):
                    return start
        return None

    def _note_finish(self, block: bytes) -> None:
        for raw in events_with(block, self._finish_mark):
            chunk = strict_json.loads_object(parse_event(raw).data or b"")
            for choice in _choices(chunk or {}):
                if choice.get("finish_reason"):
                    self._finished.add(_index(choice))

    # -- the end

    def _end(self) -> bytes:
        """Missing finish chunks and `[DONE]`; after an error, only what the error lacks."""
        last = self._last_event()
        if last is not None and last.data is None:
            return self._upstream_error(loads_error(last.error or b"") or {"message": "unknown error"})
        self.complete = True
        if last is not None and last.data is not None and b"error" in last.data:
            chunk = strict_json.loads_object(last.data)
            found = find_error(chunk) if chunk is not None and "choices" not in chunk else None
            if found is not None:
                self.failed = True
                raised = isinstance(chunk, dict) and isinstance(chunk.get("error"), dict)
                return DONE if raised else translate_event(self._api, found, request_id=self._request_id)
        missing = [self._chunk(self._final_choice(index)) for index in sorted(self._seen - self._finished)]
        return b"".join(missing) + DONE

    def _last_event(self) -> SseEvent | None:
        return next((parse_event(raw) for raw in events_backwards(self._last) if _carries(raw)), None)

    def _fail(self, found: Mapping[str, Any], status: int) -> bytes:
        self.complete = self.failed = True
        return translate_event(self._api, found, status=status, request_id=self._request_id)

    def _final_choice(self, index: int) -> dict[str, Any]:
        if self._api is _CHAT:
            return {"index": index, "delta": {}, "finish_reason": "stop"}
        return {"index": index, "text": "", "logprobs": None, "finish_reason": "stop"}

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        return encode_event({**self._envelope, "choices": [choice]})


def with_own_id(api: Api, data: bytes) -> bytes:
    """An answer, or whole events, of `/v1/completions` with that API's id, which the engine begins as chat's."""
    return data.replace(_CHAT_ID, _COMPLETION_ID) if api is Api.COMPLETIONS else data


def _carries(raw: bytes) -> bool:
    """Whether an event has data or the error field of old llama.cpp servers."""
    if raw.startswith((b"data:", b"error:")):
        return True
    event = parse_event(raw)
    return event.data is not None or event.error is not None


def _choices(chunk: Mapping[str, Any]) -> list[dict[str, Any]]:
    choices = chunk.get("choices")
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def _index(choice: Mapping[str, Any]) -> int:
    index = choice.get("index")
    return index if isinstance(index, int) and 0 <= index < _MAX_CHOICES else 0


def _has_role(choice: Mapping[str, Any]) -> bool:
    delta = choice.get("delta")
    return isinstance(delta, dict) and bool(delta.get("role"))
