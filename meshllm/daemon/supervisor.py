"""Carries out the core's commands, each as a named task, and answers with events.

Invariants: a command never blocks the event loop; every command ends in an event. An unexpected error is an event, too,
with its traceback in the log.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from meshllm import paths
from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.memory.speculation import DraftCounts
from meshllm.core.records import NodeId
from meshllm.core.snapshot import ModelFacts
from meshllm.core.split.planner import token_bytes
from meshllm.daemon import demand_downloads, dropped_models
from meshllm.daemon.draft_selection import NO_DRAFT_REQUEST, DraftRequest, DraftSelector
from meshllm.daemon.drains import NO_REQUESTS, Drains
from meshllm.daemon.engine_process import DEFECT_ADVICE, EngineProcesses, progress_of
from meshllm.daemon.engine_provider import EngineProvider
from meshllm.daemon.kept_memory import kept_for
from meshllm.daemon.machine_observer import FreeMemory, MachineObserver, ModelsOnDisk
from meshllm.daemon.prompt_speeds import PromptSpeeds
from meshllm.daemon.prompt_store import PromptStore
from meshllm.daemon.start_planner import KeptMemory, StartPlanner
from meshllm.daemon.state_writer import StateWriter
from meshllm.daemon.tool_call_tests import ToolCallTests
from meshllm.daemon.wall_clock import system_time
from meshllm.daemon.worker_process import ProcessContext, WorkerProcesses
from meshllm.engine.build import builder
from meshllm.engine.processes import llama_server
from meshllm.engine.processes.child_registry import ChildRegistry
from meshllm.engine.sandbox.policy import NO_SANDBOX, Sandboxing
from meshllm.errors import (
    AmbiguousModel,
    BadBackend,
    DownloadFailed,
    InvalidModelFile,
    MeshError,
    UnknownModel,
    UsageError,
)
from meshllm.machine import device_memory, resources
from meshllm.machine import usage as usage_of
from meshllm.machine.packages import PipFetcher
from meshllm.machine.usage import OtherPrograms
from meshllm.models.catalog.entry import CatalogEntry, Wanted
from meshllm.models.gguf.purpose import usage
from meshllm.models.gguf.vectors import vector_traits
from meshllm.models.hub.manifest import HubReference, Manifest
from meshllm.models.library import scan
from meshllm.models.library.local_model import LocalModel
from meshllm.models.library.store import Store
from meshllm.models.transfer import ensure
from meshllm.models.transfer import progress as model_progress
from meshllm.models.transfer.lease_cache import LeaseCache
from meshllm.tasks import Owner
from meshllm.util.progress import Progress
from meshllm.util.threads import in_thread
from meshllm.web.gateway import backends

if TYPE_CHECKING:
    from meshllm.daemon.file_sharing import FileSharing
    from meshllm.net.tunnels.rpc_tunnels import RpcTunnels

log = logging.getLogger(__name__)

# The folder in the home for files that leases bring.
LEASE_CACHE = "lease-cache"
# From this many tokens on, an engine's own time shows how fast this machine reads weights.
SPEED_TOKENS = 100
# After these the free memory is another; after some of them the devices' or the files, too.
CHANGES = (e.EngineReady, e.FileReady, e.ServerReady, e.ServerGone, e.WorkerReady, e.WorkerGone)


# Damaged files that callers are told about.
MAX_DAMAGED = 64


class Supervisor:
    """Carries out commands. `wanted` maps the name of each requested model to its source; further models of the mesh
    are served only if they are on this disk."""

    def __init__(
        self,
        wanted: dict[str, Wanted | None],
        backend_keys: dict[str, str],
        home: Path,
        planner: StartPlanner,
        post: Callable[[e.Event], None],
        drafts: DraftRequest = NO_DRAFT_REQUEST,
        sandboxing: Sandboxing = NO_SANDBOX,
        lease_cache: int | None = None,
        chat_template: Path | None = None,
        drains: Drains = NO_REQUESTS,
        max_download: int = 0,
        uses: Drains | None = None,
        declared_tools: Mapping[str, bool] | None = None,
    ) -> None:
        """`lease_cache`: the most bytes for files that leases bring; see `LeaseCache`. `chat_template`: replaces that
        of the first of `wanted`. `drains`: the requests of the engine processes. `max_download`: bytes of files that
        the mesh's demand may bring. `uses`: the same, for what is kept of their prompts (None: nothing is).
        `declared_tools`: by the name of a model, whether it calls tools, as the owner says."""
        self._templates = {name: chat_template for name in list(wanted)[:1] if chat_template is not None}
        self._wanted = wanted
        self._drained = drains.drained
        self._fetches: dict[str, asyncio.Task[None]] = {}
        self._on_disk: dict[str, Wanted] = {}
        self._misnamed: list[Wanted] = []
        self._damaged: set[scan.DamagedFile] = set()
        self._backend_keys = backend_keys
        self._planner = planner
        self._owner = Owner("supervisor")
        self._sharing: FileSharing | None = None
        self._store = Store(paths.models())
        self._lease_cache = LeaseCache(home / LEASE_CACHE, self._store, lease_cache)
        self._demand = demand_downloads.DemandDownloads(home, self._store, max_download)
        self._prompts = PromptStore(home, system_time)
        self._speeds = PromptSpeeds(home)
        self._keeps_prompts = uses is not None
        self._named = tuple(source for source in wanted.values() if isinstance(source, Path))
        self._context = ProcessContext(
            home, llama_server.socket_directory(home), ChildRegistry(home / "children"), self._post, sandboxing
        )
        self._post_to_core = post
        self._writer = StateWriter()
        self._engine: builder.Engine | None = None
        self._engines = EngineProvider()
        self._models: dict[str, LocalModel] = {}
        self._observer = MachineObserver(self, post)
        self._other_programs = OtherPrograms()
        self._device_memory: dict[int, int] = {}  # bytes by process id, where the driver tells
        self._workers = WorkerProcesses(self._context, self._ensure_files, planner, self._engines)
        self._servers = EngineProcesses(
            self._context,
            self._store,
            planner,
            DraftSelector(drafts, self._store, self._named),
            self._workers,
            self._ensure_model,
            ToolCallTests(home, drains, declared_tools or {}),
            self._prompts,
            self._speeds,
            uses,
        )

    def join(self, sharing: FileSharing, tunnels: RpcTunnels, node: NodeId) -> None:
        """This node joined a mesh, as `node`: files may come from other nodes, and models may be split."""
        self._sharing = sharing
        self._workers.join(tunnels, node)

    def _post(self, event: e.Event) -> None:
        """Post `event`, and observe the machine soon if the event changes what is free."""
        self._post_to_core(event)
        if isinstance(event, CHANGES):
            self._observer.refresh(
                devices=not isinstance(event, e.FileReady), files=isinstance(event, e.FileReady | e.WorkerReady)
            )

    def end_leftovers(self) -> None:
        """Kill the children of an earlier daemon of this home, and remove its sockets."""
        for name in self._context.registry.end_leftovers():
            log.warning("ended a process an earlier daemon left behind: %s", name)
        for socket in self._context.sockets.glob("*.sock"):
            socket.unlink(missing_ok=True)
        llama_server.remove_private_directories(self._context.sockets)

    def carry_out(self, command: c.Command) -> None:
        """Begin what `command` asks for."""
        match command:
            case c.PrepareEngine():
                self._owner.start(self._prepare_engine(), "engine")
            case c.FetchModel(model):
                task = self._fetches[model] = self._owner.start(self._fetch(model), f"fetch {model}")
                task.add_done_callback(lambda done: self._fetched(model, done))
            case c.AllowDownload(model, most):
                self._demand.allow(model, most)
            case c.TakeFromMesh(model, asked):
                log.info("%s is taken as %s, which the mesh has.", asked, model)
                self._wanted.setdefault(model, None)
            case c.MeasureModel(model, split, beside):
                kept = partial(self._kept_for, beside)
                self._servers.measure(self._models[model], model, self._ready(), split=split, beside=kept)
            case c.StartServer():
                self._servers.start(self._models[command.model], command, self._ready())
            case c.StopServer(model, generation, at_once, drain):
                drained = partial(self._drained, model, generation) if drain else None
                self._servers.stop(model, generation, at_once=at_once, drained=drained)
            case c.ForgetModel(model):
                self._demand.forget(model)
                if (fetch := self._fetches.pop(model, None)) is not None:
                    fetch.cancel()
                self._servers.forget(model)
            case c.SaveDropped(dropped):
                now, unix = asyncio.get_running_loop().time(), system_time()
                self._writer.add(lambda: dropped_models.save(self._context.home, dict(dropped), now, unix))
            case c.StartWorker(lease, sharers):
                self._workers.start(lease, sharers)
            case c.StopWorker(session, generation):
                self._workers.stop((session, generation))
            case c.OpenAhead(peer):
                self._workers.preconnect(peer)
            case c.ProbeBackend(url):
                self._owner.start(self._probe(url), f"probe {url}")
            case _:
                raise RuntimeError(f"no way to carry out {command}")

    def request(self, name: str, source: Wanted | None) -> None:
        """The owner requests a further model, which `source` describes (None: only the mesh can know it)."""
        self._wanted[name] = source

    def source(self, name: str) -> Wanted | None:
        """What `name` means on this node; None if only the mesh can know it."""
        return self._wanted.get(name) or self._on_disk.get(name)

    def _fetched(self, name: str, task: asyncio.Task[None]) -> None:
        if self._fetches.get(name) is task:
            del self._fetches[name]

    def _kept_for(self, names: Sequence[str]) -> list[KeptMemory]:
        """The memory to keep for models that will be served beside the one that is planned."""
        context = self._planner.context
        sources = {name: self.source(name) for name in names}
        return [
            kept_for(name, source, self._models.get(name), context, self._store) for name, source in sources.items()
        ]

    def observe(self) -> None:
        """Observe this machine now, and from now on: posts `MachineObserved`."""
        self._observer.start()
        if not self._planner.machine().in_use:
            self._owner.start(self._measure_speed(), "memory speed")

    def update_speed(self, counts: Mapping[str, DraftCounts], split: Container[str]) -> None:
        """Derive this node's speed from the `counts` of its engines; `split`: models with workers, left out."""
        self._speeds.note({name: model for name, model in self._models.items() if name not in split}, counts)
        for name, model in self._models.items():
            count = counts.get(name, DraftCounts())
            if name not in split and count.written >= SPEED_TOKENS and count.seconds > 0:
                read = token_bytes(model.header.shape) * (count.written - count.accepted)
                self._post(e.SpeedMeasured(int(read / count.seconds)))

    def measure_splits(self, counts: Mapping[str, tuple[str, DraftCounts]], split: Container[str]) -> None:
        """Tell the core what the engines of the `split` models have written (socket and `counts` of each)."""
        written = [(name, *found) for name, found in counts.items() if name in split]
        if not written:
            return
        others = self._other_programs.read([os.getpid(), *self._servers.pids().values(), *self._workers.pids()])
        for name, endpoint, count in written:
            self._post(e.DecodeMeasured(name, endpoint, count, others))

    async def close(self) -> None:
        """Stop everything that still runs."""
        await self._writer.close()
        await self._observer.close()
        await self._owner.close()
        await self._servers.close()
        await self._workers.close()
        if self._context.sockets.parent != self._context.home:
            self._context.sockets.rmdir()

    # -- the machine (`MachineReader`)

    def free_memory(self) -> FreeMemory:
        """Bytes that this node offers: free now, or held by a worker process, whose memory its next lease gets."""
        held = self._workers.held_memory()
        planner = self._planner
        return FreeMemory(planner.free_memory(held), planner.device_memory(held), planner.machine_memory(held))

    def used_memory(self) -> tuple[tuple[str, int], ...]:
        """Bytes that the engine process of each model uses, and the worker process: RAM, and memory of NVIDIA GPUs."""
        processes = [*self._servers.pids().items(), *(("", pid) for pid in self._workers.pids())]
        return tuple((name, usage_of.memory_used(pid) + self._device_memory.get(pid, 0)) for name, pid in processes)

    def disk_free(self) -> int | None:
        """Bytes free in the file system of the models."""
        disk = resources.disk(self._store.folder)
        return disk.free if disk is not None else None

    def download_room(self) -> int:
        """Bytes that may still be downloaded for the mesh's demand."""
        return self._demand.room()

    def find_models(self) -> ModelsOnDisk:
        """The models on the disk, the requested ones first: a record has room for a limited number."""
        if self._keeps_prompts:
            self._prompts.sweep()  # of models that are gone
        else:
            self._prompts.clear()
        disk = scan.look(self._store, named=self._named)
        found = disk.models
        aliases = scan.aliases(found, self._store)
        self._on_disk = found
        self._log_misnamed(disk.misnamed)
        if self._sharing is not None:
            self._sharing.check(disk.unread)
        listed = self._sharing.allows(found) if self._sharing is not None else ()
        aliases = {name: first for name, first in aliases.items() if name in listed and first in listed}
        names = sorted(listed, key=lambda name: (name not in self._wanted, name))
        sizes = tuple(scan.size_of(found[name], self._store) for name in names)
        files: dict[str, Wanted] = {each.name: each.path for each in disk.damaged}
        told = self._sharing.allows(files) if self._sharing is not None else ()
        damaged = tuple((each.name, each.text, each.name in told) for each in disk.damaged)
        self._log_damaged(disk.damaged)
        return ModelsOnDisk(tuple(names), tuple(sorted(aliases.items())), sizes, damaged[:MAX_DAMAGED])

    def _log_damaged(self, found: Iterable[scan.DamagedFile]) -> None:
        """Say once of each file that it is of no use."""
        for each in found:
            if each not in self._damaged:
                self._damaged.add(each)
                log.warning("%s is damaged and is not offered: %s. %s", each.path, each.reason, scan.DAMAGED_ADVICE)

    def _log_misnamed(self, found: Iterable[scan.Misnamed]) -> None:
        """Say once of each file why it is not the model it is named after."""
        for each in found:
            if each.reason and each.wanted not in self._misnamed:
                self._misnamed.append(each.wanted)
                log.info("%s is not offered to other nodes. %s", each.name, each.reason)

    def refresh_files(self) -> None:
        """Look at the model files soon: some may count now."""
        self._observer.refresh(files=True)

    async def refresh_devices(self) -> None:
        """Read the devices' free memory. Not while a worker process runs: the next lease gets what was free before."""
        if not self._workers.active:
            await self._planner.refresh_free_memory()
        if self._planner.machine().in_use:
            self._device_memory = await device_memory.used_by_process()

    async def _measure_speed(self) -> None:
        """Measure the memory speed, which counts until an engine ran here. It says nothing about accelerators."""
        self._post(e.SpeedMeasured(await in_thread(lambda stop: resources.memory_speed(), "memory speed")))

    # -- the engine and the files

    async def _prepare_engine(self) -> None:
        try:
            engine = await self._engines.ensure(lambda step: self._post(e.EngineProgress(step)))
            await self._planner.refresh_devices(engine)
            self._engine = engine
        except MeshError as error:
            self._post(e.EngineFailed(error.message, error.advice))
        except Exception as error:
            log.exception("preparing the engine failed")
            self._post(e.EngineFailed(f"preparing the engine failed: {error!r}", DEFECT_ADVICE))
        else:
            info = self._engine.info
            self._post(e.EngineReady(f"{info.package} {info.version} ({info.commit[:7]})"))

    async def _fetch(self, name: str) -> None:
        def tell(step: model_progress.TransferProgress) -> None:
            if step.stage is not model_progress.TransferStage.READY:
                self._post(e.FileProgress(name, progress_of(step)))

        try:
            model = await self._model(name, tell)
        except MeshError as error:
            if self._demand.admission(name) is not None:
                log.warning("%s is not downloaded for the mesh: %s", name, error)
            final = isinstance(error, AmbiguousModel | InvalidModelFile | UnknownModel | UsageError)
            # A node that joins later may know the model.
            wanted = name in self._wanted and _known_to_mesh_only(self._wanted[name])
            final = final and not (isinstance(error, UnknownModel) and wanted)
            self._post(e.FileFailed(name, error.message, error.advice, final))
        except Exception as error:
            log.exception("fetching %s failed", name)
            self._post(e.FileFailed(name, f"fetching failed: {error!r}", DEFECT_ADVICE))
        else:
            self._models[name] = replace(model, chat_template=self._templates.get(name, model.chat_template))
            header = model.header
            self._post(
                e.FileReady(
                    name,
                    ModelFacts(
                        path=str(model.path),
                        size=model.size,
                        architecture=header.architecture,
                        context_length=model.context_length,
                        quantization=header.quantization,
                        digest=model.digest or "",
                        purpose=usage(header).purpose,
                        vision=model.projector is not None,
                        template=model.has_template,
                        vectors=vector_traits(header, name),
                    ),
                )
            )

    async def _model(self, name: str, tell: model_progress.Report) -> LocalModel:
        """The model on this disk, downloaded if missing. A requested model without a known source is looked up in the
        mesh."""
        source, sharing = self._wanted.get(name) or self._on_disk.get(name), self._sharing
        peers = sharing.source(name) if sharing is not None else None
        admit = self._demand.admission(name) if source is None else None
        if admit is not None:
            source = demand_downloads.catalogued(name)
        may_download = name in self._wanted or admit is not None
        if source is None and (not may_download or sharing is None):
            raise UnknownModel(f"{name} is not on this disk.", advice="Start the node with --model to download it.")
        if source is not None:
            try:
                return await ensure.ensure(source, self._store, tell, packages=PipFetcher(), peers=peers, admit=admit)
            except DownloadFailed as failure:
                if sharing is None or not (may_download and _known_to_mesh_only(source)):
                    raise
                log.warning("%s Asking the mesh for %s.", failure.message, name)
        assert sharing is not None
        from meshllm.models.p2p.model_lookup import verifiable_part  # loaded with the mesh, after the start

        def report(text: str) -> None:
            tell(model_progress.TransferProgress(model_progress.TransferStage.CONNECTING, file=name, detail=text))

        report("asking the mesh")
        sha256 = source.sha256 if isinstance(source, CatalogEntry | HubReference) else ""
        # What the mesh asks for by a name without a known digest is believed of the owner's machines alone.
        owned_only = admit is not None and not sha256
        found = verifiable_part(await sharing.find(name, sha256, report, owned_only=owned_only), source)
        log.warning("%s is downloaded from %s", name, found.origin)
        return await ensure.ensure(found, self._store, tell, packages=PipFetcher(), peers=peers, admit=admit)

    async def _ensure_model(self, draft: Wanted, tell: model_progress.Report) -> LocalModel:
        """A requested draft model on this disk. Raises as `ensure.ensure` does."""
        peers = self._sharing.source(draft.name) if self._sharing is not None else None
        return await ensure.ensure(draft, self._store, tell, packages=PipFetcher(), peers=peers)

    async def _ensure_files(self, manifest: Manifest, tell: Callable[[Progress], None]) -> tuple[Path, ...]:
        """The files of a model whose layers this node computes, the owner's or of the lease cache. Raises MeshError."""

        def report(step: model_progress.TransferProgress) -> None:
            if step.stage is not model_progress.TransferStage.READY:
                tell(progress_of(step))

        peers = self._sharing.source(manifest.name) if self._sharing is not None else None
        return await self._lease_cache.files(manifest.files, report, peers)

    def _ready(self) -> builder.Engine:
        assert self._engine is not None, "the core starts engine processes only after EngineReady"
        return self._engine

    # -- backends

    async def _probe(self, url: str) -> None:
        try:
            models = await backends.list_models(url, self._backend_keys.get(url))
        except BadBackend as error:
            self._post(e.BackendSilent(url, f"{error.message} {error.advice}".rstrip()))
        except Exception as error:
            log.exception("asking the backend %s failed", url)
            self._post(e.BackendSilent(url, repr(error)))
        else:
            self._post(e.BackendAnswered(url, models))


def _known_to_mesh_only(source: Wanted | None) -> bool:
    """Whether only the hub or the mesh knows the files of a requested model. Of a catalogue's model the mesh is
    believed nothing but the digest that the catalogue has."""
    return (
        source is None
        or isinstance(source, HubReference)
        or (isinstance(source, CatalogEntry) and source.hub is not None and bool(source.sha256))
    )
