"""The engine's source: the pin (`llama.cpp/pin.toml`) and the patches (`llama.cpp/patches`), validated and bounded."""

from __future__ import annotations

import hashlib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from meshllm.errors import EngineUnavailable

MAX_PIN_BYTES = 16 * 1024
MAX_SERIES_BYTES = 64 * 1024
MAX_PATCHES = 200
MAX_PATCH_BYTES = 4 * 1024 * 1024
MAX_SOURCE_BYTES = 2 * 1024**3

_FIELDS = {
    "package": re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?"),
    "version": re.compile(r"[0-9][0-9a-z.+!_-]{0,63}"),
    "file": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}\.tar\.gz"),
    "sha256": re.compile(r"[0-9a-f]{64}"),
    "commit": re.compile(r"[0-9a-f]{7,40}"),
    "tree": re.compile(r"[A-Za-z0-9_.+-]{1,128}(/[A-Za-z0-9_.+-]{1,128}){0,7}"),
}
_PATCH_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,120}\.patch")


@dataclass(frozen=True, slots=True)
class Pin:
    """One source distribution: `sha256` and `size` (bytes) of `file`; `tree` is the path of llama.cpp inside it."""

    package: str
    version: str
    file: str
    sha256: str
    size: int
    tree: str
    commit: str


@dataclass(frozen=True, slots=True)
class Patch:
    """A unified diff against the pinned tree. `sha256`: of its bytes."""

    name: str
    text: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Source:
    """What determines the source tree: the pin, and the patches in the order of application."""

    pin: Pin
    patches: tuple[Patch, ...]


def directory() -> Path:
    """The folder with the pin and the patches: `llama.cpp` of this checkout, or its copy in an installed package.

    Raises EngineUnavailable if both are missing.
    """
    here = Path(__file__).resolve()
    packaged, checkout = here.parent / "source", here.parents[3] / "llama.cpp"
    for found in (packaged, checkout):
        if (found / "pin.toml").is_file():
            return found
    raise EngineUnavailable(
        f"The files that pin the engine are missing: neither {packaged} nor {checkout} has a pin.toml.",
        advice="Install mesh-llm again, or run it from a complete checkout (scripts/mesh-llm).",
    )


def read_source(folder: Path) -> Source:
    """Read the pin and the patches in `folder`. Raises EngineUnavailable if one is invalid."""
    pin = parse_pin(_read(folder / "pin.toml", MAX_PIN_BYTES))
    names = parse_series(_read(folder / "patches" / "series", MAX_SERIES_BYTES))
    return Source(pin, tuple(_read_patch(folder / "patches" / name) for name in names))


def parse_pin(text: str) -> Pin:
    """Parse `pin.toml`. Raises EngineUnavailable naming the invalid field."""
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise _damaged(f"pin.toml is not TOML ({error})") from None
    if unknown := sorted(set(values) - set(_FIELDS) - {"size"}):
        raise _damaged(f"pin.toml has an unknown field ({unknown[0][:40]!r})")
    for name, pattern in _FIELDS.items():
        value = values.get(name)
        if not isinstance(value, str) or pattern.fullmatch(value) is None:
            raise _damaged(f"pin.toml: {name} is missing or malformed")
    if any(part in (".", "..") for part in values["tree"].split("/")):
        raise _damaged("pin.toml: tree leaves the archive")
    size = values.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= MAX_SOURCE_BYTES:
        raise _damaged("pin.toml: size is missing or out of bounds")
    return Pin(size=size, **{name: values[name] for name in _FIELDS})


def parse_series(text: str) -> tuple[str, ...]:
    """File names in a series file, in order; `#` starts a comment. Raises EngineUnavailable for an invalid name."""
    names: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        name = line.split("#", 1)[0].strip()
        if not name:
            continue
        if _PATCH_NAME.fullmatch(name) is None or PurePosixPath(name).name != name:
            raise _damaged(f"patches/series line {number} is not the name of a .patch file")
        if name in names:
            raise _damaged(f"patches/series names {name} twice")
        names.append(name)
        if len(names) > MAX_PATCHES:
            raise _damaged(f"patches/series names more than {MAX_PATCHES} patches")
    return tuple(names)


def _read_patch(path: Path) -> Patch:
    text = _read(path, MAX_PATCH_BYTES)
    return Patch(path.name, text, hashlib.sha256(text.encode()).hexdigest())


def _read(path: Path, limit: int) -> str:
    """The text of a file, with unchanged line ends."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise _damaged(f"{path.parent.name}/{path.name} cannot be read ({error.strerror})") from None
    if len(data) > limit:
        raise _damaged(f"{path.name} is larger than {limit} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise _damaged(f"{path.name} is not UTF-8 text") from None


def _damaged(what: str) -> EngineUnavailable:
    return EngineUnavailable(
        f"The description of the engine's source is invalid: {what}.",
        advice="Install mesh-llm again; in a checkout, restore the folder llama.cpp (`git status llama.cpp`).",
    )
