"""How an engine reports a lost worker, and the text for its caller.

The engine's text has this meaning only if it computes with workers (`shared`); otherwise it is passed on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshllm.wire.api.errors import status_of

UPSTREAM_LOST = "upstream_lost"
"""The code of an answer that was cut off because its upstream was lost."""

WORKER_LOST = "a worker node was lost"
"""The reason for a retry of a request that has no answer yet."""

# The engine's error after the loss of a worker (llama.cpp/patches/05); it cannot compute any more.
_SAID = "Compute error"
MARK = b'"message":"Compute error'
"""The same in an event. Generated text cannot contain it, because JSON escapes quotes."""


def is_worker_loss(found: Mapping[str, Any]) -> bool:
    """Whether an error object of an engine with workers reports a lost worker."""
    return status_of(found) == 500 and str(found.get("message", "")).startswith(_SAID)


def worker_loss_message(model: str, why: str = "") -> str:
    """The message for a caller whose answer had begun; `why`: the reason, if known."""
    known = f" ({why})" if why else ""
    return (
        f"A worker node of {model} was lost during the answer{known}. "
        "Retry: the model is loading again, without that node if it does not return."
    )
