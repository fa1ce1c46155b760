"""Finds model files of other programs on this disk, so that they are not downloaded again.

Invariants: files are used in place and never changed. The search is bounded in folders and entries, follows no links to
folders and reads only names (and Ollama's small manifests). Blocks.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from meshllm.models.catalog.names import part_of
from meshllm.models.hub.manifest import Manifest, ModelFile
from meshllm.models.hub.manifest_cache import MAX_FILE_BYTES, is_file_name

from .digest_index import SHA256

MAX_ENTRIES: Final = 20_000  # per place; large collections have hundreds of models
MAX_DEPTH: Final = 5  # "publisher/repository/file", and snapshots with folders in them
MAX_LIST_BYTES: Final = 1 << 20  # Ollama's list of a model's layers has about a kilobyte

_OLLAMA_MODEL: Final = "application/vnd.ollama.image.model"
_OLLAMA_PROJECTOR: Final = "application/vnd.ollama.image.projector"
_OLLAMA_REGISTRY: Final = "registry.ollama.ai"
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class AppModelFile:
    """A GGUF file of another program; `sha256` as its path states it, "" if it does not."""

    path: Path
    size: int
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Match:
    """Paths of files that belong together; `sure` if the paths state their digests."""

    paths: tuple[Path, ...]
    sure: bool


def find_files(files: Sequence[ModelFile], there: Iterable[AppModelFile] | None = None) -> Iterator[Match]:
    """Places where all files (the parts of a model, in order) may be together, certain ones first.

    `there`: the result of `gguf_files`, for several searches.
    """
    first = files[0]
    if len(files) == 1 and (blob := _ollama_blob(first.sha256)) and _size(blob) == first.size:
        yield Match((blob,), sure=True)
    unsure = []
    for found in gguf_files() if there is None else there:
        if found.size != first.size or (found.sha256 and found.sha256 != first.sha256):
            continue
        # llama.cpp prefixes the name with the repository.
        if found.path.name != first.name and not found.path.name.endswith(f"_{first.name}"):
            continue
        prefix = found.path.name[: -len(first.name)]
        paths = tuple(found.path.with_name(prefix + file.name) for file in files)
        if any(_size(path) != file.size for path, file in zip(paths, files, strict=True)):
            continue
        names = [digest_from_link(path) for path in paths]
        if names == [file.sha256 for file in files]:
            yield Match(paths, sure=True)
        elif not any(names):
            unsure.append(Match(paths, sure=False))
    yield from unsure


def gguf_files() -> Iterator[AppModelFile]:
    """GGUF files in the Hugging Face cache and in folders of other programs."""
    for path in walk(hugging_face(), 1):
        if path.name.startswith("models--"):
            yield from gguf_in(path / "snapshots")
    for folder in app_folders():
        yield from gguf_in(folder)


def ollama_models() -> Iterator[Manifest]:
    """Ollama's models, by their names there ("llama3.2:3b"), with files known by digest."""
    lists = _ollama() / "manifests"
    for entry in walk(lists, MAX_DEPTH):
        try:
            if not 0 < _size(entry) <= MAX_LIST_BYTES:
                continue
            layers = json.loads(entry.read_bytes())["layers"]
            models = [file for layer in layers if (file := _layer(layer, _OLLAMA_MODEL))]
            projectors = [file for layer in layers if (file := _layer(layer, _OLLAMA_PROJECTOR))]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if len(models) == 1 and (name := _ollama_name(entry.relative_to(lists).parts)):
            yield Manifest(name, tuple(models), next(iter(projectors), None), origin="Ollama")


# -- folders


