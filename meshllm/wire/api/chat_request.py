"""Prepares bodies of `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshllm.wire.api.conversation import TemplateTraits
from meshllm.wire.api.prepared import UNCHANGED, Draft, Prepared
from meshllm.wire.api.structured_output import keep_answer_schema, keep_tool_schemas


def prepare_chat(body: Mapping[str, Any], traits: TemplateTraits) -> Prepared:
    """A chat request as the engine keeps it; RequestRefused if it cannot."""
    del traits
    draft = Draft(body)
    keep_answer_schema(draft, "response_format", body.get("response_format"))
    keep_tool_schemas(draft)
    return Prepared(draft.body()) if draft.changes else UNCHANGED
