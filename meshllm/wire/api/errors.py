"""Error bodies and events in the caller's API shape; upstream errors translated into it.

Invariants: text from upstream is bounded before it is repeated; a status below 400 never gets an error body.

OpenAI: `{"error": {"message", "type", "param", "code", "request_id"}}`; Anthropic: `{"type": "error", "error": {"type",
"message", "code"}, "request_id"}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from meshllm.wire.api import strict_json
from meshllm.wire.api.engine_faults import engine_fault
from meshllm.wire.api.routes import Api
from meshllm.wire.api.sse import DONE, encode_event

MAX_UPSTREAM = 1024 * 1024
"""Largest error body that is parsed; a longer one is treated as text and cut."""
MAX_MESSAGE = 4096
"""Longest upstream message that is repeated, in characters; enough for the engine's grammar and template errors."""
_MAX_WORD = 128
_MAX_EXTRA = 16
_SNIPPET = 300

_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    429: "rate_limit_error",
    501: "not_supported_error",
    503: "unavailable_error",
}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
CONTEXT_CODE = "context_length_exceeded"
"""The code of a prompt above the context, by which clients know that they must shorten it."""
_TOO_LONG_TYPE = "exceed_context_size_error"
RAISE_CONTEXT = (
    "Shorten it. The owner of the node that serves the model can raise the limit with --ctx-size, up to the context "
    "that the model was made for."
)
CONTEXT_IS_WHOLE = "Shorten it. The model was made for no longer context."
"""What to do instead of `RAISE_CONTEXT` if the limit is that of the model."""
_CODES = {_TOO_LONG_TYPE: CONTEXT_CODE}
"""Codes that clients know under another name: agents compact their history when they see this one."""

_PROMPTS = {Api.CHAT: "messages", Api.COMPLETIONS: "prompt", Api.RESPONSES: "input", Api.EMBEDDINGS: "input"}
"""The field with the prompt."""

_TOO_LONG = re.compile(r"input \((\d{1,15}) tokens\) is too large to process\b.*\bbatch size: (\d{1,15})\)")
"""The engine's message (status 500) for an input that it must compute in one batch and cannot."""
_NO_TEXT = "does not support logits computation"

