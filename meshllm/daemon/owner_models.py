"""Loads, drops and lists models of the running node for its owner."""

from __future__ import annotations

from collections.abc import Callable

from meshllm.core import events as e
from meshllm.core.memory.devices import MachineMemory
from meshllm.core.snapshot import ServerPhase, Snapshot
from meshllm.daemon.settings import Settings
from meshllm.daemon.start_wishes import check_same, find_model
from meshllm.daemon.supervisor import Supervisor
from meshllm.errors import MeshError, UnknownModel, UsageError
from meshllm.util.threads import in_thread
from meshllm.web.console.model_acts import LoadBegun, ModelLibrary


class OwnerModels:
    """What the console does with models for the owner (`web.console.model_acts.ModelActs`)."""

    def __init__(
        self,
        settings: Settings,
        supervisor: Supervisor,
        post: Callable[[e.Event], None],
        snapshot: Callable[[], Snapshot],
        machine: Callable[[], MachineMemory],
    ) -> None:
        self._settings = settings
        self._supervisor = supervisor
        self._post = post
        self._snapshot = snapshot
        self._machine = machine

    async def load(self, text: str) -> LoadBegun:
        """Begin to serve the model that `text` means. Raises MeshError."""
        if self._settings.client:
            raise UsageError("This node is a client: it serves no models.", advice="Start it without --client.")
        snapshot = self._snapshot()
        known = _named(text, [model.name for model in snapshot.models])
        if known is not None:
            return self._begin(known)
        home, mesh = self._settings.home, snapshot.mesh
        joins = mesh is not None and bool(mesh.peers)
        name, source = await in_thread(lambda stop: find_model(text, home, joins=joins), "look for a model")
        if snapshot.model(name) is not None:
            check_same(name, {name: self._supervisor.source(name)}, source)
        self._supervisor.request(name, source)
        return self._begin(name)

    def _begin(self, name: str) -> LoadBegun:
        snapshot = self._snapshot()
        model = snapshot.model(name)
        serves = model is not None and model.wanted and model.server is ServerPhase.SERVING
        self._post(e.LoadWanted(name))
        return LoadBegun(name, snapshot.version, serves)

    async def drop(self, text: str) -> str:
        """Stop serving the model that `text` means, once its answers have ended; returns its name. Raises MeshError."""
        snapshot = self._snapshot()
        here = [model.name for model in snapshot.models if model.wanted] + list(snapshot.wants)
        name = _named(text, here)
        if name is None:
            home = self._settings.home
            try:
                name = (await in_thread(lambda stop: find_model(text, home, joins=False), "look for a model"))[0]
            except MeshError:
                name = text
        if name not in here:
            known = f"Models here: {', '.join(here)}." if here else "It serves no model."
            raise UnknownModel(f"This node does not serve {name[:200]}.", advice=known)
        self._post(e.DropWanted(name))
        return name

    async def library(self) -> ModelLibrary:
        """The models on the disk, and those of the catalogue. Raises MeshError."""
        from meshllm.daemon.model_library import model_library  # what it reads is loaded when the owner asks

        machine = self._machine()
        return await in_thread(lambda stop: model_library(machine), "list models")


def _named(text: str, names: list[str]) -> str | None:
    """The one of `names` that `text` is, in any case; None if there is none."""
    exact = [name for name in names if name == text.strip()]
    return next(iter(exact or [name for name in names if name.casefold() == text.strip().casefold()]), None)
