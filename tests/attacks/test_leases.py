"""Audit, rows 1 and 4: a lease without the owner's consent, and files planted under a known model's name."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from meshllm import paths
from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.records import NodeId
from meshllm.core.split.lease import Lease, LeasedFile, LeasePhase, Propose, WorkerReport
from meshllm.core.split.planner import WorkerShare
from meshllm.daemon.member_management import load_home_state
from meshllm.daemon.mesh_session import MeshSession
from meshllm.daemon.settings import Settings
from meshllm.wire.mesh.invite import decode
from tests.e2e.here import Site, joined, site
from tests.netlab.nodes import Node, Status

KNOWN = "Qwen3-8B-Q4_K_M"
ALONE = {"HF_ENDPOINT": "http://127.0.0.1:9", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/nowhere"}
PATIENCE_SECONDS = 60.0
Found = TypeVar("Found", bound=e.Event)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Site]:
    """This machine, for nodes of a test."""
    with site(tmp_path) as made:
        yield made


class Attacker:
    """A peer that says what the test wants it to say."""

    def __init__(self, home: Path, invite: str, *, client: bool) -> None:
        self.events: asyncio.Queue[e.Event] = asyncio.Queue()
        settings = Settings(home, invites=(decode(invite),), client=client, node_name="attacker")
        self.session = MeshSession(settings, load_home_state(settings), self.events.put_nowait)

    async def until(self, kind: type[Found], fits: Callable[[Found], bool] = lambda event: True) -> Found:
        """The next event of that kind."""
        while True:
            event = await asyncio.wait_for(self.events.get(), PATIENCE_SECONDS)
            if isinstance(event, kind) and fits(event):
                return event

    async def answer(self) -> WorkerReport:
        """What the node says to a lease of a file under a known model's name."""
        await self.session.begin(lambda peer: asyncio.Protocol())
        wanted = await self.until(e.JoinWanted)
        self.session.carry_out(c.DialPeer(wanted.addresses[0]))
        peer = (await self.until(e.LinkUp)).peer
        self.session.carry_out(c.Send(peer, Propose(self.lease(peer))))
        received = await self.until(e.MessageReceived, lambda event: isinstance(event.message, WorkerReport))
        assert isinstance(received.message, WorkerReport)
        return received.message

    def lease(self, peer: NodeId) -> Lease:
        """Half of a toy model for each."""
        own = self.session.config.node
        shares = (WorkerShare(own, 0, 1, 1 << 20), WorkerShare(peer, 1, 1, 1 << 20))
        return Lease(b"s" * 16, 1, KNOWN, (LeasedFile(f"{KNOWN}.gguf", 1000, "ab" * 32),), shares)


def answered(home: Path, invite: str, *, client: bool) -> WorkerReport:
    """The answer that an attacker gets."""

    async def ask() -> WorkerReport:
        attacker = Attacker(home, invite, client=client)
        try:
            return await attacker.answer()
        finally:
            await attacker.session.close()

    return asyncio.run(ask())


def no_rpc_server(node: Node) -> bool:
    return all(child.name()[:15] != "ggml-rpc-server" for child in node.children())


def test_client_gets_no_rpc_server(here: Site) -> None:
    founder = here.node("founder")
    lender = here.node("lender", join=founder)
    lender.until(joined, "the mesh")
    report = answered(here.folder / "thief", lender.invite(), client=True)
    assert report.phase is LeasePhase.ENDED
    assert "host" in report.detail
    assert lender.status()["worker_lease"] is None
    assert no_rpc_server(lender)


def test_idle_node_and_one_whose_owner_refuses_give_no_rpc_server(here: Site) -> None:
    founder = here.node("founder")
    report = answered(here.folder / "one", founder.invite(), client=False)
    assert (report.phase, "idle" in report.detail) == (LeasePhase.ENDED, True)
    refusing = here.node("refusing", "--no-worker", join=founder)
    refusing.until(joined, "the mesh")
    report = answered(here.folder / "two", refusing.invite(), client=False)
    assert (report.phase, "--no-worker" in report.detail) == (LeasePhase.ENDED, True)
    assert no_rpc_server(founder)
    assert no_rpc_server(refusing)
    assert refusing.stop() == 0  # then all lines are written
    lines = [json.loads(line) for line in (here.folder / "refusing" / "audit.log").read_text().splitlines()]
    assert any(line["event"] == "lease_refused" and "--no-worker" in line["reason"] for line in lines)


def committed(status: Status) -> bool:
    """Whether the node hosts a split that is served."""
    return any(split["committed"] for split in status["splits"]) and status["models"][0]["phase"] == "serving"


@pytest.mark.engine
def test_planted_file_is_no_model_of_the_worker(here: Site) -> None:
    """The host serves other bytes under a file name that the catalogue knows; the worker has no file of it."""
    folder, empty = here.folder / "host-models", here.folder / "worker-models"
    folder.mkdir()
    empty.mkdir()
    planted = folder / f"{KNOWN}.gguf"
    shutil.copy(next(paths.models().glob("SmolLM2-135M-Instruct*.gguf")), planted)
    around = {"HF_HOME": str(empty / "no"), **ALONE}
    split = ("--model", str(planted), "--split", "--ctx-size", "1024", "--threads", "1", "--no-speculation")
    host = here.node("host", *split, environment={**around, "MESH_LLM_MODELS": str(folder)})
    worker = here.node(
        "worker", "--node-name", "worker", join=host, environment={**around, "MESH_LLM_MODELS": str(empty)}
    )
    host.until(committed, "a split that is served")
    assert not no_rpc_server(worker)

    cache = here.folder / "worker" / "lease-cache"
    brought = [path for path in cache.iterdir() if path.is_file()]
    assert [path.stat().st_size for path in brought] == [planted.stat().st_size]
    assert all(path.name != planted.name and path.suffix == "" for path in brought)
    assert list(empty.rglob("*")) == []
    listed = here.run("worker", "models", "--json", environment={**around, "MESH_LLM_MODELS": str(empty)})
    assert KNOWN not in listed.stdout
    assert KNOWN not in json.dumps(peer_of(host, "worker"))

    assert host.stop() == 0
    worker.until(lambda status: status["worker_lease"] is None, "the end of the lease")
    assert worker.stop() == 0
    # After a restart its owner asks for the known model: the planted bytes are not it.
    again = here.node(
        "worker",
        "--model",
        "qwen3 8b",
        environment={**around, "MESH_LLM_MODELS": str(empty), "HF_ENDPOINT": "http://127.0.0.1:9"},
    )
    status = again.until(lambda status: status["models"] and status["models"][0]["reason"], "that it is not here")
    assert status["models"][0]["phase"] != "serving"


def peer_of(node: Node, name: str) -> Any:
    """What `node` knows of the peer of that name."""
    return next(peer for peer in node.status()["mesh"]["peers"] if peer["name"] == name)
