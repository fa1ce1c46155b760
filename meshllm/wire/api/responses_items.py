"""Input items of `/v1/responses` as the engine reads them.

The engine knows messages, function calls and their outputs, and reasoning with text. Items of other services' tools,
which a session begun there brings along, become function calls or words: an error would end the session.
"""

from __future__ import annotations

from typing import Any

from meshllm.wire.api import strict_json
from meshllm.wire.api.chat_messages import kept_arguments, object_text
from meshllm.wire.api.documents import chat_file_text
from meshllm.wire.api.offered_tools import OfferedTools
from meshllm.wire.api.refusal import invalid, unsupported

_ROLES = ("user", "system", "developer", "assistant")
_TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
_NO_STATE = "This node keeps no state between requests: send the whole conversation in 'input'."
_COMPACTED = "[An earlier part of this conversation was compacted by another service and cannot be read here.]"
# Calls that the caller ran itself, and their outputs.
_LOCAL_CALLS = ("custom_tool_call", "local_shell_call", "shell_call", "apply_patch_call", "computer_call")
_HOSTED_CALLS = (
    "web_search_call",
    "file_search_call",
    "image_generation_call",
    "code_interpreter_call",
    "tool_search_call",
)
_SKIPPED = ("mcp_list_tools", "mcp_approval_request", "mcp_approval_response", "tool_search_output", "additional_tools")
_NOT_ARGUMENTS = frozenset(("id", "type", "call_id", "status", "name", "namespace", "output", "pending_safety_checks"))


def kept_items(items: list[Any], tools: OfferedTools) -> list[Any]:
    """The items as the engine keeps them; the same list if they need no change."""
    kept = [new for index, item in enumerate(items) for new in _kept(item, f"input[{index}]", tools)]
    if len(kept) == len(items) and all(new is old for new, old in zip(kept, items, strict=True)):
        return items
    return kept


def _kept(item: Any, param: str, tools: OfferedTools) -> list[Any]:
    """What the engine gets for an item; empty if it is left out."""
    if not isinstance(item, dict):
        raise invalid(param, f"'{param}' must be an object.")
    kind = item.get("type")
    if kind is None and "role" not in item and isinstance(item.get("id"), str):
        kind = "item_reference"
    if kind in (None, "message"):
        return [_message(item, param)]
    if kind == "function_call":
        return [_call(item, param, tools)]
    if kind == "function_call_output":
        return [_output(item, param)]
    if kind == "reasoning":
        return _reasoning(item)
    if kind == "item_reference":
        raise unsupported(param, f"'{param}' refers to a stored item. {_NO_STATE}")
    return _foreign(item, str(kind), param, tools)


def _message(item: dict[str, Any], param: str) -> Any:
    role, content = item.get("role"), item.get("content")
    if role not in _ROLES:
        raise invalid(f"{param}.role", f"'{param}.role' must be one of {', '.join(_ROLES)}.")
    changed = {key: value for key, value in item.items() if value is not None} if None in item.values() else None
    if role == "assistant" and item.get("type") is None:
        changed = {**(changed or item), "type": "message"}
    if isinstance(content, list):
        parts = [_part(part, f"{param}.content[{index}]", role) for index, part in enumerate(content)]
        if any(new is not old for new, old in zip(parts, content, strict=True)):
            changed = {**(changed or item), "content": parts}
    elif content is None and role != "assistant":
        raise invalid(f"{param}.content", f"'{param}.content' is missing: send a text or a list of parts.")
    elif content is None:
        changed = {**(changed or item), "content": ""}
    elif not isinstance(content, str):
        raise invalid(f"{param}.content", f"'{param}.content' must be a text or a list of parts.")
    return item if changed is None else changed


