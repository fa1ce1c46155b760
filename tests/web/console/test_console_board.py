"""The endpoints of the blackboard: what they accept, answer and refuse, to whom, and how long they wait."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlencode

import pytest
from web_rig import OWNER, TOKEN, Caller, Response, request

from meshllm.core.board.entries import ENTRIES_AT_ONCE, MAX_BODY_BYTES
from meshllm.core.snapshot import Snapshot
from meshllm.tasks import Owner
from meshllm.web.console import board as board_endpoints
from meshllm.web.console.endpoints import ENDPOINTS
from meshllm.web.console.server import Console
from meshllm.web.console.status import NodeStatus, StatusInputs, node_status
from meshllm.web.http.access_control import AccessPolicy
from tests.lan_address import lan_address
from tests.local_board import LocalBoard

KEY = "k3y-of-this-node"
BEARER = {"Authorization": f"Bearer {KEY}"}
API = "/api/blackboard"
READING = ("feed", "search?words=x", "claims", "rooms", "facts")
BODIES: dict[str, dict[str, object]] = {
    "post": {"text": "STATUS: at work"},
    "claim": {"key": "issue-1"},
    "retract": {"post": "00"},
    "preview": {"text": "x"},
    "notice": {"cursor": "reader"},
}


def status() -> NodeStatus:
    """A status."""
    urls = {"api": "http://localhost:9337/v1", "console": "http://localhost:1"}
    return node_status(StatusInputs(snapshot=Snapshot(), name="box", version="1", pid=1, started=0.0, **urls), 1.0)


class BoardServer:
    """A console with a blackboard, which accepts other machines with a key."""

    def __init__(self) -> None:
        self.board = LocalBoard()
        policy = AccessPolicy(KEY, allowed_hosts=frozenset({"box.lan"}))
        self.console = Console(policy, status, token=TOKEN, board=lambda: self.board)
        self.callers: list[Caller] = []

    async def caller(self, at: str = "127.0.0.1") -> Caller:
        """A connection."""
        made = Caller(*await asyncio.open_connection(at, self.port))
        self.callers.append(made)
        return made

    async def send(
        self,
        act: str,
        body: object = None,
        headers: dict[str, str] | None = None,
        *,
        host: str = "localhost",
        at: str = "127.0.0.1",
        **query: object,
    ) -> Caller:
        """A request to the blackboard's API: a POST if there is a body. Default: as the owner."""
        caller = await self.caller(at)
        path = f"{API}/{act}" + (f"?{urlencode(query)}" if query else "")
        data = request("GET" if body is None else "POST", path, body, OWNER if headers is None else headers, host=host)
        caller.send(data)
        return caller

    async def ask(self, act: str, body: object = None, headers: dict[str, str] | None = None, **rest: Any) -> Response:
        """The response to that."""
        caller = await self.send(act, body, headers, **rest)
        try:
            return await caller.response()
        finally:
            await caller.close()

    async def feed(self, **query: object) -> Any:
        """A page."""
        response = await self.ask("feed", **query)
        assert response.status == 200, response.body
        return response.json


@pytest.fixture
async def server() -> AsyncIterator[BoardServer]:
    """A console on all addresses."""
    made = BoardServer()
    made.port = await made.console.start(("0.0.0.0",), 0)
    yield made
    await made.console.close()
    for caller in made.callers:
        await caller.close()


def texts(page: Any) -> list[str]:
    return [post["text"] for post in page["posts"]]


# -- what is asked and answered


async def test_a_message_is_scrubbed_posted_and_read_again(server: BoardServer) -> None:
    body = {"text": "FINDING: ask ann.b@corp.org", "room": "org/repo", "to": ["bob"], "program": "codex"}
    answer = (await server.ask("post", body)).json
    assert answer["replaced"] == "1 email"
    post = answer["post"]
    assert (post["kind"], post["text"], post["name"]) == ("finding", "FINDING: ask [email]", "ann")
    assert (post["program"], post["room"], post["to"], post["mine"]) == ("codex", "org/repo", ["bob"], True)
    reply = {"text": "me too", "room": "org/repo", "reply_to": post["id"][:8], "name": "cy", "kind": "tip"}
    reply = (await server.ask("post", reply)).json["post"]
    assert (reply["thread"], reply["name"], reply["kind"]) == (post["thread"], "cy", "tip")
    page = await server.feed(thread=reply["id"][:8])
    assert [one["id"] for one in page["posts"]] == [reply["id"], post["id"]]
    assert page["posts"][1]["replies"] == 1


