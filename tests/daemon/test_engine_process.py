"""What the host of a split finds out before it starts: sizes, digests; and why a start failed."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard, cast

import pytest

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.memory.context_size import ContextSize
from meshllm.core.memory.speculation import PLAIN
from meshllm.core.records import NodeId
from meshllm.core.split.lease import Lease
from meshllm.core.split.planner import WorkerShare
from meshllm.daemon.draft_selection import NO_DRAFT_REQUEST, DraftSelector
from meshllm.daemon.drains import NO_REQUESTS
from meshllm.daemon.engine_process import EngineProcesses
from meshllm.daemon.memory_ledger import PlannedMemory
from meshllm.daemon.prompt_speeds import PromptSpeeds
from meshllm.daemon.prompt_store import PromptStore
from meshllm.daemon.start_planner import StartPlan, StartPlanner
from meshllm.daemon.tool_call_tests import ToolCallTests
from meshllm.daemon.worker_process import ProcessContext, WorkerProcesses
from meshllm.engine.build.builder import Engine
from meshllm.engine.processes.child_registry import ChildRegistry
from meshllm.engine.processes.llama_server import Projector
from meshllm.errors import MeshError, NotEnoughSpace
from meshllm.models.gguf.projector import projector_bytes
from meshllm.models.gguf.purpose import usage
from meshllm.models.library.local_model import LocalModel, from_path
from meshllm.models.library.store import Store
from tests import engine_samples

LEASE = Lease(b"s" * 16, 1, "m", (), (WorkerShare(NodeId(b"h" * 32), 0, 1, 1), WorkerShare(NodeId(b"w" * 32), 1, 1, 1)))
ENGINE = cast(Engine, None)


class Hands:
    """Servers with everything around them made up; `wrong` is what fitting it here alone raises."""

    def __init__(self, folder: Path, wrong: MeshError | None = None) -> None:
        self.wrong, self.said = wrong, asyncio.Queue[e.Event]()
        self.released: list[Lease] = []
        self.store = Store(folder / "models")  # nothing was ever fetched into it
        drafter = DraftSelector(NO_DRAFT_REQUEST, self.store, ())
        context = ProcessContext(folder, folder, ChildRegistry(folder / "children"), self.said.put_nowait)
        self.fitter = StartPlanner(context=64, cap=10**9)
        workers = cast(WorkerProcesses, self)
        prompts = PromptStore(folder, lambda: 0.0)
        tools = ToolCallTests(folder, NO_REQUESTS, {})
        speeds = PromptSpeeds(folder)
        self.servers = EngineProcesses(
            context, self.store, self.fitter, drafter, workers, self._bring, tools, prompts, speeds
        )

    async def _bring(self, *_: Any) -> LocalModel:
        raise AssertionError("no draft was asked for")

    async def plan(self, *_: Any, **__: Any) -> StartPlan:
        if self.wrong is not None:
            raise self.wrong
        return StartPlan(ContextSize(64, 1), 1, None, 0)

    async def connect_workers(self, lease: Lease, files: Any) -> Any:
        raise OSError("no room for sockets")

    def release(self, lease: Lease, reach: Any) -> None:
        assert reach is None
        self.released.append(lease)

    async def told(self) -> e.Event:
        return await asyncio.wait_for(self.said.get(), 60)


@asynccontextmanager
async def hands(folder: Path, wrong: MeshError | None = None) -> AsyncIterator[Hands]:
    made = Hands(folder, wrong)
    try:
        yield made
    finally:
        await made.servers.close()


def model(made: Hands, folder: Path) -> LocalModel:
    """A small file outside the store, as a person names one by its path."""
    return from_path(engine_samples.model_without_needed_tensors(folder / "named.gguf"), made.store)


async def test_measure_for_a_split_has_layers_and_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with hands(tmp_path) as it:
        monkeypatch.setattr(it.fitter, "plan", it.plan)
        local = model(it, tmp_path)
        for split in (True, False):
            it.servers.measure(local, "m", ENGINE, split=split)
            event = await it.told()
            assert isinstance(event, e.ModelMeasured)
            assert event.measured.fits_locally
            assert bool(event.measured.files) is split  # nobody else needs them
        it.servers.measure(local, "m", ENGINE, split=True)
        event = await it.told()
        assert isinstance(event, e.ModelMeasured)
        (file,) = event.measured.files
        data = local.path.read_bytes()
        assert (file.name, file.size, file.sha256) == ("named.gguf", len(data), hashlib.sha256(data).hexdigest())
        assert it.store.known_digest(local.path) == file.sha256, "it is not computed again"
        assert [tried.size.slots for tried in event.measured.sizes] == [4, 2, 1]
        assert all(len(tried.need.layers) == 1 for tried in event.measured.sizes)


async def test_measure_counts_the_image_encoder_on_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with hands(tmp_path) as it:
        monkeypatch.setattr(it.fitter, "plan", it.plan)
        blind = model(it, tmp_path)
        sees = replace(blind, projector=engine_samples.projector(tmp_path / "mmproj.gguf"))
        assert sees.projector is not None
        needs = []
        for local in (blind, sees):
            it.servers.measure(local, "m", ENGINE, split=True)
            event = await it.told()
            assert isinstance(event, e.ModelMeasured)
            needs.append([tried.need for tried in event.measured.sizes])
        taken = projector_bytes(sees.projector)
        assert taken > 0
        for without, beside in zip(*needs, strict=True):
            assert beside == replace(without, ends=without.ends + taken), "on the host, and on nobody else"
        size, workers = ContextSize(64, 1), LEASE.shares[1:]
        lease = replace(LEASE, shares=(replace(LEASE.shares[0], memory=needs[1][-1].total), *workers))
        fit = it.fitter.plan_split(sees, usage(sees.header), lease, size, PLAIN, None)
        assert fit.projector == Projector(sees.projector, device=None)
        assert "vision" in fit.placement_text
        assert fit.memory >= needs[0][-1].total + taken


async def test_measure_of_a_model_too_large_has_split_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with hands(tmp_path, NotEnoughSpace("too large")) as it:
        monkeypatch.setattr(it.fitter, "plan", it.plan)
        it.servers.measure(model(it, tmp_path), "m", ENGINE, split=False)
        event = await it.told()
        assert isinstance(event, e.ModelMeasured)
        assert not event.measured.fits_locally
        assert event.measured.files
        assert event.measured.sizes


async def test_measure_failure_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with hands(tmp_path, MeshError("the engine is broken", advice="build it again")) as it:
        monkeypatch.setattr(it.fitter, "plan", it.plan)
        local = model(it, tmp_path)
        it.servers.measure(local, "m", ENGINE, split=True)
        assert await it.told() == e.MeasureFailed("m", "the engine is broken", "build it again")
        it.wrong = None
        local.path.unlink()
        it.servers.measure(local, "m", ENGINE, split=True)
        event = await it.told()
        assert isinstance(event, e.MeasureFailed)
        assert event.reason


async def test_start_that_cannot_connect_workers_releases_the_lease(tmp_path: Path) -> None:
    async with hands(tmp_path) as it:
        it.servers.start(model(it, tmp_path), c.StartServer("m", 4, LEASE, ContextSize(64, 1)), ENGINE)
        event = await it.told()
        assert isinstance(event, e.ServerGone)
        assert (event.model, event.generation) == ("m", 4)
        assert "no room for sockets" in event.reason
        assert it.released == [LEASE]


async def test_stop_cancels_a_start_that_has_no_process_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with hands(tmp_path) as it:
        planning = asyncio.Event()

        async def endless(*_: Any, **__: Any) -> StartPlan:
            planning.set()
            await asyncio.Event().wait()
            raise AssertionError

        monkeypatch.setattr(it.fitter, "plan", endless)
        it.servers.start(model(it, tmp_path), c.StartServer("m", 4), ENGINE)
        await planning.wait()
        it.servers.stop("m", 4, at_once=False)
        assert await it.told() == e.ServerGone("m", 4, "it was stopped")


async def test_start_that_is_stopped_in_the_same_moment_ends_too(tmp_path: Path) -> None:
    async with hands(tmp_path) as it:
        it.servers.start(model(it, tmp_path), c.StartServer("m", 4), ENGINE)
        it.servers.stop("m", 4, at_once=True)
        assert await it.told() == e.ServerGone("m", 4, "it was stopped")


async def test_models_that_are_measured_at_the_same_time_do_not_plan_the_same_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are 10 bytes (--max-vram), and each of the three models takes 4."""
    async with hands(tmp_path) as it:
        it.fitter = it.servers._planner = StartPlanner(context=64, cap=10)

        async def plan(*_: Any, **__: Any) -> StartPlan:
            free = it.fitter.free_memory()
            await asyncio.sleep(0)  # another one may come in between
            if free < 4:
                raise NotEnoughSpace("too large")
            return StartPlan(ContextSize(64, 1), 4, None, 0, planned=PlannedMemory(4))

        monkeypatch.setattr(it.fitter, "plan", plan)
        local = model(it, tmp_path)
        for name in "abc":
            it.servers.measure(local, name, ENGINE, split=False)
        told = {event.model: event.measured for event in [await it.told() for _ in "abc"] if is_measured(event)}
        assert [told[name].fits_locally for name in "abc"] == [True, True, False]
        assert (told["c"].free_bytes, told["c"].least_bytes > 0) == (2, True)
        it.servers.forget("a")
        assert it.fitter.free_memory() == 6
        it.servers.measure(local, "b", ENGINE, split=False)  # its own plan does not count against it
        event = await it.told()
        assert is_measured(event)
        assert (event.measured.fits_locally, event.measured.free_bytes) == (True, 10)


