"""Splits among a few cores on virtual time: who hosts, who lends, what becomes of it when somebody goes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from enum import Enum

import pytest

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership.views import AwayMember
from meshllm.core.memory.context_size import ContextSize
from meshllm.core.records import NodeId
from meshllm.core.routing import routes
from meshllm.core.routing.routes import Availability
from meshllm.core.serving import next_step
from meshllm.core.snapshot import ModelFacts, ModelPhase, ServerFacts, ServerPhase
from meshllm.core.split.coordinator import AWAY_SECONDS
from meshllm.core.split.host import MeasuredModel, SizeNeed, SplitState
from meshllm.core.split.lease import (
    LEASE_TTL_SECONDS,
    RENEW_SECONDS,
    TRANSITIONS,
    Commit,
    Lease,
    LeasedFile,
    LeaseMessage,
    LeasePhase,
    Propose,
    Release,
    Renew,
    WorkerReport,
)
from meshllm.core.split.planner import SplitNeed, WorkerShare
from meshllm.core.transitions import move
from meshllm.wire.mesh.codec import encode_message
from tests.core.small_mesh import SmallMesh, node_id

FILES = (LeasedFile("m.gguf", 1000, "ab" * 32),)


class StopKind(Enum):
    """How an engine process is stopped."""

    PLAIN = "plain"
    DRAIN = "drain"
    AT_ONCE = "at once"


class SplitMesh(SmallMesh):
    """A small mesh whose nodes have engines.

    `room` is what each has; those in `mute` say nothing of leases, those in `endless` never come to an end with
    preparing, those in `paging` could serve it from the disk.
    """

    def __init__(self, seed: int = 1) -> None:
        super().__init__(seed)
        self.room: dict[int, int] = {}
        self.need = SplitNeed((100,) * 10, (100,) * 10, 50, 10)
        self.workers: dict[int, Lease] = {}
        self.servers: dict[int, c.StartServer] = {}
        self.started: list[tuple[int, c.StartServer]] = []
        self.ahead: list[tuple[int, NodeId]] = []
        self.mute: set[int] = set()
        self.endless: set[int] = set()
        self.paging: set[int] = set()
        self.slow = False  # whether measuring takes long
        self.drains = False  # whether answers take long to end, until `drained`
        self.stops: list[tuple[int, StopKind]] = []
        self.lose: Callable[[int, object], bool] = lambda number, message: False  # messages of a node that get lost

    def node(self, number: int, room: int, *, joins: int | None = None, model: str = "", apart: bool = False) -> None:
        """Start one; with `model` it is asked to serve that."""
        self.room[number] = room
        self.start(number, () if joins is None else (self.way(joins),))
        self.tell(number, e.MachineObserved(room))
        if model:
            self.tell(number, e.ModelWanted(model, apart))

    def drained(self, number: int, event: e.ServerGone | None = None) -> None:
        """Its engine process has ended."""
        server = self.servers.pop(number, None)
        if event is None and server is not None:
            event = e.ServerGone(server.model, server.generation, "it was stopped")
        if event is not None:
            self.soon(number, event)

    def lose_worker(self, number: int) -> None:
        """Its rpc-server dies."""
        lease = self.workers.pop(number)
        self.tell(number, e.WorkerGone(lease.session, lease.generation, "it was killed"))

    def split(self, number: int, model: str = "m") -> SplitState | None:
        state = self.cores[number].snapshot().model(model)
        return state.split if state is not None else None

    def serves(self, number: int, model: str = "m") -> bool:
        state = self.cores[number].snapshot().model(model)
        return state is not None and state.server is ServerPhase.SERVING

    def phase(self, number: int, model: str = "m") -> ModelPhase:
        snapshot = self.cores[number].snapshot()
        state = snapshot.model(model)
        assert state is not None
        return next_step.phase(snapshot.engine, state)

    def soon(self, number: int, event: e.Event) -> None:
        core = self.cores.get(number)
        self._at(0.05, lambda: self.tell(number, event) if self.cores.get(number) is core else None)

    def measured(self, number: int) -> MeasuredModel:
        """What a node finds out about the model."""
        alone = self.need.total <= self.room[number]
        sizes = (SizeNeed(ContextSize(4096, 1), self.need),)
        return MeasuredModel(alone, self.room[number], sizes, FILES, disk_paging=not alone and number in self.paging)

    def _carry_out(self, number: int, command: c.Command) -> None:
        match command:
            case c.PrepareEngine():
                self.soon(number, e.EngineReady("1"))
            case c.FetchModel(model):
                self.soon(number, e.FileReady(model, ModelFacts("/m.gguf", 1000, "llama", 8192)))
            case c.MeasureModel(model):
                if not self.slow:
                    self.soon(number, e.ModelMeasured(model, self.measured(number)))
            case c.StartServer(model, generation):
                self.servers[number] = command
                self.started.append((number, command))
                self.soon(number, e.ServerReady(model, generation, ServerFacts("/s", 1, 1, 4096)))
            case c.StopServer(model, generation, at_once, drain):
                kind = StopKind.AT_ONCE if at_once else StopKind.DRAIN if drain else StopKind.PLAIN
                self.stops.append((number, kind))
                if not (drain and self.drains):
                    self.drained(number, e.ServerGone(model, generation, "it was stopped"))
            case c.StartWorker(lease):
                self.workers[number] = lease
                if number not in self.endless:
                    self.soon(number, e.WorkerReady(lease.session, lease.generation))
            case c.StopWorker(session, generation):
                self.workers.pop(number, None)
                self.soon(number, e.WorkerGone(session, generation, "it was stopped"))
            case c.OpenAhead(peer):
                self.ahead.append((number, peer))
            case c.Send(_, WorkerReport()) if number in self.mute:
                pass
            case c.Send(_, LeaseMessage() as message) if self.lose(number, message):
                pass
            case _:
                super()._carry_out(number, command)


@pytest.fixture
def mesh() -> SplitMesh:
    return SplitMesh()


def pair(mesh: SplitMesh, host: int = 700, worker: int = 600) -> None:
    """Node 1 wants a model that takes 1,060; node 2 has nothing to do."""
    mesh.node(1, host, model="m")
    mesh.node(2, worker, joins=1)


def serving_pair(mesh: SplitMesh) -> Lease:
    pair(mesh)
    mesh.until(lambda: mesh.serves(1))
    lease = mesh.servers[1].lease
    assert lease is not None
    return lease


def test_split_serves_a_model_that_fits_neither_node(mesh: SplitMesh) -> None:
    lease = serving_pair(mesh)
    assert lease.members == (node_id(2),)
    assert sum(share.layers for share in lease.shares) == 10
    assert mesh.workers[2] == lease
    assert mesh.ahead == [(1, node_id(2))]
    split = mesh.split(1)
    assert split is not None
    assert split.committed
    assert split.plan is not None
    assert split.plan.seconds > 0
    lent = mesh.cores[2].snapshot().worker_lease
    assert lent is not None
    assert (lent.lease, lent.phase) == (lease, LeasePhase.COMMITTED)
    mesh.run(2.0)
    assert routes.route(mesh.cores[2].snapshot(), "m").targets


def test_worker_serves_no_requested_model_and_is_idle(mesh: SplitMesh) -> None:
    mesh.node(1, 700, model="m")
    mesh.node(2, 600, joins=1)
    mesh.tell(
        2, e.MachineObserved(600, models=("other",))
    )  # what it would look through again and again, if it lent nothing
    mesh.until(lambda: mesh.serves(1))
    mesh.run(30.0)  # and does not stand still
    assert mesh.cores[2].snapshot().models == ()
    deadline = mesh.cores[2].next_deadline()
    assert deadline is not None
    assert deadline > mesh.now


def test_split_without_workers_is_refused_until_one_joins(mesh: SplitMesh) -> None:
    mesh.node(1, 700, model="m")
    mesh.run(5.0)
    assert mesh.phase(1) is ModelPhase.FAILED
    words = routes.route(mesh.cores[1].snapshot(), "m").message
    assert "needs" in words
    assert "No idle node" in words
    assert "--join" in words
    mesh.node(2, 600, joins=1)
    mesh.until(lambda: mesh.serves(1))


def test_model_that_fits_is_split_only_with_force_split(mesh: SplitMesh) -> None:
    mesh.node(1, 5000, model="m")
    mesh.node(2, 5000, joins=1)
    mesh.until(lambda: mesh.serves(1))
    assert mesh.servers[1].lease is None
    mesh.node(3, 5000, joins=1, model="n", apart=True)
    mesh.until(lambda: mesh.serves(3, "n"))
    lease = mesh.servers[3].lease
    assert lease is not None
    assert lease.members == (node_id(2),)


def test_force_split_model_is_not_served_unsplit_while_it_is_measured(mesh: SplitMesh) -> None:
    mesh.node(2, 5000)
    mesh.node(1, 5000, joins=2)
    mesh.tell(2, e.MachineObserved(5000, models=("m",)))
    mesh.slow = True
    mesh.tell(1, e.ModelWanted("m", True))
    mesh.run(20.0)  # somebody who has it has looked what the mesh could use
    assert mesh.cores[2].snapshot().models == ()
    mesh.slow = False
    mesh.soon(1, e.ModelMeasured("m", mesh.measured(1)))
    mesh.until(lambda: mesh.serves(1))
    assert mesh.servers[1].lease is not None


def test_larger_of_two_requesting_nodes_hosts_the_split(mesh: SplitMesh) -> None:
    mesh.node(1, 600, model="m")
    mesh.node(2, 700, joins=1, model="m")
    mesh.until(lambda: mesh.serves(2))
    lease = mesh.servers[2].lease
    assert lease is not None
    assert (lease.host, lease.members) == (node_id(2), (node_id(1),))
    mesh.run(2.0)
    assert not mesh.serves(1)
    split = mesh.split(1)
    assert split is not None
    assert "host" in split.status_text()
    assert routes.route(mesh.cores[1].snapshot(), "m").targets


def test_worker_with_several_accelerators_gets_layers_for_each(mesh: SplitMesh) -> None:
    mesh.node(1, 700, model="m")
    mesh.node(2, 700, joins=1)
    mesh.tell(2, e.MachineObserved(700, (300, 400)))
    mesh.until(lambda: mesh.serves(1))
    share = mesh.workers[2].share(node_id(2))
    assert share is not None
    assert (len(share.devices), sum(share.devices)) == (2, share.layers)
    assert all(count * 100 + 10 <= room for count, room in zip(share.devices, (300, 400), strict=True))
    assert mesh.servers[1].lease == mesh.workers[2]


def test_serving_node_is_no_worker(mesh: SplitMesh) -> None:
    mesh.node(1, 700, model="m")
    mesh.node(2, 5000, joins=1, model="other")
    mesh.run(10.0)
    assert mesh.serves(2, "other")
    assert mesh.phase(1) is ModelPhase.FAILED


def killed(mesh: SplitMesh) -> None:
    mesh.kill(2, seen=True)


def killed_unseen(mesh: SplitMesh) -> None:
    mesh.kill(2)


def worker_dies(mesh: SplitMesh) -> None:
    mesh.lose_worker(2)


@pytest.mark.parametrize("how", [killed, killed_unseen, worker_dies])
def test_lost_worker_withdraws_the_route_and_the_split_is_planned_again(
    mesh: SplitMesh, how: Callable[[SplitMesh], None]
) -> None:
    serving_pair(mesh)
    mesh.node(3, 500, joins=1)
    mesh.run(3.0)
    how(mesh)
    mesh.until(lambda: not routes.offers_here(mesh.cores[1].snapshot(), "m"), within=20.0)
    mesh.until(lambda: mesh.serves(1), within=10.0)
    lease = mesh.servers[1].lease
    assert lease is not None
    assert lease.generation == 2
    assert lease.members == (node_id(3),)
    state = mesh.cores[1].snapshot().model("m")
    assert state is not None
    assert (state.failures, state.restarts) == (0, 1)


def test_broken_tunnel_drops_the_worker_although_its_link_is_up(mesh: SplitMesh) -> None:
    lease = serving_pair(mesh)
    mesh.node(3, 500, joins=1)
    mesh.run(3.0)
    mesh.tell(1, e.TunnelBroken(lease.session, lease.generation + 1, node_id(2)))
    mesh.tell(1, e.TunnelBroken(b"x" * 16, lease.generation, node_id(2)))
    assert mesh.serves(1)  # of other leases
    mesh.tell(1, e.TunnelBroken(lease.session, lease.generation, node_id(2)))
    assert not routes.offers_here(mesh.cores[1].snapshot(), "m")
    mesh.until(lambda: mesh.serves(1), within=2.0)
    again = mesh.servers[1].lease
    assert again is not None
    assert again.members == (node_id(3),)
    assert 2 not in mesh.workers
    assert mesh.cores[2].snapshot().worker_lease is None


def test_callers_wait_for_a_worker_that_disconnected_recently(mesh: SplitMesh) -> None:
    serving_pair(mesh)
    mesh.lose_worker(2)
    mesh.until(lambda: not mesh.serves(1))
    mesh.run(1.0)
    route = routes.route(mesh.cores[1].snapshot(), "m")
    assert route.availability is routes.Availability.COMING
    assert "retrying in a few seconds" in route.message
    mesh.kill(2, seen=True)
    mesh.until(lambda: mesh.phase(1) is ModelPhase.FAILED)  # now there is nobody to wait for


def test_offer_of_an_engine_with_workers_is_marked_as_split(mesh: SplitMesh) -> None:
    serving_pair(mesh)
    (offer,) = routes.offers_here(mesh.cores[1].snapshot(), "m")
    assert offer.split


def test_lost_worker_is_used_again_if_no_plan_works_without_it(mesh: SplitMesh) -> None:
    serving_pair(mesh)
    mesh.lose_worker(2)
    mesh.until(lambda: not mesh.serves(1))
    mesh.until(lambda: mesh.serves(1), within=20.0)
    assert mesh.workers[2].generation == 2


def test_split_recovers_from_fifty_worker_deaths_in_a_row(mesh: SplitMesh) -> None:
    serving_pair(mesh)
    for _ in range(50):
        mesh.lose_worker(2)
        mesh.until(lambda: not mesh.serves(1))
        mesh.until(lambda: mesh.serves(1), within=20.0)
    assert mesh.workers[2].generation == 51


def test_workers_are_free_after_their_host_dies(mesh: SplitMesh) -> None:
    serving_pair(mesh)
    mesh.kill(1, seen=True)
    mesh.run(1.0)
    assert mesh.workers == {}
    assert mesh.cores[2].snapshot().worker_lease is None


def test_stopping_host_releases_its_workers(mesh: SplitMesh) -> None:
    serving_pair(mesh)
    mesh.tell(1, e.StopWanted())
    mesh.run(1.0)
    assert mesh.workers == {}
    assert mesh.cores[2].snapshot().worker_lease is None


def test_stopping_worker_reports_its_end(mesh: SplitMesh) -> None:
    serving_pair(mesh)
    mesh.tell(2, e.StopWanted())
    mesh.run(0.05)
    assert not routes.offers_here(mesh.cores[1].snapshot(), "m")


def test_silent_worker_is_dropped_and_freed(mesh: SplitMesh) -> None:
    mesh.mute.add(2)
    pair(mesh)
    mesh.run(6.0)
    mesh.node(3, 600, joins=1)
    mesh.until(lambda: mesh.serves(1), within=30.0)
    lease = mesh.servers[1].lease
    assert lease is not None
    assert lease.members == (node_id(3),)
    assert 2 not in mesh.workers, "its link is up, and it is free again all the same"


def test_worker_that_reports_may_prepare_for_minutes(mesh: SplitMesh) -> None:
    mesh.endless.add(2)
    pair(mesh)
    mesh.run(300.0)
    lease = mesh.workers[2]
    assert lease.generation == 1
    split = mesh.split(1)
    assert split is not None
    assert "preparing" in split.status_text()
    assert mesh.phase(1) is not ModelPhase.FAILED
    mesh.tell(2, e.WorkerReady(lease.session, lease.generation))
    mesh.until(lambda: mesh.serves(1), within=2.0)


def test_worker_that_stops_is_used_until_the_answers_have_ended(mesh: SplitMesh) -> None:
    first = serving_pair(mesh)
    mesh.drains = True
    mesh.node(3, 600, joins=1)
    mesh.run(1.0)
    mesh.tell(2, e.StopAnnounced())
    mesh.run(30.0)
    assert mesh.stops == [(1, StopKind.DRAIN)], "once, however often the worker repeats it"
    assert mesh.workers[2] == first, "it goes on to compute"
    offers = routes.route(mesh.cores[1].snapshot(), "m")
    assert (offers.targets, offers.availability) == ((), Availability.COMING), "new requests wait for the next plan"
    mesh.drained(1)
    mesh.until(lambda: 2 not in mesh.workers, within=1.0)
    assert mesh.cores[2].snapshot().worker_lease is None
    mesh.until(lambda: mesh.serves(1), within=10.0)
    again = mesh.servers[1].lease
    assert again is not None
    assert again.members == (node_id(3),)
    mesh.run(60.0)
    assert mesh.servers[1].lease == again


def test_worker_that_stops_before_the_answers_end_is_lost_at_once(mesh: SplitMesh) -> None:
    serving_pair(mesh)
    mesh.drains = True
    mesh.tell(2, e.StopAnnounced())
    mesh.run(1.0)
    mesh.tell(2, e.StopWanted())
    mesh.run(1.0)
    assert mesh.stops == [(1, StopKind.DRAIN), (1, StopKind.AT_ONCE)]
    assert mesh.workers == {}


def test_worker_that_stops_while_it_prepares_ends_its_lease_at_once(mesh: SplitMesh) -> None:
    mesh.endless.add(2)
    pair(mesh)
    mesh.until(lambda: 2 in mesh.workers)
    mesh.tell(2, e.StopAnnounced())
    mesh.run(1.0)
    assert mesh.workers == {}
    assert mesh.stops == []
    mesh.run(60.0)
    assert mesh.workers == {}, "it takes no lease any more"


def test_better_worker_changes_no_committed_lease(mesh: SplitMesh) -> None:
    lease = serving_pair(mesh)
    mesh.node(3, 100_000, joins=1)
    mesh.run(30.0)
    assert mesh.servers[1].lease == lease
    assert len(mesh.started) == 1


def test_crashed_engine_of_a_split_gets_a_new_lease(mesh: SplitMesh) -> None:
    lease = serving_pair(mesh)
    mesh.tell(1, e.ServerGone("m", 1, "it crashed"))
    mesh.until(lambda: mesh.serves(1), within=20.0)
    again = mesh.servers[1].lease
    assert again is not None
    assert (again.session, again.generation) == (lease.session, 2)
    assert mesh.workers[2] == again


def test_proposal_counts_only_from_its_host(mesh: SplitMesh) -> None:
    mesh.node(1, 700)
    mesh.node(2, 600, joins=1)
    mesh.run(3.0)
    forged = Lease(
        b"s" * 16, 1, "m", FILES, (WorkerShare(NodeId(b"x" * 32), 0, 5, 1), WorkerShare(node_id(2), 5, 5, 1))
    )
    mesh.tell(2, e.MessageReceived(node_id(1), Propose(forged)))
    mesh.run(1.0)
    assert mesh.workers == {}
    mine = Lease(b"s" * 16, 1, "m", FILES, (WorkerShare(node_id(1), 0, 5, 1), WorkerShare(node_id(2), 5, 5, 601)))
    mesh.tell(2, e.MessageReceived(node_id(1), Propose(mine)))
    mesh.run(1.0)
    assert mesh.workers == {}, "its share does not fit there"


def test_split_is_preferred_to_disk_paging(mesh: SplitMesh) -> None:
    mesh.paging.add(2)
    mesh.node(1, 600)
    mesh.node(2, 700, joins=1, model="m")
    mesh.until(lambda: mesh.serves(2))
    lease = mesh.servers[2].lease
    assert lease is not None
    assert lease.members == (node_id(1),)


def test_split_says_that_more_memory_would_serve_more(mesh: SplitMesh) -> None:
    larger = SizeNeed(ContextSize(8192, 4), replace(mesh.need, buffers=10_000))

    def measured(number: int) -> MeasuredModel:
        found = SplitMesh.measured(mesh, number)
        return replace(found, sizes=(larger, *found.sizes))

    mesh.measured = measured  # type: ignore[method-assign]
    mesh.node(1, 700, model="m")
    mesh.node(2, 600, joins=1)
    mesh.until(lambda: mesh.serves(1))
    split = mesh.split(1)
    assert split is not None
    assert "1 request of 4096 tokens, " in split.status_text()
    assert split.status_text().endswith("(with more memory: 4 of 8192)")


def test_model_is_served_with_disk_paging_without_workers(mesh: SplitMesh) -> None:
    mesh.paging |= {1, 2}
    mesh.node(1, 700, model="m")
    mesh.until(lambda: mesh.serves(1), within=2.0)
    assert mesh.servers[1].lease is None
    mesh.node(2, 700, joins=1, model="n")
    took = mesh.until(lambda: mesh.serves(2, "n"))
    assert took >= 5.0, "it waits a while for others"
    split = mesh.split(2, "n")
    assert split is not None
    assert split.status_text().startswith("served by this node alone, slowly, with weights read from the disk (needs ")


def test_faster_worker_is_preferred(mesh: SplitMesh) -> None:
    mesh.node(1, 700, model="m")
    mesh.tell(1, e.SpeedMeasured(1000))
    for number, speed in ((2, 1000), (3, 100_000)):
        mesh.node(number, 600, joins=1)
        mesh.tell(number, e.SpeedMeasured(speed))
    mesh.run(3.0)
    mesh.tell(1, e.ServerGone("m", 1, "it crashed"))
    mesh.until(lambda: mesh.serves(1), within=20.0)
    split = mesh.split(1)
    assert split is not None
    assert split.plan is not None
    assert split.plan.members[0].node == node_id(3)


# -- leases have a time to live


def test_lease_is_renewed_for_as_long_as_it_is_served(mesh: SplitMesh) -> None:
    lease = serving_pair(mesh)
    mesh.run(5.0)
    mesh.sent.clear()
    mesh.run(60.0)
    messages = [message for _, _, message in mesh.sent if isinstance(message, LeaseMessage)]
    assert messages == [Renew(lease.session, lease.generation, True)] * round(60.0 / RENEW_SECONDS), "and nothing else"
    assert mesh.servers[1].lease == lease
    assert len(mesh.started) == 1


def test_renewal_costs_less_than_15_bytes_a_second() -> None:
    assert len(encode_message(Renew(b"s" * 16, 1000, True))) / RENEW_SECONDS < 15


@pytest.mark.parametrize("committed", [True, False])
def test_worker_frees_itself_when_its_lease_is_not_renewed(mesh: SplitMesh, committed: bool) -> None:
    if not committed:
        mesh.endless.add(2)
    pair(mesh)
    mesh.until(lambda: 2 in mesh.workers and mesh.serves(1) is committed)
    mesh.run(3.0)
    mesh.lose = lambda number, message: number == 1  # the link stays up
    mesh.until(lambda: 2 not in mesh.workers, within=LEASE_TTL_SECONDS + 0.5)
    assert mesh.cores[2].snapshot().worker_lease is None
    assert not routes.offers_here(mesh.cores[1].snapshot(), "m"), "the host was told"


def test_lease_survives_the_loss_of_three_renewals(mesh: SplitMesh) -> None:
    lease = serving_pair(mesh)
    lost: list[object] = []
    mesh.lose = lambda number, message: isinstance(message, Renew) and len(lost) < 3 and not lost.append(message)
    mesh.run(30.0)
    assert len(lost) == 3
    assert mesh.workers[2] == lease
    assert len(mesh.started) == 1


def test_worker_that_misses_its_release_frees_itself(mesh: SplitMesh) -> None:
    lease = serving_pair(mesh)
    mesh.node(3, 500, joins=1)
    mesh.run(3.0)
    mesh.lose = lambda number, message: isinstance(message, Release)
    mesh.tell(1, e.TunnelBroken(lease.session, lease.generation, node_id(2)))
    mesh.run(1.0)
    assert mesh.workers[2] == lease
    mesh.until(lambda: 2 not in mesh.workers, within=LEASE_TTL_SECONDS)
    assert mesh.serves(1)


@pytest.mark.parametrize("seed", range(10))
def test_split_is_served_although_lease_messages_are_lost(seed: int) -> None:
    mesh = SplitMesh(seed)
    rng = random.Random(seed)
    mesh.lose = lambda number, message: rng.random() < 0.3
    pair(mesh)
    mesh.until(lambda: mesh.serves(1), within=120.0)
    mesh.lose = lambda number, message: False
    mesh.until(
        lambda: (lease := mesh.cores[2].snapshot().worker_lease) is not None and lease.phase is LeasePhase.COMMITTED,
        within=30.0,
    )
    mesh.run(30.0)
    assert mesh.serves(1)
    assert mesh.servers[1].lease == mesh.workers[2]


def test_renewal_replaces_a_lost_commit(mesh: SplitMesh) -> None:
    mesh.lose = lambda number, message: isinstance(message, Commit)
    serving_pair(mesh)
    mesh.run(2 * RENEW_SECONDS)
    lease = mesh.cores[2].snapshot().worker_lease
    assert lease is not None
    assert lease.phase is LeasePhase.COMMITTED


def test_host_plans_again_when_its_worker_has_no_such_lease(mesh: SplitMesh) -> None:
    lease = serving_pair(mesh)
    mesh.lose = lambda number, message: number == 2  # its last report does not arrive
    mesh.lose_worker(2)
    mesh.run(0.5)
    mesh.lose = lambda number, message: False
    mesh.until(lambda: mesh.serves(1) and 2 in mesh.workers, within=15.0)
    assert mesh.workers[2].generation == lease.generation + 1


def test_workers_silent_in_the_same_moment_are_all_left_out(mesh: SplitMesh) -> None:
    mesh.mute |= {2, 3}
    mesh.node(1, 450, model="m")
    mesh.node(2, 450, joins=1)
    mesh.node(3, 450, joins=1)
    mesh.until(lambda: {2, 3} <= mesh.workers.keys())
    generation = mesh.workers[2].generation
    mesh.until(lambda: mesh.workers == {}, within=12.0)
    mesh.node(4, 450, joins=1)
    mesh.node(5, 450, joins=1)
    took = mesh.until(lambda: mesh.serves(1), within=30.0)
    lease = mesh.servers[1].lease
    assert lease is not None
    assert set(lease.members) == {node_id(4), node_id(5)}
    assert (lease.generation, took < 8.0) == (generation + 1, True), "no further round waits for a silent worker"


def test_second_worker_lost_in_the_same_moment_is_left_out(mesh: SplitMesh) -> None:
    mesh.node(1, 450, model="m")
    for number in (2, 3):
        mesh.node(number, 450, joins=1)
    mesh.until(lambda: mesh.serves(1))
    lease = mesh.servers[1].lease
    assert lease is not None
    assert set(lease.members) == {node_id(2), node_id(3)}
    mesh.node(4, 450, joins=1)
    mesh.node(5, 450, joins=1)
    mesh.run(3.0)
    for number in (2, 3):
        mesh.kill(number, seen=True)
    mesh.until(lambda: mesh.serves(1) and mesh.servers[1].lease != lease, within=5.0)
    again = mesh.servers[1].lease
    assert again is not None
    assert set(again.members) == {node_id(4), node_id(5)}
    assert again.generation == 2, "no proposal went to the second lost worker"


def test_restarted_host_gets_its_worker_at_once(mesh: SplitMesh) -> None:
    old = serving_pair(mesh)
    mesh.run(3.0)
    mesh.cores.pop(1)
    mesh.servers.pop(1)
    mesh.links[2].discard(1)  # the worker has not noticed yet that this link is dead
    mesh.links.pop(1)
    mesh.node(1, 700, joins=2, model="m")
    mesh.until(lambda: mesh.serves(1), within=20.0)
    lease = mesh.servers[1].lease
    assert lease is not None
    assert lease.session != old.session
    mesh.run(LEASE_TTL_SECONDS + 1)
    assert mesh.workers[2] == lease
    assert mesh.serves(1)


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("distance", [0.0, 0.3, 2.0, 5.0, 9.0, 11.0, 20.0])
@pytest.mark.parametrize("first", [1, 2])
def test_split_is_served_again_however_far_apart_its_nodes_restart(first: int, distance: float, seen: bool) -> None:
    mesh = SplitMesh(int(distance * 10) + first)
    serving_pair(mesh)
    mesh.run(3.0)
    for number in (first, 3 - first):
        if number in mesh.cores:
            mesh.kill(number, seen=seen)
        mesh.workers.pop(number, None)
        mesh.servers.pop(number, None)
        mesh.node(number, 700 if number == 1 else 600, joins=3 - number, model="m" if number == 1 else "")
        mesh.run(distance)
    mesh.until(lambda: mesh.serves(1), within=60.0)
    mesh.run(20.0)
    assert mesh.serves(1), "and stays so"
    assert mesh.servers[1].lease == mesh.workers[2]


def test_node_that_waits_for_another_host_asks_again_when_that_host_dies(mesh: SplitMesh) -> None:
    """Without any event of its own: no model, no machine, no lease."""
    mesh.node(1, 600, model="m")
    mesh.node(2, 700, joins=1, model="m")
    mesh.node(3, 600, joins=1)
    mesh.until(lambda: mesh.serves(2))
    split = mesh.split(1)
    assert split is not None
    assert "host" in split.status_text()
    mesh.kill(2)
    took = mesh.until(lambda: mesh.serves(1), within=30.0)
    assert took < 20.0


def test_callers_wait_for_members_that_are_away_and_then_hear_who_is_missing(mesh: SplitMesh) -> None:
    """As after a power cut: the worker's machine starts later."""
    mesh.node(1, 700, model="m")
    mesh.tell(1, e.MembersRemembered((AwayMember(node_id(2), "cellar", (), mesh.now - 60.0),)))
    mesh.run(AWAY_SECONDS - 2)
    assert mesh.phase(1) is ModelPhase.WAITING
    route = routes.route(mesh.cores[1].snapshot(), "m", now=mesh.now)
    assert (route.availability, route.max_wait) == (Availability.COMING, routes.OTHER_NODES_SECONDS)
    assert "waiting for cellar" in route.timeout_message
    mesh.run(4)
    assert mesh.phase(1) is ModelPhase.FAILED
    route = routes.route(mesh.cores[1].snapshot(), "m", now=mesh.now)
    assert route.availability is Availability.FAILED
    assert "Away now: cellar." in route.message
    mesh.node(2, 600, joins=1)
    mesh.until(lambda: mesh.serves(1))


