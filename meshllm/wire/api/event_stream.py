"""Bases of the repairers: `RepairBase` for all, `EventRepair` for those that parse every event.

Invariant: never raises for upstream's bytes; an invalid event ends the stream with a typed error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshllm.wire.api import strict_json
from meshllm.wire.api.errors import find_error, loads_error, status_of
from meshllm.wire.api.sse import MAX_EVENT, EventBuffer, SseEvent, next_event, parse_event, skip_blanks
from meshllm.wire.api.worker_loss import UPSTREAM_LOST, is_worker_loss, worker_loss_message

MAX_NUMBER = 1 << 53
"""Larger numbers are not passed on as indices or sequence numbers: JavaScript cannot represent them."""


class RepairBase:
    """Splitting, the end of a stream and errors; the contract is `stream_repair.StreamRepair`.

    Subclasses implement `_block`, `_end` and `_fail`.
    """

    def __init__(
        self, model: str, *, shared: bool = False, request_id: str | None = None, limit: int = MAX_EVENT
    ) -> None:
        self.complete = False
        self.started = False
        self.failed = False
        self.worker_lost = False
        self._model = model
        self._shared = shared
        self._request_id = request_id
        self._buffer = EventBuffer(limit)

    def feed(self, data: bytes) -> bytes:
        """Repair a piece of the stream."""
        if self.complete:
            return b""
        out = self._block(self._buffer.take(data))
        if self._buffer.overflow:
            out += self.fail("event_too_large", "The model server sent an event above the size limit.")
        return out

    def finish(self) -> bytes:
        """Complete the stream after upstream ended its body properly."""
        if self.complete:
            return b""
        return self._block(self._buffer.rest()) + self._close()

    def fail(self, code: str, message: str, *, status: int = 502) -> bytes:
        """An error event and the end of the stream, after upstream was lost."""
        if self.complete:
            return b""
        return self._fail({"message": message, "code": code}, status)

    def _close(self) -> bytes:
        if self.complete:
            return b""
        if not self.started:
            return self.fail("upstream_empty", "The model server closed the stream without an answer.")
        return self._end()

    def _upstream_error(self, found: Mapping[str, Any]) -> bytes:
        if self._shared and is_worker_loss(found):
            return self._upstream_lost()
        return self._fail(found, status_of(found))

    def _upstream_lost(self) -> bytes:
        self.worker_lost = True
        return self.fail(UPSTREAM_LOST, worker_loss_message(self._model))

    def _invalid(self) -> bytes:
        return self.fail("upstream_invalid", "The model server sent an event that this API does not have.")

    # -- for subclasses

    def _block(self, block: bytes) -> bytes:
        """Repair a block of whole events, possibly empty."""
        raise NotImplementedError

    def _end(self) -> bytes:
        """Close what upstream left open, and the stream; sets `complete`."""
        raise NotImplementedError

    def _fail(self, found: Mapping[str, Any], status: int) -> bytes:
        """An error event and the end; sets `complete` and `failed`."""
        raise NotImplementedError


class EventRepair(RepairBase):
    """Parses every event. Subclasses implement `_event`, `_end` and `_fail`."""

    def _block(self, block: bytes) -> bytes:
        out: list[bytes] = []
        position = skip_blanks(block, 0)
        while position < len(block) and not self.complete:
            repaired = self._fast_path(block, position)
            if repaired is None:
                span = next_event(block, position)
                if span is None:
                    break
                repaired = self._repair_event(block[span[0] : span[1]]), span[1]
            out.append(repaired[0])
            position = skip_blanks(block, repaired[1])
        return b"".join(out)

    def _repair_event(self, raw: bytes) -> bytes:
        event = parse_event(raw)
        try:
            raw.decode()
        except UnicodeDecodeError:  # clients fail on it even in a comment
            return b"" if event.data is None else self._invalid()
        if event.data is None:
            if event.error is None:
                return raw
            return self._upstream_error(loads_error(event.error) or {"message": "unknown error"})
        if event.data.strip() == b"[DONE]":
            return b""  # these APIs have no such event
        value = strict_json.loads_object(event.data)
        if value is None:
            return self._invalid()
        try:
            kind = value.get("type")
            if not isinstance(kind, str):
                kind = event.name
            if kind == "error" or event.name == "error" or not isinstance(value.get("type"), str):
                found = find_error(value) or ({"message": "unknown error"} if "error" in (kind, event.name) else None)
                if found is not None:
                    return self._upstream_error(found)
            return self._event(kind, value, event)
        except (ValueError, RecursionError):
            return self._written() + self._invalid()

    # -- for subclasses

    def _fast_path(self, block: bytes, start: int) -> tuple[bytes, int] | None:
        """The repaired bytes of one or more events at `start` and their end, if they need no parsing; else None."""
        return None

    def _written(self) -> bytes:
        """Bytes written for an event before it proved invalid."""
        return b""

    def _event(self, kind: str, value: dict[str, Any], event: SseEvent) -> bytes:
        """Repair one event of type `kind`; ValueError if it is invalid."""
        raise NotImplementedError


def whole_number(value: object) -> int | None:
    """`value` if it is a valid index or count, else None."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_NUMBER:
        return value
    return None
