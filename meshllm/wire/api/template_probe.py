"""Small conversations that show what a chat template renders, and what follows from their prompts. Pure.

The engine renders each (`/apply-template`). A conversation is rendered if there is no exception and the prompt
has every word of it, in order: a template that leaves a message out is as bad as one that raises an exception.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from meshllm.core.serving.template_traits import TemplateTraits

# Words that are in no template.
_RULE, _MORE_RULES, _ASK, _ASK_MORE, _SAY, _SAY_MORE = (f"zq{name}xw" for name in ("ra", "rb", "ua", "ub", "aa", "ab"))
_TOOL, _VALUE, _RESULT = "zqtaxw", "zqvaxw", "zqreaxw"

_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": _TOOL,
            "description": "Reads a file.",
            "parameters": {"type": "object", "properties": {"path": {"type": "string"}}},
        },
    }
]
_FUNCTION = {"name": _TOOL, "arguments": f'{{"path": "{_VALUE}"}}'}
# Nine letters and digits, which some templates require.
_CALL_ID = "call00001"

Conversation = Mapping[str, Any]
"""A body of `/apply-template`."""


def _said(
    *messages: tuple[str, str], tools: bool = False, call_id: str = _CALL_ID, parts: bool = False
) -> Conversation:
    """A conversation of roles and texts; `call` and `tool` as roles are a tool's call and its result."""
    written: list[dict[str, Any]] = []
    for role, text in messages:
        if role == "call":
            call = {"id": call_id, "type": "function", "function": _FUNCTION}
            written.append({"role": "assistant", "content": "", "tool_calls": [call]})
        elif role == "tool":
            written.append({"role": "tool", "tool_call_id": call_id, "content": text})
        else:
            written.append({"role": role, "content": [{"type": "text", "text": text}] if parts else text})
    return {"messages": written, "tools": _TOOLS} if tools else {"messages": written}


_USE = (("user", _ASK), ("call", ""), ("tool", _RESULT))

PLAIN = _said(("user", _ASK))
"""The conversation that every template must render; if it does not, nothing can be found out."""

SYSTEM_BESIDE_CALLS = "system_beside_calls"

PROBES: Mapping[str, tuple[Conversation, ...]] = {
    "system": (_said(("system", _RULE), ("user", _ASK)),),
    "developer": (_said(("developer", _RULE), ("user", _ASK)),),
    "systems_first": (_said(("system", _RULE), ("system", _MORE_RULES), ("user", _ASK)),),
    # At an even and an odd place: some templates count.
    "later_system": (
        _said(("user", _ASK), ("system", _RULE), ("assistant", _SAY), ("user", _ASK_MORE)),
        _said(("user", _ASK), ("assistant", _SAY), ("system", _RULE), ("user", _ASK_MORE)),
    ),
    "system_alone": (_said(("system", _RULE)),),
    "users_in_row": (_said(("user", _ASK), ("user", _ASK_MORE)),),
    "assistants_in_row": (_said(("user", _ASK), ("assistant", _SAY), ("assistant", _SAY_MORE), ("user", _ASK_MORE)),),
    "tools": (_said(("user", _ASK), tools=True),),
    "calls": (_said(*_USE, tools=True),),
    "long_call_ids": (_said(*_USE, tools=True, call_id="call_Zq-0123456789"),),
    # Some compare messages to find the last one, which fails with parts: then they leave the tools out.
    "parts": (
        _said(("user", _ASK), ("assistant", _SAY), ("user", _ASK_MORE), parts=True),
        _said(("user", _ASK), ("assistant", _SAY), ("user", _ASK_MORE), parts=True, tools=True),
    ),
    # Some write the system message into the last message, if that is the user's: then not in the midst of calls.
    SYSTEM_BESIDE_CALLS: (_said(("system", _RULE), *_USE, tools=True),),
    "user_after_tool": (_said(*_USE, ("user", _ASK_MORE), tools=True),),
    "assistant_first": (_said(("assistant", _SAY), ("user", _ASK)),),
}
"""For each trait, and for `SYSTEM_BESIDE_CALLS`, the conversations that must be rendered."""


def renders(conversation: Conversation, prompt: str | None) -> bool:
    """Whether `prompt` (None: an exception) has every word of `conversation`, in order."""
    if prompt is None:
        return False
    if "tools" in conversation and _TOOL not in prompt:
        return False
    place = 0
    for message in conversation["messages"]:
        for word in (_TOOL, _VALUE) if "tool_calls" in message else (_text(message["content"]),):
            place = prompt.find(word, place) + 1
            if place == 0:
                return False
    return True


def _text(content: Any) -> str:
    return str(content if isinstance(content, str) else content[0]["text"])


def traits_from(rendered: Mapping[str, bool]) -> TemplateTraits:
    """The traits, given whether all conversations of each probe were rendered."""
    found = TemplateTraits(**{name: value for name, value in rendered.items() if name != SYSTEM_BESIDE_CALLS})
    if found.calls and not rendered[SYSTEM_BESIDE_CALLS]:
        found = replace(found, system=False)
    if not found.tools:
        found = replace(found, parts=True)  # what was missing are the tools
    if found.calls:
        return found
    # Results become messages of the user, so that another one is the second in a row; identifiers are not written.
    return replace(found, user_after_tool=True, long_call_ids=True)
