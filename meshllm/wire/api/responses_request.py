"""Prepares bodies of `/v1/responses`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshllm.wire.api.conversation import TemplateTraits
from meshllm.wire.api.prepared import UNCHANGED, Draft, Prepared


def prepare_responses(body: Mapping[str, Any], traits: TemplateTraits) -> Prepared:
    """A request as the engine keeps it; RequestRefused if it cannot.

    The engine requires `"type": "message"` on the assistant's messages, which OpenAI lets clients omit (Vercel's does),
    and refuses reasoning items without text (a summary only, or encrypted).
    """
    del traits
    draft = Draft(body)
    items = body.get("input")
    if isinstance(items, list):
        repaired = [item for item in map(_repaired, items) if item is not None]
        if repaired != items:
            draft.set("input", repaired)
    return Prepared(draft.body()) if draft.changes else UNCHANGED


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
