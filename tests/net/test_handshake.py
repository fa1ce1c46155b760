"""The hello: admission, versions, and every way of cheating."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, cast

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from net_rig import (
    CERTIFICATE,
    MEMBER,
    MESH,
    MESH_KEY,
    NOW,
    SECRET,
    Checks,
    Stranger,
    Talker,
    World,
    client,
    identity,
    signed_for,
)

from meshllm.core.membership.certificates import ALL_RIGHTS, Right
from meshllm.core.records import MeshId, NodeId, PeerAddress, Role
from meshllm.errors import BadMessage, PeerRefused
from meshllm.net import node_link, node_transport
from meshllm.net.base import LinkFacts, StreamKind
from meshllm.net.handshake import AcceptorHandshake, Credentials, DiallerHandshake, Frames, HandshakeResult, frame
from meshllm.net.quic import happy_eyeballs
from meshllm.wire.mesh.hello import (
    MAX_HELLO_BYTES,
    Challenge,
    Credential,
    Hello,
    HelloProof,
    HelloRefusal,
    Welcome,
    decode_hello,
    encode_hello,
    highest_common,
    to_sign,
    transcript,
)
from meshllm.wire.mesh.invite import InviteTerms, invite_key

DIALLER, ACCEPTOR = identity(), identity()
SEEN = PeerAddress("192.0.2.7", 4433)
INSTANCE = b"instance"


@pytest.fixture(params=["memory", "quic"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    made = World(request.param)
    yield made
    await made.close()


def dialler(credentials: Credentials = MEMBER, peer: NodeId = ACCEPTOR.node) -> DiallerHandshake:
    return DiallerHandshake(DIALLER, peer, credentials, instance=INSTANCE)


def acceptor(
    credentials: Credentials = MEMBER, admit: Callable[[HandshakeResult], HelloRefusal | None] = lambda result: None
) -> AcceptorHandshake:
    return AcceptorHandshake(ACCEPTOR, credentials, instance=INSTANCE, observed=SEEN, admit=admit)


HOLDER = replace(MEMBER, certificate=signed_for(ACCEPTOR.node, ALL_RIGHTS))


def shake(one: DiallerHandshake, other: AcceptorHandshake) -> None:
    """Run a whole handshake; raises what the dialler raises."""
    said: bytes | None = one.start()
    while said is not None:
        said = one.receive(other.receive(said))


def refusal(one: DiallerHandshake, other: AcceptorHandshake) -> PeerRefused:
    with pytest.raises(PeerRefused) as caught:
        shake(one, other)
    assert one.result is None
    assert other.result is None
    return caught.value


# -- admission


def test_handshake_succeeds_between_members() -> None:
    one, other = dialler(client()), acceptor(replace(MEMBER, mesh=MeshId(b"a different mesh")))
    shake(one, other)
    assert one.result is not None
    assert other.result is not None
    assert (one.result.peer, other.result.peer) == (ACCEPTOR.node, DIALLER.node)
    assert (one.result.role, other.result.role) == (Role.NODE, Role.CLIENT)
    assert (one.result.mesh, other.result.mesh) == (b"a different mesh", MESH)
    assert one.result.name == other.result.name
    assert one.result.observed == SEEN
    assert one.result.admitted is None


def invited(given: Right = ALL_RIGHTS, *, late: float = 1, **changed: Any) -> Credentials:
    """The credentials of a node with an invite; `changed`: what it says of the invite that is not so."""
    terms = InviteTerms(b"serial--", given, int(NOW + late), 99)
    key = invite_key(SECRET, terms, NodeId(bytes(32)))
    return Credentials(MESH, Checks(), b"", (key, replace(terms, **changed)))


@pytest.mark.parametrize("rights", [ALL_RIGHTS, Right.USE])
def test_handshake_with_invite_gives_what_the_invite_says(rights: Right) -> None:
    one, other = dialler(invited(rights)), acceptor(HOLDER)
    shake(one, other)
    assert one.result is not None
    assert one.result.admitted is not None
    assert other.result is not None
    assert one.result.admitted.key == MESH_KEY
    assert one.result.admitted.certificate.certificate.rights == rights == other.result.certificate.rights
    assert one.result.admitted.private == (SECRET if Right.ADMIT in rights else b"")
    # A role is what the certificate allows.
    assert other.result.role is (Role.NODE if rights == ALL_RIGHTS else Role.CLIENT)


def test_acceptor_refuses_a_node_that_is_no_member() -> None:
    error = refusal(dialler(replace(MEMBER, certificate=bytes(len(CERTIFICATE)))), acceptor())
    assert error.reason == "wrong_mesh"
    assert "invite" in error.advice


def test_dialler_refuses_an_acceptor_that_is_no_member() -> None:
    one = dialler()
    challenge = one.receive(acceptor().receive(one.start()))
    assert challenge is not None
    with pytest.raises(PeerRefused) as caught:
        one.receive(encode_hello(Welcome(MESH, None, bytes(len(CERTIFICATE)))))
    assert caught.value.reason == "wrong_mesh"
    assert one.result is None


def test_dialler_refuses_a_welcome_without_the_key_of_the_invite() -> None:
    one = dialler(invited())
    one.receive(acceptor().receive(one.start()))
    forged = signed_for(DIALLER.node, ALL_RIGHTS)
    with pytest.raises(PeerRefused) as caught:
        one.receive(encode_hello(Welcome(MESH, None, CERTIFICATE, (), MESH_KEY, forged, b"", bytes(32))))
    assert caught.value.reason == "wrong_invite"


def test_acceptor_refuses_an_expired_invite() -> None:
    error = refusal(dialler(invited(late=0)), acceptor())
    assert error.reason == "expired_invite"
    assert "mesh-llm invite" in error.advice


@pytest.mark.parametrize(
    "changed",
    [{"expires": NOW + 99}, {"rights": Right.USE}, {"member_lifetime": 100}, {"once": True}, {"serial": bytes(8)}],
)
def test_acceptor_refuses_an_invite_with_other_terms(changed: dict[str, Any]) -> None:
    assert refusal(dialler(invited(**changed)), acceptor()).reason == "wrong_invite"


def test_dialler_needs_a_certificate_or_an_invite() -> None:
    with pytest.raises(PeerRefused):
        dialler(Credentials(MESH, Checks()))


def test_acceptor_without_a_certificate_refuses_everyone() -> None:
    assert refusal(dialler(), acceptor(Credentials(MESH, Checks()))).reason == "joining"


def test_acceptor_tells_an_older_node_to_update() -> None:
    hello = msgpack.packb((1, 1, 1, DIALLER.node, "node", MESH, 0, 0, bytes(32), INSTANCE, b""))
    answer = decode_hello(acceptor().receive(hello))
    assert isinstance(answer, HelloRefusal)
    assert answer.code == "protocol"
    assert "dialling node is too old" in answer.message


def test_acceptor_refuses_its_own_node_id() -> None:
    one = DiallerHandshake(ACCEPTOR, ACCEPTOR.node, MEMBER, instance=INSTANCE)
    assert refusal(one, acceptor()).reason == "itself"


def test_acceptor_sends_the_refusal_of_admit() -> None:
    asked: list[HandshakeResult] = []

    def admit(result: HandshakeResult) -> HelloRefusal:
        asked.append(result)
        return HelloRefusal("too_many_clients", "Full.", "Go elsewhere.")

    error = refusal(dialler(), acceptor(admit=admit))
    assert (error.reason, error.message, error.advice) == ("too_many_clients", "Full.", "Go elsewhere.")
    assert asked[0].peer == DIALLER.node


# -- versions


@pytest.mark.parametrize(
    ("ours", "theirs", "chosen"),
    [((2, 2), (2, 2), 2), ((2, 4), (3, 9), 4), ((3, 9), (2, 4), 4), ((2, 3), (4, 5), None), ((4, 5), (2, 3), None)],
)
def test_handshake_chooses_the_newest_common_protocol(
    ours: tuple[int, int], theirs: tuple[int, int], chosen: int | None
) -> None:
    assert highest_common(ours, theirs) == chosen
    one, other = dialler(replace(MEMBER, protocol=ours)), acceptor(replace(MEMBER, protocol=theirs))
    if chosen is None:
        error = refusal(one, other)
        assert error.reason == "protocol"
        assert "Update" in error.advice
        assert f"{ours[0]} to {ours[1]}" in error.message
        assert ("dialling" in error.message) == (ours < theirs)
    else:
        shake(one, other)
        assert one.result is not None
        assert one.result.protocol == chosen


def test_dialler_refuses_a_protocol_that_is_not_the_newest() -> None:
    one = dialler(replace(MEMBER, protocol=(2, 4)))
    one.start()
    with pytest.raises(BadMessage):
        one.receive(encode_hello(Challenge((2, 4), 2, ACCEPTOR.node, Role.NODE, bytes(32), INSTANCE)))


# -- cheating


def overheard(ours: Credentials = MEMBER, theirs: Credentials = MEMBER) -> tuple[bytes, bytes, bytes, bytes]:
    """All four messages of a valid handshake."""
    one, other = dialler(ours), acceptor(theirs)
    hello = one.start()
    challenge = other.receive(hello)
    proof = cast(bytes, one.receive(challenge))
    return hello, challenge, proof, other.receive(proof)


def test_acceptor_refuses_a_replayed_hello() -> None:
    hello, _, proof, _ = overheard()
    again = acceptor()
    again.receive(hello)
    answer = decode_hello(again.receive(proof))
    assert isinstance(answer, HelloRefusal)
    assert again.result is None


def test_dialler_with_an_invite_refuses_a_replayed_welcome() -> None:
    _, challenge, _, welcome = overheard(invited(), HOLDER)
    one = dialler(invited())
    one.start()
    one.receive(challenge)
    with pytest.raises(PeerRefused):
        one.receive(welcome)


def test_acceptor_refuses_a_proof_for_another_acceptor() -> None:
    """A dialled node relays the hello to a third node, and that node's challenge to the dialler."""
    between = identity()
    one, third = dialler(peer=between.node), acceptor()
    challenge = decode_hello(third.receive(one.start()))
    assert isinstance(challenge, Challenge)
    with pytest.raises(PeerRefused) as caught:
        one.receive(encode_hello(challenge))
    assert caught.value.reason == "wrong_node"
    proof = one.receive(encode_hello(replace(challenge, node=between.node)))
    assert proof is not None
    assert isinstance(decode_hello(third.receive(proof)), HelloRefusal)
    assert third.result is None


