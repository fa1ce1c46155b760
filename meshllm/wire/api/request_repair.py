"""Rewrites valid OpenAI requests that the engine refuses.

Only what the engine would refuse is changed, without a change of meaning; other servers get the original.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshllm.wire.api.routes import Api


def repair_request(api: Api, body: Mapping[str, Any]) -> dict[str, Any] | None:
    """A body that the engine accepts in place of `body`, or None if `body` needs no change.

    `/v1/responses` only: the engine requires `"type": "message"` on the assistant's messages, which OpenAI lets clients
    omit (Vercel's does), and refuses reasoning items without text (a summary only, or encrypted).
    """
    items = body.get("input")
    if api is not Api.RESPONSES or not isinstance(items, list):
        return None
    repaired = [item for item in map(_repaired, items) if item is not None]
    return {**body, "input": repaired} if repaired != items else None


def _repaired(item: Any) -> Any:
    """The item, changed where needed; None if it must be left out."""
    if not isinstance(item, dict):
        return item
    kind = item.get("type")
    if kind is None and item.get("role") == "assistant" and "content" in item:
        return {**item, "type": "message"}
    if kind == "reasoning":
        content, summary = _list(item.get("content")), _list(item.get("summary"))
        text = next((text for text in map(_text, content + summary) if text), None)
        if text is None:
            return None
        if not content or not _text(content[0]) or item.get("summary") != summary:
            return {**item, "summary": summary, "content": [{"type": "reasoning_text", "text": text}]}
    return item


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(part: Any) -> str:
    text = part.get("text") if isinstance(part, dict) else None
    return text if isinstance(text, str) else ""
