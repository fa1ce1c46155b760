"""Chooses the repairer of a streamed reply, and completes whole replies.

A repairer is a pure object between the upstream's decoded body and the caller: bytes in, bytes out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from meshllm.wire.api.chat_stream import ChatRepair
from meshllm.wire.api.messages_stream import MessagesRepair, repair_message
from meshllm.wire.api.response_object import repair_body
from meshllm.wire.api.responses_stream import ResponsesRepair
from meshllm.wire.api.routes import Api

_CHAT, _CHATS = Api.CHAT, (Api.CHAT, Api.COMPLETIONS)  # looked up once, as `routes.ENGINE`


class StreamRepair(Protocol):
    """Repairs one stream. Never raises; the output does not depend on how the input is cut."""

    @property
    def complete(self) -> bool:
        """The end of the stream was passed on (`[DONE]`, `message_stop`, `response.completed`, an error).

        Later input is dropped, and upstream's connection may end in any way.
        """

    @property
    def started(self) -> bool:
        """Something other than comments was passed on: the request cannot be tried elsewhere."""

    @property
    def failed(self) -> bool:
        """The stream ended with an error event."""

    @property
    def worker_lost(self) -> bool:
        """That error came from an engine that lost a worker; its text was replaced by ours."""

    def feed(self, data: bytes) -> bytes:
        """Repair a piece of the stream; returns the bytes to send now."""

    def finish(self) -> bytes:
        """Upstream ended its body properly: returns what is missing (closing events, `[DONE]`)."""

    def fail(self, code: str, message: str, *, status: int = 502) -> bytes:
        """Upstream was lost: a typed error event of this API (`status` sets its type) and the end of the stream."""


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
    """The repairer of one streamed reply; ValueError if `api` does not stream.

    `ident` is used for ids that upstream omits (letters and digits, unique to the request); `created`: unix seconds;
    `request`: the caller's parsed body; `input_tokens`: the prompt's length, if known; `shared`: upstream is an engine
    with workers (see `worker_loss`); `request_id`: for error events.
    """
    if api in _CHATS:
        prompts = request.get("prompt") if api is not _CHAT else None
        listed = isinstance(prompts, list) and not all(isinstance(token, int) for token in prompts)
        choices = _count(request.get("n") or request.get("n_cmpl")) * (
            len(prompts) if isinstance(prompts, list) and listed else 1
        )
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
    """A whole, successful reply with the fields that its API requires; existing fields stay.

    Only `/v1/responses` and `/v1/messages` need it. The arguments are those of `stream_repair`.
    """
    if api is Api.RESPONSES:
        return repair_body(body, request, model=model, ident=ident, created=created)
    if api is Api.MESSAGES:
        return repair_message(body, model=model, ident=ident)
    return dict(body)


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 1
