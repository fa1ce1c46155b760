"""Loads, drops and lists models of the running node for its owner."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from meshllm.core import events as e
from meshllm.core.memory.devices import MachineMemory
from meshllm.core.routing import routes
from meshllm.core.routing.model_names import ModelNames
from meshllm.core.routing.routes import MeshIndex
from meshllm.core.snapshot import ServerPhase, Snapshot
from meshllm.daemon.settings import Settings
from meshllm.daemon.start_wishes import check_same, find_model
from meshllm.daemon.supervisor import Supervisor
from meshllm.errors import AmbiguousModel, MeshError, UnknownModel, UsageError
from meshllm.models.catalog import catalog
from meshllm.models.catalog.entry import Wanted
from meshllm.util.near_names import near_names
from meshllm.util.threads import in_thread
from meshllm.web.console.model_acts import LoadBegun

if TYPE_CHECKING:
    from meshllm.web.console.endpoints import LibraryAnswer

# Names that an error message lists.
MAX_SHOWN = 10
MAX_COMPARED = 1000


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
        """Begin to serve the model that `text` means. Raises MeshError, for a name that is a model's nowhere, too."""
        if self._settings.client:
            raise UsageError("This node is a client: it serves no models.", advice="Start it without --client.")
        snapshot = self._snapshot()
        names = self._names([*(model.name for model in snapshot.models), *snapshot.available])
        known = _one_of(names, text)
        if known is not None and snapshot.model(known) is not None:
            return self._begin(known)
        name, source = await self._find(known or names.meant(text.strip()), snapshot)
        if snapshot.model(name) is not None:
            check_same(name, {name: self._supervisor.source(name)}, source)
        self._supervisor.request(name, source)
        return self._begin(name)

    async def _find(self, text: str, snapshot: Snapshot) -> tuple[str, Wanted | None]:
        """The name and the source of the model that `text` means on this disk, in the mesh or in the catalogue; None:
        another node has it. A name that is a model's nowhere is refused: a wish for it would stay for ever."""
        index = routes.mesh_index(snapshot.mesh)
        in_mesh = routes.names(snapshot, index, dict(self._settings.aliases)).means(text)
        if in_mesh and text not in in_mesh and catalog.load().get(text) is None:
            if len(in_mesh) > 1:
                raise _several(text, in_mesh)
            (text,) = in_mesh
        try:
            return await in_thread(lambda stop: find_model(text), "look for a model")
        except UnknownModel as error:
            if text in in_mesh:
                return text, None
            if "/" in text:
                raise
            raise _unknown(error, text, snapshot, index) from error

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
            try:
                meant = names.meant(text.strip())
                name = (await in_thread(lambda stop: find_model(meant), "look for a model"))[0]
            except MeshError:
                name = text
        if name not in here:
            near = near_names(name, here[:MAX_COMPARED], 1)
            known = f"Models here: {', '.join(here)}." if here else "It serves no model: there is nothing to drop."
            known = f"Did you mean {near[0]}? {known}" if near else known
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
        raise _several(asked, several)
    return names.find(asked) if names.is_known(asked) else None


def _several(asked: str, models: tuple[str, ...]) -> AmbiguousModel:
    shown = ", ".join(models[:MAX_SHOWN])
    return AmbiguousModel(
        f"{asked[:200]!r} can mean {shown}.", advice="Use one of these names.", candidates=models[:MAX_SHOWN]
    )


def _unknown(error: UnknownModel, asked: str, snapshot: Snapshot, index: MeshIndex) -> UnknownModel:
    """`error`, with what the mesh has: near names, or all."""
    mesh = snapshot.mesh
    if mesh is not None and mesh.settling:
        return UnknownModel(error.message, advice=f"{error.advice} This node has not joined its mesh yet: try again.")
    names = [name for name in routes.models(snapshot, index) if snapshot.model(name) is None]
    near = near_names(asked, names[:MAX_COMPARED])
    shown = near or names[:MAX_SHOWN]
    text = f" {'Similar in' if near else 'In'} the mesh: {', '.join(shown)}." if shown else ""
    message = error.message if mesh is None or not mesh.peers else f"{error.message} No node of the mesh has it."
    return UnknownModel(message, advice=f"{error.advice}{text}")
