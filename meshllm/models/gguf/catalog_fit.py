"""Whether a model of the catalogue fits a machine, by a forecast from its outline."""

from __future__ import annotations

from meshllm.core.memory.context_size import candidates
from meshllm.core.memory.fit_preview import FitPreview, outlook
from meshllm.core.memory.layer_placement import MemoryBudget
from meshllm.core.snapshot import Purpose
from meshllm.models.catalog.entry import CatalogEntry
from meshllm.models.gguf.outline import outline, projector_estimate


def outlook_of_entry(entry: CatalogEntry, given: MemoryBudget) -> FitPreview:
    """The forecast for a catalogue model within that memory."""
    sizes = candidates(entry.context_length, None, entry.purpose, slots_are_free=not entry.cache)
    embeds = entry.purpose is not Purpose.GENERATE
    return outlook(outline(entry), sizes, given, embeds=embeds, beside=projector_estimate(entry))
