"""Errors of the engine in words of this API: what the request caused is a 400 with the field's name.

The engine answers much of that with status 500, which clients repeat, and with the text of a C++ exception.
"""

from __future__ import annotations

import re
from typing import Any

_FIELD = re.compile(r"Field '([^']{1,60})': (.*)", re.DOTALL)
_BETWEEN = re.compile(r"Value must be between (\S{1,40}) <= value <= (\S{1,40}), but got (\S{1,40})")
_REQUIRED = re.compile(r"['\"](\w{1,60})['\"] (?:is required|must be )")
_TEMPLATE = re.compile(r"Jinja Exception: (.*)", re.DOTALL)
_TEMPLATE_FAULT = re.compile(r"While executing \w+ at .*?Error: (.*)", re.DOTALL)
_OUTPUT = "The model produced output that does not match the expected"
_OUTPUT_ADVICE = (
    "The model wrote a tool call that cannot be read. Send the request again: another sample may be right. If it often "
    "fails, use another model, or 'tool_choice' with a named tool, which constrains the format."
)
INVALID_OUTPUT = "invalid_model_output"
"""The code of an answer with a tool call that cannot be read."""
_JSON_TYPE = re.compile(r"\[json\.exception\.[a-z_]+\.\d+\] (.*)", re.DOTALL)
# Parts of the engine's messages, with the field at fault and what to say; the message itself follows where it is empty.
_KNOWN: tuple[tuple[str, str, str, str], ...] = (
    ("audio input is not supported", "messages", "unsupported_input", "'messages': the model does not support audio."),
    ("video input is not supported", "messages", "unsupported_input", "'messages': the model does not support video."),
    ("image input is not supported", "messages", "unsupported_input", "'messages': the model does not support images."),
    ("Failed to parse messages", "messages", "invalid_parameter", ""),
    ("Failed to parse tools", "tools", "invalid_parameter", ""),
    (
        "Failed to download image",
        "messages",
        "invalid_parameter",
        "An image could not be downloaded. Send it as a data URL.",
    ),
    ("Invalid base64 value", "messages", "invalid_parameter", "An image is not valid base64."),
    ("Failed to load image", "messages", "invalid_parameter", "An image could not be read."),
    ("Unknown reasoning format", "reasoning_format", "invalid_parameter", ""),
    (
        "the grammar is too ambiguous",
        "grammar",
        "too_large",
        "The grammar or schema is too ambiguous: it has too many ways to continue the text. Remove optional or "
        "repeated parts that can stand for the same text.",
    ),
    (
        "Unexpected empty grammar stack",
        "grammar",
        "invalid_parameter",
        "The grammar or schema has a part that no text fits: the answer cannot go on. Correct it, or remove that part.",
    ),
    (
        "Failed to initialize samplers",
        "grammar",
        "invalid_parameter",
        "The grammar or schema cannot be kept together with the beginning of the answer, or is not valid.",
    ),
)


def engine_fault(status: int, found: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Status and error object, with `param`, where the request was at fault; both unchanged otherwise."""
    message = str(found["message"])
    if (match := _FIELD.fullmatch(message)) is not None:
        if (bounds := _BETWEEN.fullmatch(match[2])) is not None:
            return 400, _changed(found, match[1], _out_of_bounds(match[1], *bounds.groups()))
        return 400, _changed(found, match[1], f"'{match[1]}': {_plain(match[2])}")
    for part, param, code, words in _KNOWN:
        if part in message:
            return 400, _changed(found, param, words or _plain(message), code)
    if (match := _TEMPLATE.search(message) or _TEMPLATE_FAULT.search(message)) is not None:
        words = f"The chat template of this model does not accept the 'messages': {match[1].strip()}"
        return 400, _changed(found, "messages", words, "invalid_conversation")
    if message.startswith(_OUTPUT):
        # Not the request's fault, and not that of the server: SDKs send it again, and agents go on.
        kept = {key: value for key, value in found.items() if key != "type"}
        return 502, {**kept, "message": _OUTPUT_ADVICE, "param": None, "code": INVALID_OUTPUT}
    if (match := _REQUIRED.match(message)) is not None:
        return 400, _changed(found, match[1], message)
    if _JSON_TYPE.search(message) is not None:
        return 400, _changed(found, None, f"A field of the request has a wrong type: {_plain(message)}")
    return status, found


def _out_of_bounds(field: str, least: str, most: str, value: str) -> str:
    if field in ("n", "n_cmpl"):  # the engine computes all choices at once, each in a slot
        slots = f"{most} slot" if most == "1" else f"{most} slots"
        return f"'{field}' is {value}; the model is served with {slots}: at most {most}. Send several requests."
    return f"'{field}' is {value}; it must be from {least} to {most}."


def _changed(found: dict[str, Any], param: str | None, message: str, code: str | None = None) -> dict[str, Any]:
    kept = {key: value for key, value in found.items() if key not in ("type", "code")}
    return {
        **kept,
        "message": message,
        "param": param,
        "type": "invalid_request_error",
        "code": code or "invalid_parameter",
    }


def _plain(text: str) -> str:
    """The text of an exception without the name of its class."""
    return _JSON_TYPE.sub(lambda match: match[1], text).strip()