async def test_plan_is_made_again_if_a_lease_is_taken_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are 10 bytes (--max-vram), of which a lease takes 7 while the model is planned with them."""
    async with hands(tmp_path) as it:
        it.fitter = it.servers._planner = StartPlanner(context=64, cap=10)
        leased = [(b"s" * 16, 1)]

        async def plan(*_: Any, **__: Any) -> StartPlan:
            free = it.fitter.free_memory()
            if leased:
                it.fitter.ledger.reserve(leased.pop(), PlannedMemory(7))
            return StartPlan(ContextSize(64, 1), free, None, 0, planned=PlannedMemory(free))

        monkeypatch.setattr(it.fitter, "plan", plan)
        it.servers.measure(model(it, tmp_path), "m", ENGINE, split=False)
        assert is_measured(await it.told())
        assert it.fitter.ledger.left(it.fitter.machine()).planned == 10


def is_measured(event: e.Event) -> TypeGuard[e.ModelMeasured]:
    """Whether it tells what a model needs."""
    return isinstance(event, e.ModelMeasured)


async def test_forgotten_model_is_no_longer_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with hands(tmp_path) as it:
        planning, ended = asyncio.Event(), asyncio.Event()

        async def endless(*_: Any, **__: Any) -> StartPlan:
            planning.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
            raise AssertionError

        monkeypatch.setattr(it.fitter, "plan", endless)
        local = model(it, tmp_path)
        it.servers.measure(local, "m", ENGINE, split=False)
        await planning.wait()
        it.servers.forget("m")
        async with asyncio.timeout(20):
            await ended.wait()
        monkeypatch.setattr(it.fitter, "plan", it.plan)
        it.servers.measure(local, "other", ENGINE, split=False)
        event = await it.told()
        assert isinstance(event, e.ModelMeasured)
        assert event.model == "other", "the next plan does not wait for the one that was cancelled"
