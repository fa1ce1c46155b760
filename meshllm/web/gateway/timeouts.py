"""Timeouts of a request: keep-alive comments to the caller, the target's connect and silence. Pure; in seconds."""

from __future__ import annotations

from enum import Enum

from meshllm.core.routing.routes import TargetKind

# A streaming caller gets data or a comment at least this often (plus up to a second).
SILENCE_SECONDS = 5.0
# How long a caller waits for a model that is being loaded. A streaming caller gets comments meanwhile. Any other would
# wait in silence, and gets a 503 with Retry-After, which SDKs act upon, before their own timeout (600 s).
WAIT_STREAMING_SECONDS = 3600.0
WAIT_SILENT_SECONDS = 300.0
# The supervisor detects an engine process that hangs. A backend times out after this long without a byte. A peer's
# gateway sends something every `SILENCE_SECONDS`, and counts as lost after missing three in a row; two if it answers no
# pings either.
BACKEND_SILENCE_SECONDS = 600.0
PEER_SILENCES = 3
DOUBTED_PEER_SILENCES = 2
# A connection attempt of this age is abandoned if another target has a free slot.
CONNECT_TIMEOUT_SECONDS = 2.0
# A complete stream ends even if its target leaves the connection open.
LINGER_SECONDS = 2.0


class Overdue(Enum):
    """What a target has failed to do in time."""

    CLOSE = "close"  # the response is complete
    CONNECT = "connect"
    SEND = "send"


def overdue(
    kind: TargetKind, silent: float, *, connecting: bool, complete: bool, doubted: bool = False
) -> Overdue | None:
    """What a target of that kind should have done by now, or None. `silent`: seconds since the request or last data;
    `doubted`: the target is a peer that is not known to be alive."""
    if complete:
        return Overdue.CLOSE if silent > LINGER_SECONDS else None
    if kind is TargetKind.ENGINE:
        return None
    if connecting:
        return Overdue.CONNECT if silent > CONNECT_TIMEOUT_SECONDS else None
    silences = DOUBTED_PEER_SILENCES if doubted else PEER_SILENCES
    limit = silences * SILENCE_SECONDS if kind is TargetKind.PEER else BACKEND_SILENCE_SECONDS
    return Overdue.SEND if silent > limit else None


def waited_too_long(seconds: float, *, streams: bool) -> bool:
    """Whether a caller has waited too long for a model that is being loaded."""
    return seconds > (WAIT_STREAMING_SECONDS if streams else WAIT_SILENT_SECONDS)
