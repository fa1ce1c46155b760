"""What a download says of itself while it runs.

Law: facts only (bytes done, bytes in all, who gave them); rates and bars are the viewer's business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from meshllm.util.progress import Progress


class TransferStage(StrEnum):
    """What is being done; the values are for programs."""

    WAITING = "waiting"  # another download of the same file is running
    CONNECTING = "connecting"
    DOWNLOADING = "downloading"
    EXTRACTING = "extracting"
    VERIFYING = "verifying"
    READY = "ready"
    FAILED_SOURCE = "failed-source"  # one source failed and the next is tried; `detail` says why


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferProgress(Progress):
    """Progress of `file`, in bytes; `source`: where the bytes come from (a hub's address, "peers", a package).

    `by_source`: bytes received from each source since this download began.
    """

    file: str
    source: str = ""
    by_source: tuple[tuple[str, int], ...] = ()


Report = Callable[[TransferProgress], None]
"""Called in the event loop's thread, some times a second; it must not block."""
