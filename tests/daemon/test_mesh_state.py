"""`mesh.json`: kept whole over restarts, for its owner alone, and never lost in silence."""

from __future__ import annotations

import json
import logging
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.core.membership.certificates import MeshKey
from meshllm.core.records import MAX_NUMBER, BootstrapAddress, MeshId, PeerAddress
from meshllm.daemon import mesh_state
from meshllm.daemon.mesh_state import FILE, MAX_PEERS, PREVIOUS, MeshState, key_of_secret, knows_others, public_key
from meshllm.errors import DamagedState, EnvironmentFailure
from meshllm.wire.mesh.certificates import CERTIFICATE_BYTES

NOW = 1_800_000_000.7
PRIVATE = b"s" * 32
THEIRS = public_key(PRIVATE)
CERTIFICATE = bytes(CERTIFICATE_BYTES)
PEERS = (
    BootstrapAddress(b"a" * 32, (PeerAddress("192.0.2.1", 9), PeerAddress("2001:db8::1", 10))),
    BootstrapAddress(b"b" * 16, (PeerAddress("192.0.2.2", 11),)),
)


def opened(home: Path, now: float = NOW) -> MeshState:
    return MeshState.open(home, lambda: now)


def everything(state: MeshState) -> tuple[Any, ...]:
    return (state.mesh, state.key, state.private, state.certificate, state.incarnation, state.peers, state.port)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_mesh_state_first_start_creates_a_mesh(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    state = opened(home)
    assert (len(state.mesh), len(state.key), len(state.private)) == (16, 32, 32)
    assert (state.incarnation, state.peers, state.port, state.notice) == (0, (), None, "")
    assert mode(home / FILE) == 0o600
    assert mode(home) == 0o700
    assert everything(opened(home)) == everything(state)
    other = opened(tmp_path / "other")
    assert state.mesh != other.mesh
    assert state.private != other.private
    assert sorted(path.name for path in home.iterdir()) == [FILE]


def test_knows_others_creates_nothing(tmp_path: Path) -> None:
    assert not knows_others(tmp_path)
    assert list(tmp_path.iterdir()) == []
    state = opened(tmp_path)
    assert not knows_others(tmp_path)
    state.save_peers(PEERS)
    assert knows_others(tmp_path)
    (tmp_path / FILE).write_text("{")
    assert not knows_others(tmp_path)
    assert (tmp_path / FILE).read_text() == "{", "it is left for whoever opens it"
    (tmp_path / FILE).write_text('{"version": 99}')
    assert not knows_others(tmp_path)


def test_mesh_state_saves_everything(tmp_path: Path) -> None:
    state = opened(tmp_path)
    state.save_peers(PEERS)
    state.save_port(41337)
    state.save_mesh(MeshId(b"n" * 16))
    state.save_incarnation(12)
    assert (state.mesh, state.peers, state.port, state.incarnation) == (b"n" * 16, PEERS, 41337, 12)
    assert everything(opened(tmp_path)) == everything(state)
    assert mode(tmp_path / FILE) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE]


def test_mesh_state_incarnation_grows_with_each_start(tmp_path: Path) -> None:
    first = opened(tmp_path).next_incarnation()
    assert first == int(NOW)
    assert opened(tmp_path).next_incarnation() == first + 1  # within the same second
    assert opened(tmp_path, now=5.0).next_incarnation() == first + 2  # with a clock that was set back
    state = opened(tmp_path)
    state.save_incarnation(first + 100)
    state.save_incarnation(first + 50)
    assert opened(tmp_path).incarnation == first + 100
    assert opened(tmp_path, now=NOW + 1000).next_incarnation() == first + 1000


def test_mesh_state_incarnation_exceeds_that_of_a_lost_file(tmp_path: Path) -> None:
    before = opened(tmp_path)
    for _ in range(10):
        before.next_incarnation()
    (tmp_path / FILE).unlink()
    assert opened(tmp_path, now=NOW + 60).next_incarnation() > before.incarnation


