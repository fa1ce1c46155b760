"""Where a home lies: the machine and the folder it was made in, so that a copy of it is told from the original.

A copy has the key of the original. When both run, the copy steps back (`core/membership`), and the original goes on: a
thief of a home cannot displace the node that it was stolen from.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import uuid
from pathlib import Path

from meshllm.util.atomic_file import replace_file

log = logging.getLogger(__name__)

FILE = "place"
MACHINE_ID = Path("/etc/machine-id")
# A home that ran for this long at a new place, without another machine of its identity, belongs there (seconds).
SETTLED_SECONDS = 3600.0
_MAX_BYTES = 200


def here(home: Path) -> str:
    """The place of `home` on this machine: the machine's id, its network address and the folder's inode, hashed."""
    machine = ""
    with contextlib.suppress(OSError):
        machine = MACHINE_ID.read_text("ascii", "replace")[:_MAX_BYTES]
    # A random number, with this bit, where no network card has an address.
    address = uuid.getnode()
    card = "" if address >> 40 & 1 else f"{address:x}"
    return hashlib.sha256(f"{machine}\0{card}\0{home.stat().st_ino}".encode()).hexdigest()[:32]


def was_moved(home: Path) -> bool:
    """Whether `home` was made at another place. A home that says nothing was made here."""
    try:
        with (home / FILE).open("rb") as file:
            saved = file.read(_MAX_BYTES).decode("ascii", "replace").strip()
        return bool(saved) and saved != here(home)
    except OSError:
        return False


def settle(home: Path) -> None:
    """The home belongs here. A disk that does not take the file is logged."""
    try:
        replace_file(home / FILE, here(home) + "\n", mode=0o600)
    except OSError as error:
        log.warning("%s cannot be written: %s", home / FILE, error.strerror or error)
