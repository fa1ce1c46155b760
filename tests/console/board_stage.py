"""A console server whose node has a blackboard: the page, the status, and the blackboard's part of the API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from aiohttp import web

from meshllm.core.board.service import BoardPost, BoardWriter, FeedQuery, PostWish, SearchQuery
from meshllm.errors import BoardOff, MeshError
from meshllm.web.console.page_files import PageFiles
from meshllm.web.console.redaction import redacted_status
from meshllm.web.http.access_control import is_loopback
from tests.console.memory_board import MemoryBoard
from tests.console.meshes import TOKEN, Stage, mesh_of


@dataclass
class BoardStage(Stage):
    """A node of a mesh with `board`."""

    board: MemoryBoard = field(default_factory=MemoryBoard)

    async def begin(self) -> None:
        """Listen."""
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._ending = False
        self.board.changed = lambda: self._loop.call_soon_threadsafe(self._changed)
        app = web.Application(middlewares=[self._guard])
        files = PageFiles()
        app.router.add_get("/", self._answer(lambda request: files.index(self.api.removesuffix("/v1"))))
        app.router.add_get("/assets/{name}", self._answer(lambda request: files.asset(request.match_info["name"])))
        app.router.add_get("/api/status", self._answer(lambda request: web.Response(text=self._status_text(request))))
        app.router.add_get("/api/events", self._events)
        board = self.board
        for name, reading in (("facts", board.facts), ("rooms", board.rooms), ("claims", board.claims)):
            app.router.add_get(f"/api/blackboard/{name}", self._answer(self._reader(name, reading)))
        app.router.add_get("/api/blackboard/feed", self._feed)
        app.router.add_get("/api/blackboard/search", self._search)
        for name, act in (("post", self._post), ("retract", self._retract), ("preview", self._preview)):
            app.router.add_post(f"/api/blackboard/{name}", act)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.hosts[0], self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def end(self) -> None:
        """Stop listening."""
        self._ending = True
        self.board.changed = lambda: None
        self._changed()
        await self._runner.cleanup()

    def _changed(self) -> None:
        event, self._news = self._news, asyncio.Event()
        event.set()

    @staticmethod
    def _near(request: web.Request) -> bool:
        return is_loopback(request.host.partition(":")[0])

    def _owner(self, request: web.Request) -> bool:
        return self._near(request) and request.headers.get("x-mesh-llm-token") == TOKEN

    @web.middleware
    async def _guard(self, request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        """Owner on this machine; with the key, reading elsewhere."""
        if request.path.startswith("/api/"):
            keyed = request.headers.get("authorization") == f"Bearer {self.policy.key}"
            if not self._near(request) and not keyed:
                return _error(401, "key_required", "The key, please.")
            board = request.path.startswith("/api/blackboard/")
            if board and not self._owner(request) and (self._near(request) or request.method != "GET"):
                return _error(403, "token_required", "The token, please.")
        try:
            return await handler(request)  # type: ignore[no-any-return]
        except MeshError as error:
            return _error(404 if isinstance(error, BoardOff) else 400, error.code, str(error))

    @staticmethod
    def _answer(make: Callable[[web.Request], web.Response]) -> Callable[[web.Request], Any]:
        async def handler(request: web.Request) -> web.Response:
            return make(request)

        return handler

    @staticmethod
    def _reader(name: str, reading: Callable[[], Any]) -> Callable[[web.Request], web.Response]:
        def make(request: web.Request) -> web.Response:
            found = reading()
            return _json(asdict(found) if name == "facts" else {name: [asdict(one) for one in found]})

        return make

    def _status_text(self, request: web.Request) -> str:
        status = self.status()
        if not self._owner(request):
            status = redacted_status(status, api=self.api, console=self.url)
        return status.model_dump_json()

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        await response.write(f"event: status\ndata: {self._status_text(request)}\n\n".encode())
        while True:
            news = self._news
            await news.wait()
            if self._ending or request.transport is None or request.transport.is_closing():
                break
            try:
                await response.write(b'event: blackboard\ndata: {"cursor": "x"}\n\n')
            except ConnectionError:
                break
            await asyncio.sleep(0.1)
        return response

    async def _feed(self, request: web.Request) -> web.Response:
        asked = request.query
        page = await self.board.feed(
            FeedQuery(
                room=asked.get("room", ""),
                author=asked.get("author", ""),
                hours=float(asked.get("hours", 24)),
                limit=int(asked.get("limit", 20)),
                to_me=asked.get("to_me") == "true",
                thread=asked.get("thread", ""),
                kind=asked.get("kind", ""),
                after=asked.get("after", ""),
            )
        )
        return _json(asdict(page))

    async def _search(self, request: web.Request) -> web.Response:
        asked = request.query
        query = SearchQuery(
            asked["words"], asked.get("room", ""), asked.get("author", ""), limit=int(asked.get("limit", 20))
        )
        return _json(asdict(await self.board.search(query)))

    async def _post(self, request: web.Request) -> web.Response:
        body = await request.json()
        writer = BoardWriter(body.get("name", ""), body.get("program", ""))
        wish = PostWish(body["text"], body["room"], body["kind"], body["reply_to"], tuple(body["to"]), writer)
        return _json(asdict(await self.board.post(wish)))

    async def _retract(self, request: web.Request) -> web.Response:
        return _json({"post": asdict(await self.board.retract((await request.json())["post"]))})

    async def _preview(self, request: web.Request) -> web.Response:
        return _json(asdict(self.board.preview((await request.json())["text"])))


def board_of(count: int = 3) -> BoardStage:
    """A node of a mesh of three with a board of `count` messages, the newest of them a thread of three."""
    stage = BoardStage(snapshot=mesh_of(3).snapshot)
    filled(stage.board, count)
    return stage


TEXTS = (
    ("finding", "FINDING: the tunnel dies after 60 s of silence: the NAT forgets it. A ping every 20 s helps."),
    ("status", "STATUS: splitting the parser into two files [branch:parser]"),
    ("question", "QUESTION: who knows why test_lanes is slow on the laptop? It takes 40 s there, 3 s here."),
    ("tip", "TIP: scripts/check needs Node 22; see https://nodejs.org/en/download"),
    ("done", "DONE: the board forgets after 48 hours."),
    ("note", "Lunch at one?"),
)  # fmt: skip
WRITERS = (("ann", "amber", "claude-code"), ("ben", "birch", "codex"), ("owner", "workbench", ""))
ROOMS = ("acme/engine", "acme/site", "")


def filled(board: MemoryBoard, count: int) -> tuple[BoardPost, ...]:
    """`count` messages; the two newest are a reply to the third one, and a reply to that."""
    made: list[BoardPost] = []
    for number in range(count):
        left = count - 1 - number
        kind, text = TEXTS[number % len(TEXTS)]
        name, node, program = WRITERS[number % len(WRITERS)]
        thread = count >= 3 and left < 2
        parent = made[-1].id if thread else ""
        made.append(
            board.arrive(
                ("It is the second try that is slow." if left else "Thanks, that was it.")
                if thread
                else f"{text} ({number})",
                kind="note" if thread else kind,
                name=name,
                node=node,
                program=program,
                mine=node == "workbench",
                room=made[-1].room if thread else ROOMS[number % len(ROOMS)],
                reply_to=parent,
                ago=60.0 * left * (1 if count < 1000 else 0.5),
            )
        )
    return tuple(made)


def _json(value: object) -> web.Response:
    return web.Response(text=json.dumps(value), content_type="application/json")


def _error(status: int, code: str, message: str) -> web.Response:
    return web.json_response({"error": {"code": code, "message": message}}, status=status)
