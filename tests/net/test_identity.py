"""The node's key file, its certificate and its signatures."""

from __future__ import annotations

import datetime
import os
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from meshllm.core.records import NodeId
from meshllm.errors import DamagedState, PeerRefused
from meshllm.net import identity
from meshllm.net.identity import Identity, node_of_certificate, node_of_der, verify


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_identity_creates_the_key_once(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    first = Identity.load_or_create(home)
    second = Identity.load_or_create(home)
    assert first.node == second.node
    assert len(first.node) == 32
    assert first.certificate == second.certificate
    assert mode(home / "node-key") == 0o600
    assert [path.name for path in home.iterdir()] == ["node-key"]
    assert Identity.load_or_create(tmp_path / "other").node != first.node


def test_identity_restricts_the_mode_of_the_key_file(tmp_path: Path) -> None:
    node = Identity.load_or_create(tmp_path).node
    (tmp_path / "node-key").chmod(0o644)
    assert Identity.load_or_create(tmp_path).node == node
    assert mode(tmp_path / "node-key") == 0o600


@pytest.mark.parametrize(
    "content", [b"", b"rubbish", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_identity_reports_and_keeps_a_damaged_key(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "node-key"
    path.write_bytes(content)
    with pytest.raises(DamagedState) as caught:
        Identity.load_or_create(tmp_path)
    assert str(path) in caught.value.message
    assert "move the file away" in caught.value.advice
    assert path.read_bytes() == content


def test_identity_refuses_another_kind_of_key(tmp_path: Path) -> None:
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "node-key").write_bytes(pem)
    with pytest.raises(DamagedState, match="not an Ed25519 key"):
        Identity.load_or_create(tmp_path)


def test_identity_reports_an_unreadable_key(tmp_path: Path) -> None:
    (tmp_path / "node-key").mkdir()
    with pytest.raises(DamagedState, match="cannot be read"):
        Identity.load_or_create(tmp_path)


def test_concurrent_creation_yields_one_key(tmp_path: Path) -> None:
    start, found = threading.Barrier(8), []

    def load() -> None:
        start.wait(10)
        found.append(Identity.load_or_create(tmp_path).node)

    threads = [threading.Thread(target=load, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 8
    assert len(set(found)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["node-key"]


def test_identity_works_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", link)
    node = Identity.load_or_create(tmp_path).node
    assert mode(tmp_path / "node-key") == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["node-key"]
    assert Identity.load_or_create(tmp_path).node == node


def test_repr_and_errors_show_no_key(tmp_path: Path) -> None:
    own = Identity.load_or_create(tmp_path)
    secret = own.private_key.private_bytes_raw()
    for text in (repr(own), str(own)):
        assert own.node.hex()[:10] in text
        assert secret.hex() not in text
        assert "PRIVATE" not in text


def test_verify_accepts_only_the_nodes_signature(tmp_path: Path) -> None:
    own, other = Identity.load_or_create(tmp_path / "a"), Identity.load_or_create(tmp_path / "b")
    signature = own.sign(b"words")
    assert len(signature) == 64
    for _ in range(2):  # the second answer comes from the cache
        assert verify(own.node, b"words", signature)
        assert not verify(own.node, b"other words", signature)
        assert not verify(other.node, b"words", signature)
        assert not verify(own.node, b"words", signature[:-1] + bytes([signature[-1] ^ 1]))


def test_verify_caches_valid_signatures_within_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Identity.load_or_create(tmp_path)
    memory = identity._Signatures()
    monkeypatch.setattr(identity, "_REMEMBERED", 10)
    for number in range(25):
        data = bytes([number])
        assert memory.good(own.node, data, own.sign(data))
        assert not memory.good(own.node, data + b"!", own.sign(data))
        assert len(memory._good) <= 10


@given(st.binary(max_size=70), st.binary(max_size=40), st.binary(max_size=70))
def test_verify_refuses_garbage(node: bytes, data: bytes, signature: bytes) -> None:
    # The few keys of small order (0, 1 and so on) accept forged signatures; such a node harms only itself.
    if len(set(node)) > 2:
        assert not verify(NodeId(node), data, signature)


def test_certificate_has_the_node_key_and_never_expires(tmp_path: Path) -> None:
    own = Identity.load_or_create(tmp_path)
    assert node_of_certificate(own.certificate) == own.node
    assert node_of_der(own.certificate.public_bytes(serialization.Encoding.DER)) == own.node
    assert own.certificate.not_valid_before_utc.year == 1970
    assert own.certificate.not_valid_after_utc.year == 9999
    own.certificate.verify_directly_issued_by(own.certificate)


def test_node_of_certificate_refuses_other_keys() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(start).not_valid_after(start + datetime.timedelta(days=9))
    with pytest.raises(PeerRefused):
        node_of_certificate(builder.sign(key, hashes.SHA256()))
    for rubbish in (None, b"", b"rubbish"):
        with pytest.raises(PeerRefused):
            node_of_der(rubbish)


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> ssl.SSLObject:
    """TLS in memory; the client's side after the handshake."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [ours, theirs]
    for _ in range(10):
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                continue
    assert waiting == []
    return ours


def test_contexts_use_tls_1_3_with_the_nodes_certificate(tmp_path: Path) -> None:
    own, other = Identity.load_or_create(tmp_path / "a"), Identity.load_or_create(tmp_path / "b")
    ours = shake_hands(other.client_context(), own.server_context())
    assert ours.version() == "TLSv1.3"
    assert node_of_der(ours.getpeercert(binary_form=True)) == own.node


def test_contexts_refuse_older_tls(tmp_path: Path) -> None:
    own = Identity.load_or_create(tmp_path)
    old = own.client_context()
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        shake_hands(old, own.server_context())
