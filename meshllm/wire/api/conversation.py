"""Shapes conversations so that a model's chat template renders them with every instruction in the prompt. Pure.

Many templates raise an exception for a second system message, for a system message after the first message, or for two
messages of one role in a row; others leave such messages out silently. What a template renders is in `TemplateTraits`.

The rules, each applied only where the template needs it:

- System messages at the start are joined into one. A template without system messages gets their text at the start of
  the first user message.
- A later system message becomes part of the user message before it, else of the one after it, between the lines
  `[system]` and `[/system]`. Directly after a tool's result it becomes part of that result. It never comes between a
  call and its results: it follows them.
- Messages of one role in a row are joined, with an empty line between their texts.
- A user message directly after a tool's result becomes part of that result, between `[user]` and `[/user]`.
- A tool's result that is a list of texts becomes one text; other contents do where the template renders no parts.
- Calls and results become texts (`tools_as_text`) where the template renders none; identifiers of calls short ones.
- A conversation that does not begin with a user message gets one that says `[start]`.

What a message becomes depends only on the messages before it and its neighbour after it, so that the prompt of one turn
is the beginning of the next turn's prompt, which the engine's prompt cache needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meshllm.core.serving.template_traits import ANY_TEMPLATE, TemplateTraits
from meshllm.wire.api.conversation_format import (
    ANTHROPIC,
    CHAT,
    RESPONSES,
    Entry,
    EntryRole,
    Format,
    joined_contents,
    marked,
    plain,
    split_results,
)
from meshllm.wire.api.routes import Api
from meshllm.wire.api.tools_as_text import call_as_text, describe_tools, result_as_text, with_short_ids

__all__ = ["ANY_TEMPLATE", "START", "TemplateTraits", "shape", "shape_anthropic", "shape_body", "shape_responses"]

START = "[start]"
"""The text of a user message put before a conversation that the assistant opens."""


@dataclass(slots=True)
class _Turn:
    """A message of the conversation. `marked`: it was a system message; `lead`: one from the start."""

    role: EntryRole
    entry: Any
    marked: bool = False
    lead: bool = False


def shape(messages: list[Any], traits: TemplateTraits) -> list[Any]:
    """The messages of `/v1/chat/completions`, shaped; the same list if it needs no change."""
    shaped = _shape(messages, traits, CHAT)
    return messages if shaped is None else shaped


def shape_responses(instructions: Any, items: list[Any], traits: TemplateTraits) -> tuple[Any, list[Any]]:
    """`instructions` (None: missing) and `input` of `/v1/responses`, shaped; the same objects if nothing changes."""
    return _with_head(instructions, items, traits, RESPONSES)


def shape_anthropic(system: Any, messages: list[Any], traits: TemplateTraits) -> tuple[Any, list[Any]]:
    """`system` (None: missing) and `messages` of `/v1/messages`, shaped; the same objects if nothing changes.

    For every template: text that follows tools' results in one message gets a message of its own, because the engine
    would put it before them.
    """
    split = split_results(messages)
    system, shaped = _with_head(system, split, traits, ANTHROPIC)
    return system, shaped


def _with_head(head: Any, entries: list[Any], traits: TemplateTraits, form: Format) -> tuple[Any, list[Any]]:
    """Shape entries whose first system message is a field of its own (`head`)."""
    conversation = entries if head is None else [{"role": "system", "content": head}, *entries]
    shaped = _shape(conversation, traits, form)
    if shaped is None:
        return head, entries
    if head is None or not shaped or form.role(shaped[0]) is not EntryRole.SYSTEM:
        return None, shaped
    content = shaped[0]["content"]
    if isinstance(content, str) or form is ANTHROPIC:  # OpenAI takes no parts there
        return content, shaped[1:]
    return None, shaped


# -- the rules


def _shape(entries: Sequence[Any], traits: TemplateTraits, form: Format) -> list[Any] | None:
    """The entries, shaped; None if they need no change."""
    if traits == ANY_TEMPLATE and not _changes_always(entries, form):
        return None
    turns = [_plain_result(_Turn(form.role(entry), entry), form) for entry in entries]
    if traits != ANY_TEMPLATE:
        turns = [_rendered_call(_without_parts(turn, traits, form), traits, form) for turn in turns]
        turns = _joined(_deferred(_converted(turns, traits, form)), traits, form)
        turns = _opened(turns, traits, form)
    shaped = [turn.entry for turn in _join_last_assistants(turns, form)]
    same = len(shaped) == len(entries) and all(new is old for new, old in zip(shaped, entries, strict=True))
    return None if same else shaped


def _changes_always(entries: Sequence[Any], form: Format) -> bool:
    """Whether there is something that no engine takes, or few templates render."""
    if all(form.role(entry) is EntryRole.ASSISTANT for entry in entries[-2:]):
        return True
    return any(isinstance(entry, dict) and isinstance(entry.get(form.result), list) for entry in entries)


def _plain_result(turn: _Turn, form: Format) -> _Turn:
    """A tool's result of texts only as one text: many templates write a list as JSON."""
    if turn.role is not EntryRole.TOOL or not form.result or not isinstance(turn.entry.get(form.result), list):
        return turn
    text = plain(turn.entry[form.result])
    return turn if text is None else _Turn(turn.role, {**turn.entry, form.result: text})


