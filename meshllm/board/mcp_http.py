"""The MCP server over streamable HTTP, without sessions: one POST, one message, in both eras. Pure but for the board.

A request of 2026-07-28 repeats its version, method and name in headers, for proxies that do not read bodies; both must
agree. Who may call, and how much, is checked by the web server that calls `exchange`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from meshllm.board.mcp import McpSetting
from meshllm.board.mcp_connection import LISTEN, McpConnection
from meshllm.board.mcp_protocol import (
    HANDSHAKE_VERSIONS,
    HEADER_MISMATCH,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    STATELESS_VERSIONS,
    TOO_MANY,
    UNSUPPORTED_VERSION,
    VERSION_KEY,
    Json,
    McpError,
    McpRequest,
    check_envelope,
    decode,
    encode,
    error_message,
    unsupported,
)

VERSION_HEADER, METHOD_HEADER, NAME_HEADER = "mcp-protocol-version", "mcp-method", "mcp-name"
# What the name header repeats.
NAMED = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
MAX_OPEN_STREAMS = 16
MAX_WAITING = 256
_BASE64_BEGIN, _BASE64_END = "=?base64?", "?="
_STATUS = {
    PARSE_ERROR: 400,
    INVALID_REQUEST: 400,
    INVALID_PARAMS: 400,
    HEADER_MISMATCH: 400,
    UNSUPPORTED_VERSION: 400,
    METHOD_NOT_FOUND: 404,
    TOO_MANY: 503,
}

Emit = Callable[[bytes], Awaitable[None]]


class McpHttp:
    """Answers the POSTs of all clients."""

    def __init__(self, setting: McpSetting) -> None:
        self._setting = setting
        self._connections: set[McpConnection] = set()
        self._streams = 0

    async def exchange(
        self, body: bytes, headers: Mapping[str, str], room: str, emit: Emit | None
    ) -> tuple[int, bytes]:
        """Status and body (empty: none) of the response to one message; `headers` have lower-case names.

        `emit` sends a notification before the response, which is then an event stream; None if the client takes none.
        A subscription stream ends when the caller is cancelled, and with `close`.
        """
        request: McpRequest | None = None
        try:
            message = decode(body)
            request = message if isinstance(message, McpRequest) else None
            stateless = _check_version(request, headers)
            if request is None or request.id is None:
                return 202, b""  # nothing is in progress between two exchanges that it could be about
            if stateless:
                _check_request(request, headers)
            return await self._answer(request, headers, room, emit, stateless=stateless)
        except McpError as error:
            known = None if request is None else request.id
            return _STATUS.get(error.code, 400), encode(error_message(error, known))

    async def close(self) -> None:
        """End all exchanges in progress; streams get their last message."""
        for connection in tuple(self._connections):
            await connection.close()

    async def _answer(
        self, request: McpRequest, headers: Mapping[str, str], room: str, emit: Emit | None, *, stateless: bool
    ) -> tuple[int, bytes]:
        streams = stateless and request.method == LISTEN
        if streams and emit is None:
            raise McpError(INVALID_REQUEST, f"{LISTEN} needs 'Accept: text/event-stream'.")
        if streams and self._streams >= MAX_OPEN_STREAMS:
            raise McpError(TOO_MANY, f"{MAX_OPEN_STREAMS} subscription streams are open.")
        waiting: asyncio.Queue[Json] = asyncio.Queue(MAX_WAITING)

        def send(message: Json) -> None:
            if not waiting.full():  # a client that does not read loses notifications; a response is the last message
                waiting.put_nowait(message)

        setting = replace(self._setting, room=room)
        connection = McpConnection(setting, send, only_one=True)
        if not stateless:
            connection.server.meet({"name": headers.get("user-agent", "").partition("/")[0]})
        self._connections.add(connection)
        self._streams += streams
        try:
            connection.take(request)
            while True:
                message = await waiting.get()
                if "method" not in message:
                    return _status(message, stateless=stateless), encode(message)
                if emit is not None:
                    await emit(encode(message))
        finally:
            self._streams -= streams
            self._connections.discard(connection)
            await connection.close()


def _status(message: Json, *, stateless: bool) -> int:
    """The older era reports errors of requests in the body alone."""
    code = message.get("error", {}).get("code", 0)
    return _STATUS.get(code, 200) if stateless else 200


def _check_version(request: McpRequest | None, headers: Mapping[str, str]) -> bool:
    """Whether the message is of the era without a handshake. Raises McpError for an unknown version."""
    version = headers.get(VERSION_HEADER, "")
    if request is not None and request.id is not None and VERSION_KEY in request.meta:
        return True
    if not version or version in HANDSHAKE_VERSIONS:
        return False
    if version in STATELESS_VERSIONS:
        return True
    raise unsupported(version, None if request is None else request.id)


def _check_request(request: McpRequest, headers: Mapping[str, str]) -> None:
    """Raise McpError if the headers of a stateless request do not repeat its body, or if the body lacks something."""
    version = request.meta.get(VERSION_KEY)
    if isinstance(version, str):
        _agree(VERSION_HEADER, headers.get(VERSION_HEADER), version)
    else:
        check_envelope(request)
    _agree(METHOD_HEADER, headers.get(METHOD_HEADER), request.method)
    name = request.params.get(NAMED.get(request.method, ""))
    if isinstance(name, str):
        _agree(NAME_HEADER, _decoded(headers.get(NAME_HEADER)), name)
    check_envelope(request)


def _agree(header: str, sent: str | None, wanted: str) -> None:
    if sent != wanted:
        state = "is missing" if sent is None else "does not agree with the body"
        raise McpError(HEADER_MISMATCH, f"The header {header} {state}.")


def _decoded(value: str | None) -> str | None:
    """The value of a header; what is not plain ASCII is sent as base64 of its UTF-8."""
    if value is None or not (value.startswith(_BASE64_BEGIN) and value.endswith(_BASE64_END)):
        return value
    try:
        return base64.b64decode(value[len(_BASE64_BEGIN) : -len(_BASE64_END)], validate=True).decode()
    except (binascii.Error, ValueError):
        return None
