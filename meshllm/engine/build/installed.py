"""Builds of the engine in the cache: find, install and remove them.

Invariant: a directory with its final name is complete: its manifest is written last, then the directory is renamed. A
directory that does not match its manifest is ignored.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from meshllm import paths
from meshllm.engine.build.recipe import FORMAT, TARGETS, Recipe

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an installed build was made from. `built_at` is ISO 8601 in UTC; `seconds` is how long configuring and
    compiling took; `size` in bytes."""

    package: str
    version: str
    commit: str
    patches: tuple[str, ...]
    options: tuple[str, ...]
    compiler: str
    accelerators: tuple[str, ...]
    processor: str
    family: str
    built_at: str
    seconds: float
    size: int


@dataclass(frozen=True, slots=True)
class Engine:
    """A complete build. `library_dir`: the folder of libllama. `templates`: chat templates (*.jinja)."""

    key: str
    directory: Path
    server: Path
    rpc_server: Path
    library_dir: Path
    templates: Path
    info: EngineInfo


@dataclass(frozen=True, slots=True)
class Layout:
    """Folders of the cache: `builds` are kept; `work` and `downloads` can be recreated."""

    root: Path

    @property
    def builds(self) -> Path:
        return self.root / "builds"

    @property
    def downloads(self) -> Path:
        return self.root / "downloads"

    @property
    def locks(self) -> Path:
        return self.root / "locks"

    @property
    def work(self) -> Path:
        return self.root / "work"


def layout() -> Layout:
    """The layout in this user's cache."""
    return Layout(paths.cache() / "engine")


# -- finding


def find(recipe: Recipe, cache: Layout) -> Engine | None:
    """The complete build of this recipe, or None. Without a compiler, a build by any compiler counts."""
    if engine := load(cache.builds / recipe.key):
        return engine
    if recipe.compiler is None:
        same = [engine for engine in every(cache) if engine.info.family == recipe.family]
        return max(same, key=lambda engine: engine.info.built_at, default=None)
    return None


def every(cache: Layout) -> Iterator[Engine]:
    """Complete builds in the cache."""
    for directory in sorted(cache.builds.glob("[0-9a-f]*")) if cache.builds.is_dir() else []:
        if engine := load(directory):
            yield engine


def load(directory: Path) -> Engine | None:
    """The build in `directory`, or None if it is missing, incomplete or of another format."""
    try:
        with (directory / MANIFEST).open("rb") as file:
            values = json.loads(file.read(MAX_MANIFEST_BYTES))
        if values["format"] != FORMAT or values["key"] != directory.name:
            return None
        if any((directory / name).lstat().st_size != size for name, size in values["files"].items()):
            return None
        info = EngineInfo(**{name: _restored(value) for name, value in values["info"].items()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    programs = directory / "bin"
    server, rpc_server = (programs / name for name in TARGETS)
    return Engine(directory.name, directory, server, rpc_server, programs, directory / "templates", info)


def _restored(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


# -- installing


def stage(build: Path, tree: Path, cache: Layout, key: str) -> Path:
    """Copy programs, libraries and templates of a finished build into a new directory. Raises OSError."""
    cache.builds.mkdir(parents=True, exist_ok=True)
    staging = cache.builds / f".{key}.{uuid.uuid4().hex[:8]}"
    programs = staging / "bin"
    programs.mkdir(parents=True)
    for source in sorted((build / "bin").iterdir()):
        if source.name in TARGETS or source.name.startswith("lib") or source.suffix == ".metallib":
            shutil.copy2(source, programs / source.name, follow_symlinks=False)
    (staging / "templates").mkdir()
    for source in sorted((tree / "models/templates").glob("*.jinja")):
        shutil.copyfile(source, staging / "templates" / source.name)
    if (tree / "LICENSE").is_file():
        shutil.copyfile(tree / "LICENSE", staging / "LICENSE")
    return staging


def commit(staging: Path, recipe: Recipe, cache: Layout, *, built_at: str, seconds: float) -> Engine:
    """Write the manifest and rename `staging` to its key, replacing an older build of it. Raises OSError."""
    files = {
        str(path.relative_to(staging)): path.lstat().st_size for path in sorted(staging.rglob("*")) if not path.is_dir()
    }
    source, compiler = recipe.source, recipe.compiler
    info = EngineInfo(
        package=source.pin.package,
        version=source.pin.version,
        commit=source.pin.commit,
        patches=tuple(patch.name for patch in source.patches),
        options=recipe.options,
        compiler=compiler.version if compiler else "",
        accelerators=tuple(accelerator.name for accelerator in recipe.accelerators if accelerator.on),
        processor=recipe.processor,
        family=recipe.family,
        built_at=built_at,
        seconds=seconds,
        size=sum(files.values()),
    )
    os.sync()  # so that a power failure cannot leave a manifest without its files
    manifest = {"format": FORMAT, "key": recipe.key, "info": asdict(info), "files": files}
    with (staging / MANIFEST).open("w") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    final = cache.builds / recipe.key
    remove(final)
    staging.rename(final)
    engine = load(final)
    if engine is None:
        raise OSError(f"{final} changed during the installation")
    return engine


# -- removing


def remove(directory: Path) -> None:
    """Remove a directory, renaming it first so that no reader sees a part of it. A missing one is no error."""
    aside = directory.with_name(f".removed-{uuid.uuid4().hex[:8]}")
    try:
        directory.rename(aside)
    except FileNotFoundError:
        return
    shutil.rmtree(aside, ignore_errors=True)


def in_use(directory: Path) -> bool:
    """Whether a process that this user can inspect runs a program from `directory`."""
    import psutil

    for process in psutil.process_iter(["exe"]):
        exe = process.info["exe"]
        if exe and Path(exe).is_relative_to(directory):
            return True
    return False


def size_of(directory: Path) -> int:
    """Bytes of the files below `directory`."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += Path(folder, name).lstat().st_size
            except OSError:
                continue  # removed meanwhile
    return total


assert sys.platform != "win32", "the engine's cache relies on POSIX renames"
