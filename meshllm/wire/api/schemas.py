"""JSON schemas as the engine keeps them. Pure; bounded.

The engine turns a schema into a grammar and drops what it does not know, so an answer could have status 200 and not
validate. `for_answer` writes an equivalent or narrower schema that the grammar keeps, or refuses with the keyword. It
never loosens. `for_tool` changes as little as it can, because the model reads a tool's schema; what the grammar cannot
keep is loosened there: one tool must not fail the whole list. `for_strict_tool` is for tools with `strict`.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, cast

from meshllm.wire.api.refusal import UNSUPPORTED, Refusal, ToolSchemaProblem
from meshllm.wire.api.schema_reader import Reader
from meshllm.wire.api.schema_shapes import ObjectShape, SchemaProblem, Union
from meshllm.wire.api.schema_writer import Writer
from meshllm.wire.api.tool_schemas import loosened, problem_of

# Agents and structured-output clients send the same schemas with every request: the last ones are remembered, by text.
_REMEMBERED = 256
_LARGEST_REMEMBERED = 32 << 10


def for_answer(schema: Any) -> dict[str, Any] | Refusal:
    """A schema that the engine keeps, whose values all validate against `schema`. Not to be changed: it is shared.

    The refusal's `param` is the path of the keyword within the schema.
    """
    if schema is True or schema == {}:
        return {"type": "object"}  # as every server reads it: any object
    kept: dict[str, Any] | Refusal = _once(_compiled, schema, False)
    return kept


def for_tool(schema: Any) -> dict[str, Any] | ToolSchemaProblem:
    """The parameters of a tool as the engine takes them; `schema` itself if it needs no change."""
    kept: dict[str, Any] | ToolSchemaProblem | None = _once(_loosened, schema)
    return cast(dict[str, Any], schema) if kept is None else kept


def for_strict_tool(schema: Any) -> dict[str, Any] | Refusal | ToolSchemaProblem:
    """The parameters of a tool whose calls must all validate; `schema` itself if it needs no change."""
    kept: dict[str, Any] | Refusal | ToolSchemaProblem = _once(_compiled, schema, True)
    if kept == schema:
        return cast(dict[str, Any], schema)
    return kept


def _once(function: Any, schema: Any, *more: Any) -> Any:
    """The result for a schema, remembered if it is not large."""
    text = json.dumps(schema)
    return (function if len(text) <= _LARGEST_REMEMBERED else function.__wrapped__)(text, *more)


@lru_cache(_REMEMBERED)
def _loosened(text: str) -> dict[str, Any] | ToolSchemaProblem | None:
    schema = json.loads(text)
    if (problem := problem_of(schema)) is not None:
        return problem
    kept = loosened(schema)
    return None if kept is schema else kept


@lru_cache(_REMEMBERED)
def _compiled(text: str, inline: bool) -> dict[str, Any] | Refusal | ToolSchemaProblem:
    reader = Reader(json.loads(text))
    if inline and (problem := problem_of(reader.root)) is not None:
        return problem
    try:
        root = reader.read(reader.root, None)
        return Writer(reader).write(_one_object(reader, root) if inline else root, inline=inline)
    except SchemaProblem as problem:
        pointer = problem.pointer or f"/{problem.keyword}"
        message = f"The schema's '{problem.keyword}' at {pointer[:200]} is not supported: {problem.message[:300]}."
        return Refusal(pointer[1:].replace("/", ".").replace("~1", "/").replace("~0", "~"), message, UNSUPPORTED)
    except RecursionError:
        return Refusal(None, "The schema is nested too deeply.", UNSUPPORTED)


def _one_object(reader: Reader, root: Union) -> Union:
    """The one object shape of a tool's parameters."""
    found = reader.meeting.meet(root, Union((ObjectShape(),)))
    if len(found.shapes) != 1:
        raise SchemaProblem("anyOf", "the parameters of a strict tool must be one object")
    return found
