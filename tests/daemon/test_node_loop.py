"""The mailbox loop: order, batches, deadlines, and what raises."""

from __future__ import annotations

import asyncio

import pytest

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.node import NodeCore
from meshllm.core.snapshot import Snapshot
from meshllm.daemon import node_loop
from meshllm.daemon.node_loop import NodeLoop
from meshllm.tasks import Owner
from meshllm.util.isolate import Isolation


async def test_node_loop_publishes_snapshots_before_commands_until_finish() -> None:
    seen: list[object] = []
    node = NodeLoop(NodeCore(), lambda snapshot: seen.append(snapshot.version))

    def carry_out(command: c.Command) -> None:
        seen.append(command)
        if isinstance(command, c.FetchModel):
            node.post(e.StopWanted())

    node.post(e.ModelWanted("m"))
    async with asyncio.timeout(10):
        await node.run(carry_out)
    # The snapshot is always published before the commands that go with it are carried out.
    assert seen == [1, c.FetchModel("m"), c.PrepareEngine(), 2]


async def test_node_loop_handles_waiting_events_before_the_first_snapshot() -> None:
    """A caller must not hear that there is no such model because the core has not come to the next letter yet."""
    mailbox: asyncio.Queue[e.Event] = asyncio.Queue()
    for model in ("a", "b", "c"):
        mailbox.put_nowait(e.ModelWanted(model))
    told: list[list[str]] = []
    node = NodeLoop(NodeCore(), lambda snapshot: told.append([model.name for model in snapshot.models]), mailbox)
    asked: list[c.Command] = []

    def carry_out(command: c.Command) -> None:
        asked.append(command)
        if len(asked) == 4:
            node.post(e.StopWanted())

    async with asyncio.timeout(10):
        await node.run(carry_out)
    assert told[0] == ["a", "b", "c"]
    assert asked == [c.FetchModel("a"), c.PrepareEngine(), c.FetchModel("b"), c.FetchModel("c")]


async def test_node_loop_publishes_the_snapshot_of_a_core_without_events() -> None:
    told: list[Snapshot] = []

    def publish(snapshot: Snapshot) -> None:
        told.append(snapshot)
        node.post(e.StopWanted())

    node = NodeLoop(NodeCore(), publish)
    async with asyncio.timeout(10):
        await node.run(lambda command: None)
    assert told[0] == Snapshot()


async def test_node_loop_posts_time_passed_at_the_deadline() -> None:
    asked: list[str] = []
    node = NodeLoop(NodeCore(), lambda snapshot: None)

    def carry_out(command: c.Command) -> None:
        assert isinstance(command, c.ProbeBackend)
        asked.append(command.url)
        # Silent the first time: the core wants to ask again after a while, and nothing but time can make it.
        node.post(e.BackendSilent(command.url, "refused") if len(asked) == 1 else e.StopWanted())

    node.post(e.BackendAdded("http://b"))
    async with asyncio.timeout(30):
        await node.run(carry_out)
    assert asked == ["http://b", "http://b"]


class FaultyCore(NodeCore):
    """A core that raises for some events, and while `broken` for its snapshots."""

    def __init__(self, *faulty: type[e.Event]) -> None:
        super().__init__()
        self.faulty = faulty
        self.broken = False
        self.due: float | None = None
        self.handled: list[e.Event] = []
        self.first = asyncio.Event()

    def handle(self, event: e.Event, now: float) -> list[c.Command]:
        self.handled.append(event)
        self.first.set()
        if isinstance(event, self.faulty):
            raise KeyError("a defect of the core")
        return super().handle(event, now)

    def snapshot(self) -> Snapshot:
        if self.broken:
            raise KeyError("a defect of the snapshot")
        return super().snapshot()

    def next_deadline(self) -> float | None:
        return self.due if self.due is not None else super().next_deadline()


