"""Progress of a download: bytes, and the sources they come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from meshllm.util.progress import Progress


class TransferStage(StrEnum):
    """The stages of a download; the values are for programs."""

    WAITING = "waiting"  # for another download of the same file
    CONNECTING = "connecting"
    DOWNLOADING = "downloading"
    EXTRACTING = "extracting"
    VERIFYING = "verifying"
    READY = "ready"
    FAILED_SOURCE = "failed-source"  # the next source is tried; `detail` has the reason


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferProgress(Progress):
    """Progress of `file`, in bytes; `source`: where the bytes come from (a hub's address, "peers", a package).

    `by_source`: bytes received from each source since this download began.
    """

    file: str
    source: str = ""
    by_source: tuple[tuple[str, int], ...] = ()


Report = Callable[[TransferProgress], None]
"""Called in the event loop's thread, up to 20 times a second; it must not block."""
