"""Texts and JSON facts about models that several commands show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshllm.core.memory.fit_preview import FitPreview
    from meshllm.models.catalog.entry import CatalogEntry
    from meshllm.models.library.inventory import InventoryItem


def parameter_count(count: int) -> str:
    """A parameter count: "135M", "3.1B", "32B"."""
    if count >= 9_950_000_000:
        return f"{count / 1e9:.0f}B"
    return f"{count / 1e9:.1f}B".replace(".0B", "B") if count >= 995_000_000 else f"{count / 1e6:.0f}M"


def parameters_text(entry: CatalogEntry) -> str:
    """Parameters, and active ones of a mixture: "31B/3.3B"."""
    active = "" if entry.dense else f"/{parameter_count(entry.active_parameters)}"
    return f"{parameter_count(entry.parameters)}{active}"


def context_text(tokens: int) -> str:
    """A token count: "8k", "128k", "1M"."""
    if tokens >= 1 << 20:
        return f"{tokens / (1 << 20):.3g}M"
    return f"{tokens / 1024:.3g}k" if tokens >= 1024 else str(tokens)


def fit_text(preview: FitPreview) -> str:
    """Whether the model fits this machine."""
    if preview.outlook.value == "less-context":
        return f"fits with {context_text(preview.size.context_length)} context"
    if preview.outlook.value == "split":
        return f"split over {preview.machines} machines"
    return "fits" if preview.machines == 1 else "too big"


def item_facts(item: InventoryItem) -> dict[str, Any]:
    """A model on this disk, as JSON."""
    header = item.model.header if item.model is not None else None
    return {
        "name": item.name,
        "other_names": list(item.other_names),
        "state": item.state.value,
        "size": item.size,
        "arrived": item.arrived,
        "files": [str(path) for path in item.files],
        "program": item.program,
        "architecture": header.architecture if header is not None else "",
        "quantization": header.quantization if header is not None else item.entry.quantization if item.entry else "",
        "context_length": item.model.context_length if item.model is not None else 0,
        "sha256": item.model.digest if item.model is not None else None,
        "reason": item.reason,
    }