def _part(part: Any, param: str, role: str) -> Any:
    """A part of a message, or of an output (role `tool`)."""
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise invalid(f"{param}.type", f"'{param}' must be an object with a 'type'.")
    wanted = "output_text" if role == "assistant" else "input_text"
    if kind in _TEXTS:
        if not isinstance(part.get("text"), str):
            raise invalid(f"{param}.text", f"'{param}.text' must be a text.")
        return part if kind == wanted else {"type": wanted, "text": part["text"]}
    if kind == "refusal":
        if not isinstance(part.get("refusal"), str):
            raise invalid(f"{param}.refusal", f"'{param}.refusal' must be a text.")
        return {"type": wanted, "text": part["refusal"]}
    if kind == "input_file":
        return {"type": wanted, "text": chat_file_text(part, param)}
    if kind == "input_image" and role != "assistant":
        if not isinstance(part.get("image_url"), str):
            raise unsupported(f"{param}.image_url", f"'{param}.image_url' must be a URL: files are not stored here.")
        return part
    raise unsupported(f"{param}.type", f"'{param}' has the type '{kind[:40]}', which no model here reads.")


def _call(item: dict[str, Any], param: str, tools: OfferedTools) -> Any:
    name, call_id = item.get("name"), item.get("call_id") or item.get("id")
    if not isinstance(name, str):
        raise invalid(f"{param}.name", f"'{param}.name' must be a text.")
    if not isinstance(call_id, str):
        raise invalid(f"{param}.call_id", f"'{param}.call_id' must be a text.")
    arguments, offered = kept_arguments(item.get("arguments")), tools.offered_name(name, item.get("namespace"))
    if arguments is item.get("arguments") and offered == name and item.get("call_id") is call_id:
        return item
    return _function_call(call_id, offered, arguments)


def _function_call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}


def _output(item: dict[str, Any], param: str) -> Any:
    call_id, output = item.get("call_id"), item.get("output")
    if not isinstance(call_id, str):
        raise invalid(f"{param}.call_id", f"'{param}.call_id' must be a text.")
    if isinstance(output, str):
        return item
    if isinstance(output, list):
        parts = [_part(part, f"{param}.output[{index}]", "tool") for index, part in enumerate(output)]
        return item if all(a is b for a, b in zip(parts, output, strict=True)) else {**item, "output": parts}
    return {**item, "output": "" if output is None else strict_json.dumps(output).decode()}


def _reasoning(item: dict[str, Any]) -> list[Any]:
    """The engine refuses reasoning items without text (a summary only, or encrypted)."""
    content, summary = _list(item.get("content")), _list(item.get("summary"))
    text = next((text for text in map(_text, content + summary) if text), None)
    if text is None:
        return []
    if not content or not _text(content[0]) or item.get("summary") != summary:
        return [{**item, "summary": summary, "content": [{"type": "reasoning_text", "text": text}]}]
    return [item]


def _foreign(item: dict[str, Any], kind: str, param: str, tools: OfferedTools) -> list[Any]:
    """An item of a tool that the engine does not know, as a function call, its output, or words."""
    call_id = item.get("call_id") or item.get("id")
    call_id = call_id if isinstance(call_id, str) and call_id else param
    if kind in _LOCAL_CALLS:
        name = item.get("name") if isinstance(item.get("name"), str) else kind.removesuffix("_call")
        about = {key: value for key, value in item.items() if key not in _NOT_ARGUMENTS}
        return [_function_call(call_id, tools.offered_name(str(name)), object_text(about))]
    if kind.removesuffix("_output") in _LOCAL_CALLS:
        return [_output({"type": "function_call_output", "call_id": call_id, "output": item.get("output")}, param)]
    if kind == "mcp_call":
        name, result = str(item.get("name") or "mcp"), item.get("output") or item.get("error")
        output = {"type": "function_call_output", "call_id": call_id, "output": result}
        return [_function_call(call_id, name, kept_arguments(item.get("arguments"))), _output(output, param)]
    if kind in _HOSTED_CALLS:
        about = {
            key: value for key, value in item.items() if key in ("action", "queries", "code", "outputs", "results")
        }
        words = f"[{kind.removesuffix('_call').replace('_', ' ')} by another service: {object_text(about)}]"
        return [_said(words)]
    if kind in _SKIPPED:
        return []
    if kind in ("compaction", "compaction_summary", "context_compaction"):
        return [{"role": "developer", "content": _COMPACTED}]
    raise unsupported(f"{param}.type", f"'{param}' has the type '{kind[:40]}', which is not known here.")


def _said(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(part: Any) -> str:
    text = part.get("text") if isinstance(part, dict) else None
    return text if isinstance(text, str) else ""
