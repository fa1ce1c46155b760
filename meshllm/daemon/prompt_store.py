"""Computed prompts of this node's engines, in files of its home: bounded in bytes and age, readable by the owner alone.

A folder for each model, engine and way to serve it; in it an index and files that only the engine understands. Every
file has a digest, because the engine must never read a damaged one. Nothing here follows a symbolic link: the engine
process, which may be hostile, writes the files. All of this blocks. Threads may call it at the same time: what they can
spoil is a saved prompt, which is then removed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
from array import array
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from hashlib import blake2b, sha256
from itertools import takewhile
from pathlib import Path

from meshllm.util.atomic_file import replace_file
from meshllm.wire.api import strict_json

FOLDER = "prompts"
INDEX = "index.json"
# All files together, and one of them (bytes): one is written in some seconds, and while the engine reads it, a request
# waits.
MAX_BYTES = 4 << 30
MAX_FILE_BYTES = 2 << 30
# Left free on the disk (bytes).
SPARE_BYTES = 4 << 30
MAX_AGE_SECONDS = 3 * 86_400.0
MAX_FILES = 32
# A longer prompt replaces a file although it lacks so many tokens of its end.
ANSWER_TOKENS = 256
# A file that is so old (seconds) and in no index was left behind by a process that was killed.
MOVING_SECONDS = 60.0
_MAX_INDEX_BYTES = 256 << 10
_PIECE = 1 << 20
# An engine's file: two numbers that name the format, the number of tokens, the tokens; 4 bytes each.
_HEAD, _WORD = 12, 4


@dataclass(frozen=True, slots=True)
class SavedPrompt:
    """A file. `digest`: BLAKE2b of its content, in hexadecimal; `saved`: unix seconds."""

    name: str
    digest: str
    size: int
    tokens: int
    saved: float


class PromptStore:
    """The files below `home`."""

    def __init__(self, home: Path, clock: Callable[[], float], *, most: int = MAX_BYTES) -> None:
        """`clock`: unix seconds. `most`: bytes of all files together."""
        self._folder = home / FOLDER
        self._clock = clock
        self._most = most

    @staticmethod
    def key(files: Iterable[Path], *served: object) -> str:
        """Names the folder for a model of `files`, and for how it is `served` (engine build, context, devices): what
        another engine, or the same one with other options, would not understand. Raises OSError."""
        facts = [(str(path), found.st_size, found.st_mtime_ns) for path in files for found in [path.stat()]]
        return sha256(json.dumps([facts, [str(one) for one in served]]).encode()).hexdigest()[:32]

    def room(self) -> int:
        """Bytes that a further file may have."""
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(self._folder if self._folder.exists() else self._folder.parent).free
            return max(0, min(MAX_FILE_BYTES, self._most, free - SPARE_BYTES))
        return 0

    def find(self, key: str) -> list[SavedPrompt]:
        """The files of `key`, the latest first."""
        now = self._clock()
        found = [one for one in self._index(key)[1] if 0 <= now - one.saved <= MAX_AGE_SECONDS]
        return sorted(found, key=lambda one: -one.saved)

    def add(self, key: str, model: Path, file: Path, tokens: int) -> SavedPrompt:
        """Take over `file`, which an engine has written for `model`; it is moved. Files whose tokens it begins with,
        but for a few at their end, are removed, and the oldest ones beyond the bounds. Raises OSError."""
        folder = self._folder / key
        for made in (self._folder, folder):
            made.mkdir(mode=0o700, exist_ok=True)
        with _opened(file) as source:
            os.fchmod(source, 0o600)
            size, digest = os.fstat(source).st_size, _digest(source)
            if size > self._most:
                raise OSError(errno.EFBIG, "too large to be kept", str(file))
            beginning = _tokens(source)
        name = f"{digest[:24]}.slot"
        _move(file, folder / name)
        saved = SavedPrompt(name, digest, size, tokens, self._clock())
        others = [one for one in self._index(key)[1] if one.name != name]
        stale = [one for one in others if self._replaced(folder / one.name, beginning)]
        self._write(key, model, [*(one for one in others if one not in stale), saved])
        for one in stale:
            _remove(folder / one.name)
        self._trim()
        return saved

    def stage(self, key: str, saved: SavedPrompt, target: Path) -> bool:
        """Put a file where an engine reads it. False if it is missing or damaged; then it is removed."""
        source = self._folder / key / saved.name
        try:
            with _opened(source) as descriptor:
                sound = os.fstat(descriptor).st_size == saved.size and _digest(descriptor) == saved.digest
            if sound:
                _copy(source, target)
                return True
        except OSError:
            pass
        self.remove(key, saved.name)
        return False

    def remove(self, key: str, name: str) -> None:
        """Remove a file."""
        model, found = self._index(key)
        if model is not None:
            with contextlib.suppress(OSError):
                self._write(key, model, [one for one in found if one.name != name])
        _remove(self._folder / key / name)

    def keep_only(self, key: str, model: Path) -> None:
        """Remove what was kept for `model` when it, its engine or its options were others."""
        for other in self._keys():
            if other != key and self._index(other)[0] == model:
                self._remove_folder(other)

    def sweep(self) -> None:
        """Remove what is too old, what belongs to a model that is gone, and what no index names."""
        now = self._clock()
        for key in self._keys():
            model, found = self._index(key)
            fresh = [one for one in found if 0 <= now - one.saved <= MAX_AGE_SECONDS]
            if model is None or not model.exists() or not fresh:
                self._remove_folder(key)
                continue
            named = {one.name for one in fresh}
            if len(fresh) < len(found):
                with contextlib.suppress(OSError):
                    self._write(key, model, fresh)
                for one in found:
                    if one not in fresh:
                        _remove(self._folder / key / one.name)
            with contextlib.suppress(OSError):
                for path in (self._folder / key).iterdir():
                    if path.name != INDEX and path.name not in named and now - path.lstat().st_mtime > MOVING_SECONDS:
                        _remove(path)

    def clear(self) -> None:
        """Remove everything."""
        for key in self._keys():
            self._remove_folder(key)

    def _trim(self) -> None:
        every = [(one, key) for key in self._keys() for one in self._index(key)[1]]
        every.sort(key=lambda pair: -pair[0].saved)
        used = 0
        for number, (one, key) in enumerate(every):
            used += one.size
            if used > self._most or number >= MAX_FILES:
                self.remove(key, one.name)

    def _keys(self) -> list[str]:
        try:
            return [path.name for path in self._folder.iterdir() if path.is_dir() and not path.is_symlink()]
        except OSError:
            return []

    def _index(self, key: str) -> tuple[Path | None, list[SavedPrompt]]:
        """The model of `key` and its files; (None, []) if the index is missing or damaged."""
        try:
            with (self._folder / key / INDEX).open("rb") as file:
                told = strict_json.loads_object(file.read(_MAX_INDEX_BYTES)) or {}
            found = [SavedPrompt(**one) for one in told["files"]]
            if all(_valid(one) for one in found):
                return Path(told["model"]), found
        except (OSError, KeyError, TypeError, ValueError):
            pass
        return None, []

    def _write(self, key: str, model: Path, found: list[SavedPrompt]) -> None:
        told = {"model": str(model), "files": [asdict(one) for one in found]}
        replace_file(self._folder / key / INDEX, json.dumps(told), mode=0o600)

    def _remove_folder(self, key: str) -> None:
        shutil.rmtree(self._folder / key, ignore_errors=True)

    @staticmethod
    def _replaced(path: Path, tokens: bytes) -> bool:
        """Whether a prompt of `tokens` regains what a file has: an answer may come back as other tokens."""
        try:
            with _opened(path) as descriptor:
                own = _tokens(descriptor)
        except OSError:
            return True  # it is gone
        same = sum(
            1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*map(_numbers, (own, tokens)), strict=False))
        )
        return same * 2 * _WORD >= len(own) > 0 and len(own) // _WORD - same <= ANSWER_TOKENS


def _valid(one: SavedPrompt) -> bool:
    named = isinstance(one.name, str) and one.name.endswith(".slot") and "/" not in one.name
    numbers = isinstance(one.size, int) and isinstance(one.tokens, int) and isinstance(one.saved, int | float)
    return named and numbers and isinstance(one.digest, str)


@contextlib.contextmanager
def _opened(path: Path):  # type: ignore[no-untyped-def]
    """A descriptor of a regular file of this user, not reached through a link. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
            raise OSError(errno.EINVAL, "no file of this user", str(path))
        yield descriptor
    finally:
        os.close(descriptor)


def _digest(descriptor: int) -> str:
    hashed = blake2b(digest_size=32)
    os.lseek(descriptor, 0, os.SEEK_SET)
    while piece := os.read(descriptor, _PIECE):
        hashed.update(piece)
    return hashed.hexdigest()


def _tokens(descriptor: int) -> bytes:
    """The tokens in an engine's file, without the words before and behind them; b"" if it has none."""
    head = os.pread(descriptor, _HEAD, 0)
    count = int.from_bytes(head[8:12], "little")
    packed = os.pread(descriptor, min(count * _WORD, os.fstat(descriptor).st_size), _HEAD)
    # llama-server packs them: a marker, a version, their number, the tokens, and what there is of images.
    number = int.from_bytes(packed[8:12], "little")
    return packed[12 : 12 + number * _WORD]


def _numbers(tokens: bytes) -> array[int]:
    return array("I", tokens[: len(tokens) // _WORD * _WORD])


def _move(source: Path, target: Path) -> None:
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(source, target)
        source.unlink()


def _copy(source: Path, target: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        target.unlink()
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target, follow_symlinks=False)
        target.chmod(0o600)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
