"""Whether a home was copied from another place, and what the owner is told."""

from __future__ import annotations

import shutil
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meshllm.core.membership.views import JoinPhase, MeshView
from meshllm.core.records import MeshId, NodeRecord, RecordVersion, Role
from meshllm.daemon import home_place
from meshllm.daemon.duplicate_notice import DuplicateNotice
from tests.core.small_mesh import address, node_id


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home that belongs to this machine."""
    made = tmp_path / "home"
    made.mkdir()
    assert not home_place.was_moved(made), "a home that says nothing was made here"
    home_place.settle(made)
    return made


def test_home_is_recognised_where_it_was_made(home: Path) -> None:
    assert not home_place.was_moved(home)
    assert (home / home_place.FILE).stat().st_mode & 0o777 == 0o600
    renamed = home.rename(home.with_name("renamed"))
    assert not home_place.was_moved(renamed), "a folder that was renamed is no copy"


def test_copy_on_the_same_machine_is_recognised_until_it_has_settled(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(home, copy)
    assert home_place.was_moved(copy)
    assert not home_place.was_moved(home)
    home_place.settle(copy)
    assert not home_place.was_moved(copy)


@pytest.mark.parametrize("what", ["machine id", "network card"])
def test_cloned_disk_in_another_machine_is_recognised(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    other = tmp_path / "machine-id"
    other.write_text("another\n")
    if what == "machine id":
        monkeypatch.setattr(home_place, "MACHINE_ID", other)
    else:
        monkeypatch.setattr(uuid, "getnode", lambda: 0x0242AC110099)
    assert home_place.was_moved(home)


def test_random_network_address_is_no_other_machine(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python makes one up, another in each process, where no network card has an address."""
    monkeypatch.setattr(uuid, "getnode", lambda: 1 << 40 | 5)
    home_place.settle(home)
    monkeypatch.setattr(uuid, "getnode", lambda: 1 << 40 | 6)
    assert not home_place.was_moved(home)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"x" * 5000])
def test_damaged_file_is_never_fatal(home: Path, content: bytes) -> None:
    (home / home_place.FILE).write_bytes(content)
    assert home_place.was_moved(home) is bool(content)
    (home / home_place.FILE).unlink()
    (home / home_place.FILE).mkdir()
    assert not home_place.was_moved(home)
    home_place.settle(home)


def test_owner_is_told_once_in_the_log_and_all_the_time_in_the_status(caplog: pytest.LogCaptureFixture) -> None:
    audited: list[tuple[str, dict[str, Any]]] = []
    notice = DuplicateNotice(lambda event, /, **fields: audited.append((event, fields)))
    alone = MeshView(node_id(0), MeshId(bytes(16)), Role.NODE, JoinPhase.JOINED)
    for view in (None, alone):
        notice.publish(view)
        assert notice.text == ""
    other = NodeRecord(node_id(0), RecordVersion(9, 1), MeshId(bytes(16)), name="twin", addresses=(address(7),))
    stays = replace(alone, duplicate=other)
    notice.publish(stays)
    assert "Two machines have one identity" in notice.text
    assert "runs as twin, at 10.0.0.7:9000" in notice.text
    assert "mesh-llm rotate-key" in notice.text
    notice.publish(replace(stays, phase=JoinPhase.DUPLICATE))
    assert "This node has left the mesh" in notice.text
    assert "node-key and mesh.json" in notice.text
    assert audited == [("duplicate_identity", {"addresses": "10.0.0.7:9000", "name": "twin"})]
    assert len(caplog.records) == 1
