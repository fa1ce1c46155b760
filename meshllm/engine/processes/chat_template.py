"""A model's chat template: which conversations it renders, and a place for tools in a template that has none."""

from __future__ import annotations

import json
import re
from pathlib import Path

from meshllm.core.serving.template_traits import ANY_TEMPLATE, TemplateTraits
from meshllm.engine.processes import unix_http
from meshllm.wire.api.template_probe import PLAIN, PROBES, Conversation, renders, traits_from

# A rendering takes 1 to 10 ms; the engine does it beside what it computes.
RENDER_SECONDS = 5.0

_TOOLS = re.compile(r"\btools\b")

TOOLS_PREFIX = Path(__file__).with_name("tools-prefix.jinja")
"""Puts tools, calls and results into the texts of the messages that the template after it renders."""


async def probe_traits(socket: str) -> TemplateTraits:
    """What the template of the engine at `socket` renders.

    Raises as `unix_http.post` does. ANY_TEMPLATE if not even one user's message is rendered.
    """
    if not await _renders(socket, PLAIN):
        return ANY_TEMPLATE
    rendered = {}
    for name, conversations in PROBES.items():
        rendered[name] = True
        for conversation in conversations:
            rendered[name] = rendered[name] and await _renders(socket, conversation)
    return traits_from(rendered)


async def _renders(socket: str, conversation: Conversation) -> bool:
    status, reply = await unix_http.post(
        socket, "/apply-template", json.dumps(conversation).encode(), deadline=RENDER_SECONDS
    )
    return renders(conversation, _prompt(reply) if status == 200 else None)


def _prompt(reply: bytes) -> str | None:
    found = json.loads(reply)
    prompt = found.get("prompt") if isinstance(found, dict) else None
    return prompt if isinstance(prompt, str) else None


def with_tools(template: str) -> str | None:
    """`template` with a place for tools before it; None if it has one, or there is no template.

    The engine leaves tools out silently if the template does not render them. With the prefix it finds out how calls
    are written, as with any other template: it parses them, and enforces their grammar.
    """
    if not template.strip() or _TOOLS.search(template):
        return None
    return TOOLS_PREFIX.read_text("utf-8") + template
