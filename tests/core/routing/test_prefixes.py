"""Hosts that have computed a prefix: the table is bounded and expires, and the ranking uses it only among equals."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshllm.core.routing.prefixes import MAX_HOSTS, PrefixHosts
from meshllm.core.routing.ranking import PREFIX_BUSY_PER_SLOT, RankedHost, rank
from meshllm.core.routing.routes import Place, TargetKind

PLACES: list[Place] = [(TargetKind.PEER, name) for name in "abcdef"]


@given(st.lists(st.tuples(st.sampled_from("rrrfpd"), st.integers(0, 9), st.sampled_from(PLACES)), max_size=120))
def test_table_is_bounded_expires_and_forgets_failed_hosts(steps: list[tuple[str, int, Place]]) -> None:
    table = PrefixHosts(limit=5, age=30.0)
    model: dict[bytes, dict[Place, float]] = {}
    for now, (step, number, place) in enumerate(steps):
        key = bytes([number])
        if step == "r":
            table.remember(key, place, float(now))
            hosts = model.pop(key, {})
            hosts.pop(place, None)
            hosts[place] = float(now)
            model[key] = dict(list(hosts.items())[-MAX_HOSTS:])
            model = dict(list(model.items())[-5:])
        elif step == "f":
            table.forget(key, place)
            model.get(key, {}).pop(place, None)
        elif step == "p":
            table.forget_place(place)
            for hosts in model.values():
                hosts.pop(place, None)
        model = {key: hosts for key, hosts in model.items() if hosts}
        wanted = {place for place, at in model.get(key, {}).items() if now - at <= 30.0}
        assert table.find(key, float(now)) == wanted
        if key in model:
            model[key] = {place: at for place, at in model[key].items() if place in wanted}
        model = {key: hosts for key, hosts in model.items() if hosts}
        assert len(table) == len(model) <= 5


def test_host_with_the_prefix_comes_first_unless_it_is_busier() -> None:
    near, far = RankedHost(0, rtt=0.001), RankedHost(1, rtt=0.2)
    knows = far._replace(prefix=True)
    assert [c.order for c in rank([near, knows])] == [1, 0]
    assert rank([near, knows._replace(busy=PREFIX_BUSY_PER_SLOT)])[0].order == 1
    assert rank([near, knows._replace(busy=PREFIX_BUSY_PER_SLOT + 0.01)])[0].order == 0
    assert rank([near, knows._replace(free=False, busy=1.0)])[0].order == 0
    assert rank([near, knows._replace(resting=True)])[0].order == 0
    # Two that know it: the less busy one. The conversation's own host comes before both.
    assert rank([near._replace(prefix=True), knows])[0].order == 0
    assert rank([near._replace(sticky=True), knows])[0].order == 0


def test_prefix_moves_no_prompt_to_other_members() -> None:
    here, ours, other = RankedHost(0, local=True), RankedHost(1, owned=True), RankedHost(2)
    assert rank([here, ours, other._replace(prefix=True)])[0].order == 0
    assert rank([ours, other._replace(prefix=True)])[0].order == 1
    assert rank([here, ours._replace(prefix=True), other])[0].order == 1
    assert rank([other, RankedHost(3, rtt=0.3, prefix=True)])[0].order == 3
