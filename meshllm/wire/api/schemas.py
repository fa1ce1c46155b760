"""JSON schemas as the engine keeps them. Pure; bounded.

The engine turns a schema into a grammar and drops what it does not know, so an answer could have status 200 and not
validate. `for_answer` writes an equivalent or narrower schema that the grammar keeps, or refuses with the keyword. It
never loosens. `for_tool` changes as little as it can, because the model reads a tool's schema; what the grammar cannot
keep is loosened there: one tool must not fail the whole list. `for_strict_tool` is for tools with `strict`.
"""

from __future__ import annotations

from typing import Any

from meshllm.wire.api.refusal import UNSUPPORTED, Refusal
from meshllm.wire.api.schema_reader import Reader
from meshllm.wire.api.schema_shapes import ObjectShape, SchemaProblem, Union
from meshllm.wire.api.schema_writer import Writer
from meshllm.wire.api.tool_schemas import loosened


def for_answer(schema: Any) -> dict[str, Any] | Refusal:
    """A schema that the engine keeps, whose values all validate against `schema`.

    The refusal's `param` is the path of the keyword within the schema.
    """
    if schema is True or schema == {}:
        return {"type": "object"}  # as every server reads it: any object
    return _compiled(schema, inline=False)


def for_tool(schema: Any) -> dict[str, Any]:
    """The parameters of a tool as the engine takes them; `schema` itself if it needs no change."""
    return loosened(schema)


def for_strict_tool(schema: Any) -> dict[str, Any] | Refusal:
    """The parameters of a tool whose calls must all validate; `schema` itself if it needs no change."""
    kept = _compiled(schema, inline=True)
    return schema if kept == schema else kept


def _compiled(schema: Any, *, inline: bool) -> dict[str, Any] | Refusal:
    reader = Reader(schema)
    try:
        root = reader.read(schema, None)
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
