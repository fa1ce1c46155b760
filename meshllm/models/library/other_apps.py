"""Model files that other programs have put on this disk: found, so that nothing is downloaded that is there.

Law: they are used where they lie, never moved, written or deleted. Looking is bounded: so many folders and entries, no
link to a folder is followed, nothing is read but names (and Ollama's lists, which are small). It blocks.
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

MAX_ENTRIES: Final = 20_000  # of folders, in one place; the largest collections have some hundreds of models
MAX_DEPTH: Final = 5  # "publisher/repository/file", and snapshots with folders in them
MAX_LIST_BYTES: Final = 1 << 20  # Ollama's list of a model's layers has about a kilobyte

_OLLAMA_MODEL: Final = "application/vnd.ollama.image.model"
_OLLAMA_PROJECTOR: Final = "application/vnd.ollama.image.projector"
_OLLAMA_REGISTRY: Final = "registry.ollama.ai"
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class AppModelFile:
    """A GGUF file of another program. `sha256` is what its place says of it, "" where it says nothing."""

    path: Path
    size: int
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Match:
    """Where files that belong together lie; `sure` where the place names them by their digests."""

    paths: tuple[Path, ...]
    sure: bool


def find_files(files: Sequence[ModelFile], there: Iterable[AppModelFile] | None = None) -> Iterator[Match]:
    """Where all of these files (the parts of a model, in their order) may lie together, the certain places first.

    `there`: what `gguf_files` found, for whoever asks for many models.
    """
    first = files[0]
    if len(files) == 1 and (blob := _ollama_blob(first.sha256)) and _size(blob) == first.size:
        yield Match((blob,), sure=True)
    unsure = []
    for found in gguf_files() if there is None else there:
        if found.size != first.size or (found.sha256 and found.sha256 != first.sha256):
            continue
        # llama.cpp puts the repository before the name.
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
    """The GGUF files in the Hugging Face cache and the folders of other programs."""
    for path in walk(hugging_face(), 1):
        if path.name.startswith("models--"):
            yield from gguf_in(path / "snapshots")
    for folder in app_folders():
        yield from gguf_in(folder)


def ollama_models() -> Iterator[Manifest]:
    """The models of Ollama, by the names they have there ("llama3.2:3b"), as files that are known by digest."""
    lists = _ollama() / "manifests"
    for place in walk(lists, MAX_DEPTH):
        try:
            if not 0 < _size(place) <= MAX_LIST_BYTES:
                continue
            layers = json.loads(place.read_bytes())["layers"]
            models = [file for layer in layers if (file := _layer(layer, _OLLAMA_MODEL))]
            projectors = [file for layer in layers if (file := _layer(layer, _OLLAMA_PROJECTOR))]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if len(models) == 1 and (name := _ollama_name(place.relative_to(lists).parts)):
            yield Manifest(name, tuple(models), next(iter(projectors), None), origin="Ollama")


# -- places


def hugging_face() -> Path:
    """The cache of `huggingface_hub`, by the variables that move it."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if chosen := os.environ.get(variable):
            return Path(chosen).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return (Path(os.environ.get("HF_HOME") or cache) / "hub").expanduser()


def app_folders() -> list[Path]:
    """The folders in which LM Studio, llama.cpp, GPT4All and Jan keep GGUF files under their own names."""
    return [folder for folder, _ in _programs()]


def owning_app(path: Path) -> str:
    """The program that keeps the file, by where it lies; "" where nobody knows."""
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


# -- looking


def walk(folder: Path, depth: int, most: int = MAX_ENTRIES) -> Iterator[Path]:
    """What is in the folder and those below it, so deep and so many at most, hidden folders and links to folders left
    out; a folder that cannot be read is empty."""
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
    """The GGUF files in the folder and those below it."""
    for path in walk(folder, MAX_DEPTH):
        if is_file_name(path.name) and (size := _size(path)):
            yield AppModelFile(path, size, digest_from_link(path))


def _size(path: Path) -> int:
    """Bytes of the file there, 0 where none is."""
    try:
        facts = path.stat()
    except OSError:
        return 0
    return facts.st_size if stat.S_ISREG(facts.st_mode) else 0


def digest_from_link(path: Path) -> str:
    """The digest that the Hugging Face cache gives a file: the name of the blob that it is a link to."""
    try:
        name = path.readlink().name
    except OSError:
        return ""
    return name if SHA256.fullmatch(name) else ""


def _layer(layer: dict[str, object], kind: str) -> ModelFile | None:
    """The file of a layer of that kind, if it is there whole."""
    size, match = layer["size"], _DIGEST.fullmatch(str(layer["digest"]))
    if layer["mediaType"] != kind or match is None or not isinstance(size, int) or not 0 < size <= MAX_FILE_BYTES:
        return None
    blob = _ollama_blob(match[1])
    return ModelFile(f"{match[1]}.gguf", size, match[1]) if blob and _size(blob) == size else None


def _ollama_name(steps: tuple[str, ...]) -> str:
    """ "registry.ollama.ai/library/llama3/8b" is called llama3:8b; "" for what is no such path."""
    if len(steps) != 4 or not all(step.isprintable() and len(step) <= 100 for step in steps):
        return ""
    host, owner, model, tag = steps
    before = [] if host == _OLLAMA_REGISTRY else [host]
    if before or owner != "library":
        before.append(owner)
    return "/".join([*before, f"{model}:{tag}"])


def first_parts(found: Iterable[AppModelFile]) -> Iterator[Path]:
    """The files that are models by their names: not the later parts of one, nor what only goes with one."""
    for file in found:
        name, part = file.path.name, part_of(file.path.name)
        if (part is None or part.number == 1) and "mmproj" not in name.casefold() and "imatrix" not in name.casefold():
            yield file.path
