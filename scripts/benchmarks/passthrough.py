"""A minimal aiohttp proxy over uvloop, as a baseline: `passthrough.py PORT UPSTREAM_PORT`."""

from __future__ import annotations

import asyncio
import sys

import uvloop
from aiohttp import ClientSession, TCPConnector, web


async def serve(port: int, upstream: int) -> None:
    """Answer on `port` with what `upstream` answers, piece by piece, until cancelled."""
    session = ClientSession(f"http://127.0.0.1:{upstream}", connector=TCPConnector(limit=0), auto_decompress=False)

    async def handle(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {"Content-Type": request.headers.get("Content-Type", "application/json")}
        async with session.request(request.method, request.path_qs, data=body or None, headers=headers) as theirs:
            if theirs.content_length is not None:
                return web.Response(
                    status=theirs.status, body=await theirs.read(), headers={"Content-Type": theirs.content_type}
                )
            reply = web.StreamResponse(status=theirs.status, headers={"Content-Type": theirs.content_type})
            await reply.prepare(request)
            async for piece in theirs.content.iter_any():
                await reply.write(piece)
            await reply.write_eof()
            return reply

    app = web.Application(client_max_size=64 << 20)
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
        await session.close()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2])))
