"""Audit, row 15 and M2: whoever says that it serves a model gets requests only with the right to, and is shown as their
reader."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from meshllm.core.records import ModelLoad, ServedModel
from meshllm.net.base import StreamKind
from meshllm.wire.mesh.invite import decode
from tests.attacks.hostile_member import HostileMember, invited
from tests.e2e.here import Site, joined, serves, site
from tests.netlab.nodes import Node, Status

MODEL, RARE = "Model", "Rare-Model"
SLOTS = 1000
QUESTION = "the private prompt"


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Site]:
    """This machine, for nodes of a test."""
    with site(tmp_path) as made:
        yield made


class Reader(asyncio.Protocol):
    """An API that keeps what it reads, and answers with a tool call of its own."""

    def __init__(self, read: list[bytes]) -> None:
        self._read = read
        self._data = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        if not found or length is None or len(body) < int(length[1]):
            return
        self._read.append(self._data)
        self._data = b""
        call = {"id": "1", "type": "function", "function": {"name": "bash", "arguments": '{"command": "evil"}'}}
        message = {"role": "assistant", "content": "rogue", "tool_calls": [call]}
        answer = {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}], "model": "m", "id": "c"}
        text = json.dumps(answer | {"object": "chat.completion"}).encode()
        assert self._transport is not None
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(text), text)
        )


@asynccontextmanager
async def rogue(here: Site, rights: str) -> AsyncIterator[tuple[HostileMember, list[bytes]]]:
    """A member with these rights that says it serves both models, with all slots free; and what it reads."""
    read: list[bytes] = []
    done = here.run("host", "invite", "--rights", rights)
    assert done.returncode == 0, done.stderr
    async with invited(here.folder / "rogue", decode(done.stdout.strip())) as member:
        member.serve = lambda kind: Reader(read) if kind is StreamKind.HTTP_TUNNEL else None
        served = [ServedModel(name, context_length=8192, slots=SLOTS) for name in (MODEL, RARE)]
        member.publish(*served, loads=(ModelLoad(MODEL, 0, 0), ModelLoad(RARE, 0, 0)), name="rogue", on_disk=(RARE,))
        yield member, read


def peer(status: Status, name: str) -> Any:
    """What the status says of the peer of that name, None if it is not known."""
    return next((peer for peer in (status["mesh"] or {"peers": []})["peers"] if peer["name"] == name), None)


def is_alive(found: Any) -> bool:
    """Whether a peer is known and verified."""
    return found is not None and found["status"] == "alive"


def asked(node: Node, model: str) -> tuple[dict[str, str], Any]:
    """The headers and the message of one answer."""
    body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 3}
    request = urllib.request.Request(
        f"{node.base_url}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        headers = {name.lower(): value for name, value in response.headers.items()}
        return headers, json.load(response)["choices"][0]["message"]


def test_member_without_the_right_to_serve_gets_no_request(here: Site) -> None:
    fake = here.model(MODEL, "host")
    host = here.node("host", "--backend", fake.url)
    asker = here.node("asker", "--node-name", "asker", join=host)
    asker.until(serves(MODEL), "the host's model")

    async def attack() -> list[bytes]:
        async with rogue(here, "use,work") as (_, read):
            await asyncio.to_thread(asker.until, lambda status: is_alive(peer(status, "rogue")), "the rogue's record")
            for _ in range(10):
                answer = await asyncio.to_thread(asker.chat, MODEL)
                assert answer.text.startswith("host")
            refused = await asyncio.to_thread(asker.chat, RARE)
            assert refused.status == 404
            found = peer(asker.status(), "rogue")
            assert (found["status"], found["models"], found["on_disk"]) == ("alive", [], [])
            assert RARE not in asker.models()
            return read

    assert asyncio.run(attack()) == []
    assert len(fake.asked) == 10


def test_member_with_the_right_to_serve_is_shown_as_the_reader_and_can_be_left_out(here: Site) -> None:
    fake = here.model(MODEL, "host")
    host = here.node("host", "--backend", fake.url)
    asker = here.node("asker", "--node-name", "asker", join=host)
    asker.until(joined, "the mesh")
    trusted = host.status()["mesh"]["node"]
    careful = here.node("careful", "--node-name", "careful", "--only-from", trusted, join=host)

    async def attack() -> None:
        async with rogue(here, "serve") as (member, read):
            who = member.node.hex()
            await asyncio.to_thread(asker.until, serves(RARE), "the rogue's model")
            await asyncio.to_thread(careful.until, serves(RARE), "the rogue's model")
            # The owner's own machine answers for the model that both serve, whatever the rogue claims.
            for _ in range(10):
                answer = await asyncio.to_thread(asker.chat, MODEL)
                assert answer.text.startswith("host")
            assert read == []
            headers, message = await asyncio.to_thread(asked, asker, RARE)
            assert message["content"] == "rogue"
            assert len(read) == 1
            assert QUESTION.encode() in read[0]
            assert headers["x-mesh-llm-host"] == f"peer {who[:10]}"
            (shown,) = [line for line in asker.get("/api/requests")["requests"] if line["model"] == RARE]
            assert shown["node"] == who[:10]
            metrics = await asyncio.to_thread(fetch, asker, "/metrics")
            assert f"peer:{who[:10]}/{RARE}" in metrics
            # A node that sends requests to the host only: nothing goes to the rogue.
            refused = await asyncio.to_thread(careful.chat, RARE)
            assert refused.status in (404, 503)
            answer = await asyncio.to_thread(careful.chat, MODEL)
            assert answer.text.startswith("host")
            assert len(read) == 1

    asyncio.run(attack())
    assert host.stop() == asker.stop() == careful.stop() == 0


def fetch(node: Node, path: str) -> str:
    """A page of the API's server."""
    with urllib.request.urlopen(node.base_url.removesuffix("/v1") + path, timeout=60) as response:
        return str(response.read().decode())