async def test_feed_takes_every_filter(server: BoardServer) -> None:
    for text, fields in (
        ("old", {"ago": 3 * 3600}),
        ("named", {"to": ("ann",)}),
        ("for cy", {"to": ("cy",)}),
        ("roomed", {"room": "org/repo"}),
        ("asked", {"kind": "question", "name": "zoe"}),
    ):
        server.board.arrive(text, **fields)  # type: ignore[arg-type]
    await server.ask("post", {"text": "own"})
    assert texts(await server.feed()) == ["own", "asked", "roomed", "for cy", "named", "old"]
    for query, found in (
        ({"hours": 2.5}, ["own", "asked", "roomed", "for cy", "named"]),
        ({"limit": 2}, ["own", "asked"]),
        ({"room": "org/repo"}, ["roomed"]),
        ({"room": "", "hours": 1, "mine": "false"}, ["own", "asked", "for cy", "named"]),
        ({"room": "*", "kind": "question"}, ["asked"]),
        ({"author": "zoe"}, ["asked"]),
        ({"author": "", "thread": "", "after": "", "kind": "", "name": "", "mine": "1"}, ["own"]),
        ({"to_me": "true"}, ["named"]),
        ({"to_me": "true", "name": "cy"}, ["for cy"]),
    ):
        assert texts(await server.feed(**query)) == found, query
    assert (await server.feed(limit=2))["more"] == 4
    found = (await server.ask("search", words="ask zzz", limit=1)).json
    assert texts(found) == ["asked"]
    rooms = (await server.ask("rooms")).json["rooms"]
    assert {(room["room"], room["posts"]) for room in rooms} == {("", 5), ("org/repo", 1)}


async def test_claims_are_granted_renewed_refused_and_released(server: BoardServer) -> None:
    server.board.hold("issue-2", 600, room="org/repo")
    body: dict[str, object] = {"key": "issue-1", "room": "org/repo", "seconds": 60}
    granted = (await server.ask("claim", body)).json
    assert (granted["granted"], granted["holder"]["mine"], granted["replaced"]) == (True, True, "")
    assert 55 < granted["holder"]["until"] - granted["holder"]["since"] < 65
    assert (await server.ask("claim", {**body, "op": "renew"})).json["granted"]
    refused = (await server.ask("claim", {**body, "key": "issue-2"})).json
    assert (refused["granted"], refused["holder"]["name"], refused["holder"]["node"]) == (False, "bob", "barn")
    assert [claim["key"] for claim in (await server.ask("claims")).json["claims"]] == ["issue-1", "issue-2"]
    assert (await server.ask("claims", room="other")).json == {"claims": []}
    assert (await server.ask("claim", {**body, "op": "release"})).json == {
        "granted": True, "holder": None, "replaced": "",
    }  # fmt: skip
    assert (await server.ask("claim", {**body, "op": "renew"})).json["granted"] is False


async def test_retract_preview_notice_and_facts(server: BoardServer) -> None:
    post = (await server.ask("post", {"text": "oops"})).json["post"]
    erased = (await server.ask("retract", {"post": post["id"][:6]})).json["post"]
    assert (erased["id"], erased["text"], erased["retracted"]) == (post["id"], "", True)
    other = server.board.arrive("theirs", to=("ann",), kind="question")
    refused = await server.ask("retract", {"post": other.id})
    assert (refused.status, refused.json["error"]["code"]) == (400, "blackboard_refused")
    assert (await server.ask("preview", {"text": "a@b.org"})).json == {"text": "[email]", "replaced": "1 email"}
    for count in (1, 0):
        told = (await server.ask("notice", {"cursor": "claude"})).json
        assert told == {"count": count, "questions": count}
    facts = (await server.ask("facts")).json
    assert (facts["enabled"], facts["reason"], facts["name"], facts["posts"]) == (True, "", "ann", 2)


async def test_errors_of_the_board_have_a_status_of_their_own(server: BoardServer) -> None:
    for _ in range(ENTRIES_AT_ONCE):
        assert (await server.ask("post", BODIES["post"])).status == 200
    full = await server.ask("post", BODIES["post"])
    assert (full.status, full.json["error"]["code"]) == (429, "blackboard_rate")
    assert int(full.headers["retry-after"]) > 0
    server.board.off = "This node was started with --no-blackboard."
    for name, body in (*((name, None) for name in READING[:-1]), *BODIES.items()):
        off = await server.ask(name, body)
        assert (off.status, off.json["error"]["code"]) == (404, "blackboard_off"), name
        assert "--no-blackboard" in off.json["error"]["message"]
    facts = (await server.ask("facts")).json
    assert (facts["enabled"], facts["reason"]) == (False, server.board.off)


