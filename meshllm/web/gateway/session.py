"""Facts of a request body for routing: a hash of its conversation, and the amount of text. Pure; bounded work."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from meshllm.wire.api.routes import Api

# Session headers of agents: Codex, Claude Code, OpenCode, and common ones.
SESSION_HEADERS = (
    b"x-session-id",
    b"session-id",
    b"session_id",
    b"conversation_id",
    b"x-claude-code-session-id",
    b"x-session-affinity",
)
# Session fields in the body. OpenAI's `user` served this purpose before `prompt_cache_key`.
SESSION_FIELDS = ("prompt_cache_key", "session_id", "user")
MAX_SESSION_BYTES = 512
# The hashed beginning of a conversation: two that agree in it share most of a host's prompt cache.
PREFIX_BYTES = 16 << 10
# A plain prompt has no turns: it grows at its end, and only its beginning stays the same.
PROMPT_PREFIX_BYTES = 1024
# Fields that are not text: no tokens of the prompt, or far fewer than bytes.
_NOT_TEXT = frozenset(("image_url", "input_audio", "file", "file_data", "source", "data", "url", "encrypted_content"))
_MAX_PARTS = 20_000


def conversation_key(api: Api, request: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> bytes | None:
    """A hash that is the same for all requests of a conversation; None if the body does not identify one.

    Computed from the session named by the caller, else from the messages before the first answer (system and user).
    """
    digest = hashlib.blake2b(str(request.get("model")).encode("utf-8", "replace"), digest_size=16)
    named = _session(request, headers)
    if named is not None:
        digest.update(b"\0session\0" + named)
        return digest.digest()
    if not api.can_stream:
        return None  # embeddings and rerank requests have no next turn
    left = PREFIX_BYTES
    digest.update(b"\0prefix\0")
    for text in _beginning(request):
        piece = text[:left].encode("utf-8", "replace")[:left]
        digest.update(piece + b"\0")
        left -= len(piece)
        if left <= 0:
            break
    return digest.digest() if left < PREFIX_BYTES else None


def _session(request: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> bytes | None:
    for field in SESSION_FIELDS:
        if isinstance(value := request.get(field), str) and value:
            return f"{field}={value[:MAX_SESSION_BYTES]}".encode("utf-8", "replace")
    metadata = request.get("metadata")
    if isinstance(metadata, dict) and isinstance(value := metadata.get("user_id"), str) and value:
        return b"user_id=" + value[:MAX_SESSION_BYTES].encode("utf-8", "replace")
    for name in SESSION_HEADERS:
        if found := headers.get(name):
            return name + b"=" + found[:MAX_SESSION_BYTES]
    return None


def _beginning(request: Mapping[str, Any]) -> Iterator[str]:
    """The texts before the first assistant message, in order."""
    for field in ("system", "instructions"):
        yield from texts(request.get(field))
    messages = request.get("messages")
    if messages is None:
        messages = request.get("input")
    if isinstance(messages, list):
        for message in messages[:64]:
            role = message.get("role") if isinstance(message, dict) else None
            if role == "assistant":
                return
            yield from texts(message)
            if role == "user":
                return
        return
    prompt = messages if messages is not None else request.get("prompt")
    for text in texts(prompt):
        yield text[:PROMPT_PREFIX_BYTES]
        return


def texts(value: object) -> Iterator[str]:
    """All text strings in a part of a body, in order; at most `_MAX_PARTS` parts are visited."""
    todo, seen = [value], 0
    while todo and seen < _MAX_PARTS:
        seen += 1
        part = todo.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, list):
            todo.extend(reversed(part[:_MAX_PARTS]))
        elif isinstance(part, dict):
            todo.extend(item for key, item in reversed(part.items()) if key not in _NOT_TEXT)


def text_bytes(request: Mapping[str, Any]) -> int:
    """A lower bound of the prompt's text in characters, without images."""
    fields = ("system", "instructions", "messages", "input", "prompt", "tools", "query", "documents")
    return sum(len(text) for field in fields for text in texts(request.get(field)))
