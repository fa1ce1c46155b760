"""How a model's engine is to guess ahead on this machine: what was asked for, and which draft there is.

Law: a draft that is missing, unfit or broken never keeps a model from being served: that goes on without it, and the
status says why. Only `--draft` makes anything be fetched; a draft that was named and cannot pair is refused before
anything is started, where that can be told from files that are here.
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
"""Brings a model to this disk, if it is not there. Raises MeshError."""


@dataclass(frozen=True, slots=True)
class DraftRequest:
    """What the user wants: to have tokens guessed ahead at all; by a draft, if there is one (`drafts`); by the draft
    `asked` for (called `name`) where the model called `target` is served."""

    speculation: bool = True
    drafts: bool = True
    asked: Wanted | None = None
    name: str = ""
    target: str = ""


NO_DRAFT_REQUEST = DraftRequest()
"""Whatever is here may be used."""


def draft_request(settings: Settings, wanted: Mapping[str, Wanted | None], store: Store) -> DraftRequest:
    """What `settings` ask for; `wanted` are their models, by name.

    Raises as `resolve` does for a draft's name that means nothing, and UsageError if that draft cannot pair with the
    first model, as far as files that are here tell.
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
    """Finds drafts. `named`: files outside the store that may be one too."""

    def __init__(self, wish: DraftRequest, store: Store, named: Iterable[Path] = ()) -> None:
        self._wish = wish
        self._store = store
        self._named = tuple(named)
        self._broken: dict[Path, str] = {}

    async def choose(self, name: str, model: LocalModel, ensure: Ensure) -> tuple[Speculation, LocalModel | None]:
        """How to guess ahead for `model`, served as `name`, and the draft for it. Fetches what was asked for."""
        header = model.header
        hindrance = obstacle(
            writes=usage(header).purpose is Purpose.GENERATE,
            causal=header.causal,
            recurrent=any(layer.state for layer in header.shape.layers),
        )
        if hindrance or not self._wish.speculation:
            return decide(wanted=self._wish.speculation, obstacle=hindrance, draft="", why_no_draft=""), None
        found = await self._find(name, model, ensure)
        if found.draft is not None and (why := self._broken.get(found.draft.path)):
            found = Pairing(reason=f"{found.name} was tried, but {why}")
        return decide(wanted=True, obstacle="", draft=found.name, why_no_draft=found.reason), found.draft

    def reject(self, draft: LocalModel, why: str) -> None:
        """An engine did not start with that draft: none does from now on."""
        log.warning("%s is not used as a draft any more: %s", draft.name, why)
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
            return await in_thread(lambda stop: self._look(model), "look for a draft")
        except MeshError as error:
            log.warning("%s is served without a draft: %s", name, error)
            return Pairing(reason=error.message)

    def _look(self, model: LocalModel) -> Pairing:
        return drafts.find(model, scan.scan(self._store, named=self._named), self._store)
