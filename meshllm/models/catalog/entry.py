"""A catalogue entry, and the type of everything that a model name can mean. Values only.

Sizes of an entry that is still to be looked up at the hub are estimates and are only used for forecasts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from meshllm.core.snapshot import Purpose
from meshllm.models.hub.manifest import HubReference, HubSource, Manifest, ModelFile

TEMPLATES: Final = Path(__file__).with_name("templates")

# Tokens the engine keeps beside a window, by default: one batch (llama-kv-cache-iswa.cpp).
MICRO_BATCH_TOKENS: Final = 512
BYTES_A_NUMBER: Final = 2  # the engine keeps keys and values at 16 bits unless told otherwise


@dataclass(frozen=True, slots=True)
class CacheLayers:
    """Layers of a model with caches of one shape.

    `heads`: key/value heads per layer; `key_length`, `value_length`: numbers per head (latent attention: one key for
    all heads, no value). `window`: tokens that these layers look back (0: all).
    """

    layers: int
    heads: int
    key_length: int
    value_length: int
    window: int = 0

    def bytes_for(self, tokens: int) -> int:
        """Cache bytes of these layers for one sequence of `tokens`."""
        kept = min(tokens, self.window + MICRO_BATCH_TOKENS) if self.window else tokens
        return self.layers * self.heads * (self.key_length + self.value_length) * BYTES_A_NUMBER * kept


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A model of the catalogue: with its `files`, or with a `hub` reference, never both.

    `parameters` and `active_parameters` (per token; equal in a dense model) are counts. `listed_size`: bytes of a hub
    model's files without the projector; `approximate` if computed or rounded. `projector`: vision projector of a model
    with `files`. `cache`: cache layers; empty if the model has none. `draft`: the entry that is its draft model.
    `aliases`: other names.
    """

    name: str
    architecture: str
    parameters: int
    quantization: str
    context_length: int
    license: str
    chat_template: str | None
    files: tuple[ModelFile, ...] = ()
    projector: ModelFile | None = None
    hub: HubReference | None = None
    listed_size: int = 0
    approximate: bool = False
    active_parameters: int = 0
    cache: tuple[CacheLayers, ...] = ()
    purpose: Purpose = Purpose.GENERATE
    tools: bool = False
    draft: str | None = None
    aliases: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files without the projector; an estimate if `approximate`."""
        return sum(file.size for file in self.files) or self.listed_size

    @property
    def vision(self) -> bool:
        """Whether the model supports images."""
        return self.projector is not None or bool(self.hub and self.hub.projector)

    @property
    def dense(self) -> bool:
        """Whether the model is dense."""
        return self.active_parameters in (0, self.parameters)

    @property
    def file_name(self) -> str:
        """Name of the (first) file; "" if only the hub knows it."""
        return self.files[0].name if self.files else self.hub.path.rpartition("/")[2] if self.hub else ""

    @property
    def sha256(self) -> str:
        """sha256 of the (first) file in hex; "" if only the hub knows it."""
        return self.files[0].sha256 if self.files else self.hub.sha256 if self.hub else ""

    @property
    def repository(self) -> str:
        """The repository at the hub; "" if none."""
        sources = [source for file in self.files for source in file.sources if isinstance(source, HubSource)]
        return self.hub.repository if self.hub else sources[0].repository if sources else ""

    @property
    def manifest(self) -> Manifest | None:
        """The files; None if they must be looked up at the hub."""
        return None if self.hub else self._pinned()

    @property
    def source(self) -> Manifest | HubReference:
        """The files, or the hub reference to look them up."""
        return self.hub or self._pinned()

    @property
    def template_path(self) -> Path | None:
        """Path of the chat template that replaces the file's own, if any."""
        return TEMPLATES / self.chat_template if self.chat_template else None

    def complete(self, found: Manifest) -> Manifest:
        """The hub's manifest with the catalogue's name, template and context length."""
        return replace(found, name=self.name, chat_template=self.chat_template, context_length=self.context_length)

    def _pinned(self) -> Manifest:
        return self.complete(Manifest(self.name, self.files, self.projector, origin="catalogue"))

    def cache_bytes(self, tokens: int) -> int:
        """Cache bytes for one sequence of `tokens`, beside the model itself."""
        return sum(layers.bytes_for(tokens) for layers in self.cache)


Wanted = CatalogEntry | HubReference | Manifest | Path
"""Everything that can be requested: a catalogue entry, a hub reference, a manifest, a file on this disk."""
