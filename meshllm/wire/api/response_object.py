"""The objects of `/v1/responses` with the fields that OpenAI's types require: response, usage, items, parts.

Upstream's fields stay; missing ones (or null ones that must not be null) are filled in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ECHOED = ("instructions", "max_output_tokens", "previous_response_id", "reasoning", "temperature", "top_p", "user")
# Tools that are offered to the model; built-in ones of a service are left out of the request, and so of the answer.
_OFFERED = ("function", "custom", "namespace")
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_SUMMARIES = ("auto", "concise", "detailed")
_DEFAULTS: dict[str, Any] = {
    "metadata": {},
    "parallel_tool_calls": True,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "truncation": "disabled",
}


def new_response(request: Mapping[str, Any], *, model: str, ident: str, created: int) -> dict[str, Any]:
    """A response object in progress that repeats the request's parameters, as OpenAI's does."""
    response: dict[str, Any] = {
        "id": f"resp_{ident}",
        "object": "response",
        "created_at": created,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "usage": None,
    }
    for key in _ECHOED:
        response[key] = _echoed(key, request.get(key))
    for key, default in _DEFAULTS.items():
        given = _echoed(key, request.get(key))
        response[key] = default if given is None else given
    return response


def _echoed(key: str, given: Any) -> Any:
    """A parameter of the request as its answer repeats it: what is not of the documented type is left out."""
    match key:
        case "previous_response_id" | "user":
            return given if isinstance(given, str) else None
        case "truncation":
            return given if given in ("auto", "disabled") else None
        case "metadata":
            pairs = given.items() if isinstance(given, dict) else ()
            return {name: value for name, value in pairs if isinstance(value, str)}
        case "reasoning" if isinstance(given, dict):
            return _only(given, effort=_EFFORTS, summary=_SUMMARIES, generate_summary=_SUMMARIES)
        case "text" if isinstance(given, dict):
            return {**_only(given, verbosity=("low", "medium", "high")), "format": _echoed_format(given.get("format"))}
        case "tools" if isinstance(given, list):
            return [tool for tool in given if isinstance(tool, dict) and tool.get("type") in _OFFERED]
        case "tool_choice" if isinstance(given, dict):
            return _echoed_choice(given)
    return given


def _only(given: dict[str, Any], **words: tuple[str, ...]) -> dict[str, Any]:
    """`given` without the fields of `words` whose value is none of their words."""
    return {key: value for key, value in given.items() if key not in words or value is None or value in words[key]}


def _echoed_format(given: Any) -> Any:
    if not isinstance(given, dict) or given.get("type") != "json_schema":
        return given if isinstance(given, dict) else {"type": "text"}
    inner = given.get("json_schema")
    return {"name": "answer", **(inner if isinstance(inner, dict) else given), "type": "json_schema"}


def _echoed_choice(given: dict[str, Any]) -> dict[str, Any]:
    kind = given.get("type")
    if kind == "allowed_tools":
        return {"mode": "auto", **given}
    return given if kind in ("function", "custom") else {"type": "function", "name": str(kind)}


def filled(base: Mapping[str, Any], given: object) -> dict[str, Any]:
    """`given` with missing fields from `base`."""
    full = dict(base)
    for key, value in given.items() if isinstance(given, dict) else ():
        if value is not None or key not in base:
            full[key] = value
    return full


def filled_usage(usage: object) -> dict[str, Any] | None:
    """Token counts with all details that OpenAI's types require, or None without any."""
    if not isinstance(usage, dict):
        return None
    full = filled({"input_tokens": 0, "output_tokens": 0}, usage)
    full["input_tokens_details"] = filled(
        {"cached_tokens": 0, "cache_write_tokens": 0}, full.get("input_tokens_details")
    )
    full["output_tokens_details"] = filled({"reasoning_tokens": 0}, full.get("output_tokens_details"))
    if full.get("total_tokens") is None:
        counts = (full["input_tokens"], full["output_tokens"])
        full["total_tokens"] = sum(count for count in counts if isinstance(count, int))
    return full


def filled_part(part: object) -> dict[str, Any]:
    """A content part; a text part has annotations and logprobs even if empty."""
    full = filled({"type": "output_text"}, part)
    kind = full["type"]
    if kind == "output_text":
        return filled({"type": kind, "text": "", "annotations": [], "logprobs": []}, full)
    if kind in ("reasoning_text", "summary_text"):
        return filled({"type": kind, "text": ""}, full)
    return filled({"type": kind, "refusal": ""}, full) if kind == "refusal" else full


def filled_item(item: Mapping[str, Any], *, ident: str, status: str) -> dict[str, Any]:
    """An output item; `ident` and `status` are used where it has none."""
    kind = item.get("type")
    if kind == "message":
        full = filled({"id": ident, "type": kind, "status": status, "role": "assistant", "content": []}, item)
    elif kind == "reasoning":
        full = filled({"id": ident, "type": kind, "status": status, "summary": []}, item)
    elif kind == "function_call":
        base = {"id": ident, "type": kind, "status": status, "call_id": f"call_{ident}", "name": "", "arguments": ""}
        full = filled(base, item)
    else:
        return filled({"id": ident}, item)
    for key in ("content", "summary"):
        if isinstance(full.get(key), list):
            full[key] = [filled_part(part) if isinstance(part, dict) else part for part in full[key]]
    return full


def truncated(response: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    """Whether the engine, which reports every response as completed, stopped at `max_output_tokens`.

    A server that sends `incomplete_details` itself is believed.
    """
    limit, usage = base.get("max_output_tokens"), response.get("usage")
    if "incomplete_details" in response or not isinstance(limit, int) or not isinstance(usage, dict):
        return False
    count = usage.get("output_tokens")
    return isinstance(count, int) and count >= limit > 0


def repair_body(
    body: Mapping[str, Any], request: Mapping[str, Any], *, model: str, ident: str, created: int
) -> dict[str, Any]:
    """A whole `/v1/responses` reply with every field that OpenAI's types require; existing fields stay."""
    base = new_response(request, model=model, ident=ident, created=created)
    base["status"] = "completed"
    full = filled(base, body)
    if full["status"] == "completed" and truncated(body, base):
        full["status"], full["incomplete_details"] = "incomplete", {"reason": "max_output_tokens"}
    full["usage"] = filled_usage(full.get("usage"))
    if isinstance(full["output"], list):
        full["output"] = [
            filled_item(item, ident=f"item_{ident}_{index}", status="completed") if isinstance(item, dict) else item
            for index, item in enumerate(full["output"])
        ]
    return full
