"""Schemas of answers and of tools, and forced tool calls, in one form for all APIs.

A schema goes to the engine in its own field `json_schema`: with `response_format`, templates that the engine parses in
a special way (Kimi's, GigaChat's) drop it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from meshllm.wire.api.call_envelope import ANY_OBJECT, envelope_schema
from meshllm.wire.api.offered_tools import MAX_SHOWN
from meshllm.wire.api.prepared import Draft
from meshllm.wire.api.refusal import Refusal, RequestRefused, ToolSchemaProblem, invalid, unsupported
from meshllm.wire.api.tool_choice import Mode, ToolChoice

CHAT_FORMAT = "response_format"


def answer_schema(wanted: object, param: str) -> dict[str, Any] | None:
    """The schema that an answer must have, from `wanted`: chat's `response_format`, `text.format` of responses, or
    Anthropic's `output_format`. None for plain text; RequestRefused if it cannot be kept."""
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if not isinstance(wanted, dict) or not isinstance(kind, str):
        raise invalid(param, f"'{param}' must be an object with a 'type'.")
    if kind == "text":
        return None
    if kind == "json_object":
        found, where = wanted.get("schema"), f"{param}.schema"
    elif kind == "json_schema":
        wrapper, where = _wrapper(wanted, param)
        found, where = wrapper.get("schema"), f"{where}.schema"
        if found is None:
            raise invalid(where, f"'{where}' is missing.")
    else:
        raise unsupported(
            f"{param}.type", f"'{param}.type' is '{kind[:40]}': use 'text', 'json_object' or 'json_schema'."
        )
    if found is None:
        return ANY_OBJECT
    return _kept_answer(found, where)


def _wrapper(wanted: Mapping[str, Any], param: str) -> tuple[Mapping[str, Any], str]:
    """The object with the `schema`, and its path: chat has it in `json_schema`, the other APIs have not."""
    inner = wanted.get("json_schema")
    where = f"{param}.json_schema"
    if isinstance(inner, dict):
        return inner, where
    if inner is not None:
        raise invalid(where, f"'{where}' must be an object.")
    if param == CHAT_FORMAT and wanted.get("schema") is None:
        raise invalid(where, f"'{where}' is missing.")
    return wanted, param


def only_schema(draft: Draft, wanted: object, param: str) -> dict[str, Any] | None:
    """The schema of the answer: of `wanted` (see `answer_schema`), or of the engine's own field `json_schema`.

    RequestRefused if it cannot be kept, or if it is not the only constraint.
    """
    found, own = answer_schema(wanted, param), draft.get("json_schema")
    if own is not None:
        if found is not None:
            raise invalid("json_schema", f"'json_schema' and '{param}' exclude each other.")
        found = _kept_answer(own, "json_schema")
    if found is not None and draft.get("grammar") is not None:
        raise invalid("grammar", "'grammar' and a schema of the answer exclude each other.")
    return found


def _kept_answer(schema: object, where: str) -> dict[str, Any]:
    if not isinstance(schema, dict):
        raise invalid(where, f"'{where}' must be a JSON schema.")
    from meshllm.wire.api.schemas import for_answer  # with all that reads schemas 0.7 MB, which an idle node lacks

    kept = for_answer(schema)
    if isinstance(kept, Refusal):
        raise _refused(kept, where)
    return kept


def _refused(refusal: Refusal, where: str) -> RequestRefused:
    return RequestRefused(
        Refusal(f"{where}.{refusal.param}" if refusal.param else where, refusal.message, refusal.code)
    )


def loosened_tools(tools: list[Any], *, flat: bool = False, key: str = "parameters") -> list[Any]:
    """The tools with schemas that the engine accepts; RequestRefused if that of a tool with `strict` cannot be kept.

    `flat`: the fields of the function are the tool's own. `key` is the field with the schema.
    """
    kept = [_loosened(tool, flat, key, f"tools[{index}]") for index, tool in enumerate(tools)]
    return tools if all(new is old for new, old in zip(kept, tools, strict=True)) else kept


def _loosened(tool: dict[str, Any], flat: bool, key: str, param: str) -> dict[str, Any]:
    function, where = (tool, param) if flat else (tool["function"], f"{param}.function")
    schema = function.get(key)
    if not isinstance(schema, dict):
        return tool
    from meshllm.wire.api.schemas import for_strict_tool, for_tool

    kept = for_strict_tool(schema) if function.get("strict") is True else for_tool(schema)
    if isinstance(kept, Refusal):
        raise _refused(kept, f"{where}.{key}")
    if isinstance(kept, ToolSchemaProblem):
        field = f"{where}.{key}{kept.path}"
        raise invalid(field, f"'{field}' of the tool '{function['name'][:MAX_SHOWN]}' {kept.text}.")
    if kept is schema:
        return tool
    loosened = {**function, key: kept}
    return loosened if flat else {**tool, "function": loosened}


def refuse_prefill(last: object, param: str) -> None:
    """Refuse a last message of the assistant's, which the engine continues, where the answer has a form of its own."""
    if isinstance(last, dict) and last.get("role") == "assistant":
        raise invalid(
            param, f"'{param}' is the assistant's, for the answer to continue: a schema or a tool call cannot."
        )


def constrain(
    draft: Draft, choice: ToolChoice, tools: Sequence[tuple[str, Any]], answer: dict[str, Any] | None
) -> bool:
    """Make the engine keep `choice` and the schema of the `answer`; returns whether the answer is enveloped.

    `tools`: name and schema of those that may be called. Their list stays in the prompt, for the template to render.
    """
    forced = choice.mode is Mode.REQUIRED
    if forced or (answer is not None and tools):
        draft.set("tool_choice", "none")
        draft.set(
            "json_schema", envelope_schema([(name, schema or {}) for name, schema in tools], None if forced else answer)
        )
        return True
    if answer is not None:
        draft.set("json_schema", answer)
    wanted = "auto" if choice.mode is Mode.AUTO and tools else None
    if draft.get("tool_choice") not in (None, wanted):
        draft.set("tool_choice", wanted)
    return False
