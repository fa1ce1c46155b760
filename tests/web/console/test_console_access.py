"""Access to the console: whole status for this machine, redacted status for remote callers with the key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from web_rig import OWNER, TOKEN, Bench, Caller, Response, ask, bench, request, served

from meshllm.core.routing.routes import TargetKind
from meshllm.core.snapshot import Snapshot
from meshllm.web.console.endpoints import ENDPOINTS
from meshllm.web.console.invitation import Invitation, InviteWish
from meshllm.web.console.page_files import PageFiles
from meshllm.web.console.redaction import PUBLIC, WITHHELD, Audience, redacted, redacted_status
from meshllm.web.console.request_status import RequestsAnswer
from meshllm.web.console.server import MAX_ADDRESS_CONNECTIONS, MAX_REMOTE_CONNECTIONS, Console
from meshllm.web.console.status import (
    BackendStatus,
    FileStatus,
    LoadStatus,
    NodeStatus,
    ProgressStatus,
    StatusInputs,
    TargetLoad,
    node_status,
)
from meshllm.web.http.access_control import PROXY_HEADERS, AccessPolicy, is_local
from tests.lan_address import lan_address

KEY = "k3y-of-this-node"
BEARER = {"Authorization": f"Bearer {KEY}"}
API_ROUTES = ("/api/status", "/api/events", "/api/openapi.json", "/api/nothing", "/nothing", "/assets/../api/status")
SECRETS = ("/api/invite", "/api/key")


def status() -> NodeStatus:
    """A status with private fields."""
    inputs = StatusInputs(
        snapshot=Snapshot(),
        name="box",
        version="1",
        pid=4711,
        api="http://localhost:9337/v1",
        console="http://localhost:1",
        started=0.0,
        mesh_reason="/home/owner/SECRET is damaged",
        lan_urls=("http://192.0.2.1:1",),
    )
    return node_status(inputs, 1.0)


async def invitation(wish: InviteWish) -> Invitation:
    """An invite."""
    return Invitation("mesh1-SECRET", 0)


class ConsoleServer:
    """A console that accepts other machines."""

    def __init__(self, folder: Path, policy: AccessPolicy, token: str = TOKEN) -> None:
        self.console = Console(policy, status, invitation, PageFiles(folder), token=token)
        self.host = "127.0.0.1"

    async def start(self) -> None:
        """Listen on every address."""
        self.port = await self.console.start(("0.0.0.0",), 0)

    async def caller(self, host: str = "") -> Caller:
        """A connection to the console at `host`."""
        return Caller(*await asyncio.open_connection(host or self.host, self.port))

    async def ask(
        self, path: str, host: str, headers: dict[str, str] | None = None, method: str = "GET", at: str = ""
    ) -> Response:
        """One request to the console's address `at`, with the host name `host`."""
        caller = await self.caller(at)
        caller.send(request(method, path, {} if method == "POST" else None, headers, host=host))
        try:
            head = await caller.head()
            head.body = await caller.piece()
            return head
        finally:
            await caller.close()


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A built page."""
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text("<!doctype html><title>x</title>")
    (tmp_path / "assets" / "a.css").write_text("body {}")
    return tmp_path


@pytest.fixture
async def server(page: Path) -> AsyncIterator[ConsoleServer]:
    """A console with a key and the allowed host name box.lan."""
    made = ConsoleServer(page, AccessPolicy(KEY, allowed_hosts=frozenset({"box.lan"})))
    await made.start()
    yield made
    await made.console.close()


# -- access policy


@pytest.mark.parametrize(
    ("host", "at", "known"),
    [
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.8", "192.0.2.7", False),
        ("::ffff:192.0.2.7", "192.0.2.7", True),
        ("fd00:0:0::2", "fd00::2", True),
        ("fe80::1%eth0", "fe80::1%2", True),
        ("127.0.0.1%evil.com", "192.0.2.7", False),
        ("localhost", "192.0.2.7", True),
        ("box.lan", "192.0.2.7", True),
        ("BOX.lan.", "192.0.2.7", True),
        ("box.lan.evil.com", "192.0.2.7", False),
        ("evil.com", "192.0.2.7", False),
        ("192.0.2.7.evil.com", "192.0.2.7", False),
        ("", "192.0.2.7", False),
        ("", "", False),
    ],
)
def test_knows_host_accepts_only_own_addresses_and_allowed_names(host: str, at: str, known: bool) -> None:
    assert AccessPolicy(KEY, allowed_hosts=frozenset({"box.lan"})).knows_host(host, at) is known


@pytest.mark.parametrize(
    ("origin", "host", "let_in"),
    [
        ("http://192.0.2.7:3131", "192.0.2.7:9337", True),
        ("https://192.0.2.7:3131", "192.0.2.7:9337", True),
        ("http://box.lan:3131", "box.lan:9337", True),
        ("http://192.0.2.7:8080", "192.0.2.7:9337", False),
        ("http://192.0.2.7", "192.0.2.7:9337", False),
        ("http://192.0.2.8:3131", "192.0.2.7:9337", False),
        ("http://192.0.2.8:3131", "192.0.2.8:9337", False),
        ("http://evil.com:3131", "evil.com:9337", False),
        ("http://evil.com:3131", "192.0.2.7:9337", False),
        ("ftp://192.0.2.7:3131", "192.0.2.7:9337", False),
        ("http://192.0.2.7:3131@evil.com", "192.0.2.7:9337", False),
        ("http://192.0.2.7:99999", "192.0.2.7:9337", False),
        ("null", "192.0.2.7:9337", False),
        ("*", "192.0.2.7:9337", False),
    ],
)
def test_refuse_accepts_only_the_console_page_of_another_machine(origin: str, host: str, let_in: bool) -> None:
    policy = AccessPolicy(KEY, allowed_hosts=frozenset({"box.lan"}), page_port=3131)
    headers = {b"origin": origin.encode(), b"host": host.encode(), b"authorization": b"Bearer " + KEY.encode()}
    refusal = policy.judge("192.0.2.9", headers, "192.0.2.7").refusal
    assert (refusal is None) is let_in
    if refusal is not None:
        assert refusal.code == "origin_not_allowed"
    # The key is required as well.
    del headers[b"authorization"]
    assert policy.judge("192.0.2.9", headers, "192.0.2.7").refusal is not None


@given(st.text(), st.text(), st.text())
def test_refuse_never_accepts_a_remote_caller_without_the_key(origin: str, host: str, at: str) -> None:
    policy = AccessPolicy(KEY, page_port=3131)
    headers = {b"origin": origin.encode("utf-8", "replace"), b"host": host.encode("utf-8", "replace")}
    if policy.judge("192.0.2.9", headers, at).refusal is None:
        pytest.fail("a remote caller without the key was accepted")
    if policy.refuse_host(headers, at) is None:
        assert policy.knows_host(host.partition(":")[0].strip("[]"), at) or ":" in host


# -- endpoints, for local and remote callers


async def test_console_serves_only_the_page_without_the_key(server: ConsoleServer) -> None:
    host = lan_address()
    served = await server.ask("/", f"{host}:{server.port}", at=host)
    assert (served.status, b"<title>x" in served.body) == (200, True)
    assert f"connect-src 'self' http://{host}:9337;" in served.headers["content-security-policy"]
    assert (await server.ask("/assets/a.css", f"{host}:{server.port}", at=host)).status == 200
    for path in (*API_ROUTES, *SECRETS):
        for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": f"Basic {KEY}"}, {"X-Api-Key": ""}):
            for method in ("GET", "POST"):
                refused = await server.ask(path, f"{host}:{server.port}", headers, method, at=host)
                assert (refused.status, refused.json["error"]["code"]) == (401, "invalid_api_key"), (path, headers)
                for secret in (b"SECRET", b"4711", b"box", KEY.encode(), b"NodeStatus"):
                    assert secret not in refused.body


async def test_console_serves_a_redacted_status_with_the_key(server: ConsoleServer) -> None:
    host = lan_address()
    authority = f"{host}:{server.port}"
    told = NodeStatus.model_validate_json((await server.ask("/api/status", authority, BEARER, at=host)).body)
    assert (told.name, told.read_only, told.pid, told.lan_urls) == ("box", True, 0, ())
    assert (told.api, told.console) == (f"http://{host}:9337/v1", f"http://{authority}")
    assert told.mesh_reason == WITHHELD
    event = await server.ask("/api/events", authority, BEARER, at=host)
    assert (event.status, b'"read_only":true' in event.body) == (200, True)
    assert b"SECRET" not in event.body
    assert (await server.ask("/api/openapi.json", authority, BEARER, at=host)).status == 200
    for path in SECRETS:
        for headers in (BEARER, {**BEARER, **OWNER}):
            refused = await server.ask(path, authority, headers, "POST", at=host)
            assert (refused.status, refused.json["error"]["code"]) == (403, "read_only")
            assert b"SECRET" not in refused.body
            assert KEY.encode() not in refused.body
    told = NodeStatus.model_validate_json(
        (await server.ask("/api/status", authority, {**BEARER, **OWNER}, at=host)).body
    )
    assert told.read_only


@pytest.mark.parametrize("host", ["evil.com", "evil.com:3131", "203.0.113.9", "0.0.0.0", "box.lan.evil.com"])
async def test_console_refuses_unknown_host_names(server: ConsoleServer, host: str) -> None:
    for at in ("127.0.0.1", lan_address()):
        for path in ("/", "/assets/a.css", *API_ROUTES, *SECRETS):
            refused = await server.ask(path, host, BEARER, at=at)
            assert refused.status in (400, 403)
            assert b"<title>x" not in refused.body


async def test_console_accepts_an_allowed_host_name(server: ConsoleServer) -> None:
    served = await server.ask("/", "box.lan:3131")
    assert "connect-src 'self' http://box.lan:9337;" in served.headers["content-security-policy"]
    assert (await server.ask("/api/status", "box.lan")).status == 401
    assert b'"read_only":true' in (await server.ask("/api/status", "box.lan", BEARER)).body


@pytest.mark.parametrize("header", sorted(name.decode() for name in PROXY_HEADERS))
async def test_console_treats_a_caller_behind_a_proxy_as_remote(server: ConsoleServer, header: str) -> None:
    through = {header: "192.0.2.9"}
    assert (await server.ask("/api/status", "localhost", through)).status == 401
    assert b'"read_only":true' in (await server.ask("/api/status", "localhost", {**through, **BEARER})).body
    refused = await server.ask("/api/invite", "localhost", {**through, **BEARER, **OWNER}, "POST")
    assert refused.json["error"]["code"] == "read_only"


async def test_console_serves_the_owner_without_a_key(server: ConsoleServer) -> None:
    told = NodeStatus.model_validate_json((await server.ask("/api/status", "localhost", OWNER)).body)
    assert told == status()
    given = await server.ask("/api/invite", "localhost", OWNER, "POST")
    assert given.json["invite"] == "mesh1-SECRET"
    given = await server.ask("/api/key", "localhost", OWNER, "POST")
    assert (given.status, given.json) == (200, {"key": KEY})
    assert given.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("sent", [None, "", "x", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "\xff", KEY])
async def test_console_gives_others_of_this_machine_the_redacted_status_only(
    server: ConsoleServer, sent: str | None
) -> None:
    headers = {} if sent is None else {"x-mesh-llm-token": sent}
    assert (await server.ask("/", "localhost", headers)).status == 200
    told = NodeStatus.model_validate_json((await server.ask("/api/status", "localhost", headers)).body)
    assert (told.read_only, told.pid, told.lan_urls, told.mesh_reason) == (True, 0, (), WITHHELD)
    assert told.api == "http://localhost:9337/v1"
    event = await server.ask("/api/events", "localhost", headers)
    assert b'"read_only":true' in event.body
    assert b"SECRET" not in event.body
    for path in (*SECRETS, "/api/downloads"):
        for more in ({}, BEARER, {"x-mesh-llm": "invite"}):
            refused = await server.ask(path, "localhost", {**headers, **more}, "POST")
            assert (refused.status, refused.json["error"]["code"]) == (403, "token_required")
            assert b"SECRET" not in refused.body
            assert KEY.encode() not in refused.body


async def test_console_without_a_token_has_no_owner(page: Path) -> None:
    server = ConsoleServer(page, AccessPolicy(KEY), token="")
    await server.start()
    try:
        for headers in ({}, {"x-mesh-llm-token": ""}):
            assert (await server.ask("/api/invite", "localhost", headers, "POST")).status == 403
    finally:
        await server.console.close()


def test_every_endpoint_that_changes_something_is_for_the_owner() -> None:
    for endpoint in ENDPOINTS:
        assert endpoint.owner_only or endpoint.method == "GET", endpoint.path


@pytest.mark.parametrize(
    "headers",
    [
        {**OWNER, "Origin": "http://localhost:8000", "Sec-Fetch-Site": "same-site"},
        {**OWNER, "Origin": "http://localhost"},
        {**OWNER, "Referer": "http://localhost/"},
    ],
)
async def test_console_gives_the_key_only_to_its_own_page(server: ConsoleServer, headers: dict[str, str]) -> None:
    refused = await server.ask("/api/key", "localhost", headers, "POST")
    assert (refused.status, refused.json["error"]["code"]) == (403, "not_for_pages")
    ours = {**OWNER, "Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
    assert (await server.ask("/api/key", "localhost", ours, "POST")).json == {"key": KEY}


async def test_console_without_a_key_refuses_remote_callers(page: Path) -> None:
    server = ConsoleServer(page, AccessPolicy(None, allowed_hosts=frozenset({"box.lan"})))
    await server.start()
    try:
        for path in ("/", "/assets/a.css", *API_ROUTES):
            for host, headers in (("box.lan", {}), ("box.lan", BEARER), ("localhost", {"via": "proxy"})):
                refused = await server.ask(path, host, headers)
                assert (refused.status, refused.json["error"]["code"]) == (403, "host_not_allowed")
        refused = await server.ask("/api/key", "localhost", OWNER, "POST")
        assert (refused.status, "--listen-all" in refused.json["error"]["message"]) == (409, True)
    finally:
        await server.console.close()


async def test_console_limits_remote_connections(server: ConsoleServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_REMOTE_CONNECTIONS > 2
    monkeypatch.setattr("meshllm.web.console.server.MAX_REMOTE_CONNECTIONS", 2)
    host = lan_address()
    held = []
    for _ in range(2):
        caller = await server.caller(host)
        caller.send(request("GET", "/", host=host))
        assert (await caller.response()).status == 200
        held.append(caller)
    third = await server.caller(host)
    third.send(request("GET", "/", host=host))
    assert await third.eof() == b""
    assert (await server.ask("/api/status", "localhost")).status == 200
    for caller in (*held, third):
        await caller.close()


async def test_console_leaves_room_for_other_addresses(server: ConsoleServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_ADDRESS_CONNECTIONS < MAX_REMOTE_CONNECTIONS / 2
    monkeypatch.setattr("meshllm.web.console.server.MAX_ADDRESS_CONNECTIONS", 1)
    host = lan_address()
    first, second = await server.caller(host), await server.caller(host)
    assert await second.eof() == b""
    for caller in (first, second):
        await caller.close()


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nhost: "])
async def test_console_closes_remote_connections_that_ask_nothing(
    server: ConsoleServer, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr("meshllm.web.console.server.FIRST_REQUEST_SECONDS", 0.2)
    host = lan_address()
    asks = await server.caller(host)
    asks.send(request("GET", "/", host=host))
    assert (await asks.response()).status == 200
    mute = await server.caller(host)
    mute.send(sent)
    assert await mute.eof() == b""
    asks.send(request("GET", "/", host=host))
    assert (await asks.response()).status == 200, "one that has asked stays"
    for caller in (asks, mute):
        await caller.close()


async def test_console_aborts_new_connections_while_closing(server: ConsoleServer) -> None:
    caller = await server.caller()  # accepted by the system, not by the server
    await server.console.close()
    assert await caller.eof() == b""
    await caller.close()


async def test_console_limits_remote_event_streams(server: ConsoleServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshllm.web.console.handlers.MAX_FOREIGN_VIEWERS", 1)
    first = await server.caller()
    first.send(request("GET", "/api/events", headers=BEARER, host="box.lan"))
    assert (await first.head()).status == 200
    assert (await server.ask("/api/events", "box.lan", BEARER)).status == 503
    assert (await server.ask("/api/events", "localhost", OWNER)).status == 200
    await first.close()


# -- the gateway, called by the page


@pytest.fixture
async def table(folder: Path) -> AsyncIterator[Bench]:
    """A gateway with a key; the console is on port 3131."""
    async with bench(folder, AccessPolicy(KEY, allowed_hosts=frozenset({"box.lan"}))) as made:
        made.gateway.page_at(3131)
        yield made


async def test_gateway_answers_the_console_page_of_another_machine_with_the_key(table: Bench) -> None:
    await table.serve()
    origin = "http://box.lan:3131"
    wish = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    first = request("OPTIONS", "/v1/chat/completions", headers={"Origin": origin, **wish}, host="box.lan:9337")
    asked = await table.call(first)
    assert (asked.status, asked.headers["access-control-allow-origin"]) == (204, origin)
    assert asked.headers["access-control-allow-headers"] == "authorization,content-type"
    body = {"model": "m", "stream": True}
    for headers, answer in (({}, 401), ({"Authorization": "Bearer no"}, 401), (BEARER, 200)):
        data = request("POST", "/v1/chat/completions", body, {"Origin": origin, **headers}, host="box.lan:9337")
        response = await table.call(data)
        # The page may read the error as well.
        assert (response.status, response.headers["access-control-allow-origin"]) == (answer, origin)


async def test_gateway_refuses_other_pages_of_another_machine(table: Bench) -> None:
    await table.serve()
    for origin, host in (
        ("http://evil.com:3131", "evil.com:9337"),
        ("http://box.lan:8080", "box.lan:9337"),
        ("http://evil.com:3131", "box.lan:9337"),
        ("http://box.lan:3131", "evil.com:9337"),
    ):
        for data in (ask(), request("OPTIONS", "/v1/chat/completions")):
            sent = data.replace(b"Host: localhost", f"Host: {host}\r\nOrigin: {origin}".encode(), 1)
            sent = sent.replace(b"\r\n\r\n", f"\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode(), 1)
            response = await table.call(sent)
            assert (response.status, "access-control-allow-origin" in response.headers) == (403, False)


async def test_gateway_hides_backend_urls_from_other_machines(table: Bench) -> None:
    upstream = await table.pool()
    for stream in (False, True):
        near = await table.call(ask(stream=stream))
        assert near.headers["x-mesh-llm-host"] == f"backend {upstream.address}"
        body = {"model": "m", "stream": stream}
        far = await table.call(request("POST", "/v1/chat/completions", body, BEARER, host="box.lan"))
        assert far.headers["x-mesh-llm-host"] == "backend"


# -- redaction


def filled(kind: Any, where: str) -> Any:
    """A value of `kind` in which every text is its own path, below `where`."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind(**{name: filled(facts.annotation, f"{where}.{name}") for name, facts in kind.model_fields.items()})
    arguments = getattr(kind, "__args__", ())
    if type(None) in arguments:
        return filled(arguments[0], where)
    if getattr(kind, "__origin__", kind) is dict:
        return {where: filled(arguments[1], where)}
    if getattr(kind, "__origin__", kind) in (list, tuple):
        return [filled(arguments[0], where)]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return next(iter(kind))
    plain: dict[Any, Any] = {str: where, int: 4711, float: 47.11, bool: True}
    return plain[kind]


