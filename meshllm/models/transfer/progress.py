"""What a download says of itself while it runs.

Law: facts only (bytes done, bytes in all, who gave them); rates and bars are the viewer's business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class TransferStage(StrEnum):
    """What is being done; the values are for programs."""

    WAITING = "waiting"  # another download of the same file is running
    CONNECTING = "connecting"
    DOWNLOADING = "downloading"
    EXTRACTING = "extracting"
    VERIFYING = "verifying"
    READY = "ready"
    FAILED_SOURCE = "failed-source"  # one source failed and the next is tried; `note` says why


@dataclass(frozen=True, slots=True)
class TransferProgress:
    """Bytes `done` of `total` in this stage (0 where unknown); `source` is where from, in words.

    `by_source`: how many bytes each source has given since this download began; the hub is named by its address.
    """

    stage: TransferStage
    file: str
    source: str = ""
    done: int = 0
    total: int = 0
    note: str = ""
    by_source: tuple[tuple[str, int], ...] = ()


Report = Callable[[TransferProgress], None]
"""Called in the event loop's thread, some times a second; it must not block."""