async def test_node_loop_goes_on_after_an_event_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    isolation = Isolation()
    core = FaultyCore(e.ModelRequested)
    snapshots: list[Snapshot] = []
    node = NodeLoop(core, snapshots.append, isolation=isolation)
    commands: list[c.Command] = []

    def execute(command: c.Command) -> None:
        commands.append(command)
        if isinstance(command, c.FetchModel):
            node.post(e.StopWanted())

    node.post(e.ModelRequested("x"))
    node.post(e.ModelRequested("y"))
    node.post(e.ModelWanted("m"))
    async with asyncio.timeout(10):
        await node.run(execute)
    assert c.FetchModel("m") in commands
    assert isolation.failures == {"handling ModelRequested": 2}
    assert caplog.text.count("handling ModelRequested failed") == 1
    assert "a defect of the core" in caplog.text


async def test_node_loop_goes_on_after_a_command_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    isolation = Isolation()
    node = NodeLoop(NodeCore(), lambda snapshot: None, isolation=isolation)
    commands: list[c.Command] = []

    def execute(command: c.Command) -> None:
        commands.append(command)
        if isinstance(command, c.FetchModel):
            raise KeyError("a defect of the supervisor")
        node.post(e.StopWanted())

    node.post(e.ModelWanted("m"))
    async with asyncio.timeout(10):
        await node.run(execute)
    assert c.PrepareEngine() in commands
    assert isolation.failures == {"executing FetchModel": 1}
    assert "a defect of the supervisor" in caplog.text


async def test_node_loop_goes_on_after_a_snapshot_that_raises() -> None:
    isolation = Isolation()
    core = FaultyCore()
    seen: list[Snapshot] = []
    node = NodeLoop(core, seen.append, isolation=isolation)

    def execute(command: c.Command) -> None:
        core.broken = isinstance(command, c.FetchModel)
        if isinstance(command, c.FetchModel):
            node.post(e.BackendAdded("http://b"))
        elif isinstance(command, c.ProbeBackend):
            node.post(e.StopWanted())

    node.post(e.ModelWanted("m"))
    async with asyncio.timeout(10):
        await node.run(execute)
    assert seen[-1].backends[0].url == "http://b"


async def test_node_loop_does_not_spin_on_a_deadline_that_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_loop, "FAILED_DEADLINE_SECONDS", 3600.0)
    core = FaultyCore(e.TimePassed)
    core.due = 0.0
    node = NodeLoop(core, lambda snapshot: None)
    owner = Owner("test")
    running = owner.start(node.run(lambda command: None), "node")
    async with asyncio.timeout(10):
        await core.first.wait()
    for _ in range(100):
        await asyncio.sleep(0)
    assert core.handled == [e.TimePassed()]
    node.post(e.StopWanted())
    async with asyncio.timeout(10):
        await running
    await owner.close()


async def test_node_loop_ends_when_the_core_raises_while_it_stops() -> None:
    """A daemon whose core is broken can still be stopped: its owner then closes everything."""
    node = NodeLoop(FaultyCore(e.StopWanted), lambda snapshot: None)
    node.post(e.StopWanted())
    async with asyncio.timeout(10):
        with pytest.raises(KeyError, match="a defect of the core"):
            await node.run(lambda command: None)


async def test_command_that_raises_is_answered_with_its_failure() -> None:
    """Else the core would wait for an answer for ever."""
    fetches = 0

    def carry_out(command: c.Command) -> None:
        nonlocal fetches
        if isinstance(command, c.FetchModel):
            fetches += 1
            raise RuntimeError("no thread left")

    def publish(snapshot: Snapshot) -> None:
        model = snapshot.model("m")
        if model is not None and model.failures:
            assert "no thread left" in model.reason
            assert model.not_before is not None, "it is tried again"
            node.post(e.StopWanted())

    node = NodeLoop(NodeCore(), publish)
    node.post(e.ModelWanted("m"))
    async with asyncio.timeout(10):
        await node.run(carry_out)
    assert fetches == 1
