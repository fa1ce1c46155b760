"""Which conversation a request belongs to, and how much text is in it: what routing wants to know of a body.

Pure, and bounded however large the body is. Nothing here is kept but a hash: what people write stays in the request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from meshllm.wire.api.routes import Api

# What agents call the session in their headers: Codex, Claude Code, OpenCode, and what is common beside.
SESSION_HEADERS = (
    b"x-session-id",
    b"session-id",
    b"session_id",
    b"conversation_id",
    b"x-claude-code-session-id",
    b"x-session-affinity",
)
# ... and in the body. `user` is the user of OpenAI's API, which served this purpose before `prompt_cache_key`.
SESSION_FIELDS = ("prompt_cache_key", "session_id", "user")
MAX_SESSION_BYTES = 512
# Of a conversation's beginning so much is looked at: two that agree in it share most of what a host has in its cache.
PREFIX_BYTES = 16 << 10
# A bare prompt has no turns: it grows at its end, and its beginning is all that stays.
PROMPT_PREFIX_BYTES = 1024
# What a body holds beside text: never tokens of the prompt, or not so many as it has bytes.
_NOT_TEXT = frozenset(("image_url", "input_audio", "file", "file_data", "source", "data", "url", "encrypted_content"))
_MAX_PARTS = 20_000


def conversation(api: Api, request: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> bytes | None:
    """A hash that stays the same as a conversation goes on; None if nothing tells it from others.

    By the session that the caller names, else by what stands before the first answer: the system's and the first user's
    words.
    """
    digest = hashlib.blake2b(str(request.get("model")).encode("utf-8", "replace"), digest_size=16)
    named = _session(request, headers)
    if named is not None:
        digest.update(b"\0session\0" + named)
        return digest.digest()
    if not api.can_stream:
        return None  # embeddings and rankings have no next turn
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
    """The texts before the first answer, in order."""
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
    """All strings in a part of a body that are text, in order, as far as a bounded look goes."""
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
    """How many characters of text the prompt has, at least: no fewer bytes, and never what is only an image."""
    fields = ("system", "instructions", "messages", "input", "prompt", "tools", "query", "documents")
    return sum(len(text) for field in fields for text in texts(request.get(field)))
