"""A body of `/v1/messages` in the shape of `/v1/chat/completions`.

For what the engine's own conversion of that API drops: schemas of answers, one call at a time. It expects blocks that
`messages_blocks` has checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshllm.wire.api import strict_json

# The engine's default for a message without a limit.
_DEFAULT_MAX_TOKENS = 4096
_COPIED = ("model", "temperature", "top_p", "top_k", "stream", "chat_template_kwargs")


def chat_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body with its messages, tools and limits; the tool choice and the schema are the caller's to add."""
    chat: dict[str, Any] = {key: body[key] for key in _COPIED if body.get(key) is not None}
    chat["messages"] = chat_messages(body)
    chat["max_tokens"] = body.get("max_tokens", _DEFAULT_MAX_TOKENS)
    if body.get("stop_sequences"):
        chat["stop"] = body["stop_sequences"]
    if body.get("tools"):
        chat["tools"] = [chat_tool(tool) for tool in body["tools"]]
    thinking = body.get("thinking")
    if isinstance(thinking, dict) and thinking.get("type") == "enabled":
        chat["thinking_budget_tokens"] = thinking.get("budget_tokens", 10000)
    if body.get("stream") is True:
        chat["stream_options"] = {"include_usage": True}
    return chat


def chat_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool in the shape of chat."""
    function = {"name": tool["name"], "parameters": tool.get("input_schema") or {"type": "object"}}
    for field in ("description", "strict"):
        if tool.get(field):
            function[field] = tool[field]
    return {"type": "function", "function": function}


def chat_messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The system prompt and the messages in the shape of chat."""
    messages: list[dict[str, Any]] = []
    system = body.get("system")
    if system is not None:
        text = system if isinstance(system, str) else "".join(block["text"] for block in system)
        messages.append({"role": "system", "content": text})
    for message in body["messages"]:
        content = message["content"]
        if isinstance(content, str):
            messages.append({"role": message["role"], "content": content})
        else:
            messages += _with_blocks(message["role"], content)
    return messages


def _with_blocks(role: str, blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    parts, calls, results, thoughts = [], [], [], ""
    for block in blocks:
        match block["type"]:
            case "thinking":
                thoughts += block.get("thinking") or ""
            case "tool_use":
                function = {"name": block["name"], "arguments": strict_json.dumps(block["input"]).decode()}
                calls.append({"id": block["id"], "type": "function", "function": function})
            case "tool_result":
                results.append(
                    {"role": "tool", "tool_call_id": block["tool_use_id"], "content": _result(block.get("content"))}
                )
            case _:
                parts.append(_part(block))
    messages: list[dict[str, Any]] = []
    if parts or calls or thoughts:
        message: dict[str, Any] = {"role": role, "content": parts or ""}
        if calls:
            message["tool_calls"] = calls
        if thoughts:
            message["reasoning_content"] = thoughts
        messages.append(message)
    return messages + results


def _result(content: Any) -> Any:
    if content is None or isinstance(content, str):
        return content or ""
    if any(block["type"] == "image" for block in content):
        return [_part(block) for block in content]
    return "".join(block.get("text", "") for block in content)


def _part(block: dict[str, Any]) -> dict[str, Any]:
    if block["type"] != "image":
        return {"type": "text", "text": block["text"]}
    source = block["source"]
    url = source.get("url") or f"data:{source.get('media_type') or 'image/jpeg'};base64,{source['data']}"
    return {"type": "image_url", "image_url": {"url": url}}
