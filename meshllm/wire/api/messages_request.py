"""Prepares bodies of `/v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshllm.wire.api.chat_calls import ChatCalls
from meshllm.wire.api.chat_to_messages import ChatToMessages, NoMessageTokens, PrefillCut
from meshllm.wire.api.engine_bounds import keep_bounds, refuse_choices, refuse_large, wants_no_tokens
from meshllm.wire.api.messages_blocks import kept_conversation, kept_system
from meshllm.wire.api.messages_to_chat import chat_body, chat_tool
from meshllm.wire.api.offered_tools import messages_tools
from meshllm.wire.api.prepared import Draft, Prepared
from meshllm.wire.api.refusal import NO_MESSAGE, invalid, unsupported
from meshllm.wire.api.response_translation import MakeTranslator, chained
from meshllm.wire.api.structured_output import constrain, loosened_tools, only_schema, refuse_prefill
from meshllm.wire.api.tool_choice import Mode, ToolChoice, check_names, messages_choice

CHAT_PATH = "/v1/chat/completions"
# Efforts that this API has beyond those that chat templates know.
_EFFORTS = {"xhigh": "high", "max": "high"}
MAX_EFFORT = 64
_UNSUPPORTED = {
    "mcp_servers": "The models here call only functions that you run.",
    "container": "There are no containers here.",
    "grammar": "Use 'output_format', or /v1/chat/completions.",
}


def prepare_messages(body: Mapping[str, Any]) -> Prepared:
    """A request as the engine keeps it; RequestRefused if it cannot."""
    return _prepare(body, counts=False)


def prepare_count(body: Mapping[str, Any]) -> Prepared:
    """A request to count the tokens of another one: the prompt that this would have."""
    return _prepare(body, counts=True)


def _prepare(body: Mapping[str, Any], *, counts: bool) -> Prepared:
    draft = Draft(body)
    for field, reason in _UNSUPPORTED.items():
        if field in body and body.get(field):
            raise unsupported(field, f"'{field}' is not supported. {reason}")
    if not counts and body.get("max_tokens") is None:
        # Without it the engine writes until the context is full.
        raise invalid("max_tokens", "'max_tokens' is missing: this API requires the most tokens of the answer.")
    if body.get("messages") == []:
        raise invalid("messages", NO_MESSAGE)
    cut = NoMessageTokens if wants_no_tokens(draft) else None
    keep_bounds(draft)
    refuse_choices(body)
    draft.replace("system", kept_system(body.get("system")))
    draft.replace("messages", kept_conversation(body.get("messages")))
    _keep_thinking(draft)
    _keep_effort(draft)
    answer = _answer_schema(draft)
    tools = messages_tools(body["tools"]) if body.get("tools") is not None else []
    choice = messages_choice(body.get("tool_choice"))
    check_names(choice, [tool["name"] for tool in tools])
    allowed = tools if choice.allows_all else [tool for tool in tools if choice.allows(tool["name"])]
    draft.replace("tools", allowed or None)
    if choice.mode is Mode.NONE:
        draft.set("tool_choice", None)
    prefill = "" if counts else _prefill(draft.get("messages") or [])
    if prefill and (answer is not None or choice.mode is Mode.REQUIRED):
        refuse_prefill(draft.get("messages")[-1], f"messages[{len(draft.get('messages')) - 1}]")
    if (
        not counts
        and draft.get("messages") is not None
        and (answer is not None or choice.mode is Mode.REQUIRED or choice.single)
    ):
        return _as_chat(draft, choice, allowed, answer, chained(_prefill_cut(prefill), cut))
    if allowed:
        draft.replace("tools", loosened_tools(allowed, flat=True, key="input_schema"))
    return draft.prepared(chained(_prefill_cut(prefill), cut))


def _prefill_cut(prefill: str) -> MakeTranslator | None:
    return (lambda _ident: PrefillCut(prefill)) if prefill else None


def _as_chat(
    draft: Draft, choice: ToolChoice, allowed: list[Any], answer: dict[str, Any] | None, cut: MakeTranslator | None
) -> Prepared:
    """The request as one of chat: the engine's conversion of this API drops schemas, and parallel_tool_calls."""
    chat = Draft(chat_body(draft.body() or draft.given))
    if choice.single:
        chat.set("parallel_tool_calls", False)
    if chat.get("stop"):
        chat.set("verbose", True)  # says which stop sequence it was
    tools = [chat_tool(tool) for tool in loosened_tools(allowed, flat=True, key="input_schema")]
    chat.replace("tools", tools or None)
    offered = [(tool["function"]["name"], tool["function"].get("parameters")) for tool in tools]
    calls = ChatCalls if constrain(chat, choice, offered, answer) else None
    return Prepared(
        chat.body() or chat.given,
        CHAT_PATH,
        chained(calls, ChatToMessages, cut),
    )


def _answer_schema(draft: Draft) -> dict[str, Any] | None:
    config = draft.get("output_config")
    if not isinstance(config, dict | None):
        raise invalid("output_config", "'output_config' must be an object.")
    if config is not None and config.get("format") is not None:
        return only_schema(draft, config["format"], "output_config.format")
    return only_schema(draft, draft.get("output_format"), "output_format")


def _keep_thinking(draft: Draft) -> None:
    thinking = draft.get("thinking")
    if thinking is None:
        return
    kind = thinking.get("type") if isinstance(thinking, dict) else None
    if kind not in ("enabled", "disabled", "adaptive"):
        raise invalid("thinking.type", "'thinking.type' must be 'enabled', 'disabled' or 'adaptive'.")
    budget = thinking.get("budget_tokens")
    refuse_large("thinking.budget_tokens", budget)
    if (
        isinstance(budget, bool)
        or not isinstance(budget, int | None)
        or (budget is not None and not 0 <= budget < 1 << 31)
    ):
        raise invalid("thinking.budget_tokens", "'thinking.budget_tokens' must be a whole number.")
    if kind == "disabled":
        draft.set("chat_template_kwargs", {"enable_thinking": False, **(draft.get("chat_template_kwargs") or {})})


def _keep_effort(draft: Draft) -> None:
    """Give the effort to the chat template, as the engine does with that of the other APIs."""
    config = draft.get("output_config")
    effort = config.get("effort") if isinstance(config, dict) else None
    if not isinstance(effort, str | None) or len(effort or "") > MAX_EFFORT:
        raise invalid("output_config.effort", "'output_config.effort' must be a text.")
    if effort:
        named = {"reasoning_effort": _EFFORTS.get(effort, effort)}
        draft.set("chat_template_kwargs", named | (draft.get("chat_template_kwargs") or {}))


def _prefill(messages: list[Any]) -> str:
    """The text with which the answer is to begin; empty if the last message is not the assistant's."""
    last = messages[-1] if messages else None
    if last is None or last["role"] != "assistant":
        return ""
    content = last["content"]
    if isinstance(content, str):
        return content
    return "".join(block["text"] for block in content if block["type"] == "text")
