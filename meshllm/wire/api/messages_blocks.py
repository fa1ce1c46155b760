"""Content of `/v1/messages` as the engine reads it: what it would drop becomes text, or is refused."""

from __future__ import annotations

import re
from typing import Any

from meshllm.wire.api import strict_json
from meshllm.wire.api.documents import block_text
from meshllm.wire.api.refusal import invalid, unsupported

_ROLES = ("user", "assistant", "system")
_BILLING = "x-anthropic-billing-header:"
_HEADER = re.compile(r"\Ax-anthropic-billing-header:(?: *[\w.-]+=[^;\n]*;)* *\n?")
_OPAQUE = ("redacted_thinking", "compaction")


def kept_system(system: Any) -> Any:
    """The system prompt as the engine keeps it; the same object if it needs no change.

    Claude Code's billing header is left out: it holds a hash of the first user message, so that no new session would
    find the rest of its long system prompt in the engine's cache.
    """
    if system is None or isinstance(system, str):
        return _HEADER.sub("", system) if system is not None and system.startswith(_BILLING) else system
    if not isinstance(system, list):
        raise invalid("system", "'system' must be a text or a list of text blocks.")
    kept: list[Any] = []
    for index, block in enumerate(system):
        text = block.get("text") if isinstance(block, dict) else None
        if not isinstance(block, dict) or block.get("type") != "text" or not isinstance(text, str):
            raise invalid(f"system[{index}]", f"'system[{index}]' must be a text block.")
        if text.startswith(_BILLING):
            text = _HEADER.sub("", text)
            if text:
                kept.append({**block, "text": text})
        else:
            kept.append(block)
    return system if len(kept) == len(system) and all(a is b for a, b in zip(kept, system, strict=True)) else kept


def kept_conversation(messages: Any) -> Any:
    """The messages as the engine keeps them; the same list if they need no change, None if they are missing."""
    if messages is None:
        return None  # the engine refuses it
    if not isinstance(messages, list):
        raise invalid("messages", "'messages' must be a list of messages.")
    kept = [_message(message, index) for index, message in enumerate(messages)]
    return messages if all(new is old for new, old in zip(kept, messages, strict=True)) else kept


def _message(message: Any, index: int) -> Any:
    if not isinstance(message, dict):
        raise invalid(f"messages[{index}]", f"'messages[{index}]' must be an object.")
    content = message.get("content")
    if isinstance(content, str) and message.get("role") in _ROLES:
        return message
    param = f"messages[{index}]"
    if message.get("role") not in _ROLES:
        raise invalid(f"{param}.role", f"'{param}.role' must be one of {', '.join(_ROLES)}.")
    if content is None and message["role"] == "assistant":
        return {**message, "content": ""}
    if not isinstance(content, list):
        raise invalid(f"{param}.content", f"'{param}.content' must be a text or a list of blocks.")
    blocks = _blocks(content, f"{param}.content")
    return message if blocks is content else {**message, "content": blocks}


def _blocks(content: list[Any], param: str) -> list[Any]:
    kept = [new for index, block in enumerate(content) for new in _block(block, f"{param}[{index}]")]
    if len(kept) == len(content) and all(new is old for new, old in zip(kept, content, strict=True)):
        return content
    return kept


def _block(block: Any, param: str) -> list[Any]:
    """What the engine gets for a block; empty if it is left out."""
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(kind, str):
        raise invalid(f"{param}.type", f"'{param}' must be an object with a 'type'.")
    match kind:
        case "text":
            if not isinstance(block.get("text"), str):
                raise invalid(f"{param}.text", f"'{param}.text' must be a text.")
            # The engine passes the block on whole, and templates read its fields.
            return [block if len(block) == 2 else {"type": "text", "text": block["text"]}]
        case "thinking":
            if not isinstance(block.get("thinking"), str | None):
                raise invalid(f"{param}.thinking", f"'{param}.thinking' must be a text.")
            return [block]
        case "image":
            return [_image(block, param)]
        case "document" | "search_result":
            return [{"type": "text", "text": block_text(block, param)}]
        case "tool_use":
            return [_tool_use(block, param)]
        case "tool_result":
            return [_tool_result(block, param)]
    if kind in _OPAQUE:  # encrypted for another service
        return []
    if kind.endswith(("_tool_use", "_tool_result")):
        about = {key: value for key, value in block.items() if key in ("name", "input", "content")}
        words = f"[{kind.replace('_', ' ')} by another service: {strict_json.dumps(about).decode()}]"
        return [{"type": "text", "text": words}]
    raise unsupported(f"{param}.type", f"'{param}' has the type '{kind[:40]}', which no model here reads.")


def _image(block: dict[str, Any], param: str) -> Any:
    source = block.get("source")
    kind = source.get("type") if isinstance(source, dict) else None
    field = {"base64": "data", "url": "url"}.get(str(kind))
    if field is None:
        raise unsupported(f"{param}.source.type", f"'{param}.source' must be of the type 'base64' or 'url'.")
    if not isinstance(source, dict) or not isinstance(source.get(field), str):
        raise invalid(f"{param}.source.{field}", f"'{param}.source.{field}' must be a text.")
    return block


def _tool_use(block: dict[str, Any], param: str) -> Any:
    for field in ("id", "name"):
        if not isinstance(block.get(field), str):
            raise invalid(f"{param}.{field}", f"'{param}.{field}' must be a text.")
    given = block.get("input")
    if isinstance(given, dict):
        return block
    if given is None or given == "":
        return {**block, "input": {}}
    found = strict_json.loads_object(given) if isinstance(given, str) else None
    return {**block, "input": {"invalid_arguments": given} if found is None else found}


def _tool_result(block: dict[str, Any], param: str) -> Any:
    if not isinstance(block.get("tool_use_id"), str):
        raise invalid(f"{param}.tool_use_id", f"'{param}.tool_use_id' must be a text.")
    content = block.get("content")
    if content is None or isinstance(content, str):
        return block
    if not isinstance(content, list):
        raise invalid(f"{param}.content", f"'{param}.content' must be a text or a list of blocks.")
    for index, inner in enumerate(content):
        if isinstance(inner, dict) and inner.get("type") in ("tool_use", "tool_result", "thinking"):
            raise invalid(f"{param}.content[{index}].type", f"'{param}.content[{index}]' cannot be part of a result.")
    blocks = _blocks(content, f"{param}.content")
    return block if blocks is content else {**block, "content": blocks}
