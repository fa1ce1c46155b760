"""Messages of `/v1/chat/completions` as the engine reads them: null fields left out, broken histories made readable.

The engine answers most of what is changed or refused here with status 500, for ever in the same conversation.
"""

from __future__ import annotations

from typing import Any

from meshllm.wire.api import strict_json
from meshllm.wire.api.documents import chat_file_text
from meshllm.wire.api.refusal import invalid, unsupported

ROLES = frozenset(("system", "developer", "user", "assistant", "tool", "function"))
# An empty output of a tool may be null: a broken history must not end a session.
RESULT_ROLES = ("tool", "function")
_PLAIN_ROLES = ("user", "assistant", "system", "developer", "tool")
_TEXTS = frozenset(("text", "input_text", "output_text"))
# Fields of an assistant's message that clients copy from an answer, and that say nothing to a model.
_FROM_ANSWERS = ("refusal", "audio", "annotations", "function_call")


def kept_messages(messages: Any, param: str = "messages") -> Any:
    """The messages as the engine keeps them; the same list if they need no change, None if they are missing."""
    if messages is None:
        return None  # the engine refuses it
    if not isinstance(messages, list):
        raise invalid(param, f"'{param}' must be a list of messages.")
    kept: list[Any] | None = None
    for index, message in enumerate(messages):
        if (
            type(message) is dict
            and len(message) == 2
            and type(message.get("content")) is str
            and message.get("role") in _PLAIN_ROLES
        ):
            continue
        new = _message(message, f"{param}[{index}]")
        if new is not message:
            kept = list(messages) if kept is None else kept
            kept[index] = new
    return messages if kept is None else kept


def _message(message: Any, param: str) -> Any:
    if not isinstance(message, dict):
        raise invalid(param, f"'{param}' must be an object.")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise invalid(f"{param}.role", f"'{param}.role' must be one of {', '.join(sorted(ROLES))}.")
    changed: dict[str, Any] | None = None
    if None in message.values():
        changed = {key: value for key, value in message.items() if value is not None or key == "content"}
    content = message.get("content")
    if isinstance(content, list):
        parts = kept_parts(content, f"{param}.content")
        if parts is not content:
            changed = {**(changed or message), "content": parts}
    elif content is not None and not isinstance(content, str):
        raise invalid(f"{param}.content", f"'{param}.content' must be a text or a list of parts.")
    for field in ("name", "tool_call_id", "reasoning_content"):
        if not isinstance(message.get(field), str | None):
            raise invalid(f"{param}.{field}", f"'{param}.{field}' must be a text.")
    if role == "assistant":
        return _assistant(message, changed, param)
    if content is None and (role not in RESULT_ROLES or "content" not in message):
        raise invalid(f"{param}.content", f"'{param}.content' is missing: send a text or a list of parts.")
    if role == "function":
        changed = {**(changed or message), "role": "tool", "tool_call_id": str(message.get("name") or "")}
    return message if changed is None else changed


def _assistant(message: dict[str, Any], changed: dict[str, Any] | None, param: str) -> dict[str, Any]:
    calls = message.get("tool_calls")
    legacy = message.get("function_call")
    if calls is None and legacy is not None:
        calls = [{"type": "function", "id": legacy.get("name"), "function": legacy}] if isinstance(legacy, dict) else 0
    if calls is not None:
        kept = kept_calls(calls, f"{param}.tool_calls")
        if kept is not message.get("tool_calls"):
            changed = {**(changed or message), "tool_calls": kept}
            if not kept:
                del changed["tool_calls"]
    if any(field in message for field in _FROM_ANSWERS):
        changed = {key: value for key, value in (changed or message).items() if key not in _FROM_ANSWERS}
        if not message.get("content") and isinstance(refusal := message.get("refusal"), str):
            changed["content"] = refusal
    final = message if changed is None else changed
    if "content" not in final and "tool_calls" not in final:
        if "content" not in message and "refusal" not in message and "reasoning_content" not in message:
            raise invalid(f"{param}.content", f"'{param}' must have 'content' or 'tool_calls'.")
        final = {**final, "content": ""}
    return final


