"""Loads, drops and lists models of the running node for its owner."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from meshllm.core import events as e
from meshllm.core.memory.devices import MachineMemory
from meshllm.core.routing.model_names import ModelNames
from meshllm.core.snapshot import ServerPhase, Snapshot
from meshllm.daemon.settings import Settings
from meshllm.daemon.start_wishes import check_same, find_model
from meshllm.daemon.supervisor import Supervisor
from meshllm.errors import AmbiguousModel, MeshError, UnknownModel, UsageError
from meshllm.util.threads import in_thread
from meshllm.web.console.model_acts import LoadBegun

if TYPE_CHECKING:
    from meshllm.web.console.endpoints import LibraryAnswer

# Names that an error message lists.
MAX_SHOWN = 10


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
        names = self._names([*(model.name for model in snapshot.models), *snapshot.available])
        known = _one_of(names, text)
        if known is not None and snapshot.model(known) is not None:
            return self._begin(known)
        text = known or names.meant(text.strip())
        home, mesh = self._settings.home, snapshot.mesh
        joins = mesh is not None and bool(mesh.peers)
        name, source = await in_thread(lambda stop: find_model(text, home, joins=joins), "look for a model")
        if snapshot.model(name) is not None:
            check_same(name, {name: self._supervisor.source(name)}, source)
        self._supervisor.request(name, source)
        return self._begin(name)

    def _names(self, known: list[str]) -> ModelNames:
        """Names by the rule of the API."""
        return ModelNames(known, dict(self._settings.aliases))

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
        names = self._names(here)
        name = _one_of(names, text)
        if name is None:
            home = self._settings.home
            try:
                meant = names.meant(text.strip())
                name = (await in_thread(lambda stop: find_model(meant, home, joins=False), "look for a model"))[0]
            except MeshError:
                name = text
        if name not in here:
            known = f"Models here: {', '.join(here)}." if here else "It serves no model."
            raise UnknownModel(f"This node does not serve {name[:200]}.", advice=known)
        self._post(e.DropWanted(name))
        return name

    async def library(self) -> LibraryAnswer:
        """The models on the disk, and those of the catalogue. Raises MeshError."""
        from meshllm.daemon.model_library import model_library  # what it reads is loaded when the owner asks

        machine = self._machine()
        return await in_thread(lambda stop: model_library(machine), "list models")


def _one_of(names: ModelNames, text: str) -> str | None:
    """The name that `text` means; None if it means none. Raises AmbiguousModel."""
    asked = text.strip()
    if several := names.candidates(asked):
        shown = ", ".join(several[:MAX_SHOWN])
        raise AmbiguousModel(
            f"{asked[:200]!r} can mean {shown}.", advice="Use one of these names.", candidates=several[:MAX_SHOWN]
        )
    return names.find(asked) if names.is_known(asked) else None
