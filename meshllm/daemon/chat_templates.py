"""The chat templates of the models served here: the file that an engine uses, and what it renders.

Invariants: a template is examined once per model and template in the life of the daemon; one that could not be examined
is taken for one that renders everything, and examined again at the next start of its engine.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from meshllm.core.serving.template_traits import ANY_TEMPLATE, TemplateTraits
from meshllm.core.snapshot import Purpose
from meshllm.engine.processes import chat_template
from meshllm.models.gguf.purpose import usage
from meshllm.models.library.local_model import LocalModel
from meshllm.util.threads import StopSignal, in_thread

log = logging.getLogger(__name__)

FILE_NAME = "chat-template.jinja"


class ChatTemplates:
    """What is known of templates."""

    def __init__(self) -> None:
        self._traits: dict[tuple[str, str], TemplateTraits] = {}

    async def file(self, model: LocalModel, folder: Path) -> Path | None:
        """The file that replaces the model's own template: ours, or one with a place for tools, written to `folder`."""
        return await in_thread(partial(_file, model, folder), "chat template")

    async def traits(self, model: LocalModel, socket: str) -> TemplateTraits:
        """What the template of the engine at `socket` renders."""
        if usage(model.header).purpose is not Purpose.GENERATE:
            return ANY_TEMPLATE
        key = model.digest or str(model.path), str(model.chat_template or model.header.chat_template)
        if key not in self._traits:
            try:
                self._traits[key] = await chat_template.probe_traits(socket)
            except (OSError, TimeoutError, ValueError) as error:
                log.warning("the chat template of %s could not be examined: %s", model.name, error or "timeout")
                return ANY_TEMPLATE
        return self._traits[key]


def _file(model: LocalModel, folder: Path, stop: StopSignal) -> Path | None:
    del stop
    given = model.chat_template
    template = given.read_text("utf-8") if given is not None else model.header.chat_template or ""
    changed = None if model.header.tool_template else chat_template.with_tools(template)
    if changed is None:
        return given
    path = folder / FILE_NAME
    path.write_text(changed, "utf-8")
    return path