def test_mesh_state_adopt_keeps_the_previous_mesh(tmp_path: Path) -> None:
    state = opened(tmp_path)
    state.save_peers(PEERS)
    state.save_port(41337)
    number = state.next_incarnation()
    before, as_founded = everything(state), opened(tmp_path)
    state.adopt(MeshId(b"n" * 16), THEIRS, PRIVATE, CERTIFICATE)
    assert everything(opened(tmp_path)) == (b"n" * 16, THEIRS, PRIVATE, CERTIFICATE, number, (), 41337)
    assert (as_founded.founded, opened(tmp_path).founded) == (True, False)
    assert mode(tmp_path / PREVIOUS) == 0o600
    (tmp_path / PREVIOUS).replace(tmp_path / FILE)
    assert everything(opened(tmp_path)) == before


def test_mesh_state_adopt_of_the_same_key_keeps_peers(tmp_path: Path) -> None:
    state = opened(tmp_path)
    state.save_peers(PEERS)
    state.adopt(state.mesh, state.key, state.private, CERTIFICATE)
    state.adopt(MeshId(b"n" * 16), state.key, state.private, CERTIFICATE)
    assert (state.mesh, state.peers) == (b"n" * 16, PEERS)
    assert not (tmp_path / PREVIOUS).exists()
    with pytest.raises(ValueError, match="16 bytes"):
        state.adopt(MeshId(b"n" * 16), MeshKey(b"short"), b"", b"")


def test_mesh_state_bounds_peers(tmp_path: Path) -> None:
    state = opened(tmp_path)
    many = tuple(
        BootstrapAddress(number.to_bytes(32, "big"), tuple(PeerAddress("192.0.2.1", port) for port in range(1, 20)))
        for number in range(1000)
    )
    state.save_peers(many)
    assert [way.pin for way in state.peers] == [way.pin for way in many[:MAX_PEERS]]
    assert {len(way.addresses) for way in state.peers} == {8}
    assert opened(tmp_path).peers == state.peers


def test_mesh_state_writes_only_changes(tmp_path: Path) -> None:
    state = opened(tmp_path)
    state.save_peers(PEERS)
    before = (tmp_path / FILE).stat().st_ino
    state.save_peers(PEERS)
    state.save_mesh(state.mesh)
    state.save_incarnation(0)
    assert (tmp_path / FILE).stat().st_ino == before


