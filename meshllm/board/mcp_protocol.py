"""JSON-RPC messages of the Model Context Protocol: bytes to checked messages and back, and the two eras. Pure.

Up to 2025-11-25 a client says `initialize` first. From 2026-07-28 there is no handshake: every request has its protocol
version and the client's capabilities in `_meta`. Which era a request belongs to is decided for each request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

HANDSHAKE_VERSIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
STATELESS_VERSIONS = ("2026-07-28",)
# What an older client gets that asks for an unknown version.
LATEST_HANDSHAKE = HANDSHAKE_VERSIONS[-1]

# Longest message in bytes: a text of 4,096 bytes may take 24 KiB in JSON. Deepest nesting; longest id.
MAX_MESSAGE_BYTES = 64 << 10
MAX_DEPTH = 32
MAX_ID_CHARACTERS = 256
MAX_ID_NUMBER = 1 << 63
MAX_METHOD_CHARACTERS = 128

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND = -32700, -32600, -32601
INVALID_PARAMS, INTERNAL_ERROR = -32602, -32603
# Of 2025-11-25 and before; later a missing resource is INVALID_PARAMS.
RESOURCE_NOT_FOUND = -32002
# Free for servers to define: this one is too busy.
TOO_MANY = -32000
HEADER_MISMATCH, UNSUPPORTED_VERSION = -32020, -32022

META = "io.modelcontextprotocol/"
VERSION_KEY, CLIENT_KEY = f"{META}protocolVersion", f"{META}clientInfo"
CAPABILITIES_KEY, SERVER_KEY = f"{META}clientCapabilities", f"{META}serverInfo"
SUBSCRIPTION_KEY = f"{META}subscriptionId"

Json = dict[str, Any]
RequestId = int | str


class McpError(Exception):
    """An error of the protocol. `code`: of JSON-RPC. `data`: for programs. `id`: of the request, None if unknown."""

    def __init__(self, code: int, message: str, data: Json | None = None, id: RequestId | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.data, self.id = code, message, data, id


@dataclass(frozen=True, slots=True)
class McpRequest:
    """A request, with `id`, or a notification, without. `meta`: the `_meta` of `params`, {} if there is none."""

    method: str
    params: Json
    id: RequestId | None = None
    meta: Json = field(default_factory=dict)

    @property
    def stateless(self) -> bool:
        """Whether it is of the era without a handshake."""
        return any(key in self.meta for key in (VERSION_KEY, CAPABILITIES_KEY)) or self.method == "server/discover"


@dataclass(frozen=True, slots=True)
class McpResponse:
    """The client's answer to a request of this server; `result` is None if it was refused."""

    id: RequestId
    result: Json | None


