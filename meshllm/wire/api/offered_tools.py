"""Tools that a request offers, as the engine reads them, and what their names mean to the caller.

The engine knows functions only. `/v1/responses` also has custom tools (their input is one text) and namespaces of
functions (Codex sends those of MCP servers so): both are offered as functions, and calls are translated back. Built-in
tools that a service runs itself (web search and such) are left out beside others, because agents send them in every
request; a request that has only these, or that demands one, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meshllm.wire.api.refusal import invalid, unsupported

MAX_TOOLS = 4096
# Letters of a tool's name that a message repeats.
MAX_SHOWN = 80
_CUSTOM_INPUT = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Origin:
    """What the caller calls a tool that is offered under another name or as another kind."""

    name: str
    namespace: str | None = None
    custom: bool = False


@dataclass(frozen=True, slots=True)
class OfferedTools:
    """`tools`: as the engine reads them; `origins`: by offered name, of those that differ from what the caller sent."""

    tools: list[Any]
    origins: Mapping[str, Origin]

    def offered_name(self, name: str, namespace: object = None) -> str:
        """The name under which the caller's tool is offered."""
        for offered, origin in self.origins.items():
            if origin.name == name and (namespace is None or origin.namespace == namespace):
                return offered
        return name


NO_TOOLS = OfferedTools([], {})


def chat_tools(tools: object, param: str = "tools") -> list[Any]:
    """The tools of `/v1/chat/completions` as the engine keeps them; the same list if they need no change."""
    found = _list(tools, param)
    kept = [_chat_tool(tool, f"{param}[{index}]") for index, tool in enumerate(found)]
    return found if all(new is old for new, old in zip(kept, found, strict=True)) else kept


def _chat_tool(tool: Any, param: str) -> Any:
    if not isinstance(tool, dict):
        raise invalid(param, f"'{param}' must be an object.")
    kind, function = tool.get("type"), tool.get("function")
    if kind not in (None, "function"):
        raise unsupported(f"{param}.type", f"'{param}.type' is '{str(kind)[:40]}': only 'function' is supported here.")
    if not isinstance(function, dict):
        raise invalid(f"{param}.function", f"'{param}.function' must be an object.")
    kept = _function(function, f"{param}.function", "parameters")
    return tool if kept is function and kind is not None else {**tool, "type": "function", "function": kept}


def messages_tools(tools: object, param: str = "tools") -> list[Any]:
    """The tools of `/v1/messages` as the engine keeps them; the same list if they need no change."""
    found = _list(tools, param)
    kept: list[Any] = []
    skipped = ""
    for index, tool in enumerate(found):
        where = f"{param}[{index}]"
        if not isinstance(tool, dict):
            raise invalid(where, f"'{where}' must be an object.")
        kind = tool.get("type")
        if kind not in (None, "custom") and tool.get("input_schema") is None:
            skipped = skipped or _built_in(where, kind)
            continue
        kept.append(_function(tool, where, "input_schema"))
        if tool.get("input_schema") is None:
            about = f"of the tool '{tool['name'][:MAX_SHOWN]}'"
            raise invalid(
                f"{where}.input_schema", f"'{where}.input_schema' {about} is missing: it must be a JSON schema."
            )
    if skipped and not kept:
        raise unsupported(f"{param}[0].type", skipped)
    return found if len(kept) == len(found) and all(a is b for a, b in zip(kept, found, strict=True)) else kept


def responses_tools(tools: object, param: str = "tools") -> OfferedTools:
    """The tools of `/v1/responses` as functions."""
    found = _list(tools, param)
    if all(isinstance(tool, dict) and tool.get("type") == "function" for tool in found):
        plain = [_function(tool, f"{param}[{index}]", "parameters") for index, tool in enumerate(found)]
        return OfferedTools(found if all(a is b for a, b in zip(plain, found, strict=True)) else plain, {})
    return _Functions(found, param).offered()


