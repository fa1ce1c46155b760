"""Who serves what: equal views give equal answers, one node takes what needs one, the last host of a model stays."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.core.demand.levels import DemandLevel, keyed
from meshllm.core.demand.mesh_demand import DemandClaim, scores
from meshllm.core.ids import NodeId
from meshllm.core.records import MeshId, NodeRecord, RecordVersion, ServedModel, SplitCandidate
from meshllm.core.serving.demand_placement import (
    AVOID_SECONDS,
    CLAIM_SECONDS,
    NOTICE_SECONDS,
    RESIDENCE_SECONDS,
    DemandPlacement,
    LoadingClaims,
)
from meshllm.core.serving.placement import (
    MIB,
    PATIENCE_SECONDS,
    Need,
    PlacementView,
    choose,
    is_surplus,
    may_leave,
    move,
    ranked,
    rendezvous_weight,
)
from tests.core.small_mesh import node_id

GIB = 1 << 30


def record(number: int, *disk: str, **fields: object) -> NodeRecord:
    base = NodeRecord(node_id(number), RecordVersion(1, 1), MeshId(bytes(16)), on_disk=disk)
    return replace(base, **fields)  # type: ignore[arg-type]


def asking(number: int = 99, **levels: int) -> NodeRecord:
    demand = keyed([DemandLevel(model, level) for model, level in levels.items()])
    return record(number, *levels, demand=demand, idle=True)


def taken(model: str, *, movable: bool = True, pressed: bool = False, size: int = 0) -> ServedModel:
    return ServedModel(model, slots=4, size=size, on_demand=True, movable=movable, pressed=pressed)


def view(*records: NodeRecord, foreign: tuple[NodeId, ...] = ()) -> PlacementView:
    owned = {each.node for each in records} - set(foreign)
    claims = [DemandClaim(each, each.node, each.node in owned) for each in records]
    return PlacementView(records, scores(claims), owned)


def choices(seen: PlacementView, *standbys: NodeRecord) -> list[str]:
    found = [choose(seen, own, {}) for own in standbys]
    return sorted(need.model for need in found if need is not None)


MODELS = st.sets(st.sampled_from("abcd"))


@given(st.lists(MODELS, min_size=1, max_size=8), MODELS)
def test_each_needed_model_is_taken_by_one_standby(disks: list[set[str]], wanted: set[str]) -> None:
    asker = asking(**dict.fromkeys(sorted(wanted), 1))
    standbys = [record(number, *sorted(disk)) for number, disk in enumerate(disks)]
    idle = record(100, *"abcd", idle=True)
    seen = view(asker, idle, *standbys)
    assert choose(seen, idle, {}) is None
    taken_models = choices(seen, *standbys)
    assert len(set(taken_models)) == len(taken_models), "nobody takes what another one takes"
    assert set(taken_models) <= wanted
    if all(disk == disks[0] for disk in disks):
        assert len(taken_models) == min(len(disks[0] & wanted), len(disks))


@given(st.permutations(range(6)))
def test_order_of_the_records_changes_nothing(order: list[int]) -> None:
    records = [asking(a=2, b=1), *(record(number, "a", "b") for number in range(5))]
    seen = view(*(records[place] for place in order))
    assert choices(seen, *records) == choices(view(*records), *records) == ["a", "b"]


def test_most_wanted_model_comes_first() -> None:
    only = record(1, "a", "b")
    assert choices(view(asking(a=1, b=3), only), only) == ["b"]
    wishing = record(98, wants=("a",))
    assert choices(view(asking(b=1), wishing, only), only) == ["a"]


def test_demand_of_the_owner_comes_before_that_of_one_foreign_voice() -> None:
    only, stranger = record(1, "a", "b"), asking(50, b=8)
    assert choices(view(asking(a=1), stranger, only, foreign=(stranger.node,)), only) == ["a"]
    assert choices(view(stranger, only, foreign=(stranger.node,)), only) == ["b"], "a free standby serves it"


def test_model_that_is_served_or_loaded_needs_no_host() -> None:
    only = record(1, "a")
    assert choices(view(asking(a=1), only, record(2, serves=(ServedModel("a"),))), only) == []
    assert choices(view(asking(a=1), only, record(2, loading=("a",))), only) == []
    assert choices(view(asking(), only), only) == [], "nobody asks for it"
    split = record(3, splits=(SplitCandidate("a", 1, force_split=True),), wants=("a",))
    assert choices(view(split, only), only) == []


def test_pressed_hosts_get_another_one_after_unserved_models() -> None:
    only = record(1, "a", "b")
    busy, calm = record(2, serves=(taken("a", pressed=True),)), record(3, serves=(taken("a"),))
    assert choose(view(asking(a=5), only, busy), only, {}) == Need("a", extra=True)
    assert choose(view(asking(a=5), only, busy, calm), only, {}) is None, "the other one has free slots"
    assert choose(view(asking(a=5, b=1), only, busy), only, {}) == Need("b")


def test_node_counts_only_with_the_memory_that_it_has() -> None:
    size = 4 * GIB // MIB
    small = record(1, "a", disk_sizes=(size,), memory=4 * GIB)
    large = record(2, "a", disk_sizes=(size,), memory=5 * GIB)
    unknown = [record(number, "a", disk_sizes=(size,)) for number in (3, 4, 5, 6)]
    assert ranked([small, *unknown, large], "a")[0] == large.node
    assert small.node not in ranked([small], "a")
    assert len(ranked(unknown, "a")) == 4
    seen = view(asking(a=1), small, large)
    assert choose(seen, small, {"a": 1e9}) is None
    assert choose(seen, large, {}) == Need("a")


def test_mute_candidates_are_passed_over_in_time() -> None:
    standbys = [record(number, "a") for number in range(1, 65)]
    seen = view(asking(a=1), *standbys)
    order = {node: place for place, node in enumerate(ranked(standbys, "a"))}
    for seconds, takers in ((0.0, 1), (PATIENCE_SECONDS, 2), (2 * PATIENCE_SECONDS, 4), (6 * PATIENCE_SECONDS, 64)):
        found = [own.node for own in standbys if choose(seen, own, {"a": seconds}) is not None]
        assert sorted(order[node] for node in found) == list(range(takers))


def test_of_two_that_took_a_model_one_steps_back() -> None:
    one, two = record(1, "a"), record(2, "a")
    if rendezvous_weight(one.node, "a") < rendezvous_weight(two.node, "a"):
        one, two = two, one  # `one` has the higher hash
    need = Need("a")

    def surplus(first: dict[str, object], second: dict[str, object], need: Need = need) -> list[bool]:
        both = (replace(one, **first), replace(two, **second))  # type: ignore[arg-type]
        seen = view(asking(a=1), *both)
        return [is_surplus(seen, own, need, serving=bool(own.serves)) for own in both]

    loads, serves = {"loading": ("a",)}, {"serves": (taken("a"),)}
    assert surplus(loads, loads) == [False, True]
    assert surplus(serves, serves) == [False, True]
    assert surplus(serves, loads) == [False, True]
    assert surplus(loads, serves) == [True, False]
    assert not surplus(serves, {})[0]
    assert surplus(serves, serves, Need("a", extra=True)) == [False, False], "it was to be another one"
    assert surplus(loads, loads, Need("a", extra=True)) == [False, True]
    own_model: dict[str, object] = {"serves": (ServedModel("a"),), "wants": ("a",)}
    assert surplus(serves, own_model)[0], "a node that was started with the model stays"


def test_owner_does_not_step_back_for_a_foreign_node() -> None:
    one, two = record(1, "a", serves=(taken("a"),)), record(2, serves=(ServedModel("a"),))
    assert is_surplus(view(one, two), one, Need("a"), serving=True)
    assert not is_surplus(view(one, two, foreign=(two.node,)), one, Need("a"), serving=True)


# -- moving


def movers(seen: PlacementView, *records: NodeRecord) -> list[tuple[NodeId, str]]:
    return [(own.node, need.model) for own in records if (need := move(seen, own)) is not None]


def test_host_of_an_unwanted_model_moves_to_a_wanted_one() -> None:
    host = record(1, "cold", "hot", serves=(taken("cold"),))
    assert movers(view(asking(hot=1), host), host) == [(host.node, "hot")]
    assert movers(view(asking(hot=5, cold=1), host), host) == [], "the last host of a wanted model"
    young = record(1, "cold", "hot", serves=(taken("cold", movable=False),))
    assert movers(view(asking(hot=1), young), young) == []
    own = record(1, "cold", "hot", serves=(ServedModel("cold"),))
    assert movers(view(asking(hot=1), own), own) == [], "its owner wants it to serve that"
    free = record(2, "hot")
    assert movers(view(asking(hot=1), host, free), host) == [], "a standby takes it"


def test_one_of_several_hosts_moves_by_a_clear_margin() -> None:
    hosts = [record(number, "cold", "hot", serves=(taken("cold"),)) for number in range(1, 5)]
    assert len(movers(view(asking(hot=3, cold=3), *hosts), *hosts)) == 1
    busy_hot = record(9, serves=(taken("hot", movable=False, pressed=True),))
    assert len(movers(view(asking(hot=4, cold=3), busy_hot, *hosts), busy_hot, *hosts)) == 1
    assert movers(view(asking(hot=1, cold=4), busy_hot, *hosts), busy_hot, *hosts) == []
    assert len(movers(view(asking(hot=1, cold=4), *hosts), *hosts)) == 1, "hot has no host at all, cold three others"
    busy = [replace(host, serves=(taken("cold", pressed=True),)) for host in hosts]
    assert movers(view(asking(hot=3, cold=3), *busy), *busy) == []


def test_only_host_of_a_model_moves_to_one_without_a_host_once_another_node_serves_it() -> None:
    only, free = record(1, "cold", "new", serves=(taken("cold"),)), record(2, "cold")
    seen = view(asking(cold=2, new=1), only, free)
    assert seen.needs == [Need("new"), Need("cold", extra=True, relief=True)]
    assert movers(seen, only) == []
    assert choose(seen, free, {}) == Need("cold", extra=True, relief=True)
    relieved = record(2, "cold", serves=(taken("cold", movable=False),))
    assert movers(view(asking(cold=2, new=1), only, relieved), only, relieved) == [(only.node, "new")]


def test_relief_comes_from_a_host_of_another_model_if_there_is_no_standby() -> None:
    only = record(1, "cold", "new", serves=(taken("cold"),))
    spare = [record(number, "hot", "cold", serves=(taken("hot"),)) for number in (2, 3)]
    seen = view(asking(cold=2, new=1, hot=4), only, *spare)
    assert [model for _, model in movers(seen, only, *spare)] == ["cold"], "without a margin"


def test_no_relief_for_made_up_demand_nor_for_a_busy_or_young_host() -> None:
    only, free = record(1, "cold", "new", serves=(taken("cold"),)), record(2, "cold")
    stranger = asking(50, new=8)
    assert view(asking(cold=2), stranger, only, free, foreign=(stranger.node,)).needs == [Need("new")]
    for served in (taken("cold", movable=False), ServedModel("cold"), taken("cold", pressed=True)):
        seen = view(asking(cold=2, new=1), replace(only, serves=(served,)), free)
        assert not [need for need in seen.needs if need.relief]


def test_several_nodes_load_a_model_with_many_full_hosts() -> None:
    hosts = [record(number, serves=(taken("hot", pressed=True),)) for number in range(1, 7)]
    standbys = [record(number, "hot") for number in range(10, 20)]
    assert choices(view(asking(hot=5), *hosts, *standbys), *standbys) == ["hot"] * 3
    loading = [replace(standbys[0], loading=("hot",)), *standbys[1:]]
    assert choices(view(asking(hot=5), *hosts, *loading), *loading[1:]) == ["hot"] * 2


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.booleans()), min_size=1, max_size=7),
    st.dictionaries(st.sampled_from("abcxyz"), st.integers(1, 8)),
)
def test_whoever_moves_a_wanted_model_keeps_a_host(
    served: list[tuple[str, bool, bool]], demand: dict[str, int]
) -> None:
    hosts = [
        record(number, *"abcxyz", serves=(taken(model, movable=movable, pressed=pressed),))
        for number, (model, movable, pressed) in enumerate(served)
    ]
    seen = view(asking(**demand), *hosts)
    leaving = {node for node, _ in movers(seen, *hosts)}
    for model in demand:
        having = {host.node for host in hosts if host.serves[0].name == model}
        assert not having or having - leaving


def test_made_up_demand_moves_no_model() -> None:
    hosts = [record(number, "m", "made", serves=(taken("m"),)) for number in (1, 2, 3)]
    strangers = [asking(number, made=8) for number in range(50, 80)]
    one_inviter = node_id(1000)
    claims = [DemandClaim(each, each.node, True) for each in (asking(m=1), *hosts)]
    claims += [DemandClaim(each, one_inviter, False) for each in strangers]
    owned = {claim.record.node for claim in claims if claim.owned}
    seen = PlacementView([claim.record for claim in claims], scores(claims), owned)
    assert movers(seen, *hosts) == []
    one_own = view(asking(m=4), asking(60, made=8), *hosts)
    assert len(movers(one_own, *hosts)) <= 1, "even a machine of the owner gets one host at most"
    left = view(asking(m=4), asking(60, made=8), hosts[0])
    assert movers(left, hosts[0]) == []


def test_host_is_none_if_it_is_about_to_leave_or_foreign() -> None:
    own = record(1, "m", serves=(taken("m"),))
    leaves, stays = record(2, serves=(taken("m"),), loading=("x",)), record(3, serves=(ServedModel("m"),))
    assert not may_leave(view(asking(m=1), own, leaves), own, "m")
    assert may_leave(view(asking(m=1), own, leaves, stays), own, "m")
    assert not may_leave(view(asking(m=1), own, stays, foreign=(stays.node,)), own, "m")


# -- the decisions of one node over time


class Host:
    """A node's placement, whose loads and stops take no time."""

    def __init__(self, *disk: str) -> None:
        self.placement = DemandPlacement()
        self.record = record(1, *disk)
        self.now = 0.0

    def step(self, *others: NodeRecord, seconds: float = 3.0, fails: bool = False) -> str:
        """Decide once; returns the model that is served then."""
        self.now += seconds
        model = self.model
        reserved = (self.placement.reserved,) if self.placement.reserved else ()
        served = (taken(model, movable=model == self.placement.movable),) if model and not fails else ()
        self.record = replace(self.record, serves=served, loading=reserved)
        seen = view(self.record, *others)
        having = [model] if model else []
        serving = [] if fails else having
        failed = dict.fromkeys(having, "no") if fails else {}
        self.placement.decide(seen, self.record, self.now, free=not model, serving=serving, failed=failed)
        return self.model

    @property
    def model(self) -> str:
        """The model that it took."""
        return next(iter(self.placement.taken), "")


