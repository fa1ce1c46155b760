"""A model server that holds its replies until told to send them: `holding.py PORT`.

`GET /held` returns the number of waiting requests; `POST /release` answers them and all later ones.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop
from aiohttp import web


async def serve(port: int) -> None:
    """Answer on `port` for the model "fake", until cancelled."""
    released, held = asyncio.Event(), 0
    message = {"role": "assistant", "content": "At last."}
    answer = {"id": "c", "object": "chat.completion", "created": 0, "model": "fake"}
    answer["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "fake", "object": "model"}]})

    async def chat(request: web.Request) -> web.Response:
        nonlocal held
        await request.read()
        held += 1
        try:
            await released.wait()
        finally:
            held -= 1
        return web.json_response(answer)

    async def count(request: web.Request) -> web.Response:
        return web.json_response({"held": held})

    async def release(request: web.Request) -> web.Response:
        released.set()
        return web.json_response({})

    app = web.Application(client_max_size=64 << 20)
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/held", count)
    app.router.add_post("/release", release)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
