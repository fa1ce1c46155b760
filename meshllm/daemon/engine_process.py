"""The llama-server processes of this node: memory measured first, then one task for each process.

Invariants: each start ends in exactly one `ServerGone`; stopping a start that has no process yet cancels its task. One
plan is made at a time, and enters the memory ledger before the next one: two models never plan the same free memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.memory.context_size import candidates
from meshllm.core.memory.speculation import DraftSource
from meshllm.core.snapshot import ServerFacts
from meshllm.core.split.host import MeasuredModel, SizeNeed
from meshllm.core.split.lease import LeasedFile
from meshllm.core.split.planner import need_of
from meshllm.daemon.chat_templates import ChatTemplates
from meshllm.daemon.draft_selection import DraftSelector
from meshllm.daemon.drains import Drains
from meshllm.daemon.kept_memory import least_bytes
from meshllm.daemon.log_file import engine_log
from meshllm.daemon.prompt_speeds import PromptSpeeds
from meshllm.daemon.prompt_store import PromptStore
from meshllm.daemon.saved_slots import STOP_SECONDS, SavedModel, SavedSlots, token_bytes, unsupported
from meshllm.daemon.start_planner import KeptMemory, StartPlan, StartPlanner
from meshllm.daemon.tool_call_tests import ToolCallTests
from meshllm.daemon.worker_process import ProcessContext, WorkerConnections, WorkerProcesses
from meshllm.engine.build import builder
from meshllm.engine.processes import llama_server
from meshllm.engine.processes.child import Child
from meshllm.engine.processes.llama_server import ServerPlan
from meshllm.errors import InputError, MeshError, NotEnoughSpace
from meshllm.models.catalog.entry import Wanted
from meshllm.models.gguf.projector import projector_bytes
from meshllm.models.gguf.purpose import usage
from meshllm.models.library.local_model import LocalModel
from meshllm.models.library.store import Store
from meshllm.models.transfer import prefix_hash
from meshllm.models.transfer import progress as model_progress
from meshllm.tasks import Owner
from meshllm.util.progress import Progress
from meshllm.util.threads import StopSignal, in_thread

log = logging.getLogger(__name__)

Beside = Callable[[], Sequence[KeptMemory]]
"""The further models for which a plan keeps memory. Reads files."""

Drained = Callable[[], Awaitable[None]]
"""Waits until a process has no request."""

EnsureModel = Callable[[Wanted, model_progress.Report], Awaitable[LocalModel]]
"""Brings a model to this disk, if it is not there. Raises MeshError."""

DEFECT_ADVICE = "This is a defect; please report it."
TEMPLATE_ADVICE = "Start with another template (--chat-template FILE), or use another GGUF file of this model."
STOPPED = "it was stopped"
# A plan takes about a second; a node has one lease at a time.
PLAN_TRIES = 3
# In the process's own directory.
SLOT_FOLDER = "slots"

ServerKey = tuple[str, int]
"""Model and generation of an engine process."""

STAGES: dict[str, str] = {
    model_progress.TransferStage.EXTRACTING: "unpacking",
    model_progress.TransferStage.FAILED_SOURCE: "looking for another source",
}


def progress_of(step: model_progress.TransferProgress) -> Progress:
    """The progress of a transfer, without what only the download command shows."""
    return Progress(STAGES.get(step.stage, step.stage), step.done, step.total, step.detail)


@dataclass(frozen=True, slots=True)
class _PlannedStart:
    """What an engine process is started with."""

    plan: StartPlan
    draft: LocalModel | None = None
    connections: WorkerConnections | None = None


@dataclass(slots=True)
class _ServerTask:
    """The task of an engine process, and the process once there is one."""

    task: asyncio.Task[e.ServerGone]
    child: Child | None = None
    saved: SavedSlots | None = None


class EngineProcesses:
    """The llama-server processes of this node."""

    def __init__(
        self,
        context: ProcessContext,
        store: Store,
        planner: StartPlanner,
        drafts: DraftSelector,
        workers: WorkerProcesses,
        ensure_model: EnsureModel,
        tool_calls: ToolCallTests,
        prompts: PromptStore,
        speeds: PromptSpeeds,
        uses: Drains | None = None,
    ) -> None:
        """`tool_calls`: which models call tools. `prompts`: where computed prompts are kept over restarts; `speeds`:
        how fast prompts are read; `uses`: the requests of the processes (None: keep nothing)."""
        self._prompts = prompts
        self._speeds = speeds
        self._uses = uses
        self._context = context
        self._post = context.post
        self._store = store
        self._planner = planner
        self._drafts = drafts
        self._workers = workers
        self._ensure_model = ensure_model
        self._owner = Owner("engine processes")
        self._planning = asyncio.Lock()
        self._measuring: dict[str, asyncio.Task[None]] = {}
        self._planned: dict[str, _PlannedStart] = {}
        self._tasks: dict[ServerKey, _ServerTask] = {}
        self._templates = ChatTemplates(context.home)
        self._tool_calls = tool_calls

    def measure(
        self, model: LocalModel, name: str, engine: builder.Engine, *, split: bool, beside: Beside = tuple
    ) -> None:
        """Measure the memory that `model`, served as `name`, needs here; ends in ModelMeasured or MeasureFailed."""
        task = self._owner.start(self._measure(model, name, engine, split, beside), f"measure {name}")
        self._measuring[name] = task
        task.add_done_callback(lambda done: self._measured_or_not(name, done))

    def _measured_or_not(self, name: str, task: asyncio.Task[None]) -> None:
        if self._measuring.get(name) is task:
            del self._measuring[name]

    def forget(self, name: str) -> None:
        """The model `name` is not served any more: end its measurement, and free what was planned for it."""
        if (task := self._measuring.pop(name, None)) is not None:
            task.cancel()
        self._planned.pop(name, None)
        self._planner.ledger.release(name)

    def start(self, model: LocalModel, command: c.StartServer, engine: builder.Engine) -> None:
        """Start a process; ends in ServerGone."""
        key = (command.model, command.generation)
        task = self._owner.start(self._serve(model, command, engine), f"serve {command.model} {command.generation}")
        self._tasks[key] = _ServerTask(task)
        task.add_done_callback(partial(self._ended, key))

    def stop(self, name: str, generation: int, *, at_once: bool, drained: Drained | None = None) -> None:
        """Stop a process: with time to finish its answers, or `at_once`, or when it is `drained`. A start that is not
        that far is cancelled."""
        server = self._tasks.get((name, generation))
        if server is None:
            return
        if server.child is None:
            server.task.cancel()
        elif at_once or (drained is None and server.saved is None):
            server.child.stop(at_once=at_once)
        else:
            self._owner.start(self._drain(server.child, drained, server.saved), f"drain {name} {generation}")

    async def _drain(self, child: Child, drained: Drained | None, saved: SavedSlots | None) -> None:
        try:
            if drained is not None:
                await drained()
            if saved is not None:
                await saved.save(STOP_SECONDS)
        finally:
            child.stop()

    def pids(self) -> dict[str, int]:
        """The process id of each engine process that runs, by model."""
        running = [(name, server.child) for (name, _), server in list(self._tasks.items())]
        return {name: child.pid for name, child in running if child is not None and child.pid}

    async def close(self) -> None:
        """End everything that still runs."""
        await self._owner.close()
        await self._tool_calls.close()

    # -- memory

    async def _measure(self, model: LocalModel, name: str, engine: builder.Engine, split: bool, beside: Beside) -> None:
        try:
            measured = await self._measured(model, name, engine, split, beside)
        except MeshError as error:
            self._post(e.MeasureFailed(name, error.message, error.advice, isinstance(error, InputError)))
        except Exception as error:
            log.exception("measuring %s failed", name)
            self._post(e.MeasureFailed(name, f"measuring failed: {error!r}", DEFECT_ADVICE))
        else:
            self._post(e.ModelMeasured(name, measured))

    async def _measured(
        self, model: LocalModel, name: str, engine: builder.Engine, split: bool, beside: Beside
    ) -> MeasuredModel:
        ledger, found = self._planner.ledger, None
        async with self._planning:
            ledger.release(name)  # of its last process
            await ledger.settled()
            free_bytes = self._planner.free_memory()
            with contextlib.suppress(NotEnoughSpace):
                found = self._planned[name] = await self._plan_alone(model, name, engine, beside)
            fits_locally = found is not None and not found.plan.disk_paging
            if found is not None and fits_locally and not split:
                ledger.reserve(name, found.plan.planned)
                return MeasuredModel(fits_locally, free_bytes)
        tries = candidates(model.context_length, self._planner.context, usage(model.header).purpose)
        # The host of a split computes the image encoder, whichever nodes compute the layers.
        projector = 0 if model.projector is None else projector_bytes(model.projector)
        sizes = tuple(SizeNeed(size, need_of(model.header.shape, size, beside=projector)) for size in tries)
        return MeasuredModel(
            fits_locally,
            free_bytes,
            sizes,
            await self._leased_files(model),
            disk_paging=found is not None and not fits_locally,
            least_bytes=least_bytes(model, self._planner.context),
        )

    async def _plan_alone(
        self, model: LocalModel, name: str, engine: builder.Engine, beside: Beside = tuple
    ) -> _PlannedStart:
        """How to serve `model` on this node alone. Raises NotEnoughSpace if it does not fit."""
        speculation, draft = await self._drafts.choose(name, model, partial(self._ensure_draft, name))
        kept = await in_thread(lambda stop: beside(), "memory of further models")
        ledger = self._planner.ledger
        for _ in range(PLAN_TRIES):
            seen = ledger.reservations
            plan = await self._planner.plan(
                engine, model, usage(model.header), speculation=speculation, draft=draft, beside=kept
            )
            if ledger.reservations == seen:
                break  # else a lease was taken meanwhile, with memory on which this plan counts
        return _PlannedStart(plan, draft if plan.speculation.source is DraftSource.DRAFT else None)

    async def _ensure_draft(self, name: str, draft: Wanted) -> LocalModel:
        """The draft model for `name` on this disk. Raises as `ensure.ensure` does."""

        def report(step: model_progress.TransferProgress) -> None:
            if step.stage is not model_progress.TransferStage.READY:
                progress = progress_of(step)
                self._post(e.FileProgress(name, replace(progress, stage=f"{progress.stage} the draft model")))

        return await self._ensure_model(draft, report)

    async def _leased_files(self, model: LocalModel) -> tuple[LeasedFile, ...]:
        """The model's files with their digests, by which other nodes ask for them."""
        found = []
        for path in model.files:
            digest = self._store.known_digest(path)
            if digest is None:
                digest = await in_thread(partial(self._digest, path), "digest of a model")
            found.append(LeasedFile(path.name, path.stat().st_size, digest))
        return tuple(found)

    def _digest(self, path: Path, stop: StopSignal) -> str:
        self._store.prepare()  # its folder may not exist yet: the model may be outside the store
        found = prefix_hash.digests(stop, path, self._store.chunk_bytes, lambda done: None).sha256
        self._store.record(path, found)
        return found

    # -- a process

    async def _serve(self, model: LocalModel, command: c.StartServer, engine: builder.Engine) -> e.ServerGone:
        """The life of an engine process: plan, start, run. Returns why it ended."""
        name, generation = command.model, command.generation
        start: _PlannedStart | None = None
        try:
            if command.lease is not None:
                start = await self._plan_split(model, command)
                self._planner.ledger.reserve(name, start.plan.planned)
            else:
                start = self._planned.pop(name, None) or await self._plan_again(model, name, engine)
            with llama_server.private_directory(self._context.sockets) as folder:
                return await self._run(model, command, engine, start, llama_server.socket_path(folder))
        except MeshError as error:
            return e.ServerGone(name, generation, error.message, error.advice, isinstance(error, NotEnoughSpace))
        except Exception as error:
            log.exception("serving %s failed", name)
            return e.ServerGone(name, generation, f"starting it failed: {error!r}", DEFECT_ADVICE)
        finally:
            if command.lease is not None:
                self._workers.release(command.lease, start.connections if start is not None else None)

    async def _plan_again(self, model: LocalModel, name: str, engine: builder.Engine) -> _PlannedStart:
        """How to start a process of `model` again. Raises NotEnoughSpace."""
        async with self._planning:
            await self._planner.ledger.settled()
            start = await self._plan_alone(model, name, engine)
            self._planner.ledger.reserve(name, start.plan.planned)
            return start

    def _ended(self, key: ServerKey, task: asyncio.Task[e.ServerGone]) -> None:
        """The task of a process is done. A task that was cancelled may not even have begun."""
        self._tasks.pop(key, None)
        self._planner.ledger.release(key[0])
        self._post(e.ServerGone(*key, STOPPED) if task.cancelled() else task.result())

    async def _run(
        self, model: LocalModel, command: c.StartServer, engine: builder.Engine, start: _PlannedStart, socket: Path
    ) -> e.ServerGone:
        """Run the process to its end. Returns why it ended and what to do."""
        name, generation = command.model, command.generation
        plan, started = start.plan, False
        threads = self._planner.threads_of(command.sharers)
        log_file = engine_log(self._context.home, name)
        template = await self._templates.file(model, socket.parent)

        def loading(fraction: float | None) -> None:
            self._post(e.ServerProgress(name, generation, Progress.at("loading", fraction)))

        def ready(pid: int) -> None:
            nonlocal started
            started = True
            self._planner.ledger.loaded(name)
            facts = ServerFacts(
                str(socket),
                pid,
                plan.size.slots,
                plan.size.context_length,
                plan.memory,
                plan.speculation,
                plan.placement_text,
                memory_parts=plan.memory_parts,
            )
            probing.append(self._owner.start(self._report_ready(model, command, engine, facts), f"template of {name}"))

            if (saved := self._tasks[name, generation].saved) is not None:
                probing.append(self._owner.start(saved.run(), f"saved prompts of {name}"))

        probing: list[asyncio.Task[None]] = []
        server = replace(_server_plan(model, name, start, threads), chat_template=template)
        server = replace(server, processor_batch=self._speeds.batch(model))
        server = await self._save_slots(model, command, engine, server, socket)
        spec = llama_server.child_spec(engine.server, server, socket, log_file, loading, self._context.sandboxing)
        child = Child(spec, self._context.registry, ready)
        self._tasks[name, generation].child = child
        self._planner.ledger.started(name, lambda: child.pid)
        try:
            ending = await child.run()
        finally:
            for task in probing:
                task.cancel()
        if ending.requested:
            return e.ServerGone(name, generation, STOPPED)
        problem = None if started else llama_server.template_problem(ending)
        if problem is not None:
            reason, advice = f"its chat template does not work: {problem}", TEMPLATE_ADVICE
        else:
            reason, advice = llama_server.reason_and_advice(ending, log_file)
        log.warning("%s: %s", name, reason)
        if start.draft is not None and not started and problem is None:
            self._drafts.reject(start.draft, f"the engine did not start with it: {reason}")
        return e.ServerGone(name, generation, reason, advice, hopeless=problem is not None)

    async def _save_slots(
        self, model: LocalModel, command: c.StartServer, engine: builder.Engine, server: ServerPlan, socket: Path
    ) -> ServerPlan:
        """The plan of a process whose computed prompts are kept, where that is possible."""
        if self._uses is None:
            return server
        shape, name = model.header.shape, command.model
        if why := unsupported(shape, server):
            log.debug("%s: computed prompts are lost when its engine ends: %s", name, why)
            return server
        folder = socket.parent / SLOT_FOLDER
        try:
            folder.mkdir(mode=0o700)
            served = (engine.server, server.context_length, server.devices, server.layers)
            key = await in_thread(lambda stop: PromptStore.key(model.files, *served), "saved prompts")
        except OSError as error:
            log.debug("%s: computed prompts are lost when its engine ends: %s", name, error)
            return server
        kept = SavedModel(name, command.generation, model.path, key, token_bytes(shape))
        self._tasks[name, command.generation].saved = SavedSlots(self._prompts, self._uses, kept, socket, folder)
        return replace(server, slot_folder=folder)

    async def _report_ready(
        self, model: LocalModel, command: c.StartServer, engine: builder.Engine, facts: ServerFacts
    ) -> None:
        """Tell that a process is ready, and what its chat template renders; then whether the model calls tools, if that
        is not known."""
        name, generation = command.model, command.generation
        traits = await self._templates.traits(model, engine.server, facts.endpoint)
        calls = await self._tool_calls.known(name, model, engine.server)
        server = self._tasks.get((name, generation))
        if server is not None and server.saved is not None:
            await server.saved.ahead()
        self._post(e.ServerReady(name, generation, replace(facts, template=traits, calls_tools=calls)))
        if calls is None:
            calls = await self._tool_calls.test(name, model, engine.server, facts.endpoint)
            if calls is not None:
                self._post(e.ToolCallsTested(name, generation, calls))

    async def _plan_split(self, model: LocalModel, command: c.StartServer) -> _PlannedStart:
        """How to serve `model` with the workers of its lease."""
        lease, size = command.lease, command.size
        assert lease is not None
        assert size is not None
        speculation, draft = await self._drafts.choose(command.model, model, partial(self._ensure_draft, command.model))
        plan = self._planner.plan_split(model, usage(model.header), lease, size, speculation, draft, command.names)
        kept = draft if plan.speculation.source is DraftSource.DRAFT else None
        return _PlannedStart(plan, kept, await self._workers.connect_workers(lease, model.files))


def _server_plan(model: LocalModel, name: str, start: _PlannedStart, threads: int | None) -> ServerPlan:
    plan, draft, connections = start.plan, start.draft, start.connections
    how = usage(model.header)
    return ServerPlan(
        model_name=name,
        model_path=model.path,
        context_length=plan.size.context_length,
        slots=plan.size.slots,
        prompt_cache_mib=plan.prompt_cache_mib,
        purpose=how.purpose,
        pooling=how.pooling,
        micro_batch=plan.micro_batch,
        devices=plan.devices,
        layers=plan.layers,
        experts_aside=plan.experts_aside,
        checkpoints=plan.checkpoints,
        speculation=plan.speculation,
        draft_path=draft.path if draft is not None else None,
        draft_device=plan.draft_device,
        projector=plan.projector,
        workers=connections.endpoints if connections is not None else (),
        environment=connections.environment if connections is not None else {},
        threads=threads,
        files=(*model.files, *(draft.files if draft is not None else ())),
        memory=plan.memory_limit,
    )
