"""What the command line wants a daemon to serve: models by name, and the keys of backends."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from meshllm import paths
from meshllm.core.membership.views import JoinPhase, MeshView
from meshllm.core.records import MeshId, NodeId, Role
from meshllm.core.snapshot import ModelState, Snapshot
from meshllm.daemon.settings import Settings
from meshllm.errors import UnknownModel, UsageError
from meshllm.models.catalog.entry import Wanted
from meshllm.models.catalog.resolve import resolve
from meshllm.models.library import scan
from meshllm.models.library.local_model import from_path
from meshllm.models.library.store import Store

log = logging.getLogger(__name__)


def find_models(settings: Settings) -> dict[str, Wanted | None]:
    """What each `--model` means, by the name callers use; None: only the mesh can know, one that is joined or that was
    left with others in it. A node that has never seen another refuses a name that it does not know.

    Raises UnknownModel, InvalidModelFile, UsageError.
    """
    wanted: dict[str, Wanted | None] = {}
    for text in settings.models:
        try:
            name, source = find_model(text)
        except UnknownModel as error:
            if "/" in text or text.casefold().endswith(".gguf"):
                raise
            if not settings.invites and not _knows_others(settings.home):
                raise
            log.warning("%s The mesh is asked for it. %s", error.message, error.advice)
            name, source = text.strip(), None
        check_same(name, wanted, source)
        wanted[name] = source
    return wanted


def find_model(text: str) -> tuple[str, Wanted]:
    """The name and the meaning of `text` on this node. Raises UnknownModel, AmbiguousModel, InvalidModelFile
    (also where only a damaged file has that name), UsageError."""
    store = Store(paths.models())
    try:
        found = resolve(text, folder=store.folder, disk=lambda: scan.scan(store))
    except UnknownModel as error:
        if (damaged := scan.damaged_file(text, store)) is not None:
            raise damaged from error
        raise
    if found.note:
        log.warning("%s", found.note)
    source = found.wanted
    return from_path(source, store).name if isinstance(source, Path) else source.name, source


def check_same(name: str, known: Mapping[str, Wanted | None], source: Wanted | None) -> None:
    """Raise UsageError if `name` is another model in `known`."""
    if name in known and known[name] != source:
        raise UsageError(f"Two different models are both called {name}.", advice="Rename one of the files.")


def _knows_others(home: Path) -> bool:
    """Whether the node of `home` has been in a mesh with others."""
    from meshllm.daemon.mesh_state import knows_others  # what the mesh takes is loaded once callers are served

    return knows_others(home)


def backend_keys(settings: Settings) -> dict[str, str]:
    """The keys of the backends, from the environment. Raises UsageError for a variable that is not set."""
    keys = {}
    for backend in settings.backends:
        if backend.key_variable:
            key = os.environ.get(backend.key_variable, "")
            if not key or not key.isascii() or not key.isprintable():
                raise UsageError(
                    f"The environment variable {backend.key_variable} holds no key for {backend.url}.",
                    advice=f"Set it: export {backend.key_variable}=...",
                )
            keys[backend.url] = key
    return keys


def first_snapshot(settings: Settings, wanted: dict[str, Wanted | None]) -> Snapshot:
    """What callers may know before there is a core: the model is coming, and the mesh may bring more."""
    role = Role.CLIENT if settings.client else Role.NODE
    mesh = MeshView(NodeId(bytes(32)), MeshId(bytes(16)), role, JoinPhase.DIALLING)
    here = list(wanted) if settings.serve_all else list(wanted)[:1]
    return Snapshot(models=tuple(ModelState(model) for model in here), mesh=mesh, wants=tuple(wanted))
