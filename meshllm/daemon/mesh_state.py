"""`mesh.json`: what a node knows of its mesh after a restart.

Invariants: the file is replaced as a whole, and only its owner can read it, because it contains the mesh secret. A
damaged file is moved aside and reported, never overwritten. The secret is in no log, error or repr.
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
from typing import Annotated, Any

import pydantic_core
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from meshllm.core.records import MAX_NUMBER, MESH_ID_BYTES, BootstrapAddress, MeshId, PeerAddress
from meshllm.errors import DamagedState, EnvironmentFailure
from meshllm.util.atomic_file import replace_file
from meshllm.wire.mesh.fields import MAX_PORT, pack_host

log = logging.getLogger(__name__)

FILE, PREVIOUS = "mesh.json", "mesh.previous.json"
VERSION = 1
SECRET_BYTES = 16
PIN_LENGTHS = (16, 32)
# Some of 64 peers answer after nearly any outage; each takes about 200 bytes.
MAX_PEERS = 64
MAX_PEER_ADDRESSES = 8
# 64 peers with 8 addresses each are 40 KB; a file that is far longer is damaged.
MAX_FILE_BYTES = 1 << 20


class _Damaged(Exception):
    """The file is damaged; the message says how, without quoting the file."""


@dataclass(frozen=True, slots=True)
class _StateFile:
    """The content of the file, checked."""

    mesh: MeshId
    secret: bytes = field(repr=False)
    incarnation: int = 0
    port: int | None = None
    peers: tuple[BootstrapAddress, ...] = ()
    founded: bool = False


class MeshState:
    """The owner of `mesh.json`. Saving blocks until the disk has the file; not thread-safe.

    `notice`: what the user should know about the file as it was found ("" if nothing).
    """

    def __init__(self, home: Path, stored: _StateFile, notice: str, clock: Callable[[], float]) -> None:
        """Use `open`."""
        self._home = home
        self._stored = stored
        self._clock = clock
        self.notice = notice

    @classmethod
    def open(cls, home: Path, clock: Callable[[], float] | None = None) -> MeshState:
        """Read the file in `home`; without one, create a new mesh and save it. `clock` returns unix seconds.

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
                f"{path} is damaged ({error}) and was moved to {aside.name}. This node now has a new mesh. "
                "To join the old mesh again, start it with --join and an invite."
            )
            log.warning("%s", notice)
        state = cls(home, _new_mesh(), notice, clock)
        state._write()
        return state

    @property
    def mesh(self) -> MeshId:
        """The mesh this node belongs to."""
        return self._stored.mesh

    @property
    def secret(self) -> bytes:
        """The mesh secret, 16 bytes."""
        return self._stored.secret

    @property
    def founded(self) -> bool:
        """Whether this node created the mesh; False in a file of an older version, which does not tell."""
        return self._stored.founded

    @property
    def incarnation(self) -> int:
        """The last saved incarnation."""
        return self._stored.incarnation

    @property
    def peers(self) -> tuple[BootstrapAddress, ...]:
        """The peers to look for, best first."""
        return self._stored.peers

    @property
    def port(self) -> int | None:
        """The last UDP port."""
        return self._stored.port

    def next_incarnation(self) -> int:
        """The incarnation of this start: higher than all earlier ones, and saved.

        It is at least the wall clock in seconds: if the file was lost, the records that other nodes remember must not
        be newer than those of this start.
        """
        self.save_incarnation(max(self._stored.incarnation + 1, int(self._clock())))
        return self._stored.incarnation

    def save_incarnation(self, incarnation: int) -> None:
        """Save a higher incarnation; a lower one is ignored."""
        if incarnation > self._stored.incarnation:
            self._update(replace(self._stored, incarnation=min(incarnation, MAX_NUMBER)))

    def save_peers(self, peers: tuple[BootstrapAddress, ...]) -> None:
        """Replace the saved peers by the first 64 of these."""
        cut = [BootstrapAddress(peer.pin, peer.addresses[:MAX_PEER_ADDRESSES]) for peer in peers[:MAX_PEERS]]
        self._update(replace(self._stored, peers=tuple(cut)))

    def save_mesh(self, mesh: MeshId) -> None:
        """The mesh has another id now (same secret)."""
        self._update(replace(self._stored, mesh=mesh))

    def save_port(self, port: int) -> None:
        """Save the UDP port, so that peers find the next start at the same address."""
        self._update(replace(self._stored, port=port))

    def adopt(self, mesh: MeshId, secret: bytes) -> None:
        """Switch to another mesh. The old one is kept in `mesh.previous.json`; its peers are forgotten."""
        if len(mesh) != MESH_ID_BYTES or len(secret) != SECRET_BYTES:
            raise ValueError("a mesh has an id and a secret of 16 bytes each")
        if secret == self._stored.secret:
            self.save_mesh(mesh)
            return
        self._save(self._home / PREVIOUS, self._stored)
        self._update(replace(self._stored, mesh=mesh, secret=secret, peers=(), founded=False))

    def _update(self, stored: _StateFile) -> None:
        if stored != self._stored:
            self._save(self._home / FILE, stored)
            self._stored = stored  # only once it is on the disk

    def _write(self) -> None:
        self._save(self._home / FILE, self._stored)

    def _save(self, path: Path, stored: _StateFile) -> None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(path, _format(stored), mode=0o600, durable=True)
        except OSError as error:
            raise EnvironmentFailure(
                f"{path} cannot be written: {error.strerror or error}.",
                advice="Free disk space, or make its directory writable for this user.",
            ) from error

    def __repr__(self) -> str:
        return f"<MeshState {self.mesh.hex()[:8]}, incarnation {self.incarnation}, {len(self.peers)} peers>"