def _without_parts(turn: _Turn, traits: TemplateTraits, form: Format) -> _Turn:
    """Texts in parts as one text. The engine makes parts of it again in responses, and joins Anthropic's own system."""
    in_parts = turn.role in (EntryRole.USER, EntryRole.ASSISTANT, EntryRole.SYSTEM) and "content" in turn.entry
    if traits.parts or not in_parts or form is RESPONSES or (form is ANTHROPIC and turn.role is EntryRole.SYSTEM):
        return turn
    content = turn.entry["content"]
    text = plain(content) if isinstance(content, list) else None
    return turn if text is None else _Turn(turn.role, {**turn.entry, "content": text})


def _rendered_call(turn: _Turn, traits: TemplateTraits, form: Format) -> _Turn:
    """Calls and results as texts, or with identifiers that the template takes."""
    if turn.role is EntryRole.ASSISTANT:
        if not traits.calls and (entry := call_as_text(turn.entry, form)) != turn.entry:
            return _Turn(turn.role, entry)
    elif turn.role is not EntryRole.TOOL:
        return turn
    elif not traits.calls:
        return _Turn(EntryRole.USER, result_as_text(turn.entry, form))
    return turn if traits.long_call_ids else _Turn(turn.role, with_short_ids(turn.entry))


def _converted(turns: list[_Turn], traits: TemplateTraits, form: Format) -> list[_Turn]:
    """System messages as the template renders them: joined at the start, or as user messages."""
    count = next((index for index, turn in enumerate(turns) if turn.role is not EntryRole.SYSTEM), len(turns))
    lead, rest = turns[:count], turns[count:]
    if len(lead) > 1 and not (traits.system and traits.systems_first):
        lead = [_Turn(EntryRole.SYSTEM, _join(lead, form))]
    if not traits.system or (not rest and not traits.system_alone):
        lead = [_Turn(EntryRole.USER, _user(turn.entry.get("content"), form), lead=True) for turn in lead]
    elif not traits.developer:
        lead = [_without_developer(turn) for turn in lead]
    if traits.later_system:
        return lead + rest
    return lead + [_marked_user(turn, form) if turn.role is EntryRole.SYSTEM else turn for turn in rest]


def _without_developer(turn: _Turn) -> _Turn:
    return _Turn(turn.role, {**turn.entry, "role": "system"}) if turn.entry.get("role") == "developer" else turn


def _marked_user(turn: _Turn, form: Format) -> _Turn:
    content = marked(turn.entry.get("content"), "system", form)
    return _Turn(EntryRole.USER, {"role": "user", "content": content}, marked=True)


def _deferred(turns: list[_Turn]) -> list[_Turn]:
    """Former system messages between a call and its results follow the results."""
    ordered: list[_Turn] = []
    waiting: list[_Turn] = []
    for turn in turns:
        if turn.marked and ordered and ordered[-1].role in (EntryRole.ASSISTANT, EntryRole.TOOL):
            waiting.append(turn)
            continue
        if turn.role is not EntryRole.TOOL:
            ordered += waiting
            waiting = []
        ordered.append(turn)
    return ordered + waiting


def _joined(turns: list[_Turn], traits: TemplateTraits, form: Format) -> list[_Turn]:
    """Neighbours joined where the template does not render them one after the other."""
    joined: list[_Turn] = []
    run: list[_Turn] = []
    for turn in turns:
        if run and not _joins(run, turn, traits, form):
            joined.append(_one(run, form))
            run = []
        run.append(turn)
    return [*joined, _one(run, form)] if run else joined


def _joins(run: list[_Turn], after: _Turn, traits: TemplateTraits, form: Format) -> bool:
    before = run[-1]
    if run[0].role is EntryRole.TOOL:
        return after.role is EntryRole.USER and not traits.user_after_tool
    if before.role is EntryRole.USER and after.role is EntryRole.USER:
        return not traits.users_in_row or before.marked or after.marked or before.lead
    if before.role is EntryRole.ASSISTANT and after.role is EntryRole.ASSISTANT:
        return form.joins_assistants and not traits.assistants_in_row
    return False


def _one(run: list[_Turn], form: Format) -> _Turn:
    """A run of messages as one."""
    first = run[0]
    if len(run) == 1:
        return first
    if first.role is EntryRole.TOOL:
        return _Turn(first.role, _extended_result(first.entry, run[1:], form))
    if first.role is EntryRole.ASSISTANT:
        return _Turn(first.role, _joined_assistants([turn.entry for turn in run], form))
    return _Turn(first.role, _join(run, form))


