"""Tools, calls and results as texts, for chat templates that do not render them. Pure.

Most templates without tools get a place for them when the engine starts (`engine/processes/chat_template.py`), so that
the engine parses and enforces calls. This is for the others: those that leave out the definitions of tools, or calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from meshllm.wire.api import strict_json
from meshllm.wire.api.conversation_format import ANTHROPIC, CHAT, RESPONSES, Entry, EntryRole, Format, plain
from meshllm.wire.api.refusal import unsupported
from meshllm.wire.api.routes import Api

INTRODUCTION = "These functions are available, each described as JSON on a line of its own:"

_CALL_ID_LENGTH = 9


def describe_tools(api: Api, body: Mapping[str, Any]) -> dict[str, Any] | None:
    """`body` with its tools described in the system text; None if it has none, or may not use them.

    The tools stay, for the engine's parser of calls. Raises RequestRefused if a call is required: nothing enforces it.
    """
    tools, choice = body.get("tools"), body.get("tool_choice")
    # With a schema, "none" concerns the engine's own parser only: the schema is that of a call (`call_envelope`).
    if not isinstance(tools, list) or not tools or (choice == "none" and "json_schema" not in body):
        return None
    if choice == "required" or (isinstance(choice, dict) and choice.get("type") not in ("auto", "none")):
        message = "The chat template of this model does not support tools, so that a call cannot be required."
        raise unsupported("tool_choice", message)
    lines = [strict_json.dumps(tool).decode() for tool in tools if isinstance(tool, dict)]
    text = "\n".join([INTRODUCTION, "<tools>", *lines, "</tools>"])
    head = {Api.MESSAGES: "system", Api.COUNT_TOKENS: "system", Api.RESPONSES: "instructions"}.get(api)
    if head is None and isinstance(messages := body.get("messages"), list):
        count = next((index for index, entry in enumerate(messages) if CHAT.role(entry) is not EntryRole.SYSTEM), 0)
        message_of_tools = {"role": "system", "content": text}
        return {**body, "messages": [*messages[:count], message_of_tools, *messages[count:]]}
    head = head or "instructions"
    given = body.get(head)
    if isinstance(given, list):
        return {**body, head: [*given, {"type": "text", "text": f"\n\n{text}"}]}
    return {**body, head: f"{given}\n\n{text}" if given else text}


def call_as_text(entry: Entry, form: Format) -> dict[str, Any]:
    """An entry of the assistant with its calls in its text, as JSON in `<tool_call>`; equal to it if it has none."""
    if form is RESPONSES:
        if entry.get("type") != "function_call":
            return dict(entry)
        part = {"type": "output_text", "text": _call(entry.get("name"), entry.get("arguments"))}
        return {"type": "message", "role": "assistant", "content": [part]}
    if form is ANTHROPIC:
        if not isinstance(blocks := entry.get("content"), list):
            return dict(entry)
        return {**entry, "content": [_block_as_text(block) for block in blocks]}
    changed = dict(entry)
    calls = changed.pop("tool_calls", None)
    if isinstance(calls, list) and calls:
        functions = [call.get("function") for call in calls if isinstance(call, dict)]
        texts = [_call(found.get("name"), found.get("arguments")) for found in functions if isinstance(found, dict)]
        changed["content"] = "\n".join([text for text in (plain(entry.get("content")),) if text] + texts)
    return changed


def _block_as_text(block: Any) -> Any:
    if not isinstance(block, dict) or block.get("type") != "tool_use":
        return block
    return {"type": "text", "text": _call(block.get("name"), block.get("input"))}


def _call(name: Any, arguments: Any) -> str:
    written = arguments if isinstance(arguments, str) else strict_json.dumps(arguments).decode()
    return f'<tool_call>\n{{"name": {strict_json.dumps(name).decode()}, "arguments": {written or "{}"}}}\n</tool_call>'


def result_as_text(entry: Entry, form: Format) -> dict[str, Any]:
    """A tool's result as a message of the user, in `<tool_response>`; pictures in it stay."""
    if form.result:
        return {"role": "user", "content": _response(entry.get(form.result), form)}
    results = [_response(block.get("content"), form) for block in entry["content"]]
    if all(isinstance(result, str) for result in results):
        return {"role": "user", "content": "\n".join(results)}
    return {"role": "user", "content": [part for result in results for part in _as_parts(result, form)]}


def _response(content: Any, form: Format) -> Any:
    text = plain(content)
    if text is not None:
        return f"<tool_response>\n{text}\n</tool_response>"
    before, after = "<tool_response>\n", "\n</tool_response>"
    return [*_as_parts(before, form), *_as_parts(content, form), *_as_parts(after, form)]


def _as_parts(content: Any, form: Format) -> list[Any]:
    if isinstance(content, list):
        return content
    return [{"type": form.text_type, "text": content}] if isinstance(content, str) else [content]


def with_short_ids(entry: Entry) -> Any:
    """The entry with identifiers of calls of nine letters and digits, the only ones that Mistral's templates accept."""
    changed = dict(entry)
    for field in ("tool_call_id", "call_id"):
        if isinstance(ident := changed.get(field), str):
            changed[field] = short_id(ident)
    for field, keys in (("tool_calls", ("id",)), ("content", ("id", "tool_use_id"))):
        if isinstance(found := changed.get(field), list):
            changed[field] = [_with_short_id(part, keys) for part in found]
    return changed if changed != entry else entry


def _with_short_id(part: Any, keys: tuple[str, ...]) -> Any:
    if not isinstance(part, dict):
        return part
    return part | {key: short_id(part[key]) for key in keys if isinstance(part.get(key), str)}


def short_id(ident: str) -> str:
    """Nine letters and digits, the same for the same identifier."""
    if len(ident) == _CALL_ID_LENGTH and ident.isascii() and ident.isalnum():
        return ident
    return blake2b(ident.encode("utf-8", "replace"), digest_size=8).hexdigest()[:_CALL_ID_LENGTH]
