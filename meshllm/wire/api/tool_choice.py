"""The tool choice of each API, in one form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from meshllm.wire.api.refusal import invalid

_MAX_ALLOWED = 512


class Mode(Enum):
    """Whether the model may, must or must not call a tool."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """`names`: the tools that may be called; None for all."""

    mode: Mode = Mode.AUTO
    names: tuple[str, ...] | None = None
    single: bool = False
    """At most one call in an answer (Anthropic's `disable_parallel_tool_use`)."""

    @property
    def allows_all(self) -> bool:
        """Whether every tool may be called."""
        return self.mode is not Mode.NONE and self.names is None

    def allows(self, name: object) -> bool:
        """Whether the tool may be called."""
        return self.mode is not Mode.NONE and (self.names is None or name in self.names)


AUTO = ToolChoice()


def chat_choice(value: object) -> ToolChoice:
    """The choice of `/v1/chat/completions`; RequestRefused if there is no such choice."""
    if isinstance(value, dict) and value.get("type") == "allowed_tools":
        inner = value.get("allowed_tools")
        return _allowed(inner if isinstance(inner, dict) else {}, "tool_choice.allowed_tools")
    if isinstance(value, dict) and value.get("type") in ("function", "custom"):
        inner = value.get(value["type"])
        name = inner.get("name") if isinstance(inner, dict) else value.get("name")
        return _named(name, f"tool_choice.{value['type']}.name")
    return _word(value)


def responses_choice(value: object) -> ToolChoice:
    """The choice of `/v1/responses`; RequestRefused if there is no such choice."""
    if isinstance(value, dict):
        kind = value.get("type")
        if kind == "allowed_tools":
            return _allowed(value, "tool_choice")
        if kind in ("function", "custom"):
            return _named(value.get("name"), "tool_choice.name")
        if isinstance(kind, str):
            return ToolChoice(Mode.REQUIRED, (kind,))  # a built-in tool: unknown here, unless a tool has its name
    return _word(value)


def messages_choice(value: object) -> ToolChoice:
    """The choice of `/v1/messages`; RequestRefused if there is no such choice."""
    if value is None:
        return AUTO
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict) or kind not in ("auto", "any", "tool", "none"):
        raise invalid("tool_choice", "'tool_choice' must be an object of the type 'auto', 'any', 'tool' or 'none'.")
    single = value.get("disable_parallel_tool_use") is True
    if kind == "tool":
        return _named(value.get("name"), "tool_choice.name")
    mode = {"auto": Mode.AUTO, "any": Mode.REQUIRED, "none": Mode.NONE}[kind]
    return ToolChoice(mode, None, single)


def check_names(choice: ToolChoice, offered: Iterable[object], param: str = "tool_choice") -> None:
    """Refuse a choice of tools that the request does not offer."""
    names = set(offered)
    if choice.names is not None:
        for name in choice.names:
            if name not in names:
                raise invalid(param, f"'{param}' names the tool '{name[:80]}', which is not among the tools offered.")
    elif choice.mode is Mode.REQUIRED and not names:
        raise invalid(param, f"'{param}' requires a tool call, but the request offers no tools.")


def _word(value: object) -> ToolChoice:
    if value is None:
        return AUTO
    if value in ("auto", "none", "required"):
        return ToolChoice(Mode(value))
    raise invalid("tool_choice", "'tool_choice' must be 'auto', 'none', 'required' or an object that names tools.")


def _named(name: object, param: str) -> ToolChoice:
    if not isinstance(name, str) or not name:
        raise invalid(param, f"'{param}' must be the name of a tool.")
    return ToolChoice(Mode.REQUIRED, (name,))


def _allowed(value: dict[str, Any], param: str) -> ToolChoice:
    mode, tools = value.get("mode", "auto"), value.get("tools")
    if mode not in ("auto", "required"):
        raise invalid(f"{param}.mode", f"'{param}.mode' must be 'auto' or 'required'.")
    if not isinstance(tools, list) or not 0 < len(tools) <= _MAX_ALLOWED:
        raise invalid(f"{param}.tools", f"'{param}.tools' must be a list of 1 to {_MAX_ALLOWED} tools.")
    return ToolChoice(Mode(mode), tuple(_tool_name(tool, f"{param}.tools[{i}]") for i, tool in enumerate(tools)))


def _tool_name(tool: object, param: str) -> str:
    found = None
    if isinstance(tool, dict):
        inner = tool.get("function")
        found = inner.get("name") if isinstance(inner, dict) else tool.get("name") or tool.get("type")
    if not isinstance(found, str) or not found:
        raise invalid(param, f"'{param}' must name a tool.")
    return found


def names_of(tools: Sequence[Any]) -> list[str]:
    """The names of tools in the shape of chat."""
    return [tool["function"]["name"] for tool in tools]
