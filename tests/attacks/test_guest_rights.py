"""Audit, row 1 and M2-M4: a member does what its certificate allows, whatever it says; refusals are recorded."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from meshllm.core.membership.certificates import Right, StatementKind
from meshllm.core.membership.messages import AskInvite, GrantedInvite, RenewCertificate, RenewedCertificate, Statements
from meshllm.core.records import ServedModel
from meshllm.core.split.lease import Lease, LeasedFile, LeasePhase, Propose, WorkerReport
from meshllm.core.split.planner import WorkerShare
from meshllm.net.base import StreamKind
from meshllm.net.identity import verify
from meshllm.wire.mesh import files as w
from meshllm.wire.mesh.certificates import read_certificate
from meshllm.wire.mesh.invite import Invite, decode
from tests.attacks.hostile_member import HostileMember, MeshSecrets, invited
from tests.e2e.here import Site, client, joined, serves, site
from tests.netlab.nodes import Node

MODEL = "Stolen-Model"


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Site]:
    """This machine, for nodes of a test."""
    with site(tmp_path) as made:
        yield made


def invite(here: Site, home: str, *words: str) -> Invite:
    """A fresh invite of a node."""
    done = here.run(home, "invite", *words)
    assert done.returncode == 0, done.stderr
    return decode(done.stdout.strip())


def audited(here: Site, home: str, node: str) -> list[dict[str, str]]:
    """The lines of `mesh-llm logs --audit` of a node that has stopped, about another: the event and its fields."""
    told = here.run(home, "logs", "--audit")
    assert told.returncode == 0, told.stderr
    lines = [line for line in told.stdout.splitlines() if node[:10] in line]
    assert lines, told.stdout
    return [{"event": line.split("=")[0].split()[-2], **dict(re.findall(r"(\w+)=(\S+)", line))} for line in lines]


async def closed_at_once(member: HostileMember, kind: StreamKind, request: bytes) -> bool:
    """Whether the node closes a tunnel of that kind without an answer."""
    stream = member.open(kind)
    assert stream.transport is not None
    stream.transport.write(request)
    return await stream.until(lambda received: len(received) > 0) == b""


async def lease(member: HostileMember) -> WorkerReport:
    """What a worker answers to a lease that the member proposes."""
    assert member.link is not None
    peer = member.link.facts.peer
    shares = (WorkerShare(member.node, 0, 1, 1 << 20), WorkerShare(peer, 1, 1, 1 << 20))
    member.send(Propose(Lease(b"s" * 16, 1, MODEL, (LeasedFile(f"{MODEL}.gguf", 1000, "ab" * 32),), shares)))
    return await member.answer(WorkerReport)


def test_guest_gets_answers_and_nothing_else(here: Site) -> None:
    """A program that speaks the protocol, with a guest's certificate; it claims to be a node with all there is."""
    fake = here.model("Model", "host")
    host = here.node("host", "--share", "all", "--backend", fake.url)
    worker = here.node("worker", "--node-name", "worker", "--worker", join=host)
    worker.until(joined, "the mesh")
    secrets = MeshSecrets.of(here.folder / "host")
    found: dict[str, Any] = {}

    async def attack() -> None:
        async with invited(here.folder / "guest", invite(here, "host", "--guest")) as guest:
            found["node"] = guest.node.hex()
            for kind in (StreamKind.RPC_TUNNEL, StreamKind.FILES):
                request = w.encode_request(w.FindRequest("Model"))
                found[kind.name.lower()] = await closed_at_once(guest, kind, request)
            guest.send(AskInvite(Right.USE, 2_000_000_000, 3600))
            found["invite"] = await guest.answer(GrantedInvite)
            guest.publish(ServedModel(MODEL, slots=1000), on_disk=(MODEL,), memory=1 << 40)
            own = Statements((secrets.state(StatementKind.EXPEL, guest.node, guest.node, 1)[:-1] + b"x",), b"h" * 8)
            guest.send(own)
            guest.send(RenewCertificate(guest.certificate))
            found["renewed"] = await guest.answer(RenewedCertificate)
            found["status"] = await guest.request("GET /api/status")
            found["tokens"] = await guest.request("POST /v1/embeddings/../models", {})
            body = {"model": "Model", "messages": [{"role": "user", "content": "x"}]}
            found["chat"] = await guest.request("POST /v1/chat/completions", body)
            await guest.dial(invite(here, "worker").ways[0])
            found["lease"] = await lease(guest)

    asyncio.run(attack())
    assert found["lease"].phase is LeasePhase.ENDED
    assert "the right 'host'" in found["lease"].detail
    assert found["rpc_tunnel"]
    assert found["files"]
    assert found["invite"].refused == "it has no right to invite"
    assert found["invite"].key == b""
    given = found["renewed"]
    assert given.mesh_private == b""
    assert read_certificate(given.certificate, (secrets.key,), verify).certificate.rights == Right.USE
    assert b" 403 " in found["status"].split(b"\r\n")[0]
    assert b" 403 " in found["tokens"].split(b"\r\n")[0]
    assert b" 200 " in found["chat"].split(b"\r\n")[0]
    status = host.status()
    assert MODEL not in json.dumps(status["mesh"])
    assert [peer["name"] for peer in status["mesh"]["peers"]] == ["worker"]
    assert MODEL not in host.models()
    assert all(child.name()[:15] != "ggml-rpc-server" for child in worker.children())
    assert host.stop() == worker.stop() == 0
    lines = audited(here, "host", found["node"])
    assert {line["event"] for line in lines} >= {"tunnel_refused", "invite_refused", "record_refused"}
    assert "lease_refused" in {line["event"] for line in audited(here, "worker", found["node"])}
    assert {line["kind"] for line in lines if line["event"] == "tunnel_refused"} == {"rpc_tunnel", "files"}


