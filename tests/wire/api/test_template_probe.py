"""What follows from prompts of the probe's conversations."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from meshllm.core.serving.template_traits import ANY_TEMPLATE, TemplateTraits
from meshllm.wire.api.template_probe import PLAIN, PROBES, SYSTEM_BESIDE_CALLS, Conversation, renders, traits_from


def prompt_of(conversation: Conversation, *, without: str = "", tools: bool = True) -> str:
    """As a simple template writes it, without the messages of one role."""
    lines = [str(conversation["tools"])] if tools and "tools" in conversation else []
    for message in conversation["messages"]:
        if message["role"] != without:
            lines.append(f"{message['role']}: {message['content']} {message.get('tool_calls', '')}")
    return "\n".join(lines)


def traits_of(**how: Any) -> TemplateTraits:
    return traits_from({name: all(renders(c, prompt_of(c, **how)) for c in probe) for name, probe in PROBES.items()})


def test_each_trait_has_a_probe() -> None:
    assert set(PROBES) == {field.name for field in fields(TemplateTraits)} | {SYSTEM_BESIDE_CALLS}
    assert renders(PLAIN, prompt_of(PLAIN))
    assert traits_of() == ANY_TEMPLATE


def test_a_message_that_is_left_out_silently_is_not_rendered() -> None:
    found = traits_of(without="system")
    assert not found.system
    assert not found.later_system
    assert found.users_in_row
    assert not traits_of(without="tool").calls
    assert not traits_of(tools=False).tools


def test_a_system_message_that_is_lost_in_the_midst_of_calls() -> None:
    """As in Mistral Nemo's template, which writes it into the user's message at the end, if there is one."""
    everything = dict.fromkeys(PROBES, True)
    assert traits_from(everything | {SYSTEM_BESIDE_CALLS: False}) == TemplateTraits(system=False)
    # Without calls the probe says nothing about system messages.
    assert traits_from(everything | {SYSTEM_BESIDE_CALLS: False, "calls": False}).system


def test_an_exception_or_another_order_is_not_rendered() -> None:
    for probe in PROBES.values():
        for conversation in probe:
            assert not renders(conversation, None)
            backwards = {**conversation, "messages": conversation["messages"][::-1]}
            if len(conversation["messages"]) > 1:
                assert not renders(conversation, prompt_of(backwards))


def test_a_template_without_calls_sees_results_as_users_messages() -> None:
    rendered = dict.fromkeys(PROBES, True) | {"calls": False, "user_after_tool": False, "long_call_ids": False}
    found = traits_from(rendered)
    assert found.user_after_tool
    assert found.long_call_ids
