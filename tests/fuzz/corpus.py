"""Kept inputs: those that reached new code in a long run, and those that once failed. One line of base64 for each."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parent / "corpora"


def read(name: str) -> list[bytes]:
    """The kept inputs of a target."""
    path = FOLDER / f"{name}.b64"
    return [b64decode(line) for line in path.read_text().splitlines()] if path.exists() else []


def write(name: str, inputs: Iterable[bytes]) -> None:
    """Replace the kept inputs of a target."""
    FOLDER.mkdir(exist_ok=True)
    lines = sorted({b64encode(data).decode() for data in inputs}, key=lambda line: (len(line), line))
    (FOLDER / f"{name}.b64").write_text("".join(f"{line}\n" for line in lines))
