"""What a node keeps of its mesh over a restart: `mesh.json` in its home.

Law: one object writes the file, and always the whole of it: a new file, on the disk, then put in the old one's place.
It is for its owner's eyes only, because the mesh secret stands in it. A file that cannot be understood is moved aside
and spoken of, never overwritten; the secret is in no log, error or repr.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from meshllm.core.records import MAX_NUMBER, MESH_ID_BYTES, BootstrapAddress, MeshId, PeerAddress
from meshllm.errors import DamagedState, EnvironmentFailure
from meshllm.util.atomic_file import replace_file
from meshllm.wire.mesh.fields import MAX_PORT, pack_host

log = logging.getLogger(__name__)

FILE, PREVIOUS = "mesh.json", "mesh.previous.json"
VERSION = 1
SECRET_BYTES = 16
PIN_LENGTHS = (16, 32)
# Some of 64 peers answer after any outage short of the end of the mesh; each takes about 200 bytes.
MAX_PEERS = 64
MAX_PEER_ADDRESSES = 8
# 64 peers with 8 addresses each are 40 KB; whatever is far longer is no file of ours.
MAX_FILE_BYTES = 1 << 20


class _Damaged(Exception):
    """The file is not what `_Kept` makes; the words say in what way, without quoting it."""


@dataclass(frozen=True, slots=True)
class _StateFile:
    """The file's content."""

    mesh: MeshId
    secret: bytes = field(repr=False)
    incarnation: int = 0
    port: int | None = None
    peers: tuple[BootstrapAddress, ...] = ()
    founded: bool = False


class MeshState:
    """The owner of `mesh.json`. Saving blocks until the disk has it; not to be used from two threads at once.

    `notice` says what a person should know about the file as it was found ("" if nothing).
    """

    def __init__(self, home: Path, kept: _StateFile, notice: str, clock: Callable[[], float]) -> None:
        """Not to be called: see `open`."""
        self._home = home
        self._kept = kept
        self._clock = clock
        self.notice = notice

    @classmethod
    def open(cls, home: Path, clock: Callable[[], float] | None = None) -> MeshState:
        """What `home` holds; if nothing, a mesh of one is founded and saved. `clock` gives unix seconds.

        Raises DamagedState if the file cannot be read at all or is of a newer version, EnvironmentFailure if none can
        be written.
        """
        clock = clock or (lambda: datetime.now(UTC).timestamp())
        path = home / FILE
        try:
            text = _read(path)
            if text is not None:
                return cls(home, _parse(text, path), "", clock)
            notice = ""
        except _Damaged as error:
            aside = _move_aside(path)
            notice = (
                f"{path} is damaged ({error}) and was moved to {aside.name}. This node has founded a new mesh: "
                "to be in its old one again, it must be invited anew."
            )
            log.warning("%s", notice)
        state = cls(home, _founded(), notice, clock)
        state._write()
        return state

    @property
    def mesh(self) -> MeshId:
        """The mesh this node belongs to."""
        return self._kept.mesh

    @property
    def secret(self) -> bytes:
        """The mesh secret, 16 bytes."""
        return self._kept.secret

    @property
    def founded(self) -> bool:
        """Whether the mesh was founded by this node; False where an older version wrote the file, which did not say."""
        return self._kept.founded

    @property
    def incarnation(self) -> int:
        """The last one saved."""
        return self._kept.incarnation

    @property
    def peers(self) -> tuple[BootstrapAddress, ...]:
        """Who was last known, best first."""
        return self._kept.peers

    @property
    def port(self) -> int | None:
        """The UDP port last used."""
        return self._kept.port

    def next_incarnation(self) -> int:
        """The incarnation of this start: above all earlier ones, and saved.

        It is at least the wall clock in seconds, so that a node whose file was lost is not taken for its former self:
        what others remember of that one would be newer than all that this one says.
        """
        self.save_incarnation(max(self._kept.incarnation + 1, int(self._clock())))
        return self._kept.incarnation

    def save_incarnation(self, incarnation: int) -> None:
        """Keep it; a lower one than is kept already changes nothing."""
        if incarnation > self._kept.incarnation:
            self._keep(replace(self._kept, incarnation=min(incarnation, MAX_NUMBER)))

    def save_peers(self, ways: tuple[BootstrapAddress, ...]) -> None:
        """Keep the first 64 of them, in place of those from before."""
        cut = [BootstrapAddress(way.pin, way.addresses[:MAX_PEER_ADDRESSES]) for way in ways[:MAX_PEERS]]
        self._keep(replace(self._kept, peers=tuple(cut)))

    def save_mesh(self, mesh: MeshId) -> None:
        """This mesh has another id now (same secret, same people)."""
        self._keep(replace(self._kept, mesh=mesh))

    def save_port(self, port: int) -> None:
        """Keep the UDP port, so that the next start can be found where this one was."""
        self._keep(replace(self._kept, port=port))

    def adopt(self, mesh: MeshId, secret: bytes) -> None:
        """Belong to another mesh from now on. The old one is kept in `mesh.previous.json`, its peers are forgotten."""
        if len(mesh) != MESH_ID_BYTES or len(secret) != SECRET_BYTES:
            raise ValueError("a mesh has an id and a secret of 16 bytes each")
        if secret == self._kept.secret:
            self.save_mesh(mesh)
            return
        self._save(self._home / PREVIOUS, self._kept)
        self._keep(replace(self._kept, mesh=mesh, secret=secret, peers=(), founded=False))

    def _keep(self, kept: _StateFile) -> None:
        if kept != self._kept:
            self._save(self._home / FILE, kept)
            self._kept = kept  # only now: what cannot be saved is not believed either

    def _write(self) -> None:
        self._save(self._home / FILE, self._kept)

    def _save(self, path: Path, kept: _StateFile) -> None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(path, _format(kept), mode=0o600, durable=True)
        except OSError as error:
            raise EnvironmentFailure(
                f"{path} cannot be written: {error.strerror or error}.",
                advice="Make room, or make its directory writable for this user.",
            ) from error

    def __repr__(self) -> str:
        return f"<MeshState {self.mesh.hex()[:8]}, incarnation {self.incarnation}, {len(self.peers)} peers>"


