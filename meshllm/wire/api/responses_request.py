"""Prepares bodies of `/v1/responses`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from meshllm.wire.api.engine_bounds import keep_bounds, refuse_choices
from meshllm.wire.api.offered_tools import NO_TOOLS, OfferedTools, responses_tools
from meshllm.wire.api.prepared import Draft, Prepared
from meshllm.wire.api.refusal import invalid, unsupported
from meshllm.wire.api.response_translation import chained
from meshllm.wire.api.responses_calls import CallerNames, ResponsesCalls
from meshllm.wire.api.responses_items import kept_items
from meshllm.wire.api.structured_output import constrain, loosened_tools, only_schema, refuse_prefill
from meshllm.wire.api.tool_choice import ToolChoice, check_names, responses_choice

_NO_STATE = "This node keeps no state between requests: send the whole conversation in 'input'."
_STATE = ("previous_response_id", "conversation", "prompt")
# What `include` may ask for without anything being missed: there are no such items here.
_NOTHING = frozenset(
    (
        "reasoning.encrypted_content",
        "file_search_call.results",
        "web_search_call.results",
        "web_search_call.action.sources",
        "code_interpreter_call.outputs",
        "computer_call_output.output.image_url",
        "message.input_image.image_url",
    )
)


def prepare_responses(body: Mapping[str, Any]) -> Prepared:
    """A request as the engine keeps it; RequestRefused if it cannot."""
    draft = Draft(body)
    _check_fields(body)
    keep_bounds(draft)
    refuse_choices(body)
    offered = responses_tools(body["tools"]) if body.get("tools") is not None else NO_TOOLS
    _keep_input(draft, offered)
    enveloped = _keep_calls(draft, offered)
    items = draft.get("input")
    if draft.changes.get("json_schema") is not None and isinstance(items, list) and items:
        refuse_prefill(items[-1], f"input[{len(items) - 1}]")
    names = partial(_names, offered) if offered.origins else None
    return draft.prepared(chained(ResponsesCalls if enveloped else None, names))


def _names(offered: OfferedTools, _ident: str) -> CallerNames:
    return CallerNames(offered.origins)


def _check_fields(body: Mapping[str, Any]) -> None:
    for field in _STATE:
        if body.get(field):
            raise unsupported(field, f"'{field}' is not supported. {_NO_STATE}")
    if body.get("background"):
        raise unsupported("background", "'background' is not supported: read the response of this request.")
    include = body.get("include")
    for index, wanted in enumerate(include if isinstance(include, list) else ()):
        if not isinstance(wanted, str) or wanted not in _NOTHING:
            raise unsupported(
                f"include[{index}]", f"'include[{index}]' is {str(wanted)[:80]!r}, which is not supported here."
            )
    if body.get("top_logprobs"):
        raise unsupported("top_logprobs", "'top_logprobs' is not supported in this API; use /v1/chat/completions.")
    text = body.get("text")
    if not isinstance(text, dict | None):
        raise invalid("text", "'text' must be an object.")
    if not isinstance(body.get("reasoning"), dict | None):
        raise invalid("reasoning", "'reasoning' must be an object.")
    if not isinstance(body.get("instructions"), str | None):
        raise invalid("instructions", "'instructions' must be a text.")


def _keep_input(draft: Draft, offered: OfferedTools) -> None:
    items = draft.get("input")
    if isinstance(items, list):
        draft.replace("input", kept_items(items, offered))
    elif not isinstance(items, str | None):  # the engine refuses none
        raise invalid("input", "'input' must be a text or a list of items.")
    if draft.get("top_logprobs") == 0:
        draft.set("top_logprobs", None)
    effort = (draft.get("reasoning") or {}).get("effort")
    if not isinstance(effort, str | None):
        raise invalid("reasoning.effort", "'reasoning.effort' must be a text.")


def _keep_calls(draft: Draft, offered: OfferedTools) -> bool:
    """Keep the tools, the tool choice and the schema of the answer; returns whether the answer is enveloped."""
    text = draft.get("text")
    answer = only_schema(draft, (text or {}).get("format"), "text.format")
    choice = responses_choice(draft.get("tool_choice"))
    if choice.names is not None:
        choice = ToolChoice(choice.mode, tuple(map(offered.offered_name, choice.names)))
    tools = loosened_tools(offered.tools, flat=True)
    check_names(choice, [tool["name"] for tool in tools])
    allowed = tools if choice.allows_all else [tool for tool in tools if choice.allows(tool["name"])]
    if allowed and draft.get("grammar") is not None:
        raise invalid("grammar", "'grammar' and 'tools' exclude each other.")
    draft.replace("tools", allowed or None)
    return constrain(draft, choice, [(tool["name"], tool.get("parameters")) for tool in allowed], answer)
