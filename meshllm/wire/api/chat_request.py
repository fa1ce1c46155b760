"""Prepares bodies of `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshllm.wire.api.chat_calls import ChatCalls, PlainLogprobs
from meshllm.wire.api.chat_messages import kept_messages
from meshllm.wire.api.engine_bounds import choices_of, keep_bounds
from meshllm.wire.api.offered_tools import chat_tools
from meshllm.wire.api.prepared import Draft, Prepared
from meshllm.wire.api.refusal import NO_MESSAGE, invalid, unsupported
from meshllm.wire.api.response_translation import MakeTranslator, chained
from meshllm.wire.api.structured_output import CHAT_FORMAT, constrain, loosened_tools, only_schema, refuse_prefill
from meshllm.wire.api.tool_choice import chat_choice, check_names, names_of

_UNSUPPORTED = {
    "functions": "Use 'tools'.",
    "function_call": "Use 'tool_choice'.",
    "web_search_options": "The models here call only functions that you run.",
    "audio": "The models here answer with text.",
    "chat_template": "The template is the model's own.",
    "modalities": 'It must be ["text"]: the models here answer with text.',
}
_HARMLESS = {"modalities": ["text"]}


def prepare_chat(body: Mapping[str, Any]) -> Prepared:
    """A chat request as the engine keeps it; RequestRefused if it cannot."""
    draft = Draft(body)
    if not _UNSUPPORTED.keys().isdisjoint(body):
        _check_fields(body)
    keep_bounds(draft)
    if body.get("messages") == []:
        raise invalid("messages", NO_MESSAGE)
    messages = kept_messages(body.get("messages"))
    if messages is not None:
        draft.replace("messages", messages)
    calls = keep_calls(draft, only_schema(draft, body.get(CHAT_FORMAT), CHAT_FORMAT))
    if draft.changes.get("json_schema") is not None and messages:
        refuse_prefill(messages[-1], f"messages[{len(messages) - 1}]")
    logprobs = keep_logprobs(draft) if "logprobs" in body or "top_logprobs" in body else None
    count = choices_of(draft)
    return draft.prepared(chained(logprobs, calls), choices=count, each=count)


def _check_fields(body: Mapping[str, Any]) -> None:
    for field, advice in _UNSUPPORTED.items():
        if body.get(field) is not None and body[field] != _HARMLESS.get(field):
            raise unsupported(field, f"'{field}' is not supported here. {advice}")


def keep_calls(draft: Draft, answer: dict[str, Any] | None) -> MakeTranslator | None:
    """Keep the tools, the tool choice and the schema of the answer; returns the translator of enveloped calls."""
    given = draft.get("tools")
    if answer is not None:
        draft.set(CHAT_FORMAT, None)
    if not given and draft.get("tool_choice") is None:
        if answer is not None:
            draft.set("json_schema", answer)
        return None
    tools = chat_tools(given) if given is not None else []
    choice = chat_choice(draft.get("tool_choice"))
    check_names(choice, names_of(tools))
    tools = loosened_tools(tools)
    allowed = tools if choice.allows_all else [tool for tool in tools if choice.allows(tool["function"]["name"])]
    if allowed and draft.get("grammar") is not None:
        raise invalid("grammar", "'grammar' and 'tools' exclude each other.")
    draft.replace("tools", allowed or None)
    offered = [(tool["function"]["name"], tool["function"].get("parameters")) for tool in allowed]
    return ChatCalls if constrain(draft, choice, offered, answer) else None


def keep_logprobs(draft: Draft) -> MakeTranslator | None:
    """Keep `logprobs` without alternatives, which the engine takes for none."""
    if draft.get("logprobs") is not True:
        if draft.get("top_logprobs") is not None:
            raise invalid("top_logprobs", "'top_logprobs' requires 'logprobs': true.")
        return None
    if draft.get("stream") is True and draft.get("tools"):
        raise unsupported("logprobs", "'logprobs' is not supported in a stream together with 'tools'.")
    if draft.get("top_logprobs"):
        return None
    draft.set("top_logprobs", 1)
    return lambda _ident: PlainLogprobs()