def _opened(turns: list[_Turn], traits: TemplateTraits, form: Format) -> list[_Turn]:
    """A user message before a conversation that the assistant opens."""
    if traits.assistant_first:
        return turns
    index = next((index for index, turn in enumerate(turns) if turn.role is not EntryRole.SYSTEM), len(turns))
    if index < len(turns) and turns[index].role in (EntryRole.ASSISTANT, EntryRole.TOOL):
        return [*turns[:index], _Turn(EntryRole.USER, {"role": "user", "content": START}), *turns[index:]]
    return turns


def _join_last_assistants(turns: list[_Turn], form: Format) -> list[_Turn]:
    """The assistant's messages at the end as one, which the engine continues; it refuses several."""
    if not form.joins_assistants:
        return turns
    first = len(turns)
    while first and turns[first - 1].role is EntryRole.ASSISTANT:
        first -= 1
    return turns if len(turns) - first < 2 else [*turns[:first], _one(turns[first:], form)]


# -- messages made of others


def _join(run: Sequence[_Turn], form: Format) -> dict[str, Any]:
    entry = dict(run[0].entry)
    contents = [turn.entry.get("content") for turn in run]
    # The engine looks at each part of Anthropic's system text for a header that breaks caches.
    in_parts = form is ANTHROPIC and run[0].role is EntryRole.SYSTEM and isinstance(contents[0], list)
    entry["content"] = joined_contents(contents, form, in_parts=in_parts)
    return entry


def _user(content: Any, form: Format) -> dict[str, Any]:
    text = plain(content)
    return {"role": "user", "content": content if text is None else text}


def _extended_result(entry: Entry, later: Sequence[_Turn], form: Format) -> dict[str, Any]:
    """A tool's result with the messages that follow it."""
    contents = [turn.entry.get("content") for turn in later]
    added = [
        content if turn.marked else marked(content, "user", form) for turn, content in zip(later, contents, strict=True)
    ]
    if form.result:
        return {**entry, form.result: joined_contents([entry.get(form.result), *added], form)}
    blocks = list(entry["content"])
    blocks[-1] = {**blocks[-1], "content": joined_contents([blocks[-1].get("content"), *added], form)}
    return {**entry, "content": blocks}


def _joined_assistants(entries: Sequence[Entry], form: Format) -> dict[str, Any]:
    """Messages of the assistant as one: its texts, its reasoning and its calls."""
    joined: dict[str, Any] = {key: value for entry in entries for key, value in entry.items()}
    contents = [entry.get("content") for entry in entries]
    if any(contents):
        joined["content"] = joined_contents(contents, form)
    reasoning = [text for entry in entries if isinstance(text := entry.get("reasoning_content"), str) and text]
    if reasoning:
        joined["reasoning_content"] = "\n\n".join(reasoning)
    calls = [call for entry in entries if isinstance(found := entry.get("tool_calls"), list) for call in found]
    if calls:
        joined["tool_calls"] = calls
    return joined


def shape_body(api: Api, body: Mapping[str, Any], traits: TemplateTraits) -> dict[str, Any] | None:
    """`body` with its conversation shaped; None if it needs no change, or has no conversation.

    Raises RequestRefused for a required call if the template has no place for tools.
    """
    # Messages of responses are in parts always.
    shows_tools = traits.tools and (traits.parts or "input" not in body)
    told = None if shows_tools else describe_tools(api, body)
    if told is not None:
        return _shape_body(api, told, traits) or told
    return _shape_body(api, body, traits)


def _shape_body(api: Api, body: Mapping[str, Any], traits: TemplateTraits) -> dict[str, Any] | None:
    messages, items = body.get("messages"), body.get("input")
    if api in (Api.MESSAGES, Api.COUNT_TOKENS) and isinstance(messages, list):
        return _changed(body, "system", "messages", shape_anthropic(body.get("system"), messages, traits))
    if api in (Api.RESPONSES, Api.INPUT_TOKENS) and items is not None:
        # A text is one message of the user.
        conversation = [{"role": "user", "content": items}] if isinstance(items, str) else items
        if not isinstance(conversation, list):
            return None
        shaped = shape_responses(body.get("instructions"), conversation, traits)
        return None if shaped[1] is conversation else _changed(body, "instructions", "input", shaped)
    if api in (Api.CHAT, Api.INPUT_TOKENS) and isinstance(messages, list):
        shaped_messages = shape(messages, traits)
        return {**body, "messages": shaped_messages} if shaped_messages is not messages else None
    return None


def _changed(body: Mapping[str, Any], head: str, field: str, shaped: tuple[Any, list[Any]]) -> dict[str, Any] | None:
    """`body` with both fields as shaped."""
    if shaped[0] is body.get(head) and shaped[1] is body[field]:
        return None
    changed = {**body, head: shaped[0], field: shaped[1]}
    if shaped[0] is None:
        del changed[head]
    return changed
