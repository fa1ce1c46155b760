"""The chat templates of the models served here: the file that an engine uses, and what it renders.

Invariants: a template is examined once per template and engine, also over restarts of the daemon; one that could not be
examined is taken for one that renders everything, and examined again at the next start of its engine.
"""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import fields
from functools import partial
from hashlib import sha256
from pathlib import Path

from meshllm.core.serving.template_traits import ANY_TEMPLATE, TemplateTraits
from meshllm.core.snapshot import NO_TEMPLATE, Purpose
from meshllm.engine.processes import chat_template
from meshllm.models.gguf.purpose import usage
from meshllm.models.library.local_model import LocalModel
from meshllm.util.atomic_file import replace_file
from meshllm.util.threads import StopSignal, in_thread
from meshllm.wire.api import strict_json
from meshllm.wire.api.template_probe import PROBES

log = logging.getLogger(__name__)

FILE_NAME = "chat-template.jinja"
CACHE_NAME = "chat-templates.json"
MAX_CACHE_BYTES = 64 << 10
MAX_TEMPLATES = 64
_NAMES = frozenset(field.name for field in fields(TemplateTraits))


class ChatTemplates:
    """What is known of templates, kept in a file of the node's home."""

    def __init__(self, home: Path) -> None:
        self._path = home / CACHE_NAME
        # By template, engine and probe: the names of the traits that the template lacks.
        self._lacks: dict[str, list[str]] | None = None

    async def file(self, model: LocalModel, folder: Path) -> Path | None:
        """The file that replaces the model's own template: ours, or one with a place for tools, written to `folder`."""
        return await in_thread(partial(_file, model, folder), "chat template")

    async def traits(self, model: LocalModel, engine: Path, socket: str) -> TemplateTraits:
        """What the template of `model` renders, as the process at `socket` of the `engine` says."""
        if usage(model.header).purpose is not Purpose.GENERATE:
            return ANY_TEMPLATE
        if not model.has_template:
            log.warning("%s has %s", model.name, NO_TEMPLATE)
        if self._lacks is None:
            self._lacks = await in_thread(partial(_read, self._path), "chat templates")
        key = await in_thread(partial(_key, model, engine), "chat template")
        if (lacks := self._lacks.get(key)) is None:
            try:
                found = await chat_template.probe_traits(socket)
            except (OSError, TimeoutError, ValueError) as error:
                log.warning("the chat template of %s could not be examined: %s", model.name, error or "timeout")
                return ANY_TEMPLATE
            lacks = [name for name in sorted(_NAMES) if not getattr(found, name)]
            self._lacks = dict([*self._lacks.items(), (key, lacks)][-MAX_TEMPLATES:])
            await in_thread(partial(_write, self._path, self._lacks), "chat templates")
            if lacks:
                log.info("the chat template of %s does not render: %s", model.name, ", ".join(lacks))
        return TemplateTraits(**dict.fromkeys(lacks, False))


def _template(model: LocalModel) -> str:
    given = model.chat_template
    return given.read_text("utf-8") if given is not None else model.header.chat_template or ""


def _file(model: LocalModel, folder: Path, stop: StopSignal) -> Path | None:
    del stop
    changed = None if model.header.tool_template else chat_template.with_tools(_template(model))
    if changed is None:
        return model.chat_template
    path = folder / FILE_NAME
    path.write_text(changed, "utf-8")
    return path


def engine_template(model: LocalModel) -> str:
    """What tells the template apart that the engine gets: its text, and that of our place for tools. Reads files."""
    return "\0".join((chat_template.TOOLS_PREFIX.read_text("utf-8"), _template(model)))


def _key(model: LocalModel, engine: Path, stop: StopSignal) -> str:
    """Of the template as the engine gets it, the engine's build, and the conversations of the probe."""
    del stop
    # A second template for tools is in no header that is read: then the file counts.
    model_file = str(model.digest or model.path) if model.header.tool_template else ""
    parts = (str(engine), json.dumps(dict(PROBES), sort_keys=True), engine_template(model), model_file)
    return sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()


def _read(path: Path, stop: StopSignal) -> dict[str, list[str]]:
    """The cache; empty if it is missing or damaged."""
    del stop
    try:
        with path.open("rb") as file:
            found = strict_json.loads_object(file.read(MAX_CACHE_BYTES)) or {}
    except OSError:
        return {}
    return {
        key: lacks
        for key, lacks in found.items()
        if isinstance(lacks, list) and all(isinstance(name, str) and name in _NAMES for name in lacks)
    }


def _write(path: Path, lacks: dict[str, list[str]], stop: StopSignal) -> None:
    del stop
    with contextlib.suppress(OSError):  # it is only a cache
        replace_file(path, json.dumps(lacks, indent=1), mode=0o600)