_TAG = re.compile(r"<(script|style|head)\b.*?</\1\s*>|<[^>]*>", re.IGNORECASE | re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def openai_type(status: int) -> str:
    """OpenAI's `error.type` for an HTTP status."""
    return _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


def anthropic_type(status: int) -> str:
    """Anthropic's `error.type` for an HTTP status."""
    return _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


def error_body(
    api: Api,
    status: int,
    code: str | None,
    message: str,
    *,
    param: str | None = None,
    kind: str | None = None,
    extra: Mapping[str, Any] | None = None,
    request_id: str | None = None,
) -> dict[str, Any]:
    """The JSON body of an error reply.

    `code`: a stable identifier for programs (OpenAI's `code`, an extra field for Anthropic); `kind` overrides the
    OpenAI type of the status; `extra` adds fields to the error object and replaces none; `request_id` goes where each
    API has it.
    """
    if api.anthropic:
        error: dict[str, Any] = {"type": anthropic_type(status), "message": message}
        if code:
            error["code"] = code
    else:
        error = {"message": message, "type": kind or openai_type(status), "param": param, "code": code}
        if request_id:
            error["request_id"] = request_id
    for key, value in (extra or {}).items():
        if not (key == "request_id" and request_id):
            error.setdefault(key, value)
    if not api.anthropic:
        return {"error": error}
    body: dict[str, Any] = {"type": "error", "error": error}
    if request_id:
        body["request_id"] = request_id
    return body


def error_event(
    api: Api,
    status: int,
    code: str | None,
    message: str,
    *,
    sequence_number: int = 0,
    extra: Mapping[str, Any] | None = None,
    request_id: str | None = None,
) -> bytes:
    """An error event in a stream, and the end of the stream in that API.

    `sequence_number` is for `/v1/responses`, whose error event is flat. The HTTP status was sent already: `status` only
    determines the type.
    """
    if api is Api.RESPONSES:
        fields = {"type": "error", "code": code, "message": message, "param": None, "sequence_number": sequence_number}
        ours = {"request_id": request_id} if request_id else {}
        return encode_event({**(extra or {}), **fields, **ours}, "error")
    body = error_body(api, status, code, message, extra=extra, request_id=request_id)
    return encode_event(body, "error") if api.anthropic else encode_event(body) + DONE


def translate_error(
    api: Api, status: int, upstream: bytes, *, request_id: str | None = None
) -> tuple[int, dict[str, Any]]:
    """The status and body to send for an error reply of an engine or a backend.

    Understands the shapes of OpenAI, Anthropic and llama.cpp, `{"detail": ...}` and `{"message": ...}`; anything else
    (HTML, plain text, nothing) becomes a short excerpt. A status that is no error becomes 502.
    """
    if not 400 <= status <= 599:
        status = 502
    found = loads_error(upstream) if len(upstream) <= MAX_UPSTREAM else None
    if found is None:
        text = _excerpt(upstream)
        message = f"The model server answered with status {status}" + (f": {text}" if text else ".")
        return status, error_body(api, status, "upstream_error", message, request_id=request_id)
    status, found = _client_error(status, found)
    return status, _translated(api, status, found, request_id)


def _client_error(status: int, found: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """An engine error (500) that the request caused becomes a 400, because clients retry a 500."""
    message = str(found["message"])[:MAX_MESSAGE]
    if found.get("type") == _TOO_LONG_TYPE and "param" not in found:
        return status, _too_long(found)
    if status == 500 and (sizes := _TOO_LONG.search(message)):
        tokens, most = int(sizes[1]), int(sizes[2])
        return 400, _too_long(
            {"message": message, "n_prompt_tokens": tokens, "n_ctx": most}, "The limit is the model's."
        )
    if status == 500 and _NO_TEXT in message:
        text = "This model does not generate text. Use it for embeddings or reranking."
        return 400, {"message": text, "code": "wrong_purpose"}
    if status in (400, 500) and "param" not in found:
        return engine_fault(status, {**found, "message": message})
    return status, found


def _too_long(found: dict[str, Any], advice: str = RAISE_CONTEXT) -> dict[str, Any]:
    """The error for a prompt above the context, in OpenAI's words, by which clients know that they must shorten it."""
    wanted, limit = found.get("n_prompt_tokens"), found.get("n_ctx")
    text = str(found["message"])
    if isinstance(wanted, int) and isinstance(limit, int):
        text = _length_text(limit, wanted).rstrip()
    return {**found, "message": f"{text} {advice}", "type": "invalid_request_error", "code": CONTEXT_CODE}


_SIZES = (
    re.compile(r"maximum context length is (?P<n_ctx>\d{1,15}) tokens\. [^.]*? (?P<n_prompt_tokens>\d{1,15}) tokens"),
    re.compile(r"prompt is too long: (?P<n_prompt_tokens>\d{1,15}) tokens > (?P<n_ctx>\d{1,15}) maximum"),
)


def too_long_sizes(message: str) -> dict[str, int]:
    """`n_prompt_tokens` and `n_ctx` in the message of a gateway's `context_length_exceeded`; empty if it has none."""
    for pattern in _SIZES:
        if (found := pattern.search(message[:MAX_MESSAGE])) is not None:
            return {name: int(number) for name, number in found.groupdict().items()}
    return {}


def _length_text(limit: object, wanted: object) -> str:
    return f"This model's maximum context length is {limit} tokens. However, your request has {wanted} tokens. "


def translated(
    api: Api, found: Mapping[str, Any], *, status: int = 0, request_id: str | None = None
) -> tuple[int, dict[str, Any]]:
    """Status and error object of this API for an upstream's error object (see `loads_error`)."""
    status, found = _client_error(status or status_of(found), dict(found))
    error: dict[str, Any] = _translated(api, status, found, request_id)["error"]
    return status, error


def translate_event(
    api: Api, found: Mapping[str, Any], *, status: int = 0, sequence_number: int = 0, request_id: str | None = None
) -> bytes:
    """An upstream's error object (see `loads_error`) as an error event of this API and the end of the stream."""
    status, error = translated(api, found, status=status, request_id=request_id)
    code, message = error.get("code"), error["message"]
    extra = {key: value for key, value in error.items() if key not in ("type", "message", "code", "param")}
    if api is Api.RESPONSES or api.anthropic:
        return error_event(
            api, status, code, message, sequence_number=sequence_number, extra=extra, request_id=request_id
        )
    return encode_event({"error": error}) + DONE


def loads_error(body: bytes | str) -> dict[str, Any] | None:
    """The error object in a JSON body of any known shape, with a `message` string, or None."""
    value = strict_json.loads_object(body)
    return None if value is None else find_error(value)


def find_error(value: Mapping[str, Any]) -> dict[str, Any] | None:
    """The error object in a parsed body or event, with a `message` string, or None."""
    error = value.get("error")
    if isinstance(error, dict):
        found = dict(error)
    elif isinstance(error, str) and error:
        found = {"message": error}
    elif value.get("object") == "error" or value.get("type") == "error" or _llama_cpp(value):
        found = {key: item for key, item in value.items() if key not in ("object", "error", "sequence_number")}
        if found.get("type") == "error":
            del found["type"]
    elif isinstance(value.get("message"), str) and "choices" not in value and value.get("type") is None:
        found = {"message": value["message"]}
    elif "detail" in value and "choices" not in value:
        found = {"message": value["detail"]}
    else:
        return None
    message = found.get("message")
    if not isinstance(message, str):
        try:
            found["message"] = strict_json.dumps(message).decode() if message is not None else "unknown error"
        except ValueError:
            found["message"] = "unknown error"
    return found


def status_of(found: Mapping[str, Any]) -> int:
    """The HTTP status of an error object; 500 if it names none."""
    code = found.get("code")
    if isinstance(code, int) and 400 <= code <= 599:
        return code
    kind = found.get("type")
    for table in (_ANTHROPIC_TYPES, _OPENAI_TYPES):
        for status, name in table.items():
            if name == kind:
                return status
    return 500


def _llama_cpp(value: Mapping[str, Any]) -> bool:
    """The engine's bare error object in `/v1/messages` streams."""
    kind = value.get("type")
    return isinstance(kind, str) and kind.endswith("_error") and isinstance(value.get("message"), str)


def _translated(api: Api, status: int, found: Mapping[str, Any], request_id: str | None) -> dict[str, Any]:
    message = clean(str(found["message"]), MAX_MESSAGE)
    kind, code, param = (_word(found.get(key)) for key in ("type", "code", "param"))
    if code is None:
        # `"code": null` is kept; an error without a code gets its type as code.
        unnamed = "code" in found and found["code"] is None
        code = _CODES.get(kind or "", None if unnamed else kind)
    extra: dict[str, Any] = {}
    for key, value in found.items():
        if key in ("message", "type", "code", "param") or len(extra) >= _MAX_EXTRA or len(key) > _MAX_WORD:
            continue
        if value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 1 << 63):
            extra[key] = value
        elif isinstance(value, str):
            extra[key] = clean(value, MAX_MESSAGE)
    wanted, limit = extra.get("n_prompt_tokens"), extra.get("n_ctx")
    translated = message.startswith("prompt is too long")  # translated already by a peer's gateway
    if api.anthropic and code == CONTEXT_CODE and wanted is not None and limit is not None and not translated:
        # the wording by which Anthropic's clients know that they must compact
        rest = message.removeprefix(_length_text(limit, wanted))
        message = f"prompt is too long: {wanted} tokens > {limit} maximum. {rest}"
    elif code == CONTEXT_CODE and param is None:
        param = _PROMPTS.get(api)
    return error_body(api, status, code, message, param=param, kind=kind, extra=extra, request_id=request_id)


def _word(value: object) -> str | None:
    return clean(value, _MAX_WORD) if isinstance(value, str) and value else None


def clean(text: str, limit: int) -> str:
    """`text` without control characters and lone surrogates, cut to `limit` characters."""
    text = _CONTROL.sub(" ", text[: limit + 1])
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _excerpt(body: bytes) -> str:
    text = body[: 16 * 1024].decode("utf-8", "replace")
    if "<" in text:
        text = _TAG.sub(" ", text)
    return clean(" ".join(text.split()), _SNIPPET)
