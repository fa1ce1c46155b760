"""Prepares requests for an engine of this node: what a caller asks for is kept, or refused with the field's name.

A body is changed only so that the engine does what the caller asked for; what the engine cannot do is refused. Backends
get the original body; a peer's gateway prepares it for its own engine. Each API has a file of its own; all are pure and
linear in the body, and a body without special fields is not copied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from meshllm.core.serving.vector_traits import UNKNOWN_VECTORS, VectorTraits
from meshllm.wire.api.chat_request import prepare_chat
from meshllm.wire.api.completion_request import prepare_completion
from meshllm.wire.api.conversation import ANY_TEMPLATE, TemplateTraits, shape_body
from meshllm.wire.api.embedding_request import prepare_embedding
from meshllm.wire.api.messages_request import prepare_count, prepare_messages
from meshllm.wire.api.prepared import UNCHANGED, Prepared
from meshllm.wire.api.refusal import Refusal, RequestRefused
from meshllm.wire.api.responses_request import prepare_responses
from meshllm.wire.api.routes import Api


def _prepare_input_count(body: Mapping[str, Any]) -> Prepared:
    """The two APIs that count have one name here: `input` is of responses, `messages` of chat."""
    prepared = prepare_responses(body) if "input" in body else prepare_chat(body)
    return Prepared(prepared.body)


_PREPARE: dict[Api, Callable[[Mapping[str, Any]], Prepared]] = {
    Api.CHAT: prepare_chat,
    Api.COMPLETIONS: prepare_completion,
    Api.RESPONSES: prepare_responses,
    Api.MESSAGES: prepare_messages,
    Api.COUNT_TOKENS: prepare_count,
    Api.INPUT_TOKENS: _prepare_input_count,
    Api.EMBEDDINGS: prepare_embedding,
}


def prepare(
    api: Api,
    body: Mapping[str, Any],
    traits: TemplateTraits = ANY_TEMPLATE,
    vectors: VectorTraits = UNKNOWN_VECTORS,
) -> Prepared | Refusal:
    """What the engine gets for `body`, and how its response is translated back; or why it cannot be kept.

    `traits` of the model's chat template; `vectors`: what its embeddings bear.
    """
    rules = _PREPARE.get(api)
    if rules is None:
        return UNCHANGED
    try:
        if api is Api.EMBEDDINGS:
            return prepare_embedding(body, vectors)
        prepared = rules(body)
        # Last, because it takes valid messages, in the form of the API that the prepared body is for.
        form = Api.CHAT if prepared.path else api
        shaped = shape_body(form, prepared.body or body, traits)
        return prepared if shaped is None else replace(prepared, body=shaped)
    except RequestRefused as refused:
        return refused.refusal
    except (RecursionError, ValueError):  # strict_json: nested too deeply
        return Refusal(None, "The body is nested too deeply.", "too_large")
