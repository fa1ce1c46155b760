"""The blackboard of the running node, for programs outside of it: requests to the console's API.

Small and without an HTTP library: the MCP server has to answer 0.4 s after its start, and a call that waits for news
ends at once when its client gives up, which no library call in a thread can.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar
from urllib.parse import urlencode

from meshllm.core.board.service import (
    ALL_ROOMS,
    BoardPage,
    BoardPost,
    BoardWriter,
    ClaimAnswer,
    ClaimFacts,
    ClaimWish,
    FeedQuery,
    PostAnswer,
    PostWish,
    RoomFacts,
    SearchQuery,
)
from meshllm.errors import BoardOff, BoardRate, BoardRefused, EnvironmentFailure, NotRunning

# A call that does not wait; and one that writes, which the node gives a slow disk a minute for.
ANSWER_SECONDS, WRITE_SECONDS = 10.0, 70.0
MAX_ANSWER_BYTES = 8 << 20
START = (
    "Start one: 'mesh-llm --model NAME', or 'mesh-llm --client --join INVITE' to join others. Then call again; nothing "
    "has to be restarted. Go on without the blackboard until then."
)
# How the fields of the contract are annotated.
_TYPES: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "bool": bool,
    "int": int,
    "float": (int, float),
    "tuple[str, ...]": tuple,
}
_Facts = TypeVar("_Facts", BoardPost, ClaimFacts, RoomFacts)


class ConsoleBoard:
    """The blackboard of the node of MESH_LLM_HOME, or of the one with the console `port`. Methods raise MeshError:
    NotRunning where no node answers, which is looked up again at each call."""

    def __init__(self, port: int | None = None) -> None:
        self._port = port

    async def post(self, wish: PostWish) -> PostAnswer:
        """See `Blackboard`."""
        body = {"text": wish.text, "room": wish.room, "kind": wish.kind, "reply_to": wish.reply_to, "to": [*wish.to]}
        answer = await self._ask("POST", "post", body=body | _writer(wish.writer), within=WRITE_SECONDS)
        return PostAnswer(_facts(BoardPost, answer.get("post")), _text(answer, "replaced"))

    async def feed(self, query: FeedQuery) -> BoardPage:
        """See `Blackboard`."""
        names = ("room", "author", "hours", "limit", "to_me", "mine", "thread", "kind", "after", "wait_seconds")
        asked = {name: getattr(query, name) for name in names} | _writer(query.reader)
        return _page(await self._ask("GET", "feed", asked, within=ANSWER_SECONDS + query.wait_seconds))

    async def search(self, query: SearchQuery) -> BoardPage:
        """See `Blackboard`."""
        names = ("words", "room", "author", "hours", "limit")
        asked = {name: getattr(query, name) for name in names} | _writer(query.reader)
        return _page(await self._ask("GET", "search", asked))

    async def claim(self, wish: ClaimWish) -> ClaimAnswer:
        """See `Blackboard`."""
        body = {"key": wish.key, "op": wish.op, "room": wish.room, "seconds": wish.seconds}
        answer = await self._ask("POST", "claim", body=body | _writer(wish.writer), within=WRITE_SECONDS)
        holder = answer.get("holder")
        return ClaimAnswer(
            answer.get("granted") is True,
            None if holder is None else _facts(ClaimFacts, holder),
            _text(answer, "replaced"),
        )

    async def claims(self, room: str = ALL_ROOMS) -> tuple[ClaimFacts, ...]:
        """See `Blackboard`."""
        return _list(ClaimFacts, (await self._ask("GET", "claims", {"room": room})).get("claims"))

    async def rooms(self) -> tuple[RoomFacts, ...]:
        """See `Blackboard`."""
        return _list(RoomFacts, (await self._ask("GET", "rooms")).get("rooms"))

    async def _ask(
        self,
        method: str,
        name: str,
        query: Mapping[str, object] | None = None,
        *,
        body: Mapping[str, object] | None = None,
        within: float = ANSWER_SECONDS,
    ) -> dict[str, Any]:
        from meshllm.cli.console_client import console_port, not_a_console, token_headers

        try:
            port = console_port(self._port)
        except NotRunning as error:
            raise NotRunning(error.message, advice=START) from error
        path = f"/api/blackboard/{name}" + (f"?{urlencode(_flat(query))}" if query else "")
        data = b"" if body is None else json.dumps(body).encode()
        try:
            async with asyncio.timeout(within):
                status, answer = await _exchange(port, method, path, data, token_headers(port))
        except TimeoutError as error:
            raise NotRunning(
                f"The node on port {port} has not answered within {within:.0f} s.", advice=START
            ) from error
        except OSError as error:
            raise NotRunning(f"No mesh-llm answers on port {port}.", advice=START) from error
        try:
            found = json.loads(answer)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise not_a_console(port, status)
        if status != 200:
            raise _error(status, found)
        return found


async def _exchange(port: int, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
    """Status and body of a response. HTTP/1.0: the body is all that comes until the server closes the connection."""
    sent = {"host": f"127.0.0.1:{port}", "accept": "application/json", **headers}
    if method == "POST":
        sent |= {"content-type": "application/json", "content-length": str(len(body))}
    lines = [f"{method} {path} HTTP/1.0", *(f"{name}: {value}" for name, value in sent.items()), "", ""]
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=MAX_ANSWER_BYTES)
    try:
        writer.write("\r\n".join(lines).encode() + body)
        await writer.drain()
        answer = bytearray()
        while part := await reader.read(64 << 10):
            answer += part
            if len(answer) > MAX_ANSWER_BYTES:
                raise OSError("the answer is too long")
    finally:
        writer.close()
    head, _, text = bytes(answer).partition(b"\r\n\r\n")
    protocol, _, status = head.partition(b"\r\n")[0].partition(b" ")
    if not protocol.startswith(b"HTTP/1.") or not status[:3].isdigit():
        raise OSError("the answer is not HTTP")
    return int(status[:3]), text


def _writer(writer: BoardWriter) -> dict[str, object]:
    return {"name": writer.name, "program": writer.program}


def _flat(query: Mapping[str, object]) -> dict[str, str]:
    """Parameters of a URL; what is empty or false is left out, but the common room is an empty text."""
    shown = {key: "true" if value is True else str(value) for key, value in query.items()}
    return {key: text for key, text in shown.items() if key == "room" or text not in ("", "False")}


def _error(status: int, answer: dict[str, Any]) -> EnvironmentFailure | BoardRefused:
    """The error that the console answered, as it was there."""
    facts = answer.get("error")
    code, message = (_text(facts, "code"), _text(facts, "message")) if isinstance(facts, dict) else ("", "")
    message = message or f"The node answered with status {status}."
    if code == BoardOff.code:
        return BoardOff(message)
    if status == 404:
        return BoardOff(
            "The running node is of a version without a blackboard.", advice="Update it and start it again."
        )
    if status == 403:
        return EnvironmentFailure(message, advice="Run this as the user who runs the node, with its MESH_LLM_HOME.")
    if status == 429:
        return BoardRate(message)
    if status >= 500:
        return EnvironmentFailure(message, advice="Try again in some seconds.")
    return BoardRefused(message)


def _text(answer: Mapping[str, Any], key: str) -> str:
    value = answer.get(key)
    return value if isinstance(value, str) else ""


def _page(answer: dict[str, Any]) -> BoardPage:
    more = answer.get("more")
    return BoardPage(
        _list(BoardPost, answer.get("posts")), more if isinstance(more, int) else 0, _text(answer, "cursor")
    )


def _list(kind: type[_Facts], values: object) -> tuple[_Facts, ...]:
    return tuple(_facts(kind, value) for value in values) if isinstance(values, list) else ()


def _facts(kind: type[_Facts], value: object) -> _Facts:
    """A dataclass of the contract; fields of newer nodes are left out. Raises EnvironmentFailure."""
    given: dict[str, Any] = {}
    found = value if isinstance(value, dict) else {}
    for each in fields(kind):
        item = found.get(each.name)
        if isinstance(item, list) and all(isinstance(part, str) for part in item):
            item = tuple(item)
        if isinstance(item, _TYPES[str(each.type)]):
            given[each.name] = item
    try:
        return kind(**given)
    except TypeError as error:
        raise EnvironmentFailure("The node's answer is of another version.", advice="Update mesh-llm here.") from error
