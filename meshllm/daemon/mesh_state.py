"""`mesh.json`: what a node knows of its mesh after a restart.

Invariants: the file is replaced as a whole, and only its owner can read it, because it may contain the private mesh
key. A damaged file is moved aside and reported, never overwritten. The private key is in no log, error or repr.
"""

from __future__ import annotations

import hmac
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
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from meshllm.core.membership.certificates import MAX_STATEMENTS, MESH_KEY_BYTES, MeshKey
from meshllm.core.records import MAX_NUMBER, MESH_ID_BYTES, BootstrapAddress, MeshId, PeerAddress
from meshllm.errors import DamagedState, EnvironmentFailure
from meshllm.util.atomic_file import replace_file
from meshllm.wire.mesh.certificates import CERTIFICATE_BYTES, STATEMENT_BYTES
from meshllm.wire.mesh.fields import MAX_PORT, pack_host

log = logging.getLogger(__name__)

FILE, PREVIOUS = "mesh.json", "mesh.previous.json"
VERSION = 2
# Of files of version 1, which had one secret for all members.
SECRET_BYTES = 16
PRIVATE_BYTES = 32
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
    key: MeshKey
    private: bytes = field(default=b"", repr=False)
    certificate: bytes = b""
    statements: tuple[bytes, ...] = ()
    previous: MeshKey | None = None
    upgraded: bool = False
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
                stored, old = _parse(text, path)
                state = cls(home, stored, UPGRADED if old else "", clock)
                if old:
                    state._write()
                    _forget_secrets(home)
                return state
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
    def key(self) -> MeshKey:
        """The public mesh key."""
        return self._stored.key

    @property
    def private(self) -> bytes:
        """The private mesh key, 32 bytes; empty at a node that may not admit others."""
        return self._stored.private

    @property
    def certificate(self) -> bytes:
        """This node's certificate; empty before it has one."""
        return self._stored.certificate

    @property
    def statements(self) -> tuple[bytes, ...]:
        """The statements of the mesh."""
        return self._stored.statements

    @property
    def previous(self) -> MeshKey | None:
        """The mesh key before the last rotation."""
        return self._stored.previous

    @property
    def upgraded(self) -> bool:
        """Whether the mesh key was derived from a shared secret of version 1, and was not rotated since."""
        return self._stored.upgraded

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

    def adopt(self, mesh: MeshId, key: MeshKey, private: bytes, certificate: bytes) -> None:
        """Switch to another mesh. The old one is kept in `mesh.previous.json`; its peers are forgotten."""
        if len(mesh) != MESH_ID_BYTES or len(key) != MESH_KEY_BYTES:
            raise ValueError("a mesh has an id of 16 bytes and a key of 32")
        changed = replace(self._stored, mesh=mesh, key=key, private=private, certificate=certificate)
        if key == self._stored.key:
            self._update(changed)
            return
        self._save(self._home / PREVIOUS, self._stored)
        self._update(replace(changed, statements=(), previous=None, peers=(), founded=False, upgraded=False))

    def save_certificate(self, certificate: bytes, private: bytes) -> None:
        """This node has a new certificate of the same key, and the private mesh key if it may admit."""
        self._update(replace(self._stored, certificate=certificate, private=private))

    def save_replacement(self, certificate: bytes, statement: bytes) -> None:
        """This node replaced its key: its certificate under the new id, and the statement that says so."""
        self._update(replace(self._stored, certificate=certificate, statements=(*self._stored.statements, statement)))

    def save_statements(self, key: MeshKey, statements: tuple[bytes, ...], previous: MeshKey | None) -> None:
        """The statements that count. With another key the private one is worthless and forgotten."""
        changed = replace(self._stored, key=key, statements=statements, previous=previous)
        if key != self._stored.key:
            changed = replace(changed, private=b"", upgraded=False)
        self._update(changed)

    def rotate(self, key: MeshKey, private: bytes, certificate: bytes, statements: tuple[bytes, ...]) -> None:
        """This node made a new mesh key."""
        kept = replace(self._stored, key=key, private=private, certificate=certificate, statements=statements)
        self._update(replace(kept, previous=self._stored.key, upgraded=False))

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


UPGRADED = (
    "This mesh was upgraded from a shared secret: a holder of any old invite can still join. "
    "Run 'mesh-llm rotate-key --mesh' once all your machines are upgraded."
)


def public_key(private: bytes) -> MeshKey:
    """The public half of a private mesh key."""
    return MeshKey(Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw())


def key_of_secret(secret: bytes) -> bytes:
    """The private mesh key that all members of a mesh of version 1 derive from its secret."""
    return hmac.digest(secret, b"mesh-llm/2 mesh key from secret", "sha256")


