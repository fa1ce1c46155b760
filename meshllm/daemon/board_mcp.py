"""The blackboard of this node for agents that call `/mcp` of the console. Its code is loaded by the first call."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from meshllm.util.threads import in_thread

if TYPE_CHECKING:
    from meshllm.board.mcp_http import McpHttp
    from meshllm.core.board.service import Blackboard


class BoardMcp:
    """Answers messages; `exchange` is the `mcp` of a `Console`. `board` returns the blackboard, or raises BoardOff."""

    def __init__(self, board: Callable[[], Blackboard], wall_clock: Callable[[], float]) -> None:
        self._board, self._wall_clock = board, wall_clock
        self._http: McpHttp | None = None
        self._closed = False

    async def exchange(
        self, body: bytes, headers: Mapping[str, str], room: str, emit: Callable[[bytes], Awaitable[None]] | None
    ) -> tuple[int, bytes]:
        """See `McpHttp.exchange`."""
        if self._closed:
            return 503, b""
        if self._http is None:
            # In a thread: other callers must not wait for imports. Of two that load it, the first counts.
            made = await in_thread(lambda stop: self._made(), "load the MCP server")
            self._http = self._http or made
        return await self._http.exchange(body, headers, room, emit)

    async def close(self) -> None:
        """End all exchanges in progress, and refuse others."""
        self._closed = True
        if self._http is not None:
            await self._http.close()

    def _made(self) -> McpHttp:
        from meshllm import __version__
        from meshllm.board.mcp import McpSetting
        from meshllm.board.mcp_http import McpHttp
        from meshllm.board.mcp_tools import LocalCalls

        calls = LocalCalls(self._board)
        return McpHttp(McpSetting(calls, __version__, self._wall_clock, time.monotonic, lambda: secrets.token_hex(4)))
