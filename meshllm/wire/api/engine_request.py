"""Prepares requests for an engine of this node: what a caller asks for is kept, or refused with the field's name.

Invariants: a body is changed only so that the engine does what the caller asked for; what it cannot do is refused.
Nothing is dropped silently. Backends get the original body; a peer's gateway prepares it for its own engine. Each API
has a file of its own; all are pure and linear in the body, and a body without special fields is not copied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from meshllm.wire.api.chat_request import prepare_chat
from meshllm.wire.api.conversation import ANY_TEMPLATE, TemplateTraits, shape_body
from meshllm.wire.api.prepared import UNCHANGED, Prepared
from meshllm.wire.api.refusal import Refusal, RequestRefused
from meshllm.wire.api.responses_request import prepare_responses
from meshllm.wire.api.routes import Api

_PREPARE: dict[Api, Callable[[Mapping[str, Any], TemplateTraits], Prepared]] = {
    Api.CHAT: prepare_chat,
    Api.RESPONSES: prepare_responses,
}


def prepare(api: Api, body: Mapping[str, Any], traits: TemplateTraits = ANY_TEMPLATE) -> Prepared | Refusal:
    """What the engine gets for `body`, and how its response is translated back; or why it cannot be kept."""
    rules = _PREPARE.get(api)
    try:
        prepared = rules(body, traits) if rules is not None else UNCHANGED
        # Last, because it takes valid messages, in the form of the API that the prepared body is for.
        shaped = shape_body(api, prepared.body or body, traits)
        return prepared if shaped is None else replace(prepared, body=shaped)
    except RequestRefused as refused:
        return refused.refusal
    except RecursionError:
        return Refusal(None, "The body is nested too deeply.", "too_large")
