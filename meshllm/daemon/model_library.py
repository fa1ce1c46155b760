"""The models that the owner can load or download on this node: those on its disk, and the catalogue."""

from __future__ import annotations

from meshllm import paths
from meshllm.core.memory.devices import MachineMemory, room
from meshllm.models.catalog.catalog import load
from meshllm.models.gguf.catalog_fit import outlook_of_entry
from meshllm.models.library import other_apps
from meshllm.models.library.inventory import Presence, catalog_state, inventory
from meshllm.models.library.store import Store
from meshllm.web.console.endpoints import CatalogModelFacts, DiskModelFacts, LibraryAnswer


def model_library(machine: MachineMemory) -> LibraryAnswer:
    """What is there, with a forecast for the memory of `machine`. Blocks on the disk."""
    store, given, others = Store(paths.models()), room(machine), list(other_apps.gguf_files())
    disk = [DiskModelFacts(name=item.name, size=item.size) for item in inventory(store) if item.model is not None]
    catalog = []
    for entry in load().entries:
        found, state = outlook_of_entry(entry, given), catalog_state(entry, store, others)
        catalog.append(
            CatalogModelFacts(
                name=entry.name,
                size=entry.size,
                purpose=entry.purpose,
                vision=entry.vision,
                license=entry.license,
                fit=found.outlook,
                context_length=found.size.context_length,
                machines=found.machines,
                on_disk=state.presence not in (Presence.ABSENT, Presence.PARTIAL),
                percent=state.percent,
            )
        )
    return LibraryAnswer(disk=disk, catalog=sorted(catalog, key=lambda model: (model.size, model.name)))