def test_dialler_refuses_a_reflected_proof() -> None:
    """The dialler's own proof is sent back as the acceptor's."""
    one = dialler()
    challenge = acceptor().receive(one.start())
    proof = decode_hello(cast(bytes, one.receive(challenge)))
    assert isinstance(proof, HelloProof)
    with pytest.raises(PeerRefused):
        one.receive(encode_hello(Welcome(MESH, None, bytes(len(CERTIFICATE)), proof=bytes(32))))


def test_acceptor_refuses_a_reflected_hello() -> None:
    """A node's own hello is sent back to it."""
    hello = DiallerHandshake(ACCEPTOR, DIALLER.node, MEMBER, instance=INSTANCE).start()
    answer = decode_hello(acceptor().receive(hello))
    assert isinstance(answer, HelloRefusal)
    assert answer.code == "itself"


def test_acceptor_refuses_a_member_with_another_nodes_id() -> None:
    hello = Hello((2, 2), DIALLER.node, Role.NODE, MESH, Credential.CERTIFICATE, bytes(32), INSTANCE)
    other = acceptor()
    challenge = other.receive(encode_hello(hello))
    over = transcript(encode_hello(hello), challenge)
    forged = HelloProof(identity().sign(to_sign(over, CERTIFICATE)), CERTIFICATE)
    answer = decode_hello(other.receive(encode_hello(forged)))
    assert isinstance(answer, HelloRefusal)
    assert answer.code == "wrong_node"