def decode(data: bytes) -> McpRequest | McpResponse:
    """The one message in `data`. Raises McpError with the id of the request where that can be read."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise McpError(INVALID_REQUEST, f"The message is longer than {MAX_MESSAGE_BYTES} bytes.")
    value = _parse(data)
    if isinstance(value, list):
        raise McpError(INVALID_REQUEST, "Batches are not supported: send one message at a time.")
    if not isinstance(value, dict):
        raise McpError(INVALID_REQUEST, "A message is a JSON object.")
    number = _id(value)
    if value.get("jsonrpc") != "2.0":
        raise McpError(INVALID_REQUEST, '"jsonrpc" must be "2.0".', id=number)
    if "method" not in value:
        return _response(value, number)
    method, params = value["method"], value.get("params", {})
    if not isinstance(method, str) or not 0 < len(method) <= MAX_METHOD_CHARACTERS:
        raise McpError(INVALID_REQUEST, '"method" must be a short text.', id=number)
    if not isinstance(params, dict):
        raise McpError(INVALID_PARAMS, '"params" must be an object.', id=number)
    meta = params.get("_meta", {})
    if not isinstance(meta, dict):
        raise McpError(INVALID_PARAMS, '"_meta" must be an object.', id=number)
    return McpRequest(method, params, number, meta)


def _parse(data: bytes) -> Any:
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise McpError(PARSE_ERROR, f"The message is not UTF-8 (byte {error.start}).") from error
    except RecursionError as error:
        raise McpError(PARSE_ERROR, f"The message is nested deeper than {MAX_DEPTH}.") from error
    except ValueError as error:  # also integers with thousands of digits
        raise McpError(PARSE_ERROR, f"The message is not JSON: {error}.") from error
    _check(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice in an object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _check(value: Any) -> None:
    """Raise McpError for nesting that is too deep and for half surrogates, which no UTF-8 can carry."""
    level, depth = [value], 0
    while level:
        if depth > MAX_DEPTH:
            raise McpError(PARSE_ERROR, f"The message is nested deeper than {MAX_DEPTH}.")
        below: list[Any] = []
        for part in level:
            if isinstance(part, dict):
                below.extend(part)
                below.extend(part.values())
            elif isinstance(part, list):
                below.extend(part)
            elif (
                isinstance(part, str) and not part.isascii() and any("\ud800" <= letter <= "\udfff" for letter in part)
            ):
                raise McpError(PARSE_ERROR, "A text in the message has half a surrogate pair.")
        level, depth = below, depth + 1


def _id(value: Json) -> RequestId | None:
    """The id of a request or response; None for a notification. Raises McpError if it cannot be one."""
    if "id" not in value:
        return None
    number = value["id"]
    if isinstance(number, str) and len(number) <= MAX_ID_CHARACTERS:
        return number
    if isinstance(number, int) and not isinstance(number, bool) and -MAX_ID_NUMBER <= number < MAX_ID_NUMBER:
        return number
    if number is None and "error" in value and "method" not in value:
        return ""  # a client that could not read what this server sent
    raise McpError(INVALID_REQUEST, f'"id" must be a whole number or a text of up to {MAX_ID_CHARACTERS} characters.')


def _response(value: Json, number: RequestId | None) -> McpResponse:
    if number is None or not ("result" in value or "error" in value):
        raise McpError(
            INVALID_REQUEST, 'A message has a "method", or an "id" with a "result" or an "error".', id=number
        )
    result = value.get("result")
    return McpResponse(number, result if isinstance(result, dict) else None)


def check_envelope(request: McpRequest) -> None:
    """Raise McpError for a stateless request whose `_meta` lacks what each must have, or whose version is unknown."""
    missing = [key for key in (VERSION_KEY, CAPABILITIES_KEY) if key not in request.meta]
    if missing:
        raise McpError(INVALID_PARAMS, f'"params._meta" lacks {" and ".join(missing)}.', id=request.id)
    version = request.meta[VERSION_KEY]
    if not isinstance(version, str):
        raise McpError(INVALID_PARAMS, f"{VERSION_KEY} must be a text.", id=request.id)
    if not isinstance(request.meta[CAPABILITIES_KEY], dict):
        raise McpError(INVALID_PARAMS, f"{CAPABILITIES_KEY} must be an object.", id=request.id)
    if not isinstance(request.meta.get(CLIENT_KEY, {}), dict):
        raise McpError(INVALID_PARAMS, f"{CLIENT_KEY} must be an object.", id=request.id)
    if version not in STATELESS_VERSIONS:
        raise unsupported(version, request.id)


def unsupported(version: str, id: RequestId | None) -> McpError:
    """The error for a protocol version that this server does not have."""
    data = {"supported": list(STATELESS_VERSIONS), "requested": version[:MAX_METHOD_CHARACTERS]}
    return McpError(UNSUPPORTED_VERSION, "Unsupported protocol version.", data, id)


def result_message(id: RequestId, result: Json) -> Json:
    """A response."""
    return {"jsonrpc": "2.0", "id": id, "result": result}


def error_message(error: McpError, id: RequestId | None = None) -> Json:
    """A response that says what is wrong. `id`: where the error has none."""
    facts: Json = {"code": error.code, "message": error.message}
    if error.data is not None:
        facts["data"] = error.data
    return {"jsonrpc": "2.0", "id": id if error.id is None else error.id, "error": facts}


def notification(method: str, params: Mapping[str, Any]) -> Json:
    """A notification."""
    return {"jsonrpc": "2.0", "method": method, "params": dict(params)}


def encode(message: Json) -> bytes:
    """One line of JSON, without the line break."""
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