def test_callers_wait_for_the_free_memory_of_a_node_that_has_just_come(mesh: SplitMesh) -> None:
    mesh.node(1, 700, model="m")
    mesh.run(2.0)
    assert mesh.phase(1) is ModelPhase.FAILED
    mesh.room[2] = 600
    mesh.start(2, (mesh.way(1),))
    mesh.until(lambda: mesh.phase(1) is ModelPhase.WAITING, within=3.0)
    mesh.run(1.0)
    mesh.tell(2, e.MachineObserved(600))
    mesh.until(lambda: mesh.serves(1), within=5.0)


def test_ready_worker_that_falls_silent_is_dropped(mesh: SplitMesh) -> None:
    """It waits for another worker; its link stays up, so that nothing else shows the loss."""
    mesh.node(1, 450, model="m")
    mesh.node(2, 450, joins=1)
    mesh.node(3, 450, joins=1)
    mesh.endless.add(3)

    def ready() -> bool:
        split = mesh.split(1)
        return split is not None and any(member.phase is LeasePhase.READY for member in split.members)

    mesh.until(ready)
    generation = mesh.workers[3].generation
    mesh.mute.add(2)
    mesh.endless.clear()
    mesh.until(lambda: 3 not in mesh.workers or mesh.workers[3].generation > generation, within=15.0)


def test_transition_that_is_not_in_the_table_raises_naming_both_states() -> None:
    assert {a for a, _ in TRANSITIONS} == set(LeasePhase) - {LeasePhase.ENDED}
    with pytest.raises(ValueError, match="ready -> asked"):
        move(TRANSITIONS, LeasePhase.READY, LeasePhase.ASKED)
