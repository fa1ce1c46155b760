"""What a model's chat template renders. Found once per model with the engine (`wire/api/template_probe.py`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TemplateTraits:
    """Conversations that a chat template renders completely: without an exception, and with every text in the prompt.

    `system`: a system message at the start; `developer`: the role "developer" there; `systems_first`: several system
    messages at the start; `later_system`: system messages after others; `system_alone`: no message but that one.
    `users_in_row`, `assistants_in_row`: two messages of that role in a row; `user_after_tool`: a user's message right
    after a tool's result; `assistant_first`: a conversation that the assistant opens. `tools`: definitions of tools;
    `calls`: calls and results; `long_call_ids`: identifiers of calls of any length; `parts`: texts in parts, also
    beside tools.
    """

    system: bool = True
    developer: bool = True
    systems_first: bool = True
    later_system: bool = True
    system_alone: bool = True
    users_in_row: bool = True
    assistants_in_row: bool = True
    user_after_tool: bool = True
    assistant_first: bool = True
    tools: bool = True
    calls: bool = True
    long_call_ids: bool = True
    parts: bool = True


ANY_TEMPLATE = TemplateTraits()
"""Of a template that was not examined: only what no template renders is changed."""