def _new_mesh() -> _StateFile:
    private = secrets.token_bytes(PRIVATE_BYTES)
    return _StateFile(MeshId(secrets.token_bytes(MESH_ID_BYTES)), public_key(private), private, founded=True)


def _forget_secrets(home: Path) -> None:
    """The file of the mesh before has a secret of version 1: nothing reads it any more."""
    (home / PREVIOUS).unlink(missing_ok=True)


def check(home: Path) -> str:
    """What a start will say of the file in `home`; "" if nothing. Creates nothing. Raises DamagedState as `open`."""
    path = home / FILE
    try:
        text = _read(path)
        if text is not None:
            _parse(text, path)
    except _Damaged as error:
        return f"{path} is damaged ({error})"
    return ""


def knows_others(home: Path) -> bool:
    """Whether the file in `home` lists peers; False if it cannot be read. Creates nothing."""
    found = _peek(home)
    return found is not None and bool(found.peers)


def saved_membership(home: Path) -> tuple[MeshId, tuple[MeshKey, ...], bytes] | None:
    """Mesh id, mesh keys and certificate in the file of `home`; None if it cannot be read. Creates nothing."""
    found = _peek(home)
    if found is None:
        return None
    return found.mesh, (found.key, *(() if found.previous is None else (found.previous,))), found.certificate


def _peek(home: Path) -> _StateFile | None:
    path = home / FILE
    try:
        text = _read(path)
        return _parse(text, path)[0] if text is not None else None
    except (_Damaged, DamagedState):
        return None  # `MeshState.open` reports it


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
        "key": stored.key.hex(),
        "private": stored.private.hex(),
        "certificate": stored.certificate.hex(),
        "statements": [data.hex() for data in stored.statements],
        "previous": stored.previous.hex() if stored.previous is not None else None,
        "upgraded": stored.upgraded,
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


class _OldFileSchema(BaseModel):
    """A file of version 1. The fields without which the mesh is lost must be valid; the others fall back to their
    defaults."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True, extra="ignore")

    mesh: Annotated[bytes, _from_hex(MESH_ID_BYTES)]
    secret: Annotated[bytes, _from_hex(SECRET_BYTES), Field(repr=False)]
    incarnation: Annotated[int, Field(ge=0, le=MAX_NUMBER)]
    port: Annotated[Port | None, WrapValidator(_or_none)] = None
    peers: Any = None
    founded: Any = False


class _FileSchema(BaseModel):
    """The file. An expulsion that is lost would let a node in again, so statements must be valid, too."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True, extra="ignore")

    mesh: Annotated[bytes, _from_hex(MESH_ID_BYTES)]
    key: Annotated[bytes, _from_hex(MESH_KEY_BYTES)]
    private: Annotated[bytes, _from_hex(0, PRIVATE_BYTES), Field(repr=False)] = b""
    certificate: Annotated[bytes, _from_hex(0, CERTIFICATE_BYTES)] = b""
    statements: Annotated[list[Annotated[bytes, _from_hex(STATEMENT_BYTES)]], Field(max_length=MAX_STATEMENTS + 1)] = []
    previous: Annotated[bytes, _from_hex(MESH_KEY_BYTES)] | None = None
    upgraded: Any = False
    incarnation: Annotated[int, Field(ge=0, le=MAX_NUMBER)]
    port: Annotated[Port | None, WrapValidator(_or_none)] = None
    peers: Any = None
    founded: Any = False


def _parse(text: str, path: Path) -> tuple[_StateFile, bool]:
    """The content, and whether the file is of version 1.

    Raises _Damaged for a file that no version writes, DamagedState for one of a newer version.
    """
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
        if version == 1:
            return _from_secret(_OldFileSchema.model_validate(content)), True
        found = _FileSchema.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise _Damaged(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if found.private and public_key(found.private) != found.key:
        raise _Damaged("the private mesh key is not that of the public one")
    return _StateFile(
        mesh=MeshId(found.mesh),
        key=MeshKey(found.key),
        private=found.private,
        certificate=found.certificate,
        statements=tuple(found.statements),
        previous=MeshKey(found.previous) if found.previous is not None else None,
        upgraded=found.upgraded is True,
        incarnation=found.incarnation,
        port=found.port,
        peers=_valid_peers(found.peers),
        founded=found.founded is True,
    ), False


def _from_secret(found: _OldFileSchema) -> _StateFile:
    """The upgrade of a file of version 1: all nodes of its mesh derive the same key."""
    private = key_of_secret(found.secret)
    return _StateFile(
        mesh=MeshId(found.mesh),
        key=public_key(private),
        private=private,
        upgraded=True,
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
