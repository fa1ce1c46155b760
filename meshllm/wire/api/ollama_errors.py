"""Errors in the shape of Ollama's API, `{"error": TEXT}`, from those of OpenAI's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from meshllm.wire.api import strict_json
from meshllm.wire.api.errors import MAX_MESSAGE, clean, find_error, loads_error

# OpenAI's names of fields in messages, and Ollama's; the longest of one beginning first.
_FIELDS = {
    "response_format.json_schema.schema": "format",
    "response_format": "format",
    "json_schema": "format",
    "chat_template_kwargs.enable_thinking": "think",
    "chat_template_kwargs": "think",
    "reasoning_effort": "think",
    "max_tokens": "options.num_predict",
    **{
        name: f"options.{name}"
        for name in (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "typical_p",
            "repeat_penalty",
            "repeat_last_n",
            "presence_penalty",
            "frequency_penalty",
            "mirostat_tau",
            "mirostat_eta",
            "mirostat",
            "seed",
            "stop",
        )
    },
}
_FIELD = re.compile(r"'(" + "|".join(re.escape(name) for name in _FIELDS) + r")(?=['.\[])")
_UNKNOWN = re.compile(r"Unknown model ('.*?'|\".*?\")\. ?", re.DOTALL)
# Ollama answers so if its queue is full.
_STATUSES = {"overloaded": 503}


def ollama_error(status: int, body: bytes, model: str = "") -> tuple[int, bytes]:
    """Status and body for an error reply in the shape of OpenAI's API. `model`: as the caller named it."""
    found = loads_error(body) or {"message": body[:300].decode("utf-8", "replace") or "unknown error"}
    code = found.get("code")
    return _STATUSES.get(code, status) if isinstance(code, str) else status, error_line(found, model)


def error_line(found: Mapping[str, Any], model: str = "") -> bytes:
    """An error object as the JSON of this API."""
    # An error within a stream of a hostile host can have the size of an event.
    message, code = clean(str(found.get("message")), MAX_MESSAGE), found.get("code")
    message = _FIELD.sub(lambda match: f"'{_FIELDS[match[1]]}", message)
    if code == "model_not_found":
        # The words by which Ollama's clients know it.
        message = f"model '{model}' not found. {_UNKNOWN.sub('', message, count=1)}".rstrip()
    return text_line(message)


def text_line(message: str) -> bytes:
    """A message as the JSON of this API."""
    return strict_json.dumps({"error": message})


def error_in(value: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The error object of an event of OpenAI's API; None if it is none."""
    return find_error(value) if "choices" not in value else None
