"""A model that is known by name, as a value, and everything that a name can stand for.

Law: values only. What an entry says was checked when the catalogue was read (`catalog.py`); what it says of a model
that still lies at the hub is a forecast until the hub has been asked, and is used for nothing but forecasts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from meshllm.core.snapshot import Purpose
from meshllm.models.hub.manifest import HubReference, HubSource, Manifest, ModelFile

TEMPLATES: Final = Path(__file__).with_name("templates")

# What the engine keeps beside a window, by its default: the tokens it computes in one go (llama-kv-cache-iswa.cpp).
MICRO_BATCH_TOKENS: Final = 512
BYTES_A_NUMBER: Final = 2  # the engine keeps keys and values at 16 bits unless told otherwise


@dataclass(frozen=True, slots=True)
class CacheLayers:
    """Layers of a model that keep the same of each token.

    `heads`: of keys and values, in each layer; `key_length`, `value_length`: numbers of one head (a model with latent
    attention keeps one key for all heads and no value). `window`: how many tokens these layers look back (0: all).
    """

    layers: int
    heads: int
    key_length: int
    value_length: int
    window: int = 0

    def bytes_for(self, tokens: int) -> int:
        """Bytes that these layers keep for one text of so many tokens."""
        kept = min(tokens, self.window + MICRO_BATCH_TOKENS) if self.window else tokens
        return self.layers * self.heads * (self.key_length + self.value_length) * BYTES_A_NUMBER * kept


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A model known by name: either with its `files`, or with the `hub` to ask for them, never with both.

    `parameters` and `active_parameters` (how many of them a token passes; the same in a dense model) are counts,
    `listed_size` bytes of a hub model's files together, without the projector; `approximate` where that was computed
    or rounded rather than read. `projector`: the file that lets a model with `files` see. `cache`: what is kept of
    each token; empty where nothing is. `draft`: the entry that can guess ahead for this one. `aliases`: other names
    people use for it.
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
        """Bytes of all files together, a projector not counted; close, where the entry is `approximate`."""
        return sum(file.size for file in self.files) or self.listed_size

    @property
    def vision(self) -> bool:
        """Whether it sees: it has a projector."""
        return self.projector is not None or bool(self.hub and self.hub.projector)

    @property
    def dense(self) -> bool:
        """Whether every token passes all of it."""
        return self.active_parameters in (0, self.parameters)

    @property
    def file_name(self) -> str:
        """What its (first) file is called; "" where only the hub knows."""
        return self.files[0].name if self.files else self.hub.path.rpartition("/")[2] if self.hub else ""

    @property
    def sha256(self) -> str:
        """Of the (first) file, in hexadecimal; "" where only the hub knows."""
        return self.files[0].sha256 if self.files else self.hub.sha256 if self.hub else ""

    @property
    def repository(self) -> str:
        """Where at the hub it lies; "" where it does not."""
        sources = [source for file in self.files for source in file.sources if isinstance(source, HubSource)]
        return self.hub.repository if self.hub else sources[0].repository if sources else ""

    @property
    def manifest(self) -> Manifest | None:
        """The files; None where the hub has to be asked for them."""
        return None if self.hub else self._pinned()

    @property
    def source(self) -> Manifest | HubReference:
        """The files, or the question to the hub that brings them."""
        return self.hub or self._pinned()

    @property
    def template_path(self) -> Path | None:
        """The chat template that replaces the file's own, if there is one."""
        return TEMPLATES / self.chat_template if self.chat_template else None

    def complete(self, found: Manifest) -> Manifest:
        """What the hub answered, with what only the catalogue knows."""
        return replace(found, name=self.name, chat_template=self.chat_template, context_length=self.context_length)

    def _pinned(self) -> Manifest:
        return self.complete(Manifest(self.name, self.files, self.projector, origin="catalogue"))

    def cache_bytes(self, tokens: int) -> int:
        """Bytes that the engine keeps for one text of so many tokens, beside the model itself."""
        return sum(layers.bytes_for(tokens) for layers in self.cache)


Wanted = CatalogEntry | HubReference | Manifest | Path
"""What can be asked for: a model of the catalogue, one at the hub, one whose files are known, a file on this disk."""