def kept_parts(parts: list[Any], param: str) -> list[Any]:
    """The parts of a message's content as the engine keeps them; the same list if they need no change."""
    kept = [_part(part, f"{param}[{index}]") for index, part in enumerate(parts)]
    return parts if all(new is old for new, old in zip(kept, parts, strict=True)) else kept


def _part(part: Any, param: str) -> Any:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise invalid(f"{param}.type", f"'{param}' must be an object with a 'type'.")
    if kind in _TEXTS or kind == "refusal":
        field = "refusal" if kind == "refusal" else "text"
        text = part.get(field)
        if not isinstance(text, str):
            raise invalid(f"{param}.{field}", f"'{param}.{field}' must be a text.")
        return part if kind == "text" else {"type": "text", "text": text}
    if kind == "file":
        return {"type": "text", "text": chat_file_text(part.get("file"), f"{param}.file")}
    if kind == "image_url":
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        if not isinstance(url, str) or not url:
            raise invalid(f"{param}.image_url", f"'{param}.image_url.url' must be a URL or a data URL.")
        return part if isinstance(image, dict) else {"type": kind, "image_url": {"url": url}}
    if kind in ("input_audio", "input_video", "video_url"):
        return part  # for models that hear or see; the engine's refusal is translated
    raise unsupported(f"{param}.type", f"'{param}' has the type '{kind[:40]}', which no model here reads.")


def kept_calls(calls: Any, param: str) -> list[Any]:
    """The tool calls of an assistant's message as the engine keeps them; the same list if they need no change."""
    if not isinstance(calls, list):
        raise invalid(param, f"'{param}' must be a list of tool calls.")
    kept = [_call(call, f"{param}[{index}]") for index, call in enumerate(calls)]
    return calls if kept and all(new is old for new, old in zip(kept, calls, strict=True)) else kept


def _call(call: Any, param: str) -> Any:
    if not isinstance(call, dict):
        raise invalid(param, f"'{param}' must be an object.")
    kind = call.get("type")
    function = call.get("function")
    if kind == "custom" and isinstance(custom := call.get("custom"), dict):
        kind, function = None, {"name": custom.get("name"), "arguments": object_text({"input": custom.get("input")})}
    if kind not in (None, "function"):
        raise invalid(f"{param}.type", f"'{param}.type' must be 'function'.")
    if not isinstance(function, dict):
        raise invalid(f"{param}.function", f"'{param}.function' must be an object.")
    name, ident = function.get("name"), call.get("id")
    if not isinstance(name, str):
        raise invalid(f"{param}.function.name", f"'{param}.function.name' must be a text.")
    if not isinstance(ident, str | None):
        raise invalid(f"{param}.id", f"'{param}.id' must be a text.")
    arguments = kept_arguments(function.get("arguments"))
    if kind == "function" and arguments is function.get("arguments") and ident is not None:
        return call
    kept = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return kept if ident is None else {"id": ident, **kept}


def kept_arguments(arguments: Any) -> str:
    """The arguments of a call as the text of a JSON object, which templates require.

    Empty ones become `{}`. Those that are no object (a small model's, cut off or malformed) are kept as one string, so
    that the model sees what it wrote: an error here would end the whole conversation.
    """
    if not isinstance(arguments, str):
        return "{}" if arguments is None else object_text(arguments)
    if not arguments.strip():
        return "{}"
    if strict_json.loads_object(arguments) is not None:
        return arguments
    return object_text({"invalid_arguments": arguments})


def object_text(value: Any) -> str:
    """A JSON object as text; any other value in a field `value`."""
    return strict_json.dumps(value if isinstance(value, dict) else {"value": value}).decode()
