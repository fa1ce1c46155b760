"""Schemas of answers and of tools in the fields of each API."""

from __future__ import annotations

from typing import Any

from meshllm.wire.api.prepared import Draft
from meshllm.wire.api.refusal import Refusal, RequestRefused
from meshllm.wire.api.schemas import for_answer, for_tool


def keep_answer_schema(draft: Draft, param: str, wanted: object) -> None:
    """Keep the schema of an answer, `wanted` in the shape of chat's `response_format`; `param` names it in errors."""
    if not isinstance(wanted, dict) or wanted.get("type") not in ("json_schema", "json_object"):
        return
    wrapper = wanted.get("json_schema") if wanted["type"] == "json_schema" else wanted
    if not isinstance(wrapper, dict) or not isinstance(schema := wrapper.get("schema"), dict):
        return
    kept = for_answer(schema, strict=wrapper.get("strict") is True)
    if isinstance(kept, Refusal):
        raise RequestRefused(Refusal(f"{param}.{kept.param}" if kept.param else param, kept.message, kept.code))
    if kept is not schema:
        wrapper = {**wrapper, "schema": kept}
        draft.set("response_format", {**wanted, "json_schema": wrapper} if wanted["type"] == "json_schema" else wrapper)


def keep_tool_schemas(draft: Draft) -> None:
    """Loosen schemas of tools, in the shape of chat, where the engine would refuse them or ignore them."""
    tools = draft.get("tools")
    if not isinstance(tools, list) or not tools:
        return
    kept = [_kept_tool(tool) for tool in tools]
    if any(new is not old for new, old in zip(kept, tools, strict=True)):
        draft.set("tools", kept)


def _kept_tool(tool: Any) -> Any:
    """The tool; a new one if its schema was loosened."""
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict):
        return tool
    schema = function.get("parameters")
    if not isinstance(schema, dict) or (kept := for_tool(schema)) is schema:
        return tool
    return {**tool, "function": {**function, "parameters": kept}}