def test_guest_that_runs_mesh_llm_uses_models_and_no_more(here: Site) -> None:
    """The real program, started with all that a node may be started with."""
    fake, stolen = here.model("Model", "host"), here.model(MODEL, "guest")
    host = here.node("host", "--worker", "--backend", fake.url)
    token = here.run("host", "invite", "--guest").stdout
    guest = here.adopt(
        Node(
            host.host,
            here.folder / "guest",
            *("--node-name", "guest", "--worker", "--backend", stolen.url, "--join", "-"),
            environment=here.environment,
            stdin=token,
        )
    )
    guest.until(joined, "the mesh")
    guest.until(serves("Model"), "the host's model")
    assert guest.chat("Model").text.startswith("host")
    assert guest.chat(MODEL).text.startswith("guest")  # its own, for itself
    assert host.chat(MODEL).status == 404
    assert MODEL not in host.models()
    (note,) = guest.status()["notices"]  # it is told that its model is for itself
    assert MODEL not in note
    assert "mesh-llm invite --rights use,serve" in note
    guest.wait_for(lambda line: note in str(line), "the same in the terminal")
    refused = here.run("guest", "invite")
    assert refused.returncode != 0
    assert "may not admit" in refused.stderr
    for command in (("expel", "host", "--yes"), ("rotate-key", "--mesh", "--yes")):
        done = here.run("guest", *command)
        assert done.returncode != 0, command
    assert host.status()["mesh"]["clients"] == 1
    assert here.run("host", "expel", "guest", "--yes").returncode == 0
    status = guest.until(lambda s: s["mesh"]["phase"] == "expelled", "its expulsion")
    assert (status["mesh"]["peers"], status["mesh"]["away"]) == ([], [])
    assert host.stop() == guest.stop() == 0


@pytest.mark.parametrize("wanted", ["work", "serve"])
def test_member_without_the_right_to_use_is_told_so(here: Site, wanted: str) -> None:
    """M2: it gets an answer of the API with what to do, from the program and over a tunnel, and no model sees it."""
    fake = here.model("Model", "host")
    host = here.node("host", "--backend", fake.url)
    token = here.run("host", "invite", "--rights", wanted).stdout
    member = here.adopt(
        Node(
            host.host,
            here.folder / "member",
            *("--node-name", "member", "--join", "-"),
            environment=here.environment,
            stdin=token,
        )
    )
    member.until(serves("Model"), "the host's model")
    refused = member.chat("Model")
    assert (refused.status, refused.body["error"]["code"]) == (403, "no_right")
    assert "no right to send requests" in refused.body["error"]["message"]
    assert "mesh-llm invite --rights use" in refused.body["error"]["message"]
    with pytest.raises(openai.PermissionDeniedError):
        client(member).chat.completions.create(model="Model", messages=[{"role": "user", "content": "x"}])
    with pytest.raises(anthropic.PermissionDeniedError):
        anthropic.Anthropic(base_url=member.base_url.removesuffix("/v1"), api_key="x", max_retries=0).messages.create(
            model="Model", max_tokens=3, messages=[{"role": "user", "content": "x"}]
        )
    assert fake.asked == []
    node = member.status()["mesh"]["node"]
    assert host.stop() == member.stop() == 0
    lines = audited(here, "host", node)
    assert any(line["event"] == "tunnel_refused" and line["kind"] == "http_tunnel" for line in lines)
