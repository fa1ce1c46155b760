"""Facts about the machine in the core: quantised with hysteresis, never more than what is free."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership.messages import Records
from meshllm.core.memory.observation import MachineFacts, published
from meshllm.core.node import NodeCore
from meshllm.core.routing import routes
from meshllm.core.serving.local_models import ENGINE_RETRY_BASE_SECONDS, ENGINE_RETRY_CAP_SECONDS, MEASURE_AGAIN_SECONDS
from meshllm.core.serving.next_step import phase
from meshllm.core.snapshot import EnginePhase, ModelFacts, ModelPhase
from meshllm.core.split.host import MeasuredModel
from tests.core.small_mesh import SmallMesh

amounts = st.integers(0, 1 << 45)
GB = 10**9


@given(amounts, amounts)
def test_published_memory_is_never_more_than_what_is_free_and_not_much_less(previous: int, observed: int) -> None:
    found = published(previous, observed)
    assert 0 <= found <= observed
    assert found >= observed * (1 - 3 / 64), "three steps of hysteresis"
    assert published(found, observed) == found, "the same observation again changes nothing"


@given(st.integers(1 << 20, 1 << 45), st.lists(st.integers(-100, 100), min_size=1, max_size=50))
@example(1_646_592, [-100, 100] * 6)  # the swing spans more than one step
def test_published_memory_does_not_flap(base: int, noise: list[int]) -> None:
    """Free memory that swings by 0.5 % to both sides, around any value."""
    values, found = [], 0
    for part in noise:
        found = published(found, base + base * part // 20_000)
        values.append(found)
    changes = sum(one != two for one, two in pairwise(values))
    assert changes <= 2, values


def test_published_memory_follows_what_is_taken_at_once() -> None:
    assert published(40 * GB, 10 * GB) <= 10 * GB
    assert published(10 * GB, 40 * GB) > 39 * GB


def test_memory_of_several_devices_is_the_sum_of_what_is_published_of_each() -> None:
    facts = MachineFacts().with_memory(10 * GB, (6 * GB, 4 * GB))
    assert facts.memory == sum(facts.devices)
    assert facts.with_memory(10 * GB + 1, (6 * GB + 1, 4 * GB)) == facts
    assert facts.with_memory(5 * GB, (5 * GB,)).devices == (published(0, 5 * GB),)


def test_small_changes_of_memory_make_no_new_record() -> None:
    mesh = SmallMesh()
    mesh.start(1)
    mesh.start(2, (mesh.way(1),))
    mesh.tell(1, e.MachineObserved(16 * GB, models=("m",)))
    mesh.run(5.0)

    def records_sent(seconds: float) -> int:
        mesh.sent.clear()
        mesh.run(seconds)
        return sum(isinstance(message, Records) for _, _, message in mesh.sent)

    idle = records_sent(60.0)
    busy = 0
    for turn in range(60):
        mesh.tell(1, e.MachineObserved(16 * GB + (turn % 7) * 10**7))
        busy += records_sent(1.0)
    assert busy <= idle + 2


def test_observation_without_memory_keeps_the_last_one() -> None:
    mesh = SmallMesh()
    mesh.start(1)
    mesh.start(2, (mesh.way(1),))
    mesh.tell(1, e.MachineObserved(16 * GB, models=("m",)))
    mesh.tell(1, e.MachineObserved(None, models=("n",)))
    mesh.run(5.0)
    (record,) = [peer.record for peer in mesh.view(2).peers]
    assert (record.memory, record.on_disk) == (published(0, 16 * GB), ("n",))
    mesh.tell(1, e.MachineObserved(4 * GB))
    mesh.run(5.0)
    (record,) = [peer.record for peer in mesh.view(2).peers]
    assert (record.memory, record.on_disk) == (published(0, 4 * GB), ("n",)), "hours later it offers what is left"


# -- the engine


def test_engine_failure_is_retried_with_backoff_and_models_start_when_it_recovers() -> None:
    node, now = NodeCore(), 0.0
    assert c.PrepareEngine() in node.handle(e.ModelWanted("m"), now)
    node.handle(e.FileReady("m", ModelFacts("/m.gguf", 100, "llama", 8192)), now)
    pauses = []
    for _ in range(10):
        node.handle(e.EngineFailed("the disk is full", "make room"), now)
        snapshot = node.snapshot()
        assert phase(snapshot.engine, snapshot.models[0]) is ModelPhase.FAILED
        message = routes.route(snapshot, "m").message
        assert "the disk is full" in message
        assert "make room" in message
        due = node.next_deadline()
        assert due is not None
        pauses.append(due - now)
        assert node.handle(e.TimePassed(), due - 0.01) == []
        now = due
        assert node.handle(e.TimePassed(), now) == [c.PrepareEngine()]
        snapshot = node.snapshot()
        assert snapshot.engine.phase is EnginePhase.PREPARING
        assert "the disk is full" in routes.route(snapshot, "m").message, "the cause stays until the engine is ready"
    assert pauses[0] == ENGINE_RETRY_BASE_SECONDS
    assert pauses[-1] == ENGINE_RETRY_CAP_SECONDS
    assert pauses == sorted(pauses)
    assert node.handle(e.EngineReady("1"), now) == [c.MeasureModel("m")]
    assert phase(node.snapshot().engine, node.snapshot().models[0]) is ModelPhase.WAITING


def test_model_that_did_not_fit_is_measured_again_when_memory_appears() -> None:
    node = NodeCore()
    node.handle(e.MachineObserved(4 * GB), 0.0)
    node.handle(e.ModelWanted("m"), 0.0)
    node.handle(e.EngineReady("1"), 0.0)
    node.handle(e.FileReady("m", ModelFacts("/m.gguf", 100, "llama", 8192)), 0.0)
    node.handle(e.ModelMeasured("m", MeasuredModel(fits_locally=False, free_bytes=4 * GB)), 0.0)
    assert phase(node.snapshot().engine, node.snapshot().models[0]) is ModelPhase.FAILED
    assert node.handle(e.MachineObserved(4 * GB + 10**7), MEASURE_AGAIN_SECONDS) == [], "no matter"
    assert node.handle(e.MachineObserved(8 * GB), MEASURE_AGAIN_SECONDS - 1) == [], "measuring costs"
    assert node.handle(e.MachineObserved(8 * GB), MEASURE_AGAIN_SECONDS) == [c.MeasureModel("m")]
    fits = MeasuredModel(fits_locally=True, free_bytes=8 * GB)
    assert node.handle(e.ModelMeasured("m", fits), MEASURE_AGAIN_SECONDS + 1) == [c.StartServer("m", 1)]


def test_facts_keep_what_was_not_observed() -> None:
    facts = MachineFacts(models=("m",)).with_disk_free(100 * GB)
    assert replace(facts, memory=0).with_memory(GB, ()).models == ("m",)
    assert facts.with_disk_free(100 * GB + 10**8) == facts
