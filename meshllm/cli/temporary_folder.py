"""A temporary folder where the system has none that can be written to (a read-only container, a full disk)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

NAME = "tmp"


def ensure(home: Path) -> bool:
    """Let this process and its children use a folder of `home` where no other can be used. Returns whether it did.

    Raises OSError if that one cannot be used either.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        folder = home / NAME
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
        return True
    return False