FIELDS_OF_HELLO: list[Callable[[Hello], Hello]] = [
    lambda hello: replace(hello, protocol=(2, 3)),
    lambda hello: replace(hello, node=identity().node),
    lambda hello: replace(hello, role=Role.CLIENT),
    lambda hello: replace(hello, mesh=MeshId(bytes(16))),
    lambda hello: replace(
        hello, credential=Credential.INVITE, invite=InviteTerms(bytes(8), Right.USE, int(NOW) + 9, 1)
    ),
    lambda hello: replace(hello, nonce=bytes(32)),
    lambda hello: replace(hello, instance=bytes(8)),
    lambda hello: replace(hello, ended=bytes(32)),
]


@pytest.mark.parametrize("alter", FIELDS_OF_HELLO)
def test_acceptor_refuses_an_altered_hello(alter: Callable[[Hello], Hello]) -> None:
    one, other = dialler(), acceptor()
    hello = decode_hello(one.start())
    assert isinstance(hello, Hello)
    challenge = other.receive(encode_hello(alter(hello)))
    proof = one.receive(challenge)
    assert proof is not None
    assert isinstance(decode_hello(other.receive(proof)), HelloRefusal)
    assert other.result is None


FIELDS_OF_CHALLENGE: list[Callable[[Challenge], Challenge]] = [
    lambda challenge: replace(challenge, protocol=(2, 9)),
    lambda challenge: replace(challenge, role=Role.CLIENT),
    lambda challenge: replace(challenge, nonce=bytes(32)),
    lambda challenge: replace(challenge, instance=bytes(8)),
]


