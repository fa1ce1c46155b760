"""`/mcp` of a console over a board in memory, as a server of its own and behind a proxy that knows the token."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
import time
from collections.abc import AsyncIterator

from aiohttp import ClientSession, web

from meshllm.board.mcp import McpSetting
from meshllm.board.mcp_http import McpHttp
from meshllm.board.mcp_tools import LocalCalls
from meshllm.core.snapshot import Snapshot
from meshllm.web.console.server import Console
from meshllm.web.console.status import NodeStatus, StatusInputs, node_status
from meshllm.web.http.access_control import AccessPolicy
from tests.local_board import LocalBoard

TOKEN, KEY = "token-of-the-run", "k3y-of-this-node"


def status() -> NodeStatus:
    inputs = StatusInputs(Snapshot(), "box", "1", 1, "http://localhost:9337/v1", "http://localhost:3131", 0.0)
    return node_status(inputs, 1.0)


@contextlib.asynccontextmanager
async def served(board: LocalBoard, key: str | None = KEY, port: int = 0) -> AsyncIterator[str]:
    """The URL of `/mcp`."""
    wall = time.time  # noqa: TID251 - ages of messages
    mcp = McpHttp(McpSetting(LocalCalls(lambda: board), "1.2", wall, time.monotonic, lambda: secrets.token_hex(4)))
    console = Console(AccessPolicy(key), status, token=TOKEN, mcp=mcp.exchange)
    port = await console.start(("127.0.0.1",), port)
    try:
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        await mcp.close()
        await console.close()


@contextlib.asynccontextmanager
async def with_token(target: str, token: str = TOKEN) -> AsyncIterator[str]:
    """A proxy on this machine that adds the token: for judges that can send no header of their own. All else is as they
    sent it, Host and Origin too."""

    async def forward(request: web.Request) -> web.StreamResponse:
        headers = [(name, value) for name, value in request.headers.items() if name.lower() != "content-length"]
        body = await request.read()
        url = target + (f"?{request.query_string}" if request.query_string else "")
        sent = [*headers, ("x-mesh-llm-token", token)]
        async with (
            ClientSession(auto_decompress=False) as session,
            session.request(request.method, url, headers=sent, data=body) as answer,
        ):
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in ("transfer-encoding",)}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            with contextlib.suppress(ConnectionError):
                async for part in answer.content.iter_any():
                    await response.write(part)
                await response.write_eof()
            return response

    app = web.Application()
    app.router.add_route("*", "/mcp", forward)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/mcp"
    finally:
        await runner.cleanup()


async def main() -> None:
    """Print the URL and serve until the input ends."""
    board = LocalBoard()
    board.arrive("STATUS: hello from bob", kind="status", room="my/room")
    async with served(board) as url, with_token(url) as open_url:
        print(open_url, url, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