def texts(value: Any) -> Iterator[str]:
    """Every text in a status."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)


def test_redaction_passes_only_the_listed_texts() -> None:
    """A new text field is withheld until it is listed here as well."""
    told = redacted_status(filled(NodeStatus, "s"), api="API", console="CONSOLE")
    passed = {text for text in texts(told.model_dump(mode="json")) if text.startswith("s.")}
    machine = {f"s.machine.devices.{name}" for name in ("name", "description", "backend")}
    model = {f"s.models.{name}" for name in ("name", "progress.stage", "engine.placement_text")}
    model |= {"s.models.file.architecture", "s.models.file.quantization"}
    model |= {"s.models.engine.speculation.draft_model"}
    peer = {f"s.mesh.peers.{name}" for name in ("id", "name", "software", "models", "wants", "on_disk", "aliases")}
    peer |= {"s.mesh.peers.serves.name", "s.mesh.client_list.id", "s.mesh.client_list.name"}
    peer |= {"s.mesh.demand.model", "s.mesh.demand.outlook"}
    peer |= {f"s.mesh.plans.{name}" for name in ("node", "name", "model", "text")}
    peer |= {f"s.mesh.away.{name}" for name in ("id", "name", "models")}
    split = {f"s.splits.{name}" for name in ("model", "reason", "deviation", "considered.nodes")}
    split |= {f"s.splits.shares.{name}" for name in ("node", "name")}
    files = {f"s.sharing.{way}.{name}" for way in ("uploads", "downloads") for name in ("peer", "name", "what")}
    assert passed == {
        "s.name", "s.version", "s.engine.version", "s.engine.progress.stage", *machine, *model,
        "s.backends.models", "s.load.target", "s.load.model", "s.mesh.node", *peer,
        "s.mesh.wants", "s.mesh.on_disk", "s.mesh.aliases", *split, *files,
        "s.worker_lease.model", "s.worker_lease.host", "s.worker_lease.host_name",
        "s.sharing.banned.peer", "s.sharing.banned.name",
    }  # fmt: skip
    assert (told.pid, told.models[0].engine.pid) == (0, 0)  # type: ignore[union-attr]
    assert (told.api, told.console, told.read_only) == ("API", "CONSOLE", True)


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("39.6 GB do not fit into this node's 24.0 GB; the nearest nodes have room", True),
        ("", True),
        ("0123456789 is lost to the split: it ended", True),
        ("0123456789 cannot read /home/owner/m.gguf", False),
        ("no answer of 192.0.2.7", False),
        ("no answer of fd00::2", False),
        (r"cannot read C:\models", False),
        ("ask owner@example.org", False),
    ],
)
def test_redaction_passes_the_reason_of_a_plan_without_addresses(reason: str, told: bool) -> None:
    split = {**filled(NodeStatus, "s").splits[0].model_dump(), "reason": reason}
    seen = redacted_status(
        status().model_copy(update={"splits": [type(filled(NodeStatus, "s").splits[0])(**split)]}), api="", console=""
    )
    assert (seen.splits[0].reason == reason) is told


def test_redacted_load_names_no_socket_and_no_backend_url() -> None:
    whole = filled(NodeStatus, "s")
    backend = BackendStatus(url="http://10.0.0.3:8000", healthy=True, models=[], reason="")
    load = LoadStatus(target=backend.url, active=1, waiting=0, slots=4, kind=TargetKind.BACKEND)
    stopped = load.model_copy(update={"target": "http://10.0.0.4:8000"})
    peer = load.model_copy(update={"target": "ab" * 32, "kind": TargetKind.PEER})
    seen = redacted_status(
        whole.model_copy(update={"backends": [backend], "load": [load, stopped, peer]}), api="", console=""
    )
    assert seen.models[0].engine is not None
    assert seen.models[0].engine.socket == ""
    assert [one.target for one in seen.load] == ["backend 1", "backend", "ab" * 32]


def test_load_of_an_engine_is_named_by_its_model() -> None:
    snapshot = Snapshot(models=(served("m", "/run/m.sock"),))
    loads = [
        TargetLoad(TargetKind.ENGINE, "/run/m.sock", active=1, waiting=2, slots=4),
        TargetLoad(TargetKind.ENGINE, "/run/stopped.sock", active=0, waiting=0, slots=4),
        TargetLoad(TargetKind.PEER, "ab" * 32, active=0, waiting=0, slots=4, model="n"),
    ]
    inputs = StatusInputs(snapshot=snapshot, name="", version="", pid=1, api="", console="", started=0.0, loads=loads)
    found = node_status(inputs, 1.0).load
    assert [(load.target, load.model, load.kind) for load in found] == [
        ("m", "m", TargetKind.ENGINE),
        ("ab" * 32, "n", TargetKind.PEER),
    ]


class ExtendedFileStatus(FileStatus):
    """The file status with new fields that are not in the allow-list."""

    partial_path: str
    inode: int
    attributes: dict[str, str]
    progress: ProgressStatus | None
    hostname: str = "default"


def test_redaction_withholds_new_fields_and_new_models(monkeypatch: pytest.MonkeyPatch) -> None:
    file = ExtendedFileStatus(
        **filled(FileStatus, "s").model_dump(),
        partial_path="/home/SECRET",
        inode=4712,
        attributes={"SECRET": "SECRET"},
        progress=filled(ProgressStatus, "SECRET"),
        hostname="SECRET",
    )
    audience = Audience("", "")
    assert "s.architecture" not in redacted(file, audience).model_dump_json(), "a model that is not listed is withheld"
    monkeypatch.setitem(PUBLIC, ExtendedFileStatus, PUBLIC[FileStatus])  # type: ignore[arg-type]
    seen = redacted(file, audience)
    assert seen.architecture == "s.architecture"
    assert (seen.partial_path, seen.inode, seen.attributes, seen.progress) == ("", 0, {}, None)
    assert seen.hostname == "default"
    assert "SECRET" not in seen.model_dump_json()


def test_redaction_lists_only_fields_that_exist() -> None:
    for model, rules in PUBLIC.items():
        assert set(rules) <= set(model.model_fields), model


def test_redacted_requests_have_no_error_texts_and_no_addresses() -> None:
    whole = filled(RequestsAnswer, "s")
    attempt = whole.requests[0].attempts[0].model_copy(update={"target": "backend http://10.0.0.3:8000"})
    request = whole.requests[0].model_copy(
        update={"target": "peer 0123456789", "caller": "remote 192.0.2.7", "attempts": [attempt]}
    )
    (seen,) = redacted(RequestsAnswer(requests=[request]), Audience("", "")).requests
    assert (seen.caller, seen.target, seen.error) == ("remote", "peer 0123456789", WITHHELD)
    assert (seen.attempts[0].target, seen.attempts[0].error) == ("backend", WITHHELD)
    assert (seen.id, seen.model, seen.duration_seconds) == (request.id, request.model, request.duration_seconds)


def test_is_local_needs_a_loopback_address_and_host() -> None:
    assert is_local("127.0.0.1", {b"host": b"localhost:3131"})
    assert not is_local("", {b"host": b"127.0.0.1"})
    assert not is_local("127.0.0.1", {b"host": b"192.0.2.7"})
    assert not is_local("192.0.2.9", {b"host": b"localhost"})
    assert not is_local("127.0.0.1", {})
