"""The engine processes that answer for models: what each is started with, its life, and how it ends.

Law: a model is measured before it is started, and what was found out then is used for the first start. A process
belongs to one generation, and whatever becomes of it is one `ServerGone`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
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
from meshllm.daemon.draft_selection import DraftSelector
from meshllm.daemon.start_planner import StartPlan, StartPlanner
from meshllm.daemon.worker_process import WorkerConnections, WorkerProcesses
from meshllm.engine.build import builder
from meshllm.engine.processes import llama_server
from meshllm.engine.processes.child import Child
from meshllm.engine.processes.child_registry import ChildRegistry
from meshllm.engine.processes.llama_server import ServerPlan
from meshllm.errors import MeshError, NotEnoughSpace
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

Bring = Callable[[Wanted, model_progress.Report], Awaitable[LocalModel]]
"""Brings a model to this disk, if it is not there. Raises MeshError."""


STAGES: dict[str, str] = {model_progress.TransferStage.EXTRACTING: "unpacking"}


def progress_of(step: model_progress.TransferProgress) -> Progress:
    """The progress of a transfer, without what only the download command shows."""
    return Progress(STAGES.get(step.stage, step.stage), step.done, step.total, step.detail)


@dataclass(frozen=True, slots=True)
class _Start:
    """What a process is to be started with."""

    fit: StartPlan
    draft: LocalModel | None = None
    reach: WorkerConnections | None = None


class EngineProcesses:
    """The engine processes of this node."""

    def __init__(
        self,
        home: Path,
        sockets: Path,
        ledger: ChildRegistry,
        store: Store,
        fitter: StartPlanner,
        drafter: DraftSelector,
        carrying: WorkerProcesses,
        bring: Bring,
        post: Callable[[e.Event], None],
    ) -> None:
        self._home = home
        self._sockets = sockets
        self._ledger = ledger
        self._store = store
        self._fitter = fitter
        self._drafter = drafter
        self._carrying = carrying
        self._bring = bring
        self._post = post
        self._owner = Owner("servers")
        self._found: dict[str, _Start] = {}
        self._children: dict[tuple[str, int], Child | None] = {}
        self._unwanted: set[tuple[str, int]] = set()

    def measure(self, model: LocalModel, name: str, engine: builder.Engine, *, split: bool) -> None:
        """Find out what `model`, served as `name`, takes here; ends in ModelMeasured or MeasureFailed."""
        self._owner.start(self._measure(model, name, engine, split), f"measure {name}")

    def start(self, model: LocalModel, command: c.StartServer, engine: builder.Engine) -> None:
        """Start a process; ends in ServerGone."""
        self._children[command.model, command.generation] = None
        self._owner.start(self._serve(model, command, engine), f"serve {command.model} {command.generation}")

    def stop(self, name: str, generation: int, *, at_once: bool) -> None:
        """End a process: politely, or at once where it cannot answer any more."""
        child = self._children.get((name, generation))
        if child is not None:
            child.stop(at_once=at_once)
        else:
            self._unwanted.add((name, generation))

    async def close(self) -> None:
        """End everything that still runs."""
        await self._owner.close()

    # -- what it takes

    async def _measure(self, model: LocalModel, name: str, engine: builder.Engine, split: bool) -> None:
        try:
            measured = await self._measured(model, name, engine, split)
        except MeshError as error:
            self._post(e.MeasureFailed(name, error.message, error.advice))
        except Exception as error:
            log.exception("measuring %s failed", name)
            self._post(e.MeasureFailed(name, f"measuring failed: {error!r}", "This is a defect; please report it."))
        else:
            self._post(e.ModelMeasured(name, measured))

    async def _measured(self, model: LocalModel, name: str, engine: builder.Engine, split: bool) -> MeasuredModel:
        room, found = self._fitter.free_memory(), None
        with contextlib.suppress(NotEnoughSpace):
            found = self._found[name] = await self._prepare(model, name, engine)
        alone = found is not None and not found.fit.disk_paging
        if alone and not split:
            return MeasuredModel(alone, room)
        tries = candidates(model.context_length, self._fitter.context, usage(model.header).purpose)
        # Whoever carries layers, pictures are turned into tokens by the host.
        beside = 0 if model.projector is None else projector_bytes(model.projector)
        sizes = tuple(SizeNeed(size, need_of(model.header.shape, size, beside=beside)) for size in tries)
        return MeasuredModel(alone, room, sizes, await self._leased(model), disk_paging=found is not None and not alone)

    async def _prepare(self, model: LocalModel, name: str, engine: builder.Engine) -> _Start:
        """How to serve it here alone. Raises NotEnoughSpace where that cannot be."""
        speculation, draft = await self._drafter.choose(name, model, partial(self._fetch_draft, name))
        fit = await self._fitter.plan(engine, model, usage(model.header), speculation=speculation, draft=draft)
        return _Start(fit, draft if fit.speculation.source is DraftSource.DRAFT else None)

    async def _fetch_draft(self, name: str, draft: Wanted) -> LocalModel:
        """The draft that was asked for, on this disk. Raises as `download.ensure` does."""

        def tell(step: model_progress.TransferProgress) -> None:
            if step.stage is not model_progress.TransferStage.READY:
                progress = progress_of(step)
                self._post(e.FileProgress(name, replace(progress, stage=f"{progress.stage} the draft model")))

        return await self._bring(draft, tell)

    async def _leased(self, model: LocalModel) -> tuple[LeasedFile, ...]:
        """The model's files as others may have them: by digest, which is found out where nobody has yet."""
        found = []
        for path in model.files:
            digest = self._store.known_digest(path)
            if digest is None:
                digest = await in_thread(partial(self._digest, path), "digest of a model")
            found.append(LeasedFile(path.name, path.stat().st_size, digest))
        return tuple(found)

    def _digest(self, path: Path, stop: StopSignal) -> str:
        self._store.prepare()  # the model may lie elsewhere, and nothing have been fetched yet
        found = prefix_hash.digests(stop, path, self._store.chunk_bytes, lambda done: None).sha256
        self._store.record(path, found)
        return found

    # -- a process

    async def _serve(self, model: LocalModel, command: c.StartServer, engine: builder.Engine) -> None:
        name, generation = command.model, command.generation
        key = (name, generation)
        socket = llama_server.socket_path(self._sockets)
        reason, advice, hopeless = "it was stopped", "", False
        start: _Start | None = None
        try:
            if command.lease is not None:
                start = await self._reach(model, command)
            else:
                start = self._found.pop(name, None) or await self._prepare(model, name, engine)
            reason, advice = await self._run(model, command, engine, start, socket) or (reason, advice)
        except MeshError as error:
            reason, advice, hopeless = error.message, error.advice, isinstance(error, NotEnoughSpace)
        except Exception as error:
            log.exception("serving %s failed", name)
            reason, advice = f"starting it failed: {error!r}", "This is a defect; please report it."
        finally:
            socket.unlink(missing_ok=True)
            if command.lease is not None:
                self._carrying.release(command.lease, start.reach if start is not None else None)
            self._children.pop(key, None)
            self._unwanted.discard(key)
            self._post(e.ServerGone(name, generation, reason, advice, hopeless))

    async def _run(
        self, model: LocalModel, command: c.StartServer, engine: builder.Engine, start: _Start, socket: Path
    ) -> tuple[str, str] | None:
        """Live through the life of a process. Returns why it ended and what to do; None if it was to end."""
        name, generation = command.model, command.generation
        key, fit, started = (name, generation), start.fit, False
        log_file = self._home / "logs" / f"{_file_name(name)}.log"

        def loading(fraction: float | None) -> None:
            self._post(e.ServerProgress(name, generation, Progress.at("loading", fraction)))

        def ready(pid: int) -> None:
            nonlocal started
            started = True
            size = fit.size
            facts = ServerFacts(
                str(socket), pid, size.slots, size.context_length, fit.memory, fit.speculation, fit.placement_text
            )
            self._post(e.ServerReady(name, generation, facts))

        plan = _plan(model, name, start, self._fitter.threads)
        child = Child(llama_server.child_spec(engine.server, plan, socket, log_file, loading), self._ledger, ready)
        self._children[key] = child
        if key in self._unwanted:
            return None
        ending = await child.run()
        if ending.requested:
            return None
        reason, advice = llama_server.reason_and_advice(ending, log_file)
        log.warning("%s: %s", name, reason)
        if start.draft is not None and not started:
            self._drafter.reject(start.draft, f"the engine did not start with it: {reason}")
        return reason, advice

    async def _reach(self, model: LocalModel, command: c.StartServer) -> _Start:
        """How to serve it with the workers of its lease."""
        lease, size = command.lease, command.size
        assert lease is not None
        assert size is not None
        speculation, draft = await self._drafter.choose(command.model, model, partial(self._fetch_draft, command.model))
        fit = self._fitter.plan_split(model, usage(model.header), lease, size, speculation, draft)
        kept = draft if fit.speculation.source is DraftSource.DRAFT else None
        return _Start(fit, kept, await self._carrying.connect_workers(lease, model.files))


def _plan(model: LocalModel, name: str, start: _Start, threads: int | None) -> ServerPlan:
    fit, draft, reach = start.fit, start.draft, start.reach
    how = usage(model.header)
    return ServerPlan(
        model_name=name,
        model_path=model.path,
        context_length=fit.size.context_length,
        slots=fit.size.slots,
        chat_template=model.chat_template,
        prompt_cache_mib=fit.prompt_cache_mib,
        purpose=how.purpose,
        pooling=how.pooling,
        micro_batch=fit.micro_batch,
        devices=fit.devices,
        layers=fit.layers,
        experts_aside=fit.experts_aside,
        checkpoints=fit.checkpoints,
        speculation=fit.speculation,
        draft_path=draft.path if draft is not None else None,
        draft_device=fit.draft_device,
        projector=fit.projector,
        workers=reach.endpoints if reach is not None else (),
        environment=reach.environment if reach is not None else {},
        threads=threads,
    )


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)[:100]
