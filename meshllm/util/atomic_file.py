"""Atomic file writes: a reader sees the old content or the new content, never a part."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def replace_file(path: Path, content: str | bytes, *, mode: int = 0o666, durable: bool = False) -> None:
    """Write `content` (text as UTF-8) to `path`, replacing an existing file. Raises OSError; `path` is then unchanged.

    `mode`: permissions of the new file, before the umask. `durable`: flush the file and its directory, so that the
    content survives a power failure.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.new")
    with contextlib.suppress(FileNotFoundError):
        scratch.unlink()  # left behind by a killed process with the same id
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        _write(descriptor, path, content, durable=durable)
        scratch.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise
    if durable:
        _flush_directory(path.parent)


def move_file(source: Path, target: Path) -> None:
    """Rename `source` to `target` in the same folder, replacing an existing file; durable. Raises OSError."""
    source.replace(target)
    _flush_directory(target.parent)


def create_file(path: Path, content: str | bytes) -> bool:
    """Write `content` to a new file (mode 0600), flushed to disk; False if `path` exists, which is left unchanged.

    Raises OSError.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # O_EXCL, 0600
    scratch = Path(name)
    try:
        _write(descriptor, path, content, durable=True)
        try:
            os.link(scratch, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            return _create_in_place(path, content)
    finally:
        scratch.unlink(missing_ok=True)
    _flush_directory(path.parent)
    return True


def _create_in_place(path: Path, content: str | bytes) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return False
    _write(descriptor, path, content, durable=True)
    return True


def _write(descriptor: int, path: Path, content: str | bytes, *, durable: bool) -> None:
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        # A write knows a descriptor only.
        error.filename = str(path)
        raise


def _flush_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
