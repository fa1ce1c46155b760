"""The node's identity: an Ed25519 key; the public key is the node id.

Invariants: a key is stored in one file with mode 0600, and never copied, logged or shown. It is replaced only by a key
that was on the disk before the mesh knew of it (`load_next`, `take_next`), so that a crash leaves one of the two.
Certificates are self-signed and never expire; only their key is checked, against the node id.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import ssl
import stat
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from meshllm.core.records import NodeId, short
from meshllm.errors import DamagedState, PeerRefused
from meshllm.util.atomic_file import create_file, move_file

KEY_FILE, NEXT_KEY_FILE = "node-key", "node-key.next"
SIGNATURE_BYTES = 64
# An Ed25519 key in PEM has 119 bytes; a longer file is not one.
_MAX_KEY_FILE_BYTES = 4096
# Valid signatures are cached by digest (32 bytes each): the same record comes from several peers at once, and a check
# costs a hundred times as much as the digest.
_REMEMBERED = 4096
# "No well-defined expiration" (RFC 5280, 4.1.2.5); valid since the epoch, so that a wrong clock locks no node out.
_NOT_BEFORE = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_NOT_AFTER = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)


class Identity:
    """A node's key pair and certificate. `node`: the public key, 32 bytes."""

    def __init__(self, private_key: Ed25519PrivateKey, key_path: Path) -> None:
        self.private_key = private_key
        self.node = NodeId(private_key.public_key().public_bytes_raw())
        self.certificate = _certificate(private_key)
        self._key_path = key_path

    @classmethod
    def load_or_create(cls, home: Path) -> Identity:
        """Load the key in `home`, or create it; safe if two processes call at once.

        Raises DamagedState if the file is not such a key; the file is left unchanged.
        """
        path = home / KEY_FILE
        if not path.exists():
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            _create(path)
        return cls(_load(path), path)

    @classmethod
    def load_next(cls, home: Path, *, create: bool = False) -> Identity | None:
        """The key that may replace the node's, or None; with `create` it is made. Raises DamagedState, OSError."""
        path = home / NEXT_KEY_FILE
        if not path.exists():
            if not create:
                return None
            _create(path)
        return cls(_load(path), path)

    @classmethod
    def take_next(cls, home: Path) -> Identity:
        """The next key becomes the node's. Raises OSError; then nothing has changed."""
        move_file(home / NEXT_KEY_FILE, home / KEY_FILE)
        return cls.load_or_create(home)

    def sign(self, data: bytes) -> bytes:
        """The signature of `data`: 64 bytes, deterministic."""
        return self.private_key.sign(data)

    def server_context(self) -> ssl.SSLContext:
        """TLS 1.3 context for accepting, with this node's certificate. Reads the key file."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0  # no session resumption: a lane is authorised by its own ticket
        # Python's ssl reads certificates and keys from files only. The certificate is public; the key is read from its
        # own file.
        with tempfile.NamedTemporaryFile(prefix=".certificate-", suffix=".pem", dir=self._key_path.parent) as file:
            file.write(self.certificate.public_bytes(serialization.Encoding.PEM))
            file.flush()
            context.load_cert_chain(file.name, self._key_path)
        return context

    def client_context(self) -> ssl.SSLContext:
        """TLS 1.3 context for dialling. It does not check whose certificate the peer has: compare `node_of_der(...)`
        with the wanted node id before sending anything."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context

    def __repr__(self) -> str:
        return f"<Identity {short(self.node)}>"


def verify(node: NodeId, data: bytes, signature: bytes) -> bool:
    """Whether `signature` is `node`'s over `data`. Never raises."""
    return _signatures.good(node, data, signature)


def node_of_certificate(certificate: x509.Certificate) -> NodeId:
    """The node id in a certificate. Raises PeerRefused if the key is not Ed25519."""
    try:
        key = certificate.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise PeerRefused("The peer's certificate has no Ed25519 key.")
    return NodeId(key.public_bytes_raw())


def node_of_der(certificate: bytes | None) -> NodeId:
    """The node id in a DER certificate (as `ssl` returns it). Raises PeerRefused."""
    try:
        parsed = x509.load_der_x509_certificate(certificate or b"")
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise PeerRefused("The peer has no valid certificate.") from None
    return node_of_certificate(parsed)


class _Signatures:
    """Checks signatures and caches the valid ones; a flood of invalid ones cannot displace them."""

    def __init__(self) -> None:
        self._good: dict[bytes, None] = {}

    def good(self, node: NodeId, data: bytes, signature: bytes) -> bool:
        if len(node) != 32 or len(signature) != SIGNATURE_BYTES:
            return False
        # The first two parts have fixed lengths: different triples give different inputs.
        digest = hashlib.sha256(node + signature + data).digest()
        if digest in self._good:
            return True
        try:
            Ed25519PublicKey.from_public_bytes(node).verify(signature, data)
        except (InvalidSignature, ValueError):
            return False
        if len(self._good) >= _REMEMBERED:
            self._good.clear()
        self._good[digest] = None
        return True


_signatures = _Signatures()


def _certificate(key: Ed25519PrivateKey) -> x509.Certificate:
    """A self-signed certificate; the same bytes for the same key. Its name says nothing about the program."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(_NOT_BEFORE).not_valid_after(_NOT_AFTER)
    return builder.sign(key, None)


def _create(path: Path) -> None:
    """Create the key file atomically; an existing file is kept."""
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    create_file(path, pem)


def _load(path: Path) -> Ed25519PrivateKey:
    """Read the key and restrict the file's mode to 0600. Raises DamagedState."""
    advice = (
        f"Restore {path} from a backup, or move the file away and start again: the node then has a "
        "new identity and must be invited again."
    )
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                os.fchmod(file.fileno(), 0o600)
            pem = file.read(_MAX_KEY_FILE_BYTES)
    except OSError as error:
        message = f"The node's key {path} cannot be read: {error.strerror}."
        raise DamagedState(message, advice="Make it readable for this user only: chmod 600.") from error
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The cause may quote the file: drop it.
        raise DamagedState(f"The node's key {path} is damaged.", advice=advice) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise DamagedState(f"The node's key {path} is not an Ed25519 key.", advice=advice)
    return key
