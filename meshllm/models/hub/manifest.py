"""The files of a model: names, sizes, digests and sources. Values only, never a path on this disk.

A `Manifest` is complete: its files can be downloaded and verified. A `HubReference` is looked up first (`lookup.py`).
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
    """One GGUF file: name in the store, size in bytes, sha256, sources (best first).

    Without `sources` it can only come from peers.
    """

    name: str
    size: int
    sha256: str
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """A model that can be downloaded and verified.

    `files` has several items for a split GGUF, in order; the engine gets the first. `projector`: the vision projector.
    `chat_template`: file name of a template of ours that replaces the file's own. `context_length`: tokens (0: as the
    file says). `origin`: text about where the manifest was found.
    """

    name: str
    files: tuple[ModelFile, ...]
    projector: ModelFile | None = None
    chat_template: str | None = None
    context_length: int = 0
    origin: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files, the projector included."""
        return sum(file.size for file in self.all_files)

    @property
    def all_files(self) -> tuple[ModelFile, ...]:
        """All files to download."""
        return (*self.files, self.projector) if self.projector is not None else self.files


@dataclass(frozen=True, slots=True)
class HubReference:
    """A model in a repository of the hub that must be looked up.

    `path` names the (first) file; or `quantization` selects it ("Q4_K_M"; empty: the preferred one). `sha256`: of the
    (first) file, if known. `projector`: path of the projector, if known ("": the best one in the repository).
    """

    name: str
    repository: str
    path: str = ""
    quantization: str = ""
    revision: str = "main"
    sha256: str = ""
    projector: str = ""