async def test_a_console_without_a_board_says_so() -> None:
    console = Console(AccessPolicy(), status, token=TOKEN)
    port = await console.start(("127.0.0.1",), 0)
    try:
        for path, code in ((f"{API}/feed", 404), (f"{API}/facts", 200)):
            caller = Caller(*await asyncio.open_connection("127.0.0.1", port))
            caller.send(request("GET", path, headers=OWNER))
            found = await caller.response()
            assert found.status == code
            assert b"no blackboard" in found.body
            await caller.close()
    finally:
        await console.close()


# -- bad input


@pytest.mark.parametrize(
    ("name", "body", "words"),
    [
        ("post", b"{", "not valid JSON"),
        ("post", b"\xff\xfe", "not valid JSON"),
        ("post", b'{"text": "\\ud800"}', "not valid JSON"),
        ("post", b"[" * 5000, "not valid JSON"),
        ("post", b"[]", "The body is not valid"),
        ("post", {}, "needs 'text'"),
        ("post", {"text": 5}, "text: Input should be a valid string"),
        ("post", {"text": " \n"}, "text: is empty"),
        ("post", {"text": "x" * (MAX_BODY_BYTES + 1)}, "text: has 4,097 bytes; a message has at most 4,096"),
        ("post", {"text": "\u20ac" * 1366}, "text: has 4,098 bytes"),
        ("post", {"text": "x", "colour": 1}, "unknown field 'colour'"),
        ("post", {"text": "x", "colour" * 99: 1}, "unknown field 'colour"),
        ("post", {"text": "x", "room": "r" * 129}, "room: has 129 bytes"),
        ("post", {"text": "x", "room": "a\nb"}, "room: has characters that cannot be printed"),
        ("post", {"text": "x", "name": "a\u202eb"}, "name: has characters"),
        ("post", {"text": "x", "kind": "claim"}, "kind:"),
        ("post", {"text": "x", "reply_to": "xyz"}, "reply_to:"),
        ("post", {"text": "x", "to": ["a"] * 9}, "to:"),
        ("post", {"text": "x", "to": [""]}, "to.0:"),
        ("post", {"text": "x", "to": "bob"}, "to: Input should be a valid array"),
        ("claim", {"key": ""}, "key:"),
        ("claim", {"key": "k" * 201}, "key: has 201 bytes"),
        ("claim", {"key": "k", "op": "steal"}, "op:"),
        ("claim", {"key": "k", "seconds": 0}, "seconds:"),
        ("claim", {"key": "k", "seconds": 4 * 3600 + 1}, "seconds:"),
        ("claim", {"key": "k", "seconds": True}, "seconds:"),
        ("claim", {"key": "k", "seconds": 60.5}, "seconds:"),
        ("retract", {"post": ""}, "post:"),
        ("retract", {"post": "0" * 33}, "post:"),
        ("preview", {"text": "x" * (MAX_BODY_BYTES + 1)}, "4,097 bytes"),
        ("notice", {"cursor": "c" * 257}, "cursor: has 257 bytes"),
    ],
)
async def test_bad_bodies_are_refused_with_the_field(server: BoardServer, name: str, body: object, words: str) -> None:
    response = await server.ask(name, body)
    assert (response.status, response.json["error"]["code"]) == (400, "invalid_request")
    assert words in response.json["error"]["message"]
    assert len(response.body) < 400
    assert server.board.posts == []


@pytest.mark.parametrize(
    ("name", "query", "words"),
    [
        ("feed", "hours=0", "hours:"),
        ("feed", "hours=nan", "hours:"),
        ("feed", "hours=inf", "hours:"),
        ("feed", "hours=1h", "hours:"),
        ("feed", "limit=501", "limit:"),
        ("feed", "limit=0", "limit:"),
        ("feed", "limit=1.5", "limit:"),
        ("feed", "limit=1&limit=2", "'limit' twice"),
        ("feed", "mine=perhaps", "mine:"),
        ("feed", "kind=claim", "kind:"),
        ("feed", "thread=zz", "thread:"),
        ("feed", f"author={'x' * 65}", "author: has 65 bytes"),
        ("feed", "room=%00", "room: has characters"),
        ("feed", f"after={'1' * 257}", "after: has 257 bytes"),
        ("feed", "wait_seconds=5", "wait_seconds needs after"),
        ("feed", "after=0&wait_seconds=51", "wait_seconds:"),
        ("feed", "after=0&wait_seconds=-1", "wait_seconds:"),
        ("feed", "q=x", "unknown field 'q'"),
        ("search", "", "needs 'words'"),
        ("search", "words=", "words:"),
        ("search", f"words={'x' * 1025}", "words: has 1,025 bytes"),
        ("claims", "rooms=x", "unknown field 'rooms'"),
        ("rooms", "x=1", "unknown field 'x'"),
    ],
)
async def test_bad_parameters_are_refused_with_their_name(
    server: BoardServer, name: str, query: str, words: str
) -> None:
    response = await server.ask(f"{name}?{query}")
    assert (response.status, response.json["error"]["code"]) == (400, "invalid_request")
    assert words in response.json["error"]["message"]