def test_node_stays_with_its_model_for_a_while_and_gives_notice_before_it_moves() -> None:
    host = Host("a", "b")
    assert host.step(asking(a=1)) == "a"
    begun = host.now
    while host.model == "a":
        host.step(asking(b=1))
        assert host.now < 2000
    assert host.now - begun >= RESIDENCE_SECONDS + NOTICE_SECONDS
    assert host.placement.reserved == "b"
    assert host.step(asking(b=1)) == "b"


def test_node_does_not_leave_if_the_other_host_leaves_during_its_notice() -> None:
    host = Host("a", "b")
    host.step(asking(a=1))
    number = next(n for n in range(2, 99) if rendezvous_weight(node_id(n), "a") < rendezvous_weight(node_id(1), "a"))
    other = record(number, serves=(taken("a", movable=False),))
    while not host.placement.reserved:
        host.step(asking(a=1, b=3), other)
        assert host.now < 2000
    for _ in range(10):
        assert host.step(asking(a=1, b=3), replace(other, loading=("x",))) == "a"
    assert not host.placement.reserved


def test_model_that_fails_is_left_to_others_for_a_while() -> None:
    host = Host("a")
    host.step(asking(a=1))
    assert host.step(asking(a=1), fails=True) == ""
    assert host.step(asking(a=1), seconds=60.0) == ""
    assert host.step(asking(a=1), seconds=AVOID_SECONDS) == "a"


def test_claim_to_load_a_model_expires() -> None:
    claims, mute = LoadingClaims(), record(2, "a", loading=("a",))
    assert claims.believed([mute], 0.0) == [mute]
    assert claims.believed([mute], CLAIM_SECONDS - 1) == [mute]
    assert claims.believed([mute], CLAIM_SECONDS)[0].loading == ()
    other = replace(mute, loading=("b",))
    assert claims.believed([other], CLAIM_SECONDS + 1) == [other]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_surplus_hosts_step_back_until_one_is_left(count: int) -> None:
    records = [record(number, "a", serves=(taken("a", movable=False),)) for number in range(count)]
    seen = view(asking(a=1), *records)
    assert [is_surplus(seen, own, Need("a"), serving=True) for own in records].count(False) == 1