@pytest.mark.parametrize("alter", FIELDS_OF_CHALLENGE)
def test_dialler_refuses_an_altered_challenge(alter: Callable[[Challenge], Challenge]) -> None:
    one, other = dialler(), acceptor()
    challenge = decode_hello(other.receive(one.start()))
    assert isinstance(challenge, Challenge)
    proof = one.receive(encode_hello(alter(challenge)))
    assert proof is not None
    assert isinstance(decode_hello(other.receive(proof)), HelloRefusal)
    assert other.result is None


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_handshake_refuses_messages_out_of_turn(at: int) -> None:
    messages = overheard()
    for number in {0, 1, 2, 3} - {0}:
        with pytest.raises(BadMessage):
            acceptor().receive(messages[number])
    one = dialler()
    one.start()
    if at != 1:
        with pytest.raises(BadMessage):
            one.receive(messages[at])
    done = acceptor()
    done.receive(messages[0])
    done.receive(messages[2])
    with pytest.raises(BadMessage):
        done.receive(messages[at])


@given(st.binary(max_size=MAX_HELLO_BYTES + 9))
def test_decode_hello_accepts_or_refuses_any_bytes(data: bytes) -> None:
    try:
        message = decode_hello(data)
    except BadMessage:
        return
    assert decode_hello(encode_hello(message)) == message


@given(st.sampled_from(overheard()), st.integers(0, 400), st.integers(0, 255))
def test_decode_hello_accepts_or_refuses_any_altered_byte(payload: bytes, at: int, value: int) -> None:
    altered = bytearray(payload)
    altered[at % len(altered)] = value
    for receive in (acceptor().receive, dialler().receive, decode_hello):
        with contextlib.suppress(BadMessage, PeerRefused):
            receive(bytes(altered))


@given(st.lists(st.binary(max_size=50), max_size=8), st.integers(1, 9))
def test_frames_do_not_depend_on_the_cut(payloads: list[bytes], step: int) -> None:
    frames, found = Frames(50), []
    data = b"".join(map(frame, payloads))
    for at in range(0, len(data), step):
        frames.feed(data[at : at + step])
        while (payload := frames.take()) is not None:
            found.append(payload)
    assert found == payloads
    with pytest.raises(BadMessage):
        frames.feed((51).to_bytes(4, "big"))


def test_repr_shows_no_secret() -> None:
    credentials = invited()
    key = credentials.invite[0] if credentials.invite is not None else b""
    one = dialler(credentials)
    shake(one, acceptor(HOLDER))
    facts = LinkFacts(DIALLER.node, Role.NODE, MESH, SEEN, True, 0.0, 1, admitted=cast(Any, one.result).admitted)
    for shown in (credentials, one.result, facts, Welcome(MESH, None, b"", private=SECRET), one, acceptor()):
        assert "secret--" not in repr(shown)
        assert repr(key)[2:-1] not in repr(shown)


# -- on a connection


async def hello_of(stranger: Stranger, credentials: Credentials = MEMBER) -> DiallerHandshake:
    handshake = DiallerHandshake(DIALLER, stranger.target.id, credentials, instance=INSTANCE)
    stranger.say(handshake.start())
    return handshake


async def test_acceptor_admits_an_unknown_node_with_the_secret(world: World) -> None:
    target = await world.node()
    stranger = await world.stranger(target)
    handshake = await hello_of(stranger)
    stranger.say(cast(bytes, handshake.receive((await stranger.hear())[1])))
    handshake.receive((await stranger.hear())[1])
    await target.heard.until(lambda: DIALLER.node in target.heard.up)
    stranger.connection.send(0, frame(b"a message"))
    await target.heard.until(lambda: target.heard.messages == [b"a message"])


async def test_dial_of_a_node_that_is_no_member_raises_the_reason(world: World) -> None:
    stranger = replace(MEMBER, certificate=bytes(len(CERTIFICATE)))
    one, other = await world.node(stranger), await world.node()
    with pytest.raises(PeerRefused) as caught:
        await one.transport.dial(other.way)
    assert caught.value.reason == "wrong_mesh"
    assert one.heard.events == other.heard.events == []
    assert other.heard.refusals == [(None, "wrong_mesh")]


