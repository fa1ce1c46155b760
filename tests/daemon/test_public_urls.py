"""Where other machines find this one, and the key that they need."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshllm.daemon import public_urls
from meshllm.daemon.public_urls import PublicUrls, api_key, far
from meshllm.errors import DamagedState, UsageError
from meshllm.net.addresses import InterfaceAddress

LOOPBACK = (InterfaceAddress("lo", "127.0.0.1"), InterfaceAddress("lo", "::1"))
HOME = InterfaceAddress("eth0", "192.168.1.7", default=True)
BRIDGE = InterfaceAddress("docker0", "172.17.0.1")
SIX = InterfaceAddress("eth0", "fd00::7", default=True)


def test_api_key_is_made_once_and_kept_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MESH_LLM_API_KEY", raising=False)
    key, path = api_key(tmp_path)
    assert path is not None
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    assert api_key(tmp_path) == (key, path)
    assert path.stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("MESH_LLM_API_KEY", "chosen-by-its-owner")
    assert api_key(tmp_path) == ("chosen-by-its-owner", None)


def test_short_api_key_is_refused_with_the_way_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("a", "fifteen-letters"):
        monkeypatch.setenv("MESH_LLM_API_KEY", key)
        with pytest.raises(UsageError, match="needs 16 characters") as used:
            api_key(tmp_path)
        assert "openssl rand" in used.value.advice
    monkeypatch.delenv("MESH_LLM_API_KEY")
    (tmp_path / "api-key").write_text("short\n")
    with pytest.raises(DamagedState, match="needs 16 characters") as damaged:
        api_key(tmp_path)
    assert "Remove the file" in damaged.value.advice


def test_public_urls_are_empty_without_a_network() -> None:
    assert far(LOOPBACK) == []
    assert far([*LOOPBACK, BRIDGE, SIX, HOME]) == ["192.168.1.7", "172.17.0.1"]
    assert far([*LOOPBACK, SIX]) == ["fd00::7"]


def test_names_come_first_and_networks_are_looked_for_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    facts, now = [*LOOPBACK, HOME], [100.0]
    monkeypatch.setattr(public_urls, "read_interfaces", lambda: facts)
    found = PublicUrls(("box.lan", "192.168.1.7", "fd00::9"), lambda: now[0])
    assert found.hosts() == ("box.lan", "192.168.1.7", "[fd00::9]")
    facts = [*LOOPBACK, BRIDGE]
    assert "172.17.0.1" not in found.hosts()
    now[0] += public_urls.REFRESH_SECONDS
    assert found.hosts() == ("box.lan", "192.168.1.7", "[fd00::9]", "172.17.0.1")
