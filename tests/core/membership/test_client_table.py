"""Tables of clients: what nodes send, and what a client keeps while a new table arrives."""

from __future__ import annotations

from dataclasses import replace

from meshllm.core.demand.levels import DemandLevel, keyed
from meshllm.core.membership.client_table import Providers, Subscribers
from meshllm.core.membership.messages import TableUpdate
from meshllm.core.records import MeshId, NodeRecord, RecordVersion, ServedModel, SignedRecord
from tests.core.small_mesh import node_id, sign

PROVIDER = node_id(1000)


def record(number: int, version: int = 1) -> SignedRecord:
    return sign(
        NodeRecord(node_id(number), RecordVersion(1, version), MeshId(bytes(16)), serves=(ServedModel(f"m{number}"),))
    )


def known(providers: Providers, count: int) -> int:
    return sum(providers.best(node_id(number)) is not None for number in range(count))


def test_providers_keep_the_old_table_until_the_last_portion() -> None:
    providers = Providers()
    portions = [tuple(record(number) for number in range(first, first + 50)) for first in range(0, 200, 50)]
    for _ in range(2):
        seen = known(providers, 200)
        for number, portion in enumerate(portions):
            providers.update(PROVIDER, TableUpdate(portion, first=number == 0, more=number < 3))
            assert known(providers, 200) >= seen, "a node disappeared while the table arrived"
        assert known(providers, 200) == 200


def test_providers_drop_at_the_end_what_a_new_table_lacks() -> None:
    providers = Providers()
    providers.update(PROVIDER, TableUpdate(tuple(record(number) for number in range(4)), first=True))
    assert providers.update(PROVIDER, TableUpdate((record(0),), first=True, more=True)) == {node_id(0)}
    assert known(providers, 4) == 4
    touched = providers.update(PROVIDER, TableUpdate((record(1, 2),)))
    assert touched >= {node_id(1), node_id(2), node_id(3)}
    assert known(providers, 4) == 2
    assert providers.best(node_id(1)) == record(1, 2)


def test_providers_of_a_lost_link_forget_the_unfinished_table() -> None:
    providers, other = Providers(), node_id(1001)
    providers.update(PROVIDER, TableUpdate((record(0), record(1)), first=True))
    providers.update(other, TableUpdate((record(0),), first=True, more=True))
    providers.lost(other)
    assert known(providers, 2) == 2
    # Its next table starts from nothing.
    providers.update(other, TableUpdate((record(0),)))
    assert known(providers, 2) == 2


def test_clients_are_not_told_of_each_change_of_the_demand() -> None:
    table = {node_id(1): record(1)}
    sent: list[TableUpdate] = []
    subscribers = Subscribers(lambda client, update: sent.append(update), table.get)
    subscribers.add(node_id(9), table)
    first = table[node_id(1)].record
    asked = replace(first, version=RecordVersion(1, 2), demand=keyed([DemandLevel("m", 1)]))
    table[node_id(1)] = sign(asked)
    assert not subscribers.changed(node_id(1)), "a thousand nodes change it several times a second"
    table[node_id(1)] = sign(replace(asked, version=RecordVersion(1, 3), loading=("m",)))
    assert subscribers.changed(node_id(1))
