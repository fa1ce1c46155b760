"""Who this node is: one Ed25519 key, whose public half is the node id.

Law: the key is made once, lies in one file that only its owner may read, and is never overwritten, copied, logged or
shown. Whoever connects to a node compares the key of its certificate with the node id; nothing else of a certificate
means anything (it is self-signed, names nobody and never expires, so that no clock can lock a node out).
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
from meshllm.util.atomic_file import create_file

KEY_FILE = "node-key"
SIGNATURE_BYTES = 64
# An Ed25519 key in PEM is 119 bytes; whatever is longer is no key of ours.
_MAX_KEY_FILE_BYTES = 4096
# Signatures found good are remembered by their digest (32 bytes each), because the same record comes from several
# peers at once; a check costs a hundred times the digest.
_REMEMBERED = 4096
# "No well-defined expiration" (RFC 5280, 4.1.2.5); the start lies before every clock.
_NOT_BEFORE = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_NOT_AFTER = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)


class Identity:
    """A node's key and what follows from it. `node` is the public half, 32 bytes."""

    def __init__(self, private_key: Ed25519PrivateKey, key_path: Path) -> None:
        self.private_key = private_key
        self.node = NodeId(private_key.public_key().public_bytes_raw())
        self.certificate = _certificate(private_key)
        self._key_path = key_path

    @classmethod
    def load_or_create(cls, home: Path) -> Identity:
        """The key in `home`, made at the first call; safe when two processes call at once.

        Raises DamagedState if there is a file that is not such a key: it is never overwritten.
        """
        path = home / KEY_FILE
        if not path.exists():
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            _create(path)
        return cls(_load(path), path)

    def sign(self, data: bytes) -> bytes:
        """64 bytes; the same for the same data."""
        return self.private_key.sign(data)

    def server_context(self) -> ssl.SSLContext:
        """For accepting: TLS 1.3 only, with this node's certificate. Reads the key file."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0  # nobody resumes: the ticket that counts is agreed over the link
        # OpenSSL's Python face takes files only. The certificate is public; the key is read from where it lies.
        with tempfile.NamedTemporaryFile(suffix=".pem") as file:
            file.write(self.certificate.public_bytes(serialization.Encoding.PEM))
            file.flush()
            context.load_cert_chain(file.name, self._key_path)
        return context

    def client_context(self) -> ssl.SSLContext:
        """For dialling: TLS 1.3 only. It checks that the peer owns its certificate's key, *not* whose key that is:
        the dialler must compare `node_of_der(...)` with the id it wants before it sends anything."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context

    def __repr__(self) -> str:
        return f"<Identity {short(self.node)}>"


def verify(node: NodeId, data: bytes, signature: bytes) -> bool:
    """Whether `node` signed `data`. Never raises, whatever the bytes."""
    return _signatures.good(node, data, signature)


def node_of_certificate(certificate: x509.Certificate) -> NodeId:
    """The node a certificate speaks for. Raises PeerRefused if its key is not an Ed25519 key."""
    try:
        key = certificate.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise PeerRefused("The peer's certificate is not that of a node.")
    return NodeId(key.public_bytes_raw())


def node_of_der(certificate: bytes | None) -> NodeId:
    """The same, for a certificate as `ssl` gives it. Raises PeerRefused."""
    try:
        parsed = x509.load_der_x509_certificate(certificate or b"")
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise PeerRefused("The peer has no certificate that can be read.") from None
    return node_of_certificate(parsed)


class _Signatures:
    """Checks signatures, and remembers the last good ones. What is bad is not remembered: it would cost others."""

    def __init__(self) -> None:
        self._good: dict[bytes, None] = {}

    def good(self, node: NodeId, data: bytes, signature: bytes) -> bool:
        if len(node) != 32 or len(signature) != SIGNATURE_BYTES:
            return False
        # Two parts of fixed length come first, so that no two triples have the same digest.
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
    """Self-signed; the same bytes for the same key."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mesh-llm")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(_NOT_BEFORE).not_valid_after(_NOT_AFTER)
    return builder.sign(key, None)


def _create(path: Path) -> None:
    """A new key at `path`, whole or not at all; whoever comes second leaves the first one's key alone."""
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    create_file(path, pem)


def _load(path: Path) -> Ed25519PrivateKey:
    """Read the key and see to its permissions. Raises DamagedState."""
    advice = (
        f"Put back a copy of {path} if there is one; if not, move the file away and start again: the node then has a "
        "new identity and must be invited again."
    )
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                os.fchmod(file.fileno(), 0o600)
            pem = file.read(_MAX_KEY_FILE_BYTES)
    except OSError as error:
        words = f"The node's key {path} cannot be read: {error.strerror}."
        raise DamagedState(words, advice="Make it readable for this user, and for no one else.") from error
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The cause could quote the file: it is left out.
        raise DamagedState(f"The node's key {path} is damaged.", advice=advice) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise DamagedState(f"The node's key {path} is not an Ed25519 key.", advice=advice)
    return key