def hugging_face() -> Path:
    """The cache folder of `huggingface_hub`, as the environment has it."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if chosen := os.environ.get(variable):
            return Path(chosen).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return (Path(os.environ.get("HF_HOME") or cache) / "hub").expanduser()


def app_folders() -> list[Path]:
    """Folders in which LM Studio, llama.cpp, GPT4All and Jan keep GGUF files."""
    return [folder for folder, _ in _programs()]


def owning_app(path: Path) -> str:
    """The program that owns the file, by its path; "" if unknown."""
    places = [*_programs(), (hugging_face(), "Hugging Face"), (_ollama(), "Ollama")]
    return next((program for folder, program in places if path.is_relative_to(folder)), "")


def _programs() -> list[tuple[Path, str]]:
    named = [
        ("~/.lmstudio/models", "LM Studio"),
        ("~/.cache/lm-studio/models", "LM Studio"),
        (os.environ.get("LLAMA_CACHE") or "~/.cache/llama.cpp", "llama.cpp"),
    ]
    if sys.platform == "darwin":
        named.append(("~/Library/Caches/llama.cpp", "llama.cpp"))
        named.append(("~/Library/Application Support/nomic.ai/GPT4All", "GPT4All"))
        named.append(("~/Library/Application Support/Jan/data/llamacpp/models", "Jan"))
    else:
        named.append(("~/.local/share/nomic.ai/GPT4All", "GPT4All"))
        named.append(("~/.local/share/Jan/data/llamacpp/models", "Jan"))
    return [(Path(name).expanduser(), program) for name, program in named]


def _ollama() -> Path:
    return Path(os.environ.get("OLLAMA_MODELS") or "~/.ollama/models").expanduser()


def _ollama_blob(sha256: str) -> Path | None:
    paths = [_ollama() / "blobs" / f"sha256{mark}{sha256}" for mark in "-:"]
    return next((path for path in paths if path.is_file()), None)


# -- searching


def walk(folder: Path, depth: int, most: int = MAX_ENTRIES) -> Iterator[Path]:
    """Entries of the folder and its subfolders, bounded in depth and number, without hidden folders and links to
    folders; an unreadable folder is empty."""
    left, waiting = most, [(folder, depth)]
    while waiting:
        where, depth = waiting.pop()
        try:
            with os.scandir(where) as entries:
                for entry in entries:
                    if left == 0:
                        return
                    left -= 1
                    yield Path(entry.path)
                    if depth > 1 and entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                        waiting.append((Path(entry.path), depth - 1))
        except OSError:
            continue


def gguf_in(folder: Path) -> Iterator[AppModelFile]:
    """GGUF files in the folder and its subfolders."""
    for path in walk(folder, MAX_DEPTH):
        if is_file_name(path.name) and (size := _size(path)):
            yield AppModelFile(path, size, digest_from_link(path))


def _size(path: Path) -> int:
    """Size of the file, 0 if there is none."""
    try:
        facts = path.stat()
    except OSError:
        return 0
    return facts.st_size if stat.S_ISREG(facts.st_mode) else 0


def digest_from_link(path: Path) -> str:
    """The digest that the Hugging Face cache states for a file: the name of the blob it links to."""
    try:
        name = path.readlink().name
    except OSError:
        return ""
    return name if SHA256.fullmatch(name) else ""


def _layer(layer: dict[str, object], kind: str) -> ModelFile | None:
    """The file of a layer of that kind, if it is complete."""
    size, match = layer["size"], _DIGEST.fullmatch(str(layer["digest"]))
    if layer["mediaType"] != kind or match is None or not isinstance(size, int) or not 0 < size <= MAX_FILE_BYTES:
        return None
    blob = _ollama_blob(match[1])
    return ModelFile(f"{match[1]}.gguf", size, match[1]) if blob and _size(blob) == size else None


def _ollama_name(steps: tuple[str, ...]) -> str:
    """Ollama's name for a path: "registry.ollama.ai/library/llama3/8b" is llama3:8b; "" for any other form."""
    if len(steps) != 4 or not all(step.isprintable() and len(step) <= 100 for step in steps):
        return ""
    host, owner, model, tag = steps
    before = [] if host == _OLLAMA_REGISTRY else [host]
    if before or owner != "library":
        before.append(owner)
    return "/".join([*before, f"{model}:{tag}"])


def first_parts(found: Iterable[AppModelFile]) -> Iterator[Path]:
    """Files that are models by name: no later parts, projectors or importance matrices."""
    for file in found:
        name, part = file.path.name, part_of(file.path.name)
        if (part is None or part.number == 1) and "mmproj" not in name.casefold() and "imatrix" not in name.casefold():
            yield file.path
