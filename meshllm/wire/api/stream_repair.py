"""Chooses what repairs a streamed reply on its way to the caller, and fills in whole replies that lack fields.

A repairer is a pure object between the upstream's body (de-chunked) and the caller: it is fed bytes and gives bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from meshllm.wire.api.chat_stream import ChatRepair
from meshllm.wire.api.messages_stream import MessagesRepair, repair_message
from meshllm.wire.api.response_object import repair_body
from meshllm.wire.api.responses_stream import ResponsesRepair
from meshllm.wire.api.routes import Api


class StreamRepair(Protocol):
    """One stream being repaired. Never raises; any split of the bytes gives the same output."""

    complete: bool
    """The end of the stream has been passed on (`[DONE]`, `message_stop`, `response.completed`, an error): whatever
    follows is dropped, and upstream's connection may end in any way."""
    started: bool
    """Something other than comments has been passed on: the request cannot be tried elsewhere any more."""
    failed: bool
    """The stream ended, but with an error event."""
    worker_lost: bool
    """That error is an engine's which has lost a node that computed with it: it was put in our words."""

    def feed(self, data: bytes) -> bytes:
        """The bytes that can be sent on now."""

    def finish(self) -> bytes:
        """Upstream ended its body properly: what is still missing (closing events, `[DONE]`)."""

    def fail(self, code: str, message: str, *, status: int = 502) -> bytes:
        """Upstream died: a typed error event in this API's shape (`status` chooses the type), the end of the stream."""


def stream_repair(
    api: Api,
    *,
    model: str,
    ident: str,
    created: int,
    request: Mapping[str, Any],
    input_tokens: int | None = None,
    shared: bool = False,
    request_id: str | None = None,
) -> StreamRepair:
    """The repairer for one streamed reply; ValueError if `api` does not stream.

    `ident` makes up ids where upstream gave none (letters and digits, unique to the request); `created` is the time in
    Unix seconds; `request` is the caller's parsed body; `input_tokens` the length of the prompt where it is known.
    `shared`: upstream is an engine that computes with other nodes (see `losses`).
    """
    if api in (Api.CHAT, Api.COMPLETIONS):
        choices = _count(request.get("n"))
        return ChatRepair(
            api, model=model, ident=ident, created=created, choices=choices, shared=shared, request_id=request_id
        )
    if api is Api.MESSAGES:
        return MessagesRepair(model=model, ident=ident, input_tokens=input_tokens, shared=shared, request_id=request_id)
    if api is Api.RESPONSES:
        return ResponsesRepair(
            model=model, ident=ident, created=created, request=request, shared=shared, request_id=request_id
        )
    raise ValueError(f"{api.value} does not stream")


def repair_response(
    api: Api, body: Mapping[str, Any], *, model: str, ident: str, created: int, request: Mapping[str, Any]
) -> dict[str, Any]:
    """A whole (not streamed) successful reply with the fields its API requires; what upstream gave stays as it is.

    Only `/v1/responses` and `/v1/messages` ever need it; others come back as they are. The arguments are those of
    `stream_repair`.
    """
    if api is Api.RESPONSES:
        return repair_body(body, request, model=model, ident=ident, created=created)
    if api is Api.MESSAGES:
        return repair_message(body, model=model, ident=ident)
    return dict(body)


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 1
