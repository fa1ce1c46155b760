"""How each API writes a conversation: roles, and contents that are a text, a list of parts, or nothing. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

Entry = Mapping[str, Any]
"""A message, or an item of `/v1/responses`."""


class EntryRole(Enum):
    """Whose words an entry has. OTHER: for the engine to judge."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Format:
    """How an API writes a conversation.

    `text_type`: the type of a text part in a user message. `result`: the field of an entry with a tool's result; empty:
    its blocks have them. `joins_assistants`: False where the engine joins the assistant's entries itself.
    """

    role: Callable[[Any], EntryRole]
    text_type: str = "text"
    result: str = "content"
    joins_assistants: bool = True


# -- contents

_TEXT_TYPES = ("text", "input_text", "output_text")


def plain(content: Any) -> str | None:
    """The text of a content of texts only, its parts on lines of their own; None if it has other parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) and part.get("type") in _TEXT_TYPES else None
        if not isinstance(text, str):
            return None
        texts.append(text)
    return "\n".join(texts)


def parts_of(content: Any, form: Format) -> list[Any]:
    """The parts of a content."""
    if content is None or content == "":
        return []
    if isinstance(content, str):
        return [{"type": form.text_type, "text": content}]
    return list(content) if isinstance(content, list) else [content]


def joined_contents(contents: Sequence[Any], form: Format, *, in_parts: bool = False) -> Any:
    """Contents in one, with an empty line between them: a text if all are texts (unless `in_parts`), else parts."""
    texts = [plain(content) for content in contents]
    if all(text is not None for text in texts) and not in_parts:
        return "\n\n".join(text for text in texts if text)
    parts: list[Any] = []
    for content in contents:
        more = parts_of(content, form)
        if parts and more:
            parts.append({"type": _text_type(parts, form), "text": "\n\n"})
        parts += more
    return parts


def _text_type(parts: Sequence[Any], form: Format) -> str:
    """The type of a text part beside `parts`: the assistant's differs in `/v1/responses`."""
    kinds = (part.get("type") for part in parts if isinstance(part, dict))
    return next((kind for kind in kinds if kind in _TEXT_TYPES), form.text_type)


def marked(content: Any, mark: str, form: Format) -> Any:
    """`content` between lines that say what it was."""
    text = plain(content)
    if text is not None:
        return f"[{mark}]\n{text}\n[/{mark}]"
    before, after = ({"type": form.text_type, "text": line} for line in (f"[{mark}]\n", f"\n[/{mark}]"))
    return [before, *parts_of(content, form), after]


# -- the APIs

_ROLES = {
    "system": EntryRole.SYSTEM,
    "developer": EntryRole.SYSTEM,
    "user": EntryRole.USER,
    "assistant": EntryRole.ASSISTANT,
    "tool": EntryRole.TOOL,
}


def _chat_role(message: Any) -> EntryRole:
    role = message.get("role") if isinstance(message, dict) else None
    return _ROLES.get(role, EntryRole.OTHER) if isinstance(role, str) else EntryRole.OTHER


def _response_role(item: Any) -> EntryRole:
    """The role of an item: the engine puts calls and reasoning into the assistant's message before them."""
    if not isinstance(item, dict):
        return EntryRole.OTHER
    kind = item.get("type")
    if kind in (None, "message"):
        return _chat_role(item)
    if kind == "function_call_output":
        return EntryRole.TOOL
    return EntryRole.ASSISTANT if kind in ("function_call", "reasoning") else EntryRole.OTHER


def _anthropic_role(message: Any) -> EntryRole:
    role = _chat_role(message)
    if role is EntryRole.USER and (results := _results(message)) and results == len(message["content"]):
        return EntryRole.TOOL
    return EntryRole.OTHER if role is EntryRole.TOOL else role


def _results(message: Any) -> int:
    """How many tools' results a message has."""
    content = message.get("content") if isinstance(message, dict) else None
    return sum(map(is_result, content)) if isinstance(content, list) else 0


def is_result(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type") == "tool_result"


def split_results(messages: list[Any]) -> list[Any]:
    """The messages with tools' results in messages of their own; the same list if they are."""
    if all((count := _results(message)) == 0 or count == len(message["content"]) for message in messages):
        return messages
    split: list[Any] = []
    for message in messages:
        if (count := _results(message)) == 0 or count == len(message["content"]):
            split.append(message)
            continue
        results = [block for block in message["content"] if is_result(block)]
        others = [block for block in message["content"] if not is_result(block)]
        split += [{**message, "content": results}, {**message, "content": others}]
    return split


CHAT = Format(_chat_role)
RESPONSES = Format(_response_role, text_type="input_text", result="output", joins_assistants=False)
ANTHROPIC = Format(_anthropic_role, result="")
