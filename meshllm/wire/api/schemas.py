"""JSON schemas as the engine keeps them."""

from __future__ import annotations

from typing import Any

from meshllm.wire.api.refusal import Refusal


def for_answer(schema: dict[str, Any], *, strict: bool) -> dict[str, Any] | Refusal:
    """The schema of an answer as the engine keeps it, or why it cannot; `strict`: as the caller said."""
    del strict
    return schema


def for_tool(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a tool's parameters; what the engine does not keep is loosened."""
    return schema
