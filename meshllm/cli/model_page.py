"""Everything known about one model: the output of `mesh-llm models show`, as text and as JSON.

Memory needs are forecasts and are labelled so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshllm.errors import UnknownModel

if TYPE_CHECKING:
    from meshllm.core.memory.fit_preview import FitPreview
    from meshllm.core.memory.layer_placement import MemoryBudget
    from meshllm.models.catalog.entry import CatalogEntry, Wanted
    from meshllm.models.gguf.header import Header
    from meshllm.models.library.inventory import InventoryItem
    from meshllm.models.library.local_model import LocalModel
    from meshllm.models.library.store import Store

LINES_OF_TEMPLATE = 3
TEMPLATE_COLUMNS = 64  # beside the headings, in 80 columns


@dataclass(frozen=True, slots=True)
class ModelPage:
    """All facts of a model. `draft`: its draft model here, or `why_no_draft`; `outlook`: its memory forecast within
    `room`."""

    name: str
    room: MemoryBudget
    outlook: FitPreview
    item: InventoryItem | None = None
    entry: CatalogEntry | None = None
    model: LocalModel | None = None
    draft: str = ""
    why_no_draft: str = ""


def look_up(name: str, store: Store) -> ModelPage:
    """The model of that name, on this disk or in the catalogue.

    Raises UnknownModel for a model that only the hub knows, and as `select.resolve_name` and `local_model.from_path`
    do.
    """
    from meshllm.cli.machine_info import machine
    from meshllm.core.memory.devices import room
    from meshllm.models.catalog.entry import CatalogEntry
    from meshllm.models.gguf.catalog_fit import outlook_of_entry
    from meshllm.models.library.inventory import inventory
    from meshllm.models.library.local_model import from_path
    from meshllm.models.library.select import by_name, item_of, resolve_name

    everything, given = inventory(store), room(machine())
    item = by_name(name, everything)
    wanted = resolve_name(name, everything, store) if item is None else None
    if item is None and wanted is not None:
        item = item_of(wanted, everything)
    if item is not None and item.model is not None:
        draft, why = _draft(item.model, everything, store)
        told = _outlook_of_model(item.model, given)
        return ModelPage(item.name, given, told, item, item.entry, item.model, draft, why)
    entry = item.entry if item is not None else wanted if isinstance(wanted, CatalogEntry) else None
    if entry is not None:
        return ModelPage(entry.name, given, outlook_of_entry(entry, given), item, entry)
    if isinstance(wanted, Path):
        model = from_path(wanted, store)
        return ModelPage(model.name, given, _outlook_of_model(model, given), model=model)
    if item is not None:
        raise UnknownModel(f"{item.name} cannot be shown: {item.reason or 'its download is not complete'}")
    assert wanted is not None
    raise UnknownModel(
        f"{wanted.name} is not on this disk, and mesh-llm reads the header only of a file on this disk.",
        advice=f"Download it first: `mesh-llm download {name}`.",
    )


def _outlook_of_model(model: LocalModel, given: MemoryBudget) -> FitPreview:
    from meshllm.core.memory.context_size import candidates
    from meshllm.core.memory.fit_preview import outlook
    from meshllm.core.snapshot import Purpose
    from meshllm.models.gguf.projector import projector_bytes
    from meshllm.models.gguf.purpose import usage

    how = usage(model.header)
    sizes = candidates(model.context_length, None, how.purpose, slots_are_free=how.at_once)
    beside = projector_bytes(model.projector) if model.projector is not None else 0
    embeds = how.purpose is not Purpose.GENERATE
    return outlook(model.header.shape, sizes, given, embeds=embeds, beside=beside)


def _draft(model: LocalModel, everything: Sequence[InventoryItem], store: Store) -> tuple[str, str]:
    """The draft model among those here, or the reason why there is none."""
    from meshllm.errors import MeshError
    from meshllm.models.library import drafts

    disk: dict[str, Wanted] = {item.name: item.model.path for item in everything if item.model is not None}
    try:
        pairing = drafts.find(model, disk, store)
    except MeshError as error:
        return "", error.message
    return pairing.name, pairing.reason


# -- for people


def page_text(page: ModelPage, store: Store) -> dict[str, str | list[str]]:
    """The printed page: headings, each with one or several lines."""
    told: dict[str, str | list[str]] = {"name": page.name}
    told |= _item_text(page.item, store) if page.item is not None else {"on disk": "no"}
    if page.entry is not None:
        told |= _entry_text(page.entry)
    if page.model is not None:
        told |= _header_text(page.model.header)
        if page.model.chat_template is not None:
            told["our template"] = f"{page.model.chat_template.name} replaces the file's own"
        projector = page.model.projector
        told["projector"] = [str(projector)] if projector is not None else "none (no image input)"
        told["draft"] = page.draft or f"none: {page.why_no_draft}"
    weights = page.item.size if page.item is not None else page.entry.size if page.entry is not None else 0
    return told | _need_text(page.outlook, page.room, weights)


def _item_text(item: InventoryItem, store: Store) -> dict[str, str | list[str]]:
    from meshllm.util.format import megabytes

    state = item.state.value.replace("-", " ")
    if item.state.value == "partial":
        there = megabytes(item.arrived) if item.arrived else "nothing"
        state += f": {there} of {megabytes(item.size)} {'are' if item.arrived else 'is'} here"
    told: dict[str, str | list[str]] = {"on disk": state + (f" ({item.program})" if item.program else "")}
    if item.other_names:
        told = {"also called": ", ".join(item.other_names), **told}
    if item.reason:
        told["reason"] = item.reason
    if item.files:
        told["files"] = [str(path) for path in item.files]
        told["sha256"] = [store.known_digest(path) or "not read yet" for path in item.files]
    told["size"] = megabytes(item.size)
    if item.manifest is not None and item.manifest.origin:
        told["from"] = item.manifest.origin
    return told


def _entry_text(entry: CatalogEntry) -> dict[str, str | list[str]]:
    from meshllm.cli.model_text import parameters_text
    from meshllm.util.format import short_size

    size = short_size(entry.size, about=entry.approximate)
    purpose = ["text", *(["pictures"] if entry.vision else []), *(["tools"] if entry.tools else [])]
    told: dict[str, str | list[str]] = {
        "catalogue": f"{parameters_text(entry)} parameters, {entry.quantization}, {size}",
        "for": {"embed": "embeddings", "rerank": "rerank"}.get(entry.purpose.value, ", ".join(purpose)),
        "licence": entry.license,
    }
    if entry.repository:
        told["at the hub"] = entry.repository
    if entry.draft:
        told["usual draft"] = entry.draft
    return told


def _header_text(header: Header) -> dict[str, str | list[str]]:
    from meshllm.cli.model_text import parameter_count

    heads = f"{header.heads} heads of {header.key_length}, {header.kv_heads} of them for keys and values"
    told: dict[str, str | list[str]] = {
        "architecture": header.architecture,
        "parameters": f"{header.parameters:,} ({parameter_count(header.parameters)})",
        "quantization": header.quantization,
        "trained for": f"{header.context_length:,} tokens of context",
        "layers": f"{header.layers}, {header.embedding_length} wide, {heads}",
    }
    if header.experts:
        told["experts"] = f"{header.experts} in each layer, of which a token passes {header.experts_used}"
    if header.sliding_window:
        told["window"] = f"{header.sliding_window:,} tokens, in the layers that have one"
    told["vocabulary"] = f"{header.vocabulary_size:,} words ({header.tokenizer})"
    lines = (header.chat_template or "").strip().splitlines()
    if len(lines) > LINES_OF_TEMPLATE:
        lines = [*lines[:LINES_OF_TEMPLATE], f"... {len(lines)} lines in all"]
    told["template"] = [_shortened(line) for line in lines] or "none"
    return told


def _shortened(line: str) -> str:
    """A line shortened to the width beside the headings."""
    return line if len(line) <= TEMPLATE_COLUMNS else f"{line[: TEMPLATE_COLUMNS - 3]}..."


def _need_text(told: FitPreview, given: MemoryBudget, weights: int) -> dict[str, str | list[str]]:
    from meshllm.cli.model_text import fit_text
    from meshllm.util.format import gigabytes

    slots = "1 request" if told.size.slots == 1 else f"{told.size.slots} requests at a time"
    needs = f"{gigabytes(told.memory)} with {told.size.context_length:,} tokens of context for {slots} (forecast)"
    if 0 < weights < told.memory:
        needs += f": {gigabytes(weights)} for the weights, {gigabytes(told.memory - weights)} for these requests"
    there = [f"{gigabytes(accelerator.room)} on {accelerator.name}" for accelerator in given.accelerators]
    there.append(f"{gigabytes(given.host)} of memory")
    return {
        "needs": needs,
        "here": f"{fit_text(told)}; {' and '.join(there)} may be used now",
    }


# -- for programs


def facts(page: ModelPage, store: Store) -> dict[str, Any]:
    """The page as JSON."""
    from meshllm.cli.model_text import item_facts

    told: dict[str, Any] = item_facts(page.item) if page.item is not None else {"name": page.name, "state": "absent"}
    if page.item is not None:
        told["digests"] = {str(path): store.known_digest(path) for path in page.item.files}
        told["origin"] = page.item.manifest.origin if page.item.manifest is not None else ""
    told["catalogue"] = _entry_facts(page.entry) if page.entry is not None else None
    told["header"] = _header_facts(page.model.header) if page.model is not None else None
    if page.model is not None:
        template, projector = page.model.chat_template, page.model.projector
        told["our_template"] = template.name if template is not None else None
        told["projector"] = str(projector) if projector is not None else None
        told["draft"], told["why_no_draft"] = page.draft or None, page.why_no_draft
    told["forecast"] = outlook_facts(page.outlook)
    return told


def outlook_facts(told: FitPreview) -> dict[str, Any]:
    """The forecast as JSON."""
    return {
        "verdict": told.outlook.value,
        "context_length": told.size.context_length,
        "slots": told.size.slots,
        "memory": told.memory,
        "machines": told.machines,
    }


def _entry_facts(entry: CatalogEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "parameters": entry.parameters,
        "active_parameters": entry.active_parameters or entry.parameters,
        "purpose": entry.purpose.value,
        "vision": entry.vision,
        "tools": entry.tools,
        "draft": entry.draft,
        "license": entry.license,
        "repository": entry.repository,
    }


def _header_facts(header: Header) -> dict[str, Any]:
    names = (
        "architecture", "name", "quantization", "context_length", "parameters", "layers", "embedding_length", "heads",
        "kv_heads", "key_length", "value_length", "experts", "experts_used", "sliding_window", "vocabulary_size",
        "tokenizer", "chat_template",
    )  # fmt: skip
    return {name: getattr(header, name) for name in names}
