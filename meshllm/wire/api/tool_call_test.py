"""The one request that shows whether a model calls tools, and what counts as a call. Pure.

The call is forced in the engine's own way (`tool_choice: required`), not in the gateway's: the engine lets the model
write text first, and takes a call only if the model begins one in the format of its template. A model that cannot do
that writes text until the limit. In the gateway's way every model calls, because its answer is fitted to a schema.
"""

from __future__ import annotations

from typing import Any

from meshllm.wire.api import strict_json

# A model that reasons first, against what the request says, needs the room.
MAX_TOKENS = 256
_TOOL, _PATH = "read_file", "notes.txt"

REQUEST: dict[str, Any] = {
    "messages": [{"role": "user", "content": f"Read the file {_PATH} with the tool {_TOOL}."}],
    "tools": [
        {
            "type": "function",
            "function": {
                "name": _TOOL,
                "description": "Returns the text of a file.",
                "parameters": {
                    "type": "object",
                    "properties": {"path": {"type": "string", "description": "Path of the file."}},
                    "required": ["path"],
                },
            },
        }
    ],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "max_tokens": MAX_TOKENS,
    "temperature": 0,
    "chat_template_kwargs": {"enable_thinking": False},
}
"""The body of `/v1/chat/completions` of an engine."""


def is_call(reply: bytes) -> bool | None:
    """Whether a reply with status 200 has the call that was asked for, with its argument; None for no such reply."""
    choices = (strict_json.loads_object(reply) or {}).get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        return None
    calls = message.get("tool_calls")
    call = calls[0] if isinstance(calls, list) and calls else None
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or function.get("name") != _TOOL:
        return False
    text = function.get("arguments")
    arguments = strict_json.loads_object(text.encode()) if isinstance(text, str) else None
    return isinstance((arguments or {}).get("path"), str)
