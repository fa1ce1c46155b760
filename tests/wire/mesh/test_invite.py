"""Invites are short, valid or refused, and never show their key."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.core.membership.certificates import Right
from meshllm.core.records import BootstrapAddress, MeshId, NodeId, PeerAddress
from meshllm.errors import BadInvite
from meshllm.wire.mesh.invite import (
    MAX_ADDRESSES,
    MAX_CHARACTERS,
    Invite,
    InviteTerms,
    _checksum,
    decode,
    encode,
    encode_terms,
    invite_key,
)
from tests.wire.mesh.mesh_strategies import invites

KEY = bytes(range(100, 116))
WAY = BootstrapAddress(b"p" * 16, (PeerAddress("192.168.1.20", 41337), PeerAddress("203.0.113.7", 41337)))
TERMS = InviteTerms(b"serial--", Right.USE | Right.SERVE, 1_800_000_000, 86_400)
INVITE = Invite(MeshId(b"m" * 16), KEY, TERMS, (WAY,))
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def token(body: bytes) -> str:
    """A token of these bytes with a valid checksum."""
    return "mesh2-" + urlsafe_b64encode(body + _checksum(body)).rstrip(b"=").decode()


def body_of(text: str) -> bytes:
    data = urlsafe_b64decode(text.removeprefix("mesh2-") + "===")
    return data[:-4]


@given(invites)
def test_invite_round_trips(invite: Invite) -> None:
    assert decode(encode(invite)) == invite


def test_invite_is_short_enough_to_paste() -> None:
    assert len(encode(INVITE)) == 117
    assert len(encode(replace(INVITE, ways=(replace(WAY, addresses=WAY.addresses[:1]),)))) == 112
    assert len(encode(replace(INVITE, ways=(WAY,) * 3))) == 192
    six = tuple(PeerAddress(f"2001:db8::{at}", 40000 + at) for at in range(1, 5))
    assert len(encode(replace(INVITE, ways=(BootstrapAddress(b"p" * 16, six),) * 3))) < MAX_CHARACTERS // 2


def test_invite_format_is_stable() -> None:
    terms = b"serial--\x03" + b"\x6b\x49\xd2\x00" + b"\x00\x01\x51\x80" + b"\x00"
    body = (
        b"\x01" + b"m" * 16 + KEY + terms + b"p" * 16 + b"\x12\x00" + b"\xa1\x79" + b"\xc0\xa8\x01\x14\xcb\x00\x71\x07"
    )
    assert encode(INVITE) == token(body)


def test_invite_cuts_addresses_and_ids() -> None:
    many = tuple(PeerAddress(f"10.0.0.{at}", at) for at in range(1, 9))
    long = replace(INVITE, ways=(BootstrapAddress(b"p" * 16 + b"q" * 16, (PeerAddress("host.example", 1), *many)),))
    assert decode(encode(long)).ways == (BootstrapAddress(b"p" * 16, many[:MAX_ADDRESSES]),)


@pytest.mark.parametrize(
    "invite",
    [
        replace(INVITE, ways=()),
        replace(INVITE, ways=(WAY,) * 4),
        replace(INVITE, ways=(BootstrapAddress(b"p" * 15, WAY.addresses),)),
        replace(INVITE, ways=(BootstrapAddress(b"p" * 16, ()),)),
        replace(INVITE, key=b"short"),
        replace(INVITE, mesh=MeshId(b"")),
        replace(INVITE, terms=replace(TERMS, expires=-1)),
        replace(INVITE, terms=replace(TERMS, expires=1 << 32)),
    ],
)
def test_encode_refuses_an_invite_without_nodes(invite: Invite) -> None:
    with pytest.raises(ValueError, match=r"invite|way in"):
        encode(invite)


@pytest.mark.parametrize(
    "paste",
    [
        "  {}\n",
        "{}\r\n",
        '"{}"',
        "`{}`",
        "<{}>",
        "\ufeff{}",
        "'{}'\n",
        "\u201c{}\u201d",
        "\u2018{}\u2019",
        "\u201e{}\u201c",
        "\u00ab{}\u00bb",
        "{}.",
        "{},",
        "({}).",
        "**{}**",
        "{}==",
        "mesh-llm --join {}",
        "  mesh-llm --join={}\n",
        "$ scripts/mesh-llm --join '{}'.",
        "/usr/local/bin/mesh-llm --join {}",
    ],
)
def test_decode_tolerates_pasted_decoration(paste: str) -> None:
    assert decode(paste.format(encode(INVITE))) == INVITE


@given(st.lists(st.integers(0, 93), max_size=5), st.sampled_from([" ", "\n", "\r\n", "\t", "\u200b", "\n  "]))
def test_decode_tolerates_line_breaks(places: list[int], blank: str) -> None:
    text = encode(INVITE)
    for place in sorted(places, reverse=True):
        text = text[:place] + blank + text[place:]
    assert decode(text) == INVITE


@pytest.mark.parametrize("text", ["x{}", "mesh-llm --join {} --port 1", "mesh-llm --join", "rm {}", "{} {}", "."])
def test_decode_refuses_what_is_more_than_decoration(text: str) -> None:
    with pytest.raises(BadInvite):
        decode(text.replace("{}", encode(INVITE)))


def test_decode_refuses_truncation_anywhere() -> None:
    text = encode(INVITE)
    for length in range(len(text)):
        with pytest.raises(BadInvite):
            decode(text[:length])


def test_decode_refuses_any_changed_character() -> None:
    text = encode(INVITE)
    for place in range(len(text)):
        for other in ALPHABET:
            if other != text[place]:
                with pytest.raises(BadInvite):
                    decode(text[:place] + other + text[place + 1 :])


@given(st.text())
def test_decode_accepts_or_refuses_any_text(text: str) -> None:
    with pytest.raises(BadInvite):
        decode(text)


@given(st.text(ALPHABET, max_size=400))
def test_decode_accepts_or_refuses_any_text_of_the_shape(text: str) -> None:
    with pytest.raises(BadInvite):
        decode("mesh2-" + text)


@given(st.binary(max_size=200))
def test_decode_accepts_or_refuses_any_bytes_with_a_checksum(body: bytes) -> None:
    """The checksum is public: a valid one proves nothing about the content."""
    try:
        found = decode(token(body))
    except BadInvite:
        return
    assert decode(encode(found)) == found


@given(st.integers(0, 78), st.integers(0, 255))
def test_decode_accepts_or_refuses_any_byte_with_a_checksum(place: int, value: int) -> None:
    body = bytearray(body_of(encode(INVITE)))
    body[place] = value
    try:
        found = decode(token(bytes(body)))
    except BadInvite:
        return
    assert decode(encode(found)) == found


HEAD = b"m" * 16 + KEY + encode_terms(TERMS)
ONE_WAY = b"p" * 16 + b"\x11\x00" + b"\x00\x01" + b"\x01\x02\x03\x04"


@pytest.mark.parametrize(
    "body",
    [
        b"\x00" + HEAD,
        b"\x09" + HEAD + ONE_WAY,
        b"\x02" + HEAD + ONE_WAY,
        b"\x01" + HEAD + ONE_WAY + b"\x00",
        b"\x01" + HEAD[:40] + b"\x00" + HEAD[41:] + ONE_WAY,
        b"\x01" + HEAD[:-1] + b"\x04" + ONE_WAY,
        b"\x01" + HEAD + b"p" * 16 + b"\x10\x00" + b"\x00\x01",
        b"\x01" + HEAD + b"p" * 16 + b"\x15\x00" + b"\x00\x01" + b"\x01" * 20,
        b"\x01" + HEAD + b"p" * 16 + b"\x31\x00" + b"\x00\x01" + b"\x01" * 4,
        b"\x01" + HEAD + b"p" * 16 + b"\x11\x02" + b"\x00\x01" + b"\x01" * 4,
        b"\x01" + HEAD + b"p" * 16 + b"\x11\x00" + b"\x00\x00" + b"\x01" * 4,
        b"\x01" + HEAD + b"p" * 16 + b"\x11\x00" + b"\x00\x01" + b"\xff" * 4,
        b"\x01" + HEAD + b"p" * 16 + b"\x11\x01" + b"\x00\x01" + bytes(16),
    ],
)
def test_decode_enforces_each_bound(body: bytes) -> None:
    assert decode(token(b"\x01" + HEAD + ONE_WAY)).ways[0].addresses == (PeerAddress("1.2.3.4", 1),)
    with pytest.raises(BadInvite, match="damaged"):
        decode(token(body))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not an invite"),
        ("hello", "not an invite"),
        ("MESH2-abc", "not an invite"),
        ("mesh2-ab=c", "not an invite"),
        ("mesh2-äöü", "not an invite"),
        ("mesh2-", "damaged"),
        ("mesh2-A", "damaged"),
        ("mesh1-abc", "older mesh-llm"),
        ("mesh0007-abc", "version 7"),
        ("mesh2-" + "A" * MAX_CHARACTERS, "longer"),
    ],
)
def test_decode_errors_say_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(BadInvite, match=words) as caught:
        decode(text)
    assert caught.value.advice


def test_decode_errors_do_not_quote_the_input() -> None:
    text = encode(INVITE)
    for damaged in (text[:-1], text[:50] + "!" + text[50:], text * 20, text.replace("mesh2", "mesh9")):
        with pytest.raises(BadInvite) as caught:
            decode(damaged)
        assert text[6:20] not in f"{caught.value} {caught.value!r} {caught.value.args}"
        # Nor does its context, which a traceback would print.
        assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_repr_of_an_invite_shows_no_key() -> None:
    shown = f"{INVITE} {INVITE!r} {[INVITE]}"
    assert repr(KEY) not in shown
    assert KEY.hex() not in shown
    assert not re.search("key", shown)


def test_invite_key_is_bound_to_every_term() -> None:
    private, maker, other = b"s" * 32, NodeId(b"a" * 32), NodeId(b"b" * 32)
    changed = [
        TERMS,
        replace(TERMS, serial=b"another-"),
        replace(TERMS, rights=Right.USE),
        replace(TERMS, expires=TERMS.expires + 1),
        replace(TERMS, member_lifetime=1),
        replace(TERMS, once=True),
    ]
    keys = {invite_key(private, terms, maker) for terms in changed} | {invite_key(b"t" * 32, TERMS, maker)}
    assert len(keys) == 7
    assert {len(key) for key in keys} == {16}
    # Any holder of the mesh key can check an invite, but for one node only its maker.
    assert invite_key(private, TERMS, other) == invite_key(private, TERMS, maker)
    once = replace(TERMS, once=True)
    assert invite_key(private, once, other) != invite_key(private, once, maker)
    assert TERMS.valid_at(TERMS.expires - 0.1)
    assert not TERMS.valid_at(TERMS.expires)
