"""Notices of the mesh: each change once, no control characters, bounded number."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from rich.console import Console

from meshllm.cli import view
from meshllm.cli.last_seen import away_text, clock_text
from meshllm.cli.mesh_notices import MAX_CHANGES, MeshNotices, NoticeTone
from meshllm.core.membership.views import (
    AwayMember,
    ClientView,
    JoinAttempt,
    JoinAttemptState,
    JoinPhase,
    MeshView,
    PeerStatus,
    PeerView,
)
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
from meshllm.util.format import printable

MESH = MeshId(b"m" * 16)
ALONE = MeshView(NodeId(b"n" * 32), MESH, Role.NODE)
WAY = BootstrapAddress(b"p" * 16, (PeerAddress("192.0.2.1", 7), PeerAddress("2001:db8::1", 7)))


def peer(number: int, status: PeerStatus = PeerStatus.ALIVE, *models: str, name: str = "") -> PeerView:
    node = NodeId(number.to_bytes(32, "big"))
    serves = tuple(ServedModel(model) for model in models)
    return PeerView(NodeRecord(node, RecordVersion(1, 1), MESH, name or f"box{number}", serves=serves), status)


def said(news: MeshNotices, mesh: MeshView) -> list[str]:
    return [item.text for item in news.changes(mesh)]


def test_notices_report_each_step_of_a_join() -> None:
    news = MeshNotices()
    assert said(news, ALONE) == []
    dialling = replace(ALONE, phase=JoinPhase.DIALLING, join_attempts=(JoinAttempt(WAY, JoinAttemptState.DIALLING),))
    assert said(news, dialling) == [
        "Connecting to the mesh: 1 bootstrap address",
        "  192.0.2.1:7 or [2001:db8::1]:7: dialling",
    ]
    assert said(news, dialling) == []
    refused = replace(dialling, join_attempts=(JoinAttempt(WAY, JoinAttemptState.REFUSED, "wrong secret"),))
    assert said(news, refused) == ["  192.0.2.1:7 or [2001:db8::1]:7: refused: wrong secret"]
    # Tried again, and refused again: nothing that a person does not know.
    assert said(news, dialling) == []
    assert said(news, refused) == []
    failed = replace(refused, phase=JoinPhase.FAILED, reason="nobody lets us in")
    assert said(news, failed) == ["Cannot reach the mesh: nobody lets us in. Retrying."]
    joined = replace(failed, phase=JoinPhase.JOINED, reason="", peers=(peer(1, PeerStatus.ALIVE, "a", "b"),))
    assert said(news, joined) == [
        "box1 (0000000000) joined the mesh, serving a, b",
        f"Joined the mesh {MESH[:5].hex()}: 1 other node, serving a, b",
    ]


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (PeerStatus.ALIVE, PeerStatus.SUSPECT, "does not answer"),
        (PeerStatus.ALIVE, PeerStatus.DEAD, "is offline"),
        (PeerStatus.SUSPECT, PeerStatus.DEAD, "is offline"),
        (PeerStatus.SUSPECT, PeerStatus.ALIVE, "is online again"),
        (PeerStatus.DEAD, PeerStatus.ALIVE, "is online again"),
        (PeerStatus.ALIVE, PeerStatus.LEFT, "left the mesh"),
        (PeerStatus.UNVERIFIED, PeerStatus.ALIVE, "joined the mesh"),
    ],
)
def test_notices_report_a_change_of_a_peers_status(before: PeerStatus, after: PeerStatus, words: str) -> None:
    news = MeshNotices()
    news.changes(replace(ALONE, peers=(peer(1, before),)))
    told = said(news, replace(ALONE, peers=(peer(1, after),)))
    assert len(told) == 1
    assert words in told[0]


def test_notices_ignore_peers_that_were_never_online() -> None:
    for status in (PeerStatus.UNVERIFIED, PeerStatus.DEAD, PeerStatus.LEFT):
        assert said(MeshNotices(), replace(ALONE, peers=(peer(1, status),))) == []


def test_notices_report_a_change_of_a_peers_models() -> None:
    news = MeshNotices()
    news.changes(replace(ALONE, peers=(peer(1),)))
    assert said(news, replace(ALONE, peers=(peer(1, PeerStatus.ALIVE, "a"),))) == ["box1 (0000000000) serves a"]
    assert said(news, replace(ALONE, peers=(peer(1),))) == ["box1 (0000000000) serves no model now"]


def test_notices_sum_up_many_changes_in_one_line() -> None:
    news = MeshNotices()
    told = news.changes(replace(ALONE, peers=tuple(peer(n) for n in range(MAX_CHANGES + 1))))
    assert [(item.text, item.event) for item in told] == [("9 nodes changed; 9 are online", "peers")]


def test_notices_contain_no_control_characters() -> None:
    evil = peer(1, PeerStatus.ALIVE, "\x1b[2Jm", name="a\x1b]0;x\x07\nb\u202e")
    for words in said(MeshNotices(), replace(ALONE, peers=(evil,))):
        assert words.isprintable()
    assert len(printable("x" * 1000)) == 200


@pytest.mark.parametrize("terminal", [False, True], ids=["lines", "terminal"])
def test_line_viewer_prints_a_long_invite_on_one_line_of_a_terminal(terminal: bool) -> None:
    out = io.StringIO()
    token = "mesh2-" + "Ab_-" * 100
    viewer = view.LineViewer(Console(file=out, force_terminal=terminal, width=80, color_system=None, soft_wrap=True))
    assert viewer.shows_secrets is terminal
    if not terminal:  # a log
        viewer.invite_hint()
        assert "'mesh-llm invite' prints an invite" in out.getvalue()
        return
    viewer.invite(token)
    assert f"mesh-llm --join {token}" in [line.strip() for line in out.getvalue().splitlines()]


def test_json_viewer_writes_the_invite_command_and_no_invite() -> None:
    out = io.StringIO()
    viewer = view.JsonViewer(out)
    assert not viewer.shows_secrets
    viewer.invite_hint()
    viewer.no_mesh("no UDP here")
    viewer.snapshot(Snapshot(mesh=replace(ALONE, phase=JoinPhase.JOINED, peers=(peer(1, PeerStatus.ALIVE, "a"),))))
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["invite", "no_mesh", "peer", "mesh", "engine"]
    assert lines[0]["command"] == "mesh-llm invite"
    assert lines[2]["models"] == ["a"]
    assert lines[3]["phase"] == "joined"


def test_each_notice_tone_has_a_style() -> None:
    assert set(view.STYLES) == set(NoticeTone)


def test_notices_name_who_is_away_instead_of_a_failure() -> None:
    news = MeshNotices()
    away = (AwayMember(NodeId(b"c" * 32), "cellar\x1b", ("m",), time.monotonic()), AwayMember(NodeId(b"d" * 32), ""))
    found = news.changes(replace(ALONE, phase=JoinPhase.ALONE_FOR_NOW, away=away, reason="no answer"))
    assert [item.tone for item in found] == [NoticeTone.PLAIN]
    assert found[0].text.startswith("Alone for now: cellar? last seen ")
    assert "6464646464 last seen" in found[0].text
    assert said(news, replace(ALONE, phase=JoinPhase.JOINED)) == ["Another member of the mesh 6d6d6d6d6d is connected"]


def test_notices_show_a_client_once_it_has_a_name() -> None:
    news, node = MeshNotices(), NodeId(b"c" * 32)
    assert said(news, replace(ALONE, clients=(ClientView(node, "", 1.0, 0.01),))) == []
    linked = replace(ALONE, clients=(ClientView(node, "laptop", 1.0, 0.01),))
    assert said(news, linked) == ["Client laptop (6363636363) is connected"]
    assert said(news, linked) == []
    assert said(news, ALONE) == ["Client laptop (6363636363) has disconnected"]
    many = tuple(ClientView(NodeId(bytes([n]) * 32), f"c{n}", 1.0, 0.01) for n in range(MAX_CHANGES + 1))
    assert said(news, replace(ALONE, clients=many)) == [f"{MAX_CHANGES + 1} clients connected"]


def test_clock_text_has_the_day_only_if_it_was_another_one() -> None:
    now = datetime(2026, 11, 29, 18, 55, tzinfo=UTC)
    assert clock_text(120, now) == "18:53"
    assert clock_text(86_400, now) == "28 Nov 18:55"
    members = [("cellar", 0.0)] * 5
    assert away_text(members).endswith(" and 2 more")
