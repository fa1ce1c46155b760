"""What a node remembers of members over a restart: names, when each was seen last, what it served."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from meshllm.core.membership.certificates import GUEST_RIGHTS, Right
from meshllm.core.membership.views import ClientView, MeshView, PeerStatus, PeerView
from meshllm.core.records import MeshId, NodeId, NodeRecord, RecordVersion, Role, ServedModel
from meshllm.daemon.invite_book import MAX_SERVED, InviteBook
from meshllm.daemon.member_sightings import REMEMBERED_SECONDS, WRITE_SECONDS, MemberSightings
from tests.mesh_key import FakeMeshKey

MESH = MeshId(bytes(16))
ME, CELLAR, LAPTOP = NodeId(b"m" * 32), NodeId(b"c" * 32), NodeId(b"l" * 32)
KEY = FakeMeshKey()


class Home:
    """The book of a home, and a clock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wall = 1_800_000_000.0
        self.book = InviteBook(folder)
        self.sightings = self.restart()

    def restart(self) -> MemberSightings:
        """A new run reads the file."""
        self.book = InviteBook(self.folder)
        self.sightings = MemberSightings(self.book, lambda: self.wall, lambda peer: KEY.certify(peer.node).certificate)
        return self.sightings

    def remembered(self, now: float = 50.0) -> list[tuple[str, tuple[str, ...], float]]:
        """Name, models and time on the monotonic clock."""
        found = self.sightings.remembered(ME, lambda node: False, now)
        return [(member.name, member.served, member.seen) for member in found]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def view(*models: str, status: PeerStatus = PeerStatus.ALIVE, clients: tuple[ClientView, ...] = ()) -> MeshView:
    """The mesh with the cellar in it."""
    record = NodeRecord(CELLAR, RecordVersion(1, 1), MESH, "cellar", serves=tuple(map(ServedModel, models)))
    return MeshView(ME, MESH, Role.NODE, peers=(PeerView(record, status),), clients=clients)


def test_member_that_went_is_remembered_with_its_name_models_and_time(home: Home) -> None:
    home.sightings.publish(view("m"))
    home.wall += 100
    home.sightings.publish(view(status=PeerStatus.LEFT))
    home.sightings.tick()
    home.restart()
    home.wall += 20
    assert home.remembered() == [("cellar", ("m",), 30.0)]


def test_member_that_stays_is_written_now_and_then_and_at_the_end(home: Home) -> None:
    home.sightings.publish(view("m"))
    home.sightings.tick()
    home.wall += WRITE_SECONDS / 2
    home.sightings.tick()
    assert home.restart().remembered(ME, lambda node: False, 0.0)[0].seen == -WRITE_SECONDS / 2
    home.sightings.publish(view("m"))
    home.wall += 5
    home.sightings.tick(last=True)
    home.restart()
    assert home.remembered(now=0.0) == [("cellar", ("m",), 0.0)]


def test_guests_expelled_and_long_gone_members_are_not_looked_for(home: Home) -> None:
    guest = KEY.certify(LAPTOP, GUEST_RIGHTS).certificate
    assert not guest.rights & Right.SERVE
    home.book.seen(guest, "laptop", home.wall)
    home.sightings.publish(view("m"))
    assert [name for name, _, _ in home.remembered()] == ["cellar"]
    assert home.sightings.remembered(ME, lambda node: node == CELLAR, 0.0) == ()
    assert home.sightings.remembered(CELLAR, lambda node: False, 0.0) == ()
    home.wall += REMEMBERED_SECONDS + 1
    assert home.remembered() == []


def test_models_of_a_member_are_bounded_and_a_client_says_its_name(home: Home) -> None:
    home.sightings.publish(view(*[f"m{number}" for number in range(50)]))
    assert len(home.remembered()[0][1]) == MAX_SERVED
    home.book.seen(KEY.certify(LAPTOP).certificate, "", home.wall)
    linked = view("m", clients=(ClientView(LAPTOP, "laptop", 0.0, 0.01), ClientView(ME, "stranger", 0.0, 0.01)))
    home.sightings.publish(replace(linked))
    assert home.book.members[LAPTOP.hex()].name == "laptop"
    assert ME.hex() not in home.book.members


def test_full_disk_costs_only_the_times(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    home.sightings.publish(view("m"))
    home.folder.joinpath("invites.json").mkdir()
    home.sightings.tick()
    assert "cannot be saved" in caplog.text
