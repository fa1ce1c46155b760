"""Certificates and statements: one encoding, and no bytes pass that the mesh key did not sign."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from meshllm.core.membership.certificates import (
    ALL_RIGHTS,
    GUEST_RIGHTS,
    Certificate,
    MeshKey,
    Right,
    SignedStatement,
    Statement,
    StatementKind,
    is_owner,
)
from meshllm.core.records import NodeId
from meshllm.errors import BadMessage
from meshllm.net.identity import verify
from meshllm.wire.mesh.certificates import (
    CERTIFICATE_BYTES,
    STATEMENT_BYTES,
    read_certificate,
    read_statement,
    sign_certificate,
    sign_statement,
)

MESH = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEY = MeshKey(MESH.public_key().public_bytes_raw())
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
OTHER_KEY = MeshKey(OTHER.public_key().public_bytes_raw())
NODE, INVITER = NodeId(b"n" * 32), NodeId(b"i" * 32)
GUEST = Certificate(NODE, GUEST_RIGHTS, 100, 200, b"serial 8", INVITER, b"invite 8")

u32 = st.integers(0, (1 << 32) - 1)
certificates = st.builds(
    Certificate,
    node=st.binary(min_size=32, max_size=32).map(NodeId),
    rights=st.integers(0, int(ALL_RIGHTS)).map(Right),
    issued=u32,
    expires=u32,
    serial=st.binary(min_size=8, max_size=8),
    inviter=st.binary(min_size=32, max_size=32).map(NodeId),
    invite=st.binary(min_size=8, max_size=8),
)


@given(certificates)
def test_a_certificate_comes_back_as_it_was_signed(certificate: Certificate) -> None:
    signed = sign_certificate(certificate, KEY, MESH.sign)
    assert len(signed.data) == CERTIFICATE_BYTES
    assert read_certificate(signed.data, [OTHER_KEY, KEY], verify) == signed


@given(st.integers(0, CERTIFICATE_BYTES * 8 - 1))
def test_no_bit_of_a_certificate_can_be_changed(bit: int) -> None:
    data = bytearray(sign_certificate(GUEST, KEY, MESH.sign).data)
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadMessage):
        read_certificate(bytes(data), [KEY], verify)


def test_a_certificate_of_another_mesh_is_refused() -> None:
    with pytest.raises(BadMessage, match="not signed by the mesh key"):
        read_certificate(sign_certificate(GUEST, OTHER_KEY, OTHER.sign).data, [KEY], verify)
    # The right tag does not help without the right signature.
    with pytest.raises(BadMessage, match="not signed by the mesh key"):
        read_certificate(sign_certificate(GUEST, KEY, OTHER.sign).data, [KEY], verify)


@pytest.mark.parametrize(
    ("kind", "subject"),
    [(StatementKind.EXPEL, b"n" * 32), (StatementKind.REVOKE_INVITE, b"invite 8"), (StatementKind.NEW_KEY, OTHER_KEY)],
)
def test_a_statement_comes_back_and_no_byte_of_it_can_be_changed(kind: StatementKind, subject: bytes) -> None:
    signed = sign_statement(Statement(kind, subject, 7, INVITER), KEY, MESH.sign)
    assert len(signed.data) == STATEMENT_BYTES
    assert read_statement(signed.data, [KEY], verify) == signed
    for at in range(STATEMENT_BYTES):
        data = bytearray(signed.data)
        data[at] ^= 0x10
        with pytest.raises(BadMessage):
            read_statement(bytes(data), [KEY], verify)


def test_a_subject_of_a_wrong_length_is_not_signed() -> None:
    with pytest.raises(ValueError, match="wrong length"):
        sign_statement(Statement(StatementKind.REVOKE_INVITE, b"n" * 32, 7, INVITER), KEY, MESH.sign)


@given(st.binary(max_size=2 * STATEMENT_BYTES))
def test_any_bytes_are_refused(data: bytes) -> None:
    for read in (read_certificate, read_statement):
        with pytest.raises(BadMessage):
            read(data, [KEY], verify)


def test_a_statement_is_no_certificate() -> None:
    signed: SignedStatement = sign_statement(Statement(StatementKind.EXPEL, NODE, 7, INVITER), KEY, MESH.sign)
    with pytest.raises(BadMessage):
        read_certificate(signed.data.ljust(CERTIFICATE_BYTES, b"\0")[:CERTIFICATE_BYTES], [KEY], verify)


def test_guests_are_not_the_owner() -> None:
    assert not is_owner(GUEST_RIGHTS)
    assert not is_owner(Right.SERVE | Right.WORK)
    assert is_owner(ALL_RIGHTS)


def test_a_certificate_expires() -> None:
    assert GUEST.valid_at(199.9)
    assert not GUEST.valid_at(200)
