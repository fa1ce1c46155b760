"""The console's API as an OpenAPI document, made from the table of endpoints and the models they answer with.

`scripts/console types` writes the page's TypeScript types from this document.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from meshllm import __version__
from meshllm.web.console.endpoints import ENDPOINTS, TOKEN_HEADER, ConsoleEndpoint, ErrorAnswer

_SCHEMAS = "#/components/schemas/"


@functools.cache
def document() -> dict[str, Any]:
    """The document as JSON values."""
    used: dict[tuple[type[Any], Literal["validation", "serialization"]], None] = {}
    for endpoint in ENDPOINTS:
        if endpoint.answer is not None:
            used[endpoint.answer, "serialization"] = None
        if endpoint.body is not None:
            used[endpoint.body, "validation"] = None
    used[ErrorAnswer, "serialization"] = None
    adapters = [(kind.__name__, mode, TypeAdapter[Any](kind)) for kind, mode in used]
    template = _SCHEMAS + "{model}"
    _, schemas = TypeAdapter.json_schemas(adapters, ref_template=template, schema_generator=_SchemaGenerator)
    return {
        "openapi": "3.1.0",
        "info": {"title": "mesh-llm console", "version": __version__},
        "paths": {endpoint.path: {endpoint.method.lower(): _operation(endpoint)} for endpoint in ENDPOINTS},
        "components": {"schemas": {name: _undocumented_enum(schema) for name, schema in schemas["$defs"].items()}},
    }


class _SchemaGenerator(GenerateJsonSchema):
    """Fields of dataclasses that have a default are always sent."""

    def field_is_required(self, field: Any, total: bool) -> bool:
        """Whether the schema lists the field as required."""
        sent = self.mode == "serialization" and field["type"] == "dataclass-field"
        return sent or super().field_is_required(field, total)


def _undocumented_enum(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without the docstring of a Python enum, which explains code and not the API."""
    return {key: value for key, value in schema.items() if key != "description"} if "enum" in schema else schema


def _operation(endpoint: ConsoleEndpoint) -> dict[str, Any]:
    """The OpenAPI operation of `endpoint`."""
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "responses": {
            "200": {"description": endpoint.summary, "content": _content(endpoint)},
            "default": {"description": "An error.", "content": _json(ErrorAnswer)},
        },
    }
    parameters: list[dict[str, Any]] = []
    if endpoint.owner_only or endpoint.owner_or_key:
        what = "The token of this run, in daemon.json of the node's home."
        if endpoint.owner_or_key:
            what += " Callers on other machines send the API key instead."
        parameter = {"name": TOKEN_HEADER, "in": "header", "required": endpoint.owner_only}
        parameters.append(parameter | {"schema": {"type": "string"}, "description": what})
    if endpoint.query is not None:
        schema = endpoint.query.model_json_schema()
        required = schema.get("required", ())
        parameters += (
            {"name": name, "in": "query", "required": name in required, "schema": facts}
            for name, facts in schema["properties"].items()
        )
    if parameters:
        operation["parameters"] = parameters
    if endpoint.body is not None:
        operation["requestBody"] = {"required": False, "content": _json(endpoint.body)}
    return operation


def _content(endpoint: ConsoleEndpoint) -> dict[str, Any]:
    if endpoint.answer is not None:
        return _json(endpoint.answer)
    kind = "object" if endpoint.content_type == "application/json" else "string"
    return {endpoint.content_type: {"schema": {"type": kind}}}


def _json(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _SCHEMAS + model.__name__}}}