@pytest.mark.parametrize(
    "text", ["x" * MAX_BODY_BYTES, "\n" + "\u00e4" * 2047 + "x", "\x01" * (MAX_BODY_BYTES - 1) + "x"]
)
async def test_a_message_of_the_greatest_length_fits_however_it_is_escaped(server: BoardServer, text: str) -> None:
    assert len(text.encode()) == MAX_BODY_BYTES
    assert (await server.ask("post", {"text": text})).status == 200
    assert texts(await server.feed()) == [text]
    refused = await server.ask("post", {"text": "x" * 40_000})
    assert (refused.status, "4,096 bytes" in refused.json["error"]["message"]) == (413, True)


# -- who may


async def test_the_board_is_told_to_no_local_caller_without_the_token(server: BoardServer) -> None:
    server.board.arrive("SECRET", room="SECRET")
    server.board.hold("SECRET", 60)
    for sent in (None, "", "x", TOKEN[:-1], TOKEN + "x", KEY):
        for more in ({}, BEARER):
            headers = {**({} if sent is None else {"x-mesh-llm-token": sent}), **more}
            for name, body in (*((name, None) for name in READING), *BODIES.items()):
                refused = await server.ask(name, body, headers)
                assert (refused.status, refused.json["error"]["code"]) == (403, "token_required"), (name, headers)
                assert b"SECRET" not in refused.body
    assert len(server.board.posts) == 1


async def test_other_machines_read_with_the_key_and_act_never(server: BoardServer) -> None:
    server.board.arrive("hello", room="org/repo")
    host = lan_address()
    for where in ({"host": f"{host}:{server.port}", "at": host}, {"host": "box.lan"}):
        for name in READING:
            assert (await server.ask(name, None, BEARER, **where)).status == 200, name
            for headers in ({}, OWNER, {"Authorization": "Bearer no"}):
                refused = await server.ask(name, None, headers, **where)
                assert (refused.status, refused.json["error"]["code"]) == (401, "invalid_api_key")
                assert b"org/repo" not in refused.body
        for name, body in BODIES.items():
            for headers, code in ((BEARER, 403), ({**BEARER, **OWNER}, 403), (OWNER, 401), ({}, 401)):
                assert (await server.ask(name, body, headers, **where)).status == code, name
    assert len(server.board.posts) == 1
    assert texts((await server.ask("feed", None, BEARER, host="box.lan")).json) == ["hello"]


@pytest.mark.parametrize("host", ["evil.com", "evil.com:3131", "203.0.113.9", "localhost.evil.com"])
async def test_the_board_is_told_under_no_other_host_name(server: BoardServer, host: str) -> None:
    server.board.arrive("SECRET")
    for name, body in (*((name, None) for name in READING), *BODIES.items()):
        refused = await server.ask(name, body, {**OWNER, **BEARER}, host=host)
        assert refused.status in (400, 403)
        assert b"SECRET" not in refused.body
    assert len(server.board.posts) == 1