def _new_mesh() -> _StateFile:
    return _StateFile(MeshId(secrets.token_bytes(MESH_ID_BYTES)), secrets.token_bytes(SECRET_BYTES), founded=True)


def knows_others(home: Path) -> bool:
    """Whether the file in `home` lists peers; False if it cannot be read. Creates nothing."""
    path = home / FILE
    try:
        text = _read(path)
        return text is not None and bool(_parse(text, path).peers)
    except (_Damaged, DamagedState):
        return False  # `MeshState.open` reports it


# -- the file


def _read(path: Path) -> str | None:
    """The text of the file, None without a file. Removes access of other users. Raises DamagedState, _Damaged."""
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                os.fchmod(file.fileno(), 0o600)
                log.warning("%s was readable by other users; its permissions are now 0600.", path)
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedState(
            f"{path} cannot be read: {error.strerror or error}.",
            advice="Make it a regular file that only this user can read.",
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise _Damaged(f"it is longer than {MAX_FILE_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise _Damaged("it is not UTF-8 text") from None


def _move_aside(path: Path) -> Path:
    """Rename the file to a free name."""
    for count in itertools.count(1):
        aside = path.with_name(f"mesh.damaged-{count}.json")
        if not aside.exists():
            break
    try:
        path.replace(aside)
    except OSError as error:
        raise DamagedState(
            f"{path} is damaged and cannot be renamed: {error.strerror or error}.", advice="Rename or delete it."
        ) from error
    return aside


def _format(stored: _StateFile) -> str:
    peers = [{"node": peer.pin.hex(), "addresses": [[a.host, a.port] for a in peer.addresses]} for peer in stored.peers]
    content = {
        "version": VERSION,
        "mesh": stored.mesh.hex(),
        "secret": stored.secret.hex(),
        "incarnation": stored.incarnation,
        "port": stored.port,
        "peers": peers,
        "founded": stored.founded,
    }
    return json.dumps(content, indent=1) + "\n"


def _from_hex(*lengths: int) -> BeforeValidator:
    def convert(value: Any) -> bytes:
        try:
            found = bytes.fromhex(value)
        except (TypeError, ValueError):
            found = b""
        if len(found) not in lengths:
            raise ValueError(f"should be {' or '.join(map(str, lengths))} bytes in hexadecimal")
        return found

    return BeforeValidator(convert)


def _or_none(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """An invalid optional value counts as missing."""
    try:
        return validate(value)
    except ValidationError:
        return None


Port = Annotated[int, Field(ge=1, le=MAX_PORT)]


class _PeerEntry(BaseModel):
    """One peer in the file. Its addresses are checked one by one."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True)

    node: Annotated[bytes, _from_hex(*PIN_LENGTHS)]
    addresses: list[Any]


class _AddressEntry(BaseModel):
    """One address of a peer."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True)

    host: str
    port: Port


class _FileSchema(BaseModel):
    """The file. The fields without which the mesh is lost must be valid; the others fall back to their defaults."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True, extra="ignore")

    mesh: Annotated[bytes, _from_hex(MESH_ID_BYTES)]
    secret: Annotated[bytes, _from_hex(SECRET_BYTES), Field(repr=False)]
    incarnation: Annotated[int, Field(ge=0, le=MAX_NUMBER)]
    port: Annotated[Port | None, WrapValidator(_or_none)] = None
    peers: Any = None
    founded: Any = False


def _parse(text: str, path: Path) -> _StateFile:
    """Raises _Damaged for a file that no version writes, DamagedState for one of a newer version."""
    try:
        content = pydantic_core.from_json(text)
    except ValueError:
        raise _Damaged("it is not JSON") from None
    if not isinstance(content, dict):
        raise _Damaged("it is not a JSON object")
    version = content.get("version")
    if type(version) is int and version > VERSION:
        raise DamagedState(
            f"{path} was written by a newer mesh-llm.",
            advice="Update mesh-llm, or set MESH_LLM_HOME to another folder.",
        )
    try:
        found = _FileSchema.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise _Damaged(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return _StateFile(
        mesh=MeshId(found.mesh),
        secret=found.secret,
        incarnation=found.incarnation,
        port=found.port,
        peers=_valid_peers(found.peers),
        founded=found.founded is True,
    )


def _valid_peers(entries: Any) -> tuple[BootstrapAddress, ...]:
    """The valid peers with their valid addresses. An invalid one is left out: it must not cost the mesh."""
    found = []
    for entry in entries[:MAX_PEERS] if isinstance(entries, list) else ():
        try:
            peer = _PeerEntry.model_validate(entry)
        except ValidationError:
            continue
        addresses = [_valid_address(value) for value in peer.addresses[:MAX_PEER_ADDRESSES]]
        valid = tuple([address for address in addresses if address is not None])
        if valid:
            found.append(BootstrapAddress(peer.node, valid))
    return tuple(found)


def _valid_address(value: Any) -> PeerAddress | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    try:
        entry = _AddressEntry.model_validate({"host": value[0], "port": value[1]})
    except ValidationError:
        return None
    return PeerAddress(entry.host, entry.port) if pack_host(entry.host) else None
