"""`POST /api/attach`: a connection that stays open as long as the launcher of an agent lives."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING

from meshllm.errors import MeshError

if TYPE_CHECKING:
    from aiohttp import web

    from meshllm.web.console.endpoints import ConsoleRoute


class AttachHandler:
    """Answers the endpoint. `attach` is entered for the life of the connection; raises MeshError to refuse it."""

    def __init__(self, attach: Callable[[], AbstractContextManager[None]]) -> None:
        self._attach = attach

    def routes(self) -> tuple[ConsoleRoute, ...]:
        """The endpoint."""
        from meshllm.web.console import endpoints

        return (endpoints.ConsoleRoute(endpoints.ATTACH, self._hold),)

    async def _hold(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        from meshllm.web.console.responses import SECURITY_HEADERS, error_response

        response = web.StreamResponse(headers={"content-type": "text/plain; charset=utf-8", **SECURITY_HEADERS})
        try:
            with self._attach():
                await response.prepare(request)
                # The body has no end: reading fails, or ends, when the connection does.
                with suppress(OSError, web.RequestPayloadError):
                    while await request.content.readany():
                        pass
        except MeshError as error:
            return error_response(409, error.code, str(error))
        return response
