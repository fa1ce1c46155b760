"""Two made-up nodes of one machine: the first forecast is off and says why, the next one is within 1.5."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.memory.speculation import DraftCounts
from meshllm.core.records import ModelLoad
from meshllm.core.split.host import SplitState
from meshllm.core.split.lease import Lease
from meshllm.core.split.measurement import MISS_FACTOR
from meshllm.core.split.planner import SplitNeed, SplitPlan
from tests.core.small_mesh import node_id
from tests.core.split.test_coordinator import SplitMesh

ROOM = 700
# What a step takes on this machine, whatever anybody forecasts.
TRUE_SECONDS = 0.3


class OneMachine(SplitMesh):
    """Nodes 1 and 2 share a machine. Node 1 serves a model that neither holds alone."""

    def __init__(self, machines: tuple[bytes, bytes] = (b"a" * 36, b"a" * 36)) -> None:
        super().__init__()
        self.need = SplitNeed((100,) * 10, (10_000_000,) * 10, 50, 10)
        self.machines = {1: machines[0], 2: machines[1]}
        self.written = 0
        self.worker_commands: list[c.StartWorker] = []
        self.saves = 0

    def begin(self) -> SplitState:
        self.node(1, ROOM, model="m")
        self.node(2, ROOM, joins=1)
        self.observe()
        return self.committed()

    def observe(self) -> None:
        for number in (1, 2):
            self.tell(number, e.MachineObserved(ROOM, machine_memory=2 * ROOM))

    def committed(self) -> SplitState:
        self.until(lambda: self.serves(1))
        split = self.split(1)
        assert split is not None
        assert split.committed
        return split

    def answer(self, tokens: int = 100, seconds: float = TRUE_SECONDS, parallel: int = 1, accepted: int = 0) -> None:
        """The engine of node 1 writes an answer; each step takes `seconds`."""
        self.tell(1, e.LoadsChanged((ModelLoad("m", parallel, 0),)))
        self.written += tokens
        counts = DraftCounts(accepted, accepted, self.written + accepted, self.written * seconds)
        self.tell(1, e.LoadsChanged((ModelLoad("m", 0, 0),)))
        self.tell(1, e.DecodeMeasured("m", "/s", counts))

    def restart_engine(self) -> SplitState:
        self.written = 0
        started = len(self.started)
        self.tell(1, e.ServerGone("m", self.servers[1].generation, "it died"))
        self.until(lambda: len(self.started) > started)
        return self.committed()

    def _carry_out(self, number: int, command: c.Command) -> None:
        self.saves += isinstance(command, c.SaveCorrections)
        if isinstance(command, c.StartWorker):
            self.worker_commands.append(command)
        super()._carry_out(number, command)


@pytest.fixture
def mesh() -> OneMachine:
    return OneMachine()


def forecast(split: SplitState | None) -> float:
    assert split is not None
    assert split.plan is not None
    return split.plan.seconds


def text(mesh: OneMachine) -> str:
    split = mesh.split(1)
    assert split is not None
    return split.measured.text


def test_second_forecast_is_within_the_miss_factor(mesh: OneMachine) -> None:
    first = forecast(mesh.begin())
    assert first < TRUE_SECONDS / 5
    mesh.answer()
    assert text(mesh).endswith(" times slower than forecast: both nodes share this machine's processor")
    second = mesh.restart_engine()
    assert TRUE_SECONDS / MISS_FACTOR <= forecast(second) <= TRUE_SECONDS * MISS_FACTOR
    assert isinstance(second.plan, SplitPlan)
    assert second.plan.corrected
    mesh.answer()
    assert text(mesh) == "", "this forecast is not off"


def test_correction_survives_a_restart_of_the_host(mesh: OneMachine) -> None:
    mesh.begin()
    mesh.answer()
    mesh.kill(1, seen=True)
    mesh.run(40.0)
    mesh.node(1, ROOM, joins=2, model="m")
    mesh.observe()
    assert forecast(mesh.committed()) == pytest.approx(TRUE_SECONDS, rel=MISS_FACTOR - 1)


def test_correction_alone_never_ends_a_running_split(mesh: OneMachine) -> None:
    before = mesh.begin()
    lease, servers = before.lease, list(mesh.started)
    for seconds in (0.3, 0.9, 2.0, 0.01, 5.0):
        mesh.answer(500, seconds)
        mesh.run(5.0)
    mesh.observe()
    mesh.run(60.0)
    after = mesh.split(1)
    assert after is not None
    assert after.lease == lease
    assert mesh.started == servers
    assert after.plan == before.plan, "the plan of a running split stays as it was"
    assert mesh.saves > 1


def test_equal_answers_are_saved_once(mesh: OneMachine) -> None:
    mesh.begin()
    for _ in range(20):
        mesh.answer()
    assert mesh.saves == 1


def test_parallel_requests_teach_nothing_and_are_named(mesh: OneMachine) -> None:
    mesh.begin()
    mesh.answer(parallel=3)
    assert text(mesh).endswith("3 requests at a time share the nodes")
    assert mesh.saves == 0
    mesh.answer()
    assert mesh.saves == 1


def test_accepted_draft_tokens_are_no_steps(mesh: OneMachine) -> None:
    mesh.begin()
    mesh.answer(accepted=300)
    split = mesh.split(1)
    assert split is not None
    assert split.measured.seconds == pytest.approx(TRUE_SECONDS)


def test_engine_that_has_ended_teaches_nothing(mesh: OneMachine) -> None:
    mesh.begin()
    mesh.tell(1, e.DecodeMeasured("m", "/another", DraftCounts(0, 0, 100, 30.0)))
    mesh.tell(1, e.DecodeMeasured("x", "/s", DraftCounts(0, 0, 100, 30.0)))
    assert mesh.saves == 0


def test_nodes_of_one_machine_share_its_processor_and_other_nodes_do_not() -> None:
    for machines, sharers in (((b"a" * 36, b"a" * 36), 2), ((b"a" * 36, b"b" * 36), 1), ((b"", b""), 1)):
        mesh = OneMachine(machines)
        split = mesh.begin()
        assert mesh.servers[1].sharers == sharers
        assert mesh.worker_commands[-1].sharers == sharers
        assert split.plan is not None
        mesh.answer()
        assert ("share this machine's processor" in text(mesh)) == (sharers == 2)


def test_machine_has_another_name_in_each_mesh_and_no_node_shows_its_id(mesh: OneMachine) -> None:
    mesh.begin()
    one, two = (mesh.view(number).record for number in (1, 2))
    assert one is not None
    assert two is not None
    assert one.machine == two.machine
    assert len(one.machine) == 8
    assert one.machine not in mesh.machines[1]
    other = SplitMesh()
    other.machines = dict(mesh.machines)
    other.start(1, mesh=7)
    record = other.view(1).record
    assert record is not None
    assert record.machine != one.machine


def test_planned_and_used_memory_are_published(mesh: OneMachine) -> None:
    mesh.begin()
    mesh.tell(1, e.MachineObserved(ROOM, used=(("m", 400),)))
    mesh.tell(2, e.MachineObserved(ROOM, used=(("", 330),)))
    mesh.run(2.0)
    host, worker = mesh.view(1), mesh.view(2)
    assert host.record is not None
    assert worker.record is not None
    lease = mesh.workers[2]
    assert isinstance(lease, Lease)
    share = lease.share(node_id(2))
    assert share is not None
    assert (host.record.used, worker.record.used, worker.record.planned) == (400, 330, share.memory)
    (seen,) = host.peers
    assert (seen.record.planned, seen.record.used) == (share.memory, 330)
    state = mesh.cores[1].snapshot().model("m")
    assert state is not None
    assert state.memory_used == 400
    leased = mesh.cores[2].snapshot().worker_lease
    assert leased is not None
    assert leased.memory_used == 330
    # Small changes make no news, and nothing is used once the processes have ended.
    mesh.tell(1, e.MachineObserved(ROOM, used=(("m", 403),)))
    assert mesh.cores[1].snapshot().model("m") == state
    mesh.tell(1, e.MachineObserved(ROOM, used=()))
    gone = mesh.cores[1].snapshot().model("m")
    assert gone == replace(state, memory_used=0)
