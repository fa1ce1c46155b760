"""What people and programs are told of the mesh: each thing once, nothing that a terminal would obey, no flood."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from meshllm.cli import view
from meshllm.cli.mesh_notices import MOST_AT_ONCE, MeshNotices, NoticeTone, printable
from meshllm.core.membership.views import JoinAttempt, JoinAttemptState, JoinPhase, MeshView, PeerStatus, PeerView
from meshllm.core.records import (
    BootstrapAddress,
    MeshId,
    NodeId,
    NodeRecord,
    PeerAddress,
    RecordVersion,
    Role,
    ServedModel,
)
from meshllm.core.snapshot import Snapshot

MESH = MeshId(b"m" * 16)
ALONE = MeshView(NodeId(b"n" * 32), MESH, Role.NODE)
WAY = BootstrapAddress(b"p" * 16, (PeerAddress("192.0.2.1", 7), PeerAddress("2001:db8::1", 7)))


def peer(number: int, status: PeerStatus = PeerStatus.ALIVE, *models: str, name: str = "") -> PeerView:
    node = NodeId(number.to_bytes(32, "big"))
    serves = tuple(ServedModel(model) for model in models)
    return PeerView(NodeRecord(node, RecordVersion(1, 1), MESH, name or f"box{number}", serves=serves), status)


def said(news: MeshNotices, mesh: MeshView) -> list[str]:
    return [item.words for item in news.news(mesh)]


def test_a_join_is_told_step_by_step() -> None:
    news = MeshNotices()
    assert said(news, ALONE) == []
    dialling = replace(ALONE, phase=JoinPhase.DIALLING, join_attempts=(JoinAttempt(WAY, JoinAttemptState.DIALLING),))
    assert said(news, dialling) == [
        "Looking for the mesh: 1 way in",
        "  192.0.2.1:7 or [2001:db8::1]:7: dialling",
    ]
    assert said(news, dialling) == []
    refused = replace(dialling, join_attempts=(JoinAttempt(WAY, JoinAttemptState.REFUSED, "wrong secret"),))
    assert said(news, refused) == ["  192.0.2.1:7 or [2001:db8::1]:7: refused: wrong secret"]
    # Tried again, and refused again: nothing that a person does not know.
    assert said(news, dialling) == []
    assert said(news, refused) == []
    failed = replace(refused, phase=JoinPhase.FAILED, reason="nobody lets us in")
    assert said(news, failed) == ["The mesh cannot be reached yet: nobody lets us in. It goes on trying."]
    joined = replace(failed, phase=JoinPhase.JOINED, reason="", peers=(peer(1, PeerStatus.ALIVE, "a", "b"),))
    assert said(news, joined) == [
        "box1 (0000000000) is in the mesh, serving a, b",
        f"Joined the mesh {MESH[:5].hex()}: 1 other node, serving a, b",
    ]


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (PeerStatus.ALIVE, PeerStatus.SUSPECT, "does not answer"),
        (PeerStatus.ALIVE, PeerStatus.DEAD, "is gone"),
        (PeerStatus.SUSPECT, PeerStatus.DEAD, "is gone"),
        (PeerStatus.SUSPECT, PeerStatus.ALIVE, "is back"),
        (PeerStatus.DEAD, PeerStatus.ALIVE, "is back"),
        (PeerStatus.ALIVE, PeerStatus.LEFT, "has left"),
        (PeerStatus.UNVERIFIED, PeerStatus.ALIVE, "is in the mesh"),
    ],
)
def test_coming_and_going_is_told(before: PeerStatus, after: PeerStatus, words: str) -> None:
    news = MeshNotices()
    news.news(replace(ALONE, peers=(peer(1, before),)))
    told = said(news, replace(ALONE, peers=(peer(1, after),)))
    assert len(told) == 1
    assert words in told[0]


def test_what_was_never_there_does_not_go() -> None:
    for status in (PeerStatus.UNVERIFIED, PeerStatus.DEAD, PeerStatus.LEFT):
        assert said(MeshNotices(), replace(ALONE, peers=(peer(1, status),))) == []


def test_a_peer_that_serves_something_else_says_so() -> None:
    news = MeshNotices()
    news.news(replace(ALONE, peers=(peer(1),)))
    assert said(news, replace(ALONE, peers=(peer(1, PeerStatus.ALIVE, "a"),))) == ["box1 (0000000000) serves a"]
    assert said(news, replace(ALONE, peers=(peer(1),))) == ["box1 (0000000000) serves nothing now"]


def test_a_large_mesh_is_summed_up() -> None:
    news = MeshNotices()
    told = news.news(replace(ALONE, peers=tuple(peer(n) for n in range(MOST_AT_ONCE + 1))))
    assert [(item.words, item.event) for item in told] == [("9 nodes changed; 9 are there", "peers")]


def test_names_cannot_move_the_cursor() -> None:
    evil = peer(1, PeerStatus.ALIVE, "\x1b[2Jm", name="a\x1b]0;x\x07\nb\u202e")
    for words in said(MeshNotices(), replace(ALONE, peers=(evil,))):
        assert words.isprintable()
    assert len(printable("x" * 1000)) == 200


@pytest.mark.parametrize("terminal", [False, True], ids=["lines", "terminal"])
def test_the_invite_is_alone_on_its_line_however_long(terminal: bool) -> None:
    out = io.StringIO()
    token = "mesh1-" + "Ab_-" * 100
    viewer = view.LineViewer(Console(file=out, force_terminal=terminal, width=80, color_system=None, soft_wrap=True))
    viewer.invite(token)
    assert f"mesh-llm --join {token}" in [line.strip() for line in out.getvalue().splitlines()]


def test_services_are_told_how_to_get_the_invite_but_not_the_invite() -> None:
    out = io.StringIO()
    viewer = view.JsonViewer(out)
    viewer.invite("mesh1-SECRET")
    viewer.alone("no UDP here")
    viewer.snapshot(Snapshot(mesh=replace(ALONE, phase=JoinPhase.JOINED, peers=(peer(1, PeerStatus.ALIVE, "a"),))))
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert "SECRET" not in out.getvalue()
    assert [line["event"] for line in lines] == ["invite", "alone", "peer", "mesh", "engine"]
    assert lines[0]["command"] == "mesh-llm invite"
    assert lines[2]["models"] == ["a"]
    assert lines[3]["phase"] == "joined"


def test_tones_have_styles() -> None:
    assert set(view.STYLES) == set(NoticeTone)
