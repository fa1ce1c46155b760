"""What a daemon was asked to do. Made by `cli` from the command line, read by `daemon`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DEFAULT_PORT = 9337
DEFAULT_CONSOLE = 3131


@dataclass(frozen=True, slots=True)
class Backend:
    """`url` without a trailing `/v1`; `key_variable` names the environment variable that holds its key, if any."""

    url: str
    key_variable: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """`models` as they were given (catalogue names or paths); ports (0: any that is free); `context` in tokens."""

    home: Path
    models: tuple[str, ...] = ()
    backends: tuple[Backend, ...] = ()
    port: int = DEFAULT_PORT
    console: int = DEFAULT_CONSOLE
    listen_all: bool = False
    allowed_origins: tuple[str, ...] = ()
    context: int | None = None