def test_mesh_state_removes_access_of_other_users(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = opened(tmp_path)
    (tmp_path / FILE).chmod(0o644)
    assert everything(opened(tmp_path)) == everything(state)
    assert mode(tmp_path / FILE) == 0o600
    assert "was readable by other users" in caplog.text


def good() -> dict[str, Any]:
    return {"version": 1, "mesh": "6d" * 16, "secret": "73" * 16, "incarnation": 5, "port": 9, "peers": []}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "\x00\x01",
        "[" * 100_000,
        "x" * (mesh_state.MAX_FILE_BYTES + 1),
        json.dumps({}),
        *(
            json.dumps({**good(), name: value})
            for name in ("mesh", "secret", "incarnation")
            for value in (None, "", "6d", "zz" * 16, 1.5, -1, MAX_NUMBER + 1, [], "6d" * 17)
        ),
        json.dumps(good())[:-1],
        *(json.dumps({name: value for name, value in good().items() if name != gone}) for gone in ("mesh", "secret")),
    ],
    ids=lambda text: repr(text[:40]),
)
def test_mesh_state_moves_a_damaged_file_aside_with_a_notice(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_text(text)
    state = opened(tmp_path)
    assert "--join and an invite" in state.notice
    assert "--join and an invite" in caplog.text
    assert (tmp_path / "mesh.damaged-1.json").read_text() == text
    assert everything(opened(tmp_path)) == everything(state)
    (tmp_path / FILE).write_text("again")
    assert "mesh.damaged-2.json" in opened(tmp_path).notice
    assert (tmp_path / "mesh.damaged-1.json").read_text() == text


def test_mesh_state_of_non_utf8_bytes_is_damaged(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"\xff\xfe{}")
    assert "not UTF-8 text" in opened(tmp_path).notice


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_mesh_state_drops_only_invalid_peers(told: Any) -> None:
    sound = {"node": "61" * 16, "addresses": [["192.0.2.1", 9]]}
    assert mesh_state._valid_peers(
        [told, {"node": told, "addresses": told}, {"node": "61" * 16, "addresses": [told]}, sound]
    ) == (BootstrapAddress(b"a" * 16, (PeerAddress("192.0.2.1", 9),)),)
    mesh_state._valid_peers(told)


def test_mesh_state_ignores_an_invalid_port(tmp_path: Path) -> None:
    for port in (0, -1, 70000, "9", True, None):
        (tmp_path / FILE).write_text(json.dumps({**good(), "port": port}))
        assert opened(tmp_path).port is None
    assert opened(tmp_path).mesh == b"m" * 16


def test_mesh_state_leaves_a_newer_file_alone(tmp_path: Path) -> None:
    text = json.dumps({**good(), "version": 3})
    (tmp_path / FILE).write_text(text)
    with pytest.raises(DamagedState, match="newer"):
        opened(tmp_path)
    assert (tmp_path / FILE).read_text() == text


def test_mesh_state_that_is_a_directory_raises(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(DamagedState, match="cannot be read"):
        opened(tmp_path)


def test_mesh_state_is_unchanged_if_saving_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = opened(tmp_path)
    before = everything(state)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentFailure, match="No space left"):
        state.adopt(MeshId(b"n" * 16), THEIRS, b"", b"")
    with pytest.raises(EnvironmentFailure, match="No space left"):
        state.next_incarnation()
    monkeypatch.undo()
    assert everything(state) == everything(opened(tmp_path)) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE]


def test_mesh_state_ignores_a_half_written_file(tmp_path: Path) -> None:
    (tmp_path / f".{FILE}.partial").write_text("half")
    state = opened(tmp_path)
    assert everything(opened(tmp_path)) == everything(state)


def test_mesh_state_never_shows_the_secret(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    state = opened(tmp_path)
    state.adopt(MeshId(b"n" * 16), public_key(b"secret of a mesh" * 2), b"secret of a mesh" * 2, b"")
    state.save_peers(PEERS)
    (tmp_path / FILE).chmod(0o640)
    opened(tmp_path)
    text = (tmp_path / FILE).read_text()
    (tmp_path / FILE).write_text(text[:-3])
    damaged = opened(tmp_path)
    shown = f"{state} {state!r} {state._stored!r} {damaged.notice} {caplog.text}"
    for secret in (b"secret of a mesh" * 2, damaged.private):
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown


def test_mesh_state_upgrades_a_secret_and_says_so(tmp_path: Path) -> None:
    """All nodes of a mesh of version 1 derive the same key; the secret stays in no file."""
    old = {"version": 1, "mesh": "ab" * 16, "secret": "cd" * 16, "incarnation": 7, "port": 9, "peers": []}
    keys = set()
    for name in ("one", "other"):
        home = tmp_path / name
        home.mkdir()
        (home / FILE).write_text(json.dumps(old))
        (home / PREVIOUS).write_text(json.dumps(old))
        state = opened(home)
        assert (state.mesh.hex(), state.incarnation, state.port, state.upgraded) == ("ab" * 16, 7, 9, True)
        assert "rotate-key --mesh" in state.notice
        assert "cd" * 16 not in (home / FILE).read_text()
        assert not (home / PREVIOUS).exists()
        again = opened(home)
        assert (everything(again), again.upgraded, again.notice) == (everything(state), True, "")
        keys.add(state.key)
    assert keys == {public_key(key_of_secret(bytes.fromhex("cd" * 16)))}


def test_mesh_state_without_the_new_mesh_key_keeps_no_private_key(tmp_path: Path) -> None:
    state = opened(tmp_path)
    old = state.key
    state.save_statements(THEIRS, (), old)
    again = opened(tmp_path)
    assert (again.key, again.private, again.previous) == (THEIRS, b"", old)
