"""Downloads for another process of this machine (`mesh-llm download`): from the mesh first, then from the hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from meshllm import paths
from meshllm.errors import UnknownModel, UsageError
from meshllm.machine.packages import PipFetcher
from meshllm.models.library.store import Store
from meshllm.models.transfer import ensure
from meshllm.models.transfer.progress import TransferProgress, TransferStage
from meshllm.models.transfer.request import missing_files, requested_models
from meshllm.util.threads import in_thread

if TYPE_CHECKING:
    from meshllm.daemon.file_sharing import FileSharing
    from meshllm.models.catalog.entry import Wanted
    from meshllm.web.console.downloads import DownloadEvent, DownloadRequest

    Emit = Callable[[DownloadEvent], None]


class DownloadService:
    """Downloads models into the node's model folder; `sharing` returns the mesh as a source (None: no mesh)."""

    def __init__(self, sharing: Callable[[], FileSharing | None]) -> None:
        self._sharing = sharing

    async def download(self, request: DownloadRequest, emit: Emit) -> tuple[str, ...]:
        """The names of the models, complete and verified on this disk. Raises MeshError; may be cancelled."""
        from meshllm.web.console.downloads import DownloadExpected, DownloadStep  # loaded with the console's handlers

        store, sharing = Store(paths.models()), self._sharing()
        if request.folder and not _is_same_folder(request.folder, store.folder):
            raise UsageError(f"The running node has another model folder: {store.folder}.")
        wanted = await self._wanted(request, store, emit)
        expected: Mapping[str, int] = {}

        def report(step: TransferProgress) -> None:
            nonlocal expected
            if step.file not in expected and expected != (missing := missing_files(wanted, store)):
                expected = {**expected, **missing}
                emit(DownloadExpected(files=expected))
            emit(
                DownloadStep(
                    stage=step.stage,
                    file=step.file,
                    source=step.source,
                    done=step.done,
                    total=step.total,
                    detail=step.detail,
                    by_source=step.by_source,
                )
            )

        names = []
        for model in wanted:
            name = model.stem if isinstance(model, Path) else model.name
            peers = sharing.source(name) if sharing is not None else None
            found = await ensure.ensure(model, store, report, packages=PipFetcher(), peers=peers)
            names.append(found.name)
        return tuple(names)

    async def _wanted(self, request: DownloadRequest, store: Store, emit: Emit) -> list[Wanted]:
        """The models; one that neither catalogue nor disk knows is looked up in the mesh by its name."""
        name, sharing = request.name, self._sharing()
        try:
            return (await in_thread(lambda stop: requested_models(name, store, draft=request.draft), "resolve"))[0]
        except UnknownModel:
            if sharing is None or request.draft or "/" in name:
                raise

            from meshllm.web.console.downloads import DownloadStep

            def tell(text: str) -> None:
                emit(DownloadStep(stage=TransferStage.CONNECTING, file=name, detail=text))

            return [await sharing.find(name, "", tell)]


def _is_same_folder(first: str, second: Path) -> bool:
    return Path(first).resolve() == second.resolve()