class _Functions:
    """Makes functions of tools of all kinds."""

    def __init__(self, tools: Sequence[Any], param: str) -> None:
        self._param = param
        self._functions: list[dict[str, Any]] = []
        self._origins: dict[str, Origin] = {}
        self._taken = {
            tool["name"]
            for tool in tools
            if isinstance(tool, dict)
            and tool.get("type") in ("function", "custom")
            and isinstance(tool.get("name"), str)
        }
        self._skipped = ""
        for index, tool in enumerate(tools):
            self._add(tool, f"{param}[{index}]")

    def offered(self) -> OfferedTools:
        """All functions."""
        if self._skipped and not self._functions:
            raise unsupported(f"{self._param}[0].type", self._skipped)
        return OfferedTools(self._functions, self._origins)

    def _add(self, tool: Any, param: str) -> None:
        kind = tool.get("type") if isinstance(tool, dict) else None
        if not isinstance(kind, str):
            raise invalid(f"{param}.type", f"'{param}' must be an object with a 'type'.")
        if kind == "function":
            self._functions.append(_function(tool, param, "parameters"))
        elif kind == "custom":
            self._add_custom(tool, param)
        elif kind == "namespace":
            self._add_namespace(tool, param)
        else:
            self._skipped = self._skipped or _built_in(param, kind)

    def _add_custom(self, tool: dict[str, Any], param: str) -> None:
        grammar = tool.get("format")
        if isinstance(grammar, dict) and grammar.get("type") not in (None, "text", "grammar"):
            raise unsupported(f"{param}.format", f"'{param}.format' is not supported here.")
        name = _name(tool, param)
        about = tool.get("description") if isinstance(tool.get("description"), str) else ""
        if isinstance(grammar, dict) and isinstance(grammar.get("definition"), str):
            about = f"{about}\nThe input follows this grammar:\n{grammar['definition']}"
        function = {"type": "function", "name": name, "parameters": _CUSTOM_INPUT, "strict": True}
        self._functions.append({**function, "description": about} if about else function)
        self._origins[name] = Origin(name, None, custom=True)

    def _add_namespace(self, tool: dict[str, Any], param: str) -> None:
        space, about = _name(tool, param), tool.get("description")
        for index, inner in enumerate(_list(tool.get("tools"), f"{param}.tools")):
            where = f"{param}.tools[{index}]"
            if not isinstance(inner, dict) or inner.get("type") != "function":
                raise unsupported(f"{where}.type", f"'{where}' must be a function.")
            function = _function(inner, where, "parameters")
            offered = name = function["name"]
            if offered in self._taken:
                offered = f"{space.removesuffix('__')}__{name}"
            if offered in self._taken:
                raise invalid(f"{where}.name", f"'{where}.name': two tools have the name '{offered[:80]}'.")
            self._taken.add(offered)
            self._origins[offered] = Origin(name, space)
            words = [text for text in (about, function.get("description")) if isinstance(text, str) and text]
            self._functions.append({**function, "name": offered, "description": "\n".join(words)})


def _function(function: dict[str, Any], param: str, schema: str) -> dict[str, Any]:
    """A function without null fields; the same object if it has none."""
    about = f"of the tool '{_name(function, param)[:MAX_SHOWN]}'"
    if not isinstance(function.get("description"), str | None):
        raise invalid(f"{param}.description", f"'{param}.description' {about} must be a text.")
    if not isinstance(function.get(schema), dict | None):
        raise invalid(f"{param}.{schema}", f"'{param}.{schema}' {about} must be a JSON schema.")
    if not isinstance(function.get("strict"), bool | None):
        raise invalid(f"{param}.strict", f"'{param}.strict' {about} must be true or false.")
    if None not in function.values():
        return function
    return {key: value for key, value in function.items() if value is not None}


def _name(tool: dict[str, Any], param: str) -> str:
    name = tool.get("name")
    if not isinstance(name, str) or not name:
        raise invalid(f"{param}.name", f"'{param}.name' must be a text.")
    return name


def _list(tools: object, param: str) -> list[Any]:
    if not isinstance(tools, list):
        raise invalid(param, f"'{param}' must be a list.")
    if len(tools) > MAX_TOOLS:
        raise invalid(param, f"'{param}' has {len(tools)} entries; at most {MAX_TOOLS} are accepted.")
    return tools


def _built_in(param: str, kind: object) -> str:
    return f"'{param}' is the built-in tool '{str(kind)[:40]}': the models here call only functions that you run."
