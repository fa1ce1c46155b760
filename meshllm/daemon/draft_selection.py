"""Selects the source of draft tokens for a model on this machine.

A draft model that is missing, unsuitable or broken never keeps a model from being served. Only `--draft` downloads
anything. A named draft model that cannot pair is refused before the start, as far as local files tell.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from meshllm.core.memory.speculation import Speculation, decide, obstacle
from meshllm.core.snapshot import Purpose
from meshllm.daemon.settings import Settings
from meshllm.errors import MeshError
from meshllm.models.catalog.entry import Wanted
from meshllm.models.catalog.names import model_name
from meshllm.models.catalog.resolve import resolve
from meshllm.models.gguf.purpose import usage
from meshllm.models.library import drafts, scan
from meshllm.models.library.drafts import Pairing
from meshllm.models.library.local_model import LocalModel
from meshllm.models.library.store import Store
from meshllm.util.threads import in_thread

log = logging.getLogger(__name__)

Ensure = Callable[[Wanted], Awaitable[LocalModel]]
"""Downloads a model if it is missing. Raises MeshError."""


@dataclass(frozen=True, slots=True)
class DraftRequest:
    """The user's options: `speculation` at all, with draft models (`drafts`), with the draft model `asked` (named
    `name`) for the model named `target`."""

    speculation: bool = True
    drafts: bool = True
    asked: Wanted | None = None
    name: str = ""
    target: str = ""


NO_DRAFT_REQUEST = DraftRequest()
"""The defaults: any suitable local draft model."""


def draft_request(settings: Settings, wanted: Mapping[str, Wanted | None], store: Store) -> DraftRequest:
    """The options in `settings`; `wanted`: the requested models by name.

    Raises as `resolve` does for an unknown draft model, and UsageError if the draft model cannot pair with the
    first model, as far as local files tell.
    """
    if settings.draft is None:
        return DraftRequest(settings.speculation, settings.drafts)
    found = resolve(settings.draft, folder=store.folder, disk=lambda: scan.scan(store))
    if found.note:
        log.warning("%s", found.note)
    target, source = next(iter(wanted.items()))
    draft = drafts.load_complete(found.wanted, store)
    model = drafts.load_complete(source, store) if source is not None else None
    if draft is not None and model is not None:
        drafts.check(model, draft)
    name = model_name(found.wanted.name)
    return DraftRequest(settings.speculation, settings.drafts, found.wanted, name, target)


class DraftSelector:
    """Finds draft models. `named`: files outside the store to consider, too."""

    def __init__(self, wish: DraftRequest, store: Store, named: Iterable[Path] = ()) -> None:
        self._wish = wish
        self._store = store
        self._named = tuple(named)
        self._broken: dict[Path, str] = {}

    async def choose(self, name: str, model: LocalModel, ensure: Ensure) -> tuple[Speculation, LocalModel | None]:
        """The source of draft tokens for `model`, served as `name`, and its draft model. Downloads a requested one."""
        header = model.header
        obstacle_text = obstacle(
            writes=usage(header).purpose is Purpose.GENERATE,
            causal=header.causal,
            recurrent=any(layer.state for layer in header.shape.layers),
        )
        if obstacle_text or not self._wish.speculation:
            return decide(wanted=self._wish.speculation, obstacle=obstacle_text, draft="", why_no_draft=""), None
        found = await self._find(name, model, ensure)
        if found.draft is not None and (why := self._broken.get(found.draft.path)):
            found = Pairing(reason=f"{found.name} was tried, but {why}")
        return decide(wanted=True, obstacle="", draft=found.name, why_no_draft=found.reason), found.draft

    def reject(self, draft: LocalModel, why: str) -> None:
        """Do not use that draft model again: an engine did not start with it."""
        log.warning("draft model %s is no longer used: %s", draft.name, why)
        self._broken[draft.path] = why

    async def _find(self, name: str, model: LocalModel, ensure: Ensure) -> Pairing:
        wish = self._wish
        if not wish.drafts:
            return Pairing(reason="--no-draft")
        try:
            if wish.asked is not None and name == wish.target:
                draft = await ensure(wish.asked)
                await in_thread(lambda stop: drafts.check(model, draft), "compare vocabularies")
                return Pairing(wish.name, draft)
            return await in_thread(lambda stop: self._look(model), "find a draft model")
        except MeshError as error:
            log.warning("%s is served without a draft model: %s", name, error)
            return Pairing(reason=error.message)

    def _look(self, model: LocalModel) -> Pairing:
        return drafts.find(model, scan.scan(self._store, named=self._named), self._store)