@pytest.mark.parametrize(
    ("headers", "reads", "acts"),
    [
        ({"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}, True, True),
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, True, False),
        ({"Sec-Fetch-Site": "same-site"}, False, False),
        ({"Sec-Fetch-Site": "cross-site"}, False, False),
        ({"Origin": "http://localhost:8000", "Sec-Fetch-Site": "same-site"}, False, False),
        ({"Origin": "http://localhost:8000", "Sec-Fetch-Site": "same-origin"}, False, False),
        ({"Origin": "http://evil.com", "Sec-Fetch-Site": "cross-site"}, False, False),
        ({"Origin": "null"}, False, False),
        ({"Cookie": "a=b"}, False, False),
        ({"Referer": "http://localhost/"}, False, False),
        ({"Via": "proxy"}, False, False),
    ],
)
async def test_web_pages_other_than_the_consoles_own_are_refused(
    server: BoardServer, headers: dict[str, str], reads: bool, acts: bool
) -> None:
    for name in READING:
        assert ((await server.ask(name, None, {**OWNER, **headers})).status == 200) is reads, name
    for name, body in BODIES.items():
        refused = (await server.ask(name, body, {**OWNER, **headers})).status in (401, 403)
        assert refused is not acts, name


def test_each_endpoint_of_the_board_is_for_the_owner_or_for_readers() -> None:
    board = {one.path.removeprefix(f"{API}/"): one for one in ENDPOINTS if one.path.startswith(API)}
    assert {name for name, one in board.items() if one.owner_or_key} == {name.partition("?")[0] for name in READING}
    assert {name for name, one in board.items() if one.owner_only} == set(BODIES)
    assert {one.method for one in board.values() if one.owner_or_key} == {"GET"}


# -- news


async def test_a_feed_waits_for_news(server: BoardServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_endpoints, "SLICE_SECONDS", 0.3)
    server.board.arrive("old")
    cursor = (await server.feed())["cursor"]
    caller = await server.send("feed", after=cursor, wait_seconds=20, room="org/repo")
    await until(lambda: server.board.waiting == 1)
    server.board.arrive("of another room")
    await until(lambda: server.board.waiting == 1)
    server.board.arrive("new", room="org/repo")
    page = (await caller.response()).json
    assert texts(page) == ["new"]
    assert texts(await server.feed(after=page["cursor"])) == []
    assert texts(await server.feed(after=page["cursor"], wait_seconds=0.1)) == []


async def test_feeds_that_wait_are_bounded_for_each_audience(
    server: BoardServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_endpoints, "MAX_WAITERS", 2)
    monkeypatch.setattr(board_endpoints, "MAX_FOREIGN_WAITERS", 1)
    query = {"after": "0", "wait_seconds": 40}
    foreign = await server.send("feed", None, BEARER, host="box.lan", **query)
    await until(lambda: server.board.waiting == 1)
    assert (await server.ask("feed", None, BEARER, host="box.lan", **query)).json["error"]["code"] == "overloaded"
    own = await server.send("feed", **query)
    await until(lambda: server.board.waiting == 2)
    assert (await server.ask("feed", **query)).status == 503
    assert (await server.ask("feed")).status == 200
    server.board.arrive("x")
    for caller in (foreign, own):
        assert texts((await caller.response()).json) == ["x"]
    assert texts((await server.ask("feed", **query)).json) == ["x"]


async def test_a_caller_that_goes_gives_its_place_back(server: BoardServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_endpoints, "SLICE_SECONDS", 0.3)
    caller = await server.send("feed", after="0", wait_seconds=50)
    await until(lambda: server.board.waiting == 1)
    await caller.close()
    handlers = server.console._handlers
    assert handlers is not None
    await until(lambda: handlers._board.waiters == 0)


async def test_shutdown_ends_feeds_that_wait(server: BoardServer) -> None:
    caller = await server.send("feed", after="0", wait_seconds=50)
    await until(lambda: server.board.waiting == 1)
    owner = Owner("test")
    closing = owner.start(server.console.close(), "close")
    ended = await caller.response()
    await closing
    assert (ended.status, ended.json["error"]["code"]) == (503, "stopping")
    assert server.board.waiting == 0


async def test_events_tell_readers_of_the_board_that_it_has_changed(server: BoardServer) -> None:
    host = lan_address()
    audiences = (
        (OWNER, "localhost", "127.0.0.1"),
        (BEARER, f"{host}:{server.port}", host),
        ({}, "localhost", "127.0.0.1"),
    )
    callers = []
    for headers, name, at in audiences:
        caller = await server.caller(at)
        caller.send(request("GET", "/api/events", headers=headers, host=name))
        assert (await caller.head()).status == 200
        assert (await caller.piece()).startswith(b"event: status\n")
        callers.append(caller)
    server.console.board_changed("7")
    server.console.board_changed("8")
    for caller in callers[:2]:
        event = (await caller.piece()).decode()
        name, data = (line.partition(": ")[2] for line in event.strip().split("\n"))
        assert (name, json.loads(data)) == ("blackboard", {"cursor": "8"})
    server.console.changed()
    for caller in callers:
        # Without the token or the key a local caller was told nothing in between, not even that there was something.
        assert (await caller.piece()).startswith(b"event: status\n")


async def until(holds: Any) -> None:
    """Until a fact holds, at most 20 s."""
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - no event says that a handler has ended
            await asyncio.sleep(0.01)
