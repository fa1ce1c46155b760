"""How long those may take that a request has to do with: its caller to be told something, its target to speak.

Law: pure, times in and a verdict out (seconds). Who takes too long is found out here; what becomes of that is for the
exchange to say.
"""

from __future__ import annotations

from enum import Enum

from meshllm.core.routing.routes import TargetKind

# A streaming caller never hears nothing for longer than this (plus a second).
SILENCE_SECONDS = 5.0
# How long a caller waits for a model that is on its way. One that streams hears comments meanwhile; one that does not
# would wait in silence, and gets a 503 with Retry-After instead, which the SDKs act upon, before they give up (600 s).
WAIT_STREAMING_SECONDS = 3600.0
WAIT_SILENT_SECONDS = 300.0
# An engine process that hangs is found out by its supervisor; a backend is given up after this long without a byte. A
# peer's gateway says something every `SILENCE_SECONDS`, and is gone if it misses three of these in a row.
BACKEND_SILENCE_SECONDS = 600.0
PEER_SILENCES = 3
# A host to which a connection takes so long is left, if another could begin at once.
CONNECT_PATIENCE_SECONDS = 2.0
# A stream that is complete ends even if its target forgets to hang up.
LINGER_SECONDS = 2.0


class Overdue(Enum):
    """What a target has not done in time."""

    HANG_UP = "hang up"  # its answer is complete
    CONNECT = "connect"
    SPEAK = "speak"


def overdue(kind: TargetKind, silent: float, *, connecting: bool, complete: bool) -> Overdue | None:
    """What a target of that kind should have done by now; None: nothing. `silent`: since it was asked or last heard."""
    if complete:
        return Overdue.HANG_UP if silent > LINGER_SECONDS else None
    if kind is TargetKind.ENGINE:
        return None
    if connecting:
        return Overdue.CONNECT if silent > CONNECT_PATIENCE_SECONDS else None
    limit = PEER_SILENCES * SILENCE_SECONDS if kind is TargetKind.PEER else BACKEND_SILENCE_SECONDS
    return Overdue.SPEAK if silent > limit else None


def waited_too_long(seconds: float, *, streams: bool) -> bool:
    """Whether a caller has waited too long for a model that is on its way."""
    return seconds > (WAIT_STREAMING_SECONDS if streams else WAIT_SILENT_SECONDS)
