"""JSON from strangers: what is read can be written again, and nothing but ValueError is ever raised."""

from __future__ import annotations

import json
import math
from typing import Any


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
    """Parse UTF-8 JSON; ValueError for anything that is not, NaN and infinities and bottomless nesting included."""
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
    """Compact UTF-8 JSON; text that UTF-8 cannot carry (half a surrogate pair) stays escaped."""
    try:
        return _encode(value).encode()
    except UnicodeEncodeError:
        return _encode_ascii(value).encode()
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
