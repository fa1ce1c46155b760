"""Templates are examined once, and a damaged cache or a mute engine does no harm."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from meshllm.core.serving.template_traits import ANY_TEMPLATE, TemplateTraits
from meshllm.daemon.chat_templates import CACHE_NAME, FILE_NAME, MAX_TEMPLATES, ChatTemplates
from meshllm.engine.processes import chat_template
from meshllm.models.library import local_model
from meshllm.models.library.local_model import LocalModel
from meshllm.models.library.store import Store
from tests.models.gguf_samples import write_sample

ENGINE = Path("/engine/llama-server")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sockets of the engines that were asked; they render no later system message."""
    sockets: list[str] = []

    async def probe(socket: str) -> TemplateTraits:
        sockets.append(socket)
        if socket == "mute":
            raise TimeoutError
        return TemplateTraits(later_system=False)

    monkeypatch.setattr(chat_template, "probe_traits", probe)
    return sockets


def model(folder: Path, template: str | None = "{{ messages }}") -> LocalModel:
    return local_model.from_path(write_sample(folder / "m.gguf", template=template), Store(folder / "models"))


async def test_a_template_is_examined_once_per_engine(tmp_path: Path, asked: list[str]) -> None:
    templates, served = ChatTemplates(tmp_path), model(tmp_path)
    for _ in range(2):
        assert await templates.traits(served, ENGINE, "one") == TemplateTraits(later_system=False)
    assert await ChatTemplates(tmp_path).traits(served, ENGINE, "again") == TemplateTraits(later_system=False)
    assert asked == ["one"]
    await templates.traits(served, Path("/other/llama-server"), "two")
    other = replace(served, header=replace(served.header, chat_template="{{ messages[0] }}"))
    await templates.traits(other, ENGINE, "three")
    assert asked == ["one", "two", "three"]


async def test_an_engine_that_does_not_answer_is_asked_again(tmp_path: Path, asked: list[str]) -> None:
    templates, served = ChatTemplates(tmp_path), model(tmp_path)
    for _ in range(2):
        assert await templates.traits(served, ENGINE, "mute") == ANY_TEMPLATE
    assert asked == ["mute", "mute"]
    assert not (tmp_path / CACHE_NAME).exists()


@pytest.mark.usefixtures("asked")
async def test_a_model_without_a_template_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    templates, ours = ChatTemplates(tmp_path), tmp_path / "ours.jinja"
    ours.write_text("{{ messages }}")
    base = model(tmp_path, None)
    await templates.traits(replace(base, chat_template=ours), ENGINE, "one")
    await templates.traits(replace(base, header=replace(base.header, tool_template=True)), ENGINE, "one")
    await templates.traits(model(tmp_path), ENGINE, "one")
    assert "no chat template" not in caplog.text
    await templates.traits(base, ENGINE, "one")
    assert f"{base.name} has no chat template" in caplog.text


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1, "b": ["c"], "d": [[]]}', "{" + " " * (1 << 17) + "}"])
async def test_a_damaged_cache_counts_as_empty(tmp_path: Path, asked: list[str], content: str) -> None:
    (tmp_path / CACHE_NAME).write_text(content)
    await ChatTemplates(tmp_path).traits(model(tmp_path), ENGINE, "one")
    assert asked == ["one"]
    assert list(json.loads((tmp_path / CACHE_NAME).read_text()).values()) == [["later_system"]]


async def test_the_cache_is_bounded(tmp_path: Path, asked: list[str]) -> None:
    templates, served = ChatTemplates(tmp_path), model(tmp_path)
    for number in range(MAX_TEMPLATES + 2):
        await templates.traits(served, Path(f"/engine/{number}"), "one")
    assert len(json.loads((tmp_path / CACHE_NAME).read_text())) == MAX_TEMPLATES


async def test_the_file_for_the_engine(tmp_path: Path) -> None:
    templates, served = ChatTemplates(tmp_path), model(tmp_path)
    changed = await templates.file(served, tmp_path)
    assert changed == tmp_path / FILE_NAME
    assert changed.read_text().endswith("{{ messages }}")
    assert await templates.file(model(tmp_path, None), tmp_path) is None
    assert await templates.file(model(tmp_path, "{{ tools }}"), tmp_path) is None
    ours = tmp_path / "ours.jinja"
    ours.write_text("{{ tools }}")
    assert await templates.file(replace(served, chat_template=ours), tmp_path) == ours
    two = replace(served, header=replace(served.header, tool_template=True))
    assert await templates.file(two, tmp_path) is None
