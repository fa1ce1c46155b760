"""What the console serves, as an OpenAPI document: made of the very models that it answers with.

Law: nothing is described twice. `scripts/console types` writes the page's types from this document.
"""

from __future__ import annotations

import functools
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from meshllm import __version__
from meshllm.web.console.status import NodeStatus

_SCHEMAS = "#/components/schemas/"


class InviteWish(BaseModel):
    """For how many seconds an invite shall be good; 0: for good."""

    expires: float | None = 0


class InviteAnswer(BaseModel):
    """An invite, and when it ends (seconds since the epoch; 0: never)."""

    invite: str
    expires: int


class KeyAnswer(BaseModel):
    """The key that other machines send as 'Authorization: Bearer KEY', to the API and to this."""

    key: str


class ErrorFacts(BaseModel):
    """What went wrong: `code` for programs, `message` for people."""

    code: str
    message: str


class ErrorAnswer(BaseModel):
    """Every answer that is not 200."""

    error: ErrorFacts


@functools.cache
def document() -> dict[str, Any]:
    """The document, as JSON's values."""
    _, schemas = models_json_schema(
        [
            (NodeStatus, "serialization"),
            (InviteAnswer, "serialization"),
            (KeyAnswer, "serialization"),
            (ErrorAnswer, "serialization"),
            (InviteWish, "validation"),
        ],
        ref_template=_SCHEMAS + "{model}",
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "mesh-llm console", "version": __version__},
        "paths": {
            "/api/status": {"get": _operation("The state of this node.", _json(NodeStatus))},
            "/api/events": {
                "get": _operation(
                    "The same whenever it changes, as server-sent events called 'status'.",
                    {"text/event-stream": {"schema": {"type": "string"}}},
                )
            },
            "/api/invite": {
                "post": _operation("An invite into the mesh, for programs of this machine.", _json(InviteAnswer))
                | {"parameters": [_word("invite")], "requestBody": {"required": False, "content": _json(InviteWish)}}
            },
            "/api/key": {
                "post": _operation("The key of --listen-all, for programs of this machine.", _json(KeyAnswer))
                | {"parameters": [_word("key")]}
            },
            "/api/openapi.json": {
                "get": _operation("This document.", {"application/json": {"schema": {"type": "object"}}})
            },
        },
        "components": {"schemas": schemas["$defs"]},
    }


def _word(word: str) -> dict[str, Any]:
    """The header that says that exactly this is wanted."""
    schema = {"type": "string", "const": word}
    return {"name": "x-mesh-llm", "in": "header", "required": True, "schema": schema}


def _json(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _SCHEMAS + model.__name__}}}


def _operation(summary: str, content: dict[str, Any]) -> dict[str, Any]:
    return {
        "summary": summary,
        "responses": {
            "200": {"description": summary, "content": content},
            "default": {"description": "An error.", "content": _json(ErrorAnswer)},
        },
    }
