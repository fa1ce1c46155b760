"""JSON from untrusted sources: parsed values can be encoded again, and only ValueError is raised."""

from __future__ import annotations

import json
import math
from typing import Any

from meshllm.wire.api.json_size import has_too_many_values


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number beyond what JSON can carry")
    return value


def _refuse(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse)


_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
_encode_ascii = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def loads(data: bytes | str) -> Any:
    """Parse UTF-8 JSON; ValueError for invalid JSON, including NaN, infinities and excessive nesting."""
    if has_too_many_values(data):
        raise ValueError("JSON with too many values")
    text = data if isinstance(data, str) else data.decode("utf-8")
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def loads_object(data: bytes | str) -> dict[str, Any] | None:
    """The object in `data`, or None if it is not a JSON object."""
    try:
        value = loads(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def dumps(value: object) -> bytes:
    """Compact UTF-8 JSON; lone surrogates stay escaped."""
    try:
        return _encode(value).encode()
    except UnicodeEncodeError:
        return _encode_ascii(value).encode()
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