def _founded() -> _StateFile:
    return _StateFile(MeshId(secrets.token_bytes(MESH_ID_BYTES)), secrets.token_bytes(SECRET_BYTES), founded=True)


def knows_others(home: Path) -> bool:
    """Whether the node of `home` has been in a mesh with others, as far as its file can be read; makes none."""
    path = home / FILE
    try:
        text = _read(path)
        return text is not None and bool(_parse(text, path).peers)
    except (_Damaged, DamagedState):
        return False  # it is spoken of when the mesh is looked for


# -- the file


def _read(path: Path) -> str | None:
    """The file's text, None if there is none. Others' access to it is taken away. Raises DamagedState, _Damaged."""
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                os.fchmod(file.fileno(), 0o600)
                log.warning("%s could be read by others; it cannot any more.", path)
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedState(
            f"{path} cannot be read: {error.strerror or error}.",
            advice="It says which mesh this node belongs to. Make it a file that this user, and no one else, can read.",
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise _Damaged("it is too long")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise _Damaged("it is not text") from None


def _move_aside(path: Path) -> Path:
    """Give the file another name, one that is free."""
    for count in itertools.count(1):
        aside = path.with_name(f"mesh.damaged-{count}.json")
        if not aside.exists():
            break
    try:
        path.replace(aside)
    except OSError as error:
        raise DamagedState(
            f"{path} is damaged, and cannot be moved away: {error.strerror or error}.", advice="Move it away yourself."
        ) from error
    return aside


def _format(kept: _StateFile) -> str:
    peers = [{"node": way.pin.hex(), "addresses": [[a.host, a.port] for a in way.addresses]} for way in kept.peers]
    told = {
        "version": VERSION,
        "mesh": kept.mesh.hex(),
        "secret": kept.secret.hex(),
        "incarnation": kept.incarnation,
        "port": kept.port,
        "peers": peers,
        "founded": kept.founded,
    }
    return json.dumps(told, indent=1) + "\n"


def _parse(text: str, path: Path) -> _StateFile:
    """Raises _Damaged for what was never written by us, DamagedState for what a newer version wrote."""
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        raise _Damaged("it is not JSON") from None
    if not isinstance(told, dict):
        raise _Damaged("it is not an object")
    version = told.get("version")
    if type(version) is int and version > VERSION:
        raise DamagedState(
            f"{path} was written by a newer mesh-llm.", advice="Update this one, or give it a MESH_LLM_HOME of its own."
        )
    incarnation, port = told.get("incarnation"), told.get("port")
    if type(incarnation) is not int or not 0 <= incarnation <= MAX_NUMBER:
        raise _Damaged("its incarnation is no number")
    return _StateFile(
        mesh=MeshId(_hex(told.get("mesh"), (MESH_ID_BYTES,), "mesh id")),
        secret=_hex(told.get("secret"), (SECRET_BYTES,), "secret"),
        incarnation=incarnation,
        port=port if type(port) is int and 1 <= port <= MAX_PORT else None,
        peers=_peers(told.get("peers")),
        founded=told.get("founded") is True,
    )


def _hex(value: Any, lengths: tuple[int, ...], what: str) -> bytes:
    try:
        found = bytes.fromhex(value)
    except (TypeError, ValueError):
        found = b""
    if len(found) not in lengths:
        raise _Damaged(f"its {what} is wrong") from None
    return found


def _peers(told: Any) -> tuple[BootstrapAddress, ...]:
    """The peers that make sense. One that does not is no loss worth a mesh."""
    found = []
    for entry in told[:MAX_PEERS] if isinstance(told, list) else ():
        try:
            pin = _hex(entry["node"], PIN_LENGTHS, "peer")
            addresses = [
                PeerAddress(host, port)
                for host, port in entry["addresses"][:MAX_PEER_ADDRESSES]
                if isinstance(host, str) and pack_host(host) and type(port) is int and 1 <= port <= MAX_PORT
            ]
        except (_Damaged, TypeError, ValueError, KeyError):
            continue
        if addresses:
            found.append(BootstrapAddress(pin, tuple(addresses)))
    return tuple(found)
