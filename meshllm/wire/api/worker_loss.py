"""An engine that has lost a node which computed with it: how it says so, and what its caller is told instead.

Law: the engine's words mean this only where others compute with it (`shared`); anywhere else they are passed on as they
are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshllm.wire.api.errors import status_of

UPSTREAM_LOST = "upstream_lost"
"""The code of every answer that broke off because who gave it is gone."""

WORKER_LOST = "a node that carried a part of it was lost"
"""Why what has no answer yet is asked again."""

# What an engine answers from then on (llama.cpp/patches/05): it will never compute anything again.
_SAID = "Compute error"
MARK = b'"message":"Compute error'
"""The same as it stands in an event. No text that a model writes can hold it: inside JSON a quote is escaped."""


def is_worker_loss(found: Mapping[str, Any]) -> bool:
    """Whether an error object of an engine with workers says that one of them is lost."""
    return status_of(found) == 500 and str(found.get("message", "")).startswith(_SAID)


def worker_loss_message(model: str, why: str = "") -> str:
    """What the caller of an answer that had begun is told; `why` in words, where that is known."""
    known = f" ({why})" if why else ""
    return (
        f"A node that carried layers of {model} was lost in the middle of the answer{known}. "
        "Ask again: the model is being loaded anew, without that node if it does not come back."
    )
