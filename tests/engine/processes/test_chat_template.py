"""What the real engine says about chat templates, and tools in a template that has no place for them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from meshllm import paths
from meshllm.core.serving.template_traits import TemplateTraits
from meshllm.engine.build import builder
from meshllm.engine.processes import llama_server, unix_http
from meshllm.engine.processes.chat_template import probe_traits, with_tools
from meshllm.engine.processes.child import Child
from meshllm.engine.processes.child_registry import ChildRegistry
from meshllm.engine.processes.llama_server import ServerPlan
from meshllm.tasks import Owner

TEMPLATES = Path(__file__).with_name("templates")
IN_TURN = {
    "systems_first", "later_system", "system_alone", "users_in_row", "assistants_in_row", "user_after_tool",
    "assistant_first",
}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@asynccontextmanager
async def engine_with(template: Path, folder: Path) -> AsyncIterator[str]:
    """The socket of an engine that uses `template`."""
    engine = builder.find()
    assert engine is not None
    model = next(paths.models().glob("SmolLM2-135M-Instruct*.gguf"))
    plan = ServerPlan("m", model, context_length=256, slots=1, chat_template=template)
    socket = folder / "s.sock"
    spec = llama_server.child_spec(engine.server, plan, socket, folder / "log", lambda fraction: None)
    ready = asyncio.Event()
    child = Child(spec, ChildRegistry(folder / "ledger"), lambda pid: ready.set())
    owner = Owner("test")
    running = owner.start(child.run(), "engine")
    try:
        await ready.wait()
        yield str(socket)
    finally:
        child.stop()
        await running
        await owner.close()


def missing(traits: TemplateTraits) -> set[str]:
    return {field.name for field in fields(traits) if not getattr(traits, field.name)}


@pytest.mark.engine
@pytest.mark.parametrize(
    ("name", "lacks"),
    [
        ("one-system", {"systems_first", "later_system", "system_alone"}),
        ("in-turn", IN_TURN | {"long_call_ids"}),
        ("no-tools", (IN_TURN | {"tools", "calls"}) - {"user_after_tool"}),
    ],
)
async def test_traits_of_templates(tmp_path: Path, name: str, lacks: set[str]) -> None:
    async with engine_with(TEMPLATES / f"{name}.jinja", tmp_path) as socket:
        found = await probe_traits(socket)
    # The engine itself puts a system message into the next one where a template has none.
    assert missing(found) == lacks


@pytest.mark.engine
async def test_a_template_without_tools_gets_a_place_for_them(tmp_path: Path) -> None:
    changed = with_tools((TEMPLATES / "no-tools.jinja").read_text())
    assert changed is not None
    assert with_tools(changed) is None
    template = tmp_path / "template.jinja"
    template.write_text(changed)
    async with engine_with(template, tmp_path) as socket:
        assert missing(await probe_traits(socket)) == IN_TURN
        # The engine continues this call, and parses it as one.
        begun = '<tool_call>\n{"name": "weather", "arguments": {'
        messages = [{"role": "user", "content": "Rome?"}, {"role": "assistant", "content": begun}]
        body = {"messages": messages, "tools": [TOOL], "tool_choice": "required", "max_tokens": 24, "temperature": 0}
        status, reply = await unix_http.post(socket, "/v1/chat/completions", json.dumps(body).encode(), deadline=60)
    assert status == 200, reply
    message: dict[str, Any] = json.loads(reply)["choices"][0]["message"]
    assert message["tool_calls"][0]["function"]["name"] == "weather"


@pytest.mark.parametrize(
    "template", ["no-tools", " \n{%- for message in messages %} {{ message.content }} {% endfor %}\n"]
)
def test_without_tools_the_prefix_changes_nothing(template: str) -> None:
    file = TEMPLATES / f"{template}.jinja"
    own = file.read_text() if template == "no-tools" else template
    changed = with_tools(own)
    assert changed is not None
    messages = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "P"},
    ]
    before, after = (ImmutableSandboxedEnvironment().from_string(source) for source in (own, changed))
    assert after.render(messages=messages) == before.render(messages=messages)
    result = {"role": "tool", "content": "T"}
    assert "T\n</tool_response>" in after.render(messages=[*messages[:2], result])


def test_a_template_with_tools_is_not_changed() -> None:
    assert with_tools((TEMPLATES / "one-system.jinja").read_text()) is None
    assert with_tools("") is None
    assert with_tools("{{ messages }}") is not None
    assert with_tools("{{ 'tools_in_vain' }}") is not None
