"""The endpoints of the blackboard: bodies and parameters in, calls of `Blackboard`, its values and errors out.

Invariants: a handler is called for the owner on this machine, and a reading one also for callers on other machines with
the key (`ConsoleHandlers` refuses all others). A feed that waits has a place among a bounded number, gives it back when
its caller has gone, and ends at shutdown.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, TypeAdapter, ValidationError

from meshllm.core.board.entries import ENTRIES_PER_MINUTE, MAX_BODY_BYTES
from meshllm.core.board.service import (
    Blackboard,
    BoardFacts,
    BoardPage,
    ClaimWish,
    FeedQuery,
    PostWish,
    SearchQuery,
)
from meshllm.errors import BoardOff, BoardRate, BoardRefused, InputError, MeshError
from meshllm.web.console import endpoints
from meshllm.web.console.board_models import (
    MAX_FIELD,
    ClaimRequest,
    ClaimsAnswer,
    ClaimsParameters,
    FeedParameters,
    NoParameters,
    NoticeRequest,
    PostRequest,
    PreviewRequest,
    RetractAnswer,
    RetractRequest,
    RoomsAnswer,
    SearchParameters,
    problem,
)
from meshllm.web.console.endpoints import ConsoleRoute
from meshllm.web.console.responses import error_response

# Feeds that wait for news, and those of callers on other machines, so that they cannot use up all places.
MAX_WAITERS = 64
MAX_FOREIGN_WAITERS = 32
# How often a waiting feed looks whether its caller has gone.
SLICE_SECONDS = 5.0
# A wait of the board itself may end a little early.
EARLY_SECONDS = 0.2
STATUS = {BoardOff.code: 404, BoardRefused.code: 400, BoardRate.code: 429}

_Asked = TypeVar("_Asked", bound=BaseModel)


class BoardHandlers:
    """Answers the endpoints. `board` returns the blackboard, or raises BoardOff; `is_owner`: of a request's caller."""

    def __init__(self, board: Callable[[], Blackboard], is_owner: Callable[[web.Request], bool]) -> None:
        self._board = board
        self._is_owner = is_owner
        self._waiters = self._foreign_waiters = 0
        self._limits: set[asyncio.Timeout] = set()
        self._closing = False

    def routes(self) -> tuple[ConsoleRoute, ...]:
        """The endpoints."""
        return (
            ConsoleRoute(endpoints.BOARD_POST, self._post),
            ConsoleRoute(endpoints.BOARD_FEED, self._feed),
            ConsoleRoute(endpoints.BOARD_SEARCH, self._search),
            ConsoleRoute(endpoints.BOARD_CLAIM, self._claim),
            ConsoleRoute(endpoints.BOARD_CLAIMS, self._claims),
            ConsoleRoute(endpoints.BOARD_ROOMS, self._rooms),
            ConsoleRoute(endpoints.BOARD_FACTS, self._facts),
            ConsoleRoute(endpoints.BOARD_RETRACT, self._retract),
            ConsoleRoute(endpoints.BOARD_PREVIEW, self._preview),
            ConsoleRoute(endpoints.BOARD_NOTICE, self._notice),
        )

    def close(self) -> None:
        """End the feeds that wait."""
        self._closing = True
        now = asyncio.get_running_loop().time()
        for limit in self._limits:
            limit.reschedule(now)

    @property
    def waiters(self) -> int:
        """Number of feeds that wait for news."""
        return self._waiters

    # -- reading

    async def _feed(self, request: web.Request) -> web.Response:
        async def act(board: Blackboard, asked: FeedParameters) -> BoardPage:
            query = FeedQuery(
                room=asked.room,
                author=asked.author,
                hours=asked.hours,
                limit=asked.limit,
                to_me=asked.to_me,
                mine=asked.mine,
                thread=asked.thread,
                kind=asked.kind,
                after=asked.after,
                reader=asked.writer,
            )
            if not asked.wait_seconds:
                return await board.feed(query)
            return await self._wait(request, board, query, asked.wait_seconds)

        return await self._answer(request, act, query=FeedParameters)

    async def _wait(self, request: web.Request, board: Blackboard, query: FeedQuery, seconds: float) -> BoardPage:
        """The news after a page, once there are any. Raises WaitRefused."""
        foreign = not self._is_owner(request)
        if self._waiters >= MAX_WAITERS or (foreign and self._foreign_waiters >= MAX_FOREIGN_WAITERS):
            raise WaitRefused("overloaded", "Too many callers wait for news of the blackboard. Retry later.")
        self._waiters += 1
        self._foreign_waiters += foreign
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._limits.add(limit)
                if self._closing:
                    limit.reschedule(0)
                return await _news(request, board, query, seconds)
        except TimeoutError:
            if limit.expired():
                raise WaitRefused("stopping", "This node is stopping.") from None
            raise
        finally:
            self._limits.discard(limit)
            self._waiters -= 1
            self._foreign_waiters -= foreign

    async def _search(self, request: web.Request) -> web.Response:
        async def act(board: Blackboard, asked: SearchParameters) -> BoardPage:
            return await board.search(
                SearchQuery(asked.words, asked.room, asked.author, asked.hours, asked.limit, asked.writer)
            )

        return await self._answer(request, act, query=SearchParameters)

    async def _claims(self, request: web.Request) -> web.Response:
        async def act(board: Blackboard, asked: ClaimsParameters) -> ClaimsAnswer:
            return ClaimsAnswer(claims=list(board.claims(asked.room)))

        return await self._answer(request, act, query=ClaimsParameters)

    async def _rooms(self, request: web.Request) -> web.Response:
        async def act(board: Blackboard, _: NoParameters) -> RoomsAnswer:
            return RoomsAnswer(rooms=list(board.rooms()))

        return await self._answer(request, act, query=NoParameters)

    async def _facts(self, request: web.Request) -> web.Response:
        try:
            facts = self._board().facts()
        except MeshError as error:
            facts = BoardFacts(False, str(error), "", "", 0, 0, ())
        return _json(facts)

    # -- the owner's acts

    async def _post(self, request: web.Request) -> web.Response:
        async def act(board: Blackboard, body: PostRequest) -> object:
            return await board.post(
                PostWish(body.text, body.room, body.kind, body.reply_to, tuple(body.to), body.writer)
            )

        return await self._answer(request, act, body=PostRequest)

    async def _claim(self, request: web.Request) -> web.Response:
        async def act(board: Blackboard, body: ClaimRequest) -> object:
            return await board.claim(ClaimWish(body.key, body.op, body.room, body.seconds, body.writer))

        return await self._answer(request, act, body=ClaimRequest)

    async def _retract(self, request: web.Request) -> web.Response:
        async def act(board: Blackboard, body: RetractRequest) -> RetractAnswer:
            return RetractAnswer(post=await board.retract(body.post))

        return await self._answer(request, act, body=RetractRequest)

    async def _preview(self, request: web.Request) -> web.Response:
        async def act(board: Blackboard, body: PreviewRequest) -> object:
            return board.preview(body.text)

        return await self._answer(request, act, body=PreviewRequest)

    async def _notice(self, request: web.Request) -> web.Response:
        async def act(board: Blackboard, body: NoticeRequest) -> object:
            return await board.notice(body.writer, body.cursor)

        return await self._answer(request, act, body=NoticeRequest)

    async def _answer(
        self,
        request: web.Request,
        act: Callable[[Blackboard, _Asked], Awaitable[object]],
        *,
        query: type[_Asked] | None = None,
        body: type[_Asked] | None = None,
    ) -> web.Response:
        try:
            if query is not None:
                given = Counter(name for name, _ in request.query.items())
                if twice := [name for name, count in given.items() if count > 1]:
                    said = f"The query has {twice[0][:MAX_FIELD]!r} twice."
                    return error_response(400, "invalid_request", said)
                asked = query.model_validate_strings(_parameters(request))
            else:
                assert body is not None, "an endpoint has a body or parameters"
                asked = body.model_validate_json(await request.read(), strict=True)
        except ValidationError as error:
            what = "The query" if query is not None else "The body"
            return error_response(400, "invalid_request", problem(error, what))
        except web.HTTPRequestEntityTooLarge:
            said = f"The body is too long: the text of a message has at most {MAX_BODY_BYTES:,} bytes."
            return error_response(413, "invalid_request", said)
        try:
            return _json(await act(self._board(), asked))
        except WaitRefused as refusal:
            return error_response(503, refusal.code, str(refusal))
        except MeshError as error:
            status = STATUS.get(error.code, 400 if isinstance(error, InputError) else 409)
            response = error_response(status, error.code, str(error))
            if status == 429:
                response.headers["retry-after"] = str(60 // ENTRIES_PER_MINUTE)
            return response


class WaitRefused(Exception):
    """A feed cannot wait, or not any longer."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


async def _news(request: web.Request, board: Blackboard, query: FeedQuery, seconds: float) -> BoardPage:
    """The page after `query.after`, once it has a message, after `seconds`, or when the caller has gone."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while True:
        began = loop.time()
        wait = max(0.0, min(end - began, SLICE_SECONDS))
        page = await board.feed(replace(query, wait_seconds=wait))
        took = loop.time() - began
        gone = request.transport is None or request.transport.is_closing()
        if page.posts or gone or took < wait - EARLY_SECONDS or loop.time() >= end:
            return page
        # Messages that the query leaves out are not read again.
        query = replace(query, after=page.cursor or query.after)


def _parameters(request: web.Request) -> dict[str, str]:
    """The parameters of the URL, without empty ones; an empty room is the common one."""
    return {name: value for name, value in request.query.items() if value or name in ("room", "words")}


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _json(found: object) -> web.Response:
    """A dataclass or a model as JSON."""
    kind: Any = type(found)
    text = _adapter(kind).dump_json(found).decode()
    return web.Response(text=text, content_type="application/json")
