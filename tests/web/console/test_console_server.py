"""The console server: status, event streams, invites and errors."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

import pytest
from web_rig import (
    OWNER,
    PATIENCE,
    READY,
    TOKEN,
    Caller,
    Malformed,
    Response,
    Watch,
    backend,
    broken,
    coming,
    owned,
    request,
    served,
)

from meshllm.core.membership.views import JoinAttempt, JoinAttemptState, JoinPhase, MeshView, PeerStatus, PeerView
from meshllm.core.records import (
    BootstrapAddress,
    MeshId,
    ModelLoad,
    NodeId,
    NodeRecord,
    PeerAddress,
    RecordVersion,
    Role,
    ServedModel,
)
from meshllm.core.routing.routes import TargetKind
from meshllm.core.snapshot import ModelFacts, ModelPhase, Snapshot
from meshllm.errors import EnvironmentFailure, PortTaken
from meshllm.web.console.invitation import Invitation, InviteWish
from meshllm.web.console.server import Console
from meshllm.web.console.status import NodeStatus, StatusInputs, TargetLoad, node_status
from meshllm.web.console.status_model import Modality, TransportKind
from meshllm.web.http.access_control import AccessPolicy

PEER, MESH = NodeId(b"p" * 32), MeshId(b"m" * 16)
AT = PeerAddress("192.0.2.7", 9)


@dataclass
class ConsoleServer:
    """A console, and the state that it serves."""

    snapshot: Snapshot = field(default_factory=lambda: Snapshot(engine=READY))
    asked: int = 0
    filler: str = ""
    port: int = 0
    watch: Watch = field(default_factory=Watch)
    callers: list[Caller] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.console = Console(AccessPolicy(), self.status, self.invite, token=TOKEN)

    async def invite(self, wish: InviteWish) -> Invitation:
        if wish.seconds == 7:
            raise EnvironmentFailure("This node only uses the API.", advice="Ask another.")
        return Invitation("mesh2-SECRET", int(wish.seconds), "00")

    def status(self) -> NodeStatus:
        self.asked += 1
        self.watch.notify()
        inputs = StatusInputs(
            snapshot=self.snapshot,
            loads=[TargetLoad(TargetKind.BACKEND, "http://x:1", active=1, waiting=2, slots=4)],
            name="box" + self.filler,
            version="1",
            pid=1,
            api="http://localhost:1/v1",
            console="http://localhost:2",
            started=0.0,
            transports={PEER: "lane"},
        )
        return node_status(inputs, 1.5)

    def change(self, **changes: object) -> None:
        self.snapshot = replace(self.snapshot, version=self.snapshot.version + 1, **changes)  # type: ignore[arg-type]
        self.console.changed()

    async def caller(self) -> Caller:
        caller = Caller(*await asyncio.open_connection("127.0.0.1", self.port))
        self.callers.append(caller)
        return caller

    async def call(self, data: bytes) -> Response:
        caller = await self.caller()
        caller.send(data)
        return await caller.response()

    async def viewer(self) -> Caller:
        caller = await self.caller()
        caller.send(owned("GET", "/api/events"))
        head = await caller.head()
        assert (head.status, head.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        return caller


def parsed(event: bytes) -> tuple[int, NodeStatus]:
    """The number and the status of an event."""
    lines = dict(line.split(": ", 1) for line in event.decode().strip().splitlines())
    assert lines["event"] == "status"
    return int(lines["id"]), NodeStatus.model_validate_json(lines["data"], strict=True)


@pytest.fixture
async def server() -> AsyncIterator[ConsoleServer]:
    """A console that listens."""
    made = ConsoleServer()
    made.port = await made.console.start(("127.0.0.1",), 0)
    yield made
    await made.console.close()
    for caller in made.callers:
        await caller.close()


async def test_status_matches_its_model(server: ConsoleServer) -> None:
    facts = ModelFacts("/models/m.gguf", 5, "llama", 8192, "Q4_1", "sha256:0")
    everything = (replace(served("m", "/run/m.sock"), facts=facts, serving_since=0.5), coming("c"), broken("b"))
    server.change(models=everything, backends=(backend("http://x:1", "f"),))
    response = await server.call(owned("GET", "/api/status"))
    assert response.status == 200
    status = NodeStatus.model_validate_json(response.body, strict=True)
    assert status == server.status()
    assert [model.phase for model in status.models] == [
        ModelPhase.SERVING,
        ModelPhase.FETCHING,
        ModelPhase.FAILED,
    ]
    assert status.models[0].engine is not None
    assert status.models[0].engine.serving_seconds == 1.0
    assert status.models[0].file is not None
    assert status.models[0].file.quantization == "Q4_1"
    assert [model.input_modalities for model in status.models] == [[Modality.TEXT], None, None]
    assert set(response.json) == set(NodeStatus.model_json_schema()["properties"])
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-content-type-options"] == "nosniff"


async def test_status_contains_the_mesh(server: ConsoleServer) -> None:
    record = NodeRecord(
        PEER,
        RecordVersion(3, 4),
        MESH,
        "box2",
        addresses=(AT,),
        serves=(ServedModel("m"), ServedModel("n", vision=True)),
        memory=5,
    )
    peer = PeerView(record, PeerStatus.ALIVE, True, 0.002, (ModelLoad("m", 1, 2), ModelLoad("n", 1, 0)), 1.0)
    steps = (JoinAttempt(BootstrapAddress(PEER[:16], (AT,)), JoinAttemptState.REFUSED, "wrong secret"),)
    server.change(
        mesh=MeshView(NodeId(b"n" * 32), MESH, Role.CLIENT, JoinPhase.JOINED, steps, peers=(peer,)), wants=("w",)
    )
    response = await server.call(owned("GET", "/api/status"))
    mesh = NodeStatus.model_validate_json(response.body, strict=True).mesh
    assert mesh is not None
    assert (mesh.mesh, mesh.role) == (MESH.hex(), Role.CLIENT)
    assert (mesh.phase, mesh.wants) == (JoinPhase.JOINED, ["w"])
    assert (mesh.join_attempts[0].addresses, mesh.join_attempts[0].reason) == (["192.0.2.7:9"], "wrong secret")
    told = mesh.peers[0]
    assert (told.name, told.status, told.models) == ("box2", PeerStatus.ALIVE, ["m", "n"])
    assert (told.rtt, told.transport) == (0.002, TransportKind.LANE)
    assert [served.input_modalities for served in told.serves] == [None, [Modality.TEXT, Modality.IMAGE]]
    assert (told.active, told.waiting, told.since_seconds) == (2, 2, 0.5)


async def test_invite_is_given_to_the_owner(server: ConsoleServer) -> None:
    given = await server.call(owned("POST", "/api/invite", {"expires": 3600}))
    assert (given.status, given.json) == (
        200,
        {"invite": "mesh2-SECRET", "expires": 3600, "serial": "00", "rights": []},
    )
    assert given.headers["cache-control"] == "no-store"
    for body in (None, {}, {"expires": None}, {"expires": 0}):
        assert (await server.call(owned("POST", "/api/invite", body))).json["expires"] == 0
    assert "SECRET" not in repr(Invitation("mesh2-SECRET", 0))


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", OWNER, 405),
        ("POST", {}, 403),
        ("POST", {"x-mesh-llm-token": ""}, 403),
        ("POST", {"x-mesh-llm-token": TOKEN + "x"}, 403),
        ("POST", {"x-mesh-llm-token": TOKEN[:-1]}, 403),
        ("POST", {"x-mesh-llm": "invite"}, 403),
        ("POST", {**OWNER, "Origin": "http://localhost:3131"}, 403),
        ("POST", {**OWNER, "Sec-Fetch-Site": "same-origin"}, 403),
        ("POST", {**OWNER, "Sec-Fetch-Mode": "cors"}, 403),
        ("POST", {**OWNER, "Referer": "http://localhost:3131/"}, 403),
        ("POST", {**OWNER, "Origin": "http://evil.com"}, 403),
        ("OPTIONS", {"Origin": "http://localhost:3131", "Access-Control-Request-Headers": "x-mesh-llm-token"}, 405),
    ],
)
async def test_invite_is_refused_without_the_token_and_for_web_pages(
    server: ConsoleServer, method: str, headers: dict[str, str], status: int
) -> None:
    response = await server.call(request(method, "/api/invite", {}, headers))
    assert response.status == status
    assert b"SECRET" not in response.body
    assert "access-control-allow-headers" not in response.headers


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"expires": true}', b'{"expires": "x"}', b'{"expires": -1}', b'{"expires": NaN}',
             b'{"expires": 1e400}', b'{"expires": ' + b"9" * 400 + b"}", b"[" * 1000]
)  # fmt: skip
async def test_invite_refuses_an_invalid_body(server: ConsoleServer, body: bytes) -> None:
    response = await server.call(owned("POST", "/api/invite", body))
    assert (response.status, response.json["error"]["code"]) == (400, "invalid_request")


async def test_invite_reports_why_there_is_none(server: ConsoleServer) -> None:
    response = await server.call(owned("POST", "/api/invite", {"expires": 7}))
    assert (response.status, "Ask another" in response.json["error"]["message"]) == (409, True)


async def test_event_stream_sends_the_status_at_once_and_on_change(server: ConsoleServer) -> None:
    viewers = [await server.viewer() for _ in range(3)]
    for viewer in viewers:
        assert parsed(await viewer.piece())[1].models == []
    server.change(models=(coming("m"),))
    for viewer in viewers:
        number, status = parsed(await viewer.piece())
        assert (number, status.snapshot, status.models[0].phase) == (1, 1, ModelPhase.FETCHING)
    server.change(models=(served("m", "/run/m.sock"),))
    for viewer in viewers:
        assert parsed(await viewer.piece())[1].models[0].phase is ModelPhase.SERVING


async def test_event_stream_combines_fast_changes(server: ConsoleServer) -> None:
    viewer = await server.viewer()
    await viewer.piece()
    for _ in range(1000):
        server.change()
    number, status = parsed(await viewer.piece())
    heard = 1
    while number < 1000:
        number, status = parsed(await viewer.piece())
        heard += 1
    assert status.snapshot == 1000, "the last state is always sent"
    assert heard <= 3


async def test_event_stream_sends_heartbeats(server: ConsoleServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshllm.web.console.handlers.HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr("meshllm.web.console.handlers.MIN_INTERVAL_SECONDS", 0.01)
    viewer = await server.viewer()
    await viewer.piece()
    assert await viewer.piece() == b": still here\n\n"
    server.change()
    while not (event := await viewer.piece()).startswith(b"event"):
        assert event == b": still here\n\n"
    assert parsed(event)[0] == 1


async def test_event_stream_drops_a_viewer_that_does_not_read(
    server: ConsoleServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshllm.web.console.handlers.WRITE_SECONDS", 0.05)
    monkeypatch.setattr("meshllm.web.console.handlers.MIN_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr("meshllm.web.console.handlers.MAX_VIEWERS", 1)
    server.filler = "x" * (4 << 20)
    deaf = await server.caller()
    deaf.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]
    deaf.send(owned("GET", "/api/events"))
    await server.watch.until(lambda: server.asked >= 1)
    # Its place is free and its connection is closed.
    async with asyncio.timeout(PATIENCE):
        while server.console.transports():  # noqa: ASYNC110 - aiohttp has no event for it
            await asyncio.sleep(0)
    assert server.console.viewers == 0
    server.filler = ""
    server.change()  # an event that is already serialised is kept for other viewers
    viewer = await server.viewer()
    assert parsed(await viewer.piece())[1].name == "box"


async def test_event_stream_limits_viewers(server: ConsoleServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshllm.web.console.handlers.MAX_VIEWERS", 2)
    monkeypatch.setattr("meshllm.web.console.handlers.MIN_INTERVAL_SECONDS", 0.0)
    viewers = [await server.viewer() for _ in range(2)]
    refused = await server.call(owned("GET", "/api/events"))
    assert (refused.status, refused.json["error"]["code"]) == (503, "overloaded")
    viewers[0].abort()
    while server.console.viewers == 2:
        server.change()
        await viewers[1].piece()
    await (await server.viewer()).piece()


async def test_console_refuses_other_origins_and_hosts(server: ConsoleServer) -> None:
    for path in ("/", "/api/status", "/api/events", "/nothing"):
        for headers, host in (
            ({"Origin": "http://evil.com"}, "localhost"),
            ({"Origin": "null"}, "localhost"),
            ({"Sec-Fetch-Site": "cross-site"}, "localhost"),
            ({}, "evil.com"),
            ({}, "localhost.evil.com"),
            ({"Authorization": "Bearer x"}, "192.168.1.2"),
            ({"Origin": "\xff"}, "localhost"),
            ({}, "\xff"),
        ):
            response = await server.call(owned("GET", path, headers=headers, host=host))
            assert response.status in (400, 403), (path, headers, host)
            assert b"snapshot" not in response.body
    assert (await server.call(owned("GET", "/api/status", headers={"Origin": "http://localhost:3131"}))).status == 200
    assert (await server.call(owned("GET", "/api/status", headers={"X": "\xff"}))).status == 200


async def test_console_reports_unknown_paths_methods_and_large_bodies(server: ConsoleServer) -> None:
    assert (await server.call(owned("GET", "/"))).status == 200
    for data, status in (
        (owned("GET", "/nothing"), 404),
        (owned("GET", "/../etc/passwd"), 404),
        (owned("POST", "/api/status", {}), 405),
        (owned("DELETE", "/api/events"), 405),
        (owned("POST", "/api/invite", {"x": "y" * 40_000}), 413),
    ):
        response = await server.call(data)
        assert response.status == status
        assert response.headers["x-content-type-options"] == "nosniff"
        told = json.loads(response.body)["error"]
        assert told["code"] == {404: "not_found", 405: "method_not_allowed", 413: "invalid_request"}[status]
        assert told["message"].endswith(".")
        assert response.headers.get("allow", "GET,HEAD") == "GET,HEAD"


async def test_console_survives_malformed_requests(server: ConsoleServer) -> None:
    for data in (b"\x00\x01\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"x" * 100_000, b"GET"):
        caller = await server.caller()
        caller.send(data)
        caller.writer.write_eof()
        await caller.eof()
    assert (await server.call(owned("GET", "/api/status"))).status == 200


async def test_console_start_reports_a_taken_port(server: ConsoleServer) -> None:
    other = Console(AccessPolicy(), server.status)
    with pytest.raises(PortTaken) as raised:
        await other.start(("127.0.0.1",), server.port)
    assert "--console" in raised.value.advice
    assert str(server.port) in raised.value.message


async def test_console_close_ends_event_streams(server: ConsoleServer) -> None:
    viewer = await server.viewer()
    await viewer.piece()
    await server.console.close()
    try:
        while await viewer.piece():
            pass
    except (AssertionError, Malformed):
        pytest.fail("a viewer's stream was cut short")
    assert server.console.viewers == 0


def test_status_is_plain_json() -> None:
    server = ConsoleServer.__new__(ConsoleServer)
    server.snapshot, server.asked, server.filler, server.watch = Snapshot(), 0, "", Watch()
    status = json.loads(server.status().model_dump_json())
    assert status["engine"]["phase"] == "unknown"


async def test_event_stream_makes_one_status_for_all_viewers(server: ConsoleServer) -> None:
    viewers = [await server.viewer() for _ in range(20)]
    for viewer in viewers:
        await viewer.piece()
    server.change(models=(coming("m"),))
    asked = server.asked
    for viewer in viewers:
        assert parsed(await viewer.piece())[1].models[0].name == "m"
    assert server.asked - asked == 1
