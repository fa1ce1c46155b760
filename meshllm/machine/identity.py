"""Which machine this is: an id that all processes on it read, and no other machine has."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path
from typing import Final

from .resources import ROOT

BOOT_ID: Final = Path("proc/sys/kernel/random/boot_id")
MAC_BOOT_ID: Final = b"kern.bootsessionuuid"
_LEAST_BYTES: Final = 16


def machine(root: Path = ROOT) -> bytes:
    """The id of this machine since it was started: random, and secret as long as it is only passed on hashed.

    Containers of one machine read the same id (they share its processor), virtual machines have one each. b"" if the
    system has none. Never raises.
    """
    with contextlib.suppress(OSError):
        found = (root / BOOT_ID).read_bytes()[:64].strip()
        return found if len(found) >= _LEAST_BYTES else b""
    return _mac_boot_id()


def _mac_boot_id() -> bytes:
    with contextlib.suppress(OSError, AttributeError):
        text, size = ctypes.create_string_buffer(64), ctypes.c_size_t(64)
        if ctypes.CDLL(None).sysctlbyname(MAC_BOOT_ID, text, ctypes.byref(size), None, 0) == 0:
            return text.value if len(text.value) >= _LEAST_BYTES else b""
    return b""
