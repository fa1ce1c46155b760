"""Routing over the mesh as pure functions: who is asked, in which order, for how long, and what is remembered."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from meshllm.core.membership.views import AwayMember, JoinPhase, MeshView, PeerStatus, PeerView
from meshllm.core.records import FailureReport, MeshId, ModelLoad, NodeId, NodeRecord, RecordVersion, Role, ServedModel
from meshllm.core.routing import route_texts, routes
from meshllm.core.routing.affinity import SessionAffinity
from meshllm.core.routing.first_byte_timeout import FLOOR_SECONDS, MAX_SECONDS, FirstByteTimes
from meshllm.core.routing.ranking import RankedHost, rank
from meshllm.core.routing.routes import Availability, TargetKind
from meshllm.core.snapshot import BackendState, FilePhase, ModelFacts, ModelState, ServerFacts, ServerPhase, Snapshot
from meshllm.core.split.host import SplitState
from meshllm.core.split.lease import Lease

MESH = MeshId(bytes(16))
ME = NodeId(bytes(32))


def peer(
    number: int,
    *models: str,
    status: PeerStatus = PeerStatus.ALIVE,
    rtt: float | None = 0.01,
    load: tuple[int, int] | None = None,
    wants: tuple[str, ...] = (),
    incarnation: int = 1,
) -> PeerView:
    """A peer that serves these models with four slots each."""
    serves = tuple(ServedModel(model, context_length=4096, slots=4) for model in models)
    record = NodeRecord(
        NodeId(bytes([number]) * 32), RecordVersion(incarnation, 1), MESH, f"n{number}", serves=serves, wants=wants
    )
    loads = tuple(ModelLoad(model, *load) for model in models) if load is not None else ()
    return PeerView(record, status, True, rtt, loads)


def snapshot(
    *peers: PeerView,
    phase: JoinPhase = JoinPhase.JOINED,
    wants: tuple[str, ...] = (),
    models: tuple[ModelState, ...] = (),
    backends: tuple[BackendState, ...] = (),
) -> Snapshot:
    """What a node knows that has these peers."""
    return Snapshot(
        models=models, backends=backends, wants=wants, mesh=MeshView(ME, MESH, Role.NODE, phase, peers=peers)
    )


SERVED = ModelState(
    "m", file=FilePhase.READY, server=ServerPhase.SERVING, server_facts=ServerFacts("/s", 1, 2, 2048), generation=3
)


def test_route_orders_local_targets_then_peers_by_load_and_round_trip() -> None:
    known = snapshot(
        peer(1, "m", load=(2, 1)),
        peer(2, "m", rtt=0.2),
        peer(3, "m", rtt=0.01),
        models=(SERVED,),
        backends=(BackendState("http://b", True, ("m",)),),
    )
    targets = routes.route(known, "m").targets
    assert [target.kind for target in targets] == [TargetKind.ENGINE, TargetKind.BACKEND, *[TargetKind.PEER] * 3]
    assert [target.address[:2] for target in targets[2:]] == ["03", "02", "01"]
    assert (targets[2].generation, targets[2].slots, targets[2].model) == (1, 4, "m")
    assert [offer.target for offer in routes.all_offers(known)["m"]] == list(targets)


def test_route_has_vision_from_the_file_or_the_record() -> None:
    facts = ModelFacts("/m", 1, "llama", 4096, vision=True)
    record = replace(peer(1).record, serves=(ServedModel("m", vision=False), ServedModel("n")))
    known = snapshot(replace(peer(1), record=record), models=(replace(SERVED, facts=facts),))
    assert [offer.vision for offer in routes.route(known, "m").offers] == [True, False]
    assert [offer.vision for offer in routes.route(known, "n").offers] == [None]
    loading = replace(SERVED, facts=facts, server=ServerPhase.STARTING, server_facts=None)
    route = routes.route(snapshot(models=(loading,)), "m")
    assert (route.offers, route.vision) == ((), True)


@given(st.sampled_from(list(PeerStatus)))
def test_route_uses_live_peers_only(status: PeerStatus) -> None:
    route = routes.route(snapshot(peer(1, "m", status=status)), "m")
    assert bool(route.targets) == (status is PeerStatus.ALIVE)
    assert route.dial_hosts == (status in (PeerStatus.UNVERIFIED, PeerStatus.SUSPECT))
    assert (route.availability is Availability.UNKNOWN) == (status in (PeerStatus.DEAD, PeerStatus.LEFT))


def test_route_skips_peers_that_do_not_answer_this_node() -> None:
    seen = (peer(1, "m"), peer(2, "m", incarnation=2))
    known = snapshot(*seen)
    assert known.mesh is not None
    complaints = (FailureReport(seen[0].node, 1), FailureReport(seen[1].node, 1))  # the second has come back since
    own = NodeRecord(ME, RecordVersion(1, 1), MESH, failure_reports=complaints)
    known = replace(known, mesh=replace(known.mesh, record=own))
    assert [target.address[:2] for target in routes.route(known, "m").targets] == ["02"]


def test_route_without_targets_says_why() -> None:
    joining = routes.route(snapshot(phase=JoinPhase.SYNCING), "m")
    assert (joining.availability, joining.max_wait) == (Availability.COMING, routes.SETTLING_SECONDS)
    assert "joining the mesh" in joining.message
    looking = routes.route(snapshot(peer(1, "m", status=PeerStatus.SUSPECT)), "m")
    assert looking.waits_for == joining.waits_for != "", "one wait, not one after the other"
    for known in (snapshot(wants=("m",)), snapshot(peer(1, wants=("m",)))):
        wanted = routes.route(known, "m")
        assert (wanted.availability, wanted.max_wait) == (Availability.COMING, routes.WANTED_SECONDS)
        assert "--join" in wanted.timeout_message
        assert routes.wanted(known) == ("m",)
    assert routes.route(snapshot(phase=JoinPhase.FAILED), "m").availability is Availability.FAILED
    assert routes.route(snapshot(peer(1, "x")), "m").availability is Availability.UNKNOWN
    assert routes.models(snapshot(peer(1, "x"), models=(SERVED,))) == ("m", "x")


def away(*members: AwayMember, **more: Any) -> Snapshot:
    """What a node knows while these members are away."""
    known = snapshot(peer(1, "x"), **more)
    assert known.mesh is not None
    return replace(known, mesh=replace(known.mesh, away=members))


CELLAR = AwayMember(NodeId(b"c" * 32), "cellar", ("m", "big"), 1000.0)
ATTIC = AwayMember(NodeId(b"a" * 32), "attic", ("m",), 900.0)


def test_model_that_was_served_a_moment_ago_is_unavailable_and_not_unknown() -> None:
    known = away(CELLAR, ATTIC)
    found = routes.route(known, "m", now=1005.0)
    assert found.availability is Availability.FAILED
    assert (
        found.message == "m is not served at the moment. cellar was last seen 5 s ago. It served m. Retry in a moment."
    )
    late = routes.route(known, "m", now=1000.0 + routes.SERVED_LATELY_SECONDS + 1)
    assert late.availability is Availability.UNKNOWN
    assert routes.route(known, "other", now=1005.0).availability is Availability.UNKNOWN
    wanted = routes.route(away(CELLAR, wants=("m",)), "m", now=1005.0)
    assert (wanted.availability, wanted.max_wait) == (Availability.COMING, routes.WANTED_SECONDS)
    assert "cellar was last seen" in wanted.timeout_message
    only = routes.mesh_index(known.mesh, only_from=("61",))
    assert "attic" in routes.route(known, "m", only, 1005.0).message, "no host that must not read the prompt"


def test_model_that_the_owner_dropped_says_so_until_its_time_is_over() -> None:
    text = (
        "Big is not served. The owner of this node dropped it: for 2 h this node does not load it for the mesh. "
        "'mesh-llm load Big' brings it back."
    )
    known = replace(snapshot(peer(1, "small")), dropped=(("Big", 7300.0),))
    assert route_texts.dropped_text(known, "big", now=100.0) == text
    assert route_texts.dropped_text(known, "small", now=100.0) == ""
    assert route_texts.dropped_text(known, "big", now=7300.0) == ""
    asked = replace(snapshot(peer(1, wants=("Big",))), dropped=known.dropped)
    assert routes.route(asked, "Big", now=100.0).timeout_message == text, "also if another node requests it"


def test_members_that_are_away_are_named_with_the_time_they_were_seen_last() -> None:
    assert route_texts.away_text(away().mesh, 0.0) == ""
    said = route_texts.away_text(away(CELLAR, ATTIC).mesh, 8200.0)
    assert said == "Away, and may serve more: cellar (last seen 2 h ago), attic (last seen 2 h ago)."
    crowd = [replace(CELLAR, node=NodeId(bytes([n]) * 32)) for n in range(9)]
    assert route_texts.away_text(away(*crowd).mesh, 1000.0).endswith("and 6 more.")


def test_model_too_large_for_this_node_alone_names_who_is_away() -> None:
    refused = ModelState(
        "big", file=FilePhase.READY, reason="needs 8 GB, this node has 4 GB.", split=SplitState("needs", refused=True)
    )
    found = routes.route(away(CELLAR, models=(refused,)), "big", now=1005.0)
    assert found.availability is Availability.FAILED
    assert "Away now: cellar." in found.message


def test_caller_waits_a_bounded_time_for_the_other_nodes_of_a_split() -> None:
    waiting = ModelState(
        "m", file=FilePhase.READY, split=SplitState("this node has not joined the mesh yet (dialling)")
    )
    found = routes.route(snapshot(models=(waiting,)), "m")
    assert (found.availability, found.max_wait) == (Availability.COMING, routes.OTHER_NODES_SECONDS)
    assert "not joined the mesh yet" in found.timeout_message
    again = replace(waiting, split=SplitState("n2 disconnected"))
    assert routes.route(snapshot(models=(again,)), "m").waits_for == found.waits_for, "the time goes on"
    prepared = replace(waiting, split=SplitState("needs n2", lease=Lease(bytes(16), 1, "m", (), ())))
    assert routes.route(snapshot(models=(prepared,)), "m").max_wait is None, "a worker may be downloading"


def test_route_to_a_failed_local_model_uses_a_peer() -> None:
    failed = ModelState("m", file=FilePhase.FAILED, reason="no room")
    assert routes.route(snapshot(models=(failed,)), "m").availability is Availability.FAILED
    assert routes.route(snapshot(models=(failed,), phase=JoinPhase.DIALLING), "m").availability is Availability.COMING
    assert routes.route(snapshot(peer(1, "m"), models=(failed,)), "m").targets


def test_rank_order() -> None:
    here = RankedHost(0, local=True, busy=0.5, context_length=2048)
    near = RankedHost(1, rtt=0.001, context_length=4096)
    far = RankedHost(2, rtt=0.2, context_length=4096)
    assert [c.order for c in rank([far, near, here])] == [0, 1, 2]
    assert rank([near, far._replace(sticky=True), here])[0].order == 2
    # No free slot: load alone counts, and the conversation's own host may have a slightly longer queue.
    full = here._replace(free=False, busy=1.5)
    assert [c.order for c in rank([full, far, near])] == [1, 2, 0]
    packed = [full, near._replace(free=False, busy=1.2), far._replace(free=False, busy=2.0, sticky=True)]
    assert rank(packed)[0].order == 2
    packed[2] = packed[2]._replace(busy=2.5)
    assert rank(packed)[0].order == 1
    # What cannot hold the prompt comes after what can, and what has failed after all.
    assert [c.order for c in rank([here, near], 3000)] == [1, 0]
    assert [c.order for c in rank([here, near], 9000)] == [1, 0]
    assert [c.order for c in rank([here._replace(resting=True), near])] == [1, 0]


def test_prompts_go_to_the_owners_machines_before_other_members() -> None:
    here = RankedHost(0, local=True, busy=0.5)
    ours = RankedHost(1, rtt=0.2, busy=0.5, owned=True)
    other = RankedHost(2, rtt=0.001)
    assert [c.order for c in rank([other, ours, here])] == [0, 1, 2]
    assert rank([other._replace(sticky=True), ours])[0].order == 2, "a conversation stays where it was read before"
    assert rank([other, ours._replace(free=False, busy=1.5)])[0].order == 2
    assert rank([other, ours._replace(resting=True)])[0].order == 2
    both = replace(peer(1, "m"), owned=True), peer(2, "m")
    assert [offer.owned for offer in routes.route(snapshot(*both), "m").offers] == [True, False]


@given(
    st.lists(
        st.builds(
            RankedHost,
            st.just(0),
            st.booleans(),
            st.booleans(),
            st.floats(0, 20),
            st.none() | st.floats(0, 2),
            st.integers(0, 1 << 20),
            st.booleans(),
            st.booleans(),
        ),
        max_size=8,
    ),
    st.integers(0, 1 << 20),
    st.randoms(),
)
def test_rank_is_independent_of_input_order(pool: list[RankedHost], tokens: int, random) -> None:  # type: ignore[no-untyped-def]
    pool = [candidate._replace(order=order) for order, candidate in enumerate(pool)]
    ranked = rank(pool, tokens)
    assert sorted(c.order for c in ranked) == list(range(len(pool)))
    random.shuffle(pool)
    assert rank(pool, tokens) == ranked


PLACES = [(TargetKind.PEER, "a"), (TargetKind.PEER, "b"), (TargetKind.ENGINE, "/s")]


@given(st.lists(st.tuples(st.sampled_from("rfpd"), st.integers(0, 9), st.sampled_from(PLACES)), max_size=80))
def test_affinity_is_bounded_and_forgets_failed_hosts(steps: list[tuple[str, int, routes.Place]]) -> None:
    table, model = SessionAffinity[routes.Place](limit=5, age=30.0), dict[bytes, tuple[routes.Place, float]]()
    for now, (step, number, place) in enumerate(steps):
        key = bytes([number])
        if step == "r":
            table.remember(key, place, float(now))
            model.pop(key, None)
            model[key] = (place, float(now))
            while len(model) > 5:
                del model[next(iter(model))]
        elif step == "f":
            table.forget(key)
            model.pop(key, None)
        elif step == "p":
            table.forget_place(place)
            model = {k: v for k, v in model.items() if v[0] != place}
        found = model.get(key)
        if found is not None and now - found[1] > 30.0:
            del model[key]
            found = None
        assert table.find(key, float(now)) == (found[0] if found else None)
        assert len(table) <= 5
        assert len(table) == len(model)


def test_a_title_does_not_move_a_conversation() -> None:
    table = SessionAffinity[str](limit=5, age=30.0)
    table.remember(b"s", "one", 0.0)
    table.remember(b"s", "two", 1.0, firm=False)
    assert table.find(b"s", 2.0) == "one"
    table.remember(b"s", "one", 2.0, firm=False)
    table.remember(b"s", "two", 3.0, firm=False)
    assert table.find(b"s", 4.0) == "one"
    table.remember(b"s", "two", 5.0)
    assert table.find(b"s", 6.0) == "two"
    # Where no request has tools, the last host counts; an old memory binds nobody.
    table.remember(b"chat", "one", 6.0, firm=False)
    table.remember(b"chat", "two", 7.0, firm=False)
    assert table.find(b"chat", 8.0) == "two"
    table.remember(b"s", "three", 50.0, firm=False)
    assert table.find(b"s", 51.0) == "three"


@given(
    st.lists(st.tuples(st.floats(0, 500), st.integers(0, 200_000)), max_size=30),
    st.integers(0, 1_000_000),
    st.integers(0, 20),
)
def test_first_byte_timeout_is_bounded(samples: list[tuple[float, int]], tokens: int, late: int) -> None:
    times = FirstByteTimes()
    for seconds, length in samples:
        times.add(seconds, length)
    assert FLOOR_SECONDS <= times.deadline(tokens, late) <= MAX_SECONDS
    assert times.deadline(tokens) <= times.deadline(tokens, 1)
    assert times.deadline(tokens) <= times.deadline(tokens + 1000)


def test_first_byte_timeout_grows_for_slow_hosts() -> None:
    slow, quick = FirstByteTimes(), FirstByteTimes()
    for _ in range(10):
        slow.add(90.0, 4000)
        quick.add(0.2, 4000)
    assert slow.deadline(4000) > 90.0 > quick.deadline(4000)


def test_claimed_slots_are_bounded_and_only_named_nodes_are_hosts() -> None:
    """A record with 1,000 slots attracts no more than its bound, and nothing of a node that names its hosts."""
    rogue, honest = peer(1, "m", load=(2, 0)), peer(2, "m", load=(2, 0))
    claim = ServedModel("m", context_length=4096, slots=1000)
    rogue = replace(rogue, record=replace(rogue.record, serves=(claim,)))
    mesh = snapshot(rogue, honest).mesh
    offers = routes.mesh_index(mesh).hosts["m"]
    assert max(offer.target.slots for offer in offers) == routes.MAX_CLAIMED_SLOTS
    trusted = honest.node.hex()
    for start in (trusted, trusted[:16]):
        index = routes.mesh_index(mesh, (start,))
        assert [offer.target.address for offer in index.hosts["m"]] == [trusted]
        assert index.alive == {trusted}


def test_of_equal_hosts_the_known_one_is_first() -> None:
    hosts = [RankedHost(0), RankedHost(1, known=True), RankedHost(2, busy=0.5, known=True)]
    assert [found.order for found in rank(hosts)] == [1, 0, 2]


UNLOADED = replace(SERVED, unloaded=True, server=ServerPhase.NONE, server_facts=None, last_run=SERVED.server_facts)


def test_unloaded_model_is_waited_for_here_and_by_peers() -> None:
    for found in (
        routes.route(snapshot(models=(UNLOADED,)), "m"),
        routes.route_here(snapshot(models=(UNLOADED,)), "m"),
    ):
        assert (found.offers, found.availability, found.loads) == ((), Availability.COMING, True)
        assert found.message == "loading m"
    assert "m" in routes.models(snapshot(models=(UNLOADED,)))
    loading = replace(UNLOADED, unloaded=False, server=ServerPhase.STARTING)
    found = routes.route_here(snapshot(models=(loading,)), "m")
    assert (found.availability, found.loads) == (Availability.COMING, False)


def test_model_that_starts_or_fails_makes_peers_ask_another_host() -> None:
    starting = replace(SERVED, server=ServerPhase.STARTING, server_facts=None)
    assert routes.route_here(snapshot(models=(starting,)), "m").availability is Availability.UNKNOWN
    assert routes.route_here(snapshot(), "m").availability is Availability.UNKNOWN
    assert routes.route_here(snapshot(models=(SERVED,)), "m").offers == routes.offers_here(
        snapshot(models=(SERVED,)), "m"
    )


def test_host_that_has_the_model_loaded_is_asked_instead_of_one_that_must_load_it() -> None:
    awake, asleep = peer(1, "m", load=(3, 0), rtt=0.2), peer(2, "m", rtt=0.001)
    served = replace(asleep.record.serves[0], slots=0, size=100)
    asleep = replace(asleep, record=replace(asleep.record, serves=(served,)))
    found = routes.route(snapshot(awake, asleep), "m")
    assert [offer.target.address for offer in found.offers] == [awake.node.hex()]
    found = routes.route(snapshot(asleep), "m")
    assert [(offer.target.address, offer.loaded) for offer in found.offers] == [(asleep.node.hex(), False)]
    # A backend behind a peer has no slots either, and no file.
    pool = replace(asleep, record=replace(asleep.record, serves=(ServedModel("m"),)))
    assert len(routes.route(snapshot(awake, pool), "m").offers) == 2
