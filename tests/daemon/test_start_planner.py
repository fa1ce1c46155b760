"""From a model and a machine to how it is started: with an engine that says what it takes, and with the real one."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from meshllm.core.memory.context_size import ContextSize
from meshllm.core.memory.estimate import MICRO_BATCH
from meshllm.core.memory.layer_placement import MOST_PAGED
from meshllm.core.memory.speculation import PLAIN, DraftSource, Speculation
from meshllm.core.records import NodeId
from meshllm.core.split.lease import Lease
from meshllm.core.split.planner import WorkerShare
from meshllm.daemon.start_planner import CHECKPOINTS_MOST, KeptMemory, StartPlanner
from meshllm.engine.build import builder
from meshllm.engine.build.builder import Engine
from meshllm.engine.probe import bindings
from meshllm.engine.probe.bindings import BufferNeed, EngineDevice, MemoryNeed
from meshllm.engine.processes.llama_server import PROCESSOR_BATCH, Projector, ServerPlan, arguments
from meshllm.errors import NotEnoughSpace, UsageError
from meshllm.machine import resources
from meshllm.machine.resources import Memory
from meshllm.models.gguf.header import read_header
from meshllm.models.gguf.projector import projector_bytes
from meshllm.models.gguf.purpose import usage
from meshllm.models.library.local_model import LocalModel
from tests import engine_samples, engine_shapes

GB, MIB = 10**9, 1 << 20
PROCESSOR = EngineDevice("CPU", "EPYC", "CPU", False, False, "", 0, 0)


def gpu(name: str, free: float, *, shared: bool = False) -> EngineDevice:
    return EngineDevice(name, "H200", "CUDA", True, shared, name, int(free * GB), int(free * GB))


@dataclass
class Machine:
    """An engine and a computer that say what the test wants. The engine takes 4 GB for four layers and the output, a
    fifth for each, and 1 kB for each token of context; a tenth of that for the draft."""

    devices: tuple[EngineDevice, ...] = (PROCESSOR,)
    available: int = 32 * GB
    weights: int = 4 * GB
    asked: list[dict[str, Any]] = field(default_factory=list)

    async def look(self, engine: Engine, **_: Any) -> tuple[EngineDevice, ...]:
        return self.devices

    async def need(self, engine: Engine, path: Path, **asked: Any) -> MemoryNeed:
        self.asked.append({"path": path, **asked})
        scale = 10 if path.name == "draft.gguf" else 1
        weights, cache = self.weights // scale, 1000 * asked["context_size"] // scale
        names, split = asked.get("devices") or [], list(asked.get("split") or ())
        if names and not split:
            split = [5]
        buffers, there = [], 0
        for name, count in zip(names, split, strict=True):
            there += count
            model, context = weights * count // 5, cache * count // 5
            buffers.append(BufferNeed(name, name, False, model, context, 50 * MIB))
        left = 5 - there
        buffers.append(BufferNeed("CPU", "CPU", True, weights * left // 5, cache * left // 5, 50 * MIB))
        return MemoryNeed(tuple(buffers), asked["context_size"], 0, 4, 0)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(bindings, "devices", made.look)
    monkeypatch.setattr(bindings, "memory_need", made.need)
    monkeypatch.setattr(resources, "memory", lambda: Memory(64 * GB, made.available, limited=False))
    return made


ENGINE: Engine = None  # type: ignore[assignment] # nobody but the machine above is handed it


def model(path: Path, name: str = "qwen3", context: int = 131_072) -> LocalModel:
    """The model in `path`, with a header that says it weighs as much as the engine above says."""
    header = read_header(path if path.exists() else engine_shapes.write(path, name))
    layers = tuple(replace(it, weights=8 * GB // 10, keys=100, values=100) for it in header.shape.layers)
    header = replace(header, shape=replace(header.shape, layers=layers, output=8 * GB // 10, tied=False))
    return LocalModel(path.stem, path, path.stat().st_size, None, header, None, context, (path,))


async def test_plan_without_accelerators(machine: Machine, tmp_path: Path) -> None:
    local = model(tmp_path / "m.gguf")
    fit = await StartPlanner().plan(ENGINE, local, usage(local.header))
    assert (fit.size, fit.devices, fit.layers, fit.checkpoints) == (ContextSize(32768, 4), None, (), None)
    assert machine.asked == [machine.asked[0] | {"devices": None, "split": [], "gpu_layers": 0}]
    assert fit.placement_text.startswith("on the CPU: 4.")
    assert 0 < fit.prompt_cache_mib <= 3200
    # The planned memory is what the process comes to with its prompt cache full.
    assert fit.memory_parts == (("prompt cache", fit.prompt_cache_mib * MIB),)
    assert 4 * GB < fit.memory - fit.prompt_cache_mib * MIB < 5 * GB
    assert "grows by up to 3.2 GB of prompt cache" in fit.placement_text


async def test_plan_logs_what_is_reduced(machine: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    local = model(tmp_path / "m.gguf")
    machine.available = int(4.65 * GB)
    fit = await StartPlanner().plan(ENGINE, local, usage(local.header))
    assert fit.size == ContextSize(32768, 2)
    assert "2 of 4 parallel requests to save memory" in fit.placement_text
    assert "2 of 4 parallel requests to save memory" in caplog.text
    assert fit.prompt_cache_mib < 100
    caplog.clear()
    machine.available = 20 * GB
    fit = await StartPlanner(cap=int(4.65 * 0.9 * GB)).plan(ENGINE, local, usage(local.header))
    assert "parallel requests to stay within --max-vram" in fit.placement_text
    assert "parallel requests to stay within --max-vram" in caplog.text
    caplog.clear()
    machine.available = 3 * GB
    fit = await StartPlanner().plan(ENGINE, local, usage(local.header))
    assert "from the disk again and again" in caplog.text


async def test_plan_refuses_a_model_with_the_missing_bytes(machine: Machine, tmp_path: Path) -> None:
    local = model(tmp_path / "m.gguf")
    machine.available = int(4 * GB / MOST_PAGED)
    with pytest.raises(NotEnoughSpace, match=r"m does not fit here: .* GB are missing") as caught:
        await StartPlanner().plan(ENGINE, local, usage(local.header))
    assert "--join" in caught.value.advice
    machine.available = 32 * GB
    with pytest.raises(NotEnoughSpace, match=r"2\.0 GB of memory may be used") as caught:
        await StartPlanner(cap=2 * GB).plan(ENGINE, local, usage(local.header))
    assert "--max-vram" in caught.value.advice


async def test_plan_keeps_a_requested_context(
    machine: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    local = model(tmp_path / "m.gguf")
    fit = await StartPlanner(context=65536).plan(ENGINE, local, usage(local.header))
    assert fit.size == ContextSize(65536, 4)
    assert "context 65536, as requested" in fit.placement_text
    fit = await StartPlanner(context=1 << 20).plan(ENGINE, local, usage(local.header))
    assert fit.size.context_length == 131_072
    assert "context 131072, the maximum of the model" in fit.placement_text
    assert "is reduced to that" in caplog.text


async def test_plan_puts_layers_on_accelerators(machine: Machine, tmp_path: Path) -> None:
    local = model(tmp_path / "m.gguf")
    machine.devices = (gpu("CUDA0", 6), gpu("CUDA1", 10), PROCESSOR)
    fitter = StartPlanner()
    fit = await fitter.plan(ENGINE, local, usage(local.header))
    assert (fit.devices, fit.layers, fit.size) == (("CUDA1",), (5,), ContextSize(32768, 4))
    assert "all 4 layers on CUDA1: " in fit.placement_text
    assert fitter.machine().used == ("CUDA0", "CUDA1")
    assert 14 * GB < fitter.free_memory() < 16 * GB
    only = await StartPlanner(wanted=("CUDA0",)).plan(ENGINE, local, usage(local.header))
    assert only.devices == ("CUDA0",)
    none = await StartPlanner(wanted=("none",)).plan(ENGINE, local, usage(local.header))
    assert (none.devices, none.layers) == ((), ())
    assert machine.asked[-1]["devices"] == [], "an engine that is not told would use what there is"
    capped = await StartPlanner(cap=3 * GB, wanted=("CUDA1",)).plan(ENGINE, local, usage(local.header))
    assert 0 < sum(capped.layers) < 5
    with pytest.raises(UsageError, match="CUDA7"):
        await StartPlanner(wanted=("CUDA7",)).refresh_devices(ENGINE)


async def test_worker_devices_follow_the_share(machine: Machine, tmp_path: Path) -> None:
    fitter, own, other = StartPlanner(), NodeId(b"h" * 32), NodeId(b"w" * 32)
    assert fitter.device_memory() == ()
    machine.devices = (gpu("CUDA0", 6), gpu("CUDA1", 10), gpu("CUDA2", 6), PROCESSOR)
    await fitter.refresh_devices(ENGINE)
    assert len(fitter.device_memory()) == 3
    assert sum(fitter.device_memory()) == fitter.free_memory()
    assert fitter.worker_devices(WorkerShare(other, 1, 9, 1, (5, 0, 4))) == ("CUDA0", "CUDA2")
    assert fitter.worker_devices(WorkerShare(other, 1, 9, 1)) == ("CUDA1",), "the one with most room"
    with pytest.raises(NotEnoughSpace, match=r"planned for 2 accelerators; this node has 3"):
        fitter.worker_devices(WorkerShare(other, 1, 9, 1, (5, 4)))
    machine.devices = (gpu("CUDA0", 6), PROCESSOR)
    await fitter.refresh_devices(ENGINE)
    assert fitter.device_memory() == ()
    # And the host gives the engine a run of layers for each device behind a wire.
    local = model(tmp_path / "m.gguf")
    last = NodeId(b"l" * 32)
    lease = Lease(
        b"s" * 16,
        1,
        "m",
        (),
        (WorkerShare(own, 0, 1, 1), WorkerShare(other, 1, 2, 1, (1, 0, 1)), WorkerShare(last, 3, 1, 1)),
    )
    fit = fitter.plan_split(local, usage(local.header), lease, ContextSize(64, 1), PLAIN, None)
    assert (fit.devices, fit.layers) == (("CUDA0", "RPC0", "RPC1", "RPC2"), (1, 1, 1, 2))
    assert "1 of 4 here, 1+1 on 7777777777, 1 on 6c6c6c6c6c" in fit.placement_text
    named = fitter.plan_split(local, usage(local.header), lease, ContextSize(64, 1), PLAIN, None, ("cellar", ""))
    assert "1 of 4 here, 1+1 on cellar, 1 on 6c6c6c6c6c" in named.placement_text


async def test_plan_places_the_image_encoder_first(machine: Machine, tmp_path: Path) -> None:
    sees = engine_samples.projector(tmp_path / "mmproj.gguf", width=1152, hidden=4304, layers=1)
    taken = projector_bytes(sees)
    local = model(tmp_path / "m.gguf")
    blind = await StartPlanner().plan(ENGINE, local, usage(local.header))
    local = replace(local, projector=sees)
    fit = await StartPlanner().plan(ENGINE, local, usage(local.header))
    assert fit.projector == Projector(sees)
    bare = blind.memory - dict(blind.memory_parts)["prompt cache"]
    assert dict(fit.memory_parts)["image encoder"] == taken
    assert fit.memory - dict(fit.memory_parts)["prompt cache"] == bare + taken
    assert "vision (0.93 GB at most)" in fit.placement_text
    assert blind.projector is None
    assert "pictures" not in blind.placement_text
    machine.available = int((bare + taken - 10 * MIB) / 0.9)
    assert (await StartPlanner().plan(ENGINE, local, usage(local.header))).size.slots < 4, "it has no room for all"
    machine.available = 32 * GB
    machine.devices = (gpu("CUDA0", 6), gpu("CUDA1", 10), PROCESSOR)
    fit = await StartPlanner().plan(ENGINE, local, usage(local.header))
    assert fit.projector == Projector(sees, "CUDA1")
    assert "GB at most on CUDA1)" in fit.placement_text


async def test_free_memory_before_devices_are_known_is_ram(machine: Machine) -> None:
    fitter = StartPlanner(cap=8 * GB)
    assert fitter.free_memory() == 8 * GB
    assert not fitter.machine().known


async def test_plan_uses_a_draft_model_only_if_the_model_loses_nothing(
    machine: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    local, draft = model(tmp_path / "m.gguf"), model(tmp_path / "draft.gguf")
    wanted = Speculation(DraftSource.DRAFT, "draft")
    fit = await StartPlanner().plan(ENGINE, local, usage(local.header), speculation=wanted, draft=draft)
    alone = await StartPlanner().plan(ENGINE, local, usage(local.header), speculation=Speculation(DraftSource.NGRAMS))
    assert (fit.speculation, fit.size) == (wanted, ContextSize(32768, 4))
    assert fit.memory > alone.memory + 0.4 * GB
    guessed = [asked["draft_tokens"] for asked in machine.asked if asked["path"] == local.path]
    assert guessed == [wanted.max_draft_tokens, Speculation(DraftSource.NGRAMS).max_draft_tokens]
    machine.available = int(5.2 * GB)
    with caplog.at_level(logging.WARNING):
        fit = await StartPlanner().plan(ENGINE, local, usage(local.header), speculation=wanted, draft=draft)
    assert fit.speculation.source is DraftSource.NGRAMS
    assert "takes memory that m needs" in fit.speculation.reason
    assert fit.size == ContextSize(32768, 4)
    machine.available, machine.devices = 32 * GB, (gpu("CUDA0", 8), PROCESSOR)
    fit = await StartPlanner().plan(ENGINE, local, usage(local.header), speculation=wanted, draft=draft)
    assert (fit.draft_device, fit.layers) == ("CUDA0", (5,))


async def test_plan_limits_checkpoints_to_a_part_of_free_memory(machine: Machine, tmp_path: Path) -> None:
    local = model(tmp_path / "m.gguf", "gemma3")
    fit = await StartPlanner().plan(ENGINE, local, usage(local.header))
    assert fit.checkpoints == CHECKPOINTS_MOST
    wide = replace(local.header.shape, layers=tuple(replace(it, keys=1 << 19) for it in local.header.shape.layers))
    large = replace(local, header=replace(local.header, shape=wide))
    fit = await StartPlanner().plan(ENGINE, large, usage(large.header))
    assert fit.checkpoints is not None
    assert 1 <= fit.checkpoints < CHECKPOINTS_MOST


async def test_plan_of_an_encoder_uses_one_batch(machine: Machine, tmp_path: Path) -> None:
    local = model(engine_samples.embedder(tmp_path / "e.gguf"), context=engine_samples.CONTEXT)
    fit = await StartPlanner().plan(ENGINE, local, usage(local.header))
    assert (fit.micro_batch, fit.prompt_cache_mib, fit.checkpoints) == (engine_samples.CONTEXT, 0, None)
    assert machine.asked[0]["embeddings"]
    assert machine.asked[0]["micro_batch"] == engine_samples.CONTEXT


@pytest.mark.engine
async def test_plan_with_the_real_engine(tmp_path: Path) -> None:
    engine = builder.find()
    if engine is None:
        pytest.skip("the engine is not built (mesh-llm engine build)")
    local = model(tmp_path / "m.gguf", context=8192)
    fitter = StartPlanner(wanted=("none",))
    fit = await fitter.plan(engine, local, usage(local.header))
    assert fit.size == ContextSize(8192, 4)
    assert fitter.machine().known
    with pytest.raises(NotEnoughSpace, match="are missing"):
        await StartPlanner(cap=20 * MIB, wanted=("none",)).plan(engine, local, usage(local.header))


async def test_plan_keeps_memory_for_a_further_model(machine: Machine, tmp_path: Path) -> None:
    local = model(tmp_path / "m.gguf")

    async def size(kept: tuple[KeptMemory, ...], available: float) -> ContextSize:
        machine.available = int(available * GB)
        return (await StartPlanner().plan(ENGINE, local, usage(local.header), beside=kept)).size

    other = KeptMemory("other", 9 * GB, 2 * GB)
    whole = ContextSize(32768, 4)
    assert await size((), 5.2) == whole
    assert await size((other,), 32) == whole, "there is memory for both"
    # Not all that the other could use: this one is reduced until the least of the other fits.
    reduced = await size((other,), 6.9)
    assert reduced.context_length * reduced.slots < whole.context_length * whole.slots
    assert await size((other,), 5.2) == whole, "the other does not fit anyway: it takes nothing from the first"


async def test_plan_counts_the_engines_that_run(machine: Machine, tmp_path: Path) -> None:
    local, planner = model(tmp_path / "m.gguf"), StartPlanner(cap=6 * GB)
    first = await planner.plan(ENGINE, local, usage(local.header))
    assert first.planned.host >= first.memory
    planner.ledger.reserve("first", replace(first.planned, host=int(1.2 * GB)))
    second = await planner.plan(ENGINE, local, usage(local.header))
    assert second.memory <= 4.8 * GB
    planner.ledger.reserve("first", first.planned)
    with pytest.raises(NotEnoughSpace):
        await planner.plan(ENGINE, local, usage(local.header))
    assert planner.free_memory() == 6 * GB - first.planned.host


async def test_plan_counts_the_lease_that_this_node_works_for(machine: Machine, tmp_path: Path) -> None:
    local, planner = model(tmp_path / "m.gguf"), StartPlanner(cap=6 * GB)
    share = WorkerShare(NodeId(b"w" * 32), 1, 2, int(1.2 * GB))
    planner.ledger.reserve((b"s" * 16, 1), planner.worker_memory(share, planner.worker_devices(share)))
    found = await planner.plan(ENGINE, local, usage(local.header))
    assert found.memory <= 4.8 * GB
    planner.ledger.reserve("m", found.planned)
    assert planner.free_memory() == 4.8 * GB - found.planned.host
    assert planner.free_memory(0) == 6 * GB - found.planned.host, "for the next lease"


async def test_prompt_cache_counts_against_the_cap(machine: Machine, tmp_path: Path) -> None:
    local, planner = model(tmp_path / "m.gguf"), StartPlanner(context=1000, cap=8 * GB)
    found = await planner.plan(ENGINE, local, usage(local.header))
    cache = dict(found.memory_parts)["prompt cache"]
    assert 0.7 * GB < cache <= 0.8 * GB, "a tenth of what may be used"
    assert found.planned.host == found.memory
    planner.ledger.reserve("m", found.planned)
    assert planner.free_memory() == 8 * GB - found.memory
    assert found.memory <= 8 * GB


async def test_memory_for_several_models_holds_them_though_none_is_kept_for_the_next(
    machine: Machine, tmp_path: Path
) -> None:
    local, planner = model(tmp_path / "m.gguf"), StartPlanner(context=1000, cap=15 * GB)
    least = (await StartPlanner(context=1000, cap=5 * GB).plan(ENGINE, local, usage(local.header))).memory
    assert 3 * least < 15 * GB
    for name in "abc":
        found = await planner.plan(ENGINE, local, usage(local.header))
        planner.ledger.reserve(name, found.planned)
    assert planner.free_memory() >= 0


async def test_planned_memory_says_where_it_is(machine: Machine, tmp_path: Path) -> None:
    machine.devices = (PROCESSOR, gpu("CUDA0", 24), gpu("CUDA1", 48))
    local = model(tmp_path / "m.gguf")
    fit = await StartPlanner().plan(ENGINE, local, usage(local.header))
    assert [name for name, _ in fit.planned.devices] == ["CUDA1"]
    assert fit.planned.host + sum(size for _, size in fit.planned.devices) == fit.memory


async def test_plan_counts_the_batches_that_the_engine_computes(machine: Machine, tmp_path: Path) -> None:
    local = model(tmp_path / "m.gguf")
    sees = replace(local, projector=engine_samples.projector(tmp_path / "mmproj.gguf"))
    for chosen, devices, batch in (
        (local, (PROCESSOR,), PROCESSOR_BATCH),
        (sees, (PROCESSOR,), MICRO_BATCH),  # an image needs all its tokens in one batch
        (local, (PROCESSOR, gpu("CUDA0", 24)), MICRO_BATCH),
    ):
        machine.devices = devices
        fit = await StartPlanner().plan(ENGINE, chosen, usage(chosen.header))
        assert machine.asked[-1]["micro_batch"] == batch
        plan = ServerPlan("m", local.path, 1, 1, devices=fit.devices, projector=fit.projector)
        assert ("--batch-size" in arguments(Path("e"), plan, Path("s"))) == (batch == PROCESSOR_BATCH)
