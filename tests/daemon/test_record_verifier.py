"""Verification of received records: only news, spread over the turns of the event loop, in order for each peer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest

from meshllm.core.membership import messages as m
from meshllm.core.records import MeshId, NodeId, NodeRecord, RecordVersion, SignedRecord
from meshllm.daemon.record_verifier import LAST_RECORDS, MAX_RECENT, RECORDS_PER_TURN, MessageQueues, RecordVerifier
from meshllm.errors import BadMessage
from meshllm.wire.mesh.codec import encode_message, encode_record, parse_message

ONE, TWO = NodeId(b"1" * 32), NodeId(b"2" * 32)


def record(number: int, version: int = 1, *, genuine: bool = True) -> SignedRecord:
    """A record whose signature begins with 'g' if it is genuine."""
    made = NodeRecord(NodeId(number.to_bytes(32, "big")), RecordVersion(1, version), MeshId(bytes(16)))
    letter = b"g" if genuine else b"b"
    return SignedRecord(made, encode_record(made), letter + number.to_bytes(31, "big") + version.to_bytes(32, "big"))


class Rig:
    """Queues with an event loop that the test turns."""

    def __init__(self) -> None:
        self.turns: deque[Callable[[], None]] = deque()
        self.delivered: list[tuple[NodeId, m.Message]] = []
        self.refused: list[tuple[NodeId, BadMessage]] = []
        self.verifier = RecordVerifier(lambda node, body, signature: signature.startswith(b"g"))
        self.queues = MessageQueues(
            self.verifier,
            lambda peer, message: self.delivered.append((peer, message)),
            lambda peer, error: self.refused.append((peer, error)),
            self.turns.append,
        )

    def put(self, peer: NodeId, message: m.Message) -> None:
        parsed = parse_message(encode_message(message))
        assert parsed is not None
        self.queues.put(peer, parsed)

    def turn(self) -> None:
        assert len(self.turns) == 1
        self.turns.popleft()()

    def all_turns(self) -> int:
        count = 0
        while self.turns:
            self.turn()
            count += 1
        return count


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_verifier_checks_a_record_once_however_many_peers_send_it(rig: Rig) -> None:
    records = m.Records(tuple(record(number) for number in range(10)), push=True)
    for peer in (ONE, TWO, ONE):
        rig.put(peer, records)
    rig.all_turns()
    assert sorted(peer for peer, _ in rig.delivered) == [ONE, ONE, TWO]
    assert all(message == records for _, message in rig.delivered)
    assert rig.verifier.checks == 10


def test_verifier_remembers_only_what_the_core_keeps(rig: Rig) -> None:
    flood = m.Records(tuple(record(number) for number in range(10 * MAX_RECENT)))
    rig.put(ONE, flood)
    rig.all_turns()
    kept = rig.delivered.pop()[1].records[:5]  # type: ignore[union-attr]
    known = [made for made in flood.records if rig.verifier.known(made.body, made.signature) is not None]
    assert known == [*kept, *flood.records[-MAX_RECENT:]]
    assert rig.verifier.stale(encode_record(record(3, 0).record)) == kept[3].record.node


def test_verifier_leaves_out_older_records_unchecked(rig: Rig) -> None:
    rig.put(ONE, m.Records((record(5, 7),)))
    rig.all_turns()
    rig.put(TWO, m.Records((record(5, 6, genuine=False), record(6))))
    rig.all_turns()
    assert rig.delivered[-1] == (TWO, m.Records((record(6),), stale=(record(5).record.node,)))
    assert rig.verifier.checks == 2


def test_verifier_checks_the_older_records_of_a_table(rig: Rig) -> None:
    """A provider's table replaces the one before: an older record in it is still its word."""
    rig.put(ONE, m.Records((record(5, 7),)))
    rig.put(TWO, m.TableUpdate((record(5, 6),), first=True))
    rig.all_turns()
    assert rig.delivered[-1] == (TWO, m.TableUpdate((record(5, 6),), first=True))


def test_queues_verify_few_records_per_turn_and_let_peers_take_turns(rig: Rig) -> None:
    rig.put(ONE, m.Records(tuple(record(number) for number in range(10 * RECORDS_PER_TURN))))
    rig.put(ONE, m.Ping(1))
    rig.put(TWO, m.Records((record(10_000),)))
    rig.put(TWO, m.Ping(2))
    done = []
    while rig.turns:
        before = rig.verifier.checks
        rig.turn()
        assert rig.verifier.checks - before <= RECORDS_PER_TURN
        done.append(len(rig.delivered))
    assert done[1] >= 1, "the short message waits for one turn of the long one"
    assert rig.delivered[0][0] == TWO
    # The messages of each peer keep their order.
    for peer, number in ((ONE, 1), (TWO, 2)):
        kinds = [message for sender, message in rig.delivered if sender == peer]
        assert isinstance(kinds[0], m.Records)
        assert kinds[1] == m.Ping(number)


def test_queues_refuse_a_forged_record_and_deliver_nothing_of_its_message(rig: Rig) -> None:
    rig.put(ONE, m.Records((record(1), record(2, genuine=False))))
    rig.put(ONE, m.Ping(1))
    rig.put(TWO, m.Records((record(3),)))
    rig.all_turns()
    assert [peer for peer, _ in rig.refused] == [ONE]
    assert rig.delivered == [(TWO, m.Records((record(3),)))]


def test_queues_deliver_the_last_message_of_a_link_that_ends(rig: Rig) -> None:
    last = m.Records((record(1),), push=True)
    rig.put(ONE, last)
    rig.queues.finish(ONE)
    assert rig.delivered == [(ONE, last)]
    rig.all_turns()
    rig.put(ONE, m.Records(tuple(record(number) for number in range(2, LAST_RECORDS + 10))))
    rig.queues.finish(ONE)
    rig.all_turns()
    assert rig.delivered == [(ONE, last)]
    assert rig.verifier.checks == 1 + LAST_RECORDS