async def test_dial_with_an_invite_admits(world: World) -> None:
    joiner, member = await world.node(invited()), await world.node(HOLDER)
    member.transport._credentials = lambda: replace(
        MEMBER, certificate=signed_for(member.transport.identity.node, ALL_RIGHTS)
    )
    link = await joiner.transport.dial(member.way)
    assert link.facts.admitted is not None
    late = await world.node(replace(MEMBER, checks=Checks(NOW + 2)))
    with pytest.raises(PeerRefused) as caught:
        await joiner.transport.dial(late.way)
    assert caught.value.reason == "expired_invite"


async def test_dial_to_an_older_node_raises_the_reason(world: World) -> None:
    new, old = await world.node(replace(MEMBER, protocol=(3, 4))), await world.node()
    with pytest.raises(PeerRefused, match="answering node is too old"):
        await new.transport.dial(old.way)
    with pytest.raises(PeerRefused, match="dialling node is too old"):
        await old.transport.dial(new.way)


async def test_replayed_connection_is_refused(world: World) -> None:
    target = await world.node()
    first = await world.stranger(target)
    handshake = await hello_of(first)
    proof = cast(bytes, handshake.receive((await first.hear())[1]))
    second = await world.stranger(target)
    second.say(handshake.start())
    assert isinstance((await second.hear())[0], Challenge)
    second.say(proof)
    assert isinstance((await second.hear())[0], HelloRefusal)
    assert target.heard.events == []


async def test_oversized_frame_closes_the_connection_early(world: World) -> None:
    target = await world.node()
    stranger = await world.stranger(target)
    stranger.connection.send(0, (MAX_HELLO_BYTES + 1).to_bytes(4, "big"))
    await stranger.until(lambda: stranger.why)
    assert "the limit is" in stranger.why


async def test_garbage_closes_the_connection(world: World) -> None:
    target = await world.node()
    stranger = await world.stranger(target)
    stranger.say(b"GET / HTTP/1.1")
    await stranger.until(lambda: stranger.why)
    assert target.heard.events == []


async def test_slow_handshake_is_closed_at_the_deadline(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Single bytes do not extend the deadline."""
    monkeypatch.setattr(node_transport, "HANDSHAKE_SECONDS", 0.3)
    target = await world.node()
    stranger = await world.stranger(target)
    stranger.connection.send(0, b"\0")
    for byte in (b"\0", b"\1", b"x"):
        stranger.connection.send(0, byte)
        stranger.connection.unacknowledged(0)
    await stranger.until(lambda: stranger.why)
    assert "timed out" in stranger.why
    assert not target.transport._in_handshake


async def test_silent_dialled_node_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(happy_eyeballs, "CANDIDATE_SECONDS", 0.1)
    monkeypatch.setattr(node_link.LinkGreeting, "data_received", lambda self, data: None)
    one, other = await world.node(), await world.node()
    with pytest.raises(Exception, match="cannot be reached"):
        await one.transport.dial(other.way)


async def test_unauthenticated_peer_cannot_open_a_stream(world: World) -> None:
    target = await world.node()
    stranger = await world.stranger(target)
    await hello_of(stranger)
    stranger.connection.send(4, bytes([StreamKind.HTTP_TUNNEL]) + b"POST /v1/chat/completions")
    if world.kind == "memory":  # the memory transport enforces this itself; QUIC does not even send more
        await stranger.until(lambda: stranger.why)
    else:
        assert isinstance((await stranger.hear())[0], Challenge)
    assert target.heard.streams == []


async def test_refused_peer_is_not_read_any_more(world: World) -> None:
    target = await world.node()
    stranger = await world.stranger(target)
    handshake = await hello_of(stranger, replace(MEMBER, certificate=bytes(len(CERTIFICATE))))
    proof = cast(bytes, handshake.receive((await stranger.hear())[1]))
    stranger.say(proof)
    stranger.connection.send(0, frame(b"a message") * 20)
    assert isinstance((await stranger.hear())[0], HelloRefusal)
    await stranger.until(lambda: stranger.why)
    assert target.heard.messages == []


async def test_dialler_sends_nothing_to_a_node_with_another_key(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[bytes] = []
    monkeypatch.setattr(node_link.LinkGreeting, "data_received", lambda self, data: heard.append(data))
    one, other = await world.node(), await world.node()
    with pytest.raises(PeerRefused):
        await one.transport.dial(replace(other.way, pin=identity().node))
    assert heard == []


async def test_handshake_reports_roles(world: World) -> None:
    host, guest = await world.node(), await world.node(client())
    link = await guest.transport.dial(host.way)
    await host.heard.until(lambda: host.heard.up)
    assert host.heard.up[guest.id].facts.role is Role.CLIENT
    host.heard.up[guest.id].open(StreamKind.FILES, Talker())
    assert link.facts.role is Role.NODE
