"""The beginning that prompts of an agent share whatever its user asks: the tools and the system prompt. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from meshllm.web.gateway.api_request import texts
from meshllm.wire.api.messages_blocks import kept_system
from meshllm.wire.api.refusal import RequestRefused
from meshllm.wire.api.routes import Api

# Fewer bytes of text are computed again sooner than another host would be reached.
LEAST_BYTES = 1024
# The part of the system prompt that counts: further on agents write the date, the folder and the state of the project.
SYSTEM_BYTES = 4096
_MAX_MESSAGES = 16
_SYSTEM_ROLES = ("system", "developer")
_COMPLETING = (Api.CHAT, Api.RESPONSES, Api.MESSAGES)


def prefix_key(api: Api, request: Mapping[str, Any], salt: str = "") -> bytes | None:
    """A hash of the model, the tools and the beginning of the system prompt; None if these are too short to matter.

    `salt`: the trust domain of the caller, within which hosts reuse computed prompts.
    """
    if api not in _COMPLETING:
        return None
    digest = hashlib.blake2b(f"{request.get('model')}\0{salt}\0".encode("utf-8", "replace"), digest_size=16)
    tools = request.get("tools")
    size = 0
    if isinstance(tools, list) and tools:
        try:
            told = orjson.dumps(tools)
        except orjson.JSONEncodeError:  # nested more deeply than orjson writes
            return None
        digest.update(told)
        size = len(told)
    left = SYSTEM_BYTES
    digest.update(b"\0system\0")
    for text in _system_texts(api, request):
        piece = text[:left].encode("utf-8", "replace")[:left]
        digest.update(piece)
        left -= len(piece)
        if left <= 0:
            break
    return digest.digest() if size + SYSTEM_BYTES - left >= LEAST_BYTES else None


def _system_texts(api: Api, request: Mapping[str, Any]) -> Iterator[str]:
    if api is Api.MESSAGES:
        try:
            yield from texts(kept_system(request.get("system")))
        except RequestRefused:  # it is refused anyway
            return
        return
    yield from texts(request.get("instructions"))
    messages = request.get("input" if api is Api.RESPONSES else "messages")
    for message in messages[:_MAX_MESSAGES] if isinstance(messages, list) else ():
        if not isinstance(message, dict) or message.get("role") not in _SYSTEM_ROLES:
            return
        yield from texts(message.get("content"))
